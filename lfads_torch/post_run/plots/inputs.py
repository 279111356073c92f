"""Inferred inputs: aligned to events, and how much each dimension carries."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike, NDArray

from .groups import MAX_GROUPS, Group, by_condition, condition_legend, mean_and_error
from .style import (
    Figure,
    FloatArray,
    as_trials,
    empty_figure,
    heatmap,
    look,
    styled,
    time_centres,
    time_edges,
)


def align(
    values: ArrayLike, events: ArrayLike, before: int | None = None, after: int | None = None
) -> tuple[FloatArray, int]:
    """Cut (trials, time, dimensions) around an event, with NaN where a trial does not reach.

    `events` are bins, shape (trials,), counted from 0; fractions fall into the bin that holds them.
    By default as many bins are kept as any trial has. Return the position of the event's bin, too.
    """
    data = np.asarray(values, dtype=np.float64)
    at = np.full(len(data), np.nan)
    given = np.asarray(events, dtype=np.float64).reshape(-1)[: len(data)]
    at[: len(given)] = np.floor(given)
    n_bins = data.shape[1]
    # An event far outside the trial leaves nothing of it to see.
    at[~(np.abs(at) <= 2 * n_bins)] = np.nan
    known = at[np.isfinite(at)]
    inside = known[(known >= 0) & (known < n_bins)]
    if before is None:
        before = int(inside.max()) if inside.size else 0
    if after is None:
        after = int(n_bins - 1 - inside.min()) if inside.size else 0
    source = at[:, None] + np.arange(-before, after + 1)
    reached = np.isfinite(source) & (source >= 0) & (source < n_bins)
    index = np.where(reached, source, 0).astype(np.intp)
    cut = data[np.arange(len(data))[:, None], index]
    return np.where(reached[..., None], cut, np.nan), before


@styled
def aligned_inputs(
    inputs: ArrayLike,
    events: ArrayLike | None = None,
    conditions: ArrayLike | None = None,
    *,
    bin_ms: float | int | None = None,
    before: int | None = None,
    after: int | None = None,
    event_name: str = "event",
    max_dims: int = 4,
    max_conditions: int = MAX_GROUPS,
) -> Figure:
    """Draw inferred inputs around an event: averages by condition, and all single trials.

    Parameters
    ----------
    inputs : array, shape (trials, time, dimensions)
        Posterior means of the inferred inputs.
    events : array, shape (trials,), optional
        The event's bin in each trial; the trial's first bin if None.
    conditions : array, shape (trials,), optional
        A number or name per trial.
    bin_ms : float, optional
        Bin width; with it time is in ms.
    before, after : int, optional
        Bins around the event; by default all that trials have.
    event_name : str
    max_dims : int
        Dimensions drawn at most, those that vary most.
    max_conditions : int
        Conditions drawn at most, those with the most trials.

    Returns
    -------
    Figure
        Bands are standard errors of the mean over trials. Single trials lie in the order of their
        conditions, within these of their events.
    """
    data = as_trials(inputs)
    if data is None or not np.isfinite(data).any():
        return empty_figure("no inferred input to draw")
    zero = np.zeros(len(data)) if events is None else np.asarray(events, dtype=np.float64)
    cut, centre = align(data, zero, before, after)
    if not np.isfinite(cut).any():
        return empty_figure(f"no trial reaches the {event_name}")
    groups, n_all = by_condition(conditions, len(cut), max_conditions)
    varies = np.nanvar(cut, axis=(0, 1))
    dims = np.sort(np.argsort(-np.nan_to_num(varies), kind="stable")[:max_dims]).tolist()
    edges, label = time_edges(cut.shape[1], bin_ms)
    edges = edges - edges[centre] if events is not None else edges
    members = [group.trials[group.trials < len(zero)] for group in groups]
    rows = [k for m in members for k in m[np.argsort(zero[m], kind="stable")].tolist()]
    if not rows:
        return empty_figure("no trial has a condition")

    figure = Figure(figsize=(9.6, 1.9 * len(dims) + 1.3), layout="constrained")
    grid = figure.subplots(len(dims), 2, squeeze=False, sharex=True, width_ratios=(1, 1.15))
    # Symmetric about 0, so that paper is "no input"; and one scale, so that dimensions compare.
    reach = float(np.nanpercentile(np.abs(cut[..., dims]), 99.5)) or 1.0
    for (left, right), dim in zip(grid, dims, strict=True):
        for group in groups:
            mean, error = mean_and_error(cut[group.trials, :, dim])
            time = (edges[:-1] + edges[1:]) / 2
            band = {"color": group.colour, "alpha": 0.25, "linewidth": 0}
            left.fill_between(time, mean - error, mean + error, **band)
            left.plot(time, mean, color=group.colour)
        left.axhline(0, color=look().muted, linewidth=0.8)
        left.set_ylabel(f"input {dim} (a.u.)")
        image = heatmap(right, cut[rows, :, dim], edges, look().diverging, (-reach, reach))
        right.set_ylabel("trial (sorted)" if conditions is not None else "trial")
        _condition_marks(right, groups, edges)
        for axis in (left, right):
            if events is not None:
                axis.axvline(0, color=look().ink, linewidth=1, linestyle=":")
    grid[0, 0].set_title("mean ± s.e.m." + (" by condition" if conditions is not None else ""))
    grid[0, 1].set_title("single trials")
    for axis in grid[-1]:
        axis.set_xlabel(
            label.replace("time", f"time from {event_name}") if events is not None else label
        )
    bar = figure.colorbar(image, ax=grid[:, 1], shrink=0.8, aspect=30, extend="both")
    bar.set_label("input (a.u.)")
    bar.outline.set_visible(False)
    condition_legend(figure, groups, n_all)
    return figure


def _condition_marks(axis: Axes, groups: Sequence[Group], edges: FloatArray) -> None:
    """Mark beside the trials which condition they are of."""
    if len(groups) < 2:
        return
    width, start = 0.025 * (edges[-1] - edges[0]), -0.5
    for group in groups:
        corner, height = (edges[0] - 1.4 * width, start), len(group.trials)
        axis.add_patch(Rectangle(corner, width, height, color=group.colour, linewidth=0))
        start += len(group.trials)
    axis.set_xlim(edges[0] - 1.4 * width, edges[-1])


@styled
def latent_usage(
    ic_kl: ArrayLike | None = None,
    co_kl: ArrayLike | None = None,
    *,
    bin_ms: float | int | None = None,
    max_dims: int = 40,
) -> Figure:
    """Draw how far each latent dimension's posterior is from its prior: which ones are used.

    Parameters
    ----------
    ic_kl : array, shape (dimensions,) or (trials, dimensions), optional
        KL divergence of the initial condition per dimension, nats per trial.
    co_kl : array, shape (time, dimensions) or (trials, time, dimensions), optional
        KL divergence of the inferred inputs per bin and dimension, nats.
    bin_ms : float, optional
        Bin width; with it time is in ms.
    max_dims : int
        Dimensions drawn at most, those with the largest divergence.

    Returns
    -------
    Figure
        Dimensions below a tenth of a nat per trial, drawn pale, hardly tell trials apart.
    """
    ic = _mean_over_trials(ic_kl, 1)
    co = _mean_over_trials(co_kl, 2)
    if ic is None and co is None:
        return empty_figure("no divergence to draw")
    n_panels = (ic is not None) + 2 * (co is not None)
    figure = Figure(figsize=(4.1 * n_panels + 0.4, 3.5), layout="constrained")
    axes = figure.subplots(1, n_panels, squeeze=False)[0].tolist()
    if co is not None:
        total = np.nansum(co, axis=0)
        order = _bars(axes[0], total, max_dims, "inferred inputs")
        time, label = time_centres(len(co), bin_ms)
        palette = look().palette
        # The colours of `trials`, which has one for each input where there are enough.
        by_number = len(total) <= len(palette)
        for place, dim in enumerate(sorted(order[: len(palette) - 1].tolist())):
            colour = palette[dim if by_number else place]
            axes[1].plot(time, co[:, dim], color=colour, label=f"input {dim}")
        axes[1].set(xlabel=label, ylabel="KL (nats per bin)", title="inferred inputs over time")
        axes[1].set_ylim(bottom=min(0.0, float(np.nanmin(np.append(co, 0.0)))))
        low, high = axes[1].get_ylim()
        axes[1].set_ylim(low, low + 1.3 * (high - low))  # room for the legend
        axes[1].legend(loc="upper right", ncols=2)
    if ic is not None:
        _bars(axes[-1], ic, max_dims, "initial condition")
    return figure


# The mean divergence is an upper bound of the information that a dimension has of its trial, and
# to tell two equally frequent conditions apart takes ln 2 = 0.69 nats.
USED_NATS = 0.1
"""Divergence per trial below which a dimension is drawn as unused."""


def _mean_over_trials(kl: ArrayLike | None, ndim: int) -> FloatArray | None:
    if kl is None:
        return None
    data = np.asarray(kl, dtype=np.float64)
    if not data.size or not np.isfinite(data).any():
        return None
    return mean_and_error(data)[0] if data.ndim == ndim + 1 else data


def _bars(axis: Axes, values: FloatArray, max_dims: int, title: str) -> NDArray[np.intp]:
    """Draw the largest divergences, count all, and return the dimensions drawn, largest first."""
    order = np.argsort(-values, kind="stable")[:max_dims]
    shown = values[order]
    colours = [look().blue if value >= USED_NATS else look().muted for value in shown.tolist()]
    places = np.arange(len(shown))
    axis.bar(places, shown, color=colours, width=0.75)
    n_used = int((values >= USED_NATS).sum())
    axis.set(ylabel="KL (nats per trial)", title=f"{title}: {n_used} of {len(values)} used")
    step = max(1, len(shown) // 10)
    axis.set_xticks(places[::step], order[::step].tolist())
    left_out = f", the first {len(shown)}" if len(shown) < len(values) else ""
    axis.set_xlabel(f"dimension (sorted{left_out})")
    # A bar alone would fill the panel.
    axis.set_xlim(-0.6, max(len(shown), 6) - 0.4)
    return order
