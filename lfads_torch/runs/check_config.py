"""Checks of a composed configuration: every ``_target_`` exists, every key is one of its arguments.

Works on plain dicts and lists and imports only what the configuration names, so that a misspelt
key is reported before anything is built.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from importlib import import_module
from os import PathLike
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple, Union, get_args, get_origin, get_type_hints

from ..arguments import COMPONENTS, ROOT, Metric
from ..compat.configs import DROPPED
from ..consent import is_known_part, open_places
from ..errors import ConfigError, did_you_mean, nearest

#: Keys that direct the instantiation and are not arguments.
DIRECTIVES = frozenset({"_target_", "_partial_", "_recursive_", "_convert_", "_args_"})

#: Containers of components, into which any new entry may be put.
FREE = ("callbacks", "logger")

#: Mappings with keys of the user's choice: their reader checks them.
OPEN = (["search", "space"], ["search", "ray"])

#: Packages that come with an extra of this one.
EXTRAS = {"wandb": "wandb", "ray": "tune", "pynwb": "nwb"}


#: Parts of a configuration that hold keys, whatever else is in it.
GROUPS = ("callbacks", "logger", "posterior_sampling", "trainer")


class Arguments(NamedTuple):
    """Names of what a class or function takes; `is_open` where it takes any other name, too."""

    legal: tuple[str, ...]
    required: tuple[str, ...]
    is_open: bool
    #: Types of those whose annotation is made of `_PLAIN` ones.
    kinds: Mapping[str, frozenset[Any]] = {}


def find_target(path: str, where: str) -> Any:
    """Import what a ``_target_`` names; `where` is the key of its node, for the message."""
    if not is_known_part(str(path)):
        open_places()
    names = str(path).split(".")
    if not all(name.isidentifier() for name in names):
        raise ConfigError(f"{where}._target_={path!r}: legal are names with dots, package.Class")
    for n_names in range(len(names), 0, -1):
        holder, rest = ".".join(names[:n_names]), names[n_names:]
        try:
            target = import_module(holder)
            break
        except ModuleNotFoundError as error:
            # Another package that the module needs is missing: an extra, not a misspelt target.
            if not (holder == error.name or holder.startswith(f"{error.name}.")):
                raise ConfigError(f"{where}._target_={path}: {_missing(error.name)}") from error
    else:
        raise ConfigError(
            f"{where}._target_={path}: {_missing(names[0])} A module of your own must lie in the "
            "folder where the command is started, or be installed."
        )
    for name in rest:
        if not hasattr(target, name):
            advice = did_you_mean(name, _public_names(target))
            raise ConfigError(f"{where}._target_={path}: {holder} has no {name}; {advice}")
        target, holder = getattr(target, name), f"{holder}.{name}"
    if not callable(target):
        raise ConfigError(f"{where}._target_={path} is neither a class nor a function")
    return target


def arguments_of(target: Any) -> Arguments:
    """Return the arguments of a class or function.

    Where a class passes ``**kwargs`` on, the arguments of its bases count too.
    """
    if not inspect.isclass(target):
        return _signature(target, skip_first=False)
    legal: dict[str, None] = {}
    kinds: dict[str, frozenset[Any]] = {}
    required: tuple[str, ...] | None = None
    is_open = False
    for cls in target.__mro__[:-1]:  # without object, which takes nothing
        if "__init__" in vars(cls):
            known = _signature(vars(cls)["__init__"], skip_first=True)
            kinds = {**known.kinds, **kinds}
            legal.update(dict.fromkeys(known.legal))
            required = known.required if required is None else required
            is_open = known.is_open
            if not is_open:
                break
    # Where no base takes anything, the class itself reads its **kwargs, as WandbLogger does.
    return Arguments(tuple(legal), required or (), is_open, kinds)


def check_parts(config: dict[str, Any], what: str | Path = "the configuration") -> None:
    """Check that a configuration has what every run is built of."""
    if not isinstance(config.get("trainer"), dict):
        raise ConfigError(f"{what} has no trainer; compare the packaged single.yaml")
    for part in ("model", "datamodule"):
        if not isinstance(config.get(part), dict) or "_target_" not in config[part]:
            raise ConfigError(f"{what} has no {part}; choose one: {part}=...")
    config["trainer"].setdefault("_target_", "pytorch_lightning.Trainer")


def check_config(
    config: Mapping[str, Any], *, is_trained: bool = True, is_sampled: bool = True
) -> None:
    """Check that every ``_target_`` exists and gets legal arguments, and all that it needs."""
    for group in GROUPS:
        if config.get(group) and not isinstance(config[group], Mapping):
            raise ConfigError(f"{group} is {config[group]!r}; legal are keys below it, and null")
    built = {
        f"{group}.{name}": node
        for group in FREE
        for name, node in (config.get(group) or {}).items()
    }
    built["posterior_sampling.fn"] = (config.get("posterior_sampling") or {}).get("fn")
    for where, node in built.items():
        if node and not (isinstance(node, Mapping) and "_target_" in node):
            raise ConfigError(
                f"{where} has no _target_, so nothing says what it is; give {where}._target_=..."
            )
    # Components refer to these.
    if is_trained:
        for key, entry in ROOT.items():
            group, _, name = key.rpartition(".")
            node = (config.get(group) or {}) if group else config
            if node.get(name) is not None:
                entry.check(key, node[name])
    for where, node in nodes(config):
        target = find_target(node["_target_"], where)
        known = arguments_of(target)
        given = [str(key) for key in node if key not in DIRECTIVES]
        package, _, name = str(node["_target_"]).rpartition(".")
        # A class of your own may have the name of one of ours, and other limits.
        is_ours = package.startswith(("lfads_torch", "pytorch_lightning"))
        for key, entry in COMPONENTS.get(name, {}).items():
            # Null means the default, but there is no metric by default.
            is_given = node.get(key) is not None or (key in node and isinstance(entry, Metric))
            if is_ours and is_given:
                entry.check(f"{where}.{key}", node[key])
        for key in given:
            _check_argument(f"{where}.{key}", node["_target_"], key, known)
            # It would be taken, and fail in the first step that uses it.
            is_default = node[key] is None and where in ("model", "trainer")
            kinds = known.kinds.get(key)
            if kinds and isinstance(node, dict) and _is_number_for_text(node[key], kinds):
                node[key] = str(node[key])
            if kinds and not is_default and (legal := _misfit(node[key], kinds)):
                raise ConfigError(
                    f"{where}.{key}={node[key]!r}: {node['_target_']} takes {legal} there"
                )
        missing = [name for name in known.required if name not in given]
        if missing and not node.get("_partial_") and not node.get("_args_"):
            raise ConfigError(
                f"{where}: {node['_target_']} needs {', '.join(missing)}; "
                f"give {where}.{missing[0]}=..."
            )
    if is_trained:
        _check_training(config, is_sampled)


def _check_training(config: Mapping[str, Any], is_sampled: bool) -> None:
    """Refuse what would show only when all epochs are trained: nothing validated, nothing kept."""
    trainer, sampling = config.get("trainer") or {}, config.get("posterior_sampling") or {}
    epochs, every = trainer.get("max_epochs"), trainer.get("check_val_every_n_epoch")
    if epochs == 0:
        raise ConfigError("trainer.max_epochs is 0; legal are whole numbers >= 1, and -1: no limit")
    if epochs is None or epochs < 0:
        epochs = float("inf")
    if every is not None and every > epochs:
        raise ConfigError(
            f"trainer.check_val_every_n_epoch is {every}, trainer.max_epochs {epochs}: nothing "
            f"would be validated, so no model kept as the best; legal are 1 to {epochs}"
        )
    if not (sampling.get("fn") and is_sampled):
        return
    for key in ("fast_dev_run", "barebones"):
        if trainer.get(key):
            raise ConfigError(
                f"trainer.{key} keeps no checkpoint, so nothing could be sampled; take it out, or "
                "add posterior_sampling.fn=null"
            )
    if trainer.get("enable_checkpointing") is False:
        raise ConfigError(
            "trainer.enable_checkpointing is false, so nothing could be sampled; make it true, or "
            "add posterior_sampling.fn=null"
        )
    for name, node in (config.get("callbacks") or {}).items():
        if not node or not str(node.get("_target_")).endswith(".ModelCheckpoint"):
            continue
        if node.get("save_top_k") == 0:
            raise ConfigError(
                f"callbacks.{name}.save_top_k is 0, so no best model is kept; legal are whole "
                f"numbers >= 1, and -1: all. callbacks.{name}=null keeps the best alone"
            )
        if (node.get("every_n_epochs") or 1) > epochs:
            raise ConfigError(
                f"callbacks.{name}.every_n_epochs is {node['every_n_epochs']}, trainer.max_epochs "
                f"{epochs}: no best model would be kept; legal are 1 to {epochs}"
            )


def is_new_key(key: str, config: dict[str, Any], groups: Iterable[str] = ()) -> bool:
    """Return whether a configuration lacks a dotted key that is legal; raise for any other key.

    A key is legal in a container of components or as an argument of a ``_target_``. `groups` are
    names that the advice for a misspelt first name may give, too.
    """
    node: Any = config
    names = key.split(".")
    for depth, name in enumerate(names):
        where = ".".join(names[:depth])
        if node is None and depth > 1:  # a part that is left out, whose keys are checked later
            return True
        if not isinstance(node, dict | list):
            raise ConfigError(f"{key}: {where} is {node}, it has no keys")
        entries = node if isinstance(node, dict) else {str(i): v for i, v in enumerate(node)}
        if name in entries:
            node = entries[name]
            continue
        is_entry = names[0] in FREE and (depth == 1 or "_target_" not in entries)
        if depth and (is_entry or (depth > 1 and names[:2] in OPEN)):
            return True
        if names[0] == "trainer" and name in DROPPED:
            return True
        if "_target_" in entries:
            target = entries["_target_"]
            _check_argument(key, target, name, arguments_of(find_target(target, where)))
            return True
        place = f"in {where}" if where else "at the top of the configuration"
        legal = [*entries, *(() if where else groups)]
        # What is spelt alike here comes first; else a key of that name may be further down.
        inside = [] if where or nearest(name, legal) else keys_like(name, config)
        advice = f"did you mean {' or '.join(inside)}?" if inside else did_you_mean(name, legal)
        raise ConfigError(f"{key}: there is no {name} {place}; {advice}")
    return False


def keys_like(name: str, config: Mapping[str, Any], most: int = 3) -> list[str]:
    """Return dotted keys of a configuration with this last name, or else one that is like it.

    ``epochs`` is like ``max_epochs``, which has it as a word, and so is ``maxepochs``.
    """
    by_name: dict[str, list[str]] = {}
    for key in sorted(_all_keys(config), key=lambda key: key.count(".")):
        by_name.setdefault(key.rpartition(".")[2], []).append(key)
    having = [legal for legal in by_name if name in legal.split("_")]
    for names in ([name], having, nearest(name, by_name, most=1, cutoff=0.75)):
        if keys := [key for legal in names for key in by_name.get(legal, ())]:
            return keys[:most]
    return []


def _all_keys(node: Any, where: str = "") -> Iterator[str]:
    """Yield every dotted key that a configuration has, or could have as an argument."""
    if not isinstance(node, Mapping):
        return
    legal: Iterable[str] = ()
    if "_target_" in node:
        legal = arguments_of(find_target(node["_target_"], where)).legal
    for key in dict.fromkeys([*node, *legal]):
        if key not in DIRECTIVES:
            full = f"{where}.{key}" if where else str(key)
            yield full
            yield from _all_keys(node.get(key), full)


def _check_argument(key: str, target: str, name: str, known: Arguments) -> None:
    if name not in known.legal and not known.is_open:
        advice = did_you_mean(name, known.legal)
        raise ConfigError(f"{key}: {target} has no argument {name}; {advice}")


def nodes(config: Any, where: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield every node with a ``_target_``, outermost first, with its dotted key."""
    if isinstance(config, Mapping):
        if "_target_" in config:
            yield where, config
        items: Iterable[tuple[Any, Any]] = config.items()
    elif isinstance(config, list | tuple):
        items = enumerate(config)
    else:
        return
    for key, value in items:
        yield from nodes(value, f"{where}.{key}" if where else str(key))


