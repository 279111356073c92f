"""Models trained alone, as a run trains them: the reference for members of a population."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch

from lfads_torch.model import LFADS
from lfads_torch.runs.resume import EpochSeed
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


class Lone(NamedTuple):
    """Models trained alone: each as it ended, and what it logged in every epoch."""

    models: list[LFADS]
    logged: list[list[dict[str, float]]]


def seeds_of(models: Sequence[LFADS]) -> list[int]:
    """Run seeds of the members that these models become."""
    return [11 + 3 * k for k in range(len(models))]


def train_all_alone(folder: Path, models: Sequence[LFADS], data: Any, n_epochs: int) -> Lone:
    """Train each model alone."""
    seeds = seeds_of(models)
    results = [
        train_alone(folder, m, data, seed, n_epochs) for m, seed in zip(models, seeds, strict=True)
    ]
    return Lone([model for model, _ in results], [logged for _, logged in results])


def assert_same(
    population: Population, metrics: Sequence[Any], lone: Lone, k: int, at: int
) -> None:
    """Check that member k, and what it logged, equal the model `at` that trained alone."""
    for epoch, numbers in enumerate(lone.logged[at]):
        expected = {n: v for n, v in numbers.items() if n.startswith(("train/", "valid/"))}
        assert set(metrics[epoch]) == set(expected)
        for name, value in expected.items():
            message = f"{name}, epoch {epoch}"
            np.testing.assert_allclose(metrics[epoch][name][k], value, **TOLERANCE, err_msg=message)
    parameters = dict(population.member(k).named_parameters())
    for name, parameter in lone.models[at].named_parameters():
        torch.testing.assert_close(parameters[name], parameter, **TOLERANCE, msg=name)


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
    """Train models as a population and (some) alone, and compare what is logged and the weights."""
    seeds = seeds_of(models)
    population = Population(models, data, seeds, gradient_clip_val=CLIP, **options)
    metrics = [population.train_epoch() for _ in range(n_epochs)]
    assert population.stacked == stacked
    for k in range(len(models)) if members is None else members:
        lone = Lone(*([x] for x in train_alone(folder, models[k], data, seeds[k], n_epochs)))
        assert_same(population, metrics, lone, k, 0)
    return population
