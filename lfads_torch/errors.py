"""Errors meant for people, and the checks of arguments that raise them.

Each message says what was found, what is legal and what to change.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any


class UserError(ValueError):
    """A mistake that the user can correct; the command line prints it without a traceback."""


class DataError(UserError):
    """A data file, or the numbers in it, cannot be used as they are."""


class ConfigError(UserError):
    """A configuration key, ``_target_`` or argument is not legal."""


class WriteError(UserError):
    """A file or folder cannot be written."""


class DivergedError(UserError):
    """Training reached a loss that is NaN or infinite."""


@contextmanager
def explained(warnings: Iterable[str], notes: Iterable[str] = ()) -> Iterator[None]:
    """Add what was noticed meanwhile to an error that passes: it often is the cause.

    Tracebacks show it below the error, the command line prints it first.
    """
    try:
        yield
    except UserError as error:
        for text in (*notes, *map("warning: {}".format, warnings)):
            if text.removeprefix("warning: ") not in str(error):
                error.add_note(text)
        raise


class DataWarning(UserWarning):
    """Something legal in the data that deserves a second look."""


def number(
    name: str,
    value: Any,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> float:
    """Return a finite number within its limits, or raise `ConfigError`.

    `least` and `most` are legal themselves; `above` and `below` are not.
    """
    # One wording for all numbers, so that a user learns to read it once.
    low = f">= {least:g}" if least is not None else f"> {above:g}" if above is not None else ""
    high = f"<= {most:g}" if most is not None else f"< {below:g}" if below is not None else ""
    is_legal = (
        _is_finite(value)
        and (least is None or value >= least)
        and (above is None or value > above)
        and (most is None or value <= most)
        and (below is None or value < below)
    )
    if not is_legal:
        limits = " and ".join(filter(None, [low, high]))
        raise ConfigError(
            f"{name} is {value!r}; legal are {f'numbers {limits}' if limits else 'finite numbers'}"
        )
    return float(value)


def whole(name: str, value: Any, *, least: int | None = None, most: int | None = None) -> int:
    """Return a whole number within its limits, or raise `ConfigError`; 3.0 counts as 3."""
    is_whole = _is_finite(value) and float(value).is_integer()
    too_low = is_whole and least is not None and value < least
    if not is_whole or too_low or (most is not None and value > most):
        low = "" if least is None else f" >= {least}"
        high = "" if most is None else f" <= {most}"
        limits = " and".join(filter(None, [low, high]))
        raise ConfigError(f"{name} is {value!r}; legal are whole numbers{limits}")
    return int(float(value)) if not isinstance(value, Integral) else int(value)


def _is_finite(value: Any) -> bool:
    # YAML reads `on` and `yes` as true, which Python counts as 1: a switch is no number.
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def fraction(name: str, value: Any) -> float:
    """Return a number from 0 to 1, or raise `ConfigError`."""
    return number(name, value, least=0, most=1)


def one_of(name: str, value: Any, legal: Iterable[Any]) -> Any:
    """Return a value that is one of the legal ones, or raise `ConfigError`."""
    options = list(legal)
    if value not in options:
        raise ConfigError(
            f"{name} is {value!r}; {did_you_mean(str(value), map(str, options), limit=40)}"
        )
    return value


def unknown(name: str, value: Any, legal: Iterable[str], *, limit: int = 40) -> ConfigError:
    """Return the error for a name that does not exist; `name` says where it was looked for."""
    return ConfigError(f"{name} has no {value}; {did_you_mean(str(value), legal, limit=limit)}")


def nearest(name: str, legal: Iterable[str], *, most: int = 3, cutoff: float = 0.6) -> list[str]:
    """Return the legal names that are spelt most like a name, the nearest first."""
    return difflib.get_close_matches(name, sorted(set(legal)), n=most, cutoff=cutoff)


def did_you_mean(name: str, legal: Iterable[str], *, limit: int = 12) -> str:
    """Return "did you mean ...?" for a misspelt name, or at most `limit` legal names."""
    options = sorted(set(legal))
    if near := nearest(name, options):
        return f"did you mean {' or '.join(near)}?"
    if not options or not limit:
        return ""
    more = f", ... ({len(options)} in all)" if len(options) > limit else ""
    return f"legal: {', '.join(options[:limit])}{more}"
