"""Pickles and YAML of the existing implementation, read without building what they name.

Numbers, text, containers and tensors are rebuilt. An object of any other class becomes an inert
`Record` of its class name and attributes: neither its class nor its module is ever imported.
"""

from __future__ import annotations

import pickle
import re
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import yaml

from ..errors import UserError

#: Modules whose records may be taken for what their class names say.
_KNOWN = ("lfads_torch.", "torch.distributions.")


class Record:
    """Stands in for an object of a class that is not allowed to be built."""

    target = ""
    """Module and name of its class."""

    arguments: tuple[Any, ...] = ()
    attributes: dict[str, Any]

    # Unpickling calls this alone: a pickle may set a state without ever calling `__init__`.
    def __new__(cls, *args: Any, **kwargs: Any) -> Record:
        """Return a record of a call's arguments."""
        record = super().__new__(cls)
        record.arguments, record.attributes = args, {}
        return record

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        for mapping in state if isinstance(state, tuple) else (state,):
            if isinstance(mapping, Mapping):
                self.attributes.update({str(key): value for key, value in mapping.items()})

    def __setitem__(self, key: Any, value: Any) -> None:
        self.attributes[str(key)] = value

    def append(self, value: Any) -> None:
        """Ignore an item of a list."""

    def extend(self, values: Any) -> None:
        """Ignore items of a list."""

    @property
    def is_known(self) -> bool:
        """Whether its class is one of this package or of torch's distributions."""
        return self.target.startswith(_KNOWN)

    @property
    def class_name(self) -> str:
        """Name of its class, without the module."""
        return self.target.rpartition(".")[2]


def number_of(value: Any) -> Any:
    """Return a number that is plain, or a tensor or NumPy number of one entry; else None."""
    if isinstance(value, (torch.Tensor, np.generic)) and value.ndim == 0:
        value = value.item()
    return value if isinstance(value, (bool, int, float)) else None


def _numpy_number(dtype: Any, content: Any) -> Any:
    """Rebuild a NumPy number, which stands where a search drew a value."""
    kind = dtype.arguments[0] if isinstance(dtype, Record) and dtype.arguments else ""
    if not (isinstance(content, bytes) and re.fullmatch(r"[fiub][1248]", str(kind))):
        return None
    return np.frombuffer(content, dtype=str(kind))[0].item()


def _bytes(text: str, codec: str = "latin1") -> bytes:
    return text.encode("latin1")


_SAFE: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "defaultdict"): defaultdict,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("_codecs", "encode"): _bytes,
    ("numpy.core.multiarray", "scalar"): _numpy_number,
    ("numpy._core.multiarray", "scalar"): _numpy_number,
}
for _type in (dict, list, tuple, set, frozenset, int, float, bool, str):
    # Protocol 2, which torch uses, calls the module by its name in Python 2.
    _SAFE["builtins", _type.__name__] = _SAFE["__builtin__", _type.__name__] = _type


class _Unpickler(pickle.Unpickler):
    """Builds tensors and plain containers; anything else becomes a `Record`."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _SAFE:
            return _SAFE[module, name]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if module == "torch" and name.endswith("Storage"):
            return getattr(torch, name)
        return _record_class(f"{module}.{name}")


def _record_class(target: str) -> type[Record]:
    return type(target.rpartition(".")[2], (Record,), {"target": target, "__module__": __name__})


def load_pickled(path: Path) -> Any:
    """Read a file that `torch.save` wrote, with a `Record` in the place of each foreign object."""
    inert: Any = SimpleNamespace(
        Unpickler=_Unpickler,
        load=lambda file, **options: _Unpickler(file, **options).load(),
        __name__="inert",
    )
    return torch.load(path, map_location="cpu", weights_only=False, pickle_module=inert)


class _Loader(yaml.SafeLoader):
    """Reads Python tags as records, and 1e-3 as a number, as Hydra does."""


def _tagged(loader: Any, suffix: str, node: yaml.Node) -> Any:
    kind, _, target = suffix.partition(":")
    if kind == "tuple":
        return tuple(loader.construct_sequence(node, deep=True))
    record = _record_class(target or kind)()
    if isinstance(node, yaml.MappingNode):
        record.__setstate__(loader.construct_mapping(node, deep=True))
    elif isinstance(node, yaml.SequenceNode):
        record.arguments = tuple(loader.construct_sequence(node, deep=True))
    return record


_Loader.add_multi_constructor("tag:yaml.org,2002:python/", _tagged)
_Loader.add_multi_constructor("!", lambda loader, suffix, node: None)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:\d[\d_]*)(?:\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def load_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file of a run or a lab; its Python tags become records."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, OSError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as YAML: {error}. Mend it there") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no configuration: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no keys; give the YAML of a model or a configuration")
    return {str(key): value for key, value in content.items()}
