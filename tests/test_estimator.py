"""The estimator: arrays to factors and rates, alone and inside scikit-learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import cross_val_score
from sklearn.utils.estimator_checks import check_estimator

from lfads_torch import LFADSEstimator, load_model, sample_posterior
from lfads_torch.data.synthetic import lorenz
from lfads_torch.errors import DataWarning, UserError
from lfads_torch.metrics import bits_per_spike

SMALL: dict[str, Any] = {
    "gen_dim": 6,
    "fac_dim": 3,
    "ic_dim": 3,
    "co_dim": 1,
    "max_epochs": 2,
    "num_samples": 2,
    "overrides": {
        "model.ic_enc_dim": 4,
        "model.ci_enc_dim": 4,
        "model.con_dim": 4,
        "callbacks": {"raster_plot": None, "trajectory_plot": None},
    },
}


def spikes(n_trials: int = 20, n_bins: int = 10, n_channels: int = 7, seed: int = 0) -> Any:
    return np.random.default_rng(seed).poisson(0.5, (n_trials, n_bins, n_channels))


@pytest.fixture(scope="module")
def fitted() -> LFADSEstimator:
    return LFADSEstimator(held_out=[1, 4], **SMALL).fit(spikes())


def test_infers_in_the_order_of_the_channels(fitted: LFADSEstimator) -> None:
    X = spikes(n_trials=5, seed=1)
    order = [0, 2, 3, 5, 6, 1, 4]
    output = sample_posterior(fitted.model_, X[..., order[:5]], 2)
    rates = fitted.predict(X)
    assert rates.shape == X.shape
    assert np.array_equal(rates[..., order], output.output_params.numpy())
    assert np.array_equal(fitted.transform(X), output.factors.numpy())
    # Held-out channels are not read.
    other = X.copy()
    other[..., [1, 4]] = 9
    assert np.array_equal(fitted.predict(other), rates)


def test_scores_held_out_channels(fitted: LFADSEstimator) -> None:
    X = spikes(seed=2)
    rates = fitted.predict(X)[..., [1, 4]]
    right = bits_per_spike(torch.log(torch.tensor(rates)), torch.tensor(X[..., [1, 4]]))
    assert fitted.score(X) == pytest.approx(float(right), abs=1e-6)


def test_loading_takes_consent(
    fitted: LFADSEstimator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, given = fitted.save(tmp_path / "lfads.ckpt"), []

    def load_model(source: Path, *, trust: bool) -> Any:
        given.append(trust)
        return fitted.model_

    monkeypatch.setattr("lfads_torch.estimator.load_model", load_model)
    LFADSEstimator.load(path)
    LFADSEstimator.load(path, trust=True)
    assert given == [False, True]


def test_saved_estimator_infers_the_same(fitted: LFADSEstimator, tmp_path: Path) -> None:
    X = spikes(n_trials=4, seed=3)
    loaded = LFADSEstimator.load(fitted.save(tmp_path / "lfads.ckpt"))
    assert np.array_equal(loaded.predict(X), fitted.predict(X))
    assert loaded.get_params() == fitted.get_params()
    load_model(tmp_path / "lfads.ckpt")  # it is a checkpoint, too


@pytest.mark.slow
def test_learns_a_known_system() -> None:
    data = lorenz(n_conditions=10, n_trials=12, seed=0)
    X, rates = data["train_recon_data"], data["train_truth"]
    lfads = LFADSEstimator(
        gen_dim=32, fac_dim=8, co_dim=0, max_epochs=40, num_samples=5, batch_size=12
    )
    predicted = lfads.fit(X).predict(X)
    # A model that learnt nothing has 0 in both.
    assert np.corrcoef(predicted.ravel(), np.asarray(rates).ravel())[0, 1] > 0.85
    assert lfads.score(X) > 0.4


def test_default_batch_of_few_trials_warns_of_nothing(recwarn: pytest.WarningsRecorder) -> None:
    lfads = LFADSEstimator(**SMALL, verbose=True)
    lfads.fit(spikes(n_trials=lfads.batch_size // 4))
    assert not [w.message for w in recwarn if issubclass(w.category, DataWarning)]


def test_trials_of_several_lengths() -> None:
    trials = [trial[:n] for trial, n in zip(spikes(), range(5, 25), strict=True)]
    lfads = LFADSEstimator(**SMALL).fit(trials)
    rates = lfads.predict(trials)
    assert [r.shape for r in rates] == [t.shape for t in trials]
    assert all(np.isfinite(r).all() for r in rates)
    assert np.isfinite(lfads.score(trials))


def test_masked_counts_are_missing() -> None:
    masked = np.ma.masked_array(spikes(), np.zeros(spikes().shape, bool))
    masked[:, 7:, 2] = np.ma.masked
    missing = spikes().astype(float)
    missing[:, 7:, 2] = np.nan
    one, other = (LFADSEstimator(**SMALL).fit(X).predict(spikes()) for X in (masked, missing))
    assert np.array_equal(one, other)


def test_sessions() -> None:
    X = {"24/5 monday": spikes(), "tuesday": spikes(n_channels=4, seed=1)}
    small = {**SMALL, "overrides": {**SMALL["overrides"], "model.encod_data_dim": 3}}
    lfads = LFADSEstimator(held_out=0.3, **small).fit(X)
    assert {name: rates.shape for name, rates in lfads.predict(X).items()} == {
        name: data.shape for name, data in X.items()
    }
    assert lfads.n_features_in_ == {"24/5 monday": 7, "tuesday": 4}
    alone = lfads.transform({"tuesday": X["tuesday"]})["tuesday"]
    assert np.array_equal(alone, lfads.transform(X)["tuesday"])
    with pytest.raises(UserError, match="wednesday"):
        lfads.predict({"wednesday": spikes()})


def test_xarray_in_any_order(fitted: LFADSEstimator) -> None:
    xarray = pytest.importorskip("xarray")
    X = spikes(n_trials=3)
    data = xarray.DataArray(X, dims=("trial", "time", "unit")).transpose("unit", "trial", "time")
    assert np.array_equal(fitted.predict(data), fitted.predict(X))


def test_resumes_in_its_folder(tmp_path: Path) -> None:
    X, settings = spikes(), {**SMALL, "folder": tmp_path / "here"}
    LFADSEstimator(**settings).fit(X)
    with pytest.raises(UserError, match="resume=True"):
        LFADSEstimator(**settings).fit(X)
    longer = LFADSEstimator(**{**settings, "max_epochs": 4}).fit(X, resume=True)
    whole = LFADSEstimator(**{**SMALL, "max_epochs": 4}).fit(X)
    assert np.array_equal(longer.predict(X), whole.predict(X))


def test_search_keeps_the_best_model() -> None:
    search = {"search.num_workers": 2, "search.perturbation_interval": 1}
    overrides = {**SMALL["overrides"], **search, "search.burn_in_period": 1}
    lfads = LFADSEstimator(search=True, **{**SMALL, "overrides": overrides}).fit(spikes())
    assert lfads.predict(spikes()).shape == spikes().shape


def test_is_an_estimator_of_scikit_learn() -> None:
    # Of its checks those that feed data feed trials x features; the rest apply to 3-D data, too.
    estimator = LFADSEstimator(**SMALL)
    check_estimator(estimator)
    assert clone(estimator).get_params() == estimator.get_params()
    scores = cross_val_score(estimator, spikes(), cv=2)
    assert scores.shape == (2,) and np.isfinite(scores).all()


@pytest.mark.parametrize(
    ("X", "words"),
    [
        (np.zeros((4, 5)), "trials x bins x channels"),
        (np.zeros((0, 5, 3)), "trials x bins x channels"),
        ([np.zeros((4, 3)), np.zeros((4, 2))], "as many channels"),
        ([], "empty list"),
        ({}, "empty dict"),
        (np.array([[["a"]]]), "numbers"),
        (np.full((3, 4, 2), np.inf), "infinite values in trials 0, 1, 2"),
        ([np.ones((4, 2)), np.ones((0, 2))], "nothing but NaN in trials 1"),
        ({"day 1": np.ones((4, 5, 2)), "day_1": np.ones((4, 5, 2))}, "told apart"),
    ],
)
def test_refuses_what_is_no_data(X: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        LFADSEstimator(**SMALL).fit(X)


def test_refuses_other_sizes(fitted: LFADSEstimator) -> None:
    with pytest.raises(UserError, match="6 channels"):
        fitted.predict(spikes(n_channels=6))
    with pytest.raises(UserError, match="11 bins"):
        fitted.predict(spikes(n_bins=11))


@pytest.mark.parametrize("held_out", [[7], 8, -1, True, "a", [0.5], 1.5, [[1]]])
def test_refuses_channels_that_cannot_be_held_out(held_out: Any) -> None:
    with pytest.raises(UserError, match=r"held_out is .* legal are"):
        LFADSEstimator(**{**SMALL, "held_out": held_out}).fit(spikes())


@pytest.mark.parametrize(
    ("setting", "words"),
    [({"valid": 0}, "valid is 0"), ({"overrides": ["model.gen_dim=3"]}, "legal is a dict")],
)
def test_refuses_settings(setting: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        LFADSEstimator(**{**SMALL, **setting}).fit(spikes())


def test_names_the_file_that_it_cannot_read_or_write(
    fitted: LFADSEstimator, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="is no file"):
        LFADSEstimator.load(tmp_path / "nothing.ckpt")
    with pytest.raises(UserError, match="is a folder"):
        fitted.save(tmp_path)


def test_times_of_spikes_are_no_counts() -> None:
    nap = pytest.importorskip("pynapple")
    units = nap.TsGroup({0: nap.Ts(np.arange(10.0)), 1: nap.Ts(np.arange(5.0))})
    with pytest.raises(UserError, match=r"X\.count"):
        LFADSEstimator(**SMALL).fit(units)
    # What the message proposes.
    trials = nap.IntervalSet(np.arange(3) * 2.0, np.arange(3) * 2.0 + 1.0)
    assert [units.count(0.1, trial).values.shape for trial in trials] == [(10, 2)] * 3
