"""Pure tensor functions for the recurrent nets, in several implementations with one signature.

All of them hoist the input products out of the loop, take noise and dropout masks drawn before it,
and carry a leading axis K of independent nets.
"""

from __future__ import annotations

import torch

from ..errors import one_of
from . import recurrent, reference
from .types import DecoderInputs, DecoderStates, GRUStates, Kernels

__all__ = [
    "IMPLEMENTATIONS",
    "DecoderInputs",
    "DecoderStates",
    "GRUStates",
    "Kernels",
    "get_kernels",
]

IMPLEMENTATIONS = {
    "reference": Kernels(reference.clipped_gru, reference.decoder, torch.nn.functional.linear),
    "explicit": recurrent.kernels("torch"),
    "native": recurrent.kernels("native"),
    "triton": recurrent.kernels("triton"),
}


def get_kernels(name: str = "auto") -> Kernels:
    """Return an implementation by name; ``auto`` is ``native``.

    ``native`` loops in C for float32 on the CPU, and elsewhere, or where the library was not built,
    in torch as ``explicit`` does; ``reference`` is the plain loop under autograd. ``triton`` loops
    on a GPU of NVIDIA, and elsewhere does as ``native`` with a warning that says why.
    """
    name = one_of("kernel", name, ["auto", *IMPLEMENTATIONS])
    return IMPLEMENTATIONS["native" if name == "auto" else name]
