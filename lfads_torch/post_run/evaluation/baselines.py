"""Baselines beside the model: smoothed data, PSTHs, and a factor model.

All are fitted to the training trials alone; what there is to choose (a width, a number of factors)
is chosen by cross-validation within them. Whatever is scored on the very data that were read is
inferred without the bin that it is scored on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...data.smoothing import smoothing_sums
from ...metrics.trialwise import NLB_FLOOR
from .behavior import SCORED, TRAIN, Recording
from .fitting import finite_mean, judge_and_rest, loss_of, regress, regression_loss, subset
from .scoring import Features, Prediction, only

Array = NDArray[Any]
FloatArray = NDArray[np.float64]

WIDTHS = (0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0)
"""Widths of the Gaussian to choose from: standard deviations in bins."""
_REGRESSION_WIDTHS = (1.0, 2.0, 4.0, 8.0, 16.0)
_PRIORS = (0.25, 1.0, 2.0, 5.0, 10.0, 20.0)
_ALMOST_NONE = 1e-6
"""Prior that only shows where no observed bin lies under the kernel."""
_N_FACTORS = (2, 4, 8, 16, 32)
_FOLDS = 4


def baseline_predictions(recording: Recording) -> list[Prediction]:
    """Smoothed data, PSTHs and a factor model."""
    read = {kind: _padded(recording, kind) for kind in (TRAIN, SCORED)}
    smoother = choose_smoother(read[TRAIN], recording)
    predictions = [
        _smoothed(recording, read, smoother),
        _psth(recording),
        _factor_analysis(recording, read, smoother),
    ]
    return [prediction for prediction in predictions if prediction is not None]


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
    mean = finite_mean(train)
    data = subset(train)
    best = Smoother(WIDTHS[0], _PRIORS[0], mean)
    least = np.inf
    for width in _widths(train.shape[1], WIDTHS):
        total, weight = smoothing_sums(data, width, leave_own=True)
        for prior in _PRIORS:
            loss = loss_of((total + prior * mean) / (weight + prior), data, recording.counts)
            if loss < least:
                best, least = Smoother(width, prior, mean), loss
    return best


def _smoothed(recording: Recording, read: dict[str, Array], smoother: Smoother) -> Prediction:
    """Smoothed data; held-out channels by regression from them, later bins by the kernel's tail."""
    shape = recording.data[SCORED].shape
    rates, unseen = np.empty(shape, np.float32), np.empty(shape, np.float32)
    rates[..., : recording.n_channels] = smoother(read[SCORED])
    unseen[..., : recording.n_channels] = smoother(read[SCORED], leave_own=True)
    choices: dict[str, Any] = {"width_bins": smoother.width, "prior_bins": smoother.prior}
    if shape[2] > recording.n_channels:
        chosen = [
            (regression_loss(recording, features), width)
            for width in _widths(recording.n_bins, _REGRESSION_WIDTHS)
            for features in [subset(Smoother(width, 1.0, smoother.mean)(read[TRAIN]))]
        ]
        choices["heldout_width_bins"] = width = min(chosen)[1]
        own = Smoother(width, 1.0, smoother.mean)
        parts = regress(
            recording, own(read[TRAIN]), own(read[SCORED]), slice(recording.n_channels, None)
        )
        rates[..., recording.n_channels :] = parts
        unseen[..., recording.n_channels :] = parts
    features = {
        f"width {width:g} bins": _smoothing_features(
            Smoother(width, _ALMOST_NONE, smoother.mean), read
        )
        for width in _widths(recording.n_bins, WIDTHS)
    }
    return Prediction("smoothing", rates, unseen, features, choices)


def _smoothing_features(smoother: Smoother, read: dict[str, Array]) -> Features:
    return lambda: (smoother(read[TRAIN]), smoother(read[SCORED]))


# ---- PSTH --------------------------------------------------------------------------------------


def _psth(recording: Recording) -> Prediction:
    """Each trial's condition average over training trials; without conditions, that of all."""
    data, labels = recording.data[TRAIN], recording.labels[TRAIN]
    n_conditions = max(1, len(recording.condition_names))
    folds = [np.arange(k, len(data), _FOLDS) for k in range(min(_FOLDS, len(data)))]
    sums = np.zeros((len(folds), 2, n_conditions, *data.shape[1:]))
    for own, fold in zip(sums, folds, strict=True):
        for condition in range(n_conditions):
            part = data[fold[labels[fold] == condition]]
            observed = np.isfinite(part)
            own[0, condition] = np.where(observed, part, 0.0).sum(axis=0)
            own[1, condition] = observed.sum(axis=0)
    total, count = sums.sum(axis=0)
    mean = finite_mean(data)
    losses = {0.0: 0.0}
    if len(folds) > 1:
        widths = (0.0, *_widths(data.shape[1], WIDTHS))
        losses = {width: _psth_loss(sums, mean, width, recording.counts) for width in widths}
    width = min(losses, key=lambda key: losses[key])
    averages = _averages(total, count, mean, width).astype(np.float32)
    # A trial of an unknown condition gets the average over all.
    everything = _averages(total.sum(0, keepdims=True), count.sum(0, keepdims=True), mean, width)
    table = np.concatenate([averages, everything.astype(np.float32)])
    rates = {kind: table[recording.labels[kind]] for kind in (TRAIN, SCORED)}
    choices = {
        "width_bins": width,
        "conditions": len(recording.condition_names),
        "condition_key": recording.condition_key,
    }
    return Prediction("psth", rates[SCORED], None, only(rates[TRAIN], rates[SCORED]), choices)


