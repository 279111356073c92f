"""Random masks, drawn in bulk."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_WORDS = 4  # 16-bit numbers in one of 64 bits


def keep_mask(shape: Sequence[int], rate: Tensor) -> Tensor:
    """Draw a mask that is False with probability `rate`.

    Each entry takes 16 random bits, a quarter of a 64-bit number: drawing a float for each would be
    the larger part of the work. The rate is met to 1 / 65536, and 0 exactly.

    Parameters
    ----------
    shape : sequence of int
    rate : Tensor
        A scalar in [0, 1], as a tensor, so that every member of a population may have its own.

    Returns
    -------
    Tensor of bool
    """
    size = math.prod(shape)
    bits = torch.randint(-(2**63), 2**63 - 1, (-(-size // _WORDS),), device=rate.device)
    threshold = (rate * 65536).round().clamp(max=65535).sub(32768).to(torch.int16)
    return (bits.view(torch.int16)[:size] >= threshold).view(*shape)


def dropout_mask(shape: Sequence[int], rate: Tensor) -> Tensor:
    """Draw an inverted-dropout mask: 0 with probability `rate`, else 1 / (1 - rate)."""
    return keep_mask(shape, rate) * (1 / (1 - rate))
