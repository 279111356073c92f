"""Spaces of hyper-parameters: what is searched, and how a search moves it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray

from ..arguments import number_of, search_ranges
from ..errors import ConfigError, did_you_mean, number

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

#: Draws of a perturbation before a value that will not fall within its limits is clipped to them.
MAX_TRIES = 99


def _uniform(low: float, high: float, rng: Generator) -> float:
    return float(rng.uniform(low, high))


def _loguniform(low: float, high: float, rng: Generator) -> float:
    # exp(log(x)) may miss x by a rounding error.
    return min(max(math.exp(rng.uniform(math.log(low), math.log(high))), low), high)


def _randint(low: float, high: float, rng: Generator) -> float:
    return float(rng.integers(int(low), int(high), endpoint=True))


def _lograndint(low: float, high: float, rng: Generator) -> float:
    return min(float(math.floor(_loguniform(low, high + 1, rng))), high)


_SAMPLERS: dict[str, Callable[[float, float, Generator], float]] = {
    "loguniform": _loguniform,
    "uniform": _uniform,
    "lograndint": _lograndint,
    "randint": _randint,
}
_INTEGERS = ("randint", "lograndint")
_LOGARITHMIC = ("loguniform", "lograndint")


class _Start(float):
    """A number that is a function of one argument, too, which returns `value`."""

    value: float

    def __call__(self, spec: Any = None) -> float:
        return self.value


def _finite(name: str, value: Any) -> float:
    if isinstance(value, str):
        with suppress(ValueError):
            value = float(value)  # YAML reads 1e-5, without a point, as text
    return number(name, value)


@dataclass(frozen=True)
class HyperParam:
    """How one hyper-parameter is drawn, and how far a generation may move it.

    Parameters
    ----------
    min_samp, max_samp : float
        Limits of the first draw, both within it.
    init : float or callable, optional
        Value at which every member of a population starts; without it each draws its own. The
        attribute is a function of one argument, which returns that value or a draw: scripts give
        it, or the `HyperParam` itself, which always draws, to `ray.tune.sample_from`.
    sample_fn : {"loguniform", "uniform", "lograndint", "randint"} or callable
        Distribution of the draw. The logarithmic ones need `min_samp` > 0, the last two draw whole
        numbers. A function of one argument, which it may leave unused, returns a draw.
    explore_wt : float
        Width w of a perturbation: it multiplies or divides by a factor between 1 + 0.002 w and
        1 + w. With 0 a value never moves.
    enforce_limits : bool
        Whether perturbed values stay within `min_samp` and `max_samp`. Whole numbers always do.

    Attributes
    ----------
    start : float or None
        `init` as it was given.
    min_bound, max_bound : float
        Limits of perturbed values, infinite where they are not enforced.

    Raises
    ------
    ConfigError
        If a number is not finite, limits are the wrong way round or not what `sample_fn` can draw
        from, or `init` is 0 or lies outside limits that are enforced.
    """

    min_samp: float
    max_samp: float
    init: Any = field(default=None, compare=False)
    sample_fn: str | Callable[[Any], float] = "loguniform"
    explore_wt: float = 0.2
    enforce_limits: bool = False
    start: float | None = field(init=False, repr=False)

    @property
    def is_logarithmic(self) -> bool:
        """Whether values are drawn evenly in their logarithm."""
        return self.sample_fn in _LOGARITHMIC

    def __post_init__(self) -> None:
        for name in ("min_samp", "max_samp", "init", "explore_wt"):
            value = getattr(self, name)
            if name != "init" or not (value is None or callable(value)):
                object.__setattr__(self, name, _finite(name, value))
        if not isinstance(self.enforce_limits, bool | np.bool_):
            raise ConfigError(f"enforce_limits is {self.enforce_limits!r}; legal: true or false")
        self._set_start(self.init)
        if not callable(self.sample_fn) and str(self.sample_fn) not in _SAMPLERS:
            advice = did_you_mean(str(self.sample_fn), _SAMPLERS)
            raise ConfigError(f"sample_fn is {self.sample_fn!r}; {advice}")
        low, high = self.min_samp, self.max_samp
        if low > high:
            raise ConfigError(
                f"limits the wrong way round: min_samp is {low:g}, max_samp {high:g}; swap them"
            )
        if self.sample_fn in _LOGARITHMIC and low <= 0:
            raise ConfigError(
                f"min_samp is {low:g}, which {self.sample_fn} cannot draw; give a minimum above 0 "
                f"or sample_fn: {str(self.sample_fn).removeprefix('log')}"
            )
        if self.sample_fn in _INTEGERS and not (low.is_integer() and high.is_integer()):
            raise ConfigError(
                f"{self.sample_fn} draws whole numbers, but its limits are {low:g} and {high:g}"
            )
        if self.explore_wt < 0:
            raise ConfigError(f"explore_wt is {self.explore_wt:g}; legal are 0 and more")
        if self.start is not None:
            self._check_init(self.start)

    def _set_start(self, init: Any) -> None:
        is_number = isinstance(init, float)
        object.__setattr__(self, "start", init if is_number else None)
        if is_number:
            init = _Start(init)
            init.value = self.rounded(init)
        object.__setattr__(self, "init", self._draw if init is None else init)

    def _check_init(self, init: float) -> None:
        if init == 0 and self.explore_wt > 0:
            raise ConfigError(
                "init is 0, which no factor can change: start above it, or give explore_wt: 0"
            )
        if self._is_bounded and not self.min_samp <= init <= self.max_samp:
            raise ConfigError(
                f"init is {init:g}, outside the enforced limits {self.min_samp:g} and "
                f"{self.max_samp:g}; widen them or move init"
            )

    @property
    def _is_bounded(self) -> bool:
        return self.enforce_limits or self.sample_fn in _INTEGERS

    @property
    def min_bound(self) -> float:
        """The least value that a perturbation may give."""
        return self.min_samp if self._is_bounded else -math.inf

    @property
    def max_bound(self) -> float:
        """The largest value that a perturbation may give."""
        return self.max_samp if self._is_bounded else math.inf

    def __call__(self, spec: Any = None) -> float:
        """Draw a value, for `ray.tune.sample_from`."""
        return self._draw(spec)

    def sample(self, rng: Any = None) -> float:
        """Draw a value by `sample_fn` between the limits.

        Anything but a generator of random numbers stands for NumPy's global one.
        """
        if callable(self.sample_fn):
            return float(self.sample_fn(rng))
        if not isinstance(rng, Generator):
            rng = np.random.default_rng(np.random.randint(2**31))
        return _SAMPLERS[self.sample_fn](self.min_samp, self.max_samp, rng)

    def first(self, rng: Generator) -> float:
        """Return the value to start from: `init`, or a draw without it."""
        return float(self.init(rng)) if self.start is None else self.start

    def rounded(self, value: float) -> float:
        """Return a value as the configuration takes it: as an int where whole numbers are drawn."""
        return int(value) if self.sample_fn in _INTEGERS else float(value)

    def _draw(self, spec: Any = None) -> float:
        return self.rounded(self.sample(spec))

    def perturb(self, value: float, rng: Generator) -> float:
        """Move a value by a random factor, as likely up as down.

        The factor is exp(s m), s = -1 or 1 with equal probability, m uniform between
        ln(1 + 0.002 w) and ln(1 + w), w = `explore_wt`: symmetric in log space, so that no value
        drifts without selection. Where limits hold, values beyond them are drawn again; after
        `MAX_TRIES` draws the last one is clipped. Whole numbers are rounded up or down at random,
        such that their mean is the value before rounding.

        Parameters
        ----------
        value : float
        rng : numpy.random.Generator

        Returns
        -------
        float
        """
        smallest, largest = math.log1p(0.002 * self.explore_wt), math.log1p(self.explore_wt)
        moved = value
        for _ in range(MAX_TRIES if self._is_bounded else 1):
            magnitude = rng.uniform(smallest, largest)
            moved = value * math.exp(magnitude if rng.random() < 0.5 else -magnitude)
            if self.sample_fn in _INTEGERS:
                moved = float(math.floor(moved + rng.random()))
            if self.min_samp <= moved <= self.max_samp:
                return moved
        return min(max(moved, self.min_samp), self.max_samp) if self._is_bounded else moved


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
    space = {}
    for name, hyper_param in DEFAULT_SPACE.items():
        path = name if name in names else by_ending.get(name.rpartition(".")[2])
        # An augmentation counts wherever it stands in the stack; a number of the model itself and
        # one of an augmentation with the same name are different things.
        if path is not None and ("." in path) == ("." in name):
            space[path] = hyper_param
    return space


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
    entries: dict[str, dict[str, Any]] = {}
    for name, hp in space.items():
        if callable(hp.sample_fn) or (hp.start is None and hp.init != hp._draw):
            raise ConfigError(
                f"sample_fn or init of {name} is a function, which a configuration cannot hold; "
                f"give a number as init, and one of {', '.join(_SAMPLERS)} as sample_fn"
            )
        values = {item.name: getattr(hp, item.name) for item in fields(hp) if item.init}
        entries[name.removeprefix(_PREFIX)] = {**values, "init": hp.start}
    return {f"search.space.{name}": entries.get(name) for name in {**DEFAULT_SPACE, **entries}}


def check_space(space: Mapping[str, HyperParam], tunables: Iterable[str]) -> None:
    """Check that the model to be searched has the names of a space and can take its values.

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
    arguments = [item.name for item in fields(HyperParam) if item.init]
    if not isinstance(entry, Mapping):
        raise ConfigError(
            f"{name} in the search space is {entry!r}; give a mapping of {', '.join(arguments)}"
        )
    target = str(entry.get("_target_", _TARGET))
    if target.rpartition(".")[2] != _TARGET:
        raise ConfigError(
            f"{name}._target_ in the search space is {target}; legal: "
            "lfads_torch.extensions.tune.HyperParam, or no _target_"
        )
    given = {str(key): value for key, value in entry.items() if not str(key).startswith("_")}
    for key in given:
        if key not in arguments:
            raise ConfigError(f"{name}.{key} in the search space: {did_you_mean(key, arguments)}")
    lacking = [key for key in ("min_samp", "max_samp") if key not in given]
    if lacking:
        raise ConfigError(
            f"{name} in the search space lacks {' and '.join(lacking)}: a new entry needs both "
            "limits; to change an existing one, spell its name as it is there"
        )
    try:
        return HyperParam(**given)
    except ConfigError as error:
        raise ConfigError(f"{name} in the search space: {error}") from None
