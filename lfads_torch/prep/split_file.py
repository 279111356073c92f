"""Data files of the earlier LFADS (TensorFlow), which are split already: their split is kept."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import h5py
import numpy as np

from ..data.find import copy_rest, list_some, new_file, open_h5
from ..data.read import bin_width_ms
from ..data.validate import SPLITS, show_shape
from ..errors import DataError, UserError, number
from .counting import Progress
from .options import PrepOptions
from .sources.binned import width_of
from .sources.hdf5 import is_matlab
from .sources.recording import Recording, SpikeTimes
from .write import Prepared, source_attributes

KIND = "HDF5 file of an earlier LFADS"
# The map of a session to shared factors. There, too, factors are (data - bias) @ matrix.
_MAPS = {"alignment_matrix_cxf": "readin_weight", "alignment_bias_c": "readout_bias"}
_LEGAL = ("bin_ms", "input_bin_ms", "compress", "strict")


def is_split_file(path: Path) -> bool:
    """Return whether a file holds ``train_data`` and ``valid_data``, as the earlier LFADS wrote."""
    if not path.is_file() or not h5py.is_hdf5(path):
        return False
    with open_h5(path) as file:
        names = ("train_data", "valid_data")
        known = all(isinstance(file.get(name), h5py.Dataset) for name in names)
        # MATLAB's axes stand in reverse order: `recording_from_tree` says what to do.
        return known and "train_encod_data" not in file and not is_matlab(file)


def describe_split_file(path: Path) -> list[str]:
    """Describe in lines what becomes of such a file."""
    shapes = _shapes(path)
    n_bins, n_units = next(iter(shapes.values()))[1:]
    return [
        f"{path.name}  ({KIND})",
        f"  {n_bins} bins of {n_units} units; its split is kept",
        "",
        *(f"Trials to {split}: {shape[0]}" for split, shape in shapes.items()),
    ]


def convert_split_file(
    path: Path, output: Path, options: PrepOptions, progress: Progress
) -> Prepared:
    """Write a data file with the same trials in the same split, and all else unchanged."""
    changed = [f.name for f in fields(options) if getattr(options, f.name) != f.default]
    if wrong := [f"--{name.replace('_', '-')}" for name in changed if name not in _LEGAL]:
        raise UserError(
            f"{path.name} is split and binned already, which is kept; leave out {list_some(wrong)}."
        )
    shapes = _shapes(path)
    (_, n_bins, n_units), notes = shapes["train"], ["split and bins: those of the file"]
    with open_h5(path) as file:
        known = bin_width_ms(file.attrs) or _width(file)
        width = options.input_bin_ms or options.bin_ms or known
        maps = {key: name for key, name in _MAPS.items() if key in file and name not in file}
    if width is not None:
        number("--input-bin-ms", width, above=0)
        if known and not np.isclose(width, known):
            raise UserError(
                f"{path.name} is binned at {known:g} ms by what it says itself, and its bins are "
                f"kept; leave out --bin-ms and --input-bin-ms ({width:g})."
            )
    else:
        notes.append("the bin width is unknown; --input-bin-ms records it")
    recording = Recording(path, KIND, SpikeTimes([]))
    attributes = source_attributes(recording, options, notes, progress)
    with new_file(output) as made:
        copy_rest(path, made, [f"{split}_data" for split in shapes])
        with open_h5(path) as file:
            for split in shapes:
                file.copy(f"{split}_data", made, f"{split}_encod_data")
                file.copy(f"{split}_data", made, f"{split}_recon_data")
            for key, name in maps.items():
                made[name] = file[key][()].reshape(-1) if name == "readout_bias" else file[key][()]
        made.attrs.update(attributes | ({} if width is None else {"bin_ms": float(width)}))
    notes += [f"{key!r} is also {name!r}" for key, name in maps.items()]
    trials = {split: shape[0] for split, shape in shapes.items()}
    return Prepared(output, trials, n_bins, n_bins, n_units, n_units, notes, [])


def _width(file: h5py.File) -> float | None:
    """Return the bin width in ms that a number in the file gives, such as `dt`."""
    for name, data in file.items():
        is_number = isinstance(data, h5py.Dataset) and data.size == 1 and data.dtype.kind in "uif"
        if is_number and (width := width_of(name, float(np.ravel(data[()])[0]))):
            return width[0] * 1000
    return None


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the splits: trials, bins, units."""
    with open_h5(path) as file:
        keys = {split: f"{split}_data" for split in SPLITS if f"{split}_data" in file}
        shapes = {split: tuple(file[key].shape) for split, key in keys.items()}
        numeric = all(file[key].dtype.kind in "buif" for key in keys.values())
    shown = ", ".join(f"{keys[split]} {show_shape(shape)}" for split, shape in shapes.items())
    if not numeric or {len(shape) for shape in shapes.values()} != {3}:
        raise DataError(f"{path}: {shown}; legal are numbers of trials x bins x units.")
    if len({shape[1:] for shape in shapes.values()}) > 1:
        raise DataError(f"{path}: {shown}; bins and units must be as many in each.")
    return shapes
