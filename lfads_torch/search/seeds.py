"""Several seeds of one configuration: `lfads train --seeds`, stacked as one population if possible.

Each seed has an ordinary run folder, `seed0`, `seed1`, ..., whose checkpoints and log are those of
a run of that seed alone. What cannot be stacked is a run after another. Runs that were interrupted
train on together from their checkpoints, so that a kill changes no bit. Where settings or data
change meanwhile they go on alone, to rounding what they would be together.
"""

from __future__ import annotations

import copy
import json
import re
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import chdir, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from ..arguments import LOSS, ROOT, mode_of
from ..checkpoint import last_whole, read_checkpoint, write_checkpoint
from ..consent import Trust, trust_of
from ..data.fingerprint import check_unchanged, fingerprints
from ..errors import DataError, DivergedError, UserError, whole
from ..files import Table, damage, expanded, generation_before, write_whole
from ..folder import BEST_MODEL, CONFIG, LAST, METRICS, WINNER_SEEDS, RunFolder
from ..model_checks import bytes_available
from ..processes import stoppable
from ..progress import Line, clock, quiet_libraries
from ..provenance import provenance
from ..run_model import RunResult, run_model
from ..runs.build import build, build_model, build_selection, pick_device
from ..runs.changes import (
    changes_of,
    check_changes,
    check_that_they_act,
    follow_data,
    is_longer,
    of_training,
)
from ..runs.check_config import check_config, check_parts
from ..runs.compose import Overrides, compose_config, draw_seed, read_config, write_config
from ..runs.monitors import check_monitors
from ..runs.resume import RUN_KEY, portable, take_up
from ..runs.run import parts_of
from ..tables import read_csv_log
from ..version import read_version
from .members import TRAINER_ONLY
from .population import Population, capacity

SEEDS = "seeds.json"
#: Key of a stacked run's checkpoint, below `RUN_KEY`: how many members were stacked, and what.
_STACK = "stack"
#: Callbacks that a stacked run has, or that change nothing of what it leaves but figures.
_KNOWN = (
    *("ModelCheckpoint", "EarlyStopping", "EarlyStoppingWithBurnInPeriod"),
    *("LearningRateMonitor", "RasterPlot", "TrajectoryPlot", "EpochProgressBar"),
)


@dataclass
class SeedResults:
    """What several seeds left behind: a run for each, and scores of each at its best epoch."""

    run_dir: Path
    runs: list[RunResult]
    scores: dict[str, dict[str, float]]

    def summary(self) -> dict[str, dict[str, float]]:
        """Return mean, standard deviation, minimum and maximum of each score over the seeds."""
        names = dict.fromkeys(name for scores in self.scores.values() for name in scores)
        columns = {
            name: np.array([scores.get(name, np.nan) for scores in self.scores.values()])
            for name in names
        }
        return {
            name: {
                "mean": float(np.mean(values)),
                "sd": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0,
                "min": float(np.min(values)),
                "max": float(np.max(values)),
            }
            for name, values in columns.items()
        }

    def text(self) -> str:
        """Return the table of `summary`."""
        summary = self.summary()
        width = max(map(len, summary))
        kinds = ("mean", "sd", "min", "max")
        lines = [" " * width + "".join(f"{kind:>10}" for kind in kinds)]
        lines += [
            f"{name:<{width}}" + "".join(f"{row[kind]:>10.4f}" for kind in kinds)
            for name, row in summary.items()
        ]
        return "\n".join(lines)


