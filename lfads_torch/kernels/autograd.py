"""The recurrent nets with a backward pass written out.

Autograd through a loop over bins records a dozen small operations per bin and adds every weight
gradient bin by bin. Here the forward pass keeps only the gates and states in preallocated buffers,
the backward loop holds only what depends on the gradient of the next bin, and each weight gradient
is one product over all bins. The loops themselves are `torch_loops` or `c_loops`.

`torch.func` maps (vmap) fold the mapped axis into the axis K of independent nets.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function

from . import c_library, c_loops, torch_loops
from .torch_loops import over_bins, recurrent_gradient
from .types import DecoderInputs, DecoderStates, GRUStates

_N_STATES = len(DecoderStates._fields)
_N_INPUTS = len(DecoderInputs._fields)
_NO_SECOND = "second derivatives need the kernel 'reference': LFADS(..., kernel='reference')"


def clipped_gru(
    x_proj: Float[Tensor, "K T B H3"],
    h0: Float[Tensor, "K B H"],
    w_hh: Float[Tensor, "K H3 H"],
    clip: float,
    two_way: bool = False,
) -> GRUStates:
    """See `lfads_torch.kernels.Kernels.clipped_gru`; loops in torch."""
    return _gru(x_proj, h0, w_hh, clip, two_way, native_wanted=False)


def decoder(inputs: DecoderInputs, clip: float) -> DecoderStates:
    """See `lfads_torch.kernels.Kernels.decoder`; loops in torch."""
    results = _Decoder.apply(*inputs, clip, torch.is_grad_enabled(), False)
    return DecoderStates(*results[:_N_STATES])


def native_clipped_gru(
    x_proj: Tensor, h0: Tensor, w_hh: Tensor, clip: float, two_way: bool = False
) -> GRUStates:
    """See `lfads_torch.kernels.Kernels.clipped_gru`; loops in C where they can be."""
    return _gru(x_proj, h0, w_hh, clip, two_way, native_wanted=True)


def native_decoder(inputs: DecoderInputs, clip: float) -> DecoderStates:
    """See `lfads_torch.kernels.Kernels.decoder`; loops in C where they can be."""
    results = _Decoder.apply(*inputs, clip, torch.is_grad_enabled(), True)
    return DecoderStates(*results[:_N_STATES])


def _gru(
    x_proj: Tensor, h0: Tensor, w_hh: Tensor, clip: float, two_way: bool, *, native_wanted: bool
) -> GRUStates:
    # vmap folds its axis into the leading one, here without touching the axis of nets.
    arguments = x_proj.unsqueeze(0), h0, w_hh, clip, two_way
    return GRUStates(*_ClippedGRU.apply(*arguments, torch.is_grad_enabled(), native_wanted)[:2])


def _loops_for(like: Tensor, native_wanted: bool) -> ModuleType:
    return c_loops if native_wanted and c_library.fits(like) else torch_loops


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
    def forward(*args: Any) -> tuple[Tensor, ...]:
        *arguments, native_wanted = args
        states, saved = _loops_for(args[0], native_wanted).gru_forward(*arguments)
        return *states, *saved

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x_proj, _, w_hh, clip, two_way, _, native_wanted = inputs
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*output[2:])
        ctx.save_for_backward(w_hh, *output[2:])
        ctx.options = clip, two_way, x_proj.shape[0], native_wanted

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        found = _ClippedGRUBackward.apply(*grads[:2], *ctx.saved_tensors, *ctx.options)
        return *found, None, None, None, None


class _ClippedGRUBackward(_BackwardFunction):
    @classmethod
    def vmap(cls, info: Any, in_dims: Any, *args: Any) -> Any:
        *others, n_models, native_wanted = args
        return super().vmap(info, in_dims, *others, n_models * info.batch_size, native_wanted)

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        grad_states, grad_last, w_hh, *saved, clip, two_way, n_models, native_wanted = args
        run = _loops_for(w_hh, native_wanted).gru_backward
        grad = GRUStates(grad_states, grad_last)
        return tuple(run(grad, w_hh, clip, two_way, n_models, tuple(saved)))


class _Decoder(_FoldedFunction):
    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        *tensors, clip, keep, native_wanted = args
        p = DecoderInputs(*tensors)
        states, saved = _loops_for(p.con_proj, native_wanted).decoder_forward(p, clip, keep)
        return *states, *saved

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*output[_N_STATES:])
        # The input products, the largest tensors of all, are not needed again. Of the results only
        # the last two are: what the loops saved holds the others.
        ctx.save_for_backward(
            None,
            None,
            *inputs[2:_N_INPUTS],
            *output[_N_STATES - 2 : _N_STATES],
            *output[_N_STATES:],
        )
        clip, _, native_wanted = inputs[_N_INPUTS:]
        # Which axes of the generator's input product stand for all bins, or all trials.
        shared = tuple(i for i in (1, 2) if inputs[1].shape[i] < inputs[0].shape[i])
        ctx.options = clip, shared, native_wanted

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        found = _DecoderBackward.apply(*grads[:_N_STATES], *ctx.saved_tensors, *ctx.options)
        return *found, None, None, None


class _DecoderBackward(_BackwardFunction):
    @staticmethod
    def forward(*args: Any) -> tuple[Tensor | None, ...]:
        *tensors, clip, shared, native_wanted = args
        grad = DecoderStates(*tensors[:_N_STATES])
        p = DecoderInputs(*tensors[_N_STATES : _N_STATES + _N_INPUTS])
        co_params, inputs, *saved = tensors[_N_STATES + _N_INPUTS :]
        run = _loops_for(co_params, native_wanted).decoder_backward
        found = run(grad, p, clip, co_params, tuple(saved))
        return (
            *(found.con_x, _sum_over(found.gen_x, shared), found.con_h0, found.gen_h0),
            over_bins(found.con_x, found.fac_in),
            recurrent_gradient(found.con_x, found.con_before, found.con_reset),
            over_bins(found.co, found.con_after),
            found.co.sum(dim=(1, 2)),
            over_bins(found.gen_x, inputs),
            recurrent_gradient(found.gen_x, found.gen_before, found.gen_reset),
            over_bins(found.factors, found.gen_in),
            *(None, None, None),
        )


def _sum_over(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Sum (K, T, B, M) over bins, trials or both, which are kept as axes of size 1."""
    if len(axes) < 2:
        return x.sum(axes, keepdim=True) if axes else x
    # Twice as fast as to sum over both axes.
    rows = x.flatten(1, 2)
    return torch.bmm(x.new_ones(rows.shape[0], 1, rows.shape[1]), rows).unsqueeze(1)
