"""The recurrent nets with a backward pass written out.

Autograd through a loop over bins records a dozen small operations per bin and adds every weight
gradient bin by bin. Here the forward pass keeps only the gates and states in preallocated buffers,
the backward loop holds only what depends on the gradient of the next bin, and each weight gradient
is one product over all bins. The loops themselves are `torch_loops` or `c_loops`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain, islice
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from . import c_library, c_loops, torch_loops
from .types import (
    DecoderInputs,
    DecoderSaved,
    DecoderStates,
    GRUInputs,
    GRUSaved,
    GRUStates,
    Kernels,
    Options,
)

_NO_SECOND = "second derivatives need the kernel 'reference': LFADS(..., kernel='reference')"


def kernels(*, native: bool) -> Kernels:
    """Return the kernels that loop in C where they can (`native`), or always in torch."""

    def clipped_gru(
        x_proj: Tensor, h0: Tensor, w_hh: Tensor, clip: float, two_way: bool = False
    ) -> GRUStates:
        # vmap folds its axis into the leading one, here without touching the axis of nets.
        inputs = GRUInputs(x_proj.unsqueeze(0), h0, w_hh)
        return _run(_GRU, inputs, Options(clip, two_way, torch.is_grad_enabled()))

    def decoder(inputs: DecoderInputs, clip: float) -> DecoderStates:
        return _run(_DECODER, inputs, Options(clip, False, torch.is_grad_enabled()))

    def _run(net: _Net, inputs: Any, options: Options) -> Any:
        (states, _) = unpack(_Forward.apply(*pack(inputs), net, options, native), *net.results)
        return states

    return Kernels(clipped_gru, decoder)


def pack(*tuples: Iterable[Tensor | None]) -> tuple[Tensor | None, ...]:
    """Join tuples of tensors to one flat tuple, because a `Function` sees no tensor in a tuple."""
    return tuple(chain(*tuples))


def unpack(tensors: Iterable[Any], *kinds: Any) -> list[Any]:
    """Take a flat tuple apart again, into one NamedTuple of each kind."""
    entries = iter(tensors)
    return [kind._make(islice(entries, len(kind._fields))) for kind in kinds]


class _Net(NamedTuple):
    """A recurrent net as the two Functions see it."""

    name: str  # its loops are {name}_forward and {name}_backward
    inputs: Any
    results: tuple[Any, Any]  # kinds of the states and of what the loops save
    needed: Callable[[Any, Any], tuple[Any, Any]]

    def loops(self, direction: str, like: Tensor, native: bool) -> Callable[..., Any]:
        module: ModuleType = c_loops if native and c_library.fits(like) else torch_loops
        loops: Callable[..., Any] = getattr(module, f"{self.name}_{direction}")
        return loops


def _gru_needed(inputs: Any, states: Any) -> tuple[Any, Any]:
    inputs = inputs._replace(x_proj=_shape_of(inputs.x_proj), h0=None)
    return inputs, states._replace(states=None, last=None)


def _decoder_needed(inputs: Any, states: Any) -> tuple[Any, Any]:
    # What the loops save holds the other states.
    inputs = inputs._replace(
        con_proj=_shape_of(inputs.con_proj), gen_proj=_shape_of(inputs.gen_proj)
    )
    return inputs, states._replace(factors=None, gen_states=None, con_states=None)


def _shape_of(x_proj: Tensor) -> Tensor:
    # The backward pass needs the leading sizes of an input product, and none of its numbers: they
    # are the largest tensors of all. As a tensor without entries, the sizes are mapped by vmap.
    return x_proj.new_empty(*x_proj.shape[:-1], 0)


_GRU = _Net("gru", GRUInputs, (GRUStates, GRUSaved), _gru_needed)
_DECODER = _Net("decoder", DecoderInputs, (DecoderStates, DecoderSaved), _decoder_needed)


class _Folded(Function):
    """A `Function` whose tensors all lead with the axis K; vmap folds the axis it maps into K."""

    @classmethod
    def vmap(cls, info: Any, in_dims: Any, *args: Any) -> Any:
        size, folded = info.batch_size, []
        for arg, dim in zip(args, in_dims, strict=True):
            if isinstance(arg, Tensor):
                arg = arg.expand(size, *arg.shape) if dim is None else arg.movedim(dim, 0)
                arg = arg.flatten(0, 1)
            folded.append(arg)
        outputs = cls.apply(*folded)
        unfolded = tuple(None if x is None else x.unflatten(0, (size, -1)) for x in outputs)
        return unfolded, tuple(None if x is None else 0 for x in outputs)


class _Forward(_Folded):
    @staticmethod
    def forward(*args: Any) -> tuple[Tensor | None, ...]:
        *tensors, net, options, native = args
        (inputs,) = unpack(tensors, net.inputs)
        return pack(*net.loops("forward", inputs[0], native)(inputs, options))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *tensors, net, options, native = inputs
        (inputs,) = unpack(tensors, net.inputs)
        states, saved = unpack(output, *net.results)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*saved)
        ctx.save_for_backward(*pack(*net.needed(inputs, states), saved))
        ctx.call = net, options, native

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        net, *_ = ctx.call
        grad, _ = unpack(grads, *net.results)
        return *_Backward.apply(*pack(grad, ctx.saved_tensors), *ctx.call), None, None, None


class _Backward(_Folded):
    """Run the backward pass as a second `Function`, so that it is mapped by folding, too."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor | None, ...]:
        *tensors, net, options, native = args
        states, saved = net.results
        grad, *kept = unpack(tensors, states, net.inputs, states, saved)
        return pack(net.loops("backward", kept[0][0], native)(grad, *kept, options))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise NotImplementedError(_NO_SECOND)