def train_seeds(
    overrides: Overrides | None = None,
    n_seeds: int | None = None,
    config_path: str | Path = "../configs/single.yaml",
    *,
    run_dir: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    verbose: bool = False,
    trust: bool | Trust = False,
    accept_changed_data: bool = False,
) -> SeedResults:
    """Train one configuration with several seeds, from that of the configuration on.

    Parameters
    ----------
    overrides, config_path, overwrite, verbose, trust, accept_changed_data
        As of `run_model`.
    n_seeds : int
        How many; of a resumed folder those that it was begun with.
    run_dir : str or Path, optional
        The folder of the seeds' run folders; the working directory by default.
    resume : bool, default=False
        Go on with the seeds that `run_dir` holds.

    Returns
    -------
    SeedResults

    Raises
    ------
    UserError
        For whatever is wrong with configuration, data or folder.
    """
    place = RunFolder(expanded(run_dir or Path.cwd()).absolute())
    if resume:
        if place.kind != "seeds":
            raise UserError(f"{place.path} holds no seeds to go on with")
        config_path = place.path / CONFIG
        trust = trust_of(config_path, trust)
        before = read_config(place.path, trust)
    config = compose_config(config_path, overrides or ())
    draw_seed(config)
    check_parts(config)
    check_config(config)
    first = int(config.get("seed") or 0)
    changed: list[str] = []
    if resume:
        if first != int(before.get("seed") or 0):
            raise UserError(f"seed={first}: the seeds of {place.path} stay as they are")
        seeds = [int(name.removeprefix("seed")) for name in place.seeds]
        if overrides:
            changed = _changed(before, config, place)
        # A kill may have kept an earlier change from some of the seeds.
        changed = list(dict.fromkeys([*place.status.get("changed", ()), *changed]))
    else:
        seeds = list(range(first, first + whole("--seeds", n_seeds, least=1)))
        ROOT["seed"].check(f"with --seeds {n_seeds} and seed={first}, the last seed", seeds[-1])
    claimed = place.claimed("training", resume=resume, overwrite=overwrite)
    with stoppable(), claimed, quiet_libraries(verbose):
        singles = {seed: {**copy.deepcopy(config), "seed": seed} for seed in seeds}
        facts: dict[str, Any] = {
            "version": read_version().version,
            "seeds": [f"seed{seed}" for seed in seeds],
            **({"changed": changed} if changed else {}),
        }
        stack = None
        more = {key: _value(config, key) for key in changed}
        why = _why_not(config)
        if any(".datafile_pattern" not in key for key in of_training(more)):
            why = "their settings have changed"
        if why is None:
            stack = _Stack(singles, place.path, resume, accept_changed_data)
            why = stack.why_not
        if overwrite:
            place.delete()
        if not resume:
            write_config(place.path / CONFIG, config)
        place.write_status("training", **facts)
        if resume and overrides:
            # After the status: with that alone, the keys that it names have their values of before.
            write_config(place.path / CONFIG, config)
        if stack is not None and why is None:
            stack.train()
        else:
            Line().say(f"the seeds train one after another: {why}")
        options = {"trust": trust, "accept_changed_data": accept_changed_data, "verbose": verbose}
        runs, diverged = list[RunResult](), list[DivergedError]()
        for seed in seeds:
            try:
                runs.append(_finish(place.path, seed, singles[seed], more, options))
            except DivergedError as error:  # which must not keep the others from their outputs
                diverged.append(type(error)(f"seed{seed}: {error}"))
        if diverged:
            raise diverged[0]
        scores = {run.run_dir.name: _scores(run.run_dir, config) for run in runs}
        result = SeedResults(place.path, runs, scores)
        about = {"seeds": scores, "summary": result.summary()}
        write_whole(place.path / SEEDS, json.dumps(about, indent=2) + "\n")
        place.write_status("complete", **facts)
    return result


def train_winner(
    search: Path,
    n_seeds: int,
    *,
    verbose: bool = False,
    trust: bool | Trust = False,
) -> SeedResults:
    """Train the settings of a search's best model with several seeds, from the winner's seed on.

    They train as many epochs as the winner had, into the folder ``seeds`` of the search; where that
    holds seeds already, they go on.
    """
    folder = search / WINNER_SEEDS
    goes_on = RunFolder(folder).kind == "seeds"
    held = RunFolder(folder).status.get("seeds", ())
    if goes_on and len(held) != n_seeds:
        raise UserError(
            f"{folder} holds {len(held)} seeds, but --seeds is {n_seeds}; give {len(held)} to go "
            "on with them, or delete the folder"
        )
    return train_seeds(
        None,
        n_seeds,
        search / BEST_MODEL / CONFIG,
        run_dir=folder,
        resume=goes_on,
        verbose=verbose,
        trust=trust,
    )


