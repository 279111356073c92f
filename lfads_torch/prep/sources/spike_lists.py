"""Lists of spike times: of each unit, of each trial, or of both; or one list of all spikes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from ...data.find import list_some
from ...data.stored import blocks, flat
from ...data.validate import show_shape
from ...errors import DataError, UserError
from ..binning import Array, Indices
from ..names import (
    BESIDE_SPIKES,
    CHANNEL_OF_SPIKE,
    OF_TRIAL,
    OF_UNIT,
    SAMPLING_RATE,
    TRIAL_OF_SPIKE,
    TRIALS,
    UNIT_OF_SPIKE,
    UNITS,
    first_of,
)
from .axes import Axes, ask, choose, gather_hints, parse_axes
from .grouping import group_by_unit, names_of_pairs, pair, split_by_index, unpair
from .recording import AnyArray, BinnedSpikes, SpikeTimes, Table
from .time_unit import judge, sample_list
from .tree import Node, Ragged, Source, column_name, last_name, last_of, siblings
from .trial_times import join_trials
from .trialwise import Trials

LONG = 1 << 21  # spikes that take a second to group


@dataclass
class SpikesRead:
    """Spikes with the keys they were read from, and where trials are if stored trial by trial."""

    spikes: SpikeTimes | BinnedSpikes
    used: set[str]
    units: Table = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    trials: Trials | None = None  # of binned spikes
    n_trials: int = 0  # of spikes that are stored trial by trial


def hold_counts(ragged: Ragged) -> bool:
    """Return whether lists hold counts by bin: whole numbers that do not ascend, in most."""
    rows = [flat(row)[:LONG] for row in ragged.rows[:100]]
    rows = [row for row in rows if len(row) > 2 and row.dtype.kind in "buif"]
    counts = [
        (row == np.floor(row)).all()
        and (row >= 0).all()
        and not (np.diff(row.astype(float)) > 0).all()
        for row in rows
    ]
    small = all(row.max() < 1000 for row in rows)
    return bool(rows) and small and sum(counts) > len(rows) / 2


def areas(keys: Sequence[str], widths: Sequence[int]) -> Table:
    """Return from which array each unit is, where several are joined."""
    if len(keys) < 2:
        return {}
    names = [
        re.sub(r"_?(spike_?times|spikes?|counts|raster)$", "", last_of(k), flags=re.I) for k in keys
    ]
    return {"area": np.repeat([n or last_of(k) for n, k in zip(names, keys, strict=True)], widths)}


# Splits a list by unit, and names the units (may be empty).
_Split = Callable[[AnyArray], tuple[list[AnyArray], Array]]
_NAMELESS = np.empty(0, dtype=str)
_ONE_UNIT = "none"  # as --spike-units


def _unsplit(array: AnyArray) -> tuple[list[AnyArray], Array]:
    return [array], _NAMELESS


def read_times(source: Source, keys: Sequence[str]) -> SpikesRead:
    """Describe lists of spike times; those of several keys are joined as units."""
    clock, notes = source.options.clock(), [f"spike times: {list_some([repr(k) for k in keys])}"]
    units: list[AnyArray] = []
    used, names, widths = set(keys), [], []
    by_trial: list[tuple[AnyArray, Indices]] = []
    trials_of: list[AnyArray] = []
    n_trials = 0
    for key in keys:
        node = source.tree[key]
        if not isinstance(node, Ragged):
            split, more = splitter(source, key)
            _check_unit(source, key, more)
            if len(more) == 1:
                _check_one_unit(source, key)
            elif owners := sorted(more - {key, f"{key}_index"}):
                notes.append(f"unit of each spike: {' and '.join(map(repr, owners))}")
            listed, labels = split(source.vectors[key])
            used |= more | _add_trials_of(source, key, listed, trials_of, notes, split)
            units += listed
            names += labels.tolist()
            widths.append(len(listed))
            continue
        rows = [flat(row) for row in node.rows]
        axes, why = entries(source, key, node)
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
                join_trials([rows[i] for i in column]) for column in grid.T
            ]
        else:
            new, more, labels = _units_of_trials(source, key, rows)
            used |= more
            names += labels.tolist()
        by_trial += new
        widths.append(len(new))
    table: Table = {"name": np.array(names)} if len(names) == sum(widths) else {}
    table |= areas(keys, widths)
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
    rates = [np.ravel(scalars[name]) for name in scalars if SAMPLING_RATE.fullmatch(name)]
    # Behaviour, bins and field potentials come at lower rates than spikes are sampled.
    return next((float(r[0]) for r in rates if r.dtype.kind in "uif" and r[0] > 5e3), None)


def _check_unit(source: Source, name: str, used: set[str]) -> None:
    """Refuse times in an unknown unit before a long list is grouped, which takes a while."""
    times = source.vectors[name]
    owners = [key for key in used if key not in (name, f"{name}_index")]
    trials = [k for k in source.tree if last_name(k) in TRIAL_OF_SPIKE]
    of_trials = trials or source.options.spike_trials
    if not owners or of_trials or times.shape[0] < LONG or source.options.time_unit:
        return
    hz = source.options.sampling_hz or sampling_hz(source)
    if refusal := judge(sample_list(times, source.vectors[owners[0]]), hz).refusal:
        raise UserError(f"{source.file}: {refusal}")


def _units_of_trials(
    source: Source, key: str, rows: Sequence[AnyArray]
) -> tuple[list[tuple[AnyArray, Indices]], set[str], Array]:
    """Split the spikes of each trial by a list with the unit of each, where the file has one."""
    times, trials = join_trials(rows)
    owners = {f"{key.rpartition('.')[0]}.{name}".lstrip("."): None for name in UNIT_OF_SPIKE}
    if source.options.spike_units not in (None, _ONE_UNIT):
        owners = {source.key(source.options.spike_units): None}
    for name in owners:
        node = source.tree.get(name)
        if isinstance(node, Ragged) and _same_sizes(node, Ragged(rows)):
            owner = np.concatenate([flat(row)[:] for row in node.rows])
            labels = np.unique(owner)
            units = [(times[owner == one], trials[owner == one]) for one in labels]
            return list(units), {name}, labels
    return [(times, trials)], set(), _NAMELESS


def entries(source: Source, key: str, node: Ragged) -> tuple[Axes, str]:
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
    if node.axes in legal:
        return node.axes, " (by the names of groups)"
    hints = gather_hints(source, {key})
    if len(node.shape) == 2:
        for name, other in siblings(source.tree, key):
            if isinstance(other, Ragged) and other.shape == node.shape[:1]:
                role = "unit" if OF_UNIT.search(name) else "trial"
                hints.add(role, node.shape[0], f"{name!r} stands next to it in each", sure=False)
        axes, why = choose(what, node.shape, double, hints)
        return axes, f" ({why})"
    stem = last_name(key.rpartition(".")[0]) or last_name(key)
    lists = {n for n, other in siblings(source.tree, key) if _same_sizes(other, node)}
    lower = {name.lower() for name in lists}
    if source.options.spike_trials or lower & set(TRIAL_OF_SPIKE):
        return ("unit",), ""
    if lower & set(UNIT_OF_SPIKE):
        return ("trial",), " (each with the unit of its spikes)"
    neighbours = [name for name, _ in siblings(source.tree, key) if name not in lists]
    if stem in UNITS or any(n == node.shape[0] for n in hints.sure.get("unit", ())):
        return ("unit",), ""
    if stem in TRIALS:
        return ("trial",), f" ({stem!r} has an entry for each)"
    of_trial = any(OF_TRIAL.search(name) for name in neighbours)
    of_unit = any(OF_UNIT.search(name) for name in neighbours)
    if of_unit and not of_trial:
        return ("unit",), ""
    if of_trial and not of_unit:
        return ("trial",), f" (next to {list_some(neighbours)})"
    reason = hints.sure.get("trial", {}).get(node.shape[0])
    if reason or of_trial:
        raise UserError(
            ask(what, node.shape, single, [reason or f"next to {list_some(neighbours)}"])
        )
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


def splitter(source: Source, name: str) -> tuple[_Split, set[str]]:
    """Return what splits a list of all spikes by unit, and the keys that it takes for it.

    An index gives the ends of the units, or a second list the unit of each spike; a third may give
    its channel.
    """
    vectors, times, said = source.vectors, source.vectors[name], source.options.spike_units
    if (index := vectors.get(f"{name}_index")) is not None:
        ends = index[:]
        return lambda array: (split_by_index(array, ends), _NAMELESS), {name, f"{name}_index"}
    if said == _ONE_UNIT:
        return _unsplit, {name}
    if said:
        owner = vectors.get(source.key(said))
        if owner is None or owner.shape != times.shape:
            n = "several axes" if owner is None else f"{owner.shape[0]} entries"
            raise DataError(
                f"{source.file}: {source.key(said)!r} has {n}, {name!r} has {times.shape[0]} "
                "spikes; legal is one unit for each spike."
            )
        return partial(_group, [owner]), {name, source.key(said)}
    beside = _beside(source, name)
    unit, channel = (
        first_of(names, {last_of(key): key for key in beside})
        for names in (UNIT_OF_SPIKE, CHANNEL_OF_SPIKE)
    )
    stem = name.rpartition(".")[0]
    keys = [f"{stem}.{one}".lstrip(".") for one in (channel, unit) if one is not None]
    if not keys:
        return _unsplit, {name}
    return partial(_group, [vectors[key] for key in keys]), {name, *keys}


def _beside(source: Source, name: str) -> list[str]:
    """Return the keys of arrays with an entry for each spike, in the same group."""
    stem, shape = name.rpartition(".")[0], source.vectors[name].shape
    return [
        key
        for key, vector in source.vectors.items()
        if key != name and key.rpartition(".")[0] == stem and vector.shape == shape
    ]


def _check_one_unit(source: Source, name: str) -> None:
    """Ask where a list is taken as one unit, and another array may say the unit of each spike."""
    if source.options.spike_units == _ONE_UNIT:
        return
    likely = []
    for key in _beside(source, name):
        is_column = any(column_name(key, prefix) for prefix in (*TRIALS, *UNITS))
        if is_column or BESIDE_SPIKES.search(last_name(key)):
            continue
        labels = source.vectors[key][:LONG]
        is_label = labels.dtype.kind in "uiSUO" or bool((labels == np.floor(labels)).all())
        if is_label and 1 < len(np.unique(labels)) < len(labels):  # numbers or names repeat
            likely.append(key)
    if likely:
        raise UserError(
            f"{source.file}: {name!r} is one list of {source.vectors[name].shape[0]} spikes, and "
            f"their units are unclear. If {list_some([repr(key) for key in likely])} says them, "
            f"--spike-units {last_of(likely[0])}; if all are of one, --spike-units {_ONE_UNIT}."
        )


def _group(owners: Sequence[AnyArray], array: AnyArray) -> tuple[list[AnyArray], Array]:
    if len(owners) == 1:
        return group_by_unit((unit, array[rows]) for rows, unit in blocks(owners[0]))
    channels, numbers = owners
    units, labels = group_by_unit(
        (pair(channel, numbers[rows]), array[rows]) for rows, channel in blocks(channels)
    )
    names, order = names_of_pairs(*unpair(labels))
    return [units[i] for i in order], names
