"""A function of tensors as a fixed list of operations that write into memory made once."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_arg

Function = Callable[..., Sequence[Tensor]]
Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


class Plan:
    """Call a function of tensors again and again, with inputs and outputs in the same memory.

    The function is traced once, and views are made once; what is left are operations that write
    into given tensors. A bin of small matrices takes less than half the time so, and allocates
    nothing. Write into `inputs`, call `run`, read `outputs`.
    """

    def __init__(self, function: Function, inputs: Sequence[Tensor]) -> None:
        self.inputs = list(inputs)
        self._calls: list[Call] = []
        values: dict[Any, Any] = {}
        with torch.no_grad():
            graph = make_fx(function)(*self.inputs)
            given = iter(self.inputs)
            for node in graph.graph.nodes:
                args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
                if node.op == "placeholder":
                    values[node] = next(given)
                elif node.op == "get_attr":
                    values[node] = operator.attrgetter(node.target)(graph)
                elif node.op == "output":
                    self.outputs: list[Tensor] = list(args[0])
                else:
                    values[node] = self._add(node.target, args, kwargs)

    def run(self) -> None:
        """Compute the outputs of what the inputs hold."""
        for call, args, kwargs in self._calls:
            call(*args, **kwargs)

    def _add(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Note an operation, unless its result is a view, and return its result."""
        result = target(*args, **kwargs)
        if getattr(getattr(target, "_schema", None), "is_mutable", False):
            raise ValueError(f"{target} writes into its input")
        known = {x.untyped_storage().data_ptr() for x in _tensors((args, kwargs)) if x.numel()}
        if target is operator.getitem or all(
            x.untyped_storage().data_ptr() in known or not x.numel() for x in _tensors(result)
        ):
            return result
        # torch's own functions take half of an operator's time; both are tried.
        packet = getattr(target, "overloadpacket", None)
        candidates = (
            getattr(torch, getattr(packet, "__name__", ""), None),
            getattr(packet, "out", None),
        )
        for call in filter(None, candidates):
            before = result.clone()
            try:
                call(*args, **kwargs, out=result)
            except Exception:  # no such variant, or one of another signature
                continue
            if torch.equal(before.nan_to_num(), result.nan_to_num()):
                self._calls.append((call, args, {**kwargs, "out": result}))
                return result
            result.copy_(before)
        self._calls.append((_into, (result, target, args, kwargs), {}))
        return result


class Unplanned:
    """As `Plan`, by calling the function itself."""

    def __init__(self, function: Function, inputs: Sequence[Tensor]) -> None:
        self.inputs, self._function = list(inputs), function
        self.outputs: list[Tensor] = []

    def run(self) -> None:
        """Compute the outputs of what the inputs hold."""
        self.outputs = list(self._function(*self.inputs))


def plan(function: Function, inputs: Sequence[Tensor]) -> Plan | Unplanned:
    """Return a plan of a function, or the function where it cannot be one.

    Parts of your own may choose by the numbers that they see, or write into their inputs: a trace
    fails or is wrong then, so it is compared with the function at other inputs than its own.
    """
    plain = Unplanned(function, inputs)
    try:
        made = Plan(function, inputs)
    except Exception:  # whatever a part of your own does that cannot be traced
        return plain
    kept = [x.clone() for x in inputs]
    with torch.no_grad():
        for x in inputs:
            x.uniform_(-1.0, 1.0, generator=torch.Generator(x.device).manual_seed(0))
        for one in (made, plain):
            one.run()
        pairs = zip(made.outputs, plain.outputs, strict=True)
        is_same = all(torch.allclose(a, b, equal_nan=True) for a, b in pairs)
        for x, before in zip(inputs, kept, strict=True):
            x.copy_(before)
    return made if is_same else plain


def _into(result: Tensor, target: Any, args: Any, kwargs: Any) -> None:
    result.copy_(target(*args, **kwargs))


def _tensors(values: Any) -> list[Tensor]:
    return [x for x in torch.utils._pytree.tree_leaves(values) if isinstance(x, Tensor)]
