"""Which units go into a data file, and which of them are held out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..data.find import list_some
from .binning import rebin
from .counting import Counted
from .options import PrepOptions
from .sources.nwb import unit_flags
from .sources.recording import Recording
from .trials import select_rows
from .units import UnitSums, copies


def sum_units(counted: Counted, training: NDArray[np.bool_], pairs: bool) -> tuple[UnitSums, float]:
    """Sum over the windows that train.

    Returns
    -------
    sums : UnitSums
    largest : float
        Largest count of all windows; NaN where some are missing.
    """
    n_training = max(1, int(training.sum()))
    sums = UnitSums(counted.store.n_units, pairs)
    sums = UnitSums(counted.store.n_units, pairs, min(sums.n_blocks, n_training))
    blocks = (np.cumsum(training) - 1) * sums.n_blocks // n_training
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
) -> tuple[NDArray[np.int64], list[str], list[str]]:
    """Units to keep, warnings, and notes on those that were dropped."""
    keep = np.ones(recording.n_units, dtype=bool)
    notes, warnings = [], []
    chosen = select_rows(recording.units, options.units, "units")
    if chosen is not None:
        keep &= chosen
        notes.append(f"units: {int(keep.sum())} of {len(keep)} by {list_some(options.units)}")
    rates = sums.mean() / bin_s
    for name, values, least in (
        ("--min-rate", rates, options.min_rate),
        ("--min-presence", sums.presence(), options.min_presence),
    ):
        if least > 0:
            low = keep & (values < least)
            keep &= ~low
            notes.append(f"units: {int(low.sum())} dropped by {name} {least:g}")
    if options.max_correlation is not None:
        chosen_units = np.flatnonzero(keep)
        pairs = sums.correlations()[np.ix_(chosen_units, chosen_units)]
        twins = chosen_units[copies(pairs, options.max_correlation)]
        keep[twins] = False
        notes.append(
            f"units: {len(twins)} dropped by --max-correlation {options.max_correlation:g}"
            + (f" ({list_some(twins.tolist())}, counted from 0)" if len(twins) else "")
        )
    mute = np.flatnonzero(keep & (sums.total == 0)).tolist()
    if mute:
        warnings.append(
            f"{len(mute)} units have no spike in any window that trains (units {list_some(mute)}, "
            "counted from 0); --min-rate 0.1 drops them and those that fire less than that"
        )
    return np.flatnonzero(keep), warnings, notes


def heldout_flags(recording: Recording, options: PrepOptions) -> NDArray[np.bool_] | None:
    """Units that the file flags as held out; None where they are to be drawn, or none is."""
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
