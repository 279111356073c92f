"""The recurrent nets as operators, with a backward pass written out.

Autograd through a loop over bins records a dozen small operations per bin and adds every weight
gradient bin by bin. Here the forward pass keeps only the gates and states in preallocated buffers,
the backward loop holds only what depends on the gradient of the next bin, and each weight gradient
is one product over all bins, or in C a sum of one a bin. The loops themselves are `torch_loops` or
`c_loops`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from functools import cache
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from . import c_library, c_loops, torch_loops
from .linear import linear
from .operators import folded, operator
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
_OPTIONS = "float clip, bool two_way, bool keep, str loops"


def kernels(loops: str) -> Kernels:
    """Return the kernels whose loops are in C ("native") or Triton ("triton") where these can work.

    Elsewhere, or always ("torch"), they are in torch.
    """

    def clipped_gru(
        x_proj: Tensor, h0: Tensor, w_hh: Tensor, clip: float, two_way: bool = False
    ) -> GRUStates:
        # vmap folds its axis into the leading one, here without touching the axis of nets.
        inputs = GRUInputs(x_proj.unsqueeze(0), h0, w_hh)
        options = Options(clip, two_way, torch.is_grad_enabled(), loops)
        return unpack(_clipped_gru(*inputs, *options), GRUStates)[0]

    def decoder(inputs: DecoderInputs, clip: float) -> DecoderStates:
        options = Options(clip, False, torch.is_grad_enabled(), loops)
        return unpack(_decoder(*inputs, *options), DecoderStates)[0]

    return Kernels(
        clipped_gru, decoder, linear if loops == "native" else torch.nn.functional.linear
    )


def _loops(name: str, like: Tensor) -> Any:
    """Return the module whose loops take tensors such as `like`: the one by name, if it can."""
    if name == "triton":
        module, reason = triton_loops()
        reason = reason or module.why_not(like)
        if not reason:
            return module
        _warn(f"kernel is 'triton', which cannot be used: {reason}. Kernel 'auto' runs instead")
    return c_loops if name != "torch" and c_library.fits(like) else torch_loops


@cache
def triton_loops() -> tuple[Any, str]:
    """Return the module of the loops in Triton, or None and the reason."""
    try:
        from . import triton_loops as module
    except (ImportError, AttributeError) as error:  # versions before 3.4 lack some names
        needs = "it needs Triton 3.4 or newer, which builds of torch for CUDA bring on Linux"
        return None, f"{needs} ({error})"
    return module, ""


@cache
def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=2)


def pack(*tuples: Iterable[Tensor | None]) -> tuple[Tensor | None, ...]:
    """Join tuples of tensors to one flat tuple, because a `Function` sees no tensor in a tuple."""
    return tuple(chain(*tuples))


def unpack(tensors: Iterable[Any], *kinds: Any) -> list[Any]:
    """Take a flat tuple apart again, into one NamedTuple of each kind."""
    entries = iter(tensors)
    return [kind._make(islice(entries, len(kind._fields))) for kind in kinds]


def _recurrent(
    name: str,
    kinds: tuple[Any, Any, Any],
    needed: Callable[[Any, Any], tuple[Any, Any]],
    room: Callable[[Any, bool], tuple[Any, Any]],
    gradients: Callable[..., Any],
) -> Callable[..., Any]:
    """Return the operator `name` of a recurrent net; that of its gradient is ``{name}_backward``.

    `kinds` are those of inputs, states, and what the loops save besides. `needed` reduces inputs
    and states to what the backward pass needs; `room` and `gradients` make tensors as the forward
    and backward loops return them.
    """
    n_given, n_trained = len(kinds[0]._fields), len(_trained(kinds[0]))

    def loop(direction: str, like: Tensor, options: Options) -> Callable[..., Any]:
        return getattr(_loops(options.loops, like), f"{name}_{direction}")

    def backward_room(*args: Any) -> tuple[Any, ...]:
        grad, inputs, states, saved, _ = unpack(args, kinds[1], *kinds, Options)
        return tuple(gradients(grad, inputs, states, saved)[:n_trained])

    class Backward(Function):
        """A second `Function`, so that it is mapped by folding, too."""

        @staticmethod
        def forward(*args: Any) -> tuple[Any, ...]:
            *tensors, options = unpack(args, kinds[1], *kinds, Options)
            run = loop("backward", tensors[1][0], options)
            return tuple(run(*tensors, options)[:n_trained])

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            pass

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            raise NotImplementedError(_NO_SECOND)

    run_backward = operator(
        Backward,
        f"{name}_backward({_given(kinds[1], prefix='grad_')}, {_given(*kinds)}, {_OPTIONS}) -> "
        f"({_results(kinds[0])})",
        backward_room,
        folded,
    )

    def forward_room(*args: Any) -> tuple[Any, ...]:
        inputs, options = unpack(args, kinds[0], Options)
        return pack(*room(inputs, options.keep))

    class Forward(Function):
        @staticmethod
        def forward(*args: Any) -> tuple[Any, ...]:
            inputs, options = unpack(args, kinds[0], Options)
            return pack(*loop("forward", inputs[0], options)(inputs, options))

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            given, ctx.options = unpack(inputs, kinds[0], Options)
            states, saved = unpack(output, *kinds[1:])
            ctx.set_materialize_grads(False)
            ctx.mark_non_differentiable(*saved)
            ctx.save_for_backward(*pack(*needed(given, states), saved))

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
            grad = grads[: len(kinds[1]._fields)]
            trained = run_backward(*grad, *ctx.saved_tensors, *ctx.options)
            return (*trained, *[None] * (n_given - n_trained + len(ctx.options)))

    return operator(
        Forward,
        f"{name}({_given(kinds[0])}, {_OPTIONS}) -> ({_results(*kinds[1:])})",
        forward_room,
        folded,
    )


def _given(*kinds: Any, prefix: str = "") -> str:
    """Name tensors as arguments of a schema. Each may be None, as what is not needed is."""
    return ", ".join(f"Tensor? {prefix}{name}" for kind in kinds for name in kind._fields)


def _results(*kinds: Any) -> str:
    """Name tensors as results of a schema."""
    return ", ".join(f"Tensor {name}" for kind in kinds for name in _trained(kind))


def _trained(kind: Any) -> list[str]:
    """Return the fields that get a gradient, which noise and masks of the decoder do not."""
    return [name for name in kind._fields if name not in kind._field_defaults]


def _shape_of(x_proj: Tensor) -> Tensor:
    # The backward pass needs the leading sizes of an input product, and none of its numbers: they
    # are the largest tensors of all. As a tensor without entries, the sizes are mapped by vmap.
    return x_proj.new_empty(*x_proj.shape[:-1], 0)


def _gru_needed(inputs: GRUInputs, states: Any) -> tuple[Any, Any]:
    return inputs._replace(x_proj=_shape_of(inputs.x_proj)), states._replace(last=None)


def _decoder_needed(inputs: DecoderInputs, states: DecoderStates) -> tuple[Any, Any]:
    shapes = {"con_proj": _shape_of(inputs.con_proj), "gen_proj": _shape_of(inputs.gen_proj)}
    return inputs._replace(**shapes), states


def _gru_gradients(
    grad: GRUStates, inputs: GRUInputs, states: GRUStates, saved: GRUSaved
) -> GRUInputs:
    h0, w_hh = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in inputs[1:])
    return GRUInputs(torch_loops.gru_gradient(inputs), h0, w_hh)


def _decoder_gradients(
    grad: DecoderStates, p: DecoderInputs, states: DecoderStates, saved: DecoderSaved
) -> DecoderInputs:
    by_bin = torch_loops.decoder_gradients(grad.co_params, p, states, saved)
    return torch_loops.weight_gradients(by_bin, p, states)


_clipped_gru = _recurrent(
    "clipped_gru",
    (GRUInputs, GRUStates, GRUSaved),
    _gru_needed,
    torch_loops.gru_room,
    _gru_gradients,
)
_decoder = _recurrent(
    "decoder",
    (DecoderInputs, DecoderStates, DecoderSaved),
    _decoder_needed,
    torch_loops.decoder_room,
    _decoder_gradients,
)
