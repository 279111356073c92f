"""Functions of tensors that torch sees as one operation each, ``torch.ops.lfads``.

Each is written once, as a `torch.autograd.Function`, and registered with `torch.library`, so that a
graph holds it as one node. Under `torch.func` the Function is called, because `torch.func` cannot
differentiate an operator whose gradient `torch.library` registered (torch 2.13: "must override the
setup_context staticmethod"). A call of either costs the same: see ``docs/performance.md``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("lfads", "DEF")


def operator(
    function: Any, schema: str, fake: Callable[..., Any], rule: Callable[..., Any]
) -> Callable[..., Any]:
    """Register a `Function` as ``torch.ops.lfads``, and return what calls it.

    `fake` returns tensors of the right shapes. `rule(call, info, in_dims, *args)` maps it by vmap.
    """
    name = "lfads::" + schema.partition("(")[0]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, function.forward, "CompositeExplicitAutograd")
    named = getattr(torch.ops.lfads, name.removeprefix("lfads::")).default

    def call(*args: Any) -> Any:
        if torch.compiler.is_compiling():
            return named(*args)
        # No public name says so; `Function.apply` asks this one.
        is_func = torch._C._are_functorch_transforms_active()
        return function.apply(*args) if is_func else named(*args)

    # Through the dispatcher, so that a mode, such as one without numbers, sees the operator.
    function.forward = staticmethod(named)
    function.vmap = staticmethod(partial(rule, call))
    torch.library.register_fake(name, fake, lib=_LIBRARY)
    torch.library.register_vmap(name, partial(rule, named), lib=_LIBRARY)
    torch.library.register_autograd(
        name, function.backward, setup_context=function.setup_context, lib=_LIBRARY
    )
    return call


def in_front(info: Any, in_dims: Any, args: tuple[Any, ...]) -> list[Any]:
    """Return tensors with the mapped axis in front, repeated where not mapped."""
    return [
        x
        if not isinstance(x, Tensor)
        else x.expand(info.batch_size, *x.shape)
        if dim is None
        else x.movedim(dim, 0)
        for x, dim in zip(args, in_dims, strict=True)
    ]


def elementwise(call: Callable[..., Tensor], info: Any, in_dims: Any, *args: Any) -> Any:
    """Map a call of tensors of one shape, element by element."""
    return call(*in_front(info, in_dims, args)), 0


def folded(call: Callable[..., Any], info: Any, in_dims: Any, *args: Any) -> Any:
    """Map a call whose tensors all lead with the axis K, by folding the mapped axis into K."""
    tensors = in_front(info, in_dims, args)
    outputs = call(*(x.flatten(0, 1) if isinstance(x, Tensor) else x for x in tensors))
    if isinstance(outputs, Tensor):
        return outputs.unflatten(0, (info.batch_size, -1)), 0
    unfolded = tuple(x.unflatten(0, (info.batch_size, -1)) for x in outputs)
    return unfolded, (0,) * len(outputs)


def one_by_one(call: Callable[..., Tensor], info: Any, in_dims: Any, *args: Any) -> Any:
    """Map a call by calling it for each entry of the mapped axis."""
    tensors = in_front(info, in_dims, args)
    rows = [
        call(*(x[i] if isinstance(x, Tensor) else x for x in tensors))
        for i in range(info.batch_size)
    ]
    return torch.stack(rows), 0
