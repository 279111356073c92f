"""Regressions of baselines, from features to the data, and how they are chosen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...metrics.regression import poisson_regression, ridge
from ...metrics.trialwise import ErrorScore, SpikeScore, score_value
from .behavior import TRAIN, Recording

Array = NDArray[Any]
FloatArray = NDArray[np.float64]

_PENALTIES = (1e-3, 1e-2, 1e-1)
_JUDGED = 4
"""One of this number of trials judges what was fitted to the others."""
# Enough to choose by; the final fits take all training trials.
_TRIALS_TO_CHOOSE = 300
# Tighter ones change bits per spike by a few 1e-4 (MC_Maze shape) and take several times as long.
_TOLERANCE, _TOLERANCE_TO_CHOOSE = 1e-5, 1e-4


def regress(recording: Recording, train: Array, scored: Array, channels: slice) -> Array:
    """Predict some channels from features of the same bin.

    Bins that were read and those beyond have a regression each: features of the latter are
    extrapolated.
    """
    data = recording.data[TRAIN][..., channels]
    out = np.empty((*scored.shape[:2], data.shape[2]), np.float32)
    for bins in (slice(recording.n_bins), slice(recording.n_bins, None)):
        if not train[:, bins].size:
            continue
        x, y = train[:, bins], data[:, bins]
        scale = scale_of(x)
        penalty = _PENALTIES[0]
        if len(x) > _JUDGED:
            few = subset(x / scale), subset(y)
            losses = [(_split_loss(*few, value, recording.counts), value) for value in _PENALTIES]
            penalty = min(losses)[1]
        predict = _fit(x / scale, y, penalty, recording.counts)
        out[:, bins] = predict(scored[:, bins] / scale)
    return out


def regression_loss(recording: Recording, features: Array) -> float:
    """Return the loss of predicting held-out channels from features of a `subset` of trials."""
    data = subset(recording.data[TRAIN])[:, : recording.n_bins, recording.n_channels :]
    x = features[:, : recording.n_bins]
    return _split_loss(x / scale_of(x), data, _PENALTIES[1], recording.counts)


def _split_loss(x: Array, y: Array, penalty: float, counts: bool) -> float:
    """Return the loss on a quarter of the trials of a regression on the others."""
    if len(x) < 2:
        return 0.0
    judge, rest = judge_and_rest(len(x))
    if not np.isfinite(y[rest]).any():
        return 0.0
    predict = _fit(x[rest], y[rest], penalty, counts, _TOLERANCE_TO_CHOOSE)
    return loss_of(predict(x[judge]), y[judge], counts)


def _fit(
    x: Array, y: Array, penalty: float, counts: bool, tolerance: float = _TOLERANCE
) -> Callable[[Array], Array]:
    if counts:
        log_linear = poisson_regression(x, y, penalty, tolerance)
        return lambda features: np.exp(np.minimum(log_linear(features), 20.0))
    linear = ridge(x, y, [penalty * x.shape[0] * x.shape[1]], n_folds=1).fit
    return lambda features: linear(features)


def finite_mean(data: Array) -> FloatArray:
    """Return the mean of each channel of (trials, bins, channels) over what was observed."""
    observed = np.isfinite(data)
    count = np.maximum(observed.sum(axis=(0, 1)), 1)
    return np.where(observed, data, 0.0).sum(axis=(0, 1), dtype=np.float64) / count


def _spread(n_trials: int, at_most: int) -> NDArray[np.int64]:
    """Return trials spread evenly over the recording."""
    return np.unique(np.linspace(0, n_trials - 1, min(n_trials, at_most)).astype(np.int64))


def subset(data: Array) -> Array:
    """Return trials that are enough to choose by."""
    return data[_spread(len(data), _TRIALS_TO_CHOOSE)]


def judge_and_rest(n_trials: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return trials that judge, and those that are fitted to."""
    every = np.arange(n_trials)
    judge = every[every % _JUDGED == 0]
    return judge, every[every % _JUDGED != 0]


def scale_of(x: Array) -> FloatArray:
    """Return each feature's spread in (trials, bins, features), 1 where it does not vary."""
    spread = np.asarray(x, dtype=np.float64).std(axis=(0, 1))
    return np.where(spread > 0, spread, 1.0)


def loss_of(rates: Array, data: Array, counts: bool) -> float:
    """Return minus bits per spike, or minus R2, of predictions."""
    kind = SpikeScore if counts else ErrorScore
    value = score_value(kind.of(rates, data), len(data))
    return -value if np.isfinite(value) else 0.0
