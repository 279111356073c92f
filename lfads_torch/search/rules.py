"""The rules of a search: who copies whom, who stops, and when it ends.

First the rules alone, as functions of scores; then the methods, which use them after each epoch.
Scores are losses: the smaller the better. Negate a score of which more is better. A decision
depends on the seed of the run, on the scores and on the state of the method alone, so that a
resumed search decides as the uninterrupted one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray

from ..errors import ConfigError, number, whole
from .settings import SearchSettings
from .space import Space, first_values, perturbed

IntArray = NDArray[np.intp]


def tournament(scores: ArrayLike, rng: Generator) -> IntArray:
    """Pair members at random; the loser of each pair is to become a copy of the winner.

    Binary tournament of Keshtkaran, Sedler et al. (2022), after Jaderberg et al. (2017). With an
    odd number one member sits out, and of two equal scores neither loses. A score that is not
    finite always loses: where its pair has no finite one, or it sat out, it copies a random
    survivor. Nobody copies from a loser, so all copies can be made at once, and the best member
    never loses.

    Parameters
    ----------
    scores : array, shape (K,)
        The smaller the better.
    rng : numpy.random.Generator

    Returns
    -------
    array of int, shape (K,)
        Index of the member that each becomes a copy of; its own where it survives. Everybody
        survives where no score is finite.
    """
    losses = np.asarray(scores, dtype=np.float64)
    losses = np.where(np.isfinite(losses), losses, np.inf)
    parents = np.arange(len(losses))
    order = rng.permutation(len(losses))
    first, second = order[: len(losses) // 2 * 2].reshape(-1, 2).T
    won, lost = losses[first] < losses[second], losses[first] > losses[second]
    parents[second[won]] = first[won]
    parents[first[lost]] = second[lost]
    survivors = np.flatnonzero(np.isfinite(losses) & (parents == np.arange(len(losses))))
    stranded = np.flatnonzero(np.isinf(losses[parents]))
    if survivors.size:
        parents[stranded] = rng.choice(survivors, size=stranded.size)
    return parents


@dataclass(frozen=True)
class Schedule:
    """When generations end, in epochs.

    Parameters
    ----------
    burn_in_period : int
        Epochs before the first generation counts: those in which KL and L2 ramps rise.
    perturbation_interval : int
        Epochs of a generation. The first one lasts `burn_in_period` longer.
    max_epochs : int
        Epochs after which the search ends; nobody copies there.

    Raises
    ------
    ConfigError
        If a number is out of range.
    """

    burn_in_period: int = 80
    perturbation_interval: int = 25
    max_epochs: int = 10_000

    def __post_init__(self) -> None:
        for name, least in (("burn_in_period", 0), ("perturbation_interval", 1), ("max_epochs", 1)):
            whole(name, getattr(self, name), least=least)

    def generation(self, epoch: int) -> int:
        """Return the number, from 0, of the generation in which an epoch (from 0) is trained."""
        return max(0, (epoch - self.burn_in_period) // self.perturbation_interval)

    def ends(self, n_epochs: int) -> bool:
        """Return whether a generation ends when `n_epochs` epochs are trained."""
        since = n_epochs - self.burn_in_period
        return since > 0 and since % self.perturbation_interval == 0

    def exchanges(self, n_epochs: int) -> bool:
        """Return whether members copy when `n_epochs` epochs are trained."""
        return self.ends(n_epochs) and n_epochs < self.max_epochs


@dataclass
class Patience:
    """Stop rule: the best score has all but stopped improving.

    With b[g] the best score up to generation g, the search ends when b[g - patience] - b[g] is at
    most `min_ratio` times the magnitude of b[g - patience].

    Parameters
    ----------
    patience : int
        Generations over which the improvement is looked at.
    min_ratio : float
        Relative improvement that is still worth going on; what is at most this ends the search.
    best : list of float
        Best score up to each generation seen, oldest first; the state.

    Raises
    ------
    ConfigError
        If `patience` is below 1 or `min_ratio` is not finite.

    Examples
    --------
    >>> rule = Patience(patience=1, min_ratio=0.1)
    >>> rule.update([3.0, 2.0]), rule.update([1.0, 4.0]), rule.update([0.95, 1.0])
    (False, False, True)
    """

    patience: int = 4
    min_ratio: float = 5e-4
    best: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.patience = whole("patience", self.patience, least=1)
        number("min_ratio", self.min_ratio)

    def update(self, scores: ArrayLike) -> bool:
        """Update with the scores of a finished generation, ignoring those that are not finite.

        Parameters
        ----------
        scores : array, shape (K,)

        Returns
        -------
        bool
            Whether the search should end.
        """
        values = np.asarray(scores, dtype=np.float64).ravel()
        best = np.min(values[np.isfinite(values)], initial=math.inf)
        self.best.append(min(float(best), self.best[-1] if self.best else math.inf))
        return self.is_over

    @property
    def is_over(self) -> bool:
        """Whether the search should end after the generations seen."""
        if len(self.best) <= self.patience:
            return False
        before, now = self.best[-1 - self.patience], self.best[-1]
        return math.isfinite(before) and before - now <= self.min_ratio * abs(before)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as a plain dict, for a checkpoint."""
        return {"best": list(self.best)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the state of `state_dict`."""
        self.best = [float(value) for value in state["best"]]


class Rung(NamedTuple):
    """A cut of successive halving: after `epochs` epochs in all, `n_members` go on."""

    epochs: int
    n_members: int


def halving_rungs(
    n_members: int, max_epochs: int, min_epochs: int, factor: float | int = 3
) -> list[Rung]:
    """Plan successive halving (Jamieson & Talwalkar 2016; rungs as in Li et al. 2018).

    After `min_epochs` epochs one in `factor` members goes on, after `factor` times as many epochs
    again one in `factor`, until one is left or `max_epochs` is reached.

    Parameters
    ----------
    n_members : int
        Members at the start.
    max_epochs : int
        Epochs that the last members get.
    min_epochs : int
        Epochs that every member gets.
    factor : float, default=3
        Share that goes on, above 1.

    Returns
    -------
    list of Rung
        In order; the last members train on to `max_epochs`.

    Raises
    ------
    ConfigError
        If a number is out of range.
    """
    if n_members < 1 or not factor > 1 or not 1 <= min_epochs <= max_epochs:
        raise ConfigError(
            f"successive halving of {n_members} members by {factor} between {min_epochs} and "
            f"{max_epochs} epochs; legal: members from 1 on, a factor above 1, and 1 <= least "
            "epochs <= most epochs"
        )
    rungs: list[Rung] = []
    epochs, left = float(min_epochs), n_members
    while left > 1 and round(epochs) < max_epochs:
        # One at least goes each time, so that any factor comes to an end.
        left = max(1, min(left - 1, int(left / factor)))
        rungs.append(Rung(round(epochs), left))
        epochs = max(epochs * factor, epochs + 1)
    return rungs


def successive_halving(scores: ArrayLike, n_keep: int) -> IntArray:
    """Choose the members that go on.

    Parameters
    ----------
    scores : array, shape (K,)
        The smaller the better; the earlier of two equal ones goes first.
    n_keep : int
        How many go on.

    Returns
    -------
    array of int, shape (at most n_keep,)
        Their indices, ascending. Members whose score is not finite never go on.
    """
    values = np.asarray(scores, dtype=np.float64)
    finite = np.flatnonzero(np.isfinite(values))
    return np.sort(finite[np.argsort(values[finite], kind="stable")[: max(n_keep, 0)]])


Values = dict[str, NDArray[np.float64]]
#: First words of the seeds of a search, so that no stream is that of a member.
_FIRST, _EXCHANGE = 7_001, 7_002


@dataclass(frozen=True)
class Plan:
    """What members do before the next epoch, in their numbers.

    `ended` says why the search ends here, and is empty where it goes on. `parents` are the members
    that become copies, and of whom. Members that are done are `finished`; those that are cut or
    have diverged are `dropped`. The coordinator adds the copies' hyper-parameters, as `values`, and
    where groups are apart, the checkpoint of each parent's group, as `sources`.
    """

    n_epochs: int
    ended: str = ""
    parents: dict[int, int] = field(default_factory=dict)
    finished: tuple[int, ...] = ()
    dropped: tuple[int, ...] = ()
    values: dict[str, dict[int, float]] = field(default_factory=dict)
    sources: dict[int, str] = field(default_factory=dict)


class Method(Protocol):
    """A kind of search."""

    space: Space
    seed: int
    #: Whether members copy each other; if not, they only stop.
    exchanges: bool
    #: Whether the fate of a member depends on the others.
    compares: bool

    def generation(self, epoch: int) -> int:
        """Return the generation in which an epoch (from 0) is trained."""

    def ends(self, n_epochs: int) -> bool:
        """Return whether a generation ends when `n_epochs` epochs are trained."""

    def judge(self, n_epochs: int, members: IntArray, scores: NDArray[np.float64]) -> Plan:
        """Decide what happens after `n_epochs` epochs.

        `members` are the numbers of those that train, `scores` theirs: less is better, infinite for
        a member that has diverged.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed search has to know, in plain numbers."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""


def start_values(method: Method, n_members: int) -> Values:
    """Draw the values at which members start: at `init` where they can move on from it."""
    rng = np.random.default_rng([_FIRST, method.seed % 2**32])
    return first_values(method.space, n_members, rng, use_init=method.exchanges)


def copied_values(method: Method, n_epochs: int, values: Values, members: IntArray) -> Values:
    """Perturb the hyper-parameters of new copies."""
    return perturbed(method.space, values, members, _exchange_rng(method.seed, n_epochs, 1))


def _exchange_rng(seed: int, n_epochs: int, purpose: int) -> Generator:
    # A stream for each exchange, and not one for the search: a resumed search then draws the same
    # numbers without a generator's state in its files. A tournament and the perturbation after it
    # have streams of their own, so that neither depends on how much the other draws.
    return np.random.default_rng([_EXCHANGE, seed % 2**32, n_epochs, purpose])


def needs_plan(method: Method, n_epochs: int, max_epochs: int) -> bool:
    """Return whether what happens after these epochs depends on members of other groups."""
    return method.compares and method.ends(n_epochs) and n_epochs < max_epochs


class PopulationBased:
    """Generations that end with a tournament (AutoLFADS)."""

    exchanges = True
    compares = True

    def __init__(
        self, settings: SearchSettings, space: Space, seed: int, burn_in: int, max_epochs: int
    ) -> None:
        self.space = space
        self.seed = seed
        self.schedule = Schedule(burn_in, settings.perturbation_interval, max_epochs)
        self.max_generations = settings.max_generations
        self.patience = Patience(settings.patience, settings.min_improvement_ratio)

    def generation(self, epoch: int) -> int:
        """Return the number, from 0, of the generation of an epoch."""
        return self.schedule.generation(epoch)

    def ends(self, n_epochs: int) -> bool:
        """Return whether a generation ends here."""
        return self.schedule.ends(n_epochs)

    def judge(self, n_epochs: int, members: IntArray, scores: NDArray[np.float64]) -> Plan:
        """Hold a tournament at the end of a generation, unless the search ends."""
        if not self.schedule.ends(n_epochs):
            return Plan(n_epochs)
        number = self.schedule.generation(n_epochs - 1) + 1
        if self.patience.update(scores):
            return Plan(
                n_epochs,
                f"the best score improved by no more than {self.patience.min_ratio:g} of itself "
                f"in {self.patience.patience} generations",
            )
        if self.max_generations is not None and number >= self.max_generations:
            return Plan(n_epochs, f"{number} generations are done")
        if not self.schedule.exchanges(n_epochs):
            return Plan(n_epochs)
        parents = members[tournament(scores, _exchange_rng(self.seed, n_epochs, 0))]
        pairs = zip(members.tolist(), parents.tolist(), strict=True)
        return Plan(n_epochs, parents={k: parent for k, parent in pairs if parent != k})

    def state_dict(self) -> dict[str, Any]:
        """Return the best scores so far."""
        return self.patience.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the best scores so far."""
        self.patience.load_state_dict(state)


class RandomSearch:
    """Every member draws once and trains until it stops improving, or until it is cut."""

    exchanges = False

    def __init__(
        self, settings: SearchSettings, space: Space, seed: int, burn_in: int, max_epochs: int
    ) -> None:
        self.space = space
        self.seed = seed
        self.burn_in = burn_in
        self.stop_after = settings.stop_after
        self.interval = settings.perturbation_interval
        n = settings.n_members
        self.best = np.full(n, np.inf)
        self.best_epoch = np.full(n, burn_in, dtype=np.intp)
        first_cut = min(burn_in + self.interval, max_epochs)
        is_halving = settings.method == "halving"
        self.compares = is_halving
        self.rungs = (
            halving_rungs(n, max_epochs, first_cut, settings.halving_factor) if is_halving else []
        )

    def generation(self, epoch: int) -> int:
        """Return how many cuts lie behind an epoch."""
        return sum(rung.epochs <= epoch for rung in self.rungs)

    def ends(self, n_epochs: int) -> bool:
        """Return whether a cut is due, or a line of the table without one."""
        if self.rungs:
            return any(rung.epochs == n_epochs for rung in self.rungs)
        return n_epochs % self.interval == 0

    def judge(self, n_epochs: int, members: IntArray, scores: NDArray[np.float64]) -> Plan:
        """Drop who has diverged or is cut; stop who has not improved for long."""
        diverged = ~np.isfinite(scores)
        finished = np.zeros(len(scores), dtype=bool)
        if n_epochs > self.burn_in:
            better = scores < self.best[members]
            self.best[members[better]] = scores[better]
            self.best_epoch[members[better]] = n_epochs
            since = n_epochs - self.best_epoch[members]
            finished = since >= (math.inf if self.stop_after is None else self.stop_after)
        cut = np.zeros(len(scores), dtype=bool)
        for rung in self.rungs:
            if rung.epochs == n_epochs:
                cut[:] = True
                cut[successive_halving(scores, rung.n_members)] = False
        dropped = diverged | cut
        finished &= ~dropped
        stopping = dropped | finished
        return Plan(
            n_epochs,
            "no member trains any more" if stopping.all() and not diverged.all() else "",
            finished=tuple(members[finished].tolist()),
            dropped=tuple(members[dropped].tolist()),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the best score of every member and its epoch."""
        return {"best": self.best.tolist(), "best_epoch": self.best_epoch.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the best scores so far."""
        self.best = np.asarray(state["best"], dtype=np.float64)
        self.best_epoch = np.asarray(state["best_epoch"], dtype=np.intp)


def build_method(
    settings: SearchSettings, space: Space, seed: int, burn_in: int, max_epochs: int
) -> Method:
    """Return the method that settings choose."""
    kind = PopulationBased if settings.method == "pbt" else RandomSearch
    return kind(settings, space, seed, burn_in, max_epochs)
