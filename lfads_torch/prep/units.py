"""Which units go into a data file (active, present, no copies), and which are held out."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..data.find import list_some
from ..errors import UserError, number
from .binning import Array, Flags, Floats, Indices, rebin
from .counting import Counted
from .options import PrepOptions
from .sources.recording import Recording, unit_flags
from .trials import select_rows

# A unit that was lost for a twentieth of the session shows in one block.
PRESENCE_BLOCKS = 20


class UnitSums:
    """Sums of each unit over bins; `pairs` adds those that correlate units with each other.

    Presence is counted in `n_blocks` blocks of windows.
    """

    def __init__(self, n_units: int, n_blocks: int, *, pairs: bool) -> None:
        self.n_bins, self.pairs = 0, pairs
        self.known = np.zeros(n_units)  # bins that are not missing
        self.total = np.zeros(n_units)
        self.present = np.zeros((n_blocks, n_units), dtype=bool)
        self.products = np.zeros((n_units, n_units) if pairs else (0, 0))

    def add(self, counts: Array, block: int) -> None:
        """Add counts, shape (bins, units), of one of the blocks; NaN counts as nothing."""
        values: Array = np.nan_to_num(counts) if counts.dtype.kind == "f" else counts
        sums = values.sum(axis=0, dtype=np.float64)
        self.total += sums
        self.present[block] |= sums != 0
        self.n_bins += len(values)
        is_float = counts.dtype.kind == "f"
        self.known += (~np.isnan(counts)).sum(axis=0) if is_float else len(counts)
        if self.pairs:
            # Products of float32 are several times faster, and exact up to 2^24 within a block; the
            # sum over blocks is kept in float64.
            kind = np.float64 if counts.dtype.kind == "f" else np.float32
            few: Any = np.asarray(values, dtype=kind)
            self.products += few.T @ few

    def mean(self) -> Floats:
        """Return the mean per bin that is not missing."""
        return np.asarray(self.total / np.maximum(1, self.known))

    def presence(self) -> Floats:
        """Return the fraction of the blocks in which each unit was active."""
        return np.asarray(self.present.mean(axis=0))

    def correlations(self) -> Floats:
        """Return Pearson's r between all units over bins; 0 for units that never vary."""
        mean = self.total / max(1, self.n_bins)
        covariance = self.products / max(1, self.n_bins) - np.outer(mean, mean)
        # Rounding can leave a silent unit a variance just below 0.
        spread = np.sqrt(np.maximum(covariance.diagonal(), 0))
        scale = np.outer(spread, spread)
        # Units that never vary have 0: what rounding leaves of their variance says nothing.
        return np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 1e-12)


def copies(correlations: Floats, threshold: float) -> list[int]:
    """Choose channels to drop until no pair is correlated above a threshold, in order of choice.

    Shared spikes of neighbouring electrodes show as correlations at a resolution of about 1 ms.
    The channel with most such partners goes first; of equals the one with the largest
    correlation, then the later one.
    """
    number("The threshold of correlations (--max-correlation)", threshold, above=0, most=1)
    close = correlations > threshold
    np.fill_diagonal(close, False)
    dropped: list[int] = []
    while (partners := close.sum(axis=0)).any():
        largest = np.where(close, correlations, 0).max(axis=0)
        worst = int(np.lexsort([np.arange(len(close)), largest, partners])[-1])
        dropped.append(worst)
        close[worst] = close[:, worst] = False
    return dropped


def choose_heldout(n_units: int, how_many: float, seed: int, option: str = "--hold-out") -> Flags:
    """Draw flags of units to hold out: a fraction of them where it is below 1, else a number."""
    n_heldout = round(n_units * how_many) if how_many < 1 else int(how_many)
    if how_many < 0 or (how_many >= 1 and how_many != n_heldout) or n_heldout >= n_units:
        raise UserError(
            f"{option} {how_many:g} of {n_units} units; legal is a number below {n_units}, or a "
            "fraction below 1."
        )
    flags = np.zeros(n_units, dtype=bool)
    flags[np.random.default_rng(seed).permutation(n_units)[:n_heldout]] = True
    return flags


def sum_units(counted: Counted, training: Flags, pairs: bool) -> tuple[UnitSums, float]:
    """Sum over the windows that train, and return the largest count of all windows.

    The largest count is NaN where some are missing.
    """
    n_training = max(1, int(training.sum()))
    n_blocks = min(PRESENCE_BLOCKS, n_training)
    sums = UnitSums(counted.store.n_units, n_blocks, pairs=pairs)
    blocks = (np.cumsum(training) - 1) * n_blocks // n_training
    # Units are chosen by the trials that train alone, so that validation stays unseen. The largest
    # count, of all trials, chooses the type that holds them.
    largest = 0.0
    for first, counts in counted.blocks(fine=True):
        coarse = rebin(counts, counted.fine, average=counted.continuous)
        largest = max(largest, float(coarse.max(initial=0)))
        if counts.dtype.kind == "f" and np.isnan(counts).any():
            largest = np.nan
        for window in np.flatnonzero(training[first : first + len(counts)]):
            sums.add(counts[window], int(blocks[first + window]))
    return sums, largest


def choose_units(
    recording: Recording, options: PrepOptions, sums: UnitSums, bin_s: float
) -> Indices:
    """Return the units to keep; the recording notes which were dropped."""
    keep = np.ones(recording.n_units, dtype=bool)
    chosen = select_rows(recording.units, options.units, "units")
    if chosen is not None:
        keep &= chosen
        recording.notes.append(
            f"units: {int(keep.sum())} of {len(keep)} by {list_some(options.units)}"
        )
    if never := np.flatnonzero(keep & (sums.known == 0)).tolist():
        keep[never] = False
        recording.warnings.append(
            f"{len(never)} units were not observed in any window that trains (units "
            f"{list_some(never)}, counted from 0); they are left out"
        )
    rates = sums.mean() / bin_s
    for name, values, least in (
        ("--min-rate", rates, options.min_rate),
        ("--min-presence", sums.presence(), options.min_presence),
    ):
        if least > 0:
            low = keep & (values < least)
            keep &= ~low
            recording.notes.append(f"units: {int(low.sum())} dropped by {name} {least:g}")
    if options.max_correlation is not None:
        chosen_units = np.flatnonzero(keep)
        pairs = sums.correlations()[np.ix_(chosen_units, chosen_units)]
        twins = chosen_units[copies(pairs, options.max_correlation)]
        keep[twins] = False
        recording.notes.append(
            f"units: {len(twins)} dropped by --max-correlation {options.max_correlation:g}"
            + (f" ({list_some(twins.tolist())}, counted from 0)" if len(twins) else "")
        )
    mute = np.flatnonzero(keep & (sums.total == 0)).tolist()
    if mute:
        recording.warnings.append(
            f"{len(mute)} units have no spike in any window that trains (units {list_some(mute)}, "
            "counted from 0); --min-rate 0.1 drops them and those that fire less than that"
        )
    return np.flatnonzero(keep)


def heldout_flags(recording: Recording, options: PrepOptions) -> Flags | None:
    """Return the units that the file flags as held out; None where they are drawn, or none is."""
    how = options.hold_out
    if how is None:
        flags = recording.units.get("heldout")
        if flags is None or flags.dtype.kind not in "bui" or not flags.any():
            return None
        how = "heldout"
    if not isinstance(how, str):
        return None
    recording.notes.append(f"held-out units: column {how!r} of the file")
    return unit_flags(recording, how)
