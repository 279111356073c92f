"""From named arrays (.npz, .mat, HDF5) to a recording: spikes, units, trials and series."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...data.find import list_some
from ...data.read import bin_width_ms
from ...data.stored import StoredArray, blocks, flat, part
from ...data.validate import show_shape
from ...errors import DataError, UserError, number
from ..binning import Array
from .recording import (
    AnyArray,
    BinnedSpikes,
    Clock,
    Recording,
    Series,
    SourceOptions,
    SpikeTimes,
    Table,
    find,
)
from .timeline import INVALID, OBSERVED, TRIAL_OF_SPIKE, add_invalid, observe_units

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


def _vectors(tree: Tree) -> dict[str, AnyArray]:
    """Return the arrays of one axis, flat."""
    arrays = ((key, node) for key, node in tree.items() if not isinstance(node, Ragged))
    return {key: flat(array) for key, array in arrays if is_vector(array)}


def as_text(values: Array) -> Array:
    """Return bytes and objects as text, other types as they are."""
    if values.dtype.kind == "S":
        return np.char.decode(values, "utf-8", "replace")
    if values.dtype.kind == "O":
        return np.array(
            [v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in values.flat]
        ).reshape(values.shape)
    return values


class _Source(NamedTuple):
    """What is known of a file: its arrays and attributes, and what the user says of it."""

    file: str  # its name, for errors
    tree: Tree
    vectors: dict[str, AnyArray]  # of the tree, flat
    options: SourceOptions
    attrs: Mapping[str, Any]

    def key(self, name: str) -> str:
        """Return the key of an array that the user names, whole or by its end."""
        return str(find({key: key for key in self.tree}, name, "array"))


def recording_from_tree(
    path: Path, kind: str, tree: Tree, options: SourceOptions, attrs: Mapping[str, Any]
) -> Recording:
    """Make a recording out of everything that a file holds, or say what is unclear.

    `attrs` are the attributes of the file, which may give the bin width.
    """
    tree = _gather(tree)
    source = _Source(path.name, tree, _vectors(tree), options, attrs)
    spikes, used, names, notes = _find_spikes(source, _spikes_key(source))
    recording = Recording(path, kind, spikes, clock=options.clock(), notes=notes)
    rest = {key: node for key, node in tree.items() if key not in used}
    recording.units = _table(rest, _UNITS, spikes.n_units)
    if len(names):
        recording.units = {"name": names, **recording.units}
    _add_stretches(recording, rest)
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


def _gather(tree: Tree) -> Tree:
    """Put numbered lists (``spike_times.0``, ``spike_times.1``, ``unit_7``) together."""
    vectors, result = _vectors(tree), dict(tree)
    groups: dict[str, list[tuple[int, str]]] = {}
    for key, vector in vectors.items():
        match = _NUMBERED.fullmatch(key)
        if match and vector.dtype.kind in "uif":
            groups.setdefault(match["stem"], []).append((int(match["number"]), key))
    for stem, members in groups.items():
        keys = [key for _, key in sorted(members)]
        named = _last(stem) in _SPIKES
        # Numbered lists of one length may be columns of a table; of several lengths they are units.
        if stem not in tree and (named or len({vectors[key].shape for key in keys}) > 1):
            for key in keys:
                del result[key]
            names = [key.removeprefix(stem).lstrip("._") for key in keys]
            result[stem or "spike_times"] = Ragged([vectors[key] for key in keys], names)
    return result


def _last(key: str) -> str:
    """Return the last name of a path, in lower case."""
    return key.lower().rpartition(".")[2]


def _table(
    tree: Tree, prefixes: tuple[str, ...], n_rows: int | None, warnings: list[str] | None = None
) -> Table:
    """Read columns of one length under a prefix: a group, a struct, or how names begin."""
    for prefix in prefixes:
        columns: Table = {}
        for key, vector in _vectors(tree).items():
            tail = key.removeprefix(prefix)
            if tail != key and tail[:1] in (".", "_") and vector.dtype.kind in "buifSUO":
                columns[tail[1:]] = as_text(vector[:])
        # A group may hold more than its table, such as a sampling rate: the usual length decides.
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
    # When the trials took place is unknown, so they follow one another. `observed` has a stretch
    # for each, so that no window crosses from one into the next.
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


def _add_stretches(recording: Recording, rest: Tree) -> None:
    """Add what the file says was recorded, or is not valid, by the names that say so."""
    for key, node in rest.items():
        name = _last(key)
        if name in INVALID and not isinstance(node, Ragged):
            add_invalid(recording, key, node[:])
        elif name in OBSERVED:
            rows = node.rows if isinstance(node, Ragged) else [node]
            observe_units(recording, [row[:] for row in rows], key)
    groups = {key.rpartition(".")[0] for key in rest}
    for name in dict.fromkeys([*INVALID, *(g for g in sorted(groups) if _last(g) in INVALID)]):
        if table := _table(rest, (name,), None):
            add_invalid(recording, name, table)


def _series(tree: Tree, spikes: SpikeTimes | BinnedSpikes, clock: Clock) -> dict[str, Series]:
    """Describe arrays with one entry per bin, with times, or with a sampling rate."""
    series: dict[str, Series] = {}
    vectors = _vectors(tree)
    shared = next((k for k, v in vectors.items() if k.lower() in TIMES and v.shape[0] > 1), None)
    for key, node in tree.items():
        ending = key.endswith((*_TIME_ENDINGS, *_RATE_ENDINGS)) or key == shared
        if isinstance(node, Ragged) or node.dtype.kind not in "buif" or ending:
            continue
        if not 1 <= len(node.shape) <= 2:
            continue
        stem = key.removesuffix(".data")
        times, rate = (
            next((vectors[name] for end in endings if (name := f"{stem}{end}") in vectors), None)
            for endings in (_TIME_ENDINGS, _RATE_ENDINGS)
        )
        start, hz, at_edges = 0.0, 1.0, False
        if times is not None:
            n = times.shape[0]
        elif rate is not None or "rate" in _attrs(node):
            hz = float(rate[:][0] if rate is not None else _attrs(node)["rate"])
            n = max(node.shape)
        elif isinstance(spikes, BinnedSpikes):
            start, hz, at_edges, n = spikes.start, 1 / spikes.bin_s, True, spikes.n_bins
        elif shared is not None:
            times = vectors[shared]
            n = times.shape[0]
        else:
            continue
        if n > 1 and n in node.shape:
            axes: tuple[str, ...] = ("time", "channel") if len(node.shape) == 2 else ("time",)
            axes = axes[::-1] if node.shape[0] != n else axes
            series[stem] = Series(node, axes, times, start, hz, at_edges=at_edges, clock=clock)
    return series


def _attrs(node: AnyArray) -> Mapping[str, Any]:
    """Return the notes that a file keeps with an array; arrays in memory have none."""
    return node.attrs if isinstance(node, StoredArray) else {}


# ---- which array holds the spikes, what its axes and bins are ------------------------------------


# Spikes with the keys they were read from, the units' names (may be empty) and notes.
_Spikes = tuple[SpikeTimes | BinnedSpikes, set[str], Array, list[str]]
# Splits a list by unit, and names the units (may be empty).
_Split = Callable[[AnyArray], tuple[list[AnyArray], Array]]


def _spikes_key(source: _Source) -> str:
    """Return the key that holds the spikes, or raise an error that lists all keys."""
    tree = source.tree
    if source.options.spikes:
        return source.key(source.options.spikes)
    if "train_encod_data" in tree:
        raise UserError(
            f"{source.file} is a data file already: train on it, or check it with lfads check."
        )
    candidates = {
        key: node
        for key, node in tree.items()
        if isinstance(node, Ragged) or (node.dtype.kind in "buif" and node.shape)
    }
    for name in _SPIKES:
        keys = [key for key in candidates if _last(key) == name]
        if len(keys) == 1:
            return keys[0]
    likely = [
        k for k, node in candidates.items() if isinstance(node, Ragged) or not is_vector(node)
    ]
    if len(likely) == 1:
        return likely[0]
    arrays = [
        f"{k} ({len(n.rows)} arrays)"
        if isinstance(n, Ragged)
        else f"{k} ({show_shape(n.shape)} {n.dtype})"
        for k, n in tree.items()
    ]
    raise UserError(
        f"{source.file}: which array holds the spikes is unclear; name it with --spikes. It has: "
        f"{list_some(arrays, 20) or 'nothing'}."
    )


def _find_spikes(source: _Source, name: str) -> _Spikes:
    """Describe an array as spikes, or raise an error where axes, bins or units are unclear."""
    node, clock, notes = source.tree[name], source.options.clock(), [f"spike times: {name!r}"]
    nameless = np.empty(0, dtype=str)
    if isinstance(node, Ragged):
        long = [i for i, row in enumerate(node.rows) if not is_vector(row)]
        if long:
            raise DataError(
                f"{source.file}: {name!r} holds arrays of several dimensions (entry {long[0]}: "
                f"{show_shape(node.rows[long[0]].shape)}); spike times are one list per unit. "
                "Binned trials of one length go into one array of trials x bins x units."
            )
        times = SpikeTimes([flat(row) for row in node.rows], clock)
        used = {name} | _add_spike_trials(source, name, times, notes, lambda a: ([a], nameless))
        return times, used, np.array(node.names, dtype=str), notes
    if node.dtype.kind not in "buif":
        raise UserError(f"{source.file}: {name!r} holds {node.dtype}, not numbers (--spikes).")
    if is_vector(node) and not source.options.axes:
        split, used = _splitter(source, name)
        units, names = split(source.vectors[name])
        times = SpikeTimes(units, clock)
        used |= _add_spike_trials(source, name, times, notes, split)
        return times, used, names, notes
    axes, time_name = _axes(source, name, node)
    bin_s, start, notes = _bin_width(source, name, node, time_name)
    given = "by --axes" if source.options.axes else "if not, say so with --axes"
    notes.insert(
        0, f"binned spikes: {name!r}, {show_shape(node.shape)}, as {' x '.join(axes)} ({given})"
    )
    spikes = BinnedSpikes(node, axes, bin_s, start)
    return spikes, {name, time_name or name}, nameless, notes


def _add_spike_trials(
    source: _Source, name: str, spikes: SpikeTimes, notes: list[str], split: _Split
) -> set[str]:
    """Add the trial of each spike, where an array of the size of the spikes says it."""
    stem = name.rpartition(".")[0]
    keys = [f"{stem}.{k}" if stem else k for k in TRIAL_OF_SPIKE]
    keys += [f"{name}_{k}" for k in ("trial", "trials", "trial_id")]
    if source.options.spike_trials:
        keys = [source.key(source.options.spike_trials)]
    sizes = [(spikes.count(unit),) for unit in range(spikes.n_units)]
    n_spikes = sum(n for (n,) in sizes)
    for key in keys:
        other, trials = source.tree.get(key), list[AnyArray]()
        if isinstance(other, Ragged):
            trials = [flat(row) for row in other.rows]
        elif key in source.vectors and source.vectors[key].shape == (n_spikes,):
            trials = split(source.vectors[key])[0]
        if trials and [row.shape for row in trials] == sizes:
            spikes.trials = trials
            notes.append(f"trial of each spike: {key!r}")
            return {key}
        if source.options.spike_trials:
            raise DataError(
                f"{source.file}: {key!r} (--spike-trials) has other sizes than {name!r}; it needs "
                f"one entry for each of the {n_spikes} spikes."
            )
    return set()


def _splitter(source: _Source, name: str) -> tuple[_Split, set[str]]:
    """Return what splits a list of all spikes by unit, and the keys that it takes for it.

    An index gives the ends of the units, or a second list the unit of each spike.
    """
    vectors, times = source.vectors, source.vectors[name]
    nameless = np.empty(0, dtype=str)
    if (index := vectors.get(f"{name}_index")) is not None:
        ends = index[:]
        return lambda array: (split_by_index(array, ends), nameless), {name, f"{name}_index"}
    if source.options.spike_units:
        keys = [source.key(source.options.spike_units)]
    else:
        stem = name.rpartition(".")[0]
        keys = [f"{stem}.{k}" if stem else k for k in _UNIT_OF_SPIKE]
    for key in keys:
        if (owner := vectors.get(key)) is None:
            continue
        if owner.shape == times.shape:
            return partial(_group, owner), {name, key}
        if source.options.spike_units:
            raise DataError(
                f"{source.file}: {key!r} has {owner.shape[0]} entries, {name!r} has "
                f"{times.shape[0]} spikes; legal is one unit for each spike."
            )
    return lambda array: ([array], nameless), {name}


def _group(owner: AnyArray, array: AnyArray) -> tuple[list[AnyArray], Array]:
    return group_by_unit((unit, array[rows]) for rows, unit in blocks(owner))


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


def _axes(source: _Source, name: str, node: AnyArray) -> tuple[tuple[str, ...], str | None]:
    """Return the axes of binned spikes, and the key of the bins' times where the file has them."""
    options, shape = source.options, node.shape
    times = {key: v.shape[0] for key, v in source.vectors.items() if _last(key) in TIMES}
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
        # Where no array of times decides, the longer axis is time: a recording has more bins than
        # units.
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
    source: _Source, name: str, node: AnyArray, time_name: str | None
) -> tuple[float, float, list[str]]:
    """Return bin width and left edge of the first bin in seconds, and what was assumed."""
    scalars = {
        key.rpartition(".")[2]: float(vector[:][0])
        for key, vector in source.vectors.items()
        if vector.shape[0] == 1 and vector.dtype.kind in "uif"
    }
    start, width_s, notes = 0.0, None, []
    times = source.vectors[time_name] if time_name else None
    if times is not None and times.shape[0] > 1:
        seconds = source.options.clock().seconds(times[:])
        steps = np.diff(seconds)
        start, width_s = float(seconds[0]), float(np.median(steps))
        if not width_s > 0:
            raise DataError(f"{source.file}: {time_name!r} does not ascend.")
        # The median of differences carries rounding errors of the times.
        width_s = float(f"{width_s:.7g}")
        if np.abs(steps - width_s).max() > 0.01 * width_s:
            notes.append(
                f"{time_name!r} has steps of {steps.min() * 1000:g} to {steps.max() * 1000:g} ms; "
                "the bins are taken to adjoin"
            )
    # What the user says wins over the array, this over the file, and times come last.
    width_ms = source.options.input_bin_ms or bin_width_ms(_attrs(node))
    width_ms = width_ms or bin_width_ms(source.attrs) or bin_width_ms(scalars)
    if width_ms is not None:
        number("--input-bin-ms", width_ms, above=0)
    if width_ms is None and width_s is None:
        raise UserError(
            f"{source.file}: the bin width of {name!r} is unknown: the file has neither an "
            "attribute bin_ms nor an array of times. Give it with --input-bin-ms."
        )
    bin_s = width_ms / 1000 if width_ms is not None else float(width_s or 0)
    notes.append(f"its bins: {bin_s * 1000:g} ms, from {start:g} s on")
    return bin_s, start, notes


