"""What a recording holds, for people: `lfads prep FILE --list`, and the command to go on with."""

from __future__ import annotations

import itertools
import os
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..data.find import absolute_pattern
from ..data.validate import show_shape
from ..errors import UserError, number
from .binning import Array
from .options import PrepOptions
from .plan import describe_size, plan_windows
from .sources import open_recording
from .sources.contents import Member, contents, describe_values
from .sources.nwb import is_nwb, nwb_contents
from .sources.recording import (
    BinnedSpikes,
    Recording,
    Series,
    SourceOptions,
    SpikeTimes,
    UnknownNameError,
    numeric_columns,
)
from .split_file import describe_split_file, is_split_file
from .trials import whole_bins

_AXES = ("trial,time,unit", "trial,unit,time", "unit,time,trial", "time,unit,trial")
_READINGS = 12  # readings of a file that are tried, where it is unclear which one is meant
_SHOWN = 3  # commands
_READ = 10_000_000  # spikes that are looked through

# How columns and series are called that mean something, the likeliest first.
_EVENT = re.compile(r"(move|go|cue|on|onset|event|time|times|timestamps?)(_|$)", re.I)
_CONDITION = re.compile(
    r"(?<!se)cond|target|dir|type|stim|orient|angle|side|choice|cue|image", re.I
)
_NO_CONDITION = re.compile(r"split|success|correct|reward|outcome|(^|_)id$|block|name", re.I)
_BEHAVIOR = re.compile(r"vel|speed|hand|finger|cursor|pos|kin|force|emg|eye|behav|wheel|run", re.I)
_SPIKES = re.compile(r"spike|spk|unit|neuron|cell|clu|count|raster|binned|roi|dff", re.I)
_NO_SPIKES = re.compile(
    rf"{_CONDITION.pattern}|{_NO_CONDITION.pattern}|{_BEHAVIOR.pattern}|trial|event|(^|[._])go|inds?$"
    r"|label|time|truth|mask|lfp|raw",
    re.I,
)
_NO_BEHAVIOR = re.compile(r"lfp|raw|electric|volt|fluor|roi|df_?f|neuropil|spike|count|rate", re.I)


