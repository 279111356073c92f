"""The loops over bins in C (``native_loops.c``), for float32 on the CPU: see `torch_loops`."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from .c_library import address, last_contiguous, library, strides
from .torch_loops import (
    DecoderGradients,
    decoder_room,
    gate_buffers,
    recurrent_gradient,
    weight_gradients,
)
from .types import (
    DecoderInputs,
    DecoderSaved,
    DecoderStates,
    GRUInputs,
    GRUSaved,
    GRUStates,
    Options,
)

# The orders are those of the C structs.
_WEIGHTS = ("w_con_fac", "w_con_hh", "w_co", "b_co", "w_gen_u", "w_gen_hh", "w_fac")
_DRAWN = ("noise", "fac_mask", "gen_mask")
_GATES = ("con_gates", "con_cand", "gen_gates", "gen_cand")


class _GRU(ctypes.Structure):
    """The struct `gru` of ``native_loops.c``."""

    _fields_ = (
        *((name, ctypes.c_int) for name in ("K", "T", "B", "n", "two_way")),
        ("clip", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("w", *GRUSaved._fields)),
        *((name, ctypes.c_int64 * 2) for name in ("gates_s", "cand_s")),
        ("each", ctypes.c_int),
    )


class _Decoder(ctypes.Structure):
    """The struct `decoder` of ``native_loops.c``."""

    _fields_ = (
        *((name, ctypes.c_int) for name in ("K", "T", "B", "C", "G", "F", "U")),
        ("clip", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in (*_WEIGHTS, *_DRAWN)),
        *(
            (name, ctypes.c_void_p)
            for name in ("con_states", "gen_states", "factors", "co", "inputs")
        ),
        *((name, ctypes.c_void_p) for name in _GATES),
        *((f"{name}_s", ctypes.c_int64 * 2) for name in _GATES),
    )


class _Addresses(ctypes.Structure):
    """A struct of nothing but addresses."""

    def __init__(self, **tensors: Tensor | None) -> None:
        super().__init__(*(address(tensor) for tensor in tensors.values()))


class _Outside(_Addresses):
    """The struct `outside` of ``native_loops.c``."""

    _fields_ = tuple(
        (name, ctypes.c_void_p) for name in ("factors", "gen_states", "con_states", "inputs")
    )


class _Found(_Addresses):
    """The struct `found` of ``native_loops.c``."""

    _fields_ = tuple((name, ctypes.c_void_p) for name in DecoderGradients._fields)


def _gru(inputs: GRUInputs, w_hh: Tensor, saved: GRUSaved, options: Options) -> _GRU:
    n_nets, n_entries, n_trials, n_units = saved.states.shape
    return _GRU(
        *(n_nets, n_entries - 2, n_trials, n_units, options.two_way, options.clip),
        *map(address, (w_hh, *saved)),
        *(strides(saved.gates, 2), strides(saved.cand, 2), inputs.x_proj.shape[1]),
    )


def gru_forward(inputs: GRUInputs, options: Options) -> tuple[GRUStates, GRUSaved]:
    """As `lfads_torch.kernels.torch_loops.gru_forward`."""
    h0, n_bins = inputs.h0, inputs.x_proj.shape[2]
    x_proj, w_hh = last_contiguous(inputs.x_proj), inputs.w_hh.mT.contiguous()
    # The entries before the first and after the last bin hold the initial states of the nets that
    # run forward and backward.
    states = h0.new_empty(h0.shape[0], n_bins + 2, *h0.shape[1:])
    for nets, before, _ in _directions(n_bins, options.two_way):
        states[nets, before.start if before.start == 0 else -1] = h0[nets]
    saved = GRUSaved(states, *gate_buffers(h0, n_bins, options.keep))
    call = _gru(inputs, w_hh, saved, options)
    library().lfads_gru_forward(ctypes.byref(call), address(x_proj), strides(x_proj, 4))
    last = torch.empty_like(h0, memory_format=torch.contiguous_format)
    for nets, _, end in _directions(n_bins, options.two_way):
        last[nets] = states[nets, end]
    return GRUStates(states[:, 1:-1], last), saved


def _directions(n_bins: int, two_way: bool) -> list[tuple[slice, slice, int]]:
    """Nets of each direction, the entries of the states before each bin, and of the last state."""
    forward, backward = slice(0, n_bins), slice(2, n_bins + 2)
    if not two_way:
        return [(slice(None), forward, n_bins)]
    return [(slice(0, None, 2), forward, n_bins), (slice(1, None, 2), backward, 1)]


def gru_backward(
    grad: GRUStates, inputs: GRUInputs, states: GRUStates, saved: GRUSaved, options: Options
) -> GRUInputs:
    """As `lfads_torch.kernels.torch_loops.gru_backward`."""
    outside = [None if x is None else x.contiguous() for x in grad]
    w_hh = inputs.w_hh.contiguous()
    n_models, n_each, n_bins, n_trials, _ = inputs.x_proj.shape
    n_nets, n_rows, n_units = w_hh.shape
    # A model's nets come from one input product, so its gradient has them side by side, too.
    grad_x = w_hh.new_empty(n_models, n_bins, n_trials, n_each, n_rows).permute(0, 3, 1, 2, 4)
    grad_h0 = w_hh.new_empty(n_nets, n_trials, n_units)
    reset = w_hh.new_empty(n_nets, n_bins, n_trials, n_units)
    call = _gru(inputs, w_hh, saved, options)
    library().lfads_gru_backward(
        ctypes.byref(call),
        *map(address, outside),
        *(address(grad_x), strides(grad_x, 4)),
        *map(address, (grad_h0, reset)),
    )
    grad_w = torch.empty_like(w_hh)
    for nets, before, _ in _directions(n_bins, options.two_way):
        grad_w[nets] = recurrent_gradient(
            grad_x[:, nets].flatten(0, 1), saved.states[nets, before], reset[nets]
        )
    return GRUInputs(grad_x, grad_h0, grad_w)


def _decoder(
    p: DecoderInputs, co_params: Tensor, inputs: Tensor | None, saved: DecoderSaved, clip: float
) -> _Decoder:
    """Describe a call; the tensors must be contiguous, and outlive it."""
    gates = [getattr(saved, name) for name in _GATES]
    return _Decoder(
        *co_params.shape[:3],
        *(x.shape[3] for x in (saved.con_states, saved.gen_states, saved.factors)),
        *(co_params.shape[3] // 2, clip),
        *(address(getattr(p, name)) for name in (*_WEIGHTS, *_DRAWN)),
        *map(address, (saved.con_states, saved.gen_states, saved.factors, co_params, inputs)),
        *map(address, gates),
        *(strides(x, 2) for x in gates),
    )


def _contiguous(p: DecoderInputs, *, turned: bool) -> DecoderInputs:
    """Return weights, noise and masks without gaps; the forward loop wants weights (K, in, out)."""
    tensors: dict[str, Any] = {name: getattr(p, name) for name in (*_WEIGHTS, *_DRAWN)}
    for name, x in tensors.items():
        if x is not None:
            tensors[name] = (x.mT if turned and name.startswith("w_") else x).contiguous()
    return p._replace(**tensors)


def decoder_forward(p: DecoderInputs, options: Options) -> tuple[DecoderStates, DecoderSaved]:
    """As `lfads_torch.kernels.torch_loops.decoder_forward`."""
    n_bins, n_trials = p.con_proj.shape[1:3]
    con_proj = last_contiguous(p.con_proj)
    gen_proj = last_contiguous(p.gen_proj.expand(-1, n_bins, n_trials, -1))
    states, saved = decoder_room(p, options.keep)
    turned = _contiguous(p, turned=True)
    call = _decoder(turned, states.co_params, states.inputs, saved, options.clip)
    library().lfads_decoder_forward(
        ctypes.byref(call),
        *(address(con_proj), strides(con_proj, 3)),
        *(address(gen_proj), strides(gen_proj, 3)),
    )
    return states, saved


def decoder_backward(
    grad: DecoderStates,
    p: DecoderInputs,
    states: DecoderStates,
    saved: DecoderSaved,
    options: Options,
) -> DecoderInputs:
    """As `lfads_torch.kernels.torch_loops.decoder_backward`."""
    p, co_params = _contiguous(p, turned=False), states.co_params.contiguous()
    call = _decoder(p, co_params, None, saved, options.clip)
    outside = {k: None if x is None else x.contiguous() for k, x in grad._asdict().items()}
    from_co = outside.pop("co_params")
    con, gen, make = saved.con_states[:, 1:], saved.gen_states[:, 1:], co_params.new_empty
    gradients = DecoderGradients(
        con_x=make(*con.shape[:3], 3 * con.shape[3]),
        gen_x=make(*gen.shape[:3], 3 * gen.shape[3]),
        con_h0=make(p.con_h0.shape),
        gen_h0=make(p.gen_h0.shape),
        factors=make(saved.factors.shape),
        co=torch.zeros_like(co_params) if from_co is None else from_co.clone(),
        con_reset=make(con.shape),
        gen_reset=make(gen.shape),
        fac_in=None if p.fac_mask is None else make(p.fac_mask.shape),
        gen_in=None if p.gen_mask is None else make(p.gen_mask.shape),
    )
    library().lfads_decoder_backward(
        ctypes.byref(call),
        ctypes.byref(_Outside(**outside)),
        ctypes.byref(_Found(**gradients._asdict())),
    )
    return weight_gradients(gradients, p, states.inputs, saved)
