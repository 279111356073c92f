"""What spike sorters leave: folders of phy and Kilosort, and the sortings of SpikeInterface.

Times are samples. All is read as text and arrays of numbers; nothing of a folder is executed, and
neither phy nor SpikeInterface is needed.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ...data.find import list_some
from ...data.stored import blocks
from ...errors import DataError, UserError
from ..binning import Array, Floats
from .csv import read_table
from .grouping import group_by_unit
from .recording import AnyArray, Clock, Recording, SourceOptions, SpikeTimes, Table, damaged
from .tree import Ragged, Tree, as_column
from .trial_times import join_trials, lay_out_trials

# Of phy and Kilosort 1 to 4, then of IBL's ALF, whose times are seconds. What was curated by hand
# (clusters) comes before what the sorter gave (templates).
_TIMES = ("spike_times.npy", "spikes.times.npy")
_UNITS = (
    "spike_clusters.npy",
    "spikes.clusters.npy",
    "spike_templates.npy",
    "spikes.templates.npy",
)
_NUMPY_FOLDER, _NPZ_FOLDER = "numpysorting_info.json", "sorting_cached.npz"
_DEEP = ("*", "*/*", "*/*/*")  # folders in which a sorter's output is looked for


def sorting_folder(path: Path) -> Path | None:
    """Return the folder that holds a sorting: a folder or one in it, or that of a ``.npy`` file."""
    if path.is_file() and (path.suffix.lower() == ".npy" or path.name == "params.py"):
        return path.parent if _is_sorting(path.parent) else None
    if not path.is_dir() or _is_sorting(path):
        return path if path.is_dir() else None
    folders = [inner for deep in _DEEP for inner in sorted(path.glob(deep)) if _is_sorting(inner)]
    if len(folders) > 1:
        names = [str(inner.relative_to(path)) for inner in folders]
        raise UserError(
            f"{path} holds {len(folders)} sortings: {list_some(names)}. Name the folder of one, "
            f"such as {folders[0]}."
        )
    return folders[0] if folders else None


def _is_sorting(folder: Path) -> bool:
    names = (*_TIMES, _NUMPY_FOLDER, _NPZ_FOLDER)
    return folder.is_dir() and any((folder / name).is_file() for name in names)


def read_sorting(folder: Path, options: SourceOptions) -> Recording:
    """Open the folder of a sorter as a recording."""
    if (folder / _NUMPY_FOLDER).is_file():
        return _numpy_folder(folder, options)
    return _phy(folder, options)


def npz_of(folder: Path) -> Path | None:
    """Return the archive in which a folder of SpikeInterface keeps its sorting, or None."""
    return folder / _NPZ_FOLDER if (folder / _NPZ_FOLDER).is_file() else None


# ---- phy, Kilosort -------------------------------------------------------------------------------


def _phy(folder: Path, options: SourceOptions) -> Recording:
    times, units = (
        next((folder / name for name in names if (folder / name).is_file()), None)
        for names in (_TIMES, _UNITS)
    )
    if times is None or units is None:
        raise DataError(
            f"{folder} has {'spike times' if times else 'no spike times'} but none of "
            f"{', '.join(_UNITS)}, which say the unit of each spike; save it from phy again."
        )
    samples, owner = _load(times), _load(units)
    if samples.shape != owner.shape:
        raise DataError(
            f"{folder}: {times.name} has {len(samples)} spikes, {units.name} {len(owner)}; they "
            "are of different sortings, or one is cut short. Save the folder from phy again."
        )
    notes = [f"spike times: {times.name} by {units.name}"]
    is_whole = samples.dtype.kind in "ui" or bool((samples == np.floor(samples)).all())
    if is_whole:
        options, clock = _sampled(folder, options, _rate(folder), notes)
    else:
        clock = options.clock()
    by_unit, labels = group_by_unit(
        (np.asarray(numbers), samples[rows]) for rows, numbers in blocks(owner)
    )
    return Recording(
        folder,
        "phy or Kilosort folder",
        SpikeTimes(by_unit, clock),
        units={"name": labels, **_labels(folder, labels, notes)},
        trials=_alf_trials(folder),
        clock=options.clock(),
        files=[times, units, *_tables(folder)],
        notes=notes,
    )


def _load(path: Path) -> Any:
    """Open an array that stays in its file, flat."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as err:
        raise DataError(damaged(path, err)) from err
    if array.dtype.kind not in "uif":
        raise DataError(f"{path} holds {array.dtype}; legal are numbers.")
    return array.reshape(-1)


