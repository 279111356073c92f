"""Trials of different lengths, missing bins and channels: from the file to the outputs."""

from __future__ import annotations

import math
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lfads_torch import cli
from lfads_torch.data import DataWarning, check_file, read_session, write_session
from lfads_torch.errors import DataError, UserError
from lfads_torch.kernels import IMPLEMENTATIONS, get_kernels
from lfads_torch.metrics.epoch import EpochScores
from lfads_torch.model import LFADS
from lfads_torch.modules import priors, recons
from lfads_torch.modules.augmentations import (
    AugmentationStack,
    CoordinatedDropout,
    SampleValidation,
    SelectiveBackpropThruTime,
    SpikeJitter,
    TemporalShift,
)
from lfads_torch.modules.recurrent import BidirectionalClippedGRU
from lfads_torch.objective import count_batch
from lfads_torch.post_run.analysis import run_posterior_sampling, sample_posterior
from lfads_torch.post_run.posterior import kl_by_dimension
from lfads_torch.prep import bin_spikes, prepare
from lfads_torch.tuples import SessionBatch
from tests.search.reference_training import assert_as_alone
from tests.small import DIMS, arrays, batch_of, counts, datamodule, lfads, terms_at_means, write

pytestmark = [
    pytest.mark.filterwarnings("ignore::lfads_torch.data.DataWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:pytorch_lightning"),
]

few_examples = settings(max_examples=8, deadline=None)
LENGTHS = (7, 4, 1, 6)
N_BINS, N_READ, N_ALL = 7, 3, 5


def ended(data: Tensor, lengths: Any, value: float = math.nan) -> Tensor:
    """Data (B, T, N) with `value` past each trial's end."""
    past = torch.arange(data.shape[1]) >= torch.as_tensor(lengths).view(-1, 1)
    return data.masked_fill(past.unsqueeze(-1), value)


# ---- the recurrent nets ------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", sorted(IMPLEMENTATIONS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("clip", [5.0, 0.3])
def test_states_pass_padding_unchanged(kernel: str, dtype: torch.dtype, clip: float) -> None:
    """As if each trial were run alone, states, last states and gradients; clipped ones too."""
    gru = BidirectionalClippedGRU(3, 4, clip).to(dtype)
    x = torch.randn(7, 4, 3, dtype=dtype, requires_grad=True)
    h0 = (0.2 * torch.randn(2, 1, 4, dtype=dtype)).clamp(-0.29, 0.29).requires_grad_()
    weights = [p for p in gru.parameters() if p.requires_grad]
    lengths = torch.tensor(LENGTHS)
    run = get_kernels(kernel)
    direction = torch.randn(2, 7, 4, 4, dtype=dtype)

    padded = torch.arange(7).unsqueeze(1) >= lengths
    states, last = gru.run(x, h0, run, padded)
    within = ~padded.unsqueeze(-1)
    loss = (states * direction * within).sum() + last.sum()
    gradients = torch.autograd.grad(loss, [x, h0, *weights])

    total = torch.zeros((), dtype=dtype)
    for i, n in enumerate(LENGTHS):
        alone_states, alone_last = gru.run(x[:n, i : i + 1], h0, run)
        torch.testing.assert_close(alone_states[:, :, 0], states[:, :n, i])
        torch.testing.assert_close(alone_last[:, 0], last[:, i])
        assert (states[0, n:, i] == last[0, i]).all(), "held to the last digit"
        assert (states[1, n:, i] == h0[1, 0]).all()
        total = total + (alone_states[:, :, 0] * direction[:, :n, i]).sum() + alone_last.sum()
    expected = torch.autograd.grad(total, [x, h0, *weights])
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other)
    assert (gradients[0][padded] == 0).all()


# ---- the model does not see padding ------------------------------------------------------------

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "autonomous": {"ci_enc_dim": 0, "con_dim": 0, "co_dim": 0},
    "IC segment": {"ic_enc_seq_len": 3},
    "no lag": {"ci_lag": 0},
    "long lag": {"ci_lag": 3},
    "external input": {"ext_input_dim": 2},
    "sums": {"recon_reduce_mean": False, "loss_scale": 1.0},
    "Gaussian": {"reconstruction": recons.Gaussian},
    "Gamma": {"reconstruction": recons.Gamma},
    "PoissonBPS": {"reconstruction": recons.PoissonBPS},
    "Student-t": {"co_prior": lambda: priors.MultivariateStudentT(0.0, 0.3, 5.0, DIMS["co_dim"])},
    "own prior with mask": {"co_prior": lambda: _OwnPrior()},
}


