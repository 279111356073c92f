"""The plain oracle reproduces every reference file, so that other tests may rely on it."""

from __future__ import annotations

import pytest
import torch

from tests import oracle
from tests.golden_utils import (
    GOLDEN_NAMES,
    Golden,
    assert_all_close,
    assert_close,
    load_arrays,
    load_golden,
)


@pytest.fixture(scope="module", params=GOLDEN_NAMES)
def golden(request: pytest.FixtureRequest) -> Golden:
    return load_golden(request.param)


def test_outputs_and_elementwise_loss(golden: Golden) -> None:
    outputs = oracle.forward(golden.params, golden.hps, golden.batch)
    for s, expected in golden.outputs.items():
        loss = oracle.recon_loss(
            golden.batch[s]["recon_data"],
            outputs[s]["output_params"],
            golden.params,
            golden.hps,
            s,
        )
        assert_all_close(outputs[s] | {"recon_loss": loss}, expected, 1e-5, f"session {s}")


def test_losses(golden: Golden) -> None:
    outputs = oracle.forward(golden.params, golden.hps, golden.batch)
    terms = oracle.losses(golden.params, golden.hps, golden.batch, outputs, golden.ramp)
    for name, expected in golden.losses.items():
        assert float(terms[name]) == pytest.approx(expected, rel=1e-5), name


def test_gradients(golden: Golden) -> None:
    grads = oracle.gradients(golden.params, golden.hps, golden.batch, golden.ramp)
    # An autonomous model's controller state has no entries, hence no gradient to speak of.
    expected = {name: grad for name, grad in golden.grads.items() if grad.numel() > 0}
    grads = {name: grad for name, grad in grads.items() if grad.numel() > 0}
    assert_all_close(grads, expected, 1e-5, "gradient")


def test_three_optimiser_steps(golden: Golden) -> None:
    after = oracle.train(
        golden.params,
        golden.hps,
        golden.batch,
        golden.ramp,
        n_steps=3,
        weight_decay=golden.hps["weight_decay"],
        max_norm=golden.clip,
    )
    assert_all_close(after, golden.after3, 1e-4, "parameter after three steps")


def test_clipping_is_active_where_the_file_says_so() -> None:
    golden = load_golden("clipped_states")
    states = oracle.forward(golden.params, golden.hps, golden.batch)[0]["gen_states"]
    at_clip = states.abs() == golden.hps["cell_clip"]
    assert at_clip.any()
    assert not at_clip.all()


def test_priors() -> None:
    g = load_arrays("priors")
    log_p = oracle.ar_log_density(g["ar_sample"], g["ar_logtaus"], g["ar_lognvars"])
    log_q = oracle.normal_log_density(g["ar_sample"], g["ar_mean"], g["ar_std"] ** 2)
    assert_close(log_p, g["ar_log_p"], 1e-5, "log p")
    assert_close(log_q.sum(dim=(1, 2)), g["ar_log_q"], 1e-5, "log q")
    eps = (g["ar_sample"] - g["ar_mean"]) / g["ar_std"]
    kl = oracle.kl_sampled_ar(g["ar_mean"], g["ar_std"], eps, g["ar_logtaus"], g["ar_lognvars"])
    assert_close(kl, (g["ar_log_q"] - g["ar_log_p"]).mean(), 1e-5, "sampled KL")
    kl = oracle.kl_normal(g["mvn_mean"], g["mvn_std"], g["mvn_prior_mean"], g["mvn_prior_logvar"])
    assert_close(kl, g["mvn_kl"], 1e-5, "analytic KL")


def test_ar_density_is_that_of_its_covariance() -> None:
    """The autoregressive density equals a joint normal's with covariance s2 a^|i-j| / (1 - a^2)."""
    tau, nvar, n_bins = 4.0, 0.3, 6
    a = torch.exp(torch.tensor(-1 / tau, dtype=torch.float64))
    lag = (torch.arange(n_bins)[:, None] - torch.arange(n_bins)).abs()
    joint = torch.distributions.MultivariateNormal(
        torch.zeros(n_bins, dtype=torch.float64), nvar * a**lag / (1 - a**2)
    )
    u = torch.randn(3, n_bins, dtype=torch.float64)
    log_p = oracle.ar_log_density(
        u[..., None],
        torch.tensor([tau], dtype=torch.float64).log(),
        torch.tensor([nvar], dtype=torch.float64).log(),
    )
    torch.testing.assert_close(log_p, joint.log_prob(u))


@pytest.mark.parametrize(
    ("epoch", "start", "increase", "expected"),
    [(0, 0, 0, 1.0), (0, 0, 80, 1 / 81), (79, 0, 80, 80 / 81), (80, 0, 80, 1.0), (3, 10, 5, 0.0)],
)
def test_ramp(epoch: int, start: int, increase: int, expected: float) -> None:
    assert oracle.ramp(epoch, start, increase) == pytest.approx(expected)
