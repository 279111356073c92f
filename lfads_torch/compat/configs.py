"""What labs' YAML files write, in today's words."""

from __future__ import annotations

import inspect
import warnings
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


#: Arguments of the Trainer that PyTorch Lightning has dropped, and today's words for them.
DROPPED = {
    "amp_backend": "precision",
    "amp_level": "precision",
    "auto_lr_find": "model.lr_init",
    "auto_scale_batch_size": "datamodule.batch_size",
    "auto_select_gpus": "devices: auto",
    "automatic_optimization": "",
    "checkpoint_callback": "enable_checkpointing",
    "distributed_backend": "strategy",
    "flush_logs_every_n_steps": "logger.csv_logger.flush_logs_every_n_steps",
    "gpus": "accelerator: gpu, devices",
    "ipus": "accelerator, devices",
    "log_gpu_memory": "callback DeviceStatsMonitor",
    "move_metrics_to_cpu": "",
    "multiple_trainloader_mode": "",
    "num_processes": "devices",
    "prepare_data_per_node": "",
    "process_position": "callback ProgressBar",
    "progress_bar_refresh_rate": "enable_progress_bar",
    "reload_dataloaders_every_epoch": "reload_dataloaders_every_n_epochs",
    "replace_sampler_ddp": "use_distributed_sampler",
    "resume_from_checkpoint": "checkpoint_dir of run_model",
    "stochastic_weight_avg": "callback StochasticWeightAveraging",
    "terminate_on_nan": "on_nan: stop",
    "tpu_cores": "accelerator: tpu, devices",
    "track_grad_norm": "a callback that logs it in on_before_optimizer_step",
    "truncated_bptt_steps": "",
    "weights_save_path": "callbacks.model_checkpoint.dirpath",
    "weights_summary": "enable_model_summary",
}


#: What nodes of existing configurations are, by their names: scripts override a key of one also
#: where the packaged configuration has none of that name.
NAMED = {
    "logger": {
        "csv_logger": "pytorch_lightning.loggers.CSVLogger",
        "tensorboard_logger": "pytorch_lightning.loggers.TensorBoardLogger",
        "wandb_logger": "pytorch_lightning.loggers.WandbLogger",
    },
    "callbacks": {
        "early_stopping": "lfads_torch.extensions.tune.EarlyStoppingWithBurnInPeriod",
        "evaluation_callback": "lfads_torch.extensions.nlb.NLBEvaluation",
        "learning_rate_monitor": "pytorch_lightning.callbacks.LearningRateMonitor",
        "model_checkpoint": "pytorch_lightning.callbacks.ModelCheckpoint",
        "raster_plot": "lfads_torch.callbacks.RasterPlot",
        "trajectory_plot": "lfads_torch.callbacks.TrajectoryPlot",
        "tune_report_callback": f"{_RAY_NAMES}.TuneReportCallback",
        "tune_report_checkpoint_callback": f"{_RAY_NAMES}.TuneReportCheckpointCallback",
    },
}


def translate(config: dict[Any, Any]) -> None:
    """Put today's words into a composed configuration."""
    for group, targets in NAMED.items():
        for name, node in (config.get(group) or {}).items():
            if isinstance(node, dict) and node and name in targets:
                node.setdefault("_target_", targets[name])
                if isinstance(tags := node.get("tags"), dict):
                    # Places of a list that the configuration does not have.
                    node["tags"] = list(tags.values())
    _rename(config)
    if isinstance(trainer := config.get("trainer"), dict):
        _leave_out(trainer)
    sampling = config.get("posterior_sampling")
    if isinstance(sampling, dict) and isinstance(sampling.get("fn"), dict):
        # The run gives it the model and the data module.
        sampling["fn"].setdefault("_partial_", True)


def _leave_out(trainer: dict[Any, Any]) -> None:
    """Take out arguments that the Trainer no longer has, and null where it has a default."""
    for name in [name for name in trainer if name in DROPPED]:
        word = f"; today it is {DROPPED[name]}" if DROPPED[name] else ""
        warnings.warn(
            f"trainer.{name}={trainer.pop(name)!r} is left out: the Trainer of PyTorch Lightning "
            f"has no such argument any more{word}",
            stacklevel=2,
        )
    if None in trainer.values():
        from pytorch_lightning import Trainer

        defaults = inspect.signature(Trainer).parameters
        for name in [name for name, value in trainer.items() if value is None]:
            # Older Trainers took null for many arguments whose default is now a word or a number.
            if name in defaults and defaults[name].default is not None:
                del trainer[name]


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
