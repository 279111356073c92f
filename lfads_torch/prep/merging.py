"""Windows of a continuous recording joined again, arrays and whole files.

Where two windows overlap by o bins, the later one weighs x^2 and the earlier one 1 - x^2, with
x = linspace(1/o, 1 - 1/o, o): the weighting of AutoLFADS for continuous recordings [1]_.

.. [1] Keshtkaran, Sedler et al. 2022, Nature Methods 19.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import ArrayLike

from ..data.find import absolute_pattern, list_some, open_h5, warn_of_other_files, write_session
from ..data.read import read_attrs
from ..data.validate import SPLITS, list_keys, suggest
from ..errors import DataError, DataWarning, UserError
from .binning import Array

START_KEY = "chop_start"
"""``{split}_chop_start``: bin of the recording at which each window of a split starts."""

NO_SPLIT = -1
"""In the key ``split`` of a merged file: a bin that lies in no window."""


def merge_weights(overlap: int) -> tuple[Array, Array]:
    """Return weights of the earlier and the later window in `overlap` bins; they sum to one."""
    x = np.linspace(1 / overlap, 1 - 1 / overlap, overlap) if overlap else np.empty(0)
    return 1 - x**2, x**2


def merge_chops(chops: ArrayLike, starts: ArrayLike, n_bins: int) -> Array:
    """Join overlapping windows to one continuous series.

    Parameters
    ----------
    chops : array, shape (windows, window, ...)
        In any order.
    starts : array of int, shape (windows,)
        Bin of the recording at which each window starts.
    n_bins : int
        Bins of the recording.

    Returns
    -------
    ndarray of floats, shape (n_bins, ...)
        NaN in bins that lie in no window. Windows that agree where they overlap come back bit for
        bit. Where a value is NaN in one of two windows, the other one's stands.

    Raises
    ------
    UserError
        Where there is not one start per window, or a window does not lie in the recording.
    """
    windows, first = np.asarray(chops), np.asarray(starts)
    if windows.ndim < 2 or first.shape != windows.shape[:1] or first.dtype.kind not in "ui":
        raise UserError(
            f"starts must hold a whole number for each window; their shape is {first.shape}, "
            f"their type {first.dtype}, for windows of shape {windows.shape}"
        )
    window = windows.shape[1]
    if len(first) and (int(first.min()) < 0 or int(first.max()) + window > n_bins):
        raise UserError(
            f"windows of {window} bins start at bins {first.min()} to {first.max()}; they do not "
            f"lie in a recording of {n_bins} bins"
        )
    # Every float type holds NaN; small integers fit float32, larger ones need float64.
    merged = np.full(
        (n_bins, *windows.shape[2:]), np.nan, np.result_type(windows.dtype, np.float32)
    )
    end = 0
    for i in np.argsort(first, kind="stable"):
        start, values = int(first[i]), windows[i].astype(merged.dtype)
        overlap = max(0, min(end - start, window))
        later = merge_weights(overlap)[1].reshape(-1, *[1] * (values.ndim - 1))
        known, new = merged[start : start + overlap], values[:overlap]
        # This form, not a sum of two products, leaves values that agree as they are.
        with np.errstate(invalid="ignore"):
            mixed = known + later.astype(merged.dtype) * (new - known)
        mixed = np.where((known == new) | np.isnan(new), known, mixed)
        merged[start : start + overlap] = np.where(np.isnan(known), new, mixed)
        merged[start + overlap : start + window] = values[overlap:]
        end = start + window
    return merged


def covered_bins(starts: ArrayLike, window: int, n_bins: int) -> Array:
    """Return which bins of a recording lie in some window, shape (n_bins,)."""
    # One step up where a window begins and one down where it ends: no loop over windows.
    # `add.at` counts windows that begin at the same bin, which `steps[starts] += 1` would not.
    steps = np.zeros(n_bins + 1, dtype=np.int64)
    np.add.at(steps, np.asarray(starts, dtype=np.int64), 1)
    np.add.at(steps, np.asarray(starts, dtype=np.int64) + window, -1)
    return np.asarray(np.cumsum(steps[:-1]) > 0)


def leaking_windows(starts: Array, others: Array, window: int) -> Array:
    """Return which windows share bins with one of the others; both are first bins."""
    ordered = np.sort(others)
    # Another window that starts within (start - window, start + window) shares a bin.
    low = np.searchsorted(ordered, starts - window, side="right")
    return np.asarray(np.searchsorted(ordered, starts + window, side="left") > low)


def merge_file(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    only: Sequence[str] | None = None,
    positions: str | None = None,
    overlap: int | None = None,
) -> Path:
    """Join the windows in a data file, or in a model's output file, to continuous series.

    Every per-window series is joined over all splits: ``train_output_params`` and
    ``valid_output_params`` give ``output_params``, shape (bins of the recording, channels).
    ``split`` says of each bin where it comes from: 0 train, 1 valid, 2 test, -1 no window (there
    all series are NaN). A bin that lies in windows of two splits counts as train.

    Parameters
    ----------
    path : str or path
        A file with ``{split}_chop_start`` and the attributes that `chop_recording` returns.
    output : str or path, optional
        By default ``<name>_merged.h5`` in the same folder.
    only : sequence of str, optional
        Series to join, without their split; by default all.
    positions : str, optional
        For windows that were cut elsewhere: the per-window key (without split) that numbers them
        in the order of the recording, ``inds`` for ``train_inds``.
    overlap : int, optional
        Bins that such a window shares with the next one.

    Returns
    -------
    Path
        The merged file.

    Warns
    -----
    DataWarning
        Where validation windows share bins with training windows: what is merged there is
        neither held out nor free of leakage.

    Raises
    ------
    DataError
        If the file cannot be read, or does not say where its windows come from.
    UserError
        For options that contradict the file.
    """
    source = Path(absolute_pattern(path))
    target = Path(output) if output else source.with_name(f"{source.stem}_merged.h5")
    target = Path(absolute_pattern(target))
    if target == source:
        raise UserError(f"the merged file would overwrite {source}; name another output")
    with open_h5(source) as file:
        warn_of_other_files(file)
        starts, window, n_bins = window_places(file, source, positions, overlap)
        attrs = read_attrs(file)
        names = series_names(file, source, starts, only, list(attrs.get("chop_series", ())))
        arrays = {}
        for name in names:
            splits = [split for split in starts if f"{split}_{name}" in file]
            chops = np.concatenate([file[f"{split}_{name}"][()] for split in splits])
            arrays[name] = merge_chops(chops, np.concatenate([starts[s] for s in splits]), n_bins)
    labels = np.full(n_bins, NO_SPLIT, dtype=np.int8)
    # Windows may overlap. The first split is written last, so that bins that it shares with
    # another are labelled as training: they were seen.
    for split in reversed(list(starts)):
        labels[covered_bins(starts[split], window, n_bins)] = SPLITS.index(split)
    leaks = 0
    if {"train", "valid"} <= set(starts):
        leaks = int(leaking_windows(starts["valid"], starts["train"], window).sum())
    if leaks:
        warnings.warn(
            f"{source.name}: {leaks} of {len(starts['valid'])} validation windows share bins with "
            "training windows. Scores on these bins are not held out; in the merged file they "
            "count as train (split 0). Split by blocks (lfads prep, chop_recording) to avoid it.",
            DataWarning,
            stacklevel=2,
        )
    attrs = {key: value for key, value in attrs.items() if not key.startswith("chop_series")}
    # Three by custom; the fourth only where it has bins.
    names = list(SPLITS[: max(3, int(labels.max()) + 1)])
    attrs |= {"merged_from": str(source), "chop_window": window, "split_names": names}
    return write_session(target, {**arrays, "split": labels}, attrs)


def window_places(
    file: h5py.File, path: Path, positions: str | None, overlap: int | None
) -> tuple[dict[str, Array], int, int]:
    """Return first bins of the windows by split, their length, and the bins of the recording."""
    if (positions is None) != (overlap is None):
        raise UserError("positions and overlap belong together: give both or neither")
    keys = list_keys(file)
    name = START_KEY if positions is None else positions
    splits = [split for split in SPLITS if f"{split}_{name}" in keys]
    if not splits:
        numbered = [key for key in keys if key.startswith("train_") and file[key].ndim == 1]
        hint = f" It has {list_some(numbered)}." if numbered else ""
        raise DataError(
            f"{path} does not say where its windows lie in the recording: it has no "
            f"'train_{name}'{suggest(f'train_{name}', keys)} Files of lfads prep and "
            f"chop_recording do; for others name the per-window key that numbers the windows "
            f"(--positions, such as inds) and the bins that neighbours share (--overlap).{hint}"
        )
    lengths = _lengths(file, splits, "recon_data") or _lengths(file, splits, "encod_data")
    if not lengths:
        raise DataError(f"{path} holds no windows: it has no 'train_recon_data'.")
    window = next(iter(lengths.values()))[1]
    if overlap is not None and not 0 <= overlap < window:
        raise UserError(
            f"overlap={overlap} bins of a window of {window}; legal is 0 to {window - 1}"
        )
    starts = {}
    for split in splits:
        first = np.asarray(file[f"{split}_{name}"][()])
        if first.dtype.kind not in "ui" or first.shape != (lengths.get(split, (-1, 0))[0],):
            raise DataError(
                f"{path}: '{split}_{name}' must hold a whole number for each of the split's "
                f"windows; its shape is {first.shape}, its type {first.dtype}."
            )
        starts[split] = first.astype(np.int64) * (1 if overlap is None else window - overlap)
    # Files whose windows were cut elsewhere do not say how long the recording was.
    n_bins = max(int(first.max()) for first in starts.values()) + window
    return starts, window, int(file.attrs.get("chop_n_bins", n_bins))


def _lengths(file: h5py.File, splits: Iterable[str], name: str) -> dict[str, tuple[int, int]]:
    """Return how many windows each split has of an array, and their bins."""
    keys = {split: f"{split}_{name}" for split in splits}
    return {
        split: (int(file[key].shape[0]), int(file[key].shape[1]))
        for split, key in keys.items()
        if key in file and file[key].ndim == 3
    }


def series_names(
    file: h5py.File,
    path: Path,
    starts: Mapping[str, Array],
    only: Sequence[str] | None,
    chopped: Sequence[str],
) -> list[str]:
    """Return the names of the arrays that hold a row per window and, in it, a row per bin."""
    arrays = [_lengths(file, starts, name) for name in ("encod_data", "recon_data")]
    lengths = {length for of_array in arrays for _, length in of_array.values()}
    series: dict[str, None] = {}
    for split, first in starts.items():
        for key in list_keys(file):
            name, data = key.removeprefix(f"{split}_"), file[key]
            if name == key or data.dtype.kind not in "buif" or data.ndim < 2:
                continue
            is_series = data.ndim > 2 or name in chopped
            if is_series and data.shape[0] == len(first) and data.shape[1] in lengths:
                series[name] = None
    if only is None:
        return list(series)
    for name in only:
        if name not in series:
            raise UserError(
                f"{path} has no series {name!r} to merge{suggest(name, series)} It has "
                f"{list_some(list(series), 30)}."
            )
    return list(dict.fromkeys(only))
