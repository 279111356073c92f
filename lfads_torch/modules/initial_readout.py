"""How a read-out starts, so that a reconstruction's means lie on a line in the factors.

An alignment of sessions says how each channel's mean depends on the factors:
mean = bias + weight @ factors. A read-out gives an observation model's parameters instead, which
are logarithms or logits, and several per channel. A reconstruction says by its method
``initial_readout(line, stats)`` which parameters have these means, linearised: at zero factors the
mean is `bias`, and its derivative by the factors is `weight`. Without that method, its first
parameter starts as the log mean where it has ``for_counts``, else as the mean, and the others as
they were drawn.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from ..data import blocks

# Far below any real rate. A silent channel has no logarithm.
LEAST = 1e-4
# A logit beyond this leaves a parameter with next to no gradient.
_MOST_LOGIT = 4.0


class Line(NamedTuple):
    """Means (channels,) as a linear function of the factors."""

    weight: np.ndarray  # (channels, factors)
    bias: np.ndarray  # (channels,)


Blocks = list[Line | None]
"""One line for each parameter of a channel; None leaves a parameter as it was drawn."""


class ChannelStats(NamedTuple):
    """Statistics of a session's training data, each of shape (channels,)."""

    mean: np.ndarray
    variance: np.ndarray
    share: np.ndarray  # fraction of entries that are not zero: events
    event_mean: np.ndarray
    event_variance: np.ndarray

    @classmethod
    def of(cls, data: np.ndarray) -> ChannelStats:
        """Compute them from data (trials, bins, channels), block by block; NaN is left out."""
        n, n_events, total = (np.zeros(data.shape[-1]) for _ in range(3))
        for flat in _flat_blocks(data):
            observed = np.isfinite(flat)
            n += observed.sum(axis=0)
            n_events += (observed & (flat != 0)).sum(axis=0)
            total += np.where(observed, flat, 0.0).sum(axis=0, dtype=np.float64)
        count, event_count = np.maximum(n, 1), np.maximum(n_events, 1)
        mean, event_mean = total / count, total / event_count
        # A second pass about the means: the difference of large sums of squares would lose digits.
        spread, event_spread = np.zeros_like(mean), np.zeros_like(mean)
        for flat in _flat_blocks(data):
            observed = np.isfinite(flat)
            spread += (np.where(observed, flat - mean, 0.0) ** 2).sum(axis=0)
            is_event = observed & (flat != 0)
            event_spread += (np.where(is_event, flat - event_mean, 0.0) ** 2).sum(axis=0)
        return cls(mean, spread / count, n_events / count, event_mean, event_spread / event_count)


def _flat_blocks(data: Any) -> Iterator[np.ndarray]:
    return (block.reshape(-1, data.shape[-1]) for _, block in blocks(data))


def initial_blocks(recon: nn.Module, line: Line, stats: ChannelStats) -> Blocks:
    """Return the parameters of an observation model as lines in the factors, one per parameter."""
    stats = ChannelStats(*(values[: len(line.bias)] for values in stats))
    if hasattr(recon, "initial_readout"):
        method: Any = recon.initial_readout
        return method(line, stats)
    first = log_line(line) if getattr(recon, "for_counts", False) else line
    return [first, *[None] * (int(getattr(recon, "n_params", 1)) - 1)]


def set_blocks(layer: nn.Linear, blocks: Blocks) -> None:
    """Write the lines into a read-out of k blocks of channels; a line may be of the first ones."""
    n_channels = layer.out_features // len(blocks)
    for i, line in enumerate(blocks):
        if line is not None:
            rows = slice(i * n_channels, i * n_channels + len(line.bias))
            with torch.no_grad():
                layer.weight[rows].copy_(torch.from_numpy(line.weight))
                layer.bias[rows].copy_(torch.from_numpy(line.bias))


def log_line(line: Line) -> Line:
    """Return the logarithm of a line, to first order at zero factors."""
    mean = np.maximum(line.bias, LEAST)
    return Line(line.weight / mean[:, None], np.log(mean))


def flat_line(line: Line, value: np.ndarray) -> Line:
    """Return a line of the same sizes that is constant."""
    return Line(np.zeros_like(line.weight), value)


def logit(share: np.ndarray) -> np.ndarray:
    """Return the logit, within limits that leave it a gradient."""
    edge = sigmoid(np.array(_MOST_LOGIT))
    share = np.clip(share, 1 - edge, edge)
    return np.asarray(np.log(share) - np.log1p(-share))


def sigmoid(x: np.ndarray) -> np.ndarray:
    """Return 1 / (1 + exp(-x))."""
    return np.asarray(1 / (1 + np.exp(-x)))
