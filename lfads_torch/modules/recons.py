"""Observation models: how the read-out's numbers describe the data, and the loss per element.

Your own observation model is an object with four members: ``n_params`` (parameters per channel),
``reshape_output_params``, ``compute_loss(data, output_params)`` (one number per trial, bin and
channel) and ``compute_means(output_params)``. `Reconstruction` gives all but the two equations
(``element_loss`` and ``compute_means``).

``compute_loss`` never sees missing data: `observed_loss` replaces them with ``fill_value``, a legal
number (0 where your own model does not say), and leaves their loss out.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..data import find_sessions, session_in_use
from ..errors import DataError
from ..kernels.likelihood import poisson_loss
from .initial_readout import (
    LEAST,
    Blocks,
    ChannelStats,
    Line,
    flat_line,
    log_line,
    logit,
    sigmoid,
)


# No module itself, so that your own may name it before or after `nn.Module` among its bases.
class Reconstruction:
    """Base of the observation models, in addition to `nn.Module`.

    Attributes
    ----------
    n_params : int
        Parameters per channel.
    for_counts : bool
        Whether the data are spike counts and the first parameter their log rate, so that bits per
        spike mean something.
    fill_value : float
        A legal number that stands in for missing data, whose loss is left out.
    support : str
        Legal data, in words.
    remedy : str
        What to do with other data, in words.
    data_checked : bool
        Set by the model once a whole data set has passed `check_data`; until then every call of
        `compute_loss` checks its data.
    """

    n_params = 1
    for_counts = False
    fill_value = 0.0
    support = "finite numbers"
    remedy = "remove or replace them"
    data_checked = False

    def reshape_output_params(
        self, output_params: Float[Tensor, "B T kN"]
    ) -> Float[Tensor, "B T N k"]:
        """Take the read-out's k blocks of N channels apart.

        Parameters
        ----------
        output_params : Tensor, shape (B, T_r, k N_r)
            What a read-out returns: first parameter of all channels, second of all, and so on.

        Returns
        -------
        Tensor, shape (B, T_r, N_r, k)
        """
        return output_params.unflatten(-1, (self.n_params, -1)).transpose(-1, -2)

    def compute_loss(
        self, data: Float[Tensor, "B T N"], output_params: Float[Tensor, "B T N k"]
    ) -> Float[Tensor, "B T N"]:
        """Compute the loss per trial, bin and channel.

        Parameters
        ----------
        data : Tensor, shape (B, T_r, N_r)
            Without missing entries.
        output_params : Tensor, shape (B, T_r, N_r, k)
            As `reshape_output_params` returns them.

        Returns
        -------
        Tensor, shape (B, T_r, N_r)

        Raises
        ------
        DataError
            Where data lie outside the support.
        """
        self._check_once(data)
        return self.element_loss(data, output_params)

    def _check_once(self, data: Tensor) -> None:
        # A look through every batch would cost as much as the loss of most models.
        if not self.data_checked:
            self.check_data(data, "data")

    def element_loss(self, data: Tensor, output_params: Tensor) -> Tensor:
        """Compute the equation of the loss, for legal data."""
        raise NotImplementedError

    def observed_loss(
        self,
        data: Float[Tensor, "B T N"],
        observed: Bool[Tensor, "B T N"],
        output_params: Float[Tensor, "B T N k"],
    ) -> Float[Tensor, "B T N"]:
        """Compute the loss of data of which some are missing.

        Parameters
        ----------
        data : Tensor, shape (B, T_r, N_r)
            Missing entries may be anything.
        observed : Tensor of bool, shape (B, T_r, N_r)
            False where an entry is missing.
        output_params : Tensor, shape (B, T_r, N_r, k)

        Returns
        -------
        Tensor, shape (B, T_r, N_r)
            0 where an entry is missing.
        """
        loss = self.compute_loss(torch.where(observed, data, self.fill_value), output_params)
        return torch.where(observed, loss, 0.0)

    def compute_means(self, output_params: Float[Tensor, "B T N k"]) -> Float[Tensor, "B T N"]:
        """Compute the mean of the data; for spikes, the rate per bin.

        Parameters
        ----------
        output_params : Tensor, shape (B, T_r, N_r, k)

        Returns
        -------
        Tensor, shape (B, T_r, N_r)
        """
        raise NotImplementedError

    def is_legal(self, data: Tensor) -> Tensor:
        """Return whether each entry of finite data lies in the support."""
        return torch.ones_like(data, dtype=torch.bool)

    def check_data(self, data: Tensor, where: str, allow_nan: bool = False) -> None:
        """Refuse data outside the support.

        Parameters
        ----------
        data : Tensor, shape (B, T_r, N_r)
        where : str
            Name of the data for the message, such as file and key.
        allow_nan : bool
            Whether NaN may mark missing data.

        Raises
        ------
        DataError
            It names the channels, the count of illegal values and the remedy.
        """
        missing = data.isnan()
        if not allow_nan and missing.any():
            raise DataError(
                f"{where}: {_count(missing)} are NaN, which marks missing entries, and these have "
                "no loss: give observed_loss the mask of observed entries, or a SessionBatch its "
                "lengths"
            )
        bad = ~missing & ~(data.isfinite() & self.is_legal(data))
        if bad.any():
            example = data[bad][0].item()
            raise DataError(
                f"{where}: {_count(bad)} are not legal under {type(self).__name__} "
                f"(for example {example:g}), which takes {self.support}; {self.remedy}"
            )

    def for_channels(self, n_channels: int) -> Reconstruction:
        """Return a copy for a session of `n_channels` channels."""
        return copy.deepcopy(self)

    def compute_l2(self) -> Tensor | float:
        """Return the penalty on its parameters, which is added to the L2 term as it is."""
        return 0.0


class _FirstIsMean(Reconstruction, nn.Module):
    """An observation model whose first parameter is the mean."""

    def compute_means(self, output_params: Tensor) -> Tensor:
        """Return the first parameter."""
        return output_params[..., 0]


class Poisson(Reconstruction, nn.Module):
    """Spike counts x with log rate r per bin: the loss is exp(r) - r x + log x!.

    log x! is Stirling's approximation x log x - x + 0.5 log(2 pi x) for x > 1, and 0 for others.
    Support: whole numbers from 0. Source: Pandarinath et al. 2018 (doi:10.1038/s41592-018-0109-9).
    """

    for_counts = True
    support = "whole numbers >= 0"
    remedy = (
        "bin spikes into counts without smoothing or scaling, or use another reconstruction "
        "(Gaussian for smoothed data, Gamma or ZeroInflatedGamma for calcium or EMG)"
    )

    def is_legal(self, data: Tensor) -> Tensor:
        """Return whether entries are counts."""
        return (data >= 0) & (data == data.floor())

    def element_loss(self, data: Tensor, output_params: Tensor) -> Tensor:
        """Compute the negative log likelihood."""
        return poisson_loss(output_params.squeeze(-1), data)

    def compute_means(self, output_params: Tensor) -> Tensor:
        """Compute rates per bin."""
        return output_params[..., 0].exp()


class PoissonBPS(Poisson):
    """Spike counts x with log rate r per bin: the loss is minus the bits per spike.

    (L(r) - L(log m)) / (log 2 * mean count), where L(r) = exp(r) - r x and m is the channel's mean
    count per bin in this batch. Support: whole numbers from 0. Source: Pei et al. 2021
    (arXiv:2109.04463), the score of the Neural Latents Benchmark.
    """

    def element_loss(self, data: Tensor, output_params: Tensor) -> Tensor:
        """Compute the Poisson loss relative to the channel's mean rate, in bits per spike."""
        return _bits_lost(data, output_params[..., 0], data.mean(dim=(0, 1)), data.mean())

    def observed_loss(self, data: Tensor, observed: Tensor, output_params: Tensor) -> Tensor:
        """Compute `element_loss`; mean rates are those of the observed entries."""
        data = torch.where(observed, data, 0.0)
        self._check_once(data)
        seen = observed.to(data.dtype).sum(dim=(0, 1))
        rate = data.sum(dim=(0, 1)) / seen.clamp_min(1)
        mean = data.sum() / seen.sum().clamp_min(1)
        return torch.where(observed, _bits_lost(data, output_params[..., 0], rate, mean), 0.0)