class _OwnPrior(nn.Module):
    def make_posterior(self, mean: Tensor, std: Tensor) -> Any:
        return priors.gaussian_posterior(mean, std)

    def forward(self, mean: Tensor, std: Tensor, **options: Any) -> Tensor:
        mask = options.get("mask")
        square = (mean**2).sum(-1)
        return (square if mask is None else square * mask).sum(-1).mean()


def model_of(n_bins: int, like: LFADS | None = None, ahead: int = 0, **options: Any) -> LFADS:
    arguments = {name: x() if callable(x) else x for name, x in options.items()}
    n_params = getattr(arguments.get("reconstruction"), "n_params", 1)
    model = LFADS(
        encod_data_dim=N_READ,
        encod_seq_len=n_bins,
        recon_seq_len=n_bins + ahead,
        readout=nn.Linear(DIMS["fac_dim"], n_params * N_ALL),
        **{**DIMS, "kl_co_scale": 0.1, "kl_ic_scale": 0.1, "kl_increase_epoch": 0, **arguments},
    ).double()
    if like is not None:
        model.load_state_dict(like.state_dict())
    return model.eval()


def trials(more: int, ext_dim: int = 0, value: float = math.nan) -> SessionBatch:
    """The same four trials, some bins and channels of them missing, with more bins of padding."""
    torch.manual_seed(5)
    recon = counts(4, N_BINS, N_ALL).double() + 1
    recon[0, 2:4] = recon[1, :, 1] = recon[3, 5, 0] = math.nan
    recon = ended(recon, LENGTHS)
    ext = ended(torch.randn(4, N_BINS, ext_dim).double(), LENGTHS, 0.0)
    recon = nn.functional.pad(recon, (0, 0, 0, more), value=math.nan)
    encod = ended(recon[:, :, :N_READ], LENGTHS, value)
    batch = batch_of(encod, recon)
    ext = torch.cat([ext, ext.new_zeros(4, more, ext_dim)], dim=1)
    return batch._replace(ext_input=ext, lengths=torch.tensor(LENGTHS))


def alone(batch: SessionBatch, i: int) -> SessionBatch:
    """One trial cut to its own length; it keeps its missing bins."""
    n = LENGTHS[i]
    rows = {
        name: array[i : i + 1, :n]
        for name, array in batch._asdict().items()
        if array is not None and name != "lengths"
    }
    return SessionBatch(**rows, lengths=torch.tensor([n]))


def evaluate(model: LFADS, batch: SessionBatch) -> tuple[Any, dict[str, Tensor]]:
    """Objective at posterior means, with its gradients."""
    terms = terms_at_means(model, {0: batch})
    named = {n: p for n, p in model.named_parameters() if p.requires_grad and p.numel()}
    gradients = torch.autograd.grad(terms.total, list(named.values()), allow_unused=True)
    grads = {n: g for n, g in zip(named, gradients, strict=True) if g is not None}
    return terms, grads


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More padding, or none: the same outputs, terms of the loss and gradients."""
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)  # samples at posterior means
    options, ext_dim = KINDS[kind], KINDS[kind].get("ext_input_dim", 0)
    first = model_of(N_BINS, **options)
    batch = trials(0, ext_dim)
    terms, grads = evaluate(first, batch)
    means = first(batch)[0]
    assert terms.total.isfinite()
    assert all(g.isfinite().all() for g in grads.values())
    for more, value in ((3, math.nan), (17, 99.0)):
        model = model_of(N_BINS + more, first, **options)
        longer = trials(more, ext_dim, value)
        own_terms, own_grads = evaluate(model, longer)
        torch.testing.assert_close(own_terms._asdict(), terms._asdict())
        torch.testing.assert_close(own_grads, grads)
        for name, field in model(longer)[0]._asdict().items():
            expected = getattr(means, name)
            if field.ndim < 3:
                torch.testing.assert_close(field, expected, msg=name)
                continue
            for i, n in enumerate(LENGTHS):
                torch.testing.assert_close(field[i, :n], expected[i, :n], msg=name)


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("IC segment", "PoissonBPS")])
def test_a_batch_is_its_trials_alone(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each trial by itself, without padding; entries weigh the same, or trials where summed."""
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    options, ext_dim = KINDS[kind], KINDS[kind].get("ext_input_dim", 0)
    options = {**options, "l2_gen_scale": 0.0, "l2_con_scale": 0.0}
    first = model_of(N_BINS, **options)
    batch = trials(4, ext_dim)
    terms, _ = evaluate(model_of(N_BINS + 4, first, **options), batch)
    weights, recon, kl = [], [], []
    for i, n in enumerate(LENGTHS):
        trial = alone(batch, i)
        model = model_of(n, first, **options)
        own_terms, _ = evaluate(model, trial)
        whole = first({0: batch_rows(trials(0, ext_dim), i)})[0]
        means = model(trial)[0]
        torch.testing.assert_close(means.ic_mean, whole.ic_mean)
        torch.testing.assert_close(means.output_params, whole.output_params[:, :n])
        torch.testing.assert_close(means.co_means, whole.co_means[:, :n])
        weights.append((~trial.recon_data.isnan()).sum() if first.hparams.recon_reduce_mean else 1)
        recon.append(own_terms.recon)
        kl.append(own_terms.kl_ic + own_terms.kl_co)
    shares = torch.tensor(weights).double()
    expected = (torch.stack(recon) * shares).sum() / shares.sum()
    torch.testing.assert_close(terms.recon, expected)
    torch.testing.assert_close(terms.kl_ic + terms.kl_co, torch.stack(kl).mean())


