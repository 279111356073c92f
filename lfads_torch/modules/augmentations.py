"""Augmentations: functions of a batch, of the loss per element, or of both.

An own augmentation is a class with ``process_batch(batch) -> batch`` and/or
``process_losses(recon_loss, batch, log_fn, data_split) -> recon_loss``. What the loss needs to know
of the batch travels in ``batch.masks``.

Where data are missing (``batch.lengths`` is not None), ``process_batch`` sees NaN there, and the
model takes care of it afterwards. ``process_losses`` then sees a loss of 0, and the mask of
observed entries in ``batch.masks["observed"]``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad

from ..errors import ConfigError
from ..tuples import SessionBatch
from .masks import coordinated_masks, random_mask, scaled_gradient

LogFn = Callable[[str, Tensor], None]

OBSERVED = "observed"
"""Mask of the entries of `recon_data` that are not missing."""


class AugmentationStack(nn.Module):
    """Apply several augmentations, each by its place in `transforms`.

    Parameters
    ----------
    transforms : sequence of augmentations
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
        self.batch_order = [int(i) for i in batch_order]
        self.loss_order = [int(i) for i in loss_order]
        for name, order, method in (
            ("batch_order", self.batch_order, "process_batch"),
            ("loss_order", self.loss_order, "process_losses"),
        ):
            for i in order:
                if not 0 <= i < len(self.transforms):
                    raise ConfigError(
                        f"{name} names transform {i}, but there are {len(self.transforms)} "
                        "transforms, counted from 0"
                    )
                if not hasattr(self.transforms[i], method):
                    raise ConfigError(
                        f"{name} names transform {i}, {type(self.transforms[i]).__name__}, which "
                        f"has no method {method}; remove it from {name}"
                    )
        # Modules among them are registered, so that their numbers move with the model's device.
        for i, transform in enumerate(self.transforms):
            if isinstance(transform, nn.Module):
                self.add_module(str(i), transform)

    def process_batch(self, batch: SessionBatch) -> SessionBatch:
        """Apply the transforms of `batch_order`; masks of earlier ones are kept."""
        for i in self.batch_order:
            masks = batch.masks or {}
            batch = self.transforms[i].process_batch(batch)
            merged = {**masks, **(batch.masks or {})}
            batch = batch._replace(masks=merged or None)
        return batch

    def process_losses(
        self,
        recon_loss: Float[Tensor, "B T N"],
        batch: SessionBatch,
        log_fn: LogFn,
        data_split: str,
    ) -> Float[Tensor, "B T N"]:
        """Apply the transforms of `loss_order` to the loss per element."""
        for i in self.loss_order:
            recon_loss = self.transforms[i].process_losses(recon_loss, batch, log_fn, data_split)
        return recon_loss

    def __len__(self) -> int:
        return len(self.transforms)


class CoordinatedDropout(nn.Module):
    """Let no channel see, in the same bin, what it has to reconstruct.

    The encoder sees a random part of the data, scaled up; gradients of the reconstruction flow
    only from the rest (Keshtkaran & Pandarinath 2019). The value of the loss does not change.
    Held-out channels, bins past the encoder's and the IC segment are never masked.

    Parameters
    ----------
    cd_rate : float
        Probability that an entry is hidden from the encoder; 0 turns it off.
    cd_pass_rate : float
        Probability that the gradient of a seen entry flows all the same.
    ic_enc_seq_len : int
        Bins of the IC segment.
    """

    MASK = "coordinated_dropout"

    def __init__(self, cd_rate: float, cd_pass_rate: float = 0.0, ic_enc_seq_len: int = 0) -> None:
        super().__init__()
        if not 0 <= cd_rate < 1:
            raise ConfigError(f"cd_rate is {cd_rate}; legal are 0 <= cd_rate < 1")
        if not 0 <= cd_pass_rate <= 1:
            raise ConfigError(f"cd_pass_rate is {cd_pass_rate}; legal are 0 <= cd_pass_rate <= 1")
        self.init_args = {"cd_rate": float(cd_rate)}
        self.cd_rate: Tensor
        self.register_buffer("cd_rate", torch.tensor(float(cd_rate)), persistent=False)
        self.off = cd_rate == 0
        self.cd_pass_rate = float(cd_pass_rate)
        self.ic_enc_seq_len = ic_enc_seq_len

    def process_batch(self, batch: SessionBatch) -> SessionBatch:
        """Mask the encoder's data; leave the mask of the gradient in the batch."""
        if self.off:
            return batch
        data, segment = batch.encod_data, self.ic_enc_seq_len
        shown = data[:, segment:]
        kept, learn = coordinated_masks(shown.shape, self.cd_rate)
        seen = shown * kept
        if segment > 0:
            seen = torch.cat([data[:, :segment], seen], dim=1)
        if self.cd_pass_rate > 0:
            passed = self.cd_rate.new_tensor(self.cd_pass_rate)
            learn = torch.maximum(learn, random_mask(shown.shape, passed))
        (_, n_bins, n_read), (_, n_all_bins, n_all) = data.shape, batch.recon_data.shape
        edges = (0, n_all - n_read, segment, n_all_bins - n_bins)
        learn = pad(learn, edges, value=1.0)
        return batch._replace(encod_data=seen, masks={self.MASK: learn})

    def process_losses(
        self, recon_loss: Tensor, batch: SessionBatch, log_fn: LogFn, data_split: str
    ) -> Tensor:
        """Stop the gradient where the encoder saw the data."""
        if self.off:
            return recon_loss
        return scaled_gradient(recon_loss, (batch.masks or {})[self.MASK])


