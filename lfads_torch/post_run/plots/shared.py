"""Factors that sessions share, session by session."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from .groups import MAX_GROUPS, by_condition, condition_legend
from .style import Figure, as_trials, empty_figure, styled, time_centres


@styled
def shared_factors(
    factors: Sequence[ArrayLike],
    names: Sequence[str],
    components: ArrayLike | None = None,
    conditions: Sequence[str] | None = None,
    *,
    bin_ms: float | int | None = None,
    factor_names: Sequence[str] | None = None,
    n_factors: int = 3,
    max_sessions: int = 6,
    max_conditions: int = MAX_GROUPS,
) -> Figure:
    """Draw each session's factors by condition, one column per session.

    Where sessions are well aligned, a row looks the same in all columns.

    Parameters
    ----------
    factors : sequence of arrays, shape (conditions, time, factors)
        One array per session; NaN where a session lacks a condition.
    names : sequence of str
        Of the sessions.
    components : array, shape (conditions, time, factors), optional
        What the factors of all sessions were fitted to, drawn behind them.
    conditions : sequence of str, optional
        Names of the conditions; numbers by default.
    bin_ms : float, optional
        Bin width; with it time is in ms.
    factor_names : sequence of str, optional
        Names of the factors; by default their numbers.
    n_factors, max_sessions, max_conditions : int
        The first factors are drawn; of more sessions, an even choice; of more conditions, the
        first.

    Returns
    -------
    Figure
    """
    arrays = [array for array in map(as_trials, factors) if array is not None]
    if not arrays or len(arrays) < len(factors):
        return empty_figure("no factors to draw")
    shared = as_trials(components)
    n_all = len(arrays)
    chosen = np.unique(np.linspace(0, n_all - 1, min(max_sessions, n_all)).round().astype(int))
    n_conditions, n_bins, n_all_factors = arrays[0].shape
    n_rows = min(n_factors, n_all_factors)
    groups, n_groups = by_condition(
        np.arange(n_conditions), n_conditions, min(max_conditions, n_conditions)
    )
    if conditions is not None:
        groups = [group._replace(name=str(conditions[group.trials[0]])) for group in groups]

    figure = Figure(figsize=(2.5 * len(chosen) + 1.0, 1.7 * n_rows + 1.5), layout="constrained")
    # Rows share their axis, because a factor of another size in one session is a misalignment.
    grid = figure.subplots(n_rows, len(chosen), squeeze=False, sharex=True, sharey="row")
    time, time_label = time_centres(n_bins, bin_ms)
    for column, number in enumerate(chosen):
        for row in range(n_rows):
            axis = grid[row, column]
            for group in groups:
                [one] = group.trials
                if shared is not None:
                    line = shared[one, :, row]
                    axis.plot(time, line, color=group.colour, linestyle=":", linewidth=1.0)
                axis.plot(time, arrays[number][one, :, row], color=group.colour)
            axis.yaxis.set_major_locator(MaxNLocator(4))
        grid[0, column].set_title(names[number])
        grid[-1, column].set_xlabel(time_label)
    for row in range(n_rows):
        factor = factor_names[row] if factor_names else f"factor {row}"
        grid[row, 0].set_ylabel(f"{factor}\n(a.u.)")
    left_out = f" ({len(chosen)} of {n_all} sessions)" if len(chosen) < n_all else ""
    behind = "; dotted: shared component" if shared is not None else ""
    condition_legend(figure, groups, n_groups, remark=behind + left_out)
    return figure
