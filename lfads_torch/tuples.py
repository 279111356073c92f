"""What goes into the model and what comes out of it, one tuple per session.

Shapes use B trials, T_e bins read by the encoders, T_r >= T_e bins reconstructed, N_e channels
read and N_r >= N_e channels reconstructed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def bins_past(lengths: Int[Tensor, " B"], n_bins: int) -> Bool[Tensor, "B T"]:
    """Mark the bins past the end of each trial."""
    return torch.arange(n_bins, device=lengths.device) >= lengths.unsqueeze(1)


class _Trials(NamedTuple):
    """The five fields that a batch unpacks to; `SessionBatch` describes them."""

    encod_data: Tensor
    recon_data: Tensor
    ext_input: Tensor
    truth: Tensor
    sv_mask: Tensor


# User code unpacks a batch into five, builds it from five, and has torch's default collate stack
# it; so what this package carries beside the five are attributes, not fields.
class SessionBatch(_Trials):
    """A batch of trials of one session.

    It unpacks to its first five attributes.

    Attributes
    ----------
    encod_data : Tensor, shape (B, T_e, N_e)
        What the encoders read; for spikes, counts per bin. NaN marks missing entries, where
        `lengths` are given.
    recon_data : Tensor, shape (B, T_r, N_r)
        What is reconstructed, NaN where missing. The first N_e channels are those of
        `encod_data`.
    ext_input : Tensor, shape (B, T, E)
        External inputs of the generator; E = 0 where there are none.
    truth : Tensor, shape (B, T_r, N_r) or (B, 0, 0)
        True rates per bin, where the file has them.
    sv_mask : Tensor of bool, shape (B, T_e, N_e) or (B, 0, 0)
        True for entries kept by sample validation.
    masks : dict of str to Tensor, optional
        Masks that augmentations leave for the loss, by the augmentation's key. They travel with
        the batch, so that no augmentation needs a memory of its own.
    lengths : Tensor of int, shape (B,), optional
        Bins of each trial, 1 to T_r; what follows them is padding. None where nothing is missing:
        all trials have T_r bins, and no entry is NaN. Known of a session once, so that nobody has
        to look through a batch for NaN.
    share : Tensor, shape (B,), optional
        Bins of each trial over those of a mean training trial, in training batches of trials of
        like lengths: their mean is the batch's weight in the reconstruction of an epoch.
    behavior : Tensor, shape (B, T_y, D), optional
        Behaviour in the first T_y <= T_r bins, NaN where it was not observed; for models that read
        it out.
    """

    # Class attributes as well, for a batch that `_make` builds past `__new__`.
    masks: dict[str, Tensor] | None = None
    lengths: Tensor | None = None
    share: Tensor | None = None
    behavior: Tensor | None = None

    def __new__(  # noqa: D102 - the class says what it takes
        cls,
        encod_data: Tensor,
        recon_data: Tensor,
        ext_input: Tensor,
        truth: Tensor,
        sv_mask: Tensor,
        masks: dict[str, Tensor] | None = None,
        lengths: Tensor | None = None,
        share: Tensor | None = None,
        behavior: Tensor | None = None,
    ) -> SessionBatch:
        self = super().__new__(cls, encod_data, recon_data, ext_input, truth, sv_mask)
        self.masks, self.lengths = masks, lengths
        self.share, self.behavior = share, behavior
        return self

    def _asdict(self) -> dict[str, Any]:
        more = {"masks": self.masks, "lengths": self.lengths, "share": self.share}
        more |= {"behavior": self.behavior}
        return {**super()._asdict(), **more}

    def _replace(self, **changes: Any) -> SessionBatch:
        return SessionBatch(**{**self._asdict(), **changes})

    @classmethod
    def from_rows(
        cls, read: Callable[[str, Tensor], Tensor | None], rows: Tensor, window: tuple[int, int]
    ) -> SessionBatch:
        """Assemble a batch from some rows of a session, with empty arrays for what it lacks.

        `read(name, rows)` copies the rows of a field, or returns None where the session has none.
        Without `encod_data`, the encoders read a `window` of bins and channels of `recon_data`.
        """
        recon = read("recon_data", rows)
        if recon is None:
            raise KeyError("recon_data")
        encod, ext_input = read("encod_data", rows), read("ext_input", rows)
        truth, sv_mask = read("truth", rows), read("sv_mask", rows)
        if encod is None:
            n_bins, n_channels = window
            # A copy, since an augmentation may write into one of the two.
            encod = recon[:, :n_bins, :n_channels].clone(memory_format=torch.contiguous_format)
        none = recon.new_empty((len(recon), 0, 0))
        return cls(
            encod_data=encod,
            recon_data=recon,
            ext_input=recon.new_empty((*recon.shape[:2], 0)) if ext_input is None else ext_input,
            truth=none if truth is None else truth,
            sv_mask=none.bool() if sv_mask is None else sv_mask,
            lengths=read("lengths", rows),
            share=read("share", rows),
        )

    def mapped(self, change: Callable[[Tensor], Tensor]) -> SessionBatch:
        """Apply a function to every tensor of the batch."""
        tensors = {name: change(x) for name, x in self._asdict().items() if isinstance(x, Tensor)}
        masks = None if self.masks is None else {k: change(x) for k, x in self.masks.items()}
        return SessionBatch(**tensors, masks=masks)

    def to(self, device: Any) -> SessionBatch:
        """Move every tensor to a device; Lightning calls this instead of rebuilding the tuple."""
        return self.mapped(lambda tensor: tensor.to(device))


class _Output(NamedTuple):
    """The fields that `SessionOutput` describes."""

    output_params: Tensor
    factors: Tensor
    ic_mean: Tensor
    ic_std: Tensor
    co_means: Tensor
    co_stds: Tensor
    gen_states: Tensor
    gen_init: Tensor
    gen_inputs: Tensor
    con_states: Tensor
    behavior: Tensor | None = None


class SessionOutput(_Output):
    """What the model infers for a batch of trials of one session.

    Attributes
    ----------
    output_params : Tensor, shape (B, T_r, N_r, k) or (B, T_r, N_r)
        Parameters of the observation model, or its means (for spikes: rates per bin).
    factors : Tensor, shape (B, T_r, fac_dim)
    ic_mean, ic_std : Tensor, shape (B, ic_dim)
        Posterior of the initial condition.
    co_means, co_stds : Tensor, shape (B, T_r, co_dim)
        Posterior of the inferred inputs.
    gen_states : Tensor, shape (B, T_r, gen_dim)
    gen_init : Tensor, shape (B, gen_dim)
        Initial state of the generator.
    gen_inputs : Tensor, shape (B, T_r, co_dim + ext_input_dim)
        Inferred and external inputs as the generator received them.
    con_states : Tensor, shape (B, T_r, con_dim)
    behavior : Tensor, shape (B, T_r, D), optional
        Behaviour that the model reads out, in the units of the data file; None without a readout.
    """

    def _asdict(self) -> dict[str, Any]:
        # Without what a model does not infer, so that each value of the dict is a tensor.
        return {name: x for name, x in super()._asdict().items() if x is not None}

    def ended(self, lengths: Tensor | None, n_bins: int) -> SessionOutput:
        """Set the bins past each trial's end to NaN; those of `n_bins` that lack are NaN, too."""
        if lengths is None:
            return self
        past = bins_past(lengths, n_bins)
        by_bin = {name: x for name in _BY_BIN if (x := getattr(self, name)) is not None}
        return self._replace(**{name: _where_bins(past, x) for name, x in by_bin.items()})


