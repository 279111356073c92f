"""Which arrays of a file hold the spikes, and what they are: times or bins, by unit or by trial."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from ...data.find import list_some
from ...data.read import bin_width_ms
from ...data.stored import StoredArray, blocks, flat
from ...data.validate import show_shape
from ...errors import DataError, UserError, number
from ..binning import Array, Floats, Indices
from .axes import (
    OF_UNIT,
    Axes,
    Hints,
    ask,
    choose,
    gather_hints,
    has_equal_steps,
    is_times,
    parse_axes,
    readings,
)
from .grouping import group_by_unit, split_by_index
from .recording import UNIT_S, AnyArray, BinnedSpikes, Clock, SpikeTimes, Table
from .time_unit import judge, sample_list
from .timeline import TRIAL_OF_SPIKE
from .tree import (
    SPIKES,
    TRIALS,
    UNITS,
    Node,
    Ragged,
    Source,
    Tree,
    is_regular,
    is_vector,
    last_name,
    siblings,
)
from .trialwise import BinTimes, Joined, Part, Trials, bin_times, of_rows
from .trialwise import describe as _sizes

UNIT_OF_SPIKE = ("unit", "units", "unit_ids", "spike_units", "spike_clusters", "clusters")
"""Names of an array that holds the unit of each spike."""

# Names that likely hold spikes, and names about spikes that hold something else.
_LIKE_SPIKES = re.compile(r"spike|spk|raster|spiking|binned|crossings", re.IGNORECASE)
_NOT_SPIKES = re.compile(
    r"index|unit|cluster|templ|amp|depth|wave|label|guide|chan|name|size|width|rate|quality|ids?$"
    r"|hz$|ms$",
    re.IGNORECASE,
)
# Fields beside the spikes of an entry that say whether entries are trials or units.
_OF_TRIAL = re.compile(r"trial|target|cond|^go|move|cue|reward|success|event|idx_|stim|block", re.I)

_BIN_WIDTH = re.compile(
    r"(bin_?(size|width|length|s|dur(ation)?)?|dt|delta_?t)(_?(?P<unit>ms|s|sec))?"
)
_BIN_RATE = re.compile(r"fs|s_?rate|sampl(e|ing)_?(rate|freq(uency)?)(_?hz)?|hz|bin_?rate")
_SAMPLING = re.compile(r"fs|sr|sfreq|hz|s_?rate|sampl(e|ing)_?(rate|freq(uency)?|hz)(_?hz)?")
_LONG = 1 << 21  # spikes that take a second to group
_LONGEST_BIN_S = 0.5  # a width above is a number of milliseconds
_FASTEST_HZ = 2000.0  # a rate above is of the voltages, not of bins


@dataclass
class SpikesRead:
    """Spikes with the keys they were read from, and where trials are if stored trial by trial."""

    spikes: SpikeTimes | BinnedSpikes
    used: set[str]
    units: Table = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    trials: Trials | None = None  # of binned spikes
    n_trials: int = 0  # of spikes that are stored trial by trial


def attrs_of(node: Any) -> Mapping[str, Any]:
    """Return the notes that a file keeps with an array; arrays in memory have none."""
    return node.attrs if isinstance(node, StoredArray) else {}


def spikes_keys(source: Source) -> list[str]:
    """Return the keys that hold the spikes, or raise an error that lists all keys."""
    tree = source.tree
    if source.options.spikes:
        return [source.key(word.strip()) for word in source.options.spikes.split(",")]
    if "train_encod_data" in tree:
        raise UserError(
            f"{source.file} is a data file already: train on it, or check it with lfads check."
        )
    candidates = {
        key: node
        for key, node in tree.items()
        if not _is_time_base(key, node)
        and (isinstance(node, Ragged) or (node.dtype.kind in "buif" and node.shape))
    }
    for name in SPIKES:
        keys = [key for key in candidates if last_name(key) == name]
        if len(keys) == 1:
            return keys
    within = [k for k in candidates if is_times(k) and last_name(k.rpartition(".")[0]) in SPIKES]
    if len(within) == 1:  # spikes.times beside spikes.clusters
        return within
    named = [
        key
        for key in candidates
        if _LIKE_SPIKES.search(last_name(key)) and not _NOT_SPIKES.search(last_name(key))
    ]
    if len(named) == 1:
        return named
    likely = [
        key
        for key, node in candidates.items()
        if (not node.problem if isinstance(node, Ragged) else not is_vector(node))
    ]
    # Calcium and EMG are no counts and may be meant; a position is not, so they are asked about.
    if len(likely) == 1 and not named and _hold_whole_numbers(candidates[likely[0]]):
        return likely
    arrays = [
        f"{k} ({show_shape(n.shape)} arrays)"
        if isinstance(n, Ragged)
        else f"{k} ({show_shape(n.shape)} {n.dtype})"
        for k, n in tree.items()
    ]
    how = "name it with --spikes"
    if named:
        how += f", such as --spikes {last_of(named[0])}, or join several as units: --spikes "
        how += ",".join(map(last_of, named))
    raise UserError(
        f"{source.file}: which array holds the spikes is unclear; {how}. It has: "
        f"{list_some(arrays, 20) or 'nothing'}."
    )


def _hold_whole_numbers(node: Node) -> bool:
    """Return whether an array may hold counts; lists may hold times."""
    if isinstance(node, Ragged):
        return True
    some: Array = np.asarray(node[:1000])
    known = some[np.isfinite(some)] if some.dtype.kind == "f" else some
    return bool((known == np.floor(known)).all() and (known >= 0).all())


def last_of(key: str) -> str:
    """Return the last name of a path as it is written."""
    return key.rpartition(".")[2]


def _is_time_base(key: str, node: Node) -> bool:
    """Return whether an array holds times in equal steps: those of samples, never of spikes."""
    if last_name(key) in SPIKES:
        return False
    if isinstance(node, Ragged):
        long = [flat(row) for row in node.rows[:20] if np.prod(row.shape) >= 10]
        return bool(long) and is_times(key) and all(map(has_equal_steps, long))
    if not is_vector(node) or node.dtype.kind not in "uif" or np.prod(node.shape) < 10:
        return False
    return has_equal_steps(flat(node))


def read_spikes(source: Source, keys: Sequence[str]) -> SpikesRead:
    """Describe arrays as spikes, or raise an error where axes, bins or units are unclear."""
    for key in keys:
        node = source.tree[key]
        if isinstance(node, Ragged) and node.problem:
            raise DataError(
                f"{source.file}: {key!r} {node.problem}; legal are arrays, or as many lists of "
                "spike times (one for each unit) in each entry."
            )
        if not isinstance(node, Ragged) and node.dtype.kind not in "buif":
            raise UserError(f"{source.file}: {key!r} holds {node.dtype}, not numbers (--spikes).")
        if _is_time_base(key, node):
            raise UserError(
                f"{source.file}: {key!r} ascends in equal steps: these are times of samples or "
                "bins, not of spikes. Name another array with --spikes."
            )
    padded = [key for key in keys if _split_padded(source, key)]
    binned = [_is_binned(source, key) for key in keys]
    if any(binned) and not all(binned):
        raise UserError(
            f"{source.file}: of --spikes {','.join(keys)} some hold times, some bins; name those "
            "of one kind."
        )
    read = _read_bins(source, keys) if binned[0] else _read_times(source, keys)
    read.notes += [f"{key!r} is a list of times in each row, filled up behind" for key in padded]
    if len(keys) > 1:
        read.notes.insert(0, f"units of {list_some(list(keys))} are joined, in this order")
    return read


def _split_padded(source: Source, key: str) -> bool:
    """Make lists of an array along one axis of which there are times, with NaN or 0 behind."""
    node = source.tree[key]
    if isinstance(node, Ragged) or is_vector(node) or len(node.shape) not in (2, 3):
        return False
    if np.prod(node.shape) > _LONG or (len(node.shape) == 2 and source.options.axes):
        return False
    values: Array = np.asarray(node[:], dtype=np.float64)
    for axis in (-1, 0):
        lists = np.moveaxis(values, axis, -1)
        matrix = lists.reshape(-1, lists.shape[-1])
        known = np.isfinite(matrix) & ((matrix != 0) | np.isnan(matrix[:, -1:]))
        lengths = known.sum(axis=1)
        # Counts repeat and fall, and what is sampled has no end of its own.
        if lengths.max() <= 2 or (lengths == matrix.shape[1]).all():
            continue
        if not (known == (np.arange(matrix.shape[1]) < lengths[:, None])).all():
            continue
        rows = [row[:n] for row, n in zip(matrix, lengths, strict=True)]
        long = [row for row in rows if len(row) > 2]
        if all((np.diff(row) > 0).all() for row in rows) and not all(map(is_regular, long)):
            arrays = [np.asarray(row, dtype=node.dtype) for row in rows]
            source.tree[key] = Ragged(arrays, shape=lists.shape[:-1])
            return True
    return False


def _is_binned(source: Source, key: str) -> bool:
    node = source.tree[key]
    if isinstance(node, Ragged):
        return not all(is_vector(row) for row in node.rows) or _hold_counts(node)
    if not is_vector(node) or (source.options.axes and len(node.shape) > 1):
        return True
    # One list of all spikes has the unit of each beside it.
    is_list = "time" in key.lower() or len(_splitter(source, key)[1]) > 1
    return not is_list and _hold_counts(Ragged([node]))


def _hold_counts(ragged: Ragged) -> bool:
    """Return whether lists hold counts by bin: whole numbers that do not ascend, in most."""
    rows = [flat(row)[:_LONG] for row in ragged.rows[:100]]
    rows = [row for row in rows if len(row) > 2 and row.dtype.kind in "buif"]
    counts = [
        (row == np.floor(row)).all()
        and (row >= 0).all()
        and not (np.diff(row.astype(float)) > 0).all()
        for row in rows
    ]
    small = all(row.max() < 1000 for row in rows)
    return bool(rows) and small and sum(counts) > len(rows) / 2


def _areas(keys: Sequence[str], widths: Sequence[int]) -> Table:
    """Return from which array each unit is, where several are joined."""
    if len(keys) < 2:
        return {}
    names = [
        re.sub(r"_?(spike_?times|spikes?|counts|raster)$", "", last_of(k), flags=re.I) for k in keys
    ]
    return {"area": np.repeat([n or last_of(k) for n, k in zip(names, keys, strict=True)], widths)}


# ---- spike times ---------------------------------------------------------------------------------

# Splits a list by unit, and names the units (may be empty).
_Split = Callable[[AnyArray], tuple[list[AnyArray], Array]]
_NAMELESS = np.empty(0, dtype=str)


def _unsplit(array: AnyArray) -> tuple[list[AnyArray], Array]:
    return [array], _NAMELESS


def _read_times(source: Source, keys: Sequence[str]) -> SpikesRead:
    clock, notes = source.options.clock(), [f"spike times: {list_some([repr(k) for k in keys])}"]
    units: list[AnyArray] = []
    used, names, widths = set(keys), [], []
    by_trial: list[tuple[AnyArray, Indices]] = []
    trials_of: list[AnyArray] = []
    n_trials = 0
    for key in keys:
        node = source.tree[key]
        if not isinstance(node, Ragged):
            split, more = _splitter(source, key)
            _check_unit(source, key, more)
            listed, labels = split(source.vectors[key])
            used |= more | _add_trials_of(source, key, listed, trials_of, notes, split)
            units += listed
            names += labels.tolist()
            widths.append(len(listed))
            continue
        rows = [flat(row) for row in node.rows]
        axes, why = _entries(source, key, node)
        if "trial" not in axes:
            used |= _add_trials_of(source, key, rows, trials_of, notes, _unsplit)
            units += rows
            names += node.names
            widths.append(len(rows))
            continue
        notes.append(f"{key!r}, {show_shape(node.shape)} lists, as {' x '.join(axes)}" + why)
        n = node.shape[axes.index("trial")]
        if n_trials not in (0, n):
            raise DataError(
                f"{source.file}: {list_some(list(keys))} have {n_trials} and {n} trials."
            )
        n_trials = n
        if len(axes) == 2:
            grid = np.arange(len(rows)).reshape(node.shape)
            grid = grid if axes[0] == "trial" else grid.T
            new: list[tuple[AnyArray, Indices]] = [
                _join([rows[i] for i in column]) for column in grid.T
            ]
        else:
            new, more, labels = _units_of_trials(source, key, rows)
            used |= more
            names += labels.tolist()
        by_trial += new
        widths.append(len(new))
    table: Table = {"name": np.array(names)} if len(names) == sum(widths) else {}
    table |= _areas(keys, widths)
    if not by_trial:
        times = SpikeTimes(units, clock)
        times.trials = trials_of if len(trials_of) == len(units) else None
        return SpikesRead(times, used, table, notes)
    if units:
        raise UserError(f"{source.file}: of {list_some(list(keys))} not all are stored by trial.")
    times = SpikeTimes([u for u, _ in by_trial], clock, None, [t for _, t in by_trial], True)
    return SpikesRead(times, used, table, notes, n_trials=n_trials)


def sampling_hz(source: Source) -> float | None:
    """Return the sampling rate that the file states, by an attribute or an array of one entry."""
    scalars: dict[str, Any] = {str(name).lower(): value for name, value in source.attrs.items()}
    for key, vector in source.vectors.items():
        if vector.shape[0] == 1 and vector.dtype.kind in "uif":
            scalars.setdefault(last_name(key), vector[:][0])
    rates = [np.ravel(scalars[name]) for name in scalars if _SAMPLING.fullmatch(name)]
    # Behaviour, bins and field potentials come at lower rates than spikes are sampled.
    return next((float(r[0]) for r in rates if r.dtype.kind in "uif" and r[0] > 5e3), None)


def _check_unit(source: Source, name: str, used: set[str]) -> None:
    """Refuse times in an unknown unit before a long list is grouped, which takes a while."""
    times = source.vectors[name]
    owners = [key for key in used if key not in (name, f"{name}_index")]
    trials = [k for k in source.tree if last_name(k) in TRIAL_OF_SPIKE]
    of_trials = trials or source.options.spike_trials
    if not owners or of_trials or times.shape[0] < _LONG or source.options.time_unit:
        return
    hz = source.options.sampling_hz or sampling_hz(source)
    if refusal := judge(sample_list(times, source.vectors[owners[0]]), hz).refusal:
        raise UserError(f"{source.file}: {refusal}")


def _join(rows: Sequence[AnyArray]) -> tuple[Array, Indices]:
    """Return the spikes of a unit of all trials, and the trial of each."""
    arrays = [row[:] for row in rows]
    trials = np.repeat(np.arange(len(arrays)), [len(a) for a in arrays])
    # Empty lists are float64 whatever the others are, and would change the type of all.
    return np.concatenate([a for a in arrays if len(a)] or arrays[:1]), trials


def _units_of_trials(
    source: Source, key: str, rows: Sequence[AnyArray]
) -> tuple[list[tuple[AnyArray, Indices]], set[str], Array]:
    """Split the spikes of each trial by a list with the unit of each, where there is one."""
    times, trials = _join(rows)
    owners = {f"{key.rpartition('.')[0]}.{name}".lstrip("."): None for name in UNIT_OF_SPIKE}
    if source.options.spike_units:
        owners = {source.key(source.options.spike_units): None}
    for name in owners:
        node = source.tree.get(name)
        if isinstance(node, Ragged) and _same_sizes(node, Ragged(rows)):
            owner = np.concatenate([flat(row)[:] for row in node.rows])
            labels = np.unique(owner)
            units = [(times[owner == one], trials[owner == one]) for one in labels]
            return list(units), {name}, labels
    return [(times, trials)], set(), _NAMELESS


def _entries(source: Source, key: str, node: Ragged) -> tuple[Axes, str]:
    """Return whether lists of times are an entry for each unit, trial, or both, and why."""
    what = f"{source.file}: {key!r}, lists of spike times"
    single: list[Axes] = [("unit",), ("trial",)]
    double: list[Axes] = [("trial", "unit"), ("unit", "trial")]
    if len(node.shape) > 2:
        raise DataError(
            f"{what}, has {len(node.shape)} axes ({show_shape(node.shape)}); legal are lists by "
            "unit, by trial, or by trial and unit."
        )
    legal = single if len(node.shape) == 1 else double
    if source.options.axes:
        return parse_axes(source.options.axes, repr(key), node.shape, legal), " (by --axes)"
    hints = gather_hints(source, {key})
    if len(node.shape) == 2:
        for name, other in siblings(source.tree, key):
            if isinstance(other, Ragged) and other.shape == node.shape[:1]:
                role = "unit" if OF_UNIT.search(name) else "trial"
                hints.add(role, node.shape[0], f"{name!r} is beside it in each", sure=False)
        axes, why = choose(what, node.shape, double, hints)
        return axes, f" ({why})"
    stem = last_name(key.rpartition(".")[0]) or last_name(key)
    lists = {n for n, other in siblings(source.tree, key) if _same_sizes(other, node)}
    lower = {name.lower() for name in lists}
    if source.options.spike_trials or lower & set(TRIAL_OF_SPIKE):
        return ("unit",), ""
    if lower & set(UNIT_OF_SPIKE):
        return ("trial",), " (each with the unit of its spikes)"
    beside = [name for name, _ in siblings(source.tree, key) if name not in lists]
    if stem in UNITS or any(n == node.shape[0] for n in hints.sure.get("unit", ())):
        return ("unit",), ""
    if stem in TRIALS:
        return ("trial",), f" ({stem!r} has an entry for each)"
    of_trial = any(_OF_TRIAL.search(name) for name in beside)
    of_unit = any(OF_UNIT.search(name) for name in beside)
    if of_unit and not of_trial:
        return ("unit",), ""
    if of_trial and not of_unit:
        return ("trial",), f" (beside {list_some(beside)})"
    reason = hints.sure.get("trial", {}).get(node.shape[0])
    if reason or of_trial:
        raise UserError(ask(what, node.shape, single, [reason or f"beside {list_some(beside)}"]))
    return ("unit",), ""


def _add_trials_of(
    source: Source,
    name: str,
    units: Sequence[AnyArray],
    trials_of: list[AnyArray],
    notes: list[str],
    split: _Split,
) -> set[str]:
    """Add the trial of each spike, where an array of the size of the spikes says it."""
    stem = name.rpartition(".")[0]
    keys = [f"{stem}.{k}" if stem else k for k in TRIAL_OF_SPIKE]
    keys += [f"{name}_{k}" for k in ("trial", "trials", "trial_id")]
    if source.options.spike_trials:
        keys = [source.key(source.options.spike_trials)]
    sizes = [unit.shape for unit in units]
    n_spikes = sum(n for (n,) in sizes)
    for key in keys:
        other, trials = source.tree.get(key), list[AnyArray]()
        if isinstance(other, Ragged):
            trials = [flat(row) for row in other.rows]
        elif key in source.vectors and source.vectors[key].shape == (n_spikes,):
            trials = split(source.vectors[key])[0]
        if trials and [row.shape for row in trials] == sizes:
            trials_of += trials
            notes.append(f"trial of each spike: {key!r}")
            return {key}
        if source.options.spike_trials:
            raise DataError(
                f"{source.file}: {key!r} (--spike-trials) has other sizes than {name!r}; it needs "
                f"one entry for each of the {n_spikes} spikes."
            )
    return set()


def _same_sizes(other: Node, node: Ragged) -> bool:
    """Return whether lists have an entry for each entry of others."""
    return isinstance(other, Ragged) and [int(np.prod(r.shape)) for r in other.rows] == [
        int(np.prod(r.shape)) for r in node.rows
    ]


def _splitter(source: Source, name: str) -> tuple[_Split, set[str]]:
    """Return what splits a list of all spikes by unit, and the keys that it takes for it.

    An index gives the ends of the units, or a second list the unit of each spike.
    """
    vectors, times = source.vectors, source.vectors[name]
    if (index := vectors.get(f"{name}_index")) is not None:
        ends = index[:]
        return lambda array: (split_by_index(array, ends), _NAMELESS), {name, f"{name}_index"}
    if source.options.spike_units:
        keys = [source.key(source.options.spike_units)]
    else:
        stem = name.rpartition(".")[0]
        keys = [f"{stem}.{k}" if stem else k for k in UNIT_OF_SPIKE]
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
    return _unsplit, {name}


def _group(owner: AnyArray, array: AnyArray) -> tuple[list[AnyArray], Array]:
    return group_by_unit((unit, array[rows]) for rows, unit in blocks(owner))


# ---- binned spikes -------------------------------------------------------------------------------


def _read_bins(source: Source, keys: Sequence[str]) -> SpikesRead:
    """Describe binned spikes; arrays of several keys are joined along their units."""
    parts, notes, used = [], [], set(keys)
    for key in keys:
        node = source.tree[key]
        array, axes, why = _binned(source, key, node)
        parts.append(Part(array, axes))
        order = ("trial", *axes) if isinstance(array, Ragged) else axes
        size = _sizes(node) if isinstance(node, Ragged) else show_shape(node.shape)
        notes.append(f"binned spikes: {key!r}, {size}, as {' x '.join(order)} ({why})")
    lengths = parts[0].lengths()
    for key, one in zip(keys, parts, strict=True):
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
    units = _areas(keys, [one.width() for one in parts])
    trials = Trials(lengths, bins.width_s, -bins.starts)
    by_trial = isinstance(parts[0].array, Ragged) or "trial" in parts[0].axes
    if not by_trial:
        return SpikesRead(_continuous(parts, bins), used, units, notes)
    if len(set(lengths.tolist())) > 1:
        notes.append(
            f"trials of {lengths.min()} to {lengths.max()} bins: what a short one lacks is missing"
        )
    array = trials.pad(parts)
    spikes = BinnedSpikes(array, ("trial", "time", "unit"), bins.width_s)
    return SpikesRead(spikes, used, units, notes, trials, len(lengths))


def _by_distance(source: Source, key: str) -> list[str]:
    """Return the keys of a file, those in the same group or struct first."""
    stem = key.rpartition(".")[0]
    return sorted(source.tree, key=lambda other: not (stem and other.startswith(f"{stem}.")))


def _continuous(parts: Sequence[Part], bins: Bins) -> BinnedSpikes:
    first, axes = parts[0].array, parts[0].axes
    if isinstance(first, Ragged):
        raise TypeError("a list of arrays has an entry for each trial")
    start = float(bins.starts[0])
    if len(parts) == 1 and "unit" in axes:
        return BinnedSpikes(first, axes, bins.width_s, start)
    return BinnedSpikes(StoredArray(Joined(parts)), ("time", "unit"), bins.width_s, start)


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
        if _LIKE_SPIKES.search(last_name(other)) or OF_UNIT.search(last_name(other)):
            continue
        rest = [n for n in shape if n not in node.shape]
        if len(rest) == 1 and shape.count(rest[0]) == 1:
            why = f"{other!r} ({show_shape(node.shape)}) shares the other axes"
            hints.add("unit", rest[0], why, sure=False)


def _binned_rows(source: Source, key: str, node: Ragged) -> tuple[AnyArray | Ragged, Axes, str]:
    """Return binned spikes that are a list of arrays; see `_binned`."""
    text = source.options.axes
    if all(is_vector(row) for row in node.rows) and _hold_counts(node):
        if len(node.shape) == 1:
            return _single_units(source, key, node)
        axes, why = _entries(source, key, node)
        grid = np.arange(len(node.rows)).reshape(node.shape)
        grid = grid if axes[0] == "trial" else grid.T
        rows = [_stacked([flat(node.rows[i])[:] for i in trial], key) for trial in grid]
        return of_rows(Ragged(rows), ("unit", "time")).array, ("unit", "time"), why.strip(" ()")
    filled = [row.shape for row in node.rows if 0 not in row.shape]
    if any(len(shape) != 2 for shape in filled) or len(node.shape) > 1:
        raise DataError(
            f"{source.file}: {key!r} holds {_sizes(node)}; legal are lists of spike times, or an "
            "array of units x bins (or bins x units) for each trial."
        )
    legal: list[Axes] = [("unit", "time"), ("time", "unit")]
    if text and text.count(",") == 1:
        axes = parse_axes(text, repr(key), filled[0], legal)
        return of_rows(node, axes).array, axes, "by --axes"
    shapes = np.array(filled)
    varying = np.flatnonzero((shapes != shapes[0]).any(axis=0)).tolist()
    if varying and not text and not _is_by_unit(source, key, node):
        axes = legal[0] if varying[-1] == 1 else legal[1]
        part = of_rows(node, axes)
        return part.array, axes, "trials share the number of units, not that of bins"
    if varying and (not text or not text.startswith("trial")):
        raise DataError(
            f"{source.file}: {key!r} holds {_sizes(node)}, an entry for each unit; legal are the "
            "same trials and bins for all units, or an entry for each trial (--axes)."
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
    beside = dict(siblings(source.tree, key))
    hints = gather_hints(source, {key, *(k for k in source.tree if last_of(k) in beside)})
    for name, other in beside.items():
        if not isinstance(other, Ragged) or other.shape != node.shape:
            continue
        sizes = {n for row in other.rows for n in row.shape}
        shared = [n for n in shape[1:] if n in sizes]
        if len(shared) == 1 and all(shared[0] in row.shape for row in other.rows):
            role = "unit" if OF_UNIT.search(name) else "time"
            hints.add(role, shared[0], f"{name!r} has {shared[0]} in each, too", sure=False)
    for name, column in source.vectors.items():
        if last_of(name) in beside and column.shape == (len(node.rows),):
            sizes = {float(n) for n in column[:]} if column.dtype.kind in "uif" else set()
            place = [i for i in (0, 1) if sizes == {float(shape[1 + i])}]
            if len(place) == 1 and shape[1] != shape[2]:
                hints.add("time", shape[1 + place[0]], f"{name!r} is {shape[1 + place[0]]}")
    n = len(node.rows)
    columns = [
        name
        for name, one in beside.items()
        if (len(one.rows) if isinstance(one, Ragged) else one.size) == n
    ]
    outer, reason = _outer_axis(source, key, shape, hints, columns)
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
    """Return whether there is an array for each unit, by the units and trials of the file."""
    hints, n = gather_hints(source, {key}), len(node.rows)
    trials = {n for known in (hints.sure, hints.likely) for n in known.get("trial", {})}
    return n in hints.sure.get("unit", {}) and n not in trials


def _outer_axis(
    source: Source, key: str, shape: Sequence[int], hints: Hints, beside: list[str]
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
    of_trial = any(_OF_TRIAL.search(name) for name in beside)
    if beside and any(OF_UNIT.search(name) for name in beside) and not of_trial:
        return "unit", f"beside {list_some(beside)}"
    # A struct for each trial is usual; a bare list says nothing.
    return ("trial", f"beside {list_some(beside)}") if beside else (None, "")


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
        beside = {k for k in source.tree if last_of(k) in dict(siblings(source.tree, key))}
        axes, why = choose(f"{source.file}: {key!r}", shape, legal, gather_hints(source, beside))
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


def _width_of(name: str, value: float) -> tuple[float, str] | None:
    """Return the bin width in seconds that a number means by its name, and how it was read."""
    if not np.isfinite(value) or value <= 0:
        return None
    if match := _BIN_WIDTH.fullmatch(name.lower()):
        unit = match["unit"] or ("s" if value < _LONGEST_BIN_S else "ms")
        return (value / 1000 if unit == "ms" else value), f"{name} = {value:g}, taken as {unit}"
    if _BIN_RATE.fullmatch(name.lower()) and 1 <= value <= _FASTEST_HZ:
        return 1 / value, f"{name} = {value:g}, taken as bins/s"
    return None


def _widths(source: Source, nodes: Tree) -> list[tuple[float, str]]:
    """Return the bin widths that numbers in the file give, those of the spikes' struct first."""
    widths = []
    for key, node in nodes.items():
        if isinstance(node, Ragged) or node.dtype.kind not in "uif" or not is_vector(node):
            continue
        if not (_BIN_WIDTH.fullmatch(last_name(key)) or _BIN_RATE.fullmatch(last_name(key))):
            continue
        values = np.unique(flat(node)[:])
        # One number, or the same in each trial.
        if len(values) == 1 and (width := _width_of(last_of(key), float(values[0]))):
            widths.append(width)
    return sorted(widths, key=lambda one: one[1].endswith("bins/s"))


def _bin_width(source: Source, key: str, timed: BinTimes | None, nodes: Tree) -> Bins:
    """Return the width of bins and where they begin, and what was assumed."""
    node, notes, options = source.tree[key], [], source.options
    width_ms = options.input_bin_ms or bin_width_ms(attrs_of(node)) or bin_width_ms(source.attrs)
    if width_ms is not None:
        number("--input-bin-ms", width_ms, above=0)
    stated = [(width_ms / 1000, "")] if width_ms is not None else _widths(source, nodes)
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
        step = float(np.median(steps))
        if not step > 0:
            raise DataError(f"{source.file}: {timed.key!r} does not ascend.")
        # The median of differences carries rounding errors of the times.
        step = float(f"{step:.7g}")
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
