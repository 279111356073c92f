"""What a configuration describes, built: data module, model, trainer, and a checkpoint's state."""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from ..arguments import LOSS, mode_of
from ..consent import LOAD_MODEL
from ..errors import ConfigError, UserError
from ..folder import BY_LOSS, CHECKPOINTS
from .check_config import find_target
from .compose import escaped, reads_behavior

if TYPE_CHECKING:
    import pytorch_lightning as pl

#: Arguments of the model that are read from the data where the configuration leaves them null.
FROM_DATA = (
    "encod_data_dim",
    "encod_seq_len",
    "recon_seq_len",
    "ext_input_dim",
    "readin",
    "readout",
)


def build(node: Any, where: str, *positional: Any, **more: Any) -> Any:
    """Instantiate a node of the configuration, and all within it; `where` is its key.

    What a component itself raises as a `UserError` stays one, of the same class; any other failure
    becomes a `ConfigError` that names the key.
    """
    try:
        # Hydra looks for references in texts, and twice: a folder may be named ${x}.
        node, more = escaped(escaped(node)), escaped(escaped(more))
        return instantiate(node, *positional, **more, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        while isinstance(cause, InstantiationException):
            cause = cause.__cause__
        if place := re.search(r"^full_key: (\S+)", str(error), re.MULTILINE):
            where = f"{where}.{place[1]}"
        if isinstance(cause, UserError):
            raise type(cause)(f"{where}: {cause}") from error
        if isinstance(cause, OSError):  # of a file or a full disk, not of the configuration
            raise cause from error
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ConfigError(f"{where}: {' '.join(lines)}") from error


def build_model(node: Mapping[str, Any], datamodule: Any, *, trusts_all: bool = False) -> Any:
    """Instantiate the model; sizes that are null or absent are read from the data."""
    if trusts_all and node["_target_"] == LOAD_MODEL:
        return build({**node, "trust": True}, "model")
    unknown = [name for name in FROM_DATA if node.get(name) is None]
    kept = ["behavior_dim"] if reads_behavior(node) else []
    unknown += [name for name in kept if node[name] is None]
    if unknown and hasattr(find_target(node["_target_"], "model"), "from_data"):
        given = {name: x for name, x in node.items() if x is not None or name in kept}
        return build({**given, "_target_": f"{node['_target_']}.from_data"}, "model", datamodule)
    return build(dict(node), "model")


#: Devices that an accelerator of Lightning means, in its order of choice; none of them: the CPU.
DEVICES = {"auto": ("mps", "cuda"), "gpu": ("mps", "cuda"), "cuda": ("cuda",), "mps": ("mps",)}


def pick_device(trainer: Mapping[str, Any], *, is_stacked: bool = False) -> str:
    """Return "cuda", "mps" or "cpu", as the trainer's configuration means it.

    A stack of models draws from generators of its members, which "mps" does not have.
    """
    import torch

    backends = {"cuda": torch.cuda, "mps": torch.backends.mps}
    kinds = DEVICES.get(str(trainer.get("accelerator", "auto")), ())
    usable = [kind for kind in kinds if not (is_stacked and kind == "mps")]
    return next((kind for kind in usable if backends[kind].is_available()), "cpu")


def build_trainer(config: Mapping[str, Any], folder: Path, seed: int, step: int) -> pl.Trainer:
    """Build the trainer with its callbacks and loggers.

    Beside those of the configuration a run has what makes it repeatable and resumable: see
    `lfads_torch.runs.resume`; a best checkpoint and a guard against NaN are added where
    the configuration has none.
    """
    from pytorch_lightning.callbacks import Callback, LearningRateMonitor

    from .resume import AtomicCheckpointIO

    settings = dict(config["trainer"])
    extra = {name: settings.pop(name, None) or [] for name in ("plugins", "callbacks")}
    built = {
        name: [
            build(node, f"trainer.{name}")
            for node in (nodes if isinstance(nodes, list) else [nodes])
        ]
        for name, nodes in extra.items()
    }
    callbacks = [*built["callbacks"], *_callbacks(config, folder, seed)]
    loggers = _loggers(config, step)
    if not loggers:  # Lightning refuses what only writes to loggers where there is none
        callbacks = [one for one in callbacks if not isinstance(one, LearningRateMonitor)]
    for callback in callbacks:
        if not isinstance(callback, Callback):
            raise ConfigError(
                f"callbacks: {type(callback).__name__} is no callback of Lightning; legal are "
                "subclasses of pytorch_lightning.callbacks.Callback"
            )
    trainer: pl.Trainer = build(
        settings,
        "trainer",
        callbacks=callbacks,
        logger=loggers,
        plugins=[AtomicCheckpointIO(), *built["plugins"]],
        default_root_dir=str(folder),
    )
    return trainer


def check_trainer(config: Mapping[str, Any]) -> None:
    """Refuse a trainer that cannot train here: its precision, device, number of processes."""
    from pytorch_lightning.strategies import SingleDeviceStrategy

    settings = {k: v for k, v in config["trainer"].items() if k not in ("plugins", "callbacks")}
    precision = str(settings.get("precision"))
    # The loss is a sum over bins and channels, times 1e4: float16 ends at 65504.
    if precision in ("16", "16-true") or precision.startswith("transformer-engine"):
        raise ConfigError(
            f"trainer.precision is {settings['precision']!r}: losses do not fit into so few bits; "
            "legal are 32-true, 64-true, bf16-true, bf16-mixed, 16-mixed"
        )
    try:
        trainer = build({**settings, "logger": False, "enable_checkpointing": False}, "trainer")
    except ConfigError as error:
        cause = error.__cause__
        while cause is not None and cause.__cause__ is not None:
            cause = cause.__cause__
        # Lightning names what is legal, but not the key.
        named = [f"trainer.{k}={settings[k]}" for k in _OF_HARDWARE if settings.get(k) is not None]
        why = " ".join(str(cause or error).split())
        raise ConfigError(f"{', '.join(named)}: {why}") from error
    if trainer.world_size > 1 or not isinstance(trainer.strategy, SingleDeviceStrategy):
        raise ConfigError(
            f"trainer.devices={settings.get('devices', 'auto')}, "
            f"num_nodes={settings.get('num_nodes', 1)}, "
            f"strategy={settings.get('strategy', 'auto')} mean {trainer.world_size} processes "
            f"({type(trainer.strategy).__name__}); one process holds the data and trains: set "
            "trainer.devices=1 (or [number] of a GPU), trainer.num_nodes=1, trainer.strategy=auto. "
            "Many models train at once with `lfads search`"
        )


_OF_HARDWARE = ("accelerator", "devices", "num_nodes", "strategy", "precision")


def _callbacks(config: Mapping[str, Any], folder: Path, seed: int) -> list[Any]:
    from pytorch_lightning.callbacks import ProgressBar

    from ..callbacks import NaNGuard
    from .monitors import KnownMonitors
    from .resume import EpochSeed, LastCheckpoint, WholeEpoch

    chosen = {name: node for name, node in (config.get("callbacks") or {}).items() if node}
    callbacks = [build(_with_mode(node), f"callbacks.{name}") for name, node in chosen.items()]
    # Lightning refuses a bar where the configuration switches bars off.
    if config["trainer"].get("enable_progress_bar", True) is False:
        callbacks = [callback for callback in callbacks if not isinstance(callback, ProgressBar)]
    # Lightning refuses checkpoint callbacks where the configuration switches checkpoints off.
    is_kept = config["trainer"].get("enable_checkpointing") is not False
    _add_checkpoints(callbacks, config, folder, is_kept=is_kept)
    # The order counts: seeds before anything draws, the guard before the epoch's checkpoints, the
    # last checkpoint when all others have changed what it stores.
    if not any(isinstance(callback, NaNGuard) for callback in callbacks):
        callbacks.insert(0, NaNGuard(on_nan=config.get("on_nan", "stop")))
    return [
        EpochSeed(seed),
        KnownMonitors(),
        *callbacks,
        LastCheckpoint() if is_kept else WholeEpoch(),
    ]


def build_selection(config: Mapping[str, Any], folder: Path) -> tuple[list[Any], list[Any]]:
    """Build what chooses checkpoints, the chooser of the run's best first, and what stops early."""
    from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint

    nodes = {name: node for name, node in (config.get("callbacks") or {}).items() if node}
    names = ("ModelCheckpoint", *_STOPPING)
    callbacks = [
        build(_with_mode(node), f"callbacks.{name}")
        for name, node in nodes.items()
        if str(node["_target_"]).rpartition(".")[2] in names
    ]
    _add_checkpoints(callbacks, config, folder, is_kept=True)
    checkpoints = [c for c in callbacks if isinstance(c, ModelCheckpoint)]
    stopping = [c for c in callbacks if isinstance(c, EarlyStopping)]
    for callback in checkpoints:
        callback.dirpath = str(folder / CHECKPOINTS)
    return checkpoints, stopping


_STOPPING = ("EarlyStopping", "EarlyStoppingWithBurnInPeriod")


def _add_checkpoints(
    callbacks: list[Any], config: Mapping[str, Any], folder: Path, *, is_kept: bool
) -> None:
    """Add the best checkpoints that a configuration lacks: by `select_by`, and by the loss."""
    from pytorch_lightning.callbacks import ModelCheckpoint

    checkpoints = [callback for callback in callbacks if isinstance(callback, ModelCheckpoint)]
    select_by = config.get("select_by") or LOSS
    # Selection by another score keeps the best by the loss, too.
    needed = [select_by, LOSS] if select_by != LOSS else [LOSS] * (not checkpoints)
    for monitor in needed if is_kept else ():
        if monitor in [callback.monitor for callback in checkpoints]:
            continue
        best = ModelCheckpoint(
            CHECKPOINTS,
            filename="best-{epoch:04d}" if monitor == select_by else f"{BY_LOSS}{{epoch:04d}}",
            monitor=monitor,
            mode=mode_of(monitor),
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )
        callbacks.append(best)
        checkpoints.append(best)
    # Lightning takes the first one for the best of the run.
    callbacks.sort(key=lambda callback: callback in checkpoints and callback.monitor != select_by)
    for callback in checkpoints:
        callback.dirpath = callback.dirpath or str(folder / CHECKPOINTS)
        try:
            callback.format_checkpoint_name({})
        except (ValueError, LookupError, AttributeError, TypeError) as error:
            raise ConfigError(
                f"callbacks: {callback.filename!r} is no name of a checkpoint ({error}); legal is "
                "text with names of metrics in braces, best-{epoch:04d}"
            ) from error
        # LastCheckpoint keeps the last epoch; Lightning would keep the last that was the best.
        callback.save_last = False


def _with_mode(node: Mapping[str, Any]) -> dict[str, Any]:
    """Add to a callback with a monitor the mode that its name implies, where none is given."""
    is_known = str(node["_target_"]).rpartition(".")[2] in ("ModelCheckpoint", *_STOPPING)
    if is_known and node.get("monitor") and node.get("mode") is None:
        return {**node, "mode": mode_of(str(node["monitor"]))}
    return dict(node)


def _loggers(config: Mapping[str, Any], step: int) -> list[Any]:
    from pytorch_lightning.loggers import Logger

    loggers: list[Any] = []
    for name, node in (config.get("logger") or {}).items():
        if not node:
            continue
        target, settings = str(node["_target_"]), dict(node)
        if target.endswith(".WandbLogger"):
            reason = why_no_wandb()
            if reason:
                warnings.warn(f"logger.{name} is left out: {reason}", stacklevel=2)
                continue
            settings = {**_of_trial(), **settings}
            if settings.get("tags"):
                settings["tags"] = [tag for tag in settings["tags"] if tag is not None]
        if target.endswith(".TensorBoardLogger") and not _has_tensorboard():
            warnings.warn(
                f"logger.{name} is left out: TensorBoard is not installed; the run's numbers are "
                "in csv_logs. pip install 'lfads-torch[tensorboard]'",
                stacklevel=2,
            )
            continue
        # Existing YAML names Lightning's logger, which would delete the rows of a resumed run.
        if target.endswith(".CSVLogger"):
            settings["_target_"] = "lfads_torch.runs.resume.RunCSVLogger"
        if target.endswith(".TensorBoardLogger") and step:
            settings["purge_step"] = step  # a kill may have left more than the checkpoint has
        loggers.append(build(settings, f"logger.{name}"))
        if not isinstance(loggers[-1], Logger):
            raise ConfigError(
                f"logger.{name}: {target} is no logger of Lightning; legal are subclasses of "
                "pytorch_lightning.loggers.Logger"
            )
    return loggers


def _has_tensorboard() -> bool:
    return any(find_spec(name) is not None for name in ("tensorboard", "tensorboardX"))


def why_no_wandb() -> str | None:
    """Return why nothing can be logged to Weights & Biases here, None where it can."""
    if find_spec("wandb") is None:
        return "wandb is not installed: pip install 'lfads-torch[wandb]'"
    if os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun", "shared"):
        return None
    if os.environ.get("WANDB_API_KEY") or (sys.stdin and sys.stdin.isatty()):
        return None
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    files = [os.environ.get("NETRC", ""), *(Path.home() / name for name in (".netrc", "_netrc"))]
    for file in files:
        with suppress(OSError, NetrcParseError):
            if file and host and host in netrc(str(file)).hosts:
                return None
    return (
        "there is no login to Weights & Biases; log in with `wandb login`, give WANDB_API_KEY, or "
        "log to this machine with WANDB_MODE=offline"
    )


def _of_trial() -> dict[str, str]:
    """Return name and identifier of a W&B run in a trial of Ray Tune: the trial's name."""
    session = sys.modules.get("ray.train._internal.session")
    trial = session.get_session() if session is not None else None
    return {} if trial is None else {"name": trial.trial_name, "id": trial.trial_name}
