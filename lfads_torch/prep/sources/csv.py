"""CSV and other text: a row per spike, a column of times per unit, a row per bin; also trials."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import numpy as np

from ...data.find import list_some
from ...errors import DataError, UserError
from ..binning import Array, Floats
from ..names import OF_TRIAL, SPIKE_COLUMNS, TIMES, TRIAL_OF_SPIKE
from .axes import parse_axes
from .grouping import group_by_unit, names_of_pairs, pair, unpair
from .recording import (
    BinnedSpikes,
    Clock,
    Recording,
    Series,
    SourceOptions,
    SpikeTimes,
    Table,
    find,
    median_step,
)
from .sheet import MISSING, Sheet, is_number, open_sheet
from .tree import is_regular

# Lists of moments that programs such as NeuroExplorer write next to the units.
_EVENTS = re.compile(
    r"evt|strobe|marker|kbd|keyboard|frame|start$|stop$|onset$|offset$|lick|touch|button|ttl|sync",
    re.I,
)
# A column that counts rows, as pandas and R write it, without a name.
_INDEX = re.compile(r"column \d+|index|idx|row|#|nr|no|bin|sample|frame", re.I)
_SUFFIX = re.compile(r"_(s|sec|ms|us|ns|samples)$")


def read_csv(path: Path, options: SourceOptions) -> Recording:
    """Open a CSV file, or another table of text, as a recording.

    A file with a column of times and one of units (``time,unit``) holds a spike per row; channel
    and unit together name one. In any other, a column is a unit: its spike times, blank below the
    last, or its counts with a bin per row. Its units are all numeric columns but those of times and
    events, or those that `options.spikes` names (with wildcards, as ``unit*``).
    """
    sheet = open_sheet(path)
    if not sheet.rows:
        raise DataError(f"{path} has a header ({list_some(sheet.names)}) and no rows.")
    keys = [_key(name) for name in sheet.names]
    named = {"time": options.spikes, "unit": options.spike_units}
    time, unit, channel = (
        _column(keys, (_key(name),) if (name := named.get(role)) else usual)
        for role, usual in SPIKE_COLUMNS.items()
    )
    if options.spike_units and unit is None:
        find(dict(zip(sheet.names, keys, strict=True)), options.spike_units, "column")
    if unit is None and not options.spike_units:
        unit, channel = channel, None
    if time is not None and unit is not None:
        owners = [unit] if channel in (None, unit) else [int(channel or 0), unit]
        return _spike_rows(sheet, keys, time, owners, options)
    return _columns(sheet, keys, options)


def read_table(path: Path) -> Table:
    """Read a table of trials: a header and a row per trial; empty fields are NaN."""
    sheet = open_sheet(path)
    rows = list(sheet.fields())
    wrong = [number for number, row in enumerate(rows, 1) if len(row) < len(sheet.names)]
    if not rows:
        raise DataError(f"{path} has a header ({list_some(sheet.names)}) and no rows.")
    if wrong:
        raise DataError(
            f"{path}: rows {list_some(wrong)} have another number of fields than the header's "
            f"{len(sheet.names)} ({list_some(sheet.names)})."
        )
    columns = zip(*rows, strict=False)
    return {
        name: _typed([value.strip() for value in column], sheet.decimal_comma)
        for name, column in zip(sheet.names, columns, strict=False)
    }


def _typed(values: list[str], decimal_comma: bool) -> Array:
    known = [value for value in values if value.lower() not in MISSING]
    # A column of words may have one that is called none.
    if not all(is_number(value, decimal_comma) for value in known or values):
        flags = {"true": True, "false": False}
        if all(value.lower() in flags for value in values):
            return np.array([flags[value.lower()] for value in values])
        return np.array(values)
    points = [value.replace(",", ".") if decimal_comma else value for value in values]
    numbers = np.array([np.nan if v.lower() in MISSING else float(v) for v in points])
    whole = np.isfinite(numbers).all() and (numbers == np.round(numbers)).all()
    return numbers.astype(np.int64) if whole and not any("." in v for v in points) else numbers


def _key(name: str) -> str:
    """Return a column's name in lower case, without a unit of time at its end."""
    return _SUFFIX.sub("", re.sub(r"[\s.]+", "_", name.strip().lower()))


def _column(keys: list[str], names: tuple[str, ...]) -> int | None:
    return next((keys.index(name) for name in names if name in keys), None)