def _bits_lost(data: Tensor, log_rate: Tensor, rate: Tensor, mean: Tensor) -> Tensor:
    """Bits that a model loses to the channels' mean rates (N,), per spike of a mean count."""
    null = rate - torch.special.xlogy(data, rate)
    model = log_rate.exp() - data * log_rate
    # A batch without spikes has no bits per spike; the floor keeps its loss finite.
    return (model - null) / (math.log(2) * mean.clamp_min(1e-6))


class MSE(_FirstIsMean):
    """Any numbers x with mean m: the loss is (x - m)^2."""

    def element_loss(self, data: Tensor, output_params: Tensor) -> Tensor:
        """Compute the squared error."""
        return (data - output_params[..., 0]) ** 2


class Gaussian(_FirstIsMean):
    """Any numbers x with mean m and log variance v: the loss is 0.5 (v + (x - m)^2 / exp(v)).

    That is the negative log likelihood without the constant 0.5 log 2 pi. The variance has a floor
    of 1e-6.
    """

    n_params = 2

    def element_loss(self, data: Tensor, output_params: Tensor) -> Tensor:
        """Compute the negative log likelihood without its constant."""
        mean, logvar = output_params.unbind(-1)
        # The gradient passes the floor, so that a variance that got too small can grow again.
        logvar = logvar + (logvar.clamp_min(math.log(1e-6)) - logvar).detach()
        return 0.5 * (logvar + (data - mean) ** 2 * torch.exp(-logvar))

    def initial_readout(self, line: Line, stats: ChannelStats) -> Blocks:
        """Start from the channel's variance."""
        return [line, flat_line(line, np.log(np.maximum(stats.variance, LEAST)))]


