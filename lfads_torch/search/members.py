"""The members of a search before they train: built, and checked with data, space and memory."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pytorch_lightning as pl

from ..arguments import LOSS
from ..errors import ConfigError, UserError, whole
from ..model import LFADS
from ..model_checks import bytes_available
from ..runs.build import build, build_model
from ..runs.check_config import check_config, check_parts
from ..runs.monitors import logged_names
from .population import capacity
from .rules import Method, Values, build_method, start_values
from .settings import SearchSettings

_HARDWARE: dict[str, tuple[Any, ...]] = {
    "devices": (None, 1, "1", "auto"),
    "num_nodes": (None, 1),
    "strategy": (None, "auto"),
}
#: Settings of the trainer that would change the numbers, and what of them a population does.
TRAINER_ONLY: dict[str, tuple[Any, ...]] = {
    "accumulate_grad_batches": (None, 1),
    "gradient_clip_algorithm": (None, "norm"),
    "precision": (None, 32, "32", "32-true"),
    "max_steps": (None, -1),
    "limit_train_batches": (None, 1.0),
    "limit_val_batches": (None, 1.0),
    "overfit_batches": (None, 0, 0.0),
    "check_val_every_n_epoch": (None, 1),
    **_HARDWARE,
}
#: Callbacks that a search replaces by its rules.
_REPLACED = ("model_checkpoint", "early_stopping", "lr_monitor", "progress_bar")


class Members(NamedTuple):
    """What trains, before it trains: models with the weights and `values` with which they start.

    `seeds` are those of their runs, the configuration's seed plus the member's number; `values` are
    hyper-parameters by their path below ``model.``; `settings` name the metric that the data
    decide.
    """

    datamodule: Any
    models: list[LFADS]
    seeds: list[int]
    values: Values
    method: Method
    settings: SearchSettings


def check_search(config: dict[str, Any]) -> SearchSettings:
    """Check the configuration of a search before anything is built.

    Callbacks and loggers that are not installed are taken out of it: members train without them.
    """
    check_parts(config)
    _leave_out_what_does_not_run(config)
    check_config(config)
    settings = SearchSettings.from_config(config.get("search"))
    max_epochs_of(config)
    trainer = config["trainer"]
    for name, legal in TRAINER_ONLY.items():
        if name in trainer and trainer[name] not in legal:
            more = "; several devices or machines: --backend ray" if name in _HARDWARE else ""
            raise ConfigError(
                f"trainer.{name}={trainer[name]!r} does not act on members of a search, which "
                f"train stacked, without Lightning's Trainer; take it out{more}"
            )
    return settings


def _leave_out_what_does_not_run(config: dict[str, Any]) -> None:
    idle = []
    for group in ("callbacks", "logger"):
        kept = {}
        for name, node in (config.get(group) or {}).items():
            try:
                check_config({group: {name: node}})
            except ConfigError as error:
                if "not installed" not in str(error):
                    raise
                warnings.warn(f"left out: {error}", stacklevel=4)
                continue
            kept[name] = node
            if node and group == "callbacks" and name not in _REPLACED:
                idle.append(f"callbacks.{name}")
        if group in config:
            config[group] = kept
    if idle:
        warnings.warn(
            f"{', '.join(idle)} will not run: members train stacked, without Lightning's Trainer",
            stacklevel=4,
        )


def max_epochs_of(config: Mapping[str, Any]) -> int:
    """Return the epochs after which a search ends at the latest."""
    # Lightning takes -1 for training without end; a search has to end.
    return whole("trainer.max_epochs", config["trainer"].get("max_epochs"), least=1)


def burn_in_of(model: LFADS, settings: SearchSettings) -> int:
    """Return the epochs before the first generation counts: as set, or until all ramps are up."""
    if settings.burn_in_period is not None:
        return settings.burn_in_period
    hp = model.hparams
    names = ["l2", "kl", *(["behavior"] if model.behavior is not None else [])]
    return int(max(hp[f"{name}_start_epoch"] + hp[f"{name}_increase_epoch"] for name in names))


def build_members(
    config: Mapping[str, Any],
    settings: SearchSettings,
    numbers: Sequence[int] | None = None,
    *,
    device: str = "cpu",
) -> Members:
    """Build members of a search; everything is checked once the first one is built.

    A member depends on the run's seed and on its number alone, not on which others are built.
    """
    seed = int(config.get("seed") or 0)
    chosen = list(range(settings.n_members) if numbers is None else numbers)
    pl.seed_everything(seed + chosen[0], workers=True, verbose=False)
    datamodule = build(config["datamodule"], "datamodule")
    datamodule.setup("fit")
    models: list[LFADS] = []
    for number in chosen:
        # For each anew: its first weights then do not depend on the members that are built before.
        pl.seed_everything(seed + number, workers=True, verbose=False)
        model = build_model(config["model"], datamodule)
        if not models:  # members are built from one configuration: what holds for one holds for all
            if not hasattr(model, "tunables"):
                raise ConfigError(
                    f"model._target_ is {config['model']['_target_']}, which has no tunables(); "
                    "members of a search are models of lfads_torch.model.LFADS"
                )
            model.check_data(datamodule)
            space = settings.space_for(model.tunables())
            settings = settings.judged(
                logged_names(model, datamodule), config.get("select_by") or LOSS
            )
            _check_memory(model, settings, len(chosen), device)
        models.append(model)
    max_epochs, burn_in = max_epochs_of(config), burn_in_of(models[0], settings)
    method = build_method(settings, space, seed, burn_in, max_epochs)
    first_end = burn_in + settings.perturbation_interval
    if method.exchanges and max_epochs <= first_end:
        warnings.warn(
            f"nobody will copy anybody: the first generation ends after {first_end} epochs "
            f"({burn_in} of burn-in, {settings.perturbation_interval} of the generation), but "
            f"trainer.max_epochs is {max_epochs}. Give more, or shorten search.burn_in_period "
            "(model.kl_increase_epoch, model.l2_increase_epoch) or search.perturbation_interval",
            stacklevel=2,
        )
    start = start_values(method, settings.n_members)
    values = {name: column[chosen] for name, column in start.items()}
    return Members(datamodule, models, [seed + k for k in chosen], values, method, settings)


def _check_memory(model: LFADS, settings: SearchSettings, n_members: int, device: str) -> None:
    needed, available = capacity.bytes_per_member(model), bytes_available(device)
    if available is not None and needed * n_members > available:
        gib = 2.0**30
        raise UserError(
            f"{settings.count_key}={settings.n_members}: {n_members} members take "
            f"{n_members * needed / gib:.1f} GiB for weights and optimiser alone "
            f"({needed / 2**20:.1f} MiB each), but {available / gib:.1f} GiB are free; legal are "
            f"at most {int(available // needed)}, or smaller models, or several machines "
            "(--backend ray)"
        )
