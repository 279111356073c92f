"""Decoded against true behaviour."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from .style import Figure, FloatArray, as_trials, empty_figure, evenly, look, styled, time_centres


@styled
def decoded_behavior(
    behavior: ArrayLike,
    decoded: ArrayLike,
    baseline: ArrayLike | None = None,
    *,
    names: Sequence[str] | None = None,
    bin_ms: float | int | None = None,
    trials: Sequence[int] | None = None,
    n_trials: int = 6,
    max_columns: int = 4,
    decoded_name: str = "decoded from inferred rates",
    baseline_name: str = "from smoothed spikes",
) -> Figure:
    """Draw decoded behaviour on the true one, some trials side by side, and all samples at once.

    Parameters
    ----------
    behavior, decoded : array, shape (trials, time, columns)
        The truth and what a decoder says; NaN is left out.
    baseline : array, shape (trials, time, columns), optional
        What another decoder says, drawn thin.
    names : sequence of str, optional
        Names of the columns, with units where known.
    bin_ms : float, optional
        Bin width; with it time is in ms.
    trials : sequence of int, optional
        Trials to draw; evenly spaced ones by default.
    n_trials : int
        How many are chosen.
    max_columns : int
        Columns of behaviour drawn at most.
    decoded_name, baseline_name : str
        What the legend calls them.

    Returns
    -------
    Figure
        A row for each column of behaviour that varies: time courses of trials one after another,
        and decoded against true values of all trials, with R2 over all their bins.
    """
    true, inferred, other = as_trials(behavior), as_trials(decoded), as_trials(baseline)
    if true is None or inferred is None:
        return empty_figure("no behaviour to draw")
    n_all, n_bins, n_columns = np.minimum(true.shape, inferred.shape).tolist()
    true, inferred = (a[:n_all, :n_bins, :n_columns] for a in (true, inferred))
    titles = [*(names or [])[:n_columns]]
    titles += [f"behaviour {column}" for column in range(len(titles), n_columns)]
    varies = [len(np.unique(column[np.isfinite(column)])) > 1 for column in np.moveaxis(true, 2, 0)]
    constant = [title for title, does in zip(titles, varies, strict=True) if not does]
    columns = np.flatnonzero(varies)[:max_columns].tolist()
    if not columns:
        return empty_figure("no behaviour varies over these trials")
    # Over the whole recording, since the first trials alone would hide a drift.
    chosen = evenly(n_all, n_trials) if trials is None else trials
    shown = [trial for trial in chosen if 0 <= trial < n_all]
    time, label = time_centres(n_bins, bin_ms)
    period = (time[-1] - time[0]) * 1.12 + (time[0] or 1.0)

    figure = Figure(figsize=(11.5, 1.75 * len(columns) + 1.1), layout="constrained")
    grid = figure.subplots(len(columns), 2, squeeze=False, width_ratios=(3.4, 1))
    for column, (left, right) in zip(columns, grid, strict=True):
        for place, trial in enumerate(shown):
            at = time + place * period
            if other is not None and trial < len(other) and column < other.shape[2]:
                line = other[trial, :n_bins, column]
                left.plot(at[: len(line)], line, color=look().muted, linewidth=1.2)
            left.plot(at, true[trial, :, column], color=look().ink, linewidth=2.6, alpha=0.45)
            left.plot(at, inferred[trial, :, column], color=look().blue)
        left.set_xticks([time[0] + k * period for k in range(len(shown))], [])
        left.set_ylabel(titles[column])
        left.yaxis.set_major_locator(MaxNLocator(4))
        _scatter(right, true[..., column].ravel(), inferred[..., column].ravel())
    centres = [(time[0] + time[-1]) / 2 + k * period for k in range(len(shown))]
    grid[-1, 0].set_xticks(centres, [f"trial {t}" for t in shown])
    grid[-1, 0].tick_params(axis="x", length=0)
    span = f"{n_bins * bin_ms:g} ms" if bin_ms is not None else f"{n_bins} bins"
    grid[-1, 0].set_xlabel(f"time, {span} each" if "time" in label else label)
    grid[-1, 1].set_xlabel("true")
    handles = [
        Line2D([], [], color=look().ink, linewidth=2.6, alpha=0.45, label="true"),
        Line2D([], [], color=look().blue, label=decoded_name),
    ]
    if other is not None:
        handles.append(Line2D([], [], color=look().muted, linewidth=1.2, label=baseline_name))
    figure.legend(handles=handles, loc="outside upper left", ncols=3)
    if constant:
        note = f"not drawn, as it does not vary over these trials: {', '.join(constant)}"
        figure.supxlabel(note, fontsize=10, color=look().muted)
    return figure


def _scatter(axis: Axes, true: FloatArray, decoded: FloatArray) -> None:
    """Draw decoded against true values; a line marks a perfect decoder."""
    keep = np.isfinite(true) & np.isfinite(decoded)
    x, y = true[keep], decoded[keep]
    axis.set_ylabel("decoded")
    axis.xaxis.set_major_locator(MaxNLocator(3))
    axis.yaxis.set_major_locator(MaxNLocator(3))
    if not len(x):
        axis.text(0.5, 0.5, "no finite value", transform=axis.transAxes, ha="center")
        return
    # Both axes alike, and a few wild predictions outside: R2 counts them all.
    low, high = np.percentile(np.concatenate([x, y]), [0.2, 99.8])
    low, high = (low, high) if high > low else (low - 1.0, high + 1.0)
    axis.plot([low, high], [low, high], color=look().ink, linewidth=1)
    # Thinned: tens of thousands of dots say no more than some thousand.
    step = -(-len(x) // 4000)
    axis.scatter(
        x[::step], y[::step], s=4, color=look().blue, alpha=0.25, linewidths=0, rasterized=True
    )
    axis.set(xlim=(low, high), ylim=(low, high))
    axis.set_box_aspect(1)
    spread = ((x - x.mean()) ** 2).sum()
    r2 = 1 - ((x - y) ** 2).sum() / spread if spread > 0 else np.nan
    axis.set_title(f"R² = {r2:.2f}".replace("-", "\u2212"), fontsize=11)
