"""What predicts rates and behaviour: the model, and the true rates where there are any."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .behavior import SCORED, TRAIN, Recording

Array = NDArray[Any]

Features = Callable[[], tuple[Array, Array]]


@dataclass
class Prediction:
    """What a row of the table knows.

    Attributes
    ----------
    name : str
    rates : array, shape (scored trials, T_r, N_r), or None
        Expected data per bin.
    unseen_rates : array, shape of `rates`, or None
        Where they differ: rates for scoring on the very data, each inferred without its own bin.
    features : dict of str to function that returns (training, scored) arrays
        Of shape (trials, bins, features), for linear maps to behaviour and latents; of several
        the best is chosen by cross-validation, for each column mapped to.
    choices : dict
        What was chosen, in words or numbers.
    """

    name: str
    rates: Array | None = None
    unseen_rates: Array | None = None
    features: dict[str, Features] = field(default_factory=dict)
    choices: dict[str, Any] = field(default_factory=dict)


def model_predictions(recording: Recording) -> list[Prediction]:
    """The model's rates, and its factors."""
    found = []
    for name, source in (("lfads", "output_params"), ("lfads_factors", "factors")):
        train, scored = (recording.trials[kind][source] for kind in (TRAIN, SCORED))
        rates = scored if source == "output_params" else None
        found.append(Prediction(name, rates, features=only(train, scored)))
    return found


def true_rates(recording: Recording) -> list[Prediction]:
    """The rates that the data were drawn from, where the file has them: the ceiling."""
    if not recording.truth:
        return []
    train, scored = (recording.truth[kind] for kind in (TRAIN, SCORED))
    if not all(np.isfinite(array).all() for array in (train, scored)):
        return []
    return [Prediction("truth", scored, features=only(train, scored))]


def only(train: Array, scored: Array) -> dict[str, Features]:
    """Features without anything to choose."""
    return {"": lambda: (train, scored)}
