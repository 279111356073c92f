"""The record of a search: its status, and at the end its best model and figures."""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..arguments import LOSS
from ..data.fingerprint import check_unchanged
from ..errors import UserError
from ..files import copy_whole, csv_text, save_figure, write_whole
from ..folder import BEST_MODEL, CHECKPOINTS, CONFIG, HP, METRICS, RunFolder
from ..provenance import provenance
from ..run_model import RunResult, run_model
from ..runs.build import pick_device
from ..runs.changes import Changes, recorded_changes
from ..runs.compose import write_config
from ..tables import Columns, read_population
from ..version import read_version
from .live_table import LiveTable
from .members import max_epochs_of
from .settings import SearchSettings
from .state import LAST_CHECKPOINT, Best, Outcome, Place


@dataclass
class GoingOn:
    """Whether a search goes on, and with which changes of its configuration and its data."""

    changes: Changes
    resume: bool
    accept_changed_data: bool

    def check_data(self, folder: RunFolder, data: list[Any]) -> None:
        """Refuse changed data, or take what is accepted for a change."""
        recorded = folder.status.get("data") if self.resume else None
        self.changes |= check_unchanged(recorded, data, accept=self.accept_changed_data)

    def facts(self, folder: RunFolder, data: list[Any], n_epochs: int) -> dict[str, Any]:
        """Return what the status says of data and changes, which hold from an epoch on."""
        before = folder.status.get("changes") if self.resume else None
        changes = recorded_changes(before, self.changes, n_epochs)
        return {"data": data, **({"changes": changes} if changes else {})}


