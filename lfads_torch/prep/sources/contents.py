"""Everything that a file holds, as it is stored: for `lfads prep FILE --list` and for errors.

A recording is what some of it means; this is all of it, also what cannot be read, and why.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from ...data.find import list_some
from ...data.validate import show_shape
from ...errors import DataError
from ..binning import Array
from .hdf5 import attributes, is_matlab, open_for_reading
from .npz import ArchiveArray
from .recording import damaged
from .sheet import open_sheet
from .tree import as_column

_EXAMPLES = 6
_SMALL = 1 << 20  # entries; the range of a larger array is not looked for
_FEW = 200  # cells of a cell array that are looked at

_NOT_READ = "not readable"
_OBJECT = (
    "a MATLAB object, of which only MATLAB knows the layout; save a struct, numbers or cellstr: "
    "table2struct(T, 'ToScalar', true), cellstr(s), double(x)"
)
_PICKLED = "a pickled object, not opened, since that can run code; save its arrays one by one"


class Member(NamedTuple):
    """A table, column, series or array of a file."""

    name: str
    what: str
    size: str = ""  # or type
    values: str = ""
    hint: str = ""  # the option that takes it, or what makes it readable


def describe_values(column: Array) -> str:
    """Describe the values of an array: the few that it has, or their range."""
    column = np.asarray(column).ravel()
    if column.dtype.kind in "SUO":
        words, counts = np.unique(column.astype(str), return_counts=True)
        shown = [f"{w} ({n})" for w, n in zip(words[:_EXAMPLES], counts, strict=False)]
        return ", ".join(shown) + (f" and {len(words) - _EXAMPLES} more" * (len(words) > _EXAMPLES))
    known = column[np.isfinite(column)] if column.dtype.kind == "f" else column
    missing = f"; {len(column) - len(known)} missing" if len(known) < len(column) else ""
    if not len(known):
        return f"no values{missing}"
    # To sort all takes long, and is of use only where the first values repeat.
    values = np.unique(known[:1000])
    values = np.unique(known) if len(values) <= _EXAMPLES else values
    if len(values) <= _EXAMPLES:
        return list_some([f"{v:g}" if column.dtype.kind == "f" else v for v in values]) + missing
    return f"{known.min():g} to {known.max():g}{missing}"


def describe_array(name: str, data: Any, shape: Any = None) -> Member:
    """Describe an array in memory or in its file; a small one with its values.

    `shape` is that of MATLAB, which is stored in reverse order.
    """
    shape, dtype = data.shape if shape is None else shape, data.dtype
    size = f"{show_shape(shape)} {dtype}"
    if h5py.check_string_dtype(dtype):
        size = f"{show_shape(shape)} text"
    elif dtype.kind not in "buifSU":
        return Member(name, "array", size)
    if shape is None or np.prod(shape) > _SMALL:
        return Member(name, "array", size)
    try:
        return Member(name, "array", size, describe_values(as_column(np.atleast_1d(data[()]))))
    except (OSError, RuntimeError) as err:
        return Member(name, "damaged", size, str(err))


def contents(path: Path) -> list[Member]:
    """Describe everything in a file of named arrays or columns, or in a sorter's folder."""
    if path.is_dir():
        return list(_folder(path))
    if h5py.is_hdf5(path):
        return list(_hdf5(open_for_reading(path)))
    try:
        if zipfile.is_zipfile(path):
            return list(_npz(path))
        if path.suffix.lower() == ".mat":
            return list(_mat(path))
        if path.suffix.lower() in (".csv", ".tsv", ".txt"):
            return list(_csv(path))
    except (OSError, ValueError, TypeError, EOFError, NotImplementedError) as err:
        raise DataError(damaged(path, err)) from err
    raise DataError(f"{path.name} is of no format whose contents are known.")


def _cells(name: str, size: Sequence[int], shapes: list[Any], kinds: list[str]) -> Member:
    """Describe a cell array, or a field of an array of structs, by what its entries are."""
    unique = sorted(set(kinds), key=kinds.count, reverse=True)
    ranks = {len(shape) for shape in shapes}
    values = list_some(unique, 4)
    if shapes and len(ranks) == 1:
        low, high = np.min(shapes, axis=0).tolist(), np.max(shapes, axis=0).tolist()
        values += f": {show_shape(low)}" + f" to {show_shape(high)}" * (low != high)
    return Member(name, "cells", show_shape(size), values)


# ---- HDF5, and MATLAB v7.3 -----------------------------------------------------------------------


