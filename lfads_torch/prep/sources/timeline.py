"""One timeline: whatever counts from somewhere else is laid out on one clock of seconds.

Times that begin anew in every trial, or at the start of a file that was joined to another, are laid
out one stretch after another, with time between them that counts as not recorded, so that no window
crosses from one stretch into the next. What does not fit is not used: `Recording.refusals` say why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from ...data.find import list_some
from ...errors import DataError, UserError, one_of
from ..binning import TOLERANCE_S, Array, Floats, Indices, stored_type
from ..stretches import join, of_table, stretches
from .recording import AnyArray, Clock, Recording, SourceOptions, SpikeTimes, numeric_columns
from .time_unit import judge, sample_units

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
        slack = max(
            slack, clock.tolerance(float(np.abs(times).max(initial=0)), stored_type(stored))
        )
        seconds.append(times)
    begins, likely, ends = _extent(lows, highs, numbers, durations)
    starts = _starts(begins, ends, np.minimum(lows, begins), np.maximum(highs, 0), onsets)
    laid = []
    for times, (_, rows) in zip(seconds, units, strict=True):
        placed = times + starts[rows]
        laid.append(np.sort(placed))
    extents = starts[:, None] + np.stack([begins, likely], axis=1)
    observed = (starts[:, None] + np.stack([begins, ends], axis=1))[np.argsort(starts)]
    observed[:-1, 1] = np.minimum(observed[:-1, 1], observed[1:, 0])
    known = np.isfinite(lows)
    reach = (float(lows[known].min()), float(highs[known].max())) if known.any() else None
    spikes = SpikeTimes(laid, tolerance=slack)
    return Layout(spikes, starts, extents, observed, reach if durations is None else None)


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
    begins = np.full(len(lows), first - _SLACK * interval if first < 0 else 0.0)
    if durations is not None:
        ends = np.maximum(durations, np.where(filled, highs, durations))
        return begins, ends, ends
    # Whether trials were of one length shows in how close to the last spike of all each comes.
    of_trial = (last - first) / np.maximum(numbers, 1)
    if (highs[filled] + _SLACK * of_trial[filled] >= last).all():
        ends = np.full(len(lows), last + _SLACK * interval)
        return begins, ends, ends
    likely, latest = (
        np.where(filled, np.minimum(highs + k * of_trial, last), begins) for k in (1, _SLACK)
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


# ---- times that count from the start of their trial ----------------------------------------------

TRIAL_OF_SPIKE = (
    "trial", "trials", "trial_id", "trial_ids", "trialid", "trial_num", "trialnum", "trial_number",
    "trial_idx", "trial_index", "tr", "spike_trials", "spike_trial", "trial_of_spike",
)  # fmt: skip
"""Names of an array with the trial of each spike."""

_IDS = ("trial", "trial_id", "trialid", "trial_num", "trialnum", "trial_number", "id", "tr")
# Formats and objects that define their times to be in seconds.
_SECONDS = ("NWB", "pynapple", "Neo")

_ONSETS = ("start_time", "start", "trial_start", "t_start", "onset", "starts")


def settle(recording: Recording, options: SourceOptions) -> None:
    """Bring spikes and trials to one clock; note what was done, or why it cannot be.

    Done once, a second time it changes nothing.
    """
    spikes = recording.spikes
    if recording.is_settled:
        return
    recording.is_settled = True
    recording.is_one_clock = options.spike_times == "absolute"
    if options.spike_times not in (None, "auto", "absolute", "relative"):
        one_of("--spike-times", options.spike_times, ("auto", "absolute", "relative"))
    if not isinstance(spikes, SpikeTimes):
        if options.event_unit:
            recording.clock = replace(options, time_unit=options.event_unit).clock()
        return
    if options.spike_times == "relative" and spikes.trials is None:
        raise UserError(
            "--spike-times relative: which trial each spike belongs to is unknown; name the array "
            "that has it for each spike with --spike-trials."
        )
    by_trial = _TrialTimes.of(spikes) if spikes.trials and not recording.is_one_clock else None
    if by_trial and options.spike_times != "relative":
        share = by_trial.overlap()
        if 0.1 <= share < 0.5:
            recording.refusals.append(
                f"the trial of each spike is known, and the times of {share:.0%} of the trials "
                "overlap those of the next: they do not clearly count from the start of each "
                "trial (--spike-times relative), nor lie on one clock (--spike-times absolute). "
                "Say which."
            )
        if share < 0.1 and spikes.are_rows:
            _observe_trials(recording, by_trial.times, by_trial.places)
        by_trial = by_trial if share >= 0.5 else None  # else the trial is extra information
    _set_unit(recording, spikes, options, len(by_trial.known) if by_trial else 1)
    _compare(recording, spikes)
    if recording.refusals:
        return  # before all spikes are read
    if by_trial:
        _by_trial(recording, spikes, by_trial, options.spike_times == "relative")
    elif (spikes.scan.n_falls > 0).any():
        _by_block(recording, spikes)


def _set_unit(
    recording: Recording, spikes: SpikeTimes, options: SourceOptions, n_trials: int
) -> None:
    """Choose the unit of times where neither user nor format names one; bring clocks to it."""
    old = new = recording.clock
    stated = options.sampling_hz or recording.sampling_hz

    def clock(unit: str) -> Clock:
        hz = stated if unit == "samples" else options.sampling_hz
        return replace(options, time_unit=unit, sampling_hz=hz).clock()

    if options.time_unit is None and spikes.clock == options.clock():
        fixed = next((kind for kind in _SECONDS if recording.kind.startswith(kind)), "")
        verdict = judge(sample_units(spikes.units), stated, n_trials=n_trials, fixed=fixed)
        recording.notes += filter(None, [verdict.note])
        recording.warnings += filter(None, [verdict.warning])
        recording.refusals += filter(None, [verdict.refusal])
        spikes.clock = new = clock(verdict.unit)
    recording.clock = new
    if options.event_unit:
        recording.clock = clock(options.event_unit)
    elif spikes.clock.sampling_hz and new.scale < 1e-3 and _are_seconds(recording, spikes):
        recording.clock = clock("s")
        recording.warnings.append(
            "the trials' times are taken as seconds, beside spike times in samples: as samples all "
            "would be at once; if not, --event-unit samples"
        )
    if recording.clock == old:
        return
    for series in recording.series.values():
        series.clock = recording.clock if series.clock == old else series.clock
    # The reader has made seconds of these already.
    factor = recording.clock.scale / old.scale
    if recording.observed is not None:
        recording.observed = recording.observed * factor
    if recording.unit_observed is not None:
        recording.unit_observed = [pieces * factor for pieces in recording.unit_observed]
    recording.invalid = {name: pieces * factor for name, pieces in recording.invalid.items()}


def _are_seconds(recording: Recording, spikes: SpikeTimes) -> bool:
    """Return whether trials lie where spikes in samples do only if their times are seconds."""
    if (name := _clock_column(recording)) is None:
        return False
    times = recording.trials[name].astype(np.float64)
    sample = sample_units(spikes.units)
    low, high = spikes.clock.seconds(np.array([sample.low, sample.high])).tolist()
    as_samples = np.nanmax(times) * recording.clock.scale
    inside = (times >= low) & (times <= high)
    return bool(as_samples < 0.01 * (high - low) and inside.mean() > 0.9)


def _compare(recording: Recording, spikes: SpikeTimes) -> None:
    """Refuse spikes that lie elsewhere than what the file says was recorded."""
    sample = sample_units(spikes.units)
    if recording.observed is None:
        return
    low, high = spikes.clock.seconds(np.array([sample.low, sample.high])).tolist()
    if not np.isfinite(recording.observed).all():  # always, or to the end
        low, high = _range(spikes) if sample.n_spikes else (0.0, 0.0)
        bounds = [-np.inf, low], [np.inf, high]
        for infinite, bound in bounds:
            recording.observed[recording.observed == infinite] = bound
    if recording.is_one_clock or sample.n_spikes < _FEW:
        return
    begin, end = float(recording.observed[:, 0].min()), float(recording.observed[:, 1].max())
    if min(high, end) - max(low, begin) < 0.1 * (high - low):
        recording.refusals.append(
            f"the spikes lie from {low:.6g} to {high:.6g} s, but the file says that units were "
            f"recorded from {begin:.6g} to {end:.6g} s (obs_intervals): these are in another unit, "
            "or on another clock. Correct them; or, if the spikes are right, leave them out."
        )


class _TrialTimes(NamedTuple):
    """Spike times by unit, in the file's unit, with the trial of each spike."""

    times: list[Array]
    ids: list[Array]
    known: Array  # trials, sorted
    places: list[Indices]  # among the known ones

    @classmethod
    def of(cls, spikes: SpikeTimes) -> _TrialTimes:
        """Read the times and trials of all spikes."""
        times = [np.asarray(some[:]).reshape(-1) for some in spikes.units]
        ids = [np.asarray(some[:]).reshape(-1) for some in spikes.trials or ()]
        known = np.unique(np.concatenate([some[some == some] for some in ids]))
        most = max(0, len(known) - 1)
        return cls(times, ids, known, [np.searchsorted(known, s).clip(max=most) for s in ids])

    def overlap(self) -> float:
        """Return the fraction of trials whose spikes begin before those of another have ended."""
        lows, highs = np.full(len(self.known), np.inf), np.full(len(self.known), -np.inf)
        for some, place in zip(self.times, self.places, strict=True):
            np.minimum.at(lows, place, some.astype(np.float64))
            np.maximum.at(highs, place, some.astype(np.float64))
        order = np.argsort(lows, kind="stable")
        order = order[np.isfinite(lows[order])]
        return float(np.mean(highs[order][:-1] > lows[order][1:])) if len(order) > 1 else 1.0


