"""Small sessions, data modules and models for tests that need all of them together."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from lfads_torch.data import DataWarning, write_session
from lfads_torch.datamodules import BasicDataModule
from lfads_torch.model import LFADS
from lfads_torch.objective import augment, elbo
from lfads_torch.tuples import LossTerms, SessionBatch

DIMS: dict[str, Any] = {
    "ic_enc_dim": 4,
    "ci_enc_dim": 3,
    "con_dim": 3,
    "co_dim": 2,
    "ic_dim": 3,
    "gen_dim": 5,
    "fac_dim": 4,
}


def arrays(
    n_train: int = 7,
    n_valid: int = 5,
    n_test: int = 0,
    *,
    bins: tuple[int, int] = (6, 6),
    channels: tuple[int, int] = (3, 3),
    ext: int = 0,
    truth: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Counts of one session; bins and channels are (read, reconstructed)."""
    rng = np.random.default_rng(seed)
    found: dict[str, Any] = {}
    for split, n in (("train", n_train), ("valid", n_valid), ("test", n_test)):
        if n == 0:
            continue
        rates = rng.uniform(0.5, 2.0, (n, bins[1], channels[1]))
        recon = rng.poisson(rates).astype(np.float32)
        found[f"{split}_recon_data"] = recon
        found[f"{split}_encod_data"] = recon[:, : bins[0], : channels[0]]
        if ext:
            found[f"{split}_ext_input"] = rng.normal(size=(n, bins[1], ext)).astype(np.float32)
        if truth:
            found[f"{split}_truth"] = rates.astype(np.float32)
    return found


def write(folder: Path, *sessions: dict[str, Any]) -> str:
    """Write ``day0.h5``, ``day1.h5``, ...; return the pattern that names them."""
    for number, session in enumerate(sessions):
        write_session(folder / f"day{number}.h5", session)
    return str(folder / "day*.h5")


def datamodule(pattern: Any, **options: Any) -> BasicDataModule:
    """Read a data module without its warnings about small data."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        module = BasicDataModule(str(pattern), **options)
        module.setup()
    return module


def lfads(data: Any, **arguments: Any) -> LFADS:
    """Small model whose sizes are read from the data."""
    return LFADS.from_data(data, **{**DIMS, **arguments})


def trainer(folder: Path, **options: Any) -> pl.Trainer:
    """Make a silent trainer on the CPU."""
    quiet: dict[str, Any] = {
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "accelerator": "cpu",
        "default_root_dir": str(folder),
    }
    return pl.Trainer(**{**quiet, **options})


def batch_of(
    encod: Tensor, recon: Tensor | None = None, *, sv_mask: Tensor | None = None
) -> SessionBatch:
    """Batch without external input and truth; by default all that is read is reconstructed."""
    recon = encod if recon is None else recon
    n = len(encod)
    none = torch.zeros(n, 0, 0)
    return SessionBatch(
        encod_data=encod,
        recon_data=recon,
        ext_input=torch.zeros(n, recon.shape[1], 0),
        truth=none,
        sv_mask=none.bool() if sv_mask is None else sv_mask,
    )


def counts(n: int, bins: int, channels: int, rate: float = 1.5) -> Tensor:
    """Poisson counts, shape (n, bins, channels)."""
    return torch.poisson(torch.full((n, bins, channels), rate))


def terms_at_means(model: LFADS, batch: Any) -> LossTerms:
    """Compute the objective at posterior means, without training augmentations."""
    stack = model.infer_aug_stack
    batch = augment(stack, batch)
    return elbo(model, model.weights, batch, model.infer(batch, sample=False), stack, "valid")
