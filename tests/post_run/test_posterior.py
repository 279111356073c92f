"""KL by dimension against the priors' own estimates."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lfads_torch.modules.priors import (
    AutoregressiveMultivariateNormal,
    MultivariateNormal,
    MultivariateStudentT,
    Null,
)
from lfads_torch.post_run.posterior import active_share, kl_by_dimension


def posterior(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape), rng.uniform(0.1, 0.8, size=shape)


def estimate(prior, mean, std, n=4000):
    """The prior's own KL term, averaged over its samples."""
    torch.manual_seed(0)
    args = (torch.from_numpy(np.repeat(mean, n, axis=0)), torch.from_numpy(np.repeat(std, n, 0)))
    with torch.no_grad():
        return prior(*args).item()


def test_gaussian_by_hand():
    prior = MultivariateNormal(mean=0.5, variance=2.0, shape=1)
    found = kl_by_dimension(prior, [[1.5]], [[1.0]])
    assert np.isclose(found, 0.5 * (np.log(2) - 1 + (1 + 1) / 2))
    assert np.allclose(kl_by_dimension(prior, [[0.5]], [[2**0.5]]), 0)


@pytest.mark.parametrize(
    "prior",
    [
        AutoregressiveMultivariateNormal(tau=5.0, nvar=0.2, shape=3),
        MultivariateStudentT(loc=0.2, scale=0.5, df=4, shape=3),
    ],
)
def test_sums_to_the_models_own_term(prior):
    mean, std = posterior(2, 6, 3)
    found = kl_by_dimension(prior, mean, std)
    assert found.shape == mean.shape
    assert np.isclose(found.sum(axis=(1, 2)).mean(), estimate(prior, mean, std), rtol=0.02)


def test_gaussian_sums_to_the_models_own_term_exactly():
    mean, std = posterior(5, 4)
    prior = MultivariateNormal(mean=0.1, variance=0.3, shape=4)
    found = kl_by_dimension(prior, mean, std)
    args = torch.from_numpy(mean), torch.from_numpy(std)
    assert np.isclose(found.sum(axis=1).mean(), prior(*args).item())


def test_priors_that_say_nothing():
    assert kl_by_dimension(Null(), *posterior(2, 3)) is None
    assert kl_by_dimension(object(), *posterior(2, 3)) is None


@settings(max_examples=30, deadline=None)
@given(scale=st.floats(0.01, 100), seed=st.integers(0, 50))
def test_active_share_is_free_of_units(scale, seed):
    mean, std = posterior(6, 5, 3, seed=seed)
    share = active_share(mean, std)
    assert ((share >= 0) & (share <= 1)).all()
    assert np.allclose(active_share(scale * mean + 1, scale * std), share)


def test_active_share_by_hand_and_without_values():
    mean = np.array([[0.0, 3.0, np.nan], [2.0, 3.0, np.nan]])
    std = np.ones((2, 3))
    assert np.allclose(active_share(mean, std)[:2], [0.5, 0.0])
    assert np.isnan(active_share(mean, std)[2])
    assert active_share(np.zeros((2, 1)), np.zeros((2, 1))) == 0
