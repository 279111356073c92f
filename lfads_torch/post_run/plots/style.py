"""Colours, sizes and small helpers that all figures share, on light and on dark paper."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar

import matplotlib as mpl
import numpy as np
from cycler import cycler
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure as _Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import ArrayLike, NDArray

from ...errors import UserError

FloatArray = NDArray[np.float64]
P = ParamSpec("P")
F = TypeVar("F", bound=_Figure)


class Figure(_Figure):
    """A figure that a notebook shows, also where nothing has imported pyplot."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=100)
        return buffer.getvalue()


# Okabe & Ito (2008), jfly.uni-koeln.de/color: told apart with any common colour blindness.
BLUE, ORANGE, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
SKY, AMBER, BLACK, GREY = "#56B4E9", "#E69F00", "#000000", "#8C8C8C"
MISSING = "#F3D9C8"


class Look(NamedTuple):
    """Colours for one kind of paper; the hues are those of Okabe & Ito (2008)."""

    name: str = "light"
    # paper, ink, muted, missing: Background, text and truth, what steps back, and missing bins
    paper: str = "#FFFFFF"
    ink: str = BLACK
    muted: str = GREY
    missing: str = MISSING
    blue: str = BLUE
    orange: str = ORANGE
    green: str = GREEN
    pink: str = PINK
    sky: str = SKY
    amber: str = AMBER
    # The end of viridis nearest to the paper is left out, where lines and dots would not stand out
    range: tuple[float, float] = (0.0, 0.9)

    @property
    def palette(self) -> tuple[str, ...]:
        """Colours of categories."""
        return self.blue, self.orange, self.green, self.pink, self.sky, self.amber, self.ink

    @property
    def spikes(self) -> Colormap:
        """Colour map of counts: none is paper."""
        return LinearSegmentedColormap.from_list(f"ink on {self.name}", [self.paper, self.ink])

    @property
    def diverging(self) -> Colormap:
        """Colour map around zero, which is paper."""
        shades = [self.blue, self.paper, self.orange]
        return LinearSegmentedColormap.from_list(f"diverging on {self.name}", shades)

    @property
    def sequence(self) -> Colormap:
        """Colour map of lines and dots that have an order, such as time."""
        shades = colormaps["viridis"](np.linspace(*self.range, 256))
        return LinearSegmentedColormap.from_list(f"viridis on {self.name}", shades)


LOOKS = {
    "light": Look(),
    "dark": Look(
        name="dark",
        paper="#16191F",
        ink="#E8EAED",
        muted="#8F959E",
        missing="#5A3A2E",
        blue="#58A6FF",
        orange="#FF8A4C",
        green="#2EC4A0",
        pink="#E59ACB",
        sky="#A5DBFF",
        amber="#FFC94D",
        range=(0.3, 1.0),
    ),
}
_LOOK: ContextVar[Look] = ContextVar("look", default=LOOKS["light"])

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
    "savefig.dpi": 150,
    "lines.linewidth": 1.6,
}


def look() -> Look:
    """Colours of the figure that is being drawn."""
    return _LOOK.get()


@contextmanager
def paper(name: str) -> Iterator[Look]:
    """Draw on "light" (the default) or "dark" paper within a ``with`` block.

    Raises
    ------
    UserError
        If the paper is unknown.
    """
    if name not in LOOKS:
        raise UserError(f"paper is {name!r}; legal are {', '.join(map(repr, LOOKS))}")
    token = _LOOK.set(LOOKS[name])
    try:
        yield LOOKS[name]
    finally:
        _LOOK.reset(token)


def styled(draw: Callable[P, F]) -> Callable[P, F]:
    """Draw in this module's style and leave the caller's Matplotlib settings alone."""

    @wraps(draw)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> F:
        inks = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
        papers = ("figure.facecolor", "savefig.facecolor", "axes.facecolor")
        colours: dict[Any, Any] = {
            "axes.prop_cycle": cycler(color=look().palette),
            **dict.fromkeys(papers, look().paper),
            **dict.fromkeys(inks, look().ink),
        }
        with mpl.rc_context({**STYLE, **colours}):
            figure = draw(*args, **kwargs)
        for axes in figure.axes if look().name != "light" else ():
            # Ticks are made when the figure is drawn, with the settings of that time.
            axes.tick_params(which="both", colors=look().ink)
        return figure

    return wrapper


