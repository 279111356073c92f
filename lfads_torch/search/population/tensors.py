"""Everything that members hold, stacked, and the check that models can be stacked."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.utils._pytree
from torch import Tensor, nn

from ...arguments import TUNABLES
from ...errors import ConfigError
from ...metrics import SMOOTHING, ExpSmoothedMetric
from ...metrics.epoch import BITS
from ...model import LFADS
from ...network import PARTS
from ...optimiser import BEHAVIOR

#: The arrays of a state, besides `frozen` and `buffers`.
_ARRAYS = (
    *("weights", "exp_avg", "exp_avg_sq", "steps", "lr", "plateau_best", "plateau_bad"),
    *("smoothed", "smoothed_bits", "alive", "seeds"),
)
#: Arguments of the constructor that may differ between members.
_MEMBER_NUMBERS = {
    *TUNABLES,
    *("lr_adam_beta1", "lr_adam_beta2", "lr_adam_epsilon"),
    *("lr_scheduler", "lr_stop", "lr_decay", "lr_patience"),
    *("l2_start_epoch", "l2_increase_epoch", "kl_start_epoch", "kl_increase_epoch"),
    *("behavior_start_epoch", "behavior_increase_epoch", "behavior_lr"),
}
#: Set by the data, or while training.
_NOT_STRUCTURE = {"training", "data_checked"}


class MemberTensors:
    """The state of K models of one structure, each kind with a leading axis of members.

    The trained parameters of a member are one row of `weights` (K, P), in the order of `names`, so
    that clipping, optimiser and exchange are a few operations; `exp_avg` and `exp_avg_sq` are the
    moments of AdamW. `frozen` and `buffers` hold (K, ...) by their names in the model. `lr`,
    `plateau_best` and `plateau_bad` (K,) are what `ReduceLROnPlateau` knows, `smoothed` (K,) is the
    smoothed reconstruction loss of the validation trials, `smoothed_bits` (K, 3) their smoothed
    bits per spike. `models` are ordinary models whose
    parameters and buffers are views of these arrays: what is done to one is done to the other.
    """

    def __init__(self, models: Sequence[LFADS], seeds: Sequence[int], device: torch.device) -> None:
        _check_structure(models)
        self.device = device
        self.models: list[Any] = [copy.deepcopy(model).to(device) for model in models]
        self.tunables = _tunable_buffers(self.models[0])
        parameters = dict(self.models[0].named_parameters())
        trained = {n: p for n, p in parameters.items() if p.requires_grad and p.numel()}
        self.names = list(trained)
        self._shapes = [p.shape for p in trained.values()]
        self._ends = torch.tensor([p.numel() for p in trained.values()]).cumsum(0).tolist()
        #: Whether a parameter is of the readout of behaviour, an optimiser's group of its own.
        self.is_readout = [name.startswith(BEHAVIOR) for name in self.names]
        self.weights = torch.stack([_flat(model, self.names) for model in self.models])
        self.frozen = {
            name: torch.stack([model.get_parameter(name).detach() for model in self.models])
            for name in parameters
            if name not in trained
        }
        self.buffers = {
            name: torch.stack([model.get_buffer(name) for model in self.models])
            for name, _ in self.models[0].named_buffers()
        }
        n = len(self.models)
        self.exp_avg, self.exp_avg_sq = (torch.zeros_like(self.weights) for _ in range(2))
        self.steps = torch.zeros(n, device=device)
        # In float64 on the CPU: torch's schedule keeps them as Python's numbers.
        self.lr = self.tunable("lr_init").double().cpu()
        self.plateau_best = torch.full((n,), torch.inf, dtype=torch.float64)
        self.plateau_bad = torch.zeros(n, dtype=torch.int64)
        self.smoothed = torch.full((n,), torch.nan)
        self.smoothed_bits = torch.full((n, len(BITS)), torch.nan)
        self.alive = torch.ones(n, dtype=torch.bool)
        self.seeds = torch.tensor(list(seeds), dtype=torch.int64)
        self._attach()

    def __len__(self) -> int:
        return len(self.models)

    def tunable(self, name: str) -> Tensor:
        """Return a tunable number of every member, (K,), by its path below ``model.``."""
        return self.buffers[self.tunables[name]]

    def spans(self, chosen: Sequence[bool]) -> list[slice]:
        """Return the columns of the matrix that hold some parameters, neighbours together."""
        spans: list[slice] = []
        for is_chosen, start, end in zip(chosen, [0, *self._ends], self._ends, strict=False):
            if not is_chosen:
                continue
            if spans and spans[-1].stop == start:
                start = spans.pop().start
            spans.append(slice(start, end))
        return spans

    def leaves(self, rows: slice) -> dict[str, Tensor]:
        """Return trained parameters (c, ...) as views that gradients are taken of."""
        columns = self.split(self.weights[rows])
        return {name: column.detach().requires_grad_() for name, column in columns.items()}

    def split(self, matrix: Tensor) -> dict[str, Tensor]:
        """Split rows of length P (P,) or (c, P) into parameters."""
        columns = matrix.tensor_split(self._ends[:-1], dim=-1)
        return {
            name: column.view(*column.shape[:-1], *shape)
            for name, column, shape in zip(self.names, columns, self._shapes, strict=True)
        }

    def others(self, rows: slice) -> dict[str, Tensor]:
        """Return buffers and frozen parameters of some members, (c, ...)."""
        return {name: x[rows] for name, x in (*self.buffers.items(), *self.frozen.items())}

    # ---- copies --------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return all arrays, as they are."""
        return {name: getattr(self, name) for name in _ARRAYS} | {
            "frozen": dict(self.frozen),
            "buffers": dict(self.buffers),
        }

    def copied(self, device: torch.device | None = None) -> dict[str, Any]:
        """Copy all arrays, where they are or to a device."""
        copies: dict[str, Any] = torch.utils._pytree.tree_map(
            lambda x: x.to(device or x.device, copy=True), self.state_dict()
        )
        return copies

    def write(
        self, state: Mapping[str, Any], members: Tensor, sources: Tensor, *, seeds: bool
    ) -> None:
        """Overwrite members, with or without their seeds, with members `sources` of a state."""
        for array, other in self._pairs(state, seeds):
            rows = other[sources.to(other.device)]
            array[members.to(array.device)] = rows.to(array.device, array.dtype)

    def _pairs(self, state: Mapping[str, Any], seeds: bool) -> Iterator[tuple[Tensor, Tensor]]:
        for name in _ARRAYS:
            # Searches that were begun before bits per spike were smoothed lack those.
            if name in state and (name != "seeds" or seeds):
                yield getattr(self, name), state[name]
        for kind in ("frozen", "buffers"):
            for name, array in getattr(self, kind).items():
                yield array, state[kind][name]

    def keep(self, members: Sequence[int]) -> None:
        """Drop all other members."""
        self.models = [self.models[k] for k in members]
        rows = torch.tensor(list(members), dtype=torch.int64)
        for name in _ARRAYS:
            setattr(self, name, getattr(self, name)[rows.to(getattr(self, name).device)])
        for kind in (self.frozen, self.buffers):
            for name, array in kind.items():
                kind[name] = array[rows.to(array.device)]
        self._attach()

    def _attach(self) -> None:
        """Make the models' parameters and buffers views of the arrays."""
        for k, model in enumerate(self.models):
            frozen = {name: array[k] for name, array in self.frozen.items()}
            for name, array in {**self.split(self.weights[k]), **frozen}.items():
                model.get_parameter(name).data = array
            views = {id(old): self.buffers[name][k] for name, old in model.named_buffers()}
            _replace_buffers(model, views)

    def detached(self, k: int) -> LFADS:
        """Return member k as a model on the CPU that shares nothing with the arrays."""
        model: LFADS = copy.deepcopy(self.models[k]).cpu()
        # A copy of a view brings along the memory of all members, which a checkpoint would store.
        _replace_buffers(model, {id(buffer): buffer.clone() for buffer in model.buffers()})
        model.valid_recon_smth = smoother(self.smoothed[k].clone())
        model.valid_bits_smth = smoother(self.smoothed_bits[k].clone())
        for name in TUNABLES:
            value = getattr(model, name).item()
            # Where it was not searched, the number as it was given, not rounded to float32.
            if value != torch.tensor(float(model.hparams[name])).item():
                model.hparams[name] = value
        return model.eval()


