"""The scores of one pass over a split, exact whatever the sizes of its batches."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .accumulate import BitsPerSpikeSums, R2Sums, WeightedMeans


class EpochScores:
    """Accumulates loss terms by trials and the bits-per-spike family and R2 by sums.

    Bits per spike are kept for the bins and channels that the encoder read (``bps``), the held-out
    channels within those bins (``co_bps``) and the bins past them (``fp_bps``).
    """

    def __init__(self) -> None:
        self.terms = WeightedMeans()
        self.sessions = WeightedMeans()
        self.bits = {name: BitsPerSpikeSums() for name in ("bps", "co_bps", "fp_bps")}
        self.r2 = R2Sums()

    def reset(self) -> None:
        """Forget everything seen."""
        self.terms.reset()
        self.sessions.reset()
        self.r2.reset()
        for bits in self.bits.values():
            bits.reset()

    def add_terms(self, terms: Mapping[str, Tensor], n_trials: int) -> None:
        """Count a batch's loss terms, weighted by its trials."""
        for name, value in terms.items():
            self.terms.add(name, value, n_trials)

    def add_session(self, session: int, recon: Tensor, weight: Tensor | int) -> None:
        """Count the mean loss of one session's trials; `weight`: trials, or observed entries."""
        self.sessions.add(f"recon/sess{session}", recon, weight)

    def add_log_rates(
        self, session: int, log_rates: Tensor, counts: Tensor, n_read: int, n_bins_read: int
    ) -> None:
        """Count log rates per bin against spikes, both of shape (B, T_r, N_r)."""
        within, channels = slice(n_bins_read), slice(n_read)
        parts = {
            "bps": (within, channels),
            "co_bps": (within, slice(n_read, None)),
            "fp_bps": (slice(n_bins_read, None), slice(None)),
        }
        for name, (bins, chans) in parts.items():
            part = counts[:, bins, chans]
            if part.numel():
                self.bits[name].update(log_rates[:, bins, chans], part, key=session)

    def compute(self, trials: Mapping[int, int] | None = None) -> dict[str, Tensor]:
        """Return every score that has anything to go by.

        ``recon`` is the mean over sessions, each weighing by its number in `trials` where given.
        """
        scores = self.terms.compute()
        sessions = self.sessions.compute()
        if sessions:
            names = [int(name.removeprefix("recon/sess")) for name in sessions]
            losses = torch.stack(list(sessions.values()))
            shares = losses.new_tensor([(trials or {}).get(number, 1.0) for number in names])
            scores["recon"] = (losses * shares).sum() / shares.sum()
        scores.update(sessions)
        for name, sums in self.bits.items():
            if sums:
                scores[name] = sums.compute()
        if self.r2:
            scores["r2"] = self.r2.compute()
        return scores
