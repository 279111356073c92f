"""Trained models from run folders and checkpoints, of this project and of the existing one.

Nothing in a checkpoint is executed. This project's hold numbers and names only. Those of the
existing implementation hold pickled objects: tensors and plain containers are rebuilt, an object of
any other class becomes an inert record of its class name and attributes.
"""

from __future__ import annotations

import inspect
import pickle
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from .errors import ConfigError, UserError
from .folder import RunFolder
from .model import LFADS
from .modules import priors, recons
from .modules.readin_readout import FanInLinear
from .modules.spec import from_spec

PARAMETER_GROUPS = ("readin", "encoder", "decoder", "readout", "recon", "ic_prior", "co_prior")
"""First parts of the names of an LFADS model's parameters; others in a state dict are not its."""


def load_model(path: str | Path, *, best: bool = True, **arguments: Any) -> LFADS:
    """Load a trained model, ready for inference on the CPU.

    Parameters
    ----------
    path : str or Path
        A run folder, a folder of checkpoints, or a checkpoint (``*.ckpt``) of this project or of
        the existing PyTorch implementation of LFADS.
    best : bool
        Of a folder, take the checkpoint of the lowest smoothed validation loss, else the last.
    **arguments
        Constructor arguments of `LFADS` that replace those of the checkpoint, or that it lacks.

    Returns
    -------
    LFADS
        In evaluation mode; `session_names` are those it was trained on, where known.

    Raises
    ------
    UserError
        Where there is no checkpoint, it is damaged, of another shape than `arguments` say, or
        does not say enough to build the model.
    """
    place = Path(path).expanduser()
    if not place.exists():
        raise UserError(f"{place} does not exist; give a run folder or a checkpoint (*.ckpt)")
    found = RunFolder(place).checkpoint(best=best)
    if found is None:
        raise UserError(f"{place} holds no checkpoint (*.ckpt, lightning_checkpoints/*.ckpt)")
    checkpoint = read_checkpoint(found)
    unknown = set(arguments) - set(inspect.signature(LFADS).parameters)
    if unknown:
        raise ConfigError(f"{sorted(unknown)[0]!r} is no argument of LFADS")
    weights = _weights(checkpoint, found)
    own = checkpoint.get("lfads")
    try:
        values = _described(checkpoint, own) if own else _inferred(checkpoint, weights, arguments)
        model = LFADS(**{**values, **arguments})
    except UserError as error:
        raise type(error)(f"{found}: {error}") from error
    if not own and not model.use_con:
        # An autonomous model has no inferred inputs, whatever prior was configured for them.
        weights = {k: v for k, v in weights.items() if not k.startswith("co_prior.")}
    load_weights(model, weights, found)
    if own:
        model.session_names = list(own["session_names"])
        frozen = set(own["frozen"])
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name not in frozen)
    return model.eval()


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint without executing anything in it."""
    try:
        if _is_program(path):
            raise UserError(f"{path} is a TorchScript program, not a checkpoint")
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            # An older checkpoint pickles whole objects. The inert unpickler keeps tensors and
            # numbers, and puts a stub in the place of everything else: no code of the file runs.
            inert: Any = SimpleNamespace(
                Unpickler=_InertUnpickler, load=_inert_load, __name__="inert"
            )
            return torch.load(path, map_location="cpu", weights_only=False, pickle_module=inert)
    except UserError:
        raise
    except Exception as error:  # random bytes fail in every way there is
        raise UserError(f"{path} is damaged or no checkpoint: {error}") from error


def _is_program(path: Path) -> bool:
    """Whether torch would hand the file to its TorchScript loader."""
    # torch.load hands such a file to another loader, which `weights_only` does not restrain.
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("constants.pkl") for name in archive.namelist())


def load_weights(model: LFADS, weights: Mapping[str, Tensor], source: Any) -> None:
    """Copy weights into a model."""
    own = model.state_dict()
    problems = [f"{name} is missing" for name in own if name not in weights]
    problems += [f"{name} has no place in the model" for name in weights if name not in own]
    problems += [
        f"{name} is {tuple(weights[name].shape)}, the model's {tuple(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise UserError(
            f"{source} is a checkpoint of another shape: {'; '.join(problems[:5])}{more}. Build "
            "the model with the sizes it was trained with"
        )
    model.load_state_dict(dict(weights))


def _weights(checkpoint: Any, path: Path) -> dict[str, Tensor]:
    state = checkpoint.get("state_dict") if isinstance(checkpoint, Mapping) else None
    if not isinstance(state, Mapping):
        raise UserError(f"{path} holds no state_dict; give a checkpoint of a Lightning model")
    return {
        name: value
        for name, value in state.items()
        if name.partition(".")[0] in PARAMETER_GROUPS and isinstance(value, Tensor)
    }


def _described(checkpoint: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Read constructor arguments from a checkpoint of this project."""
    known = inspect.signature(LFADS).parameters
    numbers = {k: v for k, v in checkpoint["hyper_parameters"].items() if k in known}
    return {**numbers, **{name: from_spec(spec) for name, spec in own["parts"].items()}}


