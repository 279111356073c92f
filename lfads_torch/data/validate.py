"""What a data file must look like: its keys, and the structural faults it can have."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np

from ..errors import nearest
from .find import how_to_prepare, list_some
from .memory import available_bytes
from .missing import length_faults
from .tree import tree_faults

# Trials of "select" choose among trained models and among their averages; nothing trains on them.
SPLITS = ("train", "valid", "test", "select")
OPTIONAL = SPLITS[2:]
REQUIRED_KEYS = tuple(f"{s}_{k}" for s in ("train", "valid") for k in ("encod_data", "recon_data"))
MODEL_INPUTS = ("encod_data", "recon_data", "ext_input", "truth")
ARRAY_KEYS = tuple(f"{split}_{name}" for split in SPLITS for name in MODEL_INPUTS)
SCHEMA_KEYS = (
    *ARRAY_KEYS,
    "conversion_factor",
    "readin_weight",
    "readin_offset",
    "readout_weight",
    "readout_bias",
    *(f"{split}_lengths" for split in SPLITS),
)


def list_keys(file: h5py.File) -> list[str]:
    """List the keys of all data sets, those in groups by their path."""
    keys: list[str] = []
    for name in file:
        node = file.get(name)
        if isinstance(node, h5py.Dataset):
            keys.append(name)
        elif isinstance(node, h5py.Group):
            inner: list[str] = []
            node.visititems(
                lambda path, item, inner=inner: (
                    inner.append(path) if isinstance(item, h5py.Dataset) else None
                )
            )
            keys.extend(f"{name}/{path}" for path in inner)
    return keys


def join_problems(path: Path, problems: Sequence[str]) -> str:
    """Return one message of all that is wrong with a file."""
    if len(problems) == 1:
        return f"{path}: {problems[0]}"
    return "\n  - ".join([f"{path} has {len(problems)} problems:", *problems])


def find_problems(
    file: h5py.File, batch_keys: Sequence[str] = (), attr_keys: Sequence[str] = ()
) -> list[str]:
    """List the structural faults of an open data file.

    Parameters
    ----------
    file : h5py.File
        The file, open for reading.
    batch_keys : sequence of str
        Extra per-trial arrays that the file must hold, without their split.
    attr_keys : sequence of str
        Further arrays that it must hold, by their full key.

    Returns
    -------
    list of str
        One sentence for each fault, empty when the file is in order.
    """
    keys = list_keys(file)
    problems = [*tree_faults(file).values(), *_missing(keys, file.filename)]
    # Shapes of sound arrays only, so that no fault is reported a second time as a contradiction.
    shapes: dict[str, tuple[int, ...]] = {}
    for key in ARRAY_KEYS:
        if key in keys:
            fault = _array_fault(key, file[key])
            if fault:
                problems.append(fault)
            else:
                shapes[key] = file[key].shape
    for split in SPLITS:
        problems += _split_faults(split, shapes, keys)
    problems += _disagreements(shapes)
    problems += length_faults(file, keys, shapes)
    problems += _scalar_and_pcr_faults(file, keys, shapes)
    for name in batch_keys:
        problems += _batch_key_faults(name, file, keys, shapes)
    for key in attr_keys:
        if key not in keys:
            problems.append(
                f"attribute key {key!r} is not in the file"
                f"{suggest(key, keys)} It has {list_some(keys)}."
            )
        elif text := _too_large(file[key], file[key].dtype.itemsize):
            problems.append(f"attribute key {key!r} {text}")
    return problems


def suggest(name: str, candidates: Iterable[str]) -> str:
    """Write "; did you mean ...?" where a candidate is near, "." otherwise."""
    near = nearest(name, candidates, most=1)
    return f"; did you mean {near[0]!r}?" if near else "."


def _missing(keys: Sequence[str], path: str) -> list[str]:
    others = [key for key in keys if key not in SCHEMA_KEYS]
    missing = [key for key in REQUIRED_KEYS if key not in keys]
    # A file of another kind gets one message in place of four.
    if len(missing) == len(REQUIRED_KEYS) and not nearest(missing[0], others):
        return [
            f"none of the required keys is there ({', '.join(missing)}), each an array of "
            f"n_samples x n_timesteps x n_channels; the file has {list_some(keys) or 'no keys'}. "
            + how_to_prepare(path)
        ]
    return [
        f"required key {key!r} is missing{suggest(key, others)} The file has {list_some(keys)}."
        for key in missing
    ]


def _array_fault(key: str, data: h5py.Dataset) -> str | None:
    if data.dtype.kind not in "buif":
        return f"{key!r} has type {data.dtype}; legal are integers, floats and bools."
    if data.shape is None:
        return f"{key!r} holds no data; legal is an array n_samples x n_timesteps x n_channels."
    if len(data.shape) != 3:
        return (
            f"{key!r} has {len(data.shape)} dimension(s), shape {show_shape(data.shape)}; legal "
            f"is 3-D, n_samples x n_timesteps x n_channels."
        )
    if 0 in data.shape:
        return (
            f"{key!r} is empty, shape {show_shape(data.shape)}; it needs at least one trial, one "
            f"bin and one channel (leave an optional key out instead)."
        )
    return None


def show_shape(shape: Sequence[int] | None) -> str:
    """Write a shape as "1509 x 30 x 100"."""
    return "no data" if shape is None else " x ".join(map(str, shape)) or "scalar"


def _split_faults(
    split: str, shapes: Mapping[str, tuple[int, ...]], keys: Sequence[str]
) -> list[str]:
    problems = []
    encod, recon = shapes.get(f"{split}_encod_data"), shapes.get(f"{split}_recon_data")
    if split in OPTIONAL and f"{split}_encod_data" not in keys:
        problems += [
            f"'{split}_{name}' is there without '{split}_encod_data'; add that key or leave the "
            f"{split} split out."
            for name in MODEL_INPUTS[1:]
            if f"{split}_{name}" in keys
        ]
    if encod and recon:
        for axis, what in ((1, "bins"), (2, "channels")):
            if recon[axis] < encod[axis]:
                problems.append(
                    f"'{split}_recon_data' has fewer {what} ({recon[axis]}) than "
                    f"'{split}_encod_data' ({encod[axis]}); it must have at least as many, those "
                    f"that are read first."
                )
    main = encod or recon
    for name in MODEL_INPUTS[1:]:
        shape = shapes.get(f"{split}_{name}")
        if main and shape and shape[0] != main[0]:
            problems.append(
                f"'{split}_{name}' has {shape[0]} trials, the split's other arrays {main[0]}."
            )
    truth = shapes.get(f"{split}_truth")
    if truth and recon and truth[1:] != recon[1:]:
        problems.append(
            f"'{split}_truth' has {show_shape(truth[1:])} bins x channels, '{split}_recon_data' "
            f"{show_shape(recon[1:])}; they must agree."
        )
    return problems


def _disagreements(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    problems = []
    for name in MODEL_INPUTS[:3]:
        first = shapes.get(f"train_{name}")
        for split in SPLITS[1:]:
            shape = shapes.get(f"{split}_{name}")
            # The generator has one size of input for all splits; encod_data and recon_data are
            # required, and said to be missing elsewhere.
            if name == "ext_input" and f"{split}_encod_data" in shapes and not (shape and first):
                if shape or first:
                    lacking, other = (split, "train") if first else ("train", split)
                    problems.append(
                        f"'{other}_ext_input' is there but '{lacking}_ext_input' is not; external "
                        f"inputs are needed in every split or in none."
                    )
                continue
            if not (first and shape):
                continue
            for axis, what in ((1, "bins"), (2, "channels")):
                if shape[axis] != first[axis]:
                    problems.append(
                        f"'train_{name}' has {first[axis]} {what}, '{split}_{name}' "
                        f"{shape[axis]}; the splits must agree."
                    )
    return problems


def _scalar_and_pcr_faults(
    file: h5py.File, keys: Sequence[str], shapes: Mapping[str, tuple[int, ...]]
) -> list[str]:
    problems = []
    if "conversion_factor" in keys:
        data = file["conversion_factor"]
        value = data[()] if data.size == 1 and data.dtype.kind in "uif" else np.nan
        if not np.all(np.isfinite(value)) or np.any(value == 0):
            problems.append(
                f"'conversion_factor' has shape {show_shape(data.shape)}, type {data.dtype}"
                + (f", value {value}" if data.size == 1 else "")
                + "; legal is one finite number other than 0."
            )
    # A map may be for the channels that are read or for those that are reconstructed.
    channels = [shapes[k][2] for k in ("train_encod_data", "train_recon_data") if k in shapes]
    for key, ndim, legal in (
        ("readin_weight", 2, "channels x factors"),
        ("readin_offset", 1, "channels"),
        ("readout_weight", 2, "channels x factors"),
        ("readout_bias", 1, "channels"),
    ):
        if key not in keys:
            continue
        data = file[key]
        if data.dtype.kind not in "buif" or len(data.shape or ()) != ndim or 0 in data.shape:
            problems.append(
                f"'{key}' has shape {show_shape(data.shape)}, type {data.dtype}; legal are numbers "
                f"of shape {legal}."
            )
        elif channels and data.shape[0] not in channels:
            problems.append(
                f"'{key}' is for {data.shape[0]} channels, the data have "
                f"{' (read) and '.join(map(str, dict.fromkeys(channels)))}; they must agree."
            )
        elif text := _too_large(data, 4):
            problems.append(f"{key!r} {text}")
    return problems


def _too_large(data: h5py.Dataset, itemsize: int) -> str | None:
    """Say that an array that is read as a whole is larger than the memory; None where it fits."""
    free, size = available_bytes(), itemsize * math.prod(data.shape or ())
    if free is None or size <= free:
        return None
    return (
        f"has shape {show_shape(data.shape)}: it takes {size / 1e9:.3g} GB of memory, of which "
        f"{free / 1e9:.3g} GB are free."
    )


def _batch_key_faults(
    name: str, file: h5py.File, keys: Sequence[str], shapes: Mapping[str, tuple[int, ...]]
) -> list[str]:
    problems = []
    bare = {k.split("_", 1)[1] for k in keys if k.split("_", 1)[0] in SPLITS and "_" in k}
    prefix, _, rest = name.partition("_")
    more = " (and set model.behavior_dim=0)" if name == "behavior" else ""
    first: tuple[int, ...] | None = None
    for split in SPLITS:
        key = f"{split}_{name}"
        if key not in keys:
            # These may come without what is only known of the others.
            if split not in OPTIONAL:
                hint = suggest(name, sorted(bare - {name} - set(MODEL_INPUTS)))
                if prefix in SPLITS and rest in bare:
                    hint = f"; name it without the split: {rest!r}."
                problems.append(
                    f"batch key {name!r}: {key!r} is not in the file{hint} It has "
                    f"{list_some(keys)}. Add it, or leave it out of batch_keys{more}."
                )
            continue
        data = file[key]
        if data.dtype.kind not in "buif":
            problems.append(f"batch key {key!r} has type {data.dtype}; legal are numbers.")
            continue
        main = shapes.get(f"{split}_encod_data")
        if main and (not data.shape or data.shape[0] != main[0]):
            problems.append(
                f"batch key {key!r} has shape {show_shape(data.shape)}; its first dimension must "
                f"be the {main[0]} trials of the split."
            )
        elif first is not None and data.shape[1:] != first:
            problems.append(
                f"batch key {name!r} has {show_shape(first)} per trial in train, "
                f"{show_shape(data.shape[1:])} in {split}; the splits must agree."
            )
        first = data.shape[1:] if first is None else first
    return problems
