"""The loops over bins in C (``native_loops.c``), for float32 on the CPU: see `torch_loops`."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from .c_library import address, last_contiguous, library, strides
from .torch_loops import (
    DecoderGradients,
    GRUGradients,
    from_initial,
    gate_buffers,
    recurrent_gradient,
)
from .types import DecoderInputs, DecoderStates, GRUStates

_WEIGHTS = DecoderInputs._fields[4:]  # and noise and masks, in the order of the C struct
_WRITTEN = (
    *("con_x", "gen_x", "con_h0", "gen_h0", "factors", "co"),
    *("con_reset", "gen_reset", "fac_in", "gen_in"),
)
_TURNED = tuple(name for name in _WEIGHTS if name.startswith("w_"))


class _GRU(ctypes.Structure):
    """The struct `gru` of ``native_loops.c``."""

    _fields_ = (
        *((name, ctypes.c_int) for name in ("K", "T", "B", "n", "two_way")),
        ("clip", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("w", "states", "gates", "cand")),
        *((name, ctypes.c_int64 * 2) for name in ("gates_s", "cand_s")),
        ("each", ctypes.c_int),
    )


class _Decoder(ctypes.Structure):
    """The struct `decoder` of ``native_loops.c``."""

    _fields_ = (
        *((name, ctypes.c_int) for name in ("K", "T", "B", "C", "G", "F", "U")),
        ("clip", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in _WEIGHTS),
        *(
            (name, ctypes.c_void_p)
            for name in ("con_states", "gen_states", "factors", "co", "inputs")
        ),
        *((name, ctypes.c_void_p) for name in ("con_gates", "con_cand", "gen_gates", "gen_cand")),
        *(
            (f"{name}_s", ctypes.c_int64 * 2)
            for name in ("con_gates", "con_cand", "gen_gates", "gen_cand")
        ),
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

    _fields_ = tuple((name, ctypes.c_void_p) for name in _WRITTEN)


def _gru(*arrays: Tensor, clip: float, two_way: bool, each: int) -> _GRU:
    w_hh, states, gates, cand = arrays
    n_nets, n_entries, n_trials, n_units = states.shape
    return _GRU(
        *(n_nets, n_entries - 2, n_trials, n_units, two_way, clip),
        *map(address, (w_hh, states, gates, cand)),
        *(strides(gates, 2), strides(cand, 2), each),
    )


def gru_forward(
    x_proj: Tensor, h0: Tensor, w_hh: Tensor, clip: float, two_way: bool, keep: bool
) -> tuple[GRUStates, tuple[Tensor, ...]]:
    """As `lfads_torch.kernels.torch_loops.gru_forward`."""
    each, n_bins = x_proj.shape[1:3]
    x_proj, w_hh = last_contiguous(x_proj), w_hh.mT.contiguous()
    # The entries before the first and after the last bin hold the initial states of the nets that
    # run forward and backward.
    states = h0.new_empty(h0.shape[0], n_bins + 2, *h0.shape[1:])
    for nets, before, _ in _directions(n_bins, two_way):
        states[nets, before.start if before.start == 0 else -1] = h0[nets]
    gates, cand = gate_buffers(h0, n_bins, keep)
    call = _gru(w_hh, states, gates, cand, clip=clip, two_way=two_way, each=each)
    library().lfads_gru_forward(ctypes.byref(call), address(x_proj), strides(x_proj, 4))
    last = torch.empty_like(h0, memory_format=torch.contiguous_format)
    for nets, _, end in _directions(n_bins, two_way):
        last[nets] = states[nets, end]
    return GRUStates(states[:, 1:-1], last), (states, gates, cand)


def _directions(n_bins: int, two_way: bool) -> list[tuple[slice, slice, int]]:
    """Nets of each direction, the entries of the states before each bin, and of the last state."""
    forward, backward = slice(0, n_bins), slice(2, n_bins + 2)
    if not two_way:
        return [(slice(None), forward, n_bins)]
    return [(slice(0, None, 2), forward, n_bins), (slice(1, None, 2), backward, 1)]


def gru_backward(
    grad: GRUStates,
    w_hh: Tensor,
    clip: float,
    two_way: bool,
    n_models: int,
    saved: tuple[Tensor, ...],
) -> GRUGradients:
    """As `lfads_torch.kernels.torch_loops.gru_backward`."""
    states, gates, cand = saved
    n_nets, n_entries, n_trials, n_units = states.shape
    n_bins = n_entries - 2
    outside = [None if x is None else x.contiguous() for x in grad]
    w_hh = w_hh.contiguous()
    # A model's nets come from one input product, whose gradient this is.
    each = n_nets // n_models
    grad_x = states.new_empty(n_models, n_bins, n_trials, each, 3 * n_units)
    grad_x = grad_x.permute(0, 3, 1, 2, 4)
    grad_h0 = states.new_empty(n_nets, n_trials, n_units)
    reset = states.new_empty(n_nets, n_bins, n_trials, n_units)
    call = _gru(w_hh, states, gates, cand, clip=clip, two_way=two_way, each=each)
    library().lfads_gru_backward(
        ctypes.byref(call),
        *map(address, outside),
        *(address(grad_x), strides(grad_x, 4)),
        *map(address, (grad_h0, reset)),
    )
    grad_w = torch.empty_like(w_hh)
    for nets, before, _ in _directions(n_bins, two_way):
        own = grad_x[:, nets].flatten(0, 1)
        grad_w[nets] = recurrent_gradient(own, states[nets, before], reset[nets])
    return GRUGradients(grad_x, grad_h0, grad_w)


def _decoder(
    p: DecoderInputs,
    clip: float,
    turned: bool,
    co_params: Tensor,
    inputs: Tensor | None,
    saved: tuple[Tensor, ...],
) -> tuple[_Decoder, list[Tensor | None]]:
    """Describe a call, with weights (K, in, out) if `turned`; the tensors must outlive it."""
    factors, con_states, con_gates, con_cand, gen_states, gen_gates, gen_cand = saved
    wanted = p._replace(**{f: getattr(p, f).mT for f in _TURNED}) if turned else p
    alive = [None if x is None else x.contiguous() for x in wanted[4:]]
    call = _Decoder(
        *co_params.shape[:3],
        *(con_states.shape[3], gen_states.shape[3], factors.shape[3], p.w_gen_u.shape[-1], clip),
        *map(address, (*alive, con_states, gen_states, factors, co_params, inputs)),
        *map(address, (con_gates, con_cand, gen_gates, gen_cand)),
        *(strides(x, 2) for x in (con_gates, con_cand, gen_gates, gen_cand)),
    )
    return call, alive


def decoder_forward(
    p: DecoderInputs, clip: float, keep: bool
) -> tuple[DecoderStates, tuple[Tensor, ...]]:
    """As `lfads_torch.kernels.torch_loops.decoder_forward`."""
    n_nets, n_bins, n_trials = p.con_proj.shape[:3]
    n_inputs = p.w_gen_u.shape[-1]
    make = p.con_h0.new_empty
    co_params = make(n_nets, n_bins, n_trials, 2 * n_inputs)
    inputs = make(n_nets, n_bins, n_trials, n_inputs)
    con_proj = last_contiguous(p.con_proj)
    gen_proj = last_contiguous(p.gen_proj.expand(-1, n_bins, n_trials, -1))
    con_states, gen_states = from_initial(p.con_h0, n_bins), from_initial(p.gen_h0, n_bins)
    saved = (
        make(n_nets, n_bins + 1, n_trials, p.w_fac.shape[1]),
        *(con_states, *gate_buffers(p.con_h0, n_bins, keep)),
        *(gen_states, *gate_buffers(p.gen_h0, n_bins, keep)),
    )
    call, _alive = _decoder(p, clip, True, co_params, inputs, saved)
    library().lfads_decoder_forward(
        ctypes.byref(call),
        *(address(con_proj), strides(con_proj, 3)),
        *(address(gen_proj), strides(gen_proj, 3)),
    )
    states = (saved[0][:, 1:], gen_states[:, 1:], con_states[:, 1:])
    return DecoderStates(*states, co_params, inputs), saved


def decoder_backward(
    grad: DecoderStates,
    p: DecoderInputs,
    clip: float,
    co_params: Tensor,
    saved: tuple[Tensor, ...],
) -> DecoderGradients:
    """As `lfads_torch.kernels.torch_loops.decoder_backward`."""
    factors, con_states, _, _, gen_states, _, _ = saved
    co_params = co_params.contiguous()
    call, _alive = _decoder(p, clip, False, co_params, None, saved)
    given: Any = {name: None if x is None else x.contiguous() for name, x in grad._asdict().items()}
    from_co = given.pop("co_params")
    con_before, gen_before = con_states[:, :-1], gen_states[:, :-1]
    make = factors.new_empty
    out = DecoderGradients(
        con_x=make(*con_before.shape[:3], 3 * con_before.shape[3]),
        gen_x=make(*gen_before.shape[:3], 3 * gen_before.shape[3]),
        con_h0=make(con_states[:, 0].shape),
        gen_h0=make(gen_states[:, 0].shape),
        factors=make(factors.shape),
        co=torch.zeros_like(co_params) if from_co is None else from_co.clone(),
        con_before=con_before,
        gen_before=gen_before,
        con_after=con_states[:, 1:],
        con_reset=make(con_before.shape),
        gen_reset=make(gen_before.shape),
        fac_in=factors[:, :-1] if p.fac_mask is None else make(factors[:, :-1].shape),
        gen_in=gen_states if p.gen_mask is None else make(gen_states.shape),
    )
    written = {name: getattr(out, name) for name in _WRITTEN}
    if p.fac_mask is None:
        written["fac_in"] = None
    if p.gen_mask is None:
        written["gen_in"] = None
    library().lfads_decoder_backward(
        ctypes.byref(call), ctypes.byref(_Outside(**given)), ctypes.byref(_Found(**written))
    )
    return out
