"""What a search did: hyper-parameters by generation, as a table and as figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..folder import as_frame, read_hyperparameters, read_population
from .plots.hyperparameters import hyperparameter_paths


def read_pbt_hps(pbt_dir: str | Path) -> Any:
    """Read the hyper-parameters of every member in every generation.

    Parameters
    ----------
    pbt_dir : path
        Run folder of a search.

    Returns
    -------
    pandas.DataFrame
        One row for each generation and member: ``generation``, ``epoch`` (its first), ``member``,
        ``parent`` (the member it was copied from at the start of the generation, else itself) and
        the hyper-parameters by their names in the configuration, such as ``model.lr_init``.

    Raises
    ------
    DataError
        If the folder holds no search.
    UserError
        If pandas is not installed.
    """
    return as_frame(read_hyperparameters(pbt_dir))


def plot_pbt_hps(
    pbt_dir: str | Path,
    plot_field: str | None = None,
    color: str | None = None,
    save_dir: str | Path | None = None,
) -> Figure:
    """Draw the path of a hyper-parameter through a search, with the lineage of the best member.

    Parameters
    ----------
    pbt_dir : path
        Run folder of a search.
    plot_field : str, optional
        Hyper-parameter, with or without ``model.`` in front; by default all that vary.
    color : Matplotlib colour, optional
        Of the best member's path.
    save_dir : path, optional
        Folder for a PNG named after the hyper-parameter; made where it does not exist.

    Returns
    -------
    Figure

    Raises
    ------
    DataError
        If the folder holds no search.
    UserError
        If the search had no such hyper-parameter.
    """
    names = None if plot_field is None else [plot_field]
    figure = hyperparameter_paths(read_population(pbt_dir), names, color=color)
    if save_dir is not None:
        folder = Path(save_dir)
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / f"{plot_field or 'hyperparameters'}.png")
    return figure
