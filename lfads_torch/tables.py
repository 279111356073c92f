"""The tables in the folder of a run or a search: what was logged, who was what, who copied whom."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import DataError, UserError
from .files import read_table
from .folder import EXCHANGES, HP, POPULATION

Columns = dict[str, NDArray[Any]]
"""Columns by name, all of one length: whole numbers, booleans, or floats with NaN for blanks."""
_INTEGERS = ("epoch", "generation", "member", "parent")
_FLAGS = ("diverged",)


def read_csv_log(path: str | Path) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Read ``metrics.csv`` into one series per metric; rows with holes are those of Lightning."""
    file = Path(path)
    files = _logs_in(file) if file.is_dir() else [file]
    if not files or not files[0].is_file():
        raise DataError(f"no training log at {file}; name a run folder or its metrics.csv")
    series: dict[str, dict[float, float]] = {}
    first = np.inf
    for log in files:
        before = _read_series(log)
        epochs = [epoch for values in before.values() for epoch in values]
        # An earlier version that overlaps with a later one is the log of another run.
        if epochs and max(epochs) >= first:
            break
        first = min([first, *epochs])
        for key, values in before.items():
            series.setdefault(key, {}).update(values)
    return {
        key: (np.array(sorted(values)), np.array([values[e] for e in sorted(values)]))
        for key, values in series.items()
    }


def _logs_in(folder: Path) -> list[Path]:
    """Return the newest log of a folder, then the ones that it may go on from."""
    # Lightning writes a folder version_N for each start; a search may start once a generation.
    logs = sorted(folder.rglob("metrics.csv"), key=lambda log: log.stat().st_mtime)
    family = logs[-1].parent.parent.glob("version_*/metrics.csv") if logs else ()
    versions = sorted(family, key=lambda log: _number(log.parent.name[8:]) or 0, reverse=True)
    return versions if logs and logs[-1] in versions else logs[-1:]


def _read_series(file: Path) -> dict[str, dict[float, float]]:
    """Read one file: by metric, its value in each epoch."""
    header, rows = read_table(file)
    if "epoch" not in header:
        raise DataError(f"{file} has no column 'epoch'; is it a log written by CSVLogger?")
    series: dict[str, dict[float, float]] = {}
    for row in rows:
        text = row.pop("epoch")
        epoch = _number(text)
        if text and (epoch is None or not np.isfinite(epoch)):
            raise DataError(f"{file} is damaged: epoch is {text!r}, legal is a whole number")
        for key, text in row.items():
            value = _number(text)
            if epoch is not None and value is not None:
                series.setdefault(key, {})[epoch] = value
    return series


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def read_population(folder: str | Path) -> Columns:
    """Read what every member of a search was in every epoch.

    Parameters
    ----------
    folder : path
        Run folder of a search.

    Returns
    -------
    dict of str to ndarray
        ``epoch``, ``generation``, ``member``, ``parent`` (the member it became a copy of before
        this epoch, else itself), ``diverged``, hyper-parameters ``hp/...`` and the metrics.

    Raises
    ------
    DataError
        If there is no such file, or it is not one of ours.
    """
    return _columns(_population_path(Path(folder)))


def read_exchanges(folder: str | Path) -> Columns:
    """Read which member of a search copied which.

    Parameters
    ----------
    folder : path
        Run folder of a search.

    Returns
    -------
    dict of str to ndarray
        ``generation``, ``epoch`` (epochs trained by then), ``member``, ``parent``, ``score``,
        ``parent_score``, and each hyper-parameter as ``old/...`` and ``new/...``. Empty columns
        where nobody has copied yet.

    Raises
    ------
    DataError
        If the folder holds no search.
    """
    path = _population_path(Path(folder)).with_name(EXCHANGES)
    if not path.is_file():
        names = ("generation", "epoch", "member", "parent", "score", "parent_score")
        return {name: np.zeros(0, _dtype(name)) for name in names}
    return _columns(path)


def read_hyperparameters(folder: str | Path) -> Columns:
    """Read the hyper-parameters of every member of a search in every generation.

    Parameters
    ----------
    folder : path
        Run folder of a search.

    Returns
    -------
    dict of str to ndarray
        One row for each generation and member: ``generation``, ``epoch`` (its first), ``member``,
        ``parent`` and, by the names of the configuration, ``model.lr_init`` and so on.

    Raises
    ------
    DataError
        If the folder holds no search.
    """
    population = read_population(folder)
    pairs = np.stack([population["generation"], population["member"]])
    first = np.unique(pairs, axis=1, return_index=True)[1]
    columns = {
        name: population[name][first] for name in ("generation", "epoch", "member", "parent")
    }
    for name, column in population.items():
        if name.startswith(HP):
            columns[f"model.{name.removeprefix(HP)}"] = column[first]
    return columns


def as_frame(columns: Columns) -> Any:
    """Return a table as a pandas data frame.

    Parameters
    ----------
    columns : dict of str to ndarray
        As the functions above return it.

    Returns
    -------
    pandas.DataFrame

    Raises
    ------
    UserError
        If pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise UserError(
            "a data frame needs pandas, which is not installed: pip install "
            "'lfads-torch[analysis]'. Without it, lfads_torch.folder reads the "
            "same as NumPy arrays."
        ) from error
    return pd.DataFrame(columns)


def read_rows(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Read header and whole rows of a table of a search as text, or raise `DataError`."""
    header, rows = read_table(path)
    if header and not {"epoch", "member", "parent"} <= set(header):
        raise DataError(f"{path} is not the history of a search: it has columns {header[:6]}")
    for row in rows:
        for name in _INTEGERS:
            if not re.fullmatch(r"-?\d+", row.get(name, "0")):
                raise DataError(
                    f"{path} is damaged: {name} is {row[name]!r}, legal is a whole number"
                )
    return header, rows


def _population_path(folder: Path) -> Path:
    path = folder / POPULATION
    if path.is_file():
        return path
    around = [folder.parent, *(file.parent for file in sorted(folder.glob(f"*/{POPULATION}")))]
    hints = [str(place) for place in around if (place / POPULATION).is_file()]
    advice = f"; did you mean {' or '.join(hints[:3])}?" if hints else ""
    raise DataError(
        f"no {POPULATION} in {folder}: name the run folder of a search (lfads pbt, lfads search)"
        f"{advice}"
    )


def _columns(path: Path) -> Columns:
    header, rows = read_rows(path)
    try:
        return {
            name: np.array([_value(name, row[name]) for row in rows], _dtype(name))
            for name in header
        }
    except ValueError as error:
        raise DataError(f"{path} holds what is not a number: {error}") from error


def _dtype(name: str) -> Any:
    return np.int64 if name in _INTEGERS else bool if name in _FLAGS else np.float64


def _value(name: str, text: str) -> float:
    if name in _INTEGERS or name in _FLAGS:
        return int(text)
    return float(text) if text else np.nan
