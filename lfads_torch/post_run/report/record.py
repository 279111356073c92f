"""The content of a run folder, read for a report; what is absent or broken is noted, not fatal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from warnings import catch_warnings, simplefilter

import numpy as np
import yaml
from numpy.typing import NDArray

from ...arguments import LOSS
from ...consent import trust_of
from ...data import SPLITS
from ...errors import DataError, DataWarning, UserError
from ...files import expanded, read_json
from ...folder import ALIGNMENT, BEST_MODEL, CONFIG, HP, METRICS, POPULATION, RunFolder, lacks
from ...search.settings import SearchSettings
from ...tables import read_population
from ..evaluation import evaluate_run
from ..evaluation.behavior import Keys, Recording, read_recording
from ..evaluation.table import SHAPE
from ..outputs import RunOutputs, load_outputs, output_files
from ..plots.training import best_epoch, read_csv_log

SCORES = "scores.json"


@dataclass(frozen=True)
class Wanted:
    """Which keys of the data a report uses, and how much it computes."""

    # Keys, without their split, of behaviour, conditions and true latents
    keys: Keys = field(default_factory=Keys)
    # Key, without its split, that holds the bin of an event in each trial
    event: str | None = None
    # Time of an event that is the same in all trials, in ms from their first bin
    event_ms: float | None = None
    # Bin width, where the files do not say it
    bin_ms: float | None = None
    # Leave out what takes long: baselines and fixed points
    quick: bool = False
    # Consent to code outside this package that a checkpoint names
    trust: bool = False


@dataclass
class RunRecord:
    """A run, as far as it can be read."""

    # As named; of a search `place` is its best model's run folder, else both are the same
    folder: Path
    place: Path
    wanted: Wanted
    # status, config: Empty where absent
    status: dict[str, Any]
    config: dict[str, Any]
    # What made the run: of a search its own configuration, not that of its best model
    config_text: str
    # Read from `log_path`
    log: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]]
    outputs: RunOutputs | None
    log_path: Path
    # As `lfads evaluate` writes them
    scores: dict[str, Any] | None = None
    # What could not be read and why, in sentences
    absent: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @cached_property
    def command(self) -> str:
        """The command that makes such a run and goes on with it."""
        method = RunFolder(self.folder).status.get("search")
        if RunFolder(self.folder).kind == "ensemble":
            return "ensemble"
        if method is None and self.population is None:
            return "align" if "alignment" in self.status else "train"
        return "pbt" if method in (None, "pbt") else "search"

    @cached_property
    def model(self) -> Any:
        """The trained model, or None (and a line in `absent`, but of an ensemble)."""
        from ...checkpoint import load_model

        if self.command == "ensemble":
            return None
        try:
            return load_model(self.place, trust=trust_of(self.place / CONFIG, self.wanted.trust))
        except UserError as error:
            self.absent.append(f"The model cannot be loaded: {error}.")
            return None

    @cached_property
    def alignment(self) -> dict[str, Any] | None:
        """What an alignment to another day recorded; None of another run."""
        path = self.place / ALIGNMENT
        if "alignment" not in self.status or not path.is_file():
            return None
        return read_json(
            path, {"seeds": [dict], "moments": dict, "warnings": [str], "origin": {"run": str}}
        )

    @cached_property
    def recordings(self) -> list[Recording]:
        """Validation trials of each session; empty where there are no outputs."""
        recordings = []
        for session in self.outputs or ():
            split = "valid" if "valid" in session.splits else session.splits[0]
            try:
                recordings.append(read_recording(session, split, self.wanted.keys))
            except UserError as error:
                if self.wanted.keys != Keys():  # what was named must be there
                    raise
                self.absent.append(f"Session {session.name} is left out: {error}.")
        return recordings

    def set_up(self, name: str) -> Any:
        """Return a setting of the model, or None where it is not known."""
        model = self.config.get("model")
        return model.get(name) if isinstance(model, dict) else None

    @cached_property
    def population(self) -> Any:
        """Table of a search, or None where there was none."""
        if not (self.folder / POPULATION).is_file():
            return None
        try:
            if table := read_population(self.folder):
                return table
            self.absent.append("The history of the search is empty.")
            return None
        except UserError as error:
            self.absent.append(f"The history of the search cannot be read: {error}.")
            return None

    @cached_property
    def search_space(self) -> Any:
        """How hyper-parameters were drawn in a search, by name; None where that is not known."""
        tunables = [n.removeprefix(HP) for n in self.population or () if n.startswith(HP)]
        try:
            content = yaml.safe_load((self.folder / CONFIG).read_text(encoding="utf-8"))
            return SearchSettings(space=content["search"].get("space")).space_for(tunables)
        except (
            OSError,
            ValueError,
            KeyError,
            AttributeError,
            TypeError,
            yaml.YAMLError,
            UserError,
        ):
            return None

    def session_scores(self, recording: Recording) -> dict[str, Any]:
        """Return the scores of one session, as far as they are known."""
        sessions = {s["name"]: s for s in (self.scores or {}).get("sessions", [])}
        return sessions.get(recording.session.name, {})

    def last(self, metric: str) -> float:
        """Return the last value of a metric that was logged, NaN where it was not."""
        series = self.log.get(metric)
        return float(series[1][-1]) if series is not None and len(series[1]) else float("nan")

    @property
    def select_by(self) -> str:
        """The score that chose the best epoch, and the winner of a search."""
        return str(self.config.get("select_by") or LOSS)

    @property
    def best_epoch(self) -> int | None:
        """The epoch that the score of `select_by` chose; None where that was not logged."""
        return best_epoch(self.log, self.select_by)


def read_run(folder: str | Path, wanted: Wanted | None = None) -> RunRecord:
    """Read the folder of a run or search; raise `UserError` where it is neither."""
    wanted = wanted or Wanted()
    folder = expanded(folder).absolute()
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; name a run folder, such as runs/my_run")
    is_search = RunFolder(folder).kind == "search" or (folder / POPULATION).is_file()
    is_ensemble = RunFolder(folder).kind == "ensemble"
    place = RunFolder(folder).single.path
    if is_search and (folder / BEST_MODEL).is_dir():
        place = folder / BEST_MODEL
    absent: list[str] = []
    with catch_warnings(record=True) as noticed:
        simplefilter("always", DataWarning)
        status = RunFolder(place).status
    absent += dict.fromkeys(f"{warning.message}." for warning in noticed)
    outputs: RunOutputs | None = None
    try:
        outputs = load_outputs(place, bin_ms=wanted.bin_ms)
    except UserError as error:
        absent.append(f"There are no outputs to look at: {error}.")
    is_run = RunFolder(place).kind != "none" or RunFolder(place).checkpoint() is not None
    if outputs is None and not is_run and not is_search:
        where = "run (no status.json, csv_logs, checkpoints or lfads_output*.h5)"
        raise lacks(folder, where, "name a run folder, such as runs/my_run")
    text, config, log = "", {}, {}
    try:
        text = (place / CONFIG).read_text(encoding="utf-8")
        content = yaml.safe_load(text)
        config = content if isinstance(content, dict) else {}
        if is_search and (folder / CONFIG).is_file():
            text = (folder / CONFIG).read_text(encoding="utf-8")
    except FileNotFoundError:
        if not is_ensemble:
            absent.append(f"There is no {CONFIG}: the settings of the run are not known.")
    except (OSError, ValueError, yaml.YAMLError) as error:
        text = ""
        absent.append(f"{CONFIG} cannot be read: {error}.")
    log_path = place / METRICS if (place / METRICS).is_file() else place
    try:
        log = read_csv_log(log_path)
    except (UserError, OSError, ValueError) as error:
        if not is_ensemble:  # it has no training of its own
            absent.append(f"The training log cannot be read: {error}.")
    record = RunRecord(
        folder=folder,
        place=place,
        wanted=wanted,
        status=status,
        config=config,
        config_text=text,
        log=log,
        outputs=outputs,
        log_path=log_path,
        absent=absent,
    )
    if outputs is not None:
        record.scores = _stored_scores(record) or _scores(record, outputs)
    return record


N_PARTS = 5
"""Parts of time that are scored."""


def _scores(record: RunRecord, outputs: RunOutputs) -> dict[str, Any] | None:
    """Score the outputs now, or note why they cannot be scored."""
    keys = record.wanted.keys
    try:
        evaluation = evaluate_run(
            outputs,
            split="valid" if all("valid" in s.splits for s in outputs) else "train",
            baselines=not record.wanted.quick,
            behavior=keys.behavior,
            condition=keys.condition,
            latents=keys.latents,
            by_time=N_PARTS if all(session.order.key for session in outputs) else None,
        )
    except UserError as error:
        record.absent.append(f"Scores cannot be computed: {error}.")
        return None
    # A quick report lacks the baselines, which a later one would then miss.
    if not record.wanted.quick:
        evaluation.write(record.place)
    return evaluation.to_dict()


def _stored_scores(record: RunRecord) -> dict[str, Any] | None:
    """Return what `lfads evaluate` left of these outputs, or None."""
    path = record.place / SCORES
    if not path.is_file() or record.wanted.keys != Keys():
        return None
    # Outputs sampled anew after the scores were computed have others.
    if any(f.stat().st_mtime > path.stat().st_mtime for f in output_files(record.place)):
        return None
    try:
        scores = read_json(path, SHAPE)
    except DataError:  # computed anew
        return None
    parts = [(scores, SHAPE), *((s, SHAPE["sessions"][0]) for s in scores.get("sessions", []))]
    is_whole = all(part.get(key) is not None for part, shape in parts for key in shape)
    is_known = scores.get("format") == 1 and scores.get("split") in SPLITS
    return scores if is_whole and is_known else None
