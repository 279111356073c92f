"""A search in one process: the loop over epochs, and the state from which it goes on."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import __version__
from ..errors import DivergedError, UserError
from ..folder import CONFIG, RunFolder
from ..run_model import RunResult
from ..runs.build import pick_device
from ..runs.compose import write_config
from .history import History
from .live_table import LiveTable, Row
from .members import Members, build_members, max_epochs_of
from .population import Population
from .result import finish_search, now
from .rules import Verdict
from .settings import SearchSettings
from .state import (
    BEST_CHECKPOINT,
    Best,
    all_diverged,
    load_state,
    member_path,
    save,
    save_state,
)

FLUSH_EVERY_S = 30.0


class LocalSearch:
    """One search: its members, what is known of them, and the order in which it happens.

    Parameters
    ----------
    config : dict
        Composed and checked.
    settings : SearchSettings
        Its part ``search``.
    folder : Path
        Run folder.
    """

    def __init__(self, config: dict[str, Any], settings: SearchSettings, folder: Path) -> None:
        self.config = config
        self.settings = settings
        self.folder = folder
        self.max_epochs = max_epochs_of(config)
        self.best = Best()
        self.ended = ""
        self._flushed = -math.inf
        #: Last scores of members that finished before the search did.
        self.finished: dict[int, float] = {}

    def run(self, *, resume: bool, overwrite: bool) -> RunResult:
        """Build and check, train, finish.

        Parameters
        ----------
        resume : bool
            Go on from the state in the folder.
        overwrite : bool
            Delete the run in the folder, once nothing is left to be wrong.

        Returns
        -------
        RunResult
        """
        device = pick_device(self.config["trainer"])
        self.members = build_members(self.config, self.settings, device=device)
        self.population = self._population(self.members, device)
        self.members.models.clear()  # the population has copies
        if overwrite:
            RunFolder(self.folder).delete()
        self.numbers = np.arange(self.settings.n_members)
        self.scores = np.full(self.settings.n_members, np.inf)
        state = load_state(self.folder) if resume else None
        if state is not None:
            self._restore(state)
        self.history = History(self.folder)
        self.history.rewind(self.population.epoch)
        self.facts: dict[str, Any] = {
            "version": __version__,
            "search": self.settings.method,
            "backend": "local",
            "seed": int(self.config.get("seed") or 0),
            "max_epochs": self.max_epochs,
            "started": now(),
        }
        write_config(self.folder / CONFIG, self.config)
        RunFolder(self.folder).write_status("training", **self.facts)
        self.table = LiveTable(
            self.members.method.exchanges,
            self.max_epochs,
            self.population.steps_per_epoch,
        )
        try:
            self._train()
        except DivergedError as error:
            RunFolder(self.folder).write_status("training", **self.facts, stopped=str(error))
            raise
        finally:
            self.table.close()
        return self._finish()

    def _population(self, members: Members, device: str) -> Population:
        population = Population(
            members.models,
            members.datamodule,
            members.seeds,
            gradient_clip_val=float(self.config["trainer"].get("gradient_clip_val") or 0.0),
            device=device,
            stack_size=self.settings.chunk,
        )
        population.set_values(members.values)
        return population

    # ---- training --------------------------------------------------------------------------------

    def _train(self) -> None:
        method = self.members.method
        self._metrics: dict[str, NDArray[Any]] = {}
        while True:
            epoch = self.population.epoch
            verdict = method.judge(epoch, self.numbers, self.scores) if epoch else Verdict()
            # After a resume there is no row of the last epoch; it has been shown before.
            if self._metrics:
                self._show(verdict)
            self._act(verdict, epoch)
            self.ended = verdict.ended
            if not len(self.numbers):
                self.ended = self.ended or "no member trains any more"
            if epoch >= self.max_epochs:
                self.ended = self.ended or f"trainer.max_epochs={self.max_epochs} is reached"
            if self.ended:
                return
            self._epoch(epoch)

    def _epoch(self, epoch: int) -> None:
        began = time.monotonic()
        values = self.population.values
        self._metrics = self.population.train_epoch()
        alive = self.population.alive
        self.scores = self.settings.scores(self._metrics[self.settings.metric], alive)
        self.history.append(
            epoch,
            self.members.method.generation(epoch),
            {name: values[name] for name in self.population.names},
            self._metrics,
            ~alive,
            self.numbers,
        )
        if not alive.any() and not self.finished:
            raise all_diverged(self.folder, len(self.numbers), epoch, self.best)
        self._keep_best(epoch)
        self._save_state()
        self.table.add_time(time.monotonic() - began, len(self.numbers))

    def _keep_best(self, epoch: int) -> None:
        k = int(np.argmin(self.scores))
        if self.scores[k] < self.best.score:
            self.best = Best(float(self.scores[k]), int(self.numbers[k]), epoch)
            save(self.folder / BEST_CHECKPOINT, self.population.checkpoint(k))

    def _act(self, verdict: Verdict, epoch: int) -> None:
        if verdict.parents is not None:
            self._exchange(verdict.parents, epoch)
        leaving = {*verdict.finished, *verdict.dropped}
        for k in verdict.finished:
            self._save_member(k)
            self.finished[int(self.numbers[k])] = float(self.scores[k])
        if leaving and len(leaving) < len(self.numbers):
            staying = np.array([k for k in range(len(self.numbers)) if k not in leaving])
            self.population.keep(staying)
            self.numbers, self.scores = self.numbers[staying], self.scores[staying]
        elif leaving:
            self.numbers, self.scores = self.numbers[:0], self.scores[:0]

    def _exchange(self, parents: NDArray[np.intp], epoch: int) -> None:
        method, old = self.members.method, self.population.values
        self.population.exchange(parents)
        copies = np.flatnonzero(parents != np.arange(len(parents)))
        searched = {name: self.population.values[name] for name in self.members.space}
        new = method.perturbed(epoch, searched, copies)
        self.population.set_values(new)
        before = {name: old[name] for name in self.members.space}
        generation = method.generation(epoch - 1)
        self.history.exchange(epoch, generation, parents, before, new, self.scores)

    def _show(self, verdict: Verdict) -> None:
        method, epoch = self.members.method, self.population.epoch
        replaced = len(verdict.finished) + len(verdict.dropped)
        if verdict.parents is not None:
            replaced = int((verdict.parents != np.arange(len(verdict.parents))).sum())
        finite = self.scores[np.isfinite(self.scores)]
        best, median = (finite.min(), np.median(finite)) if finite.size else (math.nan, math.nan)
        row = Row(
            group=method.generation(epoch - 1)
            if method.exchanges
            else len(self.numbers) - replaced,
            epoch=epoch,
            best=self.settings.sign * float(best),
            median=self.settings.sign * float(median),
            replaced=replaced,
            diverged=int((~self.population.alive).sum()),
            n_members=len(self.numbers),
        )
        is_last = bool(verdict.ended) or epoch >= self.max_epochs
        self.table.show(row, final=method.ends(epoch) or is_last)

    # ---- state -----------------------------------------------------------------------------------

    def _save_state(self) -> None:
        # A kill needs no flush; a power cut may take half a minute. Flushing a large population can
        # take longer than an epoch on a GPU.
        now_ = time.monotonic()
        is_due = now_ - self._flushed > FLUSH_EVERY_S
        save_state(self.folder, self._state(), flush=is_due)
        if is_due:
            self._flushed = now_

    def _state(self) -> dict[str, Any]:
        return {
            "population": self.population.state_dict(),
            "method": self.members.method.state_dict(),
            "n_members": self.settings.n_members,
            "kind": self.settings.method,
            "numbers": self.numbers.tolist(),
            "scores": self.scores.tolist(),
            "finished": dict(self.finished),
            "best": list(self.best),
        }

    def _restore(self, state: Mapping[str, Any]) -> None:
        for name, now_ in (("n_members", self.settings.n_members), ("kind", self.settings.method)):
            if state[name] != now_:
                what = {"n_members": self.settings.count_key, "kind": "search.method"}[name]
                raise UserError(
                    f"{what} is {now_}, but the search in {self.folder} was begun with "
                    f"{state[name]}; go on with that, or start another one"
                )
        self.numbers = np.asarray(state["numbers"], dtype=np.intp)
        self.scores = np.asarray(state["scores"], dtype=np.float64)
        self.finished = {int(k): float(score) for k, score in state["finished"].items()}
        score, member, epoch = state["best"]
        self.best = Best(float(score), int(member), int(epoch))
        if len(self.numbers) < self.population.n_members:
            self.population.keep(self.numbers)
        self.population.load_state_dict(state["population"])
        self.members.method.load_state_dict(state["method"])

    # ---- the end ---------------------------------------------------------------------------------

    def _save_member(self, k: int) -> None:
        save(member_path(self.folder, int(self.numbers[k])), self.population.checkpoint(k))

    def _finish(self) -> RunResult:
        for k in np.flatnonzero(np.isfinite(self.scores)):
            self._save_member(int(k))
            self.finished[int(self.numbers[k])] = float(self.scores[k])
        self.table.say(f"the search ended: {self.ended}")
        return finish_search(
            self.config,
            self.folder,
            self.settings,
            n_epochs=self.population.epoch,
            steps_per_epoch=self.population.steps_per_epoch,
            scores=self.finished,
            ended=self.ended,
            best=self.best,
            facts=self.facts,
        )
