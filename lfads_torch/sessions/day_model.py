"""A trained model whose maps of a new day are trained without labels; all else is frozen.

The objective has a term for how far the generator's states of the new day are from those of day 0,
and the likelihood of the new day's data (the idea of Karpowicz et al. 2025,
doi:10.1038/s41467-025-59652-y).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..checkpoint import load_model, load_weights, read_checkpoint
from ..datamodules import BasicDataModule
from ..datamodules.loaders import OrderedLoader
from ..errors import number, one_of
from ..model import LFADS
from ..objective import Weights, augment, count_batch, reconstruction, score
from ..tuples import BatchResult, LossTerms, SessionBatch, bins_past
from .moments import (
    MMD_STATES,
    Whitening,
    coral_distance,
    kl_divergence,
    mmd_distance,
    moments_of,
    shrunk,
    spaced,
)

DIVERGENCES = ("kl", "coral", "mmd")
STATES = ("gen_states", "factors")
DIVERGENCE, NLL, CRITERION = "align/divergence", "align/nll", "align/criterion"
"""Names in the log, after the split."""
REFERENCE = "alignment_reference"
"""Key of a start's checkpoint that holds what day 0's states are like."""
_PENALTY = 1e-4  # of the squares of the aligner's matrices
_VALID_WINDOWS = 1024


class Reference(NamedTuple):
    """The states of day 0: their whitening, some of them whitened (m, q), eigenvalues (q,)."""

    whitening: Whitening
    states: Tensor
    spectrum: Tensor


class DayAlignment(LFADS):
    """LFADS that is trained so that the states of a new day are distributed as those of day 0.

    The posterior means are inferred, without dropout. In a split's log ``recon`` is what is
    minimised but for the L2 of the aligner; of validation it is the criterion, divergence plus
    weighted likelihood without its ramp.
    """

    white_mean: Tensor
    white_matrix: Tensor
    white_states: Tensor

    def prepare(
        self,
        reference: Reference,
        divergence: str,
        states: str,
        weight_moments: float,
        weight_nll: float,
    ) -> None:
        """Take what day 0 is like, and how the terms are weighed."""
        self.divergence = one_of("divergence", divergence, DIVERGENCES)
        self.states = one_of("states", states, STATES)
        self.weight_moments = number("weight_moments", weight_moments, least=0)
        self.weight_nll = number("weight_nll", weight_nll, least=0)
        # Not persistent: a checkpoint keeps the keys of the model alone.
        for name, tensor in (
            ("white_mean", reference.whitening.mean),
            ("white_matrix", reference.whitening.matrix),
            ("white_states", reference.states),
        ):
            self.register_buffer(name, tensor.clone(), persistent=False)

    @property
    def weights(self) -> Weights:
        """How the terms add up: as they come, the ramp being in the objective."""
        one = torch.ones_like(self.l2_ramp)
        return super().weights._replace(
            loss=1.0, mean=True, l2_ramp=one, trials=None, behavior=None
        )

    def check_data(self, data: Any) -> None:
        """Check that the data fit; behaviour is not read, though a readout of it may be there."""
        check_without_behavior(self, data)

    def _shared_step(self, batch: Any, batch_idx: int, split: str) -> Tensor:
        # Not that of `LFADS`, which refuses to train a readout of behaviour without behaviour.
        result = self.evaluated(self._sessions(batch), split)
        count_batch(self.scores[split], result)
        return result.terms.total

    def evaluated(self, batch: Mapping[int, SessionBatch], split: str) -> BatchResult:
        """Augment a batch and compute the objective of the alignment and the scores."""
        stack, weights, given = self.aug_stack(split), self.weights, batch
        batch = augment(stack, batch)
        inferred = self.infer(batch, sample=False)
        decoding = inferred.decoding
        if split == "train":
            # States of what was dropped out would be noisier than day 0's, which are compared as
            # they are inferred; the aligner would learn to take that noise out.
            clean = augment(self.infer_aug_stack, given)
            ext_input = next(iter(clean.values())).ext_input
            decoding = self.decode(self.encode(clean), ext_input, sample=False)
        [(number_, trials)] = batch.items()
        logged: dict[str, list[Tensor]] = {}

        def log(name: str, value: Any, **_: Any) -> None:
            logged.setdefault(name.removeprefix(f"{split}/"), []).append(value.detach())

        nll = reconstruction(self, weights, batch, inferred, stack, split, log)[number_]
        states = getattr(decoding, self.states)
        within = None
        if trials.lengths is not None:
            within = (~bins_past(trials.lengths, states.shape[1])).to(states.dtype)
        distance = self.distance(states, within)
        criterion = distance + self.weight_nll * nll
        for name, value in ((DIVERGENCE, distance), (NLL, nll), (CRITERION, criterion)):
            log(name, value)
        recon = criterion
        if split == "train":
            recon = self.weight_moments * distance + self.kl_ramp * self.weight_nll * nll
        readin: Any = self.readin[number_]
        l2, none = _PENALTY * readin.aligner.penalty(), torch.zeros_like(recon)
        terms = LossTerms(recon + l2, recon, l2, none, none, {number_: recon}, none)
        return BatchResult(terms, logged, score(self, weights, batch, inferred, terms))

    def distance(self, states: Tensor, within: Tensor | None = None) -> Tensor:
        """Return how far states (B, T, G) are from day 0's; `within` (B, T) is 0 where none are."""
        z = Whitening(self.white_mean, self.white_matrix)(states)
        if self.divergence == "mmd":
            rows = torch.from_numpy(spaced(math.prod(z.shape[:-1]), MMD_STATES)).to(z.device)
            weight = None if within is None else within.flatten()[rows]
            return mmd_distance(z.flatten(0, 1)[rows], self.white_states, weight)
        mean, covariance = moments_of(z, within)
        measure = kl_divergence if self.divergence == "kl" else coral_distance
        return measure(mean, shrunk(covariance))

    def _dropout(self) -> None:
        """Leave out the dropout: the states of day 0 are compared without it."""


