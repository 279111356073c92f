"""Arrays that stay in their file: trials are read when asked for, as they would be in memory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
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

BLOCK_ENTRIES = 1 << 20
"""Entries that are looked at together where an array is gone through block by block."""

# A compressed chunk of many trials is read as a whole, and kept until another is needed.
_MOST_KEPT = 1 << 26
# Below, it takes no longer than to find it.
_QUICK = 1 << 17


class FileStamp(NamedTuple):
    """What tells that a file is still the one that was opened first: its size and time."""

    size: int
    written_ns: int

    @classmethod
    def of(cls, path: Path) -> FileStamp:
        """Look at a file; a `DataError` where it is gone."""
        try:
            found = os.stat(path)
        except OSError as err:
            raise DataError(
                f"{path} is gone or cannot be reached any more ({err.strerror}). It is larger "
                f"than the memory it may take, so trials are read from it all the time: leave it "
                f"in its place until the end."
            ) from err
        return cls(found.st_size, found.st_mtime_ns)


class _Part(NamedTuple):
    """The data set of one split; `key` None where the file has none and values are unknown.

    Attributes
    ----------
    start, stop : int
        Its rows in the array.
    shape : tuple of int
        Of a row.
    offset : int or None
        Where a contiguous data set begins in the file, in bytes.
    together : int
        Rows that are read together, being in one chunk; 1 where each is read by itself.
    in_chunk : int
        Rows that lie in one chunk.
    """

    key: str | None
    start: int
    stop: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int | None = None
    together: int = 1
    in_chunk: int = 1


class _Source:
    """What all views of an array share: where its parts lie, and how long its trials are."""

    def __init__(
        self, path: Path, parts: Sequence[_Part], shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> None:
        self.path, self.parts, self.shape, self.dtype = path, tuple(parts), shape, dtype
        self.stamp = FileStamp.of(path)
        self.divisor = np.float32(1)
        self.ends: Rows | None = None
        self.past_end = np.nan
        self._kept: tuple[str, int, Array] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_kept": None}

    def read(self, rows: Rows) -> Array:
        """Rows in any order, of the kind that the array has in memory."""
        if FileStamp.of(self.path) != self.stamp:
            raise DataError(
                f"{self.path} was changed or replaced after it was opened. It is larger than the "
                f"memory it may take, so trials are read from it all the time: leave it as it is "
                f"until the end, and start again."
            )
        unique, inverse = np.unique(rows, return_inverse=True)
        found = np.empty((len(unique), *self.shape[1:]), self.dtype)
        for part in self.parts:
            first, last = np.searchsorted(unique, (part.start, part.stop))
            if first == last:
                continue
            target = found[first:last]
            if part.key is None or part.shape != self.shape[1:]:
                target[...] = {"f": np.nan, "i": -1, "b": False}[self.dtype.kind]
            if part.key is not None:
                raw = self._raw(part, unique[first:last] - part.start)
                with np.errstate(over="ignore"):  # found as infinite when the file is checked
                    target[(slice(None), *map(slice, part.shape))] = raw
        if self.divisor != 1:
            found /= self.divisor
        if self.ends is not None:
            found[np.arange(self.shape[1]) >= self.ends[unique][:, None]] = self.past_end
        return found if np.array_equal(unique, rows) else found[inverse]

    def _raw(self, part: _Part, rows: Rows) -> Array:
        """Ascending rows of a data set as they are stored."""
        found = np.empty((len(rows), *part.shape), part.dtype)
        if part.offset is not None:
            self._read_bytes(part, rows, found)
            return found
        with open_h5(self.path) as file:
            data = file[part.key]
            if part.together == 1:
                for where, run in _runs(rows):
                    found[where] = data[run]
                return found
            numbers = rows // part.together
            for number in np.unique(numbers).tolist():
                chosen = slice(*np.searchsorted(numbers, (number, number + 1)).tolist())
                chunk = self._chunk(data, part, number)
                found[chosen] = chunk[rows[chosen] - number * part.together]
        return found

    def _chunk(self, data: h5py.Dataset, part: _Part, number: int) -> Array:
        kept = self._kept
        if kept is not None and kept[:2] == (part.key, number):
            return kept[2]
        self._kept = None
        chunk = data[number * part.together : (number + 1) * part.together]
        self._kept = (str(part.key), number, chunk)
        return chunk

    def _read_bytes(self, part: _Part, rows: Rows, found: Array) -> None:
        # Straight from the file: HDF5 takes ten times as long to choose a row, and holds a lock.
        width = part.dtype.itemsize * int(np.prod(part.shape))
        flat = found.view(np.uint8).reshape(len(rows), width)
        try:
            handle = os.open(self.path, os.O_RDONLY)
            try:
                for where, run in _runs(rows):
                    target = flat[where].reshape(-1).data
                    place, done = (part.offset or 0) + run.start * width, 0
                    while done < len(target):
                        n = os.preadv(handle, [target[done:]], place + done)
                        if n == 0:
                            raise DataError(
                                f"{self.path} is cut short: {part.key!r} ends within trial "
                                f"{run.start + done // width} (counted from 0). Make or copy it "
                                f"again."
                            )
                        done += n
            finally:
                os.close(handle)
        except OSError as err:
            raise DataError(f"{self.path} cannot be read: {err}") from err


class StoredArray:
    """Trials x ... of one or several data sets of a file, one after another.

    Taking rows (an index, a slice, an array of indices) reads them, always as a new array. No
    handle of the file is kept between reads, so it can be pickled and read from several threads.

    Made by `store` and `window`; `part` gives a view of some rows.
    """

    def __init__(self, source: _Source, rows: slice, window: tuple[int, ...]) -> None:
        self._source, self._rows, self._window = source, rows, window

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape, as of an array."""
        return (self._rows.stop - self._rows.start, *self._window)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Kind of the numbers that are read."""
        return self._source.dtype

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
        """The file."""
        return self._source.path

    @property
    def slow_keys(self) -> dict[str, int]:
        """Data sets of which many trials must be read to have one: key and how many."""
        return {
            part.key: part.in_chunk
            for part in self._source.parts
            if part.key is not None
            and part.in_chunk > 1
            and part.in_chunk * part.dtype.itemsize * int(np.prod(part.shape)) > _QUICK
        }

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: int | slice | NDArray[np.integer[Any]]) -> Array:
        if isinstance(rows, int | np.integer):
            return self._read(np.asarray([range(len(self))[rows]]))[0]
        if isinstance(rows, slice):
            return self._read(np.arange(*rows.indices(len(self))))
        return self._read(np.asarray(rows, np.int64))

    def _read(self, rows: Rows) -> Array:
        found = self._source.read(rows + self._rows.start)
        if self._window == found.shape[1:]:
            return found
        return found[(slice(None), *map(slice, self._window))]

    def part(self, rows: slice) -> StoredArray:
        """View of consecutive rows."""
        start, stop, _ = rows.indices(len(self))
        first = self._rows.start
        return StoredArray(
            self._source, slice(first + start, first + max(start, stop)), self._window
        )

    def window(self, *sizes: int) -> StoredArray:
        """View of the first bins and channels."""
        cut = [min(size, own) for size, own in zip(sizes, self._window, strict=False)]
        return StoredArray(self._source, self._rows, (*cut, *self._window[len(cut) :]))

    def end_at(self, lengths: Rows, past_end: float) -> None:
        """Give bins past each trial's end this value, in all views."""
        source = self._source
        if source.ends is None:
            source.ends = np.full(source.shape[0], source.shape[1], np.int64)
        source.ends[self._rows] = lengths
        source.past_end = past_end

    def shares(self, other: Any) -> bool:
        """Whether another is a view of the same trials of the same data sets."""
        return (
            isinstance(other, StoredArray)
            and other._source is self._source
            and other._rows == self._rows
        )


