"""Colours, sizes and small helpers that all figures share."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
P = ParamSpec("P")

BLUE, ORANGE, GREEN, PINK, SKY, AMBER, BLACK, GREY = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#E69F00",
    "#000000",
    "#8C8C8C",
)
PALETTE = (BLUE, ORANGE, GREEN, PINK, SKY, AMBER, BLACK)
MISSING = "#F3D9C8"
STYLE: dict[Any, Any] = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.labelsize": 11,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "white",
    "savefig.dpi": 150,
    "lines.linewidth": 1.6,
}


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw in this module's style and leave the caller's Matplotlib settings alone."""

    @wraps(draw)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with mpl.rc_context(STYLE):
            return draw(*args, **kwargs)

    return wrapper


def as_trials(array: ArrayLike | None) -> FloatArray | None:
    """Return `array` as (trials, time, channels), or None where it is missing or empty."""
    if array is None:
        return None
    data = np.asarray(array, dtype=np.float64)
    data = data[None] if data.ndim == 2 else data
    return data if data.ndim == 3 and data.size else None


def time_edges(n_bins: int, bin_ms: float | int | None) -> tuple[FloatArray, str]:
    """Bin edges and the axis label, in ms where the bin width is known."""
    edges = np.arange(n_bins + 1.0)
    return (edges, "time (bins)") if bin_ms is None else (edges * bin_ms, "time (ms)")


def colour_limits(*arrays: FloatArray | None, share: float = 99.5) -> tuple[float, float]:
    """Colour limits that a few extreme values do not stretch; from 0 where nothing is negative."""
    finite = [a[np.isfinite(a)] for a in arrays if a is not None]
    values = np.concatenate(finite) if finite else np.zeros(0)
    if not values.size:
        return 0.0, 1.0
    low, high = np.percentile(values, [100 - share, share])
    low = 0.0 if values.min() >= 0 else float(low)
    return low, max(float(high), low + 1e-9)


def empty_figure(message: str) -> Figure:
    """Say in a small figure why there is nothing to see."""
    figure = Figure(figsize=(5, 3))
    figure.text(0.5, 0.5, message, ha="center", va="center", color=GREY)
    return figure
