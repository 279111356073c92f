"""How to read a source, where it does not say so itself."""

from __future__ import annotations

from dataclasses import dataclass

from .clock import Clock, clock


@dataclass(frozen=True)
class SourceOptions:
    """What the command line says of a source.

    Attributes
    ----------
    spikes : str, optional
        Name of the array, cell array, group, column or time series that holds the spikes.
    spike_units : str, optional
        Name of the array that tells the unit of each spike, where spikes are one long list.
    axes : str, optional
        Axes of binned spikes, such as "time,unit" or "unit,time,trial".
    input_bin_ms : float, optional
        Bin width of binned spikes.
    trials : str, optional
        Name of the table of trials in the file, or a CSV file with one.
    time_unit : {"s", "ms", "us", "samples"}
        Unit of spike times, and of times of trials and series.
    sampling_hz : float, optional
        Sampling rate of the recording: needed for "samples"; else times are moved to the nearest
        sample.
    """

    spikes: str | None = None
    spike_units: str | None = None
    axes: str | None = None
    input_bin_ms: float | None = None
    trials: str | None = None
    time_unit: str = "s"
    sampling_hz: float | None = None

    def clock(self) -> Clock:
        """How times become seconds."""
        return clock(self.time_unit, self.sampling_hz)
