"""Reading one session's file: keys and shapes are validated before any array is read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakSet, WeakValueDictionary

import h5py
import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .find import absolute_pattern, list_some, open_h5
from .missing import Lengths, Settled, given_lengths, settle_split
from .stored import StoredArray, part, same_numbers, store, window
from .survey import Survey
from .validate import (
    MODEL_INPUTS,
    SPLITS,
    find_problems,
    join_problems,
    list_keys,
)

Array = NDArray[Any]

_BIN_MS_NAMES = {"bin_ms": 1.0, "bin_width_ms": 1.0, "bin_size_ms": 1.0, "bin_width_s": 1000.0}


@dataclass
class SplitData:
    """The trials of one split of one session, in the order of the file.

    Attributes
    ----------
    encod_data : ndarray of float32, shape (n, T_e, N_e)
        What the encoders read; NaN where missing. Where it equals the first bins and channels of
        `recon_data` it is a view of it.
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
    lengths : ndarray of int, shape (n,), or None
        Bins of each trial; None where nothing is missing in the session.
    surveys : dict of str to Survey
        What a pass over each of the arrays of the model showed when they were read.
    """

    encod_data: Array
    recon_data: Array
    ext_input: Array | None = None
    truth: Array | None = None
    extras: dict[str, Array] = field(default_factory=dict)
    has_recon: bool = True
    lengths: Lengths | None = None
    surveys: dict[str, Survey] = field(default_factory=dict)

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
    lengths : ndarray of int, shape (n,), or None
        Bins of each trial, splits one after another; None where nothing is missing.
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
    passed : set of object
        Likelihoods whose support has been checked, so that each run checks it once.
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
    lengths: Lengths | None = None
    passed: WeakSet[Any] = field(default_factory=WeakSet, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        # Weak references cannot be pickled; in another process the support is checked again.
        return {name: value for name, value in vars(self).items() if name != "passed"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, passed=WeakSet())

    @property
    def bin_ms(self) -> float | None:
        """Bin width in milliseconds, where the file's attributes say it."""
        return bin_width_ms(self.attrs)


# Sessions that are in use, by path, size and time of change. The references are weak: the data
# module decides how long the arrays of a run live, and a file that changed is read again.
_IN_USE: WeakValueDictionary[tuple[Any, ...], SessionData] = WeakValueDictionary()


def _key_of(path: Path) -> tuple[Any, ...]:
    status = path.stat()
    return path, status.st_ino, status.st_size, status.st_mtime_ns


