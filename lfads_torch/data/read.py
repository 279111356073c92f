"""Reading one session's file: keys and shapes are validated before any array is read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakSet, WeakValueDictionary

import h5py
import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .find import absolute_pattern, add_to_file, list_some, open_h5
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
    """The trials of one split of one session, float32, in the order of the file."""

    # What the encoders read, (n, T_e, N_e); NaN where missing. Where it equals the first bins and
    # channels of `recon_data` it is a view of it.
    encod_data: Array
    # What is reconstructed, (n, T_r, N_r). Of a test split without it, what is held out is NaN.
    recon_data: Array
    ext_input: Array | None = None  # (n, T, E)
    truth: Array | None = None  # (n, T_r, N_r): true rates per bin, over the `conversion_factor`
    # Batch keys, a row per trial: integers and bools keep their kind. A test split that lacks one
    # holds NaN, -1 or False.
    extras: dict[str, Array] = field(default_factory=dict)
    has_recon: bool = True  # whether the file holds this split's `recon_data`
    lengths: Lengths | None = None  # bins of each trial; None where nothing is missing anywhere
    surveys: dict[str, Survey] = field(default_factory=dict)  # of the arrays when they were read

    @property
    def n_trials(self) -> int:
        """Number of trials."""
        return len(self.encod_data)


@dataclass
class SessionData:
    """One session's data file, read and checked."""

    path: Path
    name: str  # the file's name without its ending
    splits: dict[str, SplitData]  # "train", "valid", and the others that the file has
    # Of these the splits are views: each array with all splits, one after another.
    pooled: dict[str, Array]
    conversion_factor: float = 1.0
    readin_weight: Array | None = None  # (N_e, fac)
    readin_offset: Array | None = None  # (N_e,)
    readout_weight: Array | None = None  # (N_r, fac)
    readout_bias: Array | None = None  # (N_r,) or (N_e,)
    attrs: dict[str, Any] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)  # all of the file's
    # Of the attribute keys, as in the file; all of them, where there is no file.
    arrays: dict[str, Array] = field(default_factory=dict)
    in_file: bool = True  # whether `path` is a file that holds the session
    lengths: Lengths | None = None  # bins of all trials; None where nothing is missing
    # Likelihoods whose support has been checked, so that each run checks it once.
    passed: WeakSet[Any] = field(default_factory=WeakSet, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        # Weak references cannot be pickled; in another process the support is checked again.
        return {name: value for name, value in vars(self).items() if name != "passed"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, passed=WeakSet())

    def source(self) -> Any:
        """Open the file, or give the arrays where there is none; a context by keys."""
        return open_h5(self.path) if self.in_file else nullcontext(self.arrays)

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
    """Return the bin width in milliseconds that a file's attributes state.

    Parameters
    ----------
    attrs : mapping
        Of these ``bin_ms``, ``bin_width_ms``, ``bin_size_ms`` and ``bin_width_s`` are understood.

    Returns
    -------
    float or None
        None where none of them is a finite number above 0.
    """
    for name, to_ms in _BIN_MS_NAMES.items():
        try:
            width = to_ms * float(attrs[name])
        except (KeyError, TypeError, ValueError):
            continue
        if np.isfinite(width) and width > 0:
            return width
    return None


def names_of(attrs: Mapping[str, Any], key: str, n: int | None = None) -> list[str] | None:
    """Return names that an attribute lists, as text with commas or an array.

    Of more than `n` the first, since remarks may follow; None where there are fewer, or none.
    """
    value = attrs.get(key)
    if isinstance(value, bytes | str):
        text = value.decode() if isinstance(value, bytes) else value
        names = [part.strip() for part in text.split(",")]
    elif isinstance(value, np.ndarray) and value.dtype.kind in "OSU":
        names = [v.decode() if isinstance(v, bytes) else str(v) for v in value.ravel()]
    else:
        return None
    return names[:n] if n is None or len(names) >= n else None


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
        The HDF5 file.
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
        Its splits as arrays, with the file's maps, attributes and keys.

    Raises
    ------
    DataError
        If the file cannot be read as HDF5, lacks a required or requested key, or holds arrays
        that contradict each other or are not numbers. All faults are named at once. NaN and any
        finite number pass: what a likelihood supports is checked by the reconstruction.
    """
    path = Path(absolute_pattern(path))
    batch_keys, attr_keys = tuple(batch_keys), tuple(attr_keys)
    with open_h5(path, is_data_file=True) as file:
        key = _key_of(path)
        session = _read(file, path, batch_keys, attr_keys, in_memory)
        _IN_USE[key] = session
        return session


def session_of(
    arrays: Mapping[str, Any], path: str | os.PathLike[str], batch_keys: Iterable[str] = ()
) -> SessionData:
    """Make a session of arrays in memory, by the keys of a data file; `path` names it in errors."""
    # A file in memory alone, so that arrays go the way of a file, with all its checks.
    with h5py.File(f"{path}.{id(arrays)}", "w", driver="core", backing_store=False) as file:
        add_to_file(file, arrays)
        session = _read(file, Path(path), tuple(batch_keys), (), in_memory=True)
    session.arrays, session.in_file = dict(arrays), False
    return session


def bytes_in_memory(
    path: str | os.PathLike[str], batch_keys: Iterable[str] = (), *, masked: bool = False
) -> int:
    """Return the memory that a session's arrays of trials will take, from the file's header."""
    names = [*MODEL_INPUTS, *batch_keys]
    with open_h5(Path(path)) as file:
        total = 0
        for name in names:
            for split in SPLITS:
                data = file.get(f"{split}_{name}")
                if not isinstance(data, h5py.Dataset) or not data.size:
                    continue
                # Integers of batch keys are read as int64; a mask takes a byte per entry.
                total += data.size * (4 if name in MODEL_INPUTS or data.dtype.kind == "f" else 8)
                total += data.size if masked and name == "encod_data" else 0
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
    problems = find_problems(file, batch_keys, attr_keys)
    if problems:
        raise DataError(join_problems(path, problems))
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
    problems += [problem for split in settled.values() for problem in split.problems]
    if problems:
        raise DataError(join_problems(path, problems))
    lengths = _joint_lengths(settled, rows, pooled["recon_data"].shape[1])

    encod, recon = pooled["encod_data"], pooled["recon_data"]
    # Where `encod_data` equals the window of `recon_data` that is read, a view of that takes its
    # place, which frees up to half of the memory. A test split without `recon_data` is made equal.
    read_part = window(recon, *encod.shape[1:])
    for split in set(splits) - set(has["recon_data"]):
        if in_memory:
            read_part[rows[split]] = encod[rows[split]]
        elif lengths is not None:
            part(recon, rows[split]).end_at(lengths[rows[split]], np.nan)
    if same_numbers(encod, read_part):
        pooled["encod_data"] = read_part
    for name in batch_keys:
        # One number per trial takes next to no memory, and spares each batch another read.
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
    sets = [file[f"{split}_{name}"] for split in rows if f"{split}_{name}" in file]
    dtype = _kind_of(sets) if dtype is None else dtype
    unknown = {"f": np.nan, "i": -1, "b": False}[dtype.kind]
    array = np.empty((max(r.stop for r in rows.values()), *sets[0].shape[1:]), dtype)
    for split, where in rows.items():
        key = f"{split}_{name}"
        with np.errstate(over="ignore"):  # the survey reports what overflows float32 as infinite
            array[where] = file[key][()] if key in file else unknown
    return array


def _kind_of(sets: Sequence[h5py.Dataset]) -> np.dtype[Any]:
    kinds = {data.dtype.kind for data in sets}
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
