"""NumPy archives (.npz), read piece by piece."""

from __future__ import annotations

import pickle
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DataError
from .arrays import recording_from_tree
from .lazy import Array, Tree, held_tree
from .options import SourceOptions
from .recording import Recording

_SMALL = 1 << 24  # bytes; smaller arrays are simply read
_FAULTS = (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError, pickle.UnpicklingError)


def read_npz(path: Path, options: SourceOptions) -> Recording:
    """Open a NumPy archive as a recording.

    Parameters
    ----------
    path : Path
    options : SourceOptions

    Raises
    ------
    DataError
        For a damaged archive, and for object arrays that hold anything but arrays of numbers.
    """
    try:
        archive = zipfile.ZipFile(path)
        tree: Tree = {}
        for info in archive.infolist():
            if info.filename.endswith(".npy"):
                key = info.filename.removesuffix(".npy").replace("/", ".")
                member = Member(archive, info.filename)
                small = member.dtype.hasobject or info.file_size <= _SMALL or not member.shape
                tree[key] = held_tree({key: member.whole()})[key] if small else member
    except _FAULTS as err:
        raise DataError(damaged(path, err)) from err
    return recording_from_tree(path, "NumPy archive", tree, options, {})


class Member:
    """An array of the archive, read along its first axis without holding it.

    Along other axes, and where it was written in Fortran order, it is read whole.

    Parameters
    ----------
    archive : ZipFile
    name : str
    """

    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        self.archive, self.name = archive, name
        self.attrs: Mapping[str, Any] = {}
        self._file: Any = archive.open(name)
        version = np.lib.format.read_magic(self._file)
        headers = np.lib.format
        read = headers.read_array_header_1_0 if version == (1, 0) else headers.read_array_header_2_0
        self._shape, self.fortran, self._dtype = read(self._file)
        self.offset = self._file.tell()
        self._whole: Array | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return tuple(self._shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of its entries."""
        return np.dtype(self._dtype)

    def take(self, start: int, stop: int, axis: int = 0) -> Array:
        """Read entries `start` to `stop` (exclusive) along an axis."""
        if axis or self.fortran:
            return self.whole()[(*[slice(None)] * axis, slice(start, stop))]
        row = int(np.prod(self._shape[1:], dtype=np.int64)) * self.dtype.itemsize
        try:
            self._file.seek(self.offset + start * row)
            data = self._file.read((stop - start) * row)
            return np.frombuffer(data, self.dtype).reshape(stop - start, *self._shape[1:])
        except _FAULTS as err:
            raise DataError(damaged(Path(str(self.archive.filename)), err)) from err

    def whole(self) -> Array:
        """Read all of it; a second time from memory."""
        if self._whole is None:
            with self.archive.open(self.name) as file:
                if self.dtype.hasobject:
                    file.seek(self.offset)
                    self._whole = np.asarray(_ArraysOnly(file).load())
                else:
                    self._whole = np.lib.format.read_array(file)
        return self._whole


class _ArraysOnly(pickle.Unpickler):
    """Reads pickled lists of arrays and nothing that could execute anything."""

    _LEGAL = frozenset({"_reconstruct", "scalar", "ndarray", "dtype", "_frombuffer"})

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "numpy" and name in self._LEGAL:
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise pickle.UnpicklingError(
            f"it holds a {module}.{name}, which only executing code from the file could read; "
            "save arrays of numbers"
        )


def damaged(path: Path, err: Exception) -> str:
    """Say that a file cannot be read."""
    return (
        f"{path} cannot be read; if it is damaged or cut short, make or copy it again. "
        f"({type(err).__name__}: {err})"
    )
