"""Recordings as labs store them: NWB, .npz, .mat, HDF5 and CSV.

`open_recording` recognises the format and returns a `Recording`: spikes, units, trials and series,
of which nothing large is read before it is needed. One file for each format; `layout` makes sense
of named arrays, `recording` is what all become, `timeline` brings its times to one clock.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py

from ...data.find import absolute_pattern, list_some
from ...errors import DataError, UserError
from ...files import absent
from .csv import read_csv, read_table
from .hdf5 import read_hdf5, read_mat
from .npz import read_npy, read_npz
from .nwb import is_nwb, read_nwb
from .recording import (
    TEXT_FILES,
    BinnedSpikes,
    Clock,
    Recording,
    Series,
    SourceOptions,
    SpikeTimes,
    Table,
    count_rows,
)
from .sorting import npz_of, read_shanks, read_sorting, read_zarr_sorting, sorting_folder
from .stores import is_url, is_zarr, open_url, open_zarr
from .timeline import settle

__all__ = [
    "BinnedSpikes",
    "Clock",
    "Recording",
    "Series",
    "SourceOptions",
    "SpikeTimes",
    "Table",
    "open_recording",
]

_READERS = {
    ".npz": read_npz,
    ".mat": read_mat,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".txt": read_csv,
}
_HDF5 = (".nwb", ".h5", ".hdf5", ".hdf")


def open_recording(source: Any, options: SourceOptions | None = None) -> Recording:
    """Open a recording; a file's ending and contents give its format.

    Parameters
    ----------
    source : str, path or object
        NWB, .npz, .mat, HDF5 or CSV file; folder of a spike sorter; Zarr store; address of an NWB
        file (https://, s3://). Or an object in memory: an array or a list or dict of arrays, a
        TsGroup of pynapple, a sorting of SpikeInterface, spike trains, a segment or a block of Neo,
        a DataArray or Dataset of xarray.
    options : SourceOptions, optional
        What the source does not say itself. Its `trials` may be an object, too: an IntervalSet of
        pynapple, a DataFrame, a dict of columns, an Epoch or Event of Neo, an array of times, or
        one of starts and stops.

    Returns
    -------
    Recording
        Spikes, units, trials and series; large arrays are read when they are needed.

    Raises
    ------
    DataError
        For files that are missing, damaged or of an unknown format.
    UserError
        Where it is unclear which array of the file holds what; the message lists its arrays.
    """
    options = options or SourceOptions()
    table = None
    if not (options.trials is None or isinstance(options.trials, str)):
        from .objects import table_of

        table = table_of(options.trials)
        options = replace(options, trials=table)
    elif options.trials and options.table is None:
        table = read_table(Path(absolute_pattern(options.trials)))
    if is_url(source):
        file = open_url(source)
        if "nwb_version" not in file.attrs:
            raise DataError(f"{source} is no NWB file; download it to read it.")
        recording = read_nwb(Path(source.rstrip("/").rpartition("/")[2]), options, file)
    elif isinstance(source, str | os.PathLike):
        recording = _read(Path(absolute_pattern(source)), options)
    else:
        from .objects import recording_of

        recording = recording_of(source, options)
    if options.table and not recording.trials:
        raise UserError(
            f"{recording.path.name} has no table {options.table!r}. Files of trials end "
            f"in {list_some(list(TEXT_FILES))}: save a spreadsheet as CSV."
        )
    if table is not None:
        name = options.trials if isinstance(options.trials, str) else "the table of trials"
        recording.trials = _joined(recording, table, name)
    settle(recording, options)
    return recording


def _read(file: Path, options: SourceOptions) -> Recording:
    if not file.exists():
        raise DataError(f"{absent(file)}.")
    if is_zarr(file):
        store = open_zarr(file)
        is_sorting = "unit_ids" in store and "nwb_version" not in store.attrs
        return (
            read_zarr_sorting(file, store, options)
            if is_sorting
            else read_nwb(file, options, store)
        )
    if (folder := sorting_folder(file)) is not None:
        archive = npz_of(folder)
        return read_npz(archive, options) if archive else read_sorting(folder, options)
    if file.suffix.lower() == ".npy" or any(file.glob("*.npy")):
        return read_npy(file, options)
    if file.is_dir():
        raise DataError(
            f"{file} is a folder without the output of a spike sorter (spike_times.npy with "
            "spike_clusters.npy); name one file."
        )
    if (recording := read_shanks(file, options)) is not None:
        return recording
    suffix = file.suffix.lower()
    if suffix in _READERS:
        return _READERS[suffix](file, options)
    if suffix in _HDF5 or (suffix != ".kwik" and h5py.is_hdf5(file)):
        return read_nwb(file, options) if is_nwb(file) else read_hdf5(file, options)
    from .programs import read_program

    if (recording := read_program(file, options)) is not None:
        return recording
    raise DataError(
        f"{file.name}: unknown format {suffix!r}; legal are {list_some([*_HDF5, *_READERS])}, "
        "the folder of a spike sorter, and spikes of Plexon, Blackrock, NeuroExplorer and others "
        "(through neo)."
    )


def _joined(recording: Recording, table: Table, name: str) -> Table:
    """Return a table of trials, with the columns that the file has where it stores each trial."""
    if recording.extents is None:
        return table
    if count_rows(table) != recording.n_trials:
        raise UserError(
            f"{name} has {count_rows(table)} rows, {recording.path.name} has "
            f"{recording.n_trials} trials; legal is a row for each trial, in their order."
        )
    return recording.trials | table
