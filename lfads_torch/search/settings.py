"""Settings of a search: the group `search` of a configuration, checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..arguments import LOSS, Metric, mode_of
from ..errors import ConfigError, did_you_mean, number, one_of, unknown, whole
from .space import Space, check_space, default_space, parse_space

T = TypeVar("T")

METHODS = ("pbt", "random", "halving")
AUTO = "auto"
"""A metric that the data decide."""
# Inputs cannot buy these by copying what the encoder reads, as they can the loss.
_HELD_OUT = ("valid/co_bps_smth", "valid/recon/sv")


@dataclass(frozen=True)
class SearchSettings:
    """How members are drawn, judged, and replaced or stopped.

    The files in ``configs/search`` explain each field; `min_improvement_ratio` and `patience` are
    those of `Patience`, and `space` is what `parse_space` reads.
    """

    method: str = "pbt"
    num_workers: int = 20
    num_samples: int = 60
    metric: str = LOSS
    mode: str | None = None  # None: as the name of the metric implies
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
        one_of("search.method", self.method, METHODS)
        Metric().check("search.metric", self.metric)
        if self.mode is None and self.metric != AUTO:
            object.__setattr__(self, "mode", mode_of(self.metric))
        if self.mode is not None:
            one_of("search.mode", self.mode, ("min", "max"))
        if self.mode == "min" != mode_of(self.metric):
            raise ConfigError(
                f"search.mode is min, but of {self.metric} more is better; leave search.mode out"
            )
        take_whole(self, "search", num_workers=1, num_samples=1, perturbation_interval=1)
        take_whole(self, "search", patience=1, burn_in_period=0, max_generations=1)
        take_whole(self, "search", stop_after=1, chunk=1)
        number("search.min_improvement_ratio", self.min_improvement_ratio)
        number("search.halving_factor", self.halving_factor, above=1)
        if self.n_members < 2:
            raise ConfigError(
                f"{self.count_key} is {self.n_members}: a population of one has nobody to "
                "compete with. Give 2 or more, or train a single model: lfads train"
            )
        if self.ray is None:  # YAML with nothing below `ray:`
            object.__setattr__(self, "ray", {})
        for name in ("space", "ray"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, Mapping):
                raise ConfigError(f"search.{name} is {value!r}; give a mapping")

    @property
    def n_members(self) -> int:
        """Members at the start."""
        return self.num_workers if self.method == "pbt" else self.num_samples

    @property
    def count_key(self) -> str:
        """Key of the configuration that sets the number of members."""
        return "search.num_workers" if self.method == "pbt" else "search.num_samples"

    @property
    def sign(self) -> int:
        """Factor that turns the metric into a score of which less is better."""
        return 1 if self.mode == "min" else -1

    def scores(self, metric: ArrayLike, alive: ArrayLike) -> NDArray[np.float64]:
        """Return scores of which less is better, infinite for who diverged."""
        # Infinite, not NaN: comparisons and sorting then need no special case.
        judged = self.sign * np.asarray(metric, dtype=np.float64)
        return np.where(np.asarray(alive, dtype=bool) & np.isfinite(judged), judged, np.inf)

    @classmethod
    def from_config(cls, node: Any) -> SearchSettings:
        """Read the group ``search`` of a configuration."""
        if not isinstance(node, Mapping):
            raise ConfigError(f"search is {node!r}; choose one: search=pbt, random or halving")
        return from_mapping(cls, node, "search")

    def space_for(self, tunables: Iterable[str]) -> Space:
        """Return the space to search, checked with the model's tunables."""
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

    def judged(self, logged: Iterable[str], select_by: str = LOSS) -> SearchSettings:
        """Return the settings with the metric that the data decide; refuse one never logged."""
        names = list(logged)
        if self.metric == AUTO:
            held_out = [name for name in _HELD_OUT if name in names]
            metric = held_out[0] if held_out and select_by == LOSS else select_by
            return dataclasses.replace(self, metric=metric).judged(names)
        if self.metric not in names:
            raise ConfigError(
                f"search.metric is {self.metric}, which is never logged; "
                f"{did_you_mean(self.metric, names, limit=40)}"
            )
        return self


def _without_null(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out names that are null, and groups of names of which nothing is left."""
    kept: dict[str, Any] = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping) and "min_samp" not in value and "_target_" not in value:
            value = _without_null(value) or None
        if value is not None:
            kept[str(key)] = value
    return kept


def from_mapping(cls: type[T], node: Mapping[str, Any], where: str) -> T:
    """Build a dataclass from a mapping of a configuration, or refuse a key that it does not have.

    `where` is the place of the mapping in the configuration.
    """
    legal = [item.name for item in dataclasses.fields(cast(Any, cls))]
    for key in node:
        if key not in legal:
            raise unknown(where, key, legal)
    return cls(**{str(key): value for key, value in node.items()})


def take_whole(settings: Any, where: str, **least: int) -> None:
    """Check fields of a dataclass that are whole numbers; None is legal where it is the default."""
    for name, limit in least.items():
        value = getattr(settings, name)
        if value is not None or getattr(type(settings), name) is not None:
            # Stored, since 3.0 is legal and becomes 3.
            object.__setattr__(settings, name, whole(f"{where}.{name}", value, least=limit))
