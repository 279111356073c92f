"""Trials by condition, with the colours and names that all figures give them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike, NDArray

from .style import Figure, FloatArray, look

MAX_GROUPS = 8
"""Conditions that a figure shows: as many as there are colours that readers tell apart."""


class Group(NamedTuple):
    """Trials of one condition."""

    # Empty where trials have no condition
    name: str
    trials: NDArray[np.intp]
    colour: Any


def by_condition(
    conditions: ArrayLike | None, n_trials: int, max_groups: int = MAX_GROUPS
) -> tuple[list[Group], int]:
    """Sort trials into at most `max_groups` conditions, those with the most trials.

    `conditions` are numbers or names, shape (trials,); NaN is none. Return the number of
    all conditions, too.
    """
    if conditions is None:
        return [Group("", np.arange(n_trials), look().blue)], 1
    labels = np.asarray(conditions).reshape(-1)[:n_trials]
    known = ~np.isnan(labels) if labels.dtype.kind == "f" else np.ones(len(labels), bool)
    names, counts = np.unique(labels[known], return_counts=True)
    # Those with the most trials have the smallest errors; a stable sort keeps the choice the same
    # from one figure to the next.
    kept = np.sort(np.argsort(-counts, kind="stable")[:max_groups])
    return [
        Group(_name(names[k]), np.flatnonzero(labels == names[k]), colour)
        for k, colour in zip(kept, colours_of(len(kept)), strict=True)
    ], len(names)


def colours_of(n: int) -> list[Any]:
    """Return colours of `n` categories: those of the palette, for more shades of one map."""
    palette = [*look().palette, look().muted]
    if n <= len(palette):
        return palette[:n]
    return list(look().sequence(np.linspace(0, 1, n)))


def _name(label: Any) -> str:
    if isinstance(label, bytes):
        return label.decode(errors="replace")
    return f"{label:g}" if isinstance(label, np.floating) else str(label)


def condition_legend(
    figure: Figure, groups: Sequence[Group], n_all: int, *, remark: str = ""
) -> None:
    """Name the conditions below the figure, with a remark; nothing without conditions."""
    shown = [group for group in groups if group.name]
    if not shown:
        return
    some = f" ({len(shown)} of {n_all})" if len(shown) < n_all else ""
    figure.legend(
        handles=[Line2D([], [], color=g.colour, linewidth=3, label=g.name) for g in shown],
        title=f"condition{some}{remark}",
        loc="outside lower center",
        ncols=min(len(shown), 12),
        handlelength=1.0,
        columnspacing=1.2,
    )


def mean_and_error(trials: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return mean and standard error over the first axis, without NaN; of one trial the error is 0.

    By hand, since NumPy's functions warn of columns that hold nothing but NaN.
    """
    finite = np.isfinite(trials)
    count = finite.sum(axis=0)
    total = np.where(finite, trials, 0.0).sum(axis=0)
    mean = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    squares = (np.where(finite, trials - mean, 0.0) ** 2).sum(axis=0)
    scale = np.maximum(count * (count - 1.0), 1.0)
    return mean, np.sqrt(squares / scale)
