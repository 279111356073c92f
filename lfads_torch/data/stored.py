"""Arrays that stay in their file: rows are read when they are needed.

A `StoredArray` is used like an array in memory: `shape`, `dtype`, `array[rows]`, `blocks(array)`.
Its source reads the rows: any object with `shape`, `dtype` and `read(rows)`, where rows are a slice
or an array of indices. `_DataFile` here reads the data sets of a data file; the formats of
recordings have a source each in `lfads_torch.prep.sources`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .find import open_h5

Array = NDArray[Any]
Rows = NDArray[np.int64]

# 4 MB of float32, which stay in a core's cache while one statistic after another looks at them: a
# survey takes 1.5 times as long with blocks of 16 MB, and no less with blocks of 1 MB.
BLOCK_ENTRIES = 1 << 20
"""Entries that `blocks` reads at once."""

# HDF5 reads a compressed chunk of many trials as a whole. Up to this size in bytes it is kept until
# another one is needed; above, keeping it would cost more memory than the batches.
_MOST_KEPT = 1 << 26
# Unpacking a chunk below this size in bytes takes no longer than finding it.
_QUICK = 1 << 17


class FileStamp(NamedTuple):
    """Size and time of a file, which say whether it is still the one that was opened first."""

    size: int
    written_ns: int

    @classmethod
    def of(cls, path: Path) -> FileStamp:
        """Look at a file; raise `DataError` where it is gone."""
        try:
            status = os.stat(path)
        except OSError as err:
            raise DataError(
                f"{path} is gone or cannot be reached any more ({err.strerror}). It is larger "
                f"than the memory it may take, so trials are read from it all the time: leave it "
                f"in its place until the end."
            ) from err
        return cls(status.st_size, status.st_mtime_ns)


class _DataSet(NamedTuple):
    """The data set of one split: rows `start` to `stop` of the array."""

    key: str | None  # None where the file has none, so that its values are unknown
    start: int
    stop: int
    shape: tuple[int, ...]  # of a row
    dtype: np.dtype[Any]
    offset: int | None = None  # first byte of a contiguous data set in the file
    rows_per_read: int = 1  # rows of a chunk, where they are read together
    rows_per_chunk: int = 1


class _DataFile:
    """Reader of data sets of a file, one after another, shared by all views of the array.

    No handle of the file is kept between reads, so it can be pickled and read from several threads.
    """

    def __init__(
        self, path: Path, sets: Sequence[_DataSet], shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> None:
        self.path, self.sets, self.shape, self.dtype = path, tuple(sets), shape, dtype
        self.stamp = FileStamp.of(path)
        self.divisor = np.float32(1)
        self.ends: Rows | None = None
        self.past_end = np.nan
        self._kept: tuple[str, int, Array] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A copy in another process reads its chunk again, rather than be sent up to 64 MB.
        return {**vars(self), "_kept": None}

    def read(self, rows: slice | Rows) -> Array:
        """Read rows in any order, with the type that the array has in memory."""
        # At each read, since rows of another file with the same sizes would pass for data.
        if FileStamp.of(self.path) != self.stamp:
            raise DataError(
                f"{self.path} was changed or replaced after it was opened. It is larger than the "
                f"memory it may take, so trials are read from it all the time: leave it as it is "
                f"until the end, and start again."
            )
        if isinstance(rows, slice):
            rows = np.arange(rows.start, rows.stop)
        # Ascending and each once: neighbours are read together, and a chunk is unpacked once.
        unique, inverse = np.unique(rows, return_inverse=True)
        values = np.empty((len(unique), *self.shape[1:]), self.dtype)
        for data in self.sets:
            first, last = np.searchsorted(unique, (data.start, data.stop))
            if first == last:
                continue
            target = values[first:last]
            if data.key is None or data.shape != self.shape[1:]:
                target[...] = {"f": np.nan, "i": -1, "b": False}[self.dtype.kind]
            if data.key is not None:
                raw = self._raw(data, unique[first:last] - data.start)
                with np.errstate(over="ignore"):  # the check of the file reports infinite values
                    target[(slice(None), *map(slice, data.shape))] = raw
        if self.divisor != 1:
            values /= self.divisor
        if self.ends is not None:
            values[past_end(self.ends[unique], self.shape[1])] = self.past_end
        return values if np.array_equal(unique, rows) else values[inverse]

    def _raw(self, data: _DataSet, rows: Rows) -> Array:
        """Read ascending rows of a data set as they are stored."""
        values = np.empty((len(rows), *data.shape), data.dtype)
        if data.offset is not None:
            self._read_bytes(data, rows, values)
            return values
        with open_h5(self.path) as file:
            stored = file[data.key]
            if data.rows_per_read == 1:
                for where, run in _runs(rows):
                    values[where] = stored[run]
                return values
            numbers = rows // data.rows_per_read
            for number in np.unique(numbers).tolist():
                chosen = slice(*np.searchsorted(numbers, (number, number + 1)).tolist())
                chunk = self._chunk(stored, data, number)
                values[chosen] = chunk[rows[chosen] - number * data.rows_per_read]
        return values

    def _chunk(self, stored: h5py.Dataset, data: _DataSet, number: int) -> Array:
        kept = self._kept
        if kept is not None and kept[:2] == (data.key, number):
            return kept[2]
        self._kept = None  # free the old one before the new one takes memory
        chunk = stored[number * data.rows_per_read : (number + 1) * data.rows_per_read]
        self._kept = (str(data.key), number, chunk)
        return chunk

    def _read_bytes(self, data: _DataSet, rows: Rows, values: Array) -> None:
        # Straight from the file: HDF5 takes ten times as long to choose a row, and holds a lock.
        width = data.dtype.itemsize * int(np.prod(data.shape))
        flat = values.view(np.uint8).reshape(len(rows), width)
        try:
            handle = os.open(self.path, os.O_RDONLY)
            try:
                for where, run in _runs(rows):
                    target = flat[where].reshape(-1).data
                    place, done = (data.offset or 0) + run.start * width, 0
                    while done < len(target):
                        # One call may read less than it is asked for; Linux stops at 2 GiB.
                        n = os.preadv(handle, [target[done:]], place + done)
                        if n == 0:
                            raise DataError(
                                f"{self.path} is cut short: {data.key!r} ends within trial "
                                f"{run.start + done // width} (counted from 0). Make or copy it "
                                f"again."
                            )
                        done += n
            finally:
                os.close(handle)
        except OSError as err:
            raise DataError(f"{self.path} cannot be read: {err}") from err


class StoredArray:
    """An array that stays in its file: an index, a slice or an array of indices reads rows.

    Rows come as a new array. `part`, `window`, `along` and `flat` give views of the same source.
    """

    def __init__(
        self, source: Any, rows: slice | None = None, window: tuple[int, ...] | None = None
    ) -> None:
        self._source: Any = source
        self._rows = slice(0, source.shape[0]) if rows is None else rows
        self._window: tuple[int, ...] = tuple(source.shape[1:]) if window is None else window

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape, as of an array."""
        return (self._rows.stop - self._rows.start, *self._window)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the numbers that are read."""
        return np.dtype(self._source.dtype)

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return 1 + len(self._window)

    @property
    def size(self) -> int:
        """Number of entries."""
        return int(np.prod(self.shape))

    @property
    def path(self) -> Path:
        """The data file."""
        return Path(self._source.path)

    @property
    def attrs(self) -> Mapping[str, Any]:
        """Notes that the file keeps with the array, such as ``bin_ms``."""
        return getattr(self._source, "attrs", {})

    @property
    def slow_keys(self) -> dict[str, int]:
        """Data sets of which many trials must be read to have one: key and how many."""
        return {
            data.key: data.rows_per_chunk
            for data in self._source.sets
            if data.key is not None
            and data.rows_per_chunk > 1
            and data.rows_per_chunk * data.dtype.itemsize * int(np.prod(data.shape)) > _QUICK
        }

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: int | slice | NDArray[np.integer[Any]]) -> Array:
        if isinstance(rows, int | np.integer):
            return self[np.asarray([range(len(self))[rows]])][0]
        first, places = self._rows.start, rows
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            if step == 1:
                return self._cut(slice(first + start, first + max(start, stop)))
            places = np.arange(start, stop, step)
        return self._cut(np.asarray(places, np.int64) + first)

    def _cut(self, rows: slice | Rows) -> Array:
        values: Array = self._source.read(rows)
        if self._window == values.shape[1:]:
            return values
        return values[(slice(None), *map(slice, self._window))]

    def part(self, rows: slice) -> StoredArray:
        """View consecutive rows."""
        start, stop, _ = rows.indices(len(self))
        first = self._rows.start
        return StoredArray(
            self._source, slice(first + start, first + max(start, stop)), self._window
        )

    def window(self, *sizes: int) -> StoredArray:
        """View the first bins and channels."""
        cut = [min(pair) for pair in zip(sizes, self._window, strict=False)]
        return StoredArray(self._source, self._rows, (*cut, *self._window[len(cut) :]))

    def end_at(self, lengths: Rows, past_end: float) -> None:
        """Give bins past each trial's end this value, in all views."""
        # The source keeps the ends, as an array in memory keeps what is written into a view of it.
        source = self._source
        if source.ends is None:
            source.ends = np.full(source.shape[0], source.shape[1], np.int64)
        source.ends[self._rows] = lengths
        source.past_end = past_end

    def shares(self, other: Any) -> bool:
        """Return whether another array is a view of the same trials of the same data sets."""
        return (
            isinstance(other, StoredArray)
            and other._source is self._source
            and other._rows == self._rows
        )

    def along(self, axis: int) -> Any:
        """View the rows along another axis, which is moved to the front."""
        return self if axis == 0 else self._source.along(axis)

    def flat(self) -> Any:
        """View the only axis of more than one entry."""
        return self if self.ndim == 1 else self._source.flat()


