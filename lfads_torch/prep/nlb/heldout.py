"""Behaviour, PSTHs and jitter as the Neural Latents Benchmark makes them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..binning import TOLERANCE_S, Array, Floats, Indices, bin_windows, rebin
from ..counting import Progress
from ..sources.recording import Series, SpikeTimes

FILTER_TAPS = 500
"""Order of the filter that takes out what bins are too wide for."""

_MS = 1e-3


def decimated(series: Series, end_s: float, bin_ms: int) -> Floats:
    """Sample a series once per bin, at the bin's beginning, after a low-pass filter.

    The series is at 1 kHz, and its values as stored. The filter (finite, without phase) passes
    what the bins can hold. Gaps are bridged linearly for it and are NaN in the result, shape
    (bins, channels), whose bin 0 begins at 0 s.
    """
    from scipy.signal import decimate

    n_ms = round(end_s / _MS)
    place = np.round(series.seconds(0, series.n_samples) / _MS).astype(np.int64)
    inside = (place >= 0) & (place < n_ms)
    stored = series.read(0, series.n_samples, raw=True)
    result = np.empty((-(-n_ms // bin_ms), series.n_channels))
    for channel in range(series.n_channels):
        values = np.full(n_ms, np.nan)
        values[place[inside]] = stored[inside, channel]
        unknown = np.isnan(values)
        if unknown.all():
            result[:, channel] = np.nan
            continue
        known = np.flatnonzero(~unknown)
        # A filter would spread a single NaN over all its taps.
        values[unknown] = np.interp(np.flatnonzero(unknown), known, values[known])
        kept = decimate(values, bin_ms, n=FILTER_TAPS, ftype="fir")
        result[:, channel] = np.where(unknown[::bin_ms], np.nan, kept)
    return result


def jitter_bins(produced_ms: Floats, window_ms: float, bin_ms: float, seed: int = 0) -> Indices:
    """Draw by how many bins each window of DMFC_RSG is moved to later times.

    Uniform between 0 and what leaves the interval from Set to Go (`produced_ms`, all trials of a
    split in order) in the window, at most 300 ms; 0 where the interval is unknown.
    """
    most = np.clip(window_ms - np.nan_to_num(produced_ms, nan=window_ms), 0, 300)
    # Rounded before it is floored: 45 ms are nine bins of 5 ms, whatever the division leaves.
    most = np.floor(np.round(most / bin_ms, 4))
    # NumPy's legacy generator, as the benchmark used: only it gives the published windows.
    draws = np.random.RandomState(seed).random_sample(len(most))
    return np.round(draws * most).astype(np.int64)


def condition_averages(
    spikes: SpikeTimes,
    starts: Floats,
    members: Sequence[Indices],
    n_bins: int,
    bin_ms: int,
    smoothing_ms: int,
    progress: Progress,
) -> Floats:
    """Average spikes smoothed at 1 ms over each condition's trials: conditions x bins x units.

    In spikes per bin. `starts` are seconds, `members` the windows of each condition, and
    `smoothing_ms` the standard deviation of a Gaussian, cut off three of them to each side.
    Smoothing and averaging are linear, so the average over trials is smoothed.
    """
    taps = 6 * smoothing_ms
    lags = np.arange(taps) - (taps - 1) / 2
    kernel = np.exp(-0.5 * (lags / smoothing_ms) ** 2)
    kernel /= kernel.sum()
    # So many milliseconds before and after the window reach into it.
    before, after = taps // 2, (taps - 1) // 2
    length = n_bins * bin_ms + before + after
    averages = np.zeros((len(members), n_bins, spikes.n_units))
    early = starts - before * _MS
    for unit in range(spikes.n_units):
        progress("averaging conditions, unit", unit, spikes.n_units)
        # One unit at a time: at 1 ms, a thousand windows of a second take 2 MB for each.
        counts = np.zeros((len(starts), length), dtype=np.uint16)
        for times, tolerance in spikes.blocks(unit):
            slack = max(tolerance, TOLERANCE_S)
            bin_windows(times, early, length, _MS, tolerance=slack, out=counts)
        for number, trials in enumerate(members):
            if len(trials):
                mean = counts[trials].mean(axis=0)
                smooth = np.convolve(mean, kernel, mode="valid")[:, None]
                averages[number, :, unit] = rebin(smooth, bin_ms)[:, 0]
    return averages


def ragged(lists: Sequence[Array]) -> Array:
    """Return arrays of different lengths as one array of arrays."""
    array = np.empty(len(lists), dtype=object)
    array[:] = [np.asarray(one, dtype=np.int64) for one in lists]
    return array
