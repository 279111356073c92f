"""One bin at a time equals the causal model's forward pass, and no bin sees a later one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lfads_torch.errors import ConfigError
from lfads_torch.model import LFADS
from lfads_torch.modules.augmentations import AugmentationStack, TemporalShift
from lfads_torch.objective import Weights, penalty
from lfads_torch.online.step import Step, StepState
from lfads_torch.online.window import Window
from tests.online.models import model, spikes, tensor
from tests.oracle import cell_params, gru_cell

pytestmark = pytest.mark.filterwarnings("ignore:no controller")

CASES = [
    # first bins S, lag, external inputs, further arguments
    (0, 0, 0, {}),
    (0, 1, 2, {}),
    (5, 1, 0, {}),
    (5, 2, 2, {"kernel": "reference"}),
    (5, 1, 1, {"co_dim": 0}),
    (0, 1, 0, {"cell_clip": math.inf, "recon_seq_len": 33}),
]


@torch.inference_mode()
def by_steps(step: Step, x: Tensor, ext: Tensor | None) -> dict[str, Tensor]:
    """Outputs of all bins from S - 1 on, each (bins, ...), and the bins to come."""
    first = step.first_bins
    outputs = []
    if first:
        outputs.append(step.start(x[:, :first], None if ext is None else ext[:, :first]))
        state: StepState = outputs[0].state
    else:
        state = step.initial(len(x))
    for t in range(first, x.shape[1]):
        outputs.append(step(x[:, t], None if ext is None else ext[:, t], state))
        state = outputs[-1].state
    names = ("rates", "factors", "gen_states", "inputs", "behavior")
    result = {name: torch.stack([getattr(o, name) for o in outputs], dim=1) for name in names}
    return {**result, "ahead": step.ahead(state).rates}


@pytest.mark.parametrize(("first", "lag", "n_ext", "more"), CASES)
@pytest.mark.parametrize("n_bins", [8, 200])
def test_steps_equal_the_forward_pass(
    first: int, lag: int, n_ext: int, more: dict[str, Any], n_bins: int
) -> None:
    ahead = more.get("recon_seq_len", 30) - 30
    more = {**more, "recon_seq_len": n_bins + ahead} if ahead else more
    lfads = model(
        n_bins, causal=True, ic_enc_seq_len=first, ci_lag=lag, ext_input_dim=n_ext, **more
    )
    x = torch.cat([tensor(spikes(n_bins, missing=m, seed=s)) for m, s in ((0.1, 1), (0.0, 2))])
    ext = torch.randn(2, n_bins, n_ext) if n_ext else None
    with torch.inference_mode():
        whole = Window(lfads)(x, ext)
    single = by_steps(Step(lfads), x, ext)
    begin = max(first - 1, 0)
    for name, expected in whole._asdict().items():
        actual = single[name]
        torch.testing.assert_close(actual, expected[:, begin:n_bins], rtol=1e-5, atol=1e-5)
    if ahead:
        torch.testing.assert_close(single["ahead"], whole.rates[:, n_bins], rtol=1e-5, atol=1e-5)


def test_a_step_equals_the_plain_equations() -> None:
    """The oracle's cell, bin by bin, for a learned initial condition and a lag of one bin."""
    lfads = model(6, causal=True, ci_lag=1)
    p, x = dict(lfads.state_dict()), tensor(spikes(6))
    clip, rnn = lfads.decoder.clip, "decoder.rnn.cell"
    w_fac = p[f"{rnn}.fac_linear.weight"]
    w_fac = w_fac / w_fac.square().sum(1, keepdim=True).sqrt()
    h, before = p["encoder.ci_enc_h0"][0], torch.zeros(1, 3)
    g = p["encoder.ic_learned"] @ p["decoder.ic_to_g0.weight"].T + p["decoder.ic_to_g0.bias"]
    c, f = p["decoder.con_h0"], g @ w_fac.T
    rates = []
    for t in range(6):
        ci = before
        h = gru_cell(x[:, t], h, *cell_params(p, "encoder.ci_enc.fwd_gru.cell"), clip)
        c = gru_cell(torch.cat([ci, f], 1), c, *cell_params(p, f"{rnn}.con_cell"), clip)
        u = (c @ p[f"{rnn}.co_linear.weight"].T + p[f"{rnn}.co_linear.bias"])[:, :2]
        g = gru_cell(u, g, *cell_params(p, f"{rnn}.gen_cell"), clip)
        f, before = g @ w_fac.T, h
        rates.append((f @ p["readout.0.weight"].T + p["readout.0.bias"]).exp())
    single = by_steps(Step(lfads), x, None)["rates"]
    torch.testing.assert_close(single, torch.stack(rates, 1), rtol=1e-5, atol=1e-6)


def changed_later(lfads: Any, value: float, t: int = 12) -> bool:
    """Whether rates up to bin t (from S - 1 on) stay bit-equal when later bins change."""
    x = tensor(spikes(20))
    other = x.clone()
    other[:, t + 1 :] = value
    begin = max(lfads.encoder.ic_enc_seq_len - 1, 0)
    with torch.inference_mode():
        pairs = zip(Window(lfads)(x), Window(lfads)(other), strict=True)
    return all(torch.equal(a[:, begin : t + 1], b[:, begin : t + 1]) for a, b in pairs)


@pytest.mark.parametrize("value", [7.0, 1e6, math.nan])
@pytest.mark.parametrize("first", [0, 5])
@pytest.mark.parametrize("causal", [True, False])
def test_later_bins_change_nothing_of_a_causal_model(
    value: float, first: int, causal: bool
) -> None:
    assert changed_later(model(20, causal=causal, ic_enc_seq_len=first), value) == causal


