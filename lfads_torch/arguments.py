"""One table of LFADS' numbers: kind, default, limits, and how a search moves them.

The constructor's checks, the tunable buffers and the default search space are made from it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from .errors import ConfigError, number, one_of, whole

BEHAVIOR_SOURCES = ("gen_states", "factors", "rates")
"""What behaviour can be read from."""

CD_RATE = "train_aug_stack.transforms.0.cd_rate"


class SearchRange(NamedTuple):
    """How the default search draws and moves a number; the fields are those of `HyperParam`."""

    min_samp: float
    max_samp: float
    init: float | None = None
    sample_fn: str = "loguniform"
    explore_wt: float = 0.8
    enforce_limits: bool = False


class Number(NamedTuple):
    """A number of the constructor; `tunable` ones are tensors, which differ between members.

    One that is not `finite` may be infinite.
    """

    default: float | None
    whole: bool = False
    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    tunable: bool = False
    search: SearchRange | None = None
    finite: bool = True

    def check(self, name: str, value: Any) -> float:
        """Return a legal value, or raise `ConfigError`."""
        if self.whole:
            least, most = (None if x is None else int(x) for x in (self.least, self.most))
            return whole(name, value, least=least, most=most)
        if not self.finite and value == math.inf:
            return math.inf
        limits = {"least": self.least, "above": self.above, "most": self.most, "below": self.below}
        return number(name, value, **limits)


def _size(default: int | None, least: int = 1) -> Number:
    return Number(default, whole=True, least=least)


def _scale(default: float, search: SearchRange | None = None) -> Number:
    return Number(default, least=0, tunable=True, search=search)


NUMBERS = {
    "encod_data_dim": _size(None),
    "encod_seq_len": _size(None),
    "recon_seq_len": _size(None),
    "ext_input_dim": _size(0, least=0),
    "ic_enc_seq_len": _size(0, least=0),
    "ic_enc_dim": _size(64),
    "ci_enc_dim": _size(64, least=0),
    "ci_lag": _size(1, least=0),
    "con_dim": _size(64, least=0),
    "co_dim": _size(4, least=0),
    "ic_dim": _size(64),
    "gen_dim": _size(100),
    "fac_dim": _size(40),
    "dropout_rate": Number(
        0.05,
        least=0,
        below=1,
        tunable=True,
        search=SearchRange(0.0, 0.6, None, "uniform", 0.3, True),
    ),
    "tbptt_bins": _size(0, least=0),
    "ic_post_var_min": Number(1e-4, least=0),
    "cell_clip": Number(5.0, above=0, finite=False),
    "loss_scale": Number(1e4, above=0),
    "lr_init": Number(
        4e-3, above=0, tunable=True, search=SearchRange(1e-5, 5e-3, 4e-3, "loguniform", 0.3, True)
    ),
    "lr_stop": Number(1e-5, least=0),
    "lr_decay": Number(0.95),
    "lr_patience": Number(6, least=0),
    "lr_adam_beta1": Number(0.9, least=0, below=1),
    "lr_adam_beta2": Number(0.999, least=0, below=1),
    "lr_adam_epsilon": Number(1e-8, above=0),
    "weight_decay": _scale(0.0),
    "l2_start_epoch": Number(0),
    "l2_increase_epoch": _size(80, least=0),
    "l2_ic_enc_scale": _scale(0.0),
    "l2_ci_enc_scale": _scale(0.0),
    "l2_gen_scale": _scale(0.1, SearchRange(1e-4, 1.0)),
    "l2_con_scale": _scale(0.1, SearchRange(1e-4, 1.0)),
    "kl_start_epoch": Number(0),
    "kl_increase_epoch": _size(80, least=0),
    "kl_ic_scale": _scale(1e-6, SearchRange(1e-6, 1e-3)),
    "kl_co_scale": _scale(1e-6, SearchRange(1e-6, 1e-4)),
    "behavior_dim": _size(0, least=0),
    "behavior_scale": _scale(0.1),
    "behavior_start_epoch": Number(0),
    "behavior_increase_epoch": _size(80, least=0),
}
"""By the constructor's argument. A new tunable needs a row here, its argument and its docstring."""

AUGMENTATION_NUMBERS = {
    CD_RATE: Number(
        None,
        least=0,
        below=1,
        tunable=True,
        search=SearchRange(0.01, 0.7, 0.5, "uniform", 0.3, True),
    )
}
"""Tunable numbers of augmentations in the default search space, by their path below ``model.``."""