def _by_trial(
    recording: Recording, spikes: SpikeTimes, by_trial: _TrialTimes, is_relative: bool
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


def _observe_trials(
    recording: Recording, times: Sequence[Array], places: Sequence[Indices]
) -> None:
    """Take as recorded only what lies about the spikes of a trial, which are stored by trial."""
    seconds = recording.clock.seconds(np.concatenate(times))
    place = np.concatenate(places)
    lows, highs = np.full(place.max() + 1, np.inf), np.full(place.max() + 1, -np.inf)
    np.minimum.at(lows, place, seconds)
    np.maximum.at(highs, place, seconds)
    slack = _SLACK * (highs - lows) / np.bincount(place)
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
    for name in _IDS:
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
            f"Spikes belong to trials {low} to {high}, but there are {n} trials. Choose another "
            "table (--trials), or add a column with the number of each trial, such as trial_id."
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
    lower = {name.lower(): c for name, c in recording.trials.items() if c.dtype.kind in "uif"}
    begin = next((lower[name] for name in _ONSETS if name in lower), None)
    seconds, durations = recording.clock.seconds, None
    pairs = of_table(recording.trials)
    if pairs is not None:
        lengths = np.diff(seconds(pairs), axis=1).ravel()
        durations = lengths if (lengths > 0).all() else None
    elif "duration" in lower and (lower["duration"] > 0).all():
        durations = seconds(lower["duration"])
    if begin is None or not np.isfinite(begin).all() or len(begin) < 2:
        return None, durations
    onsets = seconds(begin)
    # Where trials begin within the time that one lasts, this counts from the trial, too.
    ascending = float(np.mean(np.diff(onsets) > 0))
    is_clock = ascending > 0.9 and np.ptp(onsets) > 2 * longest
    return (onsets if is_clock else None), durations


# ---- a clock that was reset ----------------------------------------------------------------------

_MOST_BLOCKS = 10  # clocks are reset a few times; what falls back more often are trials
_LEAST = 3  # spikes out of order on both sides of a fall; fewer are displaced ones
_AROUND = 50  # spikes on both sides of a fall that are looked at
_FEW = 30  # spikes of a unit among which a reset may stay unseen


class _Break(NamedTuple):
    """A place at which the clock of a unit was reset: the spike before, and the times around."""

    place: int
    before: float
    after: float


def _by_block(recording: Recording, spikes: SpikeTimes) -> None:
    """Lay out blocks between which the clock was reset; sort times that are out of order."""
    scan = spikes.scan
    counts = np.array([spikes.count(unit) for unit in range(spikes.n_units)])
    fallen = np.flatnonzero(scan.n_falls).tolist()
    breaks: dict[int, list[_Break]] = {}
    # In any order every second spike falls back, and sorting is all that can be done.
    if not recording.is_one_clock and scan.n_falls.sum() < 0.2 * counts[fallen].sum():
        breaks = {unit: _breaks(spikes, unit) for unit in fallen}
    most = max((len(some) for some in breaks.values()), default=0)
    if not most:
        recording.warnings.append(
            f"the spike times of {len(fallen)} units do not ascend (units {list_some(fallen)}, "
            "counted from 0); they were sorted"
        )
        return
    whole = {unit: some for unit, some in breaks.items() if len(some) == most}
    firsts = [some[0] for some in breaks.values() if some]
    at = max(one.before for one in firsts)
    fell = (
        f"the spike times of {len(firsts)} of {int((counts > 0).sum())} units fall back "
        f"{'once' if most == 1 else f'up to {most} times'}, first at {at:.4g} s by "
        f"{at - min(one.after for one in firsts):.4g} s"
    )
    low, high = recording.span() if recording.observed is None else _range(spikes)
    if most >= _MOST_BLOCKS or (most > 1 and most + 1 == recording.n_trials):
        recording.refusals.append(
            f"{fell}, and lie from {low:.4g} to {high:.4g} s: they seem to count from the start of "
            f"each trial{_events(recording)}. Name the array with the trial of each spike: "
            "--spike-times relative --spike-trials NAME."
        )
        return
    place = np.array([[(one.before, one.after) for one in some] for some in whole.values()])
    last, first = place[:, :, 0].max(axis=0), place[:, :, 1].min(axis=0)
    unseen: list[int] = []
    other: list[int] = []
    for unit in np.flatnonzero(counts).tolist():
        if unit not in whole and scan.n_falls[unit] == most:
            whole[unit] = _breaks(spikes, unit, least=1)
        reach = 30 * (scan.high[unit] - scan.low[unit]) * (most + 1) / counts[unit]
        here = whole.get(unit, [])
        fits = len(here) == most and all(
            one.before >= a - reach and one.after <= b + reach
            for one, a, b in zip(here, last, first, strict=True)
        )
        if not fits:
            (unseen if counts[unit] < _FEW else other).append(unit)
    if other:
        recording.refusals.append(
            f"{fell}, and those of others do not, or elsewhere (units {list_some(other)}, counted "
            "from 0): a clock was reset for some units only, or pieces that overlap were joined. "
            "Bring all to one clock, or leave units out of the file. If all lie on one clock "
            "already, say --spike-times absolute: spikes are sorted."
        )
        return
    if recording.observed is not None or recording.invalid:
        recording.refusals.append(
            f"{fell}: a clock was reset. The file also says when units were recorded or not valid, "
            "and to which side of the reset these times belong is unknown: bring all to one clock."
        )
        return
    _lay_out_blocks(recording, spikes, whole, unseen, fell)


def _breaks(spikes: SpikeTimes, unit: int, least: int = _LEAST) -> list[_Break]:
    """Return where a unit's clock was reset: `least` spikes are out of order on both sides."""
    falls, array = spikes.scan.falls[unit], spikes.units[unit]
    result: list[_Break] = []
    for place in falls.tolist():
        begin = max(result[-1].place + 1 if result else 0, place + 1 - _AROUND)
        around = spikes.clock.seconds(array[begin : place + 1 + _AROUND])
        left, right = np.split(around, [place + 1 - begin])
        before, after = float(left[-1]), float(right[0])
        if min((left > after).sum(), (right < before).sum()) >= least:
            result.append(_Break(place, before, after))
    return result


def _lay_out_blocks(
    recording: Recording,
    spikes: SpikeTimes,
    breaks: dict[int, list[_Break]],
    unseen: list[int],
    fell: str,
) -> None:
    n_blocks = 1 + max(map(len, breaks.values()))
    pieces = {
        unit: np.split(spikes.clock.seconds(spikes.units[unit][:]), [b.place + 1 for b in some])
        for unit, some in breaks.items()
        if unit not in unseen
    }
    lows, highs = np.full(n_blocks, np.inf), np.full(n_blocks, -np.inf)
    numbers = np.zeros(n_blocks)
    for blocks in pieces.values():
        lows = np.minimum(lows, [b.min(initial=np.inf) for b in blocks])
        highs = np.maximum(highs, [b.max(initial=-np.inf) for b in blocks])
        numbers += [len(b) for b in blocks]
    slack = _SLACK * (highs - lows) / np.maximum(numbers, 1)
    begins = np.where(lows >= 0, np.maximum(lows - slack, 0), lows - slack)
    # Behind all that may be on the clock of the first block, so that nothing else lies there.
    far = max(highs[0] + slack[0], *_ends(recording))
    offsets = np.zeros(n_blocks)
    for block in range(1, n_blocks):
        offsets[block] = np.ceil(far) + _GAP_S - np.floor(begins[block])
        far = highs[block] + slack[block] + offsets[block]
    laid: list[AnyArray] = []
    for unit in range(spikes.n_units):
        blocks = pieces.get(unit, [np.empty(0)] * n_blocks)
        laid.append(np.concatenate([np.sort(b) + o for b, o in zip(blocks, offsets, strict=True)]))
    latest = float(np.abs(np.concatenate([lows, highs])).max())
    tolerance = max(spikes.clock.tolerance(latest, stored_type(a[:])) for a in spikes.units)
    recording.spikes = SpikeTimes(laid, tolerance=tolerance)
    recording.observed = np.stack([begins + offsets, highs + slack + offsets], axis=1)
    if unseen:
        whole = recording.observed
        recording.unit_observed = [
            np.empty((0, 2)) if unit in unseen else whole for unit in range(spikes.n_units)
        ]
        recording.warnings.append(
            f"{len(unseen)} units have too few spikes to see where the clock was reset (units "
            f"{list_some(unseen)}, counted from 0); they are left out"
        )
    spans = ", ".join(f"{a:.4g} to {b:.4g} s" for a, b in zip(lows, highs, strict=True))
    recording.warnings.append(
        f"{fell}: a clock was reset. The recording is taken as {n_blocks} blocks ({spans}), laid "
        "out one after another. If all lie on one clock, say --spike-times absolute"
    )
    _place_trials(recording, lows, highs, offsets)
    _place_series(recording, offsets)


def _place_trials(recording: Recording, lows: Floats, highs: Floats, offsets: Floats) -> None:
    """Find the block of each trial by the falls of the trials' times, or refuse to guess."""
    name = _clock_column(recording)
    if name is None:
        return
    times = recording.event_times(name)
    blocks = np.zeros(len(times), dtype=np.int64)
    known = np.flatnonzero(np.isfinite(times))
    blocks[known[1:]] = np.cumsum(np.diff(times[known]) < 0)
    blocks = np.maximum.accumulate(blocks)
    if blocks.max() + 1 == len(offsets):
        recording.starts = offsets[blocks]
        recording.notes.append(f"trials belong to the blocks between which {name!r} falls back")
    elif np.nanmax(times) > highs.max() + 1:
        recording.warnings.append(
            f"the trials' {name!r} goes on to {np.nanmax(times):.4g} s: these are times of the "
            "clock of the first block, and only trials in it have spikes"
        )
    else:
        recording.unplaced = (
            f"a clock was reset, and {name!r} of the trials, from {np.nanmin(times):.4g} to "
            f"{np.nanmax(times):.4g} s, does not say to which of the {len(offsets)} blocks a "
            "trial belongs. Bring spikes and trials to one clock, or cut windows of the whole "
            "recording (--chop-ms)."
        )
        recording.warnings.append(recording.unplaced)


def _place_series(recording: Recording, offsets: Floats) -> None:
    """Move series whose times fall back where spikes do to the blocks."""
    for series in recording.series.values():
        if series.times is None:
            continue
        times = series.seconds(0, series.n_samples)
        blocks = np.concatenate([[0], np.cumsum(np.diff(times) < 0)]).astype(np.int64)
        if blocks[-1] + 1 == len(offsets):
            series.times, series.clock = times + offsets[blocks], Clock()


def _clock_column(recording: Recording) -> str | None:
    """Return the column of the trials that says best when each was."""
    names = numeric_columns(recording.trials)
    lower = {name.lower(): name for name in names}
    likely = [lower[name] for name in _ONSETS if name in lower]
    likely += [name for name in names if name.lower().endswith(("time", "times"))]
    return next((n for n in likely if recording.trials[n].dtype.kind in "uif"), None)


def _events(recording: Recording) -> str:
    """Say where the trials' times lie."""
    name = _clock_column(recording)
    if name is None:
        return ""
    times = recording.event_times(name)
    return f" ({name!r} of the trials from {np.nanmin(times):.4g} to {np.nanmax(times):.4g} s)"


def _ends(recording: Recording) -> list[float]:
    """Return the last moments of the trials and series."""
    ends = [s.seconds(s.n_samples - 1, s.n_samples)[0] for s in recording.series.values()]
    if name := _clock_column(recording):
        ends.append(np.nanmax(recording.event_times(name)))
    return [float(end) for end in ends if np.isfinite(end)] or [0.0]


def _range(spikes: SpikeTimes) -> tuple[float, float]:
    """Return first and last spike of all."""
    return float(spikes.scan.low.min()), float(spikes.scan.high.max())
