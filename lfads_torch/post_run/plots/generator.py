"""The generator as a dynamical system: fixed points in state space, and eigenvalues there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D
from matplotlib.patches import Circle
from numpy.typing import ArrayLike

from .style import (
    Figure,
    FloatArray,
    as_trials,
    empty_figure,
    log_scale,
    look,
    principal_axes,
    styled,
)

if TYPE_CHECKING:
    from ..dynamics import FixedPoints

_MAX_POINTS = 5
_SHOWN = 0.5
"""Modulus of the eigenvalue below which a mode is gone within two bins and not drawn."""


@styled
def fixed_points(
    points: FixedPoints,
    states: ArrayLike,
    *,
    bin_ms: float | int | None = None,
    max_trials: int = 40,
    max_points: int = _MAX_POINTS,
) -> Figure:
    """Draw fixed points among the states that trials visit, and the linear dynamics at them.

    Parameters
    ----------
    points : FixedPoints
        Of `lfads_torch.post_run.dynamics.find_fixed_points`.
    states : array, shape (trials, time, states)
        Generator states of trials.
    bin_ms : float, optional
        Bin width; with it time constants are in ms and frequencies in Hz.
    max_trials : int
        Trajectories drawn at most.
    max_points : int
        Points drawn at most, those where most starts ended.

    Returns
    -------
    Figure
        The plane of the states' first two principal components; eigenvalues of the Jacobian with
        the unit circle; frequency and time constant of each mode.
    """
    visited = as_trials(states)
    if visited is None or not np.isfinite(visited).all(axis=-1).any():
        return empty_figure("no generator state to draw")
    shown = points.take(slice(max_points))
    colours = [look().palette[k % 6] for k in range(len(shown.states))]
    figure = Figure(figsize=(12.4, 4.2), layout="constrained")
    axes = figure.subplots(1, 3, width_ratios=(1.25, 1, 1.05))
    _state_space(axes[0], visited, shown, colours, max_trials)
    _spectrum(axes[1], shown.eigenvalues, colours)
    _modes(axes[2], shown, colours, bin_ms)
    handles = [
        Line2D([], [], label=_describe(shown, k), **_marker(shown, k, colour))
        for k, colour in enumerate(colours)
    ]
    if handles:
        more = len(points.states) - len(shown.states)
        title = f"and {more} more points" if more else None
        figure.legend(handles=handles, loc="outside lower center", ncols=3, title=title)
    else:
        axes[1].set_title("no fixed or slow point found")
    return figure


def _describe(points: FixedPoints, k: int) -> str:
    kind = "fixed" if points.is_fixed[k] else "slow"
    n_unstable = int(points.n_unstable[k])
    stability = "stable" if n_unstable == 0 else f"{n_unstable} unstable"
    return f"{k}: {kind}, {stability}"


def _marker(points: FixedPoints, k: int, colour: str) -> dict[str, Any]:
    """Return a dot for a fixed point, a diamond for a slow one; filled where stable."""
    return {
        "color": colour,
        "linestyle": "none",
        "marker": "o" if points.is_fixed[k] else "D",
        "markerfacecolor": colour if points.is_stable[k] else look().paper,
        "markeredgewidth": 2.0,
    }


def _state_space(
    axis: Axes, states: FloatArray, points: FixedPoints, colours: list[str], max_trials: int
) -> None:
    finite = states[np.isfinite(states).all(axis=-1)]
    # The plane of the trials, not that of the points: few points span a plane of their own, in
    # which the trials would be a line.
    centre, basis, share = principal_axes(finite)
    plane = np.zeros((2, states.shape[-1]))
    plane[: min(2, len(basis))] = basis[:2]
    paths = (states[:max_trials] - centre) @ plane.T
    axis.add_collection(
        LineCollection(list(paths), colors=look().muted, linewidths=0.7, alpha=0.55), autolim=True
    )
    axis.autoscale_view()
    box = axis.dataLim
    at = (points.states - centre) @ plane.T
    for k, (place, colour) in enumerate(zip(at, colours, strict=True)):
        axis.plot(*place, markersize=11, zorder=3, **_marker(points, k, colour))
        axis.annotate(str(k), place, xytext=(8, 6), textcoords="offset points", color=colour)
    # Points far outside would shrink what trials do to a speck.
    for low, high, values, limit in (
        (box.x0, box.x1, at[:, 0], axis.set_xlim),
        (box.y0, box.y1, at[:, 1], axis.set_ylim),
    ):
        size = (high - low) or 1.0
        near = values[(values > low - size) & (values < high + size)]
        ends = np.concatenate([[low, high], near])
        limit(float(ends.min() - 0.08 * size), float(ends.max() + 0.08 * size))
    shares = [*share[:2].tolist(), 0.0][:2]
    axis.set(
        xlabel=f"PC 1 ({shares[0]:.0%})",
        ylabel=f"PC 2 ({shares[1]:.0%})",
        title="generator states and fixed points",
    )


def _spectrum(axis: Axes, eigenvalues: Any, colours: list[str]) -> None:
    axis.add_patch(Circle((0, 0), 1, fill=False, color=look().muted, linewidth=1))
    axis.axhline(0, color=look().muted, linewidth=0.6)
    axis.axvline(0, color=look().muted, linewidth=0.6)
    for values, colour in zip(eigenvalues, colours, strict=True):
        axis.plot(values.real, values.imag, "o", color=colour, markersize=4.5, alpha=0.75)
    reach = max(1.0, float(np.abs(eigenvalues).max(initial=0.0))) * 1.08
    axis.set(
        xlim=(-reach, reach), ylim=(-reach, reach), xlabel="real part", ylabel="imaginary part"
    )
    axis.set_box_aspect(1)
    axis.set_title("eigenvalues per bin")


def _modes(axis: Axes, points: FixedPoints, colours: list[str], bin_ms: float | int | None) -> None:
    """Draw frequency against time constant; growing modes are crosses."""
    width, unit = (1.0, "bins") if bin_ms is None else (float(bin_ms), "ms")
    turns = 1.0 if bin_ms is None else 1000.0 / bin_ms
    for k, colour in enumerate(colours):
        constants = points.time_constants()[k] * width
        frequencies = points.frequencies()[k] * turns
        lasting = np.isfinite(constants) & (np.abs(points.eigenvalues[k]) > _SHOWN)
        for marker, size, modes in (("o", 5, constants > 0), ("x", 8, constants < 0)):
            x, y = frequencies[lasting & modes], np.abs(constants[lasting & modes])
            axis.plot(x, y, marker, color=colour, markersize=size, alpha=0.8)
    log_scale(axis, "y", plain=True)
    axis.set(
        xlabel="frequency (turns per bin)" if bin_ms is None else "frequency (Hz)",
        ylabel=f"time constant ({unit})",
        title="modes (crosses grow)",
    )
