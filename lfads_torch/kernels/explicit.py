"""The recurrent nets with a backward pass written out.

Autograd through a loop over bins records a dozen small operations per bin and adds every weight
gradient bin by bin. Here the forward pass keeps only the gates and states in preallocated buffers,
the backward loop holds only what depends on the gradient of the next bin, and each weight gradient
is one product over all bins. The loops themselves are `loops` (torch) or `native` (C).

`torch.func` maps (vmap) fold the mapped axis into the axis K of independent nets.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function

from . import loops, native
from .loops import CellBuffers, DecoderBuffers
from .signatures import DecoderInputs, DecoderStates

_N_STATES = len(DecoderStates._fields)
_N_INPUTS = len(DecoderInputs._fields)
_NO_SECOND = "second derivatives need the kernel 'reference': LFADS(..., kernel='reference')"


def clipped_gru(
    x_proj: Float[Tensor, "K T B H3"],
    h0: Float[Tensor, "K B H"],
    w_hh: Float[Tensor, "K H3 H"],
    clip: float,
) -> Float[Tensor, "K T B H"]:
    """See `lfads_torch.kernels.Kernels.clipped_gru`; loops in torch."""
    return _ClippedGRU.apply(x_proj, h0, w_hh, clip, torch.is_grad_enabled(), False)[0]


def decoder(inputs: DecoderInputs, clip: float) -> DecoderStates:
    """See `lfads_torch.kernels.Kernels.decoder`; loops in torch."""
    results = _Decoder.apply(*inputs, clip, torch.is_grad_enabled(), False)
    return DecoderStates(*results[:_N_STATES])


def native_clipped_gru(x_proj: Tensor, h0: Tensor, w_hh: Tensor, clip: float) -> Tensor:
    """See `lfads_torch.kernels.Kernels.clipped_gru`; loops in C where they can be."""
    return _ClippedGRU.apply(x_proj, h0, w_hh, clip, torch.is_grad_enabled(), True)[0]


def native_decoder(inputs: DecoderInputs, clip: float) -> DecoderStates:
    """See `lfads_torch.kernels.Kernels.decoder`; loops in C where they can be."""
    results = _Decoder.apply(*inputs, clip, torch.is_grad_enabled(), True)
    return DecoderStates(*results[:_N_STATES])


def _loops_for(like: Tensor, native_wanted: bool) -> ModuleType:
    return native if native_wanted and native.fits(like) else loops


def _over_bins(grad_out: Tensor, inp: Tensor) -> Tensor:
    """Weight gradient (K, out, in) of a product applied at every bin (K, T, B, .)."""
    return torch.bmm(grad_out.flatten(1, 2).mT, inp.flatten(1, 2))


def _grad_w_hh(grad_x: Tensor, h0: Tensor, buffers: CellBuffers) -> Tensor:
    """Gradient of the recurrent weights; the reset gate acts before the candidate's product."""
    n = h0.shape[-1]
    previous = torch.cat([h0.unsqueeze(1), buffers.states[:, :-1]], dim=1)
    grad_zr = _over_bins(grad_x[..., : 2 * n], previous)
    grad_n = _over_bins(grad_x[..., 2 * n :], previous.mul_(buffers.gates[..., n:]))
    return torch.cat([grad_zr, grad_n], dim=1)


def _fold(size: int, in_dims: tuple[int | None, ...], args: tuple[Any, ...]) -> list[Any]:
    """Fold the axis that `torch.func.vmap` maps over into the leading axis K."""
    folded = []
    for arg, dim in zip(args, in_dims, strict=True):
        if isinstance(arg, Tensor):
            arg = arg.expand(size, *arg.shape) if dim is None else arg.movedim(dim, 0)
            arg = arg.flatten(0, 1)
        folded.append(arg)
    return folded


class _FoldedFunction(Function):
    """A `Function` whose tensors all lead with the axis K, mapped by folding into it."""

    @classmethod
    def vmap(cls, info: Any, in_dims: Any, *args: Any) -> Any:
        outputs = cls.apply(*_fold(info.batch_size, in_dims, args))
        unfolded = tuple(
            None if x is None else x.unflatten(0, (info.batch_size, -1)) for x in outputs
        )
        return unfolded, tuple(None if x is None else 0 for x in outputs)


class _BackwardFunction(_FoldedFunction):
    """A backward pass as a `Function` of its own, so that it is mapped by folding, too."""

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise NotImplementedError(_NO_SECOND)


