"""One progress bar for the whole training."""

from __future__ import annotations

import math
import time
from collections import deque
from typing import Any, TextIO

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar

from ..kernels.c_library import describe
from ..progress import Line, clock

_RECENT = 20


class EpochProgressBar(ProgressBar):
    """Show epoch, loss, smoothed validation loss and the time left, in one line.

    The time left is that to ``max_epochs``; early stopping may end sooner, hence the "at most".
    Where there is no terminal, a plain line is written now and then.

    Parameters
    ----------
    refresh_s : float
        Seconds between updates of the bar.
    line_every_s : float
        Seconds between lines where there is no terminal.
    stream : text stream, optional
        Where to write; standard error if None.
    """

    def __init__(
        self, refresh_s: float = 0.2, line_every_s: float = 10.0, stream: TextIO | None = None
    ) -> None:
        super().__init__()
        self.refresh_s = refresh_s
        self._line = Line(stream, refresh_s=refresh_s, every_s=line_every_s)
        self._enabled = True
        self._ends: deque[float] = deque(maxlen=_RECENT + 1)
        self._first_epoch = 0
        self._began = 0.0

    def disable(self) -> None:
        """Show nothing."""
        self._enabled = False

    def enable(self) -> None:
        """Show progress again."""
        self._enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the bar."""
        self._line.say(kwargs.get("sep", " ").join(map(str, args)))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin at the epoch at which training begins, after a resume not the first."""
        self._first_epoch = trainer.current_epoch
        self._began = time.monotonic()
        self._ends.clear()
        self._ends.append(self._began)
        if self._enabled and trainer.is_global_zero:
            self._line.say(_describe(trainer, pl_module))
        self._line.start()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Show the step within a long epoch."""
        # Short epochs show no steps: the line would flicker, and metrics cost a synchronisation.
        is_long = time.monotonic() - self._ends[-1] > 5 * self.refresh_s
        if is_long and self._line.is_terminal and self._line.is_due:
            progress, n_steps = (
                trainer.fit_loop.epoch_loop.batch_progress,
                trainer.num_training_batches,
            )
            step = f", step {progress.current.completed}/{n_steps}"
            self._show(trainer, step if n_steps > 1 else "")

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the epoch that has ended, all its metrics being known by now."""
        if trainer.current_epoch > self._first_epoch:
            self._ends.append(time.monotonic())
            if self._line.is_due:
                self._show(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the last epoch and leave it on the terminal."""
        self._show(trainer, final=True)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Clear the line, so that the message begins at the margin."""
        self._line.clear()

    def _show(self, trainer: pl.Trainer, step: str = "", *, final: bool = False) -> None:
        if not (self._enabled and trainer.is_global_zero):
            return
        epoch, total = trainer.current_epoch, self._total(trainer)
        title = f"epoch {epoch}" + (f"/{total}" if total else "") + step
        in_all = f"{clock(time.monotonic() - self._began)} in all"
        left = in_all if final else self._time_left(trainer)
        text = " | ".join(filter(None, [title, *_values(trainer), left]))
        # A terminal of 80 columns has no room for the whole; the time left is what people look at.
        short = text.replace(" (smoothed)", "") if self._line.is_terminal else text
        self._line.show(short, final=final)

    def _time_left(self, trainer: pl.Trainer) -> str:
        """Epochs left times the mean duration of recent ones, in words."""
        total = self._total(trainer)
        if total is None or len(self._ends) < 2:
            return ""
        per_epoch = (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1)
        return f"at most {clock(max(0, total - trainer.current_epoch) * per_epoch)} left"

    @staticmethod
    def _total(trainer: pl.Trainer) -> int | None:
        epochs = trainer.max_epochs
        return epochs if epochs is not None and epochs > 0 else None


def _describe(trainer: pl.Trainer, model: pl.LightningModule) -> str:
    """Say in one line what is trained, and on what."""
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    sizes = getattr(getattr(trainer, "datamodule", None), "sizes", [])
    trials = [f"{s.n_train} trials x {s.recon_len} bins x {s.recon_dim} channels" for s in sizes]
    if len(trials) > 1:
        trials = [f"{len(sizes)} sessions, {sum(s.n_train for s in sizes)} trials"]
    # Its size is not said: a batch has no more trials than there are, whatever was set.
    if math.isfinite(n_batches := trainer.num_training_batches):
        trials.append(f"{n_batches:.0f} batch{'es' * (n_batches != 1)} per epoch")
    readout = getattr(model, "behavior", None)
    if readout is not None:
        trials.append(f"behaviour in {readout.out_features} dimensions from {readout.source}")
    device = str(trainer.strategy.root_device)
    kernels = f"kernels in {describe()}" if device == "cpu" else ""
    return ", ".join(filter(None, [*trials, f"{n_parameters:,} parameters", device, kernels]))


def _values(trainer: pl.Trainer) -> list[str]:
    shown = {
        "train/loss": "loss",
        "valid/recon_smth": "valid recon (smoothed)",
        "valid/behavior_r2": "valid behaviour R2",
    }
    metrics = trainer.callback_metrics
    return [
        f"{label} {float(metrics[name]):.5g}" for name, label in shown.items() if name in metrics
    ]
