"""What is held against the model before anything is computed: its arguments and the data."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch

from .data import SPLITS, StoredArray, blocks
from .errors import ConfigError, DataError

if TYPE_CHECKING:
    from .model import LFADS

_LEAST = {
    "encod_data_dim": 1,
    "encod_seq_len": 1,
    "recon_seq_len": 1,
    "ic_enc_dim": 1,
    "ic_dim": 1,
    "gen_dim": 1,
    "fac_dim": 1,
    "ext_input_dim": 0,
    "ic_enc_seq_len": 0,
    "ci_enc_dim": 0,
    "con_dim": 0,
    "co_dim": 0,
    "ci_lag": 0,
    "l2_increase_epoch": 0,
    "kl_increase_epoch": 0,
}
_POSITIVE = ("lr_init", "cell_clip", "loss_scale", "lr_adam_epsilon")
_NOT_NEGATIVE = (
    "ic_post_var_min",
    "lr_stop",
    "weight_decay",
    "l2_ic_enc_scale",
    "l2_ci_enc_scale",
    "l2_gen_scale",
    "l2_con_scale",
    "kl_ic_scale",
    "kl_co_scale",
)
_FRACTIONS = ("dropout_rate", "lr_adam_beta1", "lr_adam_beta2")
_NO_NUMBERS = ("variational", "recon_reduce_mean", "lr_scheduler", "kernel", "weigh_sessions")


def check_arguments(hp: Any) -> None:
    """Refuse sizes and rates that no model can have.

    Raises
    ------
    ConfigError
        Naming the argument, its value and the legal ones.
    """
    for name in ("encod_data_dim", "encod_seq_len"):
        if hp[name] is None:
            raise ConfigError(
                f"{name} is not given; set it, or let LFADS.from_data(data) read it from the data"
            )
    for name, value in hp.items():
        if name not in _NO_NUMBERS and not (isinstance(value, Real) and math.isfinite(value)):
            raise ConfigError(f"{name} is {value!r}; legal are finite numbers")
    for name, least in _LEAST.items():
        if hp[name] != int(hp[name]) or hp[name] < least:
            raise ConfigError(f"{name} is {hp[name]}; legal are whole numbers >= {least}")
    if hp["recon_seq_len"] < hp["encod_seq_len"]:
        raise ConfigError(
            f"recon_seq_len is {hp['recon_seq_len']}, below encod_seq_len {hp['encod_seq_len']}; "
            "every bin that is read is also reconstructed"
        )
    if hp["ic_enc_seq_len"] >= hp["encod_seq_len"]:
        raise ConfigError(
            f"ic_enc_seq_len is {hp['ic_enc_seq_len']}, but only {hp['encod_seq_len']} bins are "
            "read; legal are 0 (both encoders read all bins) to encod_seq_len - 1"
        )
    if hp["weigh_sessions"] not in ("session", "trial"):
        raise ConfigError(
            f"weigh_sessions is {hp['weigh_sessions']!r}; legal are 'session' and 'trial'"
        )
    for name in _FRACTIONS:
        if not 0 <= hp[name] < 1:
            raise ConfigError(f"{name} is {hp[name]}; legal are 0 <= {name} < 1")
    if hp["lr_scheduler"] and not 0 < hp["lr_decay"] < 1:
        raise ConfigError(f"lr_decay is {hp['lr_decay']}; legal are 0 < lr_decay < 1")
    for name in _POSITIVE:
        if not hp[name] > 0:
            raise ConfigError(f"{name} is {hp[name]}; legal are numbers > 0")
    for name in _NOT_NEGATIVE:
        if not hp[name] >= 0:
            raise ConfigError(f"{name} is {hp[name]}; legal are numbers >= 0")
    controller = {name: hp[name] for name in ("ci_enc_dim", "con_dim", "co_dim")}
    if 0 in controller.values() and any(controller.values()):
        warnings.warn(
            f"no controller, since not all of {controller} are > 0: the generator is autonomous",
            stacklevel=4,
        )


def check_parts(model: LFADS) -> None:
    """Refuse parts that do not fit one another or the model's sizes.

    Parts of one's own that do not say their sizes are let through.

    Raises
    ------
    ConfigError
        Naming the part, its size and the argument that it contradicts.
    """
    hp = model.hparams
    n_readin, n_readout, n_recon = len(model.readin), len(model.readout), len(model.recon)
    if not n_readin == n_readout == n_recon:
        raise ConfigError(
            f"readin, readout and reconstruction are for {n_readin}, {n_readout} and {n_recon} "
            "sessions; they must agree"
        )
    for number, (readin, readout, recon) in enumerate(
        zip(model.readin, model.readout, model.recon, strict=True)
    ):
        for what, found, argument in (
            (f"readin {number} gives", getattr(readin, "out_features", None), "encod_data_dim"),
            (f"readout {number} takes", getattr(readout, "in_features", None), "fac_dim"),
        ):
            if found is not None and found != hp[argument]:
                raise ConfigError(
                    f"{what} {found} features, but {argument} is {hp[argument]}; they must agree"
                )
        n_out, n_params = getattr(readout, "out_features", None), getattr(recon, "n_params", 1)
        if n_out is not None and n_out % n_params:
            raise ConfigError(
                f"readout {number} gives {n_out} features, no multiple of the {n_params} "
                f"parameters per channel of {type(recon).__name__} (recon_params of the readout)"
            )
    for name, argument in (("ic_prior", "ic_dim"), ("co_prior", "co_dim")):
        shape = getattr(getattr(model, name), "init_args", {}).get("shape", hp[argument])
        if shape != hp[argument]:
            raise ConfigError(
                f"{name} is for {shape} dimensions (its shape), but {argument} is {hp[argument]}"
            )


def check_data(model: LFADS, data: Any) -> None:
    """Hold all sessions of a data module against the model; see `LFADS.check_data`."""
    names = data.session_names
    if len(names) != len(model.readin):
        raise ConfigError(
            f"the model has {len(model.readin)} session(s), the data {len(names)} "
            f"({', '.join(names)}); give readin, readout and reconstruction one part per "
            "session file, or change datafile_pattern"
        )
    for number, (session, size) in enumerate(zip(data.sessions, data.sizes, strict=True)):
        check_session(model, number, session, size)


def check_session(model: LFADS, number: int, session: Any, size: Any) -> None:
    """Hold one session's sizes and numbers against the model.

    Parameters
    ----------
    model : LFADS
    number : int
        The session's number in the model.
    session : SessionData
    size : SessionSizes

    Raises
    ------
    ConfigError, DataError
        Naming the argument or the file, key and channel, what was found and what is legal.
    """
    _check_sizes(model, number, session.path, size)
    recon: Any = model.recon[number]
    check = getattr(recon, "check_data", None)
    for split in (name for name in SPLITS if name in session.splits):
        arrays, where = session.splits[split], f"{session.path}: {split}_"
        if check is not None and arrays.has_recon:
            for block in _pieces(arrays.recon_data):
                check(block, where + "recon_data", True)
        n_bad = sum(int(block.isinf().sum()) for block in _pieces(arrays.encod_data))
        if n_bad:
            raise DataError(
                f"{where}encod_data: {n_bad} values are infinite; legal are numbers, and "
                "NaN where something is missing"
            )
    if hasattr(recon, "data_checked"):
        recon.data_checked = True


def _pieces(array: Any) -> Iterator[torch.Tensor]:
    """Whole where it lies in memory, block by block where it stays in its file."""
    if isinstance(array, StoredArray):
        yield from (torch.from_numpy(block) for _, block in blocks(array))
    else:
        yield torch.from_numpy(array)


def _check_sizes(model: LFADS, number: int, path: Any, size: Any) -> None:
    hp = model.hparams
    n_params = getattr(model.recon[number], "n_params", 1)
    n_read = getattr(model.readin[number], "in_features", hp["encod_data_dim"])
    n_out = getattr(model.readout[number], "out_features", n_params * size.recon_dim)
    for argument, wanted, what, found in (
        (f"encod_data_dim (or readin {number})", n_read, "channels of encod_data", size.encod_dim),
        (f"readout {number}", n_out / n_params, "channels of recon_data", size.recon_dim),
        ("encod_seq_len", hp["encod_seq_len"], "bins of encod_data", size.encod_len),
        ("recon_seq_len", hp["recon_seq_len"], "bins of recon_data", size.recon_len),
        ("ext_input_dim", hp["ext_input_dim"], "channels of ext_input", size.ext_dim),
    ):
        if wanted != found:
            raise ConfigError(
                f"{path}: {what}: the file has {found}, the model's {argument} is for {wanted:g}; "
                "change the model's configuration (null means: read it from the data) or the file"
            )
