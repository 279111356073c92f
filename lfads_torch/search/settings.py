"""Settings of a search: the part `search` of a configuration, checked."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ConfigError, did_you_mean
from .space import Space, check_space, default_space, parse_space

METHODS = ("pbt", "random", "halving")


@dataclass(frozen=True)
class SearchSettings:
    """How members are drawn, judged, and replaced or stopped.

    Attributes
    ----------
    method : {"pbt", "random", "halving"}
        Population-based training, random search, or random search by successive halving.
    num_workers : int
        Members of a population.
    num_samples : int
        Members of a random search.
    metric : str
        Logged metric by which members are judged.
    mode : {"min", "max"}
        Whether less or more of it is better.
    burn_in_period : int, optional
        Epochs before the first generation counts; by default those in which the ramps rise.
    perturbation_interval : int
        Epochs of a generation. Successive halving cuts first at the end of what would be the first
        generation.
    patience : int
        Generations over which the best score has to improve.
    min_improvement_ratio : float
        Relative improvement over these that is still worth going on.
    max_generations : int, optional
        Generations after which a population ends.
    stop_after : int, optional
        Epochs without a better score after which a member of a random search stops.
    halving_factor : float
        One in so many members goes on.
    chunk : int, optional
        Members that are trained at a time.
    space : mapping, optional
        As `parse_space` reads it; by default that of AutoLFADS as far as the model has it.
    ray : mapping
        Options of the Ray back-end.

    Raises
    ------
    ConfigError
        For a number out of range.
    """

    method: str = "pbt"
    num_workers: int = 20
    num_samples: int = 60
    metric: str = "valid/recon_smth"
    mode: str = "min"
    burn_in_period: int | None = None
    perturbation_interval: int = 25
    patience: int = 4
    min_improvement_ratio: float = 5e-4
    max_generations: int | None = None
    stop_after: int | None = None
    halving_factor: float = 3.0
    chunk: int | None = None
    space: Mapping[str, Any] | None = None
    ray: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _one_of("method", self.method, METHODS)
        _one_of("mode", self.mode, ("min", "max"))
        if not isinstance(self.metric, str) or not self.metric:
            raise ConfigError(f"search.metric is {self.metric!r}; give the name of a logged metric")
        for name, least in (
            ("num_workers", 1),
            ("num_samples", 1),
            ("perturbation_interval", 1),
            ("patience", 1),
        ):
            _whole(name, getattr(self, name), least)
        for name, least in (
            ("burn_in_period", 0),
            ("max_generations", 1),
            ("stop_after", 1),
            ("chunk", 1),
        ):
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name), least)
        _number("min_improvement_ratio", self.min_improvement_ratio)
        if _number("halving_factor", self.halving_factor) <= 1:
            raise ConfigError(
                f"search.halving_factor is {self.halving_factor:g}: one member in so many goes on; "
                "legal are numbers above 1"
            )
        if self.n_members < 2:
            raise ConfigError(
                f"search.{self._count} is {self.n_members}: a population of one has nobody to "
                "compete with. Give 2 or more, or train a single model: lfads train"
            )
        for name in ("space", "ray"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, Mapping):
                raise ConfigError(f"search.{name} is {value!r}; give a mapping")

    @property
    def _count(self) -> str:
        return "num_workers" if self.method == "pbt" else "num_samples"

    @property
    def n_members(self) -> int:
        """Members at the start."""
        return self.num_workers if self.method == "pbt" else self.num_samples

    @property
    def count_key(self) -> str:
        """Key of the configuration that says how many members there are."""
        return f"search.{self._count}"

    @property
    def sign(self) -> int:
        """Factor that turns the metric into a score of which less is better."""
        return 1 if self.mode == "min" else -1

    def scores(self, metric: ArrayLike, alive: ArrayLike) -> NDArray[np.float64]:
        """Return scores of which less is better, infinite for who diverged."""
        judged = self.sign * np.asarray(metric, dtype=np.float64)
        return np.where(np.asarray(alive, dtype=bool) & np.isfinite(judged), judged, np.inf)

    @classmethod
    def from_config(cls, node: Any) -> SearchSettings:
        """Read the part ``search`` of a configuration."""
        if not isinstance(node, Mapping):
            raise ConfigError(f"search is {node!r}; choose one: search=pbt, random or halving")
        legal = [item.name for item in dataclasses.fields(cls)]
        for key in node:
            if key not in legal:
                raise ConfigError(f"search.{key}: there is no {key}; {did_you_mean(key, legal)}")
        if node.get("ray", {}) is None:
            node = {key: value for key, value in node.items() if key != "ray"}
        return cls(**{str(key): value for key, value in node.items()})

    def space_for(self, tunables: Iterable[str]) -> Space:
        """Return what is searched, held against the model."""
        names = list(tunables)
        if self.space is None:
            return default_space(names)
        space = parse_space(_without_null(self.space))
        try:
            check_space(space, names)
        except ConfigError as error:
            raise ConfigError(
                f"{error} To leave a name out: search.space.NAME=null; search.space=null takes "
                "what of the space of AutoLFADS this model has"
            ) from None
        return space

    def check_metric(self, logged: Iterable[str]) -> None:
        """Refuse a metric that is never logged."""
        names = list(logged)
        if self.metric not in names:
            raise ConfigError(
                f"search.metric is {self.metric}, which is never logged; "
                f"{did_you_mean(self.metric, names, limit=40)}"
            )


def _without_null(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out names that are null, and groups of names of which nothing is left."""
    kept: dict[str, Any] = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping) and "min_samp" not in value and "_target_" not in value:
            value = _without_null(value) or None
        if value is not None:
            kept[str(key)] = value
    return kept


def _one_of(name: str, value: Any, legal: tuple[str, ...]) -> None:
    if value not in legal:
        raise ConfigError(f"search.{name} is {value!r}; {did_you_mean(str(value), legal)}")


def _whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"search.{name} is {value!r}; legal are whole numbers from {least} on")


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"search.{name} is {value!r}; legal is a finite number")
    return float(value)
