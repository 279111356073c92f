"""Pure tensor functions for the recurrent nets, in several implementations with one signature.

All of them hoist the input products out of the loop, take noise and dropout masks drawn before it,
and carry a leading axis K of independent nets.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from . import autograd, reference
from .types import DecoderInputs, DecoderStates, GRUStates

__all__ = [
    "IMPLEMENTATIONS",
    "DecoderInputs",
    "DecoderStates",
    "GRUStates",
    "Kernels",
    "get_kernels",
]


class _ClippedGRU(Protocol):
    def __call__(
        self, x_proj: Tensor, h0: Tensor, w_hh: Tensor, clip: float, two_way: bool = False
    ) -> GRUStates: ...


class _Decoder(Protocol):
    def __call__(self, inputs: DecoderInputs, clip: float) -> DecoderStates: ...


class Kernels(NamedTuple):
    """One implementation of the recurrent nets.

    Attributes
    ----------
    clipped_gru : callable
        ``clipped_gru(x_proj, h0, w_hh, clip, two_way=False) -> GRUStates``: x_proj (K, T, B, 3H) is
        the product of the input weights with the input, biases included; h0 (K, B, H);
        w_hh (K, 3H, H); the state is clipped to [-clip, clip] at every bin. With `two_way`, the
        nets of odd number run backward, from the last bin to the first.
    decoder : callable
        ``decoder(inputs, clip) -> DecoderStates``: controller, inferred input, generator and
        factors, which feed back on one another bin by bin. An autonomous generator is a
        `clipped_gru`.
    """

    clipped_gru: _ClippedGRU
    decoder: _Decoder


IMPLEMENTATIONS = {
    "reference": Kernels(reference.clipped_gru, reference.decoder),
    "explicit": Kernels(autograd.clipped_gru, autograd.decoder),
    "native": Kernels(autograd.native_clipped_gru, autograd.native_decoder),
}


def get_kernels(name: str = "auto") -> Kernels:
    """Return an implementation by name; ``auto`` is ``native``.

    ``native`` loops in C for float32 on the CPU, and elsewhere, or where the library was not built,
    in torch as ``explicit`` does; ``reference`` is the plain loop under autograd.

    Raises
    ------
    ValueError
        For an unknown name; the message lists the legal ones.
    """
    if name == "auto":
        name = "native"
    if name not in IMPLEMENTATIONS:
        legal = ", ".join(["auto", *IMPLEMENTATIONS])
        raise ValueError(f"kernel {name!r} is unknown; legal are: {legal}")
    return IMPLEMENTATIONS[name]
