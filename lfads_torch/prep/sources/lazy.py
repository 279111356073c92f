"""Arrays that stay in their file until a part of them is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...errors import DataError

Array = NDArray[Any]

PIECE = 1 << 22
"""Most values that are read at once (32 MB of float64)."""


class LazyArray(Protocol):
    """What a source hands out: shape, type, and parts on demand.

    Attributes
    ----------
    shape : tuple of int
    dtype : numpy dtype
    attrs : mapping
        Notes that the file keeps with the array, such as ``bin_ms``.
    """

    attrs: Mapping[str, Any]

    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def dtype(self) -> np.dtype[Any]: ...  # noqa: D102

    def take(self, start: int, stop: int, axis: int = 0) -> Array:
        """Read entries `start` to `stop` (exclusive) along an axis."""
        ...


class Held:
    """An array in memory.

    Parameters
    ----------
    array : ndarray
        A single number becomes a list of one.
    attrs : mapping, optional
    """

    def __init__(self, array: Any, attrs: Mapping[str, Any] | None = None) -> None:
        self.array = np.atleast_1d(np.asarray(array))
        self.attrs: Mapping[str, Any] = dict(attrs or {})

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of its entries."""
        return self.array.dtype

    def take(self, start: int, stop: int, axis: int = 0) -> Array:
        """Return entries `start` to `stop` (exclusive) along an axis."""
        return self.array[(*[slice(None)] * axis, slice(start, stop))]


class Stored:
    """An HDF5 data set.

    Parameters
    ----------
    data : h5py.Dataset
    reverse : bool
        Whether its axes stand in reverse order, as MATLAB writes them.
    """

    def __init__(self, data: Any, reverse: bool = False) -> None:
        self.data, self.reverse = data, reverse
        self.attrs: Mapping[str, Any] = data.attrs

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape, in the order of axes in which it was written."""
        shape = tuple(self.data.shape or ())
        return shape[::-1] if self.reverse else shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of its entries."""
        return np.dtype(self.data.dtype)

    def take(self, start: int, stop: int, axis: int = 0) -> Array:
        """Read entries `start` to `stop` (exclusive) along an axis."""
        ndim = len(self.shape)
        place = ndim - 1 - axis if self.reverse else axis
        try:
            part = np.asarray(self.data[(*[slice(None)] * place, slice(start, stop))])
        except (OSError, RuntimeError) as err:
            raise DataError(
                f"{self.data.file.filename}: {self.data.name} cannot be read; the file seems "
                f"damaged or cut short: make or copy it again. ({err})"
            ) from err
        return part.T if self.reverse else part


class Vector:
    """A one-dimensional array out of another: its only long axis, or a stretch of it.

    Parameters
    ----------
    array : LazyArray
        All axes but one of length 1.
    start, stop : int, optional
        By default all.
    """

    def __init__(self, array: LazyArray, start: int = 0, stop: int | None = None) -> None:
        self.array = array
        long = [i for i, n in enumerate(array.shape) if n != 1]
        self.axis = long[0] if long else 0
        self.attrs = array.attrs
        length = array.shape[self.axis] if array.shape else 0
        self.start, self.stop = start, length if stop is None else stop

    @property
    def shape(self) -> tuple[int, ...]:
        """One number."""
        return (self.stop - self.start,)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of its entries."""
        return self.array.dtype

    def take(self, start: int, stop: int, axis: int = 0) -> Array:
        """Read entries `start` to `stop` (exclusive)."""
        first = self.start + start
        return self.array.take(first, min(self.start + stop, self.stop), self.axis).reshape(-1)


@dataclass
class Ragged:
    """Arrays of one kind and of different lengths: a cell array, a group, an index column.

    Attributes
    ----------
    rows : sequence of LazyArray
    names : list of str
        One for each row, where the file names them.
    """

    rows: Sequence[LazyArray]
    names: list[str] = field(default_factory=list)


Node = LazyArray | Ragged
Tree = dict[str, Node]
"""Everything in a file by its path; groups and structs are parted by dots."""


def is_vector(array: LazyArray) -> bool:
    """Whether at most one axis has more than one entry (MATLAB's rows and columns)."""
    return sum(n != 1 for n in array.shape) <= 1


def read_all(array: LazyArray) -> Array:
    """Read an array whole, for what is small."""
    return array.take(0, array.shape[0])


def pieces(array: LazyArray, most: int = PIECE) -> Iterator[Array]:
    """Read a one-dimensional array piece by piece."""
    for start in range(0, array.shape[0], most):
        yield array.take(start, min(start + most, array.shape[0]))


def held_tree(arrays: Mapping[str, Any]) -> Tree:
    """Tree of arrays in memory; lists and object arrays of arrays become `Ragged`."""
    tree: Tree = {}
    for key, value in arrays.items():
        array = value if isinstance(value, list) else np.asarray(value)
        rows = list(array) if isinstance(array, list) else list(array.flat)
        nested = all(isinstance(row, np.ndarray | list | tuple) for row in rows)
        if isinstance(array, list) or (array.dtype.kind == "O" and array.size and nested):
            tree[key] = Ragged([Held(np.asarray(row)) for row in rows])
        else:
            tree[key] = Held(array)
    return tree


def as_text(values: Array) -> Array:
    """Bytes and objects as text, other types as they are."""
    if values.dtype.kind == "S":
        return np.char.decode(values, "utf-8", "replace")
    if values.dtype.kind == "O":
        return np.array(
            [v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in values.flat]
        ).reshape(values.shape)
    return values
