"""Trained models from run folders and checkpoints, of this project and of the existing one.

Nothing in a checkpoint is executed. This project's hold numbers and names only. What those of the
existing implementation hold, and lack, is the business of `lfads_torch.compat`.
"""

from __future__ import annotations

import inspect
import os
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from h5py import is_hdf5
from torch import Tensor

from .compat.checkpoints import arguments_from, data_named, untrained
from .compat.records import load_pickled
from .compat.training import beside, matching_weights
from .consent import Trust, trust_of
from .errors import ConfigError, UserError
from .files import Sealed, absent, damage, expanded, generation_before, replacing
from .folder import BEST_MODEL, CHECKPOINTS, CONFIG, LAST, RunFolder, lacks
from .model import LFADS
from .modules.spec import from_spec

__all__ = [
    "data_settings",
    "find_checkpoint",
    "load_model",
    "load_weights",
    "newest_checkpoint",
    "read_checkpoint",
    "restore",
    "write_checkpoint",
]

PARAMETER_GROUPS = (
    "readin",
    "encoder",
    "decoder",
    "readout",
    "recon",
    "ic_prior",
    "co_prior",
    "behavior",
)
"""First parts of the names of an LFADS model's parameters; others in a state dict are not its."""


def load_model(
    path: str | Path,
    *,
    best: bool = True,
    config: str | Path | Mapping[str, Any] | None = None,
    data: Any = None,
    trust: bool | Trust = False,
    **arguments: Any,
) -> LFADS:
    """Load a trained model, ready for inference on the CPU.

    A checkpoint of the existing implementation does not say its reconstruction, nor the prior of
    its initial conditions. What names and shapes of the weights do not say either comes from
    `arguments`, `config`, or a configuration in its folder; else the error asks.

    Parameters
    ----------
    path : str or Path
        A run folder, a folder of checkpoints, or a checkpoint (``*.ckpt``) of this project or of
        the existing PyTorch implementation of LFADS.
    best : bool
        Of a folder, take the checkpoint of the lowest smoothed validation loss, else the last.
    config : str, Path or mapping, optional
        YAML file of the model or of the whole run, or its content, for what a checkpoint of the
        existing implementation lacks.
    data : str, Path or BasicDataModule, optional
        Data of such a checkpoint: they say how many channels are reconstructed.
    trust : bool, default=False
        Import also classes from outside this package and `torch.nn` that the checkpoint names. Not
        needed where your program has imported them already, nor in the folder of a run of yours.
    **arguments
        Constructor arguments of `LFADS` that replace those of the checkpoint, or that it lacks.
        The `reconstruction` of a checkpoint of the existing implementation may be a name, such as
        "gaussian" or "ZeroInflatedGamma(gamma_loc=0.1, ...)".

    Returns
    -------
    LFADS
        In evaluation mode; `session_names` are those it was trained on, where known.

    Raises
    ------
    UserError
        Where there is no checkpoint, it is damaged, of another shape than `arguments` say,
        does not say enough to build the model, or needs a class that may not be imported.
    """
    place = expanded(path)
    if not place.exists():
        raise UserError(f"{absent(place)}; give a run folder or a checkpoint (*.ckpt)")
    file = find_checkpoint(place, best=best)
    if file is None:
        where = (
            "checkpoint (*.ckpt, lightning_checkpoints/*.ckpt, checkpoint_*/*.ckpt, best_model/)"
        )
        raise lacks(place, where, "name a run folder or a .ckpt file")
    checkpoint = read_checkpoint(file)
    unknown = set(arguments) - set(inspect.signature(LFADS).parameters)
    if unknown:
        raise ConfigError(f"{sorted(unknown)[0]!r} is no argument of LFADS")
    weights = _weights(checkpoint, file)
    trust = trust_of(RunFolder.around(file).path / CONFIG, trust)
    description = checkpoint.get("lfads")
    if description and (config is not None or isinstance(arguments.get("reconstruction"), str)):
        raise ConfigError(
            f"{file} says itself what config (--config) and the name of a reconstruction "
            "(--reconstruction) are for; leave them out"
        )
    try:
        if description:
            values = {**_described(checkpoint, description, trust, arguments), **arguments}
        else:
            values = arguments_from(checkpoint, weights, arguments, file, config, data, trust)
        model = LFADS(**values)
    except UserError as error:
        raise type(error)(f"{file}: {error}") from error
    load_weights(model, weights if description else matching_weights(weights, model), file)
    frozen = set(description["frozen"]) if description else untrained(checkpoint)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    if description:
        model.session_names = list(description["session_names"])
    return model.eval()


def find_checkpoint(place: str | Path, *, best: bool = False) -> Path | None:
    """Return the last checkpoint of a place, or the best one by smoothed validation loss, if any.

    Which is the best is recorded in the run folder, else by Lightning in the newest checkpoint:
    its path is relative to a folder that may have moved, so the file's name counts.
    """
    folder = RunFolder(place)
    if not folder.path.is_file() and (run := RunFolder.around(folder.path)).status:
        folder = run  # which knows more than its folder of checkpoints
    path = folder.checkpoint(best=best)
    if path is None or folder.path.is_file():
        return path
    status = folder.single.status
    if not best or status.get("best_checkpoint"):
        return intact(path)
    files = [file for file in path.parent.glob("*.ckpt") if damage(file) is None]
    if not files:
        return intact(path)
    newest = max(files, key=lambda file: (file.stat().st_mtime, file.name))
    states = read_checkpoint(newest).get("callbacks")
    for state in states.values() if isinstance(states, Mapping) else ():
        name = state.get("best_model_path") if isinstance(state, Mapping) else None
        if isinstance(name, str) and (named := beside(path, name)):
            return intact(named)
        # A run that goes on has a later one, where this one is gone; the last is no best.
        if name and status and path.stem == "last":
            return intact(path.with_name(name.replace("\\", "/").rpartition("/")[2]))
    return intact(path)