class SampleValidation(nn.Module):
    """Hold a fixed part of the entries out of training and score them.

    Held-out entries (``batch.sv_mask`` false) are zeroed at the encoder, kept ones scaled up. The
    loss counts kept entries only; that of the held-out ones is logged as ``{split}/recon/sv``.

    Parameters
    ----------
    sv_rate : float
        Probability that an entry is held out; as the data module's `sv_rate`.
    ic_enc_seq_len : int
        Bins of the IC segment, which is never masked.
    recon_reduce_mean : bool
        As the model's: whether losses are averaged or summed over bins and channels.
    """

    def __init__(
        self, sv_rate: float, ic_enc_seq_len: int = 0, recon_reduce_mean: bool = True
    ) -> None:
        super().__init__()
        if not 0 <= sv_rate < 1:
            raise ConfigError(f"sv_rate is {sv_rate}; legal are 0 <= sv_rate < 1")
        self.sv_rate = float(sv_rate)
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
        segment, data = self.ic_enc_seq_len, batch.encod_data
        seen = data[:, segment:] * (self._kept(batch) / (1 - self.sv_rate))
        return batch._replace(encod_data=torch.cat([data[:, :segment], seen], dim=1))

    def process_losses(
        self, recon_loss: Tensor, batch: SessionBatch, log_fn: LogFn, data_split: str
    ) -> Tensor:
        """Count kept entries only; log the loss of the others."""
        if self.sv_rate == 0:
            return recon_loss
        kept = self._kept(batch)
        (_, n_bins, n_read), segment = batch.encod_data.shape, self.ic_enc_seq_len
        read = recon_loss[:, segment:n_bins, :n_read].detach()
        scored = ~kept
        observed = (batch.masks or {}).get(OBSERVED)
        if observed is not None:
            scored = scored & observed[:, segment:n_bins, :n_read]
        held_out = torch.where(scored, read, 0.0)
        if self.recon_reduce_mean:
            score = held_out.sum() / scored.sum().clamp_min(1)
        else:
            score = held_out.sum(dim=(1, 2)).mean()
        log_fn(f"{data_split}/recon/sv", score)
        (_, n_all_bins, n_all) = recon_loss.shape
        edges = (0, n_all - n_read, segment, n_all_bins - n_bins)
        return recon_loss * pad(kept / (1 - self.sv_rate), edges, value=1.0)


