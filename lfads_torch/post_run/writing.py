"""Output files written as trials are inferred, so that no session has to fit into memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..data import SessionData, StoredArray, add_to_file, blocks, copy_rest, new_file, write_rows
from ..tuples import SessionOutput


# HDF5 may raise RuntimeError where it cannot write, and torch does where memory is full: `new_file`
# would report both as a file that cannot be written.
class _PassedError(Exception):
    """An error of the model, on its way past what makes errors of writing out of errors."""

    def __init__(self, error: RuntimeError) -> None:
        super().__init__(str(error))
        self.error = error


class OutputFile:
    """The output file of one session while it is written."""

    def __init__(self, file: Any, session: SessionData) -> None:
        self._file, self._session = file, session
        self._written: set[str] = set()

    def rows(self, split: str, fields: Sequence[str] = SessionOutput._fields) -> RowWriter:
        """Begin with what is inferred of a split's trials."""
        n_trials = self._session.splits[split].n_trials
        writer = RowWriter(self._file, split, n_trials, fields)
        self._written |= {f"{split}_{field}" for field in fields}
        return writer

    def finish(self, attributes: Mapping[str, Any]) -> None:
        """Add where trials end, and every other key of the data file."""
        for split in self._session.splits:
            for key, array in ended_data(self._session, split).items():
                if isinstance(array, StoredArray):
                    write_rows(self._file, key, array)
                else:
                    add_to_file(self._file, {key: array})
                self._written.add(key)
        copy_rest(self._session.path, self._file, self._written)
        add_to_file(self._file, {}, attributes)


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
                    f"{self._split}_{field}", (self._n_trials, *values.shape[1:]), values.dtype
                )
            # Added up in the file, not in memory: a session's outputs may be larger than that.
            data = self._data[field]
            data[rows] = values if is_first else data[rows] + values
        self._done += n

    def divide(self, by: int) -> None:
        """Divide what was written."""
        for data in self._data.values():
            for rows, block in blocks(data):
                data[rows] = block / by


@contextmanager
def output_file(path: Path, session: SessionData) -> Iterator[OutputFile]:
    """Write the output file of a session, complete or not at all."""
    try:
        with new_file(path) as file:
            yield OutputFile(file, session)
    except _PassedError as passed:
        raise passed.error from passed.error.__cause__


@contextmanager
def computing() -> Iterator[None]:
    """Mark code within `output_file` whose errors have nothing to do with writing."""
    try:
        yield
    except RuntimeError as error:
        raise _PassedError(error) from error


def ended_data(session: SessionData, split: str) -> dict[str, Any]:
    """Return the lengths of trials that end before the last bin, and their data with NaN.

    Empty where all trials of a split are whole.
    """
    trials = session.splits[split]
    if trials.lengths is None or (trials.lengths == trials.recon_data.shape[1]).all():
        return {}
    arrays: dict[str, Any] = {f"{split}_lengths": trials.lengths}
    if f"{split}_lengths" in session.keys:
        # Padding that is no NaN in the data file would pass for data beside rates that are.
        arrays[f"{split}_encod_data"] = trials.encod_data
        if trials.has_recon:
            arrays[f"{split}_recon_data"] = trials.recon_data
    return arrays
