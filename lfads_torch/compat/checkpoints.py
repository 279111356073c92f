"""Constructor arguments of a model that the existing implementation trained.

Its checkpoints hold weights, numbers and inert records of the augmentations and of the inputs'
prior; they lack the reconstruction, the read-ins and read-outs and the initial conditions' prior.
What is missing comes from names and shapes of the weights, else from a configuration, else from
the user, who is asked.
"""

from __future__ import annotations

import ast
import inspect
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from glob import escape, glob
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..consent import EVERYTHING, NOTHING, Trust
from ..data import find_sessions, open_h5
from ..datamodules import BasicDataModule
from ..errors import ConfigError, UserError, did_you_mean
from ..files import expanded
from ..folder import CONFIG, RunFolder
from ..model import LFADS
from ..modules import augmentations, priors, recons
from ..modules.readin_readout import FanInLinear
from ..modules.spec import from_spec
from .records import Record, load_yaml, number_of

Weights = dict[str, Tensor]

HOW_TO_ANSWER = (
    "load_model(..., reconstruction=...) or lfads sample --reconstruction NAME, or name the "
    "model's YAML: load_model(..., config=FILE) or lfads sample --config FILE"
)

PACKAGED = Path(__file__).resolve().parents[1] / "configs"

#: Attributes of pickled augmentations that are called otherwise than the constructor's argument.
_ATTRIBUTES = {"max_shift": "max", "cd_pass_rate": "cd_pass_dist"}

_ZIG = ("gamma_loc", "scale_init", "scale_prior", "scale_penalty")


def arguments_from(
    checkpoint: Mapping[str, Any],
    weights: Weights,
    given: Mapping[str, Any],
    path: Path,
    config: str | Path | Mapping[str, Any] | None = None,
    data: Any = None,
    trust: Trust = NOTHING,
) -> dict[str, Any]:
    """Return the constructor's arguments, with those that are given."""
    answer = config if isinstance(config, Mapping) or config is None else read_configuration(config)
    known = _nodes(checkpoint, path)
    nodes = [_model_of(answer or {}), *known]
    values = _numbers([*known, nodes[0]])
    missing = {"encod_seq_len", "recon_seq_len"} - set(values) - set(given)
    if missing:
        raise ConfigError(
            f"the checkpoint does not say {' and '.join(sorted(missing))}; give them to load_model"
        )
    values.update(_sizes(weights, values))
    has_inputs = min(values["ci_enc_dim"], values["con_dim"], values["co_dim"]) > 0
    for name, size, counts in (
        ("ic_prior", values["ic_dim"], True),
        ("co_prior", values["co_dim"], has_inputs),
    ):
        if not (counts and given.get("variational", values.get("variational", True))):
            # Nothing is compared with this prior, whatever was configured.
            values[name] = priors.Null()
        elif name not in given:
            values[name] = _prior(name, size, weights, _first(nodes, name), trust)
    for name in ("train_aug_stack", "infer_aug_stack"):
        if name not in given:
            values[name] = _stack(name, _first(nodes, name), trust)
    if "readout" not in given:
        values["readout"] = _layers("readout", weights, nodes, trust)
    if "readin" not in given:
        n_sessions = len(given.get("readout", values.get("readout", ())))
        values["readin"] = _layers("readin", weights, nodes, trust, n_sessions)
    widths = [int(v.shape[0]) for k, v in weights.items() if _is_layer("readout", k)]
    reads = [int(v.shape[1]) for k, v in weights.items() if _is_layer("readin", k)]
    if not any(name.startswith("readin.") for name in weights) and "readin" not in given:
        reads = [values["encod_data_dim"]]
    question = _Question(widths, reads or [0], _data_files(path, data, known, len(widths)))
    recon = given.get("reconstruction", _first(nodes, "reconstruction"))
    # What the caller gives is the caller's own.
    of_recon = EVERYTHING if "reconstruction" in given else trust
    values["reconstruction"] = _reconstruction(recon, weights, question, of_recon)
    return {**values, **given, "reconstruction": values["reconstruction"]}


