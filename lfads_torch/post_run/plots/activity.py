"""Spikes, rates and inferred inputs, trial by trial."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from .style import (
    Figure,
    FloatArray,
    as_trials,
    colour_limits,
    empty_figure,
    heatmap,
    look,
    rate_scale,
    styled,
    time_edges,
)


def unit_order(rates: FloatArray, n_encod: int) -> NDArray[np.intp]:
    """Order units by their angle in the plane of the first two components, read ones first."""
    # The angle is an order around a circle: units with alike responses are neighbours, and phases
    # of a rhythm follow one another, where sorting by one component would fold them together.
    flat = np.nan_to_num(rates.reshape(-1, rates.shape[-1]))
    flat = flat - flat.mean(axis=0)
    spread = flat.std(axis=0)
    flat = flat / np.where(spread > 0, spread, 1.0)
    axes = np.linalg.svd(flat, full_matrices=False)[2]
    angle = np.arctan2(axes[1], axes[0]) if len(axes) > 1 else axes[0]
    held_out = np.arange(rates.shape[-1]) >= n_encod
    return np.lexsort((angle, held_out))


@styled
def raster_panel(
    spikes: ArrayLike,
    rates: ArrayLike,
    truth: ArrayLike | None = None,
    inputs: ArrayLike | None = None,
    *,
    n_trials: int = 3,
    bin_ms: float | int | None = None,
    n_encod: int | None = None,
    encod_bins: int | None = None,
    trial_names: Sequence[object] | None = None,
    sort_units: bool = True,
    counts: bool = True,
) -> Figure:
    """Draw, trial by trial: raster | true rates | inferred rates | inferred inputs.

    Parameters
    ----------
    spikes : array, shape (trials, time, units)
        Data; NaN bins are tinted.
    rates : array, shape (trials, time, units)
        Inferred means per bin.
    truth : array, shape (trials, time, units), optional
        True rates per bin, drawn on the colour scale of the inferred ones.
    inputs : array, shape (trials, time, dimensions), optional
        Inferred inputs (posterior means).
    n_trials : int
        Number of trials drawn, the first ones; all where the data have fewer.
    bin_ms : float, optional
        Bin width; with it time is in ms and rates are in spikes/s.
    n_encod, encod_bins : int, optional
        Channels and bins that the encoders read; lines mark where held-out ones begin.
    trial_names : sequence, optional
        Names or numbers of the trials.
    sort_units : bool
        Put units with similar inferred rates beside each other; else the file's order.
    counts : bool
        Whether the data are spike counts; otherwise colour bars say "value".

    Returns
    -------
    Figure
    """
    data, means = as_trials(spikes), as_trials(rates)
    if data is None or means is None:
        return empty_figure("no trial to draw")
    true, co = as_trials(truth), as_trials(inputs)
    n_rows = max(1, min(n_trials, len(data), len(means)))
    n_units = means.shape[-1]
    n_read = n_units if n_encod is None else min(n_encod, n_units)
    order = unit_order(means[:n_rows], n_read) if sort_units else np.arange(n_units)
    scale, unit = rate_scale(bin_ms) if counts else (1.0, "value")
    row_name = "unit" if counts else "channel"
    means, true = means[:n_rows] * scale, None if true is None else true[:n_rows] * scale
    shown: list[tuple[str, FloatArray, str | Colormap]]
    shown = [("spikes per bin" if counts else "data", data[:n_rows], look().spikes)]
    shown += [] if true is None else [("true rates" if counts else "true means", true, "viridis")]
    shown += [("inferred rates" if counts else "inferred means", means, "viridis")]

    n_cols = len(shown) + (co is not None)
    figure = Figure(figsize=(3.1 * n_cols + 0.6, 2.1 * n_rows + 0.9), layout="constrained")
    grid = figure.subplots(n_rows, n_cols, squeeze=False, sharex=True)
    edges, time_label = time_edges(means.shape[1], bin_ms)
    # True and inferred rates share a scale, or a wrong gain would not be seen.
    rate_limits = colour_limits(means, true)
    raster_limits = colour_limits(data[:n_rows])
    if counts:
        raster_limits = (0.0, max(1.0, float(np.ceil(raster_limits[1]))))
    reach = 0.0 if co is None else max(map(abs, colour_limits(co[:n_rows], share=100.0)))
    for row, axes in enumerate(grid):
        for column, (title, values, colours) in enumerate(shown):
            limits = raster_limits if column == 0 else rate_limits
            image = heatmap(axes[column], values[row][:, order].T, edges, colours, limits)
            axes[column].set_yticks(sorted({0, values.shape[2] - 1}))
            _mark_held_out(axes[column], n_read, n_units, edges, encod_bins)
            axes[column].set_title(title if row == 0 else "")
            axes[column].tick_params(labelleft=column == 0)
            if row == n_rows - 1 and column in (0, len(shown) - 1):
                below = grid[:, :1] if column == 0 else grid[:, 1 : len(shown)]
                label = ("count" if counts else "value") if column == 0 else unit
                _colour_bar(figure, below, image, label, whole=counts and column == 0)
        name = row if trial_names is None else trial_names[row]
        axes[0].set_ylabel(f"trial {name}\n{row_name}" + " (sorted)" * sort_units)
        if co is not None:
            _draw_inputs(axes[-1], co[row], edges, 1.1 * reach)
            axes[-1].set_title("inferred inputs (a.u.)" if row == 0 else "")
    for axis in grid[-1]:
        axis.set_xlabel(time_label)
    if co is not None and 1 < co.shape[-1] <= len(look().palette):
        place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.32)}
        # Two rows of five would be filled unevenly, as columns are filled first.
        n_columns = co.shape[-1] if co.shape[-1] <= 4 else -(-co.shape[-1] // 2)
        grid[-1, -1].legend(ncols=n_columns, handlelength=1.2, columnspacing=1.0, **place)
    held_out = [
        *([f"{row_name}s below"] if n_read < n_units else []),
        *(["bins to the right"] if encod_bins is not None and encod_bins < len(edges) - 1 else []),
    ]
    if held_out:
        note = f"orange lines: {' and '.join(held_out)} were not read by the encoders"
        figure.supxlabel(note, fontsize=10, color=look().orange)
    return figure


def _colour_bar(figure: Figure, below: Any, image: AxesImage, label: str, whole: bool) -> None:
    """Draw a colour bar under some axes; a pointed end says that larger values were clipped."""
    limit = image.get_clim()[1] * (1 + 1e-6)
    clipped = any(bool((im.get_array() > limit).any()) for a in below.flat for im in a.get_images())
    shape: dict[str, Any] = {"location": "bottom", "aspect": 30, "shrink": 0.8, "pad": 0.02}
    shape["extend"] = "max" if clipped else "neither"
    bar = figure.colorbar(image, ax=below, ticks=MaxNLocator(4, integer=whole), **shape)
    bar.set_label(label)
    bar.outline.set_visible(False)


def _mark_held_out(
    axis: Axes, n_read: int, n_units: int, edges: FloatArray, encod_bins: int | None
) -> None:
    if n_read < n_units:
        axis.axhline(n_read - 0.5, color=look().orange, linewidth=1.4)
    if encod_bins is not None and encod_bins < len(edges) - 1:
        axis.axvline(edges[encod_bins], color=look().orange, linewidth=1.4)


def _draw_inputs(axis: Axes, inputs: FloatArray, edges: FloatArray, reach: float) -> None:
    centres = (edges[: len(inputs)] + edges[1 : len(inputs) + 1]) / 2
    axis.axhline(0, color=look().muted, linewidth=0.8)
    for dim in range(inputs.shape[1]):
        colour = look().palette[dim % len(look().palette)]
        axis.plot(centres, inputs[:, dim], color=colour, linewidth=1.4, label=f"input {dim}")
    axis.set_ylim(-reach or -1.0, reach or 1.0)
    axis.yaxis.tick_right()
    axis.spines[["right", "left"]].set_visible(False)
