"""Continuous recordings cut into overlapping windows.

A recording of n bins is split into blocks (train, valid, test), or in order of time, and every
block is cut into its windows, so that no window shares a bin with a window of another split. The
last window of a block is shifted back to end with it, so that every bin lies in a window. The way
back is in `lfads_torch.prep.merging`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..data.validate import SPLITS
from ..errors import DataError, UserError, one_of, whole
from .binning import Array, Indices
from .merging import START_KEY, covered_bins

SPLIT_BY = "split_by"
"""Attribute of a file that was split in order of time: "time"."""

# Windows of a block by default: with fewer, more windows of train and valid are neighbours; with
# more, the splits are spread less evenly over the session.
_BLOCK_WINDOWS = 10


@dataclass(frozen=True)
class ChopPlan:
    """Which windows of a recording go to which split; sizes are bins, as given to `chop_recording`.

    `block` is 0 for a split in order of time. `starts` are the first bins of the windows by split,
    ascending. The last window of a block shares more than `overlap` bins with the one before.
    """

    n_bins: int
    window: int
    overlap: int
    block: int
    guard: int
    seed: int
    starts: dict[str, Indices]

    def keys(self) -> dict[str, Indices]:
        """Return what the data file needs with the windows: ``{split}_chop_start``."""
        return {f"{split}_{START_KEY}": starts for split, starts in self.starts.items()}

    def attributes(self, series: Sequence[str] = ()) -> dict[str, Any]:
        """Return the attributes of the data file; `series` names the arrays that were cut."""
        sizes = ("n_bins", "window", "overlap", "block", "guard", "seed")
        numbers: dict[str, Any] = {f"chop_{name}": int(getattr(self, name)) for name in sizes}
        numbers |= {} if self.block else {SPLIT_BY: "time"}
        return numbers | {"chop_uncovered": self.uncovered(), "chop_series": list(series)}

    def uncovered(self) -> int:
        """Count the bins that lie in no window: guards, gaps, stretches shorter than a window."""
        starts = np.concatenate(list(self.starts.values()))
        return int((~covered_bins(starts, self.window, self.n_bins)).sum())


def chop_recording(
    arrays: Mapping[str, ArrayLike],
    window: int,
    overlap: int,
    *,
    block: int | None = None,
    valid_fraction: float = 0.2,
    test_fraction: float = 0.0,
    guard: int = 0,
    seed: int = 0,
    segments: ArrayLike | None = None,
    by: str = "blocks",
) -> tuple[dict[str, Array], dict[str, Any]]:
    """Cut continuous series into overlapping windows, split by blocks of the recording.

    Parameters
    ----------
    arrays : mapping of str to array, shape (n_bins, ...)
        Series by name, such as ``encod_data``, ``recon_data`` and ``behavior``.
    window, overlap : int
        Bins of a window, and those that it shares with the next one.
    block : int, optional
        Bins of a block, the unit of the split; by default ten windows, fewer in a short
        recording. Long blocks separate train and valid better, short ones spread both more
        evenly.
    valid_fraction, test_fraction : float
        Fractions of the blocks. They are drawn one from each of as many stretches of the
        recording, so that slow drift reaches all splits alike.
    guard : int
        Bins left out on each side of a border between splits; they stay NaN in what is merged.
    seed : int
        Seed of the draw of blocks.
    segments : array of int, shape (n, 2), optional
        First bin and end (exclusive) of the stretches that were recorded without a gap; by
        default one stretch. What lies between them is in no window. See `find_segments`.
    by : {"blocks", "time"}
        "time" takes no blocks: what comes first trains, then comes validation, then test.

    Returns
    -------
    arrays : dict of str to ndarray
        ``{split}_{name}``, shape (windows, window, ...), and ``{split}_chop_start``.
    attributes : dict
        What else `merge_chops` and `lfads merge` need, and how the windows were drawn.

    Raises
    ------
    DataError, UserError
        For sizes and fractions that are out of range or leave a split empty, segments that are out
        of order or all shorter than a window, and series that differ in length.

    Examples
    --------
    >>> spikes = np.ones((1000, 3))
    >>> arrays, attributes = chop_recording({"encod_data": spikes}, 50, 10)
    >>> arrays["train_encod_data"].shape
    (20, 50, 3)
    """
    series = {name: np.asarray(array) for name, array in arrays.items()}
    lengths = {name: array.shape[0] if array.ndim else 0 for name, array in series.items()}
    if not series or 0 in lengths.values() or len(set(lengths.values())) > 1:
        raise DataError(
            f"The arrays have {lengths} rows; legal are series with one row per bin, all of one "
            "length."
        )
    plan = plan_chops(
        next(iter(lengths.values())),
        window,
        overlap,
        block=block,
        valid_fraction=valid_fraction,
        test_fraction=test_fraction,
        guard=guard,
        seed=seed,
        segments=segments,
        by=by,
    )
    chopped = {
        f"{split}_{name}": cut_windows(array, starts, plan.window)
        for split, starts in plan.starts.items()
        for name, array in series.items()
    }
    return chopped | plan.keys(), plan.attributes(list(series))


def plan_chops(
    n_bins: int,
    window: int,
    overlap: int,
    *,
    block: int | None = None,
    valid_fraction: float = 0.2,
    test_fraction: float = 0.0,
    select_fraction: float = 0.0,
    guard: int = 0,
    seed: int = 0,
    segments: ArrayLike | None = None,
    by: str = "blocks",
) -> ChopPlan:
    """Decide which windows go to which split, as `chop_recording`, without the data."""
    window, n_bins = whole("window", window, least=1), whole("n_bins", n_bins, least=1)
    overlap, guard = whole("overlap", overlap, least=0), whole("guard", guard, least=0)
    seed = whole("seed", seed, least=0)
    if overlap >= window:
        raise UserError(
            f"overlap={overlap} bins of a window of {window}; legal is 0 to {window - 1}."
        )
    fractions = (valid_fraction, test_fraction, select_fraction)
    check_fractions(*fractions)
    stretches = _segments(segments, n_bins)
    if one_of("by", by, ("blocks", "time")) == "time":
        if block is not None:
            raise UserError("a split in order of time has no blocks; leave block out")
        block = 0
        blocks, labels = _in_order(stretches, fractions)
    else:
        if block is None:
            smallest = min(fraction for fraction in fractions if fraction)
            block = _default_block(n_bins, window, overlap, smallest)
        block = whole("block", block, least=1)
        if block < window + 2 * guard:
            raise UserError(
                f"block={block} bins do not hold a window of {window} with a guard of {guard} bins "
                f"on both sides; legal is {window + 2 * guard} or more."
            )
        blocks = _blocks(stretches, block, window)
        if not len(blocks):
            raise DataError(
                f"No stretch of the recording ({n_bins} bins) holds a window of {window} bins; "
                "take a shorter window, or join the segments."
            )
        labels = draw_blocks(len(blocks), fractions, seed)
    trimmed = _trim(blocks, labels, guard)
    starts = {
        split: np.concatenate(
            [chop_starts(a, b, window, overlap) for a, b in trimmed[labels == number]]
        )
        for number, split in enumerate(SPLITS)
        if (labels == number).any()
    }
    if empty := [split for split, of_split in starts.items() if not len(of_split)]:
        raise UserError(
            f"no window of {window} bins fits into what is {' and '.join(empty)} of {n_bins} bins "
            f"with a guard of {guard}; take larger fractions, or a shorter window or guard"
        )
    return ChopPlan(n_bins, window, overlap, block, guard, seed, starts)


def chop_starts(start: int, stop: int, window: int, overlap: int) -> Indices:
    """Return the first bins of the windows that cover bins `start` to `stop` (exclusive).

    The last window is shifted back to end at `stop`; a stretch shorter than a window has none.
    """
    if stop - start < window:
        return np.empty(0, dtype=np.int64)
    starts = np.arange(start, stop - window + 1, window - overlap, dtype=np.int64)
    # A shorter last window would need padding. This one shares more bins with its neighbour, which
    # is in the same block and so in the same split.
    if starts[-1] + window < stop:
        starts = np.append(starts, stop - window)
    return starts


def cut_windows(array: ArrayLike, starts: ArrayLike, window: int) -> Array:
    """Copy windows out of a series of n_bins rows, shape (windows, window, ...)."""
    series, first = np.asarray(array), np.asarray(starts, dtype=np.int64)
    if first.size and (first.min() < 0 or first.max() + window > len(series)):
        raise UserError(
            f"windows of {window} bins that start at bins {first.min()} to {first.max()} do not "
            f"lie in a series of {len(series)} bins"
        )
    return np.asarray(series[first[:, None] + np.arange(window)])


def find_segments(observed: ArrayLike) -> Indices:
    """Return first bins and ends (exclusive) of the runs of True, shape (runs, 2)."""
    edges = np.diff(
        np.concatenate([[False], np.asarray(observed, dtype=bool), [False]]).astype(int)
    )
    return np.stack([np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)], axis=1)


def _segments(segments: ArrayLike | None, n_bins: int) -> Indices:
    if segments is None:
        return np.array([[0, n_bins]], dtype=np.int64)
    segments = np.asarray(segments)
    if segments.ndim != 2 or segments.shape[1] != 2 or segments.dtype.kind not in "ui":
        raise DataError(
            f"segments must be whole numbers of shape (n, 2), first bin and end of each; their "
            f"shape is {segments.shape}, their type {segments.dtype}."
        )
    flat = segments.astype(np.int64).ravel()
    if (
        flat.size == 0
        or flat[0] < 0
        or flat[-1] > n_bins
        or (np.diff(flat) < 0).any()
        or (flat[::2] == flat[1::2]).any()
    ):
        raise DataError(
            f"segments are {segments.tolist()[:8]}; legal are stretches that follow one another "
            f"within the recording's {n_bins} bins, each of one bin or more."
        )
    return flat.reshape(-1, 2)


def _blocks(segments: Indices, block: int, window: int) -> Indices:
    """Cut segments into blocks; a rest shorter than a window joins the segment's last block."""
    blocks: list[tuple[int, int]] = []
    for start, stop in segments:
        if stop - start < window:
            continue
        edges = [*range(start, stop, block), stop]
        # A block shorter than a window would have none, and its bins would be in no split.
        if len(edges) > 2 and stop - edges[-2] < window:
            del edges[-2]
        blocks += itertools.pairwise(edges)
    return np.array(blocks, dtype=np.int64).reshape(-1, 2)


