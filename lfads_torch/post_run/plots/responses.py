"""Responses of single units: by condition, and trial by trial on the spikes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from ...metrics import gaussian_smooth
from .groups import MAX_GROUPS, by_condition, condition_legend, mean_and_error
from .style import (
    Figure,
    FloatArray,
    as_trials,
    empty_figure,
    look,
    rate_scale,
    styled,
    time_centres,
)


@styled
def psths(
    spikes: ArrayLike,
    rates: ArrayLike,
    conditions: ArrayLike | None = None,
    *,
    bin_ms: float | int | None = None,
    units: Sequence[int] | None = None,
    n_units: int = 5,
    smooth_bins: float | int = 2,
    max_conditions: int = MAX_GROUPS,
    counts: bool = True,
) -> Figure:
    """Draw averages over the trials of each condition: of the data above, of the rates below.

    Parameters
    ----------
    spikes : array, shape (trials, time, units)
        Data; NaN is left out.
    rates : array, shape (trials, time, units)
        Inferred means per bin.
    conditions : array, shape (trials,), optional
        A number or name per trial; all trials together if None.
    bin_ms : float, optional
        Bin width; with it time is in ms and rates are in spikes/s.
    units : sequence of int, optional
        Units to draw; by default those whose responses differ most reliably.
    n_units : int
        How many units are chosen.
    smooth_bins : float
        Width (standard deviation) of the Gaussian that smooths the averages of the data, bins.
    max_conditions : int
        Conditions drawn at most, those with the most trials.
    counts : bool
        Whether the data are spike counts.

    Returns
    -------
    Figure
        Bands are standard errors of the mean over trials.
    """
    data, means = as_trials(spikes), as_trials(rates)
    if data is None or means is None:
        return empty_figure("no trial to draw")
    n_trials = min(len(data), len(means))
    n_bins, n_all_units = min(data.shape[1], means.shape[1]), min(data.shape[2], means.shape[2])
    scale, unit = rate_scale(bin_ms) if counts else (1.0, "value")
    # Before averaging, so that the standard errors are those of what is drawn.
    data = gaussian_smooth(data[:n_trials, :n_bins, :n_all_units] * scale, smooth_bins)
    means = means[:n_trials, :n_bins, :n_all_units] * scale
    groups, n_groups = by_condition(conditions, n_trials, max_conditions)
    groups = [group for group in groups if len(group.trials)]
    if not groups:
        return empty_figure("no trial has a condition")
    averages = [mean_and_error(data[group.trials]) for group in groups]
    chosen = _in_range(units or _reliable_units(averages, n_units), n_all_units)

    figure = Figure(figsize=(2.35 * len(chosen) + 0.7, 4.9), layout="constrained")
    grid = figure.subplots(2, len(chosen), squeeze=False, sharex=True, sharey="col")
    time, time_label = time_centres(n_bins, bin_ms)
    for column, number in enumerate(chosen):
        for group, (mean, error) in zip(groups, averages, strict=True):
            modelled = mean_and_error(means[group.trials])
            for axis, (line, band) in zip(grid[:, column], ((mean, error), modelled), strict=True):
                low, high = line[:, number] - band[:, number], line[:, number] + band[:, number]
                axis.fill_between(time, low, high, color=group.colour, alpha=0.25, linewidth=0)
                axis.plot(time, line[:, number], color=group.colour)
        grid[0, column].set_title(f"{'unit' if counts else 'channel'} {number}")
        grid[0, column].yaxis.set_major_locator(MaxNLocator(4))
        grid[1, column].set_xlabel(time_label)
        if counts:
            grid[0, column].set_ylim(bottom=0)
    data_name = "smoothed spikes" if counts else "smoothed data"
    grid[0, 0].set_ylabel(f"{data_name}\n({unit})")
    grid[1, 0].set_ylabel(f"{'inferred rates' if counts else 'inferred means'}\n({unit})")
    condition_legend(figure, groups, n_groups)
    return figure


def _in_range(units: Sequence[int], n_units: int) -> list[int]:
    return [unit for unit in units if 0 <= unit < n_units] or [0]


def _reliable_units(averages: Sequence[tuple[FloatArray, FloatArray]], n_units: int) -> list[int]:
    """Return the units whose averages vary most for their errors, over time and conditions."""
    means, errors = (np.stack(parts) for parts in zip(*averages, strict=True))
    spread = np.nanvar(np.nan_to_num(means), axis=(0, 1))
    noise = (np.nan_to_num(errors) ** 2).mean(axis=(0, 1))
    # Chosen by signal over noise, since by the variance alone the units that fire most would win.
    # A unit that hardly fires has a tiny error; half the typical one keeps it from the top.
    floor = 0.5 * np.median(noise[noise > 0]) if (noise > 0).any() else 1.0
    order = np.argsort(-spread / (noise + floor), kind="stable")
    return sorted(order[: max(1, n_units)].tolist())


@styled
def single_trials(
    spikes: ArrayLike,
    rates: ArrayLike,
    truth: ArrayLike | None = None,
    *,
    bin_ms: float | int | None = None,
    units: Sequence[int] | None = None,
    trials: Sequence[int] | None = None,
    n_units: int = 4,
    n_trials: int = 5,
    smooth_bins: float | int | None = 2,
    counts: bool = True,
) -> Figure:
    """Draw single trials of single units: inferred rates on the spikes they were inferred from.

    Parameters
    ----------
    spikes, rates : array, shape (trials, time, units)
    truth : array, shape (trials, time, units), optional
        True rates per bin.
    bin_ms : float, optional
        Bin width; with it time is in ms and rates are in spikes/s.
    units : sequence of int, optional
        Units to draw; by default those whose inferred rates vary most for their mean.
    trials : sequence of int, optional
        Trials to draw; the first ones by default.
    n_units, n_trials : int
        How many are chosen where they are not named.
    smooth_bins : float, optional
        Also draw the spikes smoothed by a Gaussian of this width (standard deviation, bins).
    counts : bool
        Whether the data are spike counts, drawn as ticks; otherwise they are drawn as a line.

    Returns
    -------
    Figure
    """
    data, means, true = as_trials(spikes), as_trials(rates), as_trials(truth)
    if data is None or means is None:
        return empty_figure("no trial to draw")
    n_all, n_bins, n_all_units = np.minimum(data.shape, means.shape).tolist()
    scale, unit = rate_scale(bin_ms) if counts else (1.0, "value")
    chosen = _in_range(units or _modulated(means, n_units, n_all_units), n_all_units)
    shown = [t for t in trials if 0 <= t < n_all] if trials else list(range(min(n_trials, n_all)))
    if not shown:
        return empty_figure("no trial to draw")
    size = (2.1 * len(shown) + 0.9, 1.55 * len(chosen) + 1.1)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(chosen), len(shown), squeeze=False, sharex=True, sharey="row")
    time, time_label = time_centres(n_bins, bin_ms)
    smoothed = None
    if smooth_bins is not None and counts:
        smoothed = gaussian_smooth(data[shown][:, :n_bins, chosen], smooth_bins) * scale
    for row, number in enumerate(chosen):
        for column, trial in enumerate(shown):
            axis = grid[row, column]
            if smoothed is not None:
                axis.plot(time, smoothed[column, :, row], color=look().muted, linewidth=1.1)
            if not counts:
                axis.plot(time, data[trial, :n_bins, number], color=look().muted, linewidth=1.1)
            if true is not None and trial < len(true) and number < true.shape[2]:
                line = true[trial, :n_bins, number] * scale
                axis.plot(time[: len(line)], line, color=look().ink, linestyle="--", linewidth=1.2)
            axis.plot(time, means[trial, :n_bins, number] * scale, color=look().blue, linewidth=2)
            axis.yaxis.set_major_locator(MaxNLocator(3))
        peak = max(np.nanmax(np.append(a.dataLim.y1, 0.0)) for a in grid[row])
        peak = float(peak) if np.isfinite(peak) and peak > 0 else 1.0
        for column, trial in enumerate(shown):
            if counts:
                _spike_ticks(grid[row, column], time, data[trial, :n_bins, number], peak)
        grid[row, 0].set_ylabel(f"{'unit' if counts else 'channel'} {number}\n({unit})")
    for column, trial in enumerate(shown):
        grid[0, column].set_title(f"trial {trial}")
        grid[-1, column].set_xlabel(time_label)
    handles = _legend(counts, true is not None, smoothed is not None, smooth_bins)
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return figure


def _modulated(rates: FloatArray, n_units: int, n_all: int) -> list[int]:
    """Return the units whose rates vary most for their mean: the variance of Poisson counts."""
    flat = rates[..., :n_all].reshape(-1, n_all)
    finite = np.where(np.isfinite(flat), flat, 0.0)
    gain = finite.var(axis=0) / np.maximum(np.abs(finite.mean(axis=0)), 1e-9)
    return sorted(np.argsort(-gain, kind="stable")[: max(1, n_units)].tolist())


def _spike_ticks(axis: Axes, time: FloatArray, counts: FloatArray, peak: float) -> None:
    """Draw spikes as ticks below zero, several in a bin beside each other."""
    width = time[1] - time[0] if len(time) > 1 else 1.0
    # More than eight ticks in a bin would run into a block.
    whole: NDArray[np.int64] = np.nan_to_num(counts).clip(0, 8).round().astype(np.int64)
    at = [
        t + width * ((k + 0.5) / n - 0.5)
        for t, n in zip(time.tolist(), whole.tolist(), strict=True)
        for k in range(n)
    ]
    axis.vlines(at, -0.22 * peak, -0.06 * peak, color=look().ink, linewidth=1.0)
    missing = np.flatnonzero(~np.isfinite(counts))
    for k in missing.tolist():
        low, high = time[k] - width / 2, time[k] + width / 2
        axis.axvspan(low, high, color=look().missing, linewidth=0, zorder=0)
    axis.set_ylim(-0.26 * peak, 1.08 * peak)


def _legend(
    counts: bool, has_truth: bool, has_smoothed: bool, smooth_bins: float | int | None
) -> list[Line2D]:
    tick: dict[str, Any] = {"marker": "|", "linestyle": "none", "markersize": 9}
    name = "rate" if counts else "mean"
    handles = [Line2D([], [], color=look().blue, linewidth=2, label=f"inferred {name}")]
    if has_truth:
        handles.append(Line2D([], [], color=look().ink, linestyle="--", label=f"true {name}"))
    if has_smoothed:
        label = f"smoothed spikes (sd {smooth_bins:g} bins)"
        handles.append(Line2D([], [], color=look().muted, linewidth=1.1, label=label))
    if counts:
        handles.append(Line2D([], [], color=look().ink, label="spikes", **tick))
    else:
        handles.append(Line2D([], [], color=look().muted, label="data"))
    return handles