class Choice(NamedTuple):
    """An argument with few legal values."""

    legal: tuple[Any, ...]

    def check(self, name: str, value: Any) -> Any:
        """Return a legal value, or raise `ConfigError`."""
        return one_of(name, value, self.legal)


class Names(NamedTuple):
    """A name, or a list of names."""

    def check(self, name: str, value: Any) -> Any:
        """Return legal names, or raise `ConfigError`."""
        names = [value] if isinstance(value, str) else value
        if not (isinstance(names, list | tuple) and all(isinstance(one, str) for one in names)):
            raise ConfigError(f"{name} is {value!r}; legal are a text and a list of texts")
        return value


class FileName(NamedTuple):
    """The name of a file."""

    def check(self, name: str, value: Any) -> str:
        """Return a name, or raise `ConfigError`."""
        if not isinstance(value, str) or not value.strip("./ "):
            raise ConfigError(f"{name} is {value!r}; legal is the name of a file, such as rates.h5")
        return value


class Part(NamedTuple):
    """A component, described by its ``_target_``, or a list of them."""

    def check(self, name: str, value: Any) -> Any:
        """Return a description, or raise `ConfigError`."""
        nodes = value if isinstance(value, list | tuple) else [value]
        if not all(isinstance(node, Mapping) and "_target_" in node for node in nodes):
            raise ConfigError(f"{name} is {value!r}; legal are {name}._target_=..., and null")
        return value


class Metric(NamedTuple):
    """The name of a logged metric."""

    def check(self, name: str, value: Any) -> str:
        """Return a name, or raise `ConfigError`."""
        if not isinstance(value, str) or not value:
            raise ConfigError(
                f"{name} is {value!r}; legal is the name of a logged metric, such as "
                "valid/co_bps_smth"
            )
        return value


Legal = Number | Choice | Names | FileName | Part | Metric
_ONE, _NONE, _SWITCH = _size(None), _size(None, least=0), Choice((True, False))
# What NumPy's generators take.
_SEED = Number(None, whole=True, least=0, most=2**32 - 1)
_SHARE = Number(None, above=0)
_MODES = Choice(("min", "max"))
_STOPPING: dict[str, Legal] = {
    "monitor": Metric(),
    "patience": _NONE,
    "min_delta": Number(None),
    "mode": _MODES,
    "check_finite": _SWITCH,
    "burn_in_period": _NONE,
}

