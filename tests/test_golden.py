"""The model reproduces every reference file, and the plain oracle in training mode too."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lfads_torch.kernels import IMPLEMENTATIONS
from lfads_torch.model import LFADS
from lfads_torch.modules import decoder, encoder, masks
from lfads_torch.modules.priors import AutoregressiveMultivariateNormal, MultivariateNormal
from lfads_torch.tuples import LossTerms
from tests import oracle
from tests.golden_utils import (
    GOLDEN_NAMES,
    FixedPosterior,
    Golden,
    assert_all_close,
    assert_close,
    build_lfads,
    load_arrays,
    load_golden,
    one_batch,
    session_batches,
    train_and_compare,
    two_halves,
)
from tests.small import terms_at_means


@pytest.fixture(scope="module", params=GOLDEN_NAMES)
def golden(request: pytest.FixtureRequest) -> Golden:
    return load_golden(request.param)


@pytest.fixture(params=sorted(IMPLEMENTATIONS))
def kernel(request: pytest.FixtureRequest) -> str:
    return request.param


def evaluate(model: LFADS, golden: Golden) -> LossTerms:
    """Objective of the file: posterior means, no dropout."""
    batch = session_batches(golden)
    return terms_at_means(model, batch)


def without_co_kl(golden: Golden, kernel: str) -> LFADS:
    """The file's model; the files leave the sampled KL out of losses, gradients and steps."""
    model = build_lfads(golden, kl_co_scale=0.0, kernel=kernel)
    model.co_prior.requires_grad_(False)
    return model


def test_state_dict_has_the_files_names(golden: Golden) -> None:
    assert set(build_lfads(golden).state_dict()) == set(golden.params)


def test_outputs_and_elementwise_loss(golden: Golden, kernel: str) -> None:
    model = build_lfads(golden, kernel=kernel)
    batch = session_batches(golden)
    with torch.no_grad():
        parameters = model(batch, output_means=False)
        means = model(batch)
    assert parameters.keys() == means.keys() == golden.outputs.keys()
    for s, expected in golden.outputs.items():
        got = parameters[s]._asdict()
        got["output_means"] = means[s].output_params
        recon: Any = model.recon[s]
        got["recon_loss"] = recon.compute_loss(batch[s].recon_data, parameters[s].output_params)
        assert_all_close(got, expected, 1e-5, f"session {s}")


def test_losses(golden: Golden, kernel: str) -> None:
    terms = evaluate(without_co_kl(golden, kernel), golden)
    got = {
        "recon": terms.recon,
        "l2": terms.l2,
        "ic_kl": terms.kl_ic / golden.hps["kl_ic_scale"],
        "total": terms.total,
    }
    assert got.keys() == golden.losses.keys()
    for name, expected in golden.losses.items():
        assert got[name].item() == pytest.approx(expected, rel=1e-5), name


