"""Everything that a file holds, as it is stored: for `lfads prep FILE --list` and for errors.

A recording is what some of it means; this is all of it, also what cannot be read, and why.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ...data.find import list_some
from ...data.validate import show_shape
from ..binning import Array

_EXAMPLES = 6
_SMALL = 1 << 20  # entries; the range of a larger array is not looked for


class Member(NamedTuple):
    """A table, column, series or array of a file."""

    name: str
    what: str
    size: str = ""  # or type
    values: str = ""
    hint: str = ""  # the option that takes it, or what makes it readable


def describe_values(column: Array) -> str:
    """Describe the values of an array: the few that it has, or their range."""
    column = np.asarray(column).ravel()
    if column.dtype.kind in "SUO":
        words, counts = np.unique(column.astype(str), return_counts=True)
        shown = [f"{w} ({n})" for w, n in zip(words[:_EXAMPLES], counts, strict=False)]
        return ", ".join(shown) + (f" and {len(words) - _EXAMPLES} more" * (len(words) > _EXAMPLES))
    known = column[np.isfinite(column)] if column.dtype.kind == "f" else column
    missing = f"; {len(column) - len(known)} missing" if len(known) < len(column) else ""
    if not len(known):
        return f"no values{missing}"
    values = np.unique(known)
    if len(values) <= _EXAMPLES:
        return list_some([f"{v:g}" if column.dtype.kind == "f" else v for v in values]) + missing
    return f"{known.min():g} to {known.max():g}{missing}"


def describe_array(name: str, data: Any) -> Member:
    """Describe an array in memory or in its file; a small one with its values."""
    shape, dtype = data.shape, data.dtype
    size = f"{show_shape(shape)} {dtype}"
    if shape is None or dtype.kind not in "buifSU" or np.prod(shape) > _SMALL:
        return Member(name, "array", size)
    try:
        return Member(name, "array", size, describe_values(data[()]))
    except (OSError, RuntimeError) as err:
        return Member(name, "damaged", size, str(err))
