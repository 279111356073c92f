"""An epoch under Lightning, as `lfads train` runs it, against its steps alone."""

from __future__ import annotations

import copy
import io
import logging
import statistics
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from shapes import Shape, build_datamodule, build_model
from steps import CLIP, stepper
from textbook import sample_loader
from timing import by_turns, median_ratio

from lfads_torch.callbacks import EpochProgressBar
from lfads_torch.datamodules import BasicDataModule
from lfads_torch.tuples import sessions_of


class Turns(pl.Callback):
    """Times every epoch and, before each, the steps alone on batches drawn beforehand.

    Parameters
    ----------
    model : LFADS
        One of its own, equal to the trainer's at the start.
    data : BasicDataModule
    """

    def __init__(self, model: Any, data: BasicDataModule) -> None:
        self.model = model
        optimizer = model.configure_optimizers()
        self.train = [
            stepper(model, partial(model.training_step, batch, 0), optimizer)
            for batch in data.train_dataloader()
        ]
        self.valid = list(data.val_dataloader())
        self.epochs: list[float] = []
        self.train_alone: list[float] = []
        self.all_alone: list[float] = []
        self._began: float | None = None

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End the clock of the epoch before, run the steps alone, start the clock."""
        if self._began is not None:
            self.epochs.append(time.perf_counter() - self._began)
        self._steps_alone()
        self._began = time.perf_counter()

    def _steps_alone(self) -> None:
        start = time.perf_counter()
        self.model.train()
        for step in self.train:
            step()
        self.train_alone.append(time.perf_counter() - start)
        self.model.eval()
        with torch.no_grad():
            for batch in self.valid:
                self.model.validation_step(batch, 0)
        self.all_alone.append(time.perf_counter() - start)


def measure_epoch(shape: Shape, kernel: str, rounds: int) -> dict[str, float]:
    """Epoch over its steps; loaders of package and textbook without any step."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = build_datamodule(shape, Path(folder))
        model = build_model(shape, kernel)
        turns = Turns(copy.deepcopy(model), data)
        trainer = pl.Trainer(
            # The first epoch warms up; none begins after the last, to end its clock.
            max_epochs=rounds + 2,
            accelerator="cpu",
            devices=1,
            gradient_clip_val=CLIP,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            enable_model_summary=False,
            logger=[CSVLogger(folder, name="csv"), TensorBoardLogger(folder, name="tensorboard")],
            callbacks=[
                turns,
                ModelCheckpoint(folder, monitor="valid/recon_smth", save_on_train_epoch_end=True),
                EpochProgressBar(stream=io.StringIO()),
            ],
            default_root_dir=folder,
        )
        trainer.fit(model, datamodule=data)
        loader = sample_loader(_all_trials(data), shape.batch, shuffle=True)
        loading = by_turns(
            {
                "package": lambda: list(data.train_dataloader()),
                "textbook": lambda: list(loader),
            },
            rounds,
        )
    epochs, train, steps = turns.epochs[1:], turns.train_alone[1:-1], turns.all_alone[1:-1]
    return {
        "epoch / steps of training and validation": median_ratio(epochs, steps),
        "epoch / steps of training": median_ratio(epochs, train),
        "epoch, s": statistics.median(epochs),
        "steps of training and validation, s": statistics.median(steps),
        "steps of training, s": statistics.median(train),
        "number of training steps": len(turns.train),
        "loader, textbook / package": median_ratio(loading["textbook"], loading["package"]),
    }


def _all_trials(data: BasicDataModule) -> Any:
    (step,) = data.split_loader("train", batch_size=data.sizes[0].n_train)
    return sessions_of(step)[0]
