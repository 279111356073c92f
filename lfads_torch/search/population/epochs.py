"""An epoch of training and validation, one stack of members after another."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from itertools import pairwise
from threading import Event
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from ...datamodules.batches import ahead
from ...datamodules.loaders import Plan
from ...kernels.likelihood import spike_sums
from ...metrics.accumulate import R2Moments, r2_moments
from ...metrics.epoch import EpochScores
from ...objective import count_batch
from ...seeds import seed_all
from ...tuples import BatchResult, SessionBatch, sessions_of
from .capacity import workers_of
from .draws import Streams, global_generators
from .optimiser import Optimiser
from .steps import ALL, MODEL, NONE, augmented_apart, name_of_failing, run_alone, run_stacked
from .tensors import MemberTensors

Sessions = Mapping[int, SessionBatch]
Scores = dict[str, EpochScores]


class _StoppedError(Exception):
    """Another stack failed."""


class StackedScores(EpochScores):
    """Scores of batches whose numbers and arrays lead with an axis of members."""

    def __init__(self) -> None:
        super().__init__()
        self._sums: dict[tuple[str, int], Tensor] = {}
        self.r2: Any = _StackedMoments()
        self.behavior: Any = _StackedMoments()

    def add_log_rates(
        self, session: int, log_rates: Tensor, counts: Tensor, n_read: int, n_bins_read: int
    ) -> None:
        """Count log rates per bin against spikes, both of shape (c, B, T_r, N_r)."""

        def one(log_rates: Tensor, counts: Tensor) -> dict[str, Tensor]:
            sums: dict[str, Tensor] = {}
            batch: Any = EpochScores()
            batch.bits = {name: _Noted(sums, name) for name in batch.bits}
            batch.add_log_rates(session, log_rates, counts, n_read, n_bins_read)
            return sums

        for name, added in vmap(one)(log_rates, counts).items():
            seen = self._sums.get((name, session))
            self._sums[name, session] = added if seen is None else seen + added

    def members(self, n_members: int) -> Iterable[EpochScores]:
        """Yield each member's scores as a model alone would have them."""
        means = {"terms": self.terms.compute(), "sessions": self.sessions.compute()}
        numbers = [
            (kind, name, value.cpu())
            for kind, group in means.items()
            for name, value in group.items()
        ]
        sums = {at: stacked.cpu() for at, stacked in self._sums.items()}
        moments = [
            (name, s, R2Moments(*(x.cpu() for x in batch)))
            for name in ("r2", "behavior")
            for s, batch in getattr(self, name).batches
        ]
        for k in range(n_members):
            scores = EpochScores()
            for kind, name, value in numbers:
                getattr(scores, kind).add(name, value[k])
            for (name, session), stacked in sums.items():
                scores.bits[name].add_sums(stacked[k], session)
            for name, session, batch in moments:
                getattr(scores, name).add_moments(R2Moments(*(x[k] for x in batch)), session)
            yield scores


class _Noted:
    """Note what a batch adds, in place of `BitsPerSpikeSums`."""

    def __init__(self, sums: dict[str, Tensor], name: str) -> None:
        self._sums, self._name = sums, name

    def update(self, log_rates: Tensor, counts: Tensor, key: int) -> None:
        self._sums[self._name] = spike_sums(log_rates, counts)


