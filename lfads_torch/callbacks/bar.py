"""One progress bar for the whole training."""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from typing import Any, TextIO

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar
from tqdm import tqdm

_RECENT = 20


class EpochProgressBar(ProgressBar):
    """Show epoch, loss, smoothed validation loss and the time left, in one line.

    The time left is that to ``max_epochs``; early stopping may end sooner, hence the "at most". On
    something other than a terminal, a plain line is written every so often.

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
        self.line_every_s = line_every_s
        self._stream = stream
        self._enabled = True
        self._bar: tqdm[Any] | None = None
        self._ends: deque[float] = deque(maxlen=_RECENT + 1)
        self._shown = -math.inf
        self._first_epoch = 0
        self._began = 0.0

    def disable(self) -> None:
        """Show nothing."""
        self._enabled = False

    def enable(self) -> None:
        """Show progress again."""
        self._enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print without breaking the bar."""
        if self._bar is not None:
            tqdm.write(kwargs.get("sep", " ").join(map(str, args)), file=self._out)
        else:
            print(*args, file=self._out)

    @property
    def _out(self) -> TextIO:
        return sys.stderr if self._stream is None else self._stream

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin at the epoch at which training begins, after a resume not the first."""
        if not (self._enabled and trainer.is_global_zero):
            return
        self._first_epoch = trainer.current_epoch
        self._ends.clear()
        self._began = time.monotonic()
        self._ends.append(self._began)
        self._shown = self._began if not self._out.isatty() else -math.inf
        total = self._total(trainer)
        if self._out.isatty():
            self._bar = tqdm(
                total=total,
                initial=trainer.current_epoch,
                file=self._out,
                dynamic_ncols=True,
                leave=True,
                bar_format="{desc}{bar}{postfix}" if total else "{desc}{postfix}",
                mininterval=0,
            )

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Show the step within a long epoch; nothing but a look at the clock otherwise."""
        if self._bar is not None and time.monotonic() - self._shown > 5 * self.refresh_s:
            n_steps = trainer.num_training_batches
            step = (
                f", step {trainer.fit_loop.epoch_loop.batch_progress.current.completed}/{n_steps}"
            )
            self._show(trainer, step if n_steps > 1 else "")

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the epoch that has ended, all its metrics being known by now."""
        self._advance(trainer, pl_module, final=False)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the last epoch and close the bar."""
        self._advance(trainer, pl_module, final=True)
        self._close()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Close the bar, so that the message begins on a line of its own."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _advance(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *, final: bool) -> None:
        if not (self._enabled and trainer.is_global_zero and self._ends):
            return
        now = time.monotonic()
        if final or trainer.current_epoch > self._first_epoch:
            self._ends.append(now)
        interval = self.refresh_s if self._bar is not None else self.line_every_s
        if final:
            self._show(trainer, time_note=f"{clock(now - self._began)} in all")
        elif now - self._shown >= interval:
            self._show(trainer)

    def _show(self, trainer: pl.Trainer, step: str = "", time_note: str = "") -> None:
        self._shown = time.monotonic()
        total = self._total(trainer)
        epoch = f"epoch {trainer.current_epoch}" + (f"/{total}" if total else "") + step
        values = [*_values(trainer), *filter(None, [time_note or self._time_left(trainer)])]
        if self._bar is None:
            if len(self._ends) > 1:
                print(" | ".join([epoch, *values]), file=self._out, flush=True)
            return
        self._bar.n = trainer.current_epoch
        self._bar.set_description_str(f"{epoch} ", refresh=False)
        self._bar.set_postfix_str(" | ".join(["", *values]).strip(), refresh=False)
        self._bar.refresh()

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


def _values(trainer: pl.Trainer) -> list[str]:
    shown = (("train/loss", "loss"), ("valid/recon_smth", "valid recon (smoothed)"))
    metrics = trainer.callback_metrics
    return [f"{label} {float(metrics[name]):.5g}" for name, label in shown if name in metrics]


def clock(seconds: float) -> str:
    """Write a duration as ``m:ss`` or ``h:mm:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
