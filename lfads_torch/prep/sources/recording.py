"""What every source becomes: spikes, units, trials and series, read when they are needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...data.find import list_some
from ...data.stored import StoredArray, along, blocks
from ...errors import DataError, UserError, nearest, number
from ..binning import Array, Floats, Indices, is_sorted, stored_type, time_tolerance

AnyArray = NDArray[Any] | StoredArray
"""An array in memory or in its file."""
Table = dict[str, Array]
"""Columns by name, all of one length."""

TEXT_FILES = (".csv", ".tsv", ".txt")
UNIT_S = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
"""Units of time by name, in seconds; ``samples`` needs a sampling rate."""

# Spike times that are converted at once: 32 MB of float64.
_BLOCK = 1 << 22
_MOST_FALLS = 1 << 12  # places of a unit that are kept; in any order half of the spikes are


@dataclass(frozen=True)
class Clock:
    """How times in a file become seconds: their unit, and the rate of samples they move to."""

    scale: float = 1.0
    sampling_hz: float | None = None

    def seconds(self, times: Array) -> Floats:
        """Convert times of the file to seconds."""
        with np.errstate(invalid="ignore"):
            values = times.astype(np.float64) * self.scale
        # Times that were written with few digits go back to the sample that they came from.
        rate = self.sampling_hz
        return np.round(values * rate) / rate if rate else values

    def tolerance(self, latest: float, stored: np.dtype[Any]) -> float:
        """Return the seconds by which a time may lie below an edge and still count as on it."""
        # Times since 1970 are so large that float64 rounds off more than 1 ns.
        least = time_tolerance(latest)
        if self.sampling_hz or stored.kind != "f":
            return least
        return max(least, self.scale * time_tolerance(latest / self.scale, stored))


@dataclass(frozen=True)
class SourceOptions:
    """How to read a recording, where its file does not say so itself."""

    # Array, cell array, group, columns or time series that holds them; of several, with commas
    # between them, the units are joined.
    spikes: str | None = None
    spike_units: str | None = None  # array with the unit of each spike of one long list
    axes: str | None = None  # such as "unit,time,trial" of bins, "trial,unit" of lists of times
    input_bin_ms: float | None = None  # of binned spikes
    trials: Any = None  # table of trials in the file, a CSV file with one, or an object
    # Of spikes, trials and series: "s", "ms", "us", "ns" or "samples"; None: s unless implausible.
    time_unit: str | None = None
    event_unit: str | None = None  # of trials and series, where it is another than that of spikes
    sampling_hz: float | None = None  # of "samples"; else times are moved to the nearest sample
    spike_times: str | None = None  # "absolute" or "relative" to the start of the trial
    spike_trials: str | None = None  # array with the trial of each spike

    @property
    def table(self) -> str | None:
        """Name of the table of trials in the recording; None for a CSV file or an object."""
        is_file = isinstance(self.trials, str) and self.trials.lower().endswith(TEXT_FILES)
        return self.trials if isinstance(self.trials, str) and not is_file else None

    def clock(self) -> Clock:
        """Return how times become seconds, or raise `UserError` for an unknown unit."""
        if self.sampling_hz is not None:
            number("sampling_hz (--sampling-hz, samples/s)", self.sampling_hz, above=0)
        unit = self.time_unit or "s"
        if unit == "samples":
            if self.sampling_hz is None:
                raise UserError(
                    "Times in samples need the sampling rate: add --sampling-hz, such as 30000."
                )
            return Clock(1 / self.sampling_hz, self.sampling_hz)
        if unit not in UNIT_S:
            raise UserError(f"time_unit={unit!r}; legal are {', '.join(UNIT_S)}, samples.")
        return Clock(UNIT_S[unit], self.sampling_hz)


@dataclass
class Scan:
    """Where the spikes of each unit lie (seconds), and where their times fall back."""

    low: Floats  # first and last spike; of a unit without spikes inf and -inf
    high: Floats
    n_falls: Indices
    falls: dict[int, Indices]  # places of the spikes before a fall; of a unit the first ones


@dataclass
class SpikeTimes:
    """Spike times by unit, one-dimensional arrays in the file's unit of time."""

    units: Sequence[AnyArray]
    clock: Clock = field(default_factory=Clock)
    tolerance: float | None = None  # in seconds; None: what the type of the times resolves
    trials: Sequence[AnyArray] | None = None  # by unit, the trial of each spike
    are_rows: bool = False  # `trials` are rows of the table of trials, counted from 0

    @property
    def n_units(self) -> int:
        """Number of units."""
        return len(self.units)

    def count(self, unit: int) -> int:
        """Count a unit's spikes."""
        return self.units[unit].shape[0]

    @cached_property
    def scan(self) -> Scan:
        """Read all spikes once for where they lie; times that are not finite do not count."""
        n = self.n_units
        scan = Scan(np.full(n, np.inf), np.full(n, -np.inf), np.zeros(n, dtype=np.int64), {})
        for unit in range(n):
            places, last = [], -np.inf
            for rows, block in self._stored(unit):
                ends = block[[0, -1]]
                if block[0] < last:
                    places.append(np.array([rows.start - 1]))
                if not is_sorted(block):
                    finite = block[np.isfinite(block)]
                    ends = np.stack([finite.min(), finite.max()]) if len(finite) else ends[:0]
                    places.append(np.flatnonzero(block[1:] < block[:-1]) + rows.start)
                last = block[-1]
                for low, high in self.clock.seconds(ends).reshape(-1, 2):
                    scan.low[unit] = min(scan.low[unit], low)
                    scan.high[unit] = max(scan.high[unit], high)
            if places:
                scan.n_falls[unit] = sum(map(len, places))
                scan.falls[unit] = np.concatenate(places)[:_MOST_FALLS]
        return scan

    def span(self) -> tuple[float, float]:
        """Return first and last spike of all units, in seconds; without spikes inf and -inf."""
        return float(self.scan.low.min(initial=np.inf)), float(self.scan.high.max(initial=-np.inf))

    def _stored(self, unit: int) -> Iterator[tuple[slice, Array]]:
        for rows, block in blocks(self.units[unit], _BLOCK):
            if block.dtype.kind not in "uif":
                raise DataError(
                    f"Spike times must be numbers; unit {unit} has type {block.dtype}. Name the "
                    "array that holds them with --spikes."
                )
            yield rows, block

    def blocks(self, unit: int) -> Iterator[tuple[Floats, float]]:
        """Read a unit's spikes, block after block: seconds as stored, and their tolerance."""
        for _, block in self._stored(unit):
            times = self.clock.seconds(block)
            low, high = float(times.min()), float(times.max())
            if not np.isfinite([low, high]).all():
                bad = int((~np.isfinite(times)).sum())
                raise DataError(f"unit {unit}: {bad} spike times are NaN or infinite; drop them.")
            slack = self.clock.tolerance(max(-low, high), stored_type(block))
            yield times, slack if self.tolerance is None else max(slack, self.tolerance)


