"""What the posterior says beyond the prior: the KL divergence of each latent dimension."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..modules.priors import (
    AutoregressiveMultivariateNormal,
    MultivariateNormal,
    MultivariateStudentT,
)

FloatArray = NDArray[np.float64]

ACTIVE = 0.01
"""Share of a dimension's variance that its means explain, below which it tells trials not apart."""

# Of the Gauss-Hermite quadrature: exact for polynomials up to degree 63.
_NODES = 32


def kl_by_dimension(prior: Any, mean: ArrayLike, std: ArrayLike) -> FloatArray | None:
    """KL divergence from prior to posterior, without summing over anything.

    Parameters
    ----------
    prior : module of `lfads_torch.modules.priors`
    mean, std : array, shape (..., dimensions); (trials, time, dimensions) for an AR prior
        Gaussian posterior.

    Returns
    -------
    ndarray, shape of `mean`, or None
        Nats, in expectation over the posterior; None for a prior that says nothing (`Null`) or
        that is not known here. 0 past a trial's end, where mean and std are NaN. Summed over all
        axes but the first, the mean over trials is what the model's KL term estimates, before its
        scale.

    Notes
    -----
    Of the AR prior, bin t contributes E log q(u_t) - E log p(u_t | u_{t-1}), in closed form; that
    of Student's t is a Gauss-Hermite quadrature.
    """
    m, s = np.asarray(mean, np.float64), np.asarray(std, np.float64)
    nats = _nats(prior, m, s)
    return None if nats is None else np.where(np.isnan(m) & np.isnan(s), 0.0, nats)


def _nats(prior: Any, m: FloatArray, s: FloatArray) -> FloatArray | None:
    if isinstance(prior, MultivariateNormal):
        logvar = _array(prior.logvar)
        ratio = (s**2 + (m - _array(prior.mean)) ** 2) / np.exp(logvar)
        return 0.5 * (logvar - 2 * _log(s) - 1 + ratio)
    if isinstance(prior, AutoregressiveMultivariateNormal):
        rate, logvar = np.exp(-_array(prior.logtaus)), _array(prior.lognvars)
        a = np.exp(-rate)
        first = logvar - np.log(-np.expm1(-2 * rate))
        logvars = np.broadcast_to(logvar, m.shape).copy()
        logvars[:, :1] = first
        surprise = s**2 + m**2
        surprise[:, 1:] = s[:, 1:] ** 2 + a**2 * s[:, :-1] ** 2 + (m[:, 1:] - a * m[:, :-1]) ** 2
        return 0.5 * (logvars - 2 * _log(s) - 1 + surprise / np.exp(logvars))
    if isinstance(prior, MultivariateStudentT):
        return -_log(s) - 0.5 * math.log(2 * math.pi * math.e) - _expected_log_t(prior, m, s)
    return None


def active_share(mean: ArrayLike, std: ArrayLike) -> FloatArray:
    """Share of each dimension's variance that the posterior means explain, between 0 and 1.

    Var(mean) / (Var(mean) + E[std^2]) over all axes but the last. A dimension near 0 has collapsed:
    its posterior is the same for every trial. It is free of the units of the latents (compare the
    "active units" of Burda et al. 2016, arXiv:1509.00519).

    Parameters
    ----------
    mean, std : array, shape (..., dimensions)

    Returns
    -------
    ndarray, shape (dimensions,)
        NaN where nothing is finite.
    """
    m, s = (np.asarray(a, np.float64).reshape(-1, np.shape(a)[-1]) for a in (mean, std))
    keep = np.isfinite(m) & np.isfinite(s)
    count = keep.sum(axis=0)
    safe = np.maximum(count, 1)
    centre = np.where(keep, m, 0).sum(axis=0) / safe
    between = np.where(keep, (m - centre) ** 2, 0).sum(axis=0) / safe
    within = np.where(keep, s**2, 0).sum(axis=0) / safe
    total = between + within
    share = np.divide(between, total, out=np.zeros_like(total), where=total > 0)
    return np.where(count > 0, share, np.nan)


def _log(x: FloatArray) -> FloatArray:
    # The floor gives a deviation of 0 a large divergence, not one that is infinite.
    return np.log(np.maximum(x, 1e-300))


def _array(parameter: Any) -> FloatArray:
    return np.asarray(parameter.detach().cpu().numpy(), dtype=np.float64)


def _expected_log_t(prior: MultivariateStudentT, m: FloatArray, s: FloatArray) -> FloatArray:
    """Compute the expected log density of Student's t under a Gaussian."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    loc, scale, df = _array(prior.loc), np.exp(_array(prior.logscale)), prior.df
    total = np.zeros_like(m)
    for node, weight in zip(nodes, weights / weights.sum(), strict=True):
        total += weight * np.log1p(((m + s * node - loc) / scale) ** 2 / df)
    norm = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - 0.5 * math.log(df * math.pi)
    return norm - np.log(scale) - (df + 1) / 2 * total
