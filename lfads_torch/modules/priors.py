"""Priors over initial conditions and inferred inputs, and the KL divergence to them.

A prior is a module with two methods: ``make_posterior(mean, std)`` returns the posterior as a
`torch.distributions.Distribution` over the last axis, ``forward(mean, std)`` the KL divergence
from prior to posterior, averaged over trials. Of inferred inputs ``forward`` may take a third
argument, ``mask``, true for the bins that count, where trials are of different lengths; a prior
without it counts all bins. The initial condition is drawn from
``make_posterior``; the inferred inputs, which the controller draws bin by bin, are always Gaussian
with the given mean and standard deviation.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal, StudentT

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def gaussian_posterior(mean: Tensor, std: Tensor) -> Distribution:
    """Gaussian with independent dimensions over the last axis."""
    return Independent(Normal(mean, std, validate_args=False), 1, validate_args=False)


def _log_normal(x: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    return -0.5 * (logvar + (x - mean) ** 2 * torch.exp(-logvar)) - _HALF_LOG_2PI


def _sum_per_trial(x: Tensor, mask: Tensor | None = None) -> Float[Tensor, " B"]:
    """Sum over all axes but the first; of (B, T, U) over the bins of a mask (B, T)."""
    if mask is not None:
        x = torch.where(mask.unsqueeze(-1), x, 0.0)
    return x.flatten(1).sum(dim=1)


def kl_over_bins(prior: Any, mean: Tensor, std: Tensor, mask: Tensor | None) -> Tensor:
    """KL of inferred inputs (B, T, U) over the bins of a mask (B, T), averaged over trials.

    A prior of one's own whose ``forward`` takes no ``mask`` counts all bins.
    """
    if mask is None:
        return prior(mean, std)
    parameters = inspect.signature(prior.forward).parameters.values()
    if any(p.name == "mask" or p.kind is p.VAR_KEYWORD for p in parameters):
        return prior(mean, std, mask=mask)
    return prior(mean, std)


class Null(nn.Module):
    """No prior: zero KL. The only choice where the model is not variational."""

    def make_posterior(self, mean: Tensor, std: Tensor) -> Distribution:
        """Gaussian posterior."""
        return gaussian_posterior(mean, std)

    def forward(self, mean: Tensor, std: Tensor, mask: Tensor | None = None) -> Float[Tensor, ""]:
        """Zero."""
        return mean.new_zeros(())


class MultivariateNormal(nn.Module):
    """Gaussian prior with trainable mean and fixed variance; the KL is analytic.

    Parameters
    ----------
    mean, variance : float
        Starting mean and fixed variance of every dimension.
    shape : int
        Number of dimensions.
    """

    def __init__(self, mean: float, variance: float, shape: int) -> None:
        super().__init__()
        self.init_args = {"mean": mean, "variance": variance, "shape": shape}
        self.mean = nn.Parameter(torch.full(_as_shape(shape), float(mean)))
        logvar = torch.full(_as_shape(shape), math.log(variance))
        self.logvar = nn.Parameter(logvar, requires_grad=False)

    def make_posterior(self, mean: Tensor, std: Tensor) -> Distribution:
        """Gaussian posterior."""
        return gaussian_posterior(mean, std)

    def forward(
        self, mean: Tensor, std: Tensor, mask: Bool[Tensor, "B T"] | None = None
    ) -> Float[Tensor, ""]:
        """KL(posterior || prior), summed over dimensions, averaged over trials.

        Of a posterior for every bin, only the bins where `mask` is true count.
        """
        logvar = 2 * std.log()
        kl = self.logvar - logvar - 1 + (std**2 + (mean - self.mean) ** 2) / self.logvar.exp()
        return _sum_per_trial(0.5 * kl, mask).mean()


class AutoregressiveMultivariateNormal(nn.Module):
    """First-order autoregressive Gaussian prior over bins, one process per dimension.

    u_0 ~ N(0, s2 / (1 - a^2)), u_t ~ N(a u_{t-1}, s2), a = exp(-1 / tau); both the autocorrelation
    time tau (in bins) and the noise variance s2 are trained, in log space. The KL uses one
    reparameterised sample of the posterior (Pandarinath et al. 2018).

    Parameters
    ----------
    tau : float
        Starting autocorrelation time, bins.
    nvar : float
        Starting noise variance.
    shape : int
        Number of dimensions.
    """

    def __init__(self, tau: float, nvar: float, shape: int) -> None:
        super().__init__()
        self.init_args = {"tau": tau, "nvar": nvar, "shape": shape}
        self.logtaus = nn.Parameter(torch.full(_as_shape(shape), math.log(tau)))
        self.lognvars = nn.Parameter(torch.full(_as_shape(shape), math.log(nvar)))

    def make_posterior(self, mean: Tensor, std: Tensor) -> Distribution:
        """Gaussian posterior."""
        return gaussian_posterior(mean, std)

    def log_prob(
        self, u: Float[Tensor, "B T U"], mask: Bool[Tensor, "B T"] | None = None
    ) -> Float[Tensor, " B"]:
        """Log density of inferred inputs under the prior, summed over bins and dimensions.

        `mask` is true for the first bins of each trial, up to its end: those sum to the density of
        a process that ends there.
        """
        minus_rate = -torch.exp(-self.logtaus)
        a, logvar = minus_rate.exp(), self.lognvars
        # log(1 - a^2), exact also for long autocorrelation times.
        logvar_first = logvar - torch.log(-torch.expm1(2 * minus_rate))
        first = _log_normal(u[:, :1], torch.zeros_like(a), logvar_first)
        rest = _log_normal(u[:, 1:], a * u[:, :-1], logvar)
        if mask is None:
            return _sum_per_trial(first) + _sum_per_trial(rest)
        return _sum_per_trial(first, mask[:, :1]) + _sum_per_trial(rest, mask[:, 1:])

    def forward(
        self,
        mean: Float[Tensor, "B T U"],
        std: Tensor,
        mask: Bool[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, ""]:
        """One-sample estimate of KL(posterior || prior), averaged over trials.

        Only the bins where `mask` is true count, as `log_prob` says.
        """
        noise = torch.randn_like(mean)
        log_q = -_sum_per_trial(0.5 * noise**2 + std.log() + _HALF_LOG_2PI, mask)
        return (log_q - self.log_prob(mean + std * noise, mask)).mean()


class MultivariateStudentT(nn.Module):
    """Student-t prior with independent dimensions; location and scale are trained.

    The KL uses one reparameterised sample of the (Gaussian) posterior.

    Parameters
    ----------
    loc, scale : float
        Starting location and scale of every dimension.
    df : float
        Degrees of freedom, fixed.
    shape : int
        Number of dimensions.
    """

    def __init__(self, loc: float, scale: float, df: float, shape: int) -> None:
        super().__init__()
        self.init_args = {"loc": loc, "scale": scale, "df": df, "shape": shape}
        self.loc = nn.Parameter(torch.full(_as_shape(shape), float(loc)))
        self.logscale = nn.Parameter(torch.full(_as_shape(shape), math.log(scale)))
        self.df = float(df)

    def make_posterior(self, mean: Tensor, std: Tensor) -> Distribution:
        """Gaussian posterior."""
        return gaussian_posterior(mean, std)

    def forward(
        self, mean: Tensor, std: Tensor, mask: Bool[Tensor, "B T"] | None = None
    ) -> Float[Tensor, ""]:
        """One-sample estimate of KL(posterior || prior), averaged over trials.

        Only the bins where `mask` is true count.
        """
        noise = torch.randn_like(mean)
        prior = StudentT(self.df, self.loc, self.logscale.exp(), validate_args=False)
        log_p = _sum_per_trial(prior.log_prob(mean + std * noise), mask)
        log_q = -_sum_per_trial(0.5 * noise**2 + std.log() + _HALF_LOG_2PI, mask)
        return (log_q - log_p).mean()


def _as_shape(shape: int) -> tuple[int]:
    return (int(shape),)