def store(
    file: h5py.File,
    path: Path,
    keys: Sequence[tuple[str | None, int]],
    dtype: np.dtype[Any],
    *,
    divisor: float = 1,
) -> StoredArray:
    """Describe data sets of an open file, and their numbers of rows, as one array that stays there.

    A key of None gives rows that are unknown. A data set with fewer bins and channels than the
    first fills the corner, the rest is unknown. What is read has the type `dtype`, and is divided
    by `divisor`.
    """
    shape = next(tuple(file[key].shape[1:]) for key, _ in keys if key is not None)
    sets, start = [], 0
    for key, n in keys:
        data = _DataSet(key, start, start + n, shape, dtype)
        sets.append(data if key is None else _describe(file[key], path, data))
        start += n
    source = _DataFile(path, sets, (start, *shape), np.dtype(dtype))
    source.divisor = np.float32(divisor)
    return StoredArray(source)


def _describe(stored: h5py.Dataset, path: Path, data: _DataSet) -> _DataSet:
    shape = tuple(stored.shape[1:])
    data = data._replace(shape=shape, dtype=stored.dtype)
    if stored.chunks is None:
        return data._replace(offset=_offset_of(stored, path))
    n_rows = min(stored.chunks[0], len(stored))
    is_much = n_rows * stored.dtype.itemsize * int(np.prod(shape)) > _MOST_KEPT
    return data._replace(rows_per_read=1 if is_much else n_rows, rows_per_chunk=n_rows)


