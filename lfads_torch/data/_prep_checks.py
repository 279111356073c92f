"""What deserves a second look when a recording is prepared."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lfads_torch.data._files import list_some
from lfads_torch.data.merging import leaking_windows
from lfads_torch.data.sources.recording import Recording, SpikeTimes
from lfads_torch.data.splits import Labels
from lfads_torch.data.trials import Windows
from lfads_torch.errors import DataError

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


def leaks(windows: Windows, labels: Labels) -> list[str]:
    """Say how many validation windows share time with a training window."""
    # Whole microseconds, so that windows that adjoin do not overlap by rounding.
    starts = np.round(windows.starts * 1e6).astype(np.int64)
    length = round(windows.n_bins * windows.bin_s * 1e6)
    train, valid = starts[labels == 0], starts[labels == 1]
    if not len(train) or not len(valid):
        return []
    shared = leaking_windows({"train": train, "valid": valid}, length)
    if not shared.any():
        return []
    return [
        f"{int(shared.sum())} of {len(valid)} validation windows overlap a training window in "
        f"time (windows {list_some(np.flatnonzero(shared).tolist())}), so validation scores "
        "flatter: take shorter windows, or --split blocks"
    ]


def raise_if_strict(warnings: Sequence[str], strict: bool) -> None:
    """Turn warnings into one error where they are to be errors."""
    if strict and warnings:
        raise DataError(
            "\n  - ".join(["with --strict these are errors; nothing was written:", *warnings])
        )