def output_name(field: str) -> str:
    """Return the name of a field in an output file, where the data's behaviour keeps its own."""
    return "behavior_prediction" if field == "behavior" else field


_BY_BIN = (
    "output_params",
    "factors",
    "co_means",
    "co_stds",
    "gen_states",
    "gen_inputs",
    "con_states",
    "behavior",
)


def _where_bins(past: Tensor, values: Tensor) -> Tensor:
    """NaN where bins (B, T) are past the end, in values (B, T, ...) of as many bins or fewer."""
    # Not `pad`, which refuses fields of size 0 before torch 2.7.
    n_lacking = past.shape[1] - values.shape[1]
    rest = values.new_full((len(values), n_lacking, *values.shape[2:]), torch.nan)
    values = torch.cat([values, rest], dim=1)
    return values.masked_fill(past.view(*past.shape, *[1] * (values.ndim - 2)), torch.nan)


class LossTerms(NamedTuple):
    """Named terms of the objective, scalars; `session_recon` by session, `recon` their mean.

    `behavior` is the mean squared error of a readout of behaviour, 0 without one.
    """

    total: Tensor
    recon: Tensor
    l2: Tensor
    kl_ic: Tensor
    kl_co: Tensor
    session_recon: dict[int, Tensor]
    behavior: Tensor | None = None


