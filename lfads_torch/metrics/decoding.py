"""Decoders fitted by ridge regression, their penalties chosen by folds in order of time."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import DataWarning, UserError, number
from .decoder import Decoder, FloatArray, Mask, complete_rows, rows_of, whole_rows
from .regression import choose_ridge, product_sums
from .trialwise import ROUNDING

ALPHAS: tuple[float, ...] = tuple(10.0**k for k in range(-1, 7))
"""Ridge penalties on the weights of standardised features, among which the folds choose."""
LEAST_ROWS = 10
"""A fold of fewer rows judges nothing."""
# Rows with all their lags, of this number of entries (32 MB), are made at a time.
_BLOCK_ENTRIES = 1 << 22


def fit_decoder(
    x: ArrayLike,
    y: ArrayLike,
    pieces: ArrayLike | None = None,
    lags: Sequence[int] = (0,),
    alphas: Sequence[float] = ALPHAS,
    *,
    guard: int = 0,
    n_folds: int = 5,
    where: ArrayLike | None = None,
    **facts: Any,
) -> Decoder:
    """Fit a decoder by ridge regression, its penalties chosen by folds in order of time.

    ``W = argmin sum over rows of |y - b - W x|^2 + alpha |W|^2``, where x are the standardised
    features of all lags and b is not penalised. Each target has its own penalty.

    Parameters
    ----------
    x : array, shape (rows, features) or (trials, bins, features)
        Bins in order of time.
    y : array, shape (rows, targets) or (trials, bins, targets)
        A row is used only if all its lags are in its piece and it lacks no feature or target (NaN).
    pieces : array of int, shape (rows,), optional
        Number of the piece that each row is of; by default all rows are one, or each trial is.
    lags : sequence of int
        Bins by which the features come before the targets; negative ones look ahead.
    alphas : sequence of float
        Penalties to choose from.
    guard : int
        Bins, more than the largest lag, that are left out of the fit on each side of a fold.
    n_folds : int
        Contiguous folds. A piece longer than a fold is divided, no other is.
    where : array of bool, shape (rows,) or (trials, bins), optional
        Rows to fit to; the others may still be lags.
    **facts
        Other attributes of `Decoder`.

    Returns
    -------
    Decoder

    Raises
    ------
    UserError
        If sizes do not agree, or a fold has fewer than 10 rows.

    Warns
    -----
    DataWarning
        Where the best penalty is the smallest or largest that was tried.
    """
    flat, labels = rows_of(x, pieces)
    targets = np.asarray(y, dtype=np.float64)
    targets = targets.reshape(-1, targets.shape[-1])
    lags = tuple(sorted({int(lag) for lag in lags}))
    penalties = [number("alpha", alpha, least=0) for alpha in alphas]
    if len(flat) != len(targets):
        raise UserError(f"x has {len(flat)} rows, y {len(targets)}; they must agree")
    if not lags or not penalties:
        raise UserError("a decoder needs at least one lag and one penalty")
    # A feature that is never there, such as a channel that died, keeps no row from the fit.
    present = np.asarray(np.isfinite(flat).any(axis=0))
    usable = complete_rows(whole_rows(flat[:, present]), labels, lags)
    usable &= np.isfinite(targets).all(axis=1)
    if where is not None:
        usable &= np.ravel(where).astype(bool)
    rows = np.flatnonzero(usable)
    cuts = _fold_cuts(labels[rows], n_folds if len(penalties) > 1 else 1)
    smallest = int(np.diff(cuts).min())
    if smallest < LEAST_ROWS:
        raise UserError(
            f"{len(rows)} of {len(flat)} rows have all lags, features and targets, so that a fold "
            f"has {smallest}; it takes {LEAST_ROWS} in each of {max(len(cuts) - 1, 1)}: give more "
            "data, fewer lags, or a single penalty (--alpha)"
        )
    mean, scale = _standard(flat, rows, lags, present)
    used = scale > 0
    z = (flat[:, used] - mean[used]) / scale[used]
    centre = targets[rows].mean(axis=0)
    centred = targets - centre

    def sums(start: int, stop: int) -> FloatArray:
        """Sum products over rows, so many at a time that their lags fit into memory."""
        size = len(lags) * z.shape[1] + centred.shape[1] + 1
        step = max(1, _BLOCK_ENTRIES // size)
        total = np.zeros((size, size))
        for first in range(start, stop, step):
            some = rows[first : min(first + step, stop)]
            with_lags = z[some[:, None] - np.array(lags)].reshape(len(some), -1)
            total += product_sums(with_lags, centred[some])
        return total

    reach = max(map(abs, lags)) + guard
    folds, total = [], np.zeros(())
    for start, stop in pairwise(cuts):
        fold = sums(start, stop)
        total = total + fold
        if len(cuts) > 2:
            low = int(np.searchsorted(rows, rows[start] - reach))
            high = int(np.searchsorted(rows, rows[stop - 1] + reach, side="right"))
            if len(rows) - (high - low) < LEAST_ROWS:
                raise UserError(
                    f"{len(rows)} rows are too few for {n_folds} folds with {reach} rows left out "
                    "on each side; give more data, or a single penalty (--alpha)"
                )
            folds.append((fold, fold + sums(low, start) + sums(stop, high)))
    fit, alpha, of_folds = choose_ridge(
        # Pooled, or a minute in which the animal rests would choose the penalty.
        total,
        folds,
        penalties,
        [np.ones(len(lags) * z.shape[1])],
        pooled=True,
    )
    decoder = Decoder(
        lags=lags,
        feature_mean=np.where(used, mean, 0.0),
        feature_scale=scale,
        weight=_spread(fit.weight.reshape(len(lags), -1, len(centre)), used),
        bias=centre + fit.bias,
        alpha=alpha,
        **{"causal": min(lags) >= 0, **facts},
    )
    decoder.fitted_on["rows"] = len(rows)
    if folds:
        decoder.fitted_on["r2_of_folds"] = float(of_folds.mean())
    _warn_of_ends(decoder, penalties, centred[rows])
    return decoder


def _fold_cuts(pieces: NDArray[np.int64], n_folds: int) -> list[int]:
    """Return the borders of contiguous folds of rows, at borders of short pieces."""
    n = len(pieces)
    borders = np.concatenate([[0], np.flatnonzero(np.diff(pieces)) + 1, [n]])
    cuts = {0, n}
    for cut in (k * n // n_folds for k in range(1, n_folds)):
        after = int(np.searchsorted(borders, cut, side="right"))
        low, high = borders[after - 1], borders[min(after, len(borders) - 1)]
        if high - low <= n / n_folds:
            cut = low if cut - low <= high - cut else high
        cuts.add(int(cut))
    return sorted(cuts) if n else [0, 0]


def _standard(
    x: FloatArray, rows: NDArray[np.int64], lags: Sequence[int], present: Mask
) -> tuple[FloatArray, FloatArray]:
    """Return mean and spread of each feature over the bins that are read; 0 for one to drop."""
    read = np.zeros(len(x), dtype=bool)
    for lag in lags:
        read[rows - lag] = True
    seen = np.where(present, x[read], 0.0)
    mean, spread = seen.mean(axis=0), seen.std(axis=0)
    varies = spread**2 > ROUNDING * (seen**2).mean(axis=0)
    return mean, np.where(varies, spread, 0.0)


def _spread(weight: FloatArray, used: Mask) -> FloatArray:
    """Return weights of all features, 0 for those that are not used."""
    whole = np.zeros((weight.shape[0], len(used), weight.shape[2]))
    whole[:, used] = weight
    return whole


def _warn_of_ends(decoder: Decoder, alphas: Sequence[float], y: FloatArray) -> None:
    """Warn where the best penalty is the last on offer, so that a better one may lie beyond."""
    if len(alphas) < 2:
        return
    varies = np.asarray(y.any(axis=0))
    for end, which in ((min(alphas), "smallest"), (max(alphas), "largest")):
        names = [
            name
            for name, alpha, some in zip(decoder.target_names, decoder.alpha, varies, strict=True)
            if alpha == end and some
        ]
        if names:
            warnings.warn(
                f"the best penalty of {', '.join(names)} is the {which} that was tried, {end:g}; "
                "a better one may lie beyond",
                DataWarning,
                stacklevel=3,
            )


def parse_lags(text: str) -> tuple[int, ...]:
    """Read lags from text: ``0:3`` for 0 to 3, or a number."""
    first, colon, last = text.partition(":")
    try:
        low, high = int(first), int(last) if colon else int(first)
    except ValueError:
        low, high = 1, 0
    if high < low:
        raise UserError(f"--lags is {text!r}; legal are FIRST:LAST in bins, such as 0:3 or -2:2")
    return tuple(range(low, high + 1))
