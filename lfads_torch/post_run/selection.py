"""Which rates to average, chosen greedily: plain arrays, no runs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..data import list_some
from ..errors import ConfigError, DataError, one_of, whole
from ..metrics.trialwise import NLB_FLOOR

Array = NDArray[Any]

SPACES = ("rate", "log")
#: Scores in bits per spike that differ by less are equal: sums of rates in another order.
_EQUAL = 1e-10


class Selection(NamedTuple):
    """Which members to average.

    `members` are their numbers, one as often as it counts; `curve` is the score on the select
    trials after each choice, of which `members` is the shortest best prefix.
    """

    members: list[int]
    curve: list[float]
    chosen: list[int]

    @property
    def weights(self) -> dict[int, float]:
        """The share of each chosen member in the mean."""
        return {k: n / len(self.members) for k, n in sorted(Counter(self.members).items())}


def average(
    rates: ArrayLike, weights: Mapping[int, float] | None = None, *, space: str = "rate"
) -> NDArray[np.float64]:
    """Average rates over members.

    Parameters
    ----------
    rates : array, shape (members, ...)
        Rates per bin; a memory-mapped array is read member by member.
    weights : mapping of int to float, optional
        Share of each member, by its number; by default all weigh the same.
    space : {"rate", "log"}
        Whether rates or their logarithms are averaged.

    Returns
    -------
    array, shape (...)
    """
    one_of("space", space, SPACES)
    members: Any = rates if hasattr(rates, "shape") else np.asarray(rates)
    shares = weights or dict.fromkeys(range(len(members)), 1 / len(members))
    total = np.zeros(members.shape[1:])
    for k, share in shares.items():
        total += share * in_space(np.asarray(members[k], dtype=np.float64), space)
    return np.exp(total) if space == "log" else total


def in_space(rates: Array, space: str) -> Array:
    """Return rates, or their logarithms."""
    return np.log(np.maximum(rates, NLB_FLOOR)) if space == "log" else rates


def greedy_select(
    rates: ArrayLike,
    data: ArrayLike,
    metric: str = "bps",
    *,
    most: int = 32,
    space: str = "rate",
) -> Selection:
    """Choose members one after another, with replacement, each the one that helps the mean most.

    Parameters
    ----------
    rates : array, shape (members, trials, bins, channels)
        Rates per bin of the trials, bins and channels that are scored.
    data : array, shape (trials, bins, channels)
        What was observed; NaN is missing.
    metric : {"bps", "r2"}
        Bits per spike of counts, or the share of variance explained of other data.
    most : int
        Choices at most.
    space : {"rate", "log"}
        Whether rates or their logarithms are averaged.

    Returns
    -------
    Selection
        Of equal members the one of lower number, of equal prefixes the shorter one.

    Raises
    ------
    ConfigError
        Where an argument is out of range.
    DataError
        Where rates are NaN, or their shape is not that of the data.

    Notes
    -----
    Ensemble selection of Caruana et al. 2004 (doi:10.1145/1015330.1015432). Counts need the rates
    of bins with spikes and the sum of all others, so a round costs little.
    """
    members: Any = rates if hasattr(rates, "shape") else np.asarray(rates)
    observed = np.asarray(data)
    one_of("metric", metric, ("bps", "r2"))
    target = Target(len(members), metric == "bps", space)
    for k in range(len(members)):
        target.add(k, np.asarray(members[k]), observed, f"member {k}")
    return target.select(whole("most", most, least=1))


class Target:
    """What selection needs of every member's rates: one part for each session."""

    def __init__(self, n_members: int, is_counts: bool, space: str) -> None:
        one_of("space", space, SPACES)
        if n_members < 2:
            raise ConfigError(
                f"an ensemble of {n_members} member(s); it needs 2 or more: name more runs, a "
                "search, or lfads train --seeds 8"
            )
        self.is_counts = is_counts
        # The sum of all rates follows from the members' sums only where rates are averaged.
        self.is_sparse = is_counts and space == "rate"
        self.space = space
        self._parts: list[list[Array]] = [[] for _ in range(n_members)]
        self._totals = np.zeros(n_members)
        self._data: list[Array] = []
        self._null = self._scale = 0.0

    def add(self, k: int, rates: Array, data: Array, name: str) -> None:
        """Add a session's rates of member k; the data are those of all members."""
        check_rates(rates, data, name)
        seen = np.isfinite(data)
        chosen = seen & (data != 0) if self.is_sparse else seen
        values = np.maximum(rates[chosen].astype(np.float64), NLB_FLOOR * self.is_counts or -np.inf)
        self._parts[k].append(in_space(values, self.space))
        self._totals[k] += rates[seen].sum(dtype=np.float64)
        if k == 0:
            self._data.append(data[chosen].astype(np.float64))
            null, scale = _reference(data, self.is_counts)
            self._null, self._scale = self._null + null, self._scale + scale

    def select(self, most: int) -> Selection:
        """Choose greedily."""
        parts = np.stack([np.concatenate(part) for part in self._parts])
        data = np.concatenate(self._data)
        if not self._scale:
            raise DataError("the select trials hold nothing to score: no spikes, or no variance")
        chosen: list[int] = []
        curve: list[float] = []
        values, total = np.zeros(parts.shape[1]), 0.0
        for size in range(1, most + 1):
            scores = np.array(
                [
                    self._score((values + part) / size, (total + rest) / size, data)
                    for part, rest in zip(parts, self._totals, strict=True)
                ]
            )
            k = int(np.flatnonzero(scores >= scores.max() - _EQUAL)[0])
            values, total = values + parts[k], total + self._totals[k]
            chosen.append(k)
            curve.append(float(scores[k]))
        best = int(np.flatnonzero(np.array(curve) >= max(curve) - _EQUAL)[0])
        return Selection(chosen[: best + 1], curve, chosen)

    def _score(self, values: Array, total: float, data: Array) -> float:
        """Score a mean: bits per spike, or the share of variance explained."""
        if not self.is_counts:
            means = np.exp(values) if self.space == "log" else values
            return 1 - float(((data - means) ** 2).sum()) / self._scale
        logs = np.log(values) if self.space == "rate" else values
        if self.space == "log":
            total = float(np.exp(values).sum())
        return (self._null - total + float(data @ logs)) / self._scale


def _reference(data: Array, is_counts: bool) -> tuple[float, float]:
    """Return the loss of each channel's mean, and what turns a loss into a score."""
    flat = data.reshape(-1, data.shape[-1]).astype(np.float64)
    n = np.isfinite(flat).sum(axis=0)
    means = np.nansum(flat, axis=0) / np.maximum(n, 1)
    if not is_counts:
        return 0.0, float(np.nansum((flat - means) ** 2))
    spikes = np.nansum(flat, axis=0)
    null = spikes - spikes * np.log(np.maximum(means, NLB_FLOOR))
    return float(null.sum()), float(spikes.sum() * math.log(2))


def check_rates(rates: Array, data: Array, name: str) -> None:
    """Refuse rates of another shape than the data, and NaN where something was observed."""
    if rates.shape != data.shape:
        raise DataError(
            f"{name}: rates have shape {rates.shape}, the data {data.shape}; they must agree"
        )
    bad = np.isnan(rates) & np.isfinite(data)
    if bad.any():
        trials = np.flatnonzero(bad.any(axis=(1, 2))).tolist()
        raise DataError(
            f"{name}: the rates of trials {list_some(trials)} (counted from 0) are NaN; leave the "
            "run out, or sample it again: lfads sample RUN"
        )
