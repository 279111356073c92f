"""The objective of LFADS: reconstruction, KL, L2 and behaviour, as functions of network and batch.

The mathematics is in ``docs/model.md``. A training run calls these functions for one model, a
population calls the same ones under `torch.func.vmap` for all its members.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .metrics.epoch import EpochScores
from .modules.augmentations import OBSERVED, AugmentationStack, LogFn, with_observed
from .modules.priors import kl_over_bins
from .modules.recons import observed_loss
from .network import Inferred, Network
from .tuples import (
    BatchResult,
    LossTerms,
    Scored,
    ScoredBehavior,
    SessionBatch,
    bins_past,
    lengths_of,
)

Sessions = Mapping[int, SessionBatch]


class Weights(NamedTuple):
    """How the terms are weighed; scales and ramps are tensors, so that members may differ.

    `mean` averages the reconstruction over bins and channels instead of summing it. `trials` are
    the training trials by session; None where all sessions weigh the same.
    """

    loss: float
    kl_ic: Tensor
    kl_co: Tensor
    kl_ramp: Tensor
    l2_ic_enc: Tensor
    l2_ci_enc: Tensor
    l2_gen: Tensor
    l2_con: Tensor
    l2_ramp: Tensor
    mean: bool = True
    trials: Mapping[int, int] | None = None
    behavior: Tensor | None = None
    behavior_ramp: Tensor | float = 1.0


def augment(stack: AugmentationStack, batch: Sessions) -> dict[int, SessionBatch]:
    """Apply augmentations; every mask that the loss needs travels in the batch from here on."""
    return {s: with_observed(stack.process_batch(trials)) for s, trials in batch.items()}


def evaluate(
    network: Network, weights: Weights, batch: Sessions, stack: AugmentationStack, split: str
) -> BatchResult:
    """Compute the objective and the scores of an augmented batch, and keep nothing of it."""
    inferred = network.infer(batch, sample=network.variational)
    logged: dict[str, list[Tensor]] = {}
    terms = elbo(network, weights, batch, inferred, stack, split, partial(_note, logged, split))
    return BatchResult(terms, logged, score(network, weights, batch, inferred, terms))


def elbo(
    network: Network,
    weights: Weights,
    batch: Sessions,
    inferred: Inferred,
    stack: AugmentationStack,
    split: str,
    log_fn: LogFn = lambda *_, **__: None,
) -> LossTerms:
    """Compute the objective term by term; `log_fn` takes what augmentations log."""
    recon = reconstruction(network, weights, batch, inferred, stack, split, log_fn)
    shares = session_shares(weights, batch)
    losses = torch.stack(list(recon.values()))
    mean = losses.mean() if shares is None else (losses * losses.new_tensor(shares)).sum()
    kl_ic, kl_co = kl(network, batch, inferred, shares)
    kl_ic, kl_co = weights.kl_ic * kl_ic, weights.kl_co * kl_co
    l2 = penalty(network, weights)
    behavior = behavior_error(network, batch, inferred) if network.behavior is not None else None
    loss = total(weights, mean, l2, kl_ic + kl_co, behavior)
    none = mean.new_zeros(()) if behavior is None else behavior
    return LossTerms(loss, mean, l2, kl_ic, kl_co, recon, none)


def total(
    weights: Weights, recon: Tensor, l2: Tensor, kl: Tensor, behavior: Tensor | None = None
) -> Tensor:
    """Add up the weighed terms, at the ramps of the current epoch."""
    terms = recon + weights.l2_ramp * l2 + weights.kl_ramp * kl
    if behavior is not None and weights.behavior is not None:
        terms = terms + weights.behavior * weights.behavior_ramp * behavior
    return weights.loss * terms


def behavior_error(network: Network, batch: Sessions, inferred: Inferred) -> Tensor:
    """Compute the mean squared error of standardised behaviour over all that was observed."""
    errors, observed = [], []
    for s, trials in batch.items():
        if trials.behavior is not None:
            error, known = network.behavior.errors(
                inferred.behavior[s], trials.behavior, trials.lengths
            )
            share = 1.0 if trials.share is None else trials.share.mean()  # as in `reconstruction`
            errors.append((error**2).sum() * share)
            observed.append(torch.count_nonzero(known))
    if not errors:
        return next(iter(inferred.behavior.values())).new_zeros(())
    return torch.stack(errors).sum() / torch.stack(observed).sum().clamp_min(1)


def reconstruction(
    network: Network,
    weights: Weights,
    batch: Sessions,
    inferred: Inferred,
    stack: AugmentationStack,
    split: str,
    log_fn: LogFn,
) -> dict[int, Tensor]:
    """Compute each session's mean loss: over observed entries, or over trials of their sums."""
    means = {}
    for s, trials in batch.items():
        observed, params = (trials.masks or {}).get(OBSERVED), inferred.outputs[s].output_params
        loss = observed_loss(network.recon[s], trials.recon_data, observed, params)
        loss = stack.process_losses(loss, trials, log_fn, split)
        if not weights.mean:
            means[s] = loss.sum(dim=(1, 2)).mean()
        elif observed is None or trials.lengths is None:
            # Without lengths, selective backprop has divided by the share of observed entries.
            means[s] = loss.mean()
        else:
            means[s] = loss.sum() / torch.count_nonzero(observed).clamp_min(1)
            if trials.share is not None:
                # An entry of a short trial weighs no more than where lengths are mixed.
                means[s] = means[s] * trials.share.mean()
    return means


