"""Members of a search that train as one stacked population, and follow plans. Needs no Ray."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checkpoint import read_checkpoint, write_checkpoint
from ..data.fingerprint import fingerprints
from ..errors import UserError
from ..files import damage, generation_before, write_whole
from .members import build_members, max_epochs_of
from .population import Population
from .rules import Plan, needs_plan
from .settings import SearchSettings
from .state import Best, Outcome, Place

OpenFolder = Callable[[str], AbstractContextManager[Path | str]]


class Group:
    """Members of a search that train as one stacked model.

    `config` is composed, with ``search``; `numbers` says which members of the search these are.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        settings: SearchSettings,
        numbers: Sequence[int],
        *,
        device: str = "cpu",
    ) -> None:
        members = build_members(config, settings, numbers, device=device)
        self.settings = members.settings
        self.data = fingerprints(members.datamodule)
        self.method = members.method
        self.max_epochs = max_epochs_of(config)
        self.population = Population(
            members.models,
            members.datamodule,
            members.seeds,
            gradient_clip_val=float(config["trainer"].get("gradient_clip_val") or 0.0),
            device=device,
            stack_size=settings.chunk,
        )
        members.models.clear()  # the population has copies
        self.population.set_values(members.values)
        self._all: NDArray[np.intp] = np.asarray(numbers, dtype=np.intp)
        self.numbers = self._all
        #: Members that the population holds; it cannot hold none.
        self._held = self.numbers
        self.scores = np.full(len(self.numbers), np.inf)
        self.best = Best()
        self._best_checkpoint: dict[str, Any] | None = None
        #: Members that do not train any more, with score and checkpoint.
        self._stopped: dict[int, tuple[float, dict[str, Any]]] = {}
        self._decided = 0
        self._ended = False
        self._written: set[tuple[Path, int]] = set()

    @property
    def n_epochs(self) -> int:
        """Epochs trained."""
        return self.population.epoch

    @property
    def is_over(self) -> bool:
        """Whether no member trains any more."""
        return self._ended or not len(self.numbers) or self.n_epochs >= self.max_epochs

    @property
    def waits(self) -> bool:
        """Whether a plan is needed before the next epoch."""
        return not self.is_over and self._needs_plan and self._decided < self.n_epochs

    @property
    def _needs_plan(self) -> bool:
        return needs_plan(self.method, self.n_epochs, self.max_epochs)

    def train_epoch(self) -> dict[str, Any]:
        """Train an epoch, and stop the members whose fate depends on themselves alone.

        Returns what the history records, in plain lists with one item for each member trained.
        """
        names, values = self.population.names, self.population.values
        metrics = self.population.train_epoch()
        alive = self.population.alive
        self.scores = self.settings.scores(metrics[self.settings.metric], alive)
        report = {
            "n_epochs": self.n_epochs,
            "members": self.numbers.tolist(),
            "values": {name: values[name].tolist() for name in names},
            "metrics": {name: np.asarray(column).tolist() for name, column in metrics.items()},
            "diverged": (~alive).tolist(),
        }
        k = int(np.argmin(self.scores))
        if self.scores[k] < self.best.score:
            self.best = Best(float(self.scores[k]), int(self.numbers[k]), self.n_epochs - 1)
            self._best_checkpoint = self.population.checkpoint(k)
        # The coordinator comes to the same by the same rule. To wait for its word would cost a
        # group of its own process a round trip in each epoch.
        plan = self.method.judge(self.n_epochs, self.numbers, self.scores)
        if not self._needs_plan:
            self._stop(plan)
        return report

    def _stop(self, plan: Plan) -> None:
        """Take out the members that stop; one that is finished leaves a checkpoint."""
        for k, number in enumerate(self.numbers.tolist()):
            if number in plan.finished:
                score = float(self.scores[k])
                self._stopped[number] = (score, self.population.checkpoint(k))
        staying = np.flatnonzero(~np.isin(self.numbers, [*plan.finished, *plan.dropped]))
        if 0 < len(staying) < len(self.numbers):
            self.population.keep(staying)
            self._held = self.numbers[staying]
        self.numbers, self.scores = self.numbers[staying], self.scores[staying]

    def follow(self, plan: Plan, open_folder: OpenFolder = nullcontext) -> None:
        """Do what a plan says; `open_folder` gives another group's checkpoint as a folder here."""
        self._decided = plan.n_epochs
        self._ended = bool(plan.ended)
        place = {int(number): k for k, number in enumerate(self.numbers)}
        copies = {place[k]: parent for k, parent in plan.parents.items() if k in place}
        elsewhere = {k: parent for k, parent in copies.items() if parent not in place}
        for source in sorted({plan.sources[parent] for parent in elsewhere.values()}):
            with open_folder(source) as folder:
                state = read_checkpoint(Place.of_trial(Path(folder)).state)
            for k, parent in elsewhere.items():
                if plan.sources[parent] == source:
                    self.population.adopt(k, state["population"], state["held"].index(parent))
        parents = np.arange(len(self.numbers))
        for k, parent in copies.items():
            parents[k] = place.get(parent, k)
        if len(elsewhere) < len(copies):
            self.population.exchange(parents)
        if copies:
            values = self.population.values
            for name, column in plan.values.items():
                for k in copies:
                    values[name][k] = column[int(self.numbers[k])]
            self.population.set_values({name: values[name] for name in plan.values})
        self._stop(plan)

    # ---- state -----------------------------------------------------------------------------------

    @property
    def outcome(self) -> Outcome:
        """Scores of members that stopped or still train, the best score, and epochs so far."""
        scores = {number: score for number, (score, _) in self._stopped.items()}
        last = zip(self.numbers.tolist(), self.scores.tolist(), strict=True)
        scores |= {k: score for k, score in last if np.isfinite(score)}
        return Outcome(scores, self.best, self.n_epochs, self.population.steps_per_epoch)

    def save(self, place: Place, *, flush: bool = True) -> None:
        """Write all that the next epoch depends on; at the end, also every member.

        `flush` waits until the state is on the disk.
        """
        if self.is_over:
            self.save_members(place)
        else:
            self._save_stopped(place)
        if self._best_checkpoint is not None:
            # The one before stays until the state names its successor.
            self._write(place.best, self.best.epoch, self._best_checkpoint, keep=True)
        state = {
            "population": self.population.state_dict(),
            "method": self.method.state_dict(),
            "kind": self.settings.method,
            "members": self._all.tolist(),
            "numbers": self.numbers.tolist(),
            "held": self._held.tolist(),
            "scores": self.scores.tolist(),
            "best": list(self.best),
            "stopped": {number: score for number, (score, _) in self._stopped.items()},
            "decided": self._decided,
            "ended": self._ended,
        }
        write_checkpoint(place.state, state, flush=flush, keep=True)
        generation_before(place.best).unlink(missing_ok=True)

    def save_members(self, place: Place) -> None:
        """Write a checkpoint of every member that has not diverged."""
        self._save_stopped(place)
        for k in np.flatnonzero(np.isfinite(self.scores)):
            checkpoint = self.population.checkpoint(int(k))
            self._write(place.member(int(self.numbers[k])), self.n_epochs, checkpoint)

    def write_about(self, place: Place) -> None:
        """Write what a driver reads of a group without loading it."""
        about = {**self.outcome._asdict(), "is_over": self.is_over}
        if not self.is_over:
            about["scores"] = {}
        write_whole(place.about, json.dumps(about))

    def _save_stopped(self, place: Place) -> None:
        for number, (_, checkpoint) in self._stopped.items():
            self._write(place.member(number), -1, checkpoint)

    def _write(
        self, path: Path, version: int, checkpoint: Mapping[str, Any], *, keep: bool = False
    ) -> None:
        """Write a checkpoint, unless this version of it is there already."""
        if (path, version) not in self._written:
            write_checkpoint(path, checkpoint, keep=keep)
            self._written.add((path, version))

    def load(self, place: Place) -> None:
        """Go on from what `save` wrote; the group may not have got further than that."""
        state = read_checkpoint(place.state)
        for key, before, now in (
            (self.settings.count_key, len(state["members"]), len(self._all)),
            ("search.method", state["kind"], self.settings.method),
        ):
            if before != now:
                raise UserError(
                    f"{key} is {now}, but the search in {place.state.parent} was begun with "
                    f"{before}; go on with that, or start another one"
                )
        held = np.asarray(state["held"], dtype=np.intp)
        if len(held) < len(self._held):
            self.population.keep(np.flatnonzero(np.isin(self._held, held)))
        self._held = held
        self.numbers = np.asarray(state["numbers"], dtype=np.intp)
        self.population.load_state_dict(state["population"])
        self.method.load_state_dict(state["method"])
        self.scores = np.asarray(state["scores"], dtype=np.float64)
        self.best = Best(*state["best"])
        if self.best.member >= 0:
            self._best_checkpoint = self._read_best(place.best)
            if self._best_checkpoint is None:
                self.best = Best()
        self._stopped = {}
        for number, score in state["stopped"].items():
            checkpoint = _read_or_warn(place.member(int(number)), "no other")
            if checkpoint is not None:
                self._stopped[int(number)] = (float(score), checkpoint)
        self._decided = int(state["decided"])
        self._ended = bool(state["ended"])

    def _read_best(self, path: Path) -> dict[str, Any] | None:
        """Read the best model of the state, which a kill may have left under its second name."""
        before = generation_before(path)
        if damage(before) is None:
            if read_checkpoint(before)["epoch"] == self.best.epoch:
                os.replace(before, path)
            before.unlink(missing_ok=True)  # of two names of one file a rename removes none
        return _read_or_warn(path, "the best of the epochs from here on")


def _read_or_warn(path: Path, instead: str) -> dict[str, Any] | None:
    """Read the checkpoint of a model that trains no more, or warn that it is lost."""
    try:
        return read_checkpoint(path)
    except UserError as error:
        warnings.warn(f"{error}. {instead} takes its place", stacklevel=3)
        return None
