"""Figures drawn while training: thin shells over `lfads_torch.post_run.plots`."""

from __future__ import annotations

import io
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from ..errors import ConfigError
from ..files import save_figure
from ..modules.recons import observed_loss
from ..tuples import SessionBatch, SessionOutput

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SPLITS = ("train", "valid")
_TRAJECTORY_TRIALS = 100
_DPI = 110


@contextmanager
def inference(pl_module: pl.LightningModule) -> Iterator[None]:
    """Evaluate without gradients, leaving mode and random numbers of training as they were."""
    training = pl_module.training
    cuda = [pl_module.device] if pl_module.device.type == "cuda" else []
    pl_module.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=cuda):
            yield
    finally:
        pl_module.train(training)


class _FigurePlot(Callback):
    """Draw every so many epochs and when training ends; PNG file and image loggers.

    The newest figure is ``figures/<name>.png`` below the Trainer's root directory, earlier ones are
    kept by the loggers that take images (TensorBoard, W&B).
    """

    name: str

    def __init__(self, split: str, n_samples: int, log_every_n_epochs: int) -> None:
        if split not in _SPLITS:
            raise ConfigError(f"split is {split!r}; legal are {', '.join(map(repr, _SPLITS))}")
        for argument, value in (
            ("n_samples", n_samples),
            ("log_every_n_epochs", log_every_n_epochs),
        ):
            if value < 1:
                raise ConfigError(f"{argument} must be 1 or more, got {value}")
        self.split = split
        self.n_samples = n_samples
        self.log_every_n_epochs = log_every_n_epochs
        self._drawn_at = -1

    @abstractmethod
    def draw(
        self,
        batch: SessionBatch,
        output: SessionOutput,
        bin_ms: float | None,
        counts: bool,
    ) -> Figure:
        """Return the figure of some trials of one session."""

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw when the interval is over."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        if (trainer.current_epoch + 1) % self.log_every_n_epochs == 0:
            self._log(trainer, pl_module, trainer.current_epoch + 1)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the trained model, unless the last epoch was drawn."""
        if self._drawn_at != trainer.current_epoch:
            self._log(trainer, pl_module, trainer.current_epoch)

    def _log(self, trainer: pl.Trainer, pl_module: pl.LightningModule, epoch: int) -> None:
        self._drawn_at = epoch
        if not trainer.is_global_zero:
            return
        session, batch = self._trials(trainer, pl_module)
        with inference(pl_module):
            outputs = pl_module.predict_step({session: (batch, ())}, 0, sample_posteriors=False)
        recons = getattr(pl_module, "recon", None)
        counts = recons is None or bool(getattr(recons[session], "for_counts", False))
        bin_ms = _bin_ms(trainer, session)
        _publish(trainer, self.name, self.draw(batch, outputs[session], bin_ms, counts), epoch)

    def _trials(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> tuple[int, SessionBatch]:
        """First trials of the first session that has any in this split."""
        data: Any = getattr(trainer, "datamodule", None)
        if hasattr(data, "split_loader"):
            loader = data.split_loader(self.split, batch_size=self.n_samples * data.n_sessions)
        elif self.split == "valid":
            loader = trainer.val_dataloaders
        else:
            loader = trainer.train_dataloader
        step = pl_module.transfer_batch_to_device(next(iter(loader)), pl_module.device, 0)
        session = min(step)
        batch: SessionBatch = step[session][0]
        cut = {
            field: value[: self.n_samples]
            for field, value in batch._asdict().items()
            if isinstance(value, Tensor)
        }
        return session, batch._replace(**cut, masks=None)


class RasterPlot(_FigurePlot):
    """Draw data, true rates (where known), inferred rates and inferred inputs of some trials.

    Parameters
    ----------
    split : {"valid", "train"}
        Where the trials come from.
    n_samples : int
        Trials drawn, fewer where there are fewer.
    log_every_n_epochs : int
        Interval; the figure is drawn once more when training ends.
    """

    def __init__(
        self, split: str = "valid", n_samples: int = 3, log_every_n_epochs: int = 100
    ) -> None:
        super().__init__(split, n_samples, log_every_n_epochs)
        self.name = f"raster_{split}"

    def draw(
        self, batch: SessionBatch, output: SessionOutput, bin_ms: float | None, counts: bool
    ) -> Figure:
        """Return `raster_panel` of these trials."""
        from ..post_run.plots import raster_panel  # Matplotlib takes its time to load

        _, n_bins, n_read = batch.encod_data.shape
        return raster_panel(
            _numpy(batch.recon_data),
            _numpy(output.output_params),
            _numpy(batch.truth),
            _numpy(output.co_means),
            n_trials=self.n_samples,
            bin_ms=bin_ms,
            n_encod=n_read,
            encod_bins=n_bins,
            counts=counts,
        )


class TrajectoryPlot(_FigurePlot):
    """Draw validation trials' factors in the space of their first principal components.

    Parameters
    ----------
    log_every_n_epochs : int
        Interval; the figure is drawn once more when training ends.
    """

    name = "trajectories_valid"

    def __init__(self, log_every_n_epochs: int = 100) -> None:
        super().__init__("valid", _TRAJECTORY_TRIALS, log_every_n_epochs)

    def draw(
        self, batch: SessionBatch, output: SessionOutput, bin_ms: float | None, counts: bool
    ) -> Figure:
        """Return `trajectories` of these trials' factors."""
        from ..post_run.plots import trajectories

        return trajectories(_numpy(output.factors), bin_ms=bin_ms)


