"""Figures of a search: paths of hyper-parameters, scores, and who descends from whom."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from ...arguments import LOSS, mode_of
from ...errors import UserError, did_you_mean
from ...folder import HP
from .style import Figure, FloatArray, empty_figure, log_scale, look, styled

SCORE = LOSS

_MODEL = "model."
LABELS = {
    SCORE: "validation loss (smoothed)",
    "valid/recon": "validation loss",
    "valid/bps_smth": "bits/spike (smoothed)",
    "valid/co_bps_smth": "held-out bits/spike (smoothed)",
    "valid/fp_bps_smth": "forward bits/spike (smoothed)",
}
_LOG_SPAN = 12.0
"""Largest over smallest value above which an axis may be logarithmic: somewhat over a decade."""


class Family(NamedTuple):
    """A population as a grid of epochs and members."""

    # shape (E,)
    epochs: NDArray[np.int64]
    # shape (K,)
    members: NDArray[np.int64]
    # Row of the table for each epoch and member, -1 where there is none; shape (E, K)
    rows: NDArray[np.intp]
    # Column of the member from whose previous epoch this one goes on; shape (E, K)
    parents: NDArray[np.intp]
    # shape (E, K)
    diverged: NDArray[np.bool_]

    def column(self, values: ArrayLike) -> FloatArray:
        """Return a column of the table by epoch and member, NaN where a row is missing."""
        grid = np.asarray(values, dtype=np.float64)[self.rows]
        return np.where(self.rows >= 0, grid, np.nan)

    @property
    def last(self) -> NDArray[np.intp]:
        """Index of each member's last epoch; a member may end before the search does."""
        return len(self.epochs) - 1 - np.argmax(self.rows[::-1] >= 0, axis=0)

    def final(self, grid: NDArray[Any]) -> NDArray[Any]:
        """Return each member's value in its last epoch, of a grid of epochs and members."""
        return grid[self.last, np.arange(len(self.members))]

    def line_of(self, member: int) -> NDArray[np.intp]:
        """Return the column that a final `member` descends from, in each epoch."""
        line = np.full(len(self.epochs), member)
        for e in reversed(range(self.last[member] + 1)):
            line[e] = member
            member = self.parents[e, member]
        return line

    def living(self) -> NDArray[np.bool_]:
        """Mark epochs of members from which the last epoch of any member descends."""
        chain = (self.rows >= 0) & (np.arange(len(self.epochs))[:, None] == self.last)
        for e in reversed(range(1, len(self.epochs))):
            chain[e - 1, self.parents[e, chain[e]]] = True
        return chain & (self.rows >= 0)

    def blocks(self) -> NDArray[np.intp]:
        """Return indices of the epochs before which members were copied, and of the first one."""
        columns = np.arange(len(self.members))
        copied = ((self.parents != columns) & (self.rows >= 0)).any(axis=1)
        copied[:1] = True
        return np.flatnonzero(copied)

    def spans(self) -> Iterator[tuple[int, int, float, float]]:
        """Yield for each member between copies: index of the first epoch, column, begin, end."""
        starts = self.blocks()
        for start, stop in zip(starts, [*starts[1:], len(self.epochs)], strict=True):
            for k in np.flatnonzero(self.rows[start] >= 0):
                last = start + np.flatnonzero(self.rows[start:stop, k] >= 0)[-1]
                yield int(start), int(k), float(self.epochs[start]), float(self.epochs[last] + 1)


