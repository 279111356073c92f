"""Run folders with outputs that are known beforehand, for tests of what reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lfads_torch.data import write_session
from lfads_torch.data.smoothing import gaussian_smooth

READ, ALL = (12, 5), (15, 7)  # bins, channels
N_TRIALS = {"train": 60, "valid": 30, "test": 8, "select": 8}
N_CONDITIONS = 4


def arrays(seed: int = 0, noise: float = 0.3, splits: tuple[str, ...] = ("train", "valid")) -> Any:
    """Spikes of smooth latents, and what a fair model would infer of them."""
    rng = np.random.default_rng(seed)
    courses = gaussian_smooth(rng.normal(size=(N_CONDITIONS, ALL[0], 2)), 2.0) * 2
    loading = rng.normal(size=(2, ALL[1]))
    mapping = rng.normal(size=(2, 2))
    total = sum(N_TRIALS[split] for split in splits)
    order = np.split(rng.permutation(total), np.cumsum([N_TRIALS[s] for s in splits])[:-1])
    found: dict[str, Any] = {}
    for split, inds in zip(splits, order, strict=True):
        n = N_TRIALS[split]
        condition = np.arange(n) % N_CONDITIONS
        latents = courses[condition] + gaussian_smooth(rng.normal(size=(n, ALL[0], 2)), 2.0)
        rates = 0.5 * np.exp(latents @ loading * 0.7)
        counts = rng.poisson(rates).astype(np.float32)
        factors = latents + noise * rng.normal(size=latents.shape)
        found |= {
            f"{split}_recon_data": counts,
            f"{split}_encod_data": counts[:, : READ[0], : READ[1]],
            f"{split}_output_params": (0.5 * np.exp(factors @ loading * 0.7)).astype(np.float32),
            f"{split}_factors": factors.astype(np.float32),
            f"{split}_ic_mean": rng.normal(size=(n, 3)).astype(np.float32),
            f"{split}_gen_states": rng.normal(size=(n, ALL[0], 4)).astype(np.float32),
            f"{split}_co_means": np.zeros((n, ALL[0], 0), np.float32),
            f"{split}_truth": rates.astype(np.float32),
            f"{split}_latents": latents.astype(np.float32),
            f"{split}_behavior": latents[:, : READ[0]] @ mapping,
            f"{split}_cond_idx": condition,
            f"{split}_inds": np.sort(inds),
        }
    return found


def write_run(folder: Path, *sessions: dict[str, Any], **attributes: Any) -> Path:
    """Write ``lfads_output_sess0.h5``, ... into a folder, and return it."""
    for number, session in enumerate(sessions):
        attrs = {"bin_ms": 10.0, "session_name": f"day{number}", **attributes}
        attrs = {key: value for key, value in attrs.items() if value is not None}
        write_session(folder / f"lfads_output_sess{number}.h5", session, attrs)
    return folder