def _rate(folder: Path) -> float | None:
    """Read the sampling rate from the text of ``params.py``."""
    file = folder / "params.py"
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    line = re.search(r"^\s*sample_rate\s*=\s*([^#\n]+)", text, re.M)
    try:
        rate = float(ast.literal_eval(line[1].strip())) if line else 0.0
    except (ValueError, TypeError, SyntaxError):
        return None
    return rate if rate > 0 else None


def _sampled(
    path: Path, options: SourceOptions, rate: float | None, notes: list[str]
) -> tuple[SourceOptions, Clock]:
    """Return the clock of samples at the rate that the user says, else at that of the files."""
    hz = options.sampling_hz or rate
    if hz is None:
        raise UserError(
            f"{path}: spike times are samples, and their rate is unknown (params.py with a line "
            "such as sample_rate = 30000 is missing): add --sampling-hz, such as 30000."
        )
    notes.append(f"times are samples, {hz:g} per second")
    # Trials in samples, too, count at the same rate.
    if options.time_unit == "samples":
        options = replace(options, sampling_hz=hz)
    return options, Clock(1 / hz, hz)


def _labels(folder: Path, clusters: Array, notes: list[str]) -> Table:
    """Read the tables of clusters (``cluster_group.tsv``, ``cluster_info.tsv``), a row per unit."""
    columns: Table = {}
    for file in _tables(folder):
        try:
            table = read_table(file)
        except DataError as err:
            notes.append(f"not read: {err}")
            continue
        key = next((name for name in ("cluster_id", "id") if name in table), None)
        if key is None or not len(table[key]) or table[key].dtype.kind not in "iu":
            continue
        ids, places = np.unique(table[key], return_index=True)
        rows = places[np.searchsorted(ids, clusters).clip(max=len(ids) - 1)]
        known = table[key][rows] == clusters
        for name, column in table.items():
            if name != key:
                columns[name] = _filled(column[rows], known, columns.get(name))
    return columns


def _alf_trials(folder: Path) -> Table:
    """Read the trials of IBL's ALF (``_ibl_trials.stimOn_times.npy``), an array for each column."""
    table: Table = {}
    for file in sorted(folder.glob("*trials.*.npy")):
        values = np.load(file, allow_pickle=False)
        name = file.name.split(".")[1]
        if values.ndim == 2 and values.shape[1] == 2 and name.startswith("intervals"):
            table |= {"start_time": values[:, 0], "stop_time": values[:, 1]}
        elif values.ndim == 1:
            table[name] = values
    sizes = [len(column) for column in table.values()]
    size = max(sizes, key=sizes.count, default=0)
    return {name: column for name, column in table.items() if len(column) == size}


def _tables(folder: Path) -> list[Path]:
    # What phy wrote of all at once comes before the single labels, which are newer.
    files = [f for f in folder.glob("cluster*.*sv") if f.suffix in (".tsv", ".csv")]
    return sorted(files, key=lambda f: ("info" not in f.name, f.name))


def _filled(values: Array, known: Array, before: Array | None) -> Array:
    """Return values of a column; where they are not known, those of a table before, or none."""
    if known.all():
        return values
    if before is None or before.dtype.kind != values.dtype.kind:
        return np.where(known, values, "" if values.dtype.kind == "U" else np.nan)
    return np.where(known, values, before)


