"""Priors over initial conditions and inferred inputs, and the KL divergence to them.

A prior is a module with two methods. ``make_posterior(post_mean, post_std)`` returns the posterior
as a `torch.distributions.Distribution` over the last axis. ``forward(post_mean, post_std)`` returns
the KL divergence from prior to posterior, KL(q || p) = E_q[log q - log p], summed over dimensions
and bins and averaged over trials.

The initial condition, mean and std of shape (B, ic_dim), is drawn from ``make_posterior``. The
inferred inputs, (B, T, co_dim), are always Gaussian with the given mean and standard deviation,
because the controller draws them bin by bin. For them ``forward`` may take a third argument,
``mask`` (B, T), true for the bins that count, where trials are of different lengths; a prior
without it counts all bins.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal, StudentT

from ..errors import number, whole

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def gaussian_posterior(
    mean: Float[Tensor, "*batch D"], std: Float[Tensor, "*batch D"]
) -> Distribution:
    """Return a Gaussian with independent dimensions.

    Parameters
    ----------
    mean, std : Tensor, shape (..., dimensions)

    Returns
    -------
    Distribution
        Over the last axis; ``rsample`` passes gradients on.
    """
    return Independent(Normal(mean, std, validate_args=False), 1, validate_args=False)


def kl_over_bins(prior: Any, mean: Tensor, std: Tensor, mask: Tensor | None) -> Tensor:
    """Compute the KL of inferred inputs (B, T, U) over the bins of a mask (B, T).

    Your own prior whose ``forward`` takes no ``mask`` counts all bins.
    """
    if mask is None:
        return prior(mean, std)
    parameters = inspect.signature(prior.forward).parameters.values()
    if any(p.name == "mask" or p.kind is p.VAR_KEYWORD for p in parameters):
        return prior(mean, std, mask=mask)
    return prior(mean, std)


class Null(nn.Module):
    """No prior: zero KL. The only choice where the model is not variational."""

    # Callers name the two as the prior that they replace names them.
    def make_posterior(self, *args: Tensor, **kwargs: Tensor) -> Distribution:
        """Return a Gaussian posterior over the last axis, of a mean and a standard deviation."""
        return gaussian_posterior(*args, *kwargs.values())

    def forward(self, *args: Any, **kwargs: Any) -> Float[Tensor, ""]:
        """Return 0."""
        return [*args, *kwargs.values()][0].new_zeros(())


class _GaussianPosterior(nn.Module):
    """Give a prior the posterior that all packaged ones have."""

    def make_posterior(self, post_mean: Tensor, post_std: Tensor) -> Distribution:
        """Return a Gaussian posterior over the last axis."""
        return gaussian_posterior(post_mean, post_std)


class MultivariateNormal(_GaussianPosterior):
    """Gaussian prior N(m, s2) with independent dimensions, trainable mean and fixed variance.

    The KL is analytic: 0.5 (log(s2 / std^2) - 1 + (std^2 + (mean - m)^2) / s2) per dimension.
    Source: Pandarinath et al. 2018 (doi:10.1038/s41592-018-0109-9).

    Parameters
    ----------
    mean : float
        Starting mean m of every dimension.
    variance : float
        Fixed variance s2 of every dimension, above 0.
    shape : int
        Number of dimensions.

    Raises
    ------
    ConfigError
        Where the variance is not above 0.
    """

    def __init__(self, mean: float, variance: float, shape: int) -> None:
        super().__init__()
        self.init_args = {"mean": mean, "variance": variance, "shape": shape}
        self.mean = _parameter(float(mean), shape)
        self.logvar = _parameter(_log("variance", variance), shape).requires_grad_(False)

    def forward(
        self, post_mean: Tensor, post_std: Tensor, mask: Bool[Tensor, "B T"] | None = None
    ) -> Float[Tensor, ""]:
        """Compute the KL divergence, over the bins where `mask` is true."""
        distance = post_std**2 + (post_mean - self.mean) ** 2
        kl = self.logvar - 2 * post_std.log() - 1 + distance / self.logvar.exp()
        return _sum_per_trial(0.5 * kl, mask).mean()


class AutoregressiveMultivariateNormal(_GaussianPosterior):
    """First-order autoregressive Gaussian prior over bins, one process per dimension.

    u_0 ~ N(0, s2 / (1 - a^2)), u_t ~ N(a u_{t-1}, s2), a = exp(-1 / tau); both the autocorrelation
    time tau and the noise variance s2 are trained, as logarithms. The KL uses one reparameterised
    sample of the posterior. Source: Pandarinath et al. 2018 (doi:10.1038/s41592-018-0109-9).

    Parameters
    ----------
    tau : float
        Starting autocorrelation time, in bins, above 0.
    nvar : float
        Starting noise variance s2, above 0.
    shape : int
        Number of dimensions.

    Raises
    ------
    ConfigError
        Where `tau` or `nvar` is not above 0.
    """

    def __init__(self, tau: float, nvar: float, shape: int) -> None:
        super().__init__()
        self.init_args = {"tau": tau, "nvar": nvar, "shape": shape}
        self.logtaus = _parameter(_log("tau", tau), shape)
        self.lognvars = _parameter(_log("nvar", nvar), shape)

    def log_prob(
        self, sample: Float[Tensor, "B T U"], mask: Bool[Tensor, "B T"] | None = None
    ) -> Float[Tensor, " B"]:
        """Compute the log density of inferred inputs, summed over bins and dimensions.

        Parameters
        ----------
        sample : Tensor, shape (B, T, co_dim)
            Inferred inputs.
        mask : Tensor of bool, shape (B, T), optional
            True for the first bins of each trial, up to its end: those sum to the density of a
            process that ends there.

        Returns
        -------
        Tensor, shape (B,)
        """
        minus_rate = -torch.exp(-self.logtaus)
        a, logvar = minus_rate.exp(), self.lognvars
        # log(1 - a^2), exact also for long autocorrelation times.
        logvar_first = logvar - torch.log(-torch.expm1(2 * minus_rate))
        first = _log_normal(sample[:, :1], torch.zeros_like(a), logvar_first)
        rest = _log_normal(sample[:, 1:], a * sample[:, :-1], logvar)
        if mask is None:
            return _sum_per_trial(first) + _sum_per_trial(rest)
        return _sum_per_trial(first, mask[:, :1]) + _sum_per_trial(rest, mask[:, 1:])

    def forward(
        self,
        post_mean: Float[Tensor, "B T U"],
        post_std: Tensor,
        mask: Bool[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, ""]:
        """Estimate the KL divergence by one sample, over the bins where `mask` is true."""
        return _sampled_kl(post_mean, post_std, mask, lambda u: self.log_prob(u, mask))


class MultivariateStudentT(nn.Module):
    """Student-t prior with independent dimensions; location and scale are trained.

    The density of (u - loc) / scale is that of Student's t with `df` degrees of freedom, whose
    heavy tails allow rare large inputs. The KL uses one reparameterised sample of the posterior.

    Parameters
    ----------
    loc : float
        Starting location of every dimension.
    scale : float
        Starting scale of every dimension, above 0.
    df : float
        Degrees of freedom, above 0, fixed.
    shape : int
        Number of dimensions.

    Raises
    ------
    ConfigError
        Where `scale` or `df` is not above 0.
    """

    def __init__(self, loc: float, scale: float, df: float, shape: int) -> None:
        super().__init__()
        self.init_args = {"loc": loc, "scale": scale, "df": df, "shape": shape}
        self.loc = _parameter(float(loc), shape)
        self.logscale = _parameter(_log("scale", scale), shape)
        self.df = number("df of the prior", df, above=0)

    def make_posterior(self, post_loc: Tensor, post_scale: Tensor) -> Distribution:
        """Return a Gaussian posterior over the last axis."""
        return gaussian_posterior(post_loc, post_scale)

    def forward(
        self, post_loc: Tensor, post_scale: Tensor, mask: Bool[Tensor, "B T"] | None = None
    ) -> Float[Tensor, ""]:
        """Estimate the KL divergence by one sample, over the bins where `mask` is true."""
        prior = StudentT(self.df, self.loc, self.logscale.exp(), validate_args=False)
        return _sampled_kl(
            post_loc, post_scale, mask, lambda u: _sum_per_trial(prior.log_prob(u), mask)
        )


def _parameter(value: float, shape: int) -> nn.Parameter:
    return nn.Parameter(torch.full((whole("shape of the prior", shape, least=0),), value))


def _log(name: str, value: float) -> float:
    return math.log(number(f"{name} of the prior", value, above=0))


def _log_normal(x: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    return -0.5 * (logvar + (x - mean) ** 2 * torch.exp(-logvar)) - _HALF_LOG_2PI


def _sum_per_trial(x: Tensor, mask: Tensor | None = None) -> Float[Tensor, " B"]:
    """Sum over all axes but the first; of (B, T, U) over the bins of a mask (B, T)."""
    if mask is not None:
        x = torch.where(mask.unsqueeze(-1), x, 0.0)
    return x.flatten(1).sum(dim=1)


def _sampled_kl(
    mean: Tensor, std: Tensor, mask: Tensor | None, log_prob: Callable[[Tensor], Tensor]
) -> Float[Tensor, ""]:
    """Estimate KL(posterior || prior) by one sample, averaged over trials."""
    noise = torch.randn_like(mean)
    log_q = -_sum_per_trial(0.5 * noise**2 + std.log() + _HALF_LOG_2PI, mask)
    return (log_q - log_prob(mean + std * noise)).mean()
