"""Scores of one pass over a split, for several members at once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.func import vmap

from ...kernels.likelihood import spike_sums
from ...metrics.accumulate import R2Moments, r2_moments
from ...metrics.epoch import EpochScores


class StackedScores(EpochScores):
    """As `EpochScores`, of batches whose numbers and arrays lead with an axis of members."""

    def __init__(self) -> None:
        super().__init__()
        self._sums: dict[tuple[str, int], Tensor] = {}
        self.r2: Any = _StackedMoments()

    def add_log_rates(
        self, session: int, log_rates: Tensor, counts: Tensor, n_read: int, n_bins_read: int
    ) -> None:
        """Count log rates per bin against spikes, both of shape (c, B, T_r, N_r)."""

        def one(log_rates: Tensor, counts: Tensor) -> dict[str, Tensor]:
            found: dict[str, Tensor] = {}
            batch: Any = EpochScores()
            batch.bits = {name: _Noted(found, name) for name in batch.bits}
            batch.add_log_rates(session, log_rates, counts, n_read, n_bins_read)
            return found

        for name, found in vmap(one)(log_rates, counts).items():
            seen = self._sums.get((name, session))
            self._sums[name, session] = found if seen is None else seen + found

    def members(self, n_members: int) -> Iterable[EpochScores]:
        """Give each member's scores as a model alone would have them."""
        means = {"terms": self.terms.compute(), "sessions": self.sessions.compute()}
        numbers = [
            (kind, name, value.cpu())
            for kind, group in means.items()
            for name, value in group.items()
        ]
        sums = {at: found.cpu() for at, found in self._sums.items()}
        moments = [(s, R2Moments(*(x.cpu() for x in found))) for s, found in self.r2.batches]
        for k in range(n_members):
            own = EpochScores()
            for kind, name, value in numbers:
                getattr(own, kind).add(name, value[k])
            for (name, session), stacked in sums.items():
                own.bits[name].add_sums(stacked[k], session)
            for session, batch in moments:
                own.r2.add_moments(R2Moments(*(x[k] for x in batch)), session)
            yield own


class _Noted:
    """Stands in for `BitsPerSpikeSums`: notes what a batch adds."""

    def __init__(self, found: dict[str, Tensor], name: str) -> None:
        self._found, self._name = found, name

    def update(self, log_rates: Tensor, counts: Tensor, key: int) -> None:
        self._found[self._name] = spike_sums(log_rates, counts)


class _StackedMoments:
    """Stands in for `R2Sums`; moments are merged in the end, batch by batch."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, R2Moments]] = []

    def update(self, means: Tensor, truth: Tensor, key: int) -> None:
        self.batches.append((key, vmap(r2_moments)(means, truth)))