COMPONENTS: dict[str, dict[str, Legal]] = {
    "LFADS": {
        **NUMBERS,
        **dict.fromkeys(("variational", "recon_reduce_mean", "lr_scheduler", "causal"), _SWITCH),
        "behavior_detach": _SWITCH,
        "behavior_from": Choice(BEHAVIOR_SOURCES),
        "behavior_lr": Number(None, above=0),
        **dict.fromkeys(("train_aug_stack", "infer_aug_stack", "ic_prior", "co_prior"), Part()),
        **dict.fromkeys(("reconstruction", "readin", "readout"), Part()),
    },
    "BasicDataModule": {
        **dict.fromkeys(("datafile_pattern", "data_paths", "batch_keys"), Names()),
        **dict.fromkeys(("attr_keys", "fit_sessions"), Names()),
        "batch_size": _ONE,
        "sv_rate": Number(None, least=0, below=1),
        "sv_seed": _SEED,
        "dm_ic_enc_seq_len": _NONE,
        "reshuffle_tv_seed": _SEED,
        "reshuffle_tv_ratio": _SHARE,
        "max_memory_gb": Number(None, least=0, finite=False),
        "group_by_length": _SWITCH,
    },
    "Trainer": {
        "max_epochs": _size(None, least=-1),
        "min_epochs": _NONE,
        "max_steps": _size(None, least=-1),
        "check_val_every_n_epoch": _ONE,
        "val_check_interval": _SHARE,
        "limit_train_batches": _SHARE,
        "limit_val_batches": _SHARE,
        "num_sanity_val_steps": _size(None, least=-1),
        "log_every_n_steps": _NONE,
        "accumulate_grad_batches": _ONE,
        "gradient_clip_val": Number(None, least=0),
        "gradient_clip_algorithm": Choice(("norm", "value")),
        "enable_checkpointing": _SWITCH,
        "enable_progress_bar": _SWITCH,
        "enable_model_summary": _SWITCH,
    },
    "run_posterior_sampling": {
        "num_samples": _ONE,
        "seed": _NONE,
        "max_bytes": _ONE,
        "filename": FileName(),
    },
    "ModelCheckpoint": {
        "mode": _MODES,
        "save_top_k": _size(None, least=-1),
        "every_n_epochs": _ONE,
        "save_on_train_epoch_end": _SWITCH,
    },
    "EarlyStopping": _STOPPING,
    "EarlyStoppingWithBurnInPeriod": _STOPPING,
    "CSVLogger": {"flush_logs_every_n_steps": _ONE},
    "LearningRateMonitor": {"logging_interval": Choice(("step", "epoch"))},
    "RasterPlot": {
        "split": Choice(("train", "valid")),
        "n_samples": _ONE,
        "log_every_n_epochs": _ONE,
    },
    "TrajectoryPlot": {"log_every_n_epochs": _ONE},
    "NLBEvaluation": {"log_every_n_epochs": _ONE, "decoding_cv_sweep": _SWITCH},
    "EpochProgressBar": {"refresh_s": Number(None, least=0), "line_every_s": Number(None, least=0)},
    "NaNGuard": {"on_nan": Choice(("stop", "recover")), "max_recoveries": _NONE},
    "MultivariateNormal": {"mean": Number(None), "variance": Number(None, above=0)},
    "AutoregressiveMultivariateNormal": {
        "tau": Number(None, above=0),
        "nvar": Number(None, above=0),
    },
    "CoordinatedDropout": {"cd_rate": AUGMENTATION_NUMBERS[CD_RATE]},
    "ChannelMask": {
        "rate": Number(None, least=0, below=1),
        "scale": _SWITCH,
        "loss": Choice(("masked", "all")),
        "segment": _NONE,
    },
}
"""Legal values of arguments in a configuration, by the last name of their ``_target_``."""

ROOT: dict[str, Legal] = {
    "seed": _SEED,
    "select_by": Metric(),
    "on_nan": Choice(("stop", "recover")),
    "ignore_warnings": _SWITCH,
    "posterior_sampling.use_best_ckpt": _SWITCH,
}
"""Legal values of keys of a configuration that are no component's."""

TUNABLES = tuple(name for name, entry in NUMBERS.items() if entry.tunable)
"""Arguments that are kept as tensors, so that each member of a population has its own value."""

# A search draws first values in this order from one stream, so another order would change them.
_SEARCHED = (
    "lr_init",
    "dropout_rate",
    CD_RATE,
    "kl_co_scale",
    "kl_ic_scale",
    "l2_gen_scale",
    "l2_con_scale",
)


def number_of(path: str) -> Number | None:
    """Return the entry of a tunable by its path below ``model.``; None for a user's own number.

    An augmentation's number counts wherever the augmentation stands in its stack.
    """
    last = path.rpartition(".")[2]
    by_name = {name.rpartition(".")[2]: entry for name, entry in AUGMENTATION_NUMBERS.items()}
    return NUMBERS.get(path) or (by_name.get(last) if "." in path else None)


def search_ranges() -> dict[str, SearchRange]:
    """Return the ranges of AutoLFADS' default search space, by their path below ``model.``."""
    ranges = {name: entry.search for name, entry in {**NUMBERS, **AUGMENTATION_NUMBERS}.items()}
    return {name: entry for name in _SEARCHED if (entry := ranges[name]) is not None}


def check_numbers(values: Mapping[str, Any]) -> None:
    """Refuse sizes, rates and scales that no model can have, naming the argument."""
    for name, entry in NUMBERS.items():
        entry.check(name, values[name])


LOSS = "valid/recon_smth"
"""The smoothed reconstruction loss of the validation trials, by which a run selects."""

#: Last names of scores of which more is better, as training and the benchmark's callback log them.
_MORE_IS_BETTER = {"bps", "co_bps", "fp_bps", "r2", "behavior_r2", "psth_r2", "tp_corr"}


def mode_of(metric: str) -> str:
    """Return "max" for a logged score of which more is better, "min" for any other metric."""
    name = metric.rpartition("/")[2].removesuffix("_smth")
    return "max" if name in _MORE_IS_BETTER else "min"
