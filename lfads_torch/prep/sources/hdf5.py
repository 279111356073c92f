"""HDF5 files of any layout, and MATLAB files: of version 7.3, which are HDF5, and of version 5."""

from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ...data.find import open_h5
from ...data.stored import StoredArray
from ...data.tree import lost_sources, unwritten
from ...errors import DataError
from ..binning import Array
from .layout import recording_from_tree
from .recording import Recording, SourceOptions, damaged
from .tree import Ragged, Tree, add_value

_SMALL = 1 << 12  # entries; smaller arrays of MATLAB are simply read
# What SciPy raises, from deep within, for a file that is damaged or cut short.
_FAULTS = (ValueError, TypeError, KeyError, OSError, NotImplementedError, zlib.error, struct.error)


class DataSet:
    """Reader of an HDF5 data set along one axis, which is moved to the front.

    The axes of files that MATLAB wrote stand in reverse order (`reverse`). With `is_flat`, axes of
    one entry are dropped.
    """

    def __init__(
        self, data: h5py.Dataset, reverse: bool = False, axis: int = 0, is_flat: bool = False
    ) -> None:
        self.data, self.reverse, self.axis, self.is_flat = data, reverse, axis, is_flat
        self.attrs, self.dtype = data.attrs, data.dtype
        shape = tuple(data.shape)[::-1] if reverse else tuple(data.shape)
        self.shape = (shape[axis], *(() if is_flat else shape[:axis] + shape[axis + 1 :]))

    def read(self, rows: slice) -> Array:
        """Read rows; a `DataError` where the file is damaged."""
        if text := unwritten(self.data):
            raise DataError(f"{self.data.file.filename}: {self.data.name} {text}")
        if isinstance(self.data, h5py.Dataset) and (lost := lost_sources(self.data)):
            raise DataError(
                f"{self.data.file.filename}: {self.data.name} takes its numbers from "
                f"{', '.join(lost)}, which cannot be read; HDF5 would give zeros in their place. "
                "Put the file there."
            )
        place = self.data.ndim - 1 - self.axis if self.reverse else self.axis
        try:
            values = np.asarray(self.data[(*[slice(None)] * place, rows)])
        except (OSError, RuntimeError) as err:
            raise DataError(
                f"{self.data.file.filename}: {self.data.name} cannot be read; the file seems "
                f"damaged or cut short: make or copy it again. ({err})"
            ) from err
        values = np.moveaxis(values.T if self.reverse else values, self.axis, 0)
        return values.reshape(-1) if self.is_flat else values

    def along(self, axis: int) -> StoredArray:
        """View the rows along another axis."""
        return StoredArray(DataSet(self.data, self.reverse, axis))

    def flat(self) -> StoredArray:
        """View the only axis of more than one entry."""
        axis = next((i for i, n in enumerate(self.shape) if n != 1), 0)
        return StoredArray(DataSet(self.data, self.reverse, axis, is_flat=True))


def open_for_reading(path: Path) -> h5py.File:
    """Open a file that stays open as long as arrays refer to it."""
    with open_h5(path):  # for its errors: what is wrong with the file, and what to do
        pass
    return h5py.File(path, "r", locking="best-effort")


def read_hdf5(path: Path, options: SourceOptions) -> Recording:
    """Open an HDF5 file as a recording; data sets are read when needed.

    Groups and their members become names with dots. Attributes show a file of MATLAB (v7.3): its
    axes stand in reverse order, and cell arrays are lists of references.
    """
    file = open_for_reading(path)
    matlab = is_matlab(file)
    tree: Tree = {}
    for key in file:
        if not key.startswith("#"):  # where MATLAB keeps what its cells refer to
            _visit(file, [file, file.get(key)], key, matlab, tree)
    kind = "MATLAB file (v7.3)" if matlab else "HDF5 file"
    return recording_from_tree(path, kind, tree, options, file.attrs)


def is_matlab(file: h5py.File) -> bool:
    """Return whether MATLAB wrote an HDF5 file."""
    return any(node is not None and "MATLAB_class" in node.attrs for node in file.values())


