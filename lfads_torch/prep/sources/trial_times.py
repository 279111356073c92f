"""Spike times that count from the start of their trial: trials are laid out on one clock.

Trials stand where they began, or one after another, with time between them that counts as not
recorded, so that no window reaches from one into the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ...data.find import list_some
from ...errors import DataError
from ..binning import TOLERANCE_S, Array, Floats, Indices, stored_type
from ..names import ONSETS, TRIAL_IDS, first_of
from ..stretches import GAP_S, of_table
from .recording import AnyArray, Clock, Recording, SpikeTimes

# No gap of ten mean intervals between spikes of all units stands at an end by chance.
SLACK = 10


class Layout(NamedTuple):
    """Trials on one clock, in seconds: spikes, the zero of each, where it likely begins and ends.

    `observed` are the stretches in order of time, as long as trials may have been.
    """

    spikes: SpikeTimes
    starts: Floats
    extents: Floats
    observed: Floats
    reach: tuple[float, float] | None  # first and last spike since the zero, where no end is known


def lay_out_trials(
    units: Sequence[tuple[AnyArray, Indices]],
    clock: Clock,
    n_trials: int,
    durations: Floats | None = None,
    onsets: Floats | None = None,
) -> Layout:
    """Put spike times that count from the start of their trial on one clock.

    `units` has for each unit its times, in the unit of `clock`, and the row of the trial of each.
    `durations` (seconds) say how long trials were recorded; without them a trial lasts to its last
    spike, or, where trials may have had one length, to the last spike of all trials. `onsets`
    (seconds) say when trials began, and are kept where trials do not overlap.
    """
    seconds, slack, numbers = [], TOLERANCE_S, np.zeros(n_trials)
    for number, (array, rows) in enumerate(units):
        stored: Array = array[:]
        if stored.dtype.kind not in "uif":
            raise DataError(f"Spike times must be numbers; unit {number} has {stored.dtype}.")
        times = clock.seconds(stored)
        if bad := int((~np.isfinite(times)).sum()):
            raise DataError(f"unit {number}: {bad} spike times are NaN or infinite; drop them.")
        numbers += np.bincount(rows, minlength=n_trials)
        # What the stored type resolves counts from the trial's start, not on the clock they get.
        slack = max(
            slack, clock.tolerance(float(np.abs(times).max(initial=0)), stored_type(stored))
        )
        seconds.append(times)
    places = [rows for _, rows in units]
    lows, highs = _ends(seconds, places, n_trials)
    begins, likely, ends = _extent(lows, highs, numbers, durations)
    starts = _starts(begins, ends, np.minimum(lows, begins), np.maximum(highs, 0), onsets)
    laid = [np.sort(t + starts[rows]) for t, rows in zip(seconds, places, strict=True)]
    extents = starts[:, None] + np.stack([begins, likely], axis=1)
    observed = (starts[:, None] + np.stack([begins, ends], axis=1))[np.argsort(starts)]
    observed[:-1, 1] = np.minimum(observed[:-1, 1], observed[1:, 0])
    known = np.isfinite(lows)
    reach = (float(lows[known].min()), float(highs[known].max())) if known.any() else None
    spikes = SpikeTimes(laid, tolerance=slack)
    return Layout(spikes, starts, extents, observed, reach if durations is None else None)


def join_trials(trials: Sequence[AnyArray]) -> tuple[Array, Indices]:
    """Return a unit's spikes in all trials, and the trial of each, out of a list for each trial."""
    arrays = [spikes[:] for spikes in trials]
    rows = np.repeat(np.arange(len(arrays)), [len(a) for a in arrays])
    # Empty lists are float64 whatever the others are, and would change the type of all.
    return np.concatenate([a for a in arrays if len(a)] or arrays[:1]), rows


def _ends(
    times: Sequence[Floats], places: Sequence[Indices], n_trials: int
) -> tuple[Floats, Floats]:
    """Return the first and last spike of each trial; inf and -inf where it has none."""
    lows, highs = np.full(n_trials, np.inf), np.full(n_trials, -np.inf)
    for some, place in zip(times, places, strict=True):
        np.minimum.at(lows, place, some)
        np.maximum.at(highs, place, some)
    return lows, highs


