"""Scores from sums kept per trial, so that trials can be drawn anew without computing again.

Every score has ``parts(weights)``: a numerator and a denominator for each row of trial weights, of
which the score is the ratio; ratios of sums over sessions pool the sessions. Weights of one give
the score itself, weights drawn by `resampled_trials` the bootstrap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import UserError, number

FloatArray = NDArray[np.float64]

NLB_FLOOR = 1e-9
"""Rate that stands for a rate of zero, as the Neural Latents Benchmark has it."""

# Blocks of this number of entries, 16 MB, bound what the conversion to double costs in memory.
_BLOCK_ENTRIES = 1 << 21
ROUNDING = 1e-12
"""What rounding leaves of the spread of a constant column, as a share of its power."""


@runtime_checkable
class TrialScore(Protocol):
    """What every score of this kind can compute."""

    def parts(self, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Numerator and denominator for weights of shape (draws, trials), each (draws,)."""

    def by_column(self) -> FloatArray | None:
        """Return the score of each channel or column; None where it has none."""

    def by_group(self, groups: Sequence[NDArray[np.int64]]) -> FloatArray | None:
        """Return each group's score, against the reference of all trials; None where undefined."""


def resampled_trials(n_trials: int, n_draws: int, seed: int | Sequence[int] = 0) -> FloatArray:
    """Count how often each trial is drawn when trials are drawn with replacement.

    Parameters
    ----------
    n_trials, n_draws : int
    seed : int or sequence of int

    Returns
    -------
    array, shape (n_draws, n_trials)
        Rows of whole numbers that sum to `n_trials`.
    """
    if n_trials < 1 or n_draws < 0:
        raise UserError(f"n_trials={n_trials}, n_draws={n_draws}; legal are >= 1 and >= 0")
    rng = np.random.default_rng(seed)
    # How often a trial is drawn is all that a score of sums needs to know.
    even = np.full(n_trials, 1 / n_trials)
    return rng.multinomial(n_trials, even, size=n_draws).astype(np.float64)