def family_of(population: Mapping[str, ArrayLike]) -> Family | None:
    """Arrange a table by epoch and member, or return None where it is empty.

    Without ``parent`` nobody was copied, without ``diverged`` nobody diverged.
    """
    lacking = [n for n in ("epoch", "member") if n not in population]
    if lacking:
        raise UserError(
            f"the table has no column {' nor '.join(lacking)}; give what "
            "lfads_torch.tables.read_population returns"
        )
    epochs, row_epoch = np.unique(np.asarray(population["epoch"]), return_inverse=True)
    members, row_member = np.unique(np.asarray(population["member"]), return_inverse=True)
    if not len(epochs):
        return None
    rows = np.full((len(epochs), len(members)), -1, np.intp)
    rows[row_epoch, row_member] = np.arange(len(row_epoch))
    parents = np.tile(np.arange(len(members)), (len(epochs), 1))
    if "parent" in population:
        column = np.searchsorted(members, np.asarray(population["parent"]))
        parents[row_epoch, row_member] = np.minimum(column, len(members) - 1)
    diverged = np.zeros(rows.shape, bool)
    if "diverged" in population:
        diverged[row_epoch, row_member] = np.asarray(population["diverged"], bool)
    return Family(epochs.astype(int), members.astype(int), rows, parents, diverged)


@styled
def hyperparameter_paths(
    population: Mapping[str, ArrayLike],
    names: Sequence[str] | None = None,
    *,
    metric: str = SCORE,
    color: str | None = None,
    space: Mapping[str, Any] | None = None,
) -> Figure:
    """Draw the values of hyper-parameters over a search, each joined to those it descends from.

    The line of the best final member stands out from those with other living descendants, and these
    from the ones that died out.

    Parameters
    ----------
    population : mapping of str to array
        As `lfads_torch.tables.read_population` returns it; a data frame will do.
    names : sequence of str, optional
        Hyper-parameters, with or without ``model.`` in front; by default all that vary.
    metric : str, default="valid/recon_smth"
        What says which member is best: a loss, or a score of which more is better.
    color : Matplotlib colour, optional
        Of the best member's line.
    space : mapping of str to HyperParam, optional
        What was searched. An axis is logarithmic where its values were drawn so; without `space`,
        where they span more than a decade and most are at its low end.

    Returns
    -------
    Figure
        One panel for each.

    Raises
    ------
    UserError
        For a hyper-parameter or a metric that is not in the table.
    """
    searched = _searched(population, names, reserve=0.5)
    if searched is None:
        return empty_figure("nothing searched yet")
    family, figure, panels = searched
    best = _best(family, family.column(_column(population, metric)), metric)
    for axis, values, name, label in panels:
        _draw_paths(axis, family, values, best, color or look().orange)
        _scale(axis, "y", values, name, space)
        axis.set(title=label, xlabel="epoch")
    figure.legend(
        handles=_legend(family, color or look().orange), loc="outside upper center", ncols=3
    )
    return figure


@styled
def score_history(population: Mapping[str, ArrayLike], metric: str = SCORE) -> Figure:
    """Draw the score of every member over a search, and below it who was copied onto whom.

    Parameters
    ----------
    population : mapping of str to array
        As `lfads_torch.tables.read_population` returns it; a data frame will do.
    metric : str, default="valid/recon_smth"
        A loss, or a score of which more is better.

    Returns
    -------
    Figure
        Above: members, their median and quartiles, and the line of the best final member. Below, if
        members were copied: a row for each, copies as oblique lines, crosses where one diverged.

    Raises
    ------
    UserError
        For a metric that is not in the table.
    """
    family = family_of(population)
    if family is None:
        return empty_figure("nothing searched yet")
    scores = np.where(family.diverged, np.nan, family.column(_column(population, metric)))
    scores[~np.isfinite(scores)] = np.nan
    best = _best(family, scores, metric)
    if best is None:
        return empty_figure(f"no finite {metric}")
    with_tree = len(family.blocks()) > 1
    tree_height = min(0.8 + 0.13 * len(family.members), 6.0)
    figure = Figure(figsize=(8.4, 3.6 + tree_height * with_tree), layout="constrained")
    ratios = (3.0, tree_height)[: 1 + with_tree]
    axes = figure.subplots(1 + with_tree, 1, sharex=True, squeeze=False, height_ratios=ratios)[:, 0]
    _draw_scores(axes[0], family, scores, best, is_loss=mode_of(metric) == "min")
    axes[0].set_ylabel(LABELS.get(metric, metric))
    if with_tree:
        _draw_tree(axes[1], family, best)
    else:
        _mark_lost(axes[0], family, scores)
    _legend_above(axes[0])
    axes[-1].set_xlabel("epoch")
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    return figure