class Gamma(Reconstruction, nn.Module):
    """Positive data x, such as rectified EMG, with parameters log alpha and log beta (the rate).

    The loss is -alpha log beta - (alpha - 1) log x + beta x + log Gamma(alpha), the mean
    alpha / beta. Support: numbers above 0; add a small offset to zeros, or use `ZeroInflatedGamma`.
    Source: Wimalasena et al. 2022 (doi:10.1088/1741-2552/ac6369).
    """

    n_params = 2
    fill_value = 1.0
    support = "numbers > 0"
    remedy = "add a small offset to zeros, or use ZeroInflatedGamma"

    def is_legal(self, data: Tensor) -> Tensor:
        """Return whether entries are positive."""
        return data > 0

    def _logs(self, output_params: Tensor) -> tuple[Tensor, Tensor]:
        # float32 has no numbers for the likelihood far beyond exp(40).
        log_alpha, log_beta = output_params.clamp(-40, 40).unbind(-1)
        return log_alpha, log_beta

    def element_loss(self, data: Tensor, output_params: Tensor) -> Tensor:
        """Compute the negative log likelihood."""
        log_alpha, log_beta = self._logs(output_params)
        return -_log_gamma(data, log_alpha.exp(), log_beta.exp(), log_beta)

    def compute_means(self, output_params: Tensor) -> Tensor:
        """Compute alpha / beta."""
        log_alpha, log_beta = self._logs(output_params)
        return (log_alpha - log_beta).exp()

    def initial_readout(self, line: Line, stats: ChannelStats) -> Blocks:
        """Start from a constant beta = mean / variance; alpha carries the mean alpha / beta."""
        log_beta = np.log(np.maximum(stats.mean, LEAST) / np.maximum(stats.variance, LEAST))
        log_mean = log_line(line)
        return [log_mean._replace(bias=log_mean.bias + log_beta), flat_line(line, log_beta)]


