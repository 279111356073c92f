"""Plain descriptions of a model's modules, so that a checkpoint holds numbers and names only.

A prior, reconstruction, read-in or augmentation, also your own, is described by its class and the
arguments of its constructor, read from attributes of the same names (the convention of
scikit-learn's estimators) or from a dictionary ``init_args`` on the object.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from ..consent import NOTHING, Trust, is_augmentation
from ..errors import ConfigError

_MISSING = object()


def to_spec(module: Any) -> dict[str, Any]:
    """Describe a module as ``{"_target_": class, argument: value, ...}``.

    Arguments that are neither plain numbers or strings nor such modules are left out.
    """
    if isinstance(module, nn.ModuleList):
        return {"_target_": "torch.nn.ModuleList", "modules": [to_spec(m) for m in module]}
    cls = type(module)
    spec: dict[str, Any] = {"_target_": f"{cls.__module__}.{cls.__qualname__}"}
    given = getattr(module, "init_args", {})
    for name, parameter in inspect.signature(cls.__init__).parameters.items():
        if name == "self" or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        value = getattr(module, name, _MISSING)
        if name in given and not _was_changed(value, given[name]):
            value = given[name]
        if (plain := _plain(value)) is not _MISSING:
            spec[name] = plain
    return spec


def _was_changed(value: Any, given: Any) -> bool:
    """Return whether a number kept as a tensor is no longer the one given, but for its rounding."""
    if not (isinstance(value, Tensor) and value.ndim == 0 and isinstance(given, (int, float))):
        return False
    return bool(value != torch.tensor(given, dtype=value.dtype, device=value.device))


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor) and value.ndim == 0:
        return value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        items = [_plain(v) for v in value]
        return _MISSING if any(v is _MISSING for v in items) else items
    if isinstance(value, nn.Module) or is_augmentation(type(value)):
        return to_spec(value)
    return _MISSING


def targets_of(spec: Any) -> set[str]:
    """Return the classes that a description names."""
    if isinstance(spec, Mapping):
        own = {str(spec["_target_"])} if "_target_" in spec else set()
        return own.union(*map(targets_of, spec.values()))
    return set().union(*map(targets_of, spec)) if isinstance(spec, list) else set()


def from_spec(spec: Any, trust: Trust = NOTHING) -> Any:
    """Build a module from its description; raise where that is not possible, or not allowed.

    Nothing is imported before its class is one that `trust` covers.
    """
    if isinstance(spec, list):
        return [from_spec(s, trust) for s in spec]
    if not (isinstance(spec, Mapping) and "_target_" in spec):
        return spec
    target = str(spec["_target_"])
    trust.admit(target)
    module_name, _, name = target.rpartition(".")
    try:
        cls = getattr(import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"the checkpoint needs {target}, which cannot be imported here ({error}); put the file "
            "that defines it on PYTHONPATH, or install its package"
        ) from error
    if not (isinstance(cls, type) and (issubclass(cls, nn.Module) or is_augmentation(cls))):
        raise ConfigError(
            f"the checkpoint names {target}, which is neither a torch.nn.Module nor an augmentation"
        )
    arguments = {key: from_spec(value, trust) for key, value in spec.items() if key != "_target_"}
    try:
        # What is drawn here is overwritten by the checkpoint; the caller's stream stays as it is.
        with torch.random.fork_rng(devices=[]):
            return cls(**arguments)
    except TypeError as error:
        raise ConfigError(
            f"{target} cannot be rebuilt from {arguments}: {error}. Keep each constructor argument "
            "as an attribute of the same name, or give the object to load_model as a keyword"
        ) from error
