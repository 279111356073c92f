"""Windows of a recording: aligned to an event of each trial, selected by columns of the trials."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from ..data.find import list_some
from ..errors import DataError, UserError
from .binning import Array, Flags, Floats, Indices, first_bin
from .sources.recording import BinnedSpikes, Recording, SpikeTimes, find, numeric_columns
from .stretches import inside, touching

_CLOSE = 1e-6  # of a bin: by this much a width may miss a whole number of bins


class Align(NamedTuple):
    """A window around an event (a column of the trials), from `start_ms` to `stop_ms` after it."""

    event: str
    start_ms: float
    stop_ms: float


@dataclass
class Windows:
    """Stretches of equal length that are cut out of a recording, in bins of `bin_s` seconds."""

    starts: Floats  # left edge of each window's first bin, seconds
    trials: Indices  # row in the table of trials; -1 where windows are no trials
    n_read: int
    n_bins: int  # with those after the window that are only predicted
    bin_s: float

    @property
    def stops(self) -> Floats:
        """Right edge of each window's last bin, seconds."""
        return np.asarray(self.starts + self.n_bins * self.bin_s)

    def keep(self, chosen: Flags) -> Windows:
        """Return the chosen windows."""
        return replace(self, starts=self.starts[chosen], trials=self.trials[chosen])


def neighbours(starts: Array, width: float, most: float) -> Iterator[Indices]:
    """Yield windows, by their starts, that lie close enough to read all between them at once.

    `most` is what may be read; a window that is wider comes alone.
    """
    order = np.argsort(starts, kind="stable")
    first = 0
    for i in range(1, len(order) + 1):
        if i == len(order) or starts[order[i]] + width - starts[order[first]] > most:
            yield order[first:i]
            first = i


def parse_align(text: str) -> Align:
    """Read ``EVENT:START:STOP``, milliseconds around an event."""
    event, *numbers = text.rsplit(":", 2)
    try:
        start, stop = (float(number) for number in numbers)
    except ValueError:
        raise UserError(
            f"--align {text!r}; legal is EVENT:START:STOP in ms, such as move_onset_time:-250:450."
        ) from None
    if not (np.isfinite([start, stop]).all() and start < stop):
        raise UserError(f"--align {text!r}; the window must end after its beginning.")
    return Align(event, start, stop)


def whole_bins(width_ms: float, bin_ms: float, what: str) -> int:
    """Return the bins in a width, or raise an error that names the nearest widths of whole bins."""
    number = width_ms / bin_ms
    if not np.isfinite(number) or abs(number - round(number)) > _CLOSE * max(1, abs(number)):
        near = bin_ms * np.floor(number)
        legal = " or ".join(f"{width:g}" for width in (near, near + bin_ms) if width > 0)
        raise UserError(
            f"{what} of {width_ms:g} ms is no whole number of bins of {bin_ms:g} ms; take "
            f"{legal} ms, or another --bin-ms."
        )
    return round(number)


def select_rows(table: Mapping[str, Array], rules: Sequence[str], what: str) -> Any:
    """Return which rows of a table meet all rules, or None where there are no rules.

    A rule is ``COLUMN=VALUE`` (several values with commas between them: any of them), ``!=`` (none
    of them), ``<``, ``<=``, ``>`` or ``>=``. A missing value (NaN) meets only ``!=``. `what` says
    what a row is, for errors.
    """
    chosen = None
    for rule in rules:
        match = re.fullmatch(r"\s*([^=<>!]+?)\s*(==|!=|<=|>=|=|<|>)\s*(.*?)\s*", rule)
        if match is None:
            raise UserError(
                f"{rule!r} does not select {what}; legal is COLUMN=VALUE[,VALUE], or with !=, <, "
                "<=, >, >=."
            )
        name, sign, text = match.groups()
        column = find(dict(table), name, f"column of the {what}")
        met = _compare(column, sign, text, rule)
        chosen = met if chosen is None else chosen & met
    return chosen


_ORDER: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_FLAGS = {"true": 1.0, "false": 0.0, "yes": 1.0, "no": 0.0}


def _compare(column: Array, sign: str, text: str, rule: str) -> Flags:
    words = [word.strip() for word in text.split(",")]
    values: list[Any] = words
    if column.dtype.kind in "buif":
        try:
            values = [_FLAGS.get(word.lower()) for word in words]
            values = [float(w) if v is None else v for v, w in zip(values, words, strict=True)]
        except ValueError:
            raise UserError(f"{rule!r}: the column holds numbers, {text!r} is none.") from None
    if sign in _ORDER:
        if len(values) > 1 or column.dtype.kind not in "buif":
            raise UserError(f"{rule!r}: {sign} compares a column of numbers with one number.")
        return np.asarray(_ORDER[sign](column, values[0]))
    met = np.isin(column, values)
    if sign == "!=":
        return ~met
    if not met.any():
        values = np.unique(column[:10_000]).tolist()
        raise UserError(f"{rule!r} selects nothing; the column holds {list_some(values)}.")
    return met


