"""In which unit a file's times are: seconds, unless the rates that this gives cannot be right.

A few spikes at the ends of the lists say it, before anything is counted or grouped by unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..binning import Array
from .recording import UNIT_S, AnyArray

# Mean spikes/s of a unit. Between these a unit of time is plausible; sparse units of a day-long
# recording come near the first, a few fast ones near the second.
_LEAST, _MOST = 0.02, 200.0
# Times are seconds by default, so another unit is taken only where rates are far beyond.
_TOO_SLOW, _TOO_FAST = 0.01, 1000.0
# Together they are implausible, too: of a recording, and of a trial.
_SLOW, _LONG_S, _LONG_TRIAL_S = 0.1, 3 * 3600.0, 120.0
# All spikes of an array in one list fire a hundred times as fast.
_POOLED = 100.0
# Where neither the file nor the user says it; usual are 20 to 40 kHz.
_USUAL_HZ = 30_000.0
_ENOUGH = 50  # spikes; fewer say nothing
_TAKEN = 64  # spikes at both ends of a list
_LISTS = 200


class Verdict(NamedTuple):
    """A unit of time with a note or a warning, or the reason why it is unclear."""

    unit: str = "s"
    note: str = ""
    warning: str = ""
    refusal: str = ""


@dataclass
class Sample:
    """What a few spike times, in the unit of their file, say of all."""

    low: float
    high: float
    n_spikes: int
    n_units: int
    is_whole: bool  # no time has a fraction

    @property
    def span(self) -> float:
        """Time from the first spike to the last."""
        return self.high - self.low


def sample_units(units: Sequence[AnyArray]) -> Sample:
    """Look at both ends of the lists of some units."""
    filled = [array for array in units if array.shape[0]]
    step = max(1, len(filled) // _LISTS)
    ends = [_ends(array) for array in filled[::step]]
    return _sample(ends, sum(array.shape[0] for array in filled), len(filled))


def sample_list(times: AnyArray, owner: AnyArray) -> Sample:
    """Look at both ends of a list of all spikes, and at the units that these belong to."""
    n = times.shape[0]
    rows = sorted(set(np.linspace(0, n - 1, 20).astype(int).tolist())) if n else []
    labels = np.concatenate([owner[i : i + 500] for i in rows]) if n else np.empty(0)
    return _sample([_ends(times)] if n else [], n, len(np.unique(labels)))


def _ends(array: AnyArray) -> Array:
    n = array.shape[0]
    return np.concatenate([array[: min(_TAKEN, n)], array[max(0, n - _TAKEN) :]])


def _sample(ends: list[Array], n_spikes: int, n_units: int) -> Sample:
    values = np.concatenate(ends) if ends else np.empty(0)
    values = values[np.isfinite(values)] if values.dtype.kind in "uif" else values[:0]
    if not len(values):
        return Sample(0.0, 0.0, 0, 0, False)
    is_whole = bool((values == np.floor(values)).all())
    return Sample(float(values.min()), float(values.max()), n_spikes, n_units, is_whole)


def judge(
    sample: Sample, sampling_hz: float | None = None, *, n_trials: int = 1, fixed: str = ""
) -> Verdict:
    """Return the unit of times by the rates that each gives.

    `n_trials` is by how much longer than the sample's span was recorded, where times begin anew in
    each trial. `fixed` names a format that defines seconds.
    """
    if sample.n_spikes < _ENOUGH or sample.span <= 0 or not sample.n_units:
        return Verdict()
    hz = sampling_hz or _USUAL_HZ
    scales = UNIT_S | {f"samples at {hz:g}/s": 1 / hz}
    per_time = sample.n_spikes / sample.n_units / (sample.span * n_trials)
    rates = {unit: per_time / scale for unit, scale in scales.items()}
    factor = _POOLED if sample.n_units == 1 else 1.0
    fits = [unit for unit, rate in rates.items() if _LEAST <= rate <= _MOST * factor]
    *_, samples = rates
    kind = "whole numbers" if sample.is_whole else "numbers"
    seen = f"spike times are {kind} from {sample.low:.6g} to {sample.high:.6g}"
    readings = ", ".join(
        f"{rate:.2g}/s as {unit} ({sample.span * scales[unit]:.4g} s)"
        for unit, rate in rates.items()
    )
    say = f"{seen}, so that a unit fires {readings}"
    choose = "--time-unit s, ms, us, ns, or samples with --sampling-hz HZ"
    if sample.is_whole:
        # Spike times are never whole seconds. Sorters write samples, and their sampling rate.
        if sampling_hz and samples in fits:
            return _take("samples", f"{seen}: taken as {samples}", fixed, choose)
        # Where samples would fire too fast, nothing but ms is left.
        if not sampling_hz and "ms" in fits and samples not in fits and "us" not in fits:
            return _take("ms", f"{seen}: taken as ms", fixed, choose)
        return Verdict(refusal=f"{say}. Give the unit: {choose}.")
    longest = _LONG_TRIAL_S if n_trials > 1 else _LONG_S
    too_slow = rates["s"] < _TOO_SLOW or (rates["s"] < _SLOW and sample.span > longest)
    if too_slow:
        likely = [unit for unit in fits if unit in UNIT_S and rates[unit] >= _LEAST * 10]
        if len(likely) == 1 and not fixed:
            return Verdict(likely[0], warning=f"{say}: taken as {likely[0]}; if not, {choose}")
        return Verdict(refusal=f"{say}. Give the unit: {choose}.")
    if rates["s"] > _TOO_FAST * factor:
        return Verdict(
            refusal=f"{say}, which no neuron does. Give their unit ({choose}); where they count "
            "from the start of each trial, name the array with the trial of each spike: "
            "--spike-times relative --spike-trials NAME."
        )
    return Verdict()


def _take(unit: str, text: str, fixed: str, choose: str) -> Verdict:
    if fixed:
        return Verdict(refusal=f"{text}, but {fixed} defines seconds. Give the unit: {choose}.")
    return Verdict(unit, note=f"{text}; if not, {choose}")
