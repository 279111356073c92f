"""Scores of a trained model that look at conditions: PSTHs, and neural speed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..data.smoothing import gaussian_smooth as gaussian_smooth
from ..data.smoothing import smoothing_sums
from ..errors import UserError
from .trialwise import ROUNDING, FloatArray, ratio, score_value

# Averages of all draws at once would need draws x bins x neurons numbers for each condition.
_DRAWS_AT_ONCE = 128


@dataclass(frozen=True)
class PsthScore:
    """R2 between condition averages of rates and PSTHs (Pei et al. 2021), the mean over neurons."""

    # An entry for each condition, of the bins that are scored. Rates are 0 in bins that a trial's
    # window did not reach, so that sums over trials leave them out.
    sums: list[NDArray[Any]]  # rates, shape (trials, bins, neurons)
    reached: list[FloatArray]  # shape (trials, bins)
    members: list[NDArray[np.int64]]  # trials
    targets: list[FloatArray]  # PSTH, shape (bins, neurons)
    # Of PSTHs that are averages of these very trials: each trial's sums of data and of weights
    # under the smoothing kernel, shape (trials, bins, neurons). Empty where PSTHs are given.
    measured: list[tuple[FloatArray, FloatArray]] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        rates: ArrayLike,
        psth: ArrayLike,
        cond_idx: Sequence[ArrayLike],
        jitter: ArrayLike | None = None,
        data: ArrayLike | None = None,
        width_bins: float = 0.0,
    ) -> PsthScore:
        """Gather what is compared; parameters as of `psth_r2`.

        Where the PSTHs are averages of `data`, of shape (trials, bins, neurons), smoothed by
        `width_bins`, they are drawn anew together with the trials.
        """
        rates, psth = np.asarray(rates), np.asarray(psth, dtype=np.float64)
        if psth.ndim != 3 or psth.shape[2] != rates.shape[2] or len(psth) != len(cond_idx):
            raise UserError(
                f"psth has shape {psth.shape}; legal is ({len(cond_idx)} conditions, bins, "
                f"{rates.shape[2]} neurons)"
            )
        shifts = np.zeros(len(rates), dtype=int) if jitter is None else np.asarray(jitter, int)
        score = cls([], [], [], [])
        # A trial may end before the last bin. One without any rate is no such trial.
        nothing = np.isnan(rates).all(axis=2)
        past = np.logical_and.accumulate(nothing[:, ::-1], axis=1)[:, ::-1]
        past &= ~nothing.all(axis=1, keepdims=True)
        for condition, listed in zip(psth, cond_idx, strict=True):
            members = np.asarray(listed, dtype=np.int64)
            if not members.size:
                continue
            # Averages skip the bins that a trial's window did not reach.
            source = np.arange(len(condition)) - shifts[members, None]
            inside = (source >= 0) & (source < rates.shape[1])
            inside &= ~past[members[:, None], source.clip(0, rates.shape[1] - 1)]
            keep = np.isfinite(condition).all(axis=1) & inside.any(axis=0)
            aligned = rates[members[:, None], source.clip(0, rates.shape[1] - 1)[:, keep]]
            inside = inside[:, keep]
            score.sums.append(np.where(inside[..., None], aligned, 0.0))
            score.reached.append(inside.astype(np.float64))
            score.members.append(members)
            score.targets.append(condition[keep])
            if data is not None:
                total, weight = smoothing_sums(np.asarray(data)[members], width_bins)
                weight = np.broadcast_to(weight, total.shape)
                score.measured.append((total[:, keep], weight[:, keep]))
        return score

    def parts(self, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
        """See `TrialScore`; PSTHs that were given stay, whatever trials are drawn."""
        if not self.targets:
            return np.zeros(len(weights)), np.zeros(len(weights))
        steps = range(0, len(weights), _DRAWS_AT_ONCE)
        r2 = np.concatenate([self._r2(weights[i : i + _DRAWS_AT_ONCE]) for i in steps])
        return r2.mean(axis=1), np.isfinite(r2).all(axis=1).astype(np.float64)

    def by_column(self) -> FloatArray | None:
        """See `TrialScore`."""
        if not self.targets:
            return None
        n_trials = 1 + max(int(members.max()) for members in self.members)
        return self._r2(np.ones((1, n_trials)))[0]

    def by_group(self, groups: Sequence[NDArray[np.int64]]) -> None:
        """See `TrialScore`; conditions are what the score is about."""
        return None

    def _r2(self, weights: FloatArray) -> FloatArray:
        """R2 by draw and neuron; as the benchmark has it, a constant PSTH scores 1 or 0."""
        joined = np.concatenate(self.targets)
        centre = joined.mean(axis=0)
        shape = (len(weights), len(centre))
        n, total, power, error = (np.zeros(shape) for _ in range(4))
        for i, (sums, reached, members, target) in enumerate(
            zip(self.sums, self.reached, self.members, self.targets, strict=True)
        ):
            drawn_often = weights[:, members]
            mass = drawn_often @ reached
            if not self.measured:
                error += _squared_error(drawn_often, mass, sums, reached, target)
                seen, shifted = (mass > 0).astype(np.float64), target - centre
                n += seen.sum(axis=1)[:, None]
                total += seen @ shifted
                power += seen @ shifted**2
                continue
            numerator, denominator = (
                np.tensordot(drawn_often, part, axes=1) for part in self.measured[i]
            )
            known = (mass > 0)[..., None] & (denominator > 0)
            redrawn = numerator / np.where(known, denominator, 1.0)
            mean = np.tensordot(drawn_often, sums, axes=1) / np.maximum(mass, 1.0)[..., None]
            n += known.sum(axis=1)
            error += ((mean - redrawn) ** 2).sum(axis=1, where=known)
            total += (redrawn - centre).sum(axis=1, where=known)
            power += ((redrawn - centre) ** 2).sum(axis=1, where=known)
        spread = power - total**2 / np.maximum(n, 1)
        varies = spread > ROUNDING * power
        r2 = np.where(varies, 1 - error / np.where(varies, spread, 1.0), error == 0)
        return np.where(n > 0, r2, np.nan)


def _squared_error(
    weights: FloatArray, mass: FloatArray, sums: Any, reached: FloatArray, target: FloatArray
) -> FloatArray:
    """Squared error of weighted averages, summed over the bins that any drawn trial reached."""
    n_trials, n_bins = reached.shape
    if n_trials**2 <= 2 * n_bins and reached.all():
        # Of few trials: the square of a sum by the products of its summands, of all draws at once.
        apart = sums - target
        products = np.einsum("itn,jtn->ijn", apart, apart).reshape(n_trials**2, -1)
        pairs = (weights[:, :, None] * weights[:, None, :]).reshape(len(weights), -1)
        drawn = mass[:, :1]
        return np.where(drawn > 0, pairs @ products / np.maximum(drawn, 1.0) ** 2, 0.0)
    mean = (weights @ sums.reshape(n_trials, -1).astype(np.float64)).reshape(-1, *target.shape)
    mean /= np.maximum(mass, np.finfo(np.float64).tiny)[..., None]
    return np.asarray(np.where((mass > 0)[..., None], (mean - target) ** 2, 0.0).sum(axis=1))


def psth_r2(
    rates: ArrayLike,
    psth: ArrayLike,
    cond_idx: Sequence[ArrayLike],
    jitter: ArrayLike | None = None,
) -> float:
    """R2 between condition averages of inferred rates and the measured PSTHs.

    Parameters
    ----------
    rates : array, shape (trials, time, neurons)
    psth : array, shape (conditions, time, neurons)
        Bins that are NaN are not scored.
    cond_idx : sequence of integer arrays
        Trials of each condition, in the order of `psth`; empty ones are skipped.
    jitter : integer array, shape (trials,), optional
        Bins by which each trial's window began later than the PSTH's.

    Returns
    -------
    float
        R2 over all conditions and bins, averaged over neurons (Pei et al. 2021).
    """
    return score_value(PsthScore.of(rates, psth, cond_idx, jitter), len(np.asarray(rates)))


@dataclass(frozen=True)
class SpeedScore:
    """Correlation of neural speed with the produced interval, the mean over conditions."""

    speed: FloatArray  # shape (trials,); NaN where a trial has none
    produced: FloatArray  # shape (trials,); NaN where unknown
    conditions: list[NDArray[np.int64]]  # trials of each

    @classmethod
    def of(cls, rates: ArrayLike, behavior: ArrayLike, mask: ArrayLike) -> SpeedScore:
        """Gather what is compared; parameters as of `speed_tp_correlation`."""
        rates, behavior = np.asarray(rates, np.float64), np.asarray(behavior, np.float64)
        mask = np.asarray(mask, dtype=bool)
        step = np.linalg.norm(np.diff(rates, axis=1), axis=2)
        # A step counts when both its bins lie between Set and Go.
        counted = mask[:, 1:] & mask[:, :-1]
        n_steps = counted.sum(axis=1)
        total = np.where(counted, step, 0.0).sum(axis=1)
        speed = np.where(n_steps > 0, total / np.maximum(n_steps, 1), np.nan)
        conditions, produced = behavior[:, :3], behavior[:, -1]
        usable = n_steps > 0
        usable &= np.isfinite(produced) & np.isfinite(conditions).all(axis=1)
        groups = [
            np.flatnonzero(usable & (conditions == condition).all(axis=1))
            for condition in np.unique(conditions[usable], axis=0)
        ]
        return cls(speed, produced, groups)

    def parts(self, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
        """See `TrialScore`; of conditions with two different trials or more."""
        total, count = np.zeros(len(weights)), np.zeros(len(weights))
        for members in self.conditions:
            w = weights[:, members]
            n = np.maximum(w.sum(axis=1), 1)
            speed, produced = self.speed[members], self.produced[members]
            speed, produced = speed - speed.mean(), produced - produced.mean()
            s, p = w @ speed / n, w @ produced / n
            var_s, var_p = w @ speed**2 / n - s**2, w @ produced**2 / n - p**2
            small = ROUNDING * np.array([np.max(speed**2), np.max(produced**2)])
            varies = ~(var_s <= small[0]) & (var_p > small[1])
            scale = np.sqrt(np.where(varies, var_s * var_p, 1.0))
            total += np.where(varies, (w @ (speed * produced) / n - s * p) / scale, 0.0)
            count += varies
        return total, count

    def by_column(self) -> None:
        """See `TrialScore`."""
        return None

    def by_group(self, groups: Sequence[NDArray[np.int64]]) -> None:
        """See `TrialScore`."""
        return None


def speed_tp_correlation(rates: ArrayLike, behavior: ArrayLike, mask: ArrayLike) -> float:
    """Correlation of neural speed with the produced interval (DMFC_RSG; Pei et al. 2021).

    Parameters
    ----------
    rates : array, shape (trials, time, neurons)
    behavior : array, shape (trials, columns)
        The first three columns define the condition (prior, response modality, direction); the last
        one is the produced interval t_p. Trials with a NaN in these columns are left out.
    mask : array of bool, shape (trials, time)
        True between Set and Go. Neural speed is the mean distance between successive bins there.

    Returns
    -------
    float
        Pearson's r within each condition, averaged over conditions with two trials or more.
    """
    score = SpeedScore.of(rates, behavior, mask)
    numerator, denominator = score.parts(np.ones((1, len(score.speed))))
    value = float(ratio(numerator, denominator)[0])
    return value if math.isfinite(value) else math.nan