def _missing(name: str | None) -> str:
    if name in EXTRAS:
        return (
            f"the package {name} is not installed: pip install 'lfads-torch[{EXTRAS[name]}]', "
            "or take this entry out."
        )
    return f"there is no package {name} on Python's path."


def _public_names(holder: Any) -> list[str]:
    """Return the names that a module defines, or else all that a module or class has."""
    names = [name for name in dir(holder) if not name.startswith("_")]
    members, module = getattr(holder, "__dict__", {}), getattr(holder, "__name__", "")
    return [n for n in names if getattr(members.get(n), "__module__", "") == module] or names


def _signature(function: Any, *, skip_first: bool) -> Arguments:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # built in C, without a signature
        return Arguments((), (), True)
    named = parameters[1:] if skip_first else parameters
    named = [p for p in named if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    try:
        hints = get_type_hints(inspect.unwrap(function))
    except (NameError, TypeError, AttributeError):  # names that exist for the type checker only
        hints = {}
    kinds = {p.name: _kinds(hints.get(p.name), p.default) for p in named}
    return Arguments(
        legal=tuple(p.name for p in named),
        required=tuple(p.name for p in named if p.default is p.empty),
        is_open=any(p.kind is p.VAR_KEYWORD for p in parameters),
        kinds={name: of_name for name, of_name in kinds.items() if of_name <= _PLAIN.keys()},
    )


#: Types that a configuration writes as they are, in words; annotations of others say too little.
_PLAIN = {
    bool: "true or false",
    int: "a number",
    float: "a number",
    str: "text",
    Path: "text",
    PathLike: "text",
    timedelta: "_target_: datetime.timedelta and its arguments",
    type(None): "null",
}


def _kinds(hint: Any, default: Any) -> frozenset[Any]:
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    # An annotation may leave None out where it is the default.
    more = [type(None)] if default is None else []
    return frozenset([*(get_origin(part) or part for part in parts), *more])


def _is_number_for_text(value: Any, kinds: frozenset[Any]) -> bool:
    """Whether YAML took for a number what an argument needs as text, such as a name of digits."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and bool(kinds & {str, Path, PathLike}) and not kinds & {int, float, bool}


def _misfit(value: Any, kinds: frozenset[Any]) -> str:
    """Say what an argument takes whose types rule a value out, else nothing."""
    if value is None:  # stands for false and for no text where an annotation does not say so
        fits = not kinds <= {int, float}
    elif isinstance(value, int | float):
        fits = bool(kinds & {int, float}) or (bool in kinds and value in (0, 1))
    elif isinstance(value, str):
        fits = bool(kinds & {str, Path, PathLike})
    else:
        fits = isinstance(value, Mapping) and "_target_" in value
    names = dict.fromkeys(name for kind, name in _PLAIN.items() if kind in kinds)
    return "" if fits else " or ".join(names)