# ---- spikes in any order, sorted by unit without holding them all in memory ----------------------


class _Runs:
    """Reader of one unit's spikes: runs of a shared temporary file, or arrays in memory."""

    def __init__(self, file: Any, dtype: np.dtype[Any]) -> None:
        self.file, self.dtype = file, dtype
        self.runs: list[tuple[int, int] | Array] = []  # in the file: first spike and how many

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(len(r) if isinstance(r, np.ndarray) else r[1] for r in self.runs),)

    def read(self, rows: slice) -> Array:
        size, pieces, before = self.dtype.itemsize, [np.empty(0, self.dtype)], 0
        for run in self.runs:
            length = len(run) if isinstance(run, np.ndarray) else run[1]
            a, b = max(rows.start - before, 0), min(rows.stop - before, length)
            if a < b:
                if isinstance(run, np.ndarray):
                    pieces.append(run[a:b])
                else:
                    self.file.seek(size * (run[0] + a))
                    pieces.append(np.frombuffer(self.file.read(size * (b - a)), self.dtype))
            before += length
        return np.concatenate(pieces)


def group_by_unit(pairs: Iterable[tuple[Array, Array]]) -> tuple[list[AnyArray], Array]:
    """Sort spikes by unit; return the times of each unit, in their order, and the units, sorted.

    `pairs` are arrays of one length, block after block: the unit of each spike and its time.
    """
    # A list in order of time mixes all units. Each block of it is sorted by unit and written, and a
    # unit keeps the places of its runs: no spike is read twice, and few are in memory.
    file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the arrays that read it
    units: dict[Any, _Runs] = {}
    written, kept = 0, 0
    for owner, times in pairs:
        order = np.argsort(owner, kind="stable")
        # The type stays as it is stored: it says how exact the times are.
        owner, times = owner[order], times[order]
        kept += len(times)
        edges = np.flatnonzero(np.concatenate([[True], owner[1:] != owner[:-1]]))
        for a, b in zip(edges, [*edges[1:], len(owner)], strict=True):
            label = owner[a].item()
            runs = units.setdefault(label, _Runs(file, times.dtype)).runs
            runs.append(times[a:b].copy() if kept <= _IN_MEMORY else (written + int(a), int(b - a)))
        if kept > _IN_MEMORY:
            file.seek(times.itemsize * written)
            file.write(times.tobytes())
            written += len(times)
    labels = sorted(units)
    return [StoredArray(units[label]) for label in labels], np.array(labels)
