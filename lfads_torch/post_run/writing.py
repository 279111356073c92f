"""Output files written as trials are inferred, so that no session has to fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data import (
    SessionData,
    StoredArray,
    add_to_file,
    blocks,
    copy_rest,
    new_file,
    part,
    write_rows,
)
from ..tuples import SessionOutput, output_name

_PAIR = ("train", "valid")


# HDF5 may raise RuntimeError where it cannot write, and torch does where memory is full: `new_file`
# would report both as a file that cannot be written.
class _PassedError(Exception):
    """An error of the model, on its way past what makes errors of writing out of errors."""

    def __init__(self, error: RuntimeError) -> None:
        super().__init__(str(error))
        self.error = error


Rows = Mapping[str, NDArray[np.int64]]
"""Rows of a session's pooled arrays by split."""


class OutputFile:
    """The output file of one session while it is written.

    `rows` are the trials of each split. Where the split was redrawn they are not those of the data
    file, and every pair of train and valid arrays is written in their order.
    """

    def __init__(self, file: Any, session: SessionData, rows: Rows) -> None:
        self._file, self._session, self._rows = file, session, rows
        self._written: set[str] = set()

    def rows(self, split: str, fields: Sequence[str]) -> RowWriter:
        """Begin with what is inferred of a split's trials."""
        writer = RowWriter(self._file, split, len(self._rows[split]), fields)
        self._written |= {f"{split}_{output_name(field)}" for field in fields}
        return writer

    def finish(self, attributes: Mapping[str, Any]) -> None:
        """Add where trials end, and every other key of the data file."""
        session = self._session
        for split, rows in self._rows.items():
            for key, array in ended_data(session, split, rows).items():
                if isinstance(array, StoredArray):
                    write_rows(self._file, key, array)
                else:
                    add_to_file(self._file, {key: array})
                self._written.add(key)
        self._write_redrawn()
        if session.in_file:
            copy_rest(session.path, self._file, self._written)
        else:
            rest = {k: v for k, v in session.arrays.items() if k not in self._written}
            add_to_file(self._file, rest)
        add_to_file(self._file, {}, attributes)

    def _write_redrawn(self) -> None:
        """Write every pair of train and valid arrays in the order of a redrawn split."""
        in_order = np.arange(sum(len(self._rows[split]) for split in _PAIR))
        if np.array_equal(np.concatenate([self._rows[split] for split in _PAIR]), in_order):
            return
        with self._session.source() as source:
            for key in self._session.keys:
                keys = [key.replace("train_", f"{split}_") for split in _PAIR]
                if "train_" not in key or self._written.issuperset(keys):
                    continue
                # One pair at a time is in memory, whatever the size of the file.
                joined = np.concatenate([np.asarray(source[k][()]) for k in keys])
                for split, name in zip(_PAIR, keys, strict=True):
                    add_to_file(self._file, {name: joined[self._rows[split]]})
                self._written |= set(keys)


class RowWriter:
    """Takes what is inferred of a split's trials, in order, and writes it."""

    def __init__(self, file: Any, split: str, n_trials: int, fields: Sequence[str]) -> None:
        self._file, self._split, self._n_trials, self._fields = file, split, n_trials, fields
        self._done = 0
        self._data: dict[str, Any] = {}

    def add(self, output: SessionOutput) -> None:
        """Write some trials' rows; from the second time round, add to what is there."""
        n = len(output.factors)
        is_first, start = self._done < self._n_trials, self._done % self._n_trials
        rows = slice(start, start + n)
        for field in self._fields:
            values = getattr(output, field).numpy()
            if field not in self._data:
                self._data[field] = self._file.create_dataset(
                    f"{self._split}_{output_name(field)}",
                    (self._n_trials, *values.shape[1:]),
                    values.dtype,
                )
            data = self._data[field]
            # Added up in the file, not in memory: a session's outputs may be larger than that.
            data[rows] = values if is_first else data[rows] + values
        self._done += n

    def apply(self, function: Callable[[Any], Any]) -> None:
        """Change what was written, block by block."""
        for data in self._data.values():
            for rows, block in blocks(data):
                data[rows] = function(block)


@contextmanager
def output_file(path: Path, session: SessionData, rows: Rows) -> Iterator[OutputFile]:
    """Write the output file of a session, complete or not at all."""
    try:
        with new_file(path) as file:
            yield OutputFile(file, session, rows)
    except _PassedError as passed:
        raise passed.error from passed.error.__cause__


@contextmanager
def computing() -> Iterator[None]:
    """Within `output_file`: what a model raises here has nothing to do with writing."""
    try:
        yield
    except RuntimeError as error:
        raise _PassedError(error) from error


def ended_data(session: SessionData, split: str, rows: NDArray[np.int64]) -> dict[str, Any]:
    """Return the lengths of trials that end before the last bin, and their data with NaN.

    Empty where all trials of a split are whole.
    """
    if session.lengths is None:
        return {}
    lengths, arrays = session.lengths[rows], session.pooled
    if (lengths == arrays["recon_data"].shape[1]).all():
        return {}
    ended: dict[str, Any] = {f"{split}_lengths": lengths}
    if f"{split}_lengths" in session.keys:
        # Padding that is no NaN in the data file would pass for data beside rates that are.
        in_order = np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows)))
        where = slice(int(rows[0]), int(rows[0]) + len(rows))
        for name in ("encod_data", "recon_data")[: 1 + session.splits[split].has_recon]:
            # A part of a stored array is copied block by block, chosen rows are read into memory.
            array = arrays[name]
            ended[f"{split}_{name}"] = part(array, where) if in_order else array[rows]
    return ended