def _offset_of(stored: h5py.Dataset, path: Path) -> int | None:
    """Return the first byte of a data set, None where only HDF5 can find its rows."""
    # Bytes pass for numbers only where the type in the file is NumPy's to the bit: HDF5 also has
    # types of other precision, bit offset or exponent bias, which it converts when it reads.
    offset = stored.id.get_offset()
    plain = stored.dtype.kind in "uif" and stored.id.get_type() == h5py.h5t.py_create(stored.dtype)
    moved = stored.external or stored.file.userblock_size
    if offset is None or not plain or moved or not hasattr(os, "preadv"):
        return None
    # Some drivers of HDF5 keep data at places of their own, so check that the last row is there.
    row = np.asarray(stored[-1])
    with path.open("rb") as raw:
        raw.seek(offset + (len(stored) - 1) * row.nbytes)
        return int(offset) if raw.read(row.nbytes) == row.tobytes() else None


def _runs(rows: Rows) -> Iterator[tuple[slice, slice]]:
    """Yield stretches of consecutive rows among ascending ones: where they go, what they are."""
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    for first, last in pairwise([0, *breaks.tolist(), len(rows)]):
        start = int(rows[first])
        yield slice(first, last), slice(start, start + last - first)


# ---- arrays in memory or in a file, treated alike ------------------------------------------------


def part(array: Any, rows: slice) -> Any:
    """View consecutive rows."""
    return array.part(rows) if isinstance(array, StoredArray) else array[rows]


def window(array: Any, *sizes: int) -> Any:
    """View the first bins and channels."""
    if isinstance(array, StoredArray):
        return array.window(*sizes)
    return array[(slice(None), *map(slice, sizes))]


def along(array: Any, axis: int) -> Any:
    """View the rows along another axis, which is moved to the front."""
    return array.along(axis) if isinstance(array, StoredArray) else np.moveaxis(array, axis, 0)


def flat(array: Any) -> Any:
    """View the only axis of more than one entry."""
    return array.flat() if isinstance(array, StoredArray) else array.reshape(-1)


def shares(one: Any, other: Any) -> bool:
    """Return whether two arrays, of the same trials, are views of the same numbers."""
    if isinstance(one, StoredArray) or isinstance(other, StoredArray):
        return isinstance(one, StoredArray) and one.shares(other)
    return np.shares_memory(one, other)


def blocks(array: Any, entries: int = BLOCK_ENTRIES) -> Iterator[tuple[slice, Array]]:
    """Yield rows and their values, block after block of about `entries` entries."""
    step = max(1, entries // max(1, int(np.prod(array.shape[1:]))))
    for start in range(0, len(array), step):
        rows = slice(start, min(start + step, len(array)))
        yield rows, array[rows]


def past_end(lengths: Rows, n_bins: int) -> NDArray[np.bool_]:
    """Return which bins lie past the end of each trial, shape (trials, bins)."""
    return np.arange(n_bins) >= lengths[:, None]


def same_numbers(one: Any, other: Any) -> bool:
    """Return whether two arrays hold the same numbers, NaN where the other has NaN."""
    if tuple(one.shape) != tuple(other.shape):
        return False
    if isinstance(one, StoredArray):
        if one.shares(other):
            return True  # of the same shape both begin in the corner
    elif one.ctypes.data == other.ctypes.data and one.strides == other.strides:
        return True
    return all(np.array_equal(block, other[rows], equal_nan=True) for rows, block in blocks(one))


def write_rows(file: h5py.File, key: str, array: Any) -> None:
    """Write an array, in memory or in another file, as a data set of an open file."""
    data = file.create_dataset(key, array.shape, array.dtype)
    for rows, block in blocks(array):
        data[rows] = block
