"""Keep scores and history of a search whose members train in groups, and decide."""

from __future__ import annotations

import json
import math
import time
import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, UserError
from ..files import generation_before, read_table, write_whole
from ..folder import HP, POPULATION
from ..tables import read_exchanges, read_population
from .history import History
from .live_table import LiveTable, Row
from .rules import Method, Plan, copied_values, needs_plan
from .settings import SearchSettings

STATE = "ray/state.json"


def read_state(folder: Path) -> dict[str, Any]:
    """Read what `Coordinator.write_state` wrote, or what it wrote before where that is damaged."""
    problems = []
    for path in (folder / STATE, generation_before(folder / STATE)):
        try:
            state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            checksum = state.pop("crc32", None)  # searches that are under way may have none
            if checksum not in (None, zlib.crc32(json.dumps(state).encode())):
                raise ValueError("its checksum does not agree")
        except (OSError, ValueError, AttributeError) as error:
            problems.append(f"{path} cannot be used: {error}")
            continue
        for problem in problems:
            warnings.warn(f"{problem}; {path.name} takes its place", stacklevel=2)
        return state
    # It is written before the first epoch.
    if read_table(folder / POPULATION)[1]:
        raise UserError(f"{'; '.join(problems)}. Start anew (--overwrite)")
    return {}


class _Entry(NamedTuple):
    """What a member was in an epoch."""

    score: float
    diverged: bool
    values: dict[str, float]


