"""The objective of LFADS: reconstruction, KL and L2 terms, by session and with missing data.

The mathematics is in ``docs/model.md``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .modules.augmentations import OBSERVED, AugmentationStack, LogFn, with_observed
from .modules.decoder import Decoder, Decoding
from .modules.encoder import Encoder, Encoding
from .modules.masks import bins_past
from .modules.priors import kl_over_bins
from .modules.recons import observed_loss
from .training import TrainingModule
from .tuples import LossTerms, SessionBatch, SessionOutput, lengths_of


class Objective(TrainingModule):
    """What a model is trained for, from what it infers; `LFADS` has the parts."""

    encoder: Encoder
    decoder: Decoder
    use_con: bool
    # Duck-typed, so that one's own need no base class.
    ic_prior: Any
    co_prior: Any

    def l2_penalty(self) -> Tensor:
        """Weighted squares of the recurrent weights, per penalised entry, and parts' penalties."""
        encoder, cell = self.encoder, self.decoder.rnn.cell
        groups = [
            (self.l2_ic_enc_scale, [c.weight_hh for c in encoder.ic_enc.cells]),
            (self.l2_gen_scale, [cell.gen_cell.weight_hh]),
        ]
        if self.use_con:
            groups += [
                (self.l2_ci_enc_scale, [c.weight_hh for c in encoder.ci_enc.cells]),
                (self.l2_con_scale, [cell.con_cell.weight_hh]),
            ]
        penalty, n_entries = self.l2_gen_scale.new_zeros(()), self.l2_gen_scale.new_zeros(())
        for scale, weights in groups:
            for weight in weights:
                penalty = penalty + scale * 0.5 * (weight**2).sum()
                n_entries = n_entries + (scale > 0) * weight.numel()
        penalty = penalty / n_entries.clamp_min(1)
        for recon in self.recon:
            if hasattr(recon, "penalty"):
                penalty = penalty + recon.penalty()
        return penalty

    def loss_terms(
        self,
        batch: Mapping[int, SessionBatch],
        encoding: Encoding,
        decoding: Decoding,
        outputs: Mapping[int, SessionOutput],
        stack: AugmentationStack,
        log_fn: LogFn,
        split: str,
    ) -> LossTerms:
        """Compute the objective, term by term.

        Parameters
        ----------
        batch : dict of int to SessionBatch
            After `stack.process_batch`.
        encoding, decoding : Encoding, Decoding
            Of all trials of the batch.
        outputs : dict of int to SessionOutput
            With parameters, not means.
        stack : AugmentationStack
        log_fn : callable
            ``log_fn(name, scalar)`` for what augmentations log.
        split : str
        """
        session_recon = {}
        for s, own in batch.items():
            own = with_observed(own)
            observed = (own.masks or {}).get(OBSERVED)
            loss = observed_loss(self.recon[s], own.recon_data, observed, outputs[s].output_params)
            loss = stack.process_losses(loss, own, log_fn, split)
            session_recon[s] = self._mean_loss(loss, own)
        weights = self.session_weights(batch)
        losses = torch.stack(list(session_recon.values()))
        recon = losses.mean() if weights is None else (losses * losses.new_tensor(weights)).sum()
        l2 = self.l2_penalty()
        sizes = [own.encod_data.shape[0] for own in batch.values()]
        kl_ic = self.kl_ic_scale * _weighted(
            self.ic_prior, (encoding.ic_mean, encoding.ic_std), None, sizes, weights
        )
        lengths, n_bins = lengths_of(batch), decoding.co_means.shape[1]
        within = None if lengths is None else ~bins_past(lengths, n_bins)
        kl_co = self.kl_co_scale * _weighted(
            self.co_prior, (decoding.co_means, decoding.co_stds), within, sizes, weights
        )
        total = self.objective(recon, l2, kl_ic + kl_co)
        return LossTerms(total, recon, l2, kl_ic, kl_co, session_recon)

    def _mean_loss(self, loss: Tensor, batch: SessionBatch) -> Tensor:
        """Mean over observed entries, or over trials of the sum over observed entries."""
        if not self.hparams.recon_reduce_mean:
            return loss.sum(dim=(1, 2)).mean()
        if batch.lengths is None:
            return loss.mean()
        n_observed = torch.count_nonzero((batch.masks or {})[OBSERVED])
        return loss.sum() / n_observed.clamp_min(1)

    def session_weights(self, batch: Mapping[int, SessionBatch]) -> list[float] | None:
        """Shares of a batch's sessions in the objective; None where all weigh the same."""
        if self.hparams.weigh_sessions == "session" or len(batch) == 1:
            return None
        known = self.session_trials
        n_trials = [known.get(s, b.encod_data.shape[0]) for s, b in batch.items()]
        return [n / sum(n_trials) for n in n_trials]

    def objective(self, recon: Tensor, l2: Tensor, kl: Tensor) -> Tensor:
        """The objective from its terms, at the ramps of the current epoch."""
        return self.hparams.loss_scale * (recon + self.l2_ramp * l2 + self.kl_ramp * kl)


def _weighted(
    prior: Any,
    posterior: tuple[Tensor, Tensor],
    mask: Tensor | None,
    sizes: list[int],
    weights: list[float] | None,
) -> Tensor:
    """KL averaged over all trials, or over the sessions' means with weights."""
    if weights is None:
        return kl_over_bins(prior, *posterior, mask)
    masks = [None] * len(sizes) if mask is None else mask.split(sizes)
    parts = zip(*(tensor.split(sizes) for tensor in posterior), masks, strict=True)
    return torch.stack(
        [w * kl_over_bins(prior, *own) for w, own in zip(weights, parts, strict=True)]
    ).sum()
