"""A ready file of windows, put together by their positions and split anew without shared bins."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..data.find import absolute_pattern, check_output, open_h5, write_session
from ..data.read import read_attrs
from ..data.validate import SPLITS, list_keys
from ..errors import DataError, UserError
from .binning import Array
from .chop import cut_windows, find_segments, plan_chops
from .merging import START_KEY, covered_bins, merge_chops, series_names, window_places


@dataclass
class Resplit:
    """What was written: windows by split, bins that are in no window, keys that were left out."""

    path: Path
    windows: dict[str, int]
    uncovered: int
    left_out: list[str] = field(default_factory=list)


def split_file(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    by: str = "time",
    positions: str | None = None,
    overlap: int | None = None,
    valid: float = 0.1,
    test: float = 0.2,
    guard: int = 0,
    block: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> Resplit:
    """Split a ready file anew, by order of time or by blocks; no bin is in two splits.

    The windows are put together to the recording that they were cut from, and this is cut again.
    Series keep their numbers and their type. What has one row per window goes with the window that
    shares most bins.

    Parameters
    ----------
    path, output : str or path
        A file with ``{split}_chop_start``, or with `positions`; and the file to write.
    by : {"time", "blocks"}
        See `chop_recording`.
    positions, overlap : optional
        As of `merge_file`, for windows that were cut elsewhere.
    valid, test : float
        Fractions of the recording.
    guard : int
        Bins left out on each side of a border between splits.
    block : int, optional
        Bins of a block, by default those of ten windows.
    seed : int
        Of the draw of blocks.
    overwrite : bool
        Whether to replace an existing file.

    Returns
    -------
    Resplit

    Raises
    ------
    DataError
        If windows disagree in bins that they share, or do not say where they lie.
    UserError
        For options that contradict the file or one another.
    """
    source, target = (Path(absolute_pattern(place)) for place in (path, output))
    check_output(source, target, overwrite)
    with open_h5(source) as file:
        starts, window, n_bins = window_places(file, source, positions, overlap)
        if any(f"{split}_lengths" in file for split in starts):
            raise UserError(
                f"{source}: its windows end at different bins ('train_lengths'), so they are "
                "trials and no recording; `lfads prep --split time` splits trials in order of time"
            )
        attrs = read_attrs(file)
        shared = overlap if overlap is not None else int(attrs.get("chop_overlap", 0))
        first = np.concatenate(list(starts.values()))
        plan = plan_chops(
            n_bins,
            window,
            shared,
            block=block,
            valid_fraction=valid,
            test_fraction=test,
            guard=guard,
            seed=seed,
            segments=find_segments(covered_bins(first, window, n_bins)),
            by=by,
        )
        names = series_names(file, source, starts, None, list(attrs.get("chop_series", ())))
        names = [name for name in names if all(f"{split}_{name}" in file for split in starts)]
        arrays: dict[str, Array] = {}
        for name in names:
            windows = np.concatenate([file[f"{split}_{name}"][()] for split in starts])
            merged = merge_chops(windows, first, n_bins)
            if not same_windows(windows, merged, first):
                raise DataError(
                    f"{source}: windows disagree in {name!r} where they share bins, so they were "
                    f"not cut from one recording in this way; check --positions ({positions}) and "
                    f"--overlap ({overlap})"
                )
            for split, chosen in plan.starts.items():
                cut = cut_windows(merged, chosen, windows.shape[1])
                arrays[f"{split}_{name}"] = cut.astype(windows.dtype)
        left_out = _carry(file, arrays, starts, plan.starts, names, positions)
    attrs = {key: value for key, value in attrs.items() if not key.startswith("chop_")}
    attrs |= plan.attributes(names) | {"split_from": str(source), "split_names": list(SPLITS)}
    write_session(target, {**arrays, **plan.keys()}, attrs)
    counts = {split: len(chosen) for split, chosen in plan.starts.items()}
    return Resplit(target, counts, plan.uncovered(), left_out)


def same_windows(windows: Array, merged: Array, starts: Array) -> bool:
    """Return whether every window is found again in the recording that they give, NaN as NaN."""
    for start, values in zip(starts.tolist(), windows, strict=True):
        if not np.array_equal(
            merged[start : start + len(values)], values, equal_nan=values.dtype.kind == "f"
        ):
            return False
    return True


def _carry(
    file: h5py.File,
    arrays: dict[str, Array],
    old: dict[str, Array],
    new: dict[str, Array],
    series: list[str],
    positions: str | None,
) -> list[str]:
    """Add what is no series, by the old window nearest to each new one; return what cannot be."""
    keys, left_out = list_keys(file), []
    first = np.concatenate(list(old.values()))
    order = np.argsort(first, kind="stable")
    names: dict[str, Any] = {}
    for key in keys:
        split = next((split for split in SPLITS if key.startswith(f"{split}_")), None)
        name = key if split is None else key.removeprefix(f"{split}_")
        if split is None:
            arrays[key] = file[key][()]
        elif name not in (*series, positions, START_KEY):
            names[name] = None
    for name in names:
        parts = [file[f"{split}_{name}"] for split in old if f"{split}_{name}" in file]
        by_window = len(parts) == len(old) and all(
            part.ndim and part.shape[0] == len(starts) and part.shape[1:] == parts[0].shape[1:]
            for part, starts in zip(parts, old.values(), strict=False)
        )
        if not by_window:
            left_out.append(name)
            continue
        values = np.concatenate([part[()] for part in parts])[order]
        for split, starts in new.items():
            after = np.searchsorted(first[order], starts).clip(1, max(len(order) - 1, 1))
            before = after - 1
            nearer = starts - first[order][before] <= np.abs(
                first[order][after % len(order)] - starts
            )
            arrays[f"{split}_{name}"] = values[np.where(nearer, before, after % len(order))]
    return left_out