@styled
def scores_by_value(
    population: Mapping[str, ArrayLike],
    names: Sequence[str] | None = None,
    *,
    metric: str = SCORE,
    space: Mapping[str, Any] | None = None,
) -> Figure:
    """Draw the last score of each member over its hyper-parameters, as after a random search.

    Parameters
    ----------
    population : mapping of str to array
        As `lfads_torch.tables.read_population` returns it; a data frame will do.
    names : sequence of str, optional
        Hyper-parameters, with or without ``model.`` in front; by default all that vary.
    metric : str, default="valid/recon_smth"
        A loss, or a score of which more is better.
    space : mapping of str to HyperParam, optional
        As for `hyperparameter_paths`.

    Returns
    -------
    Figure
        One panel for each; members that diverged are crosses on the upper edge.

    Raises
    ------
    UserError
        For a hyper-parameter or a metric that is not in the table.
    """
    searched = _searched(population, names, sharey=True)
    if searched is None:
        return empty_figure("nothing searched yet")
    family, figure, panels = searched
    scores = _final_scores(family, family.column(_column(population, metric)))
    lost = np.isnan(scores)
    for column, (axis, paths, name, label) in enumerate(panels):
        values = family.final(paths)
        axis.scatter(values, scores, s=26, color=look().blue, alpha=0.75, linewidths=0)
        if not lost.all():
            k = int((np.nanargmax if mode_of(metric) == "max" else np.nanargmin)(scores))
            axis.scatter(values[k], scores[k], s=60, color=look().orange, zorder=3, label="best")
        if lost.any():
            edge = axis.get_xaxis_transform()
            kind: dict[str, Any] = {"color": look().ink, "transform": edge, "clip_on": False}
            label_lost = f"diverged ({lost.sum()})"
            axis.plot(values[lost], np.ones(lost.sum()), "x", label=label_lost, **kind)
        _scale(axis, "x", values, name, space)
        axis.set(xlabel=label)
        if column == 0:
            axis.legend(loc="best")
    figure.supylabel(LABELS.get(metric, metric), fontsize=11)
    return figure


def _chosen(population: Mapping[str, ArrayLike], names: Sequence[str] | None) -> list[str]:
    known = [str(n).removeprefix(HP) for n in population if str(n).startswith(HP)]
    if names is None:
        return [n for n in known if np.unique(population[f"{HP}{n}"]).size > 1] or known
    short = [name.removeprefix(HP).removeprefix(_MODEL) for name in names]
    for name in short:
        if name not in known:
            raise UserError(
                f"the search had no hyper-parameter {name}; {did_you_mean(name, known)}"
            )
    return short


def _column(population: Mapping[str, ArrayLike], metric: str) -> ArrayLike:
    if metric not in population:
        logged = [str(n) for n in population if "/" in str(n) and not str(n).startswith(HP)]
        raise UserError(f"the search logged no {metric}; {did_you_mean(metric, logged)}")
    return population[metric]


def _best(family: Family, scores: FloatArray, metric: str) -> int | None:
    """Return the column of the final member with the best finite score."""
    final = _final_scores(family, scores) * (-1 if mode_of(metric) == "max" else 1)
    return None if np.isnan(final).all() else int(np.nanargmin(final))


def _final_scores(family: Family, scores: FloatArray) -> FloatArray:
    """Return the last score of each member, NaN where it diverged."""
    final = family.final(scores)
    return np.where(family.final(family.diverged) | ~np.isfinite(final), np.nan, final)


