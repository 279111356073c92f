"""An ordinary training run as a trial of Ray Tune, with everything that its configuration names."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint
from ray import tune

from ..folder import LAST
from ..run_model import run_model


class TuneReport(Checkpoint):
    """Report every epoch to Ray Tune: what was logged, and a checkpoint."""

    def __init__(self) -> None:
        self._stored_lr: float | None = None

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note the learning rate with which the checkpoint's run began."""
        self._stored_lr = checkpoint.get("hyper_parameters", {}).get("lr_init")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the learning rate of the configuration, where it is not that of the checkpoint."""
        lr = float(pl_module.hparams["lr_init"])
        if self._stored_lr is not None and lr != self._stored_lr:
            for group in trainer.optimizers[0].param_groups:
                group["lr"] = lr

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report; Tune may end the process here."""
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        with tempfile.TemporaryDirectory() as folder:
            trainer.save_checkpoint(Path(folder) / Path(LAST).name)
            tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(folder))


def train_trial(
    config: Mapping[str, Any],
    config_path: str | Path = "../configs/pbt.yaml",
    project_dir: str | Path | None = None,
) -> None:
    """Train one model as a trial of Ray Tune, under Lightning and with all its callbacks.

    For `ray.tune.with_parameters`. Each epoch reports what was logged, and a checkpoint; a trial
    that Tune starts again goes on from its last one, with the hyper-parameters of `config`.
    """
    folder = Path.cwd()
    start = project_dir or os.environ.get("TUNE_ORIG_WORKING_DIR") or folder
    report = {"_target_": f"{TuneReport.__module__}.{TuneReport.__name__}"}
    checkpoint = tune.get_checkpoint()
    os.chdir(start)
    try:
        if checkpoint is None:
            _train(config, config_path, report, folder, None)
            return
        with checkpoint.as_directory() as place:
            _train(config, config_path, report, folder, place)
    finally:
        os.chdir(folder)


def _train(
    config: Mapping[str, Any],
    config_path: str | Path,
    report: Mapping[str, str],
    folder: Path,
    place: str | None,
) -> None:
    run_model(
        {**config, "callbacks": {"tune_report": report}},
        checkpoint_dir=place,
        config_path=config_path,
        do_posterior_sample=False,
        run_dir=folder,
        # A worker that was killed before its first report leaves a run without a checkpoint.
        overwrite=place is None,
    )