def _extent(
    lows: Floats, highs: Floats, numbers: Array, durations: Floats | None
) -> tuple[Floats, Floats, Floats]:
    """Return when the recording of each trial begins, likely ends, and ends at the latest.

    All count from the start of the trial.
    """
    n_spikes = numbers.sum()
    if not n_spikes:
        known = np.zeros(len(lows)) if durations is None else durations
        return np.zeros(len(lows)), known, known
    filled = numbers > 0
    first, last = float(lows[filled].min()), float(highs[filled].max())
    interval = (last - first) / n_spikes  # of the spikes of all trials together
    begins = np.full(len(lows), first - SLACK * interval if first < 0 else 0.0)
    if durations is not None:
        ends = np.maximum(durations, np.where(filled, highs, durations))
        return begins, ends, ends
    # Whether trials were of one length shows in how close to the last spike of all each comes.
    of_trial = (last - first) / np.maximum(numbers, 1)
    if (highs[filled] + SLACK * of_trial[filled] >= last).all():
        ends = np.full(len(lows), last + SLACK * interval)
        return begins, ends, ends
    likely, latest = (
        np.where(filled, np.minimum(highs + k * of_trial, last), begins) for k in (1, SLACK)
    )
    return begins, likely, latest


def _starts(
    begins: Floats, ends: Floats, lows: Floats, highs: Floats, onsets: Floats | None
) -> Floats:
    """Return where the zero of each trial is on the common clock."""
    if onsets is not None and np.isfinite(onsets).all():
        order = np.argsort(onsets, kind="stable")
        gaps = (onsets + np.minimum(lows, 0))[order][1:] - (onsets + highs)[order][:-1]
        if (gaps >= -TOLERANCE_S).all():
            return onsets
    width = np.ceil(float((ends - begins).max(initial=0))) + GAP_S
    return np.ceil(-begins.min(initial=0)) + np.arange(len(begins)) * width


class TrialTimes(NamedTuple):
    """Spike times by unit, in the file's unit, with the trial of each spike."""

    times: list[Array]
    ids: list[Array]
    known: Array  # trials, sorted
    places: list[Indices]  # among the known ones

    @classmethod
    def of(cls, spikes: SpikeTimes) -> TrialTimes:
        """Read the times and trials of all spikes."""
        times = [np.asarray(some[:]).reshape(-1) for some in spikes.units]
        ids = [np.asarray(some[:]).reshape(-1) for some in spikes.trials or ()]
        known = np.unique(np.concatenate([some[some == some] for some in ids]))
        most = max(0, len(known) - 1)
        return cls(times, ids, known, [np.searchsorted(known, s).clip(max=most) for s in ids])

    def overlap(self) -> float:
        """Return the fraction of trials whose spikes begin before those of another have ended."""
        times = [some.astype(np.float64) for some in self.times]
        lows, highs = _ends(times, self.places, len(self.known))
        order = np.argsort(lows, kind="stable")
        order = order[np.isfinite(lows[order])]
        return float(np.mean(highs[order][:-1] > lows[order][1:])) if len(order) > 1 else 1.0


def place_trials(
    recording: Recording, spikes: SpikeTimes, by_trial: TrialTimes, is_relative: bool
) -> None:
    """Lay spikes out by their trials."""
    times, ids, known, places = by_trial
    rows = known.astype(np.int64) if spikes.are_rows else _rows_of(known, recording)
    lost, units = 0, []
    for some, place, of_spike in zip(times, places, ids, strict=True):
        row = np.where(of_spike == of_spike, rows[place], -1)
        lost += int((row < 0).sum())
        units.append((some[row >= 0], row[row >= 0]))
    if lost:
        outside = known[rows < 0]
        recording.warnings.append(
            f"{lost} spikes belong to no trial (trial {list_some(outside.tolist()) or 'NaN'}); "
            "they are left out"
        )
    highest = max((some.max() for some in times if len(some)), default=0)
    longest = float(spikes.clock.seconds(np.array([highest]))[0])
    onsets, durations = _onsets(recording, longest)
    laid = lay_out_trials(units, spikes.clock, recording.n_trials, durations, onsets)
    is_kept = onsets is not None and np.array_equal(onsets, laid.starts)
    if recording.invalid and not is_kept:
        recording.refusals.append(
            "spike times count from the start of their trial, but times that are not valid "
            f"({list_some(list(recording.invalid))}) lie on a clock of the whole recording, on "
            "which the trials have no place: add a column start_time to the trials."
        )
    recording.spikes, recording.starts, recording.onsets = laid.spikes, laid.starts, onsets
    recording.extents, recording.reach = laid.extents, laid.reach
    if recording.observed is None or not is_kept:
        recording.observed = laid.observed
    length = np.diff(laid.extents, axis=1)
    recording.notes.append(
        f"spike times count from the start of their trial: {recording.n_trials} trials of "
        f"{length.min():.4g} to {length.max():.4g} s, "
        + ("at the times at which they began" if is_kept else "laid out one after another")
        + ("" if is_relative else "; if not, --spike-times absolute")
    )


