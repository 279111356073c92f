"""What labs' YAML files write, in today's words."""

from __future__ import annotations

from typing import Any

_RAY_NAMES = "lfads_torch.compat.ray_names"
_RAY_CALLBACKS = "ray.tune.integration.pytorch_lightning"

#: Targets that have another name now; a name that ends in a dot stands for all below it.
RENAMED = {
    "lightning.pytorch.": "pytorch_lightning.",
    "ray.tune.get_trial_dir": f"{_RAY_NAMES}.get_trial_dir",
    "ray.tune.get_trial_id": f"{_RAY_NAMES}.get_trial_id",
    "ray.tune.get_trial_name": f"{_RAY_NAMES}.get_trial_name",
    f"{_RAY_CALLBACKS}.TuneReportCallback": f"{_RAY_NAMES}.TuneReportCallback",
    f"{_RAY_CALLBACKS}.TuneReportCheckpointCallback": f"{_RAY_NAMES}.TuneReportCheckpointCallback",
    "ray.tune.suggest.": "ray.tune.search.",
}


def translate(config: dict[Any, Any]) -> None:
    """Put today's words into a composed configuration."""
    _rename(config)
    sampling = config.get("posterior_sampling")
    if isinstance(sampling, dict) and isinstance(sampling.get("fn"), dict):
        # The run gives it the model and the data module.
        sampling["fn"].setdefault("_partial_", True)


def _rename(node: Any) -> None:
    if isinstance(node, dict):
        if isinstance(node.get("_target_"), str):
            node["_target_"] = present_name(node["_target_"])
        node = node.values()
    elif not isinstance(node, list):
        return
    for value in node:
        _rename(value)


def present_name(target: str) -> str:
    """Return today's name of a target."""
    for old, new in RENAMED.items():
        if target == old or (old.endswith(".") and target.startswith(old)):
            return new + target.removeprefix(old)
    return target