class _StackedMoments:
    """Keep moments by batch, in place of `R2Sums`; they are merged in the end."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, R2Moments]] = []

    def update(self, means: Tensor, truth: Tensor, key: int) -> None:
        self.batches.append((key, vmap(r2_moments)(means, truth)))


class Epochs:
    """Trains the members that some tensors hold."""

    def __init__(self, tensors: MemberTensors, optimiser: Optimiser, data: Any) -> None:
        self._tensors, self._optimiser, self._data = tensors, optimiser, data
        self._loader = data.train_dataloader()
        self.n_steps = len(self._loader)
        #: One for each thread: while it runs, a template holds the tensors of its stack.
        self._templates: list[Any] = []

    def first_batch(self) -> Sessions:
        """Return one member's training batch, of all bins."""
        return self._gathered({s: rows[0] for s, rows in self._loader.plan(0, 0).rows.items()})

    def run(self, epoch: int, stacked: str, stack_size: int) -> list[Scores | None]:
        """Train and validate every member, and return its scores by split.

        A member that has diverged and that its modules refuse has None.
        """
        self._optimiser.begin_epoch(epoch)
        if stacked == NONE:
            with global_generators():
                return [self._alone(k, epoch) for k in range(len(self._tensors))]
        device, n_members = self._tensors.device, len(self._tensors)
        workers = workers_of(device, n_members) if stacked == ALL else 1
        stacks = even_stacks(n_members, stack_size, workers)
        workers = min(workers, len(stacks))
        while len(self._templates) < workers:
            self._templates.append(copy.deepcopy(self._tensors.models[0]))
        stop = Event()

        def train(rows: slice, template: Any) -> list[Scores]:
            return self._stack(rows, template, epoch, stacked, stop)

        if workers == 1:
            scores = [train(rows, self._templates[0]) for rows in stacks]
        else:
            scores = _in_threads(train, stacks, self._templates[:workers], stop)
        return [member for stack in scores for member in stack]

    def name_of_failing(self, error: BaseException) -> str:
        """Return the name of the module in which an exception was raised."""
        return name_of_failing([*self._templates, *self._tensors.models], error)

    def _stack(
        self, rows: slice, template: Any, epoch: int, stacked: str, stop: Event
    ) -> list[Scores]:
        """Train a stack of members for an epoch."""
        tensors, n_members = self._tensors, rows.stop - rows.start
        models, seeds = tensors.models[rows], tensors.seeds[rows].tolist()
        streams = Streams(seeds, epoch, tensors.device)
        leaves = tensors.leaves(rows)
        named = {**leaves, **tensors.others(rows)}
        augments = bool(models[0].infer_aug_stack.batch_order)

        def run(batch: Sessions, split: str) -> BatchResult:
            if stop.is_set():
                raise _StoppedError
            shared = split == "valid"
            if stacked == MODEL:
                batch = augmented_apart(models, batch, split, streams, shared=shared)
                return run_stacked(template, named, batch, split, streams, augments=False)
            if shared and augments:  # an augmentation may write into the batch
                batch = {s: _repeated(trials, n_members) for s, trials in batch.items()}
                shared = False
            return run_stacked(template, named, batch, split, streams, shared=shared)

        plans = [self._loader.plan(seed, epoch) for seed in seeds]
        rows_of = {s: torch.stack([p.rows[s] for p in plans], dim=1) for s in plans[0].rows}
        plan = plans[0]._replace(rows=rows_of)
        scores = {"train": StackedScores(), "valid": StackedScores()}
        self._train(rows, plan, list(leaves.values()), run, scores)
        members = (scores[split].members(n_members) for split in scores)
        return [dict(zip(scores, member, strict=True)) for member in zip(*members, strict=True)]

    def _alone(self, k: int, epoch: int) -> Scores | None:
        """Train one member by itself, as a run does."""
        seed, model = int(self._tensors.seeds[k]), self._tensors.models[k]
        weights = [model.get_parameter(name) for name in self._tensors.names]
        scores: Scores = {"train": EpochScores(), "valid": EpochScores()}
        plan = self._loader.plan(seed, epoch)
        seed_all(seed, epoch)
        try:
            self._train(slice(k, k + 1), plan, weights, partial(run_alone, model), scores)
        except Exception:
            # With NaN for weights a module may well raise; that member is lost, not the others.
            if self._tensors.weights[k].isfinite().all():
                raise
            return None
        return scores

    def _train(
        self,
        rows: slice,
        plan: Plan,
        weights: Sequence[Tensor],
        run: Callable[[Sessions, str], BatchResult],
        scores: Mapping[str, EpochScores],
    ) -> None:
        """Train and validate members for an epoch."""
        with closing(self._batches(plan)) as batches:
            for batch in batches:
                result = run(batch, "train")
                # Losses of members do not meet in any gradient, so one pass serves all of them.
                total = result.terms.total.sum()
                gradients = torch.autograd.grad(total, weights, allow_unused=True)
                self._optimiser.step(rows, gradients)
                count_batch(scores["train"], result)
        with torch.no_grad():
            for batch in self._data.val_dataloader():
                count_batch(scores["valid"], run(sessions_of(batch), "valid"))

    def _batches(self, plan: Plan) -> Generator[Sessions]:
        """Yield the batches of an epoch, read ahead where trials stay in their file."""
        jobs = (
            partial(self._gathered, {s: rows[i] for s, rows in plan.rows.items()}, n_bins)
            for i, n_bins in enumerate(plan.n_bins)
        )
        if any(self._data.streamed):
            yield from ahead(jobs)
        else:
            yield from (job() for job in jobs)

    def _gathered(self, rows: Mapping[int, Tensor], n_bins: int | None = None) -> Sessions:
        """Gather trials by rows of any shape (...), as arrays (..., T, N)."""
        sessions, batch = self._data.ready_tensors(), {}
        for s, places in rows.items():
            trials, _ = sessions[s].batch(places.flatten(), "train", n_bins)
            batch[s] = trials.mapped(partial(_unflattened, shape=places.shape))
        return batch


def even_stacks(n_members: int, most: int, workers: int) -> list[slice]:
    """Cut members into stacks of at most `most`, as even as can be, for some threads."""
    n_stacks = math.ceil(n_members / most)
    n_stacks = min(n_members, math.ceil(n_stacks / workers) * workers)
    ends = [n_members * i // n_stacks for i in range(n_stacks + 1)]
    return [slice(a, b) for a, b in pairwise(ends)]


def _in_threads(train: Any, stacks: Sequence[slice], templates: list[Any], stop: Event) -> Any:
    """Train stacks in threads, each with its share of torch's threads."""
    # A step of a few members has too little work for all cores, so stacks train in threads; each
    # gets its share of torch's threads, or there would be more threads than cores.
    n_threads = torch.get_num_threads()
    free = list(templates)

    def task(rows: slice) -> Any:
        template = free.pop()
        try:
            return train(rows, template)
        except BaseException:
            stop.set()
            raise
        finally:
            free.append(template)

    def begin() -> None:
        torch.set_num_threads(max(1, n_threads // len(templates)))

    try:
        with ThreadPoolExecutor(len(templates), initializer=begin) as pool:
            try:
                futures: list[Future[Any]] = [pool.submit(task, rows) for rows in stacks]
                return _results(futures)
            except BaseException:  # an interrupt reaches this thread only
                stop.set()
                raise
    finally:
        torch.set_num_threads(n_threads)


def _results(futures: Sequence[Future[Any]]) -> list[Any]:
    """Return results in order, or raise the exception that made the others stop."""
    raised = [future.exception() for future in futures]
    for error in sorted(filter(None, raised), key=lambda e: isinstance(e, _StoppedError)):
        raise error
    return [future.result() for future in futures]


def _unflattened(array: Tensor, shape: torch.Size) -> Tensor:
    return array.unflatten(0, shape)


def _repeated(batch: SessionBatch, n_members: int) -> SessionBatch:
    return batch.mapped(lambda array: array.unsqueeze(0).repeat(n_members, *[1] * array.ndim))