def read_configuration(path: str | Path) -> dict[str, Any]:
    """Read the model's node of a YAML file: that of a model, of a run, or a primary one."""
    file = expanded(path)
    if not file.is_file():
        raise UserError(f"there is no configuration {file}; name the YAML file of the model")
    content = load_yaml(file)
    model = content.get("model")
    for entry in content.get("defaults") or ():
        for group, option in entry.items() if isinstance(entry, Mapping) else ():
            if str(group).split()[-1].lstrip("/").partition("@")[0] == "model" and option:
                name = f"model/{str(option).removesuffix('.yaml')}.yaml"
                chosen = file.parent / name
                # A lab's file comes before the packaged one of its name.
                chosen = chosen if chosen.is_file() else PACKAGED / name
                model = {**read_configuration(chosen), **(model or {})}
    node = model if isinstance(model, Mapping) else content
    resolved = _resolved(dict(node), {**content, "model": node})
    return {str(key): value for key, value in resolved.items()}


def configurations_beside(path: Path) -> list[dict[str, Any]]:
    """Read what a run folder says of the model of a checkpoint in it."""
    folder = RunFolder.around(path).path
    files = [folder / CONFIG, folder / "hparams.yaml", folder / "csv_logs" / "hparams.yaml"]
    files += sorted(folder.glob("csv_logs/version_*/hparams.yaml"), reverse=True)
    files.append(folder / ".hydra" / CONFIG)
    nodes = []
    for file in filter(Path.is_file, files):
        try:
            nodes.append(read_configuration(file))
        except UserError as error:
            warnings.warn(f"not used: {error}", stacklevel=2)
    return nodes


def _nodes(checkpoint: Mapping[str, Any], path: Path) -> list[Mapping[str, Any]]:
    """Return what the checkpoint and its folder say, in this order."""
    stored = [checkpoint.get(f"{name}hyper_parameters") for name in ("", "datamodule_")]
    inside = [node.attributes if isinstance(node, Record) else node for node in stored]
    nodes = [node for node in inside if isinstance(node, Mapping)]
    return [*nodes, *configurations_beside(path)]


def _pattern(node: Mapping[str, Any]) -> Any:
    """Return the data files that a configuration names, None where they are not there."""
    pattern: Any = node.get("datafile_pattern") or node.get("data_paths")
    listed = pattern if isinstance(pattern, (list, tuple)) else [pattern]
    if not all(isinstance(one, str) for one in listed):
        return None
    try:
        find_sessions(pattern)
    except UserError:
        return None
    return pattern


