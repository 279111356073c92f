"""Spaces of hyper-parameters: what is searched, and how a search moves it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray

from ..arguments import number_of, search_ranges
from ..errors import ConfigError, did_you_mean
from .hyperparam import HyperParam

__all__ = [
    "DEFAULT_SPACE",
    "HyperParam",
    "Space",
    "check_space",
    "default_space",
    "first_values",
    "parse_space",
    "perturbed",
    "space_overrides",
]

FloatArray = NDArray[np.float64]

_PREFIX = "model."
_TARGET = "HyperParam"


Space = dict[str, HyperParam]
"""What is searched: a `HyperParam` by the path of its tunable below ``model.``."""


DEFAULT_SPACE: Space = {
    name: HyperParam(*search_range) for name, search_range in search_ranges().items()
}
"""The space of AutoLFADS (Keshtkaran, Sedler et al. 2022); `default_space` fits it to a model."""


def default_space(tunables: Iterable[str]) -> Space:
    """Return the space of AutoLFADS as far as a model has its numbers.

    Parameters
    ----------
    tunables : iterable of str
        Paths of the model's tunable numbers, as `LFADS.tunables` names them.

    Returns
    -------
    Space
        `DEFAULT_SPACE` with coordinated dropout wherever the model's stack has it, without what the
        model does not have.
    """
    names = list(tunables)
    by_ending = {name.rpartition(".")[2]: name for name in reversed(names)}
    found = {}
    for name, hyper_param in DEFAULT_SPACE.items():
        own = name if name in names else by_ending.get(name.rpartition(".")[2])
        if own is not None and ("." in own) == ("." in name):
            found[own] = hyper_param
    return found


def parse_space(mapping: Mapping[str, Any]) -> Space:
    """Read a space as YAML or a script gives it.

    Parameters
    ----------
    mapping : mapping
        By name, with or without ``model.`` in front, flat or nested: a `HyperParam`, or a mapping
        of its arguments with or without ``_target_``.

    Returns
    -------
    Space
        Names without ``model.``.

    Raises
    ------
    ConfigError
        For an empty space, a name given twice, an argument that `HyperParam` lacks or does not
        have, or a value that it refuses; the message names the hyper-parameter.
    """
    space: Space = {}
    for name, entry in _entries(mapping):
        short = name.removeprefix(_PREFIX)
        if short in space:
            raise ConfigError(f"the search space names {short} twice; keep one")
        space[short] = _hyper_param(name, entry)
    if not space:
        raise ConfigError(
            "the search space is empty; name at least one hyper-parameter, for instance "
            "model.lr_init: {min_samp: 1e-5, max_samp: 5e-3}"
        )
    return space


def space_overrides(space: Mapping[str, HyperParam]) -> dict[str, Any]:
    """Return a space as overrides of a configuration, in place of the packaged one.

    Parameters
    ----------
    space : mapping of str to HyperParam
        By name, with or without ``model.`` in front.

    Returns
    -------
    dict
        Keys such as ``"search.space.lr_init"``; None for what only the packaged space has.
    """
    own = {name.removeprefix(_PREFIX): dataclasses.asdict(hp) for name, hp in space.items()}
    return {f"search.space.{name}": own.get(name) for name in {**DEFAULT_SPACE, **own}}


def check_space(space: Mapping[str, HyperParam], tunables: Iterable[str]) -> None:
    """Hold a space against the model that is to be searched.

    Parameters
    ----------
    space : Space
    tunables : iterable of str
        Paths of the model's tunable numbers, as `LFADS.tunables` names them.

    Raises
    ------
    ConfigError
        For a name that is no tunable number of the model, or values that the model cannot take.
    """
    legal = list(tunables)
    for name, hyper_param in space.items():
        if name not in legal:
            raise ConfigError(
                f"the search space names {_PREFIX}{name}, which is no tunable number of this model "
                "(sizes and switches are not: members copy each other's weights); "
                f"{did_you_mean(name, legal)}"
            )
        limits = number_of(name)
        if limits is not None and limits.below == 1:
            if not 0 <= hyper_param.min_samp <= hyper_param.max_samp < 1:
                raise ConfigError(
                    f"{_PREFIX}{name} is a probability, but its limits are "
                    f"{hyper_param.min_samp:g} and {hyper_param.max_samp:g}; legal: 0 <= value < 1"
                )
            if not hyper_param.enforce_limits and hyper_param.explore_wt > 0:
                raise ConfigError(
                    f"{_PREFIX}{name} is a probability, which perturbations would lead beyond 1; "
                    "give enforce_limits: true"
                )
        elif limits is not None and hyper_param.min_samp < 0:
            raise ConfigError(
                f"min_samp of {_PREFIX}{name} is {hyper_param.min_samp:g}; legal are 0 and more"
            )


def first_values(
    space: Mapping[str, HyperParam], n: int, rng: Generator, *, use_init: bool = True
) -> dict[str, FloatArray]:
    """Draw the values at which `n` members start.

    Parameters
    ----------
    space : Space
    n : int
        Number of members.
    rng : numpy.random.Generator
    use_init : bool, default=True
        Start at `HyperParam.init` where it is given, as a population does. False draws all, as
        random search does.

    Returns
    -------
    dict of str to float64 array, shape (n,)
    """
    return {
        name: np.array([hp.first(rng) if use_init else hp.sample(rng) for _ in range(n)], float)
        for name, hp in space.items()
    }


def perturbed(
    space: Mapping[str, HyperParam],
    values: Mapping[str, ArrayLike],
    members: ArrayLike,
    rng: Generator,
) -> dict[str, FloatArray]:
    """Perturb every hyper-parameter of some members.

    Parameters
    ----------
    space : Space
    values : mapping of str to array, shape (K,)
        Present values; what the space does not name stays as it is.
    members : array of int
        Indices of the members to perturb.
    rng : numpy.random.Generator

    Returns
    -------
    dict of str to float64 array, shape (K,)
        New arrays; `values` is not changed.
    """
    moved = {name: np.array(column, dtype=np.float64) for name, column in values.items()}
    for name, hyper_param in space.items():
        for k in np.asarray(members, dtype=np.intp).ravel():
            moved[name][k] = hyper_param.perturb(float(moved[name][k]), rng)
    return moved


def _entries(mapping: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in mapping.items():
        name = f"{where}.{key}" if where else str(key)
        if isinstance(value, Mapping) and any(
            isinstance(v, Mapping | HyperParam) for v in value.values()
        ):
            yield from _entries(value, name)
        else:
            yield name, value


def _hyper_param(name: str, entry: Any) -> HyperParam:
    if isinstance(entry, HyperParam):
        return entry
    fields = {field.name: field for field in dataclasses.fields(HyperParam)}
    if not isinstance(entry, Mapping):
        raise ConfigError(
            f"{name} in the search space is {entry!r}; give a mapping of {', '.join(fields)}"
        )
    target = str(entry.get("_target_", _TARGET))
    if target.rpartition(".")[2] != _TARGET:
        raise ConfigError(
            f"{name}._target_ in the search space is {target}; legal: "
            "lfads_torch.extensions.tune.HyperParam, or no _target_"
        )
    given = {str(key): value for key, value in entry.items() if not str(key).startswith("_")}
    for key in given:
        if key not in fields:
            raise ConfigError(f"{name}.{key} in the search space: {did_you_mean(key, fields)}")
    lacking = [key for key in ("min_samp", "max_samp") if key not in given]
    if lacking:
        raise ConfigError(
            f"{name} in the search space lacks {' and '.join(lacking)}: a new entry needs both "
            "limits; to change one of those that are there, spell it as they are"
        )
    try:
        return HyperParam(**given)
    except ConfigError as error:
        raise ConfigError(f"{name} in the search space: {error}") from None
