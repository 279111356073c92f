"""What an alignment of a day begins with: the states of day 0, and first maps for the new day."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..checkpoint import load_weights
from ..data import SessionData, blocks
from ..data.smoothing import gaussian_smooth
from ..datamodules import BasicDataModule
from ..errors import ConfigError, DataError, UserError, number, one_of, whole
from ..model import LFADS
from ..modules.aligner import AlignedReadin, NormalizedReadin
from ..modules.augmentations import AugmentationStack, CoordinatedDropout
from ..modules.initial_readout import LEAST, ChannelStats, Line, initial_blocks, set_blocks
from ..modules.readin_readout import FanInLinear
from ..modules.recons import recon_for_channels
from ..tuples import bins_past
from .day_model import DIVERGENCES, STATES, Reference, check_without_behavior
from .extend import SESSION_GROUPS, extend_model, start_maps
from .moments import MMD_STATES, StateMoments, spaced, whitening

Array = NDArray[np.float64]

INITS = ("auto", "day0", "pcr", "random")
_SMOOTH_MS = 40.0
_ANY_BIN_MS = 20.0  # where the file does not say
_DEAD = 1e-6
_CD_RATE = 0.3  # of a run that was trained without coordinated dropout


@dataclass(frozen=True)
class AlignOptions:
    """What `align_day` takes.

    Parameters
    ----------
    session : str, optional
        Day 0's session by name or number, of a run of several.
    divergence : {"coral", "kl", "mmd"}
        How far the whitened states of the new day are from day 0's.
    states : {"gen_states", "factors"}
        Of which states.
    weight_moments, weight_nll : float
        Weights of the divergence and of the mean loss of the new day's data.
    init : {"auto", "day0", "pcr", "random"}
        Where the maps start; "auto" tries what there is, and random starts.
    conditions : str, optional
        Per-trial key of conditions, for the start "pcr".
    seeds : int
        Starts that train side by side.
    epochs : int
        At most; 0 leaves the maps as they start, normalised.
    lr : float
        Learning rate of AdamW at the start.
    batch_size : int, optional
        Windows of a step; by default 64, or more where the covariance needs them.
    num_samples : int
        Posterior samples of the output file.
    seed : int
        The first seed.

    Raises
    ------
    UserError
        For options out of range.
    """

    session: str | None = None
    # Better than kl on three simulated days and on recordings (docs/alignment.md).
    divergence: str = "coral"
    states: str = "gen_states"
    weight_moments: float = 1.0
    weight_nll: float = 10.0
    init: str = "auto"
    conditions: str | None = None
    seeds: int = 6
    epochs: int = 200
    lr: float = 1e-3
    batch_size: int | None = None
    num_samples: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        one_of("--divergence", self.divergence, DIVERGENCES)
        one_of("--states", self.states, STATES)
        one_of("--init", self.init, INITS)
        number("--weight-moments", self.weight_moments, least=0)
        number("--weight-nll", self.weight_nll, least=0)
        number("--lr", self.lr, above=0)
        whole("--seeds", self.seeds, least=1)
        whole("--epochs", self.epochs, least=0)
        whole("--samples", self.num_samples, least=1)
        whole("--seed", self.seed, least=0)
        if self.batch_size is not None:
            whole("--batch-size", self.batch_size, least=1)
        if not (self.weight_moments or self.weight_nll):
            raise UserError(
                "--weight-moments and --weight-nll are both 0; nothing would be trained"
            )


@dataclass(frozen=True)
class Channels:
    """Mean count of each channel in training windows, and standard deviation once smoothed."""

    mean: Array
    sd: Array

    @classmethod
    def of(cls, session: SessionData) -> Channels:
        """Compute them from the training windows, block by block."""
        width = _SMOOTH_MS / (session.bin_ms or _ANY_BIN_MS)
        data = session.splits["train"].encod_data
        n, total, smoothed, squares = (np.zeros(data.shape[2]) for _ in range(4))
        for _, block in blocks(data):
            counts = np.asarray(block, dtype=np.float64)
            observed = np.isfinite(counts)
            smooth = np.where(observed, gaussian_smooth(counts, width), 0.0)
            n += observed.sum(axis=(0, 1))
            total += np.where(observed, counts, 0.0).sum(axis=(0, 1))
            smoothed += smooth.sum(axis=(0, 1))
            squares += (smooth**2).sum(axis=(0, 1))
        n = np.maximum(n, 1)
        return cls(total / n, np.sqrt(np.maximum(squares / n - (smoothed / n) ** 2, 0.0)))

    @property
    def is_dead(self) -> NDArray[np.bool_]:
        """Whether a channel says nothing."""
        return np.asarray(self.sd < _DEAD)


@dataclass(frozen=True)
class Map:
    """A linear map of normalised channels, and the read-out: A (d, N), a (d,), and a layer."""

    weight: Array
    bias: Array
    readout: nn.Linear | None = None


def linear_map(readin: Any, n_channels: int, place: Any) -> tuple[Array, Array]:
    """Return weight (d, N) and bias (d,) of a read-in, or refuse one that is not linear."""
    if isinstance(readin, nn.Identity):
        return np.eye(n_channels), np.zeros(n_channels)
    if not isinstance(readin, nn.Linear):
        kind = type(getattr(readin, "part", readin)).__name__
        raise ConfigError(
            f"the read-in of {place} is {kind}, which is not linear; legal are FanInLinear, "
            "torch.nn.Linear and none (Identity): train day 0 with model.encod_data_dim=48 and "
            "a FanInLinear read-in"
        )
    weight = readin.weight.detach().double().numpy()
    bias = np.zeros(len(weight)) if readin.bias is None else readin.bias.detach().double().numpy()
    return weight, bias


def day0_map(model: LFADS, number: int, channels: Channels, place: Any) -> Map:
    """Return day 0's maps as maps of its normalised channels."""
    weight, bias = linear_map(model.readin[number], len(channels.mean), place)
    sd = np.where(channels.is_dead, 0.0, channels.sd)
    readout: Any = model.readout[number]
    return Map(weight * sd, bias + weight @ channels.mean, readout)


