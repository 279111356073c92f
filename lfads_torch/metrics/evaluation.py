"""Scores of a trained model: NumPy arrays in, float64 throughout."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]

NLB_ALPHAS: tuple[float, ...] = tuple(float(a) for a in np.logspace(-4, 0, 9))
"""Ridge penalties among which the Neural Latents Benchmark chooses by cross-validation."""


def gaussian_smooth(spikes: ArrayLike, width_bins: float | int, causal: bool = False) -> FloatArray:
    """Smooth along time with a Gaussian, renormalised at the trial's ends.

    Parameters
    ----------
    spikes : array, shape (..., time, channels)
        NaN marks missing bins, which get no weight.
    width_bins : float
        Standard deviation of the kernel in bins; 0 returns the data unchanged.
    causal : bool
        Use only the kernel's half that looks at the present and the past.

    Returns
    -------
    array, shape of `spikes`
        NaN only where no observed bin lies under the kernel.
    """
    from scipy.ndimage import convolve1d  # costs half a second that training need not wait

    data = np.asarray(spikes, dtype=np.float64)
    if width_bins < 0:
        raise ValueError(f"width_bins must not be negative, got {width_bins}")
    if width_bins == 0:
        return data.copy()
    reach = min(math.ceil(4 * width_bins), data.shape[-2])
    lags = np.arange(-reach, reach + 1)
    # Narrower than a hundredth of a bin is no smoothing, and would overflow the square.
    kernel = np.exp(-0.5 * (lags / max(width_bins, 0.01)) ** 2)
    if causal:
        kernel[lags < 0] = 0.0
    observed = np.isfinite(data)
    total = convolve1d(np.where(observed, data, 0.0), kernel, axis=-2, mode="constant")
    weight = convolve1d(observed.astype(np.float64), kernel, axis=-2, mode="constant")
    return np.divide(total, weight, out=np.full_like(data, np.nan), where=weight > 0)


def _rows(*arrays: ArrayLike) -> list[FloatArray]:
    """Flatten all axes but the last, and keep the rows that are finite in every array."""
    flat = [np.asarray(a, dtype=np.float64) for a in arrays]
    flat = [a.reshape(-1, a.shape[-1]) for a in flat]
    if len({len(a) for a in flat}) > 1:
        raise ValueError(f"arrays must agree in samples, got {[len(a) for a in flat]} rows")
    keep = np.logical_and.reduce([np.isfinite(a).all(axis=1) for a in flat])
    return flat if keep.all() else [a[keep] for a in flat]


def _column_r2(preds: FloatArray, targets: FloatArray) -> FloatArray:
    """R2 per column; as the benchmark has it, a constant target scores 1 if exact and else 0."""
    error = ((targets - preds) ** 2).sum(axis=0)
    spread = ((targets - targets.mean(axis=0)) ** 2).sum(axis=0)
    varies = spread > 0
    return np.where(varies, 1 - error / np.where(varies, spread, 1.0), error == 0)


def fit_linear(
    x: ArrayLike, y: ArrayLike, alphas: Sequence[float] = (0.0,)
) -> list[tuple[FloatArray, FloatArray]]:
    """Ridge regression with an unpenalised intercept, for several penalties at once.

    Parameters
    ----------
    x : array, shape (..., features)
    y : array, shape (..., targets)
        Samples with a NaN in `x` or `y` are left out.
    alphas : sequence of float
        Penalties on the squared weights; 0 is least squares of least norm.

    Returns
    -------
    list of (weight of shape (features, targets), bias of shape (targets,)), one per penalty
    """
    inputs, targets = _rows(x, y)
    if not len(inputs):
        raise ValueError("no sample is finite in both x and y, so there is nothing to fit")
    # Centred, the sums of products lose no digits to the means.
    x_mean, y_mean = inputs.mean(axis=0), targets.mean(axis=0)
    fits = _solve(_gram(inputs - x_mean, targets - y_mean), inputs.shape[1], alphas)
    return [(weight, y_mean + bias - x_mean @ weight) for weight, bias in fits]


def _gram(x: FloatArray, y: FloatArray) -> FloatArray:
    """Sums of products of (1, x, y): all that linear regression needs to know of its data."""
    joined = np.concatenate([np.ones((len(x), 1)), x, y], axis=1)
    return joined.T @ joined


def _solve(
    gram: FloatArray, n_features: int, alphas: Sequence[float]
) -> list[tuple[FloatArray, FloatArray]]:
    means = gram[0, 1:] / gram[0, 0]
    covariance = gram[1:, 1:] - gram[0, 0] * np.outer(means, means)
    power, axes = np.linalg.eigh(covariance[:n_features, :n_features])
    # Directions without variance carry no information; dropping them is the pseudo-inverse.
    scale = gram.diagonal()[1 : n_features + 1].max(initial=0.0)
    alive = power > scale * len(power) * np.finfo(np.float64).eps
    axes, power = axes[:, alive], power[alive]
    projected = axes.T @ covariance[:n_features, n_features:]
    weights = [axes @ (projected / (power + alpha)[:, None]) for alpha in alphas]
    return [(w, means[n_features:] - means[:n_features] @ w) for w in weights]


def _r2_from_gram(gram: FloatArray, weight: FloatArray, bias: FloatArray) -> float:
    """Mean R2 of a linear map over the targets that vary."""
    residual = np.concatenate([bias[None], weight, -np.eye(len(bias))])
    error = np.einsum("ik,ij,jk->k", residual, gram, residual, optimize=True)
    power = gram.diagonal()[-len(bias) :]
    spread = power - gram[0, -len(bias) :] ** 2 / gram[0, 0]
    varies = spread > 1e-12 * power
    return float((1 - error[varies] / spread[varies]).sum()) / len(bias)


def ridge_r2(
    x_train: ArrayLike,
    y_train: ArrayLike,
    x_valid: ArrayLike,
    y_valid: ArrayLike,
    alphas: float | Sequence[float] = NLB_ALPHAS,
    n_folds: int = 5,
) -> FloatArray:
    """Decode `y` from `x` linearly: fit on training samples, score on validation samples.

    Among several penalties the best is chosen by cross-validation within the training samples, in
    contiguous folds as the Neural Latents Benchmark does, so that the bins of a trial stay together
    but at the folds' ends.

    Parameters
    ----------
    x_train, x_valid : array, shape (..., features)
    y_train, y_valid : array, shape (..., targets)
        Samples with a NaN are left out.
    alphas : float or sequence of float
        Ridge penalty, or the penalties to choose from.
    n_folds : int
        Folds of the cross-validation.

    Returns
    -------
    array, shape (targets,)
        R2 of each target; their mean is the benchmark's "velocity R2".
    """
    grid = [float(a) for a in np.atleast_1d(alphas)]
    x, y = _rows(x_train, y_train)
    if len(grid) > 1 and len(x) < n_folds:
        raise ValueError(f"{n_folds} folds need as many training samples, got {len(x)}")
    if not len(x):
        raise ValueError("no training sample is finite in both x and y")
    # Centred, the sums of products lose no digits to the means.
    x_mean, y_mean = x.mean(axis=0), y.mean(axis=0)
    x, y = x - x_mean, y - y_mean
    folds = np.array_split(np.arange(len(x)), n_folds if len(grid) > 1 else 1)
    grams = [_gram(x[fold[0] : fold[-1] + 1], y[fold[0] : fold[-1] + 1]) for fold in folds]
    total = np.sum(grams, axis=0)
    scores = np.zeros(len(grid))
    for gram in grams if len(grid) > 1 else ():
        fits = _solve(total - gram, x.shape[1], grid)
        scores += [_r2_from_gram(gram, weight, bias) for weight, bias in fits]
    [(weight, bias)] = _solve(total, x.shape[1], [grid[int(np.argmax(scores))]])
    x, y = _rows(x_valid, y_valid)
    return _column_r2((x - x_mean) @ weight + bias + y_mean, y)


def linear_map_r2(
    latents: ArrayLike, truth: ArrayLike, fit_on: tuple[ArrayLike, ArrayLike] | None = None
) -> float:
    """R2 of true latents explained by a linear map (with offset) of inferred ones.

    Parameters
    ----------
    latents : array, shape (..., inferred dimensions)
    truth : array, shape (..., true dimensions)
    fit_on : (latents, truth), optional
        Data to which the map is fitted, for instance the training trials; the scored data if None.

    Returns
    -------
    float
        Mean over the true dimensions.
    """
    [(weight, bias)] = fit_linear(*(fit_on or (latents, truth)))
    x, y = _rows(latents, truth)
    return float(_column_r2(x @ weight + bias, y).mean())


def psth_r2(
    rates: ArrayLike,
    psth: ArrayLike,
    cond_idx: Sequence[ArrayLike],
    jitter: ArrayLike | None = None,
) -> float:
    """R2 between condition averages of inferred rates and the measured PSTHs.

    Parameters
    ----------
    rates : array, shape (trials, time, neurons)
    psth : array, shape (conditions, time, neurons)
        Bins that are NaN are not scored.
    cond_idx : sequence of integer arrays
        Trials of each condition, in the order of `psth`; empty ones are skipped.
    jitter : integer array, shape (trials,), optional
        Bins by which each trial's window began later than the PSTH's.

    Returns
    -------
    float
        R2 over all conditions and bins, averaged over neurons (Pei et al. 2021).
    """
    rates, psth = np.asarray(rates, dtype=np.float64), np.asarray(psth, dtype=np.float64)
    shifts = np.zeros(len(rates), dtype=int) if jitter is None else np.asarray(jitter, dtype=int)
    preds, targets = [], []
    n_bins = psth.shape[1]
    for condition, members in zip(psth, cond_idx, strict=True):
        trials = np.asarray(members, dtype=int)
        if not trials.size:
            continue
        # Averages skip the bins that a trial's own window did not reach.
        source = np.arange(n_bins) - shifts[trials, None]
        inside = ((source >= 0) & (source < rates.shape[1]))[..., None]
        aligned = rates[trials[:, None], source.clip(0, rates.shape[1] - 1)] * inside
        reached = inside.sum(axis=0)
        keep = np.isfinite(condition).all(axis=1) & (reached[:, 0] > 0)
        preds.append(aligned.sum(axis=0)[keep] / reached[keep])
        targets.append(condition[keep])
    if not preds:
        return math.nan
    return float(_column_r2(np.concatenate(preds), np.concatenate(targets)).mean())


def speed_tp_correlation(rates: ArrayLike, behavior: ArrayLike, mask: ArrayLike) -> float:
    """Correlation of neural speed with the produced interval (DMFC_RSG; Pei et al. 2021).

    Parameters
    ----------
    rates : array, shape (trials, time, neurons)
    behavior : array, shape (trials, columns)
        The first three columns define the condition (prior, response modality, direction); the last
        one is the produced interval t_p. Trials with a NaN in these columns are left out.
    mask : array of bool, shape (trials, time)
        True between Set and Go. Neural speed is the mean distance between successive bins there.

    Returns
    -------
    float
        Pearson's r within each condition, averaged over conditions with two trials or more.
    """
    rates, behavior = np.asarray(rates, np.float64), np.asarray(behavior, np.float64)
    mask = np.asarray(mask, dtype=bool)
    step = np.linalg.norm(np.diff(rates, axis=1), axis=2)
    # A step counts when both its bins lie between Set and Go.
    counted = mask[:, 1:] & mask[:, :-1]
    n_steps = counted.sum(axis=1)
    speed = np.where(n_steps > 0, (step * counted).sum(axis=1) / np.maximum(n_steps, 1), np.nan)
    conditions, produced = behavior[:, :3], behavior[:, -1]
    usable = np.isfinite(speed) & np.isfinite(produced) & np.isfinite(conditions).all(axis=1)
    correlations = []
    for condition in np.unique(conditions[usable], axis=0):
        chosen = usable & (conditions == condition).all(axis=1)
        if chosen.sum() > 1 and np.ptp(speed[chosen]) > 0 and np.ptp(produced[chosen]) > 0:
            correlations.append(np.corrcoef(speed[chosen], produced[chosen])[0, 1])
    return float(np.mean(correlations)) if correlations else math.nan
