"""NumPy archives (.npz), read block by block."""

from __future__ import annotations

import copy
import pickle
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from ...data.stored import StoredArray
from ...errors import DataError, explained
from ..binning import Array
from .layout import recording_from_tree
from .recording import Recording, SourceOptions, damaged
from .tree import Tree, add_value

_SMALL = 1 << 24  # bytes; smaller arrays are simply read
_FAULTS = (
    zipfile.BadZipFile,
    zlib.error,
    ValueError,
    EOFError,
    OSError,
    pickle.UnpicklingError,
    tokenize.TokenError,
    SyntaxError,  # as TokenError from a header that is damaged, which is Python's text
)


def read_npz(path: Path, options: SourceOptions) -> Recording:
    """Open a NumPy archive as a recording; its object arrays may hold arrays of numbers only."""
    try:
        archive = zipfile.ZipFile(path)
    except _FAULTS as err:
        raise DataError(damaged(path, err)) from err
    tree: Tree = {}
    unread: dict[str, Exception] = {}
    for info in archive.infolist():
        key = info.filename.removesuffix(".npy").replace("/", ".")
        try:
            if info.filename.endswith(".npy"):
                member = ArchiveArray(archive, info.filename)
                small = member.dtype.hasobject or info.file_size <= _SMALL or not member.shape
                add_value(tree, key, member.whole() if small else StoredArray(member))
        except _FAULTS as err:
            unread[key] = err
    if unread and not tree:
        first = next(iter(unread.values()))
        raise DataError(damaged(path, first)) from first
    # What is not needed may be unreadable: settings that were pickled, an array that was damaged.
    notes = [f"not read: {key} ({type(err).__name__}: {err})" for key, err in unread.items()]
    with explained((), notes):
        recording = recording_from_tree(path, "NumPy archive", tree, options, {})
    recording.notes += notes
    return recording


def read_npy(path: Path, options: SourceOptions) -> Recording:
    """Open an array, or all arrays of a folder, as a recording."""
    tree: Tree = {}
    notes: list[str] = []
    for file in sorted(path.glob("*.npy")) if path.is_dir() else [path]:
        try:
            array = np.load(file, mmap_mode="r", allow_pickle=False)
        except _FAULTS as err:
            notes.append(f"not read: {damaged(file, err)}")
            continue
        add_value(tree, file.stem if path.is_dir() else "spikes", array)
    if not tree:
        raise DataError("\n".join(notes))
    with explained((), notes):
        recording = recording_from_tree(path, "NumPy arrays", tree, options, {})
    recording.notes += notes
    return recording


class ArchiveArray:
    """Reader of an array of an archive along its first axis, without keeping it in memory.

    Along other axes, and where it was written in Fortran order, it is read whole.
    """

    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        self.archive, self.name = archive, name
        self._file: Any = archive.open(name)
        version = np.lib.format.read_magic(self._file)
        headers = np.lib.format
        read = headers.read_array_header_1_0 if version == (1, 0) else headers.read_array_header_2_0
        self.shape, self.fortran, self.dtype = read(self._file)
        self.offset = self._file.tell()
        self._whole: Array | None = None

    def read(self, rows: slice) -> Array:
        """Read rows."""
        if self.fortran:
            return self.whole()[rows]
        row = int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize
        n = rows.stop - rows.start
        try:
            self._file.seek(self.offset + rows.start * row)
            return np.frombuffer(self._file.read(n * row), self.dtype).reshape(n, *self.shape[1:])
        except _FAULTS as err:
            raise DataError(damaged(Path(str(self.archive.filename)), err)) from err

    def along(self, axis: int) -> Array:
        """Read all of it, with another axis in front."""
        return np.moveaxis(self.whole(), axis, 0)

    def flat(self) -> StoredArray:
        """View the only axis of more than one entry."""
        view = copy.copy(self)
        # One long axis lies in the file in the same way in either order.
        view.shape, view.fortran = (int(np.prod(self.shape)),), False
        return StoredArray(view)

    def whole(self) -> Array:
        """Read all of it; a second time from memory."""
        # Rows along another axis are spread over the whole array: unpacked once, it is kept.
        if self._whole is None:
            with self.archive.open(self.name) as file:
                if self.dtype.hasobject:
                    file.seek(self.offset)
                    self._whole = np.asarray(_ArraysOnly(file).load())
                else:
                    self._whole = np.lib.format.read_array(file)
        return self._whole


class _ArraysOnly(pickle.Unpickler):
    """Reader of pickled lists of arrays that refuses all that could execute anything."""

    _LEGAL = frozenset({"_reconstruct", "scalar", "ndarray", "dtype", "_frombuffer"})

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "numpy" and name in self._LEGAL:
            # NumPy 2 renamed the module; pickles written before it name the old one.
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise pickle.UnpicklingError(
            f"it holds a {module}.{name}, which only executing code from the file could read; "
            "save arrays of numbers"
        )
