"""CSV files: spike times (a row per spike), binned spikes (a row per bin), tables of trials."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from ...data.find import list_some
from ...errors import DataError, UserError
from ..binning import Array
from .axes import TIMES
from .grouping import group_by_unit
from .recording import BinnedSpikes, Recording, Series, SourceOptions, SpikeTimes, Table
from .timeline import TRIAL_OF_SPIKE

_ROWS = 1 << 19  # rows that are parsed at once
_TIME = ("spike_time", "spike_times", *TIMES)
_UNIT = ("unit", "unit_id", "neuron", "neuron_id", "cluster", "cluster_id", "cell", "channel", "id")


def read_csv(path: Path, options: SourceOptions) -> Recording:
    """Open a CSV file as a recording.

    A file with a column of times and one of units (``time,unit``) holds a spike per row. Any other
    holds a bin per row and a unit per column: all numeric columns but that of the times, or those
    that `options.spikes` names (with wildcards, as ``unit*``); the others then are series.
    """
    header, delimiter, first = _header(path)
    lower = [name.lower() for name in header]
    time = _column(lower, (options.spikes.lower(),) if options.spikes else _TIME)
    unit = _column(lower, (options.spike_units.lower(),) if options.spike_units else _UNIT)
    if time is not None and unit is not None:
        numeric = _is_number(first[unit]) if first else True
        spikes = _spikes(path, delimiter, (time, unit), numeric)
        units, names = group_by_unit(spikes)
        notes = [f"spike times: columns {header[time]!r} and {header[unit]!r}"]
        times = SpikeTimes(units, options.clock())
        names_of = (options.spike_trials.lower(),) if options.spike_trials else TRIAL_OF_SPIKE
        if (trial := _column(lower, names_of)) is not None:
            times.trials, _ = group_by_unit(_spikes(path, delimiter, (trial, unit), numeric))
            notes.append(f"trial of each spike: column {header[trial]!r}")
        return Recording(
            path,
            "CSV file",
            times,
            units={"name": names},
            clock=options.clock(),
            notes=notes,
        )
    return _binned(path, header, delimiter, options)


def read_table(path: Path) -> Table:
    """Read a table of trials: a header and a row per trial; empty fields are NaN."""
    header, delimiter, _ = _header(path)
    with _open(path) as file:
        rows = list(csv.reader(file, delimiter=delimiter))[1:]
    wrong = [number for number, row in enumerate(rows, 2) if row and len(row) != len(header)]
    if wrong:
        raise DataError(
            f"{path}: lines {list_some(wrong)} have another number of fields than the header's "
            f"{len(header)} ({list_some(header)})."
        )
    rows = [row for row in rows if row]
    return {name: _typed([row[i] for row in rows]) for i, name in enumerate(header)}


def _typed(values: list[str]) -> Array:
    known = [value for value in values if value.strip()]
    if not all(_is_number(value) for value in known):
        flags = {"true": True, "false": False}
        if all(value.strip().lower() in flags for value in values):
            return np.array([flags[value.strip().lower()] for value in values])
        return np.array([value.strip() for value in values])
    numbers = np.array([float(value) if value.strip() else np.nan for value in values])
    whole = np.isfinite(numbers).all() and (numbers == np.round(numbers)).all()
    return numbers.astype(np.int64) if whole and not any("." in v for v in known) else numbers


def _open(path: Path) -> TextIO:
    # Excel writes a byte order mark, which would become part of the first column's name.
    return path.open(encoding="utf-8-sig", newline="", errors="replace")


def _header(path: Path) -> tuple[list[str], str, list[str]]:
    """Return the names of the columns, the delimiter, and the first row."""
    try:
        with _open(path) as file:
            lines = [line for line in itertools.islice(file, 2)]
    except OSError as err:
        raise DataError(f"{path} cannot be read: {err}") from err
    if not lines:
        raise DataError(f"{path} is empty.")
    # The most frequent one, since the name of a column may hold another.
    delimiter = max(",;\t", key=lines[0].count)
    names = [name.strip().strip('"') for name in lines[0].rstrip("\r\n").split(delimiter)]
    if all(_is_number(name) for name in names):
        raise DataError(
            f"{path} has no header: its first line must name the columns, such as time,unit. It is "
            f"{lines[0].strip()[:60]!r}."
        )
    first = next(csv.reader(lines[1:], delimiter=delimiter), [])
    return names, delimiter, first


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _column(header: list[str], names: tuple[str, ...]) -> int | None:
    return next((header.index(name) for name in names if name in header), None)


def _parse(path: Path, delimiter: str, **options: Any) -> Iterator[Array]:
    """Yield rows as numbers, block after block."""
    with _open(path) as file:
        next(file)
        while lines := list(itertools.islice(file, _ROWS)):
            try:
                # A unit may be called ch#1: nothing is a comment.
                yield np.loadtxt(lines, delimiter=delimiter, ndmin=2, comments=None, **options)
            except ValueError as err:
                raise DataError(
                    f"{path} holds rows that are not numbers, or of different lengths: {err}"
                ) from err


def _spikes(
    path: Path, delimiter: str, columns: tuple[int, int], numeric: bool
) -> Iterator[tuple[Array, Array]]:
    if numeric:
        for rows in _parse(path, delimiter, usecols=columns):
            owner = rows[:, 1]
            whole = owner.astype(np.int64)
            yield whole if (whole == owner).all() else owner, rows[:, 0]
        return
    for rows in _parse(path, delimiter, usecols=columns, dtype=str):
        try:
            yield rows[:, 1], rows[:, 0].astype(np.float64)
        except ValueError as err:
            raise DataError(f"{path} holds spike times that are not numbers: {err}") from err


def _binned(path: Path, header: list[str], delimiter: str, options: SourceOptions) -> Recording:
    lower = [name.lower() for name in header]
    time = _column(lower, TIMES)
    patterns = [p.strip() for p in options.spikes.split(",")] if options.spikes else ["*"]
    units = [
        i
        for i, name in enumerate(header)
        if i != time and any(fnmatch(name, pattern) for pattern in patterns)
    ]
    if not units:
        raise UserError(
            f"{path.name}: no column matches --spikes {options.spikes}. Columns: "
            f"{list_some(header, 20)}."
        )
    data = np.concatenate(list(_parse(path, delimiter)) or [np.empty((0, len(header)))])
    if data.shape[1] != len(header):
        raise DataError(
            f"{path} has {data.shape[1]} fields per row, its header {len(header)} names."
        )
    clock, start, bin_s = options.clock(), 0.0, None
    if time is not None and len(data) > 1:
        seconds = clock.seconds(data[:, time])
        # The difference of two decimal times has rounding digits, which a bin width must not have.
        start, bin_s = float(seconds[0]), float(f"{np.median(np.diff(seconds)):.7g}")
    if options.input_bin_ms:
        bin_s = options.input_bin_ms / 1000
    if bin_s is None or not bin_s > 0:
        raise UserError(
            f"{path.name}: the bin width is unknown: give it with --input-bin-ms (it has no column "
            f"of ascending times). For spike times it needs columns {_TIME[0]} and {_UNIT[0]}; it "
            f"has {list_some(header, 20)}."
        )
    spikes = BinnedSpikes(data[:, units], ("time", "unit"), bin_s, start)
    rest = [i for i in range(len(header)) if i not in units and i != time]
    return Recording(
        path,
        "CSV file",
        spikes,
        units={"name": np.array([header[i] for i in units])},
        series={
            header[i]: Series(data[:, i], ("time",), None, start, 1 / bin_s, at_edges=True)
            for i in rest
        },
        clock=clock,
        notes=[f"binned spikes: {len(units)} columns; bins of {bin_s * 1000:g} ms"],
    )
