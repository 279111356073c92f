"""A session added to a trained model: first its own maps are trained, then, if asked, all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from ..checkpoint import find_checkpoint, load_model, read_checkpoint
from ..consent import Trust, trust_of
from ..data import find_sessions
from ..data.fingerprint import check_unchanged, fingerprints
from ..datamodules import BasicDataModule
from ..errors import UserError, whole
from ..files import expanded
from ..folder import CONFIG, RunFolder, lacks
from ..model import LFADS
from ..modules.spec import targets_of, to_spec
from ..processes import stoppable
from ..run_model import RunResult, run_model
from ..runs.build import build, pick_device
from ..runs.check_config import check_parts
from ..runs.compose import absolute_pattern, read_config, write_config
from ..runs.resume import AtomicCheckpointIO
from .extend import SESSION_GROUPS, extend_model, start_maps

START = "start"
"""Folder of a run that begins from another one: the weights and the configuration it began with."""

MAPS = "maps"
"""Folder, in that of the new run, of the run that trained only the new session's maps."""

#: Ramps are for models that begin at random.
_NO_RAMPS = dict.fromkeys(
    ("kl_start_epoch", "kl_increase_epoch", "l2_start_epoch", "l2_increase_epoch"), 0
)
_FROZEN_BEFORE = "frozen_before"


@dataclass
class AddedSession:
    """The new run, the new session's name, and the losses before and after training."""

    result: RunResult
    name: str
    #: Reconstruction loss on each session's validation trials, before and after.
    losses: dict[str, tuple[float, float]]


def add_session(
    run: str | Path,
    new: str | Path,
    run_dir: str | Path,
    *,
    epochs: int = 100,
    all_epochs: int = 0,
    conditions: str | None = None,
    data: Any = None,
    overrides: Sequence[str] = (),
    best: bool = True,
    overwrite: bool = False,
    trust: bool | Trust = False,
    accept_changed_data: bool = False,
) -> AddedSession:
    """Add a session to a trained model.

    The model is extended by a read-in, a read-out and an observation model for the new session.
    Only these are trained, on the new session's trials: everything else, and so what the model
    says of the other sessions, stays as it is to the last bit. With `all_epochs`, all that the
    run trained is then trained further on all sessions, at a tenth of its learning rate. `trust`
    consents to code outside this package that the run names, `accept_changed_data` to files of the
    other sessions that hold other numbers than the model was trained on.
    """
    whole("epochs (--epochs)", epochs, least=1)
    whole("all_epochs (--then-all)", all_epochs, least=0)
    place = expanded(run).absolute()
    folder, target = RunFolder.around(place).single.path, expanded(run_dir).absolute()
    checkpoint = find_checkpoint(place, best=best)
    if checkpoint is None or not (folder / CONFIG).is_file():
        raise lacks(place, f"run with a checkpoint and a {CONFIG}", "name a run folder")
    if target == folder:
        raise UserError(f"the new run needs a folder of its own, not {target}")
    if RunFolder(target).kind != "none" and not overwrite:
        raise UserError(
            f"{target} already holds a run; delete it (--overwrite; overwrite=True) or name another"
        )
    trust = trust_of(folder / CONFIG, trust)
    config, model = read_config(folder, trust), load_model(checkpoint, trust=trust)
    check_parts(config, folder / CONFIG)
    paths, name = _files(model, config, data, Path(new))
    settings = {**config["datamodule"], "datafile_pattern": [str(path) for path in paths]}
    everything = build({**settings, "fit_sessions": None}, "datamodule")
    everything.setup("fit")
    others = [one for one in fingerprints(everything) if one["file"] != Path(new).name]
    known = RunFolder(folder).status.get("data")
    check_unchanged(known, others, accept=accept_changed_data)
    extended = extend_model(model, everything, name)
    start_maps(extended, everything, name, conditions)
    before = _losses(extended, everything, config)

    number = extended.session_names.index(name)
    frozen = _frozen_before(folder, model, extended, number)
    changes = {"datamodule": {**settings, "fit_sessions": [name]}}
    with stoppable(), RunFolder(target).claimed("training", overwrite=overwrite):
        # Two stages are two runs, of which each can be resumed; the first one lies in the second.
        first = target if not all_epochs else target / MAPS
        _train_only(extended, number)
        text = _prepare(first, extended, config, changes, epochs, frozen)
        result = run_model(
            overrides,
            config_path=text,
            run_dir=first,
            overwrite=overwrite,
            do_posterior_sample=not all_epochs,
        )
        if all_epochs:
            trained = load_model(first, trust=trust)
            for key, parameter in trained.named_parameters():
                parameter.requires_grad_(key not in frozen)
            changes = {"datamodule": {**settings, "fit_sessions": None}}
            changes["model"] = {"lr_init": float(model.hparams["lr_init"]) / 10}
            text = _prepare(target, trained, config, changes, all_epochs, frozen)
            result = run_model(overrides, config_path=text, run_dir=target, overwrite=overwrite)
    after = _losses(load_model(target, trust=trust), everything, config)
    return AddedSession(result, name, {key: (before[key], after[key]) for key in before})