def intact(path: Path) -> Path:
    """Return a checkpoint, or where it is damaged the generation before, with a warning."""
    why = damage(path)
    if why is None:
        return path
    before = generation_before(path)
    if damage(before) is None:
        warnings.warn(
            f"{path} cannot be used: {why}. {before.name}, the checkpoint of the epoch before, is "
            "intact and takes its place",
            stacklevel=3,
        )
        return before
    raise UserError(f"{path} cannot be used: {why}{_left(path)}")


def recover(path: Path) -> Path:
    """Put the generation before into the place of a checkpoint that is damaged, with a warning."""
    # Else the next epoch would keep the damaged one as the generation before.
    if (found := intact(path)) != path:
        os.replace(found, path)
    return path


def last_whole(run: RunFolder) -> Path | None:
    """Return the checkpoint of a run's last whole epoch, None where it stopped in its first."""
    path = run.checkpoint()
    # The best of the first epoch alone: other callbacks had not seen that epoch yet.
    is_whole = not run.status or run.has_last
    if path is None or not (is_whole or read_checkpoint(path).get("epoch") != 0):
        return None
    return recover(path)


def _left(path: Path) -> str:
    """Name the intact checkpoints in the folder of a damaged one."""
    place = path.parent
    files = [*place.glob("*.ckpt*"), *place.glob(f"{BEST_MODEL}/{CHECKPOINTS}/*.ckpt")]
    names = [
        str(file.relative_to(place))
        for file in sorted(files)
        if file != path and file.name[0] != "." and damage(file) is None
    ]
    if not names:
        return f". No other checkpoint is in {place}; start anew (--overwrite)"
    ways = ["use the last epoch (--last)"] if "last.ckpt" in names else []
    ways.append("name one of these files")
    if path.name == "last.ckpt":
        ways.append("copy one of them to last.ckpt, to train on from it")
    return f". Intact are {', '.join(names)}: {', '.join(ways)}, or start anew (--overwrite)"


def newest_checkpoint(place: str | Path, *, best: bool = False) -> Path | None:
    """Return the checkpoint to go on from: the newest directly in a folder, else as above."""
    last = Path(place) / Path(LAST).name
    files = [file for file in last.parent.glob("*.ckpt") if file.is_file()]
    if files and not last.is_file() and generation_before(last).is_file():
        return intact(last)
    if files:
        newest = max(files, key=lambda f: (f.stat().st_mtime, f.stem == "last", f.name))
        return intact(newest)
    return find_checkpoint(place, best=best)


def restore(model: LFADS, path: Path) -> dict[str, Any]:
    """Copy a checkpoint's weights into a model that a configuration describes; return its rest."""
    state = read_checkpoint(path)
    weights = state["state_dict"] if "lfads" in state else _weights(state, path)
    load_weights(model, weights if "lfads" in state else matching_weights(weights, model), path)
    return state


def data_settings(path: Path) -> dict[str, Any]:
    """Return the arguments of the data module of an older run, or none where its data are gone."""
    return data_named(read_checkpoint(path), path)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint without executing anything in it; a damaged one is an error."""
    if is_hdf5(path):
        raise UserError(
            f"{path} is an HDF5 file, not a checkpoint; name a run folder or a .ckpt file"
        )
    if why := damage(path):
        raise UserError(f"{path} is damaged or no checkpoint: {why}{_left(path)}")
    try:
        if _is_program(path):
            raise UserError(f"{path} is a TorchScript program, not a checkpoint")
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            return load_pickled(path)
    except UserError:
        raise
    except Exception as error:  # random bytes fail in every way there is
        raise UserError(f"{path} is damaged or no checkpoint: {error}") from error


def write_checkpoint(
    path: Path, content: Mapping[str, Any], *, flush: bool = True, keep: bool = False
) -> None:
    """Write a checkpoint with its checksum; `flush` and `keep` are those of `replacing`."""
    # Straight to the file: the state of a search is large, and need not be in memory twice.
    with replacing(path, flush=flush, keep=keep) as file:
        sealed: Any = Sealed(file)
        torch.save(dict(content), sealed)
        sealed.seal()


def _is_program(path: Path) -> bool:
    """Whether torch would hand the file to its TorchScript loader."""
    # torch.load hands such a file to another loader, which `weights_only` does not restrain.
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("constants.pkl") for name in archive.namelist())


def load_weights(model: LFADS, weights: Mapping[str, Tensor], source: Any) -> None:
    """Copy weights into a model."""
    state = model.state_dict()
    problems = [f"{name} is missing" for name in state if name not in weights]
    problems += [f"{name} has no place in the model" for name in weights if name not in state]
    problems += [
        f"{name} is {tuple(weights[name].shape)}, the model's {tuple(state[name].shape)}"
        for name in state
        if name in weights and weights[name].shape != state[name].shape
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


def _described(
    checkpoint: Mapping[str, Any],
    description: Mapping[str, Any],
    trust: Trust,
    given: Mapping[str, Any],
) -> dict[str, Any]:
    """Read constructor arguments from a checkpoint of this project, but for those given."""
    known = inspect.signature(LFADS).parameters
    numbers = {k: v for k, v in checkpoint["hyper_parameters"].items() if k in known}
    parts = {k: spec for k, spec in description["parts"].items() if k not in given}
    return {**numbers, **{name: from_spec(spec, trust) for name, spec in parts.items()}}
