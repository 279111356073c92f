"""Train a model from a configuration: compose, check, fit, sample, write the run folder."""

from __future__ import annotations

import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__
from .compose import Overrides, compose_config
from .config_check import check_config, did_you_mean, find_target
from .errors import ConfigError, UserError
from .run_folder import (
    CHECKPOINTS,
    CONFIG,
    LAST,
    METRICS,
    cannot_write,
    find_checkpoint,
    holds_a_run,
    is_write_failure,
    prepare,
    read_status,
    rewind_metrics,
    write_atomically,
    write_status,
)

if TYPE_CHECKING:
    import pytorch_lightning as pl

#: Sizes that are read from the data where the configuration leaves them null.
SIZES = ("encod_data_dim", "encod_seq_len", "recon_seq_len", "ext_input_dim", "readin", "readout")

#: Arguments of the Trainer of PyTorch Lightning 1 that existing configurations still hold.
_OLD_TRAINER = (
    "amp_backend",
    "auto_select_gpus",
    "checkpoint_callback",
    "flush_logs_every_n_steps",
    "gpus",
    "move_metrics_to_cpu",
    "multiple_trainloader_mode",
    "process_position",
    "progress_bar_refresh_rate",
    "replace_sampler_ddp",
    "track_grad_norm",
    "weights_save_path",
    "weights_summary",
)


@dataclass
class RunResult:
    """What a run left behind.

    Attributes
    ----------
    run_dir : Path
        The run folder.
    best_checkpoint, last_checkpoint : Path or None
        Checkpoints of the lowest smoothed validation loss and of the last epoch.
    outputs : list of Path
        Output files of posterior sampling, one per session.
    metrics : dict of str to float
        What was logged last.
    """

    run_dir: Path
    best_checkpoint: Path | None = None
    last_checkpoint: Path | None = None
    outputs: list[Path] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)


def run_model(
    overrides: Overrides | None = None,
    checkpoint_dir: str | Path | None = None,
    config_path: str | Path = "../configs/single.yaml",
    do_train: bool = True,
    do_posterior_sample: bool = True,
    *,
    run_dir: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> RunResult:
    """Train a model and average its posterior samples.

    Everything is checked before training: keys and targets of the configuration, the data, the
    model's sizes against the data, and the run folder.

    Parameters
    ----------
    overrides : mapping or sequence of str, optional
        Changes of the configuration: a mapping, nested or dotted, or strings as on the command
        line.
    checkpoint_dir : str or Path, optional
        A checkpoint, or a folder with checkpoints, to go on from.
    config_path : str or Path, default="../configs/single.yaml"
        The primary configuration. A path that does not exist means the packaged file of that
        name.
    do_train : bool, default=True
        Whether to train. Without training the weights come from `checkpoint_dir`, or from the
        run folder.
    do_posterior_sample : bool, default=True
        Whether to write the output files.
    run_dir : str or Path, optional
        The run folder; the working directory by default.
    resume : bool, default=False
        Go on with the run that `run_dir` holds, with its own configuration, from its last epoch.
    overwrite : bool, default=False
        Delete the run that `run_dir` holds.

    Returns
    -------
    RunResult

    Raises
    ------
    UserError
        For whatever is wrong with configuration, data, checkpoint or folder.
    DivergedError
        If the loss turns NaN or infinite.
    """
    start = Path.cwd()
    folder = Path(run_dir or start).expanduser().absolute()
    continued = checkpoint_dir is not None and holds_a_run(folder)
    if resume:
        if not (folder / CONFIG).is_file():
            raise ConfigError(f"{folder} holds no run to resume: there is no {folder / CONFIG}")
        config_path = folder / CONFIG
    config = compose_config(config_path, overrides or (), start)
    _drop_old_arguments(config)
    check_config(config)
    if do_train:
        is_new = prepare(folder, resume=resume or continued, overwrite=overwrite)
    else:
        is_new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
    given = Path(checkpoint_dir).expanduser().absolute() if checkpoint_dir else None
    try:
        with _inside(folder):
            return _Run(config, folder, given, goes_on=resume or continued).run(
                do_train, do_posterior_sample
            )
    except OSError as error:
        if is_write_failure(error):
            raise cannot_write(error.filename or folder, error) from error
        raise
    finally:
        if is_new:
            with suppress(OSError):  # not empty: the run got as far as writing something
                folder.rmdir()


class _Run:
    """One run: what is built from the configuration, and the order in which it happens."""

    def __init__(
        self, config: dict[str, Any], folder: Path, given: Path | None, *, goes_on: bool
    ) -> None:
        self.config = config
        self.folder = folder
        self.given = given
        self.goes_on = goes_on
        self.seed = int(config.get("seed") or 0)

    def run(self, do_train: bool, do_posterior_sample: bool) -> RunResult:
        import pytorch_lightning as pl

        pl.seed_everything(self.seed, workers=True, verbose=False)
        datamodule = build(self.config["datamodule"], "datamodule")
        _setup(datamodule)
        model = build_model(self.config["model"], datamodule)
        model.check_data(datamodule)
        status = read_status(self.folder) if self.goes_on else {}
        if do_train and status.get("stage", "training") == "training":
            status = self._train(model, datamodule)
        elif do_train and self._asks_for_more(status):
            status = self._train(model, datamodule)
        result = self._result(status)
        if do_posterior_sample:
            result.outputs = self._sample(model, datamodule, trained=do_train)
        if do_train:
            outputs = [_relative(path, self.folder) for path in result.outputs]
            write_status(self.folder, "complete", **{**status, "outputs": outputs})
        return result

    def _asks_for_more(self, status: Mapping[str, Any]) -> bool:
        most = self.config["trainer"].get("max_epochs") or -1
        asked = status.get("max_epochs")
        return asked is not None and most != asked and (most < 0 or most > status["epochs"])
