"""Tables of a search, as `history` writes them: what every member was, and who copied whom.

``population.csv`` has a row for each epoch and member, ``exchanges.csv`` a row for each copy.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, UserError

POPULATION = "population.csv"
EXCHANGES = "exchanges.csv"
#: Column of a hyper-parameter in `POPULATION`, as training logs it: "hp/lr_init".
HP = "hp/"

Table = dict[str, NDArray[Any]]
"""Columns by name, all of one length: whole numbers, booleans, or floats with NaN for blanks."""

_INTEGERS = ("epoch", "generation", "member", "parent")
_FLAGS = ("diverged",)


def read_population(folder: str | Path) -> Table:
    """Read what every member was in every epoch.

    Parameters
    ----------
    folder : path
        Run folder of a search.

    Returns
    -------
    Table
        ``epoch``, ``generation``, ``member``, ``parent`` (the member it became a copy of before
        this epoch, else itself), ``diverged``, hyper-parameters ``hp/...`` and the metrics.

    Raises
    ------
    DataError
        If there is no such file, or it is not one of ours.
    """
    return _table(_found(Path(folder)))


def read_exchanges(folder: str | Path) -> Table:
    """Read who copied whom.

    Parameters
    ----------
    folder : path
        Run folder of a search.

    Returns
    -------
    Table
        ``generation``, ``epoch`` (epochs trained by then), ``member``, ``parent``, ``score``,
        ``parent_score``, and each hyper-parameter as ``old/...`` and ``new/...``. Empty columns
        where nobody has copied yet.

    Raises
    ------
    DataError
        If the folder holds no search.
    """
    path = _found(Path(folder)).with_name(EXCHANGES)
    if not path.is_file():
        names = ("generation", "epoch", "member", "parent", "score", "parent_score")
        return {name: np.zeros(0, _dtype(name)) for name in names}
    return _table(path)


def read_hyperparameters(folder: str | Path) -> Table:
    """Read the hyper-parameters of every member in every generation.

    Parameters
    ----------
    folder : path
        Run folder of a search.

    Returns
    -------
    Table
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


def as_frame(table: Table) -> Any:
    """Return a table as a pandas data frame.

    Parameters
    ----------
    table : Table

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
            "a data frame needs pandas, which is not installed: pip install 'lfads-torch[tune]'. "
            "Without it, lfads_torch.search.history reads the same as NumPy arrays."
        ) from error
    return pd.DataFrame(table)


def _found(folder: Path) -> Path:
    path = folder / POPULATION
    if path.is_file():
        return path
    around = [folder.parent, *sorted(folder.glob(f"*/{POPULATION}"))]
    near = [place if place.is_dir() else place.parent for place in around]
    hints = [str(place) for place in near if (place / POPULATION).is_file()]
    advice = f"; did you mean {' or '.join(hints[:3])}?" if hints else ""
    raise DataError(
        f"no {POPULATION} in {folder}: name the run folder of a search (lfads pbt, lfads search)"
        f"{advice}"
    )


def read_rows(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Read header and whole rows of a table as text; what a kill cut off is left out.

    Parameters
    ----------
    path : Path

    Returns
    -------
    tuple of (list of str, list of dict)

    Raises
    ------
    DataError
        If it is not a table of a search.
    """
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    table = list(csv.reader(io.StringIO(whole, newline="")))
    header = table[0] if table else []
    if header and not {"epoch", "member", "parent"} <= set(header):
        raise DataError(f"{path} is not the history of a search: it has columns {header[:6]}")
    rows = [dict(zip(header, row, strict=True)) for row in table[1:] if len(row) == len(header)]
    return header, rows


def _table(path: Path) -> Table:
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
