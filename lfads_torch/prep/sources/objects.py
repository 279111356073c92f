"""Objects in memory as recordings: NumPy, pynapple, SpikeInterface, Neo, xarray, pandas.

No library is imported: the module of an object's type says which library made it. The object's
units of time, rates, names and intervals are used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ...data.find import as_array, list_some
from ...errors import DataError, UserError
from ..binning import Array, Floats
from ..names import AXES, SPIKE_COLUMNS, SPIKES, TIME_UNITS, TIMES, TRIALS, first_of
from .layout import recording_from_tree
from .recording import (
    UNIT_S,
    BinnedSpikes,
    Clock,
    Recording,
    Series,
    SourceOptions,
    SpikeTimes,
    Table,
    count_rows,
    find,
    median_step,
)
from .sorting import add_segments, of_segments
from .tree import Tree, add_value, as_column, last_name

_ROLE = {name: role for role, names in AXES.items() for name in names}


def recording_of(source: Any, options: SourceOptions) -> Recording:
    """Take an object in memory as a recording."""
    library = _library(source)
    if library in _READERS:
        return _READERS[library](source, options)
    if library == "pandas" and hasattr(source, "columns"):
        return _frame(source, options)
    if library == "" and (hasattr(source, "__array__") or hasattr(source, "toarray")):
        source = as_array(source)  # such as a tensor, a sparse matrix, a masked array
    if isinstance(source, np.ndarray) and source.dtype.names:
        source = {name: source[name] for name in source.dtype.names}
    if isinstance(source, Mapping):
        return _mapping(source, options)
    if isinstance(source, list | tuple) and source and _library(source[0]) == "neo":
        return _neo(source, options)
    if isinstance(source, list | tuple) and source and hasattr(source[0], "rescale"):
        source = [_seconds(one) for one in source]
    if isinstance(source, list | tuple) and any(_ROLE.get(a) == "time" for a in _axes(options)):
        source = _column(source)  # bins, not lists of times
    if isinstance(source, list | tuple | np.ndarray) and len(source):
        return _arrays({"spikes": source}, options, "array")
    raise UserError(
        f"The recording is {_name(source)}; legal are a file, arrays and dicts of arrays, a "
        "TsGroup of pynapple, a sorting of SpikeInterface, spike trains, a segment or a block of "
        "Neo, and a DataArray or Dataset of xarray."
    )


def table_of(source: Any) -> Table:
    """Take an object in memory as a table of trials.

    Raises
    ------
    UserError
        For what is no table: legal are an IntervalSet of pynapple, a DataFrame, a dict of columns,
        a structured array, an array of times, or one of starts and stops.
    """
    library, columns = _library(source), None
    if library == "pynapple" and hasattr(source, "start"):
        columns = {"start_time": source.start, "stop_time": source.end}
        columns |= {str(name): source.metadata[name] for name in source.metadata.columns}
    elif library == "pynapple" and hasattr(source, "t"):
        columns = {"timestamps": source.t}
    elif library == "neo" and hasattr(source, "times"):
        columns = _neo_table(source)
    elif library == "pandas" and hasattr(source, "columns"):
        columns = {str(name): source[name] for name in source.columns}
    elif library == "xarray" and hasattr(source, "variables"):
        columns = {str(name): variable.values for name, variable in source.variables.items()}
    elif isinstance(source, Mapping):
        columns = {str(name): column for name, column in source.items()}
    elif isinstance(source, np.ndarray | list | tuple) and len(source):
        # Quantities say their unit.
        array: Array = _seconds(source) if hasattr(source, "rescale") else np.asarray(source)
        if array.dtype.names:
            columns = {name: array[name] for name in array.dtype.names}
        elif array.ndim == 2 and array.shape[1] == 2 and array.dtype.kind in "uif":
            columns = {"start_time": array[:, 0], "stop_time": array[:, 1]}
        elif array.ndim == 1 and array.dtype.kind in "uif":
            columns = {"timestamps": array}
    if columns is None:
        raise UserError(
            f"trials is {_name(source)}; legal are the name of a table, a CSV file, an IntervalSet "
            "of pynapple, a DataFrame, a dict of columns, an Epoch or Event of Neo, an array of "
            "times, or one of starts and stops."
        )
    table = {name: _column(values) for name, values in columns.items()}
    sizes = {name: column.shape for name, column in table.items()}
    if len({shape[:1] for shape in sizes.values()}) != 1 or any(
        len(s) != 1 for s in sizes.values()
    ):
        raise DataError(f"The columns of trials have shapes {sizes}; legal is one value per trial.")
    return table


def _column(values: Any) -> Array:
    try:
        return as_column(as_array(values))
    except UserError:
        raise
    except ValueError:  # rows of different lengths
        return np.empty((0, 0))


def _axes(options: SourceOptions) -> list[str]:
    return [word.strip().lower() for word in (options.axes or "").split(",")]


def _library(source: Any) -> str:
    roots = [kind.__module__.partition(".")[0] for kind in type(source).__mro__]
    known = ("pynapple", "spikeinterface", "neo", "xarray", "pandas")
    return next((root for root in roots if root in known), "")


def _name(source: Any) -> str:
    return f"{type(source).__module__}.{type(source).__qualname__}"


# ---- arrays --------------------------------------------------------------------------------------


def _arrays(source: Mapping[str, Any], options: SourceOptions, name: str = "dict") -> Recording:
    """Take arrays by name as what a file of them would hold."""
    tree: Tree = {}
    add_value(tree, "", source)
    return recording_from_tree(Path(name), "arrays in memory", tree, options, {})


def _mapping(source: Mapping[Any, Any], options: SourceOptions) -> Recording:
    """Take a dict: spikes by unit, or arrays and objects of libraries by what they are."""
    series, tables, rest, base = dict[str, Any](), dict[str, Table](), dict[str, Any](), None
    for key, value in source.items():
        library, name = _library(value), str(key)
        if library == "pynapple" and hasattr(value, "d"):
            series[name] = value
        elif library == "pynapple" and hasattr(value, "start"):
            tables[name] = table_of(value)
        elif library == "pynapple" and hasattr(value, "t") and not hasattr(value, "keys"):
            rest[name] = value.t
        elif library == "pandas" and hasattr(value, "columns"):
            tables[name] = table_of(value)
        elif library in _READERS and base is None:
            base = value
        elif library in _READERS:
            raise UserError(f"{name!r} and another are spikes; give one of them.")
        else:
            rest[name] = value
    if base is not None:
        recording = recording_of(base, options)
        recording.notes += [f"not used: {list_some(list(rest))}"] if rest else []
    elif any(not isinstance(key, str) for key in source) or _are_units(rest, options):
        recording = _arrays({"spikes": list(rest.values())}, options)
        recording.units = {"name": np.array(list(rest)), **recording.units}
    else:
        recording = _arrays(rest, options)
    for name, value in series.items():
        recording.series[name] = _tsd(value)
    chosen = options.trials if isinstance(options.trials, str) else None
    if chosen or not recording.trials:
        name = chosen or next((n for n in tables if n in TRIALS), "")
        if name in tables:
            recording.trials = tables.pop(name)
    recording.tables |= {name: count_rows(table) for name, table in tables.items()}
    return recording


def _are_units(arrays: Mapping[str, Any], options: SourceOptions) -> bool:
    """Return whether a dict has an entry for each unit: lists of several lengths, no names."""
    vectors = [_column(v) for v in arrays.values() if isinstance(v, np.ndarray | list | tuple)]
    sizes = {vector.shape for vector in vectors if vector.dtype.kind in "uif"}
    flat = len(vectors) == len(arrays) and all(len(shape) == 1 for shape in sizes)
    known = any(last_name(name) in (*SPIKES, *TIMES) or "spike" in name for name in arrays)
    return flat and len(sizes) > 1 and not (options.spikes or known)


def _frame(source: Any, options: SourceOptions) -> Recording:
    """Take a DataFrame of pandas: a row per spike with its time and unit, else bins x units.

    A row per unit, or per trial, has arrays in its fields.
    """
    cells = {str(name): list(column) for name, column in source.items()}
    lists = [
        n for n, c in cells.items() if any(isinstance(v, list | tuple | np.ndarray) for v in c)
    ]
    if lists:
        recording = _arrays({"frame": cells}, options, "DataFrame")
        if recording.starts is None and recording.n_units == len(source):
            plain = source[[name for name in source.columns if str(name) not in lists]]
            recording.units = {"name": _column(source.index), **table_of(plain)}
        return recording
    table = table_of(source)
    time, unit, channel = (first_of(names, table) for names in SPIKE_COLUMNS.values())
    if time is not None and (unit or channel):
        roles = {time: "spike_times", unit or channel: "unit"} | (
            {channel: "channel"} if unit else {}
        )
        return _arrays({roles.get(name, name): column for name, column in table.items()}, options)
    numeric = {name: c for name, c in table.items() if c.dtype.kind in "buif" and name != time}
    arrays = {"spikes": np.stack(list(numeric.values()), axis=1)}
    index = np.asarray(source.index)
    if index.dtype.kind == "m":
        index = index / np.timedelta64(1, "s") / options.clock().scale
    if time is not None or index.dtype.kind == "f":
        arrays["time"] = index if time is None else table[time]
    recording = _arrays(arrays, replace(options, axes="time,unit"), "DataFrame")
    recording.units = {"name": np.array(list(numeric))}
    return recording


# ---- pynapple ------------------------------------------------------------------------------------


def _pynapple(source: Any, options: SourceOptions) -> Recording:
    kind = f"pynapple {type(source).__name__}"
    path = Path(type(source).__name__)
    if not hasattr(source, "t") and not hasattr(source, "keys"):
        raise UserError(f"{kind} has no spikes; intervals are trials: trials=...")
    if hasattr(source, "d"):  # counts: pynapple gives the middle of each bin
        times = np.asarray(source.t)
        step = median_step(times)
        if not step > 0 or np.asarray(source.d).ndim != 2:
            raise UserError(f"{kind}: binned spikes are bins x units, with two bins or more.")
        gaps = np.flatnonzero(np.diff(times) > 1.01 * step)
        if len(gaps):
            raise DataError(
                f"{kind}: bins do not adjoin after {times[gaps[0]]:g} s; fill the gaps."
            )
        binned = BinnedSpikes(np.asarray(source.d), ("time", "unit"), step, times[0] - step / 2)
        notes = [f"binned spikes: {kind}; bins of {step * 1000:g} ms"]
        return Recording(path, kind, binned, {"name": _column(source.columns)}, notes=notes)
    if hasattr(source, "keys"):
        keys = list(source.keys())
        units: Table = {"name": np.array(keys)}
        for name in source.metadata.columns:
            units[str(name)] = _column(source.metadata[name])
        trains = [np.asarray(source[key].t) for key in keys]
    else:
        units, trains = {}, [np.asarray(source.t)]
    recording = Recording(path, kind, SpikeTimes(trains), units, notes=[f"spike times: {kind}"])
    support = np.asarray(source.time_support.values, dtype=np.float64)
    low, high = recording.span()
    # Where none was given, pynapple takes first and last spike, which says nothing.
    if len(support) > 1 or support[0, 0] < low or support[0, 1] > high:
        recording.observed = support
    return recording


def _tsd(source: Any) -> Series:
    data = np.asarray(source.d)
    axes = ("time", "channel")[: data.ndim]
    if len(axes) < data.ndim:
        raise UserError(f"{type(source).__name__} of {data.ndim} axes; behaviour has one or two.")
    columns = [str(name) for name in getattr(source, "columns", ())]
    return Series(data, axes, np.asarray(source.t), columns=columns)


# ---- SpikeInterface ------------------------------------------------------------------------------


def _spikeinterface(source: Any, options: SourceOptions) -> Recording:
    sorting = getattr(source, "sorting", source)  # of an analyzer
    if not hasattr(sorting, "get_unit_spike_train"):
        raise UserError(f"{_name(source)} has no spikes; give its sorting.")
    ids = list(sorting.unit_ids)
    segments = [
        [np.asarray(sorting.get_unit_spike_train(unit, segment_index=i)) for unit in ids]
        for i in range(sorting.get_num_segments())
    ]
    units: Table = {"name": np.array(ids)}
    for name in sorting.get_property_keys():
        values = np.asarray(sorting.get_property(name))
        if values.ndim == 1 and len(values) == len(ids):
            units[name] = _column(values)
    zero = (sorting.get_start_time(0) if hasattr(sorting, "get_start_time") else None) or 0.0
    # A recording that is registered with the sorting may begin later, or have times of its own.
    if len(segments) == 1 and not options.time_unit and (zero or sorting.has_time_vector(0)):
        trains = [sorting.get_unit_spike_train(u, segment_index=0, return_times=True) for u in ids]
        notes = [
            f"spike times: SpikeInterface sorting, on the clock of its recording from {zero:g} s"
        ]
        spikes = SpikeTimes([np.asarray(train) for train in trains], options.clock())
        return Recording(Path("sorting"), "SpikeInterface sorting", spikes, units, notes=notes)
    rate = float(sorting.get_sampling_frequency())
    return of_segments(Path("sorting"), segments, units, rate, options)


# ---- Neo -----------------------------------------------------------------------------------------


def _neo(source: Any, options: SourceOptions) -> Recording:
    """Take spike trains, a segment, or a block, whose segments are trials where it has several."""
    if isinstance(source, list | tuple) and hasattr(source[0], "segments"):
        source = [segment for block in source for segment in block.segments]
    if hasattr(source, "segments"):
        source = list(source.segments)
    if isinstance(source, list | tuple) and hasattr(source[0], "spiketrains"):
        return neo_segments(list(source), Path("Block"), options)
    if hasattr(source, "spiketrains"):
        return neo_segments([source], Path("Segment"), options)
    if hasattr(source, "t_stop") and not hasattr(source, "items"):
        source = [source]  # a spike train
    return _of_trains([list(source)], Path("SpikeTrain"))


def neo_segments(segments: list[Any], path: Path, options: SourceOptions) -> Recording:
    """Take segments of Neo as a recording: their spike trains, events, epochs and signals."""
    segments = [segment for segment in segments if len(segment.spiketrains)]
    if not segments:
        raise DataError(
            f"{path.name} has no spike trains, only what was recorded: sort its spikes first, and "
            "prepare what the sorter wrote."
        )
    recording = _of_trains([list(segment.spiketrains) for segment in segments], path)
    if recording.starts is None and len(segments) > 1:
        recording.trials |= _annotated(segments)
    elif len(segments) > 1:
        recording.trials |= _annotated(segments) | _neo_events(segments)
        return recording
    events = [e for segment in segments for e in (*segment.epochs, *segment.events) if len(e)]
    tables = {_neo_name(event, i): _neo_table(event) for i, event in enumerate(events)}
    if isinstance(options.trials, str):
        recording.trials = find(tables, options.trials, "epoch or event")
    elif not recording.trials and (name := next((n for n in tables if n in TRIALS), "")):
        recording.trials = tables[name]
    recording.tables = {
        name: count_rows(table) for name, table in tables.items() if table is not recording.trials
    }
    if len(segments) == 1:
        signals = (*segments[0].analogsignals, *segments[0].irregularlysampledsignals)
        for i, signal in enumerate(signals):
            recording.series[_neo_name(signal, i)] = _neo_series(signal)
    return recording


def _of_trains(segments: list[list[Any]], path: Path) -> Recording:
    """Take lists of spike trains, one for each segment, as a recording."""
    kind, n_units = f"Neo {path.name}", {len(trains) for trains in segments}
    if len(n_units) > 1:
        raise DataError(
            f"{path.name}: segments have {list_some(sorted(n_units))} spike trains; which belong "
            "together is unknown. Give as many, in the same order, in each (empty ones, too)."
        )
    first = segments[0]
    units: Table = {"name": np.array([train.name or str(i) for i, train in enumerate(first)])}
    for name in {key: None for train in first for key in train.annotations}:
        values = [train.annotations.get(name) for train in first]
        if all(isinstance(value, str | int | float | np.generic) for value in values):
            units[str(name)] = _column(values)
    seconds = [[_seconds(train.times) for train in trains] for trains in segments]
    ends = np.array(
        [
            [min(_second(t.t_start) for t in trains), max(_second(t.t_stop) for t in trains)]
            for trains in segments
        ]
    )
    recording = Recording(path, kind, SpikeTimes([]), units, notes=[f"spike times: {kind}"])
    if len(segments) == 1 or (ends[1:, 0] >= ends[:-1, 1]).all():  # one clock
        recording.spikes = SpikeTimes([np.concatenate(u) for u in zip(*seconds, strict=True)])
        recording.observed = ends
        if len(segments) > 1:
            recording.trials = {"start_time": ends[:, 0], "stop_time": ends[:, 1]}
            recording.notes.append(f"trials: the {len(segments)} segments, on one clock")
        return recording
    add_segments(recording, seconds, Clock(), ends[:, 1])
    starts = recording.starts
    assert starts is not None
    recording.observed = recording.extents = ends + starts[:, None]
    recording.trials["start_time"] = ends[:, 0]
    return recording


def _second(quantity: Any) -> float:
    return float(quantity.rescale("s").magnitude)


def _seconds(quantity: Any) -> Floats:
    return np.asarray(quantity.rescale("s").magnitude, dtype=np.float64)


def _neo_name(one: Any, number: int) -> str:
    return str(one.name or f"{type(one).__name__.lower()}{number}")


def _neo_table(event: Any) -> dict[str, Array]:
    """Return the columns of an Epoch or an Event."""
    times = _seconds(event.times)
    durations = getattr(event, "durations", None)
    columns: Table = {"timestamps": times}
    if durations is not None and len(durations) == len(times):
        columns = {"start_time": times, "stop_time": times + _seconds(durations)}
    labels = np.asarray(event.labels).astype(str) if event.labels is not None else np.empty(0)
    if len(labels) == len(times):
        columns["label"] = labels
    for name, values in event.array_annotations.items():
        if np.shape(values) == times.shape:
            columns.setdefault(str(name), _column(getattr(values, "magnitude", values)))
    return columns


def _neo_events(segments: list[Any]) -> Table:
    """Return the first time of each event in each segment, on its clock; NaN where it has none."""
    columns: dict[str, Floats] = {}
    for row, segment in enumerate(segments):
        for i, event in enumerate((*segment.epochs, *segment.events)):
            times, labels = _seconds(event.times), np.asarray(event.labels).astype(str)
            if len(labels) != len(times):
                labels = np.full(len(times), _neo_name(event, i))
            for label in dict.fromkeys(labels.tolist()):
                column = columns.setdefault(label, np.full(len(segments), np.nan))
                column[row] = times[labels == label].min()
    return dict(columns)


def _annotated(segments: list[Any]) -> Table:
    names = {key: None for segment in segments for key in segment.annotations}
    rows = {name: [segment.annotations.get(name) for segment in segments] for name in names}
    return {
        str(name): _column(values)
        for name, values in rows.items()
        if all(isinstance(value, str | int | float | np.generic | None) for value in values)
    }


def _neo_series(signal: Any) -> Series:
    data = np.asarray(signal.magnitude)
    unit = str(signal.dimensionality)
    axes = ("time", "channel")[: data.ndim]
    if hasattr(signal, "sampling_rate"):
        rate = float(signal.sampling_rate.rescale("Hz").magnitude)
        return Series(data, axes, None, _second(signal.t_start), rate, unit=unit)
    return Series(data, axes, _seconds(signal.times), unit=unit)


# ---- xarray --------------------------------------------------------------------------------------


def _xarray(source: Any, options: SourceOptions) -> Recording:
    """Take a DataArray, or the spikes of a Dataset, whose dimensions name the axes."""
    data, variables = source, dict[str, Any]()
    if hasattr(source, "data_vars"):
        variables = {str(name): value for name, value in source.data_vars.items()}
        if options.spikes:
            name = find({name: name for name in variables}, options.spikes, "variable")
        else:
            full = [n for n, v in variables.items() if len(_roles(v)) == v.ndim > 1]
            named = [n for n in full if last_name(n) in SPIKES] or full
            if len(named) != 1:
                raise UserError(
                    f"Dataset: which variable holds the spikes is unclear; name it with --spikes, "
                    f"of {list_some(list(variables))}."
                )
            name = named[0]
        data = variables.pop(name)
    roles = _roles(data)
    if len(roles) < data.ndim:
        unknown = [dim for dim in data.dims if dim not in roles]
        raise UserError(
            f"{type(source).__name__}: what the dimensions {list_some(unknown)} are is unknown; "
            "rename them to trial, time and unit."
        )
    tree: Tree = {}
    add_value(tree, "spikes", np.asarray(data.values))
    tables = {"trial": "trials", "unit": "units"}
    for name, coordinate in source.coords.items():
        role = roles.get(coordinate.dims[0]) if coordinate.ndim == 1 else None
        if role == "time" and coordinate.dims[0] == name:
            add_value(tree, "time", _coordinate(coordinate, options))
        elif role in tables:
            column = "name" if role == "unit" and coordinate.dims[0] == name else name
            add_value(tree, f"{tables[role]}.{column}", _column(coordinate.values))
    for name, variable in variables.items():
        add_value(tree, name, _column(variable.values))
    axes = ",".join(roles[dim] for dim in data.dims)
    return recording_from_tree(
        Path(type(source).__name__),
        f"xarray {type(source).__name__}",
        tree,
        replace(options, spikes="spikes", axes=axes),
        source.attrs | data.attrs,
    )


def _roles(data: Any) -> dict[Any, str]:
    names = {dim: str(dim).lower() for dim in data.dims}
    roles = {d: _ROLE.get(n, _ROLE.get(n.removesuffix("s"), "")) for d, n in names.items()}
    return {dim: role for dim, role in roles.items() if role}


def _coordinate(coordinate: Any, options: SourceOptions) -> Array:
    """Return times in the unit of the options, converted where the coordinate names its unit."""
    values = np.asarray(coordinate.values)
    if values.dtype.kind in "mM":
        start = np.zeros(1, values.dtype) if values.dtype.kind == "m" else values[:1]
        return (values - start) / np.timedelta64(1, "s") / options.clock().scale
    unit = TIME_UNITS.get(str(coordinate.attrs.get("units", "")).lower(), "")
    return values * UNIT_S[unit] / options.clock().scale if unit in UNIT_S else values


_READERS: dict[str, Callable[[Any, SourceOptions], Recording]] = {
    "pynapple": _pynapple,
    "spikeinterface": _spikeinterface,
    "neo": _neo,
    "xarray": _xarray,
}