def kl(
    network: Network, batch: Sessions, inferred: Inferred, shares: list[float] | None
) -> tuple[Tensor, Tensor]:
    """Compute the KL of initial conditions and of inferred inputs, the latter within trials."""
    encoding, decoding = inferred.encoding, inferred.decoding
    lengths = lengths_of(batch)
    within = None if lengths is None else ~bins_past(lengths, decoding.co_means.shape[1])
    sizes = [trials.encod_data.shape[0] for trials in batch.values()]
    ic, co = (encoding.ic_mean, encoding.ic_std), (decoding.co_means, decoding.co_stds)
    return (
        _mean_kl(network.ic_prior, ic, None, sizes, shares),
        _mean_kl(network.co_prior, co, within, sizes, shares),
    )


def _mean_kl(
    prior: Any,
    posterior: tuple[Tensor, Tensor],
    mask: Tensor | None,
    sizes: list[int],
    shares: list[float] | None,
) -> Tensor:
    """Average the KL over all trials, or the sessions' means by their shares."""
    if shares is None:
        return kl_over_bins(prior, *posterior, mask)
    masks = [None] * len(sizes) if mask is None else mask.split(sizes)
    sessions = zip(*(tensor.split(sizes) for tensor in posterior), masks, strict=True)
    return torch.stack(
        [
            share * kl_over_bins(prior, *session)
            for share, session in zip(shares, sessions, strict=True)
        ]
    ).sum()


def penalty(network: Network, weights: Weights) -> Tensor:
    """Compute the weighted squares of the recurrent weights per penalised entry.

    Observation models add what their `compute_l2` returns.
    """
    encoder, cell = network.encoder, network.decoder.rnn.cell
    groups = [(weights.l2_gen, [cell.gen_cell.weight_hh])]
    if encoder.has_ic:
        groups.insert(0, (weights.l2_ic_enc, [c.weight_hh for c in encoder.ic_enc.cells]))
    if network.use_con:
        groups += [
            (weights.l2_ci_enc, [c.weight_hh for c in encoder.ci_enc.cells]),
            (weights.l2_con, [cell.con_cell.weight_hh]),
        ]
    squares, n_entries = weights.l2_gen.new_zeros(()), weights.l2_gen.new_zeros(())
    for scale, matrices in groups:
        for matrix in matrices:
            squares = squares + scale * 0.5 * (matrix**2).sum()
            # A tensor, not an `if`: whether a scale is 0 may differ between members under vmap.
            n_entries = n_entries + (scale > 0) * matrix.numel()
    l2 = squares / n_entries.clamp_min(1)
    for recon in network.recon:
        if hasattr(recon, "compute_l2"):
            l2 = l2 + recon.compute_l2()
    return l2