def _visit(file: h5py.File, path: list[Any], key: str, matlab: bool, tree: Tree) -> None:
    """Add a node, the last of the path of nodes that leads to it."""
    *above, node = path
    if node is None or node in above:  # a link to what is not there, or back up
        return
    if matlab:
        add_value(tree, key, _matlab(file, node))
    elif isinstance(node, h5py.Group):
        for name, value in attributes(node).items():
            add_value(tree, f"{key}.{name}", value)
        for name in node:
            _visit(file, [*path, node.get(name)], f"{key}.{name}", matlab, tree)
    elif node.shape is None:
        tree[key] = np.empty(0)
    elif node.shape == ():
        tree[key] = np.atleast_1d(node[()])
    elif node.dtype.names:  # a table
        for name in node.dtype.names:
            add_value(tree, f"{key}.{name}", node[name])
    elif (inner := h5py.check_vlen_dtype(node.dtype)) and inner not in (str, bytes):
        rows = [np.atleast_1d(row) for row in node[()].ravel()]
        tree[key] = Ragged(rows, shape=node.shape)
    else:
        tree[key] = StoredArray(DataSet(node))


def attributes(group: h5py.Group) -> dict[str, Any]:
    """Return what a group says of one trial or unit, which are numbered, beside its members."""
    is_entry = re.search(r"\d$", str(group.name)) is not None
    return {n: value for n, value in group.attrs.items() if n not in group} if is_entry else {}


def _matlab(file: h5py.File, node: Any) -> Any:
    """Return what MATLAB stored: arrays, dicts for structs, arrays of objects for cells."""
    if isinstance(node, h5py.Group):
        if "MATLAB_sparse" in node.attrs:
            return _sparse(node)
        return {name: _matlab(file, node[name]) for name in node}
    # A cell array may have 100,000 members: attributes, which are slow, are looked up singly.
    if node.shape is None or h5py.h5a.exists(node.id, b"MATLAB_empty"):
        return np.empty(0)
    kind = node.dtype.kind
    if kind == "O" and h5py.check_ref_dtype(node.dtype) is not None:
        # A cell array, or a field of an array of structs.
        cells = np.empty(node.size, dtype=object)
        for i, reference in enumerate(node[()].T.ravel()):
            cells[i] = _matlab(file, file[reference])
        return cells.reshape(node.shape[::-1])
    if kind == "u" and node.attrs.get("MATLAB_class") == b"char":
        return np.array([_text(node)])
    # Of objects (table, string, datetime) only MATLAB knows what the stored numbers mean.
    if kind == "u" and h5py.h5a.exists(node.id, b"MATLAB_object_decode"):
        return np.empty(0)
    return node[()].T if node.size <= _SMALL else StoredArray(DataSet(node, reverse=True))


def _sparse(node: Any) -> Array:
    """Read a sparse matrix, whose columns MATLAB stores one after another."""
    from scipy.sparse import csc_array

    rows, ends = int(node.attrs["MATLAB_sparse"]), node["jc"][()].astype(np.int64)
    values = node["data"][()] if "data" in node else np.empty(0)
    places = node["ir"][()].astype(np.int64) if "ir" in node else np.empty(0, np.int64)
    return csc_array((values, places, ends), shape=(rows, len(ends) - 1)).toarray()


def _text(node: Any) -> str:
    return "".join(chr(code) for code in node[()].T.ravel(order="F"))


def read_mat(path: Path, options: SourceOptions) -> Recording:
    """Open a MATLAB file as a recording.

    Structs become names with dots, cell arrays lists of arrays, arrays of structs a table.
    """
    if h5py.is_hdf5(path):
        return read_hdf5(path, options)
    # Version 5 limits an array to 2 GB, and its arrays can only be read whole.
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        variables = loadmat(path, chars_as_strings=True, verify_compressed_data_integrity=True)
    except (MatReadError, *_FAULTS) as err:
        raise DataError(damaged(path, err)) from err
    tree: Tree = {}
    for key, value in variables.items():
        if not key.startswith("__"):
            add_value(tree, key, value)
    return recording_from_tree(path, "MATLAB file (v5)", tree, options, {})
