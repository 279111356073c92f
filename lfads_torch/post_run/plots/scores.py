"""Scores beside those of simpler methods: with intervals, and channel by channel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from .style import Figure, empty_figure, look, styled

Interval = Sequence[float | None]
"""A score and the ends of its interval; None or NaN where unknown."""


@styled
def score_intervals(
    scores: Mapping[str, Mapping[str, Interval]],
    names: Mapping[str, str] | None = None,
    *,
    highlight: Sequence[str] = (),
    max_columns: int = 6,
) -> Figure:
    """Draw scores of several methods as dots with intervals, a panel for each score.

    Parameters
    ----------
    scores : dict of dict of (value, low, high)
        By method, then by score, under the names that are to be shown.
    names : dict of str to str, optional
        Titles of the scores, in the order of the panels; by default those that are defined.
    highlight : sequence of str
        Methods that stand out.
    max_columns : int
        Panels in a row.

    Returns
    -------
    Figure
        A dotted line marks 0: the mean rate for bits per spike, the mean for R2.
    """
    defined = {name for row in scores.values() for name, v in row.items() if _known(v[0])}
    titles = names or {name: name for name in sorted(defined)}
    panels = [name for name in titles if name in defined]
    if not panels:
        return empty_figure("no score to draw")
    methods = [m for m, row in scores.items() if any(name in row for name in panels)]
    n_columns = min(max_columns, len(panels))
    n_rows = -(-len(panels) // n_columns)
    height = (0.3 * len(methods) + 0.95) * n_rows
    figure = Figure(figsize=(2.3 * n_columns + 1.9, height))
    figure.set_layout_engine("constrained", h_pad=0.1)
    grid = figure.subplots(n_rows, n_columns, squeeze=False, sharey=True)
    for axis in grid.ravel()[len(panels) :]:
        axis.set_visible(False)
    for axis, name in zip(grid.ravel(), panels, strict=False):
        for place, method in enumerate(methods):
            value = scores[method].get(name)
            if value is None or not _known(value[0]):
                continue
            colour = look().blue if method in highlight else look().muted
            axis.plot(value[0], place, "o", color=colour, markersize=7)
            if len(value) > 2 and _known(value[1]) and _known(value[2]):
                axis.plot(value[1:3], [place, place], color=colour, linewidth=2)
        # No axis is stretched to 0: intervals that lie far above it would shrink to dots.
        low, high = axis.get_xlim()
        if low <= 0 <= high:
            axis.axvline(0, color=look().muted, linewidth=0.8, linestyle=":")
        axis.set_title(titles[name])
        axis.xaxis.set_major_locator(MaxNLocator(4))
        axis.set_ylim(len(methods) - 0.5, -0.5)
    grid[0, 0].set_yticks(range(len(methods)), methods)
    return figure


@styled
def scores_over_time(
    scores: Mapping[str, Mapping[str, Mapping[str, Sequence[Any]]]],
    names: Mapping[str, str] | None = None,
) -> Figure:
    """Draw scores of consecutive parts of time, a panel for each score and a line per method.

    Parameters
    ----------
    scores : dict of dict of dict
        By method, then by score: ``values`` and ``intervals`` of the parts, as `score_by_time`
        gives them.
    names : dict of str to str, optional
        Titles of the scores, in the order of the panels.

    Returns
    -------
    Figure
    """
    defined = dict.fromkeys(name for row in scores.values() for name in row)
    panels = [name for name in (names or defined) if name in defined]
    if not panels:
        return empty_figure("no score to draw")
    figure = Figure(figsize=(3.2 * len(panels) + 0.4, 2.9), layout="constrained")
    colours = (look().blue, look().orange, look().muted)
    for axis, name in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for number, (method, row) in enumerate(scores.items()):
            if name not in row:
                continue
            values = np.array(row[name]["values"], dtype=np.float64)
            ends = np.array(row[name]["intervals"], dtype=np.float64)
            place = np.arange(1, len(values) + 1)
            colour = colours[number % len(colours)]
            axis.plot(place, values, "o-", color=colour, label=method)
            axis.vlines(place, ends[:, 0], ends[:, 1], color=colour, linewidth=2)
        axis.set_title((names or {}).get(name, name))
        axis.set_xlabel("part of the scored time")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    handles = {h.get_label(): h for axis in figure.axes for h in axis.get_lines()}
    figure.legend(handles=list(handles.values()), loc="outside lower center", ncols=len(handles))
    return figure


def _known(value: float | None) -> bool:
    return value is not None and bool(np.isfinite(value))


@styled
def channel_scores(
    values: ArrayLike,
    baseline: ArrayLike | None = None,
    *,
    name: str = "bits per spike",
    baseline_name: str = "smoothed spikes",
    n_encod: int | None = None,
) -> Figure:
    """Draw a score of every channel: against the same score of a simpler method, and sorted.

    Parameters
    ----------
    values : array, shape (channels,)
        NaN where a channel has no score, such as one that is silent.
    baseline : array, shape (channels,), optional
    name, baseline_name : str
        What the score is, and whose the baseline is.
    n_encod : int, optional
        Channels that the encoders read; further ones are held out and have their own colour.

    Returns
    -------
    Figure
    """
    scores = np.asarray(values, dtype=np.float64).reshape(-1)
    other = np.full(len(scores), np.nan)
    if baseline is not None:
        given = np.asarray(baseline, dtype=np.float64).reshape(-1)[: len(scores)]
        other[: len(given)] = given
    if not np.isfinite(scores).any():
        return empty_figure(f"no channel has a score ({name})")
    n_read = len(scores) if n_encod is None else n_encod
    is_read = np.arange(len(scores)) < n_read
    both = np.isfinite(scores) & np.isfinite(other)
    figure = Figure(figsize=(4.4 + 4.6 * bool(both.any()), 3.7), layout="constrained")
    axes = figure.subplots(1, 1 + bool(both.any()), squeeze=False)[0]
    order = np.argsort(-np.where(np.isfinite(scores), scores, -np.inf), kind="stable")
    rank = np.empty(len(scores))
    rank[order] = np.arange(1, len(scores) + 1)
    # Apart, since scores of channels that the model has read flatter it.
    kinds = ("read", look().blue, is_read), ("held out", look().orange, ~is_read)
    for kind, colour, members in kinds:
        if members.any():
            style = {"s": 20, "color": colour, "linewidths": 0, "alpha": 0.85}
            axes[0].scatter(rank[members], scores[members], label=kind, **style)
            if both.any():
                axes[1].scatter(other[members & both], scores[members & both], **style)
    axes[0].axhline(0, color=look().muted, linewidth=0.8)
    n_below = int((scores < 0).sum())
    n_none = int((~np.isfinite(scores)).sum())
    lost = f", {n_none} without a score" if n_none else ""
    axes[0].set(xlabel="channels, sorted", ylabel=name, title=f"{n_below} below zero{lost}")
    axes[0].xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if n_read < len(scores):
        axes[0].legend()
    if both.any():
        # The same limits on both axes: a channel above the line is one where LFADS is better.
        drawn = np.concatenate([scores[both], other[both]])
        margin = 0.04 * (float(np.ptp(drawn)) or 1.0)
        low, high = float(drawn.min()) - margin, float(drawn.max()) + margin
        axes[1].plot([low, high], [low, high], color=look().ink, linewidth=1)
        n_better = int((scores > other)[both].sum())
        axes[1].set(
            xlim=(low, high),
            ylim=(low, high),
            xlabel=f"{name}, {baseline_name}",
            ylabel=f"{name}, LFADS",
            title=f"LFADS better in {n_better} of {int(both.sum())}",
        )
        axes[1].set_box_aspect(1)
    return figure