class ZeroInflatedGamma(Reconstruction, nn.Module):
    """Deconvolved calcium events x: 0 with probability 1 - q, else a gamma number above a smallest.

    The sigmoids of the three parameters per channel are s_a, s_b and q; alpha = s_a A_n and
    beta = s_b B_n with trainable scales A_n, B_n of each channel n. The loss is -log(1 - q) where
    x = 0, else -log q - log gamma(x - gamma_loc; alpha, beta); the mean is
    q (alpha / beta + gamma_loc). Support: zeros, and numbers above gamma_loc.
    Source: Zhu et al. 2022 (RADICaL, doi:10.1038/s41593-022-01189-0).

    Parameters
    ----------
    recon_dim : int
        Number of channels.
    gamma_loc : float
        Smallest event.
    scale_init : float
        Starting scales A_n and B_n.
    scale_prior : float
        Value that the penalty draws the scales to.
    scale_penalty : float
        Weight of the penalty 0.5 scale_penalty sum (scale - scale_prior)^2.
    """

    n_params = 3

    def __init__(
        self,
        recon_dim: int,
        gamma_loc: float,
        scale_init: float,
        scale_prior: float,
        scale_penalty: float,
    ) -> None:
        super().__init__()
        self.recon_dim = recon_dim
        self.gamma_loc = float(gamma_loc)
        self.scale_init = float(scale_init)
        self.scale_prior = float(scale_prior)
        self.scale_penalty = float(scale_penalty)
        self.support = f"zeros and numbers > gamma_loc = {self.gamma_loc:g}"
        self.remedy = "set negative values and events below gamma_loc to zero, or lower gamma_loc"
        self.scale = nn.Parameter(torch.full((2, recon_dim), self.scale_init))

    def for_channels(self, n_channels: int) -> ZeroInflatedGamma:
        """Return the same model for a session of `n_channels` channels."""
        return ZeroInflatedGamma(
            n_channels, self.gamma_loc, self.scale_init, self.scale_prior, self.scale_penalty
        )

    def is_legal(self, data: Tensor) -> Tensor:
        """Return whether entries are zero or above the smallest event."""
        return (data == 0) | (data > self.gamma_loc)

    def _distribution(self, output_params: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # The floor keeps the logarithms, and the gradient of log Gamma(alpha), finite.
        s = output_params.sigmoid().clamp_min(1e-5)
        # Training may take a scale below zero, where no gamma distribution exists.
        scale = self.scale.clamp_min(1e-5)
        return s[..., 0] * scale[0], s[..., 1] * scale[1], s[..., 2]

    def element_loss(self, data: Tensor, output_params: Tensor) -> Tensor:
        """Compute the negative log likelihood."""
        alpha, beta, q = self._distribution(output_params)
        event = data != 0
        # Without an event, any legal number keeps the unused branch's gradient finite.
        size = torch.where(event, data - self.gamma_loc, 1.0)
        log_event = q.log() + _log_gamma(size, alpha, beta, beta.log())
        # log(1 - q) from the logit, exact also where q rounds to one.
        log_none = torch.nn.functional.logsigmoid(-output_params[..., 2])
        return -torch.where(event, log_event, log_none)

    def compute_means(self, output_params: Tensor) -> Tensor:
        """Compute q (alpha / beta + gamma_loc)."""
        alpha, beta, q = self._distribution(output_params)
        return q * (alpha / beta + self.gamma_loc)

    def initial_readout(self, line: Line, stats: ChannelStats) -> Blocks:
        """Start from a constant distribution of events; q carries the mean q * event."""
        size = np.maximum(stats.event_mean - self.gamma_loc, LEAST)
        rate = size / np.maximum(stats.event_variance, LEAST)
        scale = self.scale.detach().clamp_min(1e-5).cpu().numpy().astype(np.float64)
        alpha = sigmoid(logit(size * rate / scale[0])) * scale[0]
        # Where alpha is out of the sigmoid's reach, beta keeps the mean of the events.
        logit_beta = logit(alpha / size / scale[1])
        event = alpha / (sigmoid(logit_beta) * scale[1]) + self.gamma_loc
        logit_q = logit(np.maximum(line.bias, LEAST) / event)
        q = sigmoid(logit_q)
        weight = line.weight / (event * q * (1 - q))[:, None]
        return [
            flat_line(line, logit(alpha / scale[0])),
            flat_line(line, logit_beta),
            Line(weight, logit_q),
        ]

    def compute_l2(self) -> Tensor:
        """Return 0.5 scale_penalty sum (scale - scale_prior)^2."""
        return 0.5 * self.scale_penalty * ((self.scale - self.scale_prior) ** 2).sum()


class MultisessionReconstruction(nn.ModuleList):
    """One observation model per session file, in the order of the sorted paths.

    Parameters
    ----------
    datafile_pattern : str
        Glob pattern of the session files.
    recon : Reconstruction
        Copied for every session, for its number of channels.

    Raises
    ------
    DataError
        Where no file matches, or one cannot be read.
    """

    def __init__(self, datafile_pattern: str, recon: nn.Module) -> None:
        sessions = [session_in_use(path) for path in find_sessions(datafile_pattern)]
        super().__init__(
            recon_for_channels(recon, s.splits["train"].recon_data.shape[2]) for s in sessions
        )


def observed_loss(
    recon: Any, data: Tensor, observed: Tensor | None, output_params: Tensor
) -> Tensor:
    """Compute `Reconstruction.observed_loss`, also of your own model; `observed` may be None."""
    if observed is None:
        return recon.compute_loss(data, output_params)
    if hasattr(recon, "observed_loss"):
        return recon.observed_loss(data, observed, output_params)
    filled = torch.where(observed, data, getattr(recon, "fill_value", 0.0))
    return torch.where(observed, recon.compute_loss(filled, output_params), 0.0)


def recon_for_channels(recon: Any, n_channels: int) -> Any:
    """Return a copy of an observation model, also your own, for a session of `n_channels`."""
    if isinstance(recon, Reconstruction):
        return recon.for_channels(n_channels)
    return copy.deepcopy(recon)


def _log_gamma(x: Tensor, alpha: Tensor, beta: Tensor, log_beta: Tensor) -> Tensor:
    """Log density of the gamma distribution with shape alpha and rate beta."""
    return alpha * log_beta + (alpha - 1) * x.log() - beta * x - torch.lgamma(alpha)


def _count(bad: Tensor) -> str:
    """Say how many values are bad, and in which channels."""
    channels = bad.flatten(0, -2).any(dim=0).nonzero().flatten().tolist()
    named = ", ".join(map(str, channels[:8])) + (", ..." if len(channels) > 8 else "")
    plural = "s" if len(channels) > 1 else ""
    return f"{int(bad.sum())} values in channel{plural} {named}"
