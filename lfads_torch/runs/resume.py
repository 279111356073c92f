"""What makes a training run repeatable, resumable and unhurt by a kill, as Lightning plug-ins."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning.callbacks import Callback, Checkpoint, EarlyStopping, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from pytorch_lightning.utilities.migration.utils import migrate_checkpoint

from ..checkpoint import read_checkpoint, write_checkpoint
from ..data.fingerprint import fingerprints
from ..errors import UserError
from ..files import Table, damage, generation_before
from ..folder import CHECKPOINTS, LAST, joined
from ..seeds import seed_all as seed_all

#: Key of a checkpoint under which a run keeps what Lightning does not.
RUN_KEY = "lfads_run"


class EpochSeed(Callback):
    """Seed every random number generator at the start of each epoch.

    The numbers of epoch k then depend on the run's seed and k alone, so that a run resumed at
    epoch k draws what the uninterrupted one draws.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Seed Python's, NumPy's and PyTorch's generators."""
        seed_all(self.seed, trainer.current_epoch)


class WholeEpoch(Callback):
    """Make a checkpoint of an epoch's end one of a complete epoch.

    Lightning counts an epoch as completed, steps a plateau scheduler and logs only after it has
    saved the epoch's checkpoint. Here the checkpoint says that the epoch is complete, and holds
    what scheduler and log would have had; the scheduler is stepped when the run resumes.
    """

    def __init__(self) -> None:
        self._first_step = 0
        self._resumed: dict[str, Any] = {}
        self._patience: dict[EarlyStopping, int] = {}
        self._data: list[dict[str, Any]] = []

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Note the patience as configured, which a checkpoint brings along, too."""
        stops = [c for c in trainer.early_stopping_callbacks if isinstance(c, EarlyStopping)]
        self._patience = {callback: callback.patience for callback in stops}

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note where the epoch begins."""
        self._first_step = trainer.global_step

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Complete the epoch in the checkpoint."""
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        checkpoint[RUN_KEY] = {
            "epoch": trainer.current_epoch,
            "first_step": self._first_step,
            "metrics": {"epoch": float(trainer.current_epoch), **metrics},
            "should_stop": bool(trainer.should_stop),
            "data": self._data,
            "replaced": [
                path.name for path in getattr(trainer.strategy.checkpoint_io, "replaced", ())
            ],
        }
        folder = Path(trainer.default_root_dir).resolve()
        for key, state in checkpoint.get("callbacks", {}).items():
            checkpoint["callbacks"][key] = portable(state, folder)
        # A checkpoint within an epoch keeps its place in it.
        loop = checkpoint["loops"]["fit_loop"]
        progress = loop["epoch_progress"]
        if progress["current"]["processed"] == progress["current"]["started"]:
            for counts in progress.values():
                counts["completed"] = counts["processed"]
            batches = loop["epoch_loop.batch_progress"]
            batches["current"] = dict.fromkeys(batches["current"], 0)
            batches["is_last_batch"] = False

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Remember what is to be made up for until training starts."""
        self._resumed = checkpoint.get(RUN_KEY, {})
        # Lightning forgets the best models of a folder that was moved since.
        states = checkpoint.get("callbacks", {})
        for callback in trainer.checkpoint_callbacks:
            if not isinstance(callback, ModelCheckpoint):
                continue
            for key in (callback.state_key, callback._legacy_state_key):
                if "best_k_models" in states.get(key, {}):
                    states[key] = _moved(states[key], callback, Path(trainer.default_root_dir))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make up for what followed the checkpoint's epoch."""
        self._data = fingerprints(getattr(trainer, "datamodule", None))
        resumed, self._resumed = self._resumed, {}
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint):
                if resumed:
                    _undo_replacements(callback, resumed)
                _leave_out_damaged(callback)
        if not resumed:
            return
        for config in trainer.lr_scheduler_configs:
            waits = config.reduce_on_plateau and config.interval == "epoch"
            is_due = (resumed["epoch"] + 1) % config.frequency == 0
            value = resumed["metrics"].get(config.monitor)
            if waits and is_due and value is not None:
                pl_module.lr_scheduler_step(config.scheduler, torch.tensor(value))
        stops, goes_on = resumed["should_stop"], False
        for stopping, patience in self._patience.items():
            goes_on |= stopping.patience <= stopping.wait_count < patience
            stopping.patience = patience
        if self._patience:
            trainer.should_stop = trainer.should_stop or (stops and not goes_on)


