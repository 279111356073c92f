"""The live table of a search: a line for each generation, and one that moves."""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple, TextIO

from ..progress import Line, clock

_RECENT = 20
_WIDTHS = (7, 6, 9, 9, 7, 8, 8, 9)


class Row(NamedTuple):
    """What the table shows of an epoch.

    `group` is the number of the generation, or of the members that still train where there are no
    generations; `best` and `median` are of the metric, over members that have not diverged;
    `replaced` became copies, or stopped.
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

    On something other than a terminal, an epoch gets a plain line now and then. Steps
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
        # On a terminal every epoch is shown: a table has few updates a second.
        self._line = Line(stream, refresh_s=0.0, every_s=line_every_s)
        self._line.start()
        group, replaced = ("gen", "copies") if exchanges else ("members", "stopped")
        self._heads = (
            *(group, "epoch", "best", "median", replaced, "diverged"),
            *("steps/s", "left"),
        )
        self._durations: deque[tuple[float, int]] = deque(maxlen=_RECENT)
        self._has_begun = False

    def add_time(self, seconds: float, n_members: int) -> None:
        """Note how long an epoch of `n_members` members lasted, saving included."""
        self._durations.append((seconds, n_members))

    def show(self, row: Row, *, final: bool) -> None:
        """Show an epoch."""
        if self._line.is_silent or not (final or self._line.is_due):
            return
        if not self._has_begun:
            self._has_begun = True
            print(_cells(self._heads), file=self._line.out)
        self._line.show(self._format(row), final=final)

    def say(self, text: str) -> None:
        """Print a remark below the line."""
        self.close()
        self._line.say(text)

    def close(self) -> None:
        """Leave the moving line where it is."""
        self._line.keep()

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
        return _cells(cells)


def _number(value: float) -> str:
    return f"{value:.5g}" if math.isfinite(value) else "-"


def _cells(cells: list[str] | tuple[str, ...]) -> str:
    return "  ".join(cell.rjust(width) for cell, width in zip(cells, _WIDTHS, strict=False))