# ---- Neurosuite, KlustaKwik ----------------------------------------------------------------------

_SHANK = re.compile(r"(?P<stem>.+)\.(res|clu)\.(?P<shank>\d+)", re.IGNORECASE)


def read_shanks(path: Path, options: SourceOptions) -> Recording | None:
    """Open ``x.res.N`` and ``x.clu.N`` of all shanks of a session; None for another file."""
    match = _SHANK.fullmatch(path.name)
    if match is None:
        return None
    units, names, files = list[AnyArray](), list[str](), list[Path]()
    for res in sorted(path.parent.glob(f"{match['stem']}.res.*")):
        clu = res.with_name(res.name.replace(".res.", ".clu."))
        if _SHANK.fullmatch(res.name) is None or not clu.is_file():
            continue
        samples = np.loadtxt(res, dtype=np.int64, ndmin=1)
        clusters = np.loadtxt(clu, dtype=np.int64, ndmin=1)[1:]  # behind the number of clusters
        if samples.shape != clusters.shape:
            raise DataError(f"{res} has {len(samples)} spikes, {clu.name} {len(clusters)}.")
        by_unit, labels = group_by_unit([(clusters, samples)])
        units += [unit for unit, k in zip(by_unit, labels, strict=True) if k > 1]
        names += [f"{res.suffix[1:]}_{k}" for k in labels.tolist() if k > 1]
        files += [res, clu]
    if not files:
        raise DataError(f"{path.parent} has no pair of {match['stem']}.res.N and .clu.N files.")
    xml = path.with_name(f"{match['stem']}.xml")
    text = xml.read_text(encoding="utf-8", errors="replace") if xml.is_file() else ""
    rate = re.search(r"<samplingRate>\s*([\d.]+)", text)
    notes = [
        f"spike times: {len(files) // 2} shanks of {match['stem']!r}; clusters 0 (artifacts) and 1 "
        "(noise) are left out"
    ]
    options, clock = _sampled(path, options, float(rate[1]) if rate else None, notes)
    table = {"name": np.array(names), "shank": np.array([n.partition("_")[0] for n in names])}
    return Recording(
        path,
        "Neurosuite session",
        SpikeTimes(units, clock),
        table,
        clock=options.clock(),
        notes=notes,
        files=files,
    )


# ---- SpikeInterface ------------------------------------------------------------------------------


def _numpy_folder(folder: Path, options: SourceOptions) -> Recording:
    """Open a `NumpyFolderSorting`: a row per spike, its sample, unit and segment."""
    about = json.loads((folder / _NUMPY_FOLDER).read_text(encoding="utf-8"))
    spikes = np.load(folder / "spikes.npy", mmap_mode="r", allow_pickle=False)
    names = np.array(about["unit_ids"])
    segments = []
    for number in range(int(about["num_segments"])):
        chosen = np.asarray(spikes[spikes["segment_index"] == number])
        segments.append(
            _by_unit(chosen["unit_index"], chosen["sample_index"], np.arange(len(names)))
        )
    properties = {
        file.stem: values
        for file in sorted(folder.glob("properties/*.npy"))
        if (values := _property(file)) is not None and values.shape == names.shape
    }
    rate = float(about["sampling_frequency"])
    recording = of_segments(folder, segments, {"name": names, **properties}, rate, options)
    recording.files = [folder / "spikes.npy", folder / _NUMPY_FOLDER]
    return recording


def read_zarr_sorting(path: Path, store: Any, options: SourceOptions) -> Recording:
    """Open a Zarr store of SpikeInterface: a row per spike, its sample and unit, by segment."""
    names, spikes = store["unit_ids"][()], store["spikes"]
    owner, samples = spikes["unit_index"][()], spikes["sample_index"][()]
    rows = np.arange(len(names))
    slices = spikes["segment_slices"][()].astype(np.int64)
    segments = [_by_unit(owner[a:b], samples[a:b], rows) for a, b in slices]
    units = {"name": as_column(names)}
    for name, data in store.get("properties", {}).items():
        if data.shape == names.shape:
            units[name] = as_column(data[()])
    rate = store.attrs.get("sampling_frequency")
    return of_segments(path, segments, units, float(rate) if rate else None, options)


