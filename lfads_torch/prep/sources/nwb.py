"""NWB files (Neurodata Without Borders 2), read as the HDF5 files they are.

Only what a recording needs is read, and no schema is loaded, so that a file with hours of raw
voltages opens as fast as one without. `pynwb` is not needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ...data.find import list_some
from ...data.stored import StoredArray, flat
from ...data.validate import show_shape
from ...errors import DataError, UserError
from ..binning import Array
from ..names import INVALID, TRIAL_OF_SPIKE
from .contents import Member, describe_array, describe_values
from .grouping import split_by_index
from .hdf5 import DataSet, open_for_reading
from .observed import add_invalid, observe_units
from .recording import (
    BinnedSpikes,
    Recording,
    Series,
    SourceOptions,
    SpikeTimes,
    Table,
    count_rows,
    find,
    median_step,
)
from .tree import as_column

# Groups without data of a recording: who and what was recorded, and the definitions of NWB's types.
_ABOUT = ("general", "specifications")
# Several values per row, which an index column splits by its ends; see DynamicTable and VectorIndex
# in https://nwb-schema.readthedocs.io/en/latest/format.html
_RAGGED_UNITS = ("spike_times", "obs_intervals", "waveforms", "waveform_mean", "waveform_sd")
# Lists of moments: of NWB, and of the extension ndx-events.
_EVENTS = ("AnnotationSeries", "Events", "LabeledEvents", "TTLs", "IntervalSeries")


def read_nwb(path: Path, options: SourceOptions, file: Any = None) -> Recording:
    """Open an NWB file as a recording; `file` is its open HDF5 file or Zarr store.

    `options.spikes` may name a table of units or a time series of binned spikes, `options.trials` a
    table of intervals or a list of events.
    """
    file = open_for_reading(path) if file is None else file
    held = survey(file)
    recording = Recording(
        path,
        f"NWB {_text(file.attrs.get('nwb_version', ''))}".strip(),
        SpikeTimes([]),
        series=held.series,
        clock=options.clock(),
        tables={name: n for name, node in held.tables.items() if (n := _n_timed(node))},
    )
    source = _spikes_source(path, held, options)
    if isinstance(source, Series):
        recording.spikes = _binned(source, f"{path.name}: {options.spikes!r}")
        recording.notes.append(f"binned spikes: {options.spikes!r}")
    else:
        node = held.tables[source]
        times = flat(StoredArray(DataSet(node["spike_times"])))
        units = split_by_index(times, node["spike_times_index"][()])
        recording.spikes = SpikeTimes(units, options.clock())
        names = [options.spike_trials] if options.spike_trials else TRIAL_OF_SPIKE
        for name in names:
            if name in node and f"{name}_index" in node and len(node[name]) == times.shape[0]:
                trials = flat(StoredArray(DataSet(node[name])))
                recording.spikes.trials = split_by_index(trials, node[f"{name}_index"][()])
                recording.notes.append(f"trial of each spike: column {name!r} of the units")
                break
        if options.spike_trials and recording.spikes.trials is None:
            raise UserError(
                f"{path.name}: the units have no column {options.spike_trials!r} with the trial of "
                f"each of their {times.shape[0]} spikes (--spike-trials)."
            )
        recording.units = _table(node)
        _observe(recording, node)
        recording.notes.append(
            "spike times: the table of units" + f" {source!r}" * (source != "units")
        )
    called = [name for name in recording.tables if name.rpartition(".")[2] == "trials"]
    if options.table or len(called) == 1 or "trials" in called:
        choice = options.table or ("trials" if "trials" in called else called[0])
        name = find({n: n for n in recording.tables}, choice, "table of intervals")
        recording.trials = _table(held.tables[name])
        del recording.tables[name]
        if name not in ("trials", options.table):
            recording.notes.append(f"trials: the table {name!r}")
    for name in [n for n in recording.tables if n.rpartition(".")[2].lower() in INVALID]:
        add_invalid(recording, name, _table(held.tables[name]))
        del recording.tables[name]
    return recording


@dataclass
class Survey:
    """What an NWB file holds, by its path with dots; nothing large is read for it."""

    tables: dict[str, Any] = field(default_factory=dict)  # groups; also lists of events
    series: dict[str, Series] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)  # why
    arrays: dict[str, Any] = field(default_factory=dict)  # of no table and no series

    @property
    def units(self) -> list[str]:
        """Names of the tables of units that hold spike times."""
        return [
            name
            for name, node in self.tables.items()
            if "spike_times" in node and "spike_times_index" in node
        ]


def survey(file: h5py.File) -> Survey:
    """Find all tables, time series and other arrays, wherever they are."""
    held = Survey()
    for path, node in _walk(file, held.unreadable):
        name = path.removeprefix("intervals.")
        kind = _text(node.attrs.get("neurodata_type", ""))
        if (
            "colnames" in node.attrs
            or _is_array(node.get("id"))
            or (_is_array(node.get("timestamps")) and (kind in _EVENTS or "data" not in node))
        ):
            held.tables[name] = node
        elif "data" in node or "external_file" in node:
            try:
                held.series[name] = _series(node)
            except DataError as err:
                held.unreadable[name] = f"{kind or 'time series'}: {err}"
        elif path.split(".")[0] not in _ABOUT:
            arrays = ((k, v) for k, v in node.items() if _is_array(v))
            held.arrays |= {f"{name}.{key}": data for key, data in arrays}
    return held


def _spikes_source(path: Path, held: Survey, options: SourceOptions) -> str | Series:
    """Return the name of the table of units, or the time series of binned spikes."""
    units = held.units
    names = [f"{name} ({len(held.tables[name]['spike_times_index'])} units)" for name in units]
    if options.spikes:
        only = units[0] if len(units) == 1 else ""
        if only and options.spikes in ("units", "spike_times"):
            return only
        sources: dict[str, Any] = {name: name for name in units} | held.series
        if "," in options.spikes and options.spikes not in sources:
            raise UserError(
                f"{path.name}: --spikes {options.spikes} names several; of NWB files legal is one "
                f"table of units or time series: {list_some([*names, *held.series], 20)}."
            )
        source: str | Series = find(sources, options.spikes, "table of units or time series")
        return source
    if len(units) == 1:
        return units[0]
    if units:
        raise UserError(
            f"{path.name} has {len(units)} tables of units: {list_some(names, 20)}. Choose one "
            f"with --spikes, such as --spikes {units[-1]}."
        )
    silent = [name for name, node in held.tables.items() if "units" in _text(node.name).lower()]
    raise DataError(
        f"{path.name} has no units with spike times"
        + (f" ({list_some(silent)} has none)" if silent else "")
        + ". Where spikes are binned, name their time series with --spikes; it has: "
        f"{list_some(list(held.series), 20) or 'none'}."
    )


def _binned(source: Series, what: str) -> BinnedSpikes:
    """Take a time series in equal steps as binned spikes."""
    start, rate = source.start, source.rate
    if source.times is not None:
        seconds = source.seconds(0, source.n_samples)
        steps = np.diff(seconds)
        step = median_step(seconds)
        if not step > 0 or np.abs(steps - step).max() > 0.01 * step:
            raise DataError(
                f"{what} has a time for each sample, in steps of "
                + (f"{steps.min():g} to {steps.max():g} s" if len(steps) else "unknown length")
                + "; binned spikes come in equal steps."
            )
        start, rate = float(seconds[0]), 1 / step
    axes = tuple("unit" if axis == "channel" else axis for axis in source.axes)
    array = source.data
    if axes == ("time",):
        raise DataError(f"{what} is one series; binned spikes are bins x units.")
    return BinnedSpikes(array, axes, 1 / rate, start)


def is_nwb(path: Path) -> bool:
    """Return whether a file is NWB, by its ending or its contents."""
    if path.suffix.lower() == ".nwb" or not h5py.is_hdf5(path):
        return path.suffix.lower() == ".nwb"
    with h5py.File(path, "r", locking="best-effort") as opened:
        attrs = opened.attrs
        return "nwb_version" in attrs or "NWBFile" in _text(attrs.get("neurodata_type", ""))


def _is_array(node: Any) -> bool:
    return hasattr(node, "dtype")  # of HDF5 or Zarr


def _is_group(node: Any) -> bool:
    return hasattr(node, "keys")


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


# ---- tables --------------------------------------------------------------------------------------


def _moments(node: Any) -> Any:
    """Return the times of a table's rows."""
    names = ("start_time", "timestamp", "timestamps")
    return next((node[name] for name in names if _is_array(node.get(name))), ())


