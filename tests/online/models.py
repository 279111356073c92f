"""Small causal and other models with weights that matter, for the tests of streams and exports."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lfads_torch.model import LFADS
from tests.small import DIMS


def model(n_bins: int = 30, *, n_channels: int = 6, seed: int = 0, **arguments: Any) -> LFADS:
    """Return an untrained model in which nothing is zero, initial states and biases included."""
    torch.manual_seed(seed)
    sizes = {"encod_data_dim": n_channels, "encod_seq_len": n_bins, "dropout_rate": 0.2}
    lfads = LFADS(**{**DIMS, **sizes, **arguments})
    with torch.no_grad():
        for name, parameter in lfads.named_parameters():
            if parameter.requires_grad and "weight" not in name:
                parameter.normal_(std=0.3)
    if lfads.behavior is not None:
        n_dims = lfads.behavior.out_features
        lfads.behavior.standardise(np.linspace(-1, 2, n_dims), np.linspace(0.5, 3, n_dims))
    return lfads.eval()


def spikes(n_bins: int, n_channels: int = 6, *, missing: float = 0.0, seed: int = 0) -> Any:
    """Counts (n_bins, n_channels), a share of them NaN, the last channel never seen."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(0.8, (n_bins, n_channels)).astype(np.float32)
    counts[rng.random(counts.shape) < missing] = np.nan
    if missing:
        counts[:, -1] = np.nan
    return counts


def tensor(array: Any) -> Tensor:
    """Return an array as a batch of one trial."""
    return torch.from_numpy(np.ascontiguousarray(array)).unsqueeze(0)
