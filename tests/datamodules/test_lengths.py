"""Batches of trials of like lengths: who is in them, what they cost, that all else stays."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lfads_torch.datamodules import TrainLoader
from lfads_torch.model import LFADS
from lfads_torch.modules.augmentations import (
    AugmentationStack,
    CoordinatedDropout,
    SampleValidation,
)
from lfads_torch.objective import count_batch
from lfads_torch.post_run.analysis import run_posterior_sampling, sample_posterior
from lfads_torch.tuples import sessions_of
from tests.search.reference_training import assert_as_alone
from tests.small import DIMS, arrays, batch_of, counts, datamodule, lfads, terms_at_means, write

pytestmark = pytest.mark.filterwarnings("ignore::lfads_torch.data.DataWarning")

N_BINS = 40


def ragged(
    n_train: int = 96, n_valid: int = 40, seed: int = 0, least: int = 10, **options: Any
) -> dict[str, Any]:
    """A session whose trials have `least` to all bins."""
    rng = np.random.default_rng(seed)
    session = arrays(n_train, n_valid, bins=(N_BINS, N_BINS), seed=seed, **options)
    for split, n in (("train", n_train), ("valid", n_valid)):
        ends = rng.integers(least, N_BINS + 1, n)
        ends[0] = N_BINS
        past = np.arange(N_BINS) >= ends[:, None]
        for name in ("encod_data", "recon_data"):
            session[f"{split}_{name}"] = np.where(
                past[..., None], np.nan, session[f"{split}_{name}"]
            )
    return session


def trials(step: Any, session: int = 0) -> list[bytes]:
    """Name the trials of a batch by the bins that all of them have."""
    return [row[:10].numpy().tobytes() for row in step[session][0].recon_data]


def equal(one: Any, other: Any) -> bool:
    """Return whether two passes give the same batches, to the bit."""
    fields = [
        [
            [x for s in step for x in step[s][0]._asdict().values() if isinstance(x, Tensor)]
            for step in steps
        ]
        for steps in map(list, (one, other))
    ]
    return len(fields[0]) == len(fields[1]) and all(
        a.shape == b.shape and torch.equal(a.nan_to_num(-1.0), b.nan_to_num(-1.0))
        for left, right in zip(*fields, strict=True)
        for a, b in zip(left, right, strict=True)
    )


# ---- who is in a batch ---------------------------------------------------------------------------


def test_an_epoch_has_each_trial_once_and_next_to_no_padding(tmp_path: Path) -> None:
    data = datamodule(write(tmp_path, ragged()), batch_size=8)
    padded = datamodule(data.datafile_patterns[0], batch_size=8, group_by_length=False)
    steps, mixed = list(data.train_dataloader()), list(padded.train_dataloader())
    assert sorted(chain(*map(trials, steps))) == sorted(chain(*map(trials, mixed)))
    assert len(steps) == len(mixed) == 12
    own, computed = 0, 0
    for step in steps:
        batch = step[0][0]
        n_trials, n_bins, _ = batch.recon_data.shape
        assert batch.encod_data.shape[1] == n_bins >= batch.lengths.max()
        own, computed = own + int(batch.lengths.sum()), computed + n_trials * n_bins
    assert own <= computed < 1.15 * own
    assert {step[0][0].recon_data.shape[1] for step in mixed} == {N_BINS}
    # Neither lengths nor company follow from the place in the epoch, or from the epoch before.
    lengths = [step[0][0].recon_data.shape[1] for step in steps]
    assert lengths != sorted(lengths) and lengths != sorted(lengths, reverse=True)
    company = [
        {frozenset(trials(step)) for step in pass_} for pass_ in (steps, data.train_dataloader())
    ]
    assert len(company[0] & company[1]) < 6


def test_the_seed_and_the_epoch_decide_the_order(tmp_path: Path, monkeypatch: Any) -> None:
    pattern = write(tmp_path, ragged())
    passes = {}
    for seed in ("1", "2"):
        monkeypatch.setenv("PL_GLOBAL_SEED", seed)
        data = datamodule(pattern, batch_size=16)
        passes[seed] = [list(data.train_dataloader()) for _ in range(2)]
        torch.randn(5)  # other draws meanwhile do not matter
        resumed = datamodule(pattern, batch_size=16)
        resumed.begin_pass()
        assert equal(resumed.train_dataloader(), passes[seed][1])
        assert not equal(*passes[seed])
    assert not equal(passes["1"][0], passes["2"][0])


def test_short_batches_of_sessions_meet(tmp_path: Path) -> None:
    """Also where one session begins anew within an epoch."""
    data = datamodule(write(tmp_path, ragged(96), ragged(40, seed=1)), batch_size=16)
    steps = list(data.train_dataloader())
    own = sum(int(step[s][0].lengths.sum()) for step in steps for s in (0, 1))
    computed = sum(16 * step[0][0].recon_data.shape[1] for step in steps)
    assert len(steps) == 12
    assert own <= computed < 1.25 * own
    assert all(step[0][0].recon_data.shape[1] == step[1][0].recon_data.shape[1] for step in steps)


@pytest.mark.parametrize("kind", ["complete", "entries missing", "one session complete"])
def test_what_is_not_ragged_is_as_ever(tmp_path: Path, kind: str) -> None:
    whole = arrays(20, 8, bins=(N_BINS, N_BINS), truth=True)
    if kind == "entries missing":
        whole["train_recon_data"][3, 5:9, 1] = np.nan
        whole["train_encod_data"] = whole["train_recon_data"]
    sessions = [whole, ragged(20, 8, seed=1)][: 1 + (kind == "one session complete")]
    pattern = write(tmp_path, *sessions)
    both = [datamodule(pattern, batch_size=8, group_by_length=on) for on in (True, False)]
    for name in ("train_dataloader", "val_dataloader"):
        assert equal(*(getattr(data, name)() for data in both))
    assert next(iter(both[0].train_dataloader()))[0][0].share is None


def test_streamed_trials_are_cut_alike(tmp_path: Path) -> None:
    options: dict[str, Any] = {"batch_size": 8, "sv_rate": 0.3}
    pattern = write(tmp_path, ragged(24, 9, truth=True, ext=2))
    data, streamed = (datamodule(pattern, max_memory_gb=gb, **options) for gb in (None, 0))
    assert streamed.streamed == [True]
    for name in ("train_dataloader", "val_dataloader"):
        assert equal(getattr(data, name)(), getattr(streamed, name)())
    batch = min(
        (step[0][0] for step in data.train_dataloader()), key=lambda b: b.recon_data.shape[1]
    )
    by_bin = (batch.encod_data, batch.recon_data, batch.ext_input, batch.truth, batch.sv_mask)
    assert {x.shape[1] for x in by_bin} == {batch.recon_data.shape[1]} != {N_BINS}


# ---- loss and gradients --------------------------------------------------------------------------


@pytest.mark.parametrize("mean", [True, False])
def test_an_epoch_has_the_loss_and_gradient_of_all_trials_at_once(
    tmp_path: Path, mean: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However trials are grouped, each entry weighs the same, and its loss is that without cuts."""
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)  # samples at posterior means
    pattern = write(tmp_path, ragged(24, 6))
    whole = datamodule(pattern, batch_size=24, group_by_length=False)
    options = {"kl_co_scale": 0.1, "kl_ic_scale": 0.1, "kl_increase_epoch": 0, "l2_gen_scale": 0.0}
    model = lfads(whole, recon_reduce_mean=mean, l2_con_scale=0.0, **options).eval()
    weights = [p for p in model.parameters() if p.requires_grad]

    def mean_of(data: Any) -> tuple[Tensor, list[Tensor]]:
        terms = [terms_at_means(model, sessions_of(step)).total for step in data.train_dataloader()]
        total = torch.stack(terms).mean()
        return total, list(torch.autograd.grad(total, weights))

    grouped = mean_of(datamodule(pattern, batch_size=4))
    torch.testing.assert_close(grouped, mean_of(whole), rtol=1e-4, atol=1e-4)


