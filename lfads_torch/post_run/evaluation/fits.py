"""Fits of baselines, and how what there is to choose is chosen within the training trials."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...data.smoothing import smoothing_sums
from ...metrics.regression import poisson_regression, ridge
from ...metrics.trialwise import NLB_FLOOR, ErrorScore, SpikeScore, score_value
from .behavior import SCORED, TRAIN, Recording

Array = NDArray[Any]
FloatArray = NDArray[np.float64]
Labels = NDArray[np.int64]

# Roughly even in their logarithm: from 8 to 9 bins little changes.
WIDTHS = (0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0)
"""Widths of the Gaussian to choose from: standard deviations in bins."""
_FOLDS = 4
_PRIORS = (0.25, 1.0, 2.0, 5.0, 10.0, 20.0)
_PENALTIES = (1e-3, 1e-2, 1e-1)
_JUDGED = 4
"""One of this number of trials judges what was fitted to the others."""
# Enough to choose by; the final fits take all training trials.
_TRIALS_TO_CHOOSE = 300
# Tighter ones change bits per spike by a few 1e-4 (MC_Maze shape) and take several times as long.
_TOLERANCE, _TOLERANCE_TO_CHOOSE = 1e-5, 1e-4


@dataclass
class Source:
    """What baselines read of a recording, each made once for all of them."""

    recording: Recording

    @cached_property
    def read(self) -> dict[str, Array]:
        """What was read, with bins beyond it missing: (trials, T_r, channels read)."""
        return {kind: _padded(self.recording, kind) for kind in (TRAIN, SCORED)}

    @cached_property
    def smoother(self) -> Smoother:
        """The smoothing that predicts training bins best from those around them."""
        return choose_smoother(self.read[TRAIN], self.recording)

    @cached_property
    def psth_width(self) -> float:
        """Bins by which PSTHs are smoothed."""
        return choose_psth_width(self.recording)


# ---- smoothing ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Smoother:
    """Gaussian smoothing that leans on each channel's mean where it sees little."""

    # Standard deviation of the Gaussian in bins
    width: float
    # How many bins the channel's mean counts for
    prior: float
    # Of the training trials; shape (channels,)
    mean: FloatArray

    def __call__(self, data: Array, leave_own: bool = False) -> FloatArray:
        """Smooth (trials, bins, channels); NaN is missing. `leave_own` predicts a bin by others."""
        total, weight = smoothing_sums(data, self.width, leave_own=leave_own)
        return (total + self.prior * self.mean) / (weight + self.prior)


def choose_smoother(train: Array, recording: Recording) -> Smoother:
    """Choose width and prior by how well training bins are predicted from those around them."""
    # Each bin is predicted without itself: with it, the narrowest width would always win. And a
    # channel that hardly fires needs its mean as a prior, or a bin with no spike near predicts a
    # rate of 0, on which any spike costs without bound.
    mean = finite_mean(train)
    data = subset(train)
    best = Smoother(WIDTHS[0], _PRIORS[0], mean)
    least = np.inf
    for width in widths(train.shape[1], WIDTHS):
        total, weight = smoothing_sums(data, width, leave_own=True)
        for prior in _PRIORS:
            loss = loss_of((total + prior * mean) / (weight + prior), data, recording.counts)
            if loss < least:
                best, least = Smoother(width, prior, mean), loss
    return best


# ---- PSTHs -------------------------------------------------------------------------------------


def choose_psth_width(recording: Recording) -> float:
    """Choose by folds of the training trials how much PSTHs are smoothed, in bins."""
    data, labels = recording.data[TRAIN], recording.labels[TRAIN]
    n_conditions = max(1, len(recording.condition_names))
    folds = [np.arange(k, len(data), _FOLDS) for k in range(min(_FOLDS, len(data)))]
    if len(folds) < 2:
        return 0.0
    # Sums and counts of each fold, once: what is left without a fold is then a difference.
    sums = np.stack([np.stack(sums_by_condition(data[f], labels[f], n_conditions)) for f in folds])
    mean = finite_mean(data)
    losses = {
        width: _psth_loss(sums, mean, width, recording.counts)
        for width in (0.0, *widths(data.shape[1], WIDTHS))
    }
    return min(losses, key=lambda key: losses[key])


def sums_by_condition(data: Array, labels: Labels, n_conditions: int) -> tuple[Array, Array]:
    """Sum up trials of each condition, and count them: (conditions, bins, channels) each."""
    total, count = np.zeros((2, n_conditions, *data.shape[1:]))
    for condition in range(n_conditions):
        members = data[labels == condition]
        observed = np.isfinite(members)
        total[condition] = np.where(observed, members, 0.0).sum(axis=0)
        count[condition] = observed.sum(axis=0)
    return total, count


def smoothed_averages(total: Array, count: Array, mean: FloatArray, width: float) -> FloatArray:
    """Return smoothed condition averages, with the channel's mean as one more trial."""
    if width:
        total, count = (smoothing_sums(x, width)[0] for x in (total, count))
    return np.asarray((total + mean) / (count + 1))


def _psth_loss(sums: FloatArray, mean: FloatArray, width: float, counts: bool) -> float:
    whole = sums.sum(axis=0)
    loss = 0.0
    for fold in sums:
        rates = smoothed_averages(whole[0] - fold[0], whole[1] - fold[1], mean, width)
        if counts:
            rates = np.maximum(rates, NLB_FLOOR)
            loss += float((fold[1] * rates - fold[0] * np.log(rates)).sum())
        else:  # the part of the squared error that depends on the prediction
            loss += float((fold[1] * rates**2 - 2 * fold[0] * rates).sum())
    return loss


# ---- regressions -------------------------------------------------------------------------------


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
        # Features of bins past those read are extrapolated; exp(20) is no rate, but is finite.
        return lambda features: np.exp(np.minimum(log_linear(features), 20.0))
    # Per bin, as the penalty of the Poisson regression, whose loss is a mean.
    linear = ridge(x, y, [penalty * x.shape[0] * x.shape[1]], n_folds=1).fit
    return lambda features: linear(features)


def finite_mean(data: Array) -> FloatArray:
    """Return the mean of each channel of (trials, bins, channels) over what was observed."""
    observed = np.isfinite(data)
    count = np.maximum(observed.sum(axis=(0, 1)), 1)
    return np.where(observed, data, 0.0).sum(axis=(0, 1), dtype=np.float64) / count


def subset(data: Array) -> Array:
    """Return trials that are enough to choose by, spread evenly over the recording."""
    n_chosen = min(len(data), _TRIALS_TO_CHOOSE)
    return data[np.unique(np.linspace(0, len(data) - 1, n_chosen).astype(np.int64))]


def judge_and_rest(n_trials: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return trials that judge, and those that are fitted to."""
    every = np.arange(n_trials)
    # Every fourth, not the last quarter: rates drift over a recording.
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


def _padded(recording: Recording, kind: str) -> Array:
    """Return what was read, with bins beyond it missing: (trials, T_r, channels read)."""
    trials = recording.trials[kind]
    read = trials["encod_data"] if "encod_data" in trials else trials["recon_data"]
    n_more = recording.data[kind].shape[1] - read.shape[1]
    return np.pad(read.astype(np.float32), ((0, 0), (0, n_more), (0, 0)), constant_values=np.nan)


def widths(n_bins: int, offered: Sequence[float]) -> list[float]:
    """Return the widths that are offered and fit into the trials, at least one."""
    return [width for width in offered if width <= max(n_bins, 1)] or [offered[0]]