def _n_timed(node: Any) -> int:
    """Count the rows of a table that have times, around which windows can be cut."""
    moments = _moments(node)
    is_list = len(moments) and "timestamps" in node and "id" not in node
    return count_rows(_events(node)) if is_list else len(moments)


def _table(node: Any) -> Table:
    """Read the columns of a table, or of a list of events, that hold one value per row."""
    if "timestamps" in node and "id" not in node:
        return _events(node)
    return {name: column for name, column in _columns(node) if not isinstance(column, str)}


def _columns(node: Any) -> Iterator[tuple[str, Array | str]]:
    """Yield the columns of a DynamicTable; text says why one has not a value for each row."""
    n_rows = len(node["id"]) if "id" in node else None
    for name, data in node.items():
        if not _is_array(data) or name.endswith("_index"):
            continue
        if f"{name}_index" in node or name in _RAGGED_UNITS:
            yield name, f"several values per row ({len(data)} in all)"
        elif data.ndim != 1:
            yield name, f"{show_shape(data.shape[1:])} values per row"
        elif n_rows is not None and len(data) != n_rows:
            yield name, f"{len(data)} values for {n_rows} rows"
        elif h5py.check_ref_dtype(data.dtype) is not None or data.dtype.names:
            yield name, "references to other data"
        else:
            try:
                yield name, as_column(data[()])
            except (OSError, RuntimeError) as err:
                yield name, f"damaged ({err})"