def _hdf5(file: h5py.File) -> Iterator[Member]:
    matlab = is_matlab(file)
    yield from (m for key in file if not key.startswith("#") for m in _node(file, key, key, matlab))


def _node(group: Any, key: str, name: str, matlab: bool) -> Iterator[Member]:
    try:
        node = group[key]
    except (KeyError, OSError, RuntimeError) as err:
        yield Member(name, _NOT_READ, hint=f"damaged, or a link to what is not there ({err})")
        return
    kind = _matlab_class(node)
    if isinstance(node, h5py.Group) and "MATLAB_sparse" in node.attrs:
        size = (int(node.attrs["MATLAB_sparse"]), len(node["jc"]) - 1 if "jc" in node else 0)
        n = len(node["data"]) if "data" in node else 0
        yield Member(name, "sparse", show_shape(size), f"{n} entries")
    elif isinstance(node, h5py.Group) and {"data", "indices", "indptr"} <= set(node):
        size = node.attrs.get("shape", node.attrs.get("h5sparse_shape", ()))
        n = len(node["data"])
        yield Member(name, "sparse", show_shape(size), f"{n} entries", "save x.toarray()")
    elif isinstance(node, h5py.Group):
        for inner, value in attributes(node).items():
            yield Member(f"{name}.{inner}", "attribute", values=str(value))
        for inner in node:
            yield from _node(node, inner, f"{name}.{inner}", matlab)
    elif node.shape is None or "MATLAB_empty" in node.attrs:
        yield Member(name, "array", "empty")
    elif "MATLAB_object_decode" in node.attrs:
        yield Member(name, _NOT_READ, kind, hint=_OBJECT)
    elif node.dtype.names:
        yield Member(name, "table", f"{node.size} rows")
        for column in node.dtype.names if node.size <= _SMALL else ():
            described = describe_array(f"{name}.{column}", as_column(node[column]))
            yield described._replace(what="column")
    elif h5py.check_ref_dtype(node.dtype) is not None:
        yield from _references(group.file, node, name, matlab)
    elif (listed := h5py.check_vlen_dtype(node.dtype)) and listed not in (str, bytes):
        yield Member(name, "lists", f"{node.size} of {np.dtype(listed)}")
    elif matlab and kind == "char":
        text = "".join(map(chr, node[()].T.ravel(order="F")[:40]))
        yield Member(name, "text", "", repr(text))
    elif h5py.check_string_dtype(node.dtype):
        text = describe_values(np.asarray(node.asstr(errors="replace")[()])) if node.size else ""
        yield Member(name, "text", show_shape(node.shape), text)
    elif node.dtype.kind not in "buif":
        hint = "neither numbers nor text; a pickled object? Save arrays"
        yield Member(name, _NOT_READ, str(node.dtype), hint=hint)
    else:
        yield describe_array(name, node, node.shape[::-1] if matlab else None)


def _references(file: h5py.File, node: Any, name: str, matlab: bool) -> Iterator[Member]:
    members = [
        file[reference] for reference in np.ravel(np.transpose(node[()]))[:_FEW] if reference
    ]
    arrays = [m for m in members if isinstance(m, h5py.Dataset) and m.shape is not None]
    kinds = [
        "sparse" if "MATLAB_sparse" in m.attrs else _matlab_class(m) or "array" for m in members
    ]
    shapes = [m.shape[::-1] if matlab else m.shape for m in arrays if "MATLAB_empty" not in m.attrs]
    yield _cells(name, node.shape[::-1], shapes, kinds)
    if members and isinstance(members[0], h5py.Group) and "MATLAB_sparse" not in members[0].attrs:
        for key in members[0]:  # a cell of structs: as the first one is
            yield from _node(members[0], key, f"{name}[].{key}", matlab)


def _matlab_class(node: Any) -> str:
    name = node.attrs.get("MATLAB_class", b"")
    return name.decode() if isinstance(name, bytes) else str(name)


# ---- MATLAB v5, NumPy, CSV -----------------------------------------------------------------------


def _mat(path: Path) -> Iterator[Member]:
    from scipy.io import loadmat, whosmat

    # One by one, so that a damaged variable does not cost the others.
    for name, shape, kind in whosmat(path):
        try:
            value = loadmat(path, variable_names=[name], chars_as_strings=True)[name]
        except Exception as err:
            yield Member(name, _NOT_READ, f"{show_shape(shape)} {kind}", hint=f"damaged ({err})")
        else:
            yield from _value(name, value)


