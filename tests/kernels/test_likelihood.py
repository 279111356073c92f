"""The Poisson loss and the sums behind bits per spike, in C and in torch, against float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad, vmap

from lfads_torch.kernels import c_library
from lfads_torch.kernels.likelihood import poisson_loss, spike_sums

few_examples = settings(max_examples=25, deadline=None, derandomize=True, database=None)
size = st.integers(1, 40)


@pytest.fixture(params=["native", "torch"])
def made_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "native" and c_library.why_not():
        pytest.skip(f"native kernels: {c_library.why_not()}")
    if request.param == "torch":
        monkeypatch.setattr(c_library, "fits", lambda _: False)
    return str(request.param)


def exact_loss(log_rates: Tensor, counts: Tensor) -> Tensor:
    """Element by element, in float64."""
    out = torch.empty(counts.shape, dtype=torch.float64)
    for i, (rate, x) in enumerate(zip(log_rates.flatten(), counts.flatten(), strict=True)):
        log_factorial = x * math.log(x) - x + 0.5 * math.log(2 * math.pi * x) if x > 1 else 0.0
        out.view(-1)[i] = math.exp(rate) - x * rate + log_factorial
    return out


def spikes(*shape: int, rate: float = 1.0) -> Tensor:
    return torch.poisson(torch.full(shape, rate))


def test_loss_of_known_counts(made_by: str) -> None:
    counts = torch.tensor([0.0, 1.0, 2.0, 3.0, 20.0, 63.0, 64.0, 1000.0, 2.5])
    log_rates = torch.linspace(-30, 6, len(counts))
    got = poisson_loss(log_rates, counts)
    torch.testing.assert_close(
        got.double(), exact_loss(log_rates.double(), counts), rtol=1e-6, atol=1e-6
    )


@given(size, size, st.integers(0, 2**31), st.sampled_from([0.1, 3.0]))
@few_examples
def test_loss_and_gradient_of_any_size(n: int, m: int, seed: int, rate: float) -> None:
    torch.manual_seed(seed)
    log_rates, counts = torch.randn(n, m).requires_grad_(), spikes(n, m, rate=rate)
    loss = poisson_loss(log_rates, counts)
    torch.testing.assert_close(
        loss.detach().double(),
        exact_loss(log_rates.detach().double(), counts),
        rtol=1e-5,
        atol=1e-6,
    )
    weights = torch.randn(n, m)
    for outside in (weights, torch.tensor(0.25).expand(n, m)):  # full, and one number for all
        (got,) = torch.autograd.grad(loss, log_rates, outside, retain_graph=True)
        exact = outside.double() * (log_rates.detach().double().exp() - counts)
        torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=1e-6)


def test_gradients_of_both_orders(made_by: str) -> None:
    log_rates = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    counts = spikes(3, 4).double()
    assert torch.autograd.gradcheck(lambda x: poisson_loss(x, counts), log_rates)
    assert torch.autograd.gradgradcheck(lambda x: poisson_loss(x, counts), log_rates)


def test_overflow_is_infinite_and_nan_stays(made_by: str) -> None:
    loss = poisson_loss(torch.tensor([89.0, math.nan, -200.0]), torch.zeros(3))
    assert loss[0] == math.inf
    assert loss[1].isnan()
    assert loss[2] < 1e-30


def test_mapped(made_by: str) -> None:
    log_rates, counts = torch.randn(3, 5, 4, 6), spikes(5, 4, 6)

    def loss(x: Tensor) -> Tensor:
        return (poisson_loss(x, counts) ** 2).sum()

    torch.testing.assert_close(
        vmap(grad(loss))(log_rates), torch.stack([grad(loss)(x) for x in log_rates])
    )
    sums = vmap(spike_sums, (0, None))(log_rates, counts)
    torch.testing.assert_close(sums, torch.stack([spike_sums(x, counts) for x in log_rates]))


def test_sums(made_by: str) -> None:
    """Of slices, which are not contiguous; NaN counts are left out."""
    log_rates, counts = torch.randn(7, 9, 11)[:, 2:, 1:8], spikes(7, 9, 11)[:, 2:, 1:8]
    for missing in (False, True):
        if missing:
            counts = counts.clone()
            counts[2, 3, 4] = counts[:, :, 0] = math.nan
        seen = ~counts.isnan()
        nll = log_rates.double().exp() - counts.nan_to_num() * log_rates.double()
        expected = [seen.double(), counts.nan_to_num().double(), nll * seen]
        got = spike_sums(log_rates, counts)
        assert got.dtype == torch.float64
        torch.testing.assert_close(
            got, torch.stack([x.sum(dim=(0, 1)) for x in expected]), rtol=1e-5, atol=1e-5
        )


def test_a_rate_of_zero_is_legal_where_there_is_no_spike(made_by: str) -> None:
    log_rates, counts = torch.zeros(2, 3, 4), torch.zeros(2, 3, 4)
    log_rates[0, 0, 0] = -math.inf
    assert spike_sums(log_rates, counts)[2].tolist() == [5, 6, 6, 6]
