"""Random numbers of stacked members: each member draws what it would draw alone.

`Streams` holds the members' generators, seeded as a run seeds the global ones at the start of an
epoch. Under `torch.func.vmap` a draw reaches torch once for all members, with their axis in front;
`StackedDraws`, a mode that lies below vmap, makes it one draw per member from that member's
generator.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ...seeds import stream_seeds

_aten: Any = torch.ops.aten
_GLOBAL = Lock()


class NotMappableError(RuntimeError):
    """Something that members cannot do at once."""


class OtherDrawsError(NotMappableError):
    """A draw from Python's or NumPy's generator, which have no axis of members."""


class Streams:
    """Generators of several members for one epoch, on the CPU and on the device."""

    def __init__(self, seeds: Sequence[int], epoch: int, device: torch.device) -> None:
        words = [stream_seeds(seed, epoch) for seed in seeds]
        self._torch = {
            kind: [torch.Generator(kind).manual_seed(seed) for _, seed in words]
            for kind in dict.fromkeys((torch.device("cpu"), device))
        }
        self._others: list[Any] = [
            (random.Random(seed).getstate(), np.random.RandomState(seed).get_state())
            for seed, _ in words
        ]

    def __len__(self) -> int:
        return len(self._others)

    def on(self, device: torch.device) -> list[torch.Generator]:
        """Return the members' generators for a device."""
        for kind, generators in self._torch.items():
            if kind.type == device.type:
                return generators
        raise NotMappableError(f"it draws random numbers on {device}")

    @contextmanager
    def lent(self, k: int) -> Iterator[None]:
        """Have the global generators draw for member k; not for use in several threads."""
        with global_generators():
            defaults = [(_default(kind), gens[k]) for kind, gens in self._torch.items()]
            for default, generator in defaults:
                default.set_state(generator.get_state())
            random.setstate(self._others[k][0])
            np.random.set_state(self._others[k][1])
            yield
            for default, generator in defaults:
                generator.set_state(default.get_state())
            self._others[k] = (random.getstate(), np.random.get_state())


@contextmanager
def global_generators() -> Iterator[None]:
    """Leave the global generators as they were."""
    states = random.getstate(), np.random.get_state()
    cuda = torch.cuda.is_initialized()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if cuda else ()):
        yield
    random.setstate(states[0])
    np.random.set_state(states[1])


@contextmanager
def no_other_draws() -> Iterator[None]:
    """Refuse draws from Python's and NumPy's generators."""
    numpy_state: Any = np.random.get_state()
    before = random.getstate(), numpy_state[1].copy(), numpy_state[2]
    yield
    numpy_state = np.random.get_state()
    # beartype draws from it what to check, where it checks types.
    if random.getstate() != before[0] and "beartype" not in sys.modules:
        raise OtherDrawsError("it draws from Python's module random")
    if numpy_state[2] != before[2] or not np.array_equal(numpy_state[1], before[1]):
        raise OtherDrawsError("it draws from NumPy's global generator")


def _default(device: torch.device) -> torch.Generator:
    if device.type == "cuda":
        torch.cuda.init()
        index = torch.cuda.current_device() if device.index is None else device.index
        return torch.cuda.default_generators[index]
    return torch.default_generator