def test_scores_of_an_epoch_do_not_change(tmp_path: Path) -> None:
    pattern = write(tmp_path, ragged(24, 10, truth=True))
    modules = [datamodule(pattern, batch_size=4, group_by_length=on) for on in (True, False)]
    model = lfads(modules[0], variational=False, ic_prior=None, co_prior=None).eval()
    summaries = []
    for data in modules:
        numbers = {}
        for split, loader in (("train", data.train_dataloader()), ("valid", data.val_dataloader())):
            scores = model.scores[split]
            scores.reset()
            with torch.no_grad():
                for step in loader:
                    count_batch(scores, model.evaluated(sessions_of(step), split))
            numbers |= {f"{split} {k}": v for k, v in scores.compute(None).items()}
        summaries.append(numbers)
    torch.testing.assert_close(*summaries, equal_nan=True)


@pytest.mark.parametrize("n_bins", [1, 3, 5])
def test_a_batch_that_ends_within_the_ic_segment(
    n_bins: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same loss and outputs as with padding, through augmentations that know the segment."""
    stack = AugmentationStack(
        [CoordinatedDropout(0.5, ic_enc_seq_len=4), SampleValidation(0.2, 4)], [0, 1], [0, 1]
    )
    model = LFADS(
        encod_data_dim=3, encod_seq_len=9, recon_seq_len=11, ic_enc_seq_len=4, **DIMS,
        train_aug_stack=stack,
    )  # fmt: skip
    recon = counts(2, 11, 3)
    recon[:, n_bins:] = torch.nan
    lengths = torch.tensor([n_bins, max(1, n_bins - 1)])
    recon[1, lengths[1] :] = torch.nan
    padded = batch_of(recon[:, :9].clone(), recon)._replace(lengths=lengths)
    padded = padded._replace(sv_mask=torch.ones(2, 9, 3, dtype=torch.bool))
    cut = padded.mapped(lambda x: x[:, :n_bins] if x.ndim == 3 and x.numel() else x)
    cut = cut._replace(truth=padded.truth, ext_input=torch.zeros(2, n_bins, 0))
    assert model.training_step({0: cut}, 0).isfinite()
    model.eval()
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    torch.testing.assert_close(
        terms_at_means(model, {0: cut})._asdict(), terms_at_means(model, {0: padded})._asdict()
    )
    outputs = [
        model.predict_step({0: batch}, 0, sample_posteriors=False)[0] for batch in (cut, padded)
    ]
    torch.testing.assert_close(*outputs, equal_nan=True)


def test_members_of_a_population_are_models_alone(tmp_path: Path) -> None:
    """Where a batch is cut does not depend on whose it is, so neither do random numbers."""
    data = datamodule(write(tmp_path, ragged(13, 4)), batch_size=4)
    models = []
    for seed in range(2):
        torch.manual_seed(seed)
        models.append(
            lfads(data, train_aug_stack=AugmentationStack([CoordinatedDropout(0.3)], [0], [0]))
        )
    assert_as_alone(tmp_path, models, data, 1, members=[1])


@given(
    seed=st.integers(0, 999), n=st.integers(1, 40), share=st.integers(1, 9), top=st.integers(1, 60)
)
@settings(max_examples=25, deadline=None)
def test_no_trial_is_longer_than_where_its_batch_is_cut(
    seed: int, n: int, share: int, top: int
) -> None:
    """And shapes are the same whatever is drawn, also of sessions that begin anew."""
    rng = np.random.default_rng(seed)
    lengths = {s: rng.integers(1, top + 1, n * (s + 1)) for s in (0, 1)}
    rows = {s: np.arange(len(x)) for s, x in lengths.items()}
    device = SimpleNamespace(row_device=torch.device("cpu"))
    loader = TrainLoader([device, device], rows, share, lambda: 0, lengths)  # type: ignore[list-item]
    plans = [loader.plan(s, seed) for s in range(3)]
    assert plans[0].n_bins == plans[1].n_bins == plans[2].n_bins
    for plan in plans:
        for number, batches in plan.rows.items():
            chosen = batches.numpy()
            assert chosen.shape == (len(loader), min(share, len(lengths[number])))
            assert (lengths[number][chosen].max(axis=1) <= plan.n_bins).all()
            seen = np.bincount(chosen.ravel(), minlength=len(rows[number]))
            assert seen.max() <= -(-len(loader) // (len(seen) // min(share, len(seen))))


# ---- what is computed ----------------------------------------------------------------------------


def decoded_rows(model: LFADS) -> list[int]:
    """Have a model note the trials x bins that its decoder runs over."""
    rows: list[int] = []
    plain = model.kernels

    def decoder(inputs: Any, clip: float) -> Any:
        rows.append(inputs.con_proj.shape[-3] * inputs.con_proj.shape[-2])
        return plain.decoder(inputs, clip)

    model.kernels = plain._replace(decoder=decoder)
    return rows


def test_training_computes_the_bins_of_the_trials(tmp_path: Path) -> None:
    pattern, counted = write(tmp_path, ragged()), {}
    for on in (True, False):
        data = datamodule(pattern, batch_size=8, group_by_length=on)
        model = lfads(data)
        rows = decoded_rows(model)
        for step in data.train_dataloader():
            model.training_step(step, 0).backward()
        for step in data.val_dataloader():
            model.validation_step(step, 0)
        counted[on] = sum(rows)
    own = sum(int(data.sessions[0].lengths.sum()) for data in [datamodule(pattern)])
    assert counted[False] == (96 + 40) * N_BINS
    assert counted[True] < 1.15 * own < 0.75 * counted[False]


@pytest.mark.parametrize("how", ["memory", "streamed", "array"])
def test_sampling_computes_the_bins_of_the_trials_and_keeps_their_order(
    tmp_path: Path, how: str
) -> None:
    pattern = write(tmp_path, ragged(40, 30))
    data = datamodule(pattern, max_memory_gb=0 if how == "streamed" else None)
    plain = datamodule(pattern, group_by_length=False)
    model = lfads(data, variational=False)
    expected = sample_posterior(model, plain)
    rows = decoded_rows(model)
    given: Any = ragged(40, 30)["valid_encod_data"] if how == "array" else data
    # A bound that makes three pools of a few batches each.
    per_trial = 4 * N_BINS * 500
    output = sample_posterior(model, given, max_bytes=10 * per_trial)
    torch.testing.assert_close(output, expected, equal_nan=True)
    assert output.factors.shape[1] == N_BINS
    own = int(data.valid_data[0][0].lengths.sum())
    assert own <= sum(rows) < 30 * N_BINS


def test_files_of_posterior_means_keep_their_order(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    pattern, outputs = write(tmp_path, ragged(10, 6)), []
    model = lfads(datamodule(pattern), variational=False)
    for on in (True, False):
        data = datamodule(pattern, group_by_length=on)
        [path] = run_posterior_sampling(model, data, f"{on}.h5", max_bytes=1)
        outputs.append(path)
    import h5py

    with h5py.File(outputs[0]) as one, h5py.File(outputs[1]) as other:
        assert set(one) == set(other)
        for name in one:
            np.testing.assert_allclose(one[name][()], other[name][()], rtol=1e-4, atol=1e-5)
