"""The scores of one pass over a split, exact whatever the sizes of its batches."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from .accumulate import BitsPerSpikeSums, R2Sums, WeightedMeans, regions

BITS = ("bps", "co_bps", "fp_bps")
"""The bits-per-spike family, in the order of `regions`."""


class EpochScores:
    """Accumulates loss terms by trials, and the bits-per-spike family and R2s by sums.

    Bits per spike are kept for the bins and channels that the encoder read (``bps``), the held-out
    channels within those bins (``co_bps``) and the bins past them (``fp_bps``).
    """

    def __init__(self) -> None:
        self.terms = WeightedMeans()
        self.sessions = WeightedMeans()
        self.bits = {name: BitsPerSpikeSums() for name in BITS}
        self.r2 = R2Sums()
        self.behavior = R2Sums()

    def reset(self) -> None:
        """Forget everything seen."""
        self.terms.reset()
        self.sessions.reset()
        self.r2.reset()
        self.behavior.reset()
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
        for sums, (bins, channels) in zip(
            self.bits.values(), regions(n_read, n_bins_read), strict=True
        ):
            part = counts[:, bins, channels]
            if part.numel():
                sums.update(log_rates[:, bins, channels], part, key=session)

    def compute(self, trials: Mapping[int, int] | None = None) -> dict[str, Tensor]:
        """Return every score; NaN where it has no meaning for the data.

        ``recon`` is the mean over sessions, each weighing by its number in `trials` where given.
        Bits per spike stop at -1, so that the first epochs do not flatten every curve.
        """
        scores = self.terms.compute()
        sessions = self.sessions.compute()
        if sessions:
            names = [int(name.removeprefix("recon/sess")) for name in sessions]
            losses = torch.stack(list(sessions.values()))
            shares = losses.new_tensor([(trials or {}).get(number, 1.0) for number in names])
            scores["recon"] = (losses * shares).sum() / shares.sum()
        scores.update(sessions)
        # Always under their names, because a monitor that names one must find it.
        none = torch.tensor(math.nan)
        for name, sums in self.bits.items():
            scores[name] = sums.compute().clamp_min(-1) if sums else none
        scores["r2"] = self.r2.compute() if self.r2 else none
        if self.behavior:
            scores["behavior_r2"] = self.behavior.weighted()
        return scores
