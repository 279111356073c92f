"""One table of LFADS' numbers: kind, default, limits, and how a search moves them.

The constructor's checks, the tunable buffers and the default search space are made from it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from .errors import number, whole

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
            return whole(name, value, least=None if self.least is None else int(self.least))
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
    "ic_post_var_min": Number(1e-4, least=0),
    "cell_clip": Number(5.0, above=0, finite=False),
    "loss_scale": Number(1e4, above=0),
    "lr_init": Number(
        4e-3, above=0, tunable=True, search=SearchRange(1e-5, 5e-3, 4e-3, "loguniform", 0.3, True)
    ),
    "lr_stop": Number(1e-5, least=0),
    "lr_decay": Number(0.95),
    "lr_patience": Number(6),
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
