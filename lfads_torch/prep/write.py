"""Write what was prepared, block by block, with a record of how it was made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..data.find import add_to_file, new_file, trial_chunks
from ..data.validate import SPLITS
from ..errors import DataError
from ..provenance import provenance
from ..version import read_version
from .binning import Array, Indices
from .counting import Counted, Progress
from .options import PrepOptions
from .series import Sampler
from .sources.recording import Recording
from .splits import Labels, count_splits

# To hash a source is to read all of it a second time.
_HASHED = 1 << 32  # bytes; of larger sources the attributes name size and name only
_HASH_STEP = 1 << 24


@dataclass
class Contents:
    """All that goes into a data file with a row per window: `labels` say into which split."""

    counted: Counted
    labels: Labels
    units: Indices  # in the order of the output: those that are read, then held-out ones
    n_read_units: int
    largest: float  # count; NaN where bins are missing
    series: dict[str, tuple[list[Sampler], float]]  # with the lag in ms
    per_window: dict[str, Array]
    never_seen: Indices | None = None  # units that are kept apart from the model

    @property
    def all_units(self) -> Indices:
        """Units in the order of their counts: those of the model, then those it never sees."""
        return self.units if self.never_seen is None else np.append(self.units, self.never_seen)


@dataclass
class Prepared:
    """What `prepare` has done; `warnings` deserve a second look, `notes` say what was assumed."""

    path: Path
    trials: dict[str, int]  # trials (or windows) of each split
    n_read: int  # bins
    n_bins: int  # with those that are only predicted
    n_read_units: int
    n_units: int  # with held-out ones
    notes: list[str]
    warnings: list[str]
    arrays: dict[str, Any] = field(default_factory=dict)  # where no file was to be written


def write_contents(
    path: Path,
    contents: Contents,
    recording: Recording,
    options: PrepOptions,
    progress: Progress,
    *,
    attrs: dict[str, Any],
    notes: list[str],
    warnings: list[str],
    extra: dict[str, Any] | None = None,
    test: Contents | None = None,
) -> Prepared:
    """Write a data file, whole or not at all, with its attributes and the data sets in `extra`.

    `test` are trials of another recording, which have nothing to reconstruct. With `strict`, all
    warnings are raised as one error before anything is written.
    """
    if options.strict and warnings:
        raise DataError(
            "\n  - ".join(["with --strict these are errors; nothing was written:", *warnings])
        )
    windows, compression = contents.counted.windows, "gzip" if options.compress else None
    bin_ms = float(f"{windows.bin_s * 1000:.12g}")  # without the digits that 0.005 * 1000 adds
    source = source_attributes(recording, options, [*notes, *warnings], progress)
    with new_file(path) as file:
        _write_windows(file, contents, compression, progress)
        if test is not None:
            _write_windows(file, test, compression, progress, recon=False)
        add_to_file(
            file,
            {"unit_ids": contents.units} | _extra_ids(contents) | (extra or {}),
            {"bin_ms": bin_ms} | source | attrs,
            compression=compression,
        )
    trials = count_splits(contents.labels) | (count_splits(test.labels) if test else {})
    n_read, n_bins = windows.n_read, windows.n_bins
    n_read_units, n_units = contents.n_read_units, len(contents.units)
    return Prepared(path, trials, n_read, n_bins, n_read_units, n_units, notes, warnings)


def _write_windows(
    file: h5py.File,
    contents: Contents,
    compression: str | None,
    progress: Progress,
    *,
    recon: bool = True,
) -> None:
    counted, windows = contents.counted, contents.counted.windows
    dtype = _dtype(contents)
    sizes = {split: int((contents.labels == i).sum()) for i, split in enumerate(SPLITS)}
    kinds = {"encod_data": ((windows.n_read, contents.n_read_units), dtype)}
    if recon:
        kinds["recon_data"] = ((windows.n_bins, len(contents.units)), dtype)
    n_units, n_extra = len(contents.units), len(contents.all_units) - len(contents.units)
    if n_extra:
        kinds["extra_data"] = ((windows.n_bins, n_extra), dtype)
    for name, (samplers, _) in contents.series.items():
        n_bins = windows.n_bins if name == "ext_input" else windows.n_read
        width = sum(sampler.series.n_channels for sampler in samplers)
        kinds[name] = ((n_bins, width), np.dtype(np.float32))
    data: dict[str, h5py.Dataset] = {}
    for split, size in sizes.items():
        for name, (shape, kind) in kinds.items() if size else ():
            # Contiguous, a trial is read straight from the file; HDF5 compresses chunks only.
            chunks = trial_chunks((size, *shape), kind) if compression else None
            data[f"{split}_{name}"] = file.create_dataset(
                f"{split}_{name}", (size, *shape), kind, compression=compression, chunks=chunks
            )
    # Every block of windows holds some of each split; `done` says where each split's go on.
    done = dict.fromkeys(SPLITS, 0)
    for first, counts in counted.blocks(contents.all_units):
        progress("writing, window", first, len(contents.labels))
        labels = contents.labels[first : first + len(counts)]
        for number, split in enumerate(SPLITS):
            chosen = np.flatnonzero(labels == number)
            if not len(chosen):
                continue
            rows = slice(done[split], done[split] + len(chosen))
            done[split] += len(chosen)
            trials = counts[chosen].astype(dtype)
            data[f"{split}_encod_data"][rows] = trials[:, : windows.n_read, : contents.n_read_units]
            if recon:
                data[f"{split}_recon_data"][rows] = trials[:, :, :n_units]
            if n_extra:
                data[f"{split}_extra_data"][rows] = trials[:, :, n_units:]
            for name, (samplers, lag_ms) in contents.series.items():
                target = data[f"{split}_{name}"]
                starts = windows.starts[first + chosen] + lag_ms / 1000
                values = [sampler.sample(starts, target.shape[1]) for sampler in samplers]
                target[rows] = np.concatenate(values, axis=-1)
    progress("writing, window", len(contents.labels), len(contents.labels))
    for number, (split, size) in enumerate(sizes.items()):
        if size:
            chosen = contents.labels == number
            rows_of = {f"{split}_{k}": v[chosen] for k, v in contents.per_window.items()}
            add_to_file(file, rows_of, compression=compression)


def _extra_ids(contents: Contents) -> dict[str, Indices]:
    never = contents.never_seen
    return {} if never is None or not len(never) else {"extra_unit_ids": never}


def _dtype(contents: Contents) -> np.dtype[Any]:
    if contents.counted.continuous or np.isnan(contents.largest):
        return np.dtype(np.float32)  # integers have no NaN
    # An eighth of float64, and what compresses best; the data module converts each batch.
    return np.dtype(np.uint8 if contents.largest <= 255 else np.uint16)


def source_attributes(
    recording: Recording, options: PrepOptions, notes: Sequence[str], progress: Progress
) -> dict[str, Any]:
    """Return attributes that say how a file was made: from what, with which options and version.

    Options that do not change the data (`compress`, `strict`) are left out.
    """
    given = {f.name: _plain_option(getattr(options, f.name)) for f in fields(options)}
    # An object in memory has no file; a folder has those that were read of it.
    files = {"source": [f for f in recording.files or [recording.path] if f.is_file()]}
    if isinstance(options.trials, str) and Path(options.trials).is_file():  # a table in a file
        files["trials"] = [Path(options.trials)]
        given["trials"] = Path(options.trials).name
    attributes: dict[str, Any] = {
        "prep_version": read_version().version,
        "provenance": json.dumps(provenance()),
        "prep_options": json.dumps(
            {k: v for k, v in given.items() if k not in ("compress", "strict")}, sort_keys=True
        ),
        "prep_notes": "\n".join(notes),
        # Without its folder, and options in sorted order: the same source gives the same bytes.
        "source": recording.path.name,
        "source_format": recording.kind,
    }
    if files["source"]:
        attributes["source_bytes"] = sum(file.stat().st_size for file in files["source"])
    for name, paths in files.items():
        if paths and (digest := _hash(paths, progress)) is not None:
            attributes[f"{name}_sha256"] = digest
    return attributes


def _plain_option(value: Any) -> Any:
    """Return an option so that 10 and 10.0, or a list and a tuple, are recorded alike."""
    if isinstance(value, tuple | list):
        return [_plain_option(one) for one in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    # A table in memory, of which the type must do.
    return value if isinstance(value, str | float | int | None) else type(value).__name__


def _hash(paths: Sequence[Path], progress: Progress) -> str | None:
    """Return the SHA-256 of files, one after another; None where they have more than 4 GiB."""
    size, done = sum(path.stat().st_size for path in paths), 0
    if size > _HASHED:
        return None
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(_HASH_STEP):
                digest.update(block)
                done += len(block)
                progress("identifying the source, MB", done >> 20, size >> 20)
    return digest.hexdigest()
