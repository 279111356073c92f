"""Behaviour as a straight line reads it from rates, for a figure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ...data.smoothing import gaussian_smooth
from ...metrics.regression import ridge_by_trials
from .. import plots
from ..evaluation.behavior import SCORED, TRAIN, Recording
from ..evaluation.scoring import ALPHAS
from .pictures import Picture
from .record import RunRecord

_WIDTH = re.compile(r"width ([\d.]+) bins$")


def behavior_pictures(record: RunRecord, recording: Recording) -> Iterator[Picture]:
    """Behaviour decoded from the inferred rates, where the file has behaviour."""
    behavior = recording.behavior
    if not behavior or behavior[SCORED].ndim != 3 or len(recording.sets[SCORED]) != 1:
        return
    rates = [recording.trials[kind]["output_params"] for kind in (TRAIN, SCORED)]
    if not all(np.isfinite(array).any() for array in (*rates, behavior[TRAIN], behavior[SCORED])):
        return  # that rates are not finite is a finding of its own
    names = _column_names(recording)

    def draw() -> Figure:
        return plots.decoded_behavior(
            behavior[SCORED],
            _decode(recording, *rates),
            _from_smoothed(record, recording),
            names=names,
            bin_ms=recording.session.bin_ms,
        )

    caption = (
        "Ridge regression from inferred rates of the same bin, fitted on training trials, shown on "
        "validation trials. R² is over all validation bins."
    )
    yield Picture("behavior", "Behaviour decoded", caption, draw)


def _decode(recording: Recording, train: NDArray[Any], scored: NDArray[Any]) -> NDArray[np.float64]:
    target = recording.behavior[TRAIN].astype(np.float64)
    n_bins = min(recording.n_bins, target.shape[1])
    fit = ridge_by_trials(train[:, :n_bins], target[:, :n_bins], ALPHAS, scaled=True).fit
    return fit(scored[:, :n_bins])


def _from_smoothed(record: RunRecord, recording: Recording) -> NDArray[np.float64] | None:
    """Behaviour decoded from spikes, smoothed as `lfads evaluate` chose; None without scores."""
    choices = record.session_scores(recording).get("choices", {}).get("smoothing", {})
    [sources, *_] = choices.get("behavior_from") or [[]]
    widths = [_WIDTH.match(str(source)) for source in sources]
    if not widths or any("encod_data" not in part for part in recording.trials.values()):
        return None
    columns = []
    for column, width in enumerate(widths):
        if width is None:
            return None
        smooth = (
            gaussian_smooth(recording.trials[kind]["encod_data"], float(width[1]))
            for kind in (TRAIN, SCORED)
        )
        columns.append(_decode(recording, *smooth)[..., column])
    return np.stack(columns, axis=-1)


def _column_names(recording: Recording) -> list[str] | None:
    """Names of the behaviour's columns, from the attribute ``behavior`` of the file."""
    text = recording.session.attrs.get("behavior")
    names = [name.strip() for name in text.split(",")] if isinstance(text, str) else []
    n_columns = recording.behavior[SCORED].shape[2]
    return names[:n_columns] if len(names) >= n_columns else None