def check_fractions(valid: float, test: float, select: float = 0.0) -> None:
    """Raise `UserError` where fractions leave nothing to train or to validate."""
    if not (0 < valid < 1 and 0 <= test < 1 and 0 <= select < 1 and valid + test + select < 1):
        third = f" and select_fraction={select}" if select else ""
        raise UserError(
            f"valid_fraction={valid} and test_fraction={test}{third}; legal are fractions that "
            "leave something for training, valid_fraction above 0."
        )


def _default_block(n_bins: int, window: int, overlap: int, fraction: float) -> int:
    """Return a length that windows tile exactly: ten, or fewer to have blocks for all splits."""
    step, n_blocks = window - overlap, math.ceil(1 / fraction)
    # For a split to have 1/n of the blocks, the recording needs n blocks or more.
    count = (n_bins // n_blocks - overlap) // step
    return step * max(1, min(count, _BLOCK_WINDOWS)) + overlap


def draw_blocks(n_blocks: int, fractions: tuple[float, float, float], seed: int) -> Indices:
    """Draw the split of each block, by its index in `SPLITS`, from the fractions after training's.

    One block is drawn from each of as many stretches, so that slow drift reaches all splits.
    """
    counts = {
        number: round(n_blocks * fraction) or int(fraction > 0)
        for number, fraction in enumerate(fractions, start=1)
    }
    if sum(counts.values()) >= n_blocks:
        valid, test, select = fractions
        third = f", select {select:g}" if select else ""
        raise UserError(
            f"the recording has {n_blocks} block(s), too few for validation {valid:g}, test "
            f"{test:g}{third} and training; make block smaller."
        )
    rng = np.random.default_rng(seed)
    labels = np.zeros(n_blocks, dtype=np.int64)
    for number, count in counts.items():
        free = np.flatnonzero(labels == 0)
        for stretch in np.array_split(free, count) if count else []:
            labels[rng.choice(stretch)] = number
    return labels


def order_in_time(n: int, fractions: tuple[float, float, float]) -> list[tuple[int, int, int]]:
    """Divide n bins or trials in order of time: first, end and split (in `SPLITS`) of each part.

    What selects comes between training and validation; the last part tests.
    """
    valid, test, select = fractions
    shares = [(0, 1 - valid - test - select), (3, select), (1, valid), (2, test)]
    cuts = [round(n * total) for total in itertools.accumulate(share for _, share in shares)]
    parts = zip([0, *cuts], [*cuts[:-1], n], shares, strict=False)
    return [(low, high, number) for low, high, (number, share) in parts if share]


def _in_order(segments: Indices, fractions: tuple[float, float, float]) -> tuple[Indices, Indices]:
    """Divide the bins of all segments in order of time; return stretches and their splits."""
    ends = np.cumsum(segments[:, 1] - segments[:, 0])
    stretches, labels = [], []
    # Bins of the recording that come first, counted without its gaps.
    for low, high, number in order_in_time(int(ends[-1]), fractions):
        for (start, stop), end in zip(segments.tolist(), ends.tolist(), strict=True):
            first = start + max(0, low - (end - (stop - start)))
            last = stop - max(0, end - high)
            if first < last:
                stretches.append((first, last))
                labels.append(number)
    return np.array(stretches, dtype=np.int64), np.array(labels, dtype=np.int64)


def _trim(blocks: Indices, labels: Indices, guard: int) -> Indices:
    """Take `guard` bins off both sides of every border between splits."""
    trimmed = blocks.copy()
    # Blocks on both sides of a gap in the recording do not adjoin: the gap is guard enough.
    border = (labels[1:] != labels[:-1]) & (blocks[1:, 0] == blocks[:-1, 1])
    trimmed[:-1, 1] -= guard * border
    trimmed[1:, 0] += guard * border
    return trimmed
