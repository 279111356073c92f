"""Regressions that scores and baselines need: ridge and Poisson, from arrays of trials."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import UserError
from .trialwise import ROUNDING

FloatArray = NDArray[np.float64]

NLB_ALPHAS: tuple[float, ...] = tuple(float(a) for a in np.logspace(-4, 0, 9))
"""Ridge penalties among which the Neural Latents Benchmark chooses by cross-validation."""

# Rows of this number of entries, 512 kB, fit into the cache of a processor.
_BLOCK_ENTRIES = 1 << 16


class LinearMap(NamedTuple):
    """``y = x @ weight + bias``."""

    weight: FloatArray  # shape (features, targets)
    bias: FloatArray  # shape (targets,)

    def __call__(self, x: ArrayLike) -> FloatArray:
        """Predict from `x` of shape (..., features)."""
        return np.asarray(x, dtype=np.float64) @ self.weight + self.bias


class RidgeChoice(NamedTuple):
    """A ridge regression whose penalties were chosen by cross-validation."""

    fit: LinearMap  # to all samples
    alpha: FloatArray  # penalties, shape (targets,)
    score: FloatArray  # mean over folds of the R2 in the fold left out, shape (targets,)


def finite_rows(*arrays: ArrayLike) -> list[FloatArray]:
    """Flatten all axes but the last, and keep the rows that are finite in every array."""
    flat = [np.asarray(a, dtype=np.float64) for a in arrays]
    flat = [a.reshape(-1, a.shape[-1]) for a in flat]
    if len({len(a) for a in flat}) > 1:
        raise UserError(f"arrays must agree in samples, got {[len(a) for a in flat]} rows")
    keep = np.logical_and.reduce([np.isfinite(a).all(axis=1) for a in flat])
    return flat if keep.all() else [a[keep] for a in flat]


def column_r2(preds: FloatArray, targets: FloatArray) -> FloatArray:
    """R2 per column; as the benchmark has it, a constant target scores 1 if exact and else 0."""
    error = ((targets - preds) ** 2).sum(axis=0)
    spread = ((targets - targets.mean(axis=0)) ** 2).sum(axis=0)
    varies = spread > 0
    return np.where(varies, 1 - error / np.where(varies, spread, 1.0), error == 0)


def fit_linear(
    x: ArrayLike, y: ArrayLike, alphas: Sequence[float] = (0.0,), *, intercept: bool = True
) -> list[LinearMap]:
    """Ridge regression with an unpenalised intercept, for several penalties at once.

    Parameters
    ----------
    x : array, shape (..., features)
    y : array, shape (..., targets)
        Samples with a NaN in `x` or `y` are left out.
    alphas : sequence of float
        Penalties on the squared weights; 0 is least squares of least norm.
    intercept : bool
        Without it the line goes through the origin, and the biases are 0.

    Returns
    -------
    list of LinearMap, one per penalty

    Raises
    ------
    UserError
        If the samples of `x` and `y` do not agree, or none is finite in both.
    """
    inputs, targets = finite_rows(x, y)
    if not len(inputs):
        raise UserError("no sample is finite in both x and y, so there is nothing to fit")
    # Centred, the sums of products lose no digits to the means.
    x_mean, y_mean = (a.mean(axis=0) if intercept else 0 * a[0] for a in (inputs, targets))
    sums = product_sums(inputs - x_mean, targets - y_mean)
    if not intercept:
        sums[0, 1:] = sums[1:, 0] = 0.0  # means of zero, about which nothing is subtracted
    fits = _solve(sums, np.ones(inputs.shape[1]), alphas)
    return [LinearMap(weight, y_mean + bias - x_mean @ weight) for weight, bias in fits]


def product_sums(x: FloatArray, y: FloatArray) -> FloatArray:
    """Sum the products of (1, x, y): all that linear regression needs to know of its data."""
    joined = np.concatenate([np.ones((len(x), 1)), x, y], axis=1)
    return joined.T @ joined


def _solve(gram: FloatArray, scale: FloatArray, alphas: Sequence[float]) -> list[LinearMap]:
    """Solve ridge regressions with penalties on the weights of features divided by `scale`."""
    n_features = len(scale)
    factor = np.ones(len(gram))
    factor[1 : n_features + 1] = 1 / scale
    gram = gram * np.outer(factor, factor)
    means = gram[0, 1:] / gram[0, 0]
    covariance = gram[1:, 1:] - gram[0, 0] * np.outer(means, means)
    power, axes = np.linalg.eigh(covariance[:n_features, :n_features])
    # Directions without variance carry no information; dropping them is the pseudo-inverse.
    largest = gram.diagonal()[1 : n_features + 1].max(initial=0.0)
    alive = power > largest * len(power) * np.finfo(np.float64).eps
    axes, power = axes[:, alive], power[alive]
    projected = axes.T @ covariance[:n_features, n_features:]
    weights = [axes @ (projected / (power + alpha)[:, None]) for alpha in alphas]
    return [
        LinearMap(w / scale[:, None], means[n_features:] - means[:n_features] @ w) for w in weights
    ]


def _error_from_sums(gram: FloatArray, fit: LinearMap) -> FloatArray:
    """Return the sum of squared errors of a linear map for each target."""
    residual = np.concatenate([fit.bias[None], fit.weight, -np.eye(len(fit.bias))])
    return np.asarray((residual * (gram @ residual)).sum(axis=0))


def _r2_from_sums(gram: FloatArray, fit: LinearMap) -> FloatArray:
    """R2 of a linear map for each target; 0 where it does not vary."""
    n_targets = len(fit.bias)
    error = _error_from_sums(gram, fit)
    power = gram.diagonal()[-n_targets:]
    spread = power - gram[0, -n_targets:] ** 2 / gram[0, 0]
    varies = spread > ROUNDING * power
    return np.where(varies, 1 - error / np.where(varies, spread, 1.0), 0.0)


def _choose(
    folds: Sequence[tuple[FloatArray, FloatArray]],
    alphas: Sequence[float],
    per_target: bool,
    scaled: bool = False,
) -> RidgeChoice:
    """Choose penalties over folds, each (x, y) of finite rows, and fit to all of them."""
    n = sum(len(x) for x, _ in folds)
    # Centred, the sums of products lose no digits to the means.
    x_mean = np.sum([x.sum(axis=0) for x, _ in folds], axis=0) / n
    y_mean = np.sum([y.sum(axis=0) for _, y in folds], axis=0) / n
    sums = [product_sums(x - x_mean, y - y_mean) for x, y in folds]
    total, n_features = np.sum(sums, axis=0), len(x_mean)
    scales = _feature_scales(total, n_features) if scaled else [np.ones(n_features)]
    (weight, bias), alpha, score = choose_ridge(
        total, [(fold, fold) for fold in sums], alphas, scales, per_target
    )
    return RidgeChoice(LinearMap(weight, y_mean + bias - x_mean @ weight), alpha, score)


def choose_ridge(
    total: FloatArray,
    folds: Sequence[tuple[FloatArray, FloatArray]],
    alphas: Sequence[float],
    scales: Sequence[FloatArray],
    per_target: bool = True,
    pooled: bool = False,
) -> RidgeChoice:
    """Choose penalty and scale of the features by cross-validation, from `product_sums` alone.

    `total` are the sums of all rows. A fold is a pair: the sums of the rows that it judges, and of
    all rows that are left out of its fit, neighbours among them. A single fold chooses nothing.
    Scores are the mean of the folds' R2; `pooled` is the R2 of all folds together, in which a fold
    whose targets hardly vary does not count as much as one whose targets do.
    """
    # scikit-learn's RidgeCV chooses a penalty for each target by leave-one-out alone, which parts
    # the bins of a trial. From the folds' sums of products every penalty and scale costs one small
    # eigenproblem, and no row is read twice.
    options = [(scale, alpha) for scale in scales for alpha in alphas]
    n_targets = len(total) - 1 - len(scales[0])
    scores = np.zeros((len(options), n_targets))
    for fold, left_out in folds if len(folds) > 1 else ():
        fits = [fit for scale in scales for fit in _solve(total - left_out, scale, alphas)]
        for score, fit in zip(scores, fits, strict=True):
            error = _error_from_sums(fold, fit)
            score += -error if pooled else _r2_from_sums(fold, fit) / len(folds)
    if pooled and len(folds) > 1:
        spread = total.diagonal()[-n_targets:] - total[0, -n_targets:] ** 2 / total[0, 0]
        scores = 1 + scores / np.where(spread > 0, spread, np.inf)
    judged = scores if per_target else np.broadcast_to(scores.mean(1, keepdims=True), scores.shape)
    best = judged.argmax(axis=0)
    fits = [fit for scale in scales for fit in _solve(total, scale, alphas)]
    weight = np.stack([fits[k].weight[:, target] for target, k in enumerate(best)], axis=1)
    bias = np.array([fits[k].bias[target] for target, k in enumerate(best)])
    alpha = np.array([float(options[k][1]) for k in best])
    score = np.take_along_axis(scores, best[None], axis=0)[0]
    return RidgeChoice(LinearMap(weight, bias), alpha, score)


def _feature_scales(gram: FloatArray, n_features: int) -> list[FloatArray]:
    """Return the spread of each feature, and one for all."""
    n, rows = gram[0, 0], slice(1, n_features + 1)
    variance = gram.diagonal()[rows] / n - (gram[0, rows] / n) ** 2
    varies = variance > ROUNDING * gram.diagonal()[rows] / n
    variance = np.where(varies, variance, 0.0)
    mean = variance.sum() / max(int(varies.sum()), 1) or 1.0
    return [np.sqrt(np.where(varies, variance, mean)), np.full(n_features, np.sqrt(mean))]


def ridge(
    x: ArrayLike, y: ArrayLike, alphas: Sequence[float], n_folds: int = 5, scaled: bool = False
) -> RidgeChoice:
    """Fit a ridge regression; cross-validation that parts no trial chooses each target's penalty.

    `x` and `y` have shape (trials, bins, ...); samples with a NaN are left out. Folds are
    contiguous. With a single trial the first penalty counts, and scores are 0. With `scaled`,
    penalties are on weights of scaled features, so that they mean the same whatever the features'
    units: each feature is divided by its spread, or all by a common one, whichever predicts better.
    That depends on whether weak features are worth as much as strong ones.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if x.shape[:2] != y.shape[:2]:
        raise UserError(f"x has trials x bins {x.shape[:2]}, y {y.shape[:2]}; they must agree")
    usable = np.isfinite(x).all(axis=2) & np.isfinite(y).all(axis=2)
    trials = np.flatnonzero(usable.any(axis=1))
    if not trials.size:
        raise UserError("no sample is finite in both x and y, so there is nothing to fit")
    folds = np.array_split(trials, min(n_folds, len(trials)))
    return _choose([(x[f][usable[f]], y[f][usable[f]]) for f in folds], alphas, True, scaled)


