"""How much memory members of a population take, and how much there is."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

#: Tensors of a parameter's size that training keeps: itself, its gradient and Adam's two moments.
_COPIES = 4
_CGROUP = Path("/sys/fs/cgroup")


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
    found = [_meminfo(), _cgroup()]
    known = [number for number in found if number is not None]
    if known:
        return min(known)
    with suppress(ValueError, OSError, AttributeError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def _meminfo() -> int | None:
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _cgroup() -> int | None:
    """Return what a container's limit leaves."""
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        with suppress(OSError, ValueError):
            return max(0, int((_CGROUP / limit).read_text()) - int((_CGROUP / used).read_text()))
    return None
