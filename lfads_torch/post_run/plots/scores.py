"""Scores beside those of simpler methods: with intervals, and channel by channel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from .style import Figure, FloatArray, empty_figure, evenly, look, styled

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
    scores: Mapping[str, Mapping[str, Mapping[str, Mapping[str, Sequence[Any]]]]],
    names: Mapping[str, str] | None = None,
    *,
    max_sessions: int = 6,
) -> Figure:
    """Draw scores of consecutive parts of time, a line per method.

    Parameters
    ----------
    scores : dict of dict of dict of dict
        By session, method and score: ``values`` and ``intervals`` of the parts, as `score_by_time`
        gives them.
    names : dict of str to str, optional
        Titles of the scores, in the order of the panels.
    max_sessions : int
        Of more sessions, an even choice is drawn.

    Returns
    -------
    Figure
        A panel for each score, a row of them for each session.
    """
    rows = [methods for methods in scores.values() if methods]
    defined = dict.fromkeys(name for row in rows for by_score in row.values() for name in by_score)
    panels = [name for name in (names or defined) if name in defined]
    if not panels:
        return empty_figure("no score to draw")
    sessions = [name for name, methods in scores.items() if methods]
    sessions = [sessions[k] for k in evenly(len(sessions), max_sessions)]
    size = (3.2 * len(panels) + 0.4, 2.2 * len(sessions) + 0.7)
    figure = Figure(figsize=size, layout="constrained")
    # Columns share their axis, so that sessions compare.
    shared: dict[str, Any] = {"squeeze": False, "sharex": True, "sharey": "col"}
    grid = figure.subplots(len(sessions), len(panels), **shared)
    methods = dict.fromkeys(method for row in rows for method in row)
    colours = dict(zip(methods, look().palette, strict=False))
    for session, axes in zip(sessions, grid, strict=True):
        for axis, name in zip(axes, panels, strict=True):
            for method, by_score in scores[session].items():
                if name not in by_score:
                    continue
                values = np.array(by_score[name]["values"], dtype=np.float64)
                ends = np.array(by_score[name]["intervals"], dtype=np.float64)
                place = np.arange(1, len(values) + 1)
                axis.plot(place, values, "o-", color=colours[method], label=method)
                axis.vlines(place, ends[:, 0], ends[:, 1], color=colours[method], linewidth=2)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(scores) > 1:
            axes[0].set_ylabel(session)
    for name, top, bottom in zip(panels, grid[0], grid[-1], strict=True):
        top.set_title((names or {}).get(name, name))
        bottom.set_xlabel("part of the scored time")
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
        Hollow dots at the border are channels far beyond it.
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
    low, high = _fences(np.concatenate([scores, other]))
    span = (low - 0.04 * (high - low), high + 0.04 * (high - low))
    y, x = np.clip(scores, low, high), np.clip(other, low, high)
    # Apart, since scores of channels that the model has read flatter it.
    kinds = ("read", look().blue, is_read), ("held out", look().orange, ~is_read)
    for kind, colour, members in kinds:
        if not members.any():
            continue
        style: dict[str, Any] = {"s": 20, "edgecolors": colour, "alpha": 0.85}
        for axis, across, is_inside in (
            (axes[0], rank, y == scores),
            (axes[-1], x, (y == scores) & (x == other)),
        )[: len(axes)]:
            near, far = members & is_inside, members & ~is_inside & np.isfinite(y + across)
            axis.scatter(
                across[near], y[near], label=kind, facecolors=colour, **style, linewidths=0
            )
            axis.scatter(across[far], y[far], facecolors="none", **style, linewidths=1)
    axes[0].set_ylim(span)
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
        axes[1].plot(span, span, color=look().ink, linewidth=1)
        n_better = int((scores > other)[both].sum())
        axes[1].set(
            xlim=span,
            ylim=span,
            xlabel=f"{name}, {baseline_name}",
            ylabel=f"{name}, LFADS",
            title=f"LFADS better in {n_better} of {int(both.sum())}",
        )
        axes[1].set_box_aspect(1)
    return figure


def _fences(values: FloatArray) -> tuple[float, float]:
    """Return the range to draw: 0 and all values but those far from the bulk."""
    # A channel of a few spikes scores -5 or +5 by chance, and would squeeze all others to a line.
    finite = values[np.isfinite(values)]
    first, last = np.percentile(finite, [25, 75])
    reach = 6 * float(last - first) or np.inf
    low = min(float(finite[finite >= first - reach].min()), 0.0)
    high = max(float(finite[finite <= last + reach].max()), 0.0)
    return low, high if high > low else low + 1.0
