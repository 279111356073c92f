"""A population that does not train: what a search sees of one, made up quickly."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from lfads_torch.model import LFADS


class FakePopulation:
    """Members whose validation loss is a function of epoch, member and hyper-parameters.

    A member's "weight" counts the epochs that it and its ancestors were trained. `loss` is called
    with (epoch, seeds, values) and returns the loss of each member.
    """

    loss: Callable[[int, np.ndarray, dict[str, np.ndarray]], np.ndarray] = staticmethod(
        lambda epoch, seeds, values: 1.0 / (epoch + 1.0) + 0.01 * seeds
    )
    steps_per_epoch = 3

    def __init__(
        self, models: Sequence[LFADS], datamodule: Any, seeds: Sequence[int], **options: Any
    ) -> None:
        self.models = list(models)
        self.seeds = np.array(seeds)
        self.options = options
        self.epoch = 0
        self.names = tuple(models[0].tunables())
        self._values = {
            name: np.array([float(model.tunables()[name]) for model in models])
            for name in self.names
        }
        self.weight = np.zeros(len(models))
        self.alive = np.ones(len(models), dtype=bool)

    @property
    def n_members(self) -> int:
        return len(self.seeds)

    @property
    def values(self) -> dict[str, np.ndarray]:
        return {name: value.copy() for name, value in self._values.items()}

    def set_values(self, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            assert len(value) == self.n_members
            self._values[name] = np.array(value, dtype=float)

    def train_epoch(self) -> dict[str, np.ndarray]:
        loss = np.asarray(type(self).loss(self.epoch, self.seeds, self._values), dtype=float)
        self.alive = self.alive & np.isfinite(loss)
        self.weight += 1
        self.epoch += 1
        loss = np.where(self.alive, loss, np.nan)
        return {"train/loss": 2 * loss, "valid/recon": loss, "valid/recon_smth": loss}

    def exchange(self, parents: np.ndarray) -> None:
        assert self.alive[parents].all()
        self._values = {name: value[parents] for name, value in self._values.items()}
        self.weight, self.alive = self.weight[parents], self.alive[parents]

    def adopt(self, k: int, state: Mapping[str, Any], source: int) -> None:
        self.weight[k], self.alive[k] = state["weight"][source], state["alive"][source]
        for name, value in state["values"].items():
            self._values[name][k] = value[source]

    def keep(self, members: np.ndarray) -> None:
        self.models = [self.models[k] for k in members]
        self.seeds, self.weight = self.seeds[members], self.weight[members]
        self.alive = self.alive[members]
        self._values = {name: value[members] for name, value in self._values.items()}

    def state_dict(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "weight": torch.from_numpy(self.weight.copy()),
            "alive": self.alive.tolist(),
            "values": {name: value.tolist() for name, value in self._values.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.epoch = state["epoch"]
        self.weight = state["weight"].numpy().copy()
        self.alive = np.array(state["alive"])
        self._values = {name: np.array(value) for name, value in state["values"].items()}

    def checkpoint(self, k: int) -> dict[str, Any]:
        model = self.models[k]
        checkpoint: dict[str, Any] = {
            "state_dict": model.state_dict(),
            "epoch": self.epoch - 1,
            "seed": int(self.seeds[k]),
            "weight": float(self.weight[k]),
        }
        model.on_save_checkpoint(checkpoint)
        return checkpoint
