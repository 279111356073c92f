"""Factors as trajectories in state space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.ticker import MaxNLocator
from mpl_toolkits.mplot3d.art3d import Line3DCollection
from numpy.typing import ArrayLike, NDArray

from ...metrics import fit_linear, linear_map_r2
from ...prep.merging import merge_chops
from .groups import MAX_GROUPS, by_condition, condition_legend, mean_and_error
from .style import (
    Figure,
    FloatArray,
    as_trials,
    empty_figure,
    evenly,
    look,
    principal_axes,
    styled,
    time_edges,
)

_MAX_TRIALS = 40
_WITHOUT_CONDITIONS = 10
_STRETCH = 300  # bins of a continuous recording that are drawn over time


@styled
def factors_3d(
    factors: ArrayLike,
    truth: ArrayLike,
    *,
    bin_ms: float | int | None = None,
    max_trials: int = _MAX_TRIALS,
    trial: int = 0,
) -> Figure:
    """Draw factors, mapped linearly onto the true latents, beside the true attractor.

    The map (least squares with an offset) is fitted over all trials given, drawn or not.

    Parameters
    ----------
    factors : array, shape (trials, time, factors)
    truth : array, shape (trials, time, 3) or (trials, time, 2)
        True latents; of more than three the first three are drawn.
    bin_ms : float, optional
        Bin width; with it time is in ms.
    max_trials : int
        Trajectories drawn at most.
    trial : int
        The trial whose time courses are drawn.

    Returns
    -------
    Figure
        True and mapped trajectories coloured by time, and one trial's time courses.
    """
    inferred, true = as_trials(factors), as_trials(truth)
    if inferred is None or true is None:
        return empty_figure("no trial to draw")
    n_bins = min(inferred.shape[1], true.shape[1])
    n_trials = min(len(inferred), len(true))
    inferred, true = inferred[:n_trials, :n_bins], true[:n_trials, :n_bins, :3]
    if not (np.isfinite(inferred).all(-1) & np.isfinite(true).all(-1)).any():
        return empty_figure("no bin with finite factors and latents")
    [(weight, bias)] = fit_linear(inferred, true)
    # Factors are known up to a linear map alone, so that is what they may be compared after.
    mapped = inferred @ weight + bias
    score = linear_map_r2(inferred, true)

    n_dims = true.shape[-1]
    figure = Figure(figsize=(12.5, 4.6), layout="constrained")
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.08)
    columns: Any = figure.subfigures(1, 2, width_ratios=(2.25, 1))
    left = columns[0].subplots(1, 2, subplot_kw={"projection": "3d"} if n_dims == 3 else {})
    edges, time_label = time_edges(n_bins, bin_ms)
    norm = Normalize(edges[0], edges[-1])
    names = [f"latent {k}" for k in range(n_dims)]
    for axis, paths, title in (
        (left[0], true, "true latents"),
        (left[1], mapped, f"factors, mapped linearly (R² = {score:.3f})"),
    ):
        _frame(axis, names, _cube(true))
        _draw_paths(axis, paths[:max_trials], edges, norm)
        axis.set_title(title)
    colours = ScalarMappable(norm, look().sequence)
    _time_bar(columns[0], left, colours, time_label)

    chosen = min(max(trial, 0), n_trials - 1)
    right = columns[1].subplots(n_dims, 1, sharex=True, squeeze=False)[:, 0]
    centres = (edges[:-1] + edges[1:]) / 2
    for dim, axis in enumerate(right):
        axis.plot(centres, true[chosen, :, dim], color=look().ink, linewidth=3.2, alpha=0.35)
        axis.plot(centres, mapped[chosen, :, dim], color=look().blue)
        axis.set_ylabel(names[dim])
    right[0].set_title(f"trial {chosen}", loc="left")
    right[0].legend(
        ["true", "inferred"],
        loc="lower right",
        bbox_to_anchor=(1, 1),
        borderaxespad=0.2,
        ncols=2,
        handlelength=1.4,
    )
    right[-1].set_xlabel(time_label)
    return figure


@styled
def trajectories(
    factors: ArrayLike,
    conditions: ArrayLike | None = None,
    *,
    bin_ms: float | int | None = None,
    n_dims: int = 3,
    max_trials: int = _MAX_TRIALS,
    max_conditions: int = MAX_GROUPS,
    starts: ArrayLike | None = None,
) -> Figure:
    """Draw factors in the space of their first principal components.

    Parameters
    ----------
    factors : array, shape (trials, time, factors)
        Trials or bins with NaN leave gaps.
    conditions : array, shape (trials,), optional
        A number or name per trial, which then gives the colour: thick lines are averages over
        trials. Without, time gives the colour.
    bin_ms : float, optional
        Bin width; with it time is in ms.
    n_dims : {3, 2}
        Components drawn, fewer where there are fewer factors.
    max_trials : int
        Trajectories drawn at most, without conditions 10; the components come from all trials.
    max_conditions : int
        Conditions drawn at most, those with the most trials.
    starts : array, shape (trials,), optional
        For windows of a continuous recording, the bin of the recording at which each begins
        (``chop_start``). Windows are then joined.

    Returns
    -------
    Figure
        A single factor is drawn over time. Of a continuous recording, which has no trials to lay
        over each other: where states are, and the components over the longest stretch.
    """
    data = as_trials(factors)
    finite = None if data is None else data[np.isfinite(data).all(axis=-1)]
    if data is None or finite is None or not len(finite):
        return empty_figure("no finite factor to draw")
    edges, time_label = time_edges(data.shape[1], bin_ms)
    centre, axes, share = principal_axes(finite)
    n_dims = min(3, len(axes), max(1, n_dims))
    paths = (data - centre) @ axes[:n_dims].T
    names = [f"PC {k + 1} ({share[k]:.0%})" for k in range(n_dims)]
    if starts is not None and n_dims > 1:
        return _continuous(paths, np.asarray(starts, np.int64), names, bin_ms)
    groups, n_all = by_condition(conditions, len(data), max_conditions)
    shown = [group.trials[: max(1, max_trials // max(1, len(groups)))] for group in groups]
    if conditions is None:  # nothing orders the lines, so that more would be a tangle
        shown = [np.array(evenly(len(data), min(max_trials, _WITHOUT_CONDITIONS)))]

    figure = Figure(figsize=(6.2, 5.2), layout="constrained")
    title = f"factors of {sum(map(len, shown))} of {len(data)} trials"
    axis: Any
    if n_dims == 1:
        axis = figure.subplots()
        centres = (edges[:-1] + edges[1:]) / 2
        for group, trials in zip(groups, shown, strict=True):
            axis.plot(centres, paths[trials, :, 0].T, color=group.colour, alpha=0.5)
        axis.set(xlabel=time_label, ylabel=names[0], title=title)
        condition_legend(figure, groups, n_all)
        return figure
    axis = figure.subplots(subplot_kw={"projection": "3d"} if n_dims == 3 else {})
    # Trials of other conditions would leave the shown ones in a corner.
    framed = np.concatenate([np.arange(0), *(group.trials for group in groups)])
    _frame(axis, names, _cube(paths[framed] if len(framed) else paths))
    axis.set_title(title)
    if conditions is None:
        norm = Normalize(edges[0], edges[-1])
        _draw_paths(axis, paths[shown[0]], edges, norm)
        _time_bar(figure, axis, ScalarMappable(norm, look().sequence), time_label)
        return figure
    # Averages are over all trials of a condition, of which the thin lines are some.
    for group, trials in zip(groups, shown, strict=True):
        style = {"color": group.colour, "rasterized": len(data) > _MAX_TRIALS}
        for path in paths[trials]:
            axis.plot(*path.T, linewidth=0.6, alpha=0.35, **style)
        if len(group.trials):
            mean, _ = mean_and_error(paths[group.trials])
            axis.plot(*mean.T, linewidth=2.6, color=group.colour)
            axis.scatter(*mean[0], s=34, color=group.colour, edgecolors=look().paper, zorder=4)
    condition_legend(figure, groups, n_all, remark="; dots: start")
    return figure


def _continuous(
    paths: FloatArray, starts: NDArray[np.int64], names: list[str], bin_ms: float | int | None
) -> Figure:
    """Draw the density of states in a plane, and the components over the longest stretch."""
    joined = merge_chops(paths, starts, int(starts.max()) + paths.shape[1]).astype(np.float64)
    known = np.isfinite(joined).all(axis=1)
    ends = np.flatnonzero(np.diff(np.r_[False, known, False]))
    first, last = max(ends.reshape(-1, 2).tolist(), key=lambda pair: pair[1] - pair[0])
    last = min(last, first + _STRETCH)
    stretch = joined[first:last]
    edges, label = time_edges(len(stretch), bin_ms)
    if bin_ms is not None:  # of a recording, seconds
        edges, label = edges / 1000, "time (s)"
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    grid = figure.add_gridspec(len(names), 2, width_ratios=(1, 1.6))
    plane = figure.add_subplot(grid[:, 0])
    limits = _cube(joined[known][None])[:2]
    x, y = joined[known][:, :2].T
    counts = plane.hist2d(x, y, bins=60, range=limits, cmap=look().spikes)[0]
    image = plane.collections[0]
    image.set_clim(0, float(np.percentile(counts[counts > 0], 98)))
    image.set_rasterized(True)
    norm = Normalize(edges[0], edges[-1])
    _draw_paths(plane, stretch[None, :, :2], edges, norm)
    plane.set(xlim=limits[0], ylim=limits[1], xlabel=names[0], ylabel=names[1])
    plane.set_title(f"all {known.sum()} bins (grey), and a stretch", fontsize=11)
    over_time = [figure.add_subplot(grid[row, 1]) for row in range(len(names))]
    for row, axis in enumerate(over_time):
        axis.plot((edges[:-1] + edges[1:]) / 2, stretch[:, row], color=look().blue)
        axis.set(ylabel=names[row], xlim=(edges[0], edges[-1]))
        axis.tick_params(labelbottom=row == len(names) - 1)
    over_time[0].set_title(f"the stretch, from bin {first} of the recording", fontsize=11)
    over_time[-1].set_xlabel(label)
    bar = figure.colorbar(
        ScalarMappable(norm, look().sequence), ax=plane, location="bottom", aspect=40, shrink=0.7
    )
    bar.set_label(f"{label} of the stretch; dot: its start")
    bar.outline.set_visible(False)
    return figure


def _time_bar(figure: Any, axes: Any, colours: ScalarMappable, label: str) -> None:
    bar = figure.colorbar(colours, ax=axes, location="bottom", aspect=40, shrink=0.5, pad=0.09)
    bar.set_label(f"{label}; dots: start of a trial")
    bar.outline.set_visible(False)


def _cube(paths: FloatArray) -> list[tuple[float, float]]:
    """Return the limits of each dimension, wide enough to hold all but stray values."""
    limits = []
    for values in np.moveaxis(paths, -1, 0):
        low, high = np.nanpercentile(values, [0.2, 99.8])
        margin = 0.04 * (high - low) or 1.0
        limits.append((float(low - margin), float(high + margin)))
    return limits


def _draw_paths(axis: Any, paths: FloatArray, edges: FloatArray, norm: Normalize) -> None:
    """Draw each trial's path in 2-D or 3-D, coloured by time, with a dot where it starts."""
    pairs = np.stack([paths[:, :-1], paths[:, 1:]], axis=2)
    segments: Any = pairs.reshape(-1, 2, paths.shape[-1])
    times = np.tile(edges[1:-1], len(paths))
    collection = Line3DCollection if paths.shape[-1] == 3 else LineCollection
    colours: Any = {"array": times, "cmap": look().sequence, "norm": norm}
    # As pixels within a vector file: thousands of segments make a PDF slow to open.
    lines = collection(segments, linewidth=1.1, alpha=0.8, rasterized=True, **colours)
    axis.add_collection(lines, autolim=False)
    starts = paths[:, 0].T
    axis.scatter(*starts, s=14, color=look().ink, linewidths=0, label="trial start")


def _frame(axis: Any, names: Sequence[str], limits: Sequence[tuple[float, float]]) -> None:
    """Label and limit the axes of a 2-D or 3-D space."""
    axis.set(xlim=limits[0], ylim=limits[1], xlabel=names[0], ylabel=names[1])
    if len(names) < 3:
        return
    axis.set(zlim=limits[2], zlabel=names[2])
    axis.view_init(elev=18, azim=-60)
    axis.set_box_aspect((1, 1, 0.9), zoom=0.98)  # labels stay clear of the legend
    for side in (axis.xaxis, axis.yaxis, axis.zaxis):
        side.set_major_locator(MaxNLocator(4))
        side.set_pane_color((1.0, 1.0, 1.0, 0.0))
        side.line.set_color(look().muted)
    axis.grid(False)