@cache
def _is_random(function: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in function.tags


# vmap with randomness="different" draws for all members from one generator, so what a member draws
# would depend on who trains with it: it would differ from the model trained alone, change when a
# search is resumed with fewer members, and change with the stack size. Generators passed to each
# draw would bind every module, a user's included, to this file. A dispatch mode sees each random
# operator below vmap, from any caller, with the members' axis in front.
class StackedDraws(TorchDispatchMode):
    """Turns a draw for all members into one draw per member, from that member's generator."""

    def __init__(self, streams: Streams) -> None:
        super().__init__()
        self._streams = streams
        self._turn = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Pass on what is not random."""
        kwargs = kwargs or {}
        if not _is_random(func):
            return func(*args, **kwargs)
        if kwargs.get("generator") is not None:
            raise NotMappableError("it draws from its own generator")
        tensors = [x for x in args if isinstance(x, Tensor)]
        where = tensors[0].device if tensors else torch.device(kwargs.get("device") or "cpu")
        generators = self._streams.on(where)
        if func is _aten.randperm.default:
            # vmap calls for one permutation per member, one after another.
            self._turn += 1
            generator = generators[(self._turn - 1) % len(generators)]
            return torch.randperm(*args, **kwargs, generator=generator)
        if any(not x.ndim or x.shape[0] != len(generators) for x in tensors):
            raise NotMappableError(f"{func}: the members' axis is not the first one")
        names = [argument.name for argument in func._schema.arguments]
        rows = [_draw(func, _row(names, args, k), kwargs, g) for k, g in enumerate(generators)]
        if func._schema.is_mutable:
            return args[0]
        if isinstance(rows[0], Tensor):
            return torch.stack(rows)
        return type(rows[0])(torch.stack(column) for column in zip(*rows, strict=True))


def _row(names: Sequence[str], args: Sequence[Any], k: int) -> list[Any]:
    """Return the arguments of member k."""
    return [
        x[k] if isinstance(x, Tensor) else x[1:] if name == "size" else x
        for name, x in zip(names, args, strict=False)
    ]


def _draw(func: Any, args: list[Any], options: dict[str, Any], generator: torch.Generator) -> Any:
    """Draw for one member."""
    if func is _aten.randn.default:
        return torch.empty(*args, **options).normal_(generator=generator)
    if func is _aten.rand.default:
        return torch.empty(*args, **options).uniform_(generator=generator)
    if func is _aten.randn_like.default:
        return torch.empty_like(*args, **options).normal_(generator=generator)
    if func is _aten.rand_like.default:
        return torch.empty_like(*args, **options).uniform_(generator=generator)
    if func in (_aten.randint.default, _aten.randint.low):
        *limits, size = args
        dtype = options.get("dtype") or torch.int64
        return torch.empty(size, **{**options, "dtype": dtype}).random_(
            *(limits if len(limits) > 1 else (0, *limits)), generator=generator
        )
    if any(argument.name == "generator" for argument in func._schema.arguments):
        return func(*args, **options, generator=generator)
    with (
        _GLOBAL,
        torch.random.fork_rng(
            devices=[generator.device] if generator.device.type == "cuda" else ()
        ),
    ):
        default = _default(generator.device)
        default.set_state(generator.get_state())
        drawn = func(*args, **options)
        generator.set_state(default.get_state())
        return drawn


class StackedCalls(TorchFunctionMode):
    """Makes calls inside vmap whose draws would be refused, or not be those of a model alone.

    ``torch.empty(...).normal_()`` is how `torch.distributions` draws; vmap refuses it, since the
    memory has no axis for different numbers, so it is given one. Dropout, which vmap draws in
    another order of memory, is done as torch does it on a CPU.
    """

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self._like = like
        self._level = _level()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Pass on all other calls."""
        kwargs = kwargs or {}
        instead = _INSTEAD.get(func)
        # A kernel's own rule for vmap works below it, on memory without the axis.
        if instead is None or _level() != self._level:
            return func(*args, **kwargs)
        return instead(self._like, *args, **kwargs)


def _empty(like: Tensor, *size: Any, **options: Any) -> Tensor:
    if options.keys() & {"out", "memory_format"}:
        return torch.empty(*size, **options)
    dtype = options.pop("dtype", None) or torch.get_default_dtype()
    device = options.pop("device", None) or torch.get_default_device()
    return like.new_empty(*size, **options, dtype=dtype, device=device)


def _dropout(
    _: Tensor, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    if not 0 < p < 1 or not training or inplace:
        return torch.nn.functional.dropout(x, p, training, inplace)
    return x * torch.empty_like(x).bernoulli_(1 - p).div_(1 - p)


_INSTEAD: dict[Any, Any] = {torch.empty: _empty, torch.nn.functional.dropout: _dropout}


def _level() -> int | None:
    level: int | None = torch._C._functorch.maybe_current_level()
    return level
