"""Memory of members, and how many are stacked at a time: on a CPU, what its caches hold."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from ...errors import UserError
from ...model_checks import bytes_available
from .draws import global_generators

#: Tensors of a parameter's size that training keeps: itself, its gradient and Adam's two moments.
_COPIES = 4
#: A step's peak over what its forward pass keeps: gradients and temporaries on the way back.
_PEAK = 2.0
#: Part of the free memory that a population takes.
_SHARE = 0.8
#: Members that a thread stacks: beyond, the cost per step is shared by enough of them.
_ENOUGH = 8
#: What a thread keeps of a step's forward pass, bytes: beyond, memory is slower than the gain.
_CACHED = 256 * 2**20


def bytes_per_member(model: nn.Module) -> int:
    """Return the bytes of a member's parameters, gradients and optimiser state."""
    return _COPIES * sum(p.numel() * p.element_size() for p in model.parameters())


def step_bytes(model: Any, batch: Any) -> int:
    """Measure what one member's step on a training batch keeps for its backward pass, in bytes."""
    model = copy.deepcopy(model).train()  # whose buffers a step may change
    kept: dict[int, int] = {}
    # Members hold these whether they train or not.
    permanent = {x.untyped_storage().data_ptr() for x in (*model.parameters(), *model.buffers())}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in permanent:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with global_generators(), saved_tensors_hooks(note, lambda tensor: tensor):
        result = model.evaluated(batch, "train")
    del result
    return int(_PEAK * sum(kept.values()))


def workers_of(device: torch.device, n_members: int) -> int:
    """Return the number of threads that share the stacks: on a CPU one for every four members."""
    if device.type != "cpu":
        return 1
    return max(1, min(torch.get_num_threads(), math.ceil(n_members / 4)))


def fitting_stack(n_members: int, n_bytes: int, device: torch.device) -> int:
    """Return the members to stack at a time, whose steps take `n_bytes` each.

    Raise `UserError` where not even one member's step fits.
    """
    workers = workers_of(device, n_members)
    free = bytes_available(device)
    most = n_members if free is None else int(_SHARE * free / max(1, n_bytes * workers))
    if most < 1:
        raise UserError(
            f"a member's training step takes about {n_bytes / 2**30:.2f} GiB, {workers} of them at "
            f"once, but {(free or 0) / 2**30:.2f} GiB are free; lower datamodule.batch_size or the "
            "model's sizes"
        )
    if device.type == "cpu":
        most = min(most, _ENOUGH, max(1, int(_PEAK * _CACHED / n_bytes)))
    share = math.ceil(n_members / workers)
    # As even as can be: 10 members for 4 at most are 4 + 3 + 3.
    return math.ceil(share / math.ceil(share / min(most, share)))
