"""What happens when the loss turns NaN or infinite."""

from __future__ import annotations

import copy
import math
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from ..errors import DivergedError, one_of

_ADVICE = (
    "lower model.lr_init or trainer.gradient_clip_val, and look for extreme values in the data "
    "(`lfads check`)"
)


class NaNGuard(Callback):
    """Stop, or go back to the last good epoch, when a loss term or a weight is NaN or infinite.

    The check is made once an epoch, before any checkpoint of that epoch is written, so that no
    checkpoint ever holds broken weights.

    Parameters
    ----------
    on_nan : {"stop", "recover"}
        "stop" raises `DivergedError`. "recover" restores the end of the last finite epoch (weights,
        optimiser, schedulers, smoothed metrics), halves the learning rate and goes on.
    max_recoveries : int
        After so many recoveries in one run, stop.
    """

    def __init__(self, on_nan: str = "stop", max_recoveries: int = 5) -> None:
        self.on_nan = one_of("on_nan", on_nan, ("stop", "recover"))
        self.max_recoveries = max_recoveries
        self.n_recoveries = 0
        self._history: list[dict[str, Tensor]] = []
        self._good: dict[str, Any] | None = None
        self._just_recovered = False

    def state_dict(self) -> dict[str, Any]:
        """Recoveries so far, for a resume."""
        return {"n_recoveries": self.n_recoveries}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self.n_recoveries = int(state_dict["n_recoveries"])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember the state before the first step."""
        if self.on_nan == "recover":
            self._good = _snapshot(trainer, pl_module)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin a new record of the epoch's steps."""
        self._history = []
        if self._just_recovered:
            # What was logged after the recovery is still that of the epoch that was undone.
            for name in [n for n, v in trainer.callback_metrics.items() if not math.isfinite(v)]:
                del trainer.callback_metrics[name]
            self._just_recovered = False

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Keep the step's terms; they are looked at when the epoch ends, without waiting now."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        record = {"loss": loss.detach()} if isinstance(loss, Tensor) else {}
        self._history.append({**_epoch_sums(pl_module), **record})

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look for NaN and infinity."""
        faults = self._faults(trainer, pl_module)
        if not faults:
            if self.on_nan == "recover":
                self._good = _snapshot(trainer, pl_module)
            return
        what = f"Training diverged in epoch {trainer.current_epoch}: {faults}."
        if self.on_nan == "recover" and self._good is not None:
            if self.n_recoveries < self.max_recoveries:
                self._recover(trainer, pl_module, what)
                return
            what += f" The learning rate was halved {self.n_recoveries} times already."
        raise DivergedError(f"{what} To mend it, {_ADVICE}{self._hint()}. {_last_good(trainer)}")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse to pass a run off as trained that never had a finite epoch."""
        if self._just_recovered and self._good is not None and not self._good["metrics"]:
            raise DivergedError(
                f"None of the {trainer.current_epoch} epochs had a finite loss, although the "
                f"learning rate was halved {self.n_recoveries} times. To mend it, {_ADVICE}."
            )

    def _hint(self) -> str:
        return (
            "; on_nan=recover halves the learning rate by itself" if self.on_nan == "stop" else ""
        )

    def _faults(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> str:
        """Say which terms are not finite, and at which step they began to be; '' if all are."""
        ends = list(self._history[-1].values()) if self._history else []
        # The last sums hold every fault before them: to look at these first is enough in a good
        # epoch, which nearly all are. Which step it was is only searched for in a bad one.
        losses = [record["loss"] for record in self._history if "loss" in record]
        if not _all_finite([*ends, *losses]):
            return self._first_fault()
        logged = {
            name: value
            for name, value in trainer.callback_metrics.items()
            if name.startswith(("train/", "valid/")) and _is_loss(name)
        }
        if not _all_finite(list(logged.values())):
            return ", ".join(
                f"{name} is {float(value)}"
                for name, value in logged.items()
                if not math.isfinite(value)
            )
        # The gradient of the last step may have spoilt the weights after every loss was computed.
        if not _all_finite([p.detach() for p in pl_module.parameters()]):
            return f"weights are not finite after step {len(self._history)}, the epoch's last"
        return ""

    def _first_fault(self) -> str:
        n_steps = len(self._history)
        for step, record in enumerate(self._history, start=1):
            bad = {n: float(v) for n, v in record.items() if not torch.isfinite(v)}
            if not bad:
                continue
            terms = {n: v for n, v in bad.items() if n != "loss"} or bad
            listed = ", ".join(f"train/{n} is {v}" for n, v in terms.items())
            where = f"{listed} at step {step} of {n_steps}"
            if step > 1 and len(bad) == len(record):
                where += " (all terms at once: the gradient of the step before spoilt the weights)"
            return where
        return ""

    def _recover(self, trainer: pl.Trainer, pl_module: pl.LightningModule, what: str) -> None:
        good = self._good or {}
        self.n_recoveries += 1
        self._just_recovered = True
        rates = _restore(trainer, pl_module, good)
        # A second fault in the next epoch starts from the halved rate, not from the first one.
        self._good = _snapshot(trainer, pl_module, metrics=good["metrics"])
        listed = ", ".join(f"{old:.3g} to {old / 2:.3g}" for old in rates)
        warnings.warn(
            f"{what} Back to the weights of the last good epoch, learning rate halved from "
            f"{listed} (recovery {self.n_recoveries} of {self.max_recoveries}).",
            stacklevel=2,
        )


def _all_finite(tensors: list[Tensor]) -> bool:
    """Wait for the device once, however many tensors there are."""
    # One transfer from a GPU instead of one for each tensor, which would stop it each time.
    checks = [tensor.isfinite().all() for tensor in tensors]
    return not checks or bool(torch.stack(checks).all())


def _is_loss(name: str) -> bool:
    return name.partition("/")[2].startswith(("loss", "recon", "wt_"))


def _epoch_sums(pl_module: pl.LightningModule) -> dict[str, Tensor]:
    """Return the sums of the model's loss terms over the epoch so far, where it keeps them."""
    scores: Any = getattr(pl_module, "scores", None)
    if not isinstance(scores, dict) or "train" not in scores:
        return {}
    return {**scores["train"].sessions.totals(), **scores["train"].terms.totals()}


def _snapshot(
    trainer: pl.Trainer, pl_module: pl.LightningModule, metrics: dict[str, Tensor] | None = None
) -> dict[str, Any]:
    give_extra: Any = getattr(pl_module, "extra_state", None)
    current = {
        name: value.clone()
        for name, value in trainer.callback_metrics.items()
        if torch.isfinite(value).all()
    }
    return {
        "model": {name: value.clone() for name, value in pl_module.state_dict().items()},
        "optimizers": copy.deepcopy([o.state_dict() for o in trainer.optimizers]),
        "schedulers": copy.deepcopy(
            [c.scheduler.state_dict() for c in trainer.lr_scheduler_configs]
        ),
        "extra": None if give_extra is None else copy.deepcopy(give_extra()),
        "metrics": current if metrics is None else metrics,
    }


def _restore(
    trainer: pl.Trainer, pl_module: pl.LightningModule, good: dict[str, Any]
) -> list[float]:
    """Go back to a snapshot and halve the learning rates; return those it had."""
    pl_module.load_state_dict(good["model"])
    for optimizer, state in zip(trainer.optimizers, good["optimizers"], strict=True):
        optimizer.load_state_dict(copy.deepcopy(state))
    for config, state in zip(trainer.lr_scheduler_configs, good["schedulers"], strict=True):
        config.scheduler.load_state_dict(copy.deepcopy(state))
        if hasattr(config.scheduler, "base_lrs"):
            config.scheduler.base_lrs = [rate / 2 for rate in config.scheduler.base_lrs]
    if good["extra"] is not None:
        take_extra: Any = pl_module.load_extra_state
        take_extra(copy.deepcopy(good["extra"]))
    # Early stopping, schedulers and checkpoints see the good epoch's numbers, not NaN.
    for name, value in trainer.callback_metrics.items():
        if not torch.isfinite(value).all() and name in good["metrics"]:
            trainer.callback_metrics[name] = good["metrics"][name].clone()
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    rates = [float(group["lr"]) for group in groups]
    for group in groups:
        group["lr"] = group["lr"] / 2
        if "initial_lr" in group:
            group["initial_lr"] = group["initial_lr"] / 2
    return rates


def _last_good(trainer: pl.Trainer) -> str:
    paths: list[Path] = []
    for callback in trainer.checkpoint_callbacks:
        for attribute in ("last_model_path", "path", "best_model_path"):
            value = getattr(callback, attribute, None)
            if value and Path(value).is_file():
                paths.append(Path(value))
    if not paths:
        return "No checkpoint was written before."
    newest = max(paths, key=lambda path: path.stat().st_mtime)
    return f"The last good checkpoint is {newest}"
