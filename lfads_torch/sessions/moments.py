"""How far the states of one day are from those of another: moments, whitening, divergences.

Source of the distances: Sun & Saenko 2016 (CORAL, doi:10.1007/978-3-319-49409-8_35) and Gretton et
al. 2012 (MMD, JMLR 13:723); matching states between days is the idea of Karpowicz et al. 2025
(doi:10.1038/s41467-025-59652-y).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]

SHARE = 0.99
"""Share of the trace of day 0's covariance that whitening keeps."""
SHRINKAGE = 0.05
"""Weight of a multiple of the identity in the covariance of a batch."""
MMD_WIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
MMD_STATES = 1024
"""States of each day that the kernel compares."""


class StateMoments:
    """Mean and covariance of states that come batch by batch, in float64."""

    def __init__(self) -> None:
        self.n = 0
        self.mean: Array = np.zeros(0)
        self._scatter: Array = np.zeros((0, 0))

    def add(self, states: Array) -> None:
        """Count states (n, G)."""
        if not len(states):
            return
        new = np.asarray(states, dtype=np.float64)
        mean = new.mean(axis=0)
        # About its mean: the difference of large sums would lose digits.
        scatter = (new - mean).T @ (new - mean)
        if not self.n:
            self.n, self.mean, self._scatter = len(new), mean, scatter
            return
        total, shift = self.n + len(new), mean - self.mean
        self._scatter += scatter + np.outer(shift, shift) * (self.n * len(new) / total)
        self.mean = self.mean + shift * (len(new) / total)
        self.n = total

    @property
    def covariance(self) -> Array:
        """The covariance (G, G), divided by the number of states."""
        return self._scatter / max(self.n, 1)


class Whitening(NamedTuple):
    """Map under which the states of day 0 have mean 0 and covariance 1: z = matrix (g - mean)."""

    mean: Tensor  # (G,)
    matrix: Tensor  # (q, G)

    def __call__(self, states: Float[Tensor, "... G"]) -> Float[Tensor, "... q"]:
        """Whiten states."""
        return (states - self.mean) @ self.matrix.T


def whitening(mean: Array, covariance: Array, share: float = SHARE) -> Whitening:
    """Return the map onto the leading eigenvectors that hold a share of the trace, scaled to 1."""
    values, vectors = np.linalg.eigh(covariance)
    values, vectors = values[::-1], vectors[:, ::-1]
    held = np.cumsum(values) / values.sum()
    q = int(np.searchsorted(held, share * (1 - 1e-12))) + 1
    matrix = (vectors[:, :q] / np.sqrt(values[:q])).T
    tensors = (torch.from_numpy(np.ascontiguousarray(a, np.float32)) for a in (mean, matrix))
    return Whitening(*tensors)


def moments_of(
    z: Float[Tensor, "... q"], weight: Tensor | None = None
) -> tuple[Float[Tensor, " q"], Float[Tensor, "q q"]]:
    """Return mean and covariance of states; those of `weight` (...) 0 do not count."""
    z = z.reshape(-1, z.shape[-1])
    share = z.new_ones(len(z)) if weight is None else weight.reshape(-1)
    share = (share / share.sum()).unsqueeze(1)
    mean = (share * z).sum(dim=0)
    centred = z - mean
    return mean, (share * centred).T @ centred


def shrunk(covariance: Float[Tensor, "q q"], rho: float = SHRINKAGE) -> Float[Tensor, "q q"]:
    """Pull a covariance towards a multiple of the identity of the same trace."""
    q = covariance.shape[-1]
    eye = torch.eye(q, dtype=covariance.dtype, device=covariance.device)
    return (1 - rho) * covariance + rho * covariance.diagonal().sum() / q * eye


def kl_divergence(mean: Float[Tensor, " q"], covariance: Float[Tensor, "q q"]) -> Tensor:
    """Return the KL divergence of N(mean, covariance) from N(0, 1)."""
    q = len(mean)
    # Not by Cholesky, which raises where a member of a population has diverged.
    log_det = torch.linalg.slogdet(covariance).logabsdet
    return 0.5 * (covariance.diagonal().sum() + (mean**2).sum() - q - log_det)


def coral_distance(mean: Float[Tensor, " q"], covariance: Float[Tensor, "q q"]) -> Tensor:
    """Return the squared distance of both moments from 0 and 1: CORAL, and the mean's square."""
    q = len(mean)
    eye = torch.eye(q, dtype=covariance.dtype, device=covariance.device)
    return ((covariance - eye) ** 2).sum() / (4 * q**2) + (mean**2).sum() / q


def mmd_distance(
    z: Float[Tensor, "n q"], reference: Float[Tensor, "m q"], weight: Tensor | None = None
) -> Tensor:
    """Return the squared maximum mean discrepancy of two sets of states, a V-statistic.

    States of `weight` (n,) 0 do not count.
    """
    share = z.new_ones(len(z)) if weight is None else weight
    share, even = share / share.sum(), z.new_full((len(reference),), 1 / len(reference))

    def mean_kernel(a: Tensor, w_a: Tensor, b: Tensor, w_b: Tensor) -> Tensor:
        square = (a**2).sum(1).unsqueeze(1) + (b**2).sum(1) - 2 * a @ b.T
        scaled = square.clamp_min(0) / (2 * a.shape[1])
        kernel = torch.stack([torch.exp(-scaled / width) for width in MMD_WIDTHS]).mean(0)
        return w_a @ kernel @ w_b

    both = mean_kernel(z, share, z, share) + mean_kernel(reference, even, reference, even)
    return both - 2 * mean_kernel(z, share, reference, even)


def spaced(n: int, count: int = MMD_STATES) -> NDArray[np.int64]:
    """Return up to `count` of n positions, evenly spaced."""
    return np.unique(np.linspace(0, n - 1, min(n, count)).round().astype(np.int64))