def _property(file: Path) -> Array | None:
    try:
        return np.asarray(np.load(file, allow_pickle=False))
    except (OSError, ValueError):  # objects, which would be executed
        return None


def sorting_of_arrays(path: Path, tree: Tree, options: SourceOptions) -> Recording | None:
    """Take arrays of a file as a sorting, where their names are those of a sorter's."""
    if {"unit_ids", "spike_indexes_seg0", "spike_labels_seg0"} <= set(tree):
        return _npz_sorting(path, tree, options)
    pairs = tree.get("cluster_class")
    if pairs is None or isinstance(pairs, Ragged) or pairs.shape[1:] != (2,) or options.spikes:
        return None
    # Of wave_clus: the cluster of each spike and its time in ms; 0 are those of none.
    values = pairs[:]
    values = values[values[:, 0] > 0]
    units, labels = group_by_unit([(values[:, 0].astype(np.int64), values[:, 1])])
    clock = replace(options, time_unit=options.time_unit or "ms").clock()
    notes = ["spike times: 'cluster_class' of wave_clus, in ms; cluster 0 (noise) is left out"]
    table = {"name": labels}
    return Recording(
        path, "wave_clus file", SpikeTimes(units, clock), table, clock=options.clock(), notes=notes
    )


def _npz_sorting(path: Path, tree: Tree, options: SourceOptions) -> Recording:
    arrays = {key: node[:] for key, node in tree.items() if not isinstance(node, Ragged)}
    names = arrays["unit_ids"]
    segments = [
        _by_unit(arrays[f"spike_labels_seg{i}"], arrays[f"spike_indexes_seg{i}"], names)
        for i in range(int(arrays["num_segment"].ravel()[0]))
    ]
    rate = arrays.get("sampling_frequency")
    hz = None if rate is None else float(rate.ravel()[0])
    return of_segments(path, segments, {"name": names}, hz, options)


def _by_unit(owner: Array, samples: Array, names: Array) -> list[AnyArray]:
    units, labels = group_by_unit([(owner, samples)])
    rows = dict(zip(labels.tolist(), units, strict=True))
    return [rows.get(name, np.empty(0, samples.dtype)) for name in names.tolist()]


def of_segments(
    path: Path,
    segments: Sequence[Sequence[AnyArray]],
    units: Table,
    rate: float | None,
    options: SourceOptions,
) -> Recording:
    """Make a recording of segments, each with the samples of the spikes of all units."""
    kind = "SpikeInterface sorting"
    notes = [f"spike times: {kind}"]
    options, clock = _sampled(path, options, rate, notes)
    recording = Recording(path, kind, SpikeTimes([]), units, clock=options.clock(), notes=notes)
    add_segments(recording, segments, clock)
    return recording


def add_segments(
    recording: Recording,
    segments: Sequence[Sequence[AnyArray]],
    clock: Clock,
    durations: Floats | None = None,
) -> None:
    """Add spikes that were recorded in several segments, each of which begins at 0 on its clock.

    Segments become trials; one after another on the clock of the recording, with time between
    them, so that no window crosses from one into the next.
    """
    if len(segments) == 1:
        recording.spikes = SpikeTimes(segments[0], clock)
        return
    units = [join_trials(trains) for trains in zip(*segments, strict=True)]
    laid = lay_out_trials(units, clock, len(segments), durations)
    recording.spikes, recording.starts = laid.spikes, laid.starts
    recording.extents, recording.observed = laid.extents, laid.observed
    numbers = np.arange(len(segments))
    recording.trials = {"start_time": np.zeros(len(segments)), "segment": numbers}
    recording.notes.append(
        f"{len(segments)} segments with a clock each: taken as trials, laid out one after another"
    )
