"""Options of a search over Ray Tune: the group `search.ray` of a configuration, checked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import ConfigError, UserError, number
from ..settings import take_whole

Nodes = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class RayOptions:
    """Where the trials of a search run, and how the members are divided among them.

    ``docs/clusters.md`` explains each field, and what its default does.
    """

    address: str | None = None
    num_cpus: int | None = None
    members_per_trial: int | None = None
    cpus_per_trial: float = 1.0
    gpus_per_trial: float | None = None
    max_failures: int = 3
    checkpoint_every: int = 5
    storage_path: str | None = None

    def __post_init__(self) -> None:
        take_whole(self, "search.ray", num_cpus=1, members_per_trial=1)
        take_whole(self, "search.ray", max_failures=0, checkpoint_every=1)
        number("search.ray.cpus_per_trial", self.cpus_per_trial, above=0)
        gpus = self.gpus_per_trial
        if gpus is not None:
            # Ray gives out whole GPUs, or parts of a single one.
            gpus = number("search.ray.gpus_per_trial", gpus, least=0)
            if gpus > 1 and not gpus.is_integer():
                raise ConfigError(
                    f"search.ray.gpus_per_trial is {gpus:g}; legal are fractions up to 1 and whole "
                    "numbers"
                )
        for name in ("address", "storage_path"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value):
                raise ConfigError(f"search.ray.{name} is {value!r}; give a text, or null")

    def resources(self, nodes: Nodes, *, may_use_gpu: bool) -> dict[str, float]:
        """Return what a trial takes."""
        gpus = self.gpus_per_trial
        if gpus is None:
            has_gpu = any(node.get("GPU", 0) >= 1 for node in nodes)
            gpus = 1.0 if may_use_gpu and has_gpu else 0.0
        share = {"cpu": float(self.cpus_per_trial), "gpu": float(gpus)}
        if not any(_slots(node, share) for node in nodes):
            capacities = "; ".join(
                f"{node.get('CPU', 0):g} cores and {node.get('GPU', 0):g} GPUs" for node in nodes
            )
            raise UserError(
                f"no node of the Ray cluster has what one trial takes, {share['cpu']:g} cores and "
                f"{share['gpu']:g} GPUs: the nodes have {capacities or 'nothing'}. Lower "
                "search.ray.cpus_per_trial or search.ray.gpus_per_trial, or start other nodes"
            )
        return share

    def divide(
        self, n_members: int, nodes: Nodes, resources: Mapping[str, float]
    ) -> list[list[int]]:
        """Divide the members among trials."""
        slots = self.slots(nodes, resources)
        per_trial = self.members_per_trial or math.ceil(n_members / max(slots, 1))
        n_trials = math.ceil(n_members / per_trial)
        return [group.tolist() for group in np.array_split(np.arange(n_members), n_trials)]

    def slots(self, nodes: Nodes, resources: Mapping[str, float]) -> int:
        """Return how many trials the nodes hold at once."""
        return sum(_slots(node, resources) for node in nodes)


def _slots(node: Mapping[str, float], resources: Mapping[str, float]) -> int:
    """Return how many trials a node holds."""
    counts = []
    for name, amount in resources.items():
        available = node.get(name.upper(), 0.0)
        if 0 < amount < 1 and name == "gpu":
            # A trial's share lies on one GPU; 1 / 0.1 must not round down.
            counts.append(math.floor(available) * math.floor(1 / amount + 1e-6))
        elif amount > 0:
            counts.append(math.floor(available / amount + 1e-6))
    return min(counts)
