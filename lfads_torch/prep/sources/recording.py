"""What every source becomes: spikes, trials and series, read when they are needed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...data.find import list_some
from ...errors import DataError, UserError
from .clock import Clock
from .lazy import LazyArray, pieces

Array = NDArray[Any]
Floats = NDArray[np.float64]
Table = dict[str, Array]
"""Columns by name, all of one length."""


@dataclass
class SpikeTimes:
    """Spike times, unit by unit.

    Attributes
    ----------
    units : sequence of LazyArray
        One-dimensional, in the file's unit of time.
    clock : Clock
    """

    units: Sequence[LazyArray]
    clock: Clock = field(default_factory=Clock)

    @property
    def n_units(self) -> int:
        """Number of units."""
        return len(self.units)

    def count(self, unit: int) -> int:
        """Count a unit's spikes."""
        return self.units[unit].shape[0]

    def pieces(self, unit: int) -> Iterator[tuple[Floats, float]]:
        """Read a unit's spikes piece by piece: seconds as stored, and their tolerance."""
        array = self.units[unit]
        for part in pieces(array):
            if part.dtype.kind not in "uif":
                raise DataError(
                    f"Spike times must be numbers; unit {unit} has type {part.dtype}. Name the "
                    "array that holds them with --spikes."
                )
            times = self.clock.seconds(part)
            low, high = float(times.min()), float(times.max())
            if not np.isfinite([low, high]).all():
                bad = int((~np.isfinite(times)).sum())
                raise DataError(f"unit {unit}: {bad} spike times are NaN or infinite; drop them.")
            yield times, self.clock.tolerance(max(-low, high), array.dtype)


@dataclass
class BinnedSpikes:
    """Counts (or continuous values) in bins of equal width.

    Attributes
    ----------
    array : LazyArray
        Two or three dimensions.
    axes : tuple of str
        Names of its axes: "time" and "unit", or "trial", "time" and "unit", in any order. Trials
        are taken one after another.
    bin_s : float
        Width of a bin in seconds.
    start : float
        Left edge of the first bin in seconds.
    """

    array: LazyArray
    axes: tuple[str, ...]
    bin_s: float
    start: float = 0.0

    @property
    def n_units(self) -> int:
        """Number of units."""
        return self.array.shape[self.axes.index("unit")]

    @property
    def trial_bins(self) -> int:
        """Bins of a trial; of the whole recording where it has no axis of trials."""
        return self.array.shape[self.axes.index("time")]

    @property
    def n_bins(self) -> int:
        """Bins of all trials together."""
        n = self.array.shape[self.axes.index("trial")] if "trial" in self.axes else 1
        return n * self.trial_bins

    def read(self, start: int, stop: int) -> Array:
        """Read bins `start` to `stop` (exclusive), shape (bins, units)."""
        if "trial" not in self.axes:
            part = self.array.take(start, stop, self.axes.index("time"))
            return part if self.axes[0] == "time" else part.T
        length = self.trial_bins
        first, last = start // length, -(-stop // length)
        part = self.array.take(first, last, self.axes.index("trial"))
        part = part.transpose([self.axes.index(axis) for axis in ("trial", "time", "unit")])
        return part.reshape(-1, self.n_units)[start - first * length : stop - first * length]


