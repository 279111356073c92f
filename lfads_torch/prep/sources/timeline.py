"""One timeline: spikes, trials and series are brought to one clock of seconds.

What does not fit is not used: `Recording.refusals` say why.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ...errors import UserError, one_of
from .recording import Clock, Recording, SourceOptions, SpikeTimes
from .resets import clock_column, place_blocks
from .time_unit import judge, sample_units
from .trial_times import TrialTimes, observe_trials, place_trials

# Formats and objects that define their times to be in seconds.
_SECONDS = ("NWB", "pynapple", "Neo")
_FEW = 30  # spikes; fewer say nothing of where all lie


def settle(recording: Recording, options: SourceOptions) -> None:
    """Bring spikes and trials to one clock; note what was done, or why it cannot be.

    A second call changes nothing.
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
    by_trial = TrialTimes.of(spikes) if spikes.trials and not recording.is_one_clock else None
    if by_trial and options.spike_times != "relative":
        share = by_trial.overlap()
        if 0.1 <= share < 0.5:
            recording.refusals.append(
                f"the trial of each spike is known, and the times of {share:.0%} of the trials "
                "overlap those of the next: whether they count from the start of each trial "
                "(--spike-times relative) or lie on one clock (--spike-times absolute) is unclear. "
                "Say which."
            )
        if share < 0.1 and spikes.are_rows:
            observe_trials(recording, by_trial.times, by_trial.places)
        by_trial = by_trial if share >= 0.5 else None  # else the trial is extra information
    _set_unit(recording, spikes, options, len(by_trial.known) if by_trial else 1)
    _compare(recording, spikes)
    if recording.refusals:
        return  # before all spikes are read
    if by_trial:
        place_trials(recording, spikes, by_trial, options.spike_times == "relative")
    elif (spikes.scan.n_falls > 0).any():
        place_blocks(recording, spikes)


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
            "spike times are samples, but the trials' times are taken as seconds: as samples, all "
            "trials would be at the beginning; if they are samples, say --event-unit samples"
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
    if (name := clock_column(recording)) is None:
        return False
    times = recording.trials[name].astype(np.float64)
    sample = sample_units(spikes.units)
    low, high = spikes.clock.seconds(np.array([sample.low, sample.high])).tolist()
    as_samples = np.nanmax(times) * recording.clock.scale
    inside = (times >= low) & (times <= high)
    return bool(as_samples < 0.01 * (high - low) and inside.mean() > 0.9)


def _compare(recording: Recording, spikes: SpikeTimes) -> None:
    """Refuse spikes outside the time that the file says was recorded."""
    sample = sample_units(spikes.units)
    if recording.observed is None:
        return
    low, high = spikes.clock.seconds(np.array([sample.low, sample.high])).tolist()
    if not np.isfinite(recording.observed).all():  # always, or to the end
        low, high = spikes.span() if sample.n_spikes else (0.0, 0.0)
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
