"""Which array of a file holds the spikes, and what its axes and bins are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...data.find import list_some
from ...data.read import bin_width_ms
from ...data.validate import show_shape
from ...errors import DataError, UserError
from .grouped import group_by_unit
from .lazy import (
    Array,
    LazyArray,
    Node,
    Ragged,
    Tree,
    Vector,
    is_vector,
    read_all,
)
from .options import SourceOptions
from .recording import BinnedSpikes, SpikeTimes, find

TIMES = ("time", "times", "timestamps", "t", "bin_times")
"""Names of an array that holds the times of samples or bins."""

SPIKES = ("spike_times", "spikes", "spiketimes", "spike_counts", "counts", "binned_spikes")
"""Names of an array that holds the spikes, the likeliest first."""

_UNIT_OF_SPIKE = ("unit", "units", "unit_ids", "spike_units", "spike_clusters", "clusters")
_AT_ONCE = 1 << 20  # spikes


class Found(NamedTuple):
    """Spikes, and what was used to read them.

    Attributes
    ----------
    spikes : SpikeTimes or BinnedSpikes
    used : set of str
        Keys that are no longer free for other uses.
    names : ndarray
        The units' names; empty where they have none.
    time_name : str or None
        Key of the array that holds the bins' times.
    notes : list of str
        What was assumed.
    """

    spikes: SpikeTimes | BinnedSpikes
    used: set[str]
    names: Array
    time_name: str | None
    notes: list[str]


def spikes_name(path: Path, tree: Tree, options: SourceOptions) -> str:
    """Find the key that holds the spikes, or raise an error that lists what there is."""
    if options.spikes:
        node = find(tree, options.spikes, "array")
        return next(key for key, value in tree.items() if value is node)
    if "train_encod_data" in tree:
        raise UserError(
            f"{path.name} is a data file already: train on it, or look it through with lfads check."
        )
    candidates = {key: node for key, node in tree.items() if _could_be_spikes(node)}
    for name in SPIKES:
        found = [key for key in candidates if key.lower().rpartition(".")[2] == name]
        if len(found) == 1:
            return found[0]
    likely = [k for k, node in candidates.items() if isinstance(node, Ragged) or _long(node) > 1]
    if len(likely) == 1:
        return likely[0]
    raise UserError(
        f"{path.name}: which array holds the spikes? Name it with --spikes. There is: "
        f"{list_some([f'{k} ({describe(node)})' for k, node in tree.items()], 20) or 'nothing'}."
    )


def _could_be_spikes(node: Node) -> bool:
    return isinstance(node, Ragged) or (node.dtype.kind in "buif" and bool(node.shape))


def _long(node: LazyArray) -> int:
    """Axes of more than one entry."""
    return sum(n != 1 for n in node.shape)


def describe(node: Node) -> str:
    """Shape and type of what a file holds, for people."""
    if isinstance(node, Ragged):
        return f"{len(node.rows)} arrays"
    return f"{show_shape(node.shape)} {node.dtype}"


def find_spikes(
    path: Path, name: str, tree: Tree, options: SourceOptions, attrs: Mapping[str, Any]
) -> Found:
    """Read the array `name` as spikes.

    Raises
    ------
    DataError, UserError
        Where its axes, bins or units are unclear.
    """
    node, nameless = tree[name], np.empty(0, dtype=str)
    if isinstance(node, Ragged):
        long = [i for i, row in enumerate(node.rows) if not is_vector(row)]
        if long:
            raise DataError(
                f"{path.name}: {name!r} holds arrays of several dimensions (entry {long[0]}: "
                f"{show_shape(node.rows[long[0]].shape)}); spike times are one list per unit. "
                "Binned trials of one length go into one array of trials x bins x units."
            )
        times = SpikeTimes([Vector(row) for row in node.rows], options.clock())
        names = np.array(node.names) if node.names else nameless
        return Found(times, {name}, names, None, [f"spike times: {name!r}"])
    if node.dtype.kind not in "buif":
        raise UserError(f"{path.name}: {name!r} holds {node.dtype}, not numbers (--spikes).")
    if _long(node) <= 1 and not options.axes:
        units, used, names = _listed(path, name, node, tree, options)
        return Found(
            SpikeTimes(units, options.clock()), used, names, None, [f"spike times: {name!r}"]
        )
    axes, time_name = _axes(name, node, tree, options)
    bin_s, start, notes = _bin_width(path, name, node, tree, time_name, options, attrs)
    given = "as told" if options.axes else "if not, say so with --axes"
    notes.insert(
        0, f"binned spikes: {name!r}, {show_shape(node.shape)}, as {' x '.join(axes)} ({given})"
    )
    spikes = BinnedSpikes(node, axes, bin_s, start)
    return Found(spikes, {name, time_name or name}, nameless, time_name, notes)


def _listed(
    path: Path, name: str, node: LazyArray, tree: Tree, options: SourceOptions
) -> tuple[list[LazyArray], set[str], Array]:
    """Spikes of all units in one list, parted by an index or told apart by a second list."""
    times, nameless = Vector(node), np.empty(0, dtype=str)
    index = tree.get(f"{name}_index")
    if index is not None and not isinstance(index, Ragged):
        ends = read_all(Vector(index))
        return split_by_index(times, ends), {name, f"{name}_index"}, nameless
    if options.spike_units:
        found = find(tree, options.spike_units, "array")
        keys = [key for key, value in tree.items() if value is found]
    else:
        stem = name.rpartition(".")[0]
        keys = [key for k in _UNIT_OF_SPIKE if (key := f"{stem}.{k}" if stem else k) in tree]
    for key in keys:
        labels = tree[key]
        if isinstance(labels, Ragged) or not is_vector(labels):
            continue
        owner = Vector(labels)
        if owner.shape == times.shape:
            units, names = group_by_unit(_pairs(owner, times))
            return units, {name, key}, names
        if options.spike_units:
            raise DataError(
                f"{path.name}: {key!r} has {owner.shape[0]} entries, {name!r} has "
                f"{times.shape[0]} spikes; there must be one unit for each spike."
            )
    return [times], {name}, nameless


def _pairs(owner: LazyArray, times: LazyArray) -> Iterator[tuple[Array, Array]]:
    for start in range(0, times.shape[0], _AT_ONCE):
        stop = min(start + _AT_ONCE, times.shape[0])
        yield owner.take(start, stop), times.take(start, stop)


def split_by_index(times: LazyArray, ends: Array) -> list[LazyArray]:
    """Part one long list at the ends that an index column gives (as NWB does)."""
    stops = ends.astype(np.int64)
    if len(stops) and ((np.diff(stops) < 0).any() or stops[-1] > times.shape[0] or stops[0] < 0):
        raise DataError(
            f"The index of the spike times ends at {stops.max()}, the list has {times.shape[0]}; "
            "the file is cut short or damaged."
        )
    return [Vector(times, int(a), int(b)) for a, b in zip([0, *stops[:-1]], stops, strict=False)]


def _axes(
    name: str, node: LazyArray, tree: Tree, options: SourceOptions
) -> tuple[tuple[str, ...], str | None]:
    """Names of the axes of binned spikes, and of the array that holds the bins' times."""
    shape = node.shape
    times = {
        key: Vector(other).shape[0]
        for key, other in tree.items()
        if key.lower().rpartition(".")[2] in TIMES
        and not isinstance(other, Ragged)
        and is_vector(other)
    }
    axes: tuple[str, ...]
    if options.axes:
        axes = tuple(part.strip().rstrip("s") for part in options.axes.split(","))
        if set(axes) | {"trial"} != {"trial", "time", "unit"} or len(axes) != len(shape):
            raise UserError(
                f"--axes {options.axes} for {name!r} of shape {show_shape(shape)}; legal are time "
                "and unit (two axes) or trial, time and unit (three), in the order of the array."
            )
    elif len(shape) == 3:
        axes = ("trial", "time", "unit")
    elif len(shape) == 2:
        known = [axis for axis in (0, 1) if shape[axis] in times.values()]
        time_axis = known[0] if len(known) == 1 else int(shape[1] > shape[0])
        axes = ("unit", "time") if time_axis else ("time", "unit")
    else:
        raise DataError(
            f"{name!r} has {len(shape)} dimensions; legal are spike times, time x unit, and trial "
            "x time x unit. Name another array with --spikes."
        )
    n_bins = shape[axes.index("time")]
    return axes, next((key for key, n in times.items() if n == n_bins), None)


