"""Many models of one structure trained at once, as one model with a leading axis of members."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...data.fingerprint import fingerprints
from ...errors import ConfigError, UserError, did_you_mean, whole
from ...metrics.epoch import BITS
from ...model import LFADS
from .capacity import fitting_stack, step_bytes
from .checkpoints import member_checkpoint, take_up_member
from .draws import OtherDrawsError
from .epochs import Epochs, Scores
from .optimiser import Optimiser
from .steps import ALL, MODEL, NONE, can_augment_apart
from .tensors import MemberTensors, smoother

Numbers = NDArray[Any]


class Population:
    """K models of one structure that train side by side and independently.

    Member k, trained without exchange, draws what `models[k]` alone would draw in `run_model` with
    the seed `seeds[k]`, and equals it within the tolerance of float32 (sums in another order).

    The members' steps are one step, mapped by `torch.func.vmap`, in stacks that fit into memory; on
    a CPU each thread has its stacks. What vmap cannot map (a user's module whose program depends on
    its data, or that draws from NumPy) trains one member after another, with a warning that names
    the module.

    `models` are copied; they may differ in parameters, in `tunables`, and in the numbers of AdamW,
    schedule and ramps. `gradient_clip_val` 0 sets no limit; `stack_size` members are stacked at a
    time, by default as many as fit into memory. `names` are the tunables by their path below
    ``model.``, and `stacked` is "all", "model" where augmentations run one member after another, or
    "none" where everything does.
    """

    def __init__(
        self,
        models: Sequence[LFADS],
        datamodule: Any,
        seeds: Sequence[int],
        *,
        gradient_clip_val: float,
        device: Any = "cpu",
        stack_size: int | None = None,
    ) -> None:
        if not models or len(models) != len(seeds):
            raise ConfigError(
                f"{len(models)} models and {len(seeds)} seeds; give one seed for each model, and "
                "at least one model"
            )
        if stack_size is not None:
            whole("stack_size", stack_size, least=1)
        device = torch.device(device)
        datamodule.to(device)
        self._data = datamodule
        self._tensors = MemberTensors(models, seeds, device)
        self._models[0].check_data(datamodule)
        for model in self._models[1:]:
            _take_data_facts(model, self._models[0])
        self._optimiser = Optimiser(self._tensors, float(gradient_clip_val or 0.0))
        self._epochs = Epochs(self._tensors, self._optimiser, datamodule)
        self.names = tuple(self._tensors.tunables)
        self.epoch = 0
        self.steps_per_epoch = self._epochs.n_steps
        self.stacked = ALL
        self._metrics: dict[str, Tensor] = {}
        #: Whether the plateau schedule has seen the last epoch.
        self._settled = True
        self._given_stack_size = stack_size
        if stack_size is None:
            n_bytes = step_bytes(self._models[0], self._epochs.first_batch())
            stack_size = fitting_stack(len(models), n_bytes, device)
        self.stack_size = stack_size

    @property
    def _models(self) -> list[Any]:
        return self._tensors.models

    @property
    def n_members(self) -> int:
        """Number of members."""
        return len(self._tensors)

    @property
    def alive(self) -> NDArray[np.bool_]:
        """Whether a member's losses and weights have been finite, shape (K,)."""
        return self._tensors.alive.numpy().copy()

    # ---- tunables ------------------------------------------------------------------------------

    @property
    def values(self) -> dict[str, NDArray[np.float64]]:
        """Tunables of all members, float64 arrays (K,) by name."""
        return {
            name: self._tensors.tunable(name).double().cpu().numpy().copy() for name in self.names
        }

    def set_values(self, values: Mapping[str, Any]) -> None:
        """Change tunables.

        A member whose `lr_init` changes goes on at that learning rate, whatever a plateau schedule
        had made of the old one; one whose `lr_init` stays the same keeps its current rate.
        """
        columns = {}
        for name, given in values.items():
            if name not in self.names:
                raise ConfigError(f"no tunable {name!r}; {did_you_mean(name, self.names)}")
            column = np.asarray(given, dtype=np.float64)
            if column.shape != (self.n_members,) or not np.isfinite(column).all():
                raise ConfigError(
                    f"{name} is {given!r}; give one finite number for each of the "
                    f"{self.n_members} members"
                )
            columns[name] = torch.from_numpy(column)
        for name, numbers in columns.items():
            old = self._tensors.tunable(name)
            new = numbers.to(old.device, old.dtype)
            if name == "lr_init":
                changed = (new != old).cpu()
                if changed.any():
                    self._settle()
                    self._tensors.lr[changed] = new.double().cpu()[changed]
            old.copy_(new)

    # ---- training ------------------------------------------------------------------------------

    def train_epoch(self) -> dict[str, Numbers]:
        """Train and validate all members for an epoch.

        An epoch that ends in an exception leaves the population as it was before.
        """
        self._settle()
        before = self._tensors.copied()
        while True:
            try:
                scores = self._epochs.run(self.epoch, self.stacked, self.stack_size)
                break
            except BaseException as error:
                self._tensors.write(before, self._all, self._all, seeds=True)
                if not isinstance(error, Exception) or not self._can_go_on(error):
                    raise
        self._metrics = self._named(scores)
        smooth = smoother(self._tensors.smoothed)
        self._tensors.smoothed = smooth.smooth(self._metrics["valid/recon"])
        self._metrics["valid/recon_smth"] = self._tensors.smoothed.double()
        self._smooth_bits(scores)
        losses = torch.stack([self._metrics["train/loss"], self._metrics["valid/loss"]])
        is_finite = self._tensors.weights.isfinite().all(1).cpu() & losses.isfinite().all(0)
        self._tensors.alive &= is_finite
        self._settled = False
        self.epoch += 1
        return {name: values.numpy().copy() for name, values in self._metrics.items()}

    def _smooth_bits(self, scores: Sequence[Scores | None]) -> None:
        """Smooth the bits per spike that the data have, as a run alone does."""
        new = torch.stack([self._metrics[f"valid/{name}"] for name in BITS], dim=1)
        smooth = smoother(self._tensors.smoothed_bits)
        self._tensors.smoothed_bits = smooth.smooth(new)
        for i, name in enumerate(BITS):
            if any(by_split["valid"].bits[name] for by_split in scores if by_split):
                values = self._tensors.smoothed_bits[:, i].double()
                self._metrics[f"valid/{name}_smth"] = values

    def _named(self, scores: Sequence[Scores | None]) -> dict[str, Tensor]:
        """Return what is logged of each member, NaN for one that could not be trained."""
        rows: list[dict[str, float]] = [
            {
                f"{split}/{name}": float(value.float())
                for split, numbers in (by_split or {}).items()
                for name, value in model.summary(numbers).items()
            }
            for model, by_split in zip(self._models, scores, strict=True)
        ]
        names = dict.fromkeys([*self._metrics, *(name for row in rows for name in row)])
        return {
            name: torch.tensor([row.get(name, np.nan) for row in rows], dtype=torch.float64)
            for name in names
        }

    def _settle(self) -> None:
        """Show the plateau schedule the last epoch; a checkpoint is of the time before."""
        if not self._settled:
            self._optimiser.end_epoch()
        self._settled = True

    def _can_go_on(self, error: Exception) -> bool:
        """Find a way round an exception: smaller stacks, or less that is stacked.

        The epoch then starts again from the state before it.
        """
        # vmap cannot map every program: a user's module may branch on its data, write in place, or
        # draw from NumPy, whose generator knows no members. The members must still be what they
        # would be alone, so nothing is approximated. First only the augmentations run one member
        # after another, since they cost little and are most often the cause; then the whole step
        # does. What is stacked changes the time, but not what a member draws.
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
            if self.stack_size == 1 or self.stacked == NONE:
                return False
            self.stack_size = self.stack_size // 2
            what, reason = f"{self.stack_size} members are stacked at a time", "out of memory"
        elif isinstance(error, UserError) or self.stacked == NONE:
            return False
        else:
            module = self._epochs.name_of_failing(error)
            # Who drew from NumPy shows only afterwards; most often it is an augmentation.
            suspected = "aug_stack" in module or isinstance(error, OtherDrawsError)
            is_apart = self.stacked == ALL and suspected and can_augment_apart(self._models[0])
            self.stacked = MODEL if is_apart else NONE
            what = f"{'augmentations run' if is_apart else 'members train'} one after another"
            text = str(error).strip() or type(error).__name__
            reason = f"{module} cannot be mapped over members: {text.splitlines()[0]}"
        warnings.warn(f"{what} from here on ({reason})", stacklevel=3)
        return True

    # ---- members among one another -------------------------------------------------------------

    @property
    def _all(self) -> Tensor:
        return torch.arange(self.n_members)

    def exchange(self, parents: Any) -> None:
        """Let members take over from others.

        Parameters and optimiser state, tunables, smoothed loss, learning rate, plateau state and
        `alive` are taken over; each keeps its own seed.
        """
        sources = torch.as_tensor(np.asarray(parents))
        is_right = sources.shape == (self.n_members,) and not sources.is_floating_point()
        if not is_right or not bool(((sources >= 0) & (sources < self.n_members)).all()):
            raise ConfigError(
                f"parents are {parents!r}; give one member from 0 to {self.n_members - 1} for each "
                f"of the {self.n_members}"
            )
        members = (sources != self._all).nonzero().squeeze(1)
        sources = sources[members].long()
        self._tensors.write(self._tensors.state_dict(), members, sources, seeds=False)
        for values in self._metrics.values():
            values[members] = values[sources]

    def adopt(self, k: int, state: Mapping[str, Any], source: int) -> None:
        """Let member k take over from member `source` of another population's `state_dict`."""
        members, sources = torch.tensor([k]), torch.tensor([source])
        self._tensors.write(state["members"], members, sources, seeds=False)
        for name, values in self._metrics.items():
            values[k] = state["metrics"].get(name, torch.full_like(values, torch.nan))[source]

    def keep(self, members: Any) -> None:
        """Go on with some members only, numbered anew in the order given."""
        chosen = np.asarray(members)
        if not chosen.size or chosen.dtype.kind not in "iu":
            raise ConfigError(f"members to keep are {members!r}; give at least one, by its number")
        if chosen.min() < 0 or chosen.max() >= self.n_members:
            raise ConfigError(
                f"members to keep are {members!r}; legal are 0 to {self.n_members - 1}"
            )
        self._tensors.keep(chosen.tolist())
        self._metrics = {name: values[chosen] for name, values in self._metrics.items()}

    # ---- state ---------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return all that changes while training: tensors on the CPU, and plain numbers."""
        return {
            "epoch": self.epoch,
            "settled": self._settled,
            "stacked": self.stacked,
            "chunk": self.stack_size,  # the key of searches saved so far
            "members": self._tensors.copied(torch.device("cpu")),
            "metrics": {name: values.clone() for name, values in self._metrics.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`; training goes on with the same numbers, to the bit."""
        saved, shape = state["members"]["weights"].shape, self._tensors.weights.shape
        if saved != shape:
            raise ConfigError(
                f"the state is of {saved[0]} members with {saved[1]} parameters each, the "
                f"population of {shape[0]} with {shape[1]}; go on with the same configuration"
            )
        self._tensors.write(state["members"], self._all, self._all, seeds=True)
        self._metrics = {name: values.clone() for name, values in state["metrics"].items()}
        self.epoch = int(state["epoch"])
        self._settled = bool(state["settled"])
        self.stacked = str(state["stacked"])
        if self._given_stack_size is None:
            self.stack_size = int(state["chunk"])

    def member(self, k: int) -> LFADS:
        """Return member k as an ordinary model on the CPU, in evaluation mode."""
        return self._tensors.detached(k)

    def checkpoint(self, k: int) -> dict[str, Any]:
        """Return member k as the checkpoint that a run of it alone leaves after the last epoch.

        In a run folder it can be sampled from, and trained further by ``lfads train --resume``.
        """
        if self.epoch == 0:
            raise UserError("no epoch is trained yet; train one before you make a checkpoint")
        metrics = {name: float(values[k]) for name, values in self._metrics.items()}
        metrics |= {"hp_metric": metrics["valid/recon"], "cur_epoch": float(self.epoch - 1)}
        metrics |= {f"hp/{name}": float(values[k]) for name, values in self.values.items()}
        if self._settled:
            # A run that resumes would show the schedule this loss once more.
            del metrics["valid/recon_smth"]
        return member_checkpoint(
            self._tensors,
            k,
            metrics,
            epoch=self.epoch - 1,
            steps_per_epoch=self.steps_per_epoch,
            n_batches=len(self._data.val_dataloader()),
            data=fingerprints(self._data),
        )

    def take_up(self, checkpoints: Sequence[Mapping[str, Any]]) -> None:
        """Go on from what `checkpoint` returned for each member, to the bit."""
        for k, checkpoint in enumerate(checkpoints):
            take_up_member(self._tensors, k, checkpoint)
        logged = [checkpoint["lfads_run"]["metrics"] for checkpoint in checkpoints]
        self._metrics = {
            name: torch.tensor([row.get(name, np.nan) for row in logged], dtype=torch.float64)
            for name in dict.fromkeys(name for row in logged for name in row)
            if name.startswith(("train/", "valid/"))
        }
        self.epoch = int(checkpoints[0]["epoch"]) + 1
        self._settled = False


def _take_data_facts(model: Any, checked: Any) -> None:
    """Copy what `check_data` noted in one model to another, so that the data are read once."""
    model.session_names = list(checked.session_names)
    model.session_trials = dict(checked.session_trials)
    if model.behavior is not None:
        model.behavior.mean.copy_(checked.behavior.mean)
        model.behavior.std.copy_(checked.behavior.std)
    for recon, other in zip(model.recon, checked.recon, strict=True):
        if hasattr(recon, "data_checked"):
            recon.data_checked = other.data_checked
