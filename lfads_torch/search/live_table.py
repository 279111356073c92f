"""The live table of a search: a line for each generation, and one that moves."""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections import deque
from typing import NamedTuple, TextIO

from ..progress import clock

_RECENT = 20
_WIDTHS = (7, 6, 9, 9, 7, 8, 8, 9)


class Row(NamedTuple):
    """What an epoch left.

    Attributes
    ----------
    group : int
        Number of the generation, or of members that still train where there are no generations.
    epoch : int
        Epochs trained.
    best, median : float
        Of the metric, over members that have not diverged.
    replaced : int
        Members that became copies at the end of the generation, or that stopped.
    diverged : int
        Members whose loss or weights are not finite.
    n_members : int
        Members that were trained.
    """

    group: int
    epoch: int
    best: float
    median: float
    replaced: int
    diverged: int
    n_members: int


class LiveTable:
    """Writes one line for each generation; on a terminal, also one that every epoch rewrites.

    On something other than a terminal, an epoch gets a plain line of its own now and then. Steps
    count those of all members; the time left is that to the last epoch allowed.
    """

    def __init__(
        self,
        exchanges: bool,
        max_epochs: int,
        steps_per_epoch: int,
        *,
        line_every_s: float = 10.0,
        stream: TextIO | None = None,
    ) -> None:
        self.max_epochs = max_epochs
        self.steps_per_epoch = steps_per_epoch
        self.line_every_s = line_every_s
        self._out = sys.stderr if stream is None else stream
        group, replaced = ("gen", "copies") if exchanges else ("members", "stopped")
        self._heads = (
            *(group, "epoch", "best", "median", replaced, "diverged"),
            *("steps/s", "left"),
        )
        self._durations: deque[tuple[float, int]] = deque(maxlen=_RECENT)
        self._is_live = self._out.isatty()
        self._line = ""
        self._shown = time.monotonic()
        self._has_begun = False

    def add_time(self, seconds: float, n_members: int) -> None:
        """Take in how long an epoch of so many members lasted, saving included."""
        self._durations.append((seconds, n_members))

    def show(self, row: Row, *, final: bool) -> None:
        """Show an epoch."""
        now = time.monotonic()
        if not self._is_live and not final and now - self._shown < self.line_every_s:
            return
        if not self._has_begun:
            self._has_begun = True
            print(_line(self._heads), file=self._out)
        self._shown = now
        self._line = self._format(row)
        if not self._is_live:
            print(self._line, file=self._out, flush=True)
            return
        # A line that wraps could not be taken back.
        width = shutil.get_terminal_size().columns - 1
        print(
            f"\r\x1b[K{self._line[:width]}", end="\n" if final else "", file=self._out, flush=True
        )
        if final:
            self._line = ""

    def say(self, text: str) -> None:
        """Print a remark on a line of its own."""
        self.close()
        print(text, file=self._out, flush=True)

    def close(self) -> None:
        """Leave the moving line where it is."""
        if self._is_live and self._line:
            print(file=self._out, flush=True)
        self._line = ""

    def _format(self, row: Row) -> str:
        cells = [
            *(f"{row.group}", f"{row.epoch}", _number(row.best), _number(row.median)),
            *(f"{row.replaced}", f"{row.diverged}"),
        ]
        seconds = sum(duration for duration, _ in self._durations)
        if seconds > 0:
            trained = sum(n for _, n in self._durations) * self.steps_per_epoch
            per_epoch = seconds / len(self._durations)
            left = max(0, self.max_epochs - row.epoch) * per_epoch
            cells += [f"{trained / seconds:.3g}", clock(left)]
        return _line(cells)


def _number(value: float) -> str:
    return f"{value:.5g}" if math.isfinite(value) else "-"


def _line(cells: list[str] | tuple[str, ...]) -> str:
    return "  ".join(cell.rjust(width) for cell, width in zip(cells, _WIDTHS, strict=False))
