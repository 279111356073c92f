"""Folders of populations that Ray Tune wrote, a folder for each trial, as tables."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import DataError
from ..tables import as_frame

BEST = "best_model"
PARAMS = "params.json"
RESULTS = "result.json"
EXCHANGES = "pbt_global.txt"


class Trial(NamedTuple):
    """What a trial left: its number, and what it reported, a mapping for each epoch."""

    number: int
    results: list[dict[str, Any]]

    def epoch_after(self, iteration: int) -> int:
        """Return the epoch of the first report after so many of them."""
        epochs = {int(r["training_iteration"]): int(r["cur_epoch"]) for r in self.results}
        later = [epoch for when, epoch in epochs.items() if when > iteration]
        return min(later, default=epochs.get(iteration, iteration - 1) + 1)


def is_population(folder: str | Path) -> bool:
    """Return whether a folder holds trials of Ray Tune."""
    return any(True for _ in _trial_folders(Path(folder)))


def hyper_parameters(folder: str | Path) -> Any:
    """Return ``trial_num``, ``cur_epoch`` and configuration of each start and each take-over."""
    trials = list(_trials(Path(folder)))
    rows = [
        _row(trial.number, int(trial.results[0]["cur_epoch"]), trial.results[0].get("config", {}))
        for trial in trials
    ]
    path = Path(folder) / EXCHANGES
    if path.is_file():
        by_number = {trial.number: trial for trial in trials}
        for target, _, iteration, _, _, config in _lines(path):
            trial = by_number.get(int(str(target).partition("_")[0]))
            if trial is not None:
                rows.append(_row(trial.number, trial.epoch_after(int(iteration)), config))
    else:  # a scheduler that keeps no such file: a take-over shows in the configuration
        for trial in trials:
            for before, after in zip(trial.results, trial.results[1:], strict=False):
                if after.get("config") != before.get("config"):
                    rows.append(_row(trial.number, int(after["cur_epoch"]), after["config"]))
    return sorted(rows, key=lambda row: (row["trial_num"], row["cur_epoch"]))


def last_epoch(folder: str | Path) -> int:
    """Return the last epoch that any trial reported."""
    trials = _trials(Path(folder))
    return max(int(result["cur_epoch"]) for trial in trials for result in trial.results)


def read_logs(folder: str | Path) -> Any:
    """Return a data frame of what the trials logged, a row for each file and epoch."""
    as_frame({})  # says how to install pandas where it is missing
    import pandas as pd

    paths = sorted(
        path for trial in _trial_folders(Path(folder)) for path in trial.rglob("metrics.csv")
    )
    if not paths:
        raise DataError(f"the trials in {folder} have no csv_logs/**/metrics.csv")
    tables = []
    for number, path in enumerate(paths):
        table = pd.read_csv(path)
        # What a monitor logs when an epoch begins names only the step.
        table["epoch"] = table["epoch"].bfill().ffill().astype(int)
        table = table.ffill().drop_duplicates("epoch", keep="last")
        tables.append(table.assign(worker_id=number))
    return pd.concat(tables, ignore_index=True)


def _trial_folders(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.glob(f"*/{RESULTS}")):
        # The best model is a copy of one of the trials.
        if path.parent.name != BEST and path.with_name(PARAMS).is_file():
            yield path.parent


def _trials(folder: Path) -> Iterator[Trial]:
    for number, place in enumerate(_trial_folders(folder)):
        results = [
            {"cur_epoch": int(result["training_iteration"]) - 1, **result}
            for result in _lines(place / RESULTS)
            if "training_iteration" in result
        ]
        if results:
            digits = str(results[0].get("trial_id", place.name)).rpartition("_")[2]
            yield Trial(int(digits) if digits.isdigit() else number, results)


def _row(number: int, epoch: int, config: Mapping[str, Any]) -> dict[str, Any]:
    return {"trial_num": number, "cur_epoch": epoch, **config}


def _lines(path: Path) -> Iterator[Any]:
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            if line.strip():
                yield json.loads(line)
        except ValueError as error:
            if number < len(lines):  # a kill may have cut the last one off
                raise DataError(f"line {number} of {path} is no JSON: {error}") from error