def ridge_r2(
    x_train: ArrayLike,
    y_train: ArrayLike,
    x_valid: ArrayLike,
    y_valid: ArrayLike,
    alphas: float | int | Sequence[float] = NLB_ALPHAS,
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
    x, y = finite_rows(x_train, y_train)
    if len(grid) > 1 and len(x) < n_folds:
        raise UserError(f"{n_folds} folds need as many training samples, got {len(x)}")
    if not len(x):
        raise UserError("no training sample is finite in both x and y")
    folds = np.array_split(np.arange(len(x)), n_folds if len(grid) > 1 else 1)
    fit = _choose([(x[f[0] : f[-1] + 1], y[f[0] : f[-1] + 1]) for f in folds], grid, False).fit
    x, y = finite_rows(x_valid, y_valid)
    return column_r2(fit(x), y)


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
    [fit] = fit_linear(*(fit_on or (latents, truth)))
    x, y = finite_rows(latents, truth)
    return float(column_r2(fit(x), y).mean())


def poisson_regression(
    x: ArrayLike, counts: ArrayLike, penalty: float | int = 0.0, tolerance: float = 1e-8
) -> LinearMap:
    """Poisson regression with log link, of all channels at once.

    Minimises, for each channel, the mean over its samples of ``rate - count * log(rate)`` plus
    ``penalty / 2 * |weight|^2``, with ``log(rate) = x @ weight + bias``.

    Parameters
    ----------
    x : array, shape (..., features)
        Samples with a NaN are left out.
    counts : array, shape (..., channels)
        NaN entries are left out, each channel for itself.
    penalty : float
    tolerance : float
        Iterations end where the objective, summed over channels, falls by a smaller share.

    Returns
    -------
    LinearMap
        To log rates per bin. A channel without a single spike gets no weights and the rate of half
        a spike in all its samples.
    """
    from scipy.optimize import minimize  # costs half a second that training need not wait

    inputs, y = np.asarray(x, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    inputs, y = inputs.reshape(-1, inputs.shape[-1]), y.reshape(-1, y.shape[-1])
    if len(inputs) != len(y):
        raise UserError(f"x has {len(inputs)} samples, counts {len(y)}; they must agree")
    keep = np.isfinite(inputs).all(axis=1) & np.isfinite(y).any(axis=1)
    inputs, y = inputs[keep], y[keep]
    if not len(y):
        raise UserError("no sample has finite x and counts, so there is nothing to fit")
    observed = np.isfinite(y)
    n = np.maximum(observed.sum(axis=0), 1)
    y = np.where(observed, y, 0.0)
    mean = np.maximum(y.sum(axis=0), 0.5) / n
    active = np.flatnonzero(y.any(axis=0))

    # In the inputs' principal axes, scaled by each channel's curvature at its mean rate, the
    # problem is nearly round, and a few steps suffice whatever the inputs' scales.
    centre = inputs.mean(axis=0)
    power, axes = np.linalg.eigh(np.cov(inputs, rowvar=False, bias=True).reshape(2 * [len(centre)]))
    alive = power > max(power[-1], 0.0) * len(power) * np.finfo(np.float64).eps
    axes, power = axes[:, alive], power[alive]
    z = (inputs - centre) @ axes
    scale = 1 / np.sqrt(mean[active] * power[:, None] + penalty)
    y, observed, n = y[:, active], observed[:, active], n[active]
    complete = bool(observed.all())
    # The part of the likelihood that is linear in the weights is known before the first step.
    spikes, moments = y.sum(axis=0), z.T @ y
    step = max(1, _BLOCK_ENTRIES // max(1, len(active)))

    def objective(flat: FloatArray) -> tuple[float, FloatArray]:
        scaled = flat.reshape(len(power) + 1, len(active))
        weight = scaled[1:] * scale
        log_mean = np.log(mean[active]) + scaled[0] / np.sqrt(mean[active])
        total, slope = np.zeros(len(active)), -moments
        for start in range(0, len(z), step):
            rows = slice(start, start + step)
            rate = z[rows] @ weight
            rate += log_mean
            # Bounded, a step that goes too far is turned back without an overflow.
            np.exp(np.minimum(rate, 50.0, out=rate), out=rate)
            if not complete:
                rate *= observed[rows]
            total += rate.sum(axis=0)
            slope += z[rows].T @ rate
        value = (total - spikes * log_mean - (weight * moments).sum(axis=0)) / n
        slope = slope / n + penalty * weight
        gradient = np.concatenate([[(total - spikes) / n / np.sqrt(mean[active])], slope * scale])
        return float(value.sum() + 0.5 * penalty * (weight**2).sum()), gradient.ravel()

    weight, bias = np.zeros((len(centre), len(mean))), np.log(mean)
    if active.size and power.size:
        options = {"maxiter": 500, "ftol": tolerance, "gtol": 1e-7}
        start = np.zeros((len(power) + 1) * len(active))
        flat = minimize(objective, start, jac=True, method="L-BFGS-B", options=options).x
        solution = flat.reshape(len(power) + 1, len(active))
        weight[:, active] = axes @ (solution[1:] * scale)
        bias[active] += solution[0] / np.sqrt(mean[active]) - centre @ weight[:, active]
    return LinearMap(weight, bias)
