"""One batch through several members: all at once by vmap, or one after another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any

import torch
import torch.utils._pytree
from torch import Tensor, nn
from torch.func import functional_call, vmap

from ...objective import augment, evaluate
from ...tuples import BatchResult, Scored, ScoredBehavior, SessionBatch
from .draws import StackedCalls, StackedDraws, Streams, no_other_draws

Sessions = Mapping[int, SessionBatch]
Fields = dict[int, dict[str, Any]]

ALL, MODEL, NONE = "all", "model", "none"
"""What is stacked: the whole step, all but the augmentations, nothing."""


def run_stacked(
    template: Any,
    tensors: Mapping[str, Tensor],
    batch: Sessions,
    split: str,
    streams: Streams,
    *,
    augments: bool = True,
    shared: bool = False,
) -> BatchResult:
    """Run a batch through c members at once, and return numbers (c,) and arrays (c, ...).

    `tensors` are parameters and buffers (c, ...) by their names in `template`, any model of their
    structure. Arrays of the batch are (c, B, ...), or (B, ...) where it is `shared` by all members.
    """
    # vmap returns tensors alone; counts are the same for all members and leave it by the side.
    sizes: dict[int, tuple[int, tuple[int, int]]] = {}
    caller = _Caller(template)

    def one(tensors: dict[str, Tensor], fields: Fields) -> Any:
        named = {f"model.{name}": tensor for name, tensor in tensors.items()}
        with StackedCalls(next(iter(named.values()))):
            result = functional_call(caller, named, (_sessions(fields), split, augments))
        sizes.update({s: (scored.n_trials, scored.window) for s, scored in result.scored.items()})
        arrays = {s: _arrays(scored) for s, scored in result.scored.items()}
        return result.terms, result.logged, arrays

    # With vmap's default, a draw is an error; `StackedDraws` makes the draws below it.
    mapped = vmap(one, in_dims=(0, None if shared else 0), randomness="different")
    template.train(split == "train")
    with no_other_draws(), StackedDraws(streams):
        terms, logged, arrays = mapped(dict(tensors), _fields(batch))
    scored = {s: Scored(arrays[s].pop("recon"), *sizes[s], **arrays[s]) for s in arrays}
    return BatchResult(terms, logged, scored)


class _Caller(nn.Module):
    """Lets `functional_call`, which calls `forward` alone, evaluate a model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, batch: Sessions, split: str, augments: bool) -> BatchResult:
        if augments:
            return self.model.evaluated(batch, split)
        return evaluate(self.model, self.model.weights, batch, self.model.aug_stack(split), split)


def run_alone(model: Any, batch: Sessions, split: str) -> BatchResult:
    """Run a batch (B, ...) through one model, as a run does."""
    model.train(split == "train")
    result: BatchResult = model.evaluated(batch, split)
    return result


def augmented_apart(
    models: Sequence[Any], batch: Sessions, split: str, streams: Streams, *, shared: bool
) -> Sessions:
    """Augment each member's batch by itself; arrays (c, B, ...) come out."""
    # A model per member, not the template: tunables such as a rate of coordinated dropout differ.
    rows = []
    for k, model in enumerate(models):
        trials = {s: b if shared else b.mapped(itemgetter(k)) for s, b in batch.items()}
        model.train(split == "train")
        with streams.lent(k):
            rows.append(_fields(augment(model.aug_stack(split), trials)))
    return _sessions(torch.utils._pytree.tree_map(lambda *members: torch.stack(members), *rows))


def can_augment_apart(model: Any) -> bool:
    """Return whether no augmentation can have a memory that its loss term reads.

    One of this package leaves what the loss needs in the batch. Another, which acts on both batch
    and loss, may keep it as an attribute, which holds one member's only.
    """
    room = __package__.partition(".")[0]
    return all(
        type(transform).__module__.partition(".")[0] == room
        or not hasattr(transform, "process_losses")
        for stack in (model.train_aug_stack, model.infer_aug_stack)
        for transform in stack.transforms
    )


def name_of_failing(models: Sequence[Any], error: BaseException) -> str:
    """Return the name of the innermost module of these models in which an exception was raised."""
    modules = {
        id(module): f"{name} ({type(module).__name__})"
        for model in models
        for name, module in _modules(model)
    }
    name, trace = "a module of the model", error.__traceback__
    while trace is not None:
        name = modules.get(id(trace.tb_frame.f_locals.get("self")), name)
        trace = trace.tb_next
    return name


def _modules(model: Any) -> Iterator[tuple[str, Any]]:
    yield from model.parts().items()
    for name in ("train_aug_stack", "infer_aug_stack"):
        transforms = getattr(model, name).transforms
        yield from ((f"{name}.transforms.{i}", transform) for i, transform in enumerate(transforms))
    for name in ("readin", "readout", "recon"):
        yield from ((f"{name}.{i}", module) for i, module in enumerate(getattr(model, name)))


def _fields(batch: Sessions) -> Fields:
    """Return a batch as nested dicts of tensors, which vmap can map."""
    return {
        s: {name: array for name, array in trials._asdict().items() if array is not None}
        for s, trials in batch.items()
    }


def _sessions(fields: Fields) -> dict[int, SessionBatch]:
    return {s: SessionBatch(**arrays) for s, arrays in fields.items()}


def _arrays(scored: Scored) -> dict[str, Any]:
    kinds = Tensor | ScoredBehavior
    return {name: x for name, x in scored._asdict().items() if isinstance(x, kinds)}
