"""Options of a search over Ray Tune: the part `search.ray` of a configuration, checked."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import ConfigError, UserError, did_you_mean

Nodes = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class RayOptions:
    """Where the trials of a search run, and how the members are divided among them.

    Attributes
    ----------
    address : str, optional
        Ray cluster to join: "auto", "HOST:PORT", or "local" for one started here for this search.
        By default the cluster that `RAY_ADDRESS` names or that runs on this machine, else "local".
    num_cpus : int, optional
        Cores of a Ray that is started here, which giving them implies; all by default.
    members_per_trial : int, optional
        Members stacked in one trial. By default as few as let all trials run at the same time.
    cpus_per_trial, gpus_per_trial : float
        What a trial takes. A fraction of a GPU lets several share it. By default one core, and one
        GPU where the cluster has any and the trainer may use it.
    max_failures : int
        How often a trial whose worker died or failed is started again from its last checkpoint.
    checkpoint_every : int
        Epochs between checkpoints of a trial, beside those at the ends of generations.
    storage_path : str, optional
        Folder or URI (``s3://...``) that every node reaches, for the checkpoints of trials; ``ray``
        in the run folder by default.

    Raises
    ------
    ConfigError
        For a value out of range.
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
        for name, least in (("num_cpus", 1), ("members_per_trial", 1)):
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name), least)
        _whole("max_failures", self.max_failures, 0)
        _whole("checkpoint_every", self.checkpoint_every, 1)
        for name in ("cpus_per_trial", "gpus_per_trial"):
            _share(name, getattr(self, name))
        for name in ("address", "storage_path"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value):
                raise ConfigError(f"search.ray.{name} is {value!r}; give a text, or null")

    @classmethod
    def from_mapping(cls, node: Mapping[str, Any] | None) -> RayOptions:
        """Read the part ``search.ray`` of a configuration."""
        legal = [item.name for item in dataclasses.fields(cls)]
        for key in node or {}:
            if key not in legal:
                raise ConfigError(
                    f"search.ray.{key}: there is no {key}; {did_you_mean(key, legal)}"
                )
        return cls(**{str(key): value for key, value in (node or {}).items()})

    def resources(self, nodes: Nodes, *, may_use_gpu: bool) -> dict[str, float]:
        """Return what a trial takes."""
        gpus = self.gpus_per_trial
        if gpus is None:
            has_gpu = any(node.get("GPU", 0) >= 1 for node in nodes)
            gpus = 1.0 if may_use_gpu and has_gpu else 0.0
        wanted = {"cpu": float(self.cpus_per_trial), "gpu": float(gpus)}
        if not any(_slots(node, wanted) for node in nodes):
            found = "; ".join(
                f"{node.get('CPU', 0):g} cores and {node.get('GPU', 0):g} GPUs" for node in nodes
            )
            raise UserError(
                f"no node of the Ray cluster has what one trial takes, {wanted['cpu']:g} cores and "
                f"{wanted['gpu']:g} GPUs: there are {found or 'no nodes'}. Lower "
                "search.ray.cpus_per_trial or search.ray.gpus_per_trial, or start other nodes"
            )
        return wanted

    def divide(
        self, n_members: int, nodes: Nodes, resources: Mapping[str, float]
    ) -> tuple[list[list[int]], int]:
        """Divide the members among trials."""
        slots = sum(_slots(node, resources) for node in nodes)
        per_trial = self.members_per_trial or math.ceil(n_members / max(slots, 1))
        n_trials = math.ceil(n_members / per_trial)
        return [part.tolist() for part in np.array_split(np.arange(n_members), n_trials)], slots


def _slots(node: Mapping[str, float], resources: Mapping[str, float]) -> int:
    """Return how many trials a node holds."""
    found = []
    for name, amount in resources.items():
        there = node.get(name.upper(), 0.0)
        if 0 < amount < 1 and name == "gpu":
            # A trial's share lies on one GPU; 1 / 0.1 must not round down.
            found.append(math.floor(there) * math.floor(1 / amount + 1e-6))
        elif amount > 0:
            found.append(math.floor(there / amount + 1e-6))
    return min(found)


def _whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(
            f"search.ray.{name} is {value!r}; legal are whole numbers from {least} on"
        )


def _share(name: str, value: Any) -> None:
    if value is None and name == "gpus_per_trial":
        return
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    legal = is_number and math.isfinite(value) and value >= 0
    # Ray gives out whole GPUs, or parts of a single one.
    if legal and name == "gpus_per_trial" and value > 1 and value != int(value):
        raise ConfigError(
            f"search.ray.{name} is {value!r}; legal are fractions up to 1 and whole numbers"
        )
    if not legal or (name == "cpus_per_trial" and value == 0):
        least = "above 0" if name == "cpus_per_trial" else "from 0 on"
        raise ConfigError(f"search.ray.{name} is {value!r}; legal are numbers {least}")
