"""Several runs in the same axes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .groups import colours_of
from .style import FloatArray, empty_figure, styled

Log = Mapping[str, tuple[FloatArray, FloatArray]]

PANELS = {
    "valid/recon_smth": "validation loss, smoothed",
    "valid/bps": "bits per spike, validation",
    "valid/co_bps": "held-out bits per spike",
    "valid/fp_bps": "forward bits per spike",
    "valid/r2": "R² against the truth",
}


@styled
def training_beside(logs: Mapping[str, Log]) -> Figure:
    """Draw the validation curves of several runs over each other.

    Parameters
    ----------
    logs : dict of str to log
        By the run's name, as `read_csv_log` returns them.

    Returns
    -------
    Figure
        A panel for each score that a run logged. Early epochs are cut off where they would
        flatten all that follows.
    """
    colours = dict(zip(logs, colours_of(len(logs)), strict=True))
    panels = [key for key in PANELS if any(_finite(log, key) is not None for log in logs.values())]
    if not panels:
        return empty_figure("nothing logged")
    figure = Figure(figsize=(4.3 * len(panels), 3.7), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, key in zip(axes, panels, strict=True):
        settled = []
        for name, log in logs.items():
            curve = _finite(log, key)
            if curve is None:
                continue
            marker = "o" if len(curve[0]) == 1 else None
            axis.plot(*curve, color=colours[name], label=name, marker=marker)
            settled.append(curve[1][len(curve[1]) // 10 :])
        low, high = np.percentile(np.concatenate(settled), [0, 98])
        margin = 0.06 * (high - low) or 0.5 * max(abs(float(high)), 1.0)
        axis.set_ylim(float(low - margin), float(high + margin))
        axis.set(title=PANELS[key], xlabel="epoch")
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    handles = {h.get_label(): h for axis in axes for h in axis.get_lines()}
    figure.legend(handles=list(handles.values()), loc="outside lower center", ncols=4)
    return figure


def _finite(log: Log, key: str) -> tuple[FloatArray, FloatArray] | None:
    if key not in log:
        return None
    epochs, values = log[key]
    keep = np.isfinite(values)
    return (epochs[keep], values[keep]) if keep.any() else None
