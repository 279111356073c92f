"""A search over Ray Tune, from the cluster to the finished run folder."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import signal
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ...data.fingerprint import fingerprints
from ...errors import UserError
from ...files import copy_whole, damage
from ...folder import RunFolder
from ...run_model import RunResult
from ...runs.build import DEVICES
from ..coordinator import Coordinator, read_state
from ..live_table import LiveTable
from ..members import build_members, max_epochs_of
from ..result import GoingOn, finish_search, recorded
from ..settings import SearchSettings
from ..state import Best, Outcome, Place, all_diverged
from .cluster import RayOptions
from .scheduler import GroupScheduler, StopOnFailure, Watch
from .trial import GROUP, MEMBERS, NUMBER, START, Board, MemberTrial

#: Tune would write its logs, print tables, and warn of frequent checkpoints.
_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
#: Plans, configuration and results are small; what is large goes through files.
_OBJECT_STORE = 2**27


@contextmanager
def joined(options: RayOptions) -> Iterator[None]:
    """Join a cluster, or start Ray here; leave one that was joined before as it is."""
    if ray.is_initialized():
        yield
        return
    address = options.address or ("local" if options.num_cpus else None)
    in_main = threading.current_thread() is threading.main_thread()
    # Ray would end the process at SIGTERM without a word.
    on_term = signal.getsignal(signal.SIGTERM) if in_main else None
    local: dict[str, Any] = {"num_cpus": options.num_cpus, "object_store_memory": _OBJECT_STORE}
    try:
        ray.init(
            address=address,
            include_dashboard=False if address == "local" else None,
            log_to_driver=False,
            logging_level=logging.WARNING,
            **(local if address == "local" else {}),
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        place = address or os.environ.get("RAY_ADDRESS") or "on this machine"
        raise UserError(
            f"no Ray cluster {place}: {error}. Start one (ray start --head) and give its address "
            "as search.ray.address, or search.ray.address=local for one of this search alone"
        ) from error
    if on_term is not None:
        signal.signal(signal.SIGTERM, on_term)
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def environment() -> Iterator[None]:
    """Keep Tune from writing logs and tables, until the search is over."""
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    os.environ.update(_ENVIRONMENT)
    logger = logging.getLogger("ray.tune")
    level = logger.level
    # It warns of loggers that are turned off, and logs failures that `Watch` prints in a line.
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class Driver:
    """One search, from its beginning or from where it stopped to its end."""

    def __init__(
        self,
        config: dict[str, Any],
        settings: SearchSettings,
        folder: Path,
        options: RayOptions,
        going_on: GoingOn,
        *,
        overwrite: bool,
    ) -> None:
        self.config = config
        self.settings = settings
        self.folder = folder
        self.options = options
        self.going_on = going_on
        self.max_epochs = max_epochs_of(config)
        self.storage = (options.storage_path or str(folder / "ray")).rstrip("/")
        nodes = _live_nodes()
        # Not by what this machine has: trials may run on others.
        accelerator = str(config["trainer"].get("accelerator", "auto"))
        may_use_gpu = "cuda" in DEVICES.get(accelerator, ())
        self.resources = options.resources(nodes, may_use_gpu=may_use_gpu)
        groups = options.divide(settings.n_members, nodes, self.resources)
        state = read_state(folder) if going_on.resume else {}
        state["checkpoints"] = [self._intact(saved) for saved in state.get("checkpoints", ())]
        groups = state.get("chunks", groups)
        self.coordinator = self._coordinator(groups, state, overwrite=overwrite)

    def _intact(self, saved: list[list[Any]]) -> list[list[Any]]:
        """Return the checkpoints of a trial up to the last one that is not damaged."""
        if "://" in self.storage:
            return saved
        problems: list[str] = []
        for n in range(len(saved), 0, -1):
            state = Place.of_trial(Path(self.storage, saved[n - 1][1])).state
            if not (why := damage(state)):
                for problem in problems:
                    warnings.warn(f"{problem}; its trial goes on from the one before", stacklevel=2)
                return saved[:n]
            problems.append(f"{state} cannot be used: {why}")
        if problems:
            raise UserError(
                f"{'; '.join(problems)}. No checkpoint of this trial is left; start anew "
                "(--overwrite)"
            )
        return []

    def _coordinator(
        self, groups: list[list[int]], state: dict[str, Any], *, overwrite: bool
    ) -> Coordinator:
        n_members = sum(map(len, groups))
        if n_members != self.settings.n_members:
            raise UserError(
                f"{self.settings.count_key} is {self.settings.n_members}, but the search in "
                f"{self.folder} was begun with {n_members}; go on with that, or start another one"
            )
        # The first member is built here too, so that mistakes show before a trial starts.
        members = build_members(self.config, self.settings, [0])
        self.settings = members.settings
        self.data = fingerprints(members.datamodule)
        self.going_on.check_data(RunFolder(self.folder), self.data)
        n_steps = len(members.datamodule.train_dataloader())
        if overwrite:  # now that nothing is left to be wrong
            RunFolder(self.folder).delete()
        method = members.method
        interval = math.ceil(self.settings.perturbation_interval / self.options.checkpoint_every)
        return Coordinator(
            self.folder,
            groups,
            method,
            self.settings,
            self.max_epochs,
            # A trial may be a generation ahead of one that has yet to copy from it.
            n_kept=interval + 3,
            table=LiveTable(method.exchanges, self.max_epochs, n_steps),
            checkpoints=state.get("checkpoints", ()),
            # With more epochs allowed, trials that had reached the limit go on.
            over=state.get("over", ()) if state.get("max_epochs") == self.max_epochs else (),
            session=int(state.get("session", -1)) + 1,
        )

    def run(self) -> RunResult:
        """Train, and make the result of what the trials leave."""
        coordinator, settings = self.coordinator, self.settings
        epochs = [n_epochs for saved in coordinator.checkpoints for n_epochs, _ in saved]
        coordinator.check_history(
            [saved[-1][0] if saved else 0 for saved in coordinator.checkpoints]
        )
        run = RunFolder(self.folder)
        more = self.going_on.facts(run, self.data, max(epochs, default=0))
        with recorded(self.config, settings, run.path, "ray", coordinator.table, more) as facts:
            coordinator.write_state()
            if not all(coordinator.over):
                self._train()
            coordinator.decide()
            if coordinator.failure is not None:
                raise coordinator.failure
            if coordinator.diverged_at is not None:
                best, n_members = self._collect().best, len(coordinator.training)
                raise all_diverged(self.folder, n_members, coordinator.diverged_at, best)
        if not all(coordinator.over):
            raise KeyboardInterrupt  # which Tune has taken, to save its trials
        return self._finish(facts)

    def _train(self) -> None:
        coordinator, options = self.coordinator, self.options
        # Beside this process: with another node, the plans would be lost and not trials alone.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        board = ray.remote(Board).options(num_cpus=0, scheduling_strategy=here).remote()
        trainable = tune.with_parameters(
            MemberTrial,
            run=self.config,
            board=board,
            storage=self.storage,
            checkpoint_every=options.checkpoint_every,
        )
        starts = [
            {NUMBER: i, MEMBERS: group, START: saved[-1][1] if saved else ""}
            for i, (group, saved) in enumerate(
                zip(coordinator.groups, coordinator.checkpoints, strict=True)
            )
            if not coordinator.over[i]
        ]
        tuner = tune.Tuner(
            tune.with_resources(trainable, self.resources),
            param_space={GROUP: tune.grid_search(starts)},
            tune_config=tune.TuneConfig(
                scheduler=GroupScheduler(
                    coordinator, board, partial(_count_slots, options, self.resources)
                ),
                reuse_actors=True,
                trial_dirname_creator=lambda trial: f"trial_{trial.config[GROUP][NUMBER]:03d}",
            ),
            run_config=tune.RunConfig(
                name=f"{self.folder.name}_{coordinator.session}",
                storage_path=self.storage,
                stop=StopOnFailure(coordinator),
                callbacks=[Watch(coordinator, options.max_failures)],
                failure_config=tune.FailureConfig(max_failures=options.max_failures),
                checkpoint_config=tune.CheckpointConfig(
                    num_to_keep=coordinator.n_kept, checkpoint_at_end=True
                ),
                verbose=0,
            ),
        )
        try:
            tuner.fit()
        except tune.TuneError as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, UserError | OSError):
                cause = cause.__cause__
            raise cause or error from None

    def _collect(self) -> Outcome:
        """Take the members that do not train any more out of the checkpoints of their trials."""
        scores: dict[int, float] = {}
        best, n_epochs, n_steps = Best(), 0, 0
        target = Place.of_search(self.folder)
        for saved in self.coordinator.checkpoints:
            if not saved:
                continue
            with tune.Checkpoint(f"{self.storage}/{saved[-1][1]}").as_directory() as folder:
                place = Place.of_trial(Path(folder))
                about = json.loads(place.about.read_text(encoding="utf-8"))
                n_epochs, n_steps = max(n_epochs, about["n_epochs"]), about["steps_per_epoch"]
                for number, score in about["scores"].items():
                    scores[int(number)] = float(score)
                    copy_whole(place.member(int(number)), target.member(int(number)))
                group_best = Best(*about["best"])
                # The earliest of equal ones, as in one process.
                if _order(group_best) < _order(best):
                    best = group_best
                    copy_whole(place.best, target.best)
        return Outcome(scores, best, n_epochs, n_steps)

    def _finish(self, facts: dict[str, Any]) -> RunResult:
        outcome = self._collect()
        if not outcome.scores:
            n_members, last = self.settings.n_members, outcome.n_epochs - 1
            raise all_diverged(self.folder, n_members, last, outcome.best)
        ended = self.coordinator.ended
        self.coordinator.table.say(f"the search ended: {ended}")
        result = finish_search(self.config, self.folder, self.settings, outcome, ended, facts)
        self._clean_up()
        return result

    def _clean_up(self) -> None:
        """Delete all checkpoints of trials but the last, where they are files of this machine."""
        if "://" in self.storage:
            return
        last = {Path(self.storage, saved[-1][1]) for saved in self.coordinator.checkpoints}
        sessions = [
            Path(self.storage, f"{self.folder.name}_{session}")
            for session in range(self.coordinator.session + 1)
        ]
        if self.options.storage_path is None:  # nobody else's, and the folder may have had a name
            sessions = [place for place in Path(self.storage).iterdir() if place.is_dir()]
        for session in sessions:
            for place in session.glob("trial_*/checkpoint_*"):
                if place not in last:
                    shutil.rmtree(place, ignore_errors=True)


def _live_nodes() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _count_slots(options: RayOptions, resources: Mapping[str, float]) -> int:
    return options.slots(_live_nodes(), resources)


def _order(best: Best) -> tuple[float, int, int]:
    return best.score, best.epoch, best.member
