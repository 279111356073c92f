"""The history of a search: what every member was, epoch by epoch, and who copied whom.

Two CSV files in the run folder. ``population.csv`` has a row for each epoch and member,
``exchanges.csv`` a row for each copy. An epoch's rows are written in one go and flushed to the
disk, so that a kill leaves whole rows; `History.rewind` cuts the files back to a checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from ..files import Table, cannot_write
from ..folder import EXCHANGES, HP, POPULATION
from ..tables import read_rows


class History:
    """Writes the history of a search into its run folder.

    Epochs count from 0. An exchange carries the number of epochs trained when it happened, which is
    the next epoch to train.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(self.folder, error) from error
        for name in (POPULATION, EXCHANGES):
            if (self.folder / name).is_file():
                read_rows(self.folder / name)  # refuses a table that is not of a search
        self._tables = {name: Table(self.folder / name) for name in (POPULATION, EXCHANGES)}
        self._copied: dict[int, int] = {}
        self._restore_parents()

    def append(
        self,
        epoch: int,
        generation: int,
        values: Mapping[str, ArrayLike],
        metrics: Mapping[str, ArrayLike],
        diverged: ArrayLike,
        members: ArrayLike | None = None,
    ) -> None:
        """Record an epoch, one row for each member."""
        flags = np.asarray(diverged, dtype=bool).ravel()
        numbers = np.arange(len(flags)) if members is None else np.asarray(members).ravel()
        columns = {f"{HP}{name}": column for name, column in values.items()}
        columns |= {n: column for n, column in metrics.items() if not n.startswith(HP)}
        arrays = {name: np.asarray(column, dtype=np.float64) for name, column in columns.items()}
        rows = [
            {
                "epoch": str(epoch),
                "generation": str(generation),
                "member": str(k),
                "parent": str(self._copied.get(int(k), k)),
                "diverged": str(int(flags[i])),
                **{name: _text(array[i]) for name, array in arrays.items()},
            }
            for i, k in enumerate(numbers)
        ]
        self._tables[POPULATION].append(rows)
        for k in numbers:
            self._copied.pop(int(k), None)

    def exchange(
        self,
        epoch: int,
        generation: int,
        parents: ArrayLike,
        old: Mapping[str, ArrayLike],
        new: Mapping[str, ArrayLike],
        scores: ArrayLike,
    ) -> None:
        """Record the copies at the end of a generation, one row for each."""
        chosen = np.asarray(parents, dtype=np.intp)
        losses = np.asarray(scores, dtype=np.float64)
        before = {f"old/{n}": np.asarray(c, dtype=np.float64) for n, c in old.items()}
        after = {f"new/{n}": np.asarray(c, dtype=np.float64) for n, c in new.items()}
        rows = [
            {
                "generation": str(generation),
                "epoch": str(epoch),
                "member": str(k),
                "parent": str(parent),
                "score": _text(losses[k]),
                "parent_score": _text(losses[parent]),
                **{name: _text(array[k]) for name, array in (before | after).items()},
            }
            for k, parent in enumerate(chosen)
            if parent != k
        ]
        self._tables[EXCHANGES].append(rows)
        self._copied = {k: int(parent) for k, parent in enumerate(chosen)}

    def rewind(self, epoch: int) -> None:
        """Cut the files back to `epoch` trained epochs, so that a resumed search continues them."""
        # Of copies too: those after the last of these epochs are decided again.
        for table in self._tables.values():
            if table.header:
                table.rewrite([row for row in table.read() if int(row["epoch"]) < epoch])
        self._restore_parents()

    def _restore_parents(self) -> None:
        """Remember the copies after which no epoch is recorded yet."""
        copies, epochs = self._tables[EXCHANGES].read(), self._tables[POPULATION].read()
        trained: dict[str, int] = {}
        for row in epochs:
            trained[row["member"]] = max(trained.get(row["member"], 0), int(row["epoch"]) + 1)
        self._copied = {
            int(row["member"]): int(row["parent"])
            for row in copies
            if int(row["epoch"]) >= trained.get(row["member"], 0)
        }


def _text(value: float) -> str:
    # All digits: decisions are made again from these numbers, and have to come out the same.
    return repr(float(value))