def gradients(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gradients that there are, but for parameters without entries."""
    return {n: p.grad for n, p in parameters.items() if p.grad is not None and p.numel() > 0}


def test_gradients(golden: Golden, kernel: str) -> None:
    model = without_co_kl(golden, kernel)
    evaluate(model, golden).total.backward()
    expected = {name: grad for name, grad in golden.grads.items() if grad.numel() > 0}
    assert_all_close(gradients(dict(model.named_parameters())), expected, 1e-5, "gradient")


def test_three_optimiser_steps(golden: Golden, kernel: str) -> None:
    model = without_co_kl(golden, kernel)
    optimizer = model.configure_optimizers()
    # The files' steps take the weight decay as it is, without the ramp.
    for group in optimizer.param_groups:
        assert group["weight_decay"] == pytest.approx(golden.hps["weight_decay"])
    for _ in range(3):
        optimizer.zero_grad()
        evaluate(model, golden).total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), golden.clip)
        optimizer.step()
    assert_all_close(model.state_dict(), golden.after3, 1e-4, "parameter after three steps")


@pytest.mark.parametrize("kernel", ["explicit", "auto"])
def test_twenty_steps_under_lightning(
    golden: Golden, kernel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses, log and parameters are the oracle's, which the file's own three steps bear out.

    Posteriors are sampled with the same noise in every step; ramps, also of the weight decay, go
    by epoch.
    """
    changes = {
        "dropout_rate": 0.0,
        "l2_start_epoch": 1,
        "l2_increase_epoch": 4,
        "kl_start_epoch": 2,
        "kl_increase_epoch": 4,
    }
    if (golden.name, kernel) == ("zig", "auto"):
        # Adam's first step goes by a gradient's sign. One entry is 1e-7 of the largest here, which
        # the loops in C round to the other sign; a larger epsilon makes such a step small.
        changes["lr_adam_epsilon"] = 1e-3
    model, hps = build_lfads(golden, **changes, kernel=kernel), golden.hps | changes
    trained = {name for name in golden.params if not name.endswith(("bias_hh", "ic_prior.logvar"))}
    run = oracle.Training(dict(golden.params), hps["lr_init"])
    batch = session_batches(golden)
    data = two_halves(batch), one_batch(batch)
    train_and_compare(tmp_path, model, data, run, hps, trained, monkeypatch)


# ------------------------------------------------------------------ training mode


class Randomness:
    """Records every random number that one training pass of the model draws."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, model: LFADS, n_trials: int) -> None:
        self.masks: dict[tuple[int, ...], Tensor] = {}
        self.normals: dict[tuple[int, ...], Tensor] = {}
        self.ic_eps = torch.randn(n_trials, model.hparams["ic_dim"]).double()
        draw_mask, randn, randn_like = masks.dropout_mask, torch.randn, torch.randn_like

        def record(kept: dict[tuple[int, ...], Tensor], drawn: Tensor) -> Tensor:
            # No two have the same sizes in these files, so that a shape says which one it is.
            shape = tuple(drawn.shape)
            assert shape not in kept, shape
            kept[shape] = drawn
            return drawn

        for module in (encoder, decoder):
            monkeypatch.setattr(
                module, "dropout_mask", lambda *args: record(self.masks, draw_mask(*args))
            )
        monkeypatch.setattr(torch, "randn", lambda *a, **k: record(self.normals, randn(*a, **k)))
        monkeypatch.setattr(
            torch, "randn_like", lambda *a, **k: record(self.normals, randn_like(*a, **k))
        )
        monkeypatch.setattr(
            model.ic_prior, "make_posterior", lambda m, s: FixedPosterior(m, s, self.ic_eps)
        )

    def as_noise(self, golden: Golden) -> tuple[oracle.Noise, Tensor | None]:
        """The same numbers as the oracle takes them, and those of the inferred inputs' KL."""
        n_trials, hps = self.ic_eps.shape[0], golden.hps
        n_read, n_bins = hps["encod_seq_len"], hps["recon_seq_len"]
        gen = self.masks.pop((n_bins + 1, n_trials, hps["gen_dim"])).transpose(0, 1)
        ext = self.masks.pop((n_bins, n_trials, hps["ext_input_dim"])).transpose(0, 1)
        drop_con = co_eps = kl_eps = None
        if oracle.has_controller(hps):
            ci = self.masks.pop((n_bins, n_trials, 2 * hps["ci_enc_dim"]))
            fac = self.masks.pop((n_bins, n_trials, hps["fac_dim"]))
            drop_con = torch.cat([ci, fac], dim=-1).transpose(0, 1)
            co_eps = self.normals.pop((n_bins, n_trials, hps["co_dim"])).transpose(0, 1)
            kl_eps = self.normals.pop((n_trials, n_bins, hps["co_dim"]))
        noise = oracle.Noise(
            ic_eps=self.ic_eps,
            co_eps=co_eps,
            drop_data=self.masks.pop((n_trials, n_read, hps["encod_data_dim"])),
            drop_ic=self.masks.pop((n_trials, 2 * hps["ic_enc_dim"])),
            drop_con=drop_con,
            drop_gen_init=gen[:, 0],
            drop_gen=gen[:, 1:],
            drop_ext=ext,
        )
        # Nothing was drawn that the oracle does not know of.
        assert not self.masks
        assert not self.normals
        return noise, kl_eps


def test_training_step_equals_the_oracles(
    golden: Golden, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropout, sampled posteriors and the sampled KL, in float64: the objective and gradients."""
    model = build_lfads(golden, kernel=kernel).double().train()
    for name, value in model.tunables().items():
        value.fill_(golden.hps[name])  # in all digits: they were float32 before
    batch = session_batches(golden, torch.float64)
    n_trials = sum(b.encod_data.shape[0] for b in batch.values())
    randomness = Randomness(monkeypatch, model, n_trials)
    loss = model.training_step(batch, 0)
    loss.backward()
    noise, kl_eps = randomness.as_noise(golden)
    dropped = [m for m in vars(noise).values() if m is not None and (m == 0).any()]
    assert len(dropped) >= 4

    named = model.named_parameters()
    trained = {n: p.detach().clone().requires_grad_() for n, p in named if p.requires_grad}
    params = {n: p.double() for n, p in golden.params.items()} | trained
    plain_batch = {s: {n: x.double() for n, x in b.items()} for s, b in golden.batch.items()}
    outputs = oracle.forward(params, golden.hps, plain_batch, noise)
    expected = oracle.losses(params, golden.hps, plain_batch, outputs, golden.ramp, kl_eps)
    assert_close(loss, expected["total"].detach(), 1e-10, "objective")
    expected["total"].backward()
    assert_all_close(
        gradients(dict(model.named_parameters())), gradients(trained), 1e-8, "gradient"
    )


# ------------------------------------------------------------------ priors


def test_autoregressive_prior() -> None:
    g = load_arrays("priors")
    prior = AutoregressiveMultivariateNormal(1.0, 1.0, g["ar_logtaus"].numel())
    prior.load_state_dict({"logtaus": g["ar_logtaus"], "lognvars": g["ar_lognvars"]})
    assert_close(prior.log_prob(g["ar_sample"]), g["ar_log_p"], 1e-5, "log p")
    log_q = prior.make_posterior(g["ar_mean"], g["ar_std"]).log_prob(g["ar_sample"])
    assert_close(log_q.sum(dim=1), g["ar_log_q"], 1e-5, "log q")


def test_autoregressive_prior_takes_its_kl_at_one_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    g = load_arrays("priors")
    prior = AutoregressiveMultivariateNormal(1.0, 1.0, g["ar_logtaus"].numel())
    prior.load_state_dict({"logtaus": g["ar_logtaus"], "lognvars": g["ar_lognvars"]})
    eps = (g["ar_sample"] - g["ar_mean"]) / g["ar_std"]
    monkeypatch.setattr(torch, "randn_like", lambda *_, **__: eps)
    expected = (g["ar_log_q"] - g["ar_log_p"]).mean()
    assert_close(prior(g["ar_mean"], g["ar_std"]), expected, 1e-5, "sampled KL")


def test_normal_prior() -> None:
    g = load_arrays("priors")
    prior = MultivariateNormal(1.0, 1.0, g["mvn_prior_mean"].numel())
    prior.load_state_dict({"mean": g["mvn_prior_mean"], "logvar": g["mvn_prior_logvar"]})
    assert_close(prior(g["mvn_mean"], g["mvn_std"]), g["mvn_kl"], 1e-5, "analytic KL")
