"""Reading one session's file: keys and shapes are validated before any array is read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from lfads_torch.data._files import absolute_pattern, list_some, open_h5
from lfads_torch.data._validate import (
    MODEL_INPUTS,
    SPLITS,
    find_problems,
    join_problems,
    list_keys,
)
from lfads_torch.errors import DataError

Array = NDArray[Any]

_BIN_MS_NAMES = {"bin_ms": 1.0, "bin_width_ms": 1.0, "bin_size_ms": 1.0, "bin_width_s": 1000.0}


@dataclass
class SplitData:
    """The trials of one split of one session, in the order of the file.

    Attributes
    ----------
    encod_data : ndarray of float32, shape (n, T_e, N_e)
        What the encoders read. Where it equals the first bins and channels of `recon_data` it is
        a view of it.
    recon_data : ndarray of float32, shape (n, T_r, N_r)
        What is reconstructed. A test split may come without: then `has_recon` is False and
        `recon_data` is `encod_data` with NaN for the held-out bins and channels.
    ext_input : ndarray of float32, shape (n, T, E), or None
    truth : ndarray of float32, shape (n, T_r, N_r), or None
        True rates per bin (already divided by the file's ``conversion_factor``).
    extras : dict of str to ndarray
        The batch keys' arrays, one row per trial; integers and bools keep their kind, floats
        are float32. A test split that lacks one holds NaN (-1 for integers, False for bools).
    has_recon : bool
        Whether the file holds this split's `recon_data`.
    """

    encod_data: Array
    recon_data: Array
    ext_input: Array | None = None
    truth: Array | None = None
    extras: dict[str, Array] = field(default_factory=dict)
    has_recon: bool = True

    @property
    def n_trials(self) -> int:
        """Number of trials."""
        return len(self.encod_data)


@dataclass
class SessionData:
    """One session's data file, read and found to be in order.

    Attributes
    ----------
    path : Path
    name : str
        The file's name without its ending.
    splits : dict of str to SplitData
        "train", "valid" and, where the file has it, "test". Views of `pooled`.
    pooled : dict of str to ndarray
        The same arrays ("encod_data", "recon_data", "ext_input", "truth", batch keys) with the
        splits one after another along the first axis.
    conversion_factor : float
        What the file's truth was divided by.
    readin_weight : ndarray, shape (N_e, fac), or None
    readin_offset : ndarray, shape (N_e,), or None
    readout_weight : ndarray, shape (N_r, fac), or None
    readout_bias : ndarray, shape (N_r,) or (N_e,), or None
    attrs : dict
        The file's attributes, such as ``bin_ms``.
    keys : list of str
        All keys of the file.
    arrays : dict of str to ndarray
        The attribute keys' arrays, as they are in the file.
    """

    path: Path
    name: str
    splits: dict[str, SplitData]
    pooled: dict[str, Array]
    conversion_factor: float = 1.0
    readin_weight: Array | None = None
    readin_offset: Array | None = None
    readout_weight: Array | None = None
    readout_bias: Array | None = None
    attrs: dict[str, Any] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)
    arrays: dict[str, Array] = field(default_factory=dict)

    @property
    def bin_ms(self) -> float | None:
        """Bin width in milliseconds, where the file's attributes say it."""
        return bin_width_ms(self.attrs)


def bin_width_ms(attrs: Mapping[str, Any]) -> float | None:
    """Bin width in milliseconds from a file's attributes, None where they do not say it.

    Attributes ``bin_ms``, ``bin_width_ms``, ``bin_size_ms`` and ``bin_width_s`` are understood.
    """
    for name, to_ms in _BIN_MS_NAMES.items():
        try:
            width = to_ms * float(attrs[name])
        except (KeyError, TypeError, ValueError):
            continue
        if np.isfinite(width) and width > 0:
            return width
    return None


def read_session(
    path: str | os.PathLike[str],
    batch_keys: Iterable[str] = (),
    attr_keys: Iterable[str] = (),
) -> SessionData:
    """Read one session's data file.

    Parameters
    ----------
    path : str or path
    batch_keys : iterable of str
        Extra per-trial arrays to read, without their split: "behavior" for ``train_behavior``.
    attr_keys : iterable of str
        Further arrays to read as they are, by their full key.

    Returns
    -------
    SessionData

    Raises
    ------
    DataError
        If the file cannot be read as HDF5, lacks a required or requested key, or holds arrays
        that contradict each other or are not numbers. All faults are named at once. NaN and any
        finite number pass: what a likelihood supports is checked by the reconstruction.
    """
    path = Path(absolute_pattern(path))
    batch_keys, attr_keys = tuple(batch_keys), tuple(attr_keys)
    with open_h5(path) as file:
        problems = find_problems(file, batch_keys, attr_keys)
        if problems:
            raise DataError(join_problems(path, problems))
        return _read(file, path, batch_keys, attr_keys)


def _read(
    file: h5py.File, path: Path, batch_keys: Sequence[str], attr_keys: Sequence[str]
) -> SessionData:
    splits = [split for split in SPLITS if f"{split}_encod_data" in file]
    ends = np.cumsum([file[f"{split}_encod_data"].shape[0] for split in splits]).tolist()
    rows = dict(zip(splits, map(slice, [0, *ends], ends), strict=False))
    has = {name: [s for s in splits if f"{s}_{name}" in file] for name in MODEL_INPUTS}

    factor = float(np.ravel(file["conversion_factor"][()])[0]) if "conversion_factor" in file else 1
    pooled = {
        name: pool(file, name, rows, np.dtype(np.float32)) for name in MODEL_INPUTS if has[name]
    }
    if "truth" in pooled and factor != 1:
        pooled["truth"] /= np.float32(factor)
    problems = [fault for name in pooled for fault in _infinities(name, pooled[name], rows)]
    if problems:
        raise DataError(join_problems(path, problems))

    encod, recon = pooled["encod_data"], pooled["recon_data"]
    read_part = recon[:, : encod.shape[1], : encod.shape[2]]
    if "test" in splits and "test" not in has["recon_data"]:
        read_part[rows["test"]] = encod[rows["test"]]
    if np.array_equal(encod, read_part, equal_nan=True):
        pooled["encod_data"] = read_part
    for name in batch_keys:
        pooled[name] = pool(file, name, rows, None)

    def of(split: str, name: str) -> Array | None:
        return pooled[name][rows[split]] if split in has[name] else None

    return SessionData(
        path=path,
        name=path.stem,
        splits={
            split: SplitData(
                encod_data=pooled["encod_data"][rows[split]],
                recon_data=recon[rows[split]],
                ext_input=of(split, "ext_input"),
                truth=of(split, "truth"),
                extras={name: pooled[name][rows[split]] for name in batch_keys},
                has_recon=split in has["recon_data"],
            )
            for split in splits
        },
        pooled=pooled,
        conversion_factor=factor,
        readin_weight=_optional(file, "readin_weight"),
        readin_offset=_optional(file, "readin_offset"),
        readout_weight=_optional(file, "readout_weight"),
        readout_bias=_optional(file, "readout_bias"),
        attrs=read_attrs(file),
        keys=list_keys(file),
        arrays={key: file[key][()] for key in attr_keys},
    )


def _optional(file: h5py.File, key: str) -> Array | None:
    return file[key][()].astype(np.float32) if key in file else None


def read_attrs(file: h5py.File) -> dict[str, Any]:
    """Read a file's attributes, single numbers as plain Python.

    A bin width that only the data sets state is taken from them.
    """
    attrs = {
        key: value.item() if isinstance(value, np.generic) else value
        for key, value in file.attrs.items()
    }
    for key in ("train_encod_data", "train_recon_data"):
        if bin_width_ms(attrs) is None and key in file:
            width_ms = bin_width_ms(file[key].attrs)
            attrs |= {} if width_ms is None else {"bin_ms": width_ms}
    return attrs


def pool(
    file: h5py.File, name: str, rows: Mapping[str, slice], dtype: np.dtype[Any] | None
) -> Array:
    """Read ``{split}_{name}`` of all splits into one array; a split without it stays unknown."""
    found = [file[f"{split}_{name}"] for split in rows if f"{split}_{name}" in file]
    if dtype is None:
        kinds = {data.dtype.kind for data in found}
        dtype = np.dtype(np.bool_ if kinds == {"b"} else np.float32 if "f" in kinds else np.int64)
    unknown = {"f": np.nan, "i": -1, "b": False}[dtype.kind]
    array = np.empty((max(r.stop for r in rows.values()), *found[0].shape[1:]), dtype)
    for split, where in rows.items():
        key = f"{split}_{name}"
        with np.errstate(over="ignore"):  # what overflows float32 is found as infinite below
            array[where] = file[key][()] if key in file else unknown
    return array


def _infinities(name: str, array: Array, rows: Mapping[str, slice]) -> list[str]:
    problems = []
    for split, where in rows.items():
        bad = np.isinf(array[where])
        if bad.any():
            channels = np.flatnonzero(bad.any(axis=(0, 1))).tolist()
            problems.append(
                f"'{split}_{name}' holds {int(bad.sum())} infinite values (or values beyond "
                f"float32), in channels {list_some(channels)} (counted from 0); legal are finite "
                f"numbers, and NaN for missing bins."
            )
    return problems
