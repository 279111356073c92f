"""Which units are kept: active enough, present throughout, and not copies of another."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError

Floats = NDArray[np.float64]

PRESENCE_BLOCKS = 20


@dataclass
class UnitSums:
    """What is counted of each unit, block of bins after block.

    Attributes
    ----------
    n_units : int
    pairs : bool
        Whether to correlate units with each other.
    n_blocks : int
        Blocks of windows for presence.
    """

    n_units: int
    pairs: bool = False
    n_blocks: int = PRESENCE_BLOCKS
    total: Floats = field(init=False)
    present: NDArray[np.bool_] = field(init=False)
    products: Floats = field(init=False)
    n_bins: int = 0

    def __post_init__(self) -> None:
        self.total = np.zeros(self.n_units)
        self.present = np.zeros((self.n_blocks, self.n_units), dtype=bool)
        self.products = np.zeros((self.n_units, self.n_units) if self.pairs else (0, 0))

    def add(self, counts: NDArray[Any], block: int) -> None:
        """Take in counts, shape (bins, units), of one of the blocks; NaN counts as nothing."""
        values: NDArray[Any] = np.nan_to_num(counts) if counts.dtype.kind == "f" else counts
        sums = values.sum(axis=0, dtype=np.float64)
        self.total += sums
        self.present[block] |= sums != 0
        self.n_bins += len(values)
        if self.pairs:
            # float32 holds sums of products of counts exactly up to 2^24
            kind = np.float64 if counts.dtype.kind == "f" else np.float32
            few: Any = np.asarray(values, dtype=kind)
            self.products += few.T @ few

    def mean(self) -> Floats:
        """Mean per bin."""
        return np.asarray(self.total / max(1, self.n_bins))

    def presence(self) -> Floats:
        """Fraction of the blocks in which each unit was active."""
        return np.asarray(self.present.mean(axis=0))

    def correlations(self) -> Floats:
        """Pearson's r between all units over bins; 0 for units that never vary."""
        mean = self.mean()
        covariance = self.products / max(1, self.n_bins) - np.outer(mean, mean)
        spread = np.sqrt(np.maximum(covariance.diagonal(), 0))
        scale = np.outer(spread, spread)
        return np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 1e-12)


def copies(correlations: Floats, threshold: float) -> list[int]:
    """Choose channels to drop until no pair is correlated above a threshold.

    Shared spikes of neighbouring electrodes show as correlations at a resolution of about 1 ms.
    The channel with most such partners goes first; of equals the one with the largest
    correlation, then the later one.

    Parameters
    ----------
    correlations : ndarray, shape (units, units)
    threshold : float
        Above 0, at most 1.

    Returns
    -------
    list of int
        Channels to drop, in the order in which they were chosen.
    """
    if not 0 < threshold <= 1:
        raise UserError(f"A threshold of {threshold} for correlations; legal is above 0 to 1.")
    close = correlations > threshold
    np.fill_diagonal(close, False)
    dropped: list[int] = []
    while (partners := close.sum(axis=0)).any():
        largest = np.where(close, correlations, 0).max(axis=0)
        worst = int(np.lexsort([np.arange(len(close)), largest, partners])[-1])
        dropped.append(worst)
        close[worst] = close[:, worst] = False
    return dropped


def choose_heldout(n_units: int, how_many: float, seed: int) -> NDArray[np.bool_]:
    """Draw units to hold out.

    Parameters
    ----------
    n_units : int
    how_many : float
        A fraction where it is below 1, else a number.
    seed : int

    Returns
    -------
    ndarray of bool, shape (n_units,)

    Raises
    ------
    UserError
        Where nothing would be left to read or to hold out.
    """
    number = round(n_units * how_many) if how_many < 1 else int(how_many)
    if how_many < 0 or (how_many >= 1 and how_many != number) or number >= n_units:
        raise UserError(
            f"--hold-out {how_many:g} of {n_units} units; legal is a number below {n_units}, or a "
            "fraction below 1."
        )
    flags = np.zeros(n_units, dtype=bool)
    flags[np.random.default_rng(seed).permutation(n_units)[:number]] = True
    return flags
