"""Rows that predict from smoothed data."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .behavior import SCORED, TRAIN
from .fits import WIDTHS, Smoother, Source, regress, regression_loss, subset, widths
from .scoring import Features, Prediction

Array = NDArray[Any]

_REGRESSION_WIDTHS = (1.0, 2.0, 4.0, 8.0, 16.0)
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