@torch.no_grad()
def day0_reference(
    model: LFADS, data: BasicDataModule, index: int, number: int, states: str
) -> Reference:
    """Infer the states of day 0's training windows at posterior means, and what they are like.

    `index` is the session's number in the data, `number` that in the model.
    """
    moments, n_windows = StateMoments(), data.sizes[index].n_train
    kept: list[torch.Tensor] = []
    chosen = spaced(n_windows * int(model.hparams["recon_seq_len"]), MMD_STATES)
    seen = 0
    stack = model.infer_aug_stack
    for step in data.split_loader("train", session=index):
        batch = stack.process_batch(step[index][0])
        decoding = model.infer({number: batch}, sample=False).decoding
        values = getattr(decoding, states)
        flat = values.flatten(0, 1)
        within = np.ones(len(flat), dtype=bool)
        if batch.lengths is not None:
            within = (~bins_past(batch.lengths, values.shape[1])).flatten().numpy()
        moments.add(flat.double().numpy()[within])
        rows = chosen[(chosen >= seen) & (chosen < seen + len(flat))] - seen
        kept.append(flat[rows[within[rows]]])
        seen += len(flat)
    white = whitening(moments.mean, moments.covariance)
    q = len(white.matrix)
    spectrum = torch.from_numpy(np.linalg.eigvalsh(moments.covariance)[::-1][:q].copy())
    return Reference(white, white(torch.cat(kept)), spectrum)