@contextmanager
def recorded(
    config: dict[str, Any],
    settings: SearchSettings,
    folder: Path,
    backend: str,
    table: LiveTable,
    more: Mapping[str, Any],
) -> Iterator[dict[str, Any]]:
    """Record that a search begins, and why it stops where it fails; yield facts for its status.

    `more` are further facts, as `GoingOn.facts` gives them. The configuration gets the metric
    that the data decided, so that nothing decides it again.
    """
    config["search"] = {**config["search"], "metric": settings.metric}
    before = config.get("select_by", LOSS)
    for node in (config.get("callbacks") or {}).values():
        is_checkpoint = node and str(node["_target_"]).endswith(".ModelCheckpoint")
        if is_checkpoint and node.get("monitor") == before:
            node["monitor"] = settings.metric
    config["select_by"] = settings.metric
    facts: dict[str, Any] = {
        "version": read_version().version,
        "environment": provenance(pick_device(config["trainer"], is_stacked=True)),
        "search": settings.method,
        "backend": backend,
        "seed": int(config.get("seed") or 0),
        "max_epochs": max_epochs_of(config),
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    facts |= more
    write_config(folder / CONFIG, config)
    RunFolder(folder).write_status("training", **facts)
    try:
        yield facts
    except UserError as error:
        with suppress(UserError):  # the disk may be full
            RunFolder(folder).write_status("training", **facts, stopped=str(error))
        raise
    finally:
        table.close()


def finish_search(
    config: Mapping[str, Any],
    folder: Path,
    settings: SearchSettings,
    outcome: Outcome,
    ended: str,
    facts: Mapping[str, Any],
) -> RunResult:
    """Write ``best_model/``, sample it, draw figures and record that the search is complete."""
    best = outcome.best
    finite = {k: score for k, score in outcome.scores.items() if math.isfinite(score)}
    if not finite:
        raise UserError(f"{folder}: no member is left of which a best model could be made")
    place, saved = folder / BEST_MODEL, Place.of_search(folder)
    (place / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    # Two models, as a single run keeps them: the member whose last score is best, from which
    # training can go on, and the best of all epochs, which may have been another member's.
    winner = min(finite, key=lambda k: (finite[k], k))
    table = read_population(folder)
    rows = lineage(table, winner)
    last_epoch = int(table["epoch"][rows[-1]])
    copy_whole(saved.member(winner), folder / LAST_CHECKPOINT)
    if not saved.best.is_file():
        best = Best(finite[winner], winner, last_epoch)
        copy_whole(saved.member(winner), saved.best)
    single = member_config(config, table, rows[-1])
    write_config(place / CONFIG, single)
    header, text = _metrics_of(table, rows, outcome.steps_per_epoch)
    write_whole(place / METRICS, csv_text(header, text))
    status = {
        "version": read_version().version,
        "environment": facts.get("environment"),
        "seed": single["seed"],
        "max_epochs": single["trainer"]["max_epochs"],
        "epochs": last_epoch + 1,
        "best_checkpoint": f"{CHECKPOINTS}/{saved.best.name}",
        "best": {"member": best.member, "epoch": best.epoch},
        "last": {"member": winner, "epoch": last_epoch},
        settings.metric: settings.sign * best.score,
        "data": facts.get("data", []),
    }
    RunFolder(place).write_status("sampling", **status)
    more = {
        **facts,
        "epochs": outcome.n_epochs,
        "ended": ended,
        "metric": settings.metric,
        "best": {**best._asdict(), "score": settings.sign * best.score},
        "members": [
            {
                "member": k,
                "score": settings.sign * finite[k],
                "checkpoint": saved.member(k).relative_to(folder).as_posix(),
            }
            for k in sorted(finite, key=lambda k: (finite[k], k))
        ],
    }
    RunFolder(folder).write_status("sampling", **more)
    sampled = run_model(config_path=place / CONFIG, run_dir=place, do_train=False)
    outputs = [path.relative_to(place).as_posix() for path in sampled.outputs]
    RunFolder(place).write_status("complete", **status, outputs=outputs)
    try:
        draw_search(folder, settings)
    except Exception as error:  # a figure that fails does not take the results along
        warnings.warn(f"figures of {folder} were not drawn: {error}", stacklevel=2)
    RunFolder(folder).write_status("complete", **more)
    last = {n: float(column[rows[-1]]) for n, column in table.items() if "/" in n}
    return RunResult(
        run_dir=folder,
        best_checkpoint=saved.best,
        last_checkpoint=folder / LAST_CHECKPOINT,
        outputs=sampled.outputs,
        metrics={name: value for name, value in last.items() if not math.isnan(value)},
    )


def lineage(table: Columns, member: int) -> list[int]:
    """Return the rows of a member's history and of whom it descends from."""
    row_of = {
        pair: row
        for row, pair in enumerate(
            zip(table["epoch"].tolist(), table["member"].tolist(), strict=True)
        )
    }
    epoch = int(table["epoch"][table["member"] == member].max())
    rows = []
    while (row := row_of.get((epoch, member))) is not None:
        rows.append(row)
        member, epoch = int(table["parent"][row]), epoch - 1
    return rows[::-1]


def member_config(config: Mapping[str, Any], table: Columns, row: int) -> dict[str, Any]:
    """Return the configuration of a single model with what a member had in an epoch."""
    single = copy.deepcopy({key: value for key, value in config.items() if key != "search"})
    for name, column in table.items():
        if name.startswith(HP):
            _put(single["model"], name.removeprefix(HP).split("."), float(column[row]))
    single["seed"] = int(config.get("seed") or 0) + int(table["member"][row])
    single["trainer"]["max_epochs"] = int(table["epoch"][row]) + 1
    return single


def _put(node: Any, path: list[str], value: float) -> None:
    """Set a value by its path; what the configuration does not name stays out."""
    for key in path[:-1]:
        if isinstance(node, list) and key.isdigit() and int(key) < len(node):
            node = node[int(key)]
        elif isinstance(node, dict) and key in node:
            node = node[key]
        else:
            return
    if isinstance(node, dict) and (len(path) == 1 or path[-1] in node):
        node[path[-1]] = value


def _metrics_of(
    table: Columns, rows: list[int], steps_per_epoch: int
) -> tuple[list[str], list[dict[str, Any]]]:
    """Return header and rows as a single run would have logged them."""
    logged = [name for name in table if "/" in name]
    lines = []
    for row in rows:
        epoch = int(table["epoch"][row])
        step = (epoch + 1) * steps_per_epoch - 1
        values = {n: repr(float(table[n][row])) for n in logged if not np.isnan(table[n][row])}
        lines.append({"epoch": epoch, "step": step, "cur_epoch": float(epoch), **values})
    return ["epoch", "step", "cur_epoch", *logged], lines


def draw_search(folder: Path, settings: SearchSettings) -> None:
    """Draw scores and hyper-parameters of a search into ``figures/``."""
    from ..post_run.plots.hyperparameters import (
        hyperparameter_paths,
        score_history,
        scores_by_value,
    )

    table = read_population(folder)
    tunables = [name.removeprefix(HP) for name in table if name.startswith(HP)]
    space = settings.space_for(tunables)
    searched = list(space)
    metric = settings.metric
    figures = {"scores": score_history(table, metric)}
    if settings.method == "pbt":
        figures["hyperparameters"] = hyperparameter_paths(
            table, searched, metric=metric, space=space
        )
    else:
        figures["hyperparameters"] = scores_by_value(table, searched, metric=metric, space=space)
    place = folder / "figures"
    for name, figure in figures.items():
        save_figure(figure, place / f"search_{name}.png", dpi=150)
