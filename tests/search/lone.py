"""Models trained alone, as a run trains them, to hold members of a population against."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from lfads_torch.model import LFADS
from lfads_torch.running.callbacks import EpochSeed
from lfads_torch.search.population import Population
from tests.small import trainer

CLIP = 5.0
#: Float32, sums in another order, a few dozen steps of AdamW.
TOLERANCE: dict[str, Any] = {"rtol": 1e-3, "atol": 2e-5}


class _Epochs(pl.Callback):
    """What was logged of each epoch; complete only when the next one begins."""

    def __init__(self) -> None:
        self.logged: list[dict[str, float]] = []

    def _take(self, trainer: Any) -> None:
        self.logged.append({name: v.item() for name, v in trainer.callback_metrics.items()})

    def on_train_epoch_start(self, trainer: Any, model: Any) -> None:
        if trainer.current_epoch:
            self._take(trainer)

    def on_train_end(self, trainer: Any, model: Any) -> None:
        self._take(trainer)


def train_alone(
    folder: Path, model: LFADS, data: Any, seed: int, n_epochs: int
) -> tuple[LFADS, list[dict[str, float]]]:
    """Train a copy of a model with the random numbers and the order of trials of a run."""
    model, epochs = copy.deepcopy(model), _Epochs()
    pl.seed_everything(seed, verbose=False)
    run = trainer(
        folder,
        max_epochs=n_epochs,
        gradient_clip_val=CLIP,
        callbacks=[EpochSeed(seed), epochs],
    )
    run.fit(model, data)
    data.trainer = None
    return model, epochs.logged


def assert_as_alone(
    folder: Path,
    models: Sequence[LFADS],
    data: Any,
    n_epochs: int = 2,
    *,
    members: Sequence[int] | None = None,
    stacked: str = "all",
    **options: Any,
) -> Population:
    """Train models as a population and alone, and compare what is logged and the weights."""
    seeds = [11 + 3 * k for k in range(len(models))]
    population = Population(models, data, seeds, gradient_clip_val=CLIP, **options)
    found = [population.train_epoch() for _ in range(n_epochs)]
    assert population.stacked == stacked
    for k in range(len(models)) if members is None else members:
        model, logged = train_alone(folder, models[k], data, seeds[k], n_epochs)
        for epoch, numbers in enumerate(logged):
            expected = {n: v for n, v in numbers.items() if n.startswith(("train/", "valid/"))}
            assert set(found[epoch]) == set(expected)
            for name, value in expected.items():
                np.testing.assert_allclose(
                    found[epoch][name][k], value, **TOLERANCE, err_msg=f"{name}, epoch {epoch}"
                )
        own = dict(population.member(k).named_parameters())
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(own[name], parameter, **TOLERANCE, msg=name)
    return population
