"""Baselines beside the model: the rows that `lfads evaluate --baselines` chooses from.

All but the oracle are fitted to the training trials alone; what there is to choose (a width, a
number of factors) is chosen by cross-validation within them. Whatever is scored on the very data
that were read is inferred without the bin that it is scored on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from ...errors import UserError, one_of
from .behavior import CONDITION_KEYS, Recording
from .conditions import psth, psth_oracle
from .factors import factor_analysis, gpfa
from .fits import Source
from .library import look_up
from .scoring import Prediction
from .smoothed import lagged_ridge, smoothed


class Baseline(NamedTuple):
    """A row of the table."""

    name: str
    # What the table calls it
    title: str
    # None where the data have too few trials or channels for it
    predict: Callable[[Source], Prediction | None]
    needs_conditions: bool = False
    is_default: bool = True
    # Whether it knows what no model may know, so that a model below it is no failure
    is_ceiling: bool = False


BASELINES = {
    baseline.name: baseline
    for baseline in (
        Baseline("smoothing", "smoothed spikes", smoothed),
        Baseline("ridge", "lagged ridge", lagged_ridge, is_default=False),
        Baseline("psth", "PSTH", psth),
        Baseline("psth_oracle", "PSTH oracle", psth_oracle, True, is_ceiling=True),
        Baseline("mint_causal", "library, causal", partial(look_up, causal=True), True, False),
        Baseline("mint", "library", look_up, True, False),
        Baseline("factor_analysis", "factor analysis", factor_analysis),
        Baseline("gpfa", "GPFA", gpfa, is_default=False),
    )
}
"""All rows, by name, in the order of the table."""


def chosen_baselines(choice: bool | Sequence[str]) -> list[str]:
    """Return the names of rows: of all that are computed by default, of none, or those named."""
    if isinstance(choice, bool):
        return [name for name, row in BASELINES.items() if choice and row.is_default]
    names = [one_of("--baselines", name.replace("-", "_"), BASELINES) for name in choice]
    return [name for name in BASELINES if name in names]


def baseline_predictions(
    recording: Recording, choice: bool | Sequence[str] = True
) -> list[Prediction]:
    """Predict by baselines; a row that was named but cannot be computed is an error."""
    source = Source(recording)
    rows = [BASELINES[name] for name in chosen_baselines(choice)]
    if not recording.condition_names:
        lacking = [row.name for row in rows if row.needs_conditions]
        if lacking and not isinstance(choice, bool):
            raise UserError(
                f"{recording.session.path} names no conditions, which --baselines "
                f"{','.join(lacking)} needs; name their key with --condition, or add one of "
                f"{', '.join(CONDITION_KEYS)} to the data file"
            )
        rows = [row for row in rows if not row.needs_conditions]
    predictions = [row.predict(source) for row in rows]
    return [prediction for prediction in predictions if prediction is not None]
