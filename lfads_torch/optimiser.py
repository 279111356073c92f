"""AdamW, clipping and the plateau schedule of a model, and what a checkpoint keeps of them.

A readout of behaviour is a group of its own: its rate may be another, nothing decays its weights,
and it is clipped by itself. So its gradient does not scale that of the model, and a model whose
readout sends none back trains as if it had no readout.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

BEHAVIOR = "behavior."
"""How names of the readout's parameters begin."""

READOUT = "is_readout"
"""Key that marks the readout's group of an optimiser, in checkpoints, too."""


def build_optimisers(model: Any, *, is_mixed: bool, every: int) -> Any:
    """Return AdamW and, where `lr_scheduler` is set, `ReduceLROnPlateau`, as Lightning takes them.

    `is_mixed` says whether precision is mixed, `every` how many epochs lie between validations.
    """
    hp, lr = model.hparams, model.lr_init.item()
    trained: list[Any] = []
    readout: list[Any] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.numel():
            (readout if name.startswith(BEHAVIOR) else trained).append(parameter)
    groups: list[Any] = trained
    if readout:
        apart = {"params": readout, READOUT: True, "weight_decay": 0.0}
        apart["lr"] = readout_rate(model, lr)
        groups = [*([{"params": trained}] if trained else []), apart]
    optimizer = torch.optim.AdamW(
        groups,
        lr=lr,
        betas=(hp.lr_adam_beta1, hp.lr_adam_beta2),
        eps=hp.lr_adam_epsilon,
        weight_decay=model.weight_decay.item(),
        # Lightning clips no gradients of a fused optimiser under mixed precision.
        fused=all(p.device.type in ("cpu", "cuda") for p in [*trained, *readout]) and not is_mixed,
    )
    if not hp.lr_scheduler:
        return optimizer
    scheduler = ReduceLROnPlateau(
        optimizer,
        factor=hp.lr_decay,
        patience=hp.lr_patience,
        threshold=0.0,
        min_lr=hp.lr_stop,
    )
    # The epochs that are validated, of which patience counts.
    plan = {"scheduler": scheduler, "monitor": "valid/recon_smth", "frequency": every}
    return {"optimizer": optimizer, "lr_scheduler": plan}


def readout_rate(model: Any, lr: float) -> float:
    """Return the learning rate of the readout when plateaus have brought the model's to `lr`."""
    given = model.hparams.behavior_lr
    return lr if given is None else float(given) * lr / model.lr_init.item()


def clip(groups: list[dict[str, Any]], most: float, algorithm: str) -> None:
    """Clip the gradients of each group by its norm, or by value."""
    for group in groups:
        if algorithm == "value":
            torch.nn.utils.clip_grad_value_(group["params"], most)
        else:
            torch.nn.utils.clip_grad_norm_(group["params"], most)


def keep_arguments(model: Any, checkpoint: dict[str, Any]) -> None:
    """Have the optimiser go on with a model's arguments, where its checkpoint has others."""
    hp, lr = model.hparams, model.lr_init.item()
    stored = checkpoint["hyper_parameters"]
    before = torch.tensor(float(stored.get("lr_init", lr))).item()
    numbers: dict[str, Any] = {
        "betas": (hp.lr_adam_beta1, hp.lr_adam_beta2),
        "eps": hp.lr_adam_epsilon,
        "factor": hp.lr_decay,
        "patience": hp.lr_patience,
    }
    # A plateau may have lowered the rate since; a new one holds as it is given.
    is_new = lr != before or hp.behavior_lr != stored.get("behavior_lr")
    groups = [g for o in checkpoint.get("optimizer_states", ()) for g in o["param_groups"]]
    for state in (*groups, *checkpoint.get("lr_schedulers", ())):
        state |= {name: value for name, value in numbers.items() if name in state}
        if "min_lrs" in state:
            state["min_lrs"] = [hp.lr_stop] * len(state["min_lrs"])
        if is_new and "lr" in state:
            state["lr"] = readout_rate(model, lr) if state.get(READOUT) else lr
        if is_new and "_last_lr" in state:
            state["_last_lr"] = [group["lr"] for group in groups]
