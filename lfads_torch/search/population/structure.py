"""Whether models can be members of one population: they may differ in tensors only."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from ...arguments import TUNABLES
from ...errors import ConfigError

#: Numbers of the constructor that each member has for itself, beside the tunables.
_OWN_NUMBERS = {
    *TUNABLES,
    *("lr_adam_beta1", "lr_adam_beta2", "lr_adam_epsilon"),
    *("lr_scheduler", "lr_stop", "lr_decay", "lr_patience"),
    *("l2_start_epoch", "l2_increase_epoch", "kl_start_epoch", "kl_increase_epoch"),
}
#: Set by the data, or while training.
_NOT_STRUCTURE = {"training", "data_checked"}


def check_structure(models: Sequence[Any]) -> None:
    """Refuse models that differ in more than numbers kept as tensors, naming the difference."""
    first = dict(_facts(models[0]))
    for k, model in enumerate(models[1:], start=1):
        facts = dict(_facts(model))
        for name in {**first, **facts}:
            if first.get(name) != facts.get(name):
                tunables = ", ".join(models[0].tunables())
                raise ConfigError(
                    f"{name} is {first.get(name)!r} in the model of member 0 and "
                    f"{facts.get(name)!r} in that of member {k}; members may differ "
                    f"in parameters, in the tunables ({tunables}), in the numbers of AdamW, of the "
                    "learning rate's schedule and of the ramps, and in nothing else; build all "
                    "members from one configuration"
                )


def _facts(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield what makes up the structure of a model, by name."""
    for name, value in model.hparams.items():
        if name not in _OWN_NUMBERS:
            yield f"model.{name}", value
    for name, parameter in model.named_parameters():
        yield f"{name}.shape", tuple(parameter.shape)
        yield f"{name}.requires_grad", parameter.requires_grad
    for name, buffer in model.named_buffers():
        yield f"{name}.shape", tuple(buffer.shape)
    for name, part in _objects(model):
        yield f"type of {name}", type(part).__qualname__
        yield from ((f"{name}.{key}", value) for key, value in _numbers(part))


def _objects(model: Any) -> Iterator[tuple[str, Any]]:
    yield from ((name, module) for name, module in model.named_modules() if name)
    for name in ("train_aug_stack", "infer_aug_stack"):
        for i, transform in enumerate(getattr(model, name).transforms):
            if not isinstance(transform, nn.Module):
                yield f"{name}.transforms.{i}", transform


def _numbers(part: Any) -> Iterator[tuple[str, Any]]:
    """Plain attributes; of a class that is not this package's, its constructor's arguments."""
    arguments = inspect.signature(type(part)).parameters
    is_ours = type(part).__module__.partition(".")[0] == __package__.partition(".")[0]
    for name, value in vars(part).items():
        is_plain = isinstance(value, (bool, int, float, str)) and name not in _NOT_STRUCTURE
        if is_plain and (name in arguments or (is_ours and not name.startswith("_"))):
            yield name, value
