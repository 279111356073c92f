"""Rows that know each trial's condition: the mean of other trials of it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...data.smoothing import smoothing_sums
from .behavior import SCORED, TRAIN, Recording
from .fits import Source, finite_mean, smoothed_averages, sums_by_condition
from .scoring import Prediction, only

Array = NDArray[Any]
FloatArray = NDArray[np.float64]
Labels = NDArray[np.int64]


def psth(source: Source) -> Prediction:
    """Average training trials of each trial's condition; without conditions, all of them."""
    recording = source.recording
    data, labels = recording.data[TRAIN], recording.labels[TRAIN]
    n_conditions = max(1, len(recording.condition_names))
    mean = finite_mean(data)
    width = source.psth_width
    total, count = sums_by_condition(data, labels, n_conditions)
    averages = smoothed_averages(total, count, mean, width)
    # A trial of an unknown condition gets the average over all.
    total, count = (sums.sum(axis=0, keepdims=True) for sums in (total, count))
    everything = smoothed_averages(total, count, mean, width)
    table = np.concatenate([averages, everything]).astype(np.float32)
    rates = {kind: table[recording.labels[kind]] for kind in (TRAIN, SCORED)}
    features = only(*rates.values())
    return Prediction("psth", rates[SCORED], None, features, _choices(recording, width))


def psth_oracle(source: Source) -> Prediction:
    """Average all other trials of each trial's condition, scored ones among them."""
    # Scored trials alone would be no ceiling: 17 of a condition (delayed reaches) score less than
    # the PSTH of 55 training trials.
    recording = source.recording
    kinds = [SCORED] if recording.trials[SCORED] is recording.trials[TRAIN] else [TRAIN, SCORED]
    data, labels = (
        np.concatenate([arrays[kind] for kind in kinds])
        for arrays in (recording.data, recording.labels)
    )
    mean, width = finite_mean(recording.data[TRAIN]), source.psth_width
    rates = leave_one_out(data, labels, mean, width).astype(np.float32)
    train, scored = rates[: len(recording.data[TRAIN])], rates[-recording.n_scored :]
    features = only(train, scored)
    return Prediction("psth_oracle", scored, None, features, _choices(recording, width))


def _choices(recording: Recording, width: float) -> dict[str, Any]:
    return {
        "width_bins": width,
        "conditions": len(recording.condition_names),
        "condition_key": recording.condition_key,
    }


def leave_one_out(data: Array, labels: Labels, mean: FloatArray, width: float) -> FloatArray:
    """Average the other trials of each trial's condition, smoothed; (trials, bins, channels)."""
    total, weight = smoothing_sums(data, width)
    weight = np.broadcast_to(weight, (len(data), *weight.shape[-2:]))
    others = []
    for sums in (total, weight):
        by_condition = np.zeros((labels.max(initial=-1) + 2, *sums.shape[1:]))
        np.add.at(by_condition, labels, sums)
        others.append(by_condition[labels] - sums)
    rates: FloatArray = (others[0] + mean) / (others[1] + 1)
    # Trials of unknown conditions were summed up under -1, the last row.
    rates[labels < 0] = mean
    # A difference of sums may fall below 0 by its rounding.
    return np.maximum(rates, 0.0) if data.min(initial=0) >= 0 else rates
