"""Smoothing along time."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]

# Up to here one matrix product per trial is quicker than sliding the kernel.
_MATRIX_BINS = 512


def gaussian_smooth(spikes: ArrayLike, width_bins: float | int, causal: bool = False) -> FloatArray:
    """Smooth along time with a Gaussian, renormalised at the trial's ends."""
    if width_bins == 0:
        return np.array(spikes, dtype=np.float64)
    total, weight = smoothing_sums(spikes, width_bins, causal)
    weight = np.broadcast_to(weight, total.shape)
    return np.divide(total, weight, out=np.full_like(total, np.nan), where=weight > 0)


def smoothing_sums(
    spikes: ArrayLike, width_bins: float | int, causal: bool = False, leave_own: bool = False
) -> tuple[FloatArray, FloatArray]:
    """Return sums of data and of weights under the kernel, of which smoothed data are the ratio."""
    if width_bins < 0:
        raise ValueError(f"width_bins must not be negative, got {width_bins}")
    data = np.asarray(spikes, dtype=np.float64)
    n_bins = data.shape[-2]
    # Beyond four standard deviations a Gaussian is below 0.04 % of its peak.
    reach = min(math.ceil(4 * width_bins), n_bins)
    lags = np.arange(-reach, reach + 1)
    # Narrower than a hundredth of a bin is no smoothing, and would overflow the square.
    kernel = np.exp(-0.5 * (lags / max(width_bins, 0.01)) ** 2)
    if causal:
        kernel[lags < 0] = 0.0
    if leave_own:
        kernel[reach] = 0.0
    observed = np.isfinite(data)
    if observed.all():
        return _slide(data, kernel), _slide(np.ones((n_bins, 1)), kernel)
    return _slide(np.where(observed, data, 0.0), kernel), _slide(observed * 1.0, kernel)


def _slide(data: FloatArray, kernel: FloatArray) -> FloatArray:
    """Convolve along the last axis but one, zeros beyond the ends."""
    n_bins, reach = data.shape[-2], len(kernel) // 2
    if n_bins <= _MATRIX_BINS:
        lag = np.arange(n_bins)[:, None] - np.arange(n_bins)
        inside = np.abs(lag) <= reach
        return np.asarray(np.where(inside, kernel[(lag + reach) * inside], 0.0) @ data)
    from scipy.ndimage import convolve1d  # costs half a second that training need not wait

    return np.asarray(convolve1d(data, kernel, axis=-2, mode="constant"))
