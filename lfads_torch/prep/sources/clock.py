"""Units of time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import UserError
from ..binning import TOLERANCE_S, time_tolerance

Array = NDArray[Any]
Floats = NDArray[np.float64]

UNIT_S = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
"""Units of time by name, in seconds; ``samples`` needs a sampling rate."""


@dataclass(frozen=True)
class Clock:
    """How times in a file become seconds.

    Attributes
    ----------
    scale : float
        Seconds per unit of the file.
    sampling_hz : float, optional
        Times are moved to the nearest sample of this rate.
    """

    scale: float = 1.0
    sampling_hz: float | None = None

    def seconds(self, times: Array) -> Floats:
        """Convert times of the file."""
        with np.errstate(invalid="ignore"):
            values = times.astype(np.float64) * self.scale
        return values if not self.sampling_hz else self.snap(values)

    def snap(self, seconds: Floats) -> Floats:
        """Move times to the nearest sample."""
        rate = self.sampling_hz
        return np.round(seconds * rate) / rate if rate else seconds

    def tolerance(self, latest: float, stored: np.dtype[Any]) -> float:
        """By how many seconds a time may lie below an edge and still count as on it."""
        if self.sampling_hz or stored.kind != "f":
            return TOLERANCE_S
        return max(TOLERANCE_S, self.scale * time_tolerance(latest / self.scale, stored))


def clock(time_unit: str = "s", sampling_hz: float | None = None) -> Clock:
    """Make a `Clock` from the options of the command line.

    Parameters
    ----------
    time_unit : {"s", "ms", "us", "samples"}
    sampling_hz : float, optional
        Samples per second: needed for "samples", else times are moved to the nearest sample.
    """
    if sampling_hz is not None and not (np.isfinite(sampling_hz) and sampling_hz > 0):
        raise UserError(f"sampling_hz={sampling_hz}; legal is a number of samples/s above 0.")
    if time_unit == "samples":
        if sampling_hz is None:
            raise UserError(
                "Times in samples need the sampling rate: add --sampling-hz, such as 30000."
            )
        return Clock(1 / sampling_hz, sampling_hz)
    if time_unit not in UNIT_S:
        raise UserError(f"time_unit={time_unit!r}; legal are {', '.join(UNIT_S)}, samples.")
    return Clock(UNIT_S[time_unit], sampling_hz)