def smoother(values: Tensor) -> ExpSmoothedMetric:
    """Return the metric that smooths validation scores, at some values."""
    metric = ExpSmoothedMetric(SMOOTHING)
    metric.smoothed = values
    return metric


def _replace_buffers(model: nn.Module, by_id: Mapping[int, Tensor]) -> None:
    """Replace every buffer by its id, a shared one under each of its names."""
    for path, buffer in list(model.named_buffers(remove_duplicate=False)):
        holder, _, name = path.rpartition(".")
        setattr(model.get_submodule(holder), name, by_id[id(buffer)])


def _flat(model: nn.Module, names: Sequence[str]) -> Tensor:
    return torch.cat([model.get_parameter(name).detach().flatten() for name in names])


def _tunable_buffers(model: LFADS) -> dict[str, str]:
    """Return the names of the buffers that hold the tunables, by the tunables' paths."""
    names = {id(tensor): name for name, tensor in model.named_buffers()}
    return {path: names[id(tensor)] for path, tensor in model.tunables().items()}


def _check_structure(models: Sequence[Any]) -> None:
    """Refuse models that differ in more than numbers kept as tensors, naming the difference."""
    first = dict(_facts(models[0]))
    for k, model in enumerate(models[1:], start=1):
        facts = dict(_facts(model))
        for name in {**first, **facts}:
            if first.get(name) != facts.get(name):
                tunables = ", ".join(models[0].tunables())
                raise ConfigError(
                    f"{name} is {first.get(name)!r} in the model of member 0 and "
                    f"{facts.get(name)!r} in that of member {k}; members may differ "
                    f"in parameters, in the tunables ({tunables}), in the numbers of AdamW, of the "
                    "learning rate's schedule and of the ramps, and in nothing else; build all "
                    "members from one configuration"
                )