def interval(value: float, draws: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """Compute the percentile interval of bootstrap draws, moved so that their median is the value.

    Drawing trials anew doubles the noise in averages over few trials, such as PSTHs: all draws then
    score lower than the trials themselves, which says nothing of how sure the score is.

    Parameters
    ----------
    value : float
        The score of the trials as they are.
    draws : array, shape (draws,)
        Scores of drawn trials; those that are not finite are left out.
    level : float

    Returns
    -------
    low, high : float
        NaN where the value, or every draw, is not finite, and where all draws score the same:
        nothing of the score depends on which trials are drawn, which does not make it sure.
    """
    number("level", level, above=0, below=1)
    scores = np.asarray(draws, dtype=np.float64)
    scores = scores[np.isfinite(scores)]
    if not scores.size or not math.isfinite(value):
        return math.nan, math.nan
    if np.ptp(scores) <= ROUNDING * max(1.0, abs(value)):
        return math.nan, math.nan
    low, middle, high = np.quantile(scores, [(1 - level) / 2, 0.5, (1 + level) / 2])
    return float(value + low - middle), float(value + high - middle)


def score_value(score: TrialScore, n_trials: int) -> float:
    """Return the score over all trials."""
    return float(ratio(*score.parts(np.ones((1, n_trials))))[0])


class ByTime(NamedTuple):
    """A score of consecutive parts of the scored time, and how it changes from part to part."""

    rows: list[int]  # trials (or blocks) of each part
    values: list[float]
    intervals: list[tuple[float, float]]
    slope: float  # of the straight line through the parts, per part
    slope_interval: tuple[float, float]


def score_by_time(
    score: TrialScore,
    parts: Sequence[NDArray[np.int64]],
    n_draws: int = 1000,
    level: float = 0.95,
    seed: int | Sequence[int] = 0,
) -> ByTime:
    """Score consecutive parts of the trials, with bootstrap intervals.

    `parts` are the trials of each part, in order of time. Trials are drawn within their part. R2
    is one minus the part's mean squared error by the variance of all trials, so that the parts'
    scores average to that of all, and a part in which little moves is no outlier.
    """
    of = score.within_all if isinstance(score, ErrorScore) else score.parts
    n_trials = 1 + max(int(part.max(initial=0)) for part in parts)
    values = []
    for k, part in enumerate(parts):
        weights = np.zeros((1 + n_draws, n_trials))
        weights[0, part] = 1.0
        if n_draws and len(part):
            key = [*(seed if isinstance(seed, Sequence) else [seed]), k]
            weights[1:, part] = resampled_trials(len(part), n_draws, key)
        values.append(ratio(*of(weights)))
    by_draw = np.stack(values, axis=1)  # (draws, parts)
    place = np.arange(len(parts)) - (len(parts) - 1) / 2
    slopes = by_draw @ place / max((place**2).sum(), 1e-300)
    return ByTime(
        rows=[len(part) for part in parts],
        values=by_draw[0].tolist(),
        intervals=[interval(float(v[0]), v[1:], level) for v in by_draw.T],
        slope=float(slopes[0]),
        slope_interval=interval(float(slopes[0]), slopes[1:], level),
    )


def ratio(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    """Divide the parts of scores, NaN where the denominator is 0."""
    out = np.full(np.shape(numerator), np.nan)
    return np.divide(numerator, denominator, out=out, where=denominator > 0)


def _group_weights(groups: Sequence[NDArray[np.int64]], n_trials: int) -> FloatArray:
    weights = np.zeros((len(groups), n_trials))
    for row, members in zip(weights, groups, strict=True):
        row[members] = 1.0
    return weights


@dataclass(frozen=True)
class SpikeScore:
    """Bits per spike (Pei et al. 2021, eq. 2).

    ``(NLL(mean rate of the evaluated data) - NLL(model)) / (number of spikes * ln 2)``; the mean
    rates are those of the trials that are scored, drawn or not.

    Attributes
    ----------
    n_observed, spikes, nll : array, shape (trials, channels)
        Observed entries, spikes, and the sum of rate - spikes * log(rate).
    """

    n_observed: FloatArray
    spikes: FloatArray
    nll: FloatArray

    @classmethod
    def of(cls, rates: ArrayLike, counts: ArrayLike) -> SpikeScore:
        """Sum up rates per bin against counts.

        Parameters
        ----------
        rates, counts : array, shape (trials, bins, channels)
            NaN counts are not scored. A rate of zero counts as 1e-9, as the benchmark has it.
        """
        rates, counts = np.asarray(rates), np.asarray(counts)
        if rates.shape != counts.shape:
            raise UserError(
                f"rates have shape {rates.shape}, counts {counts.shape}; they must agree"
            )
        n, spikes, nll = (np.zeros((counts.shape[0], counts.shape[2])) for _ in range(3))
        for part in _blocks(counts):
            observed = np.isfinite(counts[part])
            events = np.where(observed, counts[part], 0.0)
            rate = np.maximum(rates[part].astype(np.float64), NLB_FLOOR)
            n[part] = observed.sum(axis=1)
            spikes[part] = events.sum(axis=1)
            nll[part] = (np.where(observed, rate, 0.0) - events * np.log(rate)).sum(
                axis=1, where=observed
            )
        return cls(n, spikes, nll)

    def parts(self, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
        """See `TrialScore`."""
        n, spikes, nll = (weights @ x for x in (self.n_observed, self.spikes, self.nll))
        gain = _null_nll(n, spikes) - nll
        return gain.sum(axis=1), spikes.sum(axis=1) * math.log(2)

    def by_column(self) -> FloatArray:
        """See `TrialScore`."""
        n, spikes, nll = (x.sum(axis=0) for x in (self.n_observed, self.spikes, self.nll))
        return ratio(_null_nll(n, spikes) - nll, spikes * math.log(2))

    def by_group(self, groups: Sequence[NDArray[np.int64]]) -> FloatArray:
        """See `TrialScore`; the mean rates are those of all trials."""
        weights = _group_weights(groups, len(self.nll))
        n, spikes, nll = (weights @ x for x in (self.n_observed, self.spikes, self.nll))
        mean = ratio(self.spikes.sum(axis=0), self.n_observed.sum(axis=0))
        # Not the mean rate of the group: how rates differ between groups is for the model to learn.
        mean = np.maximum(np.nan_to_num(mean), NLB_FLOOR)
        null = n * mean - spikes * np.log(mean)
        return ratio((null - nll).sum(axis=1), spikes.sum(axis=1) * math.log(2))


def _null_nll(n: FloatArray, spikes: FloatArray) -> FloatArray:
    """NLL of each channel's mean rate, without the factorials, which cancel."""
    mean = np.maximum(spikes / np.maximum(n, 1), NLB_FLOOR)
    return spikes - spikes * np.log(mean)


def _blocks(array: NDArray[np.generic]) -> list[slice]:
    step = max(1, _BLOCK_ENTRIES // max(1, math.prod(array.shape[1:])))
    return [slice(i, i + step) for i in range(0, len(array), step)]


@dataclass(frozen=True)
class ErrorScore:
    """R2 of predictions, the mean over the columns that vary.

    Attributes
    ----------
    n, total, power, error : array, shape (trials, columns)
        Observed entries, and over these the sums of the target (as deviation from its mean over
        all trials), of its square, and of the squared error.
    """

    n: FloatArray
    total: FloatArray
    power: FloatArray
    error: FloatArray

    @classmethod
    def of(cls, preds: ArrayLike, targets: ArrayLike) -> ErrorScore:
        """Sum up predictions against targets, both (trials, bins, columns); NaN is left out."""
        p, y, observed = _centred(preds, targets)
        n = observed.sum(axis=1).astype(np.float64)
        return cls(n, y.sum(axis=1), (y**2).sum(axis=1), ((y - p) ** 2).sum(axis=1))

    def parts(self, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
        """See `TrialScore`."""
        return _column_mean(*self.columns(weights))

    def columns(self, weights: FloatArray) -> tuple[FloatArray, NDArray[np.bool_]]:
        """Return each column's score and whether it varies, both of shape (draws, columns)."""
        return self._r2(*(weights @ x for x in self._sums()))

    def within_all(self, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return the parts of R2 of weighted trials, about the variance of all trials."""
        n_all, total, power, _ = (x.sum(axis=0) for x in self._sums())
        spread = power - total**2 / np.maximum(n_all, 1)
        varies = spread > ROUNDING * power
        variance = np.where(varies, spread / np.maximum(n_all, 1), 1.0)
        n = weights @ self.n
        r2 = 1 - weights @ self.error / np.maximum(n, 1) / variance
        return _column_mean(r2, varies & (n > 0))

    def pooled(self, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return the parts of R2 over all columns together, weighted by their variance."""
        n, total, power, error = (weights @ x for x in self._sums())
        spread = (power - total**2 / np.maximum(n, 1)).sum(axis=1)
        return spread - error.sum(axis=1), spread

    def by_column(self) -> FloatArray:
        """See `TrialScore`."""
        return self._r2(*(x.sum(axis=0) for x in self._sums()))[0]

    def by_group(self, groups: Sequence[NDArray[np.int64]]) -> FloatArray:
        """See `TrialScore`; the spread is about the mean of all trials."""
        weights = _group_weights(groups, len(self.n))
        varies = self._r2(*(x.sum(axis=0) for x in self._sums()))[1]
        power, error = weights @ self.power, weights @ self.error
        varies = varies & (power > 0)
        return ratio(*_column_mean(ratio(power - error, np.where(varies, power, 0.0)), varies))

    def _sums(self) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        return self.n, self.total, self.power, self.error

    @staticmethod
    def _r2(
        n: FloatArray, total: FloatArray, power: FloatArray, error: FloatArray
    ) -> tuple[FloatArray, NDArray[np.bool_]]:
        spread = power - total**2 / np.maximum(n, 1)
        varies = spread > ROUNDING * power
        return ratio(spread - error, np.where(varies, spread, 0.0)), varies


@dataclass(frozen=True)
class CorrelationScore:
    """Pearson's r of predictions and targets, the mean over the columns in which both vary.

    Attributes
    ----------
    sums : array, shape (6, trials, columns)
        Over observed entries: count, p, y, p^2, y^2, p y, both as deviations from their means over
        all trials.
    """

    sums: FloatArray

    @classmethod
    def of(cls, preds: ArrayLike, targets: ArrayLike) -> CorrelationScore:
        """Sum up predictions against targets, both (trials, bins, columns); NaN is left out."""
        p, y, observed = _centred(preds, targets, centre_preds=True)
        terms = (observed.astype(np.float64), p, y, p**2, y**2, p * y)
        return cls(np.stack([term.sum(axis=1) for term in terms]))

    def parts(self, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
        """See `TrialScore`."""
        return _column_mean(*self.columns(weights))

    def columns(self, weights: FloatArray) -> tuple[FloatArray, NDArray[np.bool_]]:
        """Return each column's score and whether it varies, both of shape (draws, columns)."""
        return self._r([weights @ x for x in self.sums])

    def by_column(self) -> FloatArray:
        """See `TrialScore`."""
        return self._r(list(self.sums.sum(axis=1)))[0]

    def by_group(self, groups: Sequence[NDArray[np.int64]]) -> FloatArray:
        """See `TrialScore`; means and spreads are those of the group."""
        weights = _group_weights(groups, self.sums.shape[1])
        return ratio(*_column_mean(*self._r([weights @ x for x in self.sums])))

    @staticmethod
    def _r(sums: Sequence[FloatArray]) -> tuple[FloatArray, NDArray[np.bool_]]:
        n, p, y, pp, yy, py = sums
        n = np.maximum(n, 1)
        spread_p, spread_y = pp - p**2 / n, yy - y**2 / n
        # A prediction that is NaN does vary, so that the score turns NaN with it.
        varies = (spread_y > ROUNDING * yy) & ~(spread_p <= ROUNDING * pp)
        scale = np.sqrt(np.where(varies, spread_p * spread_y, 0.0))
        return np.where(varies, (py - p * y / n) / np.where(varies, scale, 1.0), np.nan), varies


def _column_mean(values: FloatArray, known: NDArray[np.bool_]) -> tuple[FloatArray, FloatArray]:
    """Return the mean over `known` columns, and whether any is known, as parts of a score."""
    n = known.sum(axis=-1)
    total = np.where(known, values, 0.0).sum(axis=-1)
    return total / np.maximum(n, 1), (n > 0).astype(np.float64)


def _centred(
    preds: ArrayLike, targets: ArrayLike, centre_preds: bool = False
) -> tuple[FloatArray, FloatArray, NDArray[np.bool_]]:
    """Shift both by the columns' mean targets; zero where the target is missing."""
    p, y = np.asarray(preds, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    if p.shape != y.shape:
        raise UserError(f"predictions have shape {p.shape}, targets {y.shape}; they must agree")
    # Squares about a far mean lose the digits of the spread; that of all trials is near enough to
    # the mean of any draw.
    observed = np.isfinite(y)
    n = np.maximum(observed.sum(axis=(0, 1)), 1)
    y_mean = np.where(observed, y, 0.0).sum(axis=(0, 1)) / n
    p_mean = np.where(observed, p, 0.0).sum(axis=(0, 1)) / n if centre_preds else y_mean
    return np.where(observed, p - p_mean, 0.0), np.where(observed, y - y_mean, 0.0), observed
