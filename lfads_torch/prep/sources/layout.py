"""From named arrays (.npz, .mat, HDF5) to a recording: spikes, units, trials and series."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...data.find import list_some
from ...data.read import bin_width_ms
from ...data.stored import StoredArray, blocks, flat, part
from ...data.validate import show_shape
from ...errors import DataError, UserError, number
from .recording import (
    AnyArray,
    Array,
    BinnedSpikes,
    Clock,
    Recording,
    Series,
    SourceOptions,
    SpikeTimes,
    Table,
    find,
)

TIMES = ("time", "times", "timestamps", "t", "bin_times")
"""Names of an array that holds the times of samples or bins."""

# Names of an array that holds the spikes, the likeliest first.
_SPIKES = ("spike_times", "spikes", "spiketimes", "spike_counts", "counts", "binned_spikes")
_UNIT_OF_SPIKE = ("unit", "units", "unit_ids", "spike_units", "spike_clusters", "clusters")
_TRIALS = ("trials", "trial_info", "trial")
_UNITS = ("units", "unit_info", "unit")
_TIME_ENDINGS = ("_timestamps", "_times", "_time", ".timestamps", ".times", ".time")
_RATE_ENDINGS = ("_rate", "_hz", ".rate", ".hz")
_NUMBERED = re.compile(r"(?P<stem>.*?)[._]?(?:unit|neuron|cell|channel|ch)?_?(?P<number>\d+)")

_IN_MEMORY = 1 << 23  # spikes (64 MB) that are kept before a temporary file takes them


@dataclass
class Ragged:
    """Arrays of one kind and of different lengths: a cell array, a group, an index column.

    `names` has one for each row, where the file names them.
    """

    rows: Sequence[AnyArray]
    names: list[str] = field(default_factory=list)


Node = AnyArray | Ragged
Tree = dict[str, Node]
"""Everything in a file by its path, with dots between the names of groups and structs."""


def is_vector(array: AnyArray) -> bool:
    """Return whether at most one axis has more than one entry (MATLAB's rows and columns)."""
    return sum(n != 1 for n in array.shape) <= 1


def as_text(values: Array) -> Array:
    """Return bytes and objects as text, other types as they are."""
    if values.dtype.kind == "S":
        return np.char.decode(values, "utf-8", "replace")
    if values.dtype.kind == "O":
        return np.array(
            [v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in values.flat]
        ).reshape(values.shape)
    return values


def recording_from_tree(
    path: Path, kind: str, tree: Tree, options: SourceOptions, attrs: Mapping[str, Any]
) -> Recording:
    """Make a recording out of everything that a file holds, or say what is unclear.

    `attrs` are the attributes of the file, which may give the bin width.
    """
    tree = gather(tree)
    name = spikes_name(path, tree, options)
    spikes, used, names, notes = find_spikes(path, name, tree, options, attrs)
    recording = Recording(path, kind, spikes, clock=options.clock(), notes=notes)
    rest = {key: node for key, node in tree.items() if key not in used}
    recording.units = _table(rest, _UNITS, spikes.n_units)
    if len(names):
        recording.units = {"name": names, **recording.units}
    prefixes = (options.trials,) if options.trials else _TRIALS
    recording.trials = _table(rest, prefixes, None, recording.warnings)
    if options.trials and not recording.trials:
        raise UserError(
            f"{path.name} has no table {options.trials!r}; a table is a group or struct of arrays "
            f"of one length. It holds: {list_some(sorted(tree), 20)}."
        )
    if isinstance(spikes, BinnedSpikes) and "trial" in spikes.axes:
        _add_trials(recording, spikes, rest)
    else:
        recording.series = _series(rest, spikes, recording.clock)
    return recording


def gather(tree: Tree) -> Tree:
    """Put numbered lists (``spike_times.0``, ``spike_times.1``, ``unit_7``) together."""
    groups: dict[str, list[tuple[int, str]]] = {}
    for key, node in tree.items():
        match = _NUMBERED.fullmatch(key)
        if match and not isinstance(node, Ragged) and is_vector(node) and node.dtype.kind in "uif":
            groups.setdefault(match["stem"], []).append((int(match["number"]), key))
    result = dict(tree)
    for stem, members in groups.items():
        lengths = {node.shape for _, k in members if not isinstance(node := tree[k], Ragged)}
        named = stem.lower().rpartition(".")[2] in _SPIKES
        if stem not in tree and (named or len(lengths) > 1):
            keys = [key for _, key in sorted(members)]
            rows = [node for k in keys if not isinstance(node := result.pop(k), Ragged)]
            names = [key.removeprefix(stem).lstrip("._") for key in keys]
            result[stem or "spike_times"] = Ragged(rows, names)
    return result


def _table(
    tree: Tree, prefixes: tuple[str, ...], n_rows: int | None, warnings: list[str] | None = None
) -> Table:
    """Read columns of one length under a prefix: a group, a struct, or how names begin."""
    for prefix in prefixes:
        columns: Table = {}
        for key, node in tree.items():
            tail = key.removeprefix(prefix)
            if tail == key or tail[:1] not in (".", "_") or isinstance(node, Ragged):
                continue
            if is_vector(node) and node.dtype.kind in "buifSUO":
                columns[tail[1:]] = as_text(flat(node)[:])
        sizes = [len(column) for column in columns.values()]
        size = n_rows if n_rows is not None else max(sizes, key=sizes.count, default=0)
        other = [f"{k} ({len(column)})" for k, column in columns.items() if len(column) != size]
        columns = {name: column for name, column in columns.items() if len(column) == size}
        if columns:
            if other and warnings is not None:
                warnings.append(
                    f"{prefix} has {size} rows; columns of another length are left out: "
                    f"{list_some(other)}"
                )
            return columns
    return {}


def _add_trials(recording: Recording, spikes: BinnedSpikes, rest: Tree) -> None:
    """Add columns and series with a row per trial to a recording of binned trials."""
    n_trials = spikes.array.shape[spikes.axes.index("trial")]
    length = spikes.trial_bins * spikes.bin_s
    starts = np.arange(n_trials, dtype=np.float64) * length
    recording.starts = starts
    recording.observed = np.stack([starts, starts + length], axis=1)
    columns: Table = {"start_time": np.zeros(n_trials)}
    columns |= {k: v for k, v in recording.trials.items() if len(v) == n_trials}
    for key, node in rest.items():
        if isinstance(node, Ragged) or node.dtype.kind not in "buifSUO":
            continue
        if is_vector(node) and flat(node).shape == (n_trials,):
            columns.setdefault(key, as_text(flat(node)[:]))
        elif node.shape[:2] == (n_trials, spikes.trial_bins) and len(node.shape) <= 3:
            axes = ("trial", "time", "channel")[: len(node.shape)]
            recording.series[key] = Series(node, axes, rate=1 / spikes.bin_s, at_edges=True)
    recording.trials = columns


def _series(tree: Tree, spikes: SpikeTimes | BinnedSpikes, clock: Clock) -> dict[str, Series]:
    """Describe arrays with one entry per bin, with times, or with a sampling rate."""
    series: dict[str, Series] = {}
    shared = next((k for k, n in tree.items() if k.lower() in TIMES and _is_list(n)), None)
    for key, node in tree.items():
        ending = key.endswith((*_TIME_ENDINGS, *_RATE_ENDINGS)) or key == shared
        if isinstance(node, Ragged) or node.dtype.kind not in "buif" or ending:
            continue
        if not 1 <= len(node.shape) <= 2:
            continue
        stem = key.removesuffix(".data")
        times, rate = _companion(tree, stem, _TIME_ENDINGS), _companion(tree, stem, _RATE_ENDINGS)
        start, hz, at_edges = 0.0, 1.0, False
        if times is not None:
            n = times.shape[0]
        elif rate is not None or "rate" in _attrs(node):
            hz = float(rate[:][0] if rate is not None else _attrs(node)["rate"])
            n = max(node.shape)
        elif isinstance(spikes, BinnedSpikes):
            start, hz, at_edges, n = spikes.start, 1 / spikes.bin_s, True, spikes.n_bins
        elif shared is not None:
            times = flat(tree[shared])
            n = times.shape[0]
        else:
            continue
        if n > 1 and n in node.shape:
            axes: tuple[str, ...] = ("time", "channel") if len(node.shape) == 2 else ("time",)
            axes = axes[::-1] if node.shape[0] != n else axes
            series[stem] = Series(node, axes, times, start, hz, at_edges=at_edges, clock=clock)
    return series


def _is_list(node: Node) -> bool:
    return not isinstance(node, Ragged) and is_vector(node) and flat(node).shape[0] > 1


def _attrs(node: AnyArray) -> Mapping[str, Any]:
    """Return the notes that a file keeps with an array; arrays in memory have none."""
    return node.attrs if isinstance(node, StoredArray) else {}


def _companion(tree: Tree, stem: str, endings: tuple[str, ...]) -> Any:
    """Return the list that belongs to an array by its name, or None."""
    for ending in endings:
        node = tree.get(f"{stem}{ending}")
        if node is not None and not isinstance(node, Ragged) and is_vector(node):
            return flat(node)
    return None


# ---- which array holds the spikes, what its axes and bins are ------------------------------------


class _Spikes(NamedTuple):
    """Spikes with the keys they were read from, the units' names (may be empty) and notes."""

    spikes: SpikeTimes | BinnedSpikes
    used: set[str]
    names: Array
    notes: list[str]


def spikes_name(path: Path, tree: Tree, options: SourceOptions) -> str:
    """Return the key that holds the spikes, or raise an error that lists all keys."""
    if options.spikes:
        node = find(tree, options.spikes, "array")
        return next(key for key, value in tree.items() if value is node)
    if "train_encod_data" in tree:
        raise UserError(
            f"{path.name} is a data file already: train on it, or check it with lfads check."
        )
    candidates = {key: node for key, node in tree.items() if _could_be_spikes(node)}
    for name in _SPIKES:
        keys = [key for key in candidates if key.lower().rpartition(".")[2] == name]
        if len(keys) == 1:
            return keys[0]
    likely = [k for k, node in candidates.items() if isinstance(node, Ragged) or _long(node) > 1]
    if len(likely) == 1:
        return likely[0]
    raise UserError(
        f"{path.name}: which array holds the spikes? Name it with --spikes. The file has: "
        f"{list_some([f'{k} ({describe(node)})' for k, node in tree.items()], 20) or 'nothing'}."
    )


def _could_be_spikes(node: Node) -> bool:
    return isinstance(node, Ragged) or (node.dtype.kind in "buif" and bool(node.shape))


def _long(node: AnyArray) -> int:
    """Count the axes of more than one entry."""
    return sum(n != 1 for n in node.shape)


def describe(node: Node) -> str:
    """Return shape and type of an array, for people."""
    if isinstance(node, Ragged):
        return f"{len(node.rows)} arrays"
    return f"{show_shape(node.shape)} {node.dtype}"


def find_spikes(
    path: Path, name: str, tree: Tree, options: SourceOptions, attrs: Mapping[str, Any]
) -> _Spikes:
    """Describe an array as spikes, or raise an error where axes, bins or units are unclear."""
    node, nameless = tree[name], np.empty(0, dtype=str)
    if isinstance(node, Ragged):
        long = [i for i, row in enumerate(node.rows) if not is_vector(row)]
        if long:
            raise DataError(
                f"{path.name}: {name!r} holds arrays of several dimensions (entry {long[0]}: "
                f"{show_shape(node.rows[long[0]].shape)}); spike times are one list per unit. "
                "Binned trials of one length go into one array of trials x bins x units."
            )
        times = SpikeTimes([flat(row) for row in node.rows], options.clock())
        names = np.array(node.names) if node.names else nameless
        return _Spikes(times, {name}, names, [f"spike times: {name!r}"])
    if node.dtype.kind not in "buif":
        raise UserError(f"{path.name}: {name!r} holds {node.dtype}, not numbers (--spikes).")
    if _long(node) <= 1 and not options.axes:
        units, used, names = _listed(path, name, node, tree, options)
        times = SpikeTimes(units, options.clock())
        return _Spikes(times, used, names, [f"spike times: {name!r}"])
    axes, time_name = _axes(name, node, tree, options)
    bin_s, start, notes = _bin_width(path, name, node, tree, time_name, options, attrs)
    given = "by --axes" if options.axes else "if not, say so with --axes"
    notes.insert(
        0, f"binned spikes: {name!r}, {show_shape(node.shape)}, as {' x '.join(axes)} ({given})"
    )
    spikes = BinnedSpikes(node, axes, bin_s, start)
    return _Spikes(spikes, {name, time_name or name}, nameless, notes)


def _listed(
    path: Path, name: str, node: AnyArray, tree: Tree, options: SourceOptions
) -> tuple[list[AnyArray], set[str], Array]:
    """Split one list of all spikes by an index, or by a second list with the unit of each."""
    times, nameless = flat(node), np.empty(0, dtype=str)
    index = tree.get(f"{name}_index")
    if index is not None and not isinstance(index, Ragged):
        ends = flat(index)[:]
        return split_by_index(times, ends), {name, f"{name}_index"}, nameless
    if options.spike_units:
        node = find(tree, options.spike_units, "array")
        keys = [key for key, value in tree.items() if value is node]
    else:
        stem = name.rpartition(".")[0]
        keys = [key for k in _UNIT_OF_SPIKE if (key := f"{stem}.{k}" if stem else k) in tree]
    for key in keys:
        labels = tree[key]
        if isinstance(labels, Ragged) or not is_vector(labels):
            continue
        owner = flat(labels)
        if owner.shape == times.shape:
            pairs = ((unit, times[rows]) for rows, unit in blocks(owner))
            units, names = group_by_unit(pairs)
            return units, {name, key}, names
        if options.spike_units:
            raise DataError(
                f"{path.name}: {key!r} has {owner.shape[0]} entries, {name!r} has "
                f"{times.shape[0]} spikes; legal is one unit for each spike."
            )
    return [times], {name}, nameless


def split_by_index(times: AnyArray, ends: Array) -> list[AnyArray]:
    """Split one long list at the ends that an index column gives (as NWB does)."""
    stops = ends.astype(np.int64)
    if len(stops) and ((np.diff(stops) < 0).any() or stops[-1] > times.shape[0] or stops[0] < 0):
        raise DataError(
            f"The index of the spike times ends at {stops.max()}, the list has {times.shape[0]}; "
            "the file is cut short or damaged."
        )
    starts = [0, *stops[:-1]]
    return [part(times, slice(int(a), int(b))) for a, b in zip(starts, stops, strict=False)]


def _axes(
    name: str, node: AnyArray, tree: Tree, options: SourceOptions
) -> tuple[tuple[str, ...], str | None]:
    """Return the axes of binned spikes, and the key of the bins' times where the file has them."""
    shape = node.shape
    times = {
        key: flat(other).shape[0]
        for key, other in tree.items()
        if key.lower().rpartition(".")[2] in TIMES
        and not isinstance(other, Ragged)
        and is_vector(other)
    }
    axes: tuple[str, ...]
    if options.axes:
        axes = tuple(word.strip().rstrip("s") for word in options.axes.split(","))
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
    node: AnyArray,
    tree: Tree,
    time_name: str | None,
    options: SourceOptions,
    attrs: Mapping[str, Any],
) -> tuple[float, float, list[str]]:
    """Return bin width and left edge of the first bin in seconds, and what was assumed."""
    scalars = {
        key.rpartition(".")[2]: float(flat(other)[:][0])
        for key, other in tree.items()
        if not isinstance(other, Ragged) and np.prod(other.shape) == 1 and other.dtype.kind in "uif"
    }
    start, width_s, notes = 0.0, None, []
    times = None if time_name is None else tree[time_name]
    if times is not None and not isinstance(times, Ragged) and flat(times).shape[0] > 1:
        seconds = options.clock().seconds(flat(times)[:])
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
    # What the user says wins over the array, this over the file, and times come last.
    width_ms = options.input_bin_ms or bin_width_ms(_attrs(node)) or bin_width_ms(attrs)
    width_ms = width_ms or bin_width_ms(scalars)
    if width_ms is not None:
        number("--input-bin-ms", width_ms, above=0)
    if width_ms is None and width_s is None:
        raise UserError(
            f"{path.name}: how wide are the bins of {name!r}? Say it with --input-bin-ms (the file "
            "has neither an attribute bin_ms nor an array of times)."
        )
    bin_s = width_ms / 1000 if width_ms is not None else float(width_s or 0)
    notes.append(f"its bins: {bin_s * 1000:g} ms, from {start:g} s on")
    return bin_s, start, notes


