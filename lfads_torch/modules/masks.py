"""Random masks, drawn in bulk.

Each entry takes 16 random bits: drawing a float for each would be the larger part of the work.
A rate is met to 1 / 65536, and 0 exactly. Rates are scalar tensors, so that every member of a
population may have its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ..kernels import native

_LEVELS = 2**16
_PER_WORD = 4  # 16-bit numbers in one of 64 bits


def keep_mask(shape: Sequence[int], rate: Tensor) -> Tensor:
    """Draw a mask of bool that is False with probability `rate`."""
    if native.fits(rate):
        return _NativeMask.apply(_draw(1, rate), rate, tuple(shape), torch.bool)
    size = math.prod(shape)
    bits = _draw(-(-size // _PER_WORD), rate).view(torch.int16)[:size]
    return (bits >= (_threshold(rate) - _LEVELS // 2).to(torch.int16)).view(*shape)


def dropout_mask(shape: Sequence[int], rate: Tensor) -> Tensor:
    """Draw an inverted-dropout mask: 0 with probability `rate`, else 1 / (1 - rate)."""
    if native.fits(rate):
        return _NativeMask.apply(_draw(1, rate), rate, tuple(shape), rate.dtype)
    return keep_mask(shape, rate) * (1 / (1 - rate))


def _draw(n_words: int, rate: Tensor) -> Tensor:
    return torch.randint(-(2**63), 2**63 - 1, (n_words,), device=rate.device)


def _threshold(rate: Tensor) -> Tensor:
    return (rate * _LEVELS).round().clamp(max=_LEVELS - 1)


class _NativeMask(Function):
    """A mask from a seed that torch's generator drew; each member of a population has its own."""

    @staticmethod
    def forward(seed: Tensor, rate: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        out = torch.empty(shape, dtype=dtype)
        threshold = int(_threshold(rate))
        scale = float(1 / (1 - rate)) if dtype.is_floating_point else 1.0
        native.fill_mask(out, int(seed), threshold, scale)
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(info: Any, in_dims: Any, seed: Tensor, rate: Tensor, *rest: Any) -> tuple[Tensor, int]:
        rows = [
            _NativeMask.apply(
                seed if in_dims[0] is None else seed.select(in_dims[0], i),
                rate if in_dims[1] is None else rate.select(in_dims[1], i),
                *rest,
            )
            for i in range(info.batch_size)
        ]
        return torch.stack(rows), 0
