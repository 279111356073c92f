"""What deserves a second look when a recording is prepared."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..data.find import list_some
from ..data.validate import SPLITS
from ..errors import DataError
from .merging import leaking_windows
from .sources.recording import Recording, SpikeTimes
from .splits import Labels
from .trials import Windows

_SLOW, _FAST = 0.05, 500.0  # spikes/s; medians beyond these are no rates of neurons
_LEAST_SPIKES = 10


def implausible_rates(recording: Recording) -> list[str]:
    """Tell times in another unit than said by the rates that they give."""
    spikes = recording.spikes
    if not isinstance(spikes, SpikeTimes):
        return []
    counts = np.array([spikes.count(unit) for unit in range(spikes.n_units)])
    active = counts[counts >= _LEAST_SPIKES]
    if not len(active):
        return []
    first, last = recording.span()
    rate = float(np.median(active)) / max(last - first, 1e-9)
    if _SLOW <= rate <= _FAST:
        return []
    what = "milliseconds or samples" if rate < _SLOW else "seconds"
    return [
        f"the median unit fires {rate:.3g} spikes/s over {last - first:.6g} s, which is not what "
        f"neurons do: are times in {what}? Say it with --time-unit s, ms, us or samples"
    ]


def overlapping(windows: Windows, labels: Labels) -> NDArray[np.bool_]:
    """Which windows share time with one of a later split, of train, valid and test."""
    # Whole microseconds, so that windows that adjoin do not overlap by rounding.
    starts = np.round(windows.starts * 1e6).astype(np.int64)
    length = round(windows.n_bins * windows.bin_s * 1e6)
    shared = np.zeros(len(starts), dtype=bool)
    for number in range(len(SPLITS) - 1):
        later = starts[labels > number]
        own = labels == number
        if later.size and own.any():
            shared[own] = leaking_windows({"train": later, "valid": starts[own]}, length)
    return shared


def leaks(windows: Windows, labels: Labels) -> list[str]:
    """Say how many windows share time with a window of another split."""
    shared = np.flatnonzero(overlapping(windows, labels)).tolist()
    if not shared:
        return []
    return [
        f"{len(shared)} of {len(labels)} windows overlap one of another split in time (windows "
        f"{list_some(shared)}, counted from 0), so validation scores flatter: take shorter "
        "windows, or --split blocks"
    ]


def raise_if_strict(warnings: Sequence[str], strict: bool) -> None:
    """Turn warnings into one error where they are to be errors."""
    if strict and warnings:
        raise DataError(
            "\n  - ".join(["with --strict these are errors; nothing was written:", *warnings])
        )
