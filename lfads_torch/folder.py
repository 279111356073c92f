"""What lies where in the folder of a run or a search.

A run::

    config.yaml                       the composed configuration
    status.json                       stage, versions, best checkpoint, outputs
    csv_logs/metrics.csv              what was logged, a row for each epoch
    lightning_checkpoints/last.ckpt   and best-*.ckpt, best-recon-*.ckpt
    lfads_output*.h5                  posterior means, a file for each session

An ensemble has ``ensemble.json``, ``status.json`` (with a key ``ensemble``) and output files.
An alignment to another day has ``alignment.json``, and ``seeds/``, of which one was chosen, too.
Several seeds have ``config.yaml``, ``status.json`` (with a key ``seeds``) and a run folder each.

A search has ``config.yaml`` and ``status.json`` of its own (with a key ``search``) and::

    population.csv    every member in every epoch; exchanges.csv: who copied whom
    members/          the checkpoints of the final members
    best_model/       an ordinary run folder
"""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

from .errors import DataError, DataWarning, UserError
from .files import (
    Table,
    cannot_write,
    copy_whole,
    generation_before,
    is_write_failure,
    read_json,
    read_table,
    write_whole,
)
from .ownership import owned
from .processes import remove_all_leftovers

CONFIG = "config.yaml"
STATUS = "status.json"
CHECKPOINTS = "lightning_checkpoints"
LAST = f"{CHECKPOINTS}/last.ckpt"
#: Begins the name of the best checkpoint by the loss, in a run that selects by another score.
BY_LOSS = "best-recon-"
METRICS = "csv_logs/metrics.csv"
BEST_MODEL = "best_model"
POPULATION = "population.csv"
#: What an ensemble is made of, in its folder.
ENSEMBLE = "ensemble.json"
EXCHANGES = "exchanges.csv"
#: What an alignment to another day is like, and the folder of the seeds that it was chosen from.
ALIGNMENT = "alignment.json"
STARTS = "seeds"
#: Column of a hyper-parameter in `POPULATION`, as training logs it: "hp/lr_init".
HP = "hp/"

#: Runs of the settings of a search's best model with several seeds.
WINNER_SEEDS = "seeds"
_OF_RUNS = (CONFIG, STATUS, CHECKPOINTS, "csv_logs", "tensorboard", "figures")
_SCORES = ("scores.json", "scores.md")
_OF_SEARCHES = (
    BEST_MODEL,
    "members",
    POPULATION,
    EXCHANGES,
    "search_state.pt",
    "search_state.pt.previous",
    "ray",
    WINNER_SEEDS,
)

Stage = Literal["training", "sampling", "complete"]


# Types of what `RunFolder.status` reads; other keys are for people.
_STATUS: dict[Any, Any] = {
    "stage": str,
    "stopped": str,
    "search": str,
    "backend": str,
    "epochs": int,
    "best_checkpoint": str,
    "outputs": [str],
    "members": [{"checkpoint": str}],
    "seeds": [str],
    "data": [{"file": str, "scheme": str, "arrays": {str: {"shape": [int], "crc32": str}}}],
    "changes": [dict],
    "environment": {"packages": {str: object}},
    "alignment": {"run": str, "day": str, "options": dict},
}


def lacks(place: Path, what: str, advice: str) -> UserError:
    """Return the error for a folder without what a run has; in a folder of runs, name these."""
    # A beginner gives `runs`, in which every run lies.
    folders = sorted(place.iterdir()) if place.is_dir() else []
    runs = [folder.name for folder in folders if RunFolder(folder).kind != "none"]
    if runs:
        more = f" and {len(runs) - 6} more" if len(runs) > 6 else ""
        advice = f"in it are the runs {', '.join(runs[-6:])}{more}: name one of them"
    return UserError(f"{place} holds no {what}; {advice}")


