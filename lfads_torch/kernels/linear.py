"""Input products of all bins, a linear map, for float32 on the CPU in C (``native_loops.c``).

The axis K of independent maps is that of a population's members, which vmap folds into it.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .c_library import address, fits, last_contiguous, library, strides
from .operators import folded, operator


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Compute `torch.nn.functional.linear` of (T, B, N)."""
    y = _linear(x.flatten(0, 1).unsqueeze(0), weight.unsqueeze(0), bias.unsqueeze(0))
    return y.view(*x.shape[:2], -1)


def _in_c(x: Tensor) -> bool:
    return fits(x) and x.numel() > 0


def _sizes(x: Tensor, weight: Tensor) -> list[ctypes.c_int]:
    return [ctypes.c_int(n) for n in (*x.shape, weight.shape[1])]


class _Gradient(Function):
    """Gradients of input, empty unless `needs_x`, weight and bias."""

    @staticmethod
    def forward(grad: Tensor, x: Tensor, weight: Tensor, needs_x: bool) -> tuple[Tensor, ...]:
        if not _in_c(x):
            x_grad = torch.bmm(grad, weight) if needs_x else x.new_empty(x.shape[0], 0)
            return x_grad, torch.bmm(grad.mT, x), grad.sum(1)
        grad, x, weight = grad.contiguous(), last_contiguous(x), weight.contiguous()
        results = _gradient_room(grad, x, weight, needs_x)
        for weights in results[1:]:  # to which each share of the rows is added
            weights.zero_()
        library().lfads_linear_backward(
            *_sizes(x, weight),
            *(address(x), strides(x, 2)),
            *map(address, (grad, weight, results[0] if needs_x else None, *results[1:])),
        )
        return results

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise NotImplementedError("second derivatives need the kernel 'reference'")


def _gradient_room(grad: Tensor, x: Tensor, weight: Tensor, needs_x: bool) -> tuple[Tensor, ...]:
    shapes = x.shape if needs_x else (x.shape[0], 0), weight.shape, weight.shape[:2]
    x_grad, w_grad, b_grad = (grad.new_empty(shape) for shape in shapes)
    return x_grad, w_grad, b_grad


_gradient = operator(
    _Gradient,
    "linear_backward(Tensor grad, Tensor x, Tensor weight, bool needs_x) -> "
    "(Tensor, Tensor, Tensor)",
    _gradient_room,
    folded,
)


class _Linear(Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if not _in_c(x):
            return torch.baddbmm(bias.unsqueeze(1), x, weight.mT)
        x, weight, bias = last_contiguous(x), weight.contiguous(), bias.contiguous()
        y = x.new_empty(*x.shape[:2], weight.shape[1])
        library().lfads_linear(
            *_sizes(x, weight), address(x), strides(x, 2), *map(address, (weight, bias, y))
        )
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        needs_x = ctx.needs_input_grad[0]
        x, weight, bias = _gradient(grads[0], *ctx.saved_tensors, needs_x)
        return x if needs_x else None, weight, bias


_linear = operator(
    _Linear,
    "linear(Tensor x, Tensor weight, Tensor bias) -> Tensor",
    lambda x, weight, bias: x.new_empty(*x.shape[:2], weight.shape[1]),
    folded,
)
