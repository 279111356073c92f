"""Spike times to counts, exact at the edges of bins.

Bins are half open, [a, b). A time that rounding has moved just below an edge counts as on it: times
within a tolerance below an edge belong to the bin of that edge. The tolerance is 1 ns, or what
the type in which the times were stored can tell apart where that is more (float32 seconds resolve
0.12 ms after half an hour). So a spike of 0.1 + 0.2 s and one of 0.3 s share a bin of 5 ms, the one
that begins at 0.3 s. The same rule decides which window a spike belongs to, so that a spike between
two windows that adjoin is in exactly one of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from ..errors import DataError, number

Array = NDArray[Any]
Counts = NDArray[np.uint16]
Flags = NDArray[np.bool_]
Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

# Far below the 33 us between samples at 30 kHz, and far above what float64 rounds off: 2e-12 s
# three hours into a recording.
TOLERANCE_S = 1e-9
MOST_PER_BIN = 2**16 - 1
_BLOCK = 1 << 14  # spikes whose intermediate arrays stay in the cache


def time_tolerance(latest: float, stored: DTypeLike = np.float64) -> float:
    """Return by how much a time may lie below an edge and still count as on it: 1 ns or more.

    `latest` is the largest absolute time, and the result, in the unit in which times were stored.
    """
    dtype = np.dtype(stored)
    if dtype.kind != "f" or not np.isfinite(latest):
        return TOLERANCE_S
    # Storing a time rounds it by half a spacing; sums before that may have rounded it once more.
    return max(TOLERANCE_S, 2 * float(np.spacing(np.asarray(abs(latest), dtype))))


def stored_type(values: Array) -> np.dtype[Any]:
    """Return the type whose precision times have: float32 also where they were that once.

    Text, MATLAB and many programs turn float32 into float64, which keeps its rounding.
    """
    few = values[:64]
    if values.dtype != np.float64 or not (few.astype(np.float32) == few).all():
        return values.dtype
    if not (values.astype(np.float32) == values).all():
        return values.dtype
    # Whole numbers, and samples of a clock of 2^n Hz, are exact in either type.
    return values.dtype if (values * 2**16 % 1 == 0).all() else np.dtype(np.float32)


def bin_spikes(
    times: ArrayLike,
    bin_s: float,
    start: float = 0.0,
    n_bins: int | None = None,
    *,
    tolerance: float | None = None,
) -> Counts:
    """Count the spikes of one unit in consecutive bins.

    Parameters
    ----------
    times : array, shape (n_spikes,)
        Seconds, in any order.
    bin_s : float
        Bin width in seconds.
    start : float
        Left edge of the first bin, in seconds; spikes before it are not counted.
    n_bins : int, optional
        By default as many as it takes to count the last spike.
    tolerance : float, optional
        Seconds by which a time may lie below an edge and still count as on it; by default 1 ns,
        or what the type of `times` can resolve.

    Returns
    -------
    ndarray of uint16, shape (n_bins,)
        Spikes in each bin.

    Raises
    ------
    DataError
        For times that are NaN, infinite or not numbers, and for more than 65535 spikes in a bin.
    UserError
        For a bin width that is not a finite number above 0.

    Examples
    --------
    >>> bin_spikes([0.1 + 0.2, 0.3, 0.304, 0.305], 0.005, start=0.295, n_bins=3)
    array([0, 3, 1], dtype=uint16)
    """
    ordered, slack = _in_order(times, tolerance)
    if n_bins is None:
        last = ordered[-1] if len(ordered) else start
        n_bins = max(0, int(np.floor((last + slack - start) / bin_s)) + 1) if len(ordered) else 0
    return bin_windows(ordered, np.array([start]), n_bins, bin_s, tolerance=slack)[0]


def bin_windows(
    times: ArrayLike,
    starts: ArrayLike,
    n_bins: int,
    bin_s: float,
    *,
    tolerance: float | None = None,
    out: Counts | None = None,
) -> Counts:
    """Count the spikes of one unit in the bins of windows of equal length.

    Parameters
    ----------
    times : array, shape (n_spikes,)
        Seconds, in any order.
    starts : array, shape (n_windows,)
        Left edge of each window's first bin, in seconds, in any order. Windows may overlap: a
        spike counts in each that holds it.
    n_bins : int
        Bins of a window.
    bin_s : float
        Bin width in seconds.
    tolerance : float, optional
        Seconds by which a time may lie below an edge and still count as on it; by default 1 ns,
        or what the type of `times` can resolve.
    out : ndarray of uint16, shape (n_windows, n_bins), optional
        Counts to which these are added, for times that come block by block.

    Returns
    -------
    ndarray of uint16, shape (n_windows, n_bins)
        Spikes in each bin of each window; `out` where it is given.

    Raises
    ------
    DataError
        For times that are NaN, infinite or not numbers, and for more than 65535 spikes in a bin.
    UserError
        For a bin width that is not a finite number above 0.
    """
    number("The bin width in seconds", bin_s, above=0)
    ordered, slack = _in_order(times, tolerance)
    first = np.asarray(starts, dtype=np.float64).reshape(-1)
    counts = np.zeros((len(first), n_bins), dtype=np.uint16) if out is None else out
    flat = counts.reshape(-1)
    # `np.histogram` knows neither a tolerance nor windows that overlap. The tolerance holds at both
    # ends of a window, so that where two adjoin each spike is in exactly one.
    low = np.searchsorted(ordered, first - slack)
    high = np.searchsorted(ordered, first + n_bins * bin_s - slack)
    # The spikes of all windows in a row, window after window.
    ends = np.concatenate([[0], np.cumsum(high - low)])
    for begin in range(0, int(ends[-1]), _BLOCK):
        end = min(begin + _BLOCK, int(ends[-1]))
        w = slice(
            int(np.searchsorted(ends, begin, side="right")) - 1, int(np.searchsorted(ends, end))
        )
        sizes = np.minimum(ends[1:][w], end) - np.maximum(ends[:-1][w], begin)
        if len(sizes) == 1:
            offset = int(low[w.start] - ends[w.start])
            spikes = ordered[begin + offset : end + offset]
            since, base = first[w], np.array([w.start])
        else:
            spikes = ordered[np.arange(begin, end) + np.repeat(low[w] - ends[:-1][w], sizes)]
            since = np.repeat(first[w], sizes)
            base = np.repeat(np.arange(w.start, w.stop), sizes)
        position = spikes - since
        position /= bin_s
        position += slack / bin_s
        index = position.astype(np.int64)
        # Only rounding can leave the window: which spikes are in it was decided above.
        np.clip(index, 0, n_bins - 1, out=index)
        index += base * n_bins
        _add_runs(flat, index, fresh=out is None)
    return counts


def _add_runs(flat: Counts, index: Indices, fresh: bool) -> None:
    """Add to `flat` how often each value occurs in the ascending `index`.

    `fresh` says that what lies beyond the first of these entries still is 0.
    """
    new = np.flatnonzero(index[1:] != index[:-1])
    edges = np.concatenate([[-1], new, [len(index) - 1]])
    at, counts = index[edges[1:]], np.diff(edges)
    if fresh:  # the entry may have been begun by the block before
        counts[0] += flat[at[0]]
    else:
        counts += flat[at]
    if counts.max() > MOST_PER_BIN:
        raise DataError(
            f"A bin holds {int(counts.max())} spikes of one unit, more than {MOST_PER_BIN}: are "
            "the times in another unit (--time-unit), or is the bin too wide?"
        )
    flat[at] = counts


def _in_order(times: ArrayLike, tolerance: float | None) -> tuple[Floats, float]:
    stored = np.asarray(times)
    if stored.dtype.kind not in "uif" and stored.size:
        raise DataError(f"Spike times must be numbers; their type is {stored.dtype}.")
    ordered = np.ascontiguousarray(stored.reshape(-1), dtype=np.float64)
    if not len(ordered):
        return ordered, TOLERANCE_S if tolerance is None else tolerance
    if not is_sorted(ordered):  # also where one is NaN
        bad = int((~np.isfinite(ordered)).sum())
        if bad:
            raise DataError(f"{bad} of {len(ordered)} spike times are NaN or infinite; drop them.")
        ordered = np.sort(ordered)
    latest = max(abs(ordered[0]), abs(ordered[-1]))
    if not np.isfinite(latest):
        raise DataError("Spike times are NaN or infinite; drop them.")
    return ordered, time_tolerance(latest, stored.dtype) if tolerance is None else tolerance


def is_sorted(values: Floats) -> bool:
    """Return whether values ascend (equal neighbours allowed); False where one is NaN."""
    return bool((values[1:] >= values[:-1]).all())


def first_bin(times: ArrayLike, bin_s: float, start: float = 0.0) -> Indices:
    """Return the first bin at or after each time, of a grid that begins at `start` (seconds)."""
    position = (np.asarray(times, dtype=np.float64) - start) / bin_s
    return np.ceil(position - TOLERANCE_S / bin_s).astype(np.int64)


def rebin(counts: Array, factor: int, *, average: bool = False) -> Array:
    """Sum, or `average`, each `factor` bins of counts, shape (..., bins, channels).

    The result has the type of `counts`; sums of integers are int64.
    """
    if factor == 1:
        return counts
    shape = counts.shape
    groups = counts.reshape(*shape[:-2], shape[-2] // factor, factor, shape[-1])
    if average:
        return np.asarray(groups.mean(axis=-2), dtype=counts.dtype)
    # A sum in the type of the counts, uint8 or uint16, could wrap around.
    kind = np.dtype(np.int64) if counts.dtype.kind in "bui" else counts.dtype
    return np.asarray(groups.sum(axis=-2, dtype=kind))