def data_named(checkpoint: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return the arguments of the data module that a checkpoint or its folder names.

    They lie among those of the model. Without data files that exist there are none.
    """
    for node in _nodes(checkpoint, path):
        if (pattern := _pattern(node)) is not None:
            known = inspect.signature(BasicDataModule).parameters
            plain = {k: node[k] for k in known if k in node and not isinstance(node[k], Record)}
            return {**plain, "datafile_pattern": pattern}
    return {}


def untrained(checkpoint: Mapping[str, Any]) -> set[str]:
    """Return the names of parameters that the optimiser never moved, such as a fixed read-in."""
    # The existing optimiser takes all parameters, in the order of the state dict, and has moments
    # of those that had a gradient.
    names = list(checkpoint["state_dict"])
    for optimizer in checkpoint.get("optimizer_states") or ():
        moments = optimizer.get("state")
        numbers = [i for group in optimizer.get("param_groups", ()) for i in group["params"]]
        if moments and len(numbers) == len(names):
            return {name for i, name in enumerate(names) if i not in moments}
    return set()


def _model_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    model = config.get("model")
    return model if isinstance(model, Mapping) else config


def _resolved(node: Any, root: Mapping[str, Any], depth: int = 0) -> Any:
    """Replace interpolations such as ``${model.ic_dim}``; what leads nowhere stays as it is."""
    if isinstance(node, Mapping):
        return {key: _resolved(value, root, depth) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [_resolved(value, root, depth) for value in node]
    match = re.fullmatch(r"\$\{(\.*)([\w.]+)\}", node) if isinstance(node, str) else None
    if match is None or depth > 8:
        return node
    value: Any = root["model"] if match[1] else root
    for name in match[2].split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return node if value is None else _resolved(value, root, depth + 1)


def _first(nodes: Iterable[Mapping[str, Any]], name: str) -> Any:
    return next((node[name] for node in nodes if node.get(name) is not None), None)


def _numbers(nodes: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for node in nodes:
        for name, value in node.items():
            if name in inspect.signature(LFADS).parameters and number_of(value) is not None:
                values.setdefault(name, number_of(value))
    return values


def _sizes(weights: Weights, stored: Mapping[str, Any]) -> dict[str, int]:
    try:
        ic_ih = weights["encoder.ic_enc.fwd_gru.cell.weight_ih"]
        gen_ih = weights["decoder.rnn.cell.gen_cell.weight_ih"]
        gen_hh = weights["decoder.rnn.cell.gen_cell.weight_hh"]
        fac = weights["decoder.rnn.cell.fac_linear.weight"]
        ic_linear = weights["encoder.ic_linear.weight"]
    except KeyError as error:
        raise ConfigError(f"the checkpoint holds no LFADS model: {error} is missing") from error
    ci_hh = weights.get("encoder.ci_enc.fwd_gru.cell.weight_hh", torch.empty(0, 0))
    con_h0 = weights.get("decoder.con_h0", torch.empty(0, 0))
    co = weights.get("decoder.rnn.cell.co_linear.weight", torch.empty(0, 0))
    co_dim = co.shape[0] // 2
    return {
        "encod_data_dim": ic_ih.shape[1],
        "ic_enc_dim": ic_ih.shape[0] // 3,
        "ic_dim": ic_linear.shape[0] // 2,
        "ci_enc_dim": ci_hh.shape[1],
        "con_dim": con_h0.shape[1],
        "co_dim": co_dim,
        "gen_dim": gen_hh.shape[1],
        "fac_dim": fac.shape[0],
        "ext_input_dim": gen_ih.shape[1] - co_dim,
    }


# ---- layers of the sessions ----------------------------------------------------------------------


def _is_layer(group: str, name: str) -> bool:
    return re.fullmatch(rf"{group}\.\d+\.weight", name) is not None


def _layers(
    group: str,
    weights: Weights,
    nodes: Sequence[Mapping[str, Any]],
    trust: Trust,
    n_sessions: int = 0,
) -> nn.ModuleList | None:
    """Return the linear maps of a group, with an identity for a session that has no weights."""
    names = [name for name in weights if name.startswith(f"{group}.")]
    odd = [name for name in names if not re.fullmatch(rf"{group}\.\d+\.(weight|bias)", name)]
    if odd:
        node = _first(nodes, group)
        if node is None or isinstance(node, Record):
            raise ConfigError(
                f"the {group} has the parameter {odd[0]}, so it is no list of linear maps; give "
                f"load_model(..., {group}=...), or the model's YAML: load_model(..., config=FILE) "
                "or lfads sample --config FILE"
            )
        built = from_spec(node, trust)
        return nn.ModuleList(built) if isinstance(built, list) else built
    n = max([n_sessions, *(int(name.split(".")[1]) + 1 for name in names)])
    layers = nn.ModuleList()
    for i in range(n):
        weight = weights.get(f"{group}.{i}.weight")
        bias = f"{group}.{i}.bias" in weights
        layers.append(
            nn.Identity()
            if weight is None
            else FanInLinear(weight.shape[1], weight.shape[0], bias=bias)
        )
    return layers or None


# ---- priors and augmentations --------------------------------------------------------------------


def _prior(group: str, size: int, weights: Weights, node: Any, trust: Trust) -> Any:
    """Return a prior by the names of its parameters, else by the configuration."""
    names = {k.removeprefix(f"{group}.") for k in weights if k.startswith(f"{group}.")}
    answers = (
        f"give load_model(..., {group}=...), or the model's YAML: load_model(..., config=FILE) or "
        "lfads sample --config FILE"
    )
    if isinstance(node, Mapping) and not str(node.get("_target_")).startswith("lfads_torch."):
        return from_spec(node, trust)
    if isinstance(node, Record) and not node.is_known:
        raise ConfigError(f"{group} is {node.target}, which is not of this package; {answers}")
    if not names:
        return priors.Null()
    if names == {"logtaus", "lognvars"}:
        return priors.AutoregressiveMultivariateNormal(1.0, 1.0, size)
    if names == {"mean", "logvar"}:
        return priors.MultivariateNormal(0.0, 1.0, size)
    if names == {"loc", "logscale"}:
        numbers = node.attributes if isinstance(node, Record) else node or {}
        df = number_of(numbers.get("df"))
        if df is None:
            raise ConfigError(
                f"{group} is a Student-t distribution, whose degrees of freedom (df) are not "
                f"stored; {answers}, for example {group}=MultivariateStudentT(loc=0.0, scale=1.0, "
                f"df=5.0, shape={size})"
            )
        return priors.MultivariateStudentT(0.0, 1.0, df, size)
    raise ConfigError(
        f"{group} has the parameters {', '.join(sorted(names))}, which are of no known prior; "
        f"{answers}"
    )


def _stack(name: str, node: Any, trust: Trust) -> Any:
    """Build an augmentation stack from its record, or from a configuration."""
    if isinstance(node, Mapping):
        return from_spec(node, trust)
    if not isinstance(node, Record):
        return None
    orders = [node.attributes.get(f"{kind}_transforms") or [] for kind in ("batch", "loss")]
    records: list[Any] = []
    for record in [*orders[0], *orders[1]]:
        if not any(record is other for other in records):
            records.append(record)
    built = [_transform(name, record) for record in records]
    kept = [i for i, transform in enumerate(built) if transform is not None]
    places = {id(records[i]): place for place, i in enumerate(kept)}
    batch_order, loss_order = (
        [places[id(record)] for record in order if id(record) in places] for order in orders
    )
    return augmentations.AugmentationStack([built[i] for i in kept], batch_order, loss_order)


def _transform(stack: str, record: Any) -> Any:
    target = getattr(record, "target", type(record).__name__)
    cls = getattr(augmentations, target.rpartition(".")[2], None)
    if not (isinstance(record, Record) and record.is_known and isinstance(cls, type)):
        answers = f"give load_model(..., {stack}=...), or the model's YAML by config= or --config"
        if stack == "train_aug_stack":
            warnings.warn(
                f"{stack} holds {target}, which is not of this package, and is left out; to train "
                f"with it, {answers}",
                stacklevel=2,
            )
            return None
        raise ConfigError(f"{stack} holds {target}, which is not of this package; {answers}")
    numbers = {}
    for argument in inspect.signature(cls).parameters:
        value = record.attributes.get(argument)
        if value is None:
            value = record.attributes.get(_ATTRIBUTES.get(argument, argument))
        if isinstance(value, Record):  # a distribution
            value = value.attributes.get("probs")
        if number_of(value) is not None:
            numbers[argument] = number_of(value)
    if "cd_pass_rate" in numbers:
        numbers["cd_pass_rate"] = round(numbers["cd_pass_rate"], 7)  # a tensor of single precision
    try:
        return cls(**numbers)
    except TypeError as error:
        raise ConfigError(
            f"{stack} holds {target}, of which the checkpoint has {sorted(record.attributes)}: "
            f"{error}; give load_model(..., {stack}=...)"
        ) from error


# ---- the reconstruction --------------------------------------------------------------------------


class _Question:
    """What the read-outs' widths say of the reconstruction, and the question that remains."""

    def __init__(self, widths: Sequence[int], reads: Sequence[int], files: Sequence[Path]) -> None:
        self.widths = list(widths)
        self.reads = list(reads) * (len(self.widths) if len(reads) == 1 else 1)
        self.files = list(files)
        self.channels = [_recon_channels(file) for file in files]

    def legal(self) -> list[int]:
        """Return the numbers of parameters per channel that fit."""
        # All channels that are read are also reconstructed.
        counts: list[int | None] = list(self.channels) or [None] * len(self.widths)
        rows = list(zip(self.widths, counts, self.reads, strict=False))
        return [
            k
            for k in (1, 2, 3)
            if all(w % k == 0 and w // k >= read and n in (None, w // k) for w, n, read in rows)
        ]

    def ask(self, problem: str = "", legal: Sequence[int] | None = None) -> ConfigError:
        """Return the error that asks the user."""
        legal = self.legal() if legal is None else legal
        width = self.widths[0] if self.widths else 0
        options = [f"{_KINDS[k]} for {width // k} channels" for k in legal]
        known = f", and the data have {self.channels[0]} channels" if self.channels else ""
        return ConfigError(
            (problem or "the checkpoint does not say its reconstruction")
            + f". Its read-out gives {width} numbers per bin{known}. "
            + (f"Legal are {'; '.join(options)}. " if options else "No packaged one fits that. ")
            + f"Say which: {HOW_TO_ANSWER}"
            + ("" if self.files else ". A data file says the channels: data=FILE, --data FILE")
        )


_ZIG_EXAMPLE = (
    "ZeroInflatedGamma(gamma_loc=0.1, scale_init=1.0, scale_prior=1.0, scale_penalty=0.001)"
)
_KINDS = {
    1: "Poisson, PoissonBPS or MSE",
    2: "Gaussian or Gamma",
    3: f"{_ZIG_EXAMPLE} (with the numbers of its training)",
}
"""Reconstructions by their parameters per channel."""


def _data_files(
    path: Path, data: Any, nodes: Iterable[Mapping[str, Any]], n_sessions: int
) -> list[Path]:
    """Return files that hold the sessions' data, by sessions, or none."""
    if hasattr(data, "sessions"):
        return [Path(session.path) for session in data.sessions]
    patterns = [data] if data is not None else [_pattern(node) for node in nodes]
    outputs = f"{escape(str(RunFolder.around(path).path))}/lfads_output*.h5"
    if data is None and glob(outputs):
        patterns.append(outputs)
    for pattern in filter(None, patterns):
        files = find_sessions(pattern)
        # An output file may have a link under another name.
        files = list(dict.fromkeys(file.resolve() for file in files))
        if len(files) == n_sessions:
            return files
    return []


def _recon_channels(path: Path) -> int | None:
    with open_h5(path) as file:
        arrays = [file[key] for key in ("train_recon_data", "valid_recon_data") if key in file]
        return int(arrays[0].shape[2]) if arrays and arrays[0].ndim == 3 else None


def _holds_counts(path: Path) -> bool:
    """Whether the first trials of a data file are spike counts, as far as they are observed."""
    with open_h5(path) as file:
        data = np.asarray(file["train_recon_data"][:64]) if "train_recon_data" in file else None
    if data is None:
        return True
    observed = data[np.isfinite(data)]
    return bool(np.all((observed >= 0) & (observed == np.floor(observed))))


def _reconstruction(node: Any, weights: Weights, question: _Question, trust: Trust) -> Any:
    """Return what is given or configured, else what the read-outs' widths say, else ask."""
    if isinstance(node, str):
        node = _from_text(node)
    if isinstance(node, Record):
        node = _spec_of(node)
        if node is None:
            raise ConfigError(f"the reconstruction is not of this package; say it: {HOW_TO_ANSWER}")
    if node is not None:
        return _configured(node, question, trust)
    if any(re.fullmatch(r"recon\.\d+\.scale", name) for name in weights):
        raise question.ask("the checkpoint has a ZeroInflatedGamma without its numbers", [3])
    if question.legal() != [1]:
        raise question.ask()
    if not all(_holds_counts(file) for file in question.files):
        raise question.ask(
            "the checkpoint does not say its reconstruction, and the data are no spike counts, so "
            "that it is hardly Poisson"
        )
    warnings.warn(
        "the checkpoint does not say its reconstruction. Its read-out has one parameter per "
        "channel, so it is read as Poisson (PoissonBPS has the same rates). If it was MSE or your "
        f"own, say so: {HOW_TO_ANSWER}",
        stacklevel=2,
    )
    return recons.Poisson()


def _configured(node: Any, question: _Question, trust: Trust) -> Any:
    """Build a reconstruction, or a list of one per session, from a configuration or argument."""
    if isinstance(node, nn.Module):
        return node
    if isinstance(node, Mapping):
        target = str(node.get("_target_", "")).rpartition(".")[2]
        if target == "MultisessionReconstruction":
            return _configured(node.get("recon"), question, trust)
        if target == "ModuleList":
            return _configured(list(node.get("modules") or ()), question, trust)
        return _one(node, 0, question, trust)
    if isinstance(node, (list, tuple)):
        if len(node) == 1:
            return _configured(node[0], question, trust)
        built = [
            _one(item, i, question, trust) if isinstance(item, Mapping) else item
            for i, item in enumerate(node)
        ]
        return nn.ModuleList(built) if all(isinstance(b, nn.Module) for b in built) else built
    return node


def _one(spec: Mapping[str, Any], session: int, question: _Question, trust: Trust) -> Any:
    target = str(spec.get("_target_", ""))
    cls = _reconstructions().get(target.rpartition(".")[2])
    if cls is None or not target.startswith("lfads_torch."):
        return from_spec(spec, trust)
    if question.widths and cls.n_params not in question.legal():
        raise question.ask(f"{cls.__name__} has {cls.n_params} parameter(s) per channel")
    if cls is not recons.ZeroInflatedGamma:
        return cls()
    values = {name: number_of(spec.get(name)) for name in _ZIG}
    missing = [name for name, value in values.items() if value is None]
    if missing:
        raise question.ask(f"the ZeroInflatedGamma lacks its {', '.join(missing)}", [3])
    width = question.widths[session] if session < len(question.widths) else 0
    return cls(recon_dim=width // cls.n_params, **values)


def _spec_of(record: Record) -> Any:
    """Return the record of an observation model, or of a list of them, as a configuration."""
    members = record.attributes.get("_modules")
    if record.is_known and record.class_name in _reconstructions():
        return {"_target_": f"{recons.__name__}.{record.class_name}", **record.attributes}
    if isinstance(members, Mapping) and members:
        specs = [_spec_of(m) if isinstance(m, Record) else None for m in members.values()]
        return None if None in specs else specs
    return None


def _reconstructions() -> dict[str, Any]:
    return {
        name: cls
        for name, cls in vars(recons).items()
        if isinstance(cls, type)
        and issubclass(cls, recons.Reconstruction)
        and not name.startswith(("_", "Reconstruction"))
    }


def _from_text(text: str) -> dict[str, Any]:
    """Read a name such as "gaussian", also with numbers: "ZeroInflatedGamma(gamma_loc=0.1)"."""
    known = _reconstructions()
    name, bracket, _ = text.strip().partition("(")
    plain = {key.lower(): key for key in known}
    key = plain.get(re.sub(r"[\s_-]", "", name).lower())
    if key is None and "." in name:
        return {"_target_": name}
    if key is None:
        raise ConfigError(f"reconstruction {text!r} is unknown; {did_you_mean(name, known)}")
    names = list(inspect.signature(known[key]).parameters) if bracket else []
    try:
        call: Any = ast.parse(f"f({text.partition('(')[2]}" if bracket else "f()", mode="eval").body
        numbers = [ast.literal_eval(argument) for argument in call.args]
        values = dict(zip(names[: len(numbers)], numbers, strict=True))
        values.update({str(k.arg): ast.literal_eval(k.value) for k in call.keywords})
    except (SyntaxError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"reconstruction {text!r} cannot be read; write a name, or a name with numbers: "
            f"{_ZIG_EXAMPLE}"
        ) from error
    return {"_target_": f"{recons.__name__}.{key}", **values}
