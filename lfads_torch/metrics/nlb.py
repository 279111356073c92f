"""The scores of the Neural Latents Benchmark, by its definitions (Pei et al. 2021, NeurIPS)."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import DataError
from .evaluation import psth_r2, speed_tp_correlation
from .regression import NLB_ALPHAS, ridge_r2
from .trialwise import SpikeScore, score_value

FloatArray = NDArray[np.floating[Any]]

NLB_SCORES = ("co_bps", "fp_bps", "behavior_r2", "psth_r2", "tp_corr")
NLB_BIN_MS = 5.0
"""The benchmark's bin width, where a file does not say it."""


class RatesAndBehavior(NamedTuple):
    """Trials of a split."""

    rates: FloatArray  # spikes per bin, shape (trials, bins, neurons)
    behavior: FloatArray | None  # shape (trials, bins, columns) or (trials, columns)


def nlb_scores(
    valid: RatesAndBehavior,
    counts: ArrayLike | None = None,
    n_read: tuple[int, int] = (0, 0),
    *,
    train: RatesAndBehavior | None = None,
    masks: tuple[ArrayLike | None, ArrayLike | None] = (None, None),
    psth: ArrayLike | None = None,
    cond_idx: Any = None,
    jitter: ArrayLike | None = None,
    bin_ms: float | int = NLB_BIN_MS,
    alphas: tuple[float, ...] = NLB_ALPHAS,
) -> dict[str, float]:
    """Compute every score for which data exist.

    Parameters
    ----------
    valid : RatesAndBehavior
        The trials that are scored.
    counts : array, shape of ``valid.rates``, optional
        Their spikes, for co-bps and fp-bps.
    n_read : (bins, channels)
        What the model read of `counts`; bits per spike need them, and behaviour of one row per
        trial the bins.
    train : RatesAndBehavior, optional
        Trials to which the decoder is fitted.
    masks : (train, valid)
        Sets of trials, each with its decoder, shape (trials, sets).
    psth : array, shape (conditions, bins, neurons), optional
    cond_idx : see `trials_by_condition`, optional
        The scored trials of each condition.
    jitter : integer array, shape (trials,), optional
        Bins by which each window was shifted to later times.
    bin_ms : float
    alphas : tuple of float
        Ridge penalties among which the decoder's is chosen.

    Returns
    -------
    dict of str to float
        Of `NLB_SCORES` those that are finite.

    Raises
    ------
    DataError
        Where PSTHs do not fit rates or conditions.
    """
    scores: dict[str, float] = {}
    n_bins, n_channels = n_read
    if counts is not None:
        spikes = np.asarray(counts)
        for name, part in {
            "co_bps": np.s_[:, :n_bins, n_channels:],
            "fp_bps": np.s_[:, n_bins:, :],
        }.items():
            if spikes[part].size:
                scored = SpikeScore.of(valid.rates[part], spikes[part])
                scores[name] = score_value(scored, len(spikes))
    behavior = valid.behavior
    if behavior is not None and behavior.ndim == 3 and train is not None:
        scores["behavior_r2"] = decoding_r2(train, valid, *masks, alphas=alphas)
    elif behavior is not None and behavior.ndim == 2 and jitter is not None:
        n_bins = n_bins or valid.rates.shape[1]
        mask = set_go_mask(behavior[:, -1], jitter, n_bins, bin_ms)
        scores["tp_corr"] = speed_tp_correlation(valid.rates[:, :n_bins], behavior, mask)
    if psth is not None and cond_idx is not None:
        psth = np.asarray(psth, dtype=np.float64)
        if psth.ndim != 3 or psth.shape[2] != valid.rates.shape[2]:
            raise DataError(
                f"psth has shape {psth.shape}; legal is (conditions, bins, "
                f"{valid.rates.shape[2]} neurons), with the neurons of recon_data"
            )
        members = trials_by_condition(cond_idx, len(psth))
        scores["psth_r2"] = psth_r2(valid.rates, psth, members, jitter)
    return {name: scores[name] for name in NLB_SCORES if math.isfinite(scores.get(name, math.nan))}


def decoding_r2(
    train: RatesAndBehavior,
    valid: RatesAndBehavior,
    train_mask: ArrayLike | None = None,
    valid_mask: ArrayLike | None = None,
    *,
    alphas: tuple[float, ...] = NLB_ALPHAS,
) -> float:
    """Return the mean R2 of behaviour decoded linearly from rates, over sets of trials.

    Behaviour of shape (trials, bins, columns) may have fewer bins than the rates; NaN samples are
    left out, and so are columns that do not vary. Masks have shape (trials, sets); without them all
    trials are one set.
    """
    if train.behavior is None or valid.behavior is None:
        raise DataError("decoding needs behaviour in both train and valid")
    in_train = trial_sets(train_mask, len(train.rates))
    in_valid = trial_sets(valid_mask, len(valid.rates))
    n_bins = train.behavior.shape[1]
    scores = []
    for members, held_out in zip(in_train, in_valid, strict=True):
        r2 = ridge_r2(
            train.rates[members, :n_bins],
            train.behavior[members],
            valid.rates[held_out, :n_bins],
            valid.behavior[held_out],
            alphas=alphas,
        )
        # Of what does not vary R2 has no meaning; scikit-learn's 1 would lift the mean.
        y = valid.behavior[held_out].reshape(-1, valid.behavior.shape[-1])
        varies = np.nanmax(y, axis=0) > np.nanmin(y, axis=0)
        scores.append(float(r2[varies].mean()) if varies.any() else math.nan)
    return float(np.mean(scores))


def trial_sets(mask: ArrayLike | None, n_trials: int) -> NDArray[np.bool_]:
    """Return masks of sets of trials, one per row: shape (sets, trials); all trials where None."""
    if mask is None:
        return np.ones((1, n_trials), dtype=bool)
    return np.asarray(mask).astype(bool).reshape(n_trials, -1).T


def set_go_mask(
    produced_ms: ArrayLike, jitter: ArrayLike, n_bins: int, bin_ms: float | int = NLB_BIN_MS
) -> NDArray[np.bool_]:
    """Return the bins between Set and Go, shape (trials, n_bins), for windows `jitter` bins late.

    `produced_ms` is the interval t_p from Set to Go; NaN gives no bins.
    """
    go = n_bins - np.asarray(jitter, dtype=np.float64)
    start = go - np.asarray(produced_ms, dtype=np.float64) / bin_ms
    bins = np.arange(n_bins)
    return (bins >= np.round(start)[:, None]) & (bins < go[:, None])


def trials_by_condition(cond_idx: Any, n_conditions: int) -> list[NDArray[np.int64]]:
    """List the trials of each condition, from such lists or from a condition number per trial."""
    entries = list(cond_idx)
    if all(np.ndim(entry) == 0 for entry in entries):
        numbers = np.asarray(entries, dtype=np.int64)
        if not np.isin(numbers, np.arange(n_conditions)).all():
            raise DataError(
                f"valid_cond_idx has condition numbers {numbers.min()} to {numbers.max()}, but "
                f"psth has {n_conditions} conditions, numbered from 0"
            )
        return [np.flatnonzero(numbers == condition) for condition in range(n_conditions)]
    if len(entries) != n_conditions:
        raise DataError(
            f"valid_cond_idx lists trials of {len(entries)} conditions, psth has {n_conditions}"
        )
    return [np.asarray(entry, dtype=np.int64).ravel() for entry in entries]