class _ClippedGRU(_FoldedFunction):
    @staticmethod
    def forward(
        x_proj: Tensor, h0: Tensor, w_hh: Tensor, clip: float, keep: bool, native_wanted: bool
    ) -> CellBuffers:
        buffers = CellBuffers.allocate(x_proj, keep)
        _loops_for(x_proj, native_wanted).gru_forward(x_proj, h0, w_hh, clip, buffers)
        return buffers

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _, h0, w_hh, *ctx.options = inputs
        states, gates, cand = output
        ctx.mark_non_differentiable(gates, cand)
        ctx.save_for_backward(h0, w_hh, states, gates, cand)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        clip, _, native_wanted = ctx.options
        found = _ClippedGRUBackward.apply(grads[0], *ctx.saved_tensors, clip, native_wanted)
        return *found, None, None, None


class _ClippedGRUBackward(_BackwardFunction):
    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
        grad_states, h0, w_hh, *saved, clip, native_wanted = args
        buffers = CellBuffers(*saved)
        run = _loops_for(grad_states, native_wanted).gru_backward
        grad_x, grad_h0 = run(grad_states, h0, w_hh, clip, buffers)
        return grad_x, grad_h0, _grad_w_hh(grad_x, h0, buffers)


class _Decoder(_FoldedFunction):
    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        *tensors, clip, keep, native_wanted = args
        p = DecoderInputs(*tensors)
        n_nets, n_bins, n_trials = p.con_proj.shape[:3]
        n_inputs = p.w_gen_u.shape[-1]
        make = p.con_h0.new_empty
        buffers = DecoderBuffers(
            con=CellBuffers.allocate(p.con_proj, keep),
            gen=CellBuffers.allocate(p.gen_proj, keep),
            factors=make(n_nets, n_bins + 1, n_trials, p.w_fac.shape[1]),
            co=make(n_nets, n_bins, n_trials, 2 * n_inputs),
            inputs=make(n_nets, n_bins, n_trials, n_inputs),
        )
        _loops_for(p.con_proj, native_wanted).decoder_forward(p, clip, buffers)
        con, gen, factors = buffers.con, buffers.gen, buffers.factors
        return (
            *(factors[:, 1:], gen.states, con.states, buffers.co, buffers.inputs),
            *(factors[:, 0].clone(), con.gates, con.cand, gen.gates, gen.cand),
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*output[_N_STATES:])
        # The input products, the largest tensors of all, are not needed again.
        ctx.save_for_backward(None, None, *inputs[2:_N_INPUTS], *output)
        ctx.options = inputs[_N_INPUTS:]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        clip, _, native_wanted = ctx.options
        found = _DecoderBackward.apply(*grads[:_N_STATES], *ctx.saved_tensors, clip, native_wanted)
        return *found, None, None, None


class _DecoderBackward(_BackwardFunction):
    @staticmethod
    def forward(*args: Any) -> tuple[Tensor | None, ...]:
        *tensors, clip, native_wanted = args
        grad = DecoderStates(*tensors[:_N_STATES])
        p = DecoderInputs(*tensors[_N_STATES : _N_STATES + _N_INPUTS])
        out = DecoderStates(*tensors[_N_STATES + _N_INPUTS : 2 * _N_STATES + _N_INPUTS])
        first, con_gates, con_cand, gen_gates, gen_cand = tensors[2 * _N_STATES + _N_INPUTS :]
        buffers = DecoderBuffers(
            con=CellBuffers(out.con_states, con_gates, con_cand),
            gen=CellBuffers(out.gen_states, gen_gates, gen_cand),
            factors=torch.cat([first.unsqueeze(1), out.factors], dim=1),
            co=out.co_params,
            inputs=out.inputs,
        )
        run = _loops_for(out.inputs, native_wanted).decoder_backward
        found = run(grad, p, clip, buffers)

        factors_in = buffers.factors[:, :-1]
        if p.fac_mask is not None:
            factors_in = factors_in * p.fac_mask
        gen_in = torch.cat([p.gen_h0.unsqueeze(1), out.gen_states], dim=1)
        if p.gen_mask is not None:
            gen_in.mul_(p.gen_mask)
        return (
            *(found.con_x, found.gen_x, found.con_h0, found.gen_h0),
            _over_bins(found.con_x, factors_in),
            _grad_w_hh(found.con_x, p.con_h0, buffers.con),
            _over_bins(found.co, out.con_states),
            found.co.sum(dim=(1, 2)),
            _over_bins(found.gen_x, out.inputs),
            _grad_w_hh(found.gen_x, p.gen_h0, buffers.gen),
            _over_bins(found.factors, gen_in),
            *(None, None, None),
        )
