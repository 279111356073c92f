"""Who descends from whom in a search."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...errors import UserError
from .style import FloatArray


class Family(NamedTuple):
    """A population as a grid of epochs and members."""

    # shape (E,)
    epochs: NDArray[np.int64]
    # shape (K,)
    members: NDArray[np.int64]
    # Row of the table for each epoch and member, -1 where there is none; shape (E, K)
    rows: NDArray[np.intp]
    # Column of the member from whose previous epoch this one goes on; shape (E, K)
    parents: NDArray[np.intp]
    # shape (E, K)
    diverged: NDArray[np.bool_]

    def column(self, values: ArrayLike) -> FloatArray:
        """Return a column of the table by epoch and member, NaN where a row is missing."""
        grid = np.asarray(values, dtype=np.float64)[self.rows]
        return np.where(self.rows >= 0, grid, np.nan)

    @property
    def last(self) -> NDArray[np.intp]:
        """Index of each member's last epoch; a member may end before the search does."""
        return len(self.epochs) - 1 - np.argmax(self.rows[::-1] >= 0, axis=0)

    def final(self, grid: NDArray[Any]) -> NDArray[Any]:
        """Values of each member's last epoch, of a grid of epochs and members."""
        return grid[self.last, np.arange(len(self.members))]

    def line_of(self, member: int) -> NDArray[np.intp]:
        """Column that a final `member` descends from, in each epoch."""
        line = np.full(len(self.epochs), member)
        for e in reversed(range(self.last[member] + 1)):
            line[e] = member
            member = self.parents[e, member]
        return line

    def living(self) -> NDArray[np.bool_]:
        """Whether the last epoch of any member descends from an epoch of a member."""
        chain = (self.rows >= 0) & (np.arange(len(self.epochs))[:, None] == self.last)
        for e in reversed(range(1, len(self.epochs))):
            chain[e - 1, self.parents[e, chain[e]]] = True
        return chain & (self.rows >= 0)

    def blocks(self) -> NDArray[np.intp]:
        """Return indices of the epochs before which members were copied, and of the first one."""
        own = np.arange(len(self.members))
        copied = ((self.parents != own) & (self.rows >= 0)).any(axis=1)
        copied[:1] = True
        return np.flatnonzero(copied)

    def spans(self) -> Iterator[tuple[int, int, float, float]]:
        """For each member between copies: index of the first epoch, column, begin and end."""
        starts = self.blocks()
        for start, stop in zip(starts, [*starts[1:], len(self.epochs)], strict=True):
            for k in np.flatnonzero(self.rows[start] >= 0):
                last = start + np.flatnonzero(self.rows[start:stop, k] >= 0)[-1]
                yield int(start), int(k), float(self.epochs[start]), float(self.epochs[last] + 1)


def family_of(population: Mapping[str, ArrayLike]) -> Family | None:
    """Arrange a table by epoch and member, or return None where it is empty.

    Without ``parent`` nobody was copied, without ``diverged`` nobody diverged.
    """
    lacking = [n for n in ("epoch", "member") if n not in population]
    if lacking:
        raise UserError(
            f"the table has no column {' nor '.join(lacking)}; give what "
            "lfads_torch.folder.read_population returns"
        )
    epochs, row_epoch = np.unique(np.asarray(population["epoch"]), return_inverse=True)
    members, row_member = np.unique(np.asarray(population["member"]), return_inverse=True)
    if not len(epochs):
        return None
    rows = np.full((len(epochs), len(members)), -1, np.intp)
    rows[row_epoch, row_member] = np.arange(len(row_epoch))
    parents = np.tile(np.arange(len(members)), (len(epochs), 1))
    if "parent" in population:
        column = np.searchsorted(members, np.asarray(population["parent"]))
        parents[row_epoch, row_member] = np.minimum(column, len(members) - 1)
    diverged = np.zeros(rows.shape, bool)
    if "diverged" in population:
        diverged[row_epoch, row_member] = np.asarray(population["diverged"], bool)
    return Family(epochs.astype(int), members.astype(int), rows, parents, diverged)
