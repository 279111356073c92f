"""Everything that members hold, stacked: weights, optimiser state, numbers, smoothed loss."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.utils._pytree
from torch import Tensor, nn

from ...arguments import TUNABLES
from ...metrics import ExpSmoothedMetric
from ...model import LFADS


class MemberTensors:
    """The state of K models of one structure, each kind with a leading axis of members.

    The trained parameters of a member are one row of a matrix, so that clipping, optimiser and
    exchange are a few operations. `models` are ordinary models whose parameters and buffers are
    copies, and views of these arrays: what is done to one is done to the other.

    Attributes
    ----------
    models : list of LFADS
    names : list of str
        Trained parameters, in the order of the matrix.
    weights, exp_avg, exp_avg_sq : Tensor, shape (K, P)
        Trained parameters and the moments of AdamW.
    steps : Tensor, shape (K,)
        Steps of the optimiser.
    frozen, buffers : dict of str to Tensor
        Parameters that are not trained, and buffers, by their names in the model; (K, ...).
    lr, plateau_best, plateau_bad : Tensor, shape (K,)
        Learning rate, and what `ReduceLROnPlateau` knows.
    smoothed : Tensor, shape (K,)
        Smoothed reconstruction loss of the validation trials.
    alive : Tensor of bool, shape (K,)
    seeds : Tensor of int64, shape (K,)
    """

    def __init__(self, models: Sequence[LFADS], seeds: Sequence[int], device: torch.device) -> None:
        self.device = device
        self.models: list[Any] = [copy.deepcopy(model).to(device) for model in models]
        self.tunables = _tunable_buffers(self.models[0])
        parameters = dict(self.models[0].named_parameters())
        trained = {n: p for n, p in parameters.items() if p.requires_grad and p.numel()}
        self.names = list(trained)
        self._shapes = [p.shape for p in trained.values()]
        self._ends = torch.tensor([p.numel() for p in trained.values()]).cumsum(0).tolist()
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
        self.lr = self.tunable("lr_init").double().cpu()
        self.plateau_best = torch.full((n,), torch.inf, dtype=torch.float64)
        self.plateau_bad = torch.zeros(n, dtype=torch.int64)
        self.smoothed = torch.full((n,), torch.nan)
        self.alive = torch.ones(n, dtype=torch.bool)
        self.seeds = torch.tensor(list(seeds), dtype=torch.int64)
        self._attach()

    def __len__(self) -> int:
        return len(self.models)

    def tunable(self, name: str) -> Tensor:
        """Return a tunable number of every member, (K,), by its path below ``model.``."""
        return self.buffers[self.tunables[name]]

    def spans(self, wanted: Sequence[bool]) -> list[slice]:
        """Columns of the matrix that hold the parameters wanted, neighbours together."""
        spans: list[slice] = []
        for is_wanted, start, end in zip(wanted, [0, *self._ends], self._ends, strict=False):
            if not is_wanted:
                continue
            if spans and spans[-1].stop == start:
                start = spans.pop().start
            spans.append(slice(start, end))
        return spans

    def leaves(self, rows: slice) -> dict[str, Tensor]:
        """Trained parameters of some members, (c, ...), as views that gradients are taken of."""
        return {
            name: part.view(part.shape[0], *shape).detach().requires_grad_()
            for name, part, shape in zip(
                self.names, self._columns(self.weights[rows]), self._shapes, strict=True
            )
        }

    def split(self, matrix: Tensor) -> dict[str, Tensor]:
        """Take rows of length P (P,) or (c, P) apart into parameters."""
        return {
            name: part.view(*part.shape[:-1], *shape)
            for name, part, shape in zip(
                self.names, self._columns(matrix), self._shapes, strict=True
            )
        }

    def _columns(self, matrix: Tensor) -> tuple[Tensor, ...]:
        return matrix.tensor_split(self._ends[:-1], dim=-1)

    def others(self, rows: slice) -> dict[str, Tensor]:
        """Buffers and frozen parameters of some members, (c, ...)."""
        return {name: x[rows] for name, x in (*self.buffers.items(), *self.frozen.items())}

    # ---- copies --------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All arrays, as they are."""
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
        """Overwrite members with members `sources` of a state; `seeds` too where wanted."""
        for own, given in self._pairs(state, seeds):
            own[members.to(own.device)] = given[sources.to(given.device)].to(own.device, own.dtype)

    def _pairs(self, state: Mapping[str, Any], seeds: bool) -> Iterator[tuple[Tensor, Tensor]]:
        for name in _ARRAYS:
            if name != "seeds" or seeds:
                yield getattr(self, name), state[name]
        for kind in ("frozen", "buffers"):
            for name, own in getattr(self, kind).items():
                yield own, state[kind][name]

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
            for name, part in self.split(self.weights[k]).items():
                model.get_parameter(name).data = part
            for name, array in self.frozen.items():
                model.get_parameter(name).data = array[k]
            shared = {id(tensor): name for name, tensor in model.named_buffers()}
            for path, tensor in list(model.named_buffers(remove_duplicate=False)):
                holder, _, name = path.rpartition(".")
                setattr(model.get_submodule(holder), name, self.buffers[shared[id(tensor)]][k])

    def detached(self, k: int) -> LFADS:
        """Member k as a model on the CPU that shares nothing with the arrays."""
        model: LFADS = copy.deepcopy(self.models[k]).cpu()
        for path, tensor in list(model.named_buffers(remove_duplicate=False)):
            holder, _, name = path.rpartition(".")
            setattr(model.get_submodule(holder), name, tensor.clone())
        model.recon_smth = smoother(self.smoothed[k].clone())
        for name in TUNABLES:
            value = getattr(model, name).item()
            # Where it was not searched, the number as it was given, not rounded to float32.
            if value != torch.tensor(float(model.hparams[name])).item():
                model.hparams[name] = value
        return model.eval()


_ARRAYS = (
    "weights",
    "exp_avg",
    "exp_avg_sq",
    "steps",
    "lr",
    "plateau_best",
    "plateau_bad",
    "smoothed",
    "alive",
    "seeds",
)


def smoother(values: Tensor) -> ExpSmoothedMetric:
    """Return the metric that smooths the validation loss, at some values."""
    metric = ExpSmoothedMetric()
    metric.smoothed = values
    return metric


def _flat(model: nn.Module, names: Sequence[str]) -> Tensor:
    return torch.cat([model.get_parameter(name).detach().flatten() for name in names])


def _tunable_buffers(model: LFADS) -> dict[str, str]:
    """Names of the buffers that hold the tunables, by the tunables' paths."""
    names = {id(tensor): name for name, tensor in model.named_buffers()}
    return {path: names[id(tensor)] for path, tensor in model.tunables().items()}