def _clock(sheet: Sheet, columns: Sequence[int], options: SourceOptions) -> Clock:
    """Return the clock of columns of times: as the user says, else as the header does."""
    said = {sheet.units[i] or _suffix(sheet.names[i]) for i in columns}
    unit = said.pop() if len(said) == 1 else ""
    return replace(options, time_unit=options.time_unit or unit or None).clock()


def _suffix(name: str) -> str:
    match = _SUFFIX.search(name.strip().lower())
    return match[1].removesuffix("ec") if match else ""


# ---- a spike per row -----------------------------------------------------------------------------


def _spike_rows(
    sheet: Sheet, keys: list[str], time: int, owners: list[int], options: SourceOptions
) -> Recording:
    units, labels = group_by_unit(_spikes(sheet, time, owners))
    table, order = {"name": labels}, np.arange(len(units))
    if len(owners) > 1:
        columns = unpair(labels)
        table["name"], order = names_of_pairs(*columns)
        table |= {sheet.names[i]: c[order] for i, c in zip(owners, columns, strict=True)}
    shown = " and ".join(repr(sheet.names[i]) for i in [time, *owners])
    times = SpikeTimes([units[i] for i in order], _clock(sheet, [time], options))
    notes = [f"spike times: columns {shown}"]
    names_of = (_key(options.spike_trials),) if options.spike_trials else TRIAL_OF_SPIKE
    trial = _column(keys, names_of)
    if options.spike_trials and trial is None:
        find(dict(zip(sheet.names, keys, strict=True)), options.spike_trials, "column")
    if trial is not None:
        trials, _ = group_by_unit(_spikes(sheet, trial, owners))
        times.trials = [trials[i] for i in order]
        notes.append(f"trial of each spike: column {sheet.names[trial]!r}")
    return Recording(sheet.path, "CSV file", times, table, clock=options.clock(), notes=notes)


def _spikes(sheet: Sheet, value: int, owners: list[int]) -> Iterator[tuple[Array, Array]]:
    """Yield the owner of each spike, one for both of two columns, and the value in a column."""
    if all(sheet.is_numeric(column) for column in owners):
        for rows in sheet.numbers([*owners, value]):
            owner = rows[:, 0] if len(owners) == 1 else pair(rows[:, 0], rows[:, 1])
            yield owner.astype(np.int64) if (owner == np.round(owner)).all() else owner, rows[:, -1]
        return
    for words in sheet.text([*owners, value]):
        owner = words[:, 0] if len(owners) == 1 else pair(words[:, 0], words[:, 1])
        yield owner, sheet.number(words[:, -1])


# ---- a column per unit ---------------------------------------------------------------------------


def _columns(sheet: Sheet, keys: list[str], options: SourceOptions) -> Recording:
    names = sheet.names
    numeric = [i for i in range(len(names)) if sheet.is_numeric(i)]
    time = _column(keys, TIMES)
    rest = [i for i in numeric if i != time]
    if options.spikes:
        patterns = [word.strip() for word in options.spikes.split(",")]
        units = [i for i in rest if any(fnmatch(names[i], pattern) for pattern in patterns)]
        if time is not None and options.spikes in (names[time], keys[time]):
            units, time = [time], None
    elif rest:
        units = [i for i in rest if not (_EVENTS.search(names[i]) or OF_TRIAL.search(names[i]))]
        units = units or rest
    else:
        alone = _column(keys, SPIKE_COLUMNS["time"])
        units, time = ([] if alone is None else [alone]), None
    if not units:
        which = f"no column matches --spikes {options.spikes}" if options.spikes else "no numbers"
        raise UserError(f"{sheet.path.name}: {which}. Columns: {list_some(names, 20)}.")
    blocks = list(sheet.numbers(numeric))
    data = np.concatenate(blocks or [np.empty((0, len(numeric)))])
    by_column = {column: data[:, i] for i, column in enumerate(numeric)}
    if not options.spikes:
        rows = {i for i in units if _INDEX.fullmatch(names[i]) and is_regular(by_column[i])}
        units = [i for i in units if i not in rows] or units
        by_column = {i: c for i, c in by_column.items() if i not in rows or i in units}
    stamps = None if time is None else by_column[time]
    is_times, why = _are_times([by_column[i] for i in units], stamps, sheet, options)
    if is_times:
        recording = _times(sheet, by_column, units, options)
    else:
        recording = _bins(sheet, by_column, units, time, options)
    recording.notes[0] += f" ({why})" if why else ""
    if skipped := [name for i, name in enumerate(names) if i not in numeric]:
        recording.notes.append(f"not read, since they hold text: columns {list_some(skipped)}")
    return recording


