"""The one signature of the kernels: what every implementation takes and returns.

Axes: K independent nets (directions of an encoder, members of a population), T bins, B trials.
GRU weights stack the gates in the order update, reset, candidate: H3 = 3 * hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from jaxtyping import Float
from torch import Tensor


class GRUInputs(NamedTuple):
    """Inputs of K clipped GRUs, with the input product by model: M models of K / M nets each.

    A model's nets come from one matrix product. Its axis of nets stays apart, because to fold it
    into the axis of models would copy the largest tensor of the encoder.
    """

    x_proj: Float[Tensor, "M KM T B H3"]
    h0: Float[Tensor, "K B H"]
    w_hh: Float[Tensor, "K H3 H"]


class GRUStates(NamedTuple):
    """States of K clipped GRUs."""

    states: Float[Tensor, "K T B H"]  # in the order of the bins
    last: Float[Tensor, "K B H"]  # computed last: at bin T - 1, or at 0 where a net runs backward


class GRUSaved(NamedTuple):
    """What the backward pass of K GRUs needs besides; bins in the order of the loop."""

    gates: Float[Tensor, "K T B H2"]  # one bin alone, the last that was computed, unless kept
    cand: Float[Tensor, "K T B H"]


class DecoderInputs(NamedTuple):
    """Inputs of the decoder's recurrence; C controller, G generator, F factor, U input dimensions.

    Input products include the biases. Dropout masks are already scaled.
    """

    con_proj: Float[Tensor, "K T B C3"]  # controller's weights times the encoder's output
    # Generator's weights times the external input; without one, the biases alone, Tg = Bg = 1.
    gen_proj: Float[Tensor, "K Tg Bg G3"]
    con_h0: Float[Tensor, "K B C"]
    gen_h0: Float[Tensor, "K B G"]
    w_con_fac: Float[Tensor, "K C3 F"]  # columns of the input weights that read the factors
    w_con_hh: Float[Tensor, "K C3 C"]
    w_co: Float[Tensor, "K U2 C"]  # controller to mean and log variance of the inferred input
    b_co: Float[Tensor, "K U2"]
    w_gen_u: Float[Tensor, "K G3 U"]  # columns of the input weights that read the inferred input
    w_gen_hh: Float[Tensor, "K G3 G"]
    w_fac: Float[Tensor, "K F G"]  # rows already scaled to unit norm
    # Standard normal numbers; without them the inferred input is its posterior mean.
    noise: Float[Tensor, "K T B U"] | None = None
    # Of the factors that the controller reads at bin t, which are those of bin t - 1.
    fac_mask: Float[Tensor, "K T B F"] | None = None
    # Of the generator state that makes the factors; entry 0 belongs to the initial state.
    gen_mask: Float[Tensor, "K T1 B G"] | None = None


class DecoderStates(NamedTuple):
    """Everything the decoder computes at each bin."""

    factors: Float[Tensor, "K T B F"]
    gen_states: Float[Tensor, "K T B G"]
    con_states: Float[Tensor, "K T B C"]
    co_params: Float[Tensor, "K T B U2"]  # mean and log variance of the inferred inputs
    inputs: Float[Tensor, "K T B U"]  # that drove the generator: samples with noise, else means


class DecoderSaved(NamedTuple):
    """What the decoder's backward pass needs besides; gates as in `GRUSaved`."""

    first: Float[Tensor, "K B F"]  # factors of the initial state, which the controller reads at 0
    con_gates: Float[Tensor, "K T B C2"]
    con_cand: Float[Tensor, "K T B C"]
    gen_gates: Float[Tensor, "K T B G2"]
    gen_cand: Float[Tensor, "K T B G"]


class _ClippedGRU(Protocol):
    def __call__(
        self, x_proj: Tensor, h0: Tensor, w_hh: Tensor, clip: float, two_way: bool = False
    ) -> GRUStates: ...


class _Decoder(Protocol):
    def __call__(self, inputs: DecoderInputs, clip: float) -> DecoderStates: ...


class Kernels(NamedTuple):
    """One implementation of the recurrent nets."""

    # x_proj (K, T, B, 3H) is the product of input weights and input, biases included. States are
    # clipped to [-clip, clip] at every bin. With two_way, the nets of odd number run backward.
    clipped_gru: _ClippedGRU
    # Controller, inferred input, generator and factors, which feed back on one another bin by bin.
    # An autonomous generator is a clipped_gru.
    decoder: _Decoder
    # As `torch.nn.functional.linear`, with a bias: the input products of all bins.
    linear: Callable[[Tensor, Tensor, Tensor], Tensor]


class Options(NamedTuple):
    """What a loop over bins is given besides tensors."""

    clip: float
    two_way: bool
    keep: bool  # everything that a backward pass needs
    loops: str  # "torch", "native" or "triton": which loops, where these can work