class DayData(BasicDataModule):
    """`BasicDataModule` that validates on large batches: moments of few windows are noise."""

    def val_dataloader(self) -> OrderedLoader:
        """Each validation window once, all in one batch where there are not thousands."""
        [number_] = self.fit_numbers()
        n_valid = self.sizes[number_].n_valid
        n_batches = math.ceil(n_valid / _VALID_WINDOWS)
        share = math.ceil(n_valid / n_batches)
        return self.split_loader("valid", batch_size=share, session=[number_])


def check_without_behavior(model: LFADS, data: Any) -> None:
    """Check that data without behaviour fit a model, which may read behaviour out."""
    readout, model.behavior = model.behavior, None
    try:
        LFADS.check_data(model, data)
    finally:
        model.behavior = readout


def alignment_model(
    path: str | Path,
    divergence: str = "coral",
    states: str = "gen_states",
    weight_moments: float = 1.0,
    weight_nll: float = 10.0,
) -> DayAlignment:
    """Load what a start's checkpoint holds as a model that trains an alignment."""
    start = load_model(path)
    model = DayAlignment(**{**start.hparams, **start.parts()})
    load_weights(model, start.state_dict(), path)
    trained = {name for name, p in start.named_parameters() if p.requires_grad}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    model.session_names = list(start.session_names)
    reference = load_reference(Path(path))
    model.prepare(reference, divergence, states, weight_moments, weight_nll)
    return model


def reference_state(reference: Reference) -> dict[str, Tensor]:
    """Return a reference as tensors for a checkpoint."""
    (mean, matrix), states, spectrum = reference
    return {"mean": mean, "matrix": matrix, "states": states, "spectrum": spectrum}


def load_reference(path: Path) -> Reference:
    """Read the reference from the checkpoint of a start."""
    state = read_checkpoint(path)[REFERENCE]
    return Reference(Whitening(state["mean"], state["matrix"]), state["states"], state["spectrum"])
