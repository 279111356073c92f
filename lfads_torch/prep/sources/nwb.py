"""NWB files (Neurodata Without Borders 2), read as the HDF5 files they are.

Only what a recording needs is read, and no schema is loaded, so that a file with hours of raw
voltages opens as fast as one without. `pynwb` is not needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ...data.find import list_some, open_h5
from ...data.stored import StoredArray, flat
from ...errors import DataError, UserError
from .hdf5 import DataSet
from .layout import as_text, split_by_index
from .recording import (
    Array,
    BinnedSpikes,
    Recording,
    Series,
    SourceOptions,
    SpikeTimes,
    Table,
    find,
)

_PLACES = ("processing", "acquisition", "stimulus", "analysis")
_RAGGED_UNITS = ("spike_times", "obs_intervals", "waveforms", "waveform_mean", "waveform_sd")


def is_nwb(file: h5py.File) -> bool:
    """Return whether an HDF5 file says that it is NWB."""
    return "nwb_version" in file.attrs or "NWBFile" in str(file.attrs.get("neurodata_type"))


def read_nwb(path: Path, options: SourceOptions) -> Recording:
    """Open an NWB file as a recording.

    `options.spikes` may name a time series of binned spikes, `options.trials` another table of
    intervals.
    """
    with open_h5(path):  # for its errors: what is wrong with the file, and what to do
        pass
    file = h5py.File(path, "r", locking="best-effort")  # open as long as arrays refer to it
    series = dict(_series(file))
    notes: list[str] = []
    warnings: list[str] = []
    spikes: SpikeTimes | BinnedSpikes
    units: Table = {}
    observed = None
    if options.spikes and options.spikes not in ("units", "spike_times"):
        source = find(series, options.spikes, "time series")
        if source.times is not None:
            raise DataError(
                f"{path.name}: {options.spikes!r} has a time for each sample; binned spikes need a "
                "starting time and a rate."
            )
        axes = tuple("unit" if axis == "channel" else axis for axis in source.axes)
        spikes = BinnedSpikes(source.data, axes, 1 / source.rate, source.start)
        notes.append(f"binned spikes: {options.spikes!r}")
    else:
        node = file.get("units")
        if node is None or "spike_times" not in node or "spike_times_index" not in node:
            raise DataError(
                f"{path.name} has no units with spike times. Where spikes are binned, name their "
                f"time series with --spikes; it has: {list_some(list(series), 20) or 'none'}."
            )
        times = flat(StoredArray(DataSet(node["spike_times"])))
        spikes = SpikeTimes(split_by_index(times, node["spike_times_index"][()]), options.clock())
        units = _table(node)
        observed = _observed(node, warnings)
        notes.append("spike times: the table of units")
    return Recording(
        path,
        f"NWB {_text(file.attrs.get('nwb_version', ''))}".strip(),
        spikes,
        units=units,
        trials=_trials(file, options),
        series=series,
        observed=observed,
        clock=options.clock(),
        notes=notes,
        warnings=warnings,
    )


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _table(node: Any) -> Table:
    """Read the columns of a DynamicTable that hold one number or text per row."""
    n_rows = len(node["id"]) if "id" in node else None
    columns: Table = {}
    for name, data in node.items():
        indexed = f"{name}_index" in node or name.endswith("_index")
        if not isinstance(data, h5py.Dataset) or indexed or name in _RAGGED_UNITS:
            continue
        if data.ndim != 1 or (n_rows is not None and len(data) != n_rows):
            continue
        if h5py.check_ref_dtype(data.dtype) is None and not data.dtype.names:
            columns[name] = as_text(data[()])
    return columns


def _trials(file: h5py.File, options: SourceOptions) -> Table:
    tables = {
        name: node
        for name, node in file.get("intervals", {}).items()
        if isinstance(node, h5py.Group)
    }
    if options.trials:
        return _table(find(tables, options.trials, "table of intervals"))
    return _table(tables["trials"]) if "trials" in tables else {}


def _observed(units: Any, warnings: list[str]) -> Array | None:
    """Return the stretches in which units were recorded, all together where units differ."""
    if "obs_intervals" not in units or "obs_intervals_index" not in units:
        return None
    intervals = np.asarray(units["obs_intervals"][()], dtype=np.float64).reshape(-1, 2)
    ends = units["obs_intervals_index"][()].astype(np.int64)
    per_unit = [intervals[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=False)]
    per_unit = [rows for rows in per_unit if len(rows)]
    if not per_unit:
        return None
    if any(not np.array_equal(rows, per_unit[0]) for rows in per_unit):
        warnings.append(
            "units were observed for different times (obs_intervals); where a unit was not "
            "observed its counts are 0. Drop such units with --min-presence."
        )
    order = np.concatenate(per_unit)
    order = order[np.argsort(order[:, 0], kind="stable")]
    joined: list[list[float]] = []
    for start, stop in order.tolist():
        if joined and start <= joined[-1][1]:
            joined[-1][1] = max(joined[-1][1], stop)
        else:
            joined.append([start, stop])
    return np.array(joined)


def _series(file: h5py.File) -> Iterator[tuple[str, Series]]:
    """Yield every TimeSeries by its path."""
    series: dict[str, Series] = {}

    def visit(name: str, node: Any) -> None:
        if not isinstance(node, h5py.Group) or not isinstance(node.get("data"), h5py.Dataset):
            return
        data = node["data"]
        if not 1 <= data.ndim <= 2 or data.dtype.kind not in "buif":
            return
        axes = ("time", "channel")[: data.ndim]
        common: dict[str, Any] = {
            "scale": float(data.attrs.get("conversion", 1.0)),
            "offset": float(data.attrs.get("offset", 0.0)),
            "unit": _text(data.attrs.get("unit", "")),
        }
        if isinstance(node.get("timestamps"), h5py.Dataset):
            times = flat(StoredArray(DataSet(node["timestamps"])))
            series[name] = Series(StoredArray(DataSet(data)), axes, times=times, **common)
        elif isinstance(node.get("starting_time"), h5py.Dataset):
            begin = node["starting_time"]
            start, rate = float(begin[()]), float(begin.attrs.get("rate", 1.0))
            series[name] = Series(
                StoredArray(DataSet(data)), axes, start=start, rate=rate, **common
            )

    for place in _PLACES:
        if place in file:
            _walk(file[place], place, visit)
    for name, one in series.items():
        yield name.replace("/", "."), one


def _walk(group: Any, path: str, visit: Any) -> None:
    """Visit groups, through links too."""
    # `visititems` of h5py follows neither soft nor external links, which NWB uses to share one
    # array and to keep raw data in a second file.
    for name in group:
        node = group.get(name)
        if isinstance(node, h5py.Group):
            visit(f"{path}/{name}", node)
            _walk(node, f"{path}/{name}", visit)


def unit_flags(recording: Recording, name: str) -> Array:
    """Return a column of yes and no of the units, such as the benchmark's ``heldout``."""
    column = find(recording.units, name, "column of the units")
    if column.dtype.kind not in "bui" or not np.isin(column, (0, 1)).all():
        raise UserError(f"Column {name!r} of the units does not hold yes and no (True, False).")
    return np.asarray(column, dtype=bool)
