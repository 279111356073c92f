"""The loops over bins in C (``native_loops.c``), for float32 on the CPU: see `torch_loops`."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from .c_library import address, last_contiguous, library, strides
from .torch_loops import decoder_room, fill_last, gru_gradient, gru_room, sum_over
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
_INITIAL = ("con_h0", "gen_h0", "first")
_GATES = ("con_gates", "con_cand", "gen_gates", "gen_cand")


class _GRU(ctypes.Structure):
    """The struct `gru` of ``native_loops.c``."""

    _fields_ = (
        *((name, ctypes.c_int) for name in ("K", "T", "B", "n", "two_way")),
        ("clip", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("w", "h0", "states", *GRUSaved._fields)),
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
            for name in (*_INITIAL, "con_states", "gen_states", "factors", "co", "inputs")
        ),
        *((name, ctypes.c_void_p) for name in _GATES),
        *((f"{name}_s", ctypes.c_int64 * 2) for name in _GATES),
    )


class _Outside(ctypes.Structure):
    """The struct `outside` of ``native_loops.c``."""

    _fields_ = tuple(
        (name, ctypes.c_void_p)
        for name in ("factors", "gen_states", "con_states", "co_params", "inputs")
    )


class _Found(ctypes.Structure):
    """The struct `found` of ``native_loops.c``."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("con_x", "gen_x", "con_h0", "gen_h0")),
        *((name, ctypes.c_void_p) for name in (*_WEIGHTS, "gen_sum")),
        ("gen_x_s", ctypes.c_int64 * 2),
    )


def _gru(
    inputs: GRUInputs, w_hh: Tensor, h0: Tensor, states: Tensor, saved: GRUSaved, options: Options
) -> _GRU:
    """Describe a call; the tensors must be contiguous, and outlive it."""
    return _GRU(
        *(*states.shape, options.two_way, options.clip),
        *map(address, (w_hh, h0, states, *saved)),
        *(_over_bins(saved.gates, states), _over_bins(saved.cand, states), inputs.x_proj.shape[1]),
    )


def _over_bins(gates: Tensor, states: Tensor) -> ctypes.Array[ctypes.c_int64]:
    """Return the strides of gates over nets and bins, where the bins may share one."""
    return strides(gates.expand(-1, states.shape[1], -1, -1), 2)


def clipped_gru_forward(inputs: GRUInputs, options: Options) -> tuple[GRUStates, GRUSaved]:
    """As `lfads_torch.kernels.torch_loops.clipped_gru_forward`."""
    x_proj, w_hh = last_contiguous(inputs.x_proj), inputs.w_hh.contiguous()
    h0 = inputs.h0.contiguous()
    states, saved = gru_room(inputs, options.keep)
    call = _gru(inputs, w_hh, h0, states.states, saved, options)
    library().lfads_clipped_gru(ctypes.byref(call), address(x_proj), strides(x_proj, 4))
    return fill_last(states, options.two_way), saved


def clipped_gru_backward(
    grad: GRUStates, inputs: GRUInputs, states: GRUStates, saved: GRUSaved, options: Options
) -> GRUInputs:
    """As `lfads_torch.kernels.torch_loops.clipped_gru_backward`."""
    outside = [None if x is None else x.contiguous() for x in grad]
    inputs = inputs._replace(h0=inputs.h0.contiguous(), w_hh=inputs.w_hh.contiguous())
    bins, saved = states.states.contiguous(), GRUSaved(*(x.contiguous() for x in saved))
    grad_x = gru_gradient(inputs)
    grad_h0, grad_w = torch.empty_like(inputs.h0), torch.zeros_like(inputs.w_hh)
    call = _gru(inputs, inputs.w_hh, inputs.h0, bins, saved, options)
    library().lfads_clipped_gru_backward(
        ctypes.byref(call),
        *map(address, outside),
        *(address(grad_x), strides(grad_x, 4)),
        *map(address, (grad_h0, grad_w)),
    )
    return GRUInputs(grad_x, grad_h0, grad_w)


def _decoder(p: DecoderInputs, states: DecoderStates, saved: DecoderSaved, clip: float) -> _Decoder:
    """Describe a call; the tensors must be contiguous, and outlive it."""
    gates = [getattr(saved, name) for name in _GATES]
    bins = states.con_states, states.gen_states, states.factors, states.co_params, states.inputs
    return _Decoder(
        *states.inputs.shape[:3],
        *(x.shape[3] for x in (*bins[:3], states.inputs)),
        clip,
        *(address(getattr(p, name)) for name in (*_WEIGHTS, *_DRAWN)),
        *map(address, (p.con_h0, p.gen_h0, saved.first, *bins, *gates)),
        *(_over_bins(x, states.inputs) for x in gates),
    )


def _contiguous(p: DecoderInputs) -> DecoderInputs:
    """Return all but input products without gaps."""
    tensors: dict[str, Any] = {}
    for name in (*_WEIGHTS, *_DRAWN, "con_h0", "gen_h0"):
        x = getattr(p, name)
        tensors[name] = None if x is None else x.contiguous()
    return p._replace(**tensors)


def decoder_forward(p: DecoderInputs, options: Options) -> tuple[DecoderStates, DecoderSaved]:
    """As `lfads_torch.kernels.torch_loops.decoder_forward`."""
    n_bins, n_trials = p.con_proj.shape[1:3]
    con_proj = last_contiguous(p.con_proj)
    gen_proj = last_contiguous(p.gen_proj.expand(-1, n_bins, n_trials, -1))
    states, saved = decoder_room(p, options.keep)
    p = _contiguous(p)
    call = _decoder(p, states, saved, options.clip)
    library().lfads_decoder(
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
    p = _contiguous(p)
    states = DecoderStates(*(x.contiguous() for x in states))
    saved = DecoderSaved(*(x.contiguous() for x in saved))
    call = _decoder(p, states, saved, options.clip)
    outside = {k: None if x is None else x.contiguous() for k, x in grad._asdict().items()}
    n_nets, n_bins, n_trials = states.inputs.shape[:3]
    sizes, make = p.gen_proj.shape[1:3], states.inputs.new_empty
    # One row of biases stands for all bins and trials: only the sum of its gradient is kept.
    is_row = sizes == (1, 1)
    gen_x = make(n_nets, 1 if is_row else n_bins, n_trials, p.w_gen_hh.shape[1])
    gen_sum = gen_x.new_zeros(n_nets, 1, 1, gen_x.shape[-1]) if is_row else None
    con_x = make(*p.con_proj.shape[:3], p.w_con_hh.shape[1])
    con_h0, gen_h0 = torch.empty_like(p.con_h0), torch.empty_like(p.gen_h0)
    weights = [torch.zeros_like(getattr(p, name)) for name in _WEIGHTS]
    library().lfads_decoder_backward(
        ctypes.byref(call),
        ctypes.byref(_Outside(**{name: address(x) for name, x in outside.items()})),
        ctypes.byref(
            _Found(
                *map(address, (con_x, gen_x, con_h0, gen_h0, *weights, gen_sum)),
                _over_bins(gen_x, states.inputs),
            )
        ),
    )
    if gen_sum is None:
        shared = tuple(i for i, full in ((0, n_bins), (1, n_trials)) if sizes[i] < full)
        gen_sum = sum_over(gen_x, tuple(i + 1 for i in shared))
    return DecoderInputs(con_x, gen_sum, con_h0, gen_h0, *weights)
