"""Rows that predict from a few latent factors of the smoothed data."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .behavior import SCORED, TRAIN
from .fits import Source, judge_and_rest, regress, subset
from .scoring import Prediction, only

Array = NDArray[Any]

_N_FACTORS = (2, 4, 8, 16, 32)


def factor_analysis(source: Source) -> Prediction | None:
    """Analyse factors of smoothed data; rates by a regression from the factors."""
    recording, read, smoother = source.recording, source.read, source.smoother
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

    # Rates of a bin that was read come from factors that have not seen it, like all baselines.
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