@dataclass
class BinnedSpikes:
    """Counts, or continuous values, in bins of `bin_s` seconds that begin at `start` (seconds).

    `axes` names the axes of `array`: "time" and "unit", or "trial", "time" and "unit", in any
    order. Trials are taken one after another.
    """

    array: AnyArray
    axes: tuple[str, ...]
    bin_s: float
    start: float = 0.0

    @property
    def n_units(self) -> int:
        """Number of units."""
        return self.array.shape[self.axes.index("unit")]

    @property
    def n_bins(self) -> int:
        """Bins of all trials together."""
        return _length(self.array, self.axes)

    def read(self, start: int, stop: int) -> Array:
        """Read bins `start` to `stop` (exclusive), shape (bins, units)."""
        return _read(self.array, self.axes, start, stop)


@dataclass
class Series:
    """A quantity over time, such as hand velocity; values are ``scale * stored + offset``.

    `axes` are those of `BinnedSpikes`, with "channel" for "unit" (absent for a single one).
    `times` is None where samples come in equal steps, `rate` of them per second.
    """

    data: AnyArray
    axes: tuple[str, ...]
    times: AnyArray | None = None  # of each sample, in the file's unit
    start: float = 0.0  # seconds
    rate: float = 1.0
    scale: float = 1.0
    offset: float = 0.0
    # A sample stands for the time that follows it, as a bin's count does, not for the moment.
    at_edges: bool = False
    unit: str = ""
    clock: Clock = field(default_factory=Clock)
    columns: Sequence[str] = ()  # names of the channels, where the recording has them

    @property
    def n_samples(self) -> int:
        """Number of samples; of all trials together."""
        return _length(self.data, self.axes)

    @property
    def n_channels(self) -> int:
        """Number of channels."""
        return self.data.shape[self.axes.index("channel")] if "channel" in self.axes else 1

    def names(self, name: str) -> list[str]:
        """Return a name for each channel of this series, which is called `name`."""
        if self.n_channels == 1:
            return [name]
        return [f"{name} {column}" for column in self.columns or range(self.n_channels)]

    def read(self, start: int, stop: int, *, raw: bool = False) -> Floats:
        """Read samples `start` to `stop` (exclusive), shape (samples, channels).

        With `raw`, values are as stored, without `scale` and `offset`.
        """
        values = _read(self.data, self.axes, start, stop).astype(np.float64)
        return values if raw else values * self.scale + self.offset

    def seconds(self, start: int, stop: int) -> Floats:
        """Return the times of samples `start` to `stop` (exclusive)."""
        if self.times is None:
            return np.asarray(self.start + np.arange(start, stop) / self.rate)
        return self.clock.seconds(self.times[start:stop])