@dataclass
class Series:
    """A quantity over time, such as hand velocity.

    Attributes
    ----------
    data : LazyArray
        One to three dimensions.
    axes : tuple of str
        As of `BinnedSpikes`, with "channel" for "unit" (absent where there is one channel).
    times : LazyArray or None
        Time of each sample in the file's unit; None for equal steps.
    start, rate : float
        First sample in seconds and samples per second, where `times` is None.
    scale, offset : float
        Values are ``scale * stored + offset``.
    at_edges : bool
        Whether a sample stands for the time that follows it, as a bin's count does, and not for
        the moment itself.
    unit : str
    """

    data: LazyArray
    axes: tuple[str, ...]
    times: LazyArray | None = None
    start: float = 0.0
    rate: float = 1.0
    scale: float = 1.0
    offset: float = 0.0
    at_edges: bool = False
    unit: str = ""
    clock: Clock = field(default_factory=Clock)

    @property
    def n_samples(self) -> int:
        """Number of samples; of all trials together."""
        n = self.data.shape[self.axes.index("trial")] if "trial" in self.axes else 1
        return n * self.data.shape[self.axes.index("time")]

    @property
    def n_channels(self) -> int:
        """Number of channels."""
        return self.data.shape[self.axes.index("channel")] if "channel" in self.axes else 1

    def read(self, start: int, stop: int, *, raw: bool = False) -> Floats:
        """Read samples `start` to `stop` (exclusive), shape (samples, channels).

        Parameters
        ----------
        start, stop : int
        raw : bool
            Values as stored, without `scale` and `offset`.
        """
        axes = tuple("unit" if axis == "channel" else axis for axis in self.axes)
        if "unit" in axes:
            part = BinnedSpikes(self.data, axes, 1.0).read(start, stop)
        elif "trial" in axes:
            length = self.data.shape[axes.index("time")]
            first = start // length
            part = self.data.take(first, -(-stop // length), axes.index("trial"))
            part = part if axes[0] == "trial" else part.T
            part = part.reshape(-1)[start - first * length : stop - first * length, None]
        else:
            part = self.data.take(start, stop)[:, None]
        values = part.astype(np.float64)
        return values if raw else values * self.scale + self.offset


@dataclass
class Recording:
    """One session as its source holds it.

    Attributes
    ----------
    path : Path
    kind : str
        Name of the format.
    spikes : SpikeTimes or BinnedSpikes
    units : Table
        What the file says of each unit.
    trials : Table
        What the file says of each trial; empty where it has none.
    series : dict of str to Series
    observed : ndarray, shape (n, 2), or None
        Stretches of time that were recorded, in seconds; None where the file does not say.
    clock : Clock
        How times in `trials` become seconds.
    starts : ndarray or None
        Start of each trial in seconds, where times in `trials` count from it.
    notes : list of str
        What was assumed while reading, for people.
    warnings : list of str
        What deserves a second look.
    """

    path: Path
    kind: str
    spikes: SpikeTimes | BinnedSpikes
    units: Table = field(default_factory=dict)
    trials: Table = field(default_factory=dict)
    series: dict[str, Series] = field(default_factory=dict)
    observed: Floats | None = None
    clock: Clock = field(default_factory=Clock)
    starts: Floats | None = None
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    _span: tuple[float, float] | None = None

    @property
    def n_units(self) -> int:
        """Number of units."""
        return self.spikes.n_units

    @property
    def n_trials(self) -> int:
        """Number of trials; 0 where the file has none."""
        return len(next(iter(self.trials.values()))) if self.trials else 0

    def event_times(self, name: str) -> Floats:
        """Time of an event in each trial, in seconds; NaN where it did not happen.

        Raises
        ------
        UserError
            If there is no such column, or it does not hold times.
        """
        column = find(self.trials, name, "column of the trials")
        if column.dtype.kind not in "uif" or column.ndim != 1:
            raise UserError(
                f"Column {name!r} of the trials has type {column.dtype}; an event needs times. "
                f"Columns of numbers: {list_some(numeric_columns(self.trials))}."
            )
        # `starts` and what was derived from them are in seconds already.
        times = self.clock.seconds(column)
        return times if self.starts is None else times + self.starts

    def span(self) -> tuple[float, float]:
        """First and last moment of the recording in seconds, as far as the file says.

        What was observed; else the bins, else from the first to the last spike of all, which means
        to read them.
        """
        if self.observed is not None and len(self.observed):
            return float(self.observed[:, 0].min()), float(self.observed[:, 1].max())
        if isinstance(self.spikes, BinnedSpikes):
            start = self.spikes.start
            return start, start + self.spikes.n_bins * self.spikes.bin_s
        if self._span is None:
            spikes = self.spikes
            parts = (t for unit in range(self.n_units) for t, _ in spikes.pieces(unit))
            ends = [(float(times.min()), float(times.max())) for times in parts]
            if not ends:
                raise DataError(f"{self.path}: none of the {self.n_units} units has a spike.")
            self._span = min(low for low, _ in ends), max(high for _, high in ends)
        return self._span


def numeric_columns(table: Mapping[str, Array]) -> list[str]:
    """Names of the columns that hold one number per row."""
    return [name for name, column in table.items() if column.dtype.kind in "buif"]


def find(items: Mapping[str, Any], name: str, what: str) -> Any:
    """Look an item up by its name, or by the end of its path where that is unique.

    Raises
    ------
    UserError
        Where there is none or several; says what there is.
    """
    if name in items:
        return items[name]
    tails = [key for key in items if key.replace("/", ".").endswith(f".{name.replace('/', '.')}")]
    if len(tails) == 1:
        return items[tails[0]]
    if tails:
        raise UserError(f"{name!r} names several: {list_some(tails)}. Write the whole name.")
    raise UserError(f"There is no {what} {name!r}{nearest(name, items)} {have(items, what)}")


def nearest(name: str, legal: Iterable[str]) -> str:
    """Say what was perhaps meant, ready to end a sentence."""
    near = difflib.get_close_matches(name, list(legal), n=2, cutoff=0.6)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else "."


def have(items: Mapping[str, Any], what: str) -> str:
    """Say what there is."""
    return f"There is: {list_some(list(items), 20)}." if items else f"The file has no {what}."