def _files(model: LFADS, config: Mapping[str, Any], data: Any, new: Path) -> tuple[list[Path], str]:
    """Files of all sessions, sorted, and the name of the new one."""
    [added] = find_sessions(absolute_pattern(str(new), Path.cwd()))
    known = model.session_names
    pattern = config.get("datamodule", {}).get("datafile_pattern") if data is None else data
    if pattern is None:
        raise UserError("the run does not say what its data were; name the files (--data)")
    if added.stem in {name.rpartition("/")[2] for name in known}:
        raise UserError(
            f"{added} has the name of a session that the model knows ({', '.join(known)}), and "
            "sessions are told apart by their names; give the file another name"
        )
    paths = [path for path in find_sessions(pattern) if path != added]
    if known:
        # Sessions whose files have one name in several folders are named with their folder.
        names = {path: (path.stem, f"{path.parent.name}/{path.stem}") for path in paths}
        paths = [path for path in paths if set(names[path]) & set(known)]
        missing = set(known) - {name for path in paths for name in names[path]}
        if missing:
            raise UserError(
                f"the files of the sessions {', '.join(sorted(missing))}, which the model was "
                f"trained on, are not among {pattern}; say where they are (--data)"
            )
    if len(paths) != len(model.readin):
        raise UserError(
            f"the model has {len(model.readin)} sessions, but {pattern} names {len(paths)} files "
            "beside the new one; name the files of its sessions (--data)"
        )
    return sorted([*paths, added]), added.stem


def _frozen_before(folder: Path, model: LFADS, extended: LFADS, number: int) -> list[str]:
    """Return what the run did not train, by the names of the extended model."""
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    started = folder / START / "model.ckpt"
    if started.is_file():  # a run that added a session itself froze all but its maps
        frozen = set(read_checkpoint(started).get(_FROZEN_BEFORE, frozen))

    def renamed(name: str) -> str:
        group, _, rest = name.partition(".")
        index, _, tail = rest.partition(".")
        if group not in SESSION_GROUPS or not index.isdigit():
            return name
        return f"{group}.{int(index) + (int(index) >= number)}.{tail}"

    return sorted({name for name, _ in extended.named_parameters()} & set(map(renamed, frozen)))


def _train_only(model: LFADS, number: int) -> None:
    maps = tuple(f"{group}.{number}." for group in SESSION_GROUPS)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(maps))


def _prepare(
    folder: Path,
    model: LFADS,
    config: Mapping[str, Any],
    changes: Mapping[str, Any],
    epochs: int,
    frozen: Sequence[str],
) -> Path:
    """Write what a run begins with; return its configuration."""
    start = {
        # Relative to the run folder, so that this can be moved.
        "_target_": "lfads_torch.checkpoint.load_model",
        "path": f"{START}/model.ckpt",
        **_NO_RAMPS,
        **changes.get("model", {}),
    }
    trainer = {**config.get("trainer", {}), "max_epochs": epochs}
    start_config = {**config, **changes, "model": start, "trainer": trainer}
    return save_start(folder, model, start_config, {_FROZEN_BEFORE: list(frozen)})


def save_start(
    folder: Path, model: LFADS, config: Mapping[str, Any], more: Mapping[str, Any]
) -> Path:
    """Write the weights, `more` with them, and the configuration that a run begins with."""
    state: dict[str, Any] = {"state_dict": model.state_dict(), **more}
    model.on_save_checkpoint(state)
    AtomicCheckpointIO().save_checkpoint(state, folder / START / "model.ckpt")
    path = folder / START / CONFIG
    parts = [to_spec(part) for part in model.parts().values()]
    write_config(path, config, targets_of(parts))
    return path


def _losses(model: LFADS, data: BasicDataModule, config: Mapping[str, Any]) -> dict[str, float]:
    """Reconstruction loss of each session's validation trials."""
    trainer = pl.Trainer(
        accelerator=pick_device(config.get("trainer") or {}),
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    # The same draws before and after: what differs is the model.
    with torch.random.fork_rng():
        torch.manual_seed(0)
        [metrics] = trainer.validate(model, datamodule=data, verbose=False)
    return {
        name: float(metrics[f"valid/recon/sess{number}"])
        for number, name in enumerate(data.session_names)
    }
