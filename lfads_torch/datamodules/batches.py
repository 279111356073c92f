"""Sessions that give batches: from memory, or read from the file ahead of time."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from ..data import SPLITS, SessionData, bytes_in_memory, shares
from ..tuples import SessionBatch
from .behavior import KEY, splits_with
from .rows import seeded_generator

T = TypeVar("T")
Draw = tuple[SessionBatch, tuple[Tensor, ...]]
"""Trials of a session: a batch, and the batch keys' tensors."""

#: Batches that are read before they are asked for: one is being used, one waits.
_AHEAD = 2
#: Entries of a mask that are drawn at a time.
_DRAWN = 1 << 20


def ahead(jobs: Iterable[Callable[[], T]], n_ahead: int = _AHEAD) -> Generator[T]:
    """Do jobs in order in a thread of their own, a few before their results are asked for.

    The thread ends with the last job, with an exception of a job (which is raised here), and when
    the iterator is closed or dropped.
    """
    waiting: deque[Future[T]] = deque()
    pool = ThreadPoolExecutor(1, thread_name_prefix="lfads-read")
    try:
        for job in jobs:
            waiting.append(pool.submit(job))
            if len(waiting) > n_ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class SessionDataset(Dataset[Any]):
    """The trials of one session, one by one.

    Parameters
    ----------
    model_tensors : SessionBatch
        All trials.
    extra_tensors : sequence of Tensor
        Further tensors, a row for each trial.
    """

    def __init__(self, model_tensors: SessionBatch, extra_tensors: Sequence[Tensor] = ()) -> None:
        self.model_tensors = model_tensors
        self.extra_tensors = tuple(extra_tensors)

    def __getitem__(self, index: Any) -> Draw:
        batch = self.model_tensors.mapped(lambda tensor: tensor[index])
        return batch, tuple(tensor[index] for tensor in self.extra_tensors)

    def __len__(self) -> int:
        return len(self.model_tensors.encod_data)


