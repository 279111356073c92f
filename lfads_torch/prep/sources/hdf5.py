"""HDF5 files of any layout, and MATLAB files of version 7.3, which are HDF5."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ...data.find import open_h5
from .arrays import recording_from_tree
from .lazy import Held, LazyArray, Node, Ragged, Stored, Tree
from .options import SourceOptions
from .recording import Recording


def read_hdf5(path: Path, options: SourceOptions) -> Recording:
    """Open an HDF5 file as a recording; data sets are read when needed.

    Groups and their members become names parted by dots. MATLAB's files (v7.3) are told by their
    attributes: their axes stand in reverse order, cell arrays are lists of references.

    Parameters
    ----------
    path : Path
    options : SourceOptions

    Raises
    ------
    DataError
        For a file that cannot be read.
    """
    with open_h5(path):  # for its errors: what is wrong with the file, and what to do
        pass
    file = h5py.File(path, "r", locking="best-effort")  # open as long as arrays refer to it
    matlab = any("MATLAB_class" in node.attrs for node in file.values())
    tree: Tree = {}
    for key in file:
        if not key.startswith("#"):  # where MATLAB keeps what its cells refer to
            _visit(file, file[key], key, matlab, tree)
    kind = "MATLAB file (v7.3)" if matlab else "HDF5 file"
    return recording_from_tree(path, kind, tree, options, file.attrs)


def _visit(file: h5py.File, node: Any, key: str, matlab: bool, tree: Tree) -> None:
    if isinstance(node, h5py.Group):
        for name in node:
            _visit(file, node[name], f"{key}.{name}", matlab, tree)
        return
    if node.shape is None or "MATLAB_empty" in node.attrs:
        tree[key] = Held(np.empty(0))
    elif node.shape == ():
        tree[key] = Held(node[()])
    elif node.dtype.names:  # a table
        for name in node.dtype.names:
            tree[f"{key}.{name}"] = Held(node[name])
    elif h5py.check_ref_dtype(node.dtype) is not None:
        tree[key] = _cells(file, node)
    elif (inner := h5py.check_vlen_dtype(node.dtype)) and inner not in (str, bytes):
        tree[key] = Ragged([Held(row) for row in node[()].ravel()])
    elif matlab and node.attrs.get("MATLAB_class") == b"char":
        tree[key] = Held(np.array([_text(node)]))
    else:
        tree[key] = Stored(node, reverse=matlab)


def _cells(file: h5py.File, node: Any) -> Node:
    """A MATLAB cell array, or a field of an array of structs."""
    members = [file[reference] for reference in node[()].T.ravel()]
    kinds = [member.attrs.get("MATLAB_class", b"") for member in members]
    if members and all(kind == b"char" for kind in kinds):
        return Held(np.array([_text(member) for member in members]))
    rows: list[LazyArray] = [
        Held(np.empty(0))
        if "MATLAB_empty" in m.attrs or not isinstance(m, h5py.Dataset)
        else Stored(m, reverse=True)
        for m in members
    ]
    if rows and all(row.shape and np.prod(row.shape) == 1 for row in rows):
        return Held(np.array([row.take(0, 1).ravel()[0] for row in rows]))
    return Ragged(rows)


def _text(node: Any) -> str:
    if "MATLAB_empty" in node.attrs:
        return ""
    return "".join(chr(code) for code in node[()].T.ravel(order="F"))
