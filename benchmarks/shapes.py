"""Sizes that the benchmarks run at, and models and data of these sizes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lfads_torch.data import write_session
from lfads_torch.datamodules import BasicDataModule
from lfads_torch.model import LFADS
from lfads_torch.modules.augmentations import AugmentationStack, CoordinatedDropout
from lfads_torch.modules.readin_readout import FanInLinear
from lfads_torch.tuples import SessionBatch

SPIKES_PER_BIN = 0.2
CD_RATE = 0.3


@dataclass(frozen=True)
class Shape:
    """Sizes of a model and of its data.

    Attributes
    ----------
    batch : int
        Trials per step.
    bins_read, bins : int
        Bins that the encoders read, bins reconstructed.
    n_read, n_recon : int
        Channels read, channels reconstructed.
    ic_enc, ci_enc, con, gen, fac, ic, co : int
        Units of the recurrent nets; dimensions of factors, initial condition, inferred inputs.
    dropout_rate : float
    n_train, n_valid : int
        Trials of the data set.
    """

    batch: int
    bins_read: int
    bins: int
    n_read: int
    n_recon: int
    ic_enc: int
    ci_enc: int
    con: int
    gen: int
    fac: int
    ic: int
    co: int = 4
    dropout_rate: float = 0.05
    n_train: int = 1024
    n_valid: int = 256


SHAPES = {
    # The Neural Latents Benchmark's MC_Maze at 20 ms; MC_RTT and DMFC_RSG at 5 ms.
    "mc_maze": Shape(256, 35, 45, 137, 182, 64, 64, 64, 200, 100, 64, 4, 0.3, 1720, 574),
    "mc_rtt": Shape(256, 120, 160, 98, 130, 100, 80, 80, 100, 40, 100, 4, 0.02, 810, 270),
    "dmfc": Shape(256, 300, 340, 40, 54, 100, 64, 64, 100, 40, 100, 4, 0.15, 755, 251),
    "lorenz": Shape(64, 100, 100, 30, 30, 64, 64, 64, 64, 64, 64),
}


def build_model(shape: Shape, kernel: str = "auto") -> LFADS:
    """Build the package's model for training, with the default configuration's regularisers."""
    torch.manual_seed(0)
    model = LFADS(
        encod_data_dim=shape.n_read,
        encod_seq_len=shape.bins_read,
        recon_seq_len=shape.bins,
        ic_enc_dim=shape.ic_enc,
        ci_enc_dim=shape.ci_enc,
        con_dim=shape.con,
        co_dim=shape.co,
        ic_dim=shape.ic,
        gen_dim=shape.gen,
        fac_dim=shape.fac,
        dropout_rate=shape.dropout_rate,
        readout=FanInLinear(shape.fac, shape.n_recon),
        train_aug_stack=AugmentationStack([CoordinatedDropout(CD_RATE)], [0], [0]),
        l2_gen_scale=1e-4,
        l2_con_scale=1e-4,
        kernel=kernel,
    )
    for recon in model.recon:
        # As in training: there the whole data set has been checked before the first step.
        recon.data_checked = True
    return model.train()


def build_batch(shape: Shape, n_trials: int | None = None) -> SessionBatch:
    """Poisson counts, one batch of them or `n_trials`."""
    generator = torch.Generator().manual_seed(0)
    n_trials = n_trials or shape.batch
    rates = torch.full((n_trials, shape.bins, shape.n_recon), SPIKES_PER_BIN)
    counts = torch.poisson(rates, generator=generator)
    none = counts.new_zeros(n_trials, 0, 0)
    return SessionBatch(
        encod_data=counts[:, : shape.bins_read, : shape.n_read].contiguous(),
        recon_data=counts,
        ext_input=counts.new_zeros(n_trials, shape.bins, 0),
        truth=none,
        sv_mask=none.bool(),
    )


def build_datamodule(shape: Shape, folder: Path, **changes: Any) -> BasicDataModule:
    """Build a data module on a file of Poisson counts; `changes` name other numbers of trials."""
    rng = np.random.default_rng(0)
    n_trials = {"train": shape.n_train, "valid": shape.n_valid, **changes}
    arrays: dict[str, Any] = {}
    for split, n in n_trials.items():
        counts = rng.poisson(SPIKES_PER_BIN, size=(n, shape.bins, shape.n_recon)).astype(np.uint8)
        arrays[f"{split}_recon_data"] = counts
        arrays[f"{split}_encod_data"] = counts[:, : shape.bins_read, : shape.n_read]
    path = folder / "spikes.h5"
    write_session(path, arrays)
    data = BasicDataModule(path, batch_size=shape.batch)
    data.setup()
    return data
