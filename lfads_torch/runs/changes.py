"""What of its configuration may change when a run or a search goes on, and the record of it.

A checkpoint restores weights, optimiser and callbacks, so a changed key acts only where something
reads it from then on. `LFADS.on_load_checkpoint` and `lfads_torch.runs.resume` put the changed
numbers into what is restored; what cannot act is refused here, before anything is written.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError

Changes = dict[str, tuple[Any, Any]]
"""By dotted key: the values before and now, None where there was or is none."""

# Arguments of the model that are read anew in each epoch or step.
_FREE = (
    "dropout_rate",
    "ic_post_var_min",
    "cell_clip",
    "loss_scale",
    "recon_reduce_mean",
    "weigh_sessions",
    "weight_decay",
    "kernel",
    "train_aug_stack",
    "infer_aug_stack",
)
_FREE_KINDS = ("lr_", "l2_", "kl_")
_SPLITS = ("reshuffle_tv_seed", "reshuffle_tv_ratio", "sv_rate", "sv_seed", "dm_ic_enc_seq_len")
# What acts when a run whose training is complete samples again.
_OF_SAMPLING = (
    "posterior_sampling.",
    "data.",
    "datamodule.",
    "trainer.accelerator",
    "trainer.devices",
)
# Of a search, what says how it is computed and not what it decides.
_FREE_IN_SEARCH = ("search.ray", "search.chunk", "model.kernel")


def changes_of(before: Any, now: Any, key: str = "") -> Changes:
    """Return what differs between two plain configurations."""
    pairs: dict[Any, tuple[Any, Any]] = {}
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        pairs = {name: (before.get(name), now.get(name)) for name in {**before, **now}}
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = dict(enumerate(zip(before, now, strict=True)))
    elif before != now:
        return {key: (before, now)}
    changes: Changes = {}
    for name, (old, new) in pairs.items():
        changes |= changes_of(old, new, f"{key}.{name}" if key else str(name))
    return changes


def follow_data(before: Any, config: Mapping[str, Any]) -> None:
    """Have the parts of a model look for moved data where the data module now does."""
    old = before.get("datamodule", {}).get("datafile_pattern")
    _replace(config["model"], old, config["datamodule"].get("datafile_pattern"))


def _replace(node: Any, old: Any, new: Any) -> None:
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        if key == "datafile_pattern" and value == old:
            node[key] = new
        elif isinstance(value, dict | list):
            _replace(value, old, new)


def check_changes(changes: Changes, *, search: bool = False) -> None:
    """Refuse a change that would not act, or that would make what was trained wrong."""
    for key, (before, now) in changes.items():
        if reason := _why_not(key, search):
            raise ConfigError(
                f"{key} was {before!r} from the start, and cannot become {now!r} when a "
                f"{'search' if search else 'run'} goes on: {reason}. Leave it out, or start "
                "another one"
            )


def of_training(now: Mapping[str, Any]) -> list[str]:
    """Return the keys that act on training alone, of changed keys with their new values."""
    return [
        key
        for key, value in now.items()
        # A callback that failed may be taken out at any time.
        if not key.startswith(_OF_SAMPLING)
        and not (value is None and key.startswith(("callbacks.", "logger.")))
    ]


def check_that_they_act(
    now: Mapping[str, Any], max_epochs: int | None, n_epochs: int, *, is_over: bool = False
) -> None:
    """Refuse changes of training, keys with their new values, where no epoch is left.

    `is_over` says that training has ended, whether or not at `max_epochs`.
    """
    keys, is_last = of_training(now), max_epochs is not None and 0 <= max_epochs <= n_epochs
    if keys and (is_over or is_last):
        why = f"trainer.max_epochs is {max_epochs}" if is_last else "early stopping ended the run"
        more = "" if is_last else " and more patience"
        raise ConfigError(
            f"{keys[0]} would change nothing: {n_epochs} epochs are trained, and {why}. Leave it "
            f"out, or train longer (trainer.max_epochs=...{more})"
        )


def is_longer(max_epochs: int | None, status: Mapping[str, Any]) -> bool:
    """Return whether a run is to train more epochs than it was when it wrote its status."""
    before = status.get("max_epochs")
    return max_epochs is not None and before is not None and not 0 <= max_epochs <= before


def _why_not(key: str, search: bool) -> str | None:
    if ".datafile_pattern" in key:
        return None  # data may lie elsewhere, and are compared with those of before
    group, _, rest = key.partition(".")
    name = rest.partition(".")[0]
    if key == "seed":
        return "first weights and all draws so far come from it"
    if key == "select_by":
        return "the best checkpoint so far was chosen by it"
    if group == "datamodule" and name in (*_SPLITS, "_target_"):
        return "what validation has held out so far would be trained on"
    if search and group in ("model", "search") and not key.startswith(_FREE_IN_SEARCH):
        return (
            "members go on with the values that they have, and what was decided so far follows "
            f"from it; what may change are {', '.join(_FREE_IN_SEARCH)}, and keys of trainer, "
            "datamodule and posterior_sampling"
        )
    if group == "model" and not name.startswith(_FREE_KINDS) and name not in _FREE:
        from ..model import LFADS

        # Any other argument is one of a lab's own model, which knows what it does with it.
        if name == "_target_" or name in inspect.signature(LFADS).parameters:
            return (
                "it says what the network is made of, or where its weights begin, and the "
                f"checkpoint has both. What may change in the model are {', '.join(_FREE)}, "
                f"{', '.join(f'{kind}*' for kind in _FREE_KINDS)}"
            )
    return None


def recorded_changes(
    before: list[Mapping[str, Any]] | None, changes: Changes, epoch: int
) -> list[dict[str, Any]]:
    """Return the changes of a run for its status, each with the first epoch in which it holds."""
    # Of a change that was made in epochs that are trained again, its epoch moves along.
    kept = [{**entry, "from_epoch": min(entry["from_epoch"], epoch)} for entry in before or ()]
    return kept + [
        {"from_epoch": epoch, "key": key, "before": old, "now": new}
        for key, (old, new) in changes.items()
    ]
