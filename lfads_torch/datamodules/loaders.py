"""Batches of trials, drawn by index from arrays that lie on the device."""

from __future__ import annotations

import math
import os
from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..data import SessionData
from ..tuples import SessionBatch
from .batches import Wanted, draw
from .rows import Indices, seeded_generator

if TYPE_CHECKING:
    from .module import BasicDataModule

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

    Parameters
    ----------
    module : BasicDataModule
    """

    def __init__(self, module: BasicDataModule) -> None:
        self._module = module
        self._numbers = module.fit_numbers()
        share = max(1, module.batch_size // len(self._numbers))
        self._counts = [len(rows["train"]) for rows in module.all_rows()]
        self._shares = [min(share, count) for count in self._counts]
        self._steps = max(self._counts[n] // self._shares[n] for n in self._numbers)

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[Batch]:
        # Not a generator itself: the epoch is taken when the pass begins, not at its first batch.
        return self._batches(run_seed(), self._module.begin_pass())

    def _batches(self, seed: int, epoch: int) -> Iterator[Batch]:
        sessions = self._module.ready_tensors()
        plans = self.plans(seed, epoch)
        yield from draw(
            sessions,
            (
                ({number: plan[step] for number, plan in plans.items()}, "train")
                for step in range(self._steps)
            ),
        )

    def plans(self, seed: int, epoch: int) -> dict[int, Tensor]:
        """Rows of each session that make up the batches of an epoch, shape (steps, trials)."""
        sessions = self._module.ready_tensors()
        all_rows = self._module.all_rows()
        return {
            number: self._plan(
                number, seeded_generator(seed, epoch, number), all_rows[number]["train"]
            ).to(sessions[number].row_device)
            for number in self._numbers
        }

    def _plan(self, number: int, generator: torch.Generator, rows: Indices) -> Tensor:
        """Rows of every step, shape (steps, share)."""
        count, share = self._counts[number], self._shares[number]
        whole = count // share * share
        passes = [
            torch.randperm(count, generator=generator)[:whole].view(-1, share)
            for _ in range(math.ceil(self._steps * share / whole))
        ]
        return torch.from_numpy(rows)[torch.cat(passes)[: self._steps]]


class OrderedLoader:
    """Each trial of some splits once, in order; made by `BasicDataModule.split_loader`.

    Parameters
    ----------
    module : BasicDataModule
    splits : sequence of str
    numbers : sequence of int
        Sessions.
    share : int
        Trials per session and step.
    as_in_file : bool
        Splits as in the file, even where they were redrawn.
    """

    def __init__(
        self,
        module: BasicDataModule,
        splits: Sequence[str],
        numbers: Sequence[int],
        share: int,
        as_in_file: bool = False,
    ) -> None:
        self._module = module
        self._share = share
        all_rows = module.all_rows(as_in_file)
        self._parts = [
            (split, {n: all_rows[n][split] for n in numbers if split in all_rows[n]})
            for split in splits
        ]

    def __len__(self) -> int:
        return sum(self._steps(rows) for _, rows in self._parts)

    def _steps(self, rows: dict[int, Indices]) -> int:
        return math.ceil(max(map(len, rows.values()), default=0) / self._share)

    def __iter__(self) -> Generator[Batch]:
        return draw(self._module.ready_tensors(), self._wanted())

    def _wanted(self) -> Iterator[Wanted]:
        sessions = self._module.ready_tensors()
        for split, rows in self._parts:
            for start in range(0, self._steps(rows) * self._share, self._share):
                yield (
                    {
                        number: torch.from_numpy(row[start : start + self._share]).to(
                            sessions[number].row_device
                        )
                        for number, row in rows.items()
                        if start < len(row)
                    },
                    split,
                )


class SessionTensors:
    """One session's arrays on the device, its splits one after another.

    Parameters
    ----------
    data : SessionData
        On the CPU its arrays are used as they are, without a copy.
    batch_keys : sequence of str
    mask : Tensor of bool, shape (n, T_e, N_e), optional
        Sample-validation mask, True for kept entries.
    """

    def __init__(self, data: SessionData, batch_keys: Sequence[str], mask: Tensor | None) -> None:
        arrays = {name: torch.from_numpy(array) for name, array in data.pooled.items()}
        encod = data.pooled["encod_data"]
        self._window = encod.shape[1:]
        names = ["recon_data", "ext_input", "truth"]
        if not np.shares_memory(encod, data.pooled["recon_data"]):
            names.append("encod_data")
        self._fields = {name: arrays[name] for name in names if name in arrays}
        if mask is not None:
            self._fields["sv_mask"] = mask
        if data.lengths is not None:
            self._fields["lengths"] = torch.from_numpy(data.lengths)
        self._extras = tuple(arrays[name] for name in batch_keys)
        self._has_truth = {s for s, split in data.splits.items() if split.truth is not None}

    @property
    def recon(self) -> Tensor:
        """All trials that are reconstructed."""
        return self._fields["recon_data"]

    @property
    def device(self) -> torch.device:
        """Device that holds the arrays."""
        return self.recon.device

    @property
    def row_device(self) -> torch.device:
        """Device on which rows have to be given."""
        return self.recon.device

    def to(self, device: torch.device) -> None:
        """Move all arrays to a device."""
        self._fields = {name: tensor.to(device) for name, tensor in self._fields.items()}
        self._extras = tuple(tensor.to(device) for tensor in self._extras)

    def batch(self, rows: Tensor, split: str) -> tuple[SessionBatch, tuple[Tensor, ...]]:
        """Copy the given rows; the caller may write into them."""

        def field(name: str, rows: Tensor) -> Tensor | None:
            if name not in self._fields or (name == "truth" and split not in self._has_truth):
                return None
            return self._fields[name].index_select(0, rows)

        batch = SessionBatch.from_rows(field, rows, self._window)
        return batch, tuple(tensor.index_select(0, rows) for tensor in self._extras)