def observe_trials(recording: Recording, times: Sequence[Array], places: Sequence[Indices]) -> None:
    """Take as recorded only the time around the spikes of each trial."""
    place = np.concatenate(places)
    seconds = [recording.clock.seconds(some) for some in times]
    lows, highs = _ends(seconds, places, place.max() + 1)
    slack = SLACK * (highs - lows) / np.bincount(place)
    order = np.argsort(lows)
    lows, highs, slack = lows[order], highs[order], slack[order]
    middle = (lows[1:] + highs[:-1]) / 2
    begins = np.maximum(lows - slack, np.concatenate([[-np.inf], middle]))
    ends = np.minimum(highs + slack, np.concatenate([middle, [np.inf]]))
    if recording.observed is None:
        recording.observed = np.stack([begins, ends], axis=1)
    recording.notes.append(
        "spike times of the trials lie on one clock; if they count from the start of their trial, "
        "say --spike-times relative"
    )


def _rows_of(known: Array, recording: Recording) -> Indices:
    """Return the row in the table of trials for each trial that spikes name; -1 for none."""
    table, n = recording.trials, recording.n_trials
    if not n:
        rows = np.arange(len(known))
        recording.trials = {"start_time": np.zeros(len(known)), "trial": known}
        return rows
    lower = {name.lower(): column for name, column in table.items()}
    for name in TRIAL_IDS:
        column = lower.get(name)
        if column is None or len(np.unique(column)) < n:
            continue
        alike = all(c.dtype.kind in "uif" for c in (column, known)) or column.dtype == known.dtype
        if alike and np.isin(known, column).mean() > 0.5:
            order = np.argsort(column)
            place = order[np.searchsorted(column, known, sorter=order).clip(max=n - 1)]
            recording.notes.append(f"trials by their number in column {name!r}")
            return np.where(column[place] == known, place, -1)
    if known.dtype.kind not in "uif" or (known != np.floor(known)).any():
        raise DataError(
            f"The trials of the spikes are {list_some(known.tolist())}, and no column of the "
            f"{n} trials holds these: add one, such as trial_id."
        )
    low, high = int(known[known >= 0].min(initial=n)), int(known.max(initial=0))
    if high > n:
        raise DataError(
            f"Spikes belong to trials {low} to {high}, but the table has {n} trials. Choose "
            "another table (--trials), or add a column with the number of each trial, such as "
            "trial_id."
        )
    is_matlab = "MATLAB" in recording.kind
    if high < n and low > 0 and not is_matlab and n > 1:
        raise DataError(
            f"Spikes belong to trials {low} to {high} of {n}: whether trials are counted from 0 "
            "or from 1 is unclear. Add a column with the number of each trial, such as trial_id."
        )
    first = 1 if high == n or (low > 0 and is_matlab) else 0
    recording.notes.append(f"trials of spikes are counted from {first}")
    rows = known.astype(np.int64) - first
    return np.where((rows >= 0) & (rows < n), rows, -1)


def _onsets(recording: Recording, longest: float) -> tuple[Floats | None, Floats | None]:
    """Return when trials began on the clock of the file, and how long they lasted, where known."""
    numeric = {name: c for name, c in recording.trials.items() if c.dtype.kind in "uif"}
    begin = first_of(ONSETS, numeric)
    seconds, durations = recording.clock.seconds, None
    pairs = of_table(recording.trials)
    if pairs is not None:
        lengths = np.diff(seconds(pairs), axis=1).ravel()
        durations = lengths if (lengths > 0).all() else None
    elif (name := first_of(("duration",), numeric)) and (numeric[name] > 0).all():
        durations = seconds(numeric[name])
    if begin is None or not np.isfinite(numeric[begin]).all() or len(numeric[begin]) < 2:
        return None, durations
    onsets = seconds(numeric[begin])
    # Where trials begin within the time that one lasts, this counts from the trial, too.
    ascending = float(np.mean(np.diff(onsets) > 0))
    is_clock = ascending > 0.9 and np.ptp(onsets) > 2 * longest
    return (onsets if is_clock else None), durations
