"""What people see of objects and of what runs: tables, one line of progress, who may speak."""

from __future__ import annotations

import logging
import math
import shutil
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from html import escape
from typing import TextIO

from .errors import DataWarning

# Of Lightning: devices that it has not found, services that it sells. By the names of the modules
# that speak, because the loggers above them are set anew when Lightning is imported.
_CHATTER = ("pytorch_lightning.utilities.rank_zero", "lightning_fabric.utilities.rank_zero")
_LIBRARIES = r"(pytorch_lightning|lightning_fabric|torch|torchmetrics)\b"


class Line:
    """A line that every update rewrites; where there is no terminal, it is printed now and then.

    `refresh_s` are the seconds between updates on a terminal, `every_s` those between plain lines
    elsewhere, of which None writes none; `stream` is standard error by default, looked up when
    something is written.
    """

    is_silent = False
    """Show nothing, for all lines of the process (``-q``)."""

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        refresh_s: float = 0.1,
        every_s: float | None = 10.0,
    ) -> None:
        self._stream = stream
        self._interval = refresh_s if self.is_terminal else every_s
        self._shown = -math.inf
        self._is_open = False

    @property
    def out(self) -> TextIO:
        """The stream that is written to."""
        return sys.stderr if self._stream is None else self._stream

    @property
    def is_terminal(self) -> bool:
        """Whether the line can be rewritten in place."""
        return self.out.isatty()

    @property
    def is_due(self) -> bool:
        """Whether enough time has passed since the last update."""
        interval = None if self.is_silent else self._interval
        return interval is not None and time.monotonic() - self._shown >= interval

    def start(self) -> None:
        """Count the time from now on: the first plain line comes only after `every_s`."""
        if not self.is_terminal:
            self._shown = time.monotonic()

    def show(self, text: str, *, final: bool = False) -> None:
        """Show a text if an update is due; a final one is always shown, and stays."""
        if self.is_silent or not (final or self.is_due):
            return
        self._shown = time.monotonic()
        # Logs of a cluster are no terminals: a carriage return would make one endless line of them.
        if not self.is_terminal:
            print(text, file=self.out, flush=True)
            return
        # A line that wraps could not be taken back.
        width = shutil.get_terminal_size().columns - 1
        end = "\n" if final else ""
        print(f"\r\x1b[K{text[:width]}", end=end, file=self.out, flush=True)
        self._is_open = not final

    def say(self, text: str) -> None:
        """Print a text that stays, above the line."""
        self.clear()
        if not self.is_silent:
            print(text, file=self.out, flush=True)

    def keep(self) -> None:
        """Leave the line where it is; what follows begins on a line of its own."""
        if self._is_open:
            print(file=self.out, flush=True)
            self._is_open = False

    def clear(self) -> None:
        """Take the line off the terminal."""
        if self._is_open:
            print("\r\x1b[K", end="", file=self.out, flush=True)
            self._is_open = False


@contextmanager
def quiet_libraries(verbose: bool = False, *, ignore_warnings: bool = False) -> Iterator[None]:
    """Leave out what Lightning and torch say of themselves, unless `verbose`.

    Warnings of this package stay: they name the key or the file to change. With `ignore_warnings`,
    nothing but these stays, of whatever library.
    """
    if verbose and not ignore_warnings:
        yield
        return
    loggers = [logging.getLogger(name) for name in _CHATTER]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        if ignore_warnings:
            warnings.simplefilter("ignore")
            warnings.filterwarnings("default", module="lfads_torch")
        else:
            warnings.filterwarnings("ignore", module=_LIBRARIES)
        # A warning on data counts as Lightning's where Lightning reads them.
        warnings.filterwarnings("default", category=DataWarning)
        for logger in loggers:
            logger.setLevel(logging.ERROR if ignore_warnings else logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def html_table(title: str, facts: Mapping[str, object]) -> str:
    """Return a small table for notebooks; facts that are None are left out."""
    rows = "".join(
        f"<tr><th style='text-align:left'>{escape(name)}</th>"
        f"<td style='text-align:left'>{escape(str(fact))}</td></tr>"
        for name, fact in facts.items()
        if fact is not None
    )
    return f"<table><caption><b>{escape(title)}</b></caption>{rows}</table>"


def clock(seconds: float) -> str:
    """Write a duration as ``m:ss`` or ``h:mm:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
