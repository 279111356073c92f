"""Augmentations: functions of a batch, of the loss per element, or of both.

Your own augmentation is a class with ``process_batch(batch) -> batch`` and/or
``process_losses(recon_loss, batch, log_fn, data_split) -> recon_loss``; `AugmentationStack` has
both and says what they take. What the loss needs to know of the batch travels in ``batch.masks``.
Keep each constructor argument as an attribute of the same name, so that a checkpoint can describe
the augmentation; keep a number that a search may change with `keep_tunable`.

Where data are missing (``batch.lengths`` is not None), ``process_batch`` sees NaN there, and the
model replaces it afterwards. ``process_losses`` then sees a loss of 0, and the mask of observed
entries in ``batch.masks["observed"]``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Bernoulli
from torch.nn.functional import pad

from ..arguments import AUGMENTATION_NUMBERS, CD_RATE
from ..errors import ConfigError, fraction, number, one_of, whole
from ..tuples import SessionBatch, bins_past
from .masks import channel_masks, coordinated_masks, random_mask, scaled_gradient

LogFn = Callable[[str, Tensor], None]

OBSERVED = "observed"
"""Key of the mask of the entries of `recon_data` that are not missing."""


def keep_tunable(module: nn.Module, name: str, value: float) -> None:
    """Keep a number as a tensor, so that a search can change it and each member has its own.

    Parameters
    ----------
    module : Module
        The augmentation. All its buffers are tunable numbers, and this makes the number one.
    name : str
        The attribute, and the last word of the number's name in a search space, for example
        ``train_aug_stack.transforms.0.cd_rate``.
    value : float
        The number to start from.
    """
    module.register_buffer(name, torch.tensor(float(value)), persistent=False)
    # The tensor rounds to float32; the description of the augmentation keeps the number as given.
    given: Any = {**getattr(module, "init_args", {}), name: float(value)}
    module.init_args = given


class AugmentationStack(nn.Module):
    """Apply several augmentations, each by its place in `transforms`.

    Parameters
    ----------
    transforms : sequence of augmentations
        Numbered from 0. They may be modules or plain objects.
    batch_order : sequence of int
        Which transforms change the batch, in order.
    loss_order : sequence of int
        Which transforms change the loss, in order.

    Raises
    ------
    ConfigError
        Where an order names a transform that does not exist, or that lacks the method.
    """

    def __init__(
        self,
        transforms: Sequence[Any] = (),
        batch_order: Sequence[int] = (),
        loss_order: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.transforms = list(transforms)
        self.batch_order = self._checked("batch_order", batch_order, "process_batch")
        self.loss_order = self._checked("loss_order", loss_order, "process_losses")
        # Modules among them are registered, so that their numbers move with the model's device.
        for i, transform in enumerate(self.transforms):
            if isinstance(transform, nn.Module):
                self.add_module(str(i), transform)

    def _checked(self, name: str, order: Sequence[int], method: str) -> list[int]:
        """Return an order whose transforms all exist and have a method."""
        for i in order:
            if not 0 <= i < len(self.transforms):
                raise ConfigError(
                    f"{name} names transform {i}; legal are {list(range(len(self.transforms)))}, "
                    "the places in transforms, counted from 0"
                )
            if not hasattr(self.transforms[i], method):
                raise ConfigError(
                    f"{name} names transform {i}, {type(self.transforms[i]).__name__}, which "
                    f"has no method {method}; remove it from {name}"
                )
        return [int(i) for i in order]

    def process_batch(self, batch: SessionBatch) -> SessionBatch:
        """Apply the transforms of `batch_order`.

        Parameters
        ----------
        batch : SessionBatch
            Trials of one session; `lfads_torch.tuples.SessionBatch` names the shapes. It is not
            changed in place.

        Returns
        -------
        SessionBatch
            With the masks of all transforms in ``masks``, also where a later one drops them.
        """
        for transform in self.batch_transforms:
            batch = as_batch(transform.process_batch(batch), batch)
        return batch

    def process_losses(
        self,
        recon_loss: Float[Tensor, "B T N"],
        batch: SessionBatch,
        log_fn: LogFn,
        data_split: str,
    ) -> Float[Tensor, "B T N"]:
        """Apply the transforms of `loss_order`.

        Parameters
        ----------
        recon_loss : Tensor, shape (B, T_r, N_r)
            Loss of each trial, bin and channel.
        batch : SessionBatch
            The batch that `process_batch` returned.
        log_fn : callable
            ``log_fn(name, scalar)`` logs a number under a name such as ``train/recon/mine``.
        data_split : str
            ``train``, ``valid`` or ``test``.

        Returns
        -------
        Tensor, shape (B, T_r, N_r)
        """
        for transform in self.loss_transforms:
            recon_loss = transform.process_losses(recon_loss, batch, log_fn, data_split)
        return recon_loss

    @property
    def batch_transforms(self) -> list[Any]:
        """Return the transforms that change the batch, in order."""
        return [self.transforms[i] for i in self.batch_order]

    @property
    def loss_transforms(self) -> list[Any]:
        """Return the transforms that change the loss, in order."""
        return [self.transforms[i] for i in self.loss_order]

    def reset(self) -> None:
        """Reset every transform that keeps something from a batch to its loss."""
        for transform in self.transforms:
            if hasattr(transform, "reset"):
                transform.reset()

    def __len__(self) -> int:
        return len(self.transforms)


def as_batch(result: Any, before: SessionBatch) -> SessionBatch:
    """Return what a transform made of a batch, with all masks so far.

    Your own may return a plain tuple of the five tensors.
    """
    if not isinstance(result, SessionBatch):
        if not isinstance(result, tuple | list) or len(result) != len(before):
            raise ConfigError(
                f"process_batch must return a SessionBatch (batch._replace(...)) or a tuple of its "
                f"{len(before)} tensors, not {type(result).__name__}"
            )
        result = SessionBatch(*result)._replace(lengths=before.lengths, share=before.share)
    merged = {**(before.masks or {}), **(result.masks or {})}
    behavior = before.behavior if result.behavior is None else result.behavior
    return result._replace(masks=merged or None, behavior=behavior)


class CoordinatedDropout(nn.Module):
    """Let no channel see, in the same bin, what it has to reconstruct.

    The encoder sees each entry with probability 1 - cd_rate, scaled by 1 / (1 - cd_rate); gradients
    of the reconstruction flow only from the hidden entries. The value of the loss does not change.
    Channels and bins that the encoder does not read, and the IC segment, are never hidden, and
    their gradients always flow.
    Source: Keshtkaran & Pandarinath 2019 (NeurIPS 32, arXiv:1908.07896).

    Parameters
    ----------
    cd_rate : float
        Probability that an entry is hidden from the encoder, at least 0 and below 1; 0 turns it
        off. A tunable number.
    cd_pass_rate : float
        Probability from 0 to 1 that the gradient of a seen entry flows all the same.
    ic_enc_seq_len : int
        Bins of the IC segment.

    Raises
    ------
    ConfigError
        Where a rate is out of range.
    """

    MASK = "coordinated_dropout"
    lookahead = 0
    cd_rate: Tensor
    init_args: dict[str, float]

    def __init__(self, cd_rate: float, cd_pass_rate: float = 0.0, ic_enc_seq_len: int = 0) -> None:
        super().__init__()
        keep_tunable(self, "cd_rate", AUGMENTATION_NUMBERS[CD_RATE].check("cd_rate", cd_rate))
        # Which operations run is decided once: a population is one graph for all its members.
        self.off = cd_rate == 0
        self.cd_pass_rate = fraction("cd_pass_rate", cd_pass_rate)
        self.ic_enc_seq_len = ic_enc_seq_len
        # For subclasses that keep masks of their own here; this class keeps its in the batch.
        self.grad_masks: list[Tensor] = []

    def __setattr__(self, name: str, value: Any) -> None:
        # A callback may set the rate as a number between epochs.
        if name == "cd_rate" and isinstance(value, int | float):
            self.cd_rate.fill_(AUGMENTATION_NUMBERS[CD_RATE].check("cd_rate", value))
            self.off = self.off and value == 0
        else:
            super().__setattr__(name, value)

    @property
    def cd_input_dist(self) -> Bernoulli:
        """Distribution of the mask of kept entries, 1 with probability 1 - cd_rate."""
        return Bernoulli(1 - self.cd_rate, validate_args=False)

    def reset(self) -> None:
        """Forget the masks that a subclass keeps."""
        self.grad_masks.clear()

    def process_batch(self, batch: SessionBatch) -> SessionBatch:
        """Hide entries from the encoder; leave the mask of the gradient in the batch."""
        if self.off:
            return batch
        data, segment = batch.encod_data, self.ic_enc_seq_len
        shape = data[:, segment:].shape
        kept, learn = coordinated_masks(shape, self.cd_rate)
        if self.cd_pass_rate > 0:
            passed = self.cd_rate.new_tensor(self.cd_pass_rate)
            learn = torch.maximum(learn, random_mask(shape, passed))
        return batch._replace(
            encod_data=_scaled(data, segment, kept),
            masks=_hidden(batch, self.MASK, _to_target(learn, batch, segment)),
        )

    def process_losses(
        self, recon_loss: Tensor, batch: SessionBatch, log_fn: LogFn, data_split: str
    ) -> Tensor:
        """Stop the gradient where the encoder saw the data."""
        if self.off:
            return recon_loss
        return scaled_gradient(recon_loss, (batch.masks or {})[self.MASK])


class CoordinatedDropoutTF2(CoordinatedDropout):
    """`CoordinatedDropout` under the name that configurations from AutoLFADS for TensorFlow use."""


class ChannelMask(nn.Module):
    """Silence whole channels of a trial at the encoder, so that it infers them from the others.

    In each trial a channel that is read is 0 over all bins with probability `rate`; one at least
    stays. Gradients of the reconstruction flow from the silenced channels alone, or from all. The
    value of the loss does not change. Held-out channels are never masked. Together with
    `CoordinatedDropout` the encoder sees what both keep, and learns from what either hides.

    Parameters
    ----------
    rate : float
        Probability that a channel is silenced, at least 0 and below 1; 0 turns it off. A tunable
        number; sensible are 0 to 0.5.
    scale : bool
        Scale the channels that stay, so that the mean of the encoder's data is what it was: by
        1 / (1 - rate), but for the channel that stays where all would go.
    loss : {"masked", "all"}
        Where gradients flow from: silenced channels and all that is never masked, or everything.
    segment : int
        Bins at the start that are not masked, such as the IC segment (`ic_enc_seq_len`).

    Raises
    ------
    ConfigError
        Where an argument is out of range.
    """

    MASK = "channel_mask"
    rate: Tensor
    init_args: dict[str, float]

    def __init__(
        self, rate: float = 0.25, scale: bool = True, loss: str = "masked", segment: int = 0
    ) -> None:
        super().__init__()
        keep_tunable(self, "rate", number("rate of ChannelMask", rate, least=0, below=1))
        # Decided once, as in `CoordinatedDropout`: a population is one graph for all its members.
        self.off = rate == 0
        self.scale = scale
        self.loss = one_of("loss of ChannelMask", loss, ("masked", "all"))
        self.segment = whole("segment of ChannelMask", segment, least=0)

    def process_batch(self, batch: SessionBatch) -> SessionBatch:
        """Silence channels at the encoder; leave the mask of the gradient in the batch."""
        if self.off:
            return batch
        data, segment = batch.encod_data, self.segment
        kept, factor = channel_masks(data.shape[0], data.shape[2], self.rate)
        hidden = (1 - kept).expand(data[:, segment:].shape)
        return batch._replace(
            encod_data=_scaled(data, segment, kept * factor if self.scale else kept),
            masks=_hidden(batch, self.MASK, _to_target(hidden, batch, segment)),
        )

    def process_losses(
        self, recon_loss: Tensor, batch: SessionBatch, log_fn: LogFn, data_split: str
    ) -> Tensor:
        """Stop the gradient where the encoder saw the channel."""
        if self.off or self.loss == "all":
            return recon_loss
        return scaled_gradient(recon_loss, (batch.masks or {})[self.MASK])


_HIDING = (CoordinatedDropout.MASK, ChannelMask.MASK)


def _hidden(batch: SessionBatch, key: str, hidden: Tensor) -> dict[str, Tensor]:
    """Return gradient masks of all transforms that hide entries: 1 where any of them hides.

    Each mask is of numbers 0 and 1, so to apply the same one twice is to apply it once.
    """
    masks = batch.masks or {}
    others = [name for name in _HIDING if name in masks and name != key]
    for name in others:
        hidden = torch.maximum(hidden, masks[name])
    return dict.fromkeys((key, *others), hidden)


class SampleValidation(nn.Module):
    """Keep a fixed share of the entries out of training and score them.

    Entries where ``batch.sv_mask`` is false are held out: 0 at the encoder, the others scaled by
    1 / (1 - sv_rate). The loss counts the others only; that of the held-out ones is logged as
    ``{split}/recon/sv``. Source: Keshtkaran & Pandarinath 2019 (NeurIPS 32, arXiv:1908.07896).

    Parameters
    ----------
    sv_rate : float
        Probability that an entry is held out, at least 0 and below 1; the data module's `sv_rate`.
    ic_enc_seq_len : int
        Bins of the IC segment, where nothing is held out.
    recon_reduce_mean : bool
        The model's `recon_reduce_mean`: whether losses are averaged or summed over bins and
        channels.

    Raises
    ------
    ConfigError
        Where the rate is out of range, or the data module draws no mask.
    """

    lookahead = 0

    def __init__(
        self, sv_rate: float, ic_enc_seq_len: int = 0, recon_reduce_mean: bool = True
    ) -> None:
        super().__init__()
        self.sv_rate = number("sv_rate", sv_rate, least=0, below=1)
        self.ic_enc_seq_len = ic_enc_seq_len
        self.recon_reduce_mean = recon_reduce_mean

    def _kept(self, batch: SessionBatch) -> Tensor:
        if batch.sv_mask.numel() == 0:
            raise ConfigError(
                f"SampleValidation has sv_rate {self.sv_rate}, but the data module draws no mask; "
                f"set datamodule.sv_rate: {self.sv_rate}"
            )
        return batch.sv_mask[:, self.ic_enc_seq_len :]

    def process_batch(self, batch: SessionBatch) -> SessionBatch:
        """Hide held-out entries from the encoder."""
        if self.sv_rate == 0:
            return batch
        scale = self._kept(batch) / (1 - self.sv_rate)
        return batch._replace(encod_data=_scaled(batch.encod_data, self.ic_enc_seq_len, scale))

    def process_losses(
        self, recon_loss: Tensor, batch: SessionBatch, log_fn: LogFn, data_split: str
    ) -> Tensor:
        """Count kept entries only; log the loss of the others."""
        if self.sv_rate == 0:
            return recon_loss
        kept = self._kept(batch)
        (_, n_bins, n_read), segment = batch.encod_data.shape, self.ic_enc_seq_len
        scored = ~kept
        observed = (batch.masks or {}).get(OBSERVED)
        if observed is not None:
            scored = scored & observed[:, segment:n_bins, :n_read]
        held_out = torch.where(scored, recon_loss[:, segment:n_bins, :n_read].detach(), 0.0)
        if self.recon_reduce_mean:
            score = held_out.sum() / scored.sum().clamp_min(1)
        else:
            score = held_out.sum(dim=(1, 2)).mean()
        log_fn(f"{data_split}/recon/sv", score)
        return recon_loss * _to_target(kept / (1 - self.sv_rate), batch, segment)


class SelectiveBackpropThruTime(nn.Module):
    """Learn from data with missing entries, marked by NaN.

    The encoder sees 0 there, and the loss is the mean over observed entries only. The model does so
    by itself for data that the data module knows to be incomplete (``batch.lengths``); there this
    changes only what later transforms see in the encoder's data: 0 instead of NaN, for your own
    that cannot take NaN. Source: Zhu et al. 2021 (SBTT; NeurIPS 34, arXiv:2111.00070).
    """

    MASK = OBSERVED
    lookahead = 0

    def process_batch(self, batch: SessionBatch) -> SessionBatch:
        """Zero missing entries at the encoder; leave the mask of observed ones in the batch."""
        batch = batch._replace(encod_data=batch.encod_data.nan_to_num(nan=0.0))
        return _mark_observed(batch) if batch.lengths is None else batch

    def process_losses(
        self, recon_loss: Tensor, batch: SessionBatch, log_fn: LogFn, data_split: str
    ) -> Tensor:
        """Leave missing entries out, so that the mean over all is the mean over observed ones."""
        if batch.lengths is not None:
            return recon_loss
        observed = (batch.masks or {})[self.MASK]
        share = observed.to(recon_loss.dtype).mean().clamp_min(1 / observed.numel())
        return torch.where(observed, recon_loss, 0.0) / share


class TemporalShift(nn.Module):
    """Shift each channel of each trial by a few bins, the trial's edges repeated.

    The shift is a normal number of standard deviation `std`, rounded to whole bins, within
    [-max_shift, max_shift], drawn independently for the encoder's data and the target. Missing
    entries inside a trial move along. Source: Wimalasena et al. 2022, for EMG
    (doi:10.1088/1741-2552/ac6369).

    Parameters
    ----------
    std : float
        Standard deviation of the shift, in bins, at least 0.
    max_shift : int
        Largest shift, in bins, at least 0.

    Raises
    ------
    ConfigError
        Where a number is negative.
    """

    def __init__(self, std: float = 3.0, max_shift: int = 6) -> None:
        super().__init__()
        self.std = number("std of TemporalShift", std, least=0)
        self.max_shift = whole("max_shift of TemporalShift", max_shift, least=0)

    def process_batch(self, batch: SessionBatch) -> SessionBatch:
        """Shift both arrays of the batch."""
        return _moved(batch, self._shifted)

    def _shifted(
        self, data: Float[Tensor, "B T N"], lengths: Tensor | None
    ) -> Float[Tensor, "B T N"]:
        n_trials, n_bins, n_channels = data.shape
        shift = torch.randn(n_trials, 1, n_channels, device=data.device) * self.std
        shift = shift.round().clamp(-self.max_shift, self.max_shift).long()
        bins = torch.arange(n_bins, device=data.device).view(1, -1, 1)
        if lengths is None:
            return data.gather(1, (bins - shift).clamp(0, n_bins - 1))
        last = lengths.clamp(max=n_bins).view(-1, 1, 1) - 1
        moved = data.gather(1, torch.minimum((bins - shift).clamp_min(0), last))
        return moved.masked_fill(bins_past(lengths, n_bins).unsqueeze(-1), torch.nan)


class SpikeJitter(nn.Module):
    """Move each spike by a few bins; at the trial's ends it is reflected, so that none is lost.

    The offset is a uniform whole number in [-width, width], drawn independently for each spike, and
    for the encoder's data and the target. A spike that would move into a missing bin stays.

    Parameters
    ----------
    width : int
        Largest offset, in bins, at least 0.

    Raises
    ------
    ConfigError
        Where `width` is negative or no whole number.
    """

    def __init__(self, width: int = 2) -> None:
        super().__init__()
        self.width = whole("width of SpikeJitter", width, least=0)

    def process_batch(self, batch: SessionBatch) -> SessionBatch:
        """Jitter both arrays of the batch."""
        return _moved(batch, self._jittered)

    def _jittered(
        self, counts: Float[Tensor, "B T N"], lengths: Tensor | None
    ) -> Float[Tensor, "B T N"]:
        n_bins, width = counts.shape[1], self.width
        ends: Any = n_bins if lengths is None else lengths.clamp(max=n_bins).view(-1, 1, 1)
        missing = counts.isnan()
        bins = torch.arange(n_bins, device=counts.device).view(1, -1, 1)
        moved = torch.zeros_like(counts)
        # How many spikes of a bin move by each offset is multinomial, drawn offset by offset from
        # those left: so many draws as offsets, whatever the counts, which nobody has to read.
        left = counts.nan_to_num().clamp_min(0).floor()
        for offset in range(-width, width + 1):
            target = _reflected(bins + offset, ends).expand(counts.shape)
            if lengths is not None:
                target = torch.where(missing.gather(1, target), bins, target)
            share = torch.full_like(left, 1 / (width - offset + 1))
            drawn = torch.binomial(left, share) if offset < width else left
            left = left - drawn
            moved = moved.scatter_add(1, target, drawn)
        return torch.where(missing, counts, moved)


def with_observed(batch: SessionBatch) -> SessionBatch:
    """Add the mask of observed entries, where something may be missing and no mask says what.

    Call it after all transforms that move data, because missing entries move along.
    """
    if batch.lengths is None or OBSERVED in (batch.masks or {}):
        return batch
    return _mark_observed(batch)


def _mark_observed(batch: SessionBatch) -> SessionBatch:
    return batch._replace(masks={**(batch.masks or {}), OBSERVED: ~batch.recon_data.isnan()})


def _scaled(data: Tensor, segment: int, scale: Tensor) -> Tensor:
    """Scale the encoder's data after the IC segment."""
    scaled = data[:, segment:] * scale
    return torch.cat([data[:, :segment], scaled], dim=1) if segment > 0 else scaled


