"""Stretches of time: first and last second of each, shape (n, 2), in order and apart."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from ..data.find import list_some
from ..errors import DataError
from .binning import Array, Flags, Floats
from .names import BEGINS, ENDS, first_of

# Decimal times are not exact in binary: by this much a window may stick out.
SLACK_S = 1e-6

# Between stretches that are laid out one after another: no behavior with a lag, of some hundred
# milliseconds, comes from another stretch. Whole seconds keep decimal times decimal.
GAP_S = 1.0


def stretches(rows: ArrayLike, what: str, warnings: list[str], *, is_open: bool = False) -> Floats:
    """Put intervals in order and join those that overlap; warn of those that make no sense.

    `what` names them. A missing end (NaN) is taken as without end where `is_open`; other rows
    with a missing value, and rows of no length, are left out. Rows that end before they begin are
    turned round.
    """
    pairs = np.asarray(rows, dtype=np.float64)
    if pairs.size == 0:
        return np.empty((0, 2))
    if pairs.ndim == 2 and pairs.shape[1] != 2 and pairs.shape[0] == 2:
        pairs = pairs.T
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise DataError(f"{what} have shape {pairs.shape}; legal is a start and a stop for each.")
    pairs = pairs.copy()
    if is_open:
        pairs[np.isnan(pairs[:, 1]) & ~np.isnan(pairs[:, 0]), 1] = np.inf
        pairs[np.isnan(pairs[:, 0]) & ~np.isnan(pairs[:, 1]), 0] = -np.inf
    turned = pairs[:, 1] < pairs[:, 0]
    if turned.any():
        warnings.append(
            f"{what} end before they begin in rows {list_some(np.flatnonzero(turned).tolist())} "
            "(counted from 0); they are taken the other way round"
        )
        pairs[turned] = pairs[turned, ::-1]
    empty = ~(pairs[:, 1] > pairs[:, 0])
    if empty.any():
        warnings.append(
            f"{what} have no length or no time in rows "
            f"{list_some(np.flatnonzero(empty).tolist())} (counted from 0); these are left out"
        )
    return join(pairs[~empty])


def join(pairs: Floats) -> Floats:
    """Put stretches in order and join those that overlap or adjoin."""
    joined: list[list[float]] = []
    for start, stop in pairs[np.argsort(pairs[:, 0], kind="stable")].tolist():
        if joined and start <= joined[-1][1]:
            joined[-1][1] = max(joined[-1][1], stop)
        else:
            joined.append([start, stop])
    return np.array(joined).reshape(-1, 2)


def of_table(table: Mapping[str, Array]) -> Array | None:
    """Return starts and stops of a table of intervals, None where it has no such columns."""
    numeric = {name: column for name, column in table.items() if column.dtype.kind in "uif"}
    begin, end = first_of(BEGINS, numeric), first_of(ENDS, numeric)
    duration = first_of(("duration",), numeric)
    if begin is None or (end is None and duration is None):
        return None
    # Stored types differ between columns; seconds are made of both together later.
    start = numeric[begin]
    stop = numeric[end] if end else start + numeric[duration or ""]
    return np.stack([start, stop], axis=1)


def inside(pieces: Floats, starts: Array, stops: Array, slack_s: float = SLACK_S) -> Flags:
    """Return which intervals lie in one of the stretches, or stick out by at most `slack_s`."""
    if not len(pieces):
        return np.zeros(np.shape(starts), dtype=bool)
    place = np.searchsorted(pieces[:, 0], starts + slack_s, side="right") - 1
    return np.asarray((place >= 0) & (stops <= pieces[place.clip(0), 1] + slack_s))


def touching(pieces: Floats, starts: Array, stops: Array) -> Flags:
    """Return which intervals share time with one of the stretches."""
    if not len(pieces):
        return np.zeros(np.shape(starts), dtype=bool)
    # The last stretch that begins before an interval ends: those before it end earlier.
    place = np.searchsorted(pieces[:, 0], stops - SLACK_S) - 1
    return np.asarray((place >= 0) & (pieces[place.clip(0), 1] > starts + SLACK_S))
