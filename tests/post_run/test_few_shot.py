"""Channels that a model never saw, predicted from its factors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lfads_torch import cli
from lfads_torch.errors import ConfigError, UserError
from lfads_torch.metrics.regression import poisson_regression
from lfads_torch.metrics.trialwise import SpikeScore, score_value
from lfads_torch.post_run.evaluation import evaluate_run
from lfads_torch.post_run.evaluation.behavior import Keys, read_recording
from lfads_torch.post_run.evaluation.cross import cross_r2
from lfads_torch.post_run.evaluation.few_shot import (
    PENALTIES,
    few_shot_scores,
    fit_channels,
    parse_few_shot,
)
from lfads_torch.post_run.outputs import load_outputs
from lfads_torch.post_run.report import Wanted, report_run, single
from tests.post_run.outputs_of import READ, arrays, write_run
from tests.small import arrays as counts_of
from tests.small import datamodule, lfads, trainer, write

Data = dict[str, Any]


@pytest.fixture
def known() -> Data:
    """Return outputs beside which two channels were set apart, with what the factors hold."""
    data = arrays()
    rng = np.random.default_rng(5)
    loading = rng.normal(size=(2, 2)) * 0.7
    for split in ("train", "valid"):
        rates = 0.5 * np.exp(data[f"{split}_latents"] @ loading)
        data[f"{split}_extra_data"] = rng.poisson(rates).astype(np.float32)
    return data


def test_all_trials_are_a_plain_poisson_regression(tmp_path: Path, known: Data) -> None:
    from sklearn.linear_model import PoissonRegressor

    run = write_run(tmp_path, known)
    result = evaluate_run(run, n_draws=0, baselines=False, few_shot=[None])
    [score] = result.sessions[0].few_shot["lfads_factors"]
    assert score.n_trials == 60 and len(score.values) == 1
    train, valid = (known[f"{s}_factors"][:, : READ[0]].reshape(-1, 2) for s in ("train", "valid"))
    counts, scored = (
        known[f"{s}_extra_data"][:, : READ[0]].reshape(-1, 2) for s in ("train", "valid")
    )
    scale = train.std(axis=0)
    by_penalty = []
    for alpha in PENALTIES:
        model = PoissonRegressor(alpha=alpha, tol=1e-9, max_iter=1000)
        rates = np.stack([model.fit(train / scale, y).predict(valid / scale) for y in counts.T], 1)
        by_penalty.append(score_value(SpikeScore.of(rates[None], scored[None]), 1))
    assert min(abs(score.mean - value) for value in by_penalty) < 1e-5
    assert score.mean == pytest.approx(max(by_penalty), abs=0.01)
    assert score.mean > 0.1


def test_more_trials_are_better_and_the_draws_are_of_the_seed(tmp_path: Path, known: Data) -> None:
    recording = read_recording(load_outputs(write_run(tmp_path, known))[0], "valid", Keys())
    few, many = few_shot_scores(recording, [3, 40], [0], n_draws=3)["lfads_factors"]
    assert few.mean < many.mean and few.sd > many.sd
    assert len(few.values) == 3
    again, other = (few_shot_scores(recording, [3], [seed], n_draws=3) for seed in (0, 1))
    assert again["lfads_factors"] == [few] != other["lfads_factors"]


def test_a_channel_that_hardly_fires_in_a_few_trials(tmp_path: Path, known: Data) -> None:
    """It is scaled by what it does in all training trials, or later spikes explode."""
    for split in ("train", "valid"):
        read = np.array(known[f"{split}_encod_data"])
        read[..., 0] = 0
        read[-4:, 6:, 0] = 5
        known[f"{split}_encod_data"] = read
    recording = read_recording(load_outputs(write_run(tmp_path, known))[0], "valid", Keys())
    scores = few_shot_scores(recording, [6], [0], n_draws=3)["smoothing"][0].values
    assert min(scores) > -10


def test_bins_past_the_end_of_a_trial_count_for_nothing(tmp_path: Path, known: Data) -> None:
    def score(folder: str) -> list[float]:
        run = write_run(tmp_path / folder, known)
        recording = read_recording(load_outputs(run)[0], "valid", Keys())
        return few_shot_scores(recording, [None], [0])["lfads_factors"][0].values

    for split in ("train", "valid"):
        known[f"{split}_lengths"] = np.full(len(known[f"{split}_extra_data"]), 8)
    before = score("a")
    for split in ("train", "valid"):
        known[f"{split}_extra_data"][:, 8:] = 50
    assert score("b") == before


def test_noise_of_many_features_is_not_fitted() -> None:
    rng = np.random.default_rng(0)
    x, counts = rng.normal(size=(5, 12, 30)), rng.poisson(0.5, (5, 12, 1)).astype(float)
    plain = poisson_regression(x, counts).weight
    assert np.abs(fit_channels(x, counts).weight).max() < 0.2 * np.abs(plain).max()
    assert np.isfinite(fit_channels(x[:1], counts[:1]).weight).all()


def test_the_command(tmp_path: Path, known: Data, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path, known)
    command = ["evaluate", str(run), "--no-baselines", "--draws", "0", "--few-shot"]
    assert cli.main([*command, "all"]) == 0
    assert "60 trials" in capsys.readouterr().out
    stored = json.loads((run / "scores.json").read_text())
    scores = stored["sessions"][0]["few_shot"]["lfads_factors"]
    assert [score["n_trials"] for score in scores] == [60]
    assert scores[0]["sd"] is None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(single, "session_pictures", lambda record, recording: [])
        text = report_run(run, wanted=Wanted(quick=True)).path.read_text()
    assert "Channels that the model never saw" in text and "60 trials" in text
    assert f"<td>{scores[0]['mean']:.3f}</td>" in text
    assert cli.main([*command, "61"]) == 2
    assert "has 60 training trials" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "0", "10,,3", "many", "-1", "1.5"])
def test_numbers_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="--few-shot"):
        parse_few_shot(text)


def test_without_channels_set_apart(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--never-seen 12 sets them apart"):
        evaluate_run(write_run(tmp_path, arrays()), n_draws=0, baselines=False, few_shot=[3])


def test_channels_never_seen_reach_no_encoder_and_no_gradient(tmp_path: Path) -> None:
    """The same training with other channels set apart, with NaN, and with none, is the same."""
    states = []
    for k, extra in enumerate(("ones", "nan", None)):
        session = counts_of(20, 8, bins=(6, 6), channels=(3, 4))
        for split, n in (("train", 20), ("valid", 8)):
            if extra:
                value = np.nan if extra == "nan" else 50.0
                session[f"{split}_extra_data"] = np.full((n, 6, 2), value, np.float32)
        folder = tmp_path / str(k)
        folder.mkdir()
        data = datamodule(write(folder, session), batch_size=10)
        torch.manual_seed(0)
        model = lfads(data)
        trainer(folder, max_epochs=2).fit(model, data)
        states.append(model.state_dict())
    for state in states[1:]:
        assert all(torch.equal(state[name], states[0][name]) for name in states[0])


def test_r2_across_runs(tmp_path: Path, known: Data) -> None:
    """Factors that hold more than another's are not explained by these; the other way they are."""
    from sklearn.linear_model import Ridge

    rng = np.random.default_rng(0)
    wide = {key: value.copy() for key, value in known.items()}
    turn = rng.normal(size=(2, 2))
    for split in ("train", "valid"):
        factors = known[f"{split}_factors"] @ turn
        own = rng.normal(size=(*factors.shape[:2], 2)) * factors.std()
        wide[f"{split}_factors"] = np.concatenate([factors, own], axis=2).astype(np.float32)
    runs = [load_outputs(write_run(tmp_path / k, d)) for k, d in (("a", known), ("b", wide))]
    matrix = cross_r2(runs, "valid")
    assert np.isnan(np.diag(matrix)).all()
    assert matrix[0, 1] > 0.99
    assert matrix[1, 0] < 0.8
    # Against scikit-learn, with next to no penalty.
    x, y = (
        [np.concatenate(run[0].trials(split)["factors"]) for split in ("train", "valid")]
        for run in runs
    )
    error = y[1] - Ridge(1e-3).fit(x[0], y[0]).predict(x[1])
    expected = 1 - (error**2).sum() / ((y[1] - y[1].mean(axis=0)) ** 2).sum()
    assert matrix[1, 0] == pytest.approx(expected, abs=0.01)
    fewer = {key: value[:5] if key.startswith("valid") else value for key, value in wide.items()}
    with pytest.raises(UserError, match="not of the same trials"):
        cross_r2([runs[0], load_outputs(write_run(tmp_path / "c", fewer))], "valid")