def _value(name: str, value: Any) -> Iterator[Member]:
    from scipy.io.matlab import MatlabFunction, MatlabOpaque
    from scipy.sparse import issparse

    if issparse(value):
        yield Member(name, "sparse", show_shape(value.shape), f"{value.nnz} entries")
    elif isinstance(value, MatlabOpaque | MatlabFunction):
        yield Member(name, _NOT_READ, type(value).__name__, hint=_OBJECT)
    elif not isinstance(value, np.ndarray):
        yield Member(name, "value", "", str(value)[:40])
    elif value.dtype.names:
        if value.size != 1:
            yield Member(name, "structs", show_shape(value.shape), ", ".join(value.dtype.names))
        for field in value.dtype.names:
            cells = value[field].ravel(order="F")
            if len(cells) == 1:
                yield from _value(f"{name}.{field}", cells[0])
            elif len(cells):
                yield from _members(f"{name}.{field}", value.shape, cells)
    elif value.dtype.kind == "O":
        yield from _members(name, value.shape, value.ravel(order="F"))
    elif value.dtype.kind in "SU":
        yield Member(name, "text", show_shape(value.shape), describe_values(value))
    else:
        yield describe_array(name, value)


def _members(name: str, size: Sequence[int], cells: Array) -> Iterator[Member]:
    from scipy.sparse import issparse

    few = [np.asarray(cell) if not issparse(cell) else cell for cell in cells[:_FEW]]
    kinds = {"O": "cell", "V": "struct", "U": "char", "S": "char"}
    shapes = [cell.shape for cell in few if cell.size]
    names = ["sparse" if issparse(c) else kinds.get(c.dtype.kind, str(c.dtype)) for c in few]
    yield _cells(name, size, shapes, names)
    if len(few) and not issparse(few[0]) and few[0].dtype.names and few[0].size == 1:
        yield from _value(f"{name}[]", few[0])  # a cell of structs: as the first one is


def _npz(path: Path) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive:
        names = [info.filename for info in archive.infolist()]
        if {"format.npy", "indptr.npy", "indices.npy", "shape.npy"} <= set(names):
            size = show_shape(ArchiveArray(archive, "shape.npy").whole().tolist())
            hint = "save scipy.sparse.load_npz(file).toarray() with np.savez"
            yield Member(path.name, "sparse", size, hint=hint)
        for filename in names:
            name = filename.removesuffix(".npy").replace("/", ".")
            if name == filename:
                yield Member(name, _NOT_READ, hint="no array of NumPy")
                continue
            try:
                member = ArchiveArray(archive, filename)
                yield _of_archive(name, member)
            except Exception as err:
                yield Member(name, _NOT_READ, hint=f"damaged ({err})")


def _of_archive(name: str, member: ArchiveArray) -> Member:
    size = f"{show_shape(member.shape)} {member.dtype}"
    if member.dtype.hasobject:
        try:
            rows = list(member.whole().flat)
        except Exception as err:
            return Member(name, _NOT_READ, size, str(err), _PICKLED)
        if len(rows) == 1 and isinstance(rows[0], dict):
            return Member(name, "dict", values=list_some(list(rows[0])))
        lists = [np.asarray(r) for r in rows if isinstance(r, np.ndarray | list | tuple)]
        if len(lists) < len(rows):
            return Member(name, _NOT_READ, size, hint=_PICKLED)
        return _cells(name, member.shape, [r.shape for r in lists], [str(r.dtype) for r in lists])
    if np.prod(member.shape) > _SMALL:
        return Member(name, "array", size)
    return describe_array(name, member.whole())


def _folder(path: Path) -> Iterator[Member]:
    for file in sorted(path.iterdir()):
        if file.suffix == ".npy":
            try:
                yield describe_array(file.name, np.load(file, mmap_mode="r"))
            except (OSError, ValueError, EOFError) as err:
                yield Member(file.name, _NOT_READ, hint=f"pickled or damaged ({err})")
        elif file.suffix in (".csv", ".tsv"):
            yield from (m._replace(name=f"{file.name}: {m.name}") for m in _csv(file))
        elif file.is_file():
            yield Member(file.name, "file", f"{file.stat().st_size} bytes")


def _csv(path: Path) -> Iterator[Member]:
    sheet = open_sheet(path)
    n_rows = sum(map(len, sheet.lines()))
    for i, name in enumerate(sheet.names):
        first = [row[i] for row in sheet.rows[:2] if i < len(row)]
        unit = f" ({sheet.units[i]})" if sheet.units[i] else ""
        yield Member(name, f"column{unit}", f"{n_rows} rows", ", ".join(first))
