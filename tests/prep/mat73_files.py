"""MATLAB files of version 7.3, as MATLAB writes them: HDF5 with axes in reverse order.

Cells, and the fields of arrays of structs, are references to data sets in ``#refs#``.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

_CLASSES = {
    "f8": "double", "f4": "single", "u1": "uint8", "i8": "int64", "i4": "int32", "u2": "uint16",
    "b1": "logical",
}  # fmt: skip


def save_mat73(path: Path, variables: Mapping[str, Any]) -> Path:
    """Write what `scipy.io.savemat` takes."""
    with h5py.File(path, "w", userblock_size=512) as file:
        refs, numbers = file.create_group("#refs#"), itertools.count()
        for name, value in variables.items():
            _put(file, name, value, refs, numbers)
    with path.open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")
    return path


def _put(group: Any, name: str, value: Any, refs: Any, numbers: Any) -> Any:
    if isinstance(value, Mapping):
        made = group.create_group(name)
        made.attrs["MATLAB_class"] = np.bytes_("struct")
        for key, inner in value.items():
            _put(made, key, inner, refs, numbers)
        return made
    array = np.atleast_2d(value)
    if array.dtype.names:
        fields = {key: array[key] for key in array.dtype.names}
        if array.size == 1:
            return _put(group, name, {k: v.flat[0] for k, v in fields.items()}, refs, numbers)
        made = group.create_group(name)
        made.attrs["MATLAB_class"] = np.bytes_("struct")
        for key, cells in fields.items():
            _cells(made, key, cells, refs, numbers)
        return made
    if array.dtype.kind == "O":
        data = _cells(group, name, array, refs, numbers)
        data.attrs["MATLAB_class"] = np.bytes_("cell")
        return data
    if array.dtype.kind == "U":
        codes = [[ord(letter)] for letter in str(array.flat[0])]
        data = group.create_dataset(name, data=np.array(codes, np.uint16))
        data.attrs["MATLAB_class"] = np.bytes_("char")
        return data
    if not array.size:
        data = group.create_dataset(name, data=np.array(array.shape, np.uint64))
        data.attrs["MATLAB_empty"] = np.uint8(1)
        data.attrs["MATLAB_class"] = np.bytes_("double")
        return data
    stored = array.astype(np.uint8) if array.dtype.kind == "b" else array
    data = group.create_dataset(name, data=stored.T)
    data.attrs["MATLAB_class"] = np.bytes_(_CLASSES[array.dtype.str[1:]])
    return data


def _cells(group: Any, name: str, array: Any, refs: Any, numbers: Any) -> Any:
    pointers = np.empty(array.shape, dtype=h5py.ref_dtype)
    for place in np.ndindex(*array.shape):
        made = _put(refs, f"r{next(numbers)}", array[place], refs, numbers)
        pointers[place] = made.ref
    return group.create_dataset(name, data=pointers.T, dtype=h5py.ref_dtype)