def trial_windows(
    recording: Recording,
    align: Align | None,
    bin_s: float,
    forward_ms: float = 0.0,
    ends: Floats | None = None,
) -> Windows:
    """Return windows around an event of each trial; the recording's warnings say what is left out.

    Without `align`, trials that are stored one by one are taken whole. In binned recordings a
    window begins with the first bin that begins at or after its start. `forward_ms` after the
    window is predicted but not read. Trials that end (`ends`, seconds; NaN where unknown) within
    their window need not have been recorded after that.
    """
    if not recording.n_trials:
        tables = [f"{name} ({rows} rows)" for name, rows in recording.tables.items()]
        choice = (
            f"It has other tables, {list_some(tables, 20)}: choose one with --trials, such as "
            f"--trials {next(iter(recording.tables))}"
            if tables
            else "Name a table of trials with --trials (a group of the file, or a CSV file with a "
            "column of event times)"
        )
        raise UserError(
            f"{recording.path.name} has no trials. {choice}; or cut it into overlapping windows "
            "with --chop-ms and --overlap-ms."
        )
    if recording.unplaced:
        raise DataError(f"{recording.path.name}: {recording.unplaced}")
    align = align or _whole_trials(recording, bin_s)
    bin_ms = bin_s * 1000
    n_read = whole_bins(align.stop_ms - align.start_ms, bin_ms, "A window")
    n_bins = n_read + whole_bins(forward_ms, bin_ms, "Forward prediction")
    event = recording.event_times(align.event)
    starts = event + align.start_ms / 1000
    rows = np.flatnonzero(np.isfinite(event))
    if missing := len(event) - len(rows):
        recording.warnings.append(
            f"{missing} of {len(event)} trials have no {align.event!r} (NaN); they are left out"
        )
    windows = Windows(starts[rows], rows, n_read, n_bins, bin_s)
    snap_to_bins(recording, windows)
    recorded = in_recording(recording, windows, ends=None if ends is None else ends[rows])
    marked = in_invalid(recording, windows)
    if not recorded.any():
        first, last = recording.span()
        events = event[rows]
        span = f"the events at {events.min():g} to {events.max():g} s" if len(rows) else "no trial"
        raise DataError(
            f"No window around {align.event!r} lies in the recording, from {first:g} to {last:g} "
            f"s: {span}. {_HINT}"
        )
    _check_clock(recording, windows, event, align.event)
    if outside := int((~recorded).sum()):
        recording.warnings.append(
            f"the windows of {outside} of {len(event)} trials lie outside the recording (trials "
            f"{list_some(windows.trials[~recorded].tolist())}, counted from 0); they are left out"
        )
    if marked.any():
        where = ", ".join(map(repr, recording.invalid))
        recording.warnings.append(
            f"the windows of {int(marked.sum())} of {len(event)} trials touch times that the file "
            f"marks as not valid by {where} (trials {list_some(windows.trials[marked].tolist())}, "
            "counted from 0); they are left out"
        )
        if not (recorded & ~marked).any():
            raise DataError(f"No window is left: all touch what {where} marks as not valid.")
    return windows.keep(recorded & ~marked)


_HINT = (
    "Are times in another unit (--time-unit, of the trials --event-unit), or do they count from "
    "the start of each trial? Then name the array with the trial of each spike: --spike-times "
    "relative --spike-trials NAME."
)


