"""What a read-out must be for a reconstruction's means to start on a line in the factors.

An alignment of sessions says how each channel's mean depends on the factors:
mean = bias + weight @ factors. A read-out gives an observation model's parameters instead, which
are logarithms or logits, and several per channel. The functions here linearise: at zero factors
the mean is `bias`, and its derivative by the factors is `weight`.

A reconstruction of one's own may have a method ``initial_readout(line, stats)`` that does the same;
without one, its first parameter starts as the log mean where it has ``for_counts``, else as the
mean, and the others as they were drawn.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import singledispatch
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from ..data import blocks
from .recons import MSE, Gamma, Gaussian, Poisson, ZeroInflatedGamma

# Far below any real rate. A silent channel has no logarithm.
_LEAST = 1e-4
# A logit beyond this leaves a parameter with next to no gradient.
_MOST_LOGIT = 4.0


class Line(NamedTuple):
    """Means as a linear function of the factors.

    Attributes
    ----------
    weight : ndarray, shape (channels, factors)
    bias : ndarray, shape (channels,)
    """

    weight: np.ndarray
    bias: np.ndarray


class ChannelStats(NamedTuple):
    """Statistics of a session's training data, each of shape (channels,).

    Attributes
    ----------
    mean, variance
    share : fraction of entries that are not zero.
    event_mean, event_variance : of the entries that are not zero.
    """

    mean: np.ndarray
    variance: np.ndarray
    share: np.ndarray
    event_mean: np.ndarray
    event_variance: np.ndarray

    @classmethod
    def of(cls, data: np.ndarray) -> ChannelStats:
        """Compute them from data of shape (trials, bins, channels); NaN is left out.

        The data may be a `StoredArray`: they are gone through twice, block by block.
        """
        n, n_events = (np.zeros(data.shape[-1]) for _ in range(2))
        total, events = (np.zeros(data.shape[-1]) for _ in range(2))
        for flat in _flat_blocks(data):
            there = np.isfinite(flat)
            n += there.sum(axis=0)
            n_events += (there & (flat != 0)).sum(axis=0)
            total += np.where(there, flat, 0.0).sum(axis=0, dtype=np.float64)
        count, event_count = np.maximum(n, 1), np.maximum(n_events, 1)
        mean, event_mean = total / count, total / event_count
        spread = np.zeros_like(mean)
        for flat in _flat_blocks(data):
            there = np.isfinite(flat)
            spread += (np.where(there, flat - mean, 0.0) ** 2).sum(axis=0)
            chosen = there & (flat != 0)
            events += (np.where(chosen, flat - event_mean, 0.0) ** 2).sum(axis=0)
        return cls(mean, spread / count, n_events / count, event_mean, events / event_count)


def _flat_blocks(data: Any) -> Iterator[np.ndarray]:
    return (block.reshape(-1, data.shape[-1]) for _, block in blocks(data))


Blocks = list[Line | None]
"""One line for each parameter of a channel; None leaves a parameter as it was drawn."""


def initial_blocks(recon: nn.Module, line: Line, stats: ChannelStats) -> Blocks:
    """Parameters of an observation model as linear functions of the factors.

    Parameters
    ----------
    recon : Module
    line : Line
        Means as a function of the factors.
    stats : ChannelStats

    Returns
    -------
    list of Line or None, one per parameter of a channel
    """
    stats = ChannelStats(*(values[: len(line.bias)] for values in stats))
    own: Any = getattr(recon, "initial_readout", None)
    return own(line, stats) if own is not None else _blocks(recon, line, stats)


def log_line(line: Line) -> Line:
    """Logarithm of a line, to first order at zero factors."""
    mean = np.maximum(line.bias, _LEAST)
    return Line(line.weight / mean[:, None], np.log(mean))


def _flat(line: Line, value: np.ndarray) -> Line:
    return Line(np.zeros_like(line.weight), value)


@singledispatch
def _blocks(recon: Any, line: Line, stats: ChannelStats) -> Blocks:
    first = log_line(line) if getattr(recon, "for_counts", False) else line
    return [first, *[None] * (int(getattr(recon, "n_params", 1)) - 1)]


@_blocks.register(Poisson)
def _(recon: Poisson, line: Line, stats: ChannelStats) -> Blocks:
    return [log_line(line)]


@_blocks.register(MSE)
def _(recon: MSE, line: Line, stats: ChannelStats) -> Blocks:
    return [line]


@_blocks.register(Gaussian)
def _(recon: Gaussian, line: Line, stats: ChannelStats) -> Blocks:
    return [line, _flat(line, np.log(np.maximum(stats.variance, _LEAST)))]


@_blocks.register(Gamma)
def _(recon: Gamma, line: Line, stats: ChannelStats) -> Blocks:
    """Constant beta = mean / variance; alpha carries the mean alpha / beta."""
    log_beta = np.log(np.maximum(stats.mean, _LEAST) / np.maximum(stats.variance, _LEAST))
    log_mean = log_line(line)
    return [log_mean._replace(bias=log_mean.bias + log_beta), _flat(line, log_beta)]


@_blocks.register(ZeroInflatedGamma)
def _(recon: ZeroInflatedGamma, line: Line, stats: ChannelStats) -> Blocks:
    """Constant gamma distribution of events; their probability q carries the mean q * event."""
    size = np.maximum(stats.event_mean - recon.gamma_loc, _LEAST)
    rate = size / np.maximum(stats.event_variance, _LEAST)
    scale = recon.scale.detach().clamp_min(1e-5).cpu().numpy().astype(np.float64)
    alpha = _sigmoid(_logit(size * rate / scale[0])) * scale[0]
    # Where alpha is out of the sigmoid's reach, beta keeps the mean of the events.
    logit_beta = _logit(alpha / size / scale[1])
    event = alpha / (_sigmoid(logit_beta) * scale[1]) + recon.gamma_loc
    logit_q = _logit(np.maximum(line.bias, _LEAST) / event)
    q = _sigmoid(logit_q)
    weight = line.weight / (event * q * (1 - q))[:, None]
    return [
        _flat(line, _logit(alpha / scale[0])),
        _flat(line, logit_beta),
        Line(weight, logit_q),
    ]


def _logit(share: np.ndarray) -> np.ndarray:
    edge = _sigmoid(np.array(_MOST_LOGIT))
    share = np.clip(share, 1 - edge, edge)
    return np.asarray(np.log(share) - np.log1p(-share))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-x)))


def set_blocks(layer: nn.Linear, blocks: Blocks) -> None:
    """Write the lines into a read-out of k blocks of channels; a line may be of the first ones."""
    n_channels = layer.out_features // len(blocks)
    with torch.no_grad():
        for i, line in enumerate(blocks):
            if line is not None:
                rows = slice(i * n_channels, i * n_channels + len(line.bias))
                layer.weight[rows].copy_(torch.from_numpy(line.weight))
                layer.bias[rows].copy_(torch.from_numpy(line.bias))
