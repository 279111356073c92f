"""A trained model with room for one more session."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from ..checkpoint import load_weights
from ..data import open_h5
from ..data.smoothing import gaussian_smooth
from ..datamodules import BasicDataModule
from ..errors import UserError
from ..model import LFADS
from ..modules.initial_readout import ChannelStats, Line, initial_blocks, set_blocks
from ..modules.readin_readout import FanInLinear, readin_of
from ..modules.recons import recon_for_channels
from ..tuples import SessionBatch
from .align import PENALTIES, align_to, choose_penalty, ridge
from .align_files import read_conditions, read_trials

SESSION_GROUPS = ("readin", "readout", "recon")
"""First parts of the names of the parameters that belong to one session."""


def extend_model(model: LFADS, data: BasicDataModule, name: str) -> LFADS:
    """Copy a model and give it a read-in, a read-out and an observation model for session `name`.

    Sessions are numbered as in `data`, which has all of them; the new maps are drawn at random.
    """
    model, names = copy.deepcopy(model), data.session_names
    number, sizes = names.index(name), data.sizes[names.index(name)]
    first: Any = model.recon[0]
    hp = dict(model.hparams)
    new = {
        "readin": FanInLinear(sizes.encod_dim, hp["encod_data_dim"]),
        "readout": FanInLinear(hp["fac_dim"], int(first.n_params) * sizes.recon_dim),
        "reconstruction": recon_for_channels(first, sizes.recon_dim),
    }
    parts: dict[str, Any] = {**model.parts()}
    for argument, part in new.items():
        old = parts[argument]
        parts[argument] = nn.ModuleList([*old[:number], part, *old[number:]])
    extended = LFADS(**{**hp, **parts})  # `hparams` holds some of the parts, too
    shared = {
        key: value
        for key, value in model.state_dict().items()
        if key.partition(".")[0] not in SESSION_GROUPS
    }
    load_weights(extended, {**extended.state_dict(), **shared}, "the run")
    extended.session_names = list(names)
    extended.check_data(data)
    return extended.eval()


def start_maps(
    model: LFADS,
    data: BasicDataModule,
    name: str,
    condition_key: str | None = None,
    smooth_bins: float = 3.0,
) -> None:
    """Start a session's maps from what the model infers.

    Where there are conditions, the read-in is a regression, on condition averages, from the new
    session's channels to what the other sessions' read-ins give (pooled over their trials). Else
    it is the file's `readin_weight` (`lfads align-init`), if that has the model's components, and
    stays random if not. The read-out is a regression from the factors that the model then infers
    for the new session's single trials to its smoothed data. `model`, as `extend_model` returns
    it, is changed in place; `smooth_bins` is the standard deviation of the Gaussian in bins.
    """
    number = data.session_names.index(name)
    session = data.sessions[number]
    readin: Any = model.readin[number]
    into: tuple[Any, Any] | None = None
    if condition_key is not None:
        into = _regressed_readin(model, data, number, condition_key, smooth_bins)
    elif session.readin_weight is not None:
        weight, offset = readin_of(session, readin.in_features)
        if weight.shape[1] == readin.out_features:
            into = weight, -offset @ weight
    if into is not None:
        with torch.no_grad():
            readin.weight.copy_(torch.from_numpy(into[0].T.copy()))
            readin.bias.copy_(torch.from_numpy(into[1]))
    factors, recon_data = _infer(model, data, number)
    if not np.isfinite(recon_data).all():
        return  # smoothing would spread what is missing
    # About their mean: what is linearised is far from straight where the factors are zero.
    mean = factors.mean(axis=(0, 1))
    line = _line(factors - mean, gaussian_smooth(recon_data, smooth_bins))
    blocks = initial_blocks(model.recon[number], line, ChannelStats.of(recon_data))
    readout: Any = model.readout[number]
    shifted = [block and block._replace(bias=block.bias - block.weight @ mean) for block in blocks]
    set_blocks(readout, shifted)


def _regressed_readin(
    model: LFADS, data: BasicDataModule, number: int, condition_key: str, smooth_bins: float
) -> tuple[Any, Any]:
    """Weight and bias of a read-in by regression on condition averages."""
    labels, goal = _read_in_averages(model, data, number, condition_key)
    goal = gaussian_smooth(goal, smooth_bins)
    mean = goal.mean(axis=(0, 1))
    trials = read_trials(data.sessions[number].path, condition_key)
    into = align_to(trials, goal - mean, labels, smooth_bins=smooth_bins)
    return into.readin_weight, mean - into.readin_offset @ into.readin_weight


@torch.no_grad()
def _read_in_averages(
    model: LFADS, data: BasicDataModule, new: int, condition_key: str
) -> tuple[list[Any], Any]:
    """Conditions, and averages over their trials of what the other sessions' read-ins give."""
    totals: dict[Any, list[Any]] = {}
    for number in (n for n in range(data.n_sessions) if n != new):
        path = data.sessions[number].path
        with open_h5(path) as file:
            conditions, has_one = read_conditions(file, path, condition_key)
        read = [model.readin[number](b.encod_data).numpy() for b in _batches(model, data, number)]
        for values, label in zip(
            np.concatenate(read)[has_one], conditions[has_one].tolist(), strict=True
        ):
            sums = totals.setdefault(label, [0.0, 0])
            sums[0], sums[1] = sums[0] + values, sums[1] + 1
    if not totals:
        raise UserError(
            f"no training trial of the other sessions has a condition {condition_key!r}"
        )
    labels = sorted(totals)
    return labels, np.stack([totals[label][0] / totals[label][1] for label in labels])


def _batches(model: LFADS, data: BasicDataModule, number: int) -> Iterator[SessionBatch]:
    """Training trials of a session as the encoders see them, in the order of the file."""
    for step in data.split_loader("train", session=number):
        yield model.infer_aug_stack.process_batch(step[number][0])


@torch.no_grad()
def _infer(model: LFADS, data: BasicDataModule, number: int) -> tuple[Any, Any]:
    """Factors of a session's training trials, and the data.

    The factors are a sample of the posterior: a read-out fitted to its means would take the width
    of the posterior, which training draws from, for signal.
    """
    sample = bool(model.hparams["variational"])
    # A fixed seed, so that the maps start alike whatever was drawn before.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pairs = [
            (model.infer({number: batch}, sample=sample).decoding.factors, batch.recon_data)
            for batch in _batches(model, data, number)
        ]
    factors, recon_data = (torch.cat(parts).numpy() for parts in zip(*pairs, strict=True))
    return factors.astype(np.float64), recon_data


def _line(factors: Any, smoothed: Any, n_folds: int = 5) -> Line:
    """Return means as a line of the factors: ridge regression, cross-validated over trials."""
    # As for the maps of `align`, one penalty serves all channels and trials take turns in the
    # folds, so that each fold spans the session. A single trial leaves nothing to choose by.
    fold = np.repeat(np.arange(len(factors)) % min(n_folds, len(factors)), factors.shape[1])
    x, y = (array.reshape(-1, array.shape[-1]) for array in (factors, smoothed))
    folds = [(x[fold != k], y[fold != k], x[fold == k], y[fold == k]) for k in np.unique(fold)]
    several = len(folds) > 1
    penalty = choose_penalty(folds, PENALTIES, intercept=True)[0] if several else PENALTIES[-1]
    [(weight, bias)] = ridge(x, y, [penalty], intercept=True)
    lowest = 0.0 if np.nanmin(smoothed) >= 0 else -np.inf
    return Line(weight.T, np.maximum(bias, lowest))
