"""A member as the checkpoint that a run of that model alone leaves.

It holds more than weights, optimiser and Lightning's counters included, because ``lfads train
--resume`` goes on from a member's folder.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import pytorch_lightning as pl
import torch

from ...checkpoint import load_weights
from ...data.fingerprint import Fingerprint
from ...model import LFADS
from ...optimiser import READOUT, readout_rate
from .tensors import MemberTensors


def member_checkpoint(
    tensors: MemberTensors,
    k: int,
    metrics: Mapping[str, float],
    *,
    epoch: int,
    steps_per_epoch: int,
    n_batches: int,
    data: list[Fingerprint],
) -> dict[str, Any]:
    """Describe member k after `epoch`, whose log is `metrics`, as ``last.ckpt`` of a run does.

    `n_batches` are those of validation, `data` the fingerprints of what it is trained on.
    """
    model = tensors.detached(k)
    n_steps = steps_per_epoch * (epoch + 1)
    checkpoint: dict[str, Any] = {
        "epoch": epoch,
        "global_step": n_steps,
        "pytorch-lightning_version": version("pytorch-lightning"),
        "state_dict": model.state_dict(),
        "loops": _loops(epoch + 1, steps_per_epoch, n_batches),
        "callbacks": {},
        **_optimisers(tensors, k, model, epoch),
        "hparams_name": "kwargs",
        "hyper_parameters": dict(model.hparams),
        # What a resumed run makes up for; the key and its fields are those of `running`.
        "lfads_run": {
            "epoch": epoch,
            "first_step": n_steps - steps_per_epoch,
            "metrics": {"epoch": float(epoch), **metrics},
            "should_stop": False,
            "data": data,
        },
    }
    model.on_save_checkpoint(checkpoint)
    return checkpoint


def _optimisers(tensors: MemberTensors, k: int, model: LFADS, epoch: int) -> dict[str, Any]:
    """Return the state of the optimiser and of the plateau schedule, as torch has them."""
    made: Any = model.configure_optimizers()
    schedule = made["lr_scheduler"]["scheduler"] if isinstance(made, dict) else None
    optimiser = made["optimizer"] if isinstance(made, dict) else made
    lr = float(tensors.lr[k])
    for group in optimiser.param_groups:
        is_readout = group.get(READOUT)
        group["lr"] = readout_rate(model, lr) if is_readout else lr
        group["weight_decay"] = 0.0 if is_readout else model.ramped_weight_decay
    moments = [tensors.split(x[k].cpu()) for x in (tensors.exp_avg, tensors.exp_avg_sq)]
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    for parameter, *rows in zip(parameters, *(m.values() for m in moments), strict=True):
        exp_avg, exp_avg_sq = (x.clone() for x in rows)
        step = tensors.steps[k].cpu().clone()
        optimiser.state[parameter] = {"step": step, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    states: dict[str, Any] = {"optimizer_states": [optimiser.state_dict()], "lr_schedulers": []}
    if schedule is not None:
        schedule.best = float(tensors.plateau_best[k])
        schedule.num_bad_epochs = int(tensors.plateau_bad[k])
        schedule.last_epoch = epoch
        schedule._last_lr = [group["lr"] for group in optimiser.param_groups]
        states["lr_schedulers"] = [schedule.state_dict()]
    return states


def take_up_member(tensors: MemberTensors, k: int, checkpoint: Mapping[str, Any]) -> None:
    """Restore member k from what `member_checkpoint` returned for it."""
    load_weights(tensors.models[k], checkpoint["state_dict"], f"the checkpoint of member {k}")
    [optimiser] = checkpoint["optimizer_states"]
    moments = [optimiser["state"][i] for i in range(len(tensors.names))]
    for name in ("exp_avg", "exp_avg_sq"):
        row = torch.cat([moment[name].flatten() for moment in moments])
        getattr(tensors, name)[k] = row.to(tensors.device)
    tensors.steps[k] = moments[0]["step"]
    groups = sorted(optimiser["param_groups"], key=lambda group: bool(group.get(READOUT)))
    tensors.lr[k] = groups[0]["lr"]
    for schedule in checkpoint["lr_schedulers"]:
        tensors.plateau_best[k] = schedule["best"]
        tensors.plateau_bad[k] = schedule["num_bad_epochs"]
    extra = checkpoint["lfads"]["extra"]
    tensors.smoothed[k], tensors.smoothed_bits[k] = extra["recon_smth"], extra["bits_smth"]


def _loops(n_epochs: int, n_steps: int, n_batches: int) -> dict[str, Any]:
    """Return the state of Lightning's loops after some whole epochs."""
    with _silent():
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    fit = trainer.fit_loop.state_dict()
    total = n_epochs * n_steps
    optimiser = fit["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
    counts = {"total": total, "current": n_steps}
    for progress, numbers in (
        (fit["epoch_progress"], {"total": n_epochs, "current": n_epochs}),
        (fit["epoch_loop.batch_progress"], {"total": total, "current": 0}),
        (optimiser["step"], counts),
        (optimiser["zero_grad"], counts),
        (
            fit["epoch_loop.val_loop.batch_progress"],
            {"total": n_epochs * n_batches, "current": n_batches},
        ),
    ):
        for span, number in numbers.items():
            progress[span] = dict.fromkeys(progress[span], number)
    fit["epoch_loop.state_dict"] = {"_batches_that_stepped": total}
    others = {
        name: getattr(trainer, name) for name in ("validate_loop", "test_loop", "predict_loop")
    }
    return {"fit_loop": fit, **{name: loop.state_dict() for name, loop in others.items()}}


@contextmanager
def _silent() -> Iterator[None]:
    """Silence what Lightning logs about devices."""
    log = logging.getLogger("pytorch_lightning")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