def _events(node: Any) -> Table:
    """Read a list of events: their times, with labels; the intervals of an IntervalSeries."""
    times = np.asarray(node["timestamps"][()])
    data = node.get("data")
    if not _is_array(data) or data.shape != times.shape:
        return {"timestamps": times}
    values = as_column(data[()])
    if _text(node.attrs.get("neurodata_type", "")) == "IntervalSeries":
        # Positive where an interval begins and negative where it ends; the number is its kind.
        begins, ends = values > 0, values < 0
        if begins.sum() == ends.sum():
            kind = np.abs(values[begins])
            return {"start_time": times[begins], "stop_time": times[ends], "kind": kind}
    labels = data.attrs.get("labels")
    if labels is not None and values.dtype.kind in "ui" and values.max(initial=0) < len(labels):
        values = as_column(np.asarray(labels))[values]
    return {"timestamps": times, "label": values}


def _observe(recording: Recording, units: Any) -> None:
    """Add the stretches in which units were recorded (`obs_intervals`)."""
    if "obs_intervals" not in units or "obs_intervals_index" not in units:
        return
    intervals = np.asarray(units["obs_intervals"][()]).reshape(-1, 2)
    ends = units["obs_intervals_index"][()].astype(np.int64)
    rows = [intervals[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=False)]
    observe_units(recording, rows, "obs_intervals")


# ---- time series ---------------------------------------------------------------------------------