def as_trials(array: ArrayLike | None) -> FloatArray | None:
    """Return `array` as (trials, time, channels), or None where it is missing or empty."""
    if array is None:
        return None
    data = np.asarray(array, dtype=np.float64)
    data = data[None] if data.ndim == 2 else data
    return data if data.ndim == 3 and data.size else None


def time_edges(n_bins: int, bin_ms: float | int | None) -> tuple[FloatArray, str]:
    """Return bin edges and the axis label, in ms where the bin width is known."""
    edges = np.arange(n_bins + 1.0)
    return (edges, "time (bins)") if bin_ms is None else (edges * bin_ms, "time (ms)")


def time_centres(n_bins: int, bin_ms: float | int | None) -> tuple[FloatArray, str]:
    """Return bin centres and the axis label, in ms where the bin width is known."""
    edges, label = time_edges(n_bins, bin_ms)
    return (edges[:-1] + edges[1:]) / 2, label


def rate_scale(bin_ms: float | int | None) -> tuple[float, str]:
    """Return the factor from spikes per bin to what is shown, and its unit."""
    return (1.0, "spikes/bin") if bin_ms is None else (1000.0 / bin_ms, "spikes/s")


def colour_limits(*arrays: FloatArray | None, share: float = 99.5) -> tuple[float, float]:
    """Return colour limits, from 0 where nothing is negative.

    Values beyond `share` percent at an end are drawn in its colour.
    """
    # One bin with a burst would otherwise leave all others in the same dark shade; at 99.5 %, one
    # value in 200 is clipped.
    finite = [a[np.isfinite(a)] for a in arrays if a is not None]
    values = np.concatenate(finite) if finite else np.zeros(0)
    if not values.size:
        return 0.0, 1.0
    low, high = np.percentile(values, [100 - share, share])
    low = 0.0 if values.min() >= 0 else float(low)
    return low, max(float(high), low + 1e-9)  # equal limits are an error in Matplotlib


def log_scale(axis: Axes, which: str, *, plain: bool = False) -> None:
    """Make an axis logarithmic, its limits known, with labels that do not run into each other.

    With `plain`, or within a decade, labels are numbers (200), not powers (2 × 10²).
    """
    (axis.set_xscale if which == "x" else axis.set_yscale)("log")
    side = axis.xaxis if which == "x" else axis.yaxis
    low, high = np.sort(np.abs(side.get_view_interval()))
    decades = np.log10(high / max(low, 1e-300))
    side.set_minor_formatter(NullFormatter())
    # Ticks of a linear axis would crowd at the upper end of a whole decade.
    is_narrow = bool(decades < 0.8)
    if is_narrow:
        side.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    else:
        steps = (1.0, 3.0) if decades < 2 else (1.0,)
        side.set_major_locator(LogLocator(subs=steps, numticks=7))
    if plain or (is_narrow and low >= 1e-3):
        side.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.12g}"))


def empty_figure(message: str) -> Figure:
    """Say in a small figure why nothing can be drawn."""
    figure = Figure(figsize=(5, 3), facecolor=look().paper)
    figure.text(0.5, 0.5, message, ha="center", va="center", color=look().muted, wrap=True)
    return figure


def evenly(n: int, n_chosen: int) -> list[int]:
    """Return some of the indices below `n`, evenly spaced, the first and the last among them."""
    return np.unique(np.linspace(0, n - 1, min(n, n_chosen)).astype(int)).tolist()


def principal_axes(rows: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return the mean of some rows, their principal axes, and each one's share of the variance."""
    centre = rows.mean(axis=0)
    # Singular values of the rows, since those of a covariance are squared, and so is the rounding.
    spread, axes = np.linalg.svd(rows - centre, full_matrices=False)[1:]
    # The floor makes rows that are all alike shares of 0, not NaN.
    return centre, axes, spread**2 / max(float((spread**2).sum()), 1e-300)


def heatmap(
    axis: Axes,
    values: FloatArray,
    edges: FloatArray,
    colours: str | Colormap,
    limits: tuple[float, float],
) -> AxesImage:
    """Draw rows, numbered from 0 and the first one on top, over time."""
    # What is missing is masked and shows another colour behind it: 0 would pass for data.
    axis.set_facecolor(look().missing)
    return axis.imshow(
        np.ma.masked_invalid(values),
        aspect="auto",
        interpolation="nearest",  # no blur: a bin is a bin
        cmap=colours,
        vmin=limits[0],
        vmax=limits[1],
        extent=(float(edges[0]), float(edges[values.shape[1]]), len(values) - 0.5, -0.5),
    )
