"""Rows that predict from smoothed data."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .behavior import SCORED, TRAIN
from .fits import (
    WIDTHS,
    Smoother,
    Source,
    finite_mean,
    judge_and_rest,
    loss_of,
    regress,
    regression_loss,
    subset,
    widths,
)
from .scoring import Features, Prediction, lagged_fit

Array = NDArray[Any]

_REGRESSION_WIDTHS = (1.0, 2.0, 4.0, 8.0, 16.0)
# Widths of the Gaussian by which a ridge regression looks back and ahead.
_LAGS = (-2, -1, 0, 1, 2)
_FLOORS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.6)
"""Least rates to choose from, as shares of each channel's mean."""
_ALMOST_NONE = 1e-6
"""Prior that only shows where no observed bin lies under the kernel."""


def smoothed(source: Source) -> Prediction:
    """Smooth data; held-out channels by regression from them, later bins by the kernel's tail."""
    recording, read, smoother = source.recording, source.read, source.smoother
    shape = recording.data[SCORED].shape
    rates, unseen = np.empty(shape, np.float32), np.empty(shape, np.float32)
    rates[..., : recording.n_channels] = smoother(read[SCORED])
    unseen[..., : recording.n_channels] = smoother(read[SCORED], leave_own=True)
    choices: dict[str, Any] = {"width_bins": smoother.width, "prior_bins": smoother.prior}
    if shape[2] > recording.n_channels:
        chosen = [
            (regression_loss(recording, features), width)
            for width in widths(recording.n_bins, _REGRESSION_WIDTHS)
            for features in [subset(Smoother(width, 1.0, smoother.mean)(read[TRAIN]))]
        ]
        choices["heldout_width_bins"] = width = min(chosen)[1]
        train, scored = (Smoother(width, 1.0, smoother.mean)(read[k]) for k in (TRAIN, SCORED))
        held_out = regress(recording, train, scored, slice(recording.n_channels, None))
        rates[..., recording.n_channels :] = held_out
        unseen[..., recording.n_channels :] = held_out

    def smooth(width: float) -> tuple[Array, Array]:
        smoother_of = Smoother(width, _ALMOST_NONE, smoother.mean)
        return smoother_of(read[TRAIN]), smoother_of(read[SCORED])

    # Behaviour and latents choose their own width: the best one for spikes is not theirs. These are
    # functions, since ten smoothed copies of the data might not fit into memory.
    features: dict[str, Features] = {
        f"width {width:g} bins": partial(smooth, width)
        for width in widths(recording.n_bins, WIDTHS)
    }
    return Prediction("smoothing", rates, unseen, features, choices)


def lagged_ridge(source: Source) -> Prediction | None:
    """Predict held-out channels and behaviour by ridge regression from several bins.

    Of the channels that are read it says nothing: bins around one that is scored hold it, smoothed.
    """
    recording, smoother = source.recording, source.smoother
    n_bins = recording.n_bins
    read = {kind: data[:, :n_bins] for kind, data in source.read.items()}

    def smooth(width: float) -> tuple[Array, Array]:
        smoother_of = Smoother(width, _ALMOST_NONE, smoother.mean)
        return smoother_of(read[TRAIN]), smoother_of(read[SCORED])

    names = {f"width {width:g} bins": width for width in widths(n_bins, _REGRESSION_WIDTHS)}
    lags = {name: tuple(k * max(1, round(width)) for k in _LAGS) for name, width in names.items()}
    features: dict[str, Features] = {n: partial(smooth, width) for n, width in names.items()}
    choices: dict[str, Any] = {}
    rates = None
    target = recording.data[TRAIN][:, :n_bins, recording.n_channels :]
    if target.size:
        # A line may fall below 0, where a spike would cost without bound.
        floors = _FLOORS if recording.counts else (-np.inf,)
        least = finite_mean(target) if recording.counts else np.ones(target.shape[2])
        y = subset(target)
        judge, rest = judge_and_rest(len(y))
        losses = {}
        for name in names:
            x = subset(features[name]()[0])
            predicted = lagged_fit(x[rest], y[rest], lags[name]).fit(x[judge])
            for floor in floors:
                bounded = np.maximum(predicted, floor * least)
                losses[name, floor] = loss_of(bounded, y[judge], recording.counts)
        name, floor = min(losses, key=lambda key: losses[key])
        train, scored = features[name]()
        rates = np.full(recording.data[SCORED].shape, np.nan, np.float32)
        predicted = lagged_fit(train, target, lags[name]).fit(scored)
        rates[:, :n_bins, recording.n_channels :] = np.maximum(predicted, floor * least)
        choices = {"heldout_width_bins": names[name], "lags": lags[name], "floor": floor}
    return Prediction("ridge", None, rates, features, choices, lags)