def _averages(total: FloatArray, count: FloatArray, mean: FloatArray, width: float) -> FloatArray:
    """Smoothed condition averages in which the channel's mean counts as one more trial."""
    if width:
        total, count = (smoothing_sums(x, width)[0] for x in (total, count))
    return (total + mean) / (count + 1)


def _psth_loss(sums: FloatArray, mean: FloatArray, width: float, counts: bool) -> float:
    whole = sums.sum(axis=0)
    loss = 0.0
    for fold in sums:
        rates = _averages(whole[0] - fold[0], whole[1] - fold[1], mean, width)
        if counts:
            rates = np.maximum(rates, NLB_FLOOR)
            loss += float((fold[1] * rates - fold[0] * np.log(rates)).sum())
        else:  # the part of the squared error that depends on the prediction
            loss += float((fold[1] * rates**2 - 2 * fold[0] * rates).sum())
    return loss


# ---- factor analysis ---------------------------------------------------------------------------


def _factor_analysis(
    recording: Recording, read: dict[str, Array], smoother: Smoother
) -> Prediction | None:
    """Factor analysis of smoothed data; rates by a regression from the factors."""
    smooth = smoother(read[TRAIN][:, : recording.n_bins])
    spread, centre = smooth.std(axis=(0, 1)), smooth.mean(axis=(0, 1))
    varies = np.flatnonzero(spread > 0)
    sizes = [k for k in _N_FACTORS if k < len(varies)]
    if not sizes or len(smooth) < 2:
        return None

    def scaled(data: Array) -> Array:
        return (data[..., varies] - centre[varies]) / spread[varies]

    train = scaled(smooth)
    chosen = subset(train)
    judge, rest = judge_and_rest(len(chosen))
    held_out = chosen[judge].reshape(-1, len(varies))
    logs = {k: fit_factors(chosen[rest], k).score(held_out) for k in sizes}
    n_factors = max(logs, key=lambda k: logs[k])
    model = fit_factors(train, n_factors)

    def latents(leave_own: bool) -> tuple[Array, Array]:
        factors_of = []
        for kind in (TRAIN, SCORED):
            x = scaled(smoother(read[kind], leave_own))
            factors = model.transform(x.reshape(-1, len(varies)))
            factors_of.append(factors.reshape(*x.shape[:2], n_factors))
        return factors_of[0], factors_of[1]

    everything = latents(leave_own=False)
    rates = regress(recording, *latents(leave_own=True), slice(recording.n_channels))
    if recording.data[SCORED].shape[2] > recording.n_channels:
        held = regress(recording, *everything, slice(recording.n_channels, None))
        rates = np.concatenate([rates, held], axis=2)
    choices = {"n_factors": n_factors, "width_bins": smoother.width}
    return Prediction("factor_analysis", rates, None, only(*everything), choices)


def fit_factors(data: Array, n_factors: int) -> Any:
    """Fit scikit-learn's factor analysis to centred data of shape (trials, bins, channels).

    Its likelihood knows the data by their covariance alone. So it is given few samples that have
    the same one, which takes a fraction of the time.
    """
    from sklearn.decomposition import FactorAnalysis

    flat = data.reshape(-1, data.shape[-1])
    power, axes = np.linalg.eigh(flat.T @ flat / len(flat))
    root = axes.T * np.sqrt(np.maximum(power, 0) * len(power))[:, None]
    return FactorAnalysis(n_factors, svd_method="lapack").fit(np.concatenate([root, -root]))


# ---- helpers -----------------------------------------------------------------------------------


def _padded(recording: Recording, kind: str) -> Array:
    """Return what was read, with bins beyond it missing: (trials, T_r, channels read)."""
    trials = recording.trials[kind]
    read = trials["encod_data"] if "encod_data" in trials else trials["recon_data"]
    n_more = recording.data[kind].shape[1] - read.shape[1]
    return np.pad(read.astype(np.float32), ((0, 0), (0, n_more), (0, 0)), constant_values=np.nan)


def _widths(n_bins: int, offered: Sequence[float]) -> list[float]:
    return [width for width in offered if width <= max(n_bins, 1)] or [offered[0]]