def store(
    file: h5py.File,
    path: Path,
    keys: Sequence[tuple[str | None, int]],
    dtype: np.dtype[Any],
    *,
    divisor: float = 1,
) -> StoredArray:
    """Describe data sets of an open file as one array that stays there.

    Parameters
    ----------
    file : h5py.File
    path : Path
    keys : sequence of (str or None, int)
        Data sets and their numbers of rows, one after another; None for rows that are unknown. One
        of fewer bins and channels than the first fills the corner, the rest is unknown.
    dtype : dtype
        Kind of the numbers in memory.
    divisor : float
        What all is divided by.

    Returns
    -------
    StoredArray
    """
    shape = next(tuple(file[key].shape[1:]) for key, _ in keys if key is not None)
    parts, start = [], 0
    for key, n in keys:
        part = _Part(key, start, start + n, shape, dtype)
        parts.append(part if key is None else _describe(file[key], path, part))
        start += n
    source = _Source(path, parts, (start, *shape), np.dtype(dtype))
    source.divisor = np.float32(divisor)
    return StoredArray(source, slice(0, start), shape)


def _describe(data: h5py.Dataset, path: Path, part: _Part) -> _Part:
    shape = tuple(data.shape[1:])
    part = part._replace(shape=shape, dtype=data.dtype)
    if data.chunks is None:
        return part._replace(offset=_offset_of(data, path))
    n_rows = min(data.chunks[0], len(data))
    is_much = n_rows * data.dtype.itemsize * int(np.prod(shape)) > _MOST_KEPT
    return part._replace(together=1 if is_much else n_rows, in_chunk=n_rows)


