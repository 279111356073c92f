"""What a search did: hyper-parameters by generation, as a table and as figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..compat import populations
from ..errors import UserError, did_you_mean
from ..files import save_figure
from ..tables import as_frame, read_hyperparameters, read_population
from .plots.hyperparameters import hyperparameter_paths


def read_pbt_hps(pbt_dir: str | Path) -> Any:
    """Read the hyper-parameters of every member of a search, as a data frame.

    For a search, a row for each generation and member: ``generation``, ``epoch`` (its first),
    ``member``, ``parent`` (the member it was copied from at the start of the generation, else
    itself) and the hyper-parameters by their names in the configuration, such as
    ``model.lr_init``. For a folder of trials that a script wrote with Ray Tune, a row for each
    start and each take-over: ``trial_num``, ``cur_epoch`` (the first with these values), and every
    key of the configuration.
    """
    if populations.is_population(pbt_dir):
        return as_frame(populations.hyper_parameters(pbt_dir))
    return as_frame(read_hyperparameters(pbt_dir))


def plot_pbt_hps(
    pbt_dir: str | Path,
    plot_field: str | None = None,
    save_dir: str | Path | None = None,
    **kwargs: Any,
) -> Figure:
    """Draw the path of a hyper-parameter through a search.

    The figure of a search shows the lineage of the best member. Of a folder of trials, and with
    more arguments than `color`, it is a line for each member, which pandas draws.

    `plot_field` is its name, with or without ``model.`` in front; by default all that vary in a
    search. A PNG named after it, with ``_`` for each dot, goes into the folder `save_dir` where one
    is given. `kwargs` are the ``color`` of the best member's path, or any of pandas' ``plot``.
    """
    if populations.is_population(pbt_dir) or kwargs.keys() - {"color"}:
        figure = _lines(pbt_dir, plot_field, **kwargs)
    else:
        names = None if plot_field is None else [plot_field]
        figure = hyperparameter_paths(read_population(pbt_dir), names, **kwargs)
    if save_dir is not None:
        name = (plot_field or "hyperparameters").replace(".", "_")
        save_figure(figure, Path(save_dir) / f"{name}.png")
    return figure


def _lines(pbt_dir: str | Path, plot_field: str | None, **kwargs: Any) -> Figure:
    table = read_pbt_hps(pbt_dir)
    if "trial_num" in table:
        member, epoch, last = "trial_num", "cur_epoch", populations.last_epoch(pbt_dir)
    else:
        member, epoch, last = "member", "epoch", int(read_population(pbt_dir)["epoch"].max())
    numbers = table.drop(columns=[member, epoch]).select_dtypes("number")
    field = plot_field if plot_field in numbers else f"model.{plot_field}"
    if field not in numbers:
        advice = did_you_mean(str(plot_field), numbers.columns)
        raise UserError(f"plot_field is {plot_field}, no hyper-parameter of {pbt_dir}; {advice}")
    values = table.pivot_table(field, epoch, member, aggfunc="last")
    values = values.reindex(range(last + 1)).ffill()
    style = {"legend": False, "drawstyle": "steps-post", "xlabel": "epoch", "ylabel": field}
    figure: Figure = values.plot(**{**style, **kwargs}).figure
    return figure
