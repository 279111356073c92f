"""A causal model trained on stretches stays good over streams many times longer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import lfads_torch
from lfads_torch.data.synthetic import lorenz
from lfads_torch.metrics import bits_per_spike
from lfads_torch.model import LFADS
from lfads_torch.modules.augmentations import AugmentationStack, CoordinatedDropout
from tests.small import batch_of

T = 50


@pytest.mark.slow
def test_bits_per_spike_hold_over_twenty_windows() -> None:
    data = lorenz(24, 2, n_units=30, n_bins=20 * T, valid_fraction=0.5)
    windows = torch.as_tensor(data["train_recon_data"]).float().reshape(-1, 10 * T, 30)
    sizes: Any = {"ci_enc_dim": 32, "con_dim": 32, "co_dim": 3, "gen_dim": 64, "fac_dim": 12}
    cut = AugmentationStack([CoordinatedDropout(0.3)], [0], [0])
    lfads = LFADS(
        30, 10 * T, causal=True, tbptt_bins=T, ci_lag=0, train_aug_stack=cut, **sizes
    ).train()
    optimizer = torch.optim.AdamW(lfads.parameters(), lr=lfads.hparams.lr_init)
    for _ in range(200):
        optimizer.zero_grad()
        rows = torch.randperm(len(windows))[:24]
        lfads.evaluated({0: batch_of(windows[rows])}, "train").terms.total.backward()
        torch.nn.utils.clip_grad_norm_(lfads.parameters(), 200.0)
        optimizer.step()
    counts = np.asarray(data["valid_recon_data"]).transpose(1, 0, 2)
    out = lfads_torch.stream(lfads.eval(), batch=counts.shape[1]).run(counts)
    rates, spikes = torch.from_numpy(out.rates), torch.from_numpy(counts).float()

    def bps(first: int, last: int) -> Tensor:
        bins = slice(first * T, last * T)
        return bits_per_spike(rates[bins].clamp_min(1e-9).log(), spikes[bins])

    early, late = bps(1, 2), bps(10, 20)
    assert early > 0.05 and late >= 0.9 * early
