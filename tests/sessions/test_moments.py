"""Distances between the states of two days, against torch.distributions and plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from lfads_torch.sessions.moments import (
    MMD_WIDTHS,
    StateMoments,
    coral_distance,
    mmd_distance,
    moments_of,
    shrunk,
    spaced,
    whitening,
)
from lfads_torch.sessions.moments import kl_divergence as our_divergence


@pytest.fixture
def states() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.normal(size=(500, 7)) @ rng.normal(size=(7, 7)) + 30.0


def test_kl_is_that_of_torch(states: np.ndarray) -> None:
    mean, covariance = moments_of(torch.from_numpy((states[:, :4] - 29.5) / 3))
    theirs = kl_divergence(
        MultivariateNormal(mean, covariance),
        MultivariateNormal(torch.zeros(4).double(), torch.eye(4).double()),
    )
    assert our_divergence(mean, covariance).item() == pytest.approx(theirs.item(), abs=1e-6)
    assert our_divergence(torch.zeros(4), torch.eye(4)).item() == pytest.approx(0, abs=1e-6)


def test_coral_and_mmd_against_plain_loops() -> None:
    rng = np.random.default_rng(1)
    z, other = rng.normal(size=(9, 3)) + 0.4, rng.normal(size=(11, 3))
    mean, covariance = z.mean(axis=0), np.cov(z.T, bias=True)
    q = 3
    coral = sum(
        (covariance[i, j] - (i == j)) ** 2 / (4 * q * q) for i in range(q) for j in range(q)
    )
    coral += sum(m * m for m in mean) / q
    moments = moments_of(torch.from_numpy(z))
    assert coral_distance(*moments).item() == pytest.approx(coral, abs=1e-12)

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        square = sum((x - y) ** 2 for x, y in zip(a, b, strict=True))
        return float(np.mean([np.exp(-square / (2 * width * q)) for width in MMD_WIDTHS]))

    def mean_kernel(one: np.ndarray, two: np.ndarray) -> float:
        return float(np.mean([kernel(a, b) for a in one for b in two]))

    mmd = mean_kernel(z, z) + mean_kernel(other, other) - 2 * mean_kernel(z, other)
    ours = mmd_distance(torch.from_numpy(z), torch.from_numpy(other))
    assert ours.item() == pytest.approx(mmd, abs=1e-12)
    same = mmd_distance(torch.from_numpy(z), torch.from_numpy(z))
    assert same.item() == pytest.approx(0, abs=1e-12)


def test_streamed_moments_are_those_of_all_at_once(states: np.ndarray) -> None:
    moments = StateMoments()
    for block in (states[:1], states[1:77], states[77:77], states[77:]):
        moments.add(block.astype(np.float64))
    assert moments.n == 500
    np.testing.assert_allclose(moments.mean, states.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(moments.covariance, np.cov(states.T, bias=True), rtol=1e-9)


def test_whitened_states_of_day_0_are_standard(states: np.ndarray) -> None:
    covariance = np.cov(states.T, bias=True)
    white = whitening(states.mean(axis=0), covariance)
    values = np.sort(np.linalg.eigvalsh(covariance))[::-1]
    share = np.cumsum(values) / values.sum()
    q = len(white.matrix)
    assert share[q - 1] >= 0.99 and (q == 1 or share[q - 2] < 0.99)
    assert len(whitening(states.mean(axis=0), covariance, 1.0).matrix) == 7
    mean, after = moments_of(white(torch.from_numpy(states).float()))
    np.testing.assert_allclose(mean.numpy(), np.zeros(q), atol=1e-4)
    np.testing.assert_allclose(after.numpy(), np.eye(q), atol=1e-3)


def test_shrinkage_keeps_the_trace_and_missing_states_do_not_count(states: np.ndarray) -> None:
    z = torch.from_numpy(states).view(50, 10, 7)
    weight = torch.ones(50, 10).double()
    weight[:, 6:] = 0
    mean, covariance = moments_of(z, weight)
    kept = states.reshape(50, 10, 7)[:, :6].reshape(-1, 7)
    np.testing.assert_allclose(mean.numpy(), kept.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(covariance.numpy(), np.cov(kept.T, bias=True), rtol=1e-8)
    pulled = shrunk(covariance)
    assert pulled.trace().item() == pytest.approx(covariance.trace().item())
    assert pulled[0, 1].item() == pytest.approx(0.95 * covariance[0, 1].item())


def test_states_are_evenly_spaced() -> None:
    assert spaced(5).tolist() == [0, 1, 2, 3, 4]
    chosen = spaced(10_000)
    assert len(chosen) == 1024 and chosen[0] == 0 and chosen[-1] == 9999
    assert np.diff(chosen).min() >= 9
