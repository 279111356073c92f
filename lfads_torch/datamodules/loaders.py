"""Batches of trials, drawn by index from arrays that lie on the device."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..tuples import SessionBatch
from .batches import SessionTensors, StreamedSession, Wanted, draw
from .rows import Indices, seeded_generator

Batch = dict[int, tuple[SessionBatch, tuple[Tensor, ...]]]
Lengths = Mapping[int, Indices]
"""Bins of each trial, by session and row."""

#: By how much a trial's length is drawn longer, at most, before trials are put in its order.
_SPREAD = 0.05


class Plan(NamedTuple):
    """Batches of an epoch: rows by session (steps, trials), bins of each step where it is cut."""

    rows: dict[int, Tensor]
    n_bins: Sequence[int | None]


def run_seed() -> int:
    """Seed of `pytorch_lightning.seed_everything`, else torch's initial seed."""
    given = os.environ.get("PL_GLOBAL_SEED")
    return int(given) if given else torch.initial_seed()


class TrainLoader:
    """Shuffled training batches of the sessions that are fitted (by default all).

    Each session gives ``batch_size // n_sessions`` trials per step (all it has, if fewer). An
    epoch has as many steps as the session with most batches; shorter ones begin a new
    permutation. What is left over at the end of a permutation waits for another epoch. The order
    depends on nothing but the seed of `pytorch_lightning.seed_everything` (else torch's initial
    seed) and the epoch, so a resumed run draws what an uninterrupted one would.

    With `lengths`, a batch has trials of like lengths and is cut. Then the seed draws which trials
    meet; in which order short and long batches come, and where each is cut, follow from the epoch
    and the data. So sessions of a step have batches of like lengths, and members of a population
    the same shapes as models alone.
    """

    def __init__(
        self,
        sessions: Sequence[SessionTensors | StreamedSession],
        rows: Mapping[int, Indices],
        share: int,
        epoch_of: Callable[[], int],
        lengths: Lengths | None = None,
    ) -> None:
        self._sessions, self._rows, self._epoch_of = sessions, rows, epoch_of
        self._shares = {number: min(share, len(train)) for number, train in rows.items()}
        self._steps = max(len(train) // self._shares[number] for number, train in rows.items())
        self._lengths = lengths
        self._ends = {
            number: _ends(lengths[number][train], self._shares[number])
            for number, train in rows.items()
            if lengths is not None
        }

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[Batch]:
        # Not a generator itself: the epoch is taken when the pass begins, not at its first batch.
        return self._batches(run_seed(), self._epoch_of())

    def _batches(self, seed: int, epoch: int) -> Iterator[Batch]:
        plan = self.plan(seed, epoch)
        yield from draw(
            self._sessions,
            (
                ({number: rows[step] for number, rows in plan.rows.items()}, "train", n_bins)
                for step, n_bins in enumerate(plan.n_bins)
            ),
        )

    def plan(self, seed: int, epoch: int) -> Plan:
        """Draw the batches of an epoch."""
        drawn, ends = {}, []
        order = torch.randperm(self._steps, generator=seeded_generator(epoch))
        for number in self._rows:
            batches = self._passes(seeded_generator(seed, epoch, number), number)
            if self._lengths is None:
                batches = batches[: self._steps]
            else:
                chosen = self._chosen(seeded_generator(epoch, number), len(batches), number)[order]
                batches = batches[chosen]
                ends.append(self._ends[number][(chosen % len(self._ends[number])).numpy()])
            drawn[number] = batches.to(self._sessions[number].row_device)
        return Plan(drawn, np.max(ends, axis=0).tolist() if ends else [None] * self._steps)

    def _passes(self, generator: torch.Generator, number: int) -> Tensor:
        """Draw as many permutations as an epoch takes, in batches, by length where grouped."""
        rows, share = torch.from_numpy(self._rows[number]), self._shares[number]
        whole = len(rows) // share * share
        passes = [
            torch.randperm(len(rows), generator=generator)[:whole]
            for _ in range(math.ceil(self._steps * share / whole))
        ]
        if self._lengths is not None:
            lengths = torch.from_numpy(self._lengths[number])[rows]
            # In the order of nothing but their lengths, the same trials would meet in every epoch.
            longer = 1 + _SPREAD * torch.rand(len(passes), whole, generator=generator).double()
            drawn = zip(passes, longer, strict=True)
            passes = [order[(lengths[order] * factor).argsort()] for order, factor in drawn]
        return rows[torch.cat(passes)].view(-1, share)

    def _chosen(self, generator: torch.Generator, n_batches: int, number: int) -> Tensor:
        """Return which batches of a session's passes an epoch takes, from the shortest on."""
        per_pass = len(self._ends[number])
        # Which are left out of the last pass is drawn, or long trials would be seen less often.
        last = torch.randperm(per_pass, generator=generator) + n_batches - per_pass
        chosen = torch.cat([torch.arange(n_batches - per_pass), last])[: self._steps]
        return chosen[(chosen % per_pass).argsort(stable=True)]


def _ends(lengths: Indices, share: int) -> Indices:
    """Return the bins that no trial of a pass exceeds, batch by batch, whatever is drawn."""
    # A trial at place i of a pass has at most (1 + spread) times the length at place i in order of
    # length: else i + 1 others would stand before it. The trials left over may be the shortest.
    longest = np.sort(lengths)[len(lengths) % share + share - 1 :: share]
    ends = np.floor(longest * (1 + _SPREAD) + 1e-6)
    return np.minimum(ends, lengths.max()).astype(np.int64)


class OrderedLoader:
    """Each trial of some splits once, in order; made by `BasicDataModule.split_loader`.

    `splits` are pairs of a split and its rows by session; a step takes `share` trials of each. With
    `lengths`, a batch ends with the longest of its trials.
    """

    def __init__(
        self,
        sessions: Sequence[SessionTensors | StreamedSession],
        splits: Sequence[tuple[str, Mapping[int, Indices]]],
        share: int,
        lengths: Lengths | None = None,
    ) -> None:
        self._sessions, self._splits, self._share = sessions, splits, share
        self._lengths = lengths

    def __len__(self) -> int:
        return sum(self._steps(rows) for _, rows in self._splits)

    def _steps(self, rows: Mapping[int, Indices]) -> int:
        return math.ceil(max(map(len, rows.values()), default=0) / self._share)

    def __iter__(self) -> Generator[Batch]:
        return draw(self._sessions, self._wanted())

    def _wanted(self) -> Iterator[Wanted]:
        for split, rows in self._splits:
            for start in range(0, self._steps(rows) * self._share, self._share):
                chosen = {
                    number: row[start : start + self._share]
                    for number, row in rows.items()
                    if start < len(row)
                }
                yield (
                    {
                        number: torch.from_numpy(row).to(self._sessions[number].row_device)
                        for number, row in chosen.items()
                    },
                    split,
                    None
                    if self._lengths is None
                    else max(int(self._lengths[n][row].max()) for n, row in chosen.items()),
                )


def in_length_order(lengths: Indices, rows: Indices, pool: int | None = None) -> Indices:
    """Put rows in the order of their lengths, each `pool` of them by itself (by default all)."""
    starts = range(0, len(rows), pool or max(1, len(rows)))
    pools = [rows[start : start + (pool or len(rows))] for start in starts]
    return np.concatenate([one[np.argsort(lengths[one], kind="stable")] for one in pools])


class SessionLoader:
    """The batches of one session of an `OrderedLoader`, as pairs of a batch and its extras."""

    def __init__(self, loader: OrderedLoader, session: int) -> None:
        self._loader, self._session = loader, session

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Generator[tuple[SessionBatch, tuple[Tensor, ...]]]:
        return (step[self._session] for step in self._loader)