class PackedMask:
    """A sample-validation mask at one bit per entry, the same that `sv_mask` draws."""

    def __init__(
        self, session: SessionData, rate: float, seed: Sequence[int], n_spared: int
    ) -> None:
        self._shape = session.pooled["encod_data"].shape[1:]
        n_bins, n_channels = self._shape
        step = max(1, _DRAWN // (n_bins * n_channels))
        parts: list[NDArray[np.uint8]] = []
        for split, data in session.splits.items():
            generator = seeded_generator(*seed, SPLITS.index(split))
            for start in range(0, data.n_trials, step):
                n = min(step, data.n_trials - start)
                kept = torch.rand((n, n_bins, n_channels), generator=generator) >= rate
                kept[:, :n_spared] = True
                parts.append(np.packbits(kept.numpy().reshape(n, -1), axis=1))
        self._bits = np.concatenate(parts)

    def rows(self, rows: NDArray[np.int64]) -> Tensor:
        """Unpack the mask of some trials, shape (trials, T_e, N_e)."""
        n_bins, n_channels = self._shape
        flat = np.unpackbits(self._bits[rows], axis=1, count=n_bins * n_channels)
        return torch.from_numpy(flat.view(np.bool_)).reshape(-1, n_bins, n_channels)


def _cut(array: Tensor, n_bins: int | None) -> Tensor:
    """Leave out the bins from `n_bins` on, of arrays that have bins."""
    return array if n_bins is None or array.ndim < 3 else array[:, :n_bins]


class _Extras:
    """The batch keys of a session; behaviour among them travels in the batch, too."""

    def __init__(self, data: SessionData, batch_keys: Sequence[str]) -> None:
        self._splits = splits_with(data)
        self._number = batch_keys.index(KEY) if self._splits else 0

    def joined(
        self, batch: SessionBatch, extras: tuple[Tensor, ...], split: str, n_bins: int | None
    ) -> Draw:
        """Return a batch, with the behaviour of its trials where the split has it, and extras."""
        if split in self._splits:
            behavior = _cut(extras[self._number], n_bins)
            batch.behavior = behavior.to(batch.recon_data.dtype).contiguous()
        return batch, extras


def _per_trial(data: SessionData, train: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """Return bins of all trials, and each trial's over the mean of the training trials."""
    if data.lengths is None:
        return {}
    share = data.lengths / data.lengths[train].mean()
    return {"lengths": data.lengths, "share": share.astype(np.float32)}


class SessionTensors:
    """One session's arrays on the device, its splits one after another.

    `train` are the rows of the training trials.
    """

    def __init__(
        self,
        data: SessionData,
        batch_keys: Sequence[str],
        mask: Tensor | None,
        train: NDArray[np.int64],
    ) -> None:
        arrays = {name: torch.from_numpy(array) for name, array in data.pooled.items()}
        encod = data.pooled["encod_data"]
        self._window = encod.shape[1:]
        names = ["recon_data", "ext_input", "truth"]
        if not shares(encod, data.pooled["recon_data"]):
            names.append("encod_data")
        self._fields = {name: arrays[name] for name in names if name in arrays}
        if mask is not None:
            self._fields["sv_mask"] = mask
        for name, array in _per_trial(data, train).items():
            self._fields[name] = torch.from_numpy(array)
        self._extras = tuple(arrays[name] for name in batch_keys)
        self._join = _Extras(data, batch_keys).joined
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

    def batch(self, rows: Tensor, split: str, n_bins: int | None = None) -> Draw:
        """Copy the given rows, up to bin `n_bins`; the caller may write into them."""
        lacks = _lacking(split, split in self._has_truth, n_bins)

        def field(name: str, rows: Tensor) -> Tensor | None:
            if name not in self._fields or name in lacks:
                return None
            return _cut(self._fields[name], n_bins).index_select(0, rows)

        batch = SessionBatch.from_rows(field, rows, _cut_window(self._window, n_bins))
        extras = tuple(tensor.index_select(0, rows) for tensor in self._extras)
        return self._join(batch, extras, split, n_bins)


class StreamedSession:
    """One session whose trials are read from its file, batch by batch.

    It stands where a `SessionTensors` would, and gives the same batches.
    """

    def __init__(
        self,
        data: SessionData,
        batch_keys: Sequence[str],
        mask: PackedMask | None,
        train: NDArray[np.int64],
    ) -> None:
        self._arrays: dict[str, Any] = {
            "recon_data": data.pooled["recon_data"],
            **{name: data.pooled[name] for name in ("ext_input", "truth") if name in data.pooled},
        }
        encod = data.pooled["encod_data"]
        self._window = encod.shape[1:]
        if not shares(encod, data.pooled["recon_data"]):
            self._arrays["encod_data"] = encod
        self._extras = tuple(data.pooled[name] for name in batch_keys)
        self._join = _Extras(data, batch_keys).joined
        self._has_truth = {s for s, split in data.splits.items() if split.truth is not None}
        self._arrays |= _per_trial(data, train)
        self._mask = mask
        self.device = torch.device("cpu")

    #: Where rows have to be given.
    row_device = torch.device("cpu")

    def to(self, device: torch.device) -> None:
        """Give batches on this device from now on."""
        self.device = device

    def read(self, rows: Tensor, split: str, n_bins: int | None = None) -> Draw:
        """Read trials into memory; on the way to a GPU, into pinned memory."""
        chosen, lacks = rows.numpy(), _lacking(split, split in self._has_truth, n_bins)

        def field(name: str, _: Tensor) -> Tensor | None:
            if name == "sv_mask" and self._mask is not None:
                return _cut(self._mask.rows(chosen), n_bins).contiguous()
            if name not in self._arrays or name in lacks:
                return None
            return _cut(torch.from_numpy(self._arrays[name][chosen]), n_bins).contiguous()

        batch = SessionBatch.from_rows(field, rows, _cut_window(self._window, n_bins))
        extras = tuple(torch.from_numpy(array[chosen]) for array in self._extras)
        draw = self._join(batch, extras, split, n_bins)
        return draw if self.device.type != "cuda" else _each(Tensor.pin_memory, *draw)

    def deliver(self, draw: Draw) -> Draw:
        """Move what was read to the device."""
        if self.device.type == "cpu":
            return draw
        return _each(lambda tensor: tensor.to(self.device, non_blocking=True), *draw)

    def batch(self, rows: Tensor, split: str, n_bins: int | None = None) -> Draw:
        """Read the given rows, up to bin `n_bins`; the caller may write into them."""
        return self.deliver(self.read(rows.cpu(), split, n_bins))


def _lacking(split: str, has_truth: bool, n_bins: int | None) -> set[str]:
    """Name the fields that a batch has not, though the session may have them."""
    # The trials' shares are for training batches of like lengths, which are those that are cut.
    is_grouped = split == "train" and n_bins is not None
    return {name for name, has in (("truth", has_truth), ("share", is_grouped)) if not has}


def _cut_window(window: tuple[int, int], n_bins: int | None) -> tuple[int, int]:
    return window if n_bins is None else (min(window[0], n_bins), window[1])


def _each(act: Callable[[Tensor], Tensor], batch: SessionBatch, extras: tuple[Tensor, ...]) -> Draw:
    return batch.mapped(act), tuple(map(act, extras))


Wanted = tuple[dict[int, Tensor], str, int | None]
"""Rows by session of one step, their split, and the bins to which they are cut, if they are."""


def draw(sessions: Sequence[Any], wanted: Iterable[Wanted]) -> Generator[dict[int, Draw]]:
    """Yield the batches of some steps; what has to be read from files is read ahead."""
    if not any(isinstance(own, StreamedSession) for own in sessions):
        for rows, *how in wanted:
            yield {number: sessions[number].batch(own, *how) for number, own in rows.items()}
        return

    def job(rows: dict[int, Tensor], *how: Any) -> Callable[[], tuple[Any, dict[int, Draw]]]:
        streamed = {n: own for n, own in rows.items() if isinstance(sessions[n], StreamedSession)}
        return lambda: (
            (rows, how),
            {n: sessions[n].read(own, *how) for n, own in streamed.items()},
        )

    with contextlib.closing(ahead(job(*step) for step in wanted)) as done:
        for (rows, how), read in done:
            yield {
                n: sessions[n].deliver(read[n]) if n in read else sessions[n].batch(own, *how)
                for n, own in rows.items()
            }


def plan_memory(
    paths: Sequence[Path], batch_keys: Sequence[str], sv_rate: float, bound: float
) -> list[bool]:
    """Return which sessions are held in memory: the smallest, as many as `bound` bytes allow."""
    needed = [bytes_in_memory(path, batch_keys, masked=sv_rate > 0) for path in paths]
    held, left = [False] * len(paths), bound
    for number in sorted(range(len(paths)), key=needed.__getitem__):
        left -= needed[number]
        held[number] = left >= 0
    return held
