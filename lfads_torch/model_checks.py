"""What a model may be: its arguments, alone, together and of data, and the data that fit it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .arguments import BEHAVIOR_SOURCES, NUMBERS, check_numbers
from .data import StoredArray, blocks
from .data.memory import available_bytes
from .errors import ConfigError, DataError, DataWarning, number, one_of
from .modules.behavior import BehaviorReadout
from .modules.readin_readout import FanInLinear
from .modules.recons import Poisson, recon_for_channels
from .network import Network, as_list, is_list
from .tuples import SessionBatch

_RECURRENT = ("gen_dim", "con_dim", "ci_enc_dim", "ic_enc_dim")


def bytes_available(device: torch.device | str) -> int | None:
    """Return the free memory of a device in bytes; None where the system does not say."""
    device = torch.device(device)
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return available_bytes()


def check_memory(given: Mapping[str, Any]) -> None:
    """Refuse sizes whose largest matrices alone do not fit, before torch allocates them."""
    free = available_bytes()
    n_data, fac, gen = (int(given[name]) for name in ("encod_data_dim", "fac_dim", "gen_dim"))
    entries = {f"{name}={n}": 3 * n * n for name in _RECURRENT if (n := int(given[name]))}
    entries |= {
        f"fac_dim={fac} and gen_dim={gen}": fac * gen,
        f"encod_data_dim={n_data} and fac_dim={fac}": n_data * fac,
        f"ic_dim={given['ic_dim']} and gen_dim={gen}": int(given["ic_dim"]) * gen,
    }
    largest = max(entries, key=entries.__getitem__)
    # Weights, gradients and two numbers of the optimiser for each.
    needed = 4 * 4 * entries[largest]
    if free is not None and needed > free:
        raise ConfigError(
            f"{largest}: its weights and what their training needs take {needed / 1e9:.3g} GB of "
            f"memory, of which {free / 1e9:.3g} GB are free; choose less"
        )


def check_arguments(given: Mapping[str, Any]) -> None:
    """Refuse numbers that no model can have, alone and together."""
    for name in ("encod_data_dim", "encod_seq_len", "behavior_dim"):
        if given[name] is None:
            raise ConfigError(
                f"{name} is not given; set it, or let LFADS.from_data(data) read it from the data"
            )
    check_numbers(given)
    check_memory(given)
    n_read = given["encod_seq_len"]
    if given["recon_seq_len"] < n_read:
        raise ConfigError(
            f"recon_seq_len is {given['recon_seq_len']}, below encod_seq_len {n_read}; "
            "every bin that is read is also reconstructed"
        )
    if given["ic_enc_seq_len"] >= n_read:
        raise ConfigError(
            f"ic_enc_seq_len is {given['ic_enc_seq_len']}, but only {n_read} bins are "
            "read; legal are 0 (both encoders read all bins) to encod_seq_len - 1"
        )
    one_of("causal", given["causal"], (True, False))
    if (bins := given["tbptt_bins"]) and not given["causal"]:
        raise ConfigError(
            f"tbptt_bins is {bins}, but causal is false: the backward encoders read a window as a "
            "whole; set causal: true, or tbptt_bins: 0"
        )
    if 0 < bins <= given["ic_enc_seq_len"]:
        raise ConfigError(
            f"tbptt_bins is {bins}, but the first {given['ic_enc_seq_len']} bins (ic_enc_seq_len) "
            "are read as one; choose more, or 0"
        )
    one_of("behavior_from", given["behavior_from"], BEHAVIOR_SOURCES)
    one_of("behavior_detach", given["behavior_detach"], (True, False))
    if given["behavior_lr"] is not None:
        number("behavior_lr", given["behavior_lr"], above=0)
    one_of("weigh_sessions", given["weigh_sessions"], ("session", "trial"))
    if given["lr_scheduler"]:
        number("lr_decay", given["lr_decay"], above=0, below=1)
    controller = {name: given[name] for name in ("ci_enc_dim", "con_dim", "co_dim")}
    if 0 in controller.values() and any(controller.values()):
        warnings.warn(
            f"no controller, since not all of {controller} are > 0: the generator is autonomous",
            stacklevel=4,
        )


def values_for(data: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of a model, those that are missing or None as the data have them."""
    sizes = data.sizes
    given = {key: value for key, value in arguments.items() if value is not None}
    fac_dim: Any = given.get("fac_dim", NUMBERS["fac_dim"].default)
    recon = given.get("reconstruction", Poisson())
    if not is_list(recon):
        recon = [recon_for_channels(recon, s.recon_dim) for s in sizes]
    recon = as_list(recon)
    single = len(sizes) == 1
    defaults: dict[str, Any] = {
        "encod_data_dim": sizes[0].encod_dim if single else fac_dim,
        "encod_seq_len": sizes[0].encod_len,
        "recon_seq_len": sizes[0].recon_len,
        "ext_input_dim": sizes[0].ext_dim,
    }
    if arguments.get("behavior_dim", 0) is None:
        defaults["behavior_dim"] = _behavior_dim_of(data)
    values = {**defaults, **given, "reconstruction": recon}
    numbers = {name: values.get(name, entry.default) for name, entry in NUMBERS.items()}
    # Before read-ins and read-outs are made of them.
    check_numbers(numbers)
    check_memory(numbers)
    if "readin" not in given and not single:
        dim = values["encod_data_dim"]
        values["readin"] = nn.ModuleList(FanInLinear(s.encod_dim, dim) for s in sizes)
    if "readout" not in given:
        values["readout"] = nn.ModuleList(
            FanInLinear(fac_dim, r.n_params * s.recon_dim)
            for r, s in zip(recon, sizes, strict=False)
        )
    return values


