"""Binned spikes: arrays of a recording or of each trial, their axes and the width of their bins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...data.find import list_some
from ...data.read import bin_width_ms
from ...data.stored import StoredArray, flat
from ...data.validate import show_shape
from ...errors import DataError, UserError, number
from ..binning import Array, Floats
from ..names import BIN_RATE, BIN_WIDTH, LIKE_SPIKES, OF_TRIAL, OF_UNIT, UNITS
from .axes import Axes, Hints, choose, gather_hints, parse_axes, readings
from .recording import UNIT_S, AnyArray, BinnedSpikes, Clock, median_step
from .spike_lists import SpikesRead, areas, entries, hold_counts
from .tree import Node, Ragged, Source, Tree, attrs_of, is_vector, last_name, last_of, siblings
from .trialwise import BinTimes, Joined, StoredBins, Trials, bin_times, describe_sizes, of_rows

_LONGEST_BIN_S = 0.5  # a width above is a number of milliseconds
_FASTEST_HZ = 2000.0  # a rate above is of the voltages, not of bins


def read_bins(source: Source, keys: Sequence[str]) -> SpikesRead:
    """Describe binned spikes; arrays of several keys are joined along their units."""
    stored, notes, used = [], [], set(keys)
    for key in keys:
        node = source.tree[key]
        array, axes, why = _binned(source, key, node)
        stored.append(StoredBins(array, axes))
        order = ("trial", *axes) if isinstance(array, Ragged) else axes
        size = describe_sizes(node) if isinstance(node, Ragged) else show_shape(node.shape)
        notes.append(f"binned spikes: {key!r}, {size}, as {' x '.join(order)} ({why})")
    lengths = stored[0].lengths()
    for key, one in zip(keys, stored, strict=True):
        if not np.array_equal(one.lengths(), lengths):
            raise DataError(
                f"{source.file}: {keys[0]!r} and {key!r} differ in trials or bins; arrays that "
                "are joined must have the same."
            )
    nodes = {key: source.tree[key] for key in _by_distance(source, keys[0])}
    timed = bin_times(nodes, lengths)
    bins = _bin_width(source, keys[0], timed, nodes)
    notes += bins.notes
    if timed is not None:
        used.add(timed.key)
    units = areas(keys, [one.width() for one in stored])
    trials = Trials(lengths, bins.width_s, -bins.starts)
    by_trial = isinstance(stored[0].array, Ragged) or "trial" in stored[0].axes
    if not by_trial:
        return SpikesRead(_continuous(stored, bins), used, units, notes)
    if len(set(lengths.tolist())) > 1:
        notes.append(
            f"trials of {lengths.min()} to {lengths.max()} bins: what a short one lacks is missing"
        )
    array = trials.pad(stored)
    spikes = BinnedSpikes(array, ("trial", "time", "unit"), bins.width_s)
    return SpikesRead(spikes, used, units, notes, trials, len(lengths))


def _by_distance(source: Source, key: str) -> list[str]:
    """Return the keys of a file, those in the same group or struct first."""
    stem = key.rpartition(".")[0]
    return sorted(source.tree, key=lambda other: not (stem and other.startswith(f"{stem}.")))


def _continuous(stored: Sequence[StoredBins], bins: Bins) -> BinnedSpikes:
    first, axes = stored[0].array, stored[0].axes
    if isinstance(first, Ragged):
        raise TypeError("a list of arrays has an entry for each trial")
    start = float(bins.starts[0])
    if len(stored) == 1 and "unit" in axes:
        return BinnedSpikes(first, axes, bins.width_s, start)
    return BinnedSpikes(StoredArray(Joined(stored)), ("time", "unit"), bins.width_s, start)


def _binned(source: Source, key: str, node: Node) -> tuple[AnyArray | Ragged, Axes, str]:
    """Return binned spikes, their axes (of a list of trials: those of its rows), and why."""
    what, text = f"{source.file}: {key!r}", source.options.axes
    if isinstance(node, Ragged):
        return _binned_rows(source, key, node)
    if is_vector(node) and not text:
        return flat(node), ("time",), "whole numbers that do not ascend are counts, not times"
    shape = node.shape
    if len(shape) not in (2, 3):
        raise DataError(
            f"{key!r} has {len(shape)} dimensions; legal are spike times, time x unit, and trial "
            "x time x unit. Name another array with --spikes."
        )
    legal = readings(len(shape))
    single: list[Axes] = [("trial", "time"), ("time", "trial")] if len(shape) == 2 else []
    if text:
        return node, parse_axes(text, repr(key), shape, legal + single), "by --axes"
    hints = gather_hints(source, {key}, columns_are="trial" if len(shape) == 3 else "time")
    _compare(hints, source, key, shape)
    if single:
        # As many rows as trials may be one unit's trials: a coincidence is asked about.
        sizes, units = hints.sure.pop("trial", {}), hints.sure.get("unit", {})
        reason = next((why for n, why in sizes.items() if n in shape and n not in units), None)
        if reason is not None:
            legal = legal + [axes for axes in single if shape[axes.index("trial")] in sizes]
            hints.likely.clear()
    axes, why = choose(what, shape, legal, hints)
    return node, axes, f"{why}; if not, say so with --axes"


def _compare(hints: Hints, source: Source, key: str, shape: Sequence[int]) -> None:
    """Take from behaviour with the same trials and bins which axis is that of the units."""
    for other, node in source.tree.items():
        if other == key or isinstance(node, Ragged) or is_vector(node):
            continue
        if LIKE_SPIKES.search(last_name(other)) or OF_UNIT.search(last_name(other)):
            continue
        rest = [n for n in shape if n not in node.shape]
        if len(rest) == 1 and shape.count(rest[0]) == 1:
            why = f"{other!r} ({show_shape(node.shape)}) shares the other axes"
            hints.add("unit", rest[0], why, sure=False)


def _binned_rows(source: Source, key: str, node: Ragged) -> tuple[AnyArray | Ragged, Axes, str]:
    """Return binned spikes that are a list of arrays; see `_binned`."""
    text = source.options.axes
    if all(is_vector(row) for row in node.rows) and hold_counts(node):
        if len(node.shape) == 1:
            return _single_units(source, key, node)
        axes, why = entries(source, key, node)
        grid = np.arange(len(node.rows)).reshape(node.shape)
        grid = grid if axes[0] == "trial" else grid.T
        rows = [_stacked([flat(node.rows[i])[:] for i in trial], key) for trial in grid]
        return of_rows(Ragged(rows), ("unit", "time")).array, ("unit", "time"), why.strip(" ()")
    filled = [row.shape for row in node.rows if 0 not in row.shape]
    if any(len(shape) != 2 for shape in filled) or len(node.shape) > 1:
        raise DataError(
            f"{source.file}: {key!r} holds {describe_sizes(node)}; legal are lists of spike "
            "times, or an array of units x bins (or bins x units) for each trial."
        )
    legal: list[Axes] = [("unit", "time"), ("time", "unit")]
    if text and text.count(",") == 1:
        axes = parse_axes(text, repr(key), filled[0], legal)
        return of_rows(node, axes).array, axes, "by --axes"
    shapes = np.array(filled)
    varying = np.flatnonzero((shapes != shapes[0]).any(axis=0)).tolist()
    if varying and not text and not _is_by_unit(source, key, node):
        axes = legal[0] if varying[-1] == 1 else legal[1]
        stored = of_rows(node, axes)
        return stored.array, axes, "trials share the number of units, not that of bins"
    if varying and (not text or not text.startswith("trial")):
        raise DataError(
            f"{source.file}: {key!r} holds {describe_sizes(node)}, an entry for each unit; "
            "legal are the same trials and bins for all units, or an entry for each trial (--axes)."
        )
    shape = (len(node.rows), *filled[0])
    if text:
        axes, why = parse_axes(text, repr(key), shape, readings(3)), "by --axes"
    else:
        axes, why = _axes_of_rows(source, key, node, shape)
    if axes[0] == "trial":
        return of_rows(node, axes[1:]).array, axes[1:], why
    return np.stack([row[:] for row in node.rows]), axes, why


def _axes_of_rows(source: Source, key: str, node: Ragged, shape: Sequence[int]) -> tuple[Axes, str]:
    neighbours = dict(siblings(source.tree, key))
    hints = gather_hints(source, {key, *(k for k in source.tree if last_of(k) in neighbours)})
    for name, other in neighbours.items():
        if not isinstance(other, Ragged) or other.shape != node.shape:
            continue
        sizes = {n for row in other.rows for n in row.shape}
        shared = [n for n in shape[1:] if n in sizes]
        if len(shared) == 1 and all(shared[0] in row.shape for row in other.rows):
            role = "unit" if OF_UNIT.search(name) else "time"
            hints.add(role, shared[0], f"{name!r} has {shared[0]} in each, too", sure=False)
    for name, column in source.vectors.items():
        if last_of(name) in neighbours and column.shape == (len(node.rows),):
            sizes = {float(n) for n in column[:]} if column.dtype.kind in "uif" else set()
            place = [i for i in (0, 1) if sizes == {float(shape[1 + i])}]
            if len(place) == 1 and shape[1] != shape[2]:
                hints.add("time", shape[1 + place[0]], f"{name!r} is {shape[1 + place[0]]}")
    n = len(node.rows)
    columns = [
        name
        for name, one in neighbours.items()
        if (len(one.rows) if isinstance(one, Ragged) else one.size) == n
    ]
    outer, reason = _outer_axis(key, shape, hints, columns)
    legal = [axes for axes in _USUAL if axes[0] == outer]
    if outer is None:
        legal = _USUAL
    axes, why = choose(f"{source.file}: {key!r}", shape, legal, hints)
    return axes, "; ".join(filter(None, [reason, why]))


_USUAL: list[Axes] = [
    ("trial", "unit", "time"),
    ("unit", "trial", "time"),
    ("trial", "time", "unit"),
    ("unit", "time", "trial"),
]


def _is_by_unit(source: Source, key: str, node: Ragged) -> bool:
    """Return whether a list has an array for each unit, by the units and trials of the file."""
    hints, n = gather_hints(source, {key}), len(node.rows)
    trials = {n for known in (hints.sure, hints.likely) for n in known.get("trial", {})}
    return n in hints.sure.get("unit", {}) and n not in trials


def _outer_axis(
    key: str, shape: Sequence[int], hints: Hints, neighbours: list[str]
) -> tuple[str | None, str]:
    """Return whether arrays of one size are an entry for each trial or unit, and why."""
    words = [word for word in key.lower().split(".") if word]
    for sizes in (hints.sure.get("trial", {}), hints.likely.get("trial", {})):
        if shape[0] in sizes:
            return "trial", sizes[shape[0]]
        if reason := next((why for n, why in sizes.items() if n in shape[1:]), ""):
            return "unit", reason
    if any("trial" in word for word in words):
        return "trial", ""
    if shape[0] in hints.sure.get("unit", {}) or any(word in UNITS for word in words):
        return "unit", ""
    of_trial = any(OF_TRIAL.search(name) for name in neighbours)
    if neighbours and any(OF_UNIT.search(name) for name in neighbours) and not of_trial:
        return "unit", f"next to {list_some(neighbours)}"
    # A struct for each trial is usual; a bare list says nothing.
    return ("trial", f"next to {list_some(neighbours)}") if neighbours else (None, "")


def _single_units(source: Source, key: str, node: Ragged) -> tuple[AnyArray | Ragged, Axes, str]:
    """Return counts that are one list for each trial of a unit, or for each unit."""
    rows = [flat(row) for row in node.rows]
    text, lengths = source.options.axes, {row.shape[0] for row in rows}
    if len(lengths) > 1 and not text:
        return Ragged(rows), ("time",), "lists of counts that differ in length"
    shape = (len(rows), rows[0].shape[0])
    legal: list[Axes] = [("unit", "time"), ("trial", "time")]
    if text:
        axes, why = parse_axes(f"{text},time", repr(key), shape, legal), "by --axes"
        if "," in text:
            axes = parse_axes(text, repr(key), shape, legal)
    else:
        neighbours = {k for k in source.tree if last_of(k) in dict(siblings(source.tree, key))}
        axes, why = choose(
            f"{source.file}: {key!r}", shape, legal, gather_hints(source, neighbours)
        )
    if axes[0] == "trial":
        return Ragged(rows), ("time",), why
    return _stacked([row[:] for row in rows], key), axes, why


def _stacked(rows: Sequence[Array], key: str) -> Array:
    if len({len(row) for row in rows}) > 1:
        raise DataError(
            f"{key!r}: the units of a trial have {min(map(len, rows))} to {max(map(len, rows))} "
            "bins; legal is one number for all."
        )
    return np.stack(rows)


# ---- bin width -----------------------------------------------------------------------------------


@dataclass
class Bins:
    """The width of bins and where they begin, in each trial or in the recording, in seconds."""

    width_s: float
    starts: Floats
    notes: list[str]


def width_of(name: str, value: float) -> tuple[float, str] | None:
    """Return the bin width in seconds that a number means by its name, and how it was read."""
    if not np.isfinite(value) or value <= 0:
        return None
    if match := BIN_WIDTH.fullmatch(name.lower()):
        unit = match["unit"] or ("s" if value < _LONGEST_BIN_S else "ms")
        return (value / 1000 if unit == "ms" else value), f"{name} = {value:g}, taken as {unit}"
    if BIN_RATE.fullmatch(name.lower()) and 1 <= value <= _FASTEST_HZ:
        return 1 / value, f"{name} = {value:g}, taken as bins/s"
    return None


def _widths(nodes: Tree) -> list[tuple[float, str]]:
    """Return the bin widths that numbers in the file give, those of the spikes' struct first."""
    widths = []
    for key, node in nodes.items():
        if isinstance(node, Ragged) or node.dtype.kind not in "uif" or not is_vector(node):
            continue
        if not (BIN_WIDTH.fullmatch(last_name(key)) or BIN_RATE.fullmatch(last_name(key))):
            continue
        values = np.unique(flat(node)[:])
        # One number, or the same in each trial.
        if len(values) == 1 and (width := width_of(last_of(key), float(values[0]))):
            widths.append(width)
    return sorted(widths, key=lambda one: one[1].endswith("bins/s"))


