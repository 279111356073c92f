"""Spike times of all units in one list, sorted by unit without holding them all in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from typing import Any

import numpy as np

from ...data.stored import StoredArray, part
from ...errors import DataError
from ..binning import Array
from .recording import AnyArray
from .tree import as_column

_IN_MEMORY = 1 << 23  # spikes (64 MB) that are kept before a temporary file takes them


def split_by_index(times: AnyArray, ends: Array) -> list[AnyArray]:
    """Split one long list at the ends that an index column gives (as NWB does)."""
    stops = ends.astype(np.int64)
    if len(stops) and ((np.diff(stops) < 0).any() or stops[-1] > times.shape[0] or stops[0] < 0):
        raise DataError(
            f"The index of the spike times ends at {stops.max()}, the list has {times.shape[0]}; "
            "the file is cut short or damaged."
        )
    starts = [0, *stops[:-1]]
    return [part(times, slice(int(a), int(b))) for a, b in zip(starts, stops, strict=False)]


_PAIR = 1 << 32  # channel and unit of a spike in one number


def pair(channel: Array, unit: Array) -> Array:
    """Return one label for channel and unit of each spike; `unpair` takes a pair apart."""
    if channel.dtype.kind in "SUO" or unit.dtype.kind in "SUO":
        return np.char.add(
            np.char.add(as_column(channel).astype(str), "\t"), as_column(unit).astype(str)
        )
    if any((labels != np.round(labels)).any() for labels in (channel, unit)):
        raise DataError("channels and units of spikes must be whole numbers or words.")
    return channel.astype(np.int64) * _PAIR + unit.astype(np.int64)


def unpair(labels: Array) -> tuple[Array, Array]:
    """Return channels and units of the labels that `pair` makes."""
    if labels.dtype.kind != "U":
        return labels // _PAIR, labels % _PAIR
    pairs = np.array([label.split("\t") for label in labels.tolist()]).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def names_of_pairs(channels: Array, units: Array) -> tuple[Array, Array]:
    """Return names of units, and their order.

    A unit's number is its name where units are numbered through all channels.
    """
    if len(np.unique(units)) == len(units):
        order = np.argsort(units, kind="stable")
        return units[order], order
    names = [f"{a}_{b}" for a, b in zip(channels.tolist(), units.tolist(), strict=True)]
    return np.array(names), np.arange(len(names))


class _Runs:
    """Reader of one unit's spikes: runs of a shared temporary file, or arrays in memory."""

    def __init__(self, file: Any, dtype: np.dtype[Any]) -> None:
        self.file, self.dtype = file, dtype
        self.runs: list[tuple[int, int] | Array] = []  # in the file: first spike and how many

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(len(r) if isinstance(r, np.ndarray) else r[1] for r in self.runs),)

    def read(self, rows: slice) -> Array:
        size, pieces, before = self.dtype.itemsize, [np.empty(0, self.dtype)], 0
        for run in self.runs:
            length = len(run) if isinstance(run, np.ndarray) else run[1]
            a, b = max(rows.start - before, 0), min(rows.stop - before, length)
            if a < b:
                if isinstance(run, np.ndarray):
                    pieces.append(run[a:b])
                else:
                    self.file.seek(size * (run[0] + a))
                    pieces.append(np.frombuffer(self.file.read(size * (b - a)), self.dtype))
            before += length
        return np.concatenate(pieces)


def group_by_unit(pairs: Iterable[tuple[Array, Array]]) -> tuple[list[AnyArray], Array]:
    """Sort spikes by unit; return the times of each unit, in their order, and the units, sorted.

    `pairs` are arrays of one length, block after block: the unit of each spike and its time.
    """
    # A list in order of time mixes all units. Each block of it is sorted by unit and written, and a
    # unit keeps the places of its runs: no spike is read twice, and few are in memory.
    file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the arrays that read it
    units: dict[Any, _Runs] = {}
    written, kept, nameless = 0, 0, 0
    for owner, times in pairs:
        # NaN differs from itself: each would be a unit.
        nameless += int((owner != owner if owner.dtype.kind == "f" else owner == "").sum())
        order = np.argsort(owner, kind="stable")
        # The type stays as it is stored: it says how exact the times are.
        owner, times = owner[order], times[order]
        kept += len(times)
        edges = np.flatnonzero(np.concatenate([[True], owner[1:] != owner[:-1]]))
        for a, b in zip(edges, [*edges[1:], len(owner)], strict=True):
            label = owner[a].item()
            runs = units.setdefault(label, _Runs(file, times.dtype)).runs
            runs.append(times[a:b].copy() if kept <= _IN_MEMORY else (written + int(a), int(b - a)))
        if kept > _IN_MEMORY:
            file.seek(times.itemsize * written)
            file.write(times.tobytes())
            written += len(times)
    if nameless:
        raise DataError(
            f"{nameless} spikes name no unit (NaN or empty); leave them out, or give them one."
        )
    labels = sorted(units)
    return [StoredArray(units[label]) for label in labels], np.array(labels)
