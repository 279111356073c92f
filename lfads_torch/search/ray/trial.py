"""A trial of Ray Tune: one group of members, an epoch at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import tune

from ...runs.build import pick_device
from ..group import Group
from ..rules import Plan
from ..settings import SearchSettings
from ..state import Place

#: Keys of a trial's results, with the searched metric.
EPOCHS, REPORT, WAITS = "n_epochs", "report", "waits"
#: Key of a trial's configuration, and keys of what it holds.
GROUP = "group"
NUMBER, MEMBERS, START = "number", "members", "start"
#: Seconds for which a trial waits for a plan before its driver may give its place to another.
_WAIT_S = 5.0


class Board:
    """An actor on which plans are put up; trials wait in front of it."""

    def __init__(self) -> None:
        self._plans: dict[int, Plan] = {}
        self._news = asyncio.Condition()

    async def post(self, plan: Plan) -> None:
        """Put up a plan."""
        async with self._news:
            self._plans[plan.n_epochs] = plan
            self._news.notify_all()

    async def wait(self, n_epochs: int, timeout: float) -> Plan | None:
        """Return the plan after `n_epochs` epochs, or None where it is late."""
        try:
            async with asyncio.timeout(timeout), self._news:
                await self._news.wait_for(lambda: n_epochs in self._plans)
        except TimeoutError:
            return None
        return self._plans[n_epochs]


class MemberTrial(tune.Trainable):
    """Trains a group of members; Tune calls its methods.

    A trial that needs a plan comes back every few seconds without having trained, so that its
    driver can give its place to another one.
    """

    def setup(
        self,
        config: dict[str, Any],
        run: Mapping[str, Any] | None = None,
        board: Any = None,
        storage: str = "",
        checkpoint_every: int = 1,
    ) -> None:
        """Build the members; called by Tune with what `with_parameters` holds."""
        if run is None:
            raise ValueError("a trial needs the configuration of the run")
        self.run, self.board = run, board
        self.storage, self.checkpoint_every = storage, checkpoint_every
        self._build(config[GROUP])

    def _build(self, config: Mapping[str, Any]) -> None:
        # A trial without a share of a GPU sees none: Ray sets CUDA_VISIBLE_DEVICES.
        self.group = Group(
            self.run,
            SearchSettings.from_config(self.run["search"]),
            config[MEMBERS],
            device=pick_device(self.run["trainer"], is_stacked=True),
        )
        if config[START]:
            with self._open(config[START]) as folder:
                self.group.load(Place.of_trial(Path(folder)))

    def _open(self, place: str) -> AbstractContextManager[str]:
        """Return a checkpoint as a folder on this machine."""
        return tune.Checkpoint(f"{self.storage}/{place}").as_directory()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take other members into the same process, which has everything imported."""
        self._build(new_config[GROUP])
        return True

    def step(self) -> dict[str, Any]:
        """Train an epoch, or wait for a plan."""
        group = self.group
        if group.waits:
            plan = ray.get(self.board.wait.remote(group.n_epochs, _WAIT_S))
            if plan is None:
                return self._result(waits=True)
            group.follow(plan, self._open)
        if group.is_over:
            return self._result(done=True)
        report = group.train_epoch()
        is_due = group.n_epochs % self.checkpoint_every == 0
        # In a list, so that Tune takes it as it is.
        return self._result(
            **{REPORT: [report], "should_checkpoint": is_due or group.waits, "done": group.is_over}
        )

    def _result(self, **more: Any) -> dict[str, Any]:
        scores = self.group.scores
        best = float(np.min(scores, initial=np.inf))
        metric = self.group.settings.metric
        return {EPOCHS: self.group.n_epochs, metric: self.group.settings.sign * best, **more}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Write the group."""
        place = Place.of_trial(Path(checkpoint_dir))
        self.group.save(place)
        self.group.write_about(place)

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        """Read the group; Tune gives what `save_checkpoint` wrote."""
        self.group.load(Place.of_trial(Path(checkpoint_dir)))
