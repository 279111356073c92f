"""Windows of one recording that share bins although they are in different splits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .stored import blocks

Array = NDArray[Any]

_MOST_HASHES = 1 << 20  # that are held at a time
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
    ours = np.concatenate(list(_bin_hashes(valid[chosen])))
    factors = np.empty(n_bins, np.uint64)
    factors[0] = 1
    with np.errstate(over="ignore"):
        for t in range(1, n_bins):
            factors[t] = factors[t - 1] * np.uint64(0x9E3779B97F4A7C15)
        begins = np.cumsum(ours * factors, axis=1, dtype=np.uint64)
        # Bins without a spike are alike by necessity.
        asked = np.cumsum(ours != 0, axis=1) >= 2
        found = np.zeros((len(chosen), n_bins), bool)  # by overlap
        for theirs in _bin_hashes(train):
            ends = np.zeros(len(theirs), np.uint64)
            for length in range(1, n_bins):
                ends = theirs[:, n_bins - length] + factors[1] * ends
                found[:, length] |= np.isin(begins[:, length - 1], ends)
        found[:, 1:] &= asked[:, :-1]
        shares = found.sum(axis=0) / len(chosen)
        likely = np.flatnonzero(shares >= max(_LEAST_SHARE, 2 / len(chosen))).tolist()
        alike = np.zeros_like(found)
        for theirs in _bin_hashes(train) if len(likely) else ():
            others = np.cumsum(theirs * factors, axis=1, dtype=np.uint64)
            for length in likely:
                alike[:, length] |= np.isin(begins[:, length - 1], others[:, length - 1])
    best, overlap = 0.0, 0
    for length in likely:
        chance = (alike[:, length] & asked[:, length - 1]).sum() / len(chosen)
        if shares[length] >= best and shares[length] > _BY_CHANCE * chance:
            best, overlap = float(shares[length]), length
    return overlap, best


def _bin_hashes(array: Any) -> Iterator[NDArray[np.uint64]]:
    """Hash of each bin's channels, 0 for a bin of zeros; some trials at a time, shape (n, T)."""
    _, n_bins, n_channels = array.shape
    random = np.random.default_rng(0x1FAD5)
    multipliers = random.integers(0, 2**64, n_channels, dtype=np.uint64) | np.uint64(1)
    held: list[NDArray[np.uint64]] = []
    for _, block in blocks(array):
        # Adding zero turns -0.0 into 0.0, whose bits are 0.
        chunk = np.ascontiguousarray(block, dtype=np.float32) + np.float32(0)
        words = chunk.view(np.uint32).astype(np.uint64)
        held.append((words * multipliers).sum(axis=-1, dtype=np.uint64))
        if sum(len(hashes) for hashes in held) * n_bins >= _MOST_HASHES:
            yield np.concatenate(held)
            held = []
    if held:
        yield np.concatenate(held)
