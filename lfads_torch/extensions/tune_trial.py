"""An ordinary training run as a trial of Ray Tune, with everything that its configuration names."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from ray import tune

from ..errors import ConfigError, did_you_mean
from ..folder import LAST
from ..run_model import run_model

#: When a callback may report; validation counts at the end of its epoch.
_EVENTS = ("validation_end", "validation_epoch_end", "train_epoch_end", "train_end", "fit_end")

#: Hyper-parameters that the state of the optimiser holds, too, and their names there.
_OF_OPTIMIZER = {"lr_init": "lr", "weight_decay": "weight_decay"}


class TuneReportCheckpointCallback(Callback):
    """Report to Ray Tune what was logged, with a checkpoint.

    Parameters
    ----------
    metrics : str, list of str or mapping, optional
        What to report: names in the log, or a mapping from names for Tune to names in the log. By
        default everything.
    filename : str
        Name of the checkpoint within its folder.
    on : str or list of str
        When: ``"validation_end"`` (at the end of each epoch with a validation),
        ``"train_epoch_end"``, ``"train_end"`` or ``"fit_end"``.
    save_checkpoints : bool
        Whether a checkpoint goes with the report.
    """

    def __init__(
        self,
        metrics: str | Sequence[str] | Mapping[str, str] | None = None,
        filename: str = "checkpoint",
        on: str | Sequence[str] = "validation_end",
        save_checkpoints: bool = True,
    ) -> None:
        names = [metrics] if isinstance(metrics, str) else metrics or ()
        self.metrics = dict(names) if isinstance(names, Mapping) else {name: name for name in names}
        self.filename = filename
        self.save_checkpoints = save_checkpoints
        self.on = [on] if isinstance(on, str) else list(on)
        for event in self.on:
            if event not in _EVENTS:
                raise ConfigError(f"on is {event!r}; {did_you_mean(str(event), _EVENTS)}")
        self._validated = False
        self._missing: set[str] = set()
        self._stored: Mapping[str, Any] = {}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note the hyper-parameters with which the checkpoint's run was trained."""
        self._stored = checkpoint.get("hyper_parameters", {})

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give the optimiser what the configuration changes after the checkpoint."""
        for name, of_group in _OF_OPTIMIZER.items():
            value = pl_module.hparams.get(name)
            if name in self._stored and value is not None and value != self._stored[name]:
                for group in trainer.optimizers[0].param_groups:
                    group[of_group] = float(value)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note that the epoch has a validation."""
        self._validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report the epoch; Tune may end the process here.

        A checkpoint of validation's end would lie in the middle of the epoch, and a trial that goes
        on from it would train the epoch again.
        """
        validated, self._validated = self._validated, False
        events = ["train_epoch_end"]
        if validated:
            events += ["validation_end", "validation_epoch_end"]
        self._report(trainer, events)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report the end of training."""
        self._report(trainer, ["train_end"])

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report the end of the fit."""
        self._report(trainer, ["fit_end"])

    def _report(self, trainer: pl.Trainer, events: Sequence[str]) -> None:
        if not set(events) & set(self.on):
            return
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        # The log may have it only once all callbacks have seen the end of the epoch.
        logged["cur_epoch"] = trainer.current_epoch
        for name in {*self.metrics.values()} - logged.keys() - self._missing:
            self._missing.add(name)
            warnings.warn(
                f"{type(self).__name__} is to report {name}, which is not logged in epoch "
                f"{trainer.current_epoch}; {did_you_mean(name, logged)}",
                stacklevel=2,
            )
        chosen = {key: logged[name] for key, name in self.metrics.items() if name in logged}
        report = chosen if self.metrics else logged
        if not self.save_checkpoints:
            tune.report(report)
            return
        with tempfile.TemporaryDirectory() as folder:
            trainer.save_checkpoint(Path(folder) / self.filename)
            tune.report(report, checkpoint=tune.Checkpoint.from_directory(folder))


class TuneReportCallback(TuneReportCheckpointCallback):
    """Report to Ray Tune what was logged, without a checkpoint."""

    def __init__(
        self,
        metrics: str | Sequence[str] | Mapping[str, str] | None = None,
        on: str | Sequence[str] = "validation_end",
    ) -> None:
        super().__init__(metrics, on=on, save_checkpoints=False)


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
    checkpoint = tune.get_checkpoint()
    os.chdir(start)
    try:
        if checkpoint is None:
            _train(config, config_path, folder, None)
            return
        with checkpoint.as_directory() as place:
            _train(config, config_path, folder, place)
    finally:
        os.chdir(folder)


def _train(
    config: Mapping[str, Any], config_path: str | Path, folder: Path, place: str | None
) -> None:
    report = {"_target_": f"{__name__}.TuneReportCheckpointCallback", "filename": Path(LAST).name}
    run_model(
        {**config, "callbacks": {"tune_report": report}},
        checkpoint_dir=place,
        config_path=config_path,
        do_posterior_sample=False,
        run_dir=folder,
        # A worker that was killed before its first report leaves a run without a checkpoint.
        overwrite=place is None,
    )
