"""Observation models against independent formulas, and what they refuse."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributions import Gamma as GammaDistribution
from torch.distributions import Normal
from torch.distributions import Poisson as PoissonDistribution

from lfads_torch.errors import DataError
from lfads_torch.modules import recons
from tests.small import arrays, counts, write

few_examples = settings(max_examples=60, deadline=None, derandomize=True, database=None)
ZIG = {"gamma_loc": 0.1, "scale_init": 20.0, "scale_prior": 10.0, "scale_penalty": 1e-2}


def zig(n_channels: int) -> recons.ZeroInflatedGamma:
    return recons.ZeroInflatedGamma(n_channels, **ZIG)


def make(kind: str, n_channels: int) -> recons.Reconstruction:
    return zig(n_channels) if kind == "ZeroInflatedGamma" else getattr(recons, kind)()


KINDS = ["Poisson", "PoissonBPS", "MSE", "Gaussian", "Gamma", "ZeroInflatedGamma"]


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_are_blocks_of_channels(kind: str) -> None:
    recon = make(kind, 5)
    flat = torch.arange(recon.n_params * 5.0).expand(2, 3, -1)
    params = recon.reshape_output_params(flat)
    assert params.shape == (2, 3, 5, recon.n_params)
    for block in range(recon.n_params):
        assert torch.equal(params[0, 0, :, block], torch.arange(5.0) + 5 * block)


def test_poisson_by_hand() -> None:
    data, p = counts(4, 5, 3, rate=2.0), torch.randn(4, 5, 3, 1)
    loss = recons.Poisson().compute_loss(data, p)
    exact = -PoissonDistribution(p[..., 0].exp()).log_prob(data)
    few = data <= 1
    torch.testing.assert_close(loss[few], exact[few])
    x = data[~few]
    stirling = x * x.log() - x + 0.5 * (2 * math.pi * x).log()
    torch.testing.assert_close(loss[~few], (exact[~few] - torch.lgamma(x + 1)) + stirling)
    torch.testing.assert_close(recons.Poisson().compute_means(p), p[..., 0].exp())


def test_bits_per_spike_as_a_loss() -> None:
    data, p = counts(4, 5, 3), torch.randn(4, 5, 3, 1)
    loss = recons.PoissonBPS().compute_loss(data, p)
    rate = data.mean(dim=(0, 1)).expand_as(data)
    gain = PoissonDistribution(p[..., 0].exp()).log_prob(data) - PoissonDistribution(rate).log_prob(
        data
    )
    torch.testing.assert_close(loss.mean(), -gain.sum() / (data.sum() * math.log(2)))
    at_mean = recons.PoissonBPS().compute_loss(data, rate.log().unsqueeze(-1))
    torch.testing.assert_close(at_mean, torch.zeros_like(data))


def test_bits_per_spike_of_silent_channels_are_finite() -> None:
    data = counts(2, 3, 2)
    data[..., 1] = 0
    for silent in (data, torch.zeros_like(data)):
        assert recons.PoissonBPS().compute_loss(silent, torch.zeros(2, 3, 2, 1)).isfinite().all()


def test_squared_error() -> None:
    data, p = torch.randn(2, 3, 4), torch.randn(2, 3, 4, 1)
    torch.testing.assert_close(recons.MSE().compute_loss(data, p), (data - p[..., 0]) ** 2)
    assert torch.equal(recons.MSE().compute_means(p), p[..., 0])


def test_gaussian() -> None:
    data, p = torch.randn(2, 3, 4), torch.randn(2, 3, 4, 2)
    mean, logvar = p.unbind(-1)
    expected = -Normal(mean, (logvar / 2).exp()).log_prob(data) - 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(recons.Gaussian().compute_loss(data, p), expected)
    assert torch.equal(recons.Gaussian().compute_means(p), mean)


def test_gaussian_variance_has_a_floor_that_it_can_leave() -> None:
    p = torch.tensor([0.0, -50.0]).view(1, 1, 1, 2).requires_grad_()
    loss = recons.Gaussian().compute_loss(torch.full((1, 1, 1), 0.1), p)
    torch.testing.assert_close(loss.item(), 0.5 * (math.log(1e-6) + 0.01 / 1e-6), rtol=1e-4, atol=0)
    loss.sum().backward()
    assert p.grad is not None
    assert p.grad[..., 1] < 0  # a step downhill makes the variance larger


def test_gamma() -> None:
    data, p = 0.05 + torch.rand(2, 3, 4), torch.randn(2, 3, 4, 2)
    alpha, beta = p.exp().unbind(-1)
    expected = -GammaDistribution(alpha, beta).log_prob(data)
    torch.testing.assert_close(recons.Gamma().compute_loss(data, p), expected)
    torch.testing.assert_close(recons.Gamma().compute_means(p), alpha / beta)


def test_zero_inflated_gamma() -> None:
    recon = zig(4)
    with torch.no_grad():
        recon.scale.copy_(torch.rand(2, 4) * 10 + 1)
    data = torch.where(torch.rand(5, 6, 4) < 0.5, 0.0, 0.11 + torch.rand(5, 6, 4))
    p = torch.randn(5, 6, 4, 3)
    s_a, s_b, q = p.sigmoid().unbind(-1)
    events = GammaDistribution(s_a * recon.scale[0], s_b * recon.scale[1])
    shifted = torch.where(data > 0, data - 0.1, 1.0)
    expected = torch.where(data > 0, -q.log() - events.log_prob(shifted), -(1 - q).log())
    torch.testing.assert_close(recon.compute_loss(data, p), expected)
    torch.testing.assert_close(recon.compute_means(p), q * (events.mean + 0.1))
    penalty = 0.5 * 1e-2 * ((recon.scale - 10.0) ** 2).sum()
    torch.testing.assert_close(recon.compute_l2(), penalty)
    assert recons.Poisson().compute_l2() == 0


def test_zero_inflated_gamma_survives_a_scale_below_zero() -> None:
    recon = zig(2)
    with torch.no_grad():
        recon.scale.fill_(-0.5)
    data = torch.tensor([[[0.0, 0.7]]])
    loss = recon.compute_loss(data, torch.zeros(1, 1, 2, 3)).sum() + recon.compute_l2()
    assert loss.isfinite()
    loss.backward()
    assert recon.scale.grad is not None
    assert (recon.scale.grad < 0).all()  # the penalty takes it back up


# ---- never NaN ---------------------------------------------------------------------------------

COUNTS = st.integers(0, 10**6).map(float)
POSITIVE = st.floats(2.0**-100, 1e6, width=32)
EVENTS = st.one_of(st.just(0.0), st.floats(0.125, 1e4, width=32))
ANY = st.floats(-1e6, 1e6, width=32)
LEGAL = {
    "Poisson": COUNTS,
    "PoissonBPS": COUNTS,
    "MSE": ANY,
    "Gaussian": ANY,
    "Gamma": POSITIVE,
    "ZeroInflatedGamma": EVENTS,
}


@pytest.mark.parametrize("kind", KINDS)
@few_examples
@given(data=st.data())
def test_legal_data_never_give_nan(kind: str, data: st.DataObject) -> None:
    """Whatever the read-out says; finite with finite gradients where no rate overflows."""
    x = torch.tensor(data.draw(st.lists(LEGAL[kind], min_size=4, max_size=4))).view(1, 2, 2)
    recon = make(kind, 2)
    wild = st.floats(-1e3, 1e3, width=32)
    tame = st.floats(-80.0, 30.0, width=32)
    for numbers, tamed in ((wild, False), (tame, True)):
        flat = data.draw(
            st.lists(numbers, min_size=4 * recon.n_params, max_size=4 * recon.n_params)
        )
        params = torch.tensor(flat).view(1, 2, 2, -1).requires_grad_()
        loss = recon.compute_loss(x, params)
        assert loss.shape == x.shape
        assert not loss.isnan().any()
        assert not recon.compute_means(params).isnan().any()
        if tamed or "Poisson" not in kind:
            assert loss.isfinite().all()
            loss.sum().backward()
            assert params.grad is not None
            assert params.grad.isfinite().all()


# ---- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "value", "parts"),
    [
        ("Poisson", -1.0, ["whole numbers >= 0", "example -1", "without smoothing"]),
        ("Poisson", 0.5, ["whole numbers >= 0", "example 0.5"]),
        ("PoissonBPS", 1.5, ["PoissonBPS", "whole numbers >= 0"]),
        ("Poisson", math.inf, ["example inf"]),
        ("MSE", math.inf, ["finite numbers"]),
        ("Gaussian", -math.inf, ["finite numbers"]),
        ("Gamma", 0.0, ["numbers > 0", "add a small offset to zeros", "ZeroInflatedGamma"]),
        ("Gamma", -0.5, ["numbers > 0"]),
        ("ZeroInflatedGamma", 0.05, ["gamma_loc = 0.1", "lower gamma_loc"]),
        ("ZeroInflatedGamma", -1.0, ["zeros and numbers > gamma_loc"]),
    ],
)
def test_data_outside_the_support(kind: str, value: float, parts: list[str]) -> None:
    recon = make(kind, 4)
    data = torch.ones(3, 5, 4)
    recon.check_data(data, "day.h5: train_recon_data")
    data[0, 1, 2] = data[2, 2, 2] = data[1, 0, 3] = value
    with pytest.raises(DataError) as caught:
        recon.check_data(data, "day.h5: train_recon_data")
    for part in ["day.h5: train_recon_data: 3 values in channels 2, 3", kind, *parts]:
        assert part in str(caught.value)
    with pytest.raises(DataError, match="data: 3 values"):
        recon.compute_loss(data, torch.zeros(3, 5, 4, recon.n_params))


@pytest.mark.parametrize("kind", KINDS)
def test_nan_is_refused_with_what_takes_it(kind: str) -> None:
    recon = make(kind, 4)
    data = torch.ones(3, 5, 4)
    data[0, 0, 1] = math.nan
    with pytest.raises(DataError, match=r"1 values in channel 1 are NaN.*observed_loss"):
        recon.check_data(data, "day.h5")
    recon.check_data(data, "day.h5", allow_nan=True)
    assert recon.is_legal(torch.tensor(recon.fill_value))
    data[0, 0, 2] = -math.inf
    with pytest.raises(DataError, match="1 values in channel 2 are not legal"):
        recon.check_data(data, "day.h5", allow_nan=True)


def test_many_channels_are_not_all_named() -> None:
    with pytest.raises(DataError, match=r"24 values in channels 0, 1, 2, 3, 4, 5, 6, 7, \.\.\."):
        recons.Poisson().check_data(-torch.ones(1, 2, 12), "day.h5")


# ---- several sessions --------------------------------------------------------------------------


def test_one_observation_model_per_session(tmp_path: Path) -> None:
    pattern = write(tmp_path, arrays(channels=(3, 3)), arrays(channels=(2, 5)))
    several = recons.MultisessionReconstruction(pattern, zig(1))
    assert [tuple(recon.scale.shape) for recon in several] == [(2, 3), (2, 5)]
    assert several[0].gamma_loc == 0.1
    assert [type(r) for r in recons.MultisessionReconstruction(pattern, recons.Gaussian())] == [
        recons.Gaussian
    ] * 2


class Laplace(nn.Module):
    """A user's model without the base class."""

    n_params = 1

    def reshape_output_params(self, output_params: Tensor) -> Tensor:
        return output_params.unsqueeze(-1)

    def compute_loss(self, data: Tensor, output_params: Tensor) -> Tensor:
        return (data - output_params[..., 0]).abs()

    def compute_means(self, output_params: Tensor) -> Tensor:
        return output_params[..., 0]


def test_ones_own_observation_model_is_copied_for_each_session(tmp_path: Path) -> None:
    pattern = write(tmp_path, arrays(), arrays())
    mine: Any = Laplace()
    several = recons.MultisessionReconstruction(pattern, mine)
    assert len({id(recon) for recon in several}) == 2
    assert all(isinstance(recon, Laplace) for recon in several)


def test_reduced_precision_counts_are_counts() -> None:
    recons.Poisson().check_data(torch.from_numpy(np.arange(12.0).reshape(1, 4, 3)), "day.h5")