def describe_file(path: str | os.PathLike[str], options: SourceOptions | None = None) -> str:
    """Describe all that a file holds, also what is unclear or cannot be read, and what to type.

    Parameters
    ----------
    path : str or path
        A recording in any format that `open_recording` reads.
    options : SourceOptions, optional
        What the file does not say itself; of `PrepOptions`, the bin width counts, too.

    Returns
    -------
    str
        What ``lfads prep FILE --list`` prints; its commands were planned with the recording.

    Raises
    ------
    UserError
        Where the file cannot be opened at all.
    """
    options = options or SourceOptions()
    if isinstance(options, PrepOptions) and options.bin_ms is not None:
        number("--bin-ms", options.bin_ms, above=0)
    file, members, is_open = Path(absolute_pattern(path)), list[Member](), False
    with suppress(UserError):
        members, is_open = file_contents(file), True
    if is_split_file(file):
        lines = [*describe_split_file(file), "", "The file holds:"]
        command = f"  {_words(path, options, {}, 1)}"
        return "\n".join([*lines, *_columns([*map(list, members)]), "", "To prepare it:", command])
    recording, problem = None, UserError("")
    planned: list[_Planned] = []
    try:
        recording = open_recording(path, options)
        lines = describe_recording(recording, members, options)
        planned = _of_tables(path, recording, options)
    except UserError as error:
        if recording is None and not is_open:
            raise
        lines = lines if recording else [file.name]
        problem = error
        planned = _of_readings(path, options, error, members)
    shown = _columns([list(member) for member in _hide(members, recording)])
    if shown or recording is None:
        lines += ["", "Also in the file:" if recording else "The file holds:"]
        lines += shown or ["  nothing"]
    if str(problem):
        lines += ["", f"Not clear yet: {problem}", *getattr(problem, "__notes__", ())]
    if planned:
        if_so = "if this is what it holds, " if str(problem) else ""
        choice = "one of:" if len(planned) > 1 else "for example:"
        lines += ["", f"To prepare it, {if_so}{choice}"]
        lines += [f"  {_words(path, *one, number)}" for number, one in enumerate(planned, 1)]
        lines += ["", "Splits: `--split blocks` to choose models, `--split time` for claims about"]
        lines += ["later data (docs/data.md)."]
    elif "--" in str(problem):  # it names options to choose from
        lines += ["", "Give --list again, with the option that is right, to see what follows"]
        lines += ["(docs/data.md)."]
    else:
        lines += ["", "No command is known that prepares it as it is; docs/data.md says how."]
    return "\n".join(lines)


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Add what a file holds under a name to the error that a recording has no such name."""
    try:
        yield
    except UnknownNameError as error:
        file, tail = Path(absolute_pattern(path)), error.name.lower().rpartition(".")[2]
        with suppress(UserError):
            for member in file_contents(file):
                if member.name.lower().rpartition(".")[2] == tail:
                    error.add_note("in the file: " + "  ".join(filter(None, member)))
        raise


def file_contents(path: Path) -> list[Member]:
    """Describe everything in a file, as it is stored; a `DataError` where it cannot be opened."""
    return nwb_contents(path) if is_nwb(path) else contents(path)


def describe_recording(
    recording: Recording,
    members: list[Member] | None = None,
    options: SourceOptions | None = None,
) -> list[str]:
    """Describe in lines what a recording was taken to hold: spikes, units, trials and series."""
    title = f"{recording.path.name}  ({recording.kind})"
    try:
        first, last = recording.span()
        title += f", {last - first:.6g} s from {first:.6g} s"
    except UserError as error:
        first, last = 0.0, 0.0
        recording.warnings.append(str(error))
    lines = [title, *(f"  {note}" for note in recording.notes)]
    lines += ["", f"Units: {recording.n_units}", *_spikes(recording, last - first)]
    if last > first and recording.n_units:
        # For a first look; what a command makes of it may be less.
        lines.append(f"  {describe_size(recording, _bin_widths(recording, options)[0] / 1000)}")
    lines += _table(recording.units)
    if recording.trials:
        lines += ["", f"Trials: {recording.n_trials}", *_table(recording.trials)]
    tables = [f"{name} ({rows} rows)" for name, rows in recording.tables.items()]
    if tables:
        lines += ["", f"{'Other tables' if recording.trials else 'Tables'} that --trials takes:"]
        lines += [f"  {table}" for table in tables]
    elif not recording.trials:
        lines += ["", "Trials: none (chop the recording, or name a table with --trials)"]
    if recording.series:
        kinds = {member.name: member.what for member in members or []}
        lines += ["", "Time series:"]
        lines += _columns(
            [
                [name, *_series(series), kinds.get(name, "").replace("array", "")]
                for name, series in recording.series.items()
            ]
        )
    if recording.observed is not None:
        total = float(np.diff(recording.observed, axis=1).sum())
        lines += ["", f"Observed: {total:.6g} s in {len(recording.observed)} stretches"]
    if recording.warnings:
        lines += ["", *(f"warning: {text}" for text in recording.warnings)]
    return lines


def _hide(members: list[Member], recording: Recording | None) -> list[Member]:
    """Leave out what the lines of the recording show already, by name and values."""
    if recording is None:
        return members
    columns = {
        (name, describe_values(column))
        for table in (recording.units, recording.trials)
        for name, column in table.items()
    }
    return [
        member
        for member in members
        if member.name not in recording.series
        and not any(member.name.endswith(n) and member.values == v for n, v in columns)
    ]


def _spikes(recording: Recording, duration: float) -> list[str]:
    spikes = recording.spikes
    if isinstance(spikes, BinnedSpikes):
        shape = show_shape(spikes.array.shape)
        if recording.extents is not None:
            bins = np.round(np.diff(recording.extents, axis=1) / spikes.bin_s).astype(int)
            low, high = int(bins.min()), int(bins.max())
            shape = f"{len(bins)} trials of {low}" + f" to {high}" * (low != high) + " bins,"
        return [f"  binned: {shape} {spikes.array.dtype}, bins of {spikes.bin_s * 1000:g} ms"]
    rates = _rates(recording, duration)
    if not len(rates) or duration <= 0:
        return ["  no spikes"]
    total = sum(spikes.count(unit) for unit in range(spikes.n_units))
    quiet = int((rates == 0).sum())
    return [
        f"  {total} spikes; {rates.min():.3g} to {rates.max():.3g} spikes/s, median "
        f"{np.median(rates):.3g}" + (f"; {quiet} units without spikes" if quiet else "")
    ]


def _rates(recording: Recording, duration: float) -> Array:
    spikes = recording.spikes
    if not isinstance(spikes, SpikeTimes):
        return np.empty(0)
    counts = [spikes.count(unit) for unit in range(spikes.n_units)]
    return np.array(counts) / max(duration, 1e-9)


def _table(table: dict[str, Array]) -> list[str]:
    return _columns([[name, str(c.dtype), describe_values(c)] for name, c in table.items()])


def _series(series: Series) -> list[str]:
    shape = f"{series.n_samples} x {series.n_channels}"
    rate = f"{series.rate:g} samples/s" if series.times is None else "with times"
    first = float(series.seconds(0, 1)[0])
    last = float(series.seconds(series.n_samples - 1, series.n_samples)[0])
    return [shape, rate, f"{first:.6g} to {last:.6g} s", series.unit]


def _columns(rows: list[list[str]]) -> list[str]:
    if not rows:
        return []
    # A cell that is far longer than the others must not push these away.
    widths = [min(60, max(map(len, column))) for column in zip(*rows, strict=True)]
    return [
        "  " + "  ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


# ---- the command to go on with -------------------------------------------------------------------


# Options that read a file, and those that make a data file of it.
_Planned = tuple[SourceOptions, dict[str, Any]]


def _of_readings(
    file: str | os.PathLike[str], given: SourceOptions, problem: UserError, members: list[Member]
) -> list[_Planned]:
    """Return what can be planned with the options that an error names."""
    commands: list[_Planned] = []
    clear: set[Any] = set()  # spikes that need nothing else
    for reading in itertools.islice(_readings(given, problem, members), _READINGS):
        if reading.get("spikes") in clear:
            continue
        with suppress(UserError):
            options = replace(given, **reading)
            recording = open_recording(file, options)
            if _are_moments(recording):
                commands += _of_tables(file, recording, options)[:1]
                clear |= {reading["spikes"]} if set(reading) == {"spikes"} else set()
        if len(commands) == _SHOWN:
            break
    return commands


def _are_moments(recording: Recording) -> bool:
    """Return whether spikes may be such: numbers of trials or conditions are whole, seconds not."""
    spikes = recording.spikes
    if not isinstance(spikes, SpikeTimes) or recording.clock.scale != 1:
        return True
    first = next((times for u in range(spikes.n_units) for times, _ in spikes.blocks(u)), None)
    return first is None or bool((first != np.round(first)).any())


def _of_tables(
    file: str | os.PathLike[str], recording: Recording, options: SourceOptions
) -> list[_Planned]:
    """Return what can be planned with the trials that are chosen, or else with each table."""
    commands: list[_Planned] = []
    # A table of two rows may be notes; trials are more.
    tables = sorted(recording.tables.items(), key=lambda item: -min(item[1], 10))
    for name, _ in tables if not recording.trials else ():
        if len(commands) == _SHOWN - 1:
            break
        named = replace(options, trials=name)
        with suppress(UserError):
            planned = _planned(open_recording(file, named), named)
            commands += [planned] if "chop_ms" not in planned[1] else []
    try:
        return [*commands, _planned(recording, options)]
    except UserError:
        if not commands:
            raise
        return commands


def _readings(
    given: SourceOptions, problem: UserError, members: list[Member]
) -> Iterator[dict[str, Any]]:
    """Yield options that may make an unclear file clear: those that the error names."""
    text = str(problem)
    free = {f.name for f in fields(SourceOptions) if getattr(given, f.name) == f.default}
    named = {name.replace("-", "_") for name in re.findall(r"--([a-z][a-z-]+)", text)} & free
    for option, word in re.findall(r"--([a-z][a-z-]+) ([^\s;]+)", text):
        name, value = option.replace("-", "_"), word.strip(".,:)'`")
        if name in free and not value.isupper():
            with suppress(ValueError):
                yield {name: float(value) if name in ("input_bin_ms", "sampling_hz") else value}
    if "time_unit" in named:
        yield {"time_unit": "samples", "sampling_hz": 30000.0}
        yield from ({"time_unit": unit} for unit in ("ms", "us", "ns"))
    width: dict[str, Any] = {"input_bin_ms": 1.0} if "input_bin_ms" in named else {}
    if width:
        yield width
    if "axes" in named:
        yield from (width | {"axes": order} for order in _AXES)
    if "spikes" in named:
        likely = list(_likely_spikes(members))
        yield from ({"spikes": name} for name in likely)
        orders = _AXES[:2] if "axes" in free else ()
        yield from ({"spikes": name, "axes": order} for name in likely for order in orders)


def _likely_spikes(members: list[Member]) -> Iterator[str]:
    """Yield names of what may hold spikes: not behaviour, conditions, events and the like."""
    for kind in ("units", "cells", "lists", "RoiResponseSeries", "TimeSeries", "array", "column"):
        for member in members:
            is_table = " x " in member.size
            if member.what == kind and (
                kind == "units"
                or _SPIKES.search(member.name)
                or (is_table and not _NO_SPIKES.search(member.name))
            ):
                yield member.name


def _planned(recording: Recording, given: SourceOptions) -> _Planned:
    """Return options whose windows could be planned; of several the first without a warning.

    Raise the first error where none can.
    """
    _read_spikes(recording)
    source = {field.name: getattr(given, field.name) for field in fields(given)}
    source = {name: value for name, value in source.items() if name in _SOURCE}
    fallback, problem = None, None
    spikes = recording.spikes
    for bin_ms in _bin_widths(recording, given):
        if isinstance(spikes, BinnedSpikes):
            whole_bins(bin_ms, spikes.bin_s * 1000, "A bin (--bin-ms)")
        # Where it is that of the recording it need not be given, which may have many digits.
        is_given = isinstance(spikes, SpikeTimes) or bin_ms != spikes.bin_s * 1000
        width: dict[str, Any] = {"bin_ms": bin_ms} if is_given else {}
        for window in _windows(recording, bin_ms):
            if "chop_ms" in window and fallback:
                return fallback
            chosen = window | _carried(recording, is_chopped="chop_ms" in window)
            for changes in (chosen, {k: v for k, v in chosen.items() if k != "conditions"}):
                options = PrepOptions(**source, **width, **changes)
                attempt = replace(recording, notes=[], warnings=[])
                try:
                    plan_windows(attempt, options, bin_ms / 1000)
                except UserError as error:
                    problem = problem or error
                    continue
                planned = given, width | changes
                if not attempt.warnings:
                    return planned
                fallback = fallback or planned
    if fallback is None:
        raise problem or UserError("No window fits into the recording.")
    return fallback


def _read_spikes(recording: Recording) -> None:
    """Raise an error where spike times cannot be read or are no numbers, as `prepare` would."""
    spikes = recording.spikes
    if not isinstance(spikes, SpikeTimes):
        return
    left = _READ
    for unit in range(spikes.n_units):
        for times, _ in spikes.blocks(unit) if left > 0 else ():
            left -= len(times)


_SOURCE = tuple(field.name for field in fields(SourceOptions))


def _bin_widths(recording: Recording, options: SourceOptions | None) -> list[float]:
    """Return the bin width in ms that was given, or some, the most sensible first."""
    if isinstance(options, PrepOptions) and options.bin_ms is not None:
        return [options.bin_ms]
    spikes = recording.spikes
    if isinstance(spikes, BinnedSpikes):
        width = spikes.bin_s * 1000
        factors = [k for k in (1, 2, 4, 5, 10, 20) if 5 <= k * width <= 20] or [1]
        return [width if k == 1 else float(f"{k * width:.12g}") for k in reversed(factors)]
    first, last = recording.span()
    rates = _rates(recording, last - first)
    rate = float(np.median(rates[rates > 0])) if (rates > 0).any() else 0.0
    # Some tenth of a spike per bin: finer bins cost time and say no more.
    return [5.0 if rate >= 20 else 10.0 if rate >= 8 else 20.0]


def _windows(recording: Recording, bin_ms: float) -> Iterator[dict[str, Any]]:
    """Yield windows in whole bins: around events of the trials, whole trials, or chopped."""
    if recording.extents is not None:
        yield {}
    for event in _events(recording):
        spans = [(-250, 450), (-100, 400), (0, 300)]
        if "start" in event:
            spans = [(0, length) for length in (1000, 500, 250)]
        for start, stop in spans:
            begin, end = round(start / bin_ms) * bin_ms, max(2, stop // bin_ms) * bin_ms
            yield {"align": f"{event}:{begin:.10g}:{end:.10g}"}
    for length, overlap in ((1000, 200), (500, 100), (200, 0)):
        bins = [max(1, length // bin_ms), overlap // bin_ms]
        yield {"chop_ms": bins[0] * bin_ms, "overlap_ms": bins[1] * bin_ms}


def _events(recording: Recording) -> list[str]:
    """Return columns of the trials that are times within the recording, the likeliest first."""
    names = []
    first, last = recording.span()
    for name in numeric_columns(recording.trials):
        if recording.trials[name].dtype.kind == "b":
            continue
        times = recording.event_times(name)
        inside = (times >= first) & (times <= last)
        is_event = bool(_EVENT.search(name)) or name in ("start", "onset")
        if is_event and "stop" not in name and "end" not in name and inside.mean() > 0.5:
            names.append(name)
    return sorted(names, key=lambda name: ("start" in name, recording.starts is not None))


def _carried(recording: Recording, *, is_chopped: bool) -> dict[str, Any]:
    """Return a condition and a behaviour that the recording holds."""
    chosen: dict[str, Any] = {}
    behavior = [
        name
        for name, series in recording.series.items()
        if _BEHAVIOR.search(name) and not _NO_BEHAVIOR.search(name) and series.n_channels <= 20
    ]
    if behavior:
        chosen["behavior"] = [min(behavior, key=lambda name: "vel" not in name.lower())]
    conditions = []
    for name, column in recording.trials.items():
        values = np.unique(column)
        few = 2 <= len(values) <= min(50, recording.n_trials / 2)
        if few and column.dtype.kind != "b" and not _NO_CONDITION.search(name):
            conditions.append(name)
    ranked = [n for n in conditions if _CONDITION.search(n)]
    ranked += [n for n in conditions if recording.trials[n].dtype.kind == "U"]
    if ranked and not is_chopped:
        chosen["conditions"] = ranked[:1]
    return chosen


def _words(
    file: str | os.PathLike[str], given: SourceOptions, changes: dict[str, Any], number: int
) -> str:
    """Write a command, which replaces no file; of several, `number` gives each its output."""
    stem = f"{Path(file).stem}_" + (f"{changes['bin_ms']:g}ms" if "bin_ms" in changes else "lfads")
    numbered = (f"{stem}_{i}.h5" for i in itertools.count(2))
    names = itertools.chain([f"{stem}.h5"], numbered)
    free = (name for name in names if not Path(name).exists())
    words = ["lfads", "prep", str(file), "-o", next(itertools.islice(free, number - 1, None))]
    source = {
        f.name: v for f in fields(SourceOptions) if (v := getattr(given, f.name)) != f.default
    }
    for name, value in (source | changes).items():
        text = ",".join(value) if isinstance(value, list) else value
        shown = f"{text:.10g}" if isinstance(text, float) else str(text)
        words += [f"--{name.replace('_', '-')}", shown]
    return shlex.join(words)