def _offset_of(data: h5py.Dataset, path: Path) -> int | None:
    """Where a data set lies in its file, None where HDF5 has to be asked for its rows."""
    offset = data.id.get_offset()
    plain = data.dtype.kind in "uif" and data.id.get_type() == h5py.h5t.py_create(data.dtype)
    moved = data.external or data.file.userblock_size
    if offset is None or not plain or moved or not hasattr(os, "preadv"):
        return None
    # HDF5 may be told to keep data in places of its own making: look whether they are there.
    row = np.asarray(data[-1])
    with path.open("rb") as raw:
        raw.seek(offset + (len(data) - 1) * row.nbytes)
        return int(offset) if raw.read(row.nbytes) == row.tobytes() else None


def _runs(rows: Rows) -> Iterator[tuple[slice, slice]]:
    """Stretches of consecutive rows among ascending ones: where they go, what they are."""
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    ends = [0, *breaks.tolist(), len(rows)]
    for first, last in pairwise(ends):
        start = int(rows[first])
        yield slice(first, last), slice(start, start + last - first)


# ---- arrays in memory or in a file, treated alike ------------------------------------------------


def part(array: Any, rows: slice) -> Any:
    """View of consecutive rows."""
    return array.part(rows) if isinstance(array, StoredArray) else array[rows]


def window(array: Any, *sizes: int) -> Any:
    """View of the first bins and channels."""
    if isinstance(array, StoredArray):
        return array.window(*sizes)
    return array[(slice(None), *map(slice, sizes))]


def shares(one: Any, other: Any) -> bool:
    """Whether two arrays, of the same trials, are views of the same numbers."""
    if isinstance(one, StoredArray) or isinstance(other, StoredArray):
        return isinstance(one, StoredArray) and one.shares(other)
    return np.shares_memory(one, other)


def blocks(array: Any, entries: int = BLOCK_ENTRIES) -> Iterator[tuple[slice, Array]]:
    """Go through an array of at least one row by blocks of rows.

    Yields
    ------
    slice, ndarray
        Rows, and the array there.
    """
    step = max(1, entries // max(1, int(np.prod(array.shape[1:]))))
    for start in range(0, len(array), step):
        rows = slice(start, min(start + step, len(array)))
        yield rows, array[rows]


def same_numbers(one: Any, other: Any) -> bool:
    """Whether two arrays hold the same numbers, NaN where the other has NaN."""
    if tuple(one.shape) != tuple(other.shape):
        return False
    if isinstance(one, StoredArray):
        if one.shares(other):
            return True  # of the same shape both begin in the corner
    elif one.ctypes.data == other.ctypes.data and one.strides == other.strides:
        return True
    return all(np.array_equal(own, other[rows], equal_nan=True) for rows, own in blocks(one))


def write_rows(file: h5py.File, key: str, array: Any) -> None:
    """Write an array, in memory or in another file, as a data set of an open file."""
    data = file.create_dataset(key, array.shape, array.dtype)
    for rows, block in blocks(array):
        data[rows] = block