def _numpy(tensor: Tensor) -> Any:
    return tensor.detach().float().cpu().numpy()


def _bin_ms(trainer: pl.Trainer, session: int) -> float | None:
    sessions = getattr(getattr(trainer, "datamodule", None), "sessions", None)
    attrs = getattr(sessions[session], "attrs", {}) if sessions else {}
    width = attrs.get("bin_ms")
    return None if width is None else float(width)


def _publish(trainer: pl.Trainer, name: str, figure: Figure, epoch: int) -> None:
    path = Path(trainer.default_root_dir) / "figures" / f"{name}.png"
    save_figure(figure, path, dpi=_DPI)
    for logger in trainer.loggers:
        # W&B counts optimiser steps beside its images, TensorBoard shows what it is given.
        on_board = hasattr(getattr(logger, "experiment", None), "add_image")
        log_figure([logger], name, figure, epoch if on_board else trainer.global_step)


def has_image_loggers(loggers: Iterable[Any]) -> bool:
    """Return whether any of some Lightning loggers takes images."""
    return any(_takes_images(logger) for logger in loggers)


def log_figure(loggers: Iterable[Any], name: str, fig: Figure, step: int) -> None:
    """Give a figure to every logger that takes images (TensorBoard, W&B).

    Parameters
    ----------
    loggers : iterable of Lightning loggers
        Such as ``trainer.loggers``.
    name : str
        What the loggers call it.
    fig : Figure
    step : int
        Where the loggers put it.
    """
    takers = [logger for logger in loggers if _takes_images(logger)]
    if not takers:
        return
    from matplotlib.image import imread

    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=_DPI)
    buffer.seek(0)
    pixels: Any = (imread(buffer)[..., :3] * 255).astype(np.uint8)
    for logger in takers:
        if hasattr(logger.experiment, "add_image"):
            logger.experiment.add_image(name, pixels, step, dataformats="HWC")
        else:
            logger.log_image(key=name, images=[pixels], step=step)


def _takes_images(logger: Any) -> bool:
    experiment = getattr(logger, "experiment", None)
    return hasattr(logger, "log_image") or hasattr(experiment, "add_image")


class TestEval(Callback):
    """Log ``test/recon`` after each validation: the mean loss of the first session's test trials.

    The loss is that of what the encoders read of them, at the posterior means.
    """

    # Pytest would take a class of this name for tests.
    __test__ = False

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Infer the test trials and log their loss."""
        data: Any = getattr(trainer, "datamodule", None)
        trials = getattr(data, "test_data", None)
        if not trials:
            raise ConfigError("TestEval needs a data file with a test split; leave it out")
        batch = trials[0][0].to(pl_module.device)
        model: Any = pl_module
        with inference(pl_module):
            output = model({0: batch}, sample_posteriors=False, output_means=False)[0]
            _, n_bins, n_read = batch.encod_data.shape
            observed = ~batch.encod_data.isnan()
            params = output.output_params[:, :n_bins, :n_read]
            loss = observed_loss(model.recon[0], batch.encod_data, observed, params)
        pl_module.log("test/recon", loss.sum() / observed.sum().clamp_min(1))
