"""Everything that a file holds by its path: arrays, lists of arrays, and trials in groups."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Number
from typing import Any, NamedTuple

import numpy as np

from ...data.find import as_array
from ...data.stored import StoredArray, flat
from ...data.validate import show_shape
from ..binning import Array
from ..names import SPIKES, TRIAL_WORDS, UNIT_WORDS
from .recording import AnyArray, SourceOptions, find

# Columns of one list of all spikes, which lie in one group too.
_OF_LIST = re.compile(
    r"(spike_?)?(t|times?|timestamps?|samples?|index|ids?|units?|clusters?|templates?|channels?|trials?"
    r"|neurons?|cells?|electrodes?|labels?|assigns?|senders?|amplitudes?|amps?|depths?)"
    r"(_?(ids?|index|s|ms))?",
    re.IGNORECASE,
)
_NUMBERED = re.compile(
    rf"(?P<stem>.*?)[._]?(?P<what>{TRIAL_WORDS}|{UNIT_WORDS})?_?(?P<number>\d+)", re.IGNORECASE
)
_OF_TRIAL = re.compile(rf"({TRIAL_WORDS})?_?\d+", re.IGNORECASE)
# A group for each trial or unit, with the same fields: trials.0.target, trial_12.spikes, 3.spikes,
# trial12_spikes
_ENTRY = re.compile(
    rf"(?P<stem>.*?)(?:(?:^|[._])(?P<what>{TRIAL_WORDS}|{UNIT_WORDS})[._]?|^)(?P<number>\d+)"
    r"(?P<sign>[._])(?P<field>.+)",
    re.IGNORECASE,
)


@dataclass
class Ragged:
    """Arrays of one kind and of different lengths: a cell array, a group, an index column.

    `names` has one for each row, where the file names them. `shape` is that of the cells, of which
    `rows` are a flat list in C order; axes of one cell are dropped. `axes` says what these are,
    where the names of groups do.
    """

    rows: Sequence[AnyArray]
    names: list[str] = field(default_factory=list)
    shape: tuple[int, ...] = ()
    axes: tuple[str, ...] = ()
    problem: str = ""  # why the entries, which are left out then, cannot be read together

    def __post_init__(self) -> None:
        self.shape = tuple(n for n in self.shape if n != 1) or (len(self.rows),)


Node = AnyArray | Ragged
Tree = dict[str, Node]
"""Everything in a file by its path, with dots between the names of groups and structs."""


class Source(NamedTuple):
    """What is known of a file: its arrays and attributes, and what the user says of it."""

    file: str  # its name, for errors
    tree: Tree
    vectors: dict[str, AnyArray]  # of the tree, flat
    options: SourceOptions
    attrs: Mapping[str, Any]
    matlab: bool = False  # its indices count from 1

    def key(self, name: str) -> str:
        """Return the key of an array that the user names, whole or by its end."""
        return str(find({key: key for key in self.tree}, name, "array"))


def last_of(key: str) -> str:
    """Return the last name of a path as it is written."""
    return key.rpartition(".")[2]


def attrs_of(node: Node) -> Mapping[str, Any]:
    """Return the attributes that a file keeps with an array; arrays in memory have none."""
    return node.attrs if isinstance(node, StoredArray) else {}


def column_name(key: str, prefix: str) -> str:
    """Return the name of a column of a table: ``trials.go`` or ``trials_go``; empty for others."""
    tail = key.removeprefix(prefix)
    if tail == key or tail[:1] not in (".", "_") or (tail[0] == "_" and "." in tail):
        return ""  # trial_data.go is in a struct of another name
    return tail[1:]


def is_vector(array: AnyArray) -> bool:
    """Return whether at most one axis has more than one entry (MATLAB's rows and columns)."""
    return 0 in array.shape or sum(n != 1 for n in array.shape) <= 1  # [] of MATLAB is 0 x 0


def is_regular(values: Array) -> bool:
    """Return whether values ascend in equal steps, as times of samples do and spikes do not."""
    if values.ndim != 1 or len(values) < 3 or values.dtype.kind not in "uif":
        return False
    steps = np.diff(values.astype(np.float64))
    step = float(np.median(steps))
    # Times with few digits, or in float32, step a little unevenly.
    return bool(step > 0 and np.abs(steps - step).max() <= 0.01 * step)


def vectors_of(tree: Tree) -> dict[str, AnyArray]:
    """Return the arrays of one axis, flat."""
    arrays = ((key, node) for key, node in tree.items() if not isinstance(node, Ragged))
    return {key: flat(array) for key, array in arrays if is_vector(array)}


def as_column(values: Array) -> Array:
    """Return bytes and objects as text, in which missing ones are empty; other types as they are.

    Objects that are numbers become numbers, missing ones NaN.
    """
    if values.dtype.kind == "S":
        return np.char.decode(values, "utf-8", "replace")
    if values.dtype.kind != "O":
        return values
    objects = [None if _is_missing(v) else v for v in values.flat]
    if all(v is None or isinstance(v, Number) for v in objects) and set(objects) != {None}:
        return np.array(objects, dtype=np.float64).reshape(values.shape)
    return np.array(
        [
            v.decode("utf-8", "replace") if isinstance(v, bytes) else "" if v is None else str(v)
            for v in objects
        ]
    ).reshape(values.shape)


def _is_missing(value: Any) -> bool:
    """Return whether a value stands for none: None, NaN, and what pandas has for them."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return bool(isinstance(value, Number) and value != value)


def last_name(key: str) -> str:
    """Return the last name of a path, in lower case."""
    return key.lower().rpartition(".")[2]


# ---- nested values: structs, cells, dicts, lists of arrays ---------------------------------------


def add_value(tree: Tree, key: str, value: Any) -> None:
    """Add a value under a name: an array, or structs, dicts, cells and lists of arrays.

    Structs and dicts become names with dots, an array of structs a list for each of its fields. A
    cell array of arrays becomes `Ragged`, of numbers or text a column.
    """
    if isinstance(value, Mapping):
        for name, inner in value.items():
            add_value(tree, f"{key}.{name}" if key else str(name), inner)
    elif isinstance(value, StoredArray):
        tree[key] = value
    elif _fields(value):
        for name in value.dtype.names:
            add_value(tree, f"{key}.{name}", _single(value[name]))
    elif (cells := _cells(value)) is not None:
        only = cells[0][0] if len(cells[0]) == 1 else None
        if isinstance(only, Mapping) or _fields(only):  # a table, not a list of one entry
            add_value(tree, key, only)
        else:
            _add_cells(tree, key, *cells)
    else:
        array = as_array(value)
        is_legal = array.dtype.kind in _LEGAL
        tree[key] = np.atleast_1d(array) if is_legal else Ragged([], problem=_why_not(array))


def _single(cells: Any) -> Any:
    """Return what a struct's field holds, not an array of one cell around it."""
    return cells.flat[0] if cells.dtype.kind == "O" and cells.size == 1 else cells


_LEGAL = "buifSUO"  # kinds of numbers and text


def _why_not(array: Array) -> str:
    """Say why an array of another kind is not read."""
    how = " (turn them into seconds: (t - t0) / np.timedelta64(1, 's'))"
    return f"holds {array.dtype}{how * (array.dtype.kind in 'mM')}"


def _cells(value: Any) -> tuple[list[Any], tuple[int, ...]] | None:
    """Return the entries of a list or of an array of objects in C order, with its shape."""
    if isinstance(value, list | tuple):
        if not any(isinstance(v, Mapping | list | tuple) or getattr(v, "ndim", 0) for v in value):
            return None  # numbers or text: an array
        return list(value), (len(value),)
    if isinstance(value, np.ndarray) and value.dtype.kind == "O":
        simple = all(isinstance(v, str | bytes | Number) or _is_missing(v) for v in value.flat)
        return None if simple and value.size else (list(value.flat), value.shape)
    return None


def _add_cells(tree: Tree, key: str, cells: list[Any], shape: tuple[int, ...]) -> None:
    names = {
        name: None
        for cell in cells
        for name in (cell if isinstance(cell, Mapping) else _fields(cell))
    }
    if names:  # a struct in each: a list for each field
        for name in names:
            inner = [_field(cell, name) for cell in cells]
            _add_cells(tree, f"{key}.{name}", inner, shape)
        return
    nested = [_cells(cell) for cell in cells]
    sizes = {inner[1] for inner in nested if inner is not None and inner[0]}
    if len(sizes) == 1:  # cells in cells, as many in each
        size = sizes.pop()
        empty = [np.empty(0)] * int(np.prod(size))
        lists = [inner[0] if inner is not None and inner[0] else empty for inner in nested]
        _add_cells(tree, key, [one for entries in lists for one in entries], (*shape, *size))
        return
    if sizes:
        few, many = (show_shape(size) for size in (min(sizes), max(sizes)))
        tree[key] = Ragged([], problem=f"holds {few} cells in some entries, {many} in others")
        return
    arrays: list[AnyArray] = [
        cell
        if isinstance(cell, StoredArray)
        else np.empty(0)
        if inner
        else np.atleast_1d(as_column(as_array(cell)))
        for cell, inner in zip(cells, nested, strict=True)
    ]
    if not arrays:
        return
    known = [array for array in arrays if array.dtype.kind in _LEGAL]
    filled = [array for array in known if array.shape and 0 not in array.shape]
    if filled and all(array.dtype.kind in "SU" for array in filled):
        tree[key] = np.array([str(as_column(a[:]).ravel()[0]) if a.size else "" for a in known])
    elif all(array.dtype.kind in "buif" for array in arrays):
        tree[key] = column_of(Ragged(arrays, shape=shape), key)
    elif not known:
        tree[key] = Ragged([], problem=_why_not(np.asarray(arrays[0])))
    else:
        tree[key] = Ragged([], problem="holds numbers in some entries, something else in others")


def _fields(value: Any) -> tuple[str, ...]:
    """Return the names of the fields of a struct."""
    return getattr(getattr(value, "dtype", None), "names", None) or ()


def _field(cell: Any, name: str) -> Any:
    try:
        value = cell[name]
    except (KeyError, ValueError, IndexError, TypeError):
        return np.empty(0)
    return _single(value) if isinstance(value, np.ndarray) else value


def column_of(ragged: Ragged, key: str) -> Node:
    """Return entries of one number each as a column, in which empty ones are NaN."""
    sizes = [int(np.prod(row.shape)) for row in ragged.rows]
    if len(ragged.shape) > 1 or max(sizes, default=2) != 1 or last_name(key) in SPIKES:
        return ragged
    values = [row[:].ravel()[0] if n else np.nan for row, n in zip(ragged.rows, sizes, strict=True)]
    return np.array(values)


# ---- numbered names: an array, or a group, for each unit or trial --------------------------------


def gather(tree: Tree) -> Tree:
    """Put numbered entries together: ``spike_times.0``, ``unit_7``, ``trial_3.spikes``."""
    return _gather_lists(_gather_groups(_gather_entries(tree)))


def _gather_entries(tree: Tree) -> Tree:
    """Make one list of each field of groups that are numbered trials or units."""
    entries: dict[tuple[str, str], dict[int, str]] = {}
    order: dict[str, set[int]] = {}
    for key in tree:
        match = _ENTRY.fullmatch(key)
        if match is None or (match["sign"] == "_" and not match["what"]):
            continue
        what = match["what"] or last_name(match["stem"]) or "trials"
        trial = re.fullmatch(TRIAL_WORDS, what, re.IGNORECASE)
        if match["sign"] == "_" and not trial:  # ch1_lfp is a name, not a field
            continue
        stem = match["stem"] or ("trials" if trial else "units")
        entries.setdefault((stem, match["field"]), {})[int(match["number"])] = key
        order.setdefault(stem, set()).add(int(match["number"]))
    result = dict(tree)
    for (stem, name), keys in entries.items():
        numbers = sorted(order[stem])
        target = f"{stem}.{name}"
        if len(numbers) < 2 or target in tree:
            continue
        nodes = [result.pop(keys[number]) if number in keys else None for number in numbers]
        cells = [_as_cell(node) for node in nodes]
        _add_cells(result, target, cells, (len(cells),))
    return result


def _gather_groups(tree: Tree) -> Tree:
    """Make one list of the arrays of a group that has the name of spikes, whatever theirs are."""
    members: dict[str, list[str]] = {}
    for key in tree:
        stem, _, name = key.rpartition(".")
        if last_name(stem) in SPIKES:
            members.setdefault(stem, []).append(name)
    result = dict(tree)
    for stem, names in members.items():
        nodes = [tree[f"{stem}.{name}"] for name in names]
        arrays = [n for n in nodes if not isinstance(n, Ragged) and is_vector(n)]
        is_list = not any(_OF_LIST.fullmatch(n) or _OF_TRIAL.fullmatch(n) for n in names)
        if len(names) > 1 and len(arrays) == len(names) and is_list and stem not in tree:
            names.sort(key=_by_number)
            rows = [flat(result.pop(f"{stem}.{name}")) for name in names]
            result[stem] = column_of(Ragged(rows, names), stem)
    return result


def _by_number(name: str) -> tuple[Any, ...]:
    """Order unit_10 after unit_9."""
    return tuple(int(word) if word.isdigit() else word for word in re.split(r"(\d+)", name))


def _are_times(nodes: Iterable[Node]) -> bool:
    """Return whether vectors ascend, in steps that are not equal: spikes do, counts do not."""
    values = [flat(node)[:] for node in nodes if not isinstance(node, Ragged)]
    return all(
        (np.diff(v.astype(np.float64)) >= 0).all() and not is_regular(v) for v in values
    ) and any(len(v) > 2 for v in values)


def _as_cell(node: Node | None) -> Any:
    """Return a node as what a cell array would hold."""
    if node is None:
        return np.empty(0)
    if not isinstance(node, Ragged):
        return node
    cells = np.empty(len(node.rows), dtype=object)
    for i, row in enumerate(node.rows):
        cells[i] = row
    return cells.reshape(node.shape)


def _gather_lists(tree: Tree) -> Tree:
    """Make one list of arrays whose names differ by a number."""
    groups: dict[str, list[tuple[int, str]]] = {}
    trials, units = set[str](), set[str]()
    for key, node in tree.items():
        match = _NUMBERED.fullmatch(key)
        if match and (isinstance(node, Ragged) or node.dtype.kind in "uifb"):
            groups.setdefault(match["stem"], []).append((int(match["number"]), key))
            if re.fullmatch(TRIAL_WORDS, match["what"] or "", re.IGNORECASE):
                trials.add(match["stem"])
            elif match["what"]:
                units.add(match["stem"])
    result = dict(tree)
    numbers_of_spikes: list[list[int]] = []

    def listed(stem: str) -> bool:
        """Return whether numbered arrays are entries of a list, not columns of a table."""
        nodes = [tree[key] for _, key in groups[stem]]
        if any(isinstance(node, Ragged) for node in nodes):
            return len({n.shape if isinstance(n, Ragged) else () for n in nodes}) == 1
        numbers = sorted(number for number, _ in groups[stem])
        return (
            last_name(stem) in SPIKES
            or len({node.shape for node in nodes}) > 1
            or (stem in trials and len(nodes) > 1)
            or numbers in numbers_of_spikes
            # Columns of a table have one length, and units may happen to have.
            or (stem in units and _are_times(nodes))
        )

    # Lists that are known by their name come first: what is numbered as they are goes with them.
    for stem in sorted(groups, key=lambda name: last_name(name) not in SPIKES):
        members = sorted(groups[stem])
        if stem in tree or not listed(stem):
            continue
        if last_name(stem) in SPIKES or stem in trials:
            numbers_of_spikes.append([number for number, _ in members])
        nodes = [result.pop(key) for _, key in members]
        names = [key.removeprefix(stem).lstrip("._") for _, key in members]
        target = stem or ("trials" if stem in trials else "spike_times")
        if isinstance(nodes[0], Ragged):  # of each unit a list by trial
            inner = nodes[0].shape
            rows = [n.rows[i] for i in range(len(nodes[0].rows)) for n in nodes]  # type: ignore[union-attr]
            known = {True: ("trial", "unit"), False: ("unit", "trial")}
            axes = known[stem in units] if len(inner) == 1 and stem in units | trials else ()
            result[target] = Ragged(rows, shape=(*inner, len(nodes)), axes=axes)
        else:
            arrays = [node for node in nodes if not isinstance(node, Ragged)]
            result[target] = column_of(Ragged(arrays, names), target)
    return result


def siblings(tree: Tree, key: str) -> Iterable[tuple[str, Node]]:
    """Yield what lies in the same group or struct, by its name there."""
    stem = key.rpartition(".")[0]
    for other, node in tree.items():
        if other != key and stem and other.startswith(f"{stem}."):
            yield other.removeprefix(f"{stem}."), node
