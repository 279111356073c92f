"""Training on from a checkpoint of the existing implementation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError
from ..folder import RunFolder
from ..tables import read_csv_log

_MONITOR = "valid/recon_smth"


def matching_weights(state: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """Return the weights as this model names them.

    Priors that are compared with nothing had parameters there; scales of a reconstruction in a
    bare list were not stored, so they stay as they start.
    """
    own = model.state_dict()
    idle = [
        group
        for group, used in (
            ("ic_prior.", model.variational),
            ("co_prior.", model.variational and model.use_con),
        )
        if not used
    ]
    weights = {name: value for name, value in state.items() if not name.startswith(tuple(idle))}
    if not any(name.startswith("recon.") for name in weights):
        weights |= {name: own[name] for name in own if name.startswith("recon.")}
    return weights


def take_over(checkpoint: dict[str, Any], model: Any, path: Path | None) -> str:
    """Rewrite a checkpoint in place, so that Lightning goes on from it; say what starts fresh."""
    state = checkpoint["state_dict"]
    fresh = []
    if not _take_over_moments(checkpoint, model, list(state)):
        fresh.append("the optimiser's moments")
    checkpoint["state_dict"] = matching_weights(state, model)
    _complete_epoch(checkpoint.get("loops", {}).get("fit_loop", {}))
    epoch = int(checkpoint.get("epoch", 0))
    smoothed = None if path is None else _logged(path, epoch)
    if smoothed is None:
        fresh.append("the smoothed validation loss")
    else:
        model.load_extra_state({"recon_smth": torch.tensor(smoothed)})
        _step_scheduler(checkpoint, epoch, smoothed)
    if path is not None and not _take_over_best(checkpoint, model, path):
        fresh.append("the choice of the best checkpoint")
    fresh.append("the random numbers")
    return (
        f"goes on from {path or 'a checkpoint'} of the existing lfads_torch, after epoch {epoch} "
        f"and {checkpoint.get('global_step', 0)} steps; what the file lacks starts fresh: "
        f"{', '.join(fresh)}"
    )


def _take_over_moments(checkpoint: dict[str, Any], model: Any, names: list[str]) -> bool:
    """Give each parameter its moments by name: the existing AdamW numbers all parameters."""
    made = model.configure_optimizers()
    optimizer = made["optimizer"] if isinstance(made, Mapping) else made
    if not isinstance(optimizer, torch.optim.Optimizer):
        return True  # a user's model with optimisers of its own
    new = optimizer.state_dict()
    known = {id(parameter): name for name, parameter in model.named_parameters()}
    numbered = [known.get(id(p), "") for group in optimizer.param_groups for p in group["params"]]
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    stored = (checkpoint.get("optimizer_states") or [{}])[0]
    old = [i for group in stored.get("param_groups", ()) for i in group["params"]]
    moments = {}
    if len(old) == len(names):
        by_name = {name: stored["state"].get(i) for i, name in zip(old, names, strict=True)}
        for i, name in enumerate(numbered):
            values = by_name.get(name)
            if values and values["exp_avg"].shape == shapes[name]:
                moments[i] = values
    if isinstance(made, Mapping) and made.get("lr_scheduler") and stored.get("param_groups"):
        for group in new["param_groups"]:
            group["lr"] = float(stored["param_groups"][0]["lr"])
    checkpoint["optimizer_states"] = [{**new, "state": moments}]
    return bool(moments)


def _complete_epoch(loop: dict[str, Any]) -> None:
    """Mark the epoch as complete: Lightning does so only after it has saved the checkpoint."""
    progress = loop.get("epoch_progress")
    if progress and progress["current"]["processed"] == progress["current"]["started"]:
        for counts in progress.values():
            counts["completed"] = counts["processed"]
        batches = loop["epoch_loop.batch_progress"]
        batches["current"] = dict.fromkeys(batches["current"], 0)
        batches["is_last_batch"] = False


def _logged(path: Path, epoch: int) -> float | None:
    """Return the smoothed validation loss that the run's log has for an epoch, if any."""
    try:
        epochs, values = read_csv_log(RunFolder.around(path).path / "csv_logs")[_MONITOR]
    except (UserError, KeyError, OSError, ValueError):
        return None
    return next((float(v) for e, v in zip(epochs, values, strict=True) if e == epoch), None)


def _step_scheduler(checkpoint: dict[str, Any], epoch: int, smoothed: float) -> None:
    """Have the scheduler stepped when training starts, where the checkpoint came before it was."""
    schedulers = checkpoint.get("lr_schedulers") or ()
    if any(scheduler.get("last_epoch", epoch + 1) <= epoch for scheduler in schedulers):
        checkpoint["lfads_run"] = {
            "epoch": epoch,
            "metrics": {_MONITOR: smoothed},
            "should_stop": False,
        }


def _take_over_best(checkpoint: dict[str, Any], model: Any, path: Path) -> bool:
    """Point the state of `ModelCheckpoint` to the files beside the checkpoint."""
    taken = True
    trainer = getattr(model, "_trainer", None)
    folders = {
        callback.state_key: callback.dirpath
        for callback in getattr(trainer, "checkpoint_callbacks", ())
        if getattr(callback, "dirpath", None)
    }
    states = checkpoint.get("callbacks") or {}
    for key in [key for key, state in states.items() if "best_model_path" in state]:
        state = states[key]
        best = beside(path, state["best_model_path"])
        if best is None:
            del states[key]
            taken = False
            continue
        score = state.get("best_model_score")
        kept = {beside(path, file): s for file, s in (state.get("best_k_models") or {}).items()}
        if None in kept or not kept:
            kept = {best: score}
        kth = beside(path, state.get("kth_best_model_path"))
        states[key] = {
            **state,
            "best_model_path": str(best),
            "best_k_models": {str(file): s for file, s in kept.items()},
            "kth_best_model_path": str(kth if kth in kept else best),
            "kth_value": state.get("kth_value") if kth in kept else score,
            "last_model_path": "",
            # Lightning takes up the state of the folder in which it saves; it deletes no others.
            "dirpath": folders.get(key, str(path.parent)),
        }
    return taken


def beside(path: Path, recorded: str | None) -> Path | None:
    """Return the file of a recorded path's name beside a checkpoint, wherever that lies now."""
    name = (recorded or "").replace("\\", "/").rpartition("/")[2]
    file = path.absolute().with_name(name) if name else None
    return file if file is not None and file.is_file() else None