def _inferred(
    checkpoint: Mapping[str, Any], weights: Mapping[str, Tensor], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Derive constructor arguments from weights and numbers of a foreign checkpoint."""
    stored = checkpoint.get("hyper_parameters") or {}
    if isinstance(stored, _Inert):
        stored = stored.attributes
    stored = stored if isinstance(stored, Mapping) else {}
    parameters = inspect.signature(LFADS).parameters
    values: dict[str, Any] = {
        name: value
        for name, value in stored.items()
        if name in parameters and isinstance(value, (bool, int, float))
    }
    missing = {"encod_seq_len", "recon_seq_len"} - set(values) - set(given)
    if missing:
        raise ConfigError(
            f"the checkpoint does not say {' and '.join(sorted(missing))}; give them to load_model"
        )
    values.update(_sizes(weights))
    values["readin"] = _linears("readin", weights) or None
    values["readout"] = _linears("readout", weights)
    for name in {"ic_prior", "co_prior"} - set(given):
        values[name] = _prior(name, weights)
    if "reconstruction" not in given:
        values["reconstruction"] = _reconstruction(stored.get("reconstruction"), weights)
    return values


def _sizes(weights: Mapping[str, Tensor]) -> dict[str, int]:
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


def _linears(group: str, weights: Mapping[str, Tensor]) -> nn.ModuleList:
    layers = nn.ModuleList()
    while (weight := weights.get(f"{group}.{len(layers)}.weight")) is not None:
        bias = f"{group}.{len(layers)}.bias" in weights
        layers.append(FanInLinear(weight.shape[1], weight.shape[0], bias=bias))
    return layers


def _prior(group: str, weights: Mapping[str, Tensor]) -> nn.Module:
    own = {k.removeprefix(f"{group}."): v for k, v in weights.items() if k.startswith(f"{group}.")}
    if not own:
        return priors.Null()
    size = next(iter(own.values())).shape[0]
    if set(own) == {"logtaus", "lognvars"}:
        return priors.AutoregressiveMultivariateNormal(1.0, 1.0, size)
    if set(own) == {"mean", "logvar"}:
        return priors.MultivariateNormal(0.0, 1.0, size)
    raise ConfigError(
        f"{group} has the parameters {', '.join(own)}, which are of no known prior; give "
        f"{group}=... to load_model"
    )


def _reconstruction(stored: Any, weights: Mapping[str, Tensor]) -> nn.Module:
    """Observation model by the class name and attributes of an inert record."""
    if isinstance(stored, _Inert) and _reconstruction_class(stored) is None:
        # A list with one for every session, all of the same kind.
        members = stored.attributes.get("_modules")
        stored = next(iter(members.values()), stored) if isinstance(members, Mapping) else stored
    name, cls = getattr(stored, "class_name", None), _reconstruction_class(stored)
    scale = weights.get("recon.0.scale")
    if scale is not None:
        state = getattr(stored, "attributes", {})
        names = ("gamma_loc", "scale_init", "scale_prior", "scale_penalty")
        if not all(isinstance(state.get(n), (int, float)) for n in names):
            raise ConfigError(
                "the checkpoint has a ZeroInflatedGamma reconstruction but does not say its "
                f"{', '.join(names)}; give reconstruction=ZeroInflatedGamma(...) to load_model"
            )
        arguments = {n: float(state[n]) for n in names}
        return recons.ZeroInflatedGamma(recon_dim=scale.shape[1], **arguments)
    if cls is None:
        raise ConfigError(
            f"the checkpoint does not say its reconstruction (found {name or type(stored).__name__}"
            "); give it to load_model, for example reconstruction=Poisson()"
        )
    return cls()


def _reconstruction_class(record: Any) -> type[recons.Reconstruction] | None:
    cls = getattr(recons, getattr(record, "class_name", ""), None)
    is_one = isinstance(cls, type) and issubclass(cls, recons.Reconstruction)
    return cls if is_one and cls is not recons.Reconstruction else None


class _Inert:
    """Stands in for an object of a class that is not allowed to be built."""

    class_name = ""

    attributes: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> _Inert:
        record = super().__new__(cls)
        record.attributes = {}
        return record

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, Mapping):
                self.attributes.update(part)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.attributes[str(key)] = value

    def append(self, value: Any) -> None:
        """Ignore an item of a list."""

    def extend(self, values: Any) -> None:
        """Ignore items of a list."""


_SAFE: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "defaultdict"): defaultdict,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
}
for _name in ("dict", "list", "tuple", "set", "frozenset", "int", "float", "bool", "str"):
    _SAFE["builtins", _name] = (
        __builtins__[_name] if isinstance(__builtins__, dict) else getattr(__builtins__, _name)
    )


class _InertUnpickler(pickle.Unpickler):
    """Builds tensors and plain containers; anything else becomes a `_Inert` record."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _SAFE:
            return _SAFE[module, name]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if module == "torch" and name.endswith("Storage"):
            return getattr(torch, name)
        return type(name, (_Inert,), {"class_name": name, "__module__": __name__})


def _inert_load(file: Any, **options: Any) -> Any:
    return _InertUnpickler(file, **options).load()
