"""Which scores training logs, and a refusal of what waits for one that it does not log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from ..arguments import LOSS
from ..errors import ConfigError, did_you_mean


@torch.no_grad()
def logged_names(model: Any, datamodule: Any) -> list[str]:
    """Return the names of what an epoch logs for these data, from a batch of each split."""
    names = [LOSS]
    steps = {"train": model.training_step, "valid": model.validation_step}
    with torch.random.fork_rng(devices=[]):
        for split, step in steps.items():
            step(next(iter(datamodule.split_loader(split, batch_size=datamodule.n_sessions))), 0)
            scores = model.scores[split]
            # A score that has no meaning for the data is NaN in every epoch: no metric to judge by.
            empty = {name for name, sums in {**scores.bits, "r2": scores.r2}.items() if not sums}
            logged = [*scores.compute(), "loss", "wt_kl", "wt_l2/ramp", "wt_kl/ramp"]
            if split == "valid":
                logged += [f"{name}_smth" for name in scores.bits if name not in empty]
            names += [f"{split}/{name}" for name in logged if name not in empty]
            scores.reset()
    return names


def check_monitors(config: Mapping[str, Any], model: Any, datamodule: Any) -> None:
    """Refuse, before training, to wait for a score that these data do not have."""
    nodes = {name: node for name, node in (config.get("callbacks") or {}).items() if node}
    waiting = {f"callbacks.{name}.monitor": node.get("monitor") for name, node in nodes.items()}
    waiting = {"select_by": config.get("select_by"), **waiting}
    # What a model or a callback of your own logs shows only once it has trained: `KnownMonitors`.
    targets = [type(model).__module__, *(str(node["_target_"]) for node in nodes.values())]
    is_ours = all(target.startswith(("lfads_torch.", "pytorch_lightning.")) for target in targets)
    if is_ours and any(_is_of_model(monitor) and monitor != LOSS for monitor in waiting.values()):
        _refuse(waiting, logged_names(model, datamodule))


def _is_of_model(monitor: Any) -> bool:
    return str(monitor).startswith(("valid/", "train/"))


def _refuse(waiting: Mapping[str, Any], names: list[str]) -> None:
    for key, monitor in waiting.items():
        if _is_of_model(monitor) and monitor not in names:
            # All the names: one that is spelt much the same need not be what is meant.
            legal = ", ".join(sorted(name for name in names if name.startswith("valid/")))
            raise ConfigError(
                f"{key} is {monitor}, which is not logged for these data; "
                f"{did_you_mean(monitor, names)} Logged of validation: {legal}"
            )


class KnownMonitors(Callback):
    """Refuse callbacks that wait for a score of the model that it does not log.

    Early stopping would look for it only after its burn-in, and the best checkpoint never.
    """

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look once, after the first epoch that was validated."""
        names = sorted(trainer.callback_metrics)
        if any(name.startswith("valid/") for name in names):
            callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
            waiting = {type(c).__name__: getattr(c, "monitor", None) for c in callbacks}
            _refuse({f"the monitor of {name}": value for name, value in waiting.items()}, names)