def _bin_width(source: Source, key: str, timed: BinTimes | None, nodes: Tree) -> Bins:
    """Return the width of bins and where they begin, and what was assumed."""
    node, notes, options = source.tree[key], [], source.options
    width_ms = options.input_bin_ms or bin_width_ms(attrs_of(node)) or bin_width_ms(source.attrs)
    if width_ms is not None:
        number("--input-bin-ms", width_ms, above=0)
    stated = [(width_ms / 1000, "")] if width_ms is not None else _widths(nodes)
    width_s, starts = (stated[0][0] if stated else None), np.zeros(1)
    if stated and stated[0][1]:
        notes.append(f"bin width: {stated[0][1]}")
    if timed is not None and len(timed.times[0]) > 1:
        # time_ms: the name says the unit.
        suffix = last_name(timed.key).rpartition("_")[2]
        named = suffix in UNIT_S and "_" in timed.key
        clock = Clock(UNIT_S[suffix]) if named else options.clock()
        seconds = [clock.seconds(one) for one in timed.times]
        steps = np.diff(seconds[0])
        step = median_step(seconds[0])
        if not step > 0:
            raise DataError(f"{source.file}: {timed.key!r} does not ascend.")
        scale = 1.0
        if step > _LONGEST_BIN_S and options.time_unit is None and not named:
            scale = 1e-3
            notes.append(f"{timed.key!r} has steps of {step:g}: it is taken as ms")
        # Bins that adjoin lie on a grid; what a pause or a reset moves is at wrong times after it.
        off = np.abs(seconds[0] - (seconds[0][0] + step * np.arange(len(seconds[0])))) > 1.5 * step
        if off.any():
            bin_ = int(np.argmax(off))
            raise DataError(
                f"{source.file}: {timed.key!r} goes from {scale * seconds[0][bin_ - 1]:.6g} to "
                f"{scale * seconds[0][bin_]:.6g} s at bin {bin_} (counted from 0), in steps of "
                f"{step * scale * 1000:g} ms elsewhere: after a pause, or where a clock was reset, "
                "bins do not adjoin. Put missing bins (NaN) between, or each piece into a file."
            )
        if np.abs(steps - step).max() > 0.01 * step:
            low, high = (scale * float(s) * 1000 for s in (steps.min(), steps.max()))
            notes.append(
                f"{timed.key!r} has steps of {low:g} to {high:g} ms; the bins are taken to adjoin"
            )
        if (
            width_s is not None
            and not options.input_bin_ms
            and abs(step * scale / width_s - 1) > 0.01
        ):
            raise UserError(
                f"{source.file}: the bin width of {key!r} is {width_s * 1000:g} ms by "
                f"{stated[0][1] or 'its attributes'}, and {step * scale * 1000:g} ms by the steps "
                f"of {timed.key!r}; choose with --input-bin-ms."
            )
        width_s = step * scale if width_s is None else width_s
        starts = np.array([scale * float(one[0]) if len(one) else 0.0 for one in seconds])
    if width_s is None:
        raise UserError(
            f"{source.file}: the bin width of {key!r} is unknown: the file has neither an "
            "attribute bin_ms nor an array of times. Give it with --input-bin-ms."
        )
    notes.append(f"its bins: {width_s * 1000:g} ms, from {starts[0]:g} s on")
    return Bins(width_s, starts, notes)
