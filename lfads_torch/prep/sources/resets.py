"""A clock that was reset: the pieces of the recording, called blocks, are laid out in turn."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ...data.find import list_some
from ..binning import Floats, stored_type
from ..names import ONSETS, first_of
from ..stretches import GAP_S
from .recording import AnyArray, Clock, Recording, SpikeTimes
from .trial_times import SLACK

_MOST_BLOCKS = 10  # clocks are reset a few times; what falls back more often are trials
_LEAST = 3  # spikes out of order on both sides of a fall; fewer are displaced ones
_AROUND = 50  # spikes on both sides of a fall that are looked at
_FEW = 30  # spikes of a unit among which a reset may stay unseen


class _Break(NamedTuple):
    """A place at which the clock of a unit was reset: the spike before, and the times around."""

    place: int
    before: float
    after: float


def place_blocks(recording: Recording, spikes: SpikeTimes) -> None:
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
    low, high = recording.span() if recording.observed is None else spikes.span()
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
            f"{fell}. Those of others (units {list_some(other)}, counted from 0) do not, or fall "
            "back elsewhere: a clock was reset for some units only, or pieces that overlap were "
            "joined. Bring all to one clock, or leave units out of the file. If all lie on one "
            "clock already, say --spike-times absolute: spikes are sorted."
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
    slack = SLACK * (highs - lows) / np.maximum(numbers, 1)
    begins = np.where(lows >= 0, np.maximum(lows - slack, 0), lows - slack)
    # Behind all that may be on the clock of the first block, so that nothing else lies there.
    far = max(highs[0] + slack[0], *_ends(recording))
    offsets = np.zeros(n_blocks)
    for block in range(1, n_blocks):
        offsets[block] = np.ceil(far) + GAP_S - np.floor(begins[block])
        far = highs[block] + slack[block] + offsets[block]
    laid: list[AnyArray] = []
    for unit in range(spikes.n_units):
        blocks = pieces.get(unit, [np.empty(0)] * n_blocks)
        laid.append(np.concatenate([np.sort(b) + o for b, o in zip(blocks, offsets, strict=True)]))
    largest = float(np.abs(np.concatenate([lows, highs])).max())
    tolerance = max(spikes.clock.tolerance(largest, stored_type(a[:])) for a in spikes.units)
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
    _place_trials(recording, float(highs.max()), offsets)
    _place_series(recording, offsets)


def _place_trials(recording: Recording, latest: float, offsets: Floats) -> None:
    """Place trials in the blocks between which their times fall back, or say what is unclear."""
    name = clock_column(recording)
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
    elif np.nanmax(times) > latest + 1:
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


def clock_column(recording: Recording) -> str | None:
    """Return the column of the trials that says best when each was."""
    numeric = {name: c for name, c in recording.trials.items() if c.dtype.kind in "uif"}
    others = (name for name in numeric if name.lower().endswith(("time", "times")))
    return first_of(ONSETS, numeric) or next(others, None)


def _events(recording: Recording) -> str:
    """Say where the trials' times lie."""
    name = clock_column(recording)
    if name is None:
        return ""
    times = recording.event_times(name)
    return f" ({name!r} of the trials from {np.nanmin(times):.4g} to {np.nanmax(times):.4g} s)"


def _ends(recording: Recording) -> list[float]:
    """Return the last moments of the trials and series."""
    ends = [s.seconds(s.n_samples - 1, s.n_samples)[0] for s in recording.series.values()]
    if name := clock_column(recording):
        ends.append(np.nanmax(recording.event_times(name)))
    return [float(end) for end in ends if np.isfinite(end)] or [0.0]
