"""Windows of one recording that share bins although they are in different splits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_CHUNK_ENTRIES = 1 << 20
_MOST_ASKED = 500  # validation windows that are looked at
_LEAST_SHARE = 0.05  # of them that must overlap before it is told
_BY_CHANCE = 10  # times as many as begin alike by chance


def shared_ends(train: Array, valid: Array) -> tuple[int, float]:
    """Find whether validation windows begin with the last bins of a training window.

    Parameters
    ----------
    train, valid : ndarray of float32, shape (n, T, N)

    Returns
    -------
    overlap : int
        Bins that they share; 0 where they do not.
    share : float
        Fraction of the validation windows that do.
    """
    n_bins = train.shape[1]
    if train.shape[1:] != valid.shape[1:] or n_bins < 2:
        return 0, 0.0
    chosen = np.linspace(0, len(valid) - 1, min(len(valid), _MOST_ASKED)).round().astype(int)
    ours, theirs = _bin_hashes(valid[chosen]), _bin_hashes(train)
    factors = np.empty(n_bins, np.uint64)
    factors[0] = 1
    with np.errstate(over="ignore"):
        for t in range(1, n_bins):
            factors[t] = factors[t - 1] * np.uint64(0x9E3779B97F4A7C15)
        begins, others = (np.cumsum(h * factors, axis=1, dtype=np.uint64) for h in (ours, theirs))
        ends = np.zeros(len(theirs), np.uint64)
        best, overlap = 0.0, 0
        # Bins without a spike are alike by necessity.
        filled = np.cumsum(ours != 0, axis=1)
        for length in range(1, n_bins):
            ends = theirs[:, n_bins - length] + factors[1] * ends
            asked = filled[:, length - 1] >= 2
            begin = begins[asked, length - 1]
            share = np.isin(begin, ends).sum() / len(chosen)
            if share < max(_LEAST_SHARE, 2 / len(chosen)) or share < best:
                continue
            chance = np.isin(begin, others[:, length - 1]).sum() / len(chosen)
            if share > _BY_CHANCE * chance:
                best, overlap = float(share), length
    return overlap, best


def _bin_hashes(array: Array) -> NDArray[np.uint64]:
    """Hash of each bin's channels, 0 for a bin of zeros; shape (n, T)."""
    n, n_bins, n_channels = array.shape
    random = np.random.default_rng(0x1FAD5)
    multipliers = random.integers(0, 2**64, n_channels, dtype=np.uint64) | np.uint64(1)
    hashes = np.empty((n, n_bins), np.uint64)
    step = max(1, _CHUNK_ENTRIES // (n_bins * n_channels))
    for start in range(0, n, step):
        # Adding zero turns -0.0 into 0.0, whose bits are 0.
        chunk = np.ascontiguousarray(array[start : start + step], dtype=np.float32) + 0.0
        words = chunk.view(np.uint32).astype(np.uint64)
        hashes[start : start + step] = (words * multipliers).sum(axis=-1, dtype=np.uint64)
    return hashes