def _changed(before: Any, config: dict[str, Any], place: RunFolder) -> list[str]:
    """Return the keys that change when seeds go on, or refuse a change."""
    follow_data(before, config)
    changes = changes_of(before, config)
    check_changes(changes)
    now = {key: value for key, (_, value) in changes.items()}
    runs = [RunFolder(run) for run in place.members()]
    max_epochs = config["trainer"].get("max_epochs")
    if not any(_has_epochs_left(run, max_epochs) for run in runs):
        n_epochs = min(int(run.status.get("epochs", max_epochs)) for run in runs)
        check_that_they_act(now, max_epochs, n_epochs, is_over=True)
    # Lists are replaced as a whole.
    return [re.split(r"\.\d+(?:\.|$)", key)[0] for key in changes]


def _has_epochs_left(run: RunFolder, max_epochs: int | None) -> bool:
    """Return whether a run is to train on."""
    status = run.status
    if status.get("stage", "training") != "training":
        return is_longer(max_epochs, status)
    path = None if run.kind == "none" else last_whole(run)
    n_epochs = 0 if path is None else int(read_checkpoint(path)["epoch"]) + 1
    return max_epochs is None or not 0 <= max_epochs <= n_epochs


def _value(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = config.get(name) if isinstance(config, Mapping) else None
    return config


def _finish(
    folder: Path,
    seed: int,
    config: dict[str, Any],
    changes: Mapping[str, Any],
    options: Mapping[str, Any],
) -> RunResult:
    """Train what is left of a seed's run, a begun one with changes, and sample it."""
    run = RunFolder(folder / f"seed{seed}")
    goes_on = run.kind == "run"
    if not goes_on:
        write_config(run.path / CONFIG, config)
    elif not _has_epochs_left(run, config["trainer"].get("max_epochs")):
        # Of a run that trains no more a change of training is none.
        idle = of_training(changes)
        changes = {key: value for key, value in changes.items() if key not in idle}
    return run_model(
        changes if goes_on else None,
        config_path=run.path / CONFIG,
        run_dir=run.path,
        resume=goes_on,
        **options,
    )


def _scores(run: Path, config: Mapping[str, Any]) -> dict[str, float]:
    """Return the scores of a run's validation trials in its best epoch."""
    log, monitor = read_csv_log(run / METRICS), config.get("select_by") or LOSS
    epochs, values = log.get(monitor) or log.get(LOSS) or ([], [])
    if not np.isfinite(values).any():
        raise DataError(
            f"{run / METRICS} holds no epoch with {LOSS}, so it is damaged; delete {run} to have "
            "that seed trained anew"
        )
    best = epochs[(np.nanargmax if mode_of(monitor) == "max" else np.nanargmin)(values)]
    scores = {"best epoch": float(best)}
    for name in dict.fromkeys((monitor, LOSS, "valid/bps", "valid/co_bps", "valid/fp_bps")):
        if name in log and np.isfinite(
            value := dict(zip(*log[name], strict=True)).get(best, np.nan)
        ):
            scores[name] = float(value)
    return scores


def _why_not(config: Mapping[str, Any]) -> str | None:
    """Return why runs of a configuration cannot train stacked, None where they can."""
    trainer = config["trainer"]
    for name, legal in TRAINER_ONLY.items():
        if name in trainer and trainer[name] not in legal:
            return f"trainer.{name}={trainer[name]!r} does not act on what trains stacked"
    if not (trainer.get("max_epochs") or 0) >= 1:
        return "trainer.max_epochs sets no limit"
    if config.get("on_nan", "stop") != "stop":
        return "on_nan=recover is of a single run"
    for name, node in (config.get("callbacks") or {}).items():
        if node and str(node["_target_"]).rpartition(".")[2] not in _KNOWN:
            return f"callbacks.{name} needs Lightning's Trainer"
        if node and node.get("save_top_k", 1) != 1:
            return f"callbacks.{name}.save_top_k={node['save_top_k']}"
    return None


class _Stack:
    """Runs that train as one population; each epoch leaves what a run alone leaves."""

    def __init__(
        self,
        configs: Mapping[int, dict[str, Any]],
        folder: Path,
        resume: bool,
        accept_changed_data: bool,
    ) -> None:
        config = next(iter(configs.values()))
        self.max_epochs = int(config["trainer"]["max_epochs"])
        every = [_Run(folder / f"seed{seed}", seed, one) for seed, one in configs.items()]
        #: The runs that train in the next epoch, and those that have ended.
        self.running, self.ended = every, list[_Run]()
        self.why_not: str | None = None
        checkpoints: list[dict[str, Any]] = []
        if resume:
            for run in every:
                run.look(self.max_epochs)
            checkpoints = self._common(every)
        if self.why_not or not self.running:
            return
        device = pick_device(config["trainer"], is_stacked=True)
        pl.seed_everything(next(iter(configs)), workers=True, verbose=False)
        data = build(config["datamodule"], "datamodule")
        data.setup("fit")
        models: list[Any] = []
        for run in self.running:
            pl.seed_everything(run.seed, workers=True, verbose=False)
            # As a run alone, which reads what its configuration names as seen from its folder.
            place = run.folder.path
            with chdir(place) if place.is_dir() else nullcontext():
                models.append(build_model(config["model"], data))
            if len(models) == 1:
                self._check(models[0], data, config, device)
                if self.why_not:
                    return
        now = fingerprints(data)
        for checkpoint in checkpoints:
            recorded = checkpoint[RUN_KEY]["data"]
            if check_unchanged(recorded, now, accept=accept_changed_data):
                self.why_not = "their data have changed"
                return
        self.parts = parts_of(models[0])
        self.facts = {
            "version": read_version().version,
            "max_epochs": self.max_epochs,
            "started": time.strftime("%Y-%m-%d %H:%M:%S"),
            "environment": provenance(device),
            "data": now,
        }
        # What is stacked decides the order of sums.
        stack = checkpoints[0][RUN_KEY][_STACK] if checkpoints else {}
        self.population = Population(
            models,
            data,
            [run.seed for run in self.running],
            gradient_clip_val=float(config["trainer"].get("gradient_clip_val") or 0.0),
            device=device,
            stack_size=stack.get("size"),
        )
        if checkpoints:
            self.population.stacked = stack["kind"]
            self.population.take_up(checkpoints)

    def _common(self, every: Sequence[_Run]) -> list[dict[str, Any]]:
        """Find the runs of the next epoch, and return their checkpoints of the epoch before it.

        Between two epochs a kill leaves runs that have written the later one, and others. All train
        it again, as they did together.
        """
        going = [run.epoch for run in every if not run.is_over and not run.has_diverged]
        epoch = min(going, default=0)
        self.running = [
            run for run in every if going and run.epoch >= epoch + (1 if run.is_over else 0)
        ]
        self.ended = [run for run in every if run.is_over and run not in self.running]
        if any(run.epoch > epoch + 1 for run in self.running):
            self.why_not = "their checkpoints are of different epochs"
        elif any(run.newest and _STACK not in run.newest[RUN_KEY] for run in self.running):
            self.why_not = "they did so before"
        if self.why_not or not self.running or epoch < 0:
            return []
        found = [run.checkpoint(epoch) for run in self.running]
        if None in found:
            self.why_not = f"not every seed has its checkpoint of epoch {epoch}"
        return [checkpoint for checkpoint in found if checkpoint is not None]

    def _check(self, model: Any, data: Any, config: Mapping[str, Any], device: Any) -> None:
        """Check one of the models, and say what keeps them from being stacked."""
        if not hasattr(model, "tunables"):
            self.why_not = f"{config['model']['_target_']} has no tunables()"
            return
        model.check_data(data)
        check_monitors(config, model, data)
        needed = capacity.bytes_per_member(model) * len(self.running)
        available = bytes_available(device)
        if available is not None and needed > available:
            self.why_not = f"{len(self.running)} models do not fit into memory together"

    def train(self) -> None:
        """Train until every run has ended."""
        for run in self.ended:
            if run.folder.status.get("stage") == "training":
                run.take_up()
                run.end({k: v for k, v in run.folder.status.items() if k != "stage"})
        for run in self.running:
            write_config(run.folder.path / CONFIG, run.config, self.parts)
            run.take_up()
            run.folder.write_status("training", **self.facts, seed=run.seed)
        line, running, began = Line(), list(self.running), time.monotonic()
        first = self.population.epoch if running else 0
        while running:
            metrics = self.population.train_epoch()
            epoch, alive = self.population.epoch - 1, self.population.alive
            values = self.population.values
            staying = []
            for k, run in enumerate(running):
                logged = {name: float(column[k]) for name, column in metrics.items()}
                logged |= {f"hp/{name}": float(column[k]) for name, column in values.items()}
                if not alive[k]:
                    text = f"its loss or weights are NaN or infinite in epoch {epoch}"
                    run.folder.write_status("training", **self.facts, seed=run.seed, stopped=text)
                    warnings.warn(f"{run.folder.path.name} has diverged: {text}", stacklevel=2)
                    continue
                if run.epoch < epoch:  # else it was written before a kill
                    checkpoint = self.population.checkpoint(k)
                    stack = {"size": self.population.stack_size, "kind": self.population.stacked}
                    checkpoint[RUN_KEY] |= {"data": self.facts["data"], _STACK: stack}
                    # The log first: what a kill leaves of it is cut back to the checkpoint.
                    run.log(epoch, (epoch + 1) * self.population.steps_per_epoch - 1, logged)
                    run.keep(checkpoint, epoch, logged)
                    run.is_over |= epoch + 1 >= self.max_epochs
                if run.is_over:
                    run.end(self.facts)
                else:
                    staying.append(k)
            losses = metrics[LOSS]
            n_trained = epoch + 1 - first
            left = (time.monotonic() - began) / n_trained * (self.max_epochs - epoch - 1)
            line.show(
                f"epoch {epoch + 1}/{self.max_epochs} | {len(running)} seeds | valid recon "
                f"(smoothed) {np.nanmean(losses):.5g} | at most {clock(left)} left"
            )
            if 0 < len(staying) < len(running):
                self.population.keep(np.array(staying))
            running = [running[k] for k in staying]
        line.clear()


class _Run:
    """One of the stacked runs: its log, its checkpoints, and whether it stops early."""

    def __init__(self, folder: Path, seed: int, config: dict[str, Any]) -> None:
        self.folder, self.seed, self.config = RunFolder(folder), seed, config
        # Lightning's own callbacks, so that a resumed run goes on with their state.
        self.checkpoints, self.stopping = build_selection(config, folder)
        #: The last epoch that is written, and the checkpoint of it that a run goes on from.
        self.epoch = -1
        self.newest: dict[str, Any] | None = None
        self.is_over = self.has_diverged = False

    @cached_property
    def _table(self) -> Table:
        return Table(self.folder.path / METRICS, is_sorted=True)

    @property
    def best(self) -> Path:
        """The best checkpoint so far."""
        return Path(self.checkpoints[0].best_model_path)

    def look(self, max_epochs: int) -> None:
        """Read how far the run got."""
        status = self.folder.status
        self.has_diverged = status.get("stage") == "training" and "stopped" in status
        if self.folder.kind == "none" or (path := last_whole(self.folder)) is None:
            return
        self.newest = read_checkpoint(path)
        self.epoch = int(self.newest["epoch"])
        stops = self.newest.get(RUN_KEY, {}).get("should_stop")
        self.is_over = bool(stops) or self.epoch + 1 >= max_epochs

    def checkpoint(self, epoch: int) -> dict[str, Any] | None:
        """Return the checkpoint of an epoch, if the folder still has it."""
        if self.epoch == epoch:
            return self.newest
        before = generation_before(self.folder.path / LAST)
        state = None if damage(before) else read_checkpoint(before)
        return state if state and state["epoch"] == epoch and _STACK in state[RUN_KEY] else None

    def take_up(self) -> None:
        """Go on from the newest checkpoint: callbacks and log."""
        if self.newest is None:
            self.folder.rewind_metrics()
            return
        callbacks, about = (*self.checkpoints, *self.stopping), self.newest[RUN_KEY]
        take_up(callbacks, self.newest, self.folder.path)
        n_steps = int(self.newest["global_step"])
        self.folder.rewind_metrics(n_steps, int(about["first_step"]), about["metrics"])
        self.newest = None

    def end(self, facts: Mapping[str, Any]) -> None:
        """Record that training has ended."""
        more: dict[str, Any] = {"seed": self.seed, "epochs": self.epoch + 1}
        more["finished"] = time.strftime("%Y-%m-%d %H:%M:%S")
        more["best_checkpoint"] = self.best.relative_to(self.folder.path).as_posix()
        self.folder.write_status("sampling", **{**facts, **more})

    def log(self, epoch: int, step: int, logged: Mapping[str, float]) -> None:
        """Write the row of an epoch, as a run alone logs it."""
        row = {"cur_epoch": float(epoch), "hp_metric": logged["valid/recon"], **logged}
        known = {name: str(value) for name, value in row.items()}
        self._table.append([{"epoch": str(epoch), "step": str(step), **known}], flush=False)

    def keep(self, checkpoint: dict[str, Any], epoch: int, logged: Mapping[str, float]) -> None:
        """Write the epoch's checkpoints, and find whether the run stops here."""
        replaced: list[Path] = []
        new: list[Path] = []
        for callback in self.checkpoints:
            value = torch.tensor(logged[callback.monitor])
            before, is_max = callback.best_model_score, callback.mode == "max"
            if before is not None and not (value > before if is_max else value < before):
                continue
            path = callback.format_checkpoint_name({"epoch": torch.tensor(epoch), **logged})
            if callback.best_model_path:
                replaced.append(Path(callback.best_model_path))
            new.append(Path(path))
            callback.best_k_models = {path: value}
            callback.best_model_path = callback.kth_best_model_path = path
            callback.best_model_score = callback.current_score = callback.kth_value = value
        for stopping in self.stopping:
            if epoch >= getattr(stopping, "burn_in_period", 0):
                value = torch.tensor(logged[stopping.monitor])
                self.is_over |= bool(stopping._evaluate_stopping_criteria(value)[0])
        callbacks = (*self.checkpoints, *self.stopping)
        states = {callback.state_key: callback.state_dict() for callback in callbacks}
        checkpoint["callbacks"] = {
            key: portable(state, self.folder.path) for key, state in states.items()
        }
        # As `AtomicCheckpointIO`: what is replaced goes when the last checkpoint is there.
        replaced = [path for path in replaced if path not in new]
        replaced += [generation_before(path) for path in new if path.exists()]
        names = [path.name for path in replaced]
        checkpoint[RUN_KEY] |= {"should_stop": self.is_over, "replaced": names}
        for path in new:
            write_checkpoint(path, checkpoint, flush=False, keep=path.exists())
        write_checkpoint(self.folder.path / LAST, checkpoint, flush=False, keep=True)
        for path in replaced:
            path.unlink(missing_ok=True)
        self.epoch = epoch
