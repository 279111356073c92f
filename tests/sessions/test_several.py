"""Several sessions in one model: any may be absent; what weighs the same is the user's choice."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lfads_torch.datamodules import BasicDataModule
from lfads_torch.errors import ConfigError, UserError
from lfads_torch.model import LFADS
from lfads_torch.modules.priors import MultivariateNormal
from lfads_torch.objective import session_shares
from tests.small import arrays, datamodule, lfads, terms_at_means, trainer, write

N_TRAIN = (12, 7, 4)


@pytest.fixture
def data(tmp_path: Path) -> BasicDataModule:
    sessions = [arrays(n, 3 + i, channels=(3 + i, 3 + i), seed=i) for i, n in enumerate(N_TRAIN)]
    return datamodule(write(tmp_path, *sessions), batch_size=9)


def step_of(data: BasicDataModule) -> dict[int, Any]:
    return {number: pair[0] for number, pair in next(iter(data.train_dataloader())).items()}


def terms_of(model: LFADS, batch: dict[int, Any]) -> Any:
    return terms_at_means(model, batch)


# Any session may be absent ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "present", [c for n in (1, 2, 3) for c in itertools.combinations(range(3), n)]
)
def test_outputs_do_not_depend_on_who_else_is_there(
    data: BasicDataModule, present: tuple[int, ...]
) -> None:
    model = lfads(data).eval()
    batch = step_of(data)
    whole = model(batch)
    some = model({number: batch[number] for number in present})
    assert set(some) == set(present)
    for number in present:
        for ours, theirs in zip(some[number], whole[number], strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("absent", range(3))
def test_training_without_a_session_leaves_its_maps_alone(
    data: BasicDataModule, absent: int
) -> None:
    model = lfads(data)
    batch = {number: pair for number, pair in step_of(data).items() if number != absent}
    model.training_step({n: (b, ()) for n, b in batch.items()}, 0).backward()
    for name, parameter in model.named_parameters():
        group, _, rest = name.partition(".")
        if group in ("readin", "readout") and parameter.requires_grad:
            assert (parameter.grad is None) == rest.startswith(f"{absent}.")
    scores = model.scores["train"].compute()
    assert f"recon/sess{absent}" not in scores
    others = [scores[f"recon/sess{n}"] for n in batch]
    torch.testing.assert_close(scores["recon"], torch.stack(others).mean())


# Fitting some -------------------------------------------------------------------------------------


def test_fitting_some_sessions(data: BasicDataModule, tmp_path: Path) -> None:
    pattern = data.datafile_patterns[0]
    some = datamodule(pattern, batch_size=9, fit_sessions=["day1"])
    steps = list(some.train_dataloader())
    assert all(set(step) == {1} for step in steps)
    assert all(len(step[1][0].encod_data) == 7 for step in steps)  # all it has, of 9 asked for
    assert [set(step) for step in some.val_dataloader()] == [{1}]
    assert {n for step in some.split_loader(["train", "valid"]) for n in step} == {0, 1, 2}
    pair = datamodule(pattern, batch_size=9, fit_sessions=["day2", "day0"])
    assert set(next(iter(pair.train_dataloader()))) == {0, 2}
    model = lfads(some)
    before = {name: p.clone() for name, p in model.named_parameters()}
    trainer(tmp_path).fit(model, datamodule=some)
    changed = {
        name.rsplit(".", 1)[0]
        for name, p in model.named_parameters()
        if name.startswith("read") and not torch.equal(p, before[name])
    }
    assert changed == {"readin.1", "readout.1"}


@pytest.mark.parametrize("names", [["day9"], []])
def test_sessions_that_there_are_not(data: BasicDataModule, names: list[str]) -> None:
    wrong = datamodule(data.datafile_patterns[0], fit_sessions=names)
    with pytest.raises(UserError, match=r"fit_sessions=.*day0, day1, day2"):
        wrong.train_dataloader()


def test_loaders_of_some_sessions(data: BasicDataModule) -> None:
    assert {n for step in data.split_loader("train", session=[0, 2]) for n in step} == {0, 2}
    assert {n for step in data.split_loader("train", session=1) for n in step} == {1}
    with pytest.raises(UserError, match="legal are 0 to 2"):
        data.split_loader("train", session=[0, 3])


# What weighs the same -----------------------------------------------------------------------------


def test_sessions_or_trials_weigh_the_same(data: BasicDataModule) -> None:
    batch = step_of(data)
    torch.manual_seed(0)
    by_session, by_trial = (
        lfads(data, weigh_sessions=w, co_dim=0, con_dim=0, ci_enc_dim=0).eval()
        for w in ("session", "trial")
    )
    by_trial.load_state_dict(by_session.state_dict())
    ours, theirs = terms_of(by_session, batch), terms_of(by_trial, batch)
    losses = np.array([ours.session_recon[n].item() for n in range(3)])
    assert ours.recon.item() == pytest.approx(losses.mean())
    assert theirs.recon.item() == pytest.approx(losses @ N_TRAIN / sum(N_TRAIN))
    # The same holds for the KL terms.
    encoding = by_trial.encode(batch)
    parts = zip(encoding.ic_mean.split(3), encoding.ic_std.split(3), strict=True)
    prior = by_trial.ic_prior
    assert isinstance(prior, MultivariateNormal)
    kls = np.array([prior(mean, std).item() for mean, std in parts])
    scale = by_trial.kl_ic_scale.item()
    assert ours.kl_ic.item() == pytest.approx(scale * kls.mean())
    assert theirs.kl_ic.item() == pytest.approx(scale * (kls @ N_TRAIN) / sum(N_TRAIN))
    # Of the sessions that are there, whatever the batch takes of each.
    some = {n: batch[n] for n in (0, 2)}
    found = terms_of(by_trial, some)
    assert found.recon.item() == pytest.approx((12 * losses[0] + 4 * losses[2]) / 16)


def test_the_logged_loss_weighs_alike(data: BasicDataModule, tmp_path: Path) -> None:
    for weigh_by, weights in (("session", (1, 1, 1)), ("trial", N_TRAIN)):
        model = lfads(data, weigh_sessions=weigh_by)
        one = trainer(tmp_path)
        one.fit(model, datamodule=data)
        logged = {name: float(value) for name, value in one.callback_metrics.items()}
        for split in ("train", "valid"):
            losses = np.array([logged[f"{split}/recon/sess{n}"] for n in range(3)])
            expected = losses @ weights / sum(weights)
            assert logged[f"{split}/recon"] == pytest.approx(expected, rel=1e-5)


def test_one_session_weighs_as_ever(tmp_path: Path) -> None:
    data = datamodule(write(tmp_path, arrays()))
    model = lfads(data, weigh_sessions="trial")
    assert session_shares(model.weights, step_of(data)) is None


def test_an_unknown_weighing(data: BasicDataModule) -> None:
    with pytest.raises(ConfigError, match="weigh_sessions is 'unit'; legal: session, trial"):
        lfads(data, weigh_sessions="unit")
