"""Random masks, drawn in bulk, and gradients that they scale.

Each random entry takes 16 random bits: to draw a float for each would be most of the work. A rate
is met to 1 / 65536, and 0 exactly. Rates are scalar tensors, so that the members of a population
may differ in them. Masks are numbers, not truth values: torch multiplies by a float mask several
times faster than it selects by a bool one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ..kernels import c_library
from ..kernels.operators import one_by_one, operator

_LEVELS = 2**16
_PER_WORD = 4  # 16-bit numbers in one of 64 bits


def dropout_mask(shape: Sequence[int], rate: Tensor) -> Tensor:
    """Draw an inverted-dropout mask: 0 with probability `rate`, else 1 / (1 - rate)."""
    return _masks(shape, rate, True)[0]


def random_mask(shape: Sequence[int], rate: Tensor) -> Tensor:
    """Draw a mask that is 1 with probability `rate`, else 0."""
    return _masks(shape, rate, False)[0]


def coordinated_masks(shape: Sequence[int], rate: Tensor) -> tuple[Tensor, Tensor]:
    """Draw an inverted-dropout mask, and the one that is 1 where that is 0, else 0."""
    scaled, dropped = _masks(shape, rate, True, False)
    return scaled, dropped


def channel_masks(n_trials: int, n_channels: int, rate: Tensor) -> tuple[Tensor, Tensor]:
    """Draw which channels of a trial are kept, and the factor that keeps the mean: (B, 1, N), ().

    A channel goes with probability `rate`; of a trial that would lose all, the channel with the
    largest draw stays.
    """
    drawn = torch.rand(n_trials, 1, n_channels, device=rate.device)
    # To draw again until one stays has no fixed length, which a population's one graph needs.
    kept = (drawn >= rate) | (drawn == drawn.amax(dim=-1, keepdim=True))
    return kept.to(rate.dtype), 1 / (1 - rate + rate**n_channels / n_channels)


def _masks(shape: Sequence[int], rate: Tensor, *kinds: bool) -> list[Tensor]:
    """Return masks of one draw: scaled where entries are kept, or 1 where they are dropped."""
    if c_library.fits(rate):
        # Entry by entry from a seed, so that the same seed gives masks of the same draw.
        seed = _draw(1, rate)
        return [_mask(seed, rate, tuple(shape), is_scaled) for is_scaled in kinds]
    size = math.prod(shape)
    bits = _Numbers.apply(_draw(-(-size // _PER_WORD), rate))[:size]
    # The bits are a number from -2^15 to 2^15 - 1.
    kept = (bits >= (_threshold(rate) - _LEVELS // 2).to(torch.int16)).view(*shape)
    return [kept * (1 / (1 - rate)) if x else (~kept).to(rate.dtype) for x in kinds]


def _draw(n_words: int, rate: Tensor) -> Tensor:
    return torch.randint(-(2**63), 2**63 - 1, (n_words,), device=rate.device)


class _Numbers(Function):
    """The 16-bit numbers of 64-bit words, (n,) to (4 n,), without a copy."""

    @staticmethod
    def forward(words: Tensor) -> Tensor:
        return words.view(torch.int16)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(output)

    # torch 2.6 has no rule of its own for a view of another type.
    @staticmethod
    def vmap(info: Any, in_dims: Any, words: Tensor) -> tuple[Tensor, int]:
        return _Numbers.apply(words.movedim(in_dims[0], 0).contiguous()), 0


def _threshold(rate: Tensor) -> Tensor:
    return (rate * _LEVELS).round().clamp(max=_LEVELS - 1)


def scaled_gradient(x: Tensor, mask: Tensor) -> Tensor:
    """Return `x` as it is; its gradient is multiplied by `mask` (same shape)."""
    return _ScaledGradient.apply(x, mask)


class _ScaledGradient(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, mask: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.saved_tensors[0], None


class _Mask(Function):
    """Fill a mask from a seed that torch's generator drew, one for each member of a population."""

    @staticmethod
    def forward(seed: Tensor, rate: Tensor, shape: Sequence[int], is_scaled: bool) -> Tensor:
        out = torch.empty(shape, dtype=rate.dtype)
        kept, dropped = (float(1 / (1 - rate)), 0.0) if is_scaled else (0.0, 1.0)
        c_library.fill_mask(out, int(seed), int(_threshold(rate)), kept, dropped)
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
        return None, None, None, None


_mask = operator(
    _Mask,
    "mask(Tensor seed, Tensor rate, SymInt[] shape, bool is_scaled) -> Tensor",
    lambda seed, rate, shape, is_scaled: rate.new_empty(shape),
    one_by_one,
)