def batch_rows(batch: SessionBatch, *rows: int) -> SessionBatch:
    return SessionBatch(
        **{n: x[list(rows)] for n, x in batch._asdict().items() if isinstance(x, Tensor)}
    )


def test_trials_that_end_before_the_read_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """With forward prediction, a trial that is cut has no bins to predict, others have."""
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    model = model_of(N_BINS, ahead=2)
    recon = counts(3, N_BINS + 2, N_ALL).double()
    whole = batch_of(recon[:, :N_BINS, :N_READ], recon)
    cut = ended(recon, (9, 8, 3))
    batch = batch_of(cut[:, :N_BINS, :N_READ], cut)._replace(lengths=torch.tensor([9, 8, 3]))
    plain, short = model(whole)[0], model(batch)[0]
    torch.testing.assert_close(short.factors[:2], plain.factors[:2], msg="read to the end")
    assert not torch.allclose(short.factors[2, :3], plain.factors[2, :3])
    terms, _ = evaluate(model, batch)
    loss = model.recon[0].compute_loss(recon, model(batch, output_means=False)[0].output_params)
    torch.testing.assert_close(terms.recon, loss[~cut.isnan()].mean())


def test_nothing_missing_is_the_plain_objective() -> None:
    model = model_of(N_BINS)
    recon = counts(4, N_BINS, N_ALL).double()
    batch = batch_of(recon[:, :, :N_READ], recon)
    results = []
    for one in (batch, batch._replace(lengths=torch.full((4,), N_BINS))):
        torch.manual_seed(0)
        results.append(evaluate(model, one))
    torch.testing.assert_close(results[0][0]._asdict(), results[1][0]._asdict())
    torch.testing.assert_close(results[0][1], results[1][1])


@few_examples
@given(seed=st.integers(0, 99), share=st.floats(0.0, 0.9), n=st.integers(1, 5))
def test_the_order_of_trials_and_who_else_is_there_do_not_matter(
    seed: int, share: float, n: int
) -> None:
    torch.manual_seed(seed)
    model = model_of(6)
    lengths = torch.randint(1, 7, (n,))
    recon = counts(n, 6, N_ALL).double()
    recon[torch.rand(recon.shape) < share] = math.nan
    recon = ended(recon, lengths)
    batch = batch_of(recon[:, :, :N_READ], recon)._replace(lengths=lengths)
    order = torch.randperm(n).tolist()
    together = model(batch)[0].factors
    torch.testing.assert_close(model(batch_rows(batch, *order))[0].factors, together[order])
    torch.testing.assert_close(model(batch_rows(batch, 0))[0].factors, together[:1])


def test_a_prior_of_ones_own_without_a_mask_still_works() -> None:
    class Plain(nn.Module):
        def make_posterior(self, mean: Tensor, std: Tensor) -> Any:
            return priors.gaussian_posterior(mean, std)

        def forward(self, mean: Tensor, std: Tensor) -> Tensor:
            return torch.ones_like(mean).sum((1, 2)).mean()

    terms, _ = evaluate(model_of(N_BINS, co_prior=Plain, kl_co_scale=1.0), trials(0))
    assert terms.kl_co == N_BINS * DIMS["co_dim"], "it counts all bins"


