"""Errors meant for people: each says what was found, what is legal and what to change."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake that the user can mend; the command line prints it without a traceback."""


class DataError(UserError):
    """A data file, or the numbers in it, cannot be used as they are."""


class ConfigError(UserError):
    """A configuration key, ``_target_`` or argument is not legal."""


class DivergedError(UserError):
    """Training reached a loss that is NaN or infinite."""


def did_you_mean(name: str, legal: Iterable[str], *, limit: int = 12) -> str:
    """Return advice on the names near to a misspelt one.

    Parameters
    ----------
    name : str
        What was found.
    legal : iterable of str
        What would have been legal.
    limit : int, default=12
        How many legal names to list where none is near.

    Returns
    -------
    str
        "did you mean ...?" or "legal: ..." or, where nothing is legal, an empty string.
    """
    options = sorted(set(legal))
    near = difflib.get_close_matches(name, options, n=3, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(near)}?"
    if not options:
        return ""
    more = f", ... ({len(options)} in all)" if len(options) > limit else ""
    return f"legal: {', '.join(options[:limit])}{more}"
