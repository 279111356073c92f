"""Priors against torch.distributions and the reference numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal, StudentT, kl_divergence

from lfads_torch.errors import ConfigError
from lfads_torch.modules import priors
from tests.golden_utils import assert_close, load_arrays


def posterior(*shape: int) -> tuple[Tensor, Tensor]:
    return torch.randn(*shape), 0.2 + torch.rand(*shape)


def test_normal_prior_is_the_analytic_kl() -> None:
    prior = priors.MultivariateNormal(mean=0.5, variance=0.3, shape=4)
    mean, std = posterior(6, 4)
    reference = Normal(torch.full((4,), 0.5), math.sqrt(0.3))
    expected = kl_divergence(Normal(mean, std), reference).sum(dim=1).mean()
    torch.testing.assert_close(prior(mean, std), expected)
    same = prior(torch.full((1, 4), 0.5), torch.full((1, 4), math.sqrt(0.3)))
    assert same.item() == pytest.approx(0.0, abs=1e-6)


def test_normal_prior_trains_its_mean_alone() -> None:
    prior = priors.MultivariateNormal(mean=0.0, variance=0.1, shape=3)
    assert {n: p.requires_grad for n, p in prior.named_parameters()} == {
        "mean": True,
        "logvar": False,
    }


def ar_density(prior: Any, u: Tensor) -> Tensor:
    """Log density by the joint Gaussian over bins, one process per dimension."""
    n_bins = u.shape[1]
    total = torch.zeros(len(u), dtype=u.dtype)
    pairs = zip(prior.logtaus.tolist(), prior.lognvars.tolist(), strict=True)
    for dim, (logtau, lognvar) in enumerate(pairs):
        a, s2 = math.exp(-1 / math.exp(logtau)), math.exp(lognvar)
        lags = torch.arange(n_bins).view(-1, 1) - torch.arange(n_bins)
        covariance = s2 / (1 - a**2) * a ** lags.abs().to(u.dtype)
        reference = MultivariateNormal(torch.zeros(n_bins, dtype=u.dtype), covariance)
        total = total + reference.log_prob(u[..., dim])
    return total


def test_autoregressive_density_is_the_stationary_process() -> None:
    prior = priors.AutoregressiveMultivariateNormal(tau=4.0, nvar=0.3, shape=3).double()
    with torch.no_grad():
        prior.logtaus.add_(torch.tensor([0.0, 1.0, -1.5]))
        prior.lognvars.add_(torch.tensor([0.0, -1.0, 0.5]))
    u = torch.randn(5, 7, 3, dtype=torch.float64)
    torch.testing.assert_close(prior.log_prob(u), ar_density(prior, u))


def test_autoregressive_density_of_the_reference_numbers() -> None:
    golden = load_arrays("priors")
    prior = priors.AutoregressiveMultivariateNormal(1.0, 1.0, golden["ar_logtaus"].numel()).double()
    prior.load_state_dict({"logtaus": golden["ar_logtaus"], "lognvars": golden["ar_lognvars"]})
    assert_close(
        ar_density(prior, golden["ar_sample"].double()), golden["ar_log_p"], 1e-5, "joint Gaussian"
    )


def test_autoregressive_kl_is_right_on_average() -> None:
    prior = priors.AutoregressiveMultivariateNormal(tau=5.0, nvar=0.5, shape=2)
    mean, std = posterior(1, 6, 2)
    a, s2 = math.exp(-1 / 5), 0.5
    lags = (torch.arange(6).view(-1, 1) - torch.arange(6)).abs()
    covariance = s2 / (1 - a**2) * a**lags
    reference = MultivariateNormal(torch.zeros(6), covariance)
    exact = sum(
        kl_divergence(
            MultivariateNormal(mean[0, :, d], torch.diag(std[0, :, d] ** 2)), reference
        ).item()
        for d in range(2)
    )
    estimate = prior(mean.expand(20000, -1, -1), std.expand(20000, -1, -1)).item()
    assert estimate == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize("tau", [1e-3, 1e6])
def test_autoregressive_prior_of_extreme_times_stays_finite(tau: float) -> None:
    prior = priors.AutoregressiveMultivariateNormal(tau=tau, nvar=0.1, shape=2)
    kl = prior(*posterior(3, 10, 2))
    kl.backward()
    assert kl.isfinite()
    for parameter in prior.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()


def test_student_prior_starts_from_its_own_arguments() -> None:
    prior = priors.MultivariateStudentT(loc=0.7, scale=2.0, df=4.0, shape=3)
    torch.testing.assert_close(prior.loc.data, torch.full((3,), 0.7))
    torch.testing.assert_close(prior.logscale.exp().data, torch.full((3,), 2.0))
    assert all(parameter.requires_grad for parameter in prior.parameters())


def test_student_kl_at_one_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    prior = priors.MultivariateStudentT(loc=0.7, scale=2.0, df=4.0, shape=3)
    mean, std = posterior(5, 6, 3)
    noise = torch.randn(5, 6, 3)
    monkeypatch.setattr(torch, "randn_like", lambda *_, **__: noise)
    sample = mean + std * noise
    log_q = Independent(Normal(mean, std), 2).log_prob(sample)
    log_p = Independent(StudentT(4.0, torch.full((5, 6, 3), 0.7), 2.0), 2).log_prob(sample)
    torch.testing.assert_close(prior(mean, std), (log_q - log_p).mean())


@pytest.mark.parametrize(
    "prior",
    [
        priors.Null(),
        priors.MultivariateNormal(0.0, 0.1, 4),
        priors.AutoregressiveMultivariateNormal(10.0, 0.1, 4),
        priors.MultivariateStudentT(0.0, 1.0, 5.0, 4),
    ],
    ids=lambda prior: type(prior).__name__,
)
def test_posteriors_are_the_gaussians_asked_for(prior: Any) -> None:
    mean, std = posterior(6, 4)
    made = prior.make_posterior(mean, std)
    assert torch.equal(made.mean, mean)
    torch.testing.assert_close(made.stddev, std)
    x = torch.randn(6, 4)
    torch.testing.assert_close(made.log_prob(x), Normal(mean, std).log_prob(x).sum(dim=1))
    mean.requires_grad_()
    prior.make_posterior(mean, std).rsample((2,)).sum().backward()
    assert torch.equal(mean.grad, torch.full((6, 4), 2.0))  # type: ignore[arg-type]


def test_no_prior_costs_nothing() -> None:
    assert priors.Null()(*posterior(3, 4)) == 0


@pytest.mark.parametrize(
    "prior",
    [
        priors.AutoregressiveMultivariateNormal(10.0, 0.1, 4),
        priors.MultivariateStudentT(0.0, 1.0, 5.0, 4),
    ],
    ids=lambda prior: type(prior).__name__,
)
def test_sampled_kls_pass_gradients_to_posterior_and_prior(prior: Any) -> None:
    mean, std = (x.requires_grad_() for x in posterior(3, 6, 4))
    prior(mean, std).backward()
    for tensor in (mean, std, *prior.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
        assert tensor.grad.abs().sum() > 0
    first, second = prior(mean, std), prior(mean, std)
    assert first != second  # drawn anew at every call


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (
            "MultivariateNormal",
            (0.0, 0.0, 4),
            "variance of the prior is 0.0; legal are numbers > 0",
        ),
        ("AutoregressiveMultivariateNormal", (-1.0, 0.1, 4), "tau of the prior is -1.0"),
        ("AutoregressiveMultivariateNormal", (10.0, 0.0, 4), "nvar of the prior is 0.0"),
        ("MultivariateStudentT", (0.0, 1.0, 0.0, 4), "df of the prior is 0.0"),
        (
            "MultivariateStudentT",
            (0.0, 1.0, 5.0, 1.5),
            "shape of the prior is 1.5; legal are whole",
        ),
    ],
)
def test_numbers_that_no_prior_can_have(
    kind: str, arguments: tuple[Any, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        getattr(priors, kind)(*arguments)