def _series(node: Any) -> Series:
    """Describe a TimeSeries, or raise an error that says why it cannot be used."""
    data = node.get("data")
    if not _is_array(data) or data.size == 0:
        raise DataError("it holds no values itself (images in other files)")
    if data.dtype.kind not in "buif":
        raise DataError(f"it holds {data.dtype}, not numbers")
    if not 1 <= data.ndim <= 2:
        raise DataError(f"{show_shape(data.shape)}: images; extract signals from them first")
    # A TimeSeries has a time for each sample, or a starting time with a rate. Stored values are
    # what the device gave: times `conversion`, plus `offset`, they are in `unit`.
    timing: dict[str, Any]
    if _is_array(times := node.get("timestamps")):
        if times.size != len(data):
            raise DataError(f"{times.size} times for {len(data)} samples")
        timing = {"times": flat(StoredArray(DataSet(times)))}
    elif _is_array(begin := node.get("starting_time")):
        timing = {"start": float(begin[()]), "rate": float(begin.attrs.get("rate", 1.0))}
    else:
        raise DataError("it has neither timestamps nor a starting_time with a rate")
    return Series(
        StoredArray(DataSet(data)),
        ("time", "channel")[: data.ndim],
        scale=float(data.attrs.get("conversion", 1.0)),
        offset=float(data.attrs.get("offset", 0.0)),
        unit=_text(data.attrs.get("unit", "")),
        **timing,
    )


def _walk(group: Any, damaged: dict[str, str], path: str = "", above: Any = ()) -> Iterator[Any]:
    """Yield the paths of all groups below a group, with the groups, through links too."""
    # `visititems` of h5py follows neither soft nor external links, by which NWB shares an array or
    # keeps raw data in a second file: https://docs.h5py.org/en/stable/high/group.html
    for name in group:
        full = f"{path}.{name}" if path else name
        link = group.get(name, getlink=True)
        if isinstance(link, h5py.SoftLink) and link.path.startswith("/general/"):
            continue  # such as the device of a series: met where it is
        try:
            node = group[name]
        except (KeyError, OSError, RuntimeError) as err:
            target = getattr(link, "filename", "") or getattr(link, "path", "")
            damaged[full] = f"a link to {target}, which is not there" if target else f"{err}"
            continue
        if _is_group(node) and node not in above and full != "specifications":
            yield full, node
            yield from _walk(node, damaged, full, (*above, node))


# ---- for people ----------------------------------------------------------------------------------


def nwb_contents(path: Path) -> list[Member]:
    """Describe everything in an NWB file, for `lfads prep FILE --list` and for errors."""
    file = open_for_reading(path)
    held = survey(file)
    members: list[Member] = []
    for name, node in held.tables.items():
        columns: Mapping[str, Any] = (
            dict(_columns(node)) if "id" in node or "colnames" in node.attrs else _events(node)
        )
        moments, hint = _moments(node), ""
        n_rows = len(node["id"]) if "id" in node else _n_timed(node)
        what = "events" if "timestamps" in node or "timestamp" in node else "table"
        if name in held.units:
            n_rows, what, hint = len(node["spike_times_index"]), "units", f"--spikes {name}"
        elif "spike_times" in node or name == "units":
            what, hint = "units", "no spike_times with their index: not usable as spikes"
        elif name == "invalid_times":
            what = "intervals"
        elif len(moments):
            what, hint = "intervals" if "start_time" in node else what, f"--trials {name}"
        members.append(Member(name, what, f"{n_rows} rows", hint=hint))
        for key, column in columns.items():
            if isinstance(column, str):
                members.append(Member(f"{name}.{key}", "column", "", column))
            else:
                values = describe_values(column)
                members.append(Member(f"{name}.{key}", "column", str(column.dtype), values))
    for name, series in held.series.items():
        kind = _text(file[name.replace(".", "/")].attrs.get("neurodata_type", "TimeSeries"))
        first = series.seconds(0, 1)[0]
        last = series.seconds(series.n_samples - 1, series.n_samples)[0]
        rate = f"{series.rate:g} samples/s" if series.times is None else "with times"
        size = f"{series.n_samples} x {series.n_channels}"
        text = f"{rate}, {first:.6g} to {last:.6g} s {series.unit}".rstrip()
        hint = "--behavior" if series.n_channels <= 20 else "--behavior or --spikes"
        members.append(Member(name, kind, size, text, f"{hint} {name}"))
    members += [describe_array(name, data) for name, data in held.arrays.items()]
    members += [Member(name, "not readable", "", why) for name, why in held.unreadable.items()]
    return members
