"""Which trials train, validate and test: random, balanced over conditions, or by blocks of time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..data.find import list_some
from ..data.validate import SPLITS
from ..errors import UserError, whole
from .binning import Array, Indices
from .chop import check_fractions, draw_blocks, order_in_time

Labels = NDArray[np.int64]
UNUSED = -1
"""Label of a trial that is in no split; the others index `SPLITS`."""

_NAMES = {"train": 0, "valid": 1, "val": 1, "validation": 1, "test": 2, "select": 3}
_NAMES["none"] = UNUSED


def draw_splits(
    n_trials: int,
    *,
    valid_fraction: float = 0.2,
    test_fraction: float = 0.0,
    select_fraction: float = 0.0,
    seed: int = 0,
    strata: ArrayLike | None = None,
    block: int | None = None,
    in_time: bool = False,
) -> Labels:
    """Draw the split of each trial, by its index in `SPLITS`; trials come in order of time.

    With `strata` (the condition of each trial), every split gets its share of each condition; a
    condition of a single trial trains. With `block`, whole blocks of that many trials are drawn,
    one from each of as many stretches of the session, so that neighbours are mostly in the same
    split and slow drift reaches all splits. `in_time` draws nothing: what comes first trains, then
    comes validation, then test.
    """
    check_fractions(valid_fraction, test_fraction, select_fraction)
    least = 2 + (test_fraction > 0) + (select_fraction > 0)
    if n_trials < least:
        raise UserError(f"{n_trials} trial(s) cannot be split; it takes at least {least}.")
    if in_time:
        labels = np.zeros(n_trials, dtype=np.int64)
        for low, high, number in order_in_time(
            n_trials, (valid_fraction, test_fraction, select_fraction)
        ):
            labels[low:high] = number
        return labels
    if strata is not None and block is not None:
        raise UserError("Stratify by condition or split by blocks, not both.")
    if block is not None:
        whole("block (trials)", block, least=1)
        n_blocks = -(-n_trials // block)
        fractions = (valid_fraction, test_fraction, select_fraction)
        return np.repeat(draw_blocks(n_blocks, fractions, seed), block)[:n_trials]
    rng = np.random.default_rng(seed)
    labels = np.zeros(n_trials, dtype=np.int64)
    groups = np.zeros(n_trials, dtype=np.int64)
    if strata is not None:
        groups = np.unique(np.asarray(strata), return_inverse=True)[1].reshape(-1)
        if len(groups) != n_trials:
            raise UserError(f"{len(groups)} conditions for {n_trials} trials; give one for each.")
    # Test first: another valid_fraction leaves the trials that are put aside as they are.
    # What selects is carved out of what would train.
    for number, fraction in ((2, test_fraction), (1, valid_fraction), (3, select_fraction)):
        total = max(1, round(n_trials * fraction)) if fraction else 0
        for group, count in enumerate(_shares(groups, labels, total, rng)):
            free = np.flatnonzero((groups == group) & (labels == 0))
            labels[rng.permutation(free)[:count]] = number
    if not (labels == 1).any():
        raise UserError(
            f"No condition has the 2 trials that it takes to validate ({n_trials} trials of "
            f"{groups.max() + 1} conditions); stratify by something coarser, or not at all."
        )
    return labels


def _shares(groups: Labels, labels: Labels, total: int, rng: np.random.Generator) -> Labels:
    """Return how many trials each group gives, by largest remainders, leaving one to train."""
    sizes = np.bincount(groups)
    left = np.bincount(groups[labels == 0], minlength=len(sizes)) - 1
    quota = sizes * (total / len(groups))
    shares = np.minimum(np.floor(quota).astype(np.int64), left)
    # Equal remainders are drawn, so that the first conditions are not favoured.
    order = np.lexsort([rng.random(len(sizes)), -(quota - np.floor(quota))])
    while shares.sum() < total and (shares < left).any():
        for group in order:
            if shares.sum() < total and shares[group] < left[group]:
                shares[group] += 1
    return shares


def read_split(how: str | None, valid: float, test: float) -> tuple[str | None, float, float]:
    """Read ``last:20%`` and ``last:20%,valid:10%``: a split in order of time and its fractions.

    The last part validates; where ``valid`` is given too, it tests and what comes before validates.
    """
    if how is None or not how.startswith("last:"):
        return how, valid, test
    shares: dict[str, float] = {}
    for part in how.split(","):
        name, _, text = part.strip().partition(":")
        try:
            share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            share = -1.0
        if name not in ("last", "valid") or not 0 < share < 1:
            raise UserError(
                f"--split {how}: {part.strip()!r} is no share of the recording; legal are last:20% "
                "and last:20%,valid:10%"
            )
        shares[name] = share
    return (
        ("time", shares["valid"], shares["last"])
        if len(shares) > 1
        else ("time", shares["last"], 0.0)
    )


def labels_from_column(column: ArrayLike, name: str = "split") -> Labels:
    """Read a split from a column of a file: ``train``, ``val`` or ``valid``, ``test``, ``none``."""
    words = np.array([str(word).strip().lower() for word in np.asarray(column)])
    unknown = sorted(set(words) - set(_NAMES))
    if unknown:
        raise UserError(
            f"Column {name!r} holds {list_some(unknown)}; legal are {', '.join(_NAMES)}. Leave "
            "--split out to draw a split."
        )
    return np.array([_NAMES[word] for word in words], dtype=np.int64)


def count_splits(labels: Labels) -> dict[str, int]:
    """Count the trials of each split that has any."""
    counts = {split: int((labels == number).sum()) for number, split in enumerate(SPLITS)}
    return {split: count for split, count in counts.items() if count}


def conditions_of(
    columns: Mapping[str, Array], names: Sequence[str], rows: Indices
) -> tuple[list[tuple[Any, ...]], Labels]:
    """Return the distinct values of some columns, sorted, and the number of each trial among them.

    The number is -1 where a value is missing (NaN, or empty text).
    """
    values = [columns[name][rows] for name in names]
    # NaN differs from itself: each trial without a value would be a condition.
    known = np.ones(len(rows), dtype=bool)
    for column in values:
        if column.dtype.kind in "fU":
            known &= ~np.isnan(column) if column.dtype.kind == "f" else column != ""
    keys = list(zip(*[column.tolist() for column in values], strict=True))
    conditions = sorted({key for key, ok in zip(keys, known, strict=True) if ok})
    number = {key: i for i, key in enumerate(conditions)}
    return conditions, np.array(
        [number[key] if ok else UNUSED for key, ok in zip(keys, known, strict=True)], dtype=np.int64
    )