def _length(array: AnyArray, axes: tuple[str, ...]) -> int:
    """Count the bins or samples of all trials together."""
    n_trials = array.shape[axes.index("trial")] if "trial" in axes else 1
    return n_trials * array.shape[axes.index("time")]


def _read(array: AnyArray, axes: tuple[str, ...], start: int, stop: int) -> Array:
    """Read a stretch of time, trials one after another, shape (time, units or channels)."""
    first = "trial" if "trial" in axes else "time"
    rows = along(array, axes.index(first))
    rest = tuple(axis for axis in axes if axis != first)
    if first == "time":
        return np.asarray(rows[start:stop]) if rest else np.asarray(rows[start:stop])[:, None]
    length = array.shape[axes.index("time")]
    begin = start // length
    trials = np.asarray(rows[begin : -(-stop // length)])
    trials = np.moveaxis(trials, 1 + rest.index("time"), 1)
    values = trials.reshape(len(trials) * length, int(np.prod(trials.shape[2:])))
    return values[start - begin * length : stop - begin * length]


@dataclass
class Recording:
    """One session as its source holds it; `notes` say what was assumed while reading."""

    path: Path
    kind: str  # name of the format, for people
    spikes: SpikeTimes | BinnedSpikes
    units: Table = field(default_factory=dict)
    trials: Table = field(default_factory=dict)
    series: dict[str, Series] = field(default_factory=dict)
    observed: Floats | None = None  # stretches that were recorded
    unit_observed: list[Floats] | None = None  # of each unit, where they differ
    invalid: dict[str, Floats] = field(default_factory=dict)  # stretches to leave out, by table
    clock: Clock = field(default_factory=Clock)  # of times in `trials`
    sampling_hz: float | None = None  # of the spikes, where the file says it
    starts: Floats | None = None  # of each trial in seconds, where times in `trials` count from it
    onsets: Floats | None = None  # the same in the time of the file, where it was laid out anew
    extents: Floats | None = None  # first and last second of each trial that is stored by itself
    is_settled: bool = False  # all lies on one clock, or `refusals` say why not
    reach: tuple[float, float] | None = None  # first and last spike since the zero of their trial
    is_one_clock: bool = False  # the user says so of spikes and events
    refusals: list[str] = field(default_factory=list)  # why nothing right can be made of it
    unplaced: str = ""  # why no window can be cut around trials
    tables: dict[str, int] = field(default_factory=dict)  # rows of others than `trials`, by name
    files: list[Path] = field(default_factory=list)  # that were read, where `path` is a folder
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def n_units(self) -> int:
        """Number of units."""
        return self.spikes.n_units

    @property
    def n_trials(self) -> int:
        """Number of trials; 0 where the file has none."""
        return count_rows(self.trials)

    def check(self) -> None:
        """Raise a `DataError` where nothing right can be made of the recording."""
        if self.refusals:
            raise DataError(f"{self.path.name}: " + "\n  ".join(self.refusals))

    def event_times(self, name: str) -> Floats:
        """Return the time of an event in each trial, in seconds; NaN where it did not happen.

        A number is a moment of each trial's own time, where trials have one.
        """
        if name not in self.trials and self.starts is not None and _is_number(name):
            return self.starts + self.clock.seconds(np.array(float(name)))
        column = find(self.trials, name, "column of the trials")
        if column.dtype.kind not in "uif" or column.ndim != 1:
            raise UserError(
                f"Column {name!r} of the trials has type {column.dtype}; an event needs times. "
                f"Columns of numbers: {list_some(numeric_columns(self.trials))}."
            )
        # `starts` and what was derived from them are in seconds already.
        times = self.clock.seconds(column)
        if self.starts is None:
            return times
        if self.onsets is not None and self.extents is not None:
            # Some columns may count from the trial's start, others be on the clock of the file.
            since, ends = times - self.onsets, self.extents - self.starts[:, None]
            low, high = ends.min(), ends.max()
            inside = [int(((t >= low) & (t <= high)).sum()) for t in (times, since)]
            times = since if inside[1] > inside[0] else times
        return times + self.starts

    def span(self) -> tuple[float, float]:
        """Return first and last moment of the recording in seconds, as far as the file says.

        What was observed; else the bins, else from the first to the last spike of all, which means
        to read them.
        """
        if self.observed is not None and len(self.observed):
            return float(self.observed[:, 0].min()), float(self.observed[:, 1].max())
        if isinstance(self.spikes, BinnedSpikes):
            start = self.spikes.start
            return start, start + self.spikes.n_bins * self.spikes.bin_s
        low, high = self.spikes.span()
        if not np.isfinite(low):
            raise DataError(f"{self.path}: none of the {self.n_units} units has a spike.")
        return low, high


def _is_number(text: str) -> bool:
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False


def unit_flags(recording: Recording, name: str) -> Array:
    """Return a column of yes and no of the units, such as the benchmark's ``heldout``."""
    column = find(recording.units, name, "column of the units")
    if column.dtype.kind not in "bui" or not np.isin(column, (0, 1)).all():
        raise UserError(f"Column {name!r} of the units does not hold yes and no (True, False).")
    return np.asarray(column, dtype=bool)


def median_step(times: Array) -> float:
    """Return the median step from one time to the next; 0 of a single time."""
    # The difference of two decimal times has rounding digits, which a bin width must not have.
    return float(f"{np.median(np.diff(times)):.7g}") if len(times) > 1 else 0.0


def count_rows(table: Mapping[str, Any]) -> int:
    """Count the rows of a table; 0 where it has no column."""
    return len(next(iter(table.values()), ()))


def numeric_columns(table: Mapping[str, Array]) -> list[str]:
    """Return the names of the columns that hold one number per row."""
    return [name for name, column in table.items() if column.dtype.kind in "buif"]


class UnknownNameError(UserError):
    """A name that a recording does not have; the file may hold it all the same, as it is stored."""

    def __init__(self, message: str, name: str) -> None:
        super().__init__(message)
        self.name = name


def find(items: Mapping[str, Any], name: str, what: str) -> Any:
    """Look an item up by its name, or by the end of its path where only one ends so."""
    if name in items:
        return items[name]
    tails = [key for key in items if key.replace("/", ".").endswith(f".{name.replace('/', '.')}")]
    if len(tails) == 1:
        return items[tails[0]]
    if tails:
        raise UserError(f"{name!r} names several: {list_some(tails)}. Write the whole name.")
    near = " or ".join(map(repr, nearest(name, items, most=2)))
    hint = f"; did you mean {near}?" if near else "."
    has = f"Legal are {list_some(list(items), 20)}." if items else f"The file has no {what}."
    raise UnknownNameError(f"There is no {what} {name!r}{hint} {has}", name)


def damaged(path: Path, err: Exception) -> str:
    """Return the text of the error for a file that cannot be read."""
    return (
        f"{path} cannot be read; if it is damaged or cut short, make or copy it again. "
        f"({type(err).__name__}: {err})"
    )