def _check_clock(recording: Recording, windows: Windows, event: Floats, name: str) -> None:
    """Refuse events that cannot lie on the clock of the recording, by where they lie."""
    if recording.starts is not None or recording.is_one_clock or len(windows.trials) < 4:
        return
    times, n = event[windows.trials], len(windows.trials)
    length, spacing = windows.n_bins * windows.bin_s, np.ptp(times) / (n - 1)
    first, last = recording.span()
    # Events in close succession ascend through the recording; times of each trial's own do not.
    is_long = np.ptp(times) > 0.5 * (last - first) and np.mean(np.diff(times) > 0) > 0.9
    if length > 10 * spacing and not is_long:
        raise DataError(
            f"The {n} times {name!r} lie from {times.min():g} to {times.max():g} s, so that the "
            f"windows of {length:g} s are nearly the same stretch of time; the spikes lie from "
            f"{first:g} to {last:g} s. Times seem to count from the start of each trial: name the "
            "array with the trial of each spike (--spike-times relative --spike-trials NAME). If "
            "only the events count from it, add the trial's start to them; if they are in another "
            "unit than the spikes, name it (--event-unit); if all lie on one clock, say "
            "--spike-times absolute."
        )
    beyond = (times < first) | (times > last)
    if recording.observed is None and beyond.mean() > 0.5:
        raise DataError(
            f"The spikes lie from {first:g} to {last:g} s, and {name!r} of {int(beyond.sum())} of "
            f"{n} trials outside: it is at {times.min():g} to {times.max():g} s. {_HINT} If both "
            "lie on one clock all the same, say --spike-times absolute."
        )
    block = np.cumsum(np.concatenate([[False], np.diff(times) < 0]))
    order = np.argsort(times, kind="stable")
    close = np.diff(times[order]) < length * (1 - 1e-6)
    across = close & (np.diff(block[order]) != 0)
    # A table that is sorted by condition falls back, too, but no two trials are at one time.
    if 0 < block[-1] < 10 and across.sum() > 2 and across.sum() > 0.9 * close.sum():
        fall = int(np.flatnonzero(np.diff(times) < 0)[0])
        raise DataError(
            f"{name!r} falls back by {times[fall] - times[fall + 1]:g} s after trial "
            f"{windows.trials[fall]} (counted from 0), and {int(across.sum())} windows then share "
            f"time with windows before; the spikes lie on one clock from {first:g} to {last:g} s. "
            "Were several recordings joined? Bring events to the clock of the spikes. If all lie "
            "on one clock, say --spike-times absolute."
        )


def snap_to_bins(recording: Recording, windows: Windows) -> None:
    """Move windows of a binned recording to the edges of its bins."""
    spikes = recording.spikes
    # Counts cannot be divided: a window begins with the first bin that lies after its start, less
    # than a bin late.
    if isinstance(spikes, BinnedSpikes):
        first = first_bin(windows.starts, spikes.bin_s, spikes.start)
        windows.starts = np.asarray(spikes.start + first * spikes.bin_s, dtype=np.float64)


def in_recording(
    recording: Recording, windows: Windows, slack_s: float = 1e-6, ends: Floats | None = None
) -> Any:
    """Return which windows were recorded whole, or stick out by at most `slack_s`.

    Of windows that end before (`ends`), only what is before that.
    """
    starts, stops = windows.starts, windows.stops
    spikes = recording.spikes
    if ends is not None:
        if isinstance(spikes, BinnedSpikes):  # all bins are read, also those that are not used
            last = spikes.start + spikes.n_bins * spikes.bin_s
            ends = np.where(stops > last + slack_s, np.nan, ends)
        stops = np.fmin(stops, ends)
    if recording.observed is None and isinstance(spikes, SpikeTimes):
        # The file does not say when recording began and ended, only when spikes did. No gap of
        # ten mean intervals between spikes of all units stands at an end by chance.
        first, last = recording.span()
        total = sum(spikes.count(unit) for unit in range(spikes.n_units))
        slack_s = 10 * (last - first) / total
        return (starts >= first - slack_s) & (stops <= last + slack_s)
    observed = recording.observed
    pieces: Any = np.array([recording.span()]) if observed is None else observed
    return inside(pieces, starts, stops, slack_s)


def in_invalid(recording: Recording, windows: Windows) -> Any:
    """Return which windows share time with stretches that the file marks as not valid."""
    marked = np.zeros(len(windows.starts), dtype=bool)
    for pieces in recording.invalid.values():
        marked |= touching(pieces, windows.starts, windows.stops)
    return marked


def _whole_trials(recording: Recording, bin_s: float) -> Align:
    """Return the window of the longest trial, for trials that are stored one by one."""
    if recording.starts is None or recording.extents is None:
        names = list_some(numeric_columns(recording.trials), 20)
        raise UserError(
            "The window of a trial is missing: give it with --align EVENT:START:STOP (ms), such as "
            f"start_time:0:600. Columns of numbers: {names}."
        )
    times = recording.extents - recording.starts[:, None]
    # Whole bins: of what was recorded of a bin at an end, its count would be too low.
    first = int(first_bin(times[:, :1].min(), bin_s))
    stop = -int(first_bin(-times[:, 1:].max(), bin_s))
    if recording.reach is not None:
        # Where only spikes say how long trials are, no bins before or after all spikes.
        low, high = np.floor(np.array(recording.reach) / bin_s + 1e-9).astype(int).tolist()
        first, stop = max(first, min(low, 0)), min(stop, high + 1)
    if stop <= first:
        raise UserError(f"No trial is as long as a bin of {bin_s * 1000:g} ms (--bin-ms).")
    recording.notes.append(
        f"window: whole trials, from {first * bin_s:g} to {stop * bin_s:g} s of each trial's time"
    )
    return Align("0", first * bin_s * 1000, stop * bin_s * 1000)
