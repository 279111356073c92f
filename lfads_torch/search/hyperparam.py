"""One hyper-parameter: where it starts, how it is drawn, how far a generation moves it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator

from ..errors import ConfigError, did_you_mean

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


@dataclass(frozen=True)
class HyperParam:
    """How one hyper-parameter is drawn, and how far a generation may move it.

    Parameters
    ----------
    min_samp, max_samp : float
        Limits of the first draw, both within it.
    init : float, optional
        Value at which every member of a population starts; without it each draws its own.
    sample_fn : {"loguniform", "uniform", "lograndint", "randint"}
        Distribution of the draw. The logarithmic ones need `min_samp` > 0, the last two draw whole
        numbers.
    explore_wt : float
        Width w of a perturbation: it multiplies or divides by a factor between 1 + 0.002 w and
        1 + w. With 0 a value never moves.
    enforce_limits : bool
        Whether perturbed values stay within `min_samp` and `max_samp`. Whole numbers always do.

    Raises
    ------
    ConfigError
        If a number is not finite, limits are the wrong way round or not what `sample_fn` can draw
        from, or `init` is 0 or lies outside limits that are enforced.
    """

    min_samp: float
    max_samp: float
    init: float | None = None
    sample_fn: str = "loguniform"
    explore_wt: float = 0.2
    enforce_limits: bool = False

    def __post_init__(self) -> None:
        for name in ("min_samp", "max_samp", "init", "explore_wt"):
            value = getattr(self, name)
            if value is not None or name != "init":
                object.__setattr__(self, name, _finite(name, value))
        if not isinstance(self.enforce_limits, bool | np.bool_):
            raise ConfigError(f"enforce_limits is {self.enforce_limits!r}; legal: true or false")
        if not isinstance(self.sample_fn, str) or self.sample_fn not in _SAMPLERS:
            advice = did_you_mean(str(self.sample_fn), _SAMPLERS)
            raise ConfigError(f"sample_fn is {self.sample_fn!r}; {advice}")
        low, high = self.min_samp, self.max_samp
        if low > high:
            raise ConfigError(
                f"limits the wrong way round: min_samp is {low:g}, max_samp {high:g}; swap them"
            )
        if "log" in self.sample_fn and low <= 0:
            raise ConfigError(
                f"min_samp is {low:g}, which {self.sample_fn} cannot draw; give a minimum above 0 "
                f"or sample_fn: {self.sample_fn.removeprefix('log')}"
            )
        if self.sample_fn in _INTEGERS and not (low.is_integer() and high.is_integer()):
            raise ConfigError(
                f"{self.sample_fn} draws whole numbers, but its limits are {low:g} and {high:g}"
            )
        if self.explore_wt < 0:
            raise ConfigError(f"explore_wt is {self.explore_wt:g}; legal are 0 and more")
        if self.init is not None:
            self._check_init(self.init)

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

    def sample(self, rng: Generator) -> float:
        """Draw a value by `sample_fn` between the limits."""
        return _SAMPLERS[self.sample_fn](self.min_samp, self.max_samp, rng)

    def first(self, rng: Generator) -> float:
        """Return the value to start from: `init`, or a draw where there is none."""
        return self.sample(rng) if self.init is None else self.init

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


def _finite(name: str, value: Any) -> float:
    try:
        # YAML reads 1e-5, without a point, as text.
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"{name} is {value!r}; give a finite number")
    return number
