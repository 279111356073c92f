"""The Poisson likelihood of spikes and the sums behind bits per spike, each in one pass.

In torch operations each takes several passes over trials x bins x channels; for float32 on the CPU
they run in C (``native_elementwise.c``). All can be mapped by `torch.func.vmap`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float, Num
from torch import Tensor
from torch.autograd import Function

from . import c_library
from .operators import elementwise, one_by_one, operator


def poisson_loss(
    log_rates: Float[Tensor, "*batch N"], counts: Float[Tensor, "*batch N"]
) -> Float[Tensor, "*batch N"]:
    """Compute ``exp(log_rate) - count log_rate + log count!``, element by element.

    The last term is Stirling's approximation for counts above 1, and 0 for others; counts get no
    gradient.
    """
    return _poisson_loss(log_rates, counts)


def spike_sums(
    log_rates: Num[Tensor, "*batch N"], counts: Num[Tensor, "*batch N"]
) -> Float[Tensor, "3 N"]:
    """Count observed entries and sum spikes and ``exp(log_rate) - count log_rate``, per channel.

    NaN counts are missing and ignored. The sums are float64 where the device has it.
    """
    return _spike_sums(log_rates, counts)


def wide(tensor: Tensor) -> Tensor:
    """Return `tensor` in float64, or in float32 where the device has no wider type."""
    return tensor.to(torch.float32 if tensor.device.type == "mps" else torch.float64)


def channel_sum(tensor: Tensor) -> Tensor:
    """Sum over all axes but the last, in the type of `wide`."""
    return wide(tensor.reshape(-1, tensor.shape[-1]).sum(0))


class _PoissonGradient(Function):
    """``grad (exp(log_rate) - count)``, which can itself be differentiated."""

    @staticmethod
    def forward(grad: Tensor, log_rates: Tensor, counts: Tensor) -> Tensor:
        if c_library.fits(log_rates) and c_library.fits(counts):
            return c_library.poisson_gradient(grad, log_rates, counts)
        return grad * (log_rates.exp() - counts)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        grad, log_rates, counts = ctx.saved_tensors
        rates = log_rates.exp()
        return grads[0] * (rates - counts), grads[0] * grad * rates, None


_poisson_gradient = operator(
    _PoissonGradient,
    "poisson_gradient(Tensor grad, Tensor log_rates, Tensor counts) -> Tensor",
    lambda grad, log_rates, counts: torch.empty_like(log_rates),
    elementwise,
)


class _PoissonLoss(Function):
    @staticmethod
    def forward(log_rates: Tensor, counts: Tensor) -> Tensor:
        if c_library.fits(log_rates) and c_library.fits(counts):
            return c_library.poisson_loss(log_rates, counts)
        return log_rates.exp() - counts * log_rates + _log_factorial(counts)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _poisson_gradient(grads[0], *ctx.saved_tensors), None


_poisson_loss = operator(
    _PoissonLoss,
    "poisson_loss(Tensor log_rates, Tensor counts) -> Tensor",
    lambda log_rates, counts: torch.empty_like(log_rates),
    elementwise,
)


def _log_factorial(counts: Tensor) -> Tensor:
    """Approximate log count! as `poisson_loss` says."""
    if counts.device.type != "cpu":
        # To pick the counts above 1 would make the host wait for their number.
        return torch.where(counts > 1, _stirling(counts.clamp_min(1)), 0.0)
    # Counts are mostly 0 and 1; two logarithms of every entry would outweigh the likelihood.
    flat = counts.flatten()
    many = (flat > 1).nonzero().squeeze(1)
    return torch.zeros_like(flat).index_copy_(0, many, _stirling(flat[many])).view(counts.shape)


def _stirling(x: Tensor) -> Tensor:
    return x * x.log() - x + 0.5 * (2 * math.pi * x).log()


class _SpikeSums(Function):
    @staticmethod
    def forward(log_rates: Tensor, counts: Tensor) -> Tensor:
        if counts.device.type == "cpu":
            # Nearly all data are complete; to look for NaN only in the sums is quicker.
            if c_library.fits(log_rates) and c_library.fits(counts) and counts.ndim == 3:
                spikes, nll = c_library.spike_sums(log_rates, counts)
            else:
                spikes = channel_sum(counts)
                nll = channel_sum(log_rates.exp()) - channel_sum(counts * log_rates)
            if nll.isfinite().all():
                n = torch.full_like(spikes, counts[..., 0].numel())
                return torch.stack([n, spikes, nll])
        observed = ~torch.isnan(counts)
        counts = torch.where(observed, counts, 0.0)
        if c_library.fits(log_rates) and c_library.fits(counts) and counts.ndim == 3:
            # A rate of exp(-80) per bin adds nothing to the sum, even over a billion bins.
            spikes, nll = c_library.spike_sums(log_rates.masked_fill(~observed, -80.0), counts)
            if nll.isfinite().all():
                return torch.stack([channel_sum(observed.to(counts.dtype)), spikes, nll])
        # A log rate of -inf is legal where no spike is; clamped, 0 * -inf is no NaN.
        log_rates = log_rates.clamp(min=torch.finfo(log_rates.dtype).min)
        terms = torch.where(observed, log_rates.exp() - counts * log_rates, 0.0)
        return torch.stack([channel_sum(x) for x in (observed, counts, terms)])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None]:
        return None, None


_spike_sums = operator(
    _SpikeSums,
    "spike_sums(Tensor log_rates, Tensor counts) -> Tensor",
    lambda log_rates, counts: wide(counts.new_empty(3, counts.shape[-1])),
    one_by_one,
)