def _to_target(mask: Tensor, batch: SessionBatch, segment: int) -> Tensor:
    """Extend a mask of what `_scaled` scales to the target, with 1 for all that it lacks."""
    (_, n_bins, n_read), (_, n_all_bins, n_all) = batch.encod_data.shape, batch.recon_data.shape
    # A batch of short trials may end within the segment.
    front = min(segment, n_bins)
    return pad(mask, (0, n_all - n_read, front, n_all_bins - n_bins), value=1.0)


def pad_mask(mask: Tensor, data: Tensor, value: float) -> Tensor:
    """Extend a mask of what the encoders read to all that is reconstructed.

    Parameters
    ----------
    mask : Tensor, shape (B, T_e, N_e)
        Of the first bins and channels.
    data : Tensor, shape (B, T_r, N_r)
        What has the shape that is wanted.
    value : float
        For the bins and channels that the mask lacks.

    Returns
    -------
    Tensor, shape (B, T_r, N_r)
    """
    _, n_bins, n_channels = data.shape
    return pad(mask, (0, n_channels - mask.shape[2], 0, n_bins - mask.shape[1]), value=value)


def _moved(batch: SessionBatch, move: Callable[[Tensor, Tensor | None], Tensor]) -> SessionBatch:
    return batch._replace(
        encod_data=move(batch.encod_data, batch.lengths),
        recon_data=move(batch.recon_data, batch.lengths),
    )


def _reflected(index: Tensor, size: Any) -> Tensor:
    """Reflect indices about the outer edges of [0, size), a number or one for each."""
    index = index.remainder(2 * size)
    return torch.where(index < size, index, 2 * size - 1 - index)
