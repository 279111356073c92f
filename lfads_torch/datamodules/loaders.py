"""Batches of trials, drawn by index from arrays that lie on the device."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ..tuples import SessionBatch
from .batches import SessionTensors, StreamedSession, Wanted, draw
from .rows import Indices, seeded_generator

Batch = dict[int, tuple[SessionBatch, tuple[Tensor, ...]]]


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
    """

    def __init__(
        self,
        sessions: Sequence[SessionTensors | StreamedSession],
        rows: Mapping[int, Indices],
        share: int,
        epoch_of: Callable[[], int],
    ) -> None:
        self._sessions, self._rows, self._epoch_of = sessions, rows, epoch_of
        self._shares = {number: min(share, len(train)) for number, train in rows.items()}
        self._steps = max(len(train) // self._shares[number] for number, train in rows.items())

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[Batch]:
        # Not a generator itself: the epoch is taken when the pass begins, not at its first batch.
        return self._batches(run_seed(), self._epoch_of())

    def _batches(self, seed: int, epoch: int) -> Iterator[Batch]:
        plans = self.plans(seed, epoch)
        yield from draw(
            self._sessions,
            (
                ({number: plan[step] for number, plan in plans.items()}, "train")
                for step in range(self._steps)
            ),
        )

    def plans(self, seed: int, epoch: int) -> dict[int, Tensor]:
        """Draw the rows of each session that make up an epoch's batches, shape (steps, trials)."""
        plans = {}
        for number, rows in self._rows.items():
            generator = seeded_generator(seed, epoch, number)
            plan = self._plan(generator, rows, self._shares[number])
            plans[number] = plan.to(self._sessions[number].row_device)
        return plans

    def _plan(self, generator: torch.Generator, rows: Indices, share: int) -> Tensor:
        whole = len(rows) // share * share
        passes = [
            torch.randperm(len(rows), generator=generator)[:whole].view(-1, share)
            for _ in range(math.ceil(self._steps * share / whole))
        ]
        return torch.from_numpy(rows)[torch.cat(passes)[: self._steps]]


class OrderedLoader:
    """Each trial of some splits once, in order; made by `BasicDataModule.split_loader`.

    `splits` are pairs of a split and its rows by session; a step takes `share` trials of each.
    """

    def __init__(
        self,
        sessions: Sequence[SessionTensors | StreamedSession],
        splits: Sequence[tuple[str, Mapping[int, Indices]]],
        share: int,
    ) -> None:
        self._sessions, self._splits, self._share = sessions, splits, share

    def __len__(self) -> int:
        return sum(self._steps(rows) for _, rows in self._splits)

    def _steps(self, rows: Mapping[int, Indices]) -> int:
        return math.ceil(max(map(len, rows.values()), default=0) / self._share)

    def __iter__(self) -> Generator[Batch]:
        return draw(self._sessions, self._wanted())

    def _wanted(self) -> Iterator[Wanted]:
        for split, rows in self._splits:
            for start in range(0, self._steps(rows) * self._share, self._share):
                yield (
                    {
                        number: torch.from_numpy(row[start : start + self._share]).to(
                            self._sessions[number].row_device
                        )
                        for number, row in rows.items()
                        if start < len(row)
                    },
                    split,
                )


class SessionLoader:
    """The batches of one session of an `OrderedLoader`, as pairs of a batch and its extras."""

    def __init__(self, loader: OrderedLoader, session: int) -> None:
        self._loader, self._session = loader, session

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Generator[tuple[SessionBatch, tuple[Tensor, ...]]]:
        return (step[self._session] for step in self._loader)
