"""Principal components with missing entries, and ridge regression on a scale-free grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

_MAX_ROUNDS = 100
_TOLERANCE = 1e-4  # change of filled-in entries, relative to the spread of the data


def principal_components(data: FloatArray, rank: int) -> tuple[FloatArray, FloatArray]:
    """Scores on the first components, and all eigenvalues.

    NaN entries are filled in by regularised iterative PCA, with ever more components: begun with
    all of them, the weak ones would make up what is not there.
    """
    observed = np.isfinite(data)
    seen = observed.any(axis=0)
    data, observed = data[:, seen], observed[:, seen]
    mean = np.nanmean(data, axis=0)
    spread = float(np.sqrt(np.nanmean((data - mean) ** 2))) or 1.0
    filled = np.where(observed, data, mean)
    for some in sorted({min(2**k, rank) for k in range(rank.bit_length() + 1)}):
        for _ in range(_MAX_ROUNDS):
            if observed.all():
                break
            scores, power, weights = _decompose(filled, some)
            # Shrunken by the noise that the other components show, or it would be believed.
            noise = power[some:].mean() if len(power) > some else 0.0
            shrink = np.maximum(power[:some] - noise, 0.0) / np.maximum(power[:some], 1e-300)
            guess = filled.mean(axis=0) + (scores * shrink) @ weights
            change = np.abs(guess - filled)[~observed].max()
            filled = np.where(observed, data, guess)
            if change < _TOLERANCE * spread:
                break
    scores, power, _ = _decompose(filled, rank)
    # The sign of a component is arbitrary; this one does not depend on the machine.
    sign = np.sign((scores**3).sum(axis=0))
    return scores * np.where(sign == 0, 1.0, sign), power


def _decompose(data: FloatArray, rank: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Scores on the first components, all eigenvalues, and weights of the components."""
    centred = data - data.mean(axis=0)
    # Whichever side is shorter has the smaller eigenproblem.
    tall = centred.shape[0] > centred.shape[1]
    power, axes = np.linalg.eigh(centred.T @ centred if tall else centred @ centred.T)
    power, axes = np.maximum(power[::-1], 0.0), axes[:, ::-1][:, :rank]
    if tall:
        return centred @ axes, power, axes.T
    size = np.sqrt(power[:rank])
    return axes * size, power, axes.T @ centred / np.maximum(size, 1e-300)[:, None]


def choose_penalty(
    folds: Sequence[tuple[FloatArray, FloatArray, FloatArray, FloatArray]],
    penalties: Sequence[float],
    intercept: bool,
) -> tuple[float, float]:
    """Penalty of the least error on held-out trials, and its R2."""
    error, power = np.zeros(len(penalties)), 0.0
    for x_fit, y_fit, x_test, y_test in folds:
        rows = np.isfinite(x_test).all(axis=1) & np.isfinite(y_test).all(axis=1)
        if not rows.any():
            continue
        fits = ridge(x_fit, y_fit, penalties, intercept)
        centre = np.nanmean(y_fit, axis=0) if intercept else 0.0
        power += float(((y_test[rows] - centre) ** 2).sum())
        for i, (weight, bias) in enumerate(fits):
            error[i] += float(((x_test[rows] @ weight + bias - y_test[rows]) ** 2).sum())
    best = int(np.argmin(error))
    return float(penalties[best]), 1 - error[best] / power if power else float("nan")


def ridge(
    x: FloatArray, y: FloatArray, penalties: Sequence[float], intercept: bool
) -> list[tuple[FloatArray, FloatArray]]:
    """Ridge regressions of y on x; a penalty is in units of the mean eigenvalue of x'x."""
    rows = np.isfinite(x).all(axis=1) & np.isfinite(y).all(axis=1)
    x, y = x[rows], y[rows]
    x_mean, y_mean = (
        (x.mean(axis=0), y.mean(axis=0))
        if intercept and len(x)
        else (np.zeros(x.shape[1]), np.zeros(y.shape[1]))
    )
    power, axes = np.linalg.eigh((x - x_mean).T @ (x - x_mean))
    power = np.maximum(power, 0.0)
    projected = axes.T @ ((x - x_mean).T @ (y - y_mean))
    unit = power.mean() or 1.0
    weights = [axes @ (projected / (power + p * unit)[:, None]) for p in penalties]
    return [(w, y_mean - x_mean @ w) for w in weights]
