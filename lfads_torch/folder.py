"""The folder of a run: what lies where, how far the run got, and logs that survive a resume."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from .errors import UserError

CONFIG = "config.yaml"
STATUS = "status.json"
CHECKPOINTS = "lightning_checkpoints"
LAST = f"{CHECKPOINTS}/last.ckpt"
METRICS = "csv_logs/metrics.csv"
#: In the run folder of a search: an ordinary run folder.
BEST_MODEL = "best_model"

#: How far a run can have got, in order.
STAGES = ("training", "sampling", "complete")

_OURS = (CONFIG, STATUS, CHECKPOINTS, "csv_logs", "tensorboard", "figures")
_SCORES = ("scores.json", "scores.md")
_OURS_OF_SEARCH = (
    BEST_MODEL,
    "members",
    "population.csv",
    "exchanges.csv",
    "search_state.pt",
    "ray",
)
_FULL_OR_FORBIDDEN = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


def read_status(folder: Path) -> dict[str, Any]:
    """Read how far a run got.

    Parameters
    ----------
    folder : Path
        Run folder.

    Returns
    -------
    dict
        ``stage`` (one of `STAGES`) and what else was recorded; empty where there is no run.
    """
    try:
        status = json.loads((folder / STATUS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}


def write_status(folder: Path, stage: str, **more: Any) -> None:
    """Record how far a run got; the file is replaced at once, never half-written.

    Parameters
    ----------
    folder : Path
        Run folder.
    stage : str
        One of `STAGES`. Only ``complete`` means that every output is there.
    **more
        Further facts that JSON can hold.

    Raises
    ------
    UserError
        If the folder cannot be written to.
    """
    write_atomically(folder / STATUS, json.dumps({"stage": stage, **more}, indent=2) + "\n")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that it is there whole or not at all.

    Parameters
    ----------
    path : Path
        Where to.
    content : str or bytes
        What; text is written as UTF-8.

    Raises
    ------
    UserError
        If the disk is full or the folder may not be written to.
    """
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing(path: Path, *, flush: bool = True) -> Iterator[IO[bytes]]:
    """Open a file to be written that takes its place when it is whole.

    Parameters
    ----------
    path : Path
        Its place.
    flush : bool, default=True
        Whether to wait until it is on the disk. A kill needs no such wait, a power cut does.

    Raises
    ------
    UserError
        If the disk is full or the folder may not be written to.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            yield file
            if flush:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def cannot_write(path: Path | str, error: OSError) -> UserError:
    """Say in words why a file could not be written.

    Parameters
    ----------
    path : Path or str
        The file or folder.
    error : OSError
        What the system said.

    Returns
    -------
    UserError
    """
    why = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror
    return UserError(
        f"{path} cannot be written: {why or error}. Make room or name another folder; an "
        "interrupted run goes on from its last epoch with --resume."
    )


def is_write_failure(error: OSError) -> bool:
    """Return whether the system refused to write (disk full, quota, permission)."""
    return error.errno in _FULL_OR_FORBIDDEN


def holds_a_run(folder: Path) -> bool:
    """Return whether a folder holds a run, finished or not."""
    return (
        (folder / STATUS).is_file()
        or (folder / METRICS).is_file()
        or any((folder / CHECKPOINTS).glob("*.ckpt"))
    )


def prepare(folder: Path, *, resume: bool, overwrite: bool) -> bool:
    """Make a run folder ready, or refuse it.

    Parameters
    ----------
    folder : Path
        Run folder; made where it does not exist.
    resume : bool
        Whether the run in it shall go on.
    overwrite : bool
        Whether the run in it is going to be deleted (`delete_run`).

    Returns
    -------
    bool
        Whether the folder was made by this call.

    Raises
    ------
    UserError
        If it holds a run and neither was asked for, holds none to resume, or is not writable.
    """
    if resume and overwrite:
        raise UserError("resume and overwrite exclude each other; choose one")
    occupied = holds_a_run(folder)
    status = read_status(folder)
    command = "pbt" if "search" in status else "train"
    if resume and not occupied:
        raise UserError(f"{folder} holds no run to resume; start one without --resume")
    if occupied and not resume and not overwrite:
        state = "a finished run" if status.get("stage") == "complete" else "an unfinished run"
        raise UserError(
            f"{folder} already holds {state}. Go on with it (lfads {command} --resume {folder}; "
            f"run_model(..., resume=True)), delete it (--overwrite; overwrite=True), or name "
            "another folder (--run-dir; run_dir=...)."
        )
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe.{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise cannot_write(folder, error) from error
    return is_new


def delete_run(folder: Path) -> None:
    """Delete what a run left in a folder, and nothing else.

    Parameters
    ----------
    folder : Path
        Run folder.
    """
    is_search = "search" in read_status(folder)
    for name in (*_OURS, *_SCORES, *(_OURS_OF_SEARCH if is_search else ())):
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for pattern in ("lfads_output*.h5", "lfads_merged*.h5"):
        for output in folder.glob(pattern):
            output.unlink()


def find_checkpoint(place: Path, *, best: bool = False) -> Path | None:
    """Find a checkpoint.

    Parameters
    ----------
    place : Path
        A checkpoint, a folder of checkpoints or a run folder; of a search, its best model counts.
    best : bool, default=False
        The best one by the smoothed validation loss instead of the last.

    Returns
    -------
    Path or None
    """
    if place.is_file():
        return place
    status = read_status(place)
    if "search" in status:
        place = place / BEST_MODEL
        status = read_status(place)
    recorded = status.get("best_checkpoint")
    if best and recorded and (place / recorded).is_file():
        return place / recorded
    for folder in (place / CHECKPOINTS, place):
        found = sorted(folder.glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
        lasts = [path for path in found if path.stem == "last" or path.stem.startswith("last-")]
        others = [path for path in found if path not in lasts]
        for group in (others, lasts) if best else (lasts, others):
            if group:
                return group[-1]
    return None


def rewind_metrics(
    path: Path, step: int = 0, first_step: int = 0, metrics: Mapping[str, float] | None = None
) -> None:
    """Cut a metrics file back to a checkpoint, so that a resumed run continues it.

    Parameters
    ----------
    path : Path
        ``metrics.csv``; nothing happens where it does not exist.
    step : int, default=0
        Optimiser steps that the checkpoint has behind it; rows of later steps go, and so do rows
        that a kill left half-written.
    first_step : int, default=0
        Step at which the checkpoint's epoch began.
    metrics : mapping of str to float, optional
        What that epoch had to log. What a kill kept from the file is added.
    """
    if not path.is_file():
        return
    with open(path, newline="", encoding="utf-8") as file:
        table = list(csv.reader(file))
    header = table[0] if table else []
    rows = [dict(zip(header, row, strict=True)) for row in table[1:] if len(row) == len(header)]
    kept = [row for row in rows if row.get("step", "").isdigit() and int(row["step"]) < step]
    epoch = [row for row in kept if int(row["step"]) >= first_step]
    logged = {name for row in epoch for name in row if row[name]}
    lost = {name: str(value) for name, value in (metrics or {}).items() if name not in logged}
    if lost:
        lost["epoch"] = str(int((metrics or {}).get("epoch", 0)))
        lost["step"] = str(step - 1)
        header = [*header, *(name for name in lost if name not in header)]
        kept.append(lost)
    write_atomically(path, table_text(header or ["step"], kept))


def table_text(header: list[str], rows: list[dict[str, str]]) -> str:
    """Return rows as CSV.

    Parameters
    ----------
    header : list of str
        Columns.
    rows : list of dict
        Values by column; blank where absent.

    Returns
    -------
    str
    """
    lines = [",".join(header)]
    lines += [",".join(str(row.get(name, "")) for name in header) for row in rows]
    return "\n".join(lines) + "\n"