class Coordinator:
    """Keeps the history of a search, judges its members, and makes the plans that groups follow.

    A run folder with a history is continued. `groups` are the members of each group; of each,
    `checkpoints` are epochs and place, the newest last, `n_kept` of which are not deleted yet, and
    `over` says whether nothing is left to do. `session` counts how often the search was resumed.
    """

    def __init__(
        self,
        folder: Path,
        groups: Sequence[Sequence[int]],
        method: Method,
        settings: SearchSettings,
        max_epochs: int,
        *,
        table: LiveTable,
        n_kept: int = 1,
        checkpoints: Sequence[Sequence[tuple[int, str]]] = (),
        over: Sequence[bool] = (),
        session: int = 0,
    ) -> None:
        self.folder = folder
        self.groups = [list(group) for group in groups]
        self.method = method
        self.settings = settings
        self.max_epochs = max_epochs
        self.n_kept = n_kept
        self.table = table
        self.session = session
        self.plans: list[Plan] = []
        #: Why the search is over; empty until it is.
        self.ended = ""
        #: Why it cannot go on.
        self.failure: Exception | None = None
        #: The epoch (from 0) by which all members have diverged, which also ends the search.
        self.diverged_at: int | None = None
        self.checkpoints = [[(int(n), str(place)) for n, place in saved] for saved in checkpoints]
        self.checkpoints += [[] for _ in self.groups[len(self.checkpoints) :]]
        self.over = list(over) or [False] * len(self.groups)
        self.training = {k for group in self.groups for k in group}
        #: Whether groups do not wait for each other, since no member depends on another.
        self._apart = not method.compares and len(self.groups) > 1
        self._n_members = len(self.training)
        self._any_finished = False
        self._judged = 0
        self._epochs: dict[int, dict[int, _Entry]] = {}
        self._trained = dict.fromkeys(self.training, 0)
        self._latest: dict[int, float] = {}
        self._clock = (time.monotonic(), 0)
        self.history = History(folder)
        self._replay()

    def __getstate__(self) -> dict[str, Any]:
        """Pickle nothing: Tune keeps what it is given, but a search goes on from its own files."""
        return {}

    # ---- what is known ---------------------------------------------------------------------------

    def _replay(self) -> None:
        """Read the history, and decide again what was decided from it."""
        # Decisions are made again from the history, and not stored. They follow from scores and
        # seed alone, so a replay gives the same ones. A stored decision would be a second record
        # beside ``population.csv``, and a kill between the two writes would let them disagree.
        # A group that comes back from an older checkpoint needs the plans since then, which the
        # replay makes anyway. What is replayed is not written again: rows in `_seen` and exchanges
        # in `_exchanged` are skipped.
        self._exchanged: set[int] = set()
        self._seen: set[tuple[int, int]] = set()
        self._is_replay = True
        table = read_population(self.folder) if (self.folder / POPULATION).is_file() else {}
        if table:
            self._exchanged = set(read_exchanges(self.folder)["epoch"].tolist())
            names = [name for name in table if name.startswith(HP)]
            scores = self.settings.scores(table[self.settings.metric], ~table["diverged"])
            for row, member in enumerate(table["member"].tolist()):
                values = {name.removeprefix(HP): float(table[name][row]) for name in names}
                entry = _Entry(float(scores[row]), bool(table["diverged"][row]), values)
                self._take(int(table["epoch"][row]) + 1, {member: entry})
            self.decide()
        self._is_replay = False

    def check_history(self, n_epochs: Sequence[int]) -> None:
        """Refuse a history that lacks some of the epochs that each group has behind it."""
        # Without them the next decision would never be due.
        for group, n in zip(self.groups, n_epochs, strict=True):
            for epoch, k in product(range(n), sorted(self.training.intersection(group))):
                if (epoch, k) not in self._seen and not self.is_over:
                    raise DataError(
                        f"{self.folder / POPULATION} lacks epoch {epoch} of member {k}, so the "
                        "search cannot go on; put a copy of the whole file there, or start anew "
                        "(--overwrite)"
                    )

    def report(self, report: Mapping[str, Any]) -> None:
        """Record what a trial's members were in an epoch."""
        n_epochs = int(report["n_epochs"])
        fresh = [i for i, k in enumerate(report["members"]) if (n_epochs - 1, k) not in self._seen]
        if not fresh:
            return
        members = [report["members"][i] for i in fresh]
        values = {name: np.asarray(column)[fresh] for name, column in report["values"].items()}
        metrics = {name: np.asarray(column)[fresh] for name, column in report["metrics"].items()}
        diverged = np.asarray(report["diverged"], dtype=bool)[fresh]
        generation = self.method.generation(n_epochs - 1)
        self.history.append(n_epochs - 1, generation, values, metrics, diverged, members)
        scores = self.settings.scores(metrics[self.settings.metric], ~diverged)
        entries = {
            member: _Entry(
                float(scores[i]),
                bool(diverged[i]),
                {name: float(column[i]) for name, column in values.items()},
            )
            for i, member in enumerate(members)
        }
        self._take(n_epochs, entries)

    def _take(self, n_epochs: int, entries: dict[int, _Entry]) -> None:
        for member, entry in entries.items():
            self._seen.add((n_epochs - 1, member))
            self._trained[member] = max(self._trained[member], n_epochs)
            self._latest[member] = entry.score
        if self._apart:
            self._judge_apart(n_epochs, entries)
        else:
            self._epochs.setdefault(n_epochs, {}).update(entries)

    def saved(self, group: int, n_epochs: int, place: str, *, is_over: bool = False) -> None:
        """Note a checkpoint of a trial, before an older one is deleted."""
        self.over[group] = is_over
        self.checkpoints[group].append((n_epochs, place))
        self.checkpoints[group] = self.checkpoints[group][-self.n_kept :]
        self.write_state()

    def write_state(self) -> None:
        """Write what a resumed search needs and the history does not hold."""
        state = {
            "chunks": self.groups,  # the name in the files of searches that are under way
            "checkpoints": self.checkpoints,
            "over": self.over,
            "max_epochs": self.max_epochs,
            "session": self.session,
        }
        checksum = zlib.crc32(json.dumps(state).encode())
        write_whole(self.folder / STATE, json.dumps({**state, "crc32": checksum}), keep=True)

    # ---- decisions -------------------------------------------------------------------------------

    def decide(self) -> None:
        """Judge the epochs of which all scores are reported; see `plans` and `ended`."""
        while not self._apart and not self.is_over and self._is_ready():
            n_epochs = self._judged = self._judged + 1
            entries = self._epochs.pop(n_epochs)
            members = np.array(sorted(self.training), dtype=np.intp)
            scores = np.array([entries[int(k)].score for k in members])
            plan = self.method.judge(n_epochs, members, scores)
            if all(entry.diverged for entry in entries.values()) and not self._any_finished:
                self.diverged_at = n_epochs - 1
                return
            self._stop(plan)
            self.ended = plan.ended
            if n_epochs >= self.max_epochs:
                self.ended = self.ended or self._limit_reached()
            if not self.training:
                self.ended = self.ended or "no member trains any more"
            if needs_plan(self.method, n_epochs, self.max_epochs):
                self.plans.append(self._complete(plan, members, scores, entries))
            self._show(plan, scores)

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to be decided."""
        return bool(self.ended or self.failure) or self.diverged_at is not None

    def plan(self, n_epochs: int) -> Plan | None:
        """Return the plan that holds after these epochs; None where it is not made yet."""
        return next((plan for plan in self.plans if plan.n_epochs == n_epochs), None)

    def _is_ready(self) -> bool:
        n_epochs = self._judged + 1
        entries = self._epochs.get(n_epochs, {})
        if not self.training or not self.training <= entries.keys():
            return False
        if len(self.groups) == 1 or not needs_plan(self.method, n_epochs, self.max_epochs):
            return True
        # Members are copied from checkpoints of other groups, so these have to exist.
        return all(
            saved and saved[-1][0] >= n_epochs
            for group, saved in zip(self.groups, self.checkpoints, strict=True)
            if self.training & set(group)
        )

    def _complete(
        self,
        plan: Plan,
        members: NDArray[np.intp],
        scores: NDArray[np.float64],
        entries: Mapping[int, _Entry],
    ) -> Plan:
        """Add the values of copies and where their parents are saved; record the copies."""
        plan = replace(plan, ended=self.ended)
        if not plan.parents:
            return plan
        place = {int(k): i for i, k in enumerate(members)}
        parents = np.array([place[plan.parents.get(int(k), int(k))] for k in members])
        copies = np.array([place[k] for k in plan.parents])
        before = [entries[int(k)].values for k in members]
        old = {name: np.array([values[name] for values in before]) for name in self.method.space}
        copied = {name: column[parents] for name, column in old.items()}
        new = copied_values(self.method, plan.n_epochs, copied, copies)
        if plan.n_epochs not in self._exchanged:
            generation = self.method.generation(plan.n_epochs - 1)
            self.history.exchange(plan.n_epochs, generation, parents, old, new, scores)
        group_of = {k: i for i, group in enumerate(self.groups) for k in group}
        places = [dict(saved) for saved in self.checkpoints]
        return replace(
            plan,
            values={name: {k: float(new[name][place[k]]) for k in plan.parents} for name in new},
            # None for a generation before the last: every group is beyond it.
            sources={
                parent: places[group_of[parent]].get(plan.n_epochs, "")
                for parent in set(plan.parents.values())
            },
        )

    def _judge_apart(self, n_epochs: int, entries: Mapping[int, _Entry]) -> None:
        """Judge members that do not depend on others."""
        numbers = np.array([k for k in entries if k in self.training], dtype=np.intp)
        scores = np.array([entries[int(k)].score for k in numbers])
        self._stop(self.method.judge(n_epochs, numbers, scores))
        if n_epochs >= self.max_epochs:
            self.training.difference_update(numbers.tolist())
        if not self.training:
            at_limit = max(self._trained.values()) >= self.max_epochs
            self.ended = self._limit_reached() if at_limit else "no member trains any more"
        # What counts as an epoch: as many steps as all members together make in one.
        epoch = sum(self._trained.values()) // self._n_members
        if epoch > self._judged or self.ended:
            ends = any(self.method.ends(n) for n in range(self._judged + 1, epoch + 1))
            self._judged = epoch
            latest = np.array(list(self._latest.values()))
            stopped = self._n_members - len(self.training)
            self._show_row(epoch, latest, len(self.training), stopped, ends or bool(self.ended))

    def _stop(self, plan: Plan) -> None:
        self.training.difference_update(plan.finished, plan.dropped)
        self._any_finished = self._any_finished or bool(plan.finished)

    def _limit_reached(self) -> str:
        return f"trainer.max_epochs={self.max_epochs} is reached"

    # ---- table -----------------------------------------------------------------------------------

    def _show(self, plan: Plan, scores: NDArray[np.float64]) -> None:
        replaced = len(plan.finished) + len(plan.dropped)
        group = len(scores) - replaced
        if self.method.exchanges:
            replaced = len(plan.parents)
            group = self.method.generation(plan.n_epochs - 1)
        is_line = self.method.ends(plan.n_epochs) or bool(self.ended)
        self._show_row(plan.n_epochs, scores, group, replaced, is_line)

    def _show_row(
        self, n_epochs: int, scores: NDArray[np.float64], group: int, replaced: int, final: bool
    ) -> None:
        n_members = self._n_members if self._apart else len(scores)
        began, before = self._clock
        self._clock = (time.monotonic(), n_epochs)
        if self._is_replay:
            return
        for _ in range(n_epochs - before):
            self.table.add_time((self._clock[0] - began) / (n_epochs - before), n_members)
        finite = scores[np.isfinite(scores)]
        best, median = (finite.min(), np.median(finite)) if finite.size else (math.nan, math.nan)
        sign = self.settings.sign
        n_diverged = len(scores) - finite.size
        shown = (sign * float(best), sign * float(median))
        self.table.show(Row(group, n_epochs, *shown, replaced, n_diverged, n_members), final=final)
