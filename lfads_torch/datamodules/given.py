"""What a data module is given instead of files: arrays, or a recording in memory to prepare."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from ..data import DataWarning
from ..errors import UserError, unknown


def are_paths(given: Any) -> bool:
    """Return whether these are names of files, not what files hold."""
    if isinstance(given, Mapping) or hasattr(given, "dtype") or hasattr(given, "arrays"):
        return False
    try:
        return all(isinstance(one, str | os.PathLike) for one in given)
    except TypeError:  # an object of a library
        return False


def is_session(given: Any) -> bool:
    """Return whether these are the arrays of a data file, or what `prepare` returned of them."""
    return hasattr(given, "arrays") or (isinstance(given, Mapping) and "train_encod_data" in given)


def memory_sessions(given: Any) -> list[Any]:
    """Return what was given of each session."""
    several = isinstance(given, list | tuple) and all(map(is_session, given))
    return list(given) if several else [given]


def arrays_of(given: Any, prep: Mapping[str, Any], attr_keys: Sequence[str]) -> Mapping[str, Any]:
    """Return the arrays of a session, by the keys of a data file."""
    if not is_session(given):
        from ..prep import PrepOptions, prepare

        legal = [field.name for field in fields(PrepOptions)]
        if strange := [name for name in prep if name not in legal]:
            raise unknown("prep", strange[0], legal)
        given = prepare(given, None, **prep)
        for text in given.warnings:
            warnings.warn(text, DataWarning, stacklevel=4)
    arrays: Mapping[str, Any] = getattr(given, "arrays", given)
    if not arrays:
        raise UserError(f"this was written to {given.path}; give that path.")
    if lacking := [key for key in attr_keys if key not in arrays]:
        raise UserError(f"attr_keys {lacking} are not among the arrays {list(arrays)}.")
    return arrays
