"""A warning of a report."""

from __future__ import annotations

from typing import NamedTuple


class Finding(NamedTuple):
    """One warning.

    Attributes
    ----------
    level : {"problem", "caution", "note"}
        The results are not to be trusted; to be looked at; to be known.
    title, text, advice : str
        What it is, what was found, what to do.
    """

    level: str
    title: str
    text: str
    advice: str = ""


LEVELS = ("problem", "caution", "note")
