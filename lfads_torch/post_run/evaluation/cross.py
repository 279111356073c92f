"""How well the factors of one model are explained by those of another.

Models of equal co-bps may differ in what they hold beside it: factors that no other model's
explain are the model's own invention (Dabholkar and Barak 2025).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import UserError
from ...metrics.regression import ridge
from ...metrics.trialwise import ErrorScore, ratio
from ..outputs import RunOutputs
from .scoring import ALPHAS

FloatArray = NDArray[np.float64]


def cross_r2(runs: Sequence[RunOutputs], split: str) -> FloatArray:
    """Return R2 of run i's factors by ridge regression from run j's, in row i and column j.

    Fitted to training trials, scored on those of `split`; over all factors together, so that one
    that hardly varies hardly counts, and the mean over sessions. The diagonal is NaN.
    """
    matrix = np.zeros((len(runs), len(runs)))
    for number in range(len(runs[0])):
        factors = [_factors(run, number, split) for run in runs]
        _check(runs, factors)
        for i, (y_train, y) in enumerate(factors):
            for j, (x_train, x) in enumerate(factors):
                if i != j:
                    fit = ridge(x_train, y_train, ALPHAS, scaled=True).fit
                    score = ErrorScore.of(fit(x), y)
                    matrix[i, j] += ratio(*score.pooled(np.ones((1, len(y)))))[0] / len(runs[0])
    np.fill_diagonal(matrix, np.nan)
    return matrix


def _factors(run: RunOutputs, number: int, split: str) -> tuple[Any, Any]:
    if number >= len(run):
        raise UserError(f"{run.path} has {len(run)} sessions, another run more; compare like runs")
    session = run[number]
    pair = [session.trials(name) for name in ("train", split)]
    if any("factors" not in trials for trials in pair):
        raise UserError(
            f"{run.path} has no factors (an ensemble has rates alone); name its members instead"
        )
    return pair[0]["factors"], pair[1]["factors"]


def _check(runs: Sequence[RunOutputs], factors: Sequence[tuple[Any, Any]]) -> None:
    """Refuse runs of other trials or bins."""
    shapes = [[array.shape[:2] for array in pair] for pair in factors]
    for run, shape in zip(runs, shapes, strict=True):
        if shape != shapes[0]:
            raise UserError(
                f"{runs[0].path} and {run.path} are not of the same trials: training and scored "
                f"ones are {shapes[0]} trials x bins in the one, {shape} in the other"
            )


def cross_table(names: Sequence[str], matrix: FloatArray) -> list[list[str]]:
    """Return cells: the matrix, and the means of its rows and columns."""

    def text(value: float) -> str:
        return f"{value:.3f}" if np.isfinite(value) else ""

    by_row, by_column = np.nanmean(matrix, axis=1), np.nanmean(matrix, axis=0)
    return [
        ["R2 of ... from", *names, "mean"],
        *(
            [name, *map(text, row), text(mean)]
            for name, row, mean in zip(names, matrix, by_row, strict=True)
        ),
        ["mean", *map(text, by_column), ""],
    ]