def _facts(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield what makes up the structure of a model, by name."""
    for name, value in model.hparams.items():
        if name not in _MEMBER_NUMBERS and name not in PARTS:
            yield f"model.{name}", value
    for name, parameter in model.named_parameters():
        yield f"{name}.shape", tuple(parameter.shape)
        yield f"{name}.requires_grad", parameter.requires_grad
    for name, buffer in model.named_buffers():
        yield f"{name}.shape", tuple(buffer.shape)
    for name, component in _objects(model):
        yield f"type of {name}", type(component).__qualname__
        yield from ((f"{name}.{key}", value) for key, value in _numbers(component))


def _objects(model: Any) -> Iterator[tuple[str, Any]]:
    yield from ((name, module) for name, module in model.named_modules() if name)
    for name in ("train_aug_stack", "infer_aug_stack"):
        for i, transform in enumerate(getattr(model, name).transforms):
            if not isinstance(transform, nn.Module):
                yield f"{name}.transforms.{i}", transform


def _numbers(component: Any) -> Iterator[tuple[str, Any]]:
    """Yield plain attributes; of a user's class, those that are arguments of its constructor."""
    arguments = inspect.signature(type(component)).parameters
    is_ours = type(component).__module__.partition(".")[0] == __package__.partition(".")[0]
    for name, value in vars(component).items():
        is_plain = isinstance(value, (bool, int, float, str)) and name not in _NOT_STRUCTURE
        if is_plain and (name in arguments or (is_ours and not name.startswith("_"))):
            yield name, value
