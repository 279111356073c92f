"""Composition of a configuration with Hydra: search path, overrides, resolvers, absolute paths.

A lab's own ``configs/`` folder layers over the packaged one, group by group and file by file.
"""

from __future__ import annotations

import builtins
import re
import secrets
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from glob import glob
from os.path import abspath, exists
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..compat.configs import translate
from ..consent import NOTHING, Trust, sign
from ..errors import ConfigError, UserError, did_you_mean
from ..files import expanded, write_whole
from ..folder import BEST_MODEL, CONFIG
from .check_config import OPEN, is_new_key, keys_like
from .places import starts

PACKAGE = Path(__file__).resolve().parent.parent
CONFIGS = "configs"
PACKAGED = PACKAGE / CONFIGS

#: Last names of keys that take a path, or a pattern of paths.
_PATHS = frozenset(
    ("datafile_pattern", "data_paths", "dirpath", "save_dir", "filename", "storage_path")
)

Overrides = Mapping[str, Any] | Sequence[str]


def compose_config(
    config_path: str | Path = "single.yaml",
    overrides: Overrides = (),
    start: str | Path | None = None,
    groups: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Compose a configuration and resolve it to plain dicts, lists and numbers.

    Paths count from `start`, else from where `lfads_torch.runs.places` says.
    """
    places = [Path(start)] if start else starts()
    primary = locate_config(config_path, *places)
    roots = project_roots(primary, places)
    folders = _folders(primary.parent, roots)
    _register_resolvers(roots)
    texts = list(_as_text(overrides))
    choices = [text for text in texts if _is_choice(text, folders)]
    values = [text for text in texts if text not in choices]
    for text in choices:
        _check_option(text, folders)
    if groups:
        choices = _with_groups(primary, folders, choices, groups)
    config = _compose(primary, folders, choices)
    with _errors_of_hydra(primary):
        _set_values(config, values, _group_names(folders))
    try:
        missing = sorted(OmegaConf.missing_keys(config))
        if missing:
            raise ConfigError(f"{missing[0]} has no value; give one: {missing[0]}=...")
        plain = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{primary}: {_first_line(error)}") from error
    finally:
        # What is composed by hand later counts from its own place.
        _register_resolvers()
    if not isinstance(plain, dict):
        raise ConfigError(f"{primary} holds no keys")
    translate(plain)
    _read_behavior(plain)
    _make_patterns_absolute(plain, roots, primary.parent if primary.name == CONFIG else None)
    return {str(key): value for key, value in plain.items()}


def reads_behavior(model: Any) -> bool:
    """Return whether the configuration of a model has it read out behaviour; null means all."""
    return isinstance(model, Mapping) and model.get("behavior_dim", 0) != 0


def _read_behavior(config: dict[Any, Any]) -> None:
    """List behaviour among what the data module reads, where the model reads it out."""
    data = config.get("datamodule")
    if reads_behavior(config.get("model")) and isinstance(data, dict):
        keys = data.get("batch_keys") or []
        keys = [keys] if isinstance(keys, str) else list(keys)
        data["batch_keys"] = keys if "behavior" in keys else [*keys, "behavior"]


def keys_named(word: str, command: str) -> list[str]:
    """Return keys of a command's configuration that somebody may have written as an option."""
    name = f"{command}.yaml"
    primary = PACKAGED / (name if (PACKAGED / name).is_file() else "single.yaml")
    _register_resolvers()
    config: Any = OmegaConf.to_container(_compose(primary, [primary.parent], []))
    return keys_like(word.partition("=")[0].lstrip("-").replace("-", "_"), config)


def draw_seed(config: dict[str, Any]) -> None:
    """Put a number that differs each time into a configuration with ``seed: null``."""
    if "seed" in config and config["seed"] is None:
        config["seed"] = secrets.randbelow(2**32)  # what NumPy's and Lightning's generators take


def config_text(config: Mapping[str, Any]) -> str:
    """Return a plain configuration, as `compose_config` returns it, as YAML."""
    return OmegaConf.to_yaml(OmegaConf.create(escaped(dict(config))))


def write_config(path: Path, config: Mapping[str, Any], parts: Iterable[str] = ()) -> None:
    """Write a plain configuration as signed YAML.

    `parts` are classes of the model's parts, which the configuration may not name.
    """
    write_whole(path, sign(config_text(config), config, parts))


def read_config(
    folder: Path, trust: Trust = NOTHING, parts: Collection[str] | None = None
) -> dict[str, Any]:
    """Read the configuration of a run as plain dicts, or the nodes of some dotted keys.

    Raise where it is damaged, or asks for what `trust` does not cover.
    """
    path = folder / CONFIG
    try:
        text = path.read_text(encoding="utf-8")
        config = OmegaConf.create(text)
        plain = OmegaConf.to_container(config)
    except yaml.YAMLError as error:
        raise UserError(no_yaml(path, error)) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; name a run folder") from error
    except (OmegaConfBaseException, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no configuration: {_first_line(error)}") from error
    if not isinstance(plain, dict) or not isinstance(config, DictConfig):
        raise UserError(f"{path} holds no keys")
    if "@package" in text:  # Hydra would put what follows under other keys than are checked here
        raise UserError(f"{path} holds a directive of Hydra, @package, which no run writes there")
    asked = {str(key): value for key, value in plain.items()}
    if parts is not None:
        asked = {key: _at(plain, key) for key in parts if _at(plain, key) is not None}
    chosen = list(asked)
    with warnings.catch_warnings():  # what is left out is said when the run begins
        warnings.simplefilter("ignore")
        translate(asked)
    trust.check(asked, path)
    values = {key: OmegaConf.select(config, key) for key in chosen}
    resolved = {
        key: OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        for key, value in values.items()
    }
    _make_patterns_absolute(resolved, [Path.cwd(), folder], folder)
    return resolved


def locate_config(config_path: str | Path, *places: Path) -> Path:
    """Return the absolute path of the primary configuration, given or packaged, or raise.

    A relative path is written as seen from a folder beside ``configs/``, or from the one above.
    """
    path = expanded(config_path)
    if path.name and not path.suffix:
        path = path.with_suffix(".yaml")
    relative = [base / path for place in places for base in (place, place / CONFIGS)]
    candidates = [path] if path.is_absolute() else relative
    for candidate in candidates:
        if candidate.is_file():
            return Path(abspath(candidate))
    shipped = [file.name for file in PACKAGED.glob("*.yaml")]
    if path.as_posix() in (path.name, f"../{CONFIGS}/{path.name}") and path.name in shipped:
        return PACKAGED / path.name
    tried = ", ".join(dict.fromkeys(abspath(candidate) for candidate in candidates))
    raise ConfigError(
        f"there is no configuration {config_path}: there is no {tried}, and the package has no "
        f"{path.name}; {did_you_mean(path.name, shipped)}"
    )


def project_roots(primary: Path, places: Sequence[Path]) -> list[Path]:
    """Return the folders from which paths in a configuration count, the likeliest first.

    The project's root is the folder that holds ``configs/``; else it is one of `places` or the
    folder above, that above the configuration's own, and last the package's checkout.
    """
    is_own = primary.parent.name == CONFIGS and primary.parent != PACKAGED
    roots = [primary.parent.parent] if is_own else []
    roots += [place for place in places if (place / CONFIGS).is_dir()]
    roots += [place.parent for place in places if (place.parent / CONFIGS).is_dir()]
    roots += [*reversed(places), *(place.parent for place in places)]
    if PACKAGED not in (primary, primary.parent):  # a folder of configurations of another name
        roots.append(primary.parent.parent)
    if (PACKAGE.parent / "pyproject.toml").is_file():
        roots.append(PACKAGE.parent)
    return list(dict.fromkeys(Path(abspath(root)) for root in roots))


def _folders(primary: Path, roots: Sequence[Path]) -> list[Path]:
    own = [root / CONFIGS for root in roots]
    folders = [primary, *(folder for folder in own if folder.is_dir()), PACKAGED]
    return list(dict.fromkeys(Path(abspath(folder)) for folder in folders))


def _compose(primary: Path, folders: Sequence[Path], choices: Sequence[str]) -> DictConfig:
    """Compose the options of groups that are chosen."""
    extra = ",".join(literal(escaped(f"file://{folder.as_posix()}")) for folder in folders[1:])
    every = [f"hydra.searchpath=[{extra}]", *choices] if extra else list(choices)
    # Hydra is one for a process and refuses to begin twice, and a caller may use it, too.
    GlobalHydra.instance().clear()
    try:
        with (
            _errors_of_hydra(primary),
            initialize_config_dir(str(primary.parent), version_base="1.3"),
        ):
            return compose(primary.stem, overrides=every)
    finally:
        GlobalHydra.instance().clear()


def _set_values(config: DictConfig, values: Sequence[str], groups: Iterable[str]) -> None:
    """Set values in a composed configuration; each key must be legal, or have a prefix."""
    # Which keys are legal is known only from the composed configuration. To compose it again with
    # the values takes 0.3 s or more. So Hydra's private functions set them in it; pyproject.toml
    # keeps Hydra below 1.4.
    plain: Any = OmegaConf.to_container(config)
    texts = []
    for text in values:
        prefix, key, _ = _split(text)
        # A mapping may bring keys that an entry of an open one lacks.
        is_new = not prefix and (is_new_key(key, plain, groups) or key.split(".")[:2] in OPEN)
        texts.append(f"++{text}" if is_new else text)
    parsed = OverridesParser.create().parse_overrides(texts)
    ConfigLoaderImpl.validate_sweep_overrides_legal(parsed, RunMode.RUN, from_shell=False)
    for override in parsed:
        # A list takes the place of a single component, with which it cannot be merged.
        key = override.key_or_group
        if isinstance(override.value(), list) and OmegaConf.is_dict(OmegaConf.select(config, key)):
            OmegaConf.update(config, key, None, merge=False)
    ConfigLoaderImpl._apply_overrides_to_config(parsed, config)


@contextmanager
def _errors_of_hydra(primary: Path) -> Iterator[None]:
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        text = str(error)
        group = re.search(r"Could not override '(.+?)'", text)
        if group and "No match in the defaults list" in text:
            raise ConfigError(
                f"{group[1]} cannot be chosen here: {primary} has no such group in its defaults. "
                f"To add it, write +{group[1]}=... (a resumed run keeps its groups)."
            ) from error
        raise ConfigError(f"{primary.name}: {_first_line(error)}") from error
    except yaml.YAMLError as error:
        raise ConfigError(no_yaml(primary, error)) from error
    except UnicodeDecodeError as error:
        # The error does not say which file it was.
        files = [primary, *(file for group in option_files().values() for file in group.values())]
        bad = next((file for file in files if not _is_utf8(file)), primary)
        raise ConfigError(f"{bad} is not in UTF-8; save it so: {error.reason}") from error


def _is_utf8(file: Path) -> bool:
    try:
        file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _with_groups(
    primary: Path, folders: Sequence[Path], choices: Sequence[str], groups: Mapping[str, str]
) -> list[str]:
    """Add groups that the primary file lacks to the choices of options."""
    names = {text: _split(text)[1] for text in choices}
    # Hydra takes group= where the file names the group and +group= where it does not. Only a
    # composition shows which: other files may bring the group in.
    config = _compose(primary, folders, [text for text in choices if names[text] not in groups])
    absent = [name for name in groups if name not in config]
    texts = [f"+{text}" if names[text] in absent else text for text in choices]
    return texts + [f"+{name}={groups[name]}" for name in absent if name not in names.values()]


def _at(node: Any, key: str) -> Any:
    for name in key.split("."):
        node = node.get(name) if isinstance(node, Mapping) else None
    return node


def escaped(node: Any) -> Any:
    """Write each text so that OmegaConf reads it as it is, also where it looks like a reference."""
    if isinstance(node, Mapping):
        return {key: escaped(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [escaped(value) for value in node]
    if isinstance(node, str):
        return re.sub(r"(\\*)\$\{", lambda m: m[1] * 2 + r"\${", node)
    return node


def no_yaml(path: Path, error: yaml.YAMLError) -> str:
    """Say where a file, or one that it names, is no YAML."""
    where = "; ".join(line.strip() for line in str(error).splitlines())
    return f"{path} or a file that it names is no YAML: {where}. Mend it there"


def _first_line(error: Exception) -> str:
    return " ".join(line.strip() for line in str(error).splitlines()[:3])


def _as_text(overrides: Overrides) -> Iterator[str]:
    if not isinstance(overrides, Mapping):
        if isinstance(overrides, str):
            raise ConfigError(
                f"overrides must be a list of strings or a mapping, not {overrides!r}"
            )
        for text in overrides:
            if "=" not in text and not text.startswith("~"):
                raise ConfigError(f"{text!r} is not an override; write key=value")
            yield _path_quoted(text)
        return
    for key, value in overrides.items():
        if isinstance(value, Mapping) and value:
            yield from (f"{key}.{rest}" for rest in _as_text(value))
        else:
            yield f"{key}={literal(value)}"


def literal(value: Any) -> str:
    """Write a value so that Hydra reads it from an override."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(literal(item) for item in value) + "]"
    if hasattr(value, "item"):
        return literal(value.item())
    if "${" in f"{value}" and _exists(f"{value}"):
        value = escaped(value)
    # a backslash escapes only where it stands before a quote, so paths of Windows stay as they are
    return (
        "'" + re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + m[2].replace("'", r"\'"), f"{value}") + "'"
    )


def _path_quoted(text: str) -> str:
    """Quote the value of a key that takes a path: a path is no expression in Hydra's grammar."""
    key, _, value = text.partition("=")
    if key.rpartition(".")[2] not in _PATHS or value in ("", "null", "???"):
        return text
    if not _exists(value):
        is_list = value.startswith("[") and value.endswith("]")
        items = [item.strip().strip("'\"") for item in value[1:-1].split(",")]
        if is_list and all(map(_exists, items)):
            return f"{key}={literal(items)}"
        is_quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
        # Where nothing is there yet: a list, a text in quotes and a reference are what they look
        # like, all else is a name.
        if is_list or is_quoted or "${" in value:
            with suppress(HydraException):
                OverridesParser.create().parse_override(text)
                return text
    return f"{key}={literal(value)}"


def _exists(pattern: str) -> bool:
    try:
        return exists(expanded(pattern)) or bool(glob(str(expanded(pattern))))
    except (OSError, ValueError, re.error):  # no name that a file could have
        return False


def _split(text: str) -> tuple[str, str, str]:
    """Split an override into its prefix (+, ++, ~ or none), key and value."""
    key, _, value = text.partition("=")
    name = key.lstrip("+~")
    return key.removesuffix(name), name.strip(), value.strip().strip("'\"")


def _options(group: str, folders: Iterable[Path]) -> set[str]:
    return {file.stem for folder in folders for file in (folder / group).glob("*.yaml")}


def option_files(start: str | Path | None = None) -> dict[str, dict[str, Path]]:
    """Return the file of each option by group; the primary configurations are the group ""."""
    roots = [Path(start)] if start else starts()
    own = [folder for root in roots if (folder := root / CONFIGS).is_dir() and folder != PACKAGED]
    files: dict[str, dict[str, Path]] = {"": {}}
    # The first folders win, so they come last.
    for folder in [PACKAGED, *reversed(own)]:
        for file in sorted(folder.rglob("*.yaml")):
            group = file.parent.relative_to(folder).as_posix()
            files.setdefault("" if group == "." else group, {})[file.stem] = file
    return files


def _is_choice(text: str, folders: Sequence[Path]) -> bool:
    _, key, value = _split(text)
    group = key.split("@")[0]
    # A mapping sets keys of the group's node, and null empties it; neither names a file.
    names_files = value != "null" and not value.startswith("{")
    return "." not in group and bool(_options(group, folders)) and names_files


def _check_option(text: str, folders: Sequence[Path]) -> None:
    prefix, key, value = _split(text)
    if prefix == "~":
        return
    group = key.split("@")[0]
    options = _options(group, folders)
    names = value.strip("[]").split(",") if value.startswith("[") else [value]
    for name in (name.strip().strip("'\"") for name in names if name.strip() or value != "[]"):
        file = f"{name.removesuffix('.yaml')}.yaml"
        if not any((folder / group / file).is_file() for folder in folders):
            found = [str(folder / group) for folder in folders if (folder / group).is_dir()]
            raise ConfigError(
                f"{group}={value}: there is no {file} in {', '.join(found)}; "
                f"{did_you_mean(name, options)}"
            )


def _group_names(folders: Sequence[Path]) -> list[str]:
    return [child.name for folder in folders for child in folder.iterdir() if child.is_dir()]


def _register_resolvers(roots: Sequence[Path] = (), *, replace: bool = True) -> None:
    def relpath(path: Any) -> str:
        return absolute_pattern(str(path), *(roots or project_roots(PACKAGED, starts())))

    def flat(values: Iterable[Any]) -> list[Any]:
        out: list[Any] = []
        for value in values:
            nested = isinstance(value, Iterable) and not isinstance(value, str)
            out.extend(flat(value) if nested else [value])
        return out

    for name, function in {
        "relpath": relpath,
        "max": lambda *values: builtins.max(flat(values)),
        "sum": lambda *values: builtins.sum(flat(values)),
    }.items():
        if replace or not OmegaConf.has_resolver(name):
            OmegaConf.register_new_resolver(name, function, replace=True)


def absolute_pattern(pattern: str, *roots: Path) -> str:
    """Make a pattern absolute: in the first of the folders where it matches, else in the first."""
    path = expanded(pattern)
    if path.is_absolute():
        return str(path)
    places = [abspath(root / path) for root in roots]
    # A path that exists is taken literally, whatever characters it holds.
    return next((place for place in places if exists(place) or glob(place)), places[0])


def _make_patterns_absolute(node: Any, roots: Sequence[Path], run: Path | None = None) -> None:
    """Make the patterns of data files absolute; `run` is the folder of the run that named them."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        if key == "datafile_pattern" and isinstance(value, str):
            node[key] = _moved(absolute_pattern(value, *roots), run)
        elif key == "datafile_pattern" and isinstance(value, list):
            node[key] = [_moved(absolute_pattern(str(item), *roots), run) for item in value]
        elif isinstance(value, dict | list):
            _make_patterns_absolute(value, roots, run)


def _moved(pattern: str, run: Path | None) -> str:
    """Return where data are now that were in the folder of a run, if nothing is left of them."""
    if run is None or exists(pattern) or glob(pattern):
        return pattern
    parts = Path(pattern).parts[1:]
    # The data of a search are beside its best model.
    homes = [run, *([run.parent] if run.name == BEST_MODEL else ())]
    places = [str(home.joinpath(*parts[k:])) for home in homes for k in range(len(parts))]
    return next((place for place in places if exists(place) or glob(place)), pattern)


# For notebooks that compose a configuration with Hydra themselves, and only import this package.
_register_resolvers(replace=False)
