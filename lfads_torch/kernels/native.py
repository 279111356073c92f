"""The loops over bins in C (``native.c``), for float32 on the CPU.

The library is built by the ordinary install where a C compiler is found and left out where none is;
`why_not` says what is amiss. It takes its matrix product from the BLAS that torch carries, and its
threads are those of torch (both use the same OpenMP library).
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .loops import CellBuffers, DecoderBuffers, DecoderGradients, outside_gradients
from .signatures import DecoderInputs, DecoderStates


@cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    """Return the library, or None and the reason."""
    if os.environ.get("LFADS_NATIVE") == "0":
        return None, "switched off by LFADS_NATIVE=0"
    folder = Path(__file__).parent
    paths = [folder / f"_native{suffix}" for suffix in EXTENSION_SUFFIXES]
    path = next((p for p in paths if p.is_file()), None)
    if path is None:
        return None, "not built: the install found no C compiler with OpenMP"
    try:
        library = ctypes.CDLL(str(path))
        blas = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        library.lfads_set_sgemm.argtypes = [ctypes.c_void_p]
        library.lfads_set_sgemm(ctypes.cast(blas.sgemm_, ctypes.c_void_p))
    except (OSError, AttributeError) as error:
        return None, f"{path.name} cannot be used: {error}"
    return library, ""


def why_not() -> str:
    """Why the library cannot be used on this machine; empty where it can."""
    return _load()[1]


def fits(like: Tensor) -> bool:
    """Whether the library can work on tensors such as `like`."""
    is_right = like.device.type == "cpu" and like.dtype == torch.float32
    return is_right and _load()[0] is not None


def _library() -> ctypes.CDLL:
    library = _load()[0]
    if library is None:
        raise RuntimeError(f"the native loops are {why_not()}")
    return library


def _address(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def _rows(tensor: Tensor) -> Tensor:
    """The tensor itself where its last axis is contiguous, else a contiguous copy."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _strides(tensor: Tensor) -> list[ctypes.c_int64]:
    return [ctypes.c_int64(s) for s in tensor.stride()[:3]]


def gru_forward(
    x_proj: Tensor, h0: Tensor, w_hh: Tensor, clip: float, buffers: CellBuffers
) -> None:
    """As `lfads_torch.kernels.loops.gru_forward`."""
    x_proj, h0, w_hh = _rows(x_proj), h0.contiguous(), w_hh.contiguous()
    states, gates, cand = buffers
    _library().lfads_gru_forward(
        *map(ctypes.c_int, states.shape),
        _address(x_proj),
        *_strides(x_proj),
        _address(h0),
        _address(w_hh),
        ctypes.c_float(clip),
        _address(states),
        _address(gates),
        *_strides(gates)[:2],
        _address(cand),
        *_strides(cand)[:2],
    )


def gru_backward(
    grad_states: Tensor, h0: Tensor, w_hh: Tensor, clip: float, buffers: CellBuffers
) -> tuple[Tensor, Tensor]:
    """As `lfads_torch.kernels.loops.gru_backward`."""
    grad_states, h0, w_hh = grad_states.contiguous(), h0.contiguous(), w_hh.contiguous()
    states, gates, cand = (buffer.contiguous() for buffer in buffers)
    grad_x = states.new_empty(*states.shape[:3], 3 * states.shape[3])
    grad_h0 = torch.empty_like(h0)
    _library().lfads_gru_backward(
        *map(ctypes.c_int, states.shape),
        *map(_address, (grad_states, h0, w_hh)),
        ctypes.c_float(clip),
        *map(_address, (states, gates, cand, grad_x, grad_h0)),
    )
    return grad_x, grad_h0


def fill_mask(out: Tensor, seed: int, threshold: int, scale: float = 1.0) -> None:
    """Fill a contiguous float32 or bool mask: 0 with probability threshold / 65536, else `scale`.

    Entry i depends on the seed and i alone.
    """
    none, address = ctypes.c_void_p(None), _address(out)
    _library().lfads_mask(
        ctypes.c_int64(out.numel()),
        ctypes.c_uint64(seed % 2**64),
        ctypes.c_int(threshold),
        ctypes.c_float(scale),
        *((none, address) if out.dtype == torch.bool else (address, none)),
    )


