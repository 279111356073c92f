"""The tournament of AutoLFADS as a scheduler for your own Tune scripts: a model per trial."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pyarrow.fs import copy_files  # type: ignore[import-untyped]
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler

from ..compat.populations import EXCHANGES as TAKE_OVERS
from ..errors import ConfigError, one_of, unknown, whole
from ..folder import POPULATION
from ..search.history import History
from ..search.rules import tournament
from ..search.space import first_values, parse_space, perturbed
from ..tables import read_population

_PREFIX = "model."


class BinaryTournamentPBT(FIFOScheduler):
    """Population-based training by a binary tournament (Keshtkaran, Sedler et al. 2022).

    At the end of a generation all trials wait; then random pairs compete, the loser of each pair
    goes on from the winner's checkpoint, and its hyper-parameters are perturbed. For use as
    `scheduler` of `ray.tune.Tuner` or `ray.tune.run`, with any trainable that reports the metric in
    each epoch and has a checkpoint there (`lfads_torch.extensions.tune.train_trial` does).
    """

    # A trial has to stop at the end of a generation, so Tune may not collect several results.
    _supports_buffered_results = False

    def __init__(
        self,
        perturbation_interval: int = 25,
        burn_in_period: int = 0,
        hyperparam_mutations: Mapping[str, Any] | None = None,
        *,
        metric: str | None = None,
        mode: str | None = None,
        time_attr: str = "training_iteration",
        seed: int = 0,
        history_dir: str | Path | None = None,
    ) -> None:
        super().__init__()
        if mode is not None:
            one_of("mode", mode, ("min", "max"))
        mutations = hyperparam_mutations or {}
        self._space = parse_space(mutations)
        given = {key.removeprefix(_PREFIX): key for key in mutations}
        #: Key of a trial's configuration by the name in the space.
        self._keys = {name: given.get(name, f"{_PREFIX}{name}") for name in self._space}
        self._metric: Any = metric
        self._mode = mode
        self._time_attr = time_attr
        self._seed = seed
        self._interval = whole("perturbation_interval", perturbation_interval, least=1)
        self._ends_at = max(whole("burn_in_period", burn_in_period, least=0), self._interval)
        self._generation = 0
        #: Last results of trials that have reached the end of the generation.
        self._arrived: dict[str, dict[str, Any]] = {}
        self._numbers: dict[str, int] = {}
        self._history_dir = None if history_dir is None else Path(history_dir)
        self._history: History | None = None
        self._seen: set[tuple[int, int]] = set()

    # ---- called by Tune --------------------------------------------------------------------------

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Take metric and mode of the tuner; refuse a second one."""
        if (self._metric and metric) or (self._mode and mode):
            return False
        self._metric = self._metric or metric or "valid/recon_smth"
        self._mode = self._mode or mode or "min"
        return True

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Give a new trial its first values; catch up with trials of a restored experiment."""
        self._arrived.pop(trial.trial_id, None)
        if trial.trial_id in self._numbers:
            return
        # Tune numbers its trials in their names, and brings them back in another order.
        digits = trial.trial_id.rpartition("_")[2]
        number = int(digits) if digits.isdigit() else len(self._numbers)
        self._numbers[trial.trial_id] = number
        saved = trial.latest_checkpoint_result
        trained = int(saved.metrics.get(self._time_attr, 0)) if saved else 0
        while self._ends_at < trained:
            self._next_generation()
        rng = np.random.default_rng([self._seed, number])
        first = first_values(self._space, 1, rng)
        trial.set_config({**self._values(first, 0), **trial.config})

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Let a trial wait at the end of a generation."""
        for name in (self._metric, self._time_attr):
            if name not in result:
                raise unknown("the report of a trial", name, map(str, result))
        self._record(trial, result)
        if result[self._time_attr] < self._ends_at:
            return str(self.CONTINUE)
        self._arrived[trial.trial_id] = dict(result)
        return str(self.PAUSE)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Forget that a trial had arrived: it comes back from an earlier checkpoint, or not."""
        self._arrived.pop(trial.trial_id, None)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """Hold the tournament once all trials wait, saved; then let them go on."""
        trials = tune_controller.get_trials()
        live = [trial for trial in trials if not trial.is_finished()]
        waiting = [t for t in live if t.trial_id in self._arrived and t.status == Trial.PAUSED]
        if live and len(waiting) == len(live):
            self._compete(sorted(live, key=lambda trial: self._numbers[trial.trial_id]))
        for status in (Trial.PENDING, Trial.PAUSED):
            for trial in live:
                if trial.status == status and trial.trial_id not in self._arrived:
                    return trial
        return None

    def debug_string(self) -> str:
        """Say how far it is."""
        return f"generation {self._generation}, which ends at {self._time_attr} {self._ends_at}"

    # ---- the tournament --------------------------------------------------------------------------

    def _compete(self, trials: list[Trial]) -> None:
        sign = 1 if self._mode == "min" else -1
        results = [self._arrived[trial.trial_id] for trial in trials]
        scores = np.array([sign * float(result[self._metric]) for result in results])
        rng = np.random.default_rng([self._seed, self._generation, 1])
        parents = tournament(scores, rng)
        copies = np.flatnonzero(parents != np.arange(len(trials)))
        old = {n: np.array([float(t.config[key]) for t in trials]) for n, key in self._keys.items()}
        copied = {name: column[parents] for name, column in old.items()}
        new = perturbed(self._space, copied, copies, rng)
        if (history := self._log(trials[0])) is not None:
            n_epochs = max(int(result[self._time_attr]) for result in results)
            history.exchange(n_epochs, self._generation, parents, old, new, scores)
        sources = [trial.latest_checkpoint_result for trial in trials]
        for k in copies:
            trial, winner, source = trials[k], trials[parents[k]], sources[parents[k]]
            if source is None:
                raise ConfigError(
                    f"trial {winner} has no checkpoint at the end of a generation; "
                    "report one in each epoch, or write save_checkpoint"
                )
            before = dict(trial.config)
            trial.set_config({**before, **self._values(new, int(k))})
            self._record_take_over(trial, winner, before)
            _give_checkpoint(source, trial)
        self._arrived.clear()
        self._next_generation()

    def _values(self, columns: Mapping[str, Any], k: int) -> dict[str, float]:
        """Return the hyper-parameters of trial `k` as its configuration takes them."""
        return {
            key: self._space[name].rounded(float(columns[name][k]))
            for name, key in self._keys.items()
        }

    def _next_generation(self) -> None:
        self._generation += 1
        self._ends_at += self._interval

    # ---- history ---------------------------------------------------------------------------------

    def _folder(self, trial: Trial) -> Path | None:
        if self._history_dir is None and trial.storage.storage_filesystem.type_name == "local":
            self._history_dir = Path(trial.storage.experiment_fs_path)
        return self._history_dir

    def _log(self, trial: Trial) -> History | None:
        if self._history is None:
            folder = self._folder(trial)
            if folder is not None:
                self._history = History(folder)
                if (folder / POPULATION).is_file():
                    table = read_population(folder)
                    pairs = zip(table["epoch"].tolist(), table["member"].tolist(), strict=True)
                    self._seen.update(pairs)
        return self._history

    def _record(self, trial: Trial, result: dict[str, Any]) -> None:
        history = self._log(trial)
        pair = (int(result[self._time_attr]) - 1, self._numbers[trial.trial_id])
        if history is None or pair in self._seen:
            return
        self._seen.add(pair)
        score = float(result[self._metric])
        metrics = {
            name: [float(value)]
            for name, value in result.items()
            if name.partition("/")[0] in ("train", "valid") and isinstance(value, int | float)
        }
        history.append(
            pair[0],
            self._generation,
            {name: [float(trial.config[key])] for name, key in self._keys.items()},
            {**metrics, str(self._metric): [score]},
            [not np.isfinite(score)],
            [pair[1]],
        )

    def _record_take_over(self, trial: Trial, winner: Trial, before: Mapping[str, Any]) -> None:
        """Add a line to the file that scripts' readers know, beside the tables of a search."""
        folder = self._folder(trial)
        if folder is None:
            return
        ends = [int(self._arrived[t.trial_id][self._time_attr]) for t in (trial, winner)]
        tags = [t.experiment_tag or str(self._numbers[t.trial_id]) for t in (trial, winner)]
        line = json.dumps([*tags, *ends, before, trial.config], default=str)
        with open(folder / TAKE_OVERS, "a", encoding="utf-8") as file:
            file.write(f"{line}\n")


def _give_checkpoint(source: Any, trial: Trial) -> None:
    """Copy a checkpoint into a trial's folder, from which the trial then starts again.

    The winner deletes its checkpoint as soon as it has newer ones, perhaps before this trial runs.
    """
    checkpoint, system = source.checkpoint, trial.storage.storage_filesystem
    path = (Path(trial.storage.trial_fs_path) / f"{Path(checkpoint.path).name}_copied").as_posix()
    system.create_dir(path)
    systems = {"source_filesystem": checkpoint.filesystem, "destination_filesystem": system}
    copy_files(checkpoint.path, path, **systems)
    copied = type(source)(type(checkpoint)(path, system), dict(source.metrics))
    trial.run_metadata.checkpoint_manager.register_checkpoint(copied)
