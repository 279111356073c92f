"""How much memory members of a population take, and how much there is."""

from __future__ import annotations

import torch
from torch import nn

from ..data.memory import available_bytes

#: Tensors of a parameter's size that training keeps: itself, its gradient and Adam's two moments.
_COPIES = 4


def bytes_per_member(model: nn.Module) -> int:
    """Return what a member takes beside the activations of its step.

    Parameters
    ----------
    model : Module

    Returns
    -------
    int
        Bytes of parameters, gradients and optimiser state.
    """
    return _COPIES * sum(p.numel() * p.element_size() for p in model.parameters())


def bytes_available(device: torch.device | str) -> int | None:
    """Return the memory that is free for a process.

    Parameters
    ----------
    device : str or torch.device

    Returns
    -------
    int or None
        Bytes; None where the system does not say.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return available_bytes()