def take_up(callbacks: Sequence[Any], checkpoint: Mapping[str, Any], folder: Path) -> None:
    """Give callbacks the states of a run's checkpoint where no Trainer does it."""
    for callback in callbacks:
        state = checkpoint["callbacks"][callback.state_key]
        if isinstance(callback, ModelCheckpoint):
            callback.load_state_dict(_moved(state, callback, folder))
            _undo_replacements(callback, checkpoint[RUN_KEY])
            _leave_out_damaged(callback)
        else:
            callback.load_state_dict(state)


def _moved(state: dict[str, Any], callback: ModelCheckpoint, folder: Path) -> dict[str, Any]:
    """Return the state of a callback with the paths of where its run's folder is now."""
    # Lightning leaves it out, and writes it into the next checkpoints.
    callback.current_score = state.get("current_score")
    here = partial(_here, folder, callback.dirpath, state["dirpath"])
    return {**_with_paths(state, here), "dirpath": callback.dirpath}


def portable(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the state of a callback with paths as seen from the run's folder."""
    return _with_paths(state, partial(_below, folder)) if "best_k_models" in state else state


def _with_paths(state: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """Return the state of Lightning's ModelCheckpoint with other paths."""
    names = ("dirpath", "best_model_path", "kth_best_model_path", "last_model_path")
    paths = {name: change(state[name]) for name in names if state.get(name)}
    models = {change(path): score for path, score in state["best_k_models"].items()}
    return {**state, **paths, "best_k_models": models}


def _below(folder: Path, path: str) -> str:
    """Return a path as seen from a folder, if it is in that."""
    full = Path(path)
    return full.relative_to(folder).as_posix() if full.is_relative_to(folder) else path


def _here(folder: Path, dirpath: Any, before: Any, path: str) -> str:
    """Return where a checkpoint in the folder `before` is now: in `dirpath`, or where it was."""
    # Written by another system, perhaps.
    file, before = PurePath(path.replace("\\", "/")), str(before or ".").replace("\\", "/")
    name = file.relative_to(before) if file.is_relative_to(before) else file.name
    moved, stayed = Path(dirpath, name), folder / path
    return str(stayed if stayed.is_file() and not moved.is_file() else moved)


def _leave_out_damaged(callback: ModelCheckpoint) -> None:
    """Count a best checkpoint that is damaged or gone no more, with a warning."""
    best = callback.best_model_path
    why = damage(Path(best)) if best else None
    if why is None:
        return
    place = Path(best).parent
    others = [file for file in place.glob("*.ckpt") if file.name != Path(LAST).name]
    kept = {p: score for p, score in callback.best_k_models.items() if damage(Path(p)) is None}
    # Where the last epoch is trained again, its best checkpoint may be there, and says its score.
    kept |= {
        str(file): score for file in others if (score := _score_of(file, callback)) is not None
    }
    better, worse = (min, max) if callback.mode == "min" else (max, min)
    callback.best_k_models = kept
    callback.best_model_path = better(kept, key=lambda path: kept[path]) if kept else ""
    callback.best_model_score = kept.get(callback.best_model_path)
    callback.kth_best_model_path = worse(kept, key=lambda path: kept[path]) if kept else ""
    callback.kth_value = kept.get(callback.kth_best_model_path, callback.kth_value)
    # Earlier versions deleted it as soon as a better one was saved: then nothing is lost.
    if Path(best).exists() or not others:
        remains = Path(callback.best_model_path).name
        warnings.warn(
            f"{best}, the best model so far, cannot be used: {why}. "
            + (
                f"{remains} takes its place"
                if remains
                else "The best of the epochs from here on takes its place"
            ),
            stacklevel=2,
        )


def _score_of(file: Path, callback: ModelCheckpoint) -> Any:
    """Return the score for which a callback saved a checkpoint; None where it did not."""
    if damage(file) is not None:
        return None
    try:
        state = read_checkpoint(file)["callbacks"][callback.state_key]
        scores = {PurePath(path).name: score for path, score in state["best_k_models"].items()}
    except (UserError, KeyError, TypeError, AttributeError):
        return None
    return scores.get(file.name)


def _undo_replacements(callback: ModelCheckpoint, resumed: Mapping[str, Any]) -> None:
    """Remove what was replaced before a checkpoint, and put back what was replaced after it."""
    place = Path(callback.dirpath or CHECKPOINTS)
    for name in map(str, resumed.get("replaced", ())):
        # A checkpoint, perhaps a stranger's, says it: nothing goes but checkpoints of this folder.
        file = place / PurePath(name.replace("\\", "/")).name
        if file.name.endswith(_ENDINGS) and not file.name.startswith("last."):
            file.unlink(missing_ok=True)
    for file in map(Path, callback.best_k_models):
        before = generation_before(file)
        if file.parent != place or not before.is_file():
            continue
        if int(read_checkpoint(file).get("epoch", -1)) > int(resumed["epoch"]):
            os.replace(before, file)
        else:
            before.unlink()


_ENDINGS = (".ckpt", generation_before(Path(".ckpt")).name)


class LastCheckpoint(WholeEpoch, Checkpoint):
    """Keep the newest epoch in ``lightning_checkpoints/last.ckpt``, whether or not the best."""

    def __init__(self) -> None:
        super().__init__()
        self.path = Path(LAST).absolute()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the checkpoint."""
        trainer.save_checkpoint(self.path, weights_only=False)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint beside its place and move it there, so that it is whole or not at all.

    A best checkpoint that another one replaces stays until the epoch's last checkpoint is written:
    a run that is killed in between goes on from the epoch before, of which it is the best.
    """

    def __init__(self) -> None:
        super().__init__()
        #: What goes when the epoch's last checkpoint is there.
        self.replaced: list[Path] = []

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Save a checkpoint, or raise `UserError` where the folder cannot be written."""
        file = Path(path)
        # Of the last epoch two generations are kept: a disk may damage what was written whole.
        is_last, is_there = file.name == Path(LAST).name, file.exists()
        write_checkpoint(file, checkpoint, keep=is_last or is_there)
        if not is_last:
            gone = [generation_before(file)] if is_there else []
            self.replaced = [*(one for one in self.replaced if one not in (file, *gone)), *gone]
            return
        for one in self.replaced:
            one.unlink(missing_ok=True)
        self.replaced = []

    def remove_checkpoint(self, path: Any) -> None:
        """Note a checkpoint that is no longer among the best, to be deleted."""
        # Which one that is a checkpoint says, perhaps a stranger's: Lightning's own check, that it
        # is below the folder, takes dots for a name, and it would delete a folder as well.
        file = Path(path)
        if file.suffix == ".ckpt" and ".." not in file.parts and file.is_file():
            self.replaced.append(file)

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read a checkpoint without executing anything in it, in the form of this Lightning."""
        # Lightning would do the same, and advise a command that executes what the file holds.
        return migrate_checkpoint(read_checkpoint(Path(path)))[0]


class RunCSVLogger(CSVLogger):
    """Lightning's CSV logger with one row an epoch, which continues a file that is there.

    Lightning writes a row each time something is logged: the learning rate, validation, training.
    What is logged more than once an epoch gets further rows, so that nothing is lost.
    """

    @property
    def experiment(self) -> Any:
        """The writer of the file; it is made when first used."""
        if self._experiment is None:
            self._experiment = _Writer(self.log_dir)
        return self._experiment

    def finalize(self, status: str) -> None:
        """Write what was logged last; an epoch that was broken off leaves no row."""
        if self._experiment is not None and status == "success":
            self.experiment.close_row()


class _Writer(ExperimentWriter):
    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir=log_dir)
        self.table = Table(self.metrics_file_path, is_sorted=True)
        self._row: dict[str, Any] = {}
        self._is_written = False  # the last row of the file is this one, perhaps not yet whole

    def _check_log_dir_exists(self) -> None:
        """Leave the rows of a resumed run where they are; Lightning would delete them."""

    def log_metrics(self, metrics_dict: dict[str, Any], step: int | None = None) -> None:
        super().log_metrics(metrics_dict, step)
        values = self.metrics.pop()
        row = joined(self._row, values)
        if row is None:
            self.close_row()
            row = values
        self._row = row
        # Training's scores are the last of an epoch. Those of validation do not wait for them,
        # because Ray ends a trial after it. A checkpoint, which is written before, holds what a
        # kill keeps from the file (`RunFolder.rewind_metrics`).
        if any(name.startswith("train/") for name in values):
            self.close_row()
        elif any(name.startswith("valid/") for name in values):
            self._write_row()

    def close_row(self) -> None:
        """Write the row, to which nothing more comes."""
        self._write_row()
        self._row, self._is_written = {}, False

    def _write_row(self) -> None:
        if not self._row:
            return
        # No wait for the disk: a row that a power cut takes is written again on resume.
        self.table.append([self._row], flush=False, replace=self._is_written)
        self._is_written = True

    def save(self) -> None:
        """Write nothing: Lightning saves whenever something was logged, within an epoch, too."""
