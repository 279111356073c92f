"""Spikes in any order, sorted by unit without holding them all in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from .lazy import Array, LazyArray

_IN_MEMORY = 1 << 23  # spikes (64 MB) that are kept before a temporary file takes them


class _Runs:
    """One unit's spikes: stretches of a shared temporary file (or of arrays in memory)."""

    attrs: Mapping[str, Any]

    def __init__(self, file: Any) -> None:
        self.file, self.attrs = file, {}
        self.runs: list[tuple[int, int] | Array] = []

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(len(r) if isinstance(r, np.ndarray) else r[1] for r in self.runs),)

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.float64)

    def take(self, start: int, stop: int, axis: int = 0) -> Array:
        parts, before = [], 0
        for run in self.runs:
            length = len(run) if isinstance(run, np.ndarray) else run[1]
            a, b = max(start - before, 0), min(stop - before, length)
            if a < b:
                if isinstance(run, np.ndarray):
                    parts.append(run[a:b])
                else:
                    self.file.seek(8 * (run[0] + a))
                    parts.append(np.frombuffer(self.file.read(8 * (b - a)), dtype=np.float64))
            before += length
        return np.concatenate(parts) if parts else np.empty(0)


def group_by_unit(pairs: Iterable[tuple[Array, Array]]) -> tuple[list[LazyArray], Array]:
    """Sort spikes by unit.

    Parameters
    ----------
    pairs : iterable of (units, times)
        Arrays of one length, piece by piece: the unit of each spike (numbers or text) and its time.

    Returns
    -------
    times : list of LazyArray
        Spike times of each unit, in the order in which they came.
    labels : ndarray
        The units, sorted.
    """
    file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the arrays that read it
    units: dict[Any, _Runs] = {}
    written, held = 0, 0
    for owner, times in pairs:
        order = np.argsort(owner, kind="stable")
        owner, times = owner[order], times[order].astype(np.float64)
        held += len(times)
        edges = np.flatnonzero(np.concatenate([[True], owner[1:] != owner[:-1]]))
        for a, b in zip(edges, [*edges[1:], len(owner)], strict=True):
            label = owner[a].item()
            runs = units.setdefault(label, _Runs(file)).runs
            runs.append(times[a:b].copy() if held <= _IN_MEMORY else (written + int(a), int(b - a)))
        if held > _IN_MEMORY:
            file.seek(8 * written)
            file.write(times.tobytes())
            written += len(times)
    labels = sorted(units)
    return [units[label] for label in labels], np.array(labels)
