"""Initial conditions: where trials begin."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from numpy.typing import ArrayLike, NDArray

from .groups import MAX_GROUPS, Group, by_condition, condition_legend
from .style import Figure, FloatArray, empty_figure, look, principal_axes, styled

_FOLDS = 5


@styled
def initial_conditions(
    ic: ArrayLike,
    conditions: ArrayLike | None = None,
    *,
    max_conditions: int = MAX_GROUPS,
    seed: int = 0,
) -> Figure:
    """Draw initial conditions in the plane of two principal components, and of two discriminants.

    Where trials have conditions, a second panel shows the plane that tells them apart best (linear
    discriminant analysis with shrinkage). Its dots are the scores of trials that the analysis was
    not fitted to, by cross-validation, and its title says in how many of those the condition is
    predicted right: what a plane fitted to the drawn trials themselves would flatter.

    Parameters
    ----------
    ic : array, shape (trials, dimensions)
        Posterior means of the initial condition.
    conditions : array, shape (trials,), optional
        A number or name per trial; without, trials are coloured by their order.
    max_conditions : int
        Conditions drawn at most, those with the most trials.
    seed : int
        Of the folds.

    Returns
    -------
    Figure
    """
    points = np.asarray(ic, dtype=np.float64)
    if points.ndim != 2 or not points.size:
        return empty_figure("no initial condition to draw")
    finite: NDArray[np.bool_] = np.asarray(np.isfinite(points).all(axis=1))
    if not finite.any():
        return empty_figure("no finite initial condition")
    groups, n_all = by_condition(conditions, len(points), max_conditions)
    groups = [g._replace(trials=g.trials[finite[g.trials]]) for g in groups]
    separated = None if conditions is None else discriminants(points, groups, seed=seed)

    n_panels = 1 if separated is None else 2
    figure = Figure(figsize=(5.2 * n_panels, 4.8), layout="constrained")
    axes = figure.subplots(1, n_panels, squeeze=False)[0]
    centre, basis, variance = principal_axes(points[finite])
    # The second column stays 0 where there is a single dimension.
    scores, n_pcs = np.zeros((len(points), 2)), min(2, len(basis))
    scores[:, :n_pcs] = (points - centre) @ basis[:n_pcs].T
    shares = [*variance[:n_pcs].tolist(), 0.0][:2]
    labels = [f"PC {k + 1} ({share:.0%})" for k, share in enumerate(shares)]
    if conditions is None:
        shade = Normalize(0, max(len(points) - 1, 1))
        kind: dict[str, Any] = {"c": np.arange(len(points)), "cmap": look().sequence, "norm": shade}
        axes[0].scatter(scores[:, 0], scores[:, 1], s=16, **kind)
        bar = figure.colorbar(ScalarMappable(shade, look().sequence), ax=axes[0], shrink=0.7)
        bar.set_label("trial")
        bar.outline.set_visible(False)
    else:
        _dots(axes[0], scores, groups)
    axes[0].set(xlabel=labels[0], ylabel=labels[1], title="principal components")
    if separated is not None:
        _dots(axes[1], separated.scores, groups)
        axes[1].set(
            xlabel="discriminant 1",
            ylabel="discriminant 2" if separated.n_axes > 1 else "order of trials (a.u.)",
            title="discriminants of the condition\n"
            f"{separated.accuracy:.0%} of held-out trials predicted right "
            f"(chance {separated.chance:.0%})",
        )
    condition_legend(figure, groups, n_all)
    return figure


def _dots(axis: Axes, points: FloatArray, groups: list[Group]) -> None:
    for group in groups:
        dots, edge = points[group.trials], look().paper
        axis.scatter(dots[:, 0], dots[:, 1], s=18, color=group.colour, alpha=0.8, linewidths=0)
        if len(dots) > 1 and np.isfinite(dots).all(axis=1).any():
            x, y = np.nanmean(dots, axis=0)
            axis.scatter(x, y, s=110, color=group.colour, edgecolors=edge, linewidths=1.5)


class Discriminants(NamedTuple):
    """The result of a linear discriminant analysis."""

    # Of held-out trials; NaN for trials of no group; shape (trials, 2)
    scores: FloatArray
    # accuracy, chance: Fraction of held-out trials whose condition is predicted right; that of the
    # most frequent one
    accuracy: float
    chance: float
    # Number of discriminants: one for two conditions
    n_axes: int


def discriminants(
    points: FloatArray, groups: list[Group], *, seed: int = 0
) -> Discriminants | None:
    """Project trials on the discriminants of their conditions, each fitted without the trial.

    Conditions of less than three trials are left out: without one of two, a single trial has no
    spread. Return None where fewer than two are left, or nothing varies.
    """
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.model_selection import StratifiedKFold

    members = [group.trials for group in groups if len(group.trials) > 2]
    if len(members) < 2:
        return None
    trials = np.concatenate(members)
    labels = np.repeat(np.arange(len(members)), [len(m) for m in members])
    x = points[trials]
    if not (np.ptp(x, axis=0) > 0).any():
        return None
    varying: Any = np.ptp(x, axis=0) > 0
    x = (x[:, varying] - x[:, varying].mean(axis=0)) / x[:, varying].std(axis=0)
    # Trials are often few for the number of dimensions, so the covariance within conditions is
    # shrunk, by as much as Ledoit & Wolf (2004, doi:10.1016/S0047-259X(03)00096-4) derive.
    analysis = LinearDiscriminantAnalysis(solver="eigen", shrinkage="auto")
    try:
        reference = analysis.fit(x, labels).transform(x)[:, :2]
        n_axes = reference.shape[1]
        held_out, right = np.zeros((len(x), n_axes)), np.zeros(len(x), bool)
        n_folds = min(_FOLDS, min(len(m) for m in members))
        folds = StratifiedKFold(n_folds, shuffle=True, random_state=seed).split(x, labels)
        for fit, test in folds:
            analysis.fit(x[fit], labels[fit])
            right[test] = analysis.predict(x[test]) == labels[test]
            fold = analysis.transform(x)[:, :n_axes]
            # Each fold has other axes: rotate and flip them onto those of all trials (orthogonal
            # Procrustes, Schoenemann 1966, doi:10.1007/BF02289451), by trials it was fitted to.
            left, _, turned = np.linalg.svd(fold[fit].T @ reference[fit], full_matrices=False)
            held_out[test] = fold[test] @ (left @ turned)
    except (np.linalg.LinAlgError, ValueError):  # too few trials for a covariance
        return None
    scores = np.full((len(points), 2), np.nan)
    scores[trials, :n_axes] = held_out
    if n_axes == 1:
        # Two conditions have a single axis; spread over a second one, dots do not hide each other.
        scores[trials, 1] = np.random.default_rng(seed).permutation(len(trials)) / len(trials)
    return Discriminants(scores, float(right.mean()), max(map(len, members)) / len(x), n_axes)