def test_sessions_with_and_without_missing_data_share_a_batch(tmp_path: Path) -> None:
    """Of the complete session nothing changes."""
    holes = arrays(seed=1)
    for split in ("train", "valid"):
        holes[f"{split}_lengths"] = np.arange(len(holes[f"{split}_recon_data"])) % 6 + 1
    data = datamodule(write(tmp_path, arrays(), holes), batch_size=6)
    batch = {s: session for s, (session, _) in next(iter(data.val_dataloader())).items()}
    assert batch[0].lengths is None
    assert batch[1].lengths is not None
    model = lfads(data, variational=False, weigh_sessions="trial").eval()
    both, single = model(batch), model({0: batch[0]})
    torch.testing.assert_close(both[0].output_params, single[0].output_params)
    result = model.evaluated(batch, "valid")
    alone = model.evaluated({0: batch[0]}, "valid")
    torch.testing.assert_close(result.terms.session_recon[0], alone.terms.session_recon[0])


@pytest.mark.parametrize("variant", ["ragged", "augmented"])
def test_a_population_takes_missing_data(tmp_path: Path, variant: str) -> None:
    session = ragged(arrays(12, 5, truth=True))
    options: dict[str, Any] = {}
    if variant == "augmented":
        options["train_aug_stack"] = AugmentationStack(
            [TemporalShift(1.0, 2), CoordinatedDropout(0.3)], [0, 1], [1]
        )
    data = datamodule(write(tmp_path, session), batch_size=6)
    models = []
    for k in range(2):
        torch.manual_seed(k)
        models.append(lfads(data, **options))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*one after another")
        assert_as_alone(tmp_path, models, data, 1, members=[1])


# ---- augmentations and observation models ------------------------------------------------------


def one(transform: Any) -> AugmentationStack:
    orders = [[0] if hasattr(transform, m) else [] for m in ("process_batch", "process_losses")]
    return AugmentationStack([transform], *orders)


def test_sbtt_in_the_configuration_is_the_same_thing() -> None:
    batch = trials(2)
    plain = model_of(N_BINS + 2, variational=False)
    named = model_of(N_BINS + 2, plain, variational=False)
    named.infer_aug_stack = one(SelectiveBackpropThruTime())
    results = []
    for model in (plain, named):
        result = model.evaluated({0: batch}, "valid")
        results.append(result.terms._asdict())
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_poisson_bps_counts_observed_entries_only() -> None:
    """Mean rates 2 and 3 of observed entries; missing ones do not lower them."""
    data = torch.tensor([[[1.0, 3.0], [3.0, math.nan]], [[2.0, math.nan], [math.nan, math.nan]]])
    observed = ~data.isnan()
    params = torch.log(torch.tensor([2.0, 3.0])).expand(2, 2, 2).unsqueeze(-1)
    model = recons.PoissonBPS()
    assert (model.observed_loss(data, observed, params) == 0).all(), "no better than the mean rate"
    better = params.clone()
    better[0, 0, 0] = 0.0
    gain = (1 - 1 * math.log(1)) - (2 - 1 * math.log(2))
    loss = model.observed_loss(data, observed, better)
    mean_count = 9 / 4
    assert loss[0, 0, 0].item() == pytest.approx(gain / (math.log(2) * mean_count), abs=1e-6)
    full = counts(3, 4, 2)
    p = torch.randn(3, 4, 2, 1)
    torch.testing.assert_close(
        model.observed_loss(full, torch.ones_like(full).bool(), p), model.compute_loss(full, p)
    )


@pytest.mark.parametrize("recon", [recons.Poisson(), recons.Gamma(), recons.Gaussian()])
def test_missing_entries_have_no_loss_and_no_gradient(recon: Any) -> None:
    data = counts(2, 5, 3) + 1
    data[0, 1] = data[1, :, 2] = math.nan
    params = torch.randn(2, 5, 3, recon.n_params, requires_grad=True)
    loss = recons.observed_loss(recon, data, ~data.isnan(), params)
    assert (loss[data.isnan()] == 0).all()
    (grad,) = torch.autograd.grad(loss.sum(), params)
    assert (grad[data.isnan()] == 0).all()
    assert grad.isfinite().all()

    class Own(nn.Module):  # duck-typed, and refuses anything that is no number
        n_params = 1

        def compute_loss(self, data: Tensor, output_params: Tensor) -> Tensor:
            assert data.isfinite().all()
            return (data - output_params[..., 0]) ** 2

    loss = recons.observed_loss(Own(), data, ~data.isnan(), params)
    assert (loss[data.isnan()] == 0).all()