class RunFolder:
    """The folder of a run or of a search; it need not exist."""

    announced: ClassVar[dict[Path, Callable[[Path], None]]] = {}
    """What is called once when a run begins in a folder: how the command line says where it is."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @classmethod
    def around(cls, place: Path) -> RunFolder:
        """Return the run folder that holds a checkpoint or a folder of checkpoints."""
        folder = place if place.is_dir() else place.parent
        is_inside = folder.name == CHECKPOINTS or folder.name.startswith("checkpoint_")
        return cls(folder.parent if is_inside else folder)

    @property
    def status(self) -> dict[str, Any]:
        """How far the run got: ``stage`` and further facts; empty where there is no run."""
        path = self.path / STATUS
        if not path.exists() and not path.is_symlink():
            return {}
        try:
            return read_json(path, _STATUS)
        except DataError as error:
            warnings.warn(f"{error}. What it recorded is not known", DataWarning, stacklevel=2)
            return {}

    def write_status(self, stage: Stage, **facts: Any) -> None:
        """Record how far the run got; only "complete" means that every output is there."""
        write_whole(self.path / STATUS, json.dumps({"stage": stage, **facts}, indent=2) + "\n")

    @property
    def kind(self) -> Literal["run", "search", "seeds", "ensemble", "none"]:
        """What the folder holds, complete or not."""
        status = self.status
        for kind in ("search", "seeds", "ensemble"):
            if kind in status:
                return cast(Any, kind)
        # A run of the existing implementation has no status.
        holds_run = (
            (self.path / STATUS).is_file()
            or (self.path / METRICS).is_file()
            or any((self.path / CHECKPOINTS).glob("*.ckpt"))
        )
        return "run" if holds_run else "none"

    @property
    def single(self) -> RunFolder:
        """The folder of one run: for a search that of its best model, else the folder itself."""
        best = self.path / BEST_MODEL
        # A search of the existing implementation has no status.
        is_search = self.kind == "search" or (self.kind == "none" and best.is_dir())
        return RunFolder(best) if is_search else self

    def checkpoint(self, *, best: bool = False) -> Path | None:
        """Return the last checkpoint or the best one by what the run selects by, if any.

        `path` may also be a folder of checkpoints, or a checkpoint, which is then returned. For a
        search, return the checkpoint of its best model.
        """
        if self.path.is_file():
            return self.path
        if self.kind in ("seeds", "ensemble"):
            raise UserError(
                f"{self.path} holds {'an ensemble' if self.kind == 'ensemble' else 'several seeds'}"
                ", which has no checkpoint of its own; name one of its members: "
                f"{', '.join(self.members()[:8])}"
            )
        place = self.single.path
        recorded = self.single.status.get("best_checkpoint")
        if best and recorded:
            # Even where it is gone: another one is not the best. Older runs recorded whole paths.
            file = place / recorded
            return file if file.is_file() else place / CHECKPOINTS / file.name
        has_last = self.single.has_last
        if not best and has_last and not (place / LAST).is_file():
            return place / LAST  # another one is not the last
        # Ray Tune's callback saves each epoch in a folder of its own.
        for pattern in (f"{CHECKPOINTS}/*.ckpt", "*.ckpt", "checkpoint_*/*.ckpt"):
            paths = sorted(place.glob(pattern), key=_age)
            # Where "last.ckpt" is taken, Lightning writes "last-v1.ckpt".
            lasts = [path for path in paths if path.stem == "last" or path.stem.startswith("last-")]
            losses = [path for path in paths if path.name.startswith(BY_LOSS)]
            others = [path for path in paths if path not in lasts and path not in losses]
            for group in (others, losses, lasts) if best else (lasts, others, losses):
                if group:
                    return group[-1]
        return place / LAST if has_last else None

    @property
    def has_last(self) -> bool:
        """Whether `LAST` was written, even where it is gone."""
        status = self.status
        if (self.path / LAST).is_file() or generation_before(self.path / LAST).is_file():
            return True
        if not status or status.get("stage") != "training":
            return bool(status)
        # Earlier versions logged the first epoch before its checkpoint was written.
        epochs = (row.get("epoch", "") for row in read_table(self.path / METRICS)[1])
        return any(epoch.isdigit() and int(epoch) > 0 for epoch in epochs)

    @property
    def seeds(self) -> list[str]:
        """The names of the run folders of several seeds."""
        names = self.status.get("seeds", [])
        # The status may be a stranger's: other folders are neither read nor deleted for it.
        if wrong := [name for name in names if not re.fullmatch(r"seed-?\d+", name)]:
            raise DataError(f"{self.path / STATUS} is damaged: {wrong[0]!r} is no seed's folder")
        return names

    def members(self) -> list[str]:
        """Return the run folders of the seeds of this folder, or of the models of an ensemble."""
        if self.kind == "seeds":
            return [str(self.path / name) for name in self.seeds]
        try:
            about = json.loads((self.path / ENSEMBLE).read_text(encoding="utf-8"))
            return [str(member["run"]) for member in about["members"]]
        except (OSError, ValueError, KeyError, TypeError):
            return []

    def models(self) -> list[Path]:
        """Return the checkpoints of the final members of a search, the best first."""
        status = self.status
        if self.kind != "search":
            raise UserError(
                f"{self.path} holds no search; --ensemble averages the final members of a search. "
                "Name the folder of a search, or make an ensemble of runs: lfads ensemble RUN RUN"
            )
        if status.get("stage") == "training" or not status.get("members"):
            raise UserError(
                f"the search in {self.path} is not complete; complete it first: "
                f"lfads pbt --resume {self.path}"
            )
        return [self.path / str(member["checkpoint"]) for member in status["members"]]

    @contextmanager
    def claimed(
        self, doing: str, *, resume: bool = False, overwrite: bool = False
    ) -> Iterator[bool]:
        """Own the folder for a run, or refuse it; `doing` is what for ("training")."""
        if not self.path.exists():  # a refusal leaves no folder behind
            self._check_use(resume=resume, overwrite=overwrite)
        with self.owned(doing) as is_own:
            if is_own:
                self._check_use(resume=resume, overwrite=overwrite)
                self.announced.pop(self.path, lambda path: None)(self.path)
            yield is_own

    def _check_use(self, *, resume: bool, overwrite: bool) -> None:
        if resume and overwrite:
            raise UserError("resume and overwrite exclude each other; choose one")
        kind, folder = self.kind, self.path
        if resume and kind == "none":
            raise UserError(f"{folder} holds no run to resume; start one without --resume")
        if kind != "none" and not resume and not overwrite:
            state = "a finished" if self.status.get("stage") == "complete" else "an unfinished"
            command = {"search": "pbt"}.get(kind, "train")
            command = "align" if "alignment" in self.status else command
            goes_on = (
                f"Go on with it (lfads {command} --resume {folder}; run_model(..., resume=True)), "
                "delete it"
            )
            raise UserError(
                f"{folder} already holds {state} run. "
                f"{'Delete it' if kind == 'ensemble' else goes_on} (--overwrite; overwrite=True), "
                "or name another folder (--run-dir; run_dir=...)."
            )

    @contextmanager
    def owned(self, doing: str) -> Iterator[bool]:
        """Own the folder while something is written into it; remove what a kill left there.

        Failures to write are put into words. A new folder in which nothing was written goes. Yield
        false to what the owner started, such as a rank of its training.
        """
        try:
            self.path.mkdir(parents=True)
            is_new = True
        except FileExistsError:
            is_new = False
        except OSError as error:
            raise cannot_write(self.path, error) from error
        # The best model belongs to its search.
        is_best = self.path.name == BEST_MODEL and RunFolder(self.path.parent).kind == "search"
        place = self.path.parent if is_best else self.path
        try:
            with owned(place, doing) as is_own:
                if is_own:
                    remove_all_leftovers(place)
                yield is_own
        except OSError as error:
            if is_write_failure(error):
                raise cannot_write(error.filename or self.path, error) from error
            raise
        finally:
            if is_new:
                with suppress(OSError):  # not empty
                    self.path.rmdir()

    def delete(self, but: str = "") -> None:
        """Delete what a run or a search left in the folder, `but` one name, and nothing else."""
        # By name, because people keep files of their own in run folders.
        more = {"search": _OF_SEARCHES, "ensemble": (ENSEMBLE, "members")}.get(self.kind, ())
        if "alignment" in self.status:
            more = (ALIGNMENT, STARTS)
        if self.kind == "seeds":
            for run in self.members():
                RunFolder(run).delete()
        for name in (*_OF_RUNS, *_SCORES, *more):
            if name == but:
                continue
            path = self.path / name
            # Of a link to another disk the link goes; what it points to stays.
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        for pattern in ("lfads_output*.h5", "lfads_merged*.h5"):
            for output in self.path.glob(pattern):
                output.unlink()

    def rewind_metrics(
        self, step: int = 0, first_step: int = 0, metrics: Mapping[str, float] | None = None
    ) -> None:
        """Cut ``metrics.csv`` back to a checkpoint, so that a resumed run continues it.

        Rows from `step` on go: the checkpoint has that many optimiser steps behind it. Its epoch
        began at `first_step` and logged `metrics`; what a kill kept from the file is added.
        """
        path = self.path / METRICS
        if not path.is_file():
            return
        table = Table(path)
        kept = [r for r in table.read() if r.get("step", "").isdigit() and int(r["step"]) < step]
        n_epochs, known = int((metrics or {}).get("epoch", 0)), {row.get("epoch") for row in kept}
        if gone := [k for k in range(n_epochs) if str(k) not in known]:
            warnings.warn(
                f"{path} lacks {len(gone)} of the {n_epochs} epochs before epoch {n_epochs}, from "
                f"epoch {gone[0]} on; what is drawn and chosen from it later lacks them, too",
                DataWarning,
                stacklevel=2,
            )
        epoch = [row for row in kept if int(row["step"]) >= first_step]
        logged = {name for row in epoch for name in row if row[name]}
        lost = {name: str(value) for name, value in (metrics or {}).items() if name not in logged}
        header = table.header
        if lost:
            lost["epoch"] = str(int((metrics or {}).get("epoch", 0)))
            lost["step"] = str(step - 1)  # Lightning numbers an epoch's row by its last step
            header = sorted({*header, *lost})  # the order in which the log writes columns
            kept.append(lost)
        whole: list[dict[str, Any]] = []
        for row in kept:  # earlier versions wrote what was logged at one time as a row
            filled = {name: value for name, value in row.items() if value}
            if whole and (both := joined(whole[-1], filled)):
                whole[-1] = both
            else:
                whole.append(filled)
        table.rewrite(whole, header or ["step"])


def joined(row: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what was logged at two times of an epoch as one row of `METRICS`.

    Return None where it is no one row: the epochs differ, or a name was logged twice.
    """
    same = {name for name in more if name in row and name != "step"}
    if "epoch" in same and float(row["epoch"]) == float(more["epoch"]):
        same.remove("epoch")
    return None if same else {**row, **more}


def number_outputs(paths: Sequence[Path], stem: str = "lfads_output") -> None:
    """Give the output files of sessions second names: ``lfads_output_sess0.h5`` and so on."""
    for number, path in enumerate(paths):
        link = path.with_name(f"{stem}_sess{number}.h5")
        if link == path:
            continue
        link.unlink(missing_ok=True)
        try:
            # Relative, so that the folder can be moved.
            link.symlink_to(path.name)
        except OSError:
            copy_whole(path, link)


def _age(path: Path) -> tuple[float, list[int]]:
    """Sort checkpoints by time of change, and copies of one time by the numbers in their names."""
    numbers = [int(digits) for digits in re.findall(r"\d+", f"{path.parent.name}/{path.name}")]
    return path.stat().st_mtime, numbers