def _bin_width(
    path: Path,
    name: str,
    node: LazyArray,
    tree: Tree,
    time_name: str | None,
    options: SourceOptions,
    attrs: Mapping[str, Any],
) -> tuple[float, float, list[str]]:
    """Bin width and left edge of the first bin in seconds, and what was assumed."""
    scalars = {
        key.rpartition(".")[2]: float(read_all(Vector(other))[0])
        for key, other in tree.items()
        if not isinstance(other, Ragged) and np.prod(other.shape) == 1 and other.dtype.kind in "uif"
    }
    start, width_s, notes = 0.0, None, []
    times = None if time_name is None else tree[time_name]
    if times is not None and not isinstance(times, Ragged) and Vector(times).shape[0] > 1:
        seconds = options.clock().seconds(read_all(Vector(times)))
        steps = np.diff(seconds)
        start, width_s = float(seconds[0]), float(np.median(steps))
        if not width_s > 0:
            raise DataError(f"{path.name}: {time_name!r} does not ascend.")
        # The median of differences carries rounding errors of the times.
        width_s = float(f"{width_s:.7g}")
        if np.abs(steps - width_s).max() > 0.01 * width_s:
            notes.append(
                f"{time_name!r} has steps of {steps.min() * 1000:g} to {steps.max() * 1000:g} ms; "
                "the bins are taken to adjoin"
            )
    told = options.input_bin_ms or bin_width_ms(node.attrs) or bin_width_ms(attrs)
    told = told or bin_width_ms(scalars)
    if told is not None and not (np.isfinite(told) and told > 0):
        raise UserError(f"--input-bin-ms {told}; legal is a width in ms above 0.")
    if told is None and width_s is None:
        raise UserError(
            f"{path.name}: how wide are the bins of {name!r}? Say it with --input-bin-ms (the file "
            "has neither an attribute bin_ms nor an array of times)."
        )
    bin_s = told / 1000 if told is not None else float(width_s or 0)
    notes.append(f"its bins: {bin_s * 1000:g} ms, from {start:g} s on")
    return bin_s, start, notes
