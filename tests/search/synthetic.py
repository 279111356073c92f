"""A search without models: a toy loss that hyper-parameters bring down, under the real rules."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lfads_torch.search.history import History
from lfads_torch.search.rules import Schedule, tournament
from lfads_torch.search.space import DEFAULT_SPACE, Space, first_values, perturbed


def run_search(
    folder: Path,
    n_members: int = 20,
    n_epochs: int = 480,
    schedule: Schedule | None = None,
    space: Space = DEFAULT_SPACE,
    seed: int = 0,
    diverging: float = 0.0,
    exchange: bool = True,
) -> np.ndarray:
    """Write the history of a toy search; returns the members' last scores."""
    schedule = schedule or Schedule(burn_in_period=80, perturbation_interval=25)
    rng = np.random.default_rng(seed)
    history = History(folder)
    values = first_values(space, n_members, rng, use_init=exchange)
    height = rng.uniform(0.9, 1.1, n_members)
    dead = np.zeros(n_members, bool)
    for epoch in range(n_epochs):
        rates = values["lr_init"] if "lr_init" in values else np.full(n_members, 3e-3)
        fit = np.exp(-(np.log(rates / 1.2e-3) ** 2))
        dropout = values.get("dropout_rate", np.full(n_members, 0.2))
        floor = 0.30 + 0.12 * (dropout - 0.25) ** 2
        height += (floor - height) * 0.012 * fit + rng.normal(0, 1e-3, n_members)
        dead |= rng.random(n_members) < diverging
        scores = np.where(dead, np.nan, height)
        noisy = scores + rng.normal(0, 2e-3, n_members)
        metrics = {"valid/recon": noisy, "valid/recon_smth": scores, "train/loss": 1e4 * scores}
        history.append(epoch, schedule.generation(epoch), values, metrics, dead)
        if exchange and schedule.ends(epoch + 1) and epoch + 1 < n_epochs:
            parents = tournament(scores, rng)
            losers = np.flatnonzero(parents != np.arange(n_members))
            copied = {name: column[parents] for name, column in values.items()}
            moved = perturbed(space, copied, losers, rng)
            history.exchange(epoch + 1, schedule.generation(epoch), parents, values, moved, scores)
            values, height, dead = moved, height[parents], dead[parents]
    return np.where(dead, np.nan, height)
