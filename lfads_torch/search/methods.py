"""What happens between two epochs of a search: who copies whom, who stops, and when it ends.

A method sees scores and says what is to be done. It depends on the run's seed, on the scores and on
its state alone, so that a resumed search decides as the uninterrupted one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from .rules import (
    IntArray,
    Patience,
    Schedule,
    halving_rungs,
    successive_halving,
    tournament,
)
from .settings import SearchSettings
from .space import Space, first_values, perturbed

Values = dict[str, NDArray[np.float64]]
#: First words of the seeds of a search, so that no stream is that of a member.
_FIRST, _EXCHANGE = 7_001, 7_002


class Verdict(NamedTuple):
    """What is to be done after an epoch.

    Attributes
    ----------
    ended : str
        Why the search ends here; empty where it goes on.
    parents : array of int, shape (K,), optional
        What each member becomes a copy of.
    finished, dropped : tuple of int
        Members (by their place among those that train) that stop: because they are done, or because
        they are given up.
    """

    ended: str = ""
    parents: IntArray | None = None
    finished: tuple[int, ...] = ()
    dropped: tuple[int, ...] = ()


class Method(Protocol):
    """A kind of search."""

    group: str
    replaced: str

    def first_values(self, n: int) -> Values:
        """Draw the values at which `n` members start."""

    def generation(self, epoch: int) -> int:
        """Return the generation in which an epoch (from 0) is trained."""

    def ends(self, n_epochs: int) -> bool:
        """Return whether a generation ends when `n_epochs` epochs are trained."""

    def judge(self, n_epochs: int, members: IntArray, scores: NDArray[np.float64]) -> Verdict:
        """Decide what happens after `n_epochs` epochs.

        `members` are the numbers of those that train, `scores` theirs: less is better, infinite for
        who has diverged.
        """

    def perturbed(self, n_epochs: int, values: Mapping[str, Any], members: IntArray) -> Values:
        """Return hyper-parameters after a perturbation of some members."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed search has to know, in plain numbers."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""


class PopulationBased:
    """Generations that end with a tournament (AutoLFADS).

    Parameters
    ----------
    settings : SearchSettings
    space : Space
    seed : int
        Seed of the run.
    burn_in : int
        Epochs before the first generation counts.
    max_epochs : int
        Epochs at most.
    """

    group = "gen"
    replaced = "copies"

    def __init__(
        self, settings: SearchSettings, space: Space, seed: int, burn_in: int, max_epochs: int
    ) -> None:
        self.space = space
        self.seed = seed
        self.schedule = Schedule(burn_in, settings.perturbation_interval, max_epochs)
        self.max_generations = settings.max_generations
        self.patience = Patience(settings.patience, settings.min_improvement_ratio)

    def first_values(self, n: int) -> Values:
        """Start where the space says, else from a draw."""
        return first_values(self.space, n, np.random.default_rng([_FIRST, self.seed % 2**32]))

    def generation(self, epoch: int) -> int:
        """Return the number, from 0, of the generation of an epoch."""
        return self.schedule.generation(epoch)

    def ends(self, n_epochs: int) -> bool:
        """Return whether a generation ends here."""
        return self.schedule.ends(n_epochs)

    def judge(self, n_epochs: int, members: IntArray, scores: NDArray[np.float64]) -> Verdict:
        """Hold a tournament at the end of a generation, unless the search ends."""
        if not self.schedule.ends(n_epochs):
            return Verdict()
        number = self.schedule.generation(n_epochs - 1) + 1
        if self.patience.update(scores):
            return Verdict(
                f"the best score improved by no more than {self.patience.min_ratio:g} of itself "
                f"in {self.patience.patience} generations"
            )
        if self.max_generations is not None and number >= self.max_generations:
            return Verdict(f"{number} generations are done")
        if not self.schedule.exchanges(n_epochs):
            return Verdict()
        return Verdict(parents=tournament(scores, self._rng(n_epochs, 0)))

    def perturbed(self, n_epochs: int, values: Mapping[str, Any], members: IntArray) -> Values:
        """Move the hyper-parameters of new copies."""
        return perturbed(self.space, values, members, self._rng(n_epochs, 1))

    def _rng(self, n_epochs: int, purpose: int) -> np.random.Generator:
        return np.random.default_rng([_EXCHANGE, self.seed % 2**32, n_epochs, purpose])

    def state_dict(self) -> dict[str, Any]:
        """Return the best scores so far."""
        return self.patience.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the best scores so far."""
        self.patience.load_state_dict(state)


class RandomSearch:
    """Every member draws once and trains until it stops improving, or until it is cut.

    Parameters
    ----------
    settings : SearchSettings
    space : Space
    seed : int
        Seed of the run.
    burn_in : int
        Epochs in which no member is judged.
    max_epochs : int
        Epochs at most.
    """

    group = "members"
    replaced = "stopped"

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
        self.rungs = (
            halving_rungs(n, max_epochs, first_cut, settings.halving_factor) if is_halving else []
        )

    def first_values(self, n: int) -> Values:
        """Draw every value."""
        rng = np.random.default_rng([_FIRST, self.seed % 2**32])
        return first_values(self.space, n, rng, use_init=False)

    def generation(self, epoch: int) -> int:
        """Return how many cuts lie behind an epoch."""
        return sum(rung.epochs <= epoch for rung in self.rungs)

    def ends(self, n_epochs: int) -> bool:
        """Return whether a cut is due, or a line of the table without one."""
        if self.rungs:
            return any(rung.epochs == n_epochs for rung in self.rungs)
        return n_epochs % self.interval == 0

    def judge(self, n_epochs: int, members: IntArray, scores: NDArray[np.float64]) -> Verdict:
        """Give up who has diverged or is cut; let stop who has not improved for long."""
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
        return Verdict(
            "no member trains any more" if stopping.all() and not diverged.all() else "",
            finished=tuple(np.flatnonzero(finished).tolist()),
            dropped=tuple(np.flatnonzero(dropped).tolist()),
        )

    def perturbed(self, n_epochs: int, values: Mapping[str, Any], members: IntArray) -> Values:
        """Return the values as they are."""
        return {name: np.asarray(value, dtype=np.float64) for name, value in values.items()}

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