def day_model(model: LFADS, number: int, day: BasicDataModule, options: AlignOptions) -> LFADS:
    """Return the model for the new day alone: its own maps, as drawn, all else that of the run."""
    first: Any = model.recon[number]
    sizes, hp = day.sizes[0], dict(model.hparams)
    read = NormalizedReadin(AlignedReadin(sizes.encod_dim, hp["encod_data_dim"]))
    parts: dict[str, Any] = {
        **model.parts(),
        "readin": nn.ModuleList([read]),
        "readout": nn.ModuleList(
            [FanInLinear(hp["fac_dim"], int(first.n_params) * sizes.recon_dim)]
        ),
        "reconstruction": nn.ModuleList([recon_for_channels(first, sizes.recon_dim)]),
    }
    if not any(isinstance(t, CoordinatedDropout) for t in model.train_aug_stack.batch_transforms):
        dropout = CoordinatedDropout(_CD_RATE, ic_enc_seq_len=hp["ic_enc_seq_len"])
        parts["train_aug_stack"] = AugmentationStack([dropout], [0], [0])
    numbers: dict[str, Any] = {
        "lr_init": options.lr,
        "lr_stop": min(1e-5, options.lr),
        **{"lr_scheduler": True, "lr_decay": 0.95, "lr_patience": 6, "weight_decay": 0.0},
        # The ramp of the likelihood.
        **{"kl_start_epoch": 0, "kl_increase_epoch": options.epochs // 3},
    }
    apart: tuple[str, ...] = SESSION_GROUPS
    if model.behavior is not None and model.behavior.source == "rates":
        # A readout of day 0's neurons means nothing for other ones.
        numbers["behavior_dim"], apart = 0, (*SESSION_GROUPS, "behavior")
    new = LFADS(**{**hp, **parts, **numbers})
    shared = {
        key: value
        for key, value in model.state_dict().items()
        if key.partition(".")[0] not in apart
    }
    load_weights(new, {**new.state_dict(), **shared}, "the run")
    new.session_names = list(day.session_names)
    check_without_behavior(new, day)
    for name, parameter in new.named_parameters():
        parameter.requires_grad_(name.partition(".")[0] in ("readin", "readout"))
    return new


def start_kinds(init: str, n_seeds: int, *, same_size: bool, conditions: bool) -> list[str]:
    """Return how each seed starts; `auto` tries what there is, and random starts."""
    if init == "pcr" and not conditions:
        raise UserError("--init pcr needs the key of the conditions, --conditions KEY")
    if init == "day0" and not same_size:
        raise UserError(
            "--init day0 needs the same channels in the same order on both days, and their "
            "numbers differ; legal here are auto, random, and pcr with --conditions"
        )
    if init != "auto":
        return [init] * n_seeds
    kinds = ["day0"] * same_size + ["pcr"] * conditions
    each = max(1, n_seeds // 3)
    chosen = [kind for kind in kinds for _ in range(each)][:n_seeds]
    return [*chosen, *["random"] * (n_seeds - len(chosen))]


@torch.no_grad()
def write_maps(model: LFADS, start: Map, channels: Channels) -> None:
    """Write the start of a day's maps into the model of `day_model`."""
    readin: Any = model.readin[0]
    scale = np.divide(1.0, channels.sd, out=np.zeros_like(channels.sd), where=~channels.is_dead)
    for target, values in (
        (readin.mean, channels.mean),
        (readin.scale, scale),
        (readin.linear.weight, start.weight),
        (readin.linear.bias, start.bias),
    ):
        target.copy_(torch.from_numpy(np.ascontiguousarray(values)))
    if start.readout is not None:
        readout: Any = model.readout[0]
        readout.load_state_dict(start.readout.state_dict())


def day0_start(known: Map, model: LFADS, before: Channels, now: Channels) -> Map:
    """Return day 0's maps for the channels of the same order, with the new day's mean rates."""
    readout: Any = model.readout[0]
    layer = FanInLinear(readout.in_features, readout.out_features)
    assert known.readout is not None
    layer.load_state_dict(known.readout.state_dict())
    recon: Any = model.recon[0]
    if getattr(recon, "for_counts", False) and recon.n_params == 1:
        shift = np.log(now.mean + LEAST) - np.log(before.mean + LEAST)
        with torch.no_grad():
            layer.bias[: len(shift)] += torch.from_numpy(shift).float()
    return Map(known.weight, known.bias, layer)


def random_start(known: Map, model: LFADS, session: SessionData, seed: int) -> Map:
    """Return random directions of day 0's lengths, and a read-out that gives the mean rates."""
    stats = ChannelStats.of(session.splits["train"].recon_data)
    recon, readout = model.recon[0], model.readout[0]
    layer = FanInLinear(int(readout.in_features), int(readout.out_features))
    flat = Line(np.zeros((len(stats.mean), layer.in_features)), stats.mean)
    lines = initial_blocks(recon, flat, stats)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.zero_()
    set_blocks(layer, lines)
    n = session.splits["train"].encod_data.shape[2]
    draws = np.random.default_rng([seed, 18]).normal(size=(len(known.weight), n)) / np.sqrt(n)
    lengths = np.linalg.norm(known.weight, axis=1, keepdims=True)
    return Map(draws * lengths, known.bias, layer)


def pcr_start(
    model: LFADS, everything: BasicDataModule, name: str, conditions: str, now: Channels
) -> Map:
    """Return the maps that `lfads add-session --conditions` starts from, of normalised channels."""
    extended = extend_model(model, everything, name)
    start_maps(extended, everything, name, conditions)
    number = extended.session_names.index(name)
    weight, bias = linear_map(extended.readin[number], len(now.mean), name)
    readout: Any = extended.readout[number]
    return Map(weight * now.sd, bias + weight @ now.mean, readout)


def check_day(day: BasicDataModule, channels: Channels, model: LFADS, known: SessionData) -> None:
    """Refuse a day that the model cannot read: other bins or windows, or silence."""
    session, sizes, hp = day.sessions[0], day.sizes[0], model.hparams
    if session.bin_ms and known.bin_ms and abs(session.bin_ms / known.bin_ms - 1) > 1e-6:
        raise DataError(
            f"{session.path} has bins of {session.bin_ms:g} ms, {known.path.name} of day 0 has "
            f"bins of {known.bin_ms:g} ms; bin the new day alike"
        )
    windows = sizes.encod_len, sizes.recon_len
    legal = hp["encod_seq_len"], hp["recon_seq_len"]
    if windows != legal:
        raise DataError(
            f"{session.path} has windows of {windows[0]} bins read and {windows[1]} reconstructed, "
            f"the model is for {legal[0]} and {legal[1]}; cut the new day alike"
        )
    if channels.is_dead.all():
        raise DataError(
            f"{session.path}: no channel changes in any training window, so there is nothing to "
            "align; check the recording"
        )
