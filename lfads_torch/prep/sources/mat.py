"""MATLAB files: version 5 (read whole; its arrays are limited to 2 GB) and 7.3 (HDF5, streamed)."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ...errors import DataError
from .hdf5 import read_hdf5
from .layout import Ragged, Tree, recording_from_tree
from .npz import damaged
from .recording import Recording, SourceOptions

# What SciPy raises, from deep within, for a file that is damaged or cut short.
_FAULTS = (ValueError, TypeError, KeyError, OSError, NotImplementedError, zlib.error, struct.error)


def read_mat(path: Path, options: SourceOptions) -> Recording:
    """Open a MATLAB file as a recording.

    Structs become names with dots, cell arrays lists of arrays, arrays of structs a table.
    """
    if h5py.is_hdf5(path):
        return read_hdf5(path, options)
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        variables = loadmat(path, chars_as_strings=True, verify_compressed_data_integrity=True)
    except (MatReadError, *_FAULTS) as err:
        raise DataError(damaged(path, err)) from err
    tree: Tree = {}
    for key, value in variables.items():
        if not key.startswith("__"):
            _add(tree, key, value)
    return recording_from_tree(path, "MATLAB file (v5)", tree, options, {})


def _add(tree: Tree, key: str, value: Any) -> None:
    if value.dtype.names:  # struct, or array of structs
        for name in value.dtype.names:
            cells = value[name].ravel()
            if len(cells) == 1:
                _add(tree, f"{key}.{name}", np.asarray(cells[0]))
            elif len(cells):
                _add_cells(tree, f"{key}.{name}", cells)
    elif value.dtype.kind == "O":
        _add_cells(tree, key, value.ravel(order="F"))
    else:
        tree[key] = np.atleast_1d(value)


def _add_cells(tree: Tree, key: str, cells: Any) -> None:
    arrays = [np.asarray(cell) for cell in cells]
    if arrays and all(a.dtype.kind == "U" for a in arrays):
        tree[key] = np.array([a.ravel()[0] if a.size else "" for a in arrays])
    elif arrays and all(a.size == 1 and a.dtype.kind in "buif" for a in arrays):
        tree[key] = np.array([a.ravel()[0] for a in arrays])
    elif all(a.dtype.kind in "buif" for a in arrays):
        tree[key] = Ragged([np.atleast_1d(a) for a in arrays])
