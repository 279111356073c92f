"""What a recording holds, for people: `lfads prep FILE --list`."""

from __future__ import annotations

import numpy as np

from ..data.validate import show_shape
from .binning import Array
from .sources.contents import describe_values
from .sources.recording import BinnedSpikes, Recording, Series, SpikeTimes


def describe_recording(recording: Recording) -> str:
    """Describe a recording in several lines, the last of which is a command that prepares it."""
    first, last = recording.span()
    lines = [f"{recording.path.name}  ({recording.kind}), {last - first:.6g} s from {first:.6g} s"]
    lines += [f"  {note}" for note in recording.notes]
    lines += ["", f"Units: {recording.n_units}", *_spikes(recording, last - first)]
    lines += _table(recording.units)
    if recording.trials:
        lines += ["", f"Trials: {recording.n_trials}", *_table(recording.trials)]
    else:
        lines += ["", "Trials: none (chop the recording, or name a table with --trials)"]
    if recording.series:
        lines += ["", "Time series:"]
        lines += _columns([[name, *_series(series)] for name, series in recording.series.items()])
    if recording.observed is not None:
        total = float(np.diff(recording.observed, axis=1).sum())
        lines += ["", f"Observed: {total:.6g} s in {len(recording.observed)} stretches"]
    lines += [f"warning: {text}" for text in recording.warnings]
    return "\n".join([*lines, "", "To prepare it, for example:", f"  {_suggestion(recording)}"])


def _spikes(recording: Recording, duration: float) -> list[str]:
    spikes = recording.spikes
    if isinstance(spikes, BinnedSpikes):
        shape = show_shape(spikes.array.shape)
        return [f"  binned: {shape} {spikes.array.dtype}, bins of {spikes.bin_s * 1000:g} ms"]
    counts = np.array([spikes.count(unit) for unit in range(spikes.n_units)])
    if not len(counts) or duration <= 0:
        return ["  no spikes"]
    rates = counts / duration
    text = (
        f"  {counts.sum()} spikes; {rates.min():.3g} to {rates.max():.3g} spikes/s, median "
        f"{np.median(rates):.3g}"
    )
    quiet = int((counts == 0).sum())
    return [text + (f"; {quiet} units without spikes" if quiet else "")]


def _table(table: dict[str, Array]) -> list[str]:
    return _columns([[name, str(c.dtype), describe_values(c)] for name, c in table.items()])


def _series(series: Series) -> list[str]:
    shape = f"{series.n_samples} x {series.n_channels}"
    rate = f"{series.rate:g} samples/s" if series.times is None else "with times"
    return [shape, rate, series.unit]


def _columns(rows: list[list[str]]) -> list[str]:
    if not rows:
        return []
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  " + "  ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _suggestion(recording: Recording) -> str:
    words = [f"lfads prep {recording.path.name} -o {recording.path.stem}_lfads.h5"]
    if isinstance(recording.spikes, SpikeTimes):
        words.append("--bin-ms 10")
    times = [name for name in recording.trials if name.endswith("_time")]
    whole = isinstance(recording.spikes, BinnedSpikes) and "trial" in recording.spikes.axes
    if not recording.trials:
        words.append("--chop-ms 1000 --overlap-ms 200")
    elif not whole:
        event = next((t for t in times if t not in ("start_time", "stop_time")), None)
        event = event or (times[0] if times else "EVENT")
        words.append(f"--align {event}:-250:450")
    return " ".join(words)
