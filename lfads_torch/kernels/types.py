"""The one signature of the kernels: what every implementation takes and returns.

Axes: K independent nets (directions of an encoder, members of a population), T bins, B trials.
GRU weights stack the gates in the order update, reset, candidate: H3 = 3 * hidden size.
"""

from __future__ import annotations

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
    """States of K clipped GRUs.

    Attributes
    ----------
    states : Tensor, shape (K, T, B, H)
        In the order of the bins.
    last : Tensor, shape (K, B, H)
        Those that each net computed last: at bin T - 1, or at bin 0 where it runs backward.
    """

    states: Float[Tensor, "K T B H"]
    last: Float[Tensor, "K B H"]


class GRUSaved(NamedTuple):
    """What the backward pass of K GRUs needs; bins in the order of the loop that wrote them."""

    states: Float[Tensor, "K Tp B H"]  # initial states included, so Tp > T
    gates: Float[Tensor, "K T B H2"]
    cand: Float[Tensor, "K T B H"]


class DecoderInputs(NamedTuple):
    """Inputs of the decoder's recurrence; C controller, G generator, F factor, U input dimensions.

    Attributes
    ----------
    con_proj : Tensor, shape (K, T, B, 3C)
        Product of the controller's weights with the encoder's output, biases included.
    gen_proj : Tensor, shape (K, T, B, 3G) or (K, 1, 1, 3G)
        Product of the generator's weights with the external input, biases included; the biases
        alone where there is no external input.
    con_h0, gen_h0 : Tensor, shape (K, B, C) and (K, B, G)
        Initial states.
    w_con_fac : Tensor, shape (K, 3C, F)
        The columns of the controller's input weights that read the factors.
    w_con_hh : Tensor, shape (K, 3C, C)
        The controller's recurrent weights.
    w_co, b_co : Tensor, shape (K, 2U, C) and (K, 2U)
        Controller state to mean and log variance of the inferred input.
    w_gen_u : Tensor, shape (K, 3G, U)
        The columns of the generator's input weights that read the inferred input.
    w_gen_hh : Tensor, shape (K, 3G, G)
        The generator's recurrent weights.
    w_fac : Tensor, shape (K, F, G)
        Factor matrix, rows already scaled to unit norm.
    noise : Tensor, shape (K, T, B, U), optional
        Standard normal numbers; without them the inferred input is its posterior mean.
    fac_mask : Tensor, shape (K, T, B, F), optional
        Dropout mask, already scaled, of the factors that the controller reads at bin t (those of
        bin t - 1).
    gen_mask : Tensor, shape (K, T + 1, B, G), optional
        Dropout mask, already scaled, of the generator state that makes the factors; entry 0
        belongs to the initial state.
    """

    con_proj: Float[Tensor, "K T B C3"]
    gen_proj: Float[Tensor, "K Tg Bg G3"]
    con_h0: Float[Tensor, "K B C"]
    gen_h0: Float[Tensor, "K B G"]
    w_con_fac: Float[Tensor, "K C3 F"]
    w_con_hh: Float[Tensor, "K C3 C"]
    w_co: Float[Tensor, "K U2 C"]
    b_co: Float[Tensor, "K U2"]
    w_gen_u: Float[Tensor, "K G3 U"]
    w_gen_hh: Float[Tensor, "K G3 G"]
    w_fac: Float[Tensor, "K F G"]
    noise: Float[Tensor, "K T B U"] | None = None
    fac_mask: Float[Tensor, "K T B F"] | None = None
    gen_mask: Float[Tensor, "K T1 B G"] | None = None


class DecoderStates(NamedTuple):
    """Everything the decoder computes at each bin.

    Attributes
    ----------
    factors : Tensor, shape (K, T, B, F)
    gen_states : Tensor, shape (K, T, B, G)
    con_states : Tensor, shape (K, T, B, C)
    co_params : Tensor, shape (K, T, B, 2U)
        Mean and log variance of the inferred inputs.
    inputs : Tensor, shape (K, T, B, U)
        The inferred inputs that drove the generator: samples where noise was given, else means.
    """

    factors: Float[Tensor, "K T B F"]
    gen_states: Float[Tensor, "K T B G"]
    con_states: Float[Tensor, "K T B C"]
    co_params: Float[Tensor, "K T B U2"]
    inputs: Float[Tensor, "K T B U"]


class DecoderSaved(NamedTuple):
    """What the decoder's backward pass needs; entry 0 of T + 1 is the initial one."""

    factors: Float[Tensor, "K T1 B F"]
    con_states: Float[Tensor, "K T1 B C"]
    con_gates: Float[Tensor, "K T B C2"]
    con_cand: Float[Tensor, "K T B C"]
    gen_states: Float[Tensor, "K T1 B G"]
    gen_gates: Float[Tensor, "K T B G2"]
    gen_cand: Float[Tensor, "K T B G"]


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


class Options(NamedTuple):
    """What a loop over bins is given besides tensors."""

    clip: float
    two_way: bool
    keep: bool  # everything that a backward pass needs
