"""Training curves from the CSV log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from ...arguments import LOSS, mode_of
from ...errors import DataError
from ...tables import read_csv_log as read_csv_log
from .groups import colours_of
from .style import Figure, FloatArray, empty_figure, log_scale, look, styled


class _Curve(NamedTuple):
    key: str
    label: str
    colour: str
    dash: str = "-"


class _Panel(NamedTuple):
    title: str
    unit: str
    curves: tuple[_Curve, ...]
    log: bool = False
    robust: bool = True
    gain: bool = False


def _pair(name: str) -> tuple[_Curve, _Curve]:
    return (
        _Curve(f"train/{name}", "train", "blue"),
        _Curve(f"valid/{name}", "valid", "orange"),
    )


_SMOOTHED = _Curve("valid/recon_smth", "valid, smoothed", "ink")
_HELD_OUT = _Curve("valid/co_bps", "valid, held out", "green")
_FORWARD = _Curve("valid/fp_bps", "valid, forward", "pink")
_KL = (
    _Curve("train/wt_kl/ic", "initial condition, train", "blue"),
    _Curve("valid/wt_kl/ic", "initial condition, valid", "sky", "--"),
    _Curve("train/wt_kl/co", "inputs, train", "orange"),
    _Curve("valid/wt_kl/co", "inputs, valid", "pink", "--"),
)
_RAMPS = (
    _Curve("train/wt_kl/ramp", "KL", "blue"),
    _Curve("train/wt_l2/ramp", "L2", "orange", "--"),
)
_PANELS = (
    _Panel("loss", "loss", _pair("loss")),
    _Panel("reconstruction", "reconstruction loss", (*_pair("recon"), _SMOOTHED)),
    _Panel("bits per spike", "bits/spike", (*_pair("bps"), _HELD_OUT, _FORWARD), gain=True),
    _Panel("R² against the truth", "R²", _pair("r2"), gain=True),
    _Panel("behaviour read out", "R²", _pair("behavior_r2"), gain=True),
    # Logarithmic, so that the smaller of the two terms is seen as well.
    _Panel("KL terms", "KL, as weighted in the loss", _KL, log=True),
    _Panel("ramps", "weight", _RAMPS, robust=False),
)


@styled
def training_curves(log: str | Path | Mapping[str, ArrayLike], select_by: str = LOSS) -> Figure:
    """Draw loss, reconstruction, bits per spike, R2, behaviour, KL and ramps over epochs.

    Parameters
    ----------
    log : path or mapping
        A run folder, its ``metrics.csv``, or a table with a column ``epoch`` (a data frame, a dict
        of arrays) in which NaN means "not logged". Panels without any value are left out.
    select_by : str, default="valid/recon_smth"
        Score whose best epoch is marked: that of the checkpoint that was kept as the best.

    Returns
    -------
    Figure
    """
    if isinstance(log, (str, Path)):
        series = read_csv_log(log)
    else:
        columns = {str(key): np.asarray(log[key], dtype=np.float64) for key in log}
        if "epoch" not in columns:
            raise DataError(f"the table has columns {sorted(columns)}; it needs one named 'epoch'")
        epochs = columns.pop("epoch")
        series = {key: (epochs[~np.isnan(v)], v[~np.isnan(v)]) for key, v in columns.items()}
    panels = [p for p in _PANELS if any(_is_drawn(p, series.get(c.key)) for c in p.curves)]
    if not panels:
        return empty_figure("nothing logged yet")
    n_columns = min(3, len(panels))
    n_rows = -(-len(panels) // n_columns)
    figure = Figure(figsize=(4.2 * n_columns, 3.1 * n_rows))
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.08)
    grid = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    for axis, panel in zip(grid, panels, strict=False):
        _draw_panel(axis, panel, series, best_epoch(series, select_by), select_by)
    for axis in grid[len(panels) :]:
        axis.set_visible(False)
    return figure


def _is_drawn(panel: _Panel, curve: tuple[FloatArray, FloatArray] | None) -> bool:
    # A score that the data do not have is logged as NaN; a loss that is NaN has diverged. Terms
    # that are 0 throughout, as KL where only another day's read-in is trained, have no logarithm.
    if curve is None:
        return False
    says = np.isfinite(curve[1]) if panel.gain else curve[1] != 0 if panel.log else curve[0] >= 0
    return bool(says.any())


def best_epoch(
    series: Mapping[str, tuple[FloatArray, FloatArray]], select_by: str = LOSS
) -> int | None:
    """Return the epoch of the best value of a score, or None where it was not logged."""
    epochs, values = series.get(select_by, (np.zeros(0), np.zeros(0)))
    if not np.isfinite(values).any():
        return None
    return int(epochs[(np.nanargmax if mode_of(select_by) == "max" else np.nanargmin)(values)])


def _draw_panel(
    axis: Axes,
    panel: _Panel,
    series: Mapping[str, tuple[FloatArray, FloatArray]],
    best: int | None,
    select_by: str,
) -> None:
    drawn: list[FloatArray] = []
    for curve in panel.curves:
        epochs, values = series.get(curve.key, (np.zeros(0), np.zeros(0)))
        keep = np.isfinite(values) & (values > 0 if panel.log else True)
        if keep.any():
            # A line through a single epoch would not be seen.
            marker, colour = "o" if keep.sum() == 1 else None, getattr(look(), curve.colour)
            style: dict[str, Any] = {"color": colour, "label": curve.label, "marker": marker}
            axis.plot(epochs[keep], values[keep], curve.dash, **style)
            drawn.append(values[keep])
    axis.set(title=panel.title, xlabel="epoch", ylabel=panel.unit)
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    if not drawn:
        place: dict[str, Any] = {"transform": axis.transAxes, "ha": "center"}
        axis.text(0.5, 0.5, "no finite value", color=look().muted, **place)
        return
    if panel.log:
        axis.set_yscale("log")
    elif panel.robust:
        low, high = _limits(drawn, 20, (0.5, 99.5))
        # What lies far below zero is an untrained model; the gain above it is what matters.
        axis.set_ylim(max(low, -0.5 * high) if panel.gain and high > 0 else low, high)
    else:
        axis.set_ylim(-0.05, 1.05)
    # On the curve of the score that chose, or of the same score before it was smoothed.
    keys = [curve.key for curve in panel.curves]
    for key in [k for k in (select_by, select_by.removesuffix("_smth")) if k in keys][:1]:
        at = dict(zip(*series.get(key, ((), ())), strict=True))
        if best is not None and best in at:
            # No line across the panel, which would run through the legend.
            dot: dict[str, Any] = {"color": look().ink, "markersize": 6, "linestyle": "none"}
            axis.plot(best, at[best], "o", label=f"best: {best}", **dot)
    if panel.log:  # room for the legend above the curves
        low, high = axis.get_ylim()
        axis.set_ylim(low, high * (high / low) ** 0.6)
        log_scale(axis, "y")
    axis.legend(loc="upper right" if panel.log else "best")


def _limits(
    curves: Sequence[FloatArray], share: int, percentiles: tuple[float, float]
) -> tuple[float, float]:
    """Return limits that show where curves went, not how high the first epochs began.

    The first of `share` parts of each curve are left out.
    """
    settled = np.concatenate([c[len(c) // share :] for c in curves])
    low, high = np.percentile(settled, percentiles)
    margin = 0.06 * (high - low) or 0.5 * max(abs(high), 1.0)
    return float(low - margin), float(high + margin)


_BESIDE_PANELS = {
    "valid/recon_smth": "validation loss, smoothed",
    "valid/bps": "bits per spike, validation",
    "valid/co_bps": "held-out bits per spike",
    "valid/fp_bps": "forward bits per spike",
    "valid/r2": "R² against the truth",
}


@styled
def training_beside(logs: Mapping[str, Mapping[str, tuple[FloatArray, FloatArray]]]) -> Figure:
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
    panels = [
        key for key in _BESIDE_PANELS if any(_finite(log, key) is not None for log in logs.values())
    ]
    if not panels:
        return empty_figure("nothing logged")
    figure = Figure(figsize=(4.3 * len(panels), 3.7), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, key in zip(axes, panels, strict=True):
        drawn = []
        for name, log in logs.items():
            curve = _finite(log, key)
            if curve is None:
                continue
            marker = "o" if len(curve[0]) == 1 else None
            axis.plot(*curve, color=colours[name], label=name, marker=marker)
            drawn.append(curve[1])
        # The ends of curves decide between runs, so more of the early epochs is cut off than from
        # the curves of a single run, and nothing of the lowest.
        axis.set_ylim(_limits(drawn, 10, (0, 98)))
        axis.set(title=_BESIDE_PANELS[key], xlabel="epoch")
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    handles = {h.get_label(): h for axis in axes for h in axis.get_lines()}
    figure.legend(handles=list(handles.values()), loc="outside lower center", ncols=4)
    return figure


def _finite(
    log: Mapping[str, tuple[FloatArray, FloatArray]], key: str
) -> tuple[FloatArray, FloatArray] | None:
    if key not in log:
        return None
    epochs, values = log[key]
    keep = np.isfinite(values)
    return (epochs[keep], values[keep]) if keep.any() else None