class _Decoder(ctypes.Structure):
    """The struct `decoder` of ``native.c``."""

    _fields_ = (
        *((name, ctypes.c_int) for name in ("K", "T", "B", "C", "G", "F", "U")),
        ("clip", ctypes.c_float),
        ("con_proj", ctypes.c_void_p),
        ("gen_proj", ctypes.c_void_p),
        ("con_s", ctypes.c_int64 * 3),
        ("gen_s", ctypes.c_int64 * 3),
        *((name, ctypes.c_void_p) for name in DecoderInputs._fields[2:]),
        *(
            (name, ctypes.c_void_p)
            for name in ("factors", "gen_states", "con_states", "co", "inputs")
        ),
        *((name, ctypes.c_void_p) for name in ("con_gates", "con_cand", "gen_gates", "gen_cand")),
        ("con_gates_s", ctypes.c_int64 * 2),
        ("con_cand_s", ctypes.c_int64 * 2),
        ("gen_gates_s", ctypes.c_int64 * 2),
        ("gen_cand_s", ctypes.c_int64 * 2),
    )


def _decoder(
    p: DecoderInputs, clip: float, buffers: DecoderBuffers
) -> tuple[_Decoder, list[Tensor]]:
    """Describe a call; the tensors must live until it returns."""
    inputs = [None if x is None else x.contiguous() for x in p[2:]]
    projections = [None if x is None else _rows(x) for x in p[:2]]
    con, gen = buffers.con, buffers.gen
    n_nets, n_bins, n_trials, n_con = con.states.shape
    call = _Decoder(
        *(n_nets, n_bins, n_trials, n_con, gen.states.shape[3]),
        *(buffers.factors.shape[3], buffers.inputs.shape[3], clip),
    )
    for name, x in zip(("con", "gen"), projections, strict=True):
        setattr(call, f"{name}_proj", None if x is None else x.data_ptr())
        if x is not None:
            setattr(call, f"{name}_s", (ctypes.c_int64 * 3)(*x.stride()[:3]))
    arrays: dict[str, Any] = dict(zip(DecoderInputs._fields[2:], inputs, strict=True))
    arrays |= {"factors": buffers.factors, "co": buffers.co, "inputs": buffers.inputs}
    for name, cell in (("con", con), ("gen", gen)):
        arrays[f"{name}_states"] = cell.states
        for part, x in (("gates", cell.gates), ("cand", cell.cand)):
            arrays[f"{name}_{part}"] = x
            setattr(call, f"{name}_{part}_s", (ctypes.c_int64 * 2)(*x.stride()[:2]))
    for name, x in arrays.items():
        setattr(call, name, None if x is None else x.data_ptr())
    return call, [x for x in (*inputs, *projections) if x is not None]


def decoder_forward(p: DecoderInputs, clip: float, buffers: DecoderBuffers) -> None:
    """As `lfads_torch.kernels.loops.decoder_forward`."""
    call, _alive = _decoder(p, clip, buffers)
    _library().lfads_decoder_forward(ctypes.byref(call))


def decoder_backward(
    grad: DecoderStates, p: DecoderInputs, clip: float, buffers: DecoderBuffers
) -> DecoderGradients:
    """As `lfads_torch.kernels.loops.decoder_backward`."""
    buffers = DecoderBuffers(
        CellBuffers(*(x.contiguous() for x in buffers.con)),
        CellBuffers(*(x.contiguous() for x in buffers.gen)),
        *(x.contiguous() for x in buffers[2:]),
    )
    call, _alive = _decoder(p, clip, buffers)
    grad_f, grad_co = outside_gradients(grad, buffers)
    grad_co = grad_co.contiguous()
    outside: list[Tensor | None] = [grad.gen_states, grad.con_states, grad.inputs]
    outside = [None if x is None else x.contiguous() for x in outside]
    make = buffers.co.new_empty
    found = DecoderGradients(
        con_x=make(*buffers.con.states.shape[:3], 3 * buffers.con.states.shape[3]),
        gen_x=make(*buffers.gen.states.shape[:3], 3 * buffers.gen.states.shape[3]),
        con_h0=make(p.con_h0.shape),
        gen_h0=make(p.gen_h0.shape),
        factors=grad_f,
        co=grad_co,
    )
    _library().lfads_decoder_backward(
        ctypes.byref(call),
        *map(_address, outside),
        *map(_address, (grad_f, grad_co, *found[:4])),
    )
    return found
