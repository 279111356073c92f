"""Scores kept while training: tensors in, sums on the device, no synchronisation."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Generic, NamedTuple, TypeVar

import torch
from jaxtyping import Num
from torch import Tensor
from torchmetrics import Metric

from ..kernels.likelihood import channel_sum, spike_sums, wide


def _require_same_shape(preds: Tensor, targets: Tensor, names: str) -> None:
    if preds.shape != targets.shape:
        raise ValueError(
            f"{names} must have the same shape, got {tuple(preds.shape)} and "
            f"{tuple(targets.shape)}; the last axis is channels"
        )


Key = TypeVar("Key", bound=Hashable)
Sum = TypeVar("Sum")


class _Sums(Generic[Key, Sum]):
    """Sums by session or name, kept until `reset`."""

    def __init__(self) -> None:
        self._sums: dict[Key, Sum] = {}

    def __bool__(self) -> bool:
        """Whether anything was seen."""
        return bool(self._sums)

    def reset(self) -> None:
        """Forget everything seen."""
        self._sums.clear()


class BitsPerSpikeSums(_Sums[Hashable, Tensor]):
    """Bits per spike over any number of batches, from sums kept per channel on the device.

    ``(NLL(mean rate of the evaluated data) - NLL(model)) / (number of spikes * ln 2)`` with Poisson
    likelihoods (Pei et al. 2021, eq. 2). The data's factorial terms cancel, so that four sums per
    channel hold everything the score needs, and batches of any size weigh as they should.
    """

    @torch.no_grad()
    def update(
        self,
        log_rates: Num[Tensor, "*batch channel"],
        counts: Num[Tensor, "*batch channel"],
        key: Hashable = 0,
    ) -> None:
        """Add a batch.

        Parameters
        ----------
        log_rates : Tensor, shape (..., channels)
            Natural logarithm of the predicted rate per bin.
        counts : Tensor, shape (..., channels)
            Spikes per bin. NaN marks missing entries, which are ignored.
        key : hashable
            Session to which these channels belong; mean rates are those of each session's
            channels.
        """
        _require_same_shape(log_rates, counts, "log_rates and counts")
        self.add_sums(spike_sums(log_rates, counts), key)

    def add_sums(self, sums: Tensor, key: Hashable = 0) -> None:
        """Add what `lfads_torch.kernels.likelihood.spike_sums` gives of a batch."""
        seen = self._sums.get(key)
        self._sums[key] = sums if seen is None else seen + sums

    def compute(self) -> Tensor:
        """Return bits per spike over everything seen, a scalar; NaN where there was no spike."""
        if not self._sums:
            return torch.tensor(math.nan)
        observed, spikes, nll = torch.cat(list(self._sums.values()), dim=1)
        # Of a channel's mean rate, rate times bins is the number of spikes itself.
        null = spikes - torch.xlogy(spikes, spikes / observed.clamp(min=1))
        n_spikes = spikes.sum()
        gain = (null.sum() - nll.sum()) / (n_spikes * math.log(2))
        return torch.where(n_spikes > 0, gain, math.nan)


def bits_per_spike(
    preds: Num[Tensor, "*batch channel"], targets: Num[Tensor, "*batch channel"]
) -> Tensor:
    """Bits per spike of predicted rates over the channels' mean rates.

    Parameters
    ----------
    preds : Tensor, shape (..., channels)
        Natural LOGARITHM of the predicted rate per bin.
    targets : Tensor, shape (..., channels)
        Spikes per bin; NaN entries are ignored.

    Returns
    -------
    Tensor
        Scalar; 0 for a model as good as each channel's mean rate, NaN without any spike.
    """
    sums = BitsPerSpikeSums()
    sums.update(preds, targets)
    return sums.compute().to(preds.dtype)


class R2Moments(NamedTuple):
    """What R2 needs of a batch, per channel, each of shape (channels,)."""

    n: Tensor  # observed targets
    mean: Tensor
    spread: Tensor  # sum of squared deviations from the mean
    error: Tensor  # sum of squared errors of the predictions


def r2_moments(
    preds: Num[Tensor, "*batch channel"], targets: Num[Tensor, "*batch channel"]
) -> R2Moments:
    """Sum a batch up for `R2Sums`; NaN targets are missing. `torch.func.vmap` can map it."""
    observed = ~torch.isnan(targets)
    targets = torch.nan_to_num(targets)
    n = channel_sum(observed)
    mean = channel_sum(targets) / n.clamp(min=1)
    spread = channel_sum(torch.where(observed, targets - mean.to(targets.dtype), 0.0) ** 2)
    error = channel_sum(torch.where(observed, preds - targets, 0.0) ** 2)
    return R2Moments(n, mean, spread, error)


class R2Sums(_Sums[Hashable, R2Moments]):
    """Coefficient of determination over any number of batches, mean over channels.

    Means and squared deviations are merged batch by batch (Chan et al. 1983), so that large offsets
    do not cancel. Channels whose targets do not vary have no R2 and are left out.
    """

    @torch.no_grad()
    def update(
        self,
        preds: Num[Tensor, "*batch channel"],
        targets: Num[Tensor, "*batch channel"],
        key: Hashable = 0,
    ) -> None:
        """Add a batch; entries with NaN targets are ignored, `key` names the session."""
        _require_same_shape(preds, targets, "preds and targets")
        self.add_moments(r2_moments(preds, targets), key)

    def add_moments(self, moments: R2Moments, key: Hashable = 0) -> None:
        """Add what `r2_moments` gives of a batch."""
        n, mean, spread, error = moments
        if key in self._sums:
            n0, mean0, spread0, error0 = self._sums[key]
            total = (n + n0).clamp(min=1)
            gap = mean - mean0
            mean = mean0 + gap * n / total
            spread = spread0 + spread + gap**2 * n * n0 / total
            n, error = n0 + n, error0 + error
        self._sums[key] = R2Moments(n, mean, spread, error)

    def compute(self) -> Tensor:
        """Return the R2 averaged over channels, a scalar; NaN where no channel varies."""
        if not self._sums:
            return torch.tensor(math.nan)
        sums = list(self._sums.values())
        spread = torch.cat([s.spread for s in sums])
        error = torch.cat([s.error for s in sums])
        return torch.where(spread > 0, 1 - error / spread, math.nan).nanmean()

    def weighted(self) -> Tensor:
        """Return the R2 of all channels together, each weighing by its variance."""
        sums = list(self._sums.values())
        spread = torch.cat([s.spread for s in sums]).sum()
        error = torch.cat([s.error for s in sums]).sum()
        return torch.where(spread > 0, 1 - error / spread, math.nan)


def r2_score(
    preds: Num[Tensor, "*batch channel"], targets: Num[Tensor, "*batch channel"]
) -> Tensor:
    """Coefficient of determination of each channel over all other axes, averaged over channels.

    NaN targets are ignored, and so are channels whose targets do not vary.
    """
    sums = R2Sums()
    sums.update(preds, targets)
    return sums.compute().to(preds.dtype)


class WeightedMeans(_Sums[str, tuple[Tensor, Tensor | float]]):
    """Weighted means of named scalars, accumulated on the device without synchronising.

    Examples
    --------
    >>> means = WeightedMeans()
    >>> means.add("loss", torch.tensor(1.0), weight=3)
    >>> means.add("loss", torch.tensor(5.0), weight=1)
    >>> means.compute()["loss"].item()
    2.0
    """

    def add(self, name: str, value: Tensor | float | int, weight: Tensor | float | int = 1) -> None:
        """Count `value` (a scalar) with `weight`, usually the number of trials behind it.

        A weight that is a tensor, such as a number of observed entries, stays on its device. A
        value of weight 0 counts for nothing.
        """
        value = wide(torch.as_tensor(value).detach())
        if isinstance(weight, Tensor):
            weight = wide(weight)
            # A batch without an observed entry has a mean of NaN, which times 0 would stay NaN.
            value = torch.where(weight > 0, value, 0.0)
        else:
            weight = float(weight)
        total = value * weight
        if name in self._sums:
            total = total + self._sums[name][0]
            weight = weight + self._sums[name][1]
        self._sums[name] = (total, weight)

    def totals(self) -> dict[str, Tensor]:
        """Return the weighted sums so far, which turn non-finite with the first such value."""
        return {name: total for name, (total, _) in self._sums.items()}

    def compute(self) -> dict[str, Tensor]:
        """Return the mean of every name seen; NaN where all weights were zero."""
        return {
            name: total / weight
            if isinstance(weight, Tensor) or weight
            else torch.full_like(total, math.nan)
            for name, (total, weight) in self._sums.items()
        }


SMOOTHING = 0.3
"""Weight of the past in ``valid/recon_smth`` and the other smoothed scores of training."""


class ExpSmoothedMetric(Metric):
    """Exponentially smoothed metric, epoch by epoch: ``s = coef * s + (1 - coef) * new``.

    `new` is the mean of an epoch's updates; the first epoch counts as it is. `reset` ends it.
    The state is not part of a state dict, so that a model's parameter names stay its own; save and
    restore `smoothed` instead.

    Parameters
    ----------
    coef : float
        Weight of the past, in [0, 1).
    """

    full_state_update = True
    smoothed: Tensor
    total: Tensor
    weight: Tensor

    def __init__(self, coef: float = 0.9) -> None:
        # A restored state must show at once, not the value computed before it.
        super().__init__(compute_with_cache=False)
        if not 0 <= coef < 1:
            raise ValueError(f"coef must be in [0, 1), got {coef}")
        self.coef = coef
        self.add_state("smoothed", default=torch.tensor(math.nan), dist_reduce_fx="mean")
        for name in ("total", "weight"):
            self.add_state(name, default=torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, value: Tensor | float | int, batch_size: int = 1) -> None:
        """Take in the mean of a batch, which weighs as many trials as it has."""
        new = torch.as_tensor(value, device=self.smoothed.device).detach().to(self.smoothed.dtype)
        self.total = self.total + new * batch_size
        self.weight = self.weight + batch_size

    def compute(self) -> Tensor:
        """Return the smoothed value, this epoch included; NaN before the first update."""
        new = self.total / self.weight
        blend = self.coef * self.smoothed + (1 - self.coef) * new
        blend = torch.where(self.smoothed.isnan(), new, blend)
        return torch.where(self.weight > 0, blend, self.smoothed)

    def reset(self) -> None:
        """End the epoch; what was smoothed so far stays."""
        smoothed = None
        if hasattr(self, "smoothed"):
            # torchmetrics makes a number of what has one item, such as a population of one member.
            shape = torch.broadcast_shapes(self.smoothed.shape, self.total.shape)
            smoothed = self.compute().reshape(shape)
        super().reset()
        if smoothed is not None:
            self.smoothed = smoothed

    def smooth(self, value: Tensor | float | int) -> Tensor:
        """Take in the value of a whole epoch, end it, and return the smoothed value."""
        self.update(value)
        self.reset()
        return self.smoothed


def regional_bits_per_spike(
    preds: Num[Tensor, "B T N"],
    targets: Num[Tensor, "B T N"],
    encod_data_dim: int,
    encod_seq_len: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute bits per spike of what the encoder read, and of what was held out.

    Parameters
    ----------
    preds : Tensor, shape (trials, bins, channels)
        Natural logarithm of the predicted rate per bin.
    targets : Tensor, shape (trials, bins, channels)
        Spikes per bin; NaN marks missing entries.
    encod_data_dim, encod_seq_len : int
        Channels and bins that the encoder read, the first of each.

    Returns
    -------
    bps, co_bps, fp_bps : Tensor
        Scalars: of channels and bins that were read, of held-out channels in those bins, of the
        bins after them. NaN where there are none.
    """
    scores = []
    for bins, channels in regions(encod_data_dim, encod_seq_len):
        part = targets[:, bins, channels]
        none = preds.new_tensor(math.nan)
        scores.append(bits_per_spike(preds[:, bins, channels], part) if part.numel() else none)
    bps, co_bps, fp_bps = scores
    return bps, co_bps, fp_bps


def regions(n_read: int, n_bins_read: int) -> list[tuple[slice, slice]]:
    """Bins and channels of ``bps``, ``co_bps`` and ``fp_bps``."""
    within = slice(n_bins_read)
    return [
        (within, slice(n_read)),
        (within, slice(n_read, None)),
        (slice(n_bins_read, None), slice(None)),
    ]
