"""Where the trials of a file lie in the recording, and what kind of split that makes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .validate import SPLITS

Array = NDArray[Any]

POSITION_KEYS = ("chop_start", "window_start", "inds", "trial")
"""Keys, without their split, that say where a trial lies; the first that all splits have."""

# Of trials drawn at random, 20 % for validation, two thirds lie between two that train; of blocks
# of several trials none do.
_INTERLEAVED = 0.1


class Order(NamedTuple):
    """Where trials lie: the key that says so (None for the file's order), positions by split."""

    key: str | None
    positions: dict[str, Array]


class SplitKind(NamedTuple):
    """How a split lies to the training trials."""

    name: str  # "chronological", "blocks", "interleaved" or "unknown"
    between: float  # share of its trials whose neighbours in time on both sides are training trials

    @property
    def text(self) -> str:
        """What a reader of scores has to know."""
        if self.name == "chronological":
            return "chronological: all of it was recorded after what trained"
        if self.name == "blocks":
            return "blocks: stretches of the same recording, between others that trained"
        if self.name == "interleaved":
            return (
                f"interleaved: {self.between:.0%} of its trials lie between two that "
                "trained, so scores say nothing of later data (`lfads split`, `lfads prep --split`)"
            )
        return "unknown: the file does not say where its trials lie in the recording"


def read_order(sizes: Mapping[str, int], keys: Any, read: Callable[[str], Array]) -> Order:
    """Return where trials lie; `sizes` are the trials of each split, `read` reads a key."""
    for name in POSITION_KEYS:
        if all(f"{split}_{name}" in keys for split in sizes):
            positions = {split: np.asarray(read(f"{split}_{name}")) for split in sizes}
            if all(
                values.shape == (sizes[split],)
                and values.dtype.kind in "iuf"
                and np.isfinite(values).all()
                for split, values in positions.items()
            ):
                return Order(name, positions)
    first, places = 0, {}
    for split, n in sizes.items():
        places[split] = first + np.arange(n)
        first += n
    return Order(None, places)


def split_kind(order: Order, split: str) -> SplitKind:
    """Return how a split lies to training trials, from the positions of all splits."""
    if order.key is None or split == "train" or not {"train", split} <= set(order.positions):
        return SplitKind("unknown", float("nan"))
    train, scored = order.positions["train"], order.positions[split]
    if not (len(train) and len(scored)):
        return SplitKind("unknown", float("nan"))
    places = np.concatenate(list(order.positions.values()))
    labels = np.repeat(
        [SPLITS.index(name) for name in order.positions],
        [len(values) for values in order.positions.values()],
    )
    labels = labels[np.argsort(places, kind="stable")]
    trains = np.concatenate([[False], labels == 0, [False]])
    between = float((trains[:-2] & trains[2:])[labels == SPLITS.index(split)].mean())
    if scored.min() > train.max():
        return SplitKind("chronological", between)
    return SplitKind("interleaved" if between > _INTERLEAVED else "blocks", between)
