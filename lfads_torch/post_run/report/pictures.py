"""A figure of a report, before it is drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from matplotlib.figure import Figure


class Picture(NamedTuple):
    """A figure that can be drawn.

    Attributes
    ----------
    key : str
        Short name, for files and anchors.
    title, caption : str
        What it is, and what to see in it.
    draw : callable that returns a Figure
    """

    key: str
    title: str
    caption: str
    draw: Callable[[], Figure]
