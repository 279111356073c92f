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

from ...data.find import list_some
from ...data.stored import StoredArray, flat
from ...errors import DataError
from ..binning import Array
from .hdf5 import DataSet, open_for_reading
from .layout import as_text, split_by_index
from .recording import BinnedSpikes, Recording, Series, SourceOptions, SpikeTimes, Table, find

_PLACES = ("processing", "acquisition", "stimulus", "analysis")
# Columns of the units with several values per unit, which an index column splits by its ends; see
# DynamicTable and VectorIndex in https://nwb-schema.readthedocs.io/en/latest/format.html
_RAGGED_UNITS = ("spike_times", "obs_intervals", "waveforms", "waveform_mean", "waveform_sd")


def read_nwb(path: Path, options: SourceOptions) -> Recording:
    """Open an NWB file as a recording.

    `options.spikes` may name a time series of binned spikes, `options.trials` another table of
    intervals.
    """
    file = open_for_reading(path)
    series = _series(file)
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
    # All units together: one that was lost early must not cost the trials of the others.
    order = np.concatenate(per_unit)
    order = order[np.argsort(order[:, 0], kind="stable")]
    joined: list[list[float]] = []
    for start, stop in order.tolist():
        if joined and start <= joined[-1][1]:
            joined[-1][1] = max(joined[-1][1], stop)
        else:
            joined.append([start, stop])
    return np.array(joined)


def _series(file: h5py.File) -> dict[str, Series]:
    """Describe every TimeSeries, by its path with dots."""
    series: dict[str, Series] = {}
    places = ((place, file[place]) for place in _PLACES if place in file)
    for name, node in (inner for path, place in places for inner in _groups(place, path)):
        data = node.get("data")
        if not isinstance(data, h5py.Dataset) or data.dtype.kind not in "buif":
            continue
        if not 1 <= data.ndim <= 2:
            continue
        # A TimeSeries has a time for each sample, or a starting time with a rate. Stored values are
        # what the device gave: times `conversion`, plus `offset`, they are in `unit`.
        timing: dict[str, Any]
        if isinstance(node.get("timestamps"), h5py.Dataset):
            timing = {"times": flat(StoredArray(DataSet(node["timestamps"])))}
        elif isinstance(begin := node.get("starting_time"), h5py.Dataset):
            timing = {"start": float(begin[()]), "rate": float(begin.attrs.get("rate", 1.0))}
        else:
            continue
        series[name] = Series(
            StoredArray(DataSet(data)),
            ("time", "channel")[: data.ndim],
            scale=float(data.attrs.get("conversion", 1.0)),
            offset=float(data.attrs.get("offset", 0.0)),
            unit=_text(data.attrs.get("unit", "")),
            **timing,
        )
    return series


def _groups(group: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield all groups below a group with their paths, through links too."""
    # `visititems` of h5py follows neither soft nor external links, by which NWB shares an array or
    # keeps raw data in a second file: https://docs.h5py.org/en/stable/high/group.html
    for name in group:
        node = group.get(name)
        if isinstance(node, h5py.Group):
            yield f"{path}.{name}", node
            yield from _groups(node, f"{path}.{name}")