def test_sample_validation_scores_observed_entries() -> None:
    kept = torch.rand(3, 5, 4) > 0.4
    recon = counts(3, 5, 4)
    recon[:, 3:, 0] = math.nan
    batch = batch_of(recon, sv_mask=kept)._replace(lengths=torch.full((3,), 5))
    stack = one(SampleValidation(0.4))
    observed = ~recon.isnan()
    loss = torch.where(observed, torch.rand(3, 5, 4), 0.0)
    logged: dict[str, float] = {}
    seen = stack.process_batch(batch)._replace(masks={"observed": observed})
    stack.process_losses(loss, seen, lambda n, v: logged.update({n: v.item()}), "valid")
    expected = loss[~kept & observed].mean().item()
    assert logged["valid/recon/sv"] == pytest.approx(expected)


@few_examples
@given(seed=st.integers(0, 999), width=st.integers(0, 5), share=st.floats(0.0, 0.8))
def test_jitter_keeps_spikes_out_of_missing_bins(seed: int, width: int, share: float) -> None:
    torch.manual_seed(seed)
    lengths = torch.randint(1, 9, (3,))
    data = counts(3, 8, 2)
    data[torch.rand(data.shape) < share] = math.nan
    batch = batch_of(ended(data, lengths))._replace(lengths=lengths)
    moved = SpikeJitter(width).process_batch(batch)
    for now, before in ((moved.encod_data, batch.encod_data), (moved.recon_data, batch.recon_data)):
        assert torch.equal(now.isnan(), before.isnan())
        assert torch.equal(now.nansum(1), before.nansum(1)), "no spike is lost"


@few_examples
@given(seed=st.integers(0, 999))
def test_shift_repeats_the_edges_of_each_trial(seed: int) -> None:
    torch.manual_seed(seed)
    lengths = torch.randint(1, 9, (20,))
    ramp = torch.arange(8.0).view(1, -1, 1).expand(20, -1, 2)
    batch = batch_of(ended(ramp, lengths))._replace(lengths=lengths)
    moved = TemporalShift(2.0, 3).process_batch(batch).recon_data
    for trial, n in zip(moved, lengths.tolist(), strict=True):
        assert trial[n:].isnan().all()
        assert not trial[:n].isnan().any()
        assert ((trial[:n] >= 0) & (trial[:n] < n)).all()


def test_all_augmentations_train_on_ragged_data(tmp_path: Path) -> None:
    session = ragged(arrays(12, 5, channels=(3, 5), ext=2, truth=True))
    data = datamodule(write(tmp_path, session), batch_size=6, sv_rate=0.2)
    stack = AugmentationStack(
        [SpikeJitter(1), SampleValidation(0.2), CoordinatedDropout(0.3), TemporalShift(1.0, 2)],
        [0, 3, 1, 2],
        [2, 1],
    )
    model = lfads(data, train_aug_stack=stack)
    result = model.evaluated(_first(data), "train")
    result.terms.total.backward()
    assert result.terms.total.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert result.logged["recon/sv"][0].isfinite()


def _first(data: Any) -> dict[int, SessionBatch]:
    return {s: session for s, (session, _) in next(iter(data.train_dataloader())).items()}


# ---- scores ------------------------------------------------------------------------------------


def test_scores_of_an_epoch_do_not_depend_on_batches_or_padding(tmp_path: Path) -> None:
    results = []
    for more, batch_size in ((0, 50), (0, 2), (9, 3)):
        torch.manual_seed(0)
        session = ragged(arrays(12, 7, truth=True))
        folder = tmp_path / f"{more}-{batch_size}"
        data = datamodule(write(folder, padded(session, more)), batch_size=batch_size)
        model = lfads(data, variational=False).eval()
        scores = EpochScores()
        with torch.no_grad():
            for step in data.val_dataloader():
                batch = {s: trials for s, (trials, _) in step.items()}
                count_batch(scores, model.evaluated(batch, "valid"))
        computed = scores.compute()
        results.append({n: computed[n] for n in ("recon", "bps", "r2")})
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-5, atol=1e-6)


def test_kl_of_the_posterior_ends_with_the_trial() -> None:
    prior = priors.AutoregressiveMultivariateNormal(10.0, 0.1, 2)
    mean, std = np.random.default_rng(0).normal(size=(2, 3, 6, 2)) ** 2 + 0.1
    whole = kl_by_dimension(prior, mean, std)
    mean[1, 4:] = std[1, 4:] = np.nan
    masked = kl_by_dimension(prior, mean, std)
    assert whole is not None
    assert masked is not None
    assert (masked[1, 4:] == 0).all()
    np.testing.assert_array_equal(masked[1, :4], whole[1, :4])
    np.testing.assert_array_equal(masked[0], whole[0])