def session_in_use(path: str | os.PathLike[str]) -> SessionData:
    """Return the session of a file as a data module holds it, or read it without its trials."""
    path = Path(absolute_pattern(path))
    session = _IN_USE.get(_key_of(path)) if path.exists() else None
    return read_session(path, in_memory=False) if session is None else session


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
    *,
    in_memory: bool = True,
) -> SessionData:
    """Read one session's data file.

    Parameters
    ----------
    path : str or path
    batch_keys : iterable of str
        Extra per-trial arrays to read, without their split: "behavior" for ``train_behavior``.
    attr_keys : iterable of str
        Further arrays to read as they are, by their full key.
    in_memory : bool
        Otherwise the arrays of trials are looked through block by block and stay in the file: they
        are `StoredArray`, of which one takes rows. Batch keys of one number per trial are read.

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
        key = _key_of(path)
        problems = find_problems(file, batch_keys, attr_keys)
        if problems:
            raise DataError(join_problems(path, problems))
        session = _read(file, path, batch_keys, attr_keys, in_memory)
        _IN_USE[key] = session
        return session


def bytes_in_memory(
    path: str | os.PathLike[str], batch_keys: Iterable[str] = (), *, masked: bool = False
) -> int:
    """Memory that a session's arrays of trials take once they are read, from the file's header."""
    names = [*MODEL_INPUTS, *batch_keys]
    with open_h5(Path(path)) as file:
        found = {
            (name, split): file[key]
            for name in names
            for split in SPLITS
            if isinstance(file.get(key := f"{split}_{name}"), h5py.Dataset)
        }
        total = 0
        for (name, _), data in found.items():
            total += (data.size or 0) * (4 if name in MODEL_INPUTS or data.dtype.kind == "f" else 8)
            total += (data.size or 0) if masked and name == "encod_data" else 0
    return total


def slow_reads(session: SessionData) -> str | None:
    """Say that trials of a session that stays in its file take long to read, and what helps."""
    slow: dict[str, int] = {}
    for array in session.pooled.values():
        if isinstance(array, StoredArray):
            slow |= array.slow_keys
    if not slow:
        return None
    key, n = max(slow.items(), key=lambda item: item[1])
    return (
        f"{session.path.name}: the session stays in its file, where {len(slow)} data sets hold "
        f"many trials in one chunk (of {key!r} {n}), all of which are read to have one of them: "
        f"batches come slowly. `lfads repack {session.path.name} -o NEW.h5` writes them trial by "
        f"trial."
    )


def _read(
    file: h5py.File,
    path: Path,
    batch_keys: Sequence[str],
    attr_keys: Sequence[str],
    in_memory: bool,
) -> SessionData:
    splits = [split for split in SPLITS if f"{split}_encod_data" in file]
    ends = np.cumsum([file[f"{split}_encod_data"].shape[0] for split in splits]).tolist()
    rows = dict(zip(splits, map(slice, [0, *ends], ends), strict=False))
    has = {name: [s for s in splits if f"{s}_{name}" in file] for name in MODEL_INPUTS}

    factor = float(np.ravel(file["conversion_factor"][()])[0]) if "conversion_factor" in file else 1
    pooled: dict[str, Any] = {}
    for name in (name for name in MODEL_INPUTS if has[name]):
        scale = factor if name == "truth" else 1
        if in_memory:
            pooled[name] = pool(file, name, rows, np.dtype(np.float32))
            if scale != 1:
                pooled[name] /= np.float32(scale)
        else:
            pooled[name] = _store(file, path, name, rows, scale)
    settled = {
        split: settle_split(
            split,
            {name: part(pooled[name], where) for name in pooled if split in has[name]},
            given_lengths(file, split),
        )
        for split, where in rows.items()
    }
    problems = [
        f"'{split}_{name}' holds {text}"
        for name in pooled
        for split in has[name]
        if (text := _infinities(settled[split].surveys[name]))
    ]
    problems += [fault for found in settled.values() for fault in found.problems]
    if problems:
        raise DataError(join_problems(path, problems))
    lengths = _joint_lengths(settled, rows, pooled["recon_data"].shape[1])

    encod, recon = pooled["encod_data"], pooled["recon_data"]
    read_part = window(recon, *encod.shape[1:])
    if "test" in splits and "test" not in has["recon_data"]:
        if in_memory:
            read_part[rows["test"]] = encod[rows["test"]]
        elif lengths is not None:
            part(recon, rows["test"]).end_at(lengths[rows["test"]], np.nan)
    if same_numbers(encod, read_part):
        pooled["encod_data"] = read_part
    for name in batch_keys:
        by_trial = all(file[f"{split}_{name}"].ndim == 1 for split in ("train", "valid"))
        pooled[name] = (
            pool(file, name, rows, None)
            if in_memory or by_trial
            else _store(file, path, name, rows)
        )

    def of(split: str, name: str) -> Array | None:
        return part(pooled[name], rows[split]) if split in has[name] else None

    return SessionData(
        path=path,
        name=path.stem,
        splits={
            split: SplitData(
                encod_data=part(pooled["encod_data"], rows[split]),
                recon_data=part(recon, rows[split]),
                ext_input=of(split, "ext_input"),
                truth=of(split, "truth"),
                extras={name: part(pooled[name], rows[split]) for name in batch_keys},
                has_recon=split in has["recon_data"],
                lengths=None if lengths is None else lengths[rows[split]],
                surveys=settled[split].surveys,
            )
            for split in splits
        },
        pooled=pooled,
        lengths=lengths,
        conversion_factor=factor,
        readin_weight=_optional(file, "readin_weight"),
        readin_offset=_optional(file, "readin_offset"),
        readout_weight=_optional(file, "readout_weight"),
        readout_bias=_optional(file, "readout_bias"),
        attrs=read_attrs(file),
        keys=list_keys(file),
        arrays={key: file[key][()] for key in attr_keys},
    )


def _joint_lengths(
    settled: Mapping[str, Settled], rows: Mapping[str, slice], n_bins: int
) -> Lengths | None:
    """Return the lengths of all trials, splits one after another; None where nothing is missing."""
    if all(split.lengths is None for split in settled.values()):
        return None
    lengths = np.full(max(where.stop for where in rows.values()), n_bins, np.int64)
    for name, split in settled.items():
        if split.lengths is not None:
            lengths[rows[name]] = np.where(split.lengths < 0, n_bins, split.lengths)
    return lengths


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
    dtype = _kind_of(found) if dtype is None else dtype
    unknown = {"f": np.nan, "i": -1, "b": False}[dtype.kind]
    array = np.empty((max(r.stop for r in rows.values()), *found[0].shape[1:]), dtype)
    for split, where in rows.items():
        key = f"{split}_{name}"
        with np.errstate(over="ignore"):  # what overflows float32 is found as infinite below
            array[where] = file[key][()] if key in file else unknown
    return array


def _kind_of(found: Sequence[h5py.Dataset]) -> np.dtype[Any]:
    kinds = {data.dtype.kind for data in found}
    return np.dtype(np.bool_ if kinds == {"b"} else np.float32 if "f" in kinds else np.int64)


def _store(
    file: h5py.File, path: Path, name: str, rows: Mapping[str, slice], divisor: float = 1
) -> StoredArray:
    """Describe what `pool` reads, to be read later."""
    keys: list[tuple[str | None, int]] = []
    for split, where in rows.items():
        key = f"{split}_{name}"
        if key not in file and name == "recon_data":
            key = f"{split}_encod_data"  # what is read of it is known
        keys.append((key if key in file else None, where.stop - where.start))
    is_input = name in MODEL_INPUTS
    kind = np.dtype(np.float32) if is_input else _kind_of([file[k] for k, _ in keys if k])
    return store(file, path, keys, kind, divisor=divisor)


def _infinities(survey: Survey) -> str | None:
    """Say how many values are infinite, in which channels; None where all are finite."""
    if not survey.infinite.any():
        return None
    channels = np.flatnonzero(survey.infinite).tolist()
    return (
        f"{int(survey.infinite.sum())} infinite values (or values beyond float32), in channels "
        f"{list_some(channels)} (counted from 0); legal are finite numbers, and NaN for missing "
        f"bins."
    )
