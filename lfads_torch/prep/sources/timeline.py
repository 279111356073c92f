"""One timeline: whatever counts from somewhere else is laid out on one clock of seconds.

Times that begin anew in every trial are laid out one trial after another, with time between them
that counts as not recorded, so that no window crosses from one trial into the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ...data.find import list_some
from ...errors import DataError
from ..binning import TOLERANCE_S, Array, Floats, Indices
from ..stretches import join, of_table, stretches
from .recording import AnyArray, Clock, Recording, SpikeTimes

INVALID = (
    "invalid_times",
    "invalid_intervals",
    "artifacts",
    "artifact_times",
    "artifact_intervals",
    "bad_times",
    "bad_intervals",
)
"""Names of tables of intervals to leave out. NWB has the first, the others are usual elsewhere."""

OBSERVED = ("obs_intervals", "observed_intervals", "valid_intervals", "valid_times")
"""Names of arrays with the start and stop of what was recorded."""

# Between stretches that are laid out one after another. Whole seconds keep decimal times decimal.
_GAP_S = 1.0
# No gap of ten mean intervals between spikes of all units stands at an end by chance.
_SLACK = 10


class Layout(NamedTuple):
    """Trials on one clock: spikes, and in seconds the zero and the recorded stretch of each."""

    spikes: SpikeTimes
    starts: Floats
    observed: Floats


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
    spike, or all trials to the last spike of all where that may be by chance. `onsets` (seconds)
    say when trials began, and are kept where trials do not overlap.
    """
    seconds, lows, highs = [], np.full(n_trials, np.inf), np.full(n_trials, -np.inf)
    slack, numbers = TOLERANCE_S, np.zeros(n_trials)
    for number, (array, rows) in enumerate(units):
        stored: Array = array[:]
        if stored.dtype.kind not in "uif":
            raise DataError(f"Spike times must be numbers; unit {number} has {stored.dtype}.")
        times = clock.seconds(stored)
        if bad := int((~np.isfinite(times)).sum()):
            raise DataError(f"unit {number}: {bad} spike times are NaN or infinite; drop them.")
        np.minimum.at(lows, rows, times)
        np.maximum.at(highs, rows, times)
        numbers += np.bincount(rows, minlength=n_trials)
        # What the stored type resolves counts from the trial's start, not on the clock they get.
        slack = max(slack, clock.tolerance(float(np.abs(times).max(initial=0)), stored.dtype))
        seconds.append(times)
    begins, ends = _extent(lows, highs, numbers, durations)
    starts = _starts(begins, ends, np.minimum(lows, begins), np.maximum(highs, 0), onsets)
    laid = []
    for times, (_, rows) in zip(seconds, units, strict=True):
        placed = times + starts[rows]
        laid.append(np.sort(placed))
    observed = np.stack([starts + begins, starts + ends], axis=1)
    return Layout(SpikeTimes(laid, tolerance=slack), starts, observed)


def trials_of_cells(cells: Sequence[Sequence[Array]]) -> list[tuple[Array, Indices]]:
    """Turn spike times stored as trials x units into what `lay_out_trials` takes."""
    units = []
    for lists in zip(*cells, strict=True):
        arrays = [np.asarray(times).reshape(-1) for times in lists]
        rows = np.repeat(np.arange(len(arrays)), [len(times) for times in arrays])
        # Empty cells are float64 whatever the others are, and would change the type of all.
        filled = [times for times in arrays if len(times)] or arrays[:1]
        units.append((np.concatenate(filled), rows))
    return units


def _extent(
    lows: Floats, highs: Floats, numbers: Array, durations: Floats | None
) -> tuple[Floats, Floats]:
    """Return when the recording of each trial begins and ends, counted from its start."""
    n_spikes = numbers.sum()
    if not n_spikes:
        known = np.zeros(len(lows)) if durations is None else durations
        return np.zeros(len(lows)), known
    filled = numbers > 0
    first, last = float(lows[filled].min()), float(highs[filled].max())
    interval = (last - first) / n_spikes  # of the spikes of all trials together
    begins = np.full(len(lows), first - _SLACK * interval if first < 0 else 0.0)
    if durations is not None:
        return begins, np.maximum(durations, np.where(filled, highs, durations))
    # Whether trials were of one length shows in how close to the last spike of all each comes.
    of_trial = (last - first) / np.maximum(numbers, 1)
    if (highs[filled] + _SLACK * of_trial[filled] >= last).all():
        return begins, np.full(len(lows), last + _SLACK * interval)
    return begins, np.where(filled, np.minimum(highs + _SLACK * of_trial, last), begins)


def _starts(
    begins: Floats, ends: Floats, lows: Floats, highs: Floats, onsets: Floats | None
) -> Floats:
    """Return where the zero of each trial is on the common clock."""
    if onsets is not None and np.isfinite(onsets).all():
        order = np.argsort(onsets, kind="stable")
        gaps = (onsets + np.minimum(lows, 0))[order][1:] - (onsets + highs)[order][:-1]
        if (gaps >= -TOLERANCE_S).all():
            return onsets
    width = np.ceil(float((ends - begins).max(initial=0))) + _GAP_S
    return np.ceil(-begins.min(initial=0)) + np.arange(len(begins)) * width


# ---- what was not observed, or is not valid ------------------------------------------------------


def add_invalid(recording: Recording, name: str, table: Mapping[str, Array] | Array) -> None:
    """Mark the stretches of a table, or of an array of starts and stops, as not valid."""
    rows = of_table(table) if isinstance(table, Mapping) else table
    if rows is None:
        columns = ", ".join(table) if isinstance(table, Mapping) else ""
        recording.warnings.append(
            f"{name!r} has no start_time and stop_time, so nothing is left out by it; it has "
            f"{columns or 'no columns'}"
        )
        return
    what = f"intervals of {name!r}"
    seconds = recording.clock.seconds(rows)
    pieces = stretches(seconds, what, recording.warnings, is_open=True)
    if len(pieces):
        recording.invalid[name] = pieces
        total = float(np.diff(pieces, axis=1).sum())
        recording.notes.append(
            f"not valid by {name!r}: {total:.6g} s in {len(pieces)} stretches; no window is taken "
            "there"
        )


def observe_units(recording: Recording, rows: Sequence[Array], what: str) -> None:
    """Add the stretches in which each unit was recorded, in the file's unit of time."""
    spikes, clock, noticed = recording.spikes, recording.clock, list[str]()
    pieces = [stretches(clock.seconds(some), what, noticed) for some in rows]
    recording.warnings += dict.fromkeys(noticed)
    if not any(len(some) for some in pieces):
        return
    # All units together: one that was lost early must not cost the trials of the others.
    recording.observed = join(np.concatenate(pieces))
    if not isinstance(spikes, SpikeTimes):
        return
    unknown = [u for u, some in enumerate(pieces) if not len(some) and spikes.count(u)]
    if unknown:
        recording.warnings.append(
            f"{len(unknown)} units have spikes but no {what} (units {list_some(unknown)}, counted "
            "from 0); they are taken as recorded whenever another unit was"
        )
        pieces = [recording.observed if u in unknown else some for u, some in enumerate(pieces)]
    differ = [u for u, some in enumerate(pieces) if not np.array_equal(some, recording.observed)]
    if differ:
        recording.unit_observed = pieces
        recording.warnings.append(
            f"units were observed for different times ({what}; units {list_some(differ)}, counted "
            "from 0, lack some): their bins outside are missing (NaN), not 0"
        )
