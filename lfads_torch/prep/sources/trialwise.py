"""Data that are stored trial by trial: binned arrays or behaviour of each trial, on one timeline.

Trials follow one another on an artificial clock, with a gap between them that counts as not
recorded, so that neither a window nor behaviour with a lag reaches into the next trial. What a
short trial lacks is NaN.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ...data.find import list_some
from ...data.stored import StoredArray, along, flat
from ...data.validate import show_shape
from ...errors import DataError
from ..binning import Array, Floats, Indices
from ..names import TIME_ENDINGS, TRIALS
from ..stretches import GAP_S
from .axes import Axes, is_times
from .recording import AnyArray, Recording, Series, Table
from .tree import Ragged, Source, Tree, as_column, is_vector, siblings, vectors_of

_INDEX = re.compile(r"(idx_.*|.*_idx|.*_index|.*_bin)", re.IGNORECASE)


class StoredBins(NamedTuple):
    """Binned trials as they are stored: an array with an axis of trials, or an array for each."""

    array: AnyArray | Ragged
    axes: Axes  # with "unit" or "channel" as the axis that is no time; of a list: of its rows

    def lengths(self) -> Indices:
        """Return the bins of each trial."""
        if isinstance(self.array, Ragged):
            place = self.axes.index("time")
            sizes = [r.shape[place] if len(self.axes) > 1 else r.size for r in self.array.rows]
            return np.array(sizes, dtype=np.int64)
        shape = self.array.shape
        n_trials = shape[self.axes.index("trial")] if "trial" in self.axes else 1
        return np.full(n_trials, shape[self.axes.index("time")], dtype=np.int64)

    def width(self) -> int:
        """Return the number of units or channels."""
        place = [i for i, axis in enumerate(self.axes) if axis in ("unit", "channel")]
        array = self.array.rows[0] if isinstance(self.array, Ragged) else self.array
        return array.shape[place[0]] if place else 1

    def dtype(self) -> np.dtype[Any]:
        """Return the type of the numbers, of all arrays together."""
        arrays = self.array.rows if isinstance(self.array, Ragged) else [self.array]
        return np.result_type(*{array.dtype for array in arrays})

    def read(self, rows: slice) -> list[Array]:
        """Read trials, each of bins x units."""
        if isinstance(self.array, Ragged):
            trials: Sequence[Array] = [row[:] for row in self.array.rows[rows]]
        else:
            trials = np.asarray(along(self.array, self.axes.index("trial"))[rows])  # type: ignore[assignment]
        axes = [axis for axis in self.axes if axis != "trial"]
        if len(axes) == 1:
            return [trial.reshape(-1, 1) for trial in trials]
        return [trial.T if axes[1] == "time" else trial for trial in trials]


class _Padded:
    """Reader of trials as one array, trials x bins x units, with a gap after each."""

    def __init__(
        self, stored: Sequence[StoredBins], lengths: Indices, n_bins: int, fill: bool
    ) -> None:
        self.stored = stored
        widths = [one.width() for one in stored]
        dtype = np.result_type(*{one.dtype() for one in stored})
        # Integers have no NaN; float32 is exact up to 2^24.
        fill = fill or len(set(lengths.tolist())) > 1
        self.dtype = np.dtype(np.float32) if fill and dtype.kind != "f" else dtype
        self.places = np.cumsum([0, *widths]).tolist()
        self.shape = (len(lengths), n_bins, sum(widths))

    def read(self, rows: slice) -> Array:
        gap = np.nan if self.dtype.kind == "f" else 0
        values = np.full((rows.stop - rows.start, *self.shape[1:]), gap, self.dtype)
        for one, place in zip(self.stored, self.places, strict=False):
            for i, trial in enumerate(one.read(rows)):
                values[i, : len(trial), place : place + trial.shape[1]] = trial
        return values


class Joined:
    """Reader of continuous binned arrays side by side, bins x units."""

    def __init__(self, stored: Sequence[StoredBins]) -> None:
        self.stored = stored
        self.dtype = np.result_type(*{one.dtype() for one in stored})
        n_bins = int(stored[0].lengths()[0])
        self.shape = (n_bins, sum(one.width() for one in stored))

    def read(self, rows: slice) -> Array:
        """Read bins."""
        arrays = [(one.array, one.axes.index("time")) for one in self.stored]
        values = [np.asarray(along(array, place)[rows]) for array, place in arrays]
        return np.concatenate([one.reshape(len(one), -1) for one in values], axis=1)


@dataclass
class Trials:
    """Where trials are on the timeline: bins of each, and those from one trial to the next."""

    lengths: Indices
    bin_s: float
    zero_s: Floats  # from the first bin of a trial to the zero of its own times

    @property
    def n_bins(self) -> int:
        """Bins from the beginning of a trial to that of the next."""
        return int(self.lengths.max()) + math.ceil(GAP_S / self.bin_s)

    def pad(self, stored: Sequence[StoredBins], *, fill: bool = False) -> StoredArray:
        """View trials as one array of trials x bins x channels; `fill` makes the gap NaN."""
        return StoredArray(_Padded(stored, self.lengths, self.n_bins, fill))

    def place(self, recording: Recording) -> None:
        """Say in the recording where its trials are."""
        firsts = np.arange(len(self.lengths)) * (self.n_bins * self.bin_s)
        recording.starts = firsts + self.zero_s
        recording.extents = np.stack([firsts, firsts + self.lengths * self.bin_s], axis=1)
        recording.observed = recording.extents


def of_rows(ragged: Ragged, axes: Axes) -> StoredBins:
    """Describe a list of arrays, one for each trial, after a check that they fit together."""
    if len(axes) < 2:
        return StoredBins(ragged, axes)
    place = 1 - axes.index("time")
    sizes = [row.shape[place] for row in ragged.rows if 0 not in row.shape]
    if len(set(sizes)) > 1:
        raise DataError(
            f"Trials have {min(sizes)} to {max(sizes)} units ({describe_sizes(ragged)}); legal are "
            "trials with the same units. If the axes are the other way round, say so with --axes "
            "unit,time or --axes time,unit."
        )
    shape = (0, sizes[0])[:: 1 if place else -1]
    empty = np.zeros(shape, ragged.rows[0].dtype)
    return StoredBins(Ragged([empty if 0 in row.shape else row for row in ragged.rows]), axes)


def nodes_of_trials(source: Source, rest: Tree, used: Sequence[str]) -> Tree:
    """Return what may have an entry for each trial, by its name in its struct, group or table.

    `used` are the keys of the spikes, whose struct or group may hold the other arrays.
    """
    nodes: Tree = {key: node for key, node in rest.items() if "." not in key}
    prefixes = (source.options.table,) if source.options.table else TRIALS
    for prefix in prefixes:
        nodes |= {k[len(prefix) + 1 :]: v for k, v in rest.items() if k.startswith(f"{prefix}.")}
    for key in used:
        nodes |= dict(siblings(rest, key))
    return nodes


def add_columns(
    recording: Recording, nodes: Tree, n_trials: int, trials: Trials | None, first: int
) -> None:
    """Add what a file has one number or text of for each trial to the table of trials.

    `trials` are those of binned spikes; indices of their bins are counted from `first`.
    """
    columns: Table = {}
    if trials is not None:
        columns["start_time"] = np.full(n_trials, -trials.zero_s) / recording.clock.scale
    rows = recording.n_trials
    if rows and rows != n_trials:
        recording.warnings.append(
            f"the table of trials has {rows} rows, the spikes have {n_trials} trials; its columns "
            f"({list_some(list(recording.trials))}) are left out"
        )
        recording.trials = {}
    for name, vector in vectors_of(nodes).items():
        if vector.shape == (n_trials,) and vector.dtype.kind in "buifSUO":
            columns[name] = as_column(vector[:])
    columns |= recording.trials
    if trials is not None:
        _read_indices(recording, columns, trials, first)
    recording.trials = columns or {"trial": np.arange(n_trials)}


def add_series(recording: Recording, nodes: Tree, n_trials: int, trials: Trials | None) -> None:
    """Add behaviour that is stored trial by trial, in the bins of the spikes or with its times."""
    starts = np.zeros(n_trials) if recording.starts is None else recording.starts
    skipped = []
    for name, node in nodes.items():
        if is_times(name) or name in recording.trials or _is_time_of(name, nodes):
            continue
        if isinstance(node, Ragged) or (node.dtype.kind in "buif" and not is_vector(node)):
            if (series := _series(name, node, nodes, recording, starts, trials)) is not None:
                recording.series[name] = series
            elif isinstance(node, Ragged) and node.shape == (n_trials,):
                skipped.append(name)
    if skipped:
        recording.notes.append(
            "not read, since in each trial they have neither as many bins as the spikes nor times "
            f"(such as {skipped[0]}_times): {list_some(skipped)}"
        )


def _is_time_of(name: str, nodes: Tree) -> bool:
    """Return whether an array has the times of another one."""
    stems = {name.removesuffix(end) for end in TIME_ENDINGS if name.endswith(end)}
    return any(stem in nodes or f"{stem}.data" in nodes for stem in stems)


def _read_indices(recording: Recording, columns: Table, trials: Trials, first: int) -> None:
    """Turn indices into a trial's bins, counted from `first`, into times in the file's unit."""
    names = [n for n, c in columns.items() if _INDEX.fullmatch(n) and c.dtype.kind in "uif"]
    converted = []
    for name in names:
        column = columns[name].astype(np.float64)
        known = np.isfinite(column)
        if not known.any() or (column[known] != np.round(column[known])).any():
            continue
        if (column[known] < first).any() or (column[known] > trials.lengths[known] + first).any():
            recording.notes.append(
                f"{name!r} is read as times, not as indices of bins: some lie outside their trial"
            )
            continue
        seconds = (column - first) * trials.bin_s - trials.zero_s
        columns[name] = seconds / recording.clock.scale
        converted.append(name)
    if converted:
        recording.notes.append(
            f"indices of bins, counted from {first} in each trial, are read as the times at which "
            f"these bins begin: {list_some(converted)}"
        )


def _series(
    name: str,
    node: Any,
    nodes: Tree,
    recording: Recording,
    starts: Floats,
    trials: Trials | None,
) -> Series | None:
    """Describe behaviour that is stored trial by trial, or None where its times are unknown."""
    n_trials = len(starts)
    if trials is not None and (stored := _as_bins(node, trials.lengths)) is not None:
        axes: tuple[str, ...] = ("trial", "time", "channel")
        return Series(trials.pad([stored], fill=True), axes, rate=1 / trials.bin_s, at_edges=True)
    times = _times(name, nodes, n_trials)
    if times is None:
        return None
    lengths = np.array([len(one) for one in times])
    if (stored := _as_bins(node, lengths)) is None:
        return None
    # A sample that is missing ends each trial: nothing is interpolated between two trials.
    values, moments, step = [], [], 0.0
    for i, rows in enumerate(stored.read(slice(0, n_trials))):
        seconds = recording.clock.seconds(times[i]) + starts[i]
        step = float(np.median(np.diff(seconds))) if len(seconds) > 1 else step or 0.001
        values += [rows, np.full((1, rows.shape[1]), np.nan)]
        moments.append(np.append(seconds, seconds[-1:] + step if len(seconds) else starts[i]))
    return Series(np.concatenate(values), ("time", "channel"), np.concatenate(moments))


def _as_bins(node: Any, lengths: Indices) -> StoredBins | None:
    """Describe an array, or one for each trial, that has an entry for each bin of each trial."""
    n_trials = len(lengths)
    if isinstance(node, Ragged):
        if node.shape != (n_trials,) or not all(row.dtype.kind in "buif" for row in node.rows):
            return None
        if all(is_vector(row) for row in node.rows):
            flattened = Ragged([flat(row) for row in node.rows])
            stored = StoredBins(flattened, ("time",))
            return stored if np.array_equal(stored.lengths(), lengths) else None
        for axes in (("channel", "time"), ("time", "channel")):
            place = axes.index("time")
            shapes = [row.shape for row in node.rows]
            ranks, widths = {len(s) for s in shapes}, {s[1 - place] for s in shapes}
            if ranks == {2} and len(widths) == 1 and [s[place] for s in shapes] == lengths.tolist():
                return StoredBins(node, axes)
        return None
    sizes = {"trial": n_trials, "time": int(lengths[0])}
    if len(set(lengths.tolist())) > 1 or not 2 <= len(node.shape) <= 3:
        return None
    roles = ("trial", "time", "channel")[: len(node.shape)]
    for order in itertools.permutations(roles):
        if all(node.shape[order.index(role)] == n for role, n in sizes.items()):
            return StoredBins(node, order)
    return None


def _times(name: str, nodes: Tree, n_trials: int) -> list[Array] | None:
    """Return the times of the samples of each trial, from arrays of the same group."""
    stem = name.removesuffix(".data")
    candidates = [f"{stem}{end}" for end in TIME_ENDINGS]
    candidates += [key for key in nodes if is_times(key)]
    for key in candidates:
        node = nodes.get(key)
        if isinstance(node, Ragged) and node.shape == (n_trials,):
            return [flat(row)[:] for row in node.rows]
        if node is not None and not isinstance(node, Ragged) and is_vector(node):
            return [flat(node)[:]] * n_trials
    return None


class BinTimes(NamedTuple):
    """The times of the bins of each trial, in the file's unit, and what holds them."""

    times: list[Array]
    key: str


def bin_times(nodes: Tree, lengths: Indices) -> BinTimes | None:
    """Return the times of the bins of each trial, or of a recording, where the file has them."""
    for key, node in nodes.items():
        if not is_times(key):
            continue
        if isinstance(node, Ragged):
            times = [flat(row)[:] for row in node.rows]
        elif is_vector(node) and node.dtype.kind in "uif":
            times = [flat(node)[:]] * len(lengths)
        else:
            continue
        if len(times) == len(lengths) and all(
            len(one) == n for one, n in zip(times, lengths, strict=True)
        ):
            return BinTimes(times, key)
    return None


def describe_sizes(ragged: Ragged) -> str:
    """Describe the sizes of the arrays of a list."""
    shapes = sorted({row.shape for row in ragged.rows})
    sizes = show_shape(shapes[0]) + f" to {show_shape(shapes[-1])}" * (len(shapes) > 1)
    return f"{show_shape(ragged.shape)} arrays of {sizes}"