def session_shares(weights: Weights, batch: Sessions) -> list[float] | None:
    """Return the shares of a batch's sessions; None where all weigh the same."""
    if weights.trials is None or len(batch) == 1:
        return None
    n_trials = [weights.trials.get(s, b.encod_data.shape[0]) for s, b in batch.items()]
    return [n / sum(n_trials) for n in n_trials]


# ---- scores --------------------------------------------------------------------------------------


@torch.no_grad()
def score(
    network: Network, weights: Weights, batch: Sessions, inferred: Inferred, terms: LossTerms
) -> dict[int, Scored]:
    """Collect what each session's trials are scored by, without gradient."""
    scored = {}
    for s, trials in batch.items():
        recon, params = network.recon[s], inferred.outputs[s].output_params.detach()
        observed = (trials.masks or {}).get(OBSERVED)
        fields: dict[str, Any] = {}
        if getattr(recon, "for_counts", False):
            fields |= {"counts": trials.recon_data, "log_rates": params[..., 0]}
        if trials.truth.numel():
            truth = trials.truth
            if observed is not None:
                truth = torch.where(observed, truth, torch.nan)
            fields |= {"truth": truth, "means": recon.compute_means(params)}
        if observed is not None and weights.mean:
            fields["weight"] = torch.count_nonzero(observed)
        if trials.behavior is not None and network.behavior is not None:
            read = inferred.behavior[s].detach()
            fields["behavior"] = _scored_behavior(network.behavior, read, trials)
        n_trials, n_bins, n_read = trials.encod_data.shape
        loss = terms.session_recon[s].detach()
        if trials.share is not None and weights.mean:
            loss = loss / trials.share.mean()
        scored[s] = Scored(loss, n_trials, (n_bins, n_read), **fields)
    return scored


def _scored_behavior(readout: Any, read: Tensor, trials: SessionBatch) -> ScoredBehavior:
    """Return what the readout of a session's trials is scored by."""
    error, observed = readout.errors(read, trials.behavior, trials.lengths)
    n_observed, read = torch.count_nonzero(observed), read[:, : error.shape[1]]
    return ScoredBehavior(
        target=torch.where(observed, (read - error) * readout.std, torch.nan),
        read=read * readout.std,
        mse=(error**2).sum() / n_observed.clamp_min(1),
        weight=n_observed,
    )


@torch.no_grad()
def count_batch(scores: EpochScores, result: BatchResult) -> None:
    """Add a batch to the scores of an epoch."""
    n_total = sum(session.n_trials for session in result.scored.values())
    for name, values in result.logged.items():
        for value in values:
            scores.terms.add(name, value, n_total)
    terms = result.terms
    scores.add_terms({"wt_l2": terms.l2, "wt_kl/ic": terms.kl_ic, "wt_kl/co": terms.kl_co}, n_total)
    for s, session in result.scored.items():
        weight = session.n_trials if session.weight is None else session.weight
        scores.add_session(s, session.recon, weight)
        if session.log_rates is not None and session.counts is not None:
            n_bins, n_read = session.window
            scores.add_log_rates(s, session.log_rates, session.counts, n_read, n_bins)
        if session.means is not None and session.truth is not None:
            scores.r2.update(session.means, session.truth, key=s)
        readout = session.behavior
        if readout is not None:
            scores.behavior.update(readout.read, readout.target, key=s)
            scores.terms.add("behavior_mse", readout.mse, readout.weight)


def _note(logged: dict[str, list[Tensor]], split: str, name: str, value: Any, **_: Any) -> None:
    """Note what an augmentation logs, without the split in its name."""
    logged.setdefault(name.removeprefix(f"{split}/"), []).append(torch.as_tensor(value).detach())