class ScoredBehavior(NamedTuple):
    """Behaviour (B, T_y, D), NaN where it does not count, and the model's, less the training mean.

    `mse` is the mean squared error of standardised behaviour, over `weight` entries.
    """

    target: Tensor
    read: Tensor
    mse: Tensor
    weight: Tensor


class Scored(NamedTuple):
    """What one session's trials of a batch are scored by, without gradient.

    Attributes
    ----------
    recon : Tensor
        Mean loss, a scalar.
    n_trials : int
    window : tuple of int
        Bins and channels that the encoder read.
    counts, log_rates : Tensor, shape (B, T_r, N_r), optional
        Spikes and logarithms of their expected number, where the data are spikes.
    truth, means : Tensor, shape (B, T_r, N_r), optional
        True rates and inferred ones, where the file has true ones.
    weight : Tensor, optional
        What `recon` is a mean over: observed entries, where some are missing and losses are
        averaged; trials otherwise.
    behavior : ScoredBehavior, optional
        What a readout of behaviour is scored by.
    """

    recon: Tensor
    n_trials: int
    window: tuple[int, int]
    counts: Tensor | None = None
    log_rates: Tensor | None = None
    truth: Tensor | None = None
    means: Tensor | None = None
    weight: Tensor | None = None
    behavior: ScoredBehavior | None = None


class BatchResult(NamedTuple):
    """All that a batch gives, before any of it is counted.

    Attributes
    ----------
    terms : LossTerms
    logged : dict of str to list of Tensor
        What augmentations logged, scalars by name without the split.
    scored : dict of int to Scored
        By session.
    """

    terms: LossTerms
    logged: dict[str, list[Tensor]]
    scored: dict[int, Scored]


Batch = Mapping[int, SessionBatch] | Mapping[int, tuple[SessionBatch, Any]] | SessionBatch
"""What a model accepts: trials by session, as a dataloader gives them or without its extras."""


def sessions_of(batch: Batch) -> dict[int, SessionBatch]:
    """Bring a batch into one form: `SessionBatch` by session number, in ascending order."""
    if isinstance(batch, SessionBatch):
        return {0: batch}
    sessions: dict[int, SessionBatch] = {}
    for number in sorted(batch):
        trials: Any = batch[number]
        # A batch is a tuple itself: its first entry is a tensor, that of a pair is the batch.
        is_pair = not isinstance(trials, SessionBatch) and not isinstance(trials[0], Tensor)
        trials = trials[0] if is_pair else trials
        sessions[number] = trials if isinstance(trials, SessionBatch) else SessionBatch(*trials)
    return sessions


def last_bins(data: Tensor) -> Int[Tensor, " B"]:
    """Count the bins of each trial up to the last that is not missing, of data (B, T, N)."""
    bins = torch.arange(1, data.shape[1] + 1, device=data.device)
    return (bins * ~data.isnan().all(dim=2)).amax(dim=1).clamp_min(1)


def bins_of(batch: Mapping[int, SessionBatch], window: int) -> int:
    """Count the bins that a batch is reconstructed over: the `window`, or fewer.

    Fewer where a batch of trials of known lengths was cut to its longest one.
    """
    if any(trials.lengths is None for trials in batch.values()):
        return window
    # Trials that are only read have no bins to say how many they are.
    return min(window, max(trials.recon_data.shape[1] for trials in batch.values()) or window)


def lengths_of(batch: Mapping[int, SessionBatch]) -> Tensor | None:
    """Lengths of all trials of a batch, session after session; None where nothing is missing."""
    if all(trials.lengths is None for trials in batch.values()):
        return None
    return torch.cat(
        [
            trials.recon_data.new_full(
                (trials.recon_data.shape[0],), trials.recon_data.shape[1], dtype=torch.long
            )
            if trials.lengths is None
            else trials.lengths
            for trials in batch.values()
        ]
    )