def _behavior_dim_of(data: Any) -> int:
    """Return the dimensions of behaviour of a data module."""
    if not hasattr(data, "behavior_dim"):
        raise ConfigError(
            f"behavior_dim is null, which {type(data).__name__} does not know; give the number"
        )
    return int(data.behavior_dim)


def check_support(recon: Any, session: Any) -> None:
    """Check that a session's values are ones that its observation model can have."""
    check = getattr(recon, "check_data", None)
    # Once a run: training, its search and the sampling after it ask about the same session.
    # Infinite values cannot be here, because `read_session` refuses them.
    if check is not None and recon not in session.passed:
        for split, arrays in session.splits.items():
            for block in _blocks_of(arrays.recon_data) if arrays.has_recon else ():
                check(block, f"{session.path}: {split}_recon_data", True)
        session.passed.add(recon)
    # The whole session has passed, so that no training step checks its batches again.
    if hasattr(recon, "data_checked"):
        recon.data_checked = True


def check_sizes(model: Network, s: int, path: Any, size: Any) -> None:
    """Check that session `s` of a model has as many channels and bins as its data."""
    hp: Any = model.hparams
    n_params = getattr(model.recon[s], "n_params", 1)
    n_read = getattr(model.readin[s], "in_features", hp.encod_data_dim)
    n_out = _width(model.readout[s], hp.fac_dim)
    for argument, expected, what, actual in (
        (f"encod_data_dim (or readin {s})", n_read, "channels of encod_data", size.encod_dim),
        (f"readout {s}", n_out / n_params, "channels of recon_data", size.recon_dim),
        ("encod_seq_len", hp.encod_seq_len, "bins of encod_data", size.encod_len),
        ("recon_seq_len", hp.recon_seq_len, "bins of recon_data", size.recon_len),
        ("ext_input_dim", hp.ext_input_dim, "channels of ext_input", size.ext_dim),
    ):
        if expected != actual:
            raise ConfigError(
                f"{path}: {what}: the file has {actual}, the model's {argument} is for "
                f"{expected:g}; change the model's configuration (null means: read it from the "
                "data) or the file"
            )


def _width(readout: nn.Module, n_in: int) -> int:
    """Return how many parameters a readout gives for a bin."""
    known: Any = getattr(readout, "out_features", None)
    if known is not None:
        return int(known)
    # One of your own: a copy is asked, and no random number is drawn.
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            return int(copy.deepcopy(readout).cpu().eval()(torch.zeros(2, 2, n_in)).shape[-1])
        except (RuntimeError, TypeError, ValueError) as error:
            raise ConfigError(
                f"readout: {type(readout).__name__} does not map factors of shape "
                f"(trials, bins, {n_in}): {' '.join(str(error).split())}"
            ) from error


def check_behavior(readout: BehaviorReadout | None, data: Any) -> int | None:
    """Check that data have the behaviour that is read out; return its place among the batch keys.

    Mean and spread of its dimensions are taken over from data that are the first ones checked. A
    frozen readout needs no behaviour: None where there is none.
    """
    is_frozen = readout is None or not readout.weight.requires_grad
    if readout is None or (is_frozen and "behavior" not in getattr(data, "batch_keys", ())):
        return None
    n_dims = data.behavior_dim
    if n_dims != readout.out_features:
        raise ConfigError(
            f"{data.sessions[0].path}: behaviour has {n_dims} dimensions, the model's behavior_dim "
            f"is {readout.out_features}; set behavior_dim to that, or to null"
        )
    if not readout.is_standardised:
        facts = data.behavior_facts
        constant = [name for name, std in zip(facts.names, facts.std, strict=True) if not std]
        if len(constant) == n_dims:
            raise DataError(
                f"{data.sessions[0].path}: behaviour is to be read out (behavior_dim), but no "
                f"dimension of it varies over the training trials ({', '.join(constant)}); mend "
                "the file, or set behavior_dim: 0"
            )
        if constant:
            warnings.warn(
                f"behaviour does not vary over the training trials in {len(constant)} of {n_dims} "
                f"dimensions: {', '.join(constant)}; they are left out of the loss, and the "
                "readout gives their mean",
                DataWarning,
                stacklevel=3,
            )
        readout.standardise(facts.mean, facts.std)
    return list(data.batch_keys).index("behavior")


def check_batch(readout: BehaviorReadout | None, batch: Mapping[int, SessionBatch]) -> None:
    """Refuse to train a readout of behaviour on a batch without any."""
    if readout is None or not readout.weight.requires_grad:
        return
    if all(trials.behavior is None for trials in batch.values()):
        raise ConfigError(
            "the model reads out behaviour (behavior_dim), but the batch has none; give "
            "SessionBatch(..., behavior=...), or list it in the data module's batch_keys"
        )


def _blocks_of(array: Any) -> Iterator[Tensor]:
    """Yield an array in memory whole, and one that stays in its file block by block."""
    if isinstance(array, StoredArray):
        yield from (torch.from_numpy(block) for _, block in blocks(array))
    else:
        yield torch.from_numpy(array)
