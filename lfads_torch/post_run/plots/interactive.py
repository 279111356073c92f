"""Figures that turn and browse in a notebook, by plotly, an extra."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import to_hex
from numpy.typing import ArrayLike

from ...errors import DataError, UserError
from .activity import unit_order
from .groups import MAX_GROUPS, by_condition
from .style import as_trials, colour_limits, evenly, principal_axes, rate_scale, time_centres

_MARGIN = {"l": 10, "r": 10, "t": 60, "b": 10}  # the buttons are above the titles


def interactive_factors(
    factors: ArrayLike,
    conditions: ArrayLike | None = None,
    *,
    bin_ms: float | int | None = None,
    max_trials: int = 40,
    max_conditions: int = MAX_GROUPS,
) -> Any:
    """Draw factors in the space of their first three principal components, to turn and to zoom.

    Parameters
    ----------
    factors : array, shape (trials, time, factors)
        At least three factors.
    conditions : array, shape (trials,), optional
        A number or name per trial. A click in the legend hides a condition.
    bin_ms : float, optional
        Bin width; with it the times that the pointer shows are in ms.
    max_trials, max_conditions : int
        Trials drawn at most, evenly spaced; conditions, those with the most trials.

    Returns
    -------
    plotly.graph_objects.Figure
        ``write_html`` makes a page of it.

    Raises
    ------
    UserError
        If plotly is not installed.
    DataError
        If there are fewer than three factors, or none that is finite.
    """
    go = _plotly("interactive_factors")
    data = as_trials(factors)
    finite = None if data is None else data[np.isfinite(data).all(axis=-1)]
    if data is None or finite is None or not len(finite) or data.shape[2] < 3:
        raise DataError("factors must be finite and three or more; draw fewer with trajectories")
    centre, axes, share = principal_axes(finite)
    paths = (data - centre) @ axes[:3].T
    time, label = time_centres(data.shape[1], bin_ms)
    groups, _ = by_condition(conditions, len(data), max_conditions)
    figure = go.Figure()
    for group in groups:
        n_shown = max(1, max_trials // max(1, len(groups)))
        for place, k in enumerate(evenly(len(group.trials), n_shown)):
            trial = group.trials[k]
            x, y, z = paths[trial].T
            figure.add_scatter3d(
                **{"x": x, "y": y, "z": z, "mode": "lines", "customdata": time},
                line={"color": to_hex(group.colour), "width": 3},
                name=group.name or "trials",
                legendgroup=group.name,
                showlegend=place == 0 and bool(group.name),
                hovertemplate=f"trial {trial}, {label} %{{customdata:g}}<extra></extra>",
            )
    names = [f"PC {k + 1} ({share[k]:.0%})" for k in range(3)]
    scene: dict[str, Any] = {
        f"{axis}axis_title": name for axis, name in zip("xyz", names, strict=True)
    }
    # Far enough away that labels of the axes are within the picture.
    scene |= {"aspectmode": "cube", "camera_eye": {"x": 1.5, "y": -1.6, "z": 0.8}}
    figure.update_layout(
        scene=scene, legend_title="condition", margin=_MARGIN, template="simple_white"
    )
    return figure


def trial_browser(
    spikes: ArrayLike,
    rates: ArrayLike,
    truth: ArrayLike | None = None,
    *,
    bin_ms: float | int | None = None,
    trials: Sequence[int] | None = None,
    max_trials: int = 50,
    counts: bool = True,
) -> Any:
    """Show data and inferred rates of one trial after the other, by a slider.

    Parameters
    ----------
    spikes, rates : array, shape (trials, time, units)
        Data, and inferred means per bin.
    truth : array, shape (trials, time, units), optional
        True rates per bin.
    bin_ms : float, optional
        Bin width; with it time is in ms and rates are in spikes/s.
    trials : sequence of int, optional
        Trials to show; by default `max_trials` evenly spaced ones.
    max_trials : int
        How many are chosen. Each adds its arrays to the page.
    counts : bool
        Whether the data are spike counts.

    Returns
    -------
    plotly.graph_objects.Figure
        Units with similar rates lie beside each other; the pointer shows their numbers.

    Raises
    ------
    UserError
        If plotly is not installed.
    DataError
        If there is no trial.
    """
    go = _plotly("trial_browser")
    data, means, true = as_trials(spikes), as_trials(rates), as_trials(truth)
    if data is None or means is None:
        raise DataError("there is no trial to show")
    n_all = min(len(data), len(means))
    shown = [k for k in (trials or evenly(n_all, max_trials)) if 0 <= k < n_all]
    if not shown:
        raise DataError(f"trials are {list(trials or ())}; legal are 0 to {n_all - 1}")
    scale, unit = rate_scale(bin_ms) if counts else (1.0, "value")
    order = unit_order(means[shown], means.shape[2])
    means, true = means * scale, None if true is None else true * scale
    time, label = time_centres(means.shape[1], bin_ms)
    rows = [("spikes per bin" if counts else "data", data, "Greys", colour_limits(data[shown]))]
    limits = colour_limits(means[shown], None if true is None else true[shown])
    rows += [] if true is None else [("true rates", true, "Viridis", limits)]
    rows += [("inferred rates" if counts else "inferred means", means, "Viridis", limits)]
    figure = go.Figure().set_subplots(
        1, len(rows), shared_yaxes=True, subplot_titles=[row[0] for row in rows]
    )
    units = np.broadcast_to(order[:, None], (len(order), len(time)))
    for place, trial in enumerate(shown):
        for column, (_, values, colours, (low, high)) in enumerate(rows):
            figure.add_heatmap(
                **{"x": time, "z": values[trial][: len(time), order].T, "customdata": units},
                colorscale=colours,
                zmin=low,
                zmax=high,
                visible=place == 0,
                showscale=column == len(rows) - 1,
                colorbar_title=unit,
                hovertemplate=f"unit %{{customdata}}, {label} %{{x:g}}: %{{z:.3g}}<extra></extra>",
                row=1,
                col=column + 1,
            )
    steps = [
        {
            "label": str(trial),
            "method": "restyle",
            "args": ["visible", [other == trial for other in shown for _ in rows]],
        }
        for trial in shown
    ]
    figure.update_layout(
        sliders=[{"currentvalue": {"prefix": "trial "}, "steps": steps, "pad": {"t": 40}}],
        margin=_MARGIN,
        template="simple_white",
    )
    figure.update_xaxes(title=label)
    figure.update_yaxes(autorange="reversed")
    figure.update_yaxes(title="unit (sorted)", col=1)
    return figure


def _plotly(name: str) -> Any:
    try:
        import plotly.graph_objects as go
    except ImportError as error:
        raise UserError(
            f"{name} needs plotly, which is not installed: pip install 'lfads-torch[interactive]'. "
            "Without it, trajectories and raster_panel draw the same as pictures."
        ) from error
    return go
