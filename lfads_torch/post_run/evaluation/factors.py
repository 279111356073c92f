"""Rows that predict from a few latent factors of the smoothed data."""

from __future__ import annotations

import io
import warnings
from contextlib import redirect_stdout
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import UserError
from .behavior import SCORED, TRAIN
from .fits import Source, judge_and_rest, regress, regression_loss, subset
from .scoring import Prediction, only

Array = NDArray[Any]

_N_FACTORS = (2, 4, 8, 16, 32)
# Each bin and dimension is a row of the matrix that GPFA inverts: more than these take hours.
_N_GPFA = (4, 8)
_EM_STEPS, _EM_TOLERANCE = 100, 1e-5
_TAU_MS = 100.0
"""Time scale from which GPFA starts."""
_TRIALS_AT_ONCE = 50


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


def gpfa(source: Source) -> Prediction | None:
    """Smooth square roots of counts by Gaussian-process factor analysis (Yu et al. 2009).

    Of channels that were read it says nothing: the factors of a bin have seen it.
    """
    core = _elephant()
    recording, n_bins = source.recording, source.recording.n_bins
    read = {kind: data[:, :n_bins] for kind, data in source.read.items()}
    if not recording.counts or not all(np.isfinite(data).all() for data in read.values()):
        return None
    varies = np.flatnonzero(read[TRAIN].std(axis=(0, 1)) > 0)
    sizes = [k for k in _N_GPFA if k < len(varies)]
    if not sizes or len(read[TRAIN]) < 2:
        return None
    roots = {kind: np.sqrt(data[..., varies].astype(np.float64)) for kind, data in read.items()}
    bin_ms = recording.session.bin_ms or 10.0
    few = subset(roots[TRAIN])

    def fitted(size: int) -> dict[str, Any]:
        # It prints what it does, and warns of every trial shorter than its segments of 20 bins.
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            parameters: dict[str, Any] = core.fit(
                _sequences(few),
                x_dim=size,
                bin_width=bin_ms,
                tau_init=_TAU_MS,
                em_max_iters=_EM_STEPS,
                em_tol=_EM_TOLERANCE,
            )[0]
        return parameters

    models = {size: fitted(size) for size in sizes}
    size = sizes[-1]
    holds_out = recording.data[SCORED].shape[2] > recording.n_channels
    if holds_out:
        losses = {k: regression_loss(recording, _latents(core, few, m)) for k, m in models.items()}
        size = min(losses, key=lambda k: losses[k])
    train, scored = (_latents(core, roots[kind], models[size]) for kind in (TRAIN, SCORED))
    rates = None
    if holds_out:
        rates = np.full(recording.data[SCORED].shape, np.nan, np.float32)
        held_out = slice(recording.n_channels, None)
        rates[:, :n_bins, held_out] = regress(recording, train, scored, held_out)
    return Prediction("gpfa", None, rates, only(train, scored), {"n_factors": size})


def _elephant() -> Any:
    try:
        from elephant.gpfa import gpfa_core  # seconds, and an extra
    except ImportError as error:
        raise UserError(
            "--baselines gpfa needs elephant: pip install 'lfads-torch[gpfa]'"
        ) from error
    return gpfa_core


def _sequences(data: Array) -> Array:
    """Return trials as elephant takes them: records with bins and (channels, bins)."""
    trials = [(len(trial), np.ascontiguousarray(trial.T)) for trial in data]
    return np.array(trials, dtype=[("T", int), ("y", object)])


def _latents(core: Any, data: Array, parameters: dict[str, Any]) -> Array:
    """Return posterior means of the factors, (trials, bins, factors)."""
    blocks = []
    for start in range(0, len(data), _TRIALS_AT_ONCE):
        sequences = _sequences(data[start : start + _TRIALS_AT_ONCE])
        done, _ = core.exact_inference_with_ll(sequences, parameters, get_ll=False)
        blocks.append(np.stack([trial.T for trial in done["latent_variable"]]))
    return np.concatenate(blocks)