# ---- files -------------------------------------------------------------------------------------


def ragged(session: dict[str, Any], how: str = "NaN", seed: int = 0) -> dict[str, Any]:
    """The session with trials of different lengths and a hole; 9 past their ends, or NaN."""
    rng = np.random.default_rng(seed)
    copies = {key: array.copy() for key, array in session.items()}
    for split in ("train", "valid", "test"):
        if f"{split}_recon_data" not in copies:
            continue
        recon, n_read = copies[f"{split}_recon_data"], copies[f"{split}_encod_data"].shape[1:]
        n, n_bins = recon.shape[:2]
        lengths = rng.integers(2, n_bins + 1, n)
        lengths[0] = n_bins
        recon[1::3, 1, 0] = np.nan
        recon[0, :, 1] = np.nan
        # So that the last observed bin is the last of the trial.
        past = np.arange(n_bins) >= lengths[:, None]
        recon[past] = np.nan if how == "NaN" else 9
        copies[f"{split}_encod_data"] = recon[:, : n_read[0], : n_read[1]].copy()
        if how != "NaN":
            copies[f"{split}_lengths"] = lengths
        if f"{split}_ext_input" in copies:
            copies[f"{split}_ext_input"][past] = np.nan
    return copies


def padded(session: dict[str, Any], more: int) -> dict[str, Any]:
    return {
        key: np.pad(array, ((0, 0), (0, more), (0, 0)), constant_values=np.nan)
        if more and array.ndim == 3
        else array
        for key, array in session.items()
    }


def test_nan_tails_and_lengths_say_the_same(tmp_path: Path) -> None:
    base = arrays(9, 6, bins=(6, 8), channels=(3, 5), ext=2, truth=True)
    data = [
        datamodule(write(tmp_path / how, ragged(base, how)), batch_size=20)
        for how in ("NaN", "lengths")
    ]
    batches = [next(iter(module.val_dataloader()))[0][0] for module in data]
    for name, array in batches[0]._asdict().items():
        if array is not None:
            torch.testing.assert_close(
                array, getattr(batches[1], name), equal_nan=True, msg=name, rtol=0, atol=0
            )
    lengths = batches[0].lengths
    assert lengths is not None
    past = torch.arange(8) >= lengths.unsqueeze(1)
    assert batches[0].recon_data[past].isnan().all()
    assert batches[0].truth[past].isnan().all()
    assert (batches[0].ext_input[past] == 0).all()


def test_integers_with_lengths_need_no_nan(tmp_path: Path) -> None:
    session = {k: v.astype(np.uint8) for k, v in arrays().items()}
    write_session(
        tmp_path / "day.h5", session | {"train_lengths": [6] * 7, "valid_lengths": [6, 5, 4, 3, 1]}
    )
    read = read_session(tmp_path / "day.h5")
    assert read.lengths is not None
    assert read.lengths.tolist() == [6] * 7 + [6, 5, 4, 3, 1]
    assert np.isnan(read.splits["valid"].recon_data[4, 1:]).all()


def test_a_complete_file_takes_the_plain_path(tmp_path: Path) -> None:
    session = arrays() | {"train_lengths": np.full(7, 6), "valid_lengths": np.full(5, 6)}
    for data_arrays in (arrays(), session):
        data = datamodule(write(tmp_path, data_arrays))
        assert _first(data)[0].lengths is None