# ---- spikes in any order, sorted by unit without holding them all in memory ----------------------


class _Runs:
    """Reader of one unit's spikes: runs of a shared temporary file, or arrays in memory."""

    dtype = np.dtype(np.float64)

    def __init__(self, file: Any) -> None:
        self.file = file
        self.runs: list[tuple[int, int] | Array] = []  # in the file: first spike and how many

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(len(r) if isinstance(r, np.ndarray) else r[1] for r in self.runs),)

    def read(self, rows: slice) -> Array:
        pieces, before = [np.empty(0)], 0
        for run in self.runs:
            length = len(run) if isinstance(run, np.ndarray) else run[1]
            a, b = max(rows.start - before, 0), min(rows.stop - before, length)
            if a < b:
                if isinstance(run, np.ndarray):
                    pieces.append(run[a:b])
                else:
                    self.file.seek(8 * (run[0] + a))
                    pieces.append(np.frombuffer(self.file.read(8 * (b - a)), dtype=np.float64))
            before += length
        return np.concatenate(pieces)


def group_by_unit(pairs: Iterable[tuple[Array, Array]]) -> tuple[list[AnyArray], Array]:
    """Sort spikes by unit; return the times of each unit, in their order, and the units, sorted.

    `pairs` are arrays of one length, block after block: the unit of each spike and its time.
    """
    file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the arrays that read it
    units: dict[Any, _Runs] = {}
    written, kept = 0, 0
    for owner, times in pairs:
        order = np.argsort(owner, kind="stable")
        owner, times = owner[order], times[order].astype(np.float64)
        kept += len(times)
        edges = np.flatnonzero(np.concatenate([[True], owner[1:] != owner[:-1]]))
        for a, b in zip(edges, [*edges[1:], len(owner)], strict=True):
            label = owner[a].item()
            runs = units.setdefault(label, _Runs(file)).runs
            runs.append(times[a:b].copy() if kept <= _IN_MEMORY else (written + int(a), int(b - a)))
        if kept > _IN_MEMORY:
            file.seek(8 * written)
            file.write(times.tobytes())
            written += len(times)
    labels = sorted(units)
    return [StoredArray(units[label]) for label in labels], np.array(labels)
