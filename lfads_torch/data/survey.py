"""What one pass over an array shows: every check of a data file asks here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .stored import blocks, past_end

Array = NDArray[Any]
Counts = NDArray[np.int64]
Flags = NDArray[np.bool_]
Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class Survey:
    """What an array of trials x bins x channels holds, by channel or by trial."""

    size: int
    total: float  # sum of the entries that are not missing
    largest: Array  # by channel: the largest magnitude
    missing: Counts  # these five by channel
    infinite: Counts
    negative: Counts  # and finite
    fractional: Counts  # and above 0
    zero: Counts
    lengths: Counts  # by trial: one more than the last bin with an observed entry, 0 without one
    gaps: Counts  # by trial: bins with a missing entry
    active: Flags  # by trial: whether an entry is neither 0 nor missing
    hashes: Hashes  # by trial

    @classmethod
    def of(cls, array: Any, lengths: Counts | None = None, filler: float = np.nan) -> Survey:
        """Look through an array once, with bins past the trials' `lengths` taken to be `filler`.

        Infinite values count past the ends too: no key of a data file may hold any.
        """
        # Block by block, because temporaries of the whole would double the memory of a large
        # recording; all at once, because each pass reads a streamed array from the disk again.
        # Hashes are of trials, not of bins: those could take more room than the recording.
        n_trials, n_bins, n_channels = array.shape
        kinds = ("missing", "infinite", "negative", "fractional", "zero")
        counts = {kind: np.zeros(n_channels, np.int64) for kind in kinds}
        ends, gaps = np.full(n_trials, n_bins, np.int64), np.zeros(n_trials, np.int64)
        active, hashes = np.zeros(n_trials, np.bool_), np.zeros(n_trials, np.uint64)
        largest = np.zeros(n_channels, np.float32)
        # Others than those of channels: else the counts of a trial and their transpose hash alike.
        multipliers, total = bin_multipliers(n_channels + n_bins)[n_channels:], 0.0
        for rows, block in blocks(array):
            counts["infinite"] += _by_channel(np.isinf(block))
            if lengths is not None:
                past = past_end(lengths[rows], n_bins)[..., None]
                block = np.where(past, block.dtype.type(filler), block)
            unknown, is_zero = np.isnan(block), np.asarray(block == 0)
            counts["zero"] += _by_channel(is_zero)
            counts["negative"] += _by_channel((block < 0) & (block > -np.inf))
            counts["fractional"] += _by_channel((np.floor(block) != block) & (block > 0))
            active[rows] = ~(is_zero | unknown).all(axis=(1, 2))
            hashes[rows] = bin_hashes(block) @ multipliers
            if unknown.any():
                counts["missing"] += _by_channel(unknown)
                gaps[rows] = unknown.any(axis=2).sum(axis=1)
                observed = ~np.asarray(unknown.all(axis=2))
                last = n_bins - np.argmax(observed[:, ::-1], axis=1)
                ends[rows] = np.where(observed.any(axis=1), last, 0)
                block = np.where(unknown, block.dtype.type(0), block)
            extremes = np.abs([block.max(axis=(0, 1)), block.min(axis=(0, 1))])
            largest = np.maximum(largest, extremes.max(axis=0))
            with np.errstate(invalid="ignore"):  # of both infinities, which are counted above
                total += float(block.sum(dtype=np.float64))
        return cls(
            array.size,
            total,
            largest,
            **counts,
            lengths=ends,
            gaps=gaps,
            active=active,
            hashes=hashes,
        )

    @property
    def complete(self) -> bool:
        """Whether no entry is missing."""
        return not self.missing.any()

    @property
    def mean(self) -> float | None:
        """Mean of the entries that are not missing, None where all are."""
        n = self.size - int(self.missing.sum())
        return self.total / n if n else None

    @property
    def observed_channels(self) -> Flags:
        """Which channels hold anything but NaN."""
        return self.missing < self.size // len(self.missing)

    @property
    def active_channels(self) -> Flags:
        """Which channels hold anything but 0 and NaN."""
        return self.missing + self.zero < self.size // len(self.missing)


def bin_hashes(block: Array) -> Hashes:
    """Hash the channels of each bin, shape (trials, bins); a bin of zeros gives 0.

    This is a multilinear hash of the bits, with fixed random multipliers, modulo 2^64.
    """
    # Adding zero turns -0.0 into 0.0, whose bits are 0. The sum widens the words as it goes: made
    # before it, the words of 64 bits take as long to allocate as the rest takes to compute.
    words = (np.ascontiguousarray(block, np.float32) + np.float32(0)).view(np.uint32)
    return np.asarray(np.einsum("btn,n->bt", words, bin_multipliers(block.shape[-1])))


def bin_multipliers(n: int) -> Hashes:
    """Return the multipliers of a hash over `n` words."""
    # Odd numbers can be inverted modulo 2^64; an even one would drop the upper bits of a word.
    random = np.random.default_rng(0x1FAD5)
    return random.integers(0, 2**64, n, dtype=np.uint64) | np.uint64(1)


def _by_channel(flags: Any) -> Any:
    # Most arrays have none of these faults, and a look is much faster than a count by channel.
    return flags.sum(axis=(0, 1)) if flags.any() else 0