@pytest.mark.parametrize("kernel", ["reference", "explicit", "native"])
def test_kernels_agree_on_a_causal_model_with_its_gradients(kernel: str) -> None:
    def run(kernel: str) -> tuple[Tensor, dict[str, Tensor]]:
        lfads = model(9, causal=True, ci_lag=2, tbptt_bins=4, kernel=kernel).train()
        lfads.dropout_rate.zero_()
        rates = Window(lfads)(torch.cat([tensor(spikes(9)), tensor(spikes(9, seed=1))])).rates
        rates.square().sum().backward()
        named = lfads.named_parameters()
        return rates, {n: p.grad for n, p in named if p.grad is not None}

    rates, gradients = run(kernel)
    expected, others = run("reference")
    torch.testing.assert_close(rates, expected)
    assert gradients.keys() == others.keys()
    assert gradients["encoder.ic_learned"].abs().sum() > 0
    for name in others:
        torch.testing.assert_close(gradients[name], others[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("co_dim", [2, 0])
def test_no_gradient_passes_a_stretch(co_dim: int) -> None:
    """Values are those of one stretch; what a late bin learns from an early one is nothing."""
    arguments: Any = {"causal": True, "ext_input_dim": 1, "co_dim": co_dim, "ic_enc_seq_len": 2}
    cut, whole = (model(12, tbptt_bins=n, **arguments) for n in (5, 0))
    x, ext = tensor(spikes(12)), torch.randn(1, 12, 1, requires_grad=True)
    torch.testing.assert_close(Window(cut)(x, ext), Window(whole)(x, ext))
    for lfads, reach in ((cut, 10), (whole, 0)):
        (gradient,) = torch.autograd.grad(Window(lfads)(x, ext).rates[:, 11].sum(), ext)
        assert gradient[0, :reach].abs().sum() == 0
        assert gradient[0, reach:].abs().sum(dim=1).min() > 0


def test_an_encoder_gets_no_gradient_through_the_lag_from_a_later_stretch() -> None:
    lfads = model(8, causal=True, ci_lag=2, tbptt_bins=4)
    x = torch.randn(1, 8, 6, requires_grad=True)
    ci = lfads.encoder(x).ci
    assert ci is not None
    (gradient,) = torch.autograd.grad(ci[:, 4:].sum(), x)
    assert gradient[0, :4].abs().sum() == 0 and gradient[0, 4:6].abs().sum() > 0


def test_parameters_of_a_causal_model() -> None:
    learned, read = model(causal=True), model(causal=True, ic_enc_seq_len=3)
    shapes = {name: tuple(p.shape) for name, p in learned.state_dict().items()}
    assert shapes["encoder.ic_learned"] == (1, 3) and shapes["encoder.ci_enc_h0"] == (1, 1, 3)
    assert shapes["decoder.rnn.cell.con_cell.weight_ih"] == (9, 3 + 4)
    assert not [name for name in shapes if "bwd" in name or "ic_enc" in name]
    assert "encoder.ic_enc.bwd_gru.cell.weight_ih" in read.state_dict()
    assert (LFADS(encod_data_dim=2, encod_seq_len=3, causal=True).encoder.ic_learned == 0).all()


def test_terms_of_a_causal_model() -> None:
    """A learned initial condition has no KL; of the CI encoder, one matrix is penalised."""
    lfads = model(causal=True, l2_gen_scale=0.0, l2_con_scale=0.0, l2_ci_enc_scale=2.0)
    weights: Weights = lfads.weights
    matrix = lfads.encoder.ci_enc.fwd_gru.cell.weight_hh
    expected = 2.0 * 0.5 * matrix.square().sum() / matrix.numel()
    torch.testing.assert_close(penalty(lfads, weights), expected)
    zero = torch.zeros(2, 3)
    assert lfads.ic_prior(zero + 1, zero) == 0


class Smoother(torch.nn.Module):
    """A read-in that averages over neighbouring bins."""

    def forward(self, x: Tensor) -> Tensor:
        return (x + x.roll(-1, dims=1)) / 2


def test_parts_that_read_ahead_are_refused() -> None:
    with pytest.raises(ConfigError, match="readin: Smoother reads an unknown number of bins ahead"):
        model(causal=True, readin=Smoother())
    Smoother.lookahead = 1
    with pytest.raises(ConfigError, match="readin: Smoother reads 1 bins ahead"):
        model(causal=True, readin=Smoother())
    stack = AugmentationStack([TemporalShift()], [0], [])
    with pytest.raises(ConfigError, match="infer_aug_stack: TemporalShift"):
        model(causal=True, infer_aug_stack=stack)
    with pytest.raises(ConfigError, match="reads no data"):
        model(causal=True, co_dim=0)
    with pytest.raises(ConfigError, match="tbptt_bins is 10, but causal is false"):
        model(tbptt_bins=10)
    with pytest.raises(ConfigError, match="tbptt_bins is 3, but the first 4 bins"):
        model(causal=True, ic_enc_seq_len=4, tbptt_bins=3)
    model(causal=True, readin=torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Tanh()))


def test_a_model_that_reads_ahead_cannot_step() -> None:
    ahead = "the IC encoder over all bins and the backward CI encoder read bins to come"
    with pytest.raises(ConfigError, match=f"{ahead}; use mode='window'"):
        Step(model())


@pytest.mark.parametrize("first", [0, 4])
def test_a_step_can_be_exported(first: int) -> None:
    step = Step(model(causal=True, ic_enc_seq_len=first))
    x = tensor(spikes(10))
    state = step.start(x[:, :first]).state if first else step.initial(1)
    program = torch.export.export(step, (x[:, 5], None, state))
    torch.testing.assert_close(program.module()(x[:, 5], None, state), step(x[:, 5], None, state))
    assert np.isfinite(step(x[:, 5], None, state).rates.detach().numpy()).all()