def _searched(
    population: Mapping[str, ArrayLike],
    names: Sequence[str] | None,
    *,
    reserve: float = 0.0,
    sharey: bool = False,
) -> tuple[Family, Figure, list[tuple[Axes, FloatArray, str, str]]] | None:
    """Return the family, a figure, and for each hyper-parameter panel, values, name and label."""
    family = family_of(population)
    chosen = _chosen(population, names)
    if family is None or not chosen:
        return None
    n = len(chosen)
    # Five panels would leave three places of a second row of four empty.
    n_columns = min(4, n) if n != 5 else 3
    n_rows = -(-n // n_columns)
    size = (max(3.2 * n_columns, 5.8), 2.5 * max(n_rows, 1.3 if n == 1 else 1) + reserve)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(n_rows, n_columns, squeeze=False, sharey=sharey).ravel()
    for axis in grid[n:]:
        axis.set_visible(False)
    # The last word of a name is enough, unless two share it.
    last = [name.rpartition(".")[2] for name in chosen]
    labels = [a if last.count(a) == 1 else name for a, name in zip(last, chosen, strict=True)]
    values = [family.column(population[f"{HP}{name}"]) for name in chosen]
    return family, figure, list(zip(grid[:n], values, chosen, labels, strict=True))


def _scale(
    axis: Axes, which: str, values: FloatArray, name: str, space: Mapping[str, Any] | None
) -> None:
    """Make the axis of a hyper-parameter logarithmic where the search draws it so."""
    finite = values[np.isfinite(values)]
    param = next((p for n, p in (space or {}).items() if n.removeprefix(_MODEL) == name), None)
    is_log = _looks_logarithmic(values) if param is None else bool(param.is_logarithmic)
    if is_log and (finite > 0).all():
        log_scale(axis, which)
    else:
        side = axis.xaxis if which == "x" else axis.yaxis
        side.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))


def _looks_logarithmic(values: FloatArray) -> bool:
    """Return whether values span more than a decade, most of them at its low end."""
    finite = values[np.isfinite(values)]
    # A logarithmic axis needs more than the span: values drawn evenly from a wide range have their
    # median near the middle, those drawn evenly in the logarithm have it far below.
    # What was drawn at first tells the distribution; what selection left of it does not.
    first = np.atleast_2d(values)[0]
    drawn = first[np.isfinite(first)]
    drawn = drawn if len(np.unique(drawn)) > 1 else finite
    is_log = (finite > 0).all() and drawn.size and drawn.max() > _LOG_SPAN * drawn.min()
    return bool(is_log and np.median(drawn) < drawn.max() / 4)


def _legend(family: Family, colour: str) -> list[Line2D]:
    handles = [
        Line2D([], [], color=colour, linewidth=2.4, label="best final member"),
        Line2D([], [], color=look().blue, linewidth=1.2, label="other final members"),
    ]
    if (family.living() != (family.rows >= 0)).any():
        gone = Line2D([], [], color=look().muted, linewidth=0.9, alpha=0.6, label="died out")
        handles.append(gone)
    return handles


def _draw_paths(
    axis: Axes, family: Family, values: FloatArray, best: int | None, colour: str
) -> None:
    living = family.living()
    line = None if best is None else family.line_of(best)
    drawn: dict[str, list[list[tuple[float, float]]]] = {"dead": [], "living": [], "best": []}
    for start, k, begin, end in family.spans():
        path = [(begin, values[start, k]), (end, values[start, k])]
        if start:
            path.insert(0, (begin, values[start - 1, family.parents[start, k]]))
        kind = "living" if living[start, k] else "dead"
        drawn["best" if line is not None and line[start] == k else kind].append(path)
    looks = {"dead": (look().muted, 0.8, 0.45), "living": (look().blue, 1.0, 0.75)}
    looks["best"] = (colour, 2.4, 1.0)
    for z, (kind, (shade, width, alpha)) in enumerate(looks.items()):
        axis.add_collection(
            LineCollection(drawn[kind], colors=shade, linewidths=width, alpha=alpha, zorder=2 + z)
        )
    axis.autoscale_view()
    axis.set_xlim(family.epochs[0], family.epochs[-1] + 1)
    axis.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))