def _are_times(
    columns: list[Floats], stamps: Floats | None, sheet: Sheet, options: SourceOptions
) -> tuple[bool, str]:
    """Return whether columns hold spike times, not counts, and why; or ask."""
    if options.axes:
        what, shape = "the columns of units", (len(columns[0]), len(columns))
        axes = parse_axes(options.axes, what, shape, [("time", "unit"), ("unit",)])
        return axes == ("unit",), "by --axes"
    if stamps is not None and is_regular(stamps):
        return False, ""
    known = [column[np.isfinite(column)] for column in columns]
    below = all(np.isfinite(c[: len(k)]).all() for c, k in zip(columns, known, strict=True))
    short = sum(len(k) < len(columns[0]) for k in known)
    ascend = all((np.diff(k) >= 0).all() for k in known)
    decimal = any((k != np.round(k)).any() for k in known)
    if stamps is None and short and below and (ascend or decimal):
        return True, "blank below the last time of a unit; if not, --axes time,unit"
    if stamps is None and ascend and decimal and len(columns[0]) > 2:
        return True, "all columns ascend; if not, --axes time,unit"
    if not ascend or options.input_bin_ms:
        return False, ""
    n = f"{len(columns)} columns of {len(columns[0])} rows"
    raise UserError(
        f"{sheet.path.name}: {n} can be read in several ways; choose one:\n"
        "  --axes unit: the spike times of a unit in each column\n"
        "  --axes time,unit --input-bin-ms MS: counts, a bin in each row\n"
        "  --spikes COLUMN --spike-units COLUMN: a spike in each row, its time and its unit\n"
        f"Columns: {list_some(sheet.names, 20)}."
    )


def _times(
    sheet: Sheet, by_column: dict[int, Floats], units: list[int], options: SourceOptions
) -> Recording:
    """Take columns as the spike times of a unit each, and the others as lists of events."""
    lists = {i: column[~np.isnan(column)] for i, column in by_column.items()}
    recording = Recording(
        sheet.path,
        "CSV file",
        SpikeTimes([lists[i] for i in units], _clock(sheet, units, options)),
        units={"name": np.array([sheet.names[i] for i in units])},
        clock=_clock(sheet, units, options),
        notes=[f"spike times: {len(units)} columns, one for each unit"],
    )
    events = {sheet.names[i]: times for i, times in lists.items() if i not in units}
    recording.tables = {name: len(times) for name, times in events.items()}
    if options.table:
        recording.trials = {"timestamps": find(events, options.table, "column of events")}
        recording.tables = {k: n for k, n in recording.tables.items() if k != options.table}
    return recording


def _bins(
    sheet: Sheet,
    by_column: dict[int, Floats],
    units: list[int],
    time: int | None,
    options: SourceOptions,
) -> Recording:
    start, bin_s = 0.0, options.input_bin_ms and options.input_bin_ms / 1000
    if time is not None and len(by_column[time]) > 1:
        seconds = _clock(sheet, [time], options).seconds(by_column[time])
        steps = np.diff(seconds)
        start, step = float(seconds[0]), median_step(seconds)
        if not bin_s and (not step > 0 or np.abs(steps - step).max() > 0.01 * step):
            raise UserError(
                f"{sheet.path.name}: column {sheet.names[time]!r} steps by {steps.min():g} to "
                f"{steps.max():g} s, so rows are no bins. If a row is a spike, name the column "
                "with its unit (--spike-units). If rows are bins all the same, give their width "
                "with --input-bin-ms."
            )
        bin_s = bin_s or step
    if not bin_s or not bin_s > 0:
        raise UserError(
            f"{sheet.path.name}: the bin width is unknown: give it with --input-bin-ms (it has no "
            f"column of ascending times). For spike times name the columns of times and of units: "
            f"--spikes COLUMN --spike-units COLUMN; it has {list_some(sheet.names, 20)}."
        )
    data = np.stack([by_column[i] for i in units], axis=1)
    return Recording(
        sheet.path,
        "CSV file",
        BinnedSpikes(data, ("time", "unit"), bin_s, start),
        units={"name": np.array([sheet.names[i] for i in units])},
        series={
            sheet.names[i]: Series(column, ("time",), None, start, 1 / bin_s, at_edges=True)
            for i, column in by_column.items()
            if i not in units and i != time
        },
        clock=options.clock(),
        notes=[f"binned spikes: {len(units)} columns; bins of {bin_s * 1000:g} ms"],
    )