class SelectiveBackpropThruTime(nn.Module):
    """Learn from data with missing entries, marked by NaN (SBTT, Zhu et al. 2021).

    The encoder sees 0 there, and the loss is the mean over observed entries only. The model does so
    by itself for data that a data module has found to be incomplete (``batch.lengths``); there this
    changes nothing but where it stands before transforms of one's own that cannot take NaN, which
    then see 0 in the encoder's data.
    """

    MASK = OBSERVED

    def process_batch(self, batch: SessionBatch) -> SessionBatch:
        """Zero the missing bins at the encoder; leave the mask of observed entries in the batch."""
        batch = batch._replace(encod_data=batch.encod_data.nan_to_num(nan=0.0))
        if batch.lengths is not None:
            return batch
        return batch._replace(masks={self.MASK: ~batch.recon_data.isnan()})

    def process_losses(
        self, recon_loss: Tensor, batch: SessionBatch, log_fn: LogFn, data_split: str
    ) -> Tensor:
        """Leave missing entries out, so that the mean over all is the mean over observed ones."""
        if batch.lengths is not None:
            return recon_loss
        observed = (batch.masks or {})[self.MASK]
        fraction = observed.to(recon_loss.dtype).mean().clamp_min(1 / observed.numel())
        return torch.where(observed, recon_loss, 0.0) / fraction


class TemporalShift(nn.Module):
    """Shift each channel of each trial by a few bins, the trial's edges repeated.

    Missing bins inside a trial move along. Drawn independently for the encoder's data and the
    target (EMG, Wimalasena et al. 2022).

    Parameters
    ----------
    std : float
        Standard deviation of the shift, bins.
    max_shift : int
        Largest shift, bins.
    """

    def __init__(self, std: float = 3.0, max_shift: int = 6) -> None:
        super().__init__()
        for name, value in (("std", std), ("max_shift", max_shift)):
            if not value >= 0:
                raise ConfigError(f"{name} of TemporalShift is {value}; legal are numbers >= 0")
        self.std, self.max_shift = float(std), int(max_shift)

    def process_batch(self, batch: SessionBatch) -> SessionBatch:
        """Shift both arrays of the batch."""
        return batch._replace(
            encod_data=self._shifted(batch.encod_data, batch.lengths),
            recon_data=self._shifted(batch.recon_data, batch.lengths),
        )

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
        return moved.masked_fill(bins > last, torch.nan)


class SpikeJitter(nn.Module):
    """Move each spike by a few bins; at the trial's ends it is reflected, none is lost.

    A spike that would move into a missing bin stays where it is. Drawn independently for the
    encoder's data and the target.

    Parameters
    ----------
    width : int
        Each spike moves by a uniform integer in [-width, width], bins.
    """

    def __init__(self, width: int = 2) -> None:
        super().__init__()
        if not width >= 0:
            raise ConfigError(f"width of SpikeJitter is {width}; legal are whole numbers >= 0")
        self.width = int(width)

    def process_batch(self, batch: SessionBatch) -> SessionBatch:
        """Jitter both arrays of the batch."""
        return batch._replace(
            encod_data=self._jittered(batch.encod_data, batch.lengths),
            recon_data=self._jittered(batch.recon_data, batch.lengths),
        )

    def _jittered(
        self, counts: Float[Tensor, "B T N"], lengths: Tensor | None
    ) -> Float[Tensor, "B T N"]:
        n_bins, width = counts.shape[1], self.width
        ends: Any = n_bins if lengths is None else lengths.clamp(max=n_bins).view(-1, 1, 1)
        missing = counts.isnan()
        bins = torch.arange(n_bins, device=counts.device).view(1, -1, 1)
        moved = torch.zeros_like(counts)
        # The k-th spike of every bin moves at once; few bins hold more than a handful.
        for k in range(int(counts.nan_to_num().max()) if counts.numel() else 0):
            offset = torch.randint(-width, width + 1, counts.shape, device=counts.device)
            target = _reflected(bins + offset, ends)
            if lengths is not None:
                target = torch.where(missing.gather(1, target), bins, target)
            moved.scatter_add_(1, target, (counts > k).to(counts.dtype))
        return torch.where(missing, counts, moved)


def with_observed(batch: SessionBatch) -> SessionBatch:
    """Add the mask of observed entries, where something may be missing and it is not there yet.

    To be called after all that moves data, missing ones among them.
    """
    masks = batch.masks or {}
    if batch.lengths is None or OBSERVED in masks:
        return batch
    return batch._replace(masks={**masks, OBSERVED: ~batch.recon_data.isnan()})


def _reflected(index: Tensor, size: Any) -> Tensor:
    """Reflect indices about the outer edges of [0, size), a number or one for each."""
    index = index.remainder(2 * size)
    return torch.where(index < size, index, 2 * size - 1 - index)