def _draw_scores(
    axis: Axes, family: Family, scores: FloatArray, best: int, *, is_loss: bool
) -> None:
    x = family.epochs + 1
    marker = "o" if len(x) == 1 else None
    lines = axis.plot(x, scores, color=look().muted, linewidth=0.7, alpha=0.5, marker=marker)
    lines[0].set_label("members")
    known = np.isfinite(scores).any(axis=1)
    low, middle, high = np.nanpercentile(scores[known], [25, 50, 75], axis=1)
    axis.fill_between(x[known], low, high, color=look().sky, alpha=0.3, linewidth=0)
    axis.plot(x[known], middle, color=look().ink, marker=marker, label="median, quartiles")
    line = scores[np.arange(len(x)), family.line_of(best)]
    axis.plot(x, line, color=look().orange, linewidth=2.2, marker=marker, label="best final member")
    for i, start in enumerate(family.blocks()[1:]):
        style: dict[str, Any] = {"color": look().muted, "linewidth": 0.7, "linestyle": ":"}
        axis.axvline(family.epochs[start], label=None if i else "copies", **style)
    # The first epochs and members that go astray are not what the figure is about: the first tenth
    # is cut off, and on the worse side the quartile, not the extreme, sets the limit.
    n_early = known.sum() // 10
    later = scores[np.flatnonzero(known)[n_early:]]
    bottom, top = (
        (np.nanmin(later), np.max(high[n_early:]))
        if is_loss
        else (np.min(low[n_early:]), np.nanmax(later))
    )
    margin = 0.06 * (top - bottom) or 0.05 * max(abs(top), 1.0)
    axis.set_ylim(bottom - margin, top + margin)
    axis.set_xlim(family.epochs[0], family.epochs[-1] + 1)


def _mark_lost(axis: Axes, family: Family, heights: FloatArray) -> None:
    """Put a cross where a member diverged, at its height in the epoch before."""
    before = np.vstack([np.zeros_like(family.diverged[:1]), family.diverged[:-1]])
    epochs, members = np.nonzero(family.diverged & ~before)
    if epochs.size:
        at = heights[np.maximum(epochs - 1, 0), members]
        kind: dict[str, Any] = {"linestyle": "none", "marker": "x", "zorder": 5}
        axis.plot(family.epochs[epochs], at, color=look().ink, label="diverged", **kind)


def _legend_above(axis: Axes, handles: Sequence[Any] = ()) -> None:
    handles = [*handles, *axis.get_legend_handles_labels()[0]]
    axis.legend(
        handles=handles,
        loc="lower right",
        bbox_to_anchor=(1, 1),
        borderaxespad=0.1,
        ncols=len(handles),
        columnspacing=1.4,
        handlelength=1.6,
    )


def _draw_tree(axis: Axes, family: Family, best: int) -> None:
    """Draw a row for each member; a copy runs obliquely over the last epochs of a generation."""
    living, line = family.living(), family.line_of(best)
    # A third of the shortest generation: a copy begins after the one before it has ended.
    lead = 0.35 * float(np.diff([*family.epochs[family.blocks()], family.epochs[-1] + 1]).min())
    for start, k, begin, end in family.spans():
        is_best = line[start] == k
        shade = look().blue if living[start, k] else look().muted
        style: dict[str, Any] = {
            "color": look().orange if is_best else shade,
            "linewidth": 2.2 if is_best else 1.0,
            "alpha": 1.0 if is_best else 0.75 if living[start, k] else 0.45,
            "zorder": 4 if is_best else 3 if living[start, k] else 2,
        }
        is_last = end > family.epochs[-1]
        axis.plot([begin, end - (0 if is_last else lead)], [k, k], **style)
        if start:
            axis.plot([begin - lead, begin], [family.parents[start, k], k], **style)
    _mark_lost(axis, family, np.tile(np.arange(len(family.members)), (len(family.epochs), 1)))
    _legend_above(axis, _legend(family, look().orange))
    step = -(-len(family.members) // 10)
    axis.set_yticks(np.arange(len(family.members))[::step], family.members[::step])
    axis.set_ylim(len(family.members) - 0.5, -0.5)
    axis.set_ylabel("member")