def test_a_test_split_to_be_predicted_is_whole(tmp_path: Path) -> None:
    """Its held-out bins and channels are not missing: rates of them are what is asked for."""
    session = ragged(arrays(6, 5, 4, bins=(6, 8), channels=(3, 5)))
    del session["test_recon_data"]
    session["test_encod_data"] = np.ones((4, 6, 3), np.float32)
    session["test_encod_data"][1, 4:] = np.nan
    data = datamodule(write(tmp_path, session))
    assert data.sessions[0].splits["test"].lengths.tolist() == [8, 4, 8, 8]
    output = sample_posterior(lfads(data), data, num_samples=2, split="test")
    assert output.output_params[0].isfinite().all()
    assert output.output_params[1, 4:].isnan().all()
    assert output.output_params[1, :4].isfinite().all()


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "too long": ({"train_lengths": [7] + [6] * 6}, r"'train_lengths' is 7 for trial 0.*1 to 6"),
    "below one": ({"valid_lengths": [6, 6, 0, 6, 6]}, r"'valid_lengths' is 0 for trial 2"),
    "a fraction": ({"valid_lengths": [6, 6, 2.5, 6, 6]}, r"'valid_lengths' is 2.5 for trial 2"),
    "another shape": ({"train_lengths": [[6] * 7]}, r"'train_lengths' has shape 1x7.*7 trials"),
    "one split only": ({"valid_lengths": None}, r"'train_lengths' is there but 'valid_lengths'"),
    "nothing observed": (
        {"train_recon_data": "empty trial"},
        r"1 of 7 trials of 'train' have no observed entry, only NaN: trials \[?3",
    ),
    "external input": ({"train_ext_input": "hole"}, r"'train_ext_input' is NaN in 1 bins within"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_with_a_file_is_named(tmp_path: Path, fault: str) -> None:
    changes, message = FAULTS[fault]
    session: dict[str, Any] = arrays(ext=1) | {"train_lengths": [6] * 7, "valid_lengths": [6] * 5}
    for key, value in changes.items():
        if value is None:
            del session[key]
        elif value == "empty trial":
            session = {k: v for k, v in session.items() if not k.endswith("lengths")}
            session[key] = session[key].copy()
            session[key][3] = np.nan
            session["train_encod_data"] = session[key]
        elif value == "hole":
            session[key][2, 1] = np.nan
        else:
            session[key] = value
    path = write_session(tmp_path / "day.h5", session)
    with pytest.raises(DataError, match=message):
        read_session(path)
    report = check_file(path)
    assert not report.ok
    assert any(re.search(message, error) for error in report.errors)


def test_a_channel_that_is_never_observed_is_told(tmp_path: Path) -> None:
    session = arrays()
    for split in ("train", "valid"):
        session[f"{split}_recon_data"][:, :, 1] = np.nan
        session[f"{split}_encod_data"] = session[f"{split}_recon_data"]
    pattern = write(tmp_path, session)
    with pytest.warns(DataWarning, match=r"1 of 3 channels are missing \(NaN\) in every training"):
        data = datamodule_loud(pattern)
    model = lfads(data)
    result = model.evaluated(_first(data), "train")
    result.terms.total.backward()
    assert result.terms.total.isfinite()
    assert (model.readout[0].weight.grad[1] == 0).all()
    assert sample_posterior(model, data, 2).output_params.isfinite().all()
    text = check_file(tmp_path / "day0.h5").format()
    assert "channels 1 are missing altogether" in text
    assert "33.3% of the entries are missing" in text


def datamodule_loud(pattern: str) -> Any:
    from lfads_torch.datamodules import BasicDataModule

    data = BasicDataModule(pattern)
    data.setup()
    return data


@few_examples
@given(seed=st.integers(0, 999), n_bins=st.integers(1, 6), n=st.integers(1, 4))
def test_lengths_are_those_of_the_last_observed_entry(
    tmp_path_factory: pytest.TempPathFactory, seed: int, n_bins: int, n: int
) -> None:
    rng = np.random.default_rng(seed)
    recon = rng.poisson(1.0, (n, n_bins, 2)).astype(np.float32)
    recon[rng.random(recon.shape) < 0.6] = np.nan
    recon[:, 0, 0] = 1
    path = tmp_path_factory.mktemp("data") / "day.h5"
    write_session(path, {f"{s}_{k}_data": recon for s in ("train", "valid") for k in KEYS})
    expected = [1 + max(t for t in range(n_bins) if np.isfinite(trial[t]).any()) for trial in recon]
    lengths = read_session(path).splits["valid"].lengths
    if np.isnan(recon).any():
        assert lengths is not None
        assert lengths.tolist() == expected
    else:
        assert lengths is None


KEYS = ("encod", "recon")

# ---- outputs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["NaN", "lengths"])
def test_outputs_end_with_their_trials(tmp_path: Path, how: str) -> None:
    data = datamodule(write(tmp_path, ragged(arrays(7, 5), how)))
    model = lfads(data)
    (path,) = run_posterior_sampling(model, data, "out.h5", num_samples=3, folder=tmp_path)
    output = sample_posterior(model, data, num_samples=3)
    with h5py.File(path) as file:
        lengths = file["valid_lengths"][()]
        np.testing.assert_array_equal(lengths, data.sessions[0].splits["valid"].lengths)
        past = np.arange(6) >= lengths[:, None]
        for name in ("output_params", "factors", "gen_states", "co_means", "con_states"):
            array = file[f"valid_{name}"][()]
            np.testing.assert_array_equal(array, getattr(output, name).numpy())
            assert np.isnan(array[past]).all()
            assert np.isfinite(array[~past]).all(), "missing bins inside a trial have rates"
        assert np.isfinite(file["valid_ic_mean"][()]).all()
        assert np.isnan(file["valid_recon_data"][()][past]).all()
    predicted = model.predict_step(next(iter(data.split_loader("valid"))), 0)[0]
    assert predicted.factors[torch.from_numpy(past)].isnan().all()


def test_copiesmay_hold_nan(tmp_path: Path) -> None:
    data = datamodule(write(tmp_path, arrays()))
    model = lfads(data)
    x = data.sessions[0].splits["valid"].encod_data.copy()
    x[1, 3:] = np.nan
    x[2, 1] = np.nan
    output = sample_posterior(model, x, num_samples=2)
    assert output.factors[1, 3:].isnan().all()
    assert output.factors[2].isfinite().all()
    x[3] = np.nan
    with pytest.raises(UserError, match=r"trials \[?3.* of the array"):
        sample_posterior(model, x)
    x[3] = np.inf
    with pytest.raises(UserError, match="infinite"):
        sample_posterior(model, x)


# ---- the whole way -----------------------------------------------------------------------------


def test_prepared_trials_end_at_an_event(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    go = 1.0 + 2 * np.arange(12)
    stop = go + np.array([0.1, 0.25, 0.999, 5.0, np.nan, -1.0, *[0.4] * 6])
    spikes = [np.sort(rng.uniform(0, 30, 900)) for _ in range(3)]
    np.savez(
        tmp_path / "s.npz",
        spike_times=np.concatenate(spikes),
        spike_times_index=np.cumsum([len(s) for s in spikes]),
        trials_go_time=go,
        trials_stop_time=stop,
    )
    options: dict[str, Any] = {"bin_ms": 50, "align": "go_time:-100:500"}
    done = prepare(tmp_path / "s.npz", tmp_path / "o.h5", until="stop_time", **options)
    assert any("2 trials have no 'stop_time'" in text for text in done.warnings)
    data = read_session(tmp_path / "o.h5", ["trial"])
    expected = {0: 4, 1: 7, 2: 12, 3: 12, **dict.fromkeys(range(6, 12), 10)}
    for split in data.splits.values():
        for row, trial in enumerate(split.extras["trial"]):
            n = expected.pop(int(trial))
            assert split.lengths is not None
            assert split.lengths[row] == n
            assert np.isnan(split.recon_data[row, n:]).all()
            for unit, times in enumerate(spikes):
                counted = bin_spikes(times, 0.05, go[trial] - 0.1, n)
                np.testing.assert_array_equal(split.recon_data[row, :n, unit], counted)
    assert not expected
    with pytest.raises(UserError, match="--until go_time: no trial has a bin before it"):
        prepare(
            tmp_path / "s.npz", tmp_path / "x.h5", until="go_time", bin_ms=50, align="go_time:0:500"
        )
    with pytest.raises(UserError, match="--chop-ms cuts windows that are no trials"):
        prepare(tmp_path / "s.npz", tmp_path / "x.h5", until="stop_time", bin_ms=50, chop_ms=500)


SMALL = [
    *(f"model.{name}=6" for name in ("ic_enc_dim", "ci_enc_dim", "con_dim", "ic_dim", "gen_dim")),
    "trainer.max_epochs=2",
    "trainer.accelerator=cpu",
    "datamodule.batch_size=16",
    "posterior_sampling.fn.num_samples=2",
]


@pytest.mark.filterwarnings("ignore")
def test_a_ragged_file_through_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Checked, trained with figures, sampled; written outputs end with their trials."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr("warnings.showwarning", lambda *_: None)
    session = ragged(arrays(20, 8, bins=(10, 12), channels=(5, 7)), "lengths")
    write_session("day.h5", session, {"bin_ms": 20.0})
    assert cli.main(["check", "day.h5"]) == 0
    assert re.search(r"past the ends of trials, which\s+have 2 to 12 bins", capsys.readouterr().out)
    arguments = ["train", "datamodule.datafile_pattern=day.h5", "--run-dir", "run", *SMALL]
    assert cli.main(arguments) == 0
    assert cli.main(["sample", "run", "--samples", "2", "--output", "again.h5"]) == 0
    for path in ("run/lfads_output_sess0.h5", "again.h5"):
        with h5py.File(path) as file:
            lengths, rates = file["valid_lengths"][()], file["valid_output_params"][()]
            np.testing.assert_array_equal(lengths, session["valid_lengths"])
            past = np.arange(12) >= lengths[:, None]
            assert np.isnan(rates[past]).all()
            assert np.isfinite(rates[~past]).all()
            assert np.isnan(file["valid_recon_data"][()][past]).all()
