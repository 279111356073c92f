"""Evaluation of a run: scores, baselines, intervals, files, and data that are not in order."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lfads_torch import cli
from lfads_torch.data.smoothing import gaussian_smooth
from lfads_torch.errors import DataError, UserError
from lfads_torch.metrics import psth_r2
from lfads_torch.metrics.decoding import ALPHAS
from lfads_torch.metrics.nlb import RatesAndBehavior, nlb_scores
from lfads_torch.metrics.trialwise import SpikeScore, score_value
from lfads_torch.post_run.evaluation import COLUMNS, Evaluation, evaluate_run
from lfads_torch.post_run.evaluation.baselines import (
    BASELINES,
    baseline_predictions,
)
from lfads_torch.post_run.evaluation.behavior import Keys, read_recording
from lfads_torch.post_run.evaluation.conditions import leave_one_out
from lfads_torch.post_run.evaluation.factors import fit_factors
from lfads_torch.post_run.evaluation.fits import WIDTHS, choose_smoother
from lfads_torch.post_run.evaluation.scoring import lagged_fit, measured_psths
from lfads_torch.post_run.evaluation.table import Estimate, score_table
from lfads_torch.post_run.outputs import load_outputs
from tests.post_run.outputs_of import ALL, N_CONDITIONS, READ, arrays, write_run

Data = dict[str, Any]

DEFAULT = {"lfads", "lfads_factors", "truth"} | {
    name for name, row in BASELINES.items() if row.is_default
}


@pytest.fixture
def known() -> Data:
    return arrays()


def evaluated(folder: Path, *sessions: Data, bin_ms: float | None = 10.0, **options: Any) -> Any:
    options = {"n_draws": 40, **options}
    return evaluate_run(write_run(folder, *sessions, bin_ms=bin_ms), **options)


class TestTable:
    def test_every_score_beside_every_baseline(self, tmp_path: Path, known: Data) -> None:
        found = evaluated(tmp_path, known)
        assert set(found.scores) == DEFAULT
        expected = {"bps", "co_bps", "fp_bps", "psth_r2", "behavior_r2", "truth_r2", "truth_corr"}
        for row in ("lfads", "smoothing", "psth", "factor_analysis"):
            assert set(found.scores[row]) == expected | {"latents_r2"}
        assert set(found.scores["lfads_factors"]) == {"behavior_r2", "latents_r2"}
        for scores in found.scores.values():
            for name, estimate in scores.items():
                assert name in COLUMNS
                assert estimate.low <= estimate.value <= estimate.high
        # What is nearest to the truth wins, and the truth itself is the ceiling.
        for score in ("co_bps", "fp_bps", "truth_r2", "latents_r2"):
            model = found.scores["lfads"][score].value
            for row in ("smoothing", "psth", "factor_analysis"):
                assert model > found.scores[row][score].value
                assert found.differences[row][score].value == pytest.approx(
                    model - found.scores[row][score].value
                )
        assert found.scores["truth"]["co_bps"].value > found.scores["lfads"]["co_bps"].value
        # All baselines know something.
        for row in ("smoothing", "psth", "factor_analysis"):
            assert found.scores[row]["co_bps"].value > 0
            assert found.scores[row]["behavior_r2"].low > 0

    def test_values_are_those_of_the_metrics(self, tmp_path: Path, known: Data) -> None:
        found = evaluated(tmp_path, known)
        rates, counts = known["valid_output_params"], known["valid_recon_data"]
        held_out = np.s_[:, : READ[0], READ[1] :]
        expected = score_value(SpikeScore.of(rates[held_out], counts[held_out]), 30)
        scores = found.scores["lfads"]
        assert scores["co_bps"].value == pytest.approx(expected)
        train, valid = (
            RatesAndBehavior(known[f"{split}_output_params"], known[f"{split}_behavior"])
            for split in ("train", "valid")
        )
        nlb = nlb_scores(valid, counts, READ, train=train)
        assert found.sessions[0].nlb == pytest.approx(nlb)
        recording = read_recording(load_outputs(tmp_path)[0], "valid", Keys())
        psth, members = measured_psths(recording)
        assert psth.shape == (N_CONDITIONS, *ALL)
        assert scores["psth_r2"].value == pytest.approx(psth_r2(rates, psth, members))

    def test_channels_and_conditions(self, tmp_path: Path, known: Data) -> None:
        session = evaluated(tmp_path, known).sessions[0]
        assert len(session.by_channel["lfads"]["bps"]) == READ[1]
        assert len(session.by_channel["lfads"]["truth_r2"]) == ALL[1]
        assert len(session.by_channel["lfads"]["behavior_r2"]) == 2
        assert len(session.by_condition["smoothing"]["co_bps"]) == N_CONDITIONS
        assert session.facts["conditions"] == ["0", "1", "2", "3"]
        assert session.facts["trials_by_condition"] == [8, 8, 7, 7]

    def test_the_same_seed_gives_the_same_intervals(self, tmp_path: Path, known: Data) -> None:
        first, again, other = (
            evaluated(tmp_path, known, seed=seed, baselines=False).scores["lfads"]["bps"]
            for seed in (0, 0, 1)
        )
        assert first == again
        assert first.value == other.value
        assert first.low != other.low

    def test_without_draws_and_baselines(self, tmp_path: Path, known: Data) -> None:
        found = evaluated(tmp_path, known, n_draws=0, baselines=False)
        assert set(found.scores) == {"lfads", "lfads_factors"}
        assert found.differences == {}
        assert math.isnan(found.scores["lfads"]["bps"].low)
        assert "[" not in found.text().split("\n\n")[1]

    def test_more_trials_narrow_the_interval(self, tmp_path: Path, known: Data) -> None:
        wide = evaluated(tmp_path / "few", known, n_draws=200, baselines=False)
        narrow = evaluated(tmp_path / "few", known, n_draws=200, baselines=False, level=0.5)
        a, b = (e.scores["lfads"]["bps"] for e in (wide, narrow))
        assert a.low < b.low < a.value < b.high < a.high


class TestSessions:
    def test_bits_are_pooled_and_the_rest_averaged(self, tmp_path: Path) -> None:
        sessions = [arrays(seed) for seed in (0, 1)]
        found = evaluated(tmp_path, *sessions, baselines=False)
        gain, spikes = 0.0, 0.0
        for own in sessions:
            counts = own["valid_recon_data"][:, : READ[0], : READ[1]]
            rates = own["valid_output_params"][:, : READ[0], : READ[1]]
            score = SpikeScore.of(rates, counts)
            gain += score_value(score, 30) * counts.sum()
            spikes += counts.sum()
        assert found.scores["lfads"]["bps"].value == pytest.approx(gain / spikes)
        each = [s.scores["lfads"]["behavior_r2"].value for s in found.sessions]
        assert found.scores["lfads"]["behavior_r2"].value == pytest.approx(np.mean(each))
        text = found.text()
        assert "60 valid trials of 2 sessions" in text
        assert "day1" in text

    def test_a_session_that_lacks_a_score_does_not_spoil_it(self, tmp_path: Path) -> None:
        sessions = [arrays(0), arrays(1)]
        sessions[1]["valid_recon_data"][:, :, READ[1] :] = 0
        for split in ("train", "valid"):
            del sessions[1][f"{split}_behavior"]
        found = evaluated(tmp_path, *sessions, baselines=False)
        first = found.sessions[0].scores["lfads"]
        assert math.isnan(found.sessions[1].scores["lfads"]["co_bps"].value)
        assert found.scores["lfads"]["co_bps"].value == pytest.approx(first["co_bps"].value)
        assert found.scores["lfads"]["behavior_r2"].value == first["behavior_r2"].value


class TestMissing:
    def test_missing_bins_are_not_scored(self, tmp_path: Path, known: Data) -> None:
        expected = evaluated(tmp_path / "whole", known)
        rng = np.random.default_rng(0)
        for split in ("train", "valid"):
            gone = rng.random(known[f"{split}_recon_data"].shape[:2]) < 0.15
            known[f"{split}_recon_data"][gone] = np.nan
            known[f"{split}_encod_data"] = known[f"{split}_recon_data"][:, : READ[0], : READ[1]]
            known[f"{split}_behavior"][rng.random((len(gone), READ[0])) < 0.1] = np.nan
            known[f"{split}_truth"][0] = np.nan
        found = evaluated(tmp_path / "gaps", known)
        assert set(found.scores) == DEFAULT - {"truth"}
        for row, scores in found.scores.items():
            for name, estimate in scores.items():
                assert math.isfinite(estimate.value), (row, name)
                if row != "factor_analysis" and name in ("bps", "co_bps", "behavior_r2"):
                    whole = expected.scores[row][name].value
                    assert estimate.value == pytest.approx(whole, abs=0.15), (row, name)

    def test_a_condition_that_training_lacks(self, tmp_path: Path, known: Data) -> None:
        known["train_cond_idx"] = known["train_cond_idx"].astype(float)
        known["train_cond_idx"][known["train_cond_idx"] == 3] = np.nan
        known["valid_cond_idx"] = known["valid_cond_idx"].astype(float)
        known["valid_cond_idx"][0] = np.nan
        found = evaluated(tmp_path, known)
        assert math.isfinite(found.scores["psth"]["co_bps"].value)
        assert found.sessions[0].facts["trials_by_condition"] == [7, 8, 7, 7]

    def test_dead_channels(self, tmp_path: Path, known: Data) -> None:
        for split in ("train", "valid"):
            for name in ("recon_data", "truth"):
                known[f"{split}_{name}"][..., [0, 6]] = 0
            known[f"{split}_encod_data"][..., 0] = 0
        found = evaluated(tmp_path, known)
        for scores in found.scores.values():
            assert all(math.isfinite(e.value) for e in scores.values())
        assert math.isnan(found.sessions[0].by_channel["lfads"]["bps"][0])

    def test_a_model_that_diverged_scores_nan(self, tmp_path: Path, known: Data) -> None:
        known["valid_output_params"][0] = np.nan
        found = evaluated(tmp_path, known, baselines=False)
        for name in ("bps", "co_bps", "truth_r2"):
            assert math.isnan(found.scores["lfads"][name].value), name
        assert "n/a" in found.text()

    @pytest.mark.parametrize("n_trials", [1, 2])
    def test_hardly_any_trials(self, tmp_path: Path, known: Data, n_trials: int) -> None:
        few = {key: value[:n_trials] for key, value in known.items()}
        found = evaluated(tmp_path, few)
        assert math.isfinite(found.scores["lfads"]["bps"].value)
        assert "bits/spike" in found.text()

    def test_one_channel_and_nothing_else(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        session = {}
        for split in ("train", "valid"):
            counts = rng.poisson(1.0, size=(6, 5, 1))
            session |= {f"{split}_recon_data": counts, f"{split}_encod_data": counts}
            session |= {f"{split}_output_params": np.ones((6, 5, 1), np.float32)}
            session |= {f"{split}_factors": np.ones((6, 5, 2), np.float32)}
        found = evaluated(tmp_path, session)
        assert set(found.scores["lfads"]) == {"bps"}
        assert set(found.sessions[0].scores["lfads_factors"]) == set()
        assert "names no conditions" in found.text()


class TestOtherData:
    def test_what_is_no_count_is_scored_by_r2(self, tmp_path: Path, known: Data) -> None:
        for split in ("train", "valid"):
            noise = np.random.default_rng(1).normal(size=known[f"{split}_truth"].shape) * 0.3
            known[f"{split}_recon_data"] = (known[f"{split}_truth"] + noise).astype(np.float32)
            known[f"{split}_encod_data"] = known[f"{split}_recon_data"][:, : READ[0], : READ[1]]
        found = evaluated(tmp_path, known)
        assert found.sessions[0].facts["counts"] is False
        assert found.sessions[0].nlb == {}
        for row in ("lfads", "smoothing", "psth", "factor_analysis"):
            assert {"r2", "co_r2", "fp_r2"} <= set(found.scores[row])
            assert found.scores[row]["co_r2"].value > 0
        assert found.scores["truth"]["co_r2"].value > found.scores["lfads"]["co_r2"].value

    def test_speed_and_interval_of_dmfc(self, tmp_path: Path, known: Data) -> None:
        rng = np.random.default_rng(0)
        for split, n in (("train", 60), ("valid", 30)):
            produced = rng.uniform(40, 100, size=n)
            group = rng.integers(0, 2, size=n)
            zeros = np.zeros(n)
            known[f"{split}_behavior"] = np.column_stack([group, zeros, zeros, zeros, produced])
            known[f"{split}_jitter"] = rng.integers(0, 2, size=n)
        found = evaluated(tmp_path, known)
        assert found.scores["lfads"]["tp_corr"].value == pytest.approx(
            found.sessions[0].nlb["tp_corr"]
        )
        assert "behavior_r2" not in found.scores["lfads"]
        assert "tp_corr" in found.scores["smoothing"]

    def test_psths_of_the_file_and_sets_of_trials(self, tmp_path: Path, known: Data) -> None:
        lists = np.empty(N_CONDITIONS, dtype=object)
        lists[:] = [np.flatnonzero(known["valid_cond_idx"] == c) for c in range(N_CONDITIONS)]
        psth = np.random.default_rng(0).gamma(2.0, size=(N_CONDITIONS, READ[0], ALL[1]))
        known |= {"psth": psth, "valid_cond_idx": lists}
        for split, n in (("train", 60), ("valid", 30)):
            known[f"{split}_decode_mask"] = np.arange(n)[:, None] % 2 == [[0, 1]]
        found = evaluated(tmp_path, known)
        scores, nlb = found.scores["lfads"], found.sessions[0].nlb
        assert scores["psth_r2"].value == pytest.approx(nlb["psth_r2"], abs=1e-9)
        assert len(found.sessions[0].by_channel["lfads"]["behavior_r2"]) == 4
        assert scores["behavior_r2"].value == pytest.approx(nlb["behavior_r2"], abs=0.05)
        assert not any("file has no psth" in note for note in found.notes)
        # That a width lacks the noise in the targets is said; where it is none, none is shown.
        assert any("psth of the file, which stays as it is" in note for note in found.notes)
        assert scores["psth_r2"].low < scores["psth_r2"].value < scores["psth_r2"].high
        baseline = found.scores["psth"]["psth_r2"]
        assert math.isnan(baseline.low) and str(baseline) == f"{baseline.value:.3f}"

    def test_conditions_by_name(self, tmp_path: Path, known: Data) -> None:
        for split in ("train", "valid"):
            names = np.array(["left", "right"])[known.pop(f"{split}_cond_idx") % 2]
            known[f"{split}_direction"] = names
        found = evaluated(tmp_path, known, condition="direction")
        assert found.sessions[0].facts["conditions"] == ["left", "right"]
        assert found.sessions[0].facts["trials_by_condition"] == [15, 15]

    def test_truth_in_other_units(self, tmp_path: Path, known: Data) -> None:
        expected = evaluated(tmp_path / "a", known, baselines=False).scores["lfads"]["truth_r2"]
        for split in ("train", "valid"):
            known[f"{split}_truth"] = known[f"{split}_truth"] * 100
        known["conversion_factor"] = np.array(100.0)
        found = evaluated(tmp_path / "b", known, baselines=False).scores["lfads"]["truth_r2"]
        assert found.value == pytest.approx(expected.value, abs=1e-5)


class TestBaselines:
    def test_smoothing_never_sees_the_bin_it_predicts(self, tmp_path: Path, known: Data) -> None:
        recording = read_recording(load_outputs(write_run(tmp_path, known))[0], "valid", Keys())
        smoother = choose_smoother(known["train_encod_data"], recording)
        assert smoother.width in WIDTHS
        data = known["valid_encod_data"][:1].copy()
        before = smoother(data, leave_own=True)
        data[0, 4, 2] += 50
        after = smoother(data, leave_own=True)
        assert after[0, 4, 2] == before[0, 4, 2]
        assert after[0, 5, 2] > before[0, 5, 2]
        assert smoother(data)[0, 4, 2] > smoother(known["valid_encod_data"][:1])[0, 4, 2]

    def test_the_factor_model_never_sees_the_bin_it_predicts(
        self, tmp_path: Path, known: Data
    ) -> None:
        def rates() -> np.ndarray:
            outputs = load_outputs(write_run(tmp_path, known))[0]
            *_, factors = baseline_predictions(read_recording(outputs, "valid", Keys()))
            assert factors.name == "factor_analysis"
            return np.asarray(factors.rates)

        before = rates()
        known["valid_encod_data"] = known["valid_encod_data"].copy()
        known["valid_encod_data"][0, 4] += 30
        after = rates()
        assert np.array_equal(before[0, 4, : READ[1]], after[0, 4, : READ[1]])
        assert not np.allclose(before[0, 5, : READ[1]], after[0, 5, : READ[1]])
        assert not np.allclose(before[0, 4, READ[1] :], after[0, 4, READ[1] :])

    def test_white_noise_is_smoothed_away(self, tmp_path: Path, known: Data) -> None:
        recording = read_recording(load_outputs(write_run(tmp_path, known))[0], "valid", Keys())
        noise = np.random.default_rng(0).poisson(1.0, size=(60, 15, 3)).astype(float)
        smoother = choose_smoother(noise, recording)
        assert np.ptp(smoother(noise)) < 0.3 * np.ptp(noise)
        assert smoother.prior == 20.0

    def test_factors_from_the_covariance_alone(self) -> None:
        """Against scikit-learn on the samples themselves."""
        from sklearn.decomposition import FactorAnalysis

        rng = np.random.default_rng(0)
        data = rng.normal(size=(40, 10, 2)) @ rng.normal(size=(2, 6))
        data += rng.normal(size=data.shape) * rng.uniform(0.2, 1.0, size=6)
        data -= data.mean(axis=(0, 1))
        ours = fit_factors(data, 2)
        flat = data.reshape(-1, 6)
        sklearns = FactorAnalysis(2, svd_method="lapack", tol=1e-8, max_iter=5000).fit(flat)
        assert ours.score(flat) == pytest.approx(sklearns.score(flat), abs=1e-2)

    def test_baselines_know_nothing_of_the_scored_trials_targets(
        self, tmp_path: Path, known: Data
    ) -> None:
        """What is held out of the scored trials may be anything; predictions stay."""

        def predicted() -> list[np.ndarray]:
            outputs = load_outputs(write_run(tmp_path, known))[0]
            fair = [name for name, row in BASELINES.items() if not row.is_ceiling]
            found = baseline_predictions(read_recording(outputs, "valid", Keys()), fair)
            return [np.asarray(prediction.rates) for prediction in found]

        before = predicted()
        known["valid_recon_data"][:, :, READ[1] :] = 9
        known["valid_recon_data"][:, READ[0] :] = 9
        known["valid_behavior"][:] = 9
        for a, b in zip(before, predicted(), strict=True):
            assert np.array_equal(a, b)

    def test_rows_are_chosen_by_name(
        self, tmp_path: Path, known: Data, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run = write_run(tmp_path, known)
        options = ["evaluate", str(run), "--draws", "0", "--baselines"]
        assert cli.main([*options, "psth-oracle,smoothing"]) == 0
        stored = json.loads((run / "scores.json").read_text())
        assert set(stored["differences"]) == {"smoothing", "psth_oracle"}
        assert "PSTH oracle" in capsys.readouterr().out
        assert cli.main([*options, "psth-orcale"]) == 2
        assert "did you mean psth_oracle" in capsys.readouterr().err

    def test_without_conditions_there_is_no_oracle(self, tmp_path: Path, known: Data) -> None:
        for split in ("train", "valid"):
            del known[f"{split}_cond_idx"]
        assert "psth_oracle" not in evaluated(tmp_path, known).scores
        with pytest.raises(UserError, match="names no conditions, which --baselines psth_oracle"):
            evaluated(tmp_path, known, baselines=["psth_oracle"])


class TestRidge:
    def test_it_sees_what_came_before(self, tmp_path: Path) -> None:
        """Held-out channels and behaviour follow the read ones by three bins."""
        rng = np.random.default_rng(0)
        session: Data = {}
        for split, n in (("train", 80), ("valid", 40)):
            drive = 1.5 + gaussian_smooth(rng.normal(size=(n, 40, 3)), 2.0) * 2
            rates = np.maximum(drive[:, 3:] @ rng.uniform(size=(3, 9)), 0.05)
            late = np.maximum(drive[:, :-3] @ np.eye(3), 0.05)
            counts = rng.poisson(np.concatenate([rates, late], axis=2)).astype(np.float32)
            session |= {
                f"{split}_recon_data": counts,
                f"{split}_encod_data": counts[..., :9],
                f"{split}_output_params": np.ones(counts.shape, np.float32),
                f"{split}_behavior": drive[:, :-3, :2],
            }
        result = evaluated(tmp_path, session, n_draws=0, baselines=["ridge", "smoothing"])
        ridge, smoothing = (result.scores[row] for row in ("ridge", "smoothing"))
        assert set(ridge) == {"co_bps", "behavior_r2"}
        assert ridge["co_bps"].value > smoothing["co_bps"].value + 0.02
        assert ridge["behavior_r2"].value > smoothing["behavior_r2"].value + 0.2

    def test_against_scikit_learn(self) -> None:
        """Lags beyond a trial's ends are those of its first or last bin."""
        from sklearn.linear_model import Ridge

        rng = np.random.default_rng(0)
        x = rng.normal(size=(30, 12, 2))
        y = 2 * x[..., :1] + np.roll(x[..., 1:], 2, axis=1) + rng.normal(size=(30, 12, 1))
        fit = lagged_fit(x, y, (-1, 0, 2))
        padded = np.pad(x, ((0, 0), (2, 2), (0, 0)), mode="edge")
        lagged = np.concatenate([padded[:, 2 - k : 14 - k] for k in (-1, 0, 2)], axis=2)
        scale = np.tile(lagged[..., 2:4].std(axis=(0, 1)), 3)
        flat, target = (lagged / scale).reshape(-1, 6), y.reshape(-1)
        errors = [
            np.abs(Ridge(alpha).fit(flat, target).predict(flat) - fit.fit(x).ravel()).max()
            for alpha in ALPHAS
        ]
        # Up to which bins count for the spread of a feature, which scales its penalty
        assert min(errors) < 2e-3

    def test_nothing_to_predict(self, tmp_path: Path, known: Data) -> None:
        for split in ("train", "valid"):
            known[f"{split}_encod_data"] = known[f"{split}_recon_data"]
        found = evaluated(tmp_path, known, n_draws=0, baselines=["ridge"])
        assert set(found.scores["ridge"]) == {"behavior_r2", "latents_r2"}


class TestGpfa:
    def test_factors_and_held_out_channels(self, tmp_path: Path, known: Data) -> None:
        pytest.importorskip("elephant")
        found = evaluated(tmp_path, known, n_draws=0, baselines=["gpfa", "factor_analysis"])
        gpfa, factors = (found.scores[row] for row in ("gpfa", "factor_analysis"))
        assert set(gpfa) == {"co_bps", "behavior_r2", "latents_r2"}
        for score, value in gpfa.items():
            assert value.value > factors[score].value - 0.1
        assert gpfa["co_bps"].value < found.scores["truth"]["co_bps"].value

    def test_gaps_and_no_elephant(
        self, tmp_path: Path, known: Data, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytest.importorskip("elephant")
        known["train_encod_data"] = np.array(known["train_encod_data"])
        known["train_encod_data"][0, 0] = np.nan
        found = evaluated(tmp_path, known, n_draws=0, baselines=["gpfa"])
        assert "gpfa" not in found.scores
        assert any("day0 lacks GPFA" in note for note in found.notes)
        monkeypatch.setitem(sys.modules, "elephant.gpfa", None)
        with pytest.raises(UserError, match=r"pip install 'lfads-torch\[gpfa\]'"):
            evaluated(tmp_path, known, n_draws=0, baselines=["gpfa"])


class TestOracle:
    def test_it_is_the_mean_of_the_other_trials(self) -> None:
        rng = np.random.default_rng(0)
        data = rng.poisson(1.0, (9, 6, 2)).astype(float)
        data[2, 3] = np.nan
        labels, mean = np.array([0, 1, 0, 1, 0, 1, 0, 2, -1]), np.array([0.5, 2.0])
        kernel = np.exp(-0.5 * (np.arange(6)[:, None] - np.arange(6)) ** 2 / 1.5**2)
        rates = leave_one_out(data, labels, mean, 1.5)
        for trial in range(7):
            others = [k for k in range(9) if labels[k] == labels[trial] and k != trial]
            for n in range(2):
                seen = np.isfinite(data[others, :, n])
                total = kernel @ np.where(seen, data[others, :, n], 0).sum(axis=0)
                expected = (total + mean[n]) / (kernel @ seen.sum(axis=0) + 1)
                np.testing.assert_allclose(rates[trial, :, n], expected, atol=1e-12)
        # The only one of its condition, and one of no known condition.
        np.testing.assert_allclose(rates[7:], np.broadcast_to(mean, (2, 6, 2)))

    def test_it_nears_the_truth_where_trials_of_a_condition_are_alike(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(1)
        courses = np.exp(gaussian_smooth(rng.normal(size=(4, 25, 8)), 4.0) * 3) * 0.4
        session: Data = {}
        for split, n in (("train", 240), ("valid", 600)):
            condition = np.arange(n) % 4
            counts = rng.poisson(courses[condition]).astype(np.float32)
            session |= {
                f"{split}_recon_data": counts,
                f"{split}_encod_data": counts[..., :6],
                f"{split}_output_params": np.full(counts.shape, counts.mean(), np.float32),
                f"{split}_truth": courses[condition],
                f"{split}_cond_idx": condition,
            }
        scores = evaluated(tmp_path, session, n_draws=0, baselines=["psth_oracle"]).scores
        for score in ("bps", "co_bps"):
            truth = scores["truth"][score].value
            assert truth - 0.01 < scores["psth_oracle"][score].value < truth

    def test_a_trial_is_never_averaged_into_its_own_rates(
        self, tmp_path: Path, known: Data
    ) -> None:
        """Also where training trials are scored, which are there twice then."""
        for split in ("train", "valid"):
            before, after = (
                self.rates_of_the_first(tmp_path / name / split, split, known) for name in "ab"
            )
            # Of training trials the mean of all is a prior, which weighs 1 trial of 90.
            assert np.abs(before[0] - after[0]).max() < 0.05
            assert np.abs(before[4] - after[4]).max() > 0.15

    def rates_of_the_first(self, folder: Path, split: str, known: Data) -> np.ndarray:
        """Return the oracle's rates, with spikes added to the first trial in folder b."""
        data = {key: value.copy() for key, value in known.items()}
        if folder.parent.name == "b":
            data[f"{split}_recon_data"][0] += 5
        recording = read_recording(load_outputs(write_run(folder, data))[0], split, Keys())
        [oracle] = baseline_predictions(recording, ["psth_oracle"])
        return np.asarray(oracle.rates)


class TestErrors:
    def test_options(self, tmp_path: Path, known: Data) -> None:
        run = write_run(tmp_path, known)
        with pytest.raises(UserError, match="split is 'vaild'; did you mean valid"):
            evaluate_run(run, split="vaild")
        with pytest.raises(UserError, match="no outputs for split 'test'"):
            evaluate_run(run, split="test")
        with pytest.raises(UserError, match="n_draws=-1"):
            evaluate_run(run, n_draws=-1)
        with pytest.raises(UserError, match=r"level=1\.5"):
            evaluate_run(run, level=1.5)
        with pytest.raises(DataError, match=r"no 'behavoir'.*did you mean behavior"):
            evaluate_run(run, behavior="behavoir")
        with pytest.raises(DataError, match="no 'targets'"):
            evaluate_run(run, condition="targets")

    def test_nothing_to_score_against(self, tmp_path: Path) -> None:
        known = arrays(splits=("train", "valid", "test"))
        del known["test_recon_data"]
        with pytest.raises(UserError, match="no 'test_recon_data' to score against"):
            evaluated(tmp_path, known, split="test")

    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("valid_recon_data", np.zeros((30, 15, 6)), "they must agree"),
            ("valid_truth", np.ones((30, 15, 6)), "'truth' has shape"),
            ("valid_cond_idx", np.zeros(3), "one condition for each of the 30 trials"),
            ("psth", np.zeros((2, 12, 7)), "psth has 2 conditions"),
        ],
    )
    def test_arrays_that_do_not_fit(
        self, tmp_path: Path, known: Data, key: str, value: Any, message: str
    ) -> None:
        known[key] = value
        with pytest.raises(DataError, match=message):
            evaluated(tmp_path, known, baselines=False)

    def test_lists_of_trials_that_there_are_not(self, tmp_path: Path, known: Data) -> None:
        known["valid_cond_idx"] = [np.array([0, 1]), np.array([99])]
        with pytest.raises(DataError, match="lists trials 99 to 99"):
            evaluated(tmp_path, known, baselines=False)


class TestReport:
    def test_files(self, tmp_path: Path, known: Data, capsys: pytest.CaptureFixture[str]) -> None:
        run = write_run(tmp_path, known)
        assert cli.main(["evaluate", str(run), "--draws", "20", "--level", "0.9"]) == 0
        text = capsys.readouterr().out
        assert "30 valid trials of day0; in brackets 90% intervals over trials (20 draws)" in text
        assert f"written: {run / 'scores.json'}" in text
        stored = json.loads((run / "scores.json").read_text())
        found = evaluate_run(run, n_draws=20, level=0.9)
        assert stored == json.loads(json.dumps(found.to_dict()))
        assert stored["scores"]["lfads"]["bps"]["value"] == found.scores["lfads"]["bps"].value
        assert "| LFADS rates" in (run / "scores.md").read_text()

    def test_elsewhere(self, tmp_path: Path, known: Data) -> None:
        run = write_run(tmp_path / "run", known)
        options = ["--no-baselines", "--draws", "0", "--output", str(tmp_path / "other")]
        path = run / "lfads_output_sess0.h5"
        assert cli.main(["evaluate", str(path), *options]) == 0
        assert (tmp_path / "other" / "scores.md").is_file()
        assert not (run / "scores.md").exists()

    def test_mistakes_are_told(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["evaluate", str(tmp_path)]) == 2
        assert "lfads sample" in capsys.readouterr().err

    def test_numbers_that_json_lacks(self) -> None:
        nan = Estimate(math.nan, math.nan, math.inf)
        empty = Evaluation("run", "valid", 0.95, 10, [], {"lfads": {"bps": nan}}, {})
        text = json.dumps(empty.to_dict(), allow_nan=False)
        assert json.loads(text)["scores"]["lfads"]["bps"] == dict.fromkeys(("value", "low", "high"))
        assert str(nan) == "n/a"

    def test_table_by_hand(self) -> None:
        scores = {"lfads": {"bps": Estimate(0.25, 0.2, 0.3)}, "psth": {"co_bps": Estimate(0.1)}}
        assert score_table(scores, markdown=True).splitlines() == [
            "|             | bits/spike           | co-bps |",
            "|-------------|----------------------|--------|",
            "| LFADS rates | 0.250 [0.200, 0.300] |        |",
            "| PSTH        |                      | 0.100  |",
        ]


class TestTime:
    def test_parts_of_time_and_the_kind_of_split(self, tmp_path: Path, known: Data) -> None:
        """Rates that fail in the last trials show it in the last part, and in the slope."""
        late = np.argsort(known["valid_inds"])[-6:]
        known["valid_output_params"][late] = known["valid_output_params"].mean(axis=(0, 1))
        scored = evaluated(tmp_path, known, by_time=5, n_draws=200)
        parts = scored.sessions[0].by_time["lfads"]["bps"]
        assert parts.rows == [6] * 5
        assert parts.values[-1] < min(parts.values[:-1]) - 0.1
        assert parts.slope_interval[1] < 0
        expected = SpikeScore.of(
            known["valid_output_params"][late][:, : READ[0], : READ[1]],
            known["valid_recon_data"][late][:, : READ[0], : READ[1]],
        )
        assert parts.values[-1] == pytest.approx(score_value(expected, 6))
        behavior = scored.sessions[0].by_time["smoothing"]["behavior_r2"]
        assert np.mean(behavior.values) == pytest.approx(
            scored.scores["smoothing"]["behavior_r2"].value
        )
        # Trials were drawn at random.
        assert any("day0: the valid trials are interleaved" in note for note in scored.notes)
        assert scored.sessions[0].facts["split_kind"] == "interleaved"
        assert "LFADS rates, bits/spike in 5 parts of time" in scored.text()
        plain = json.loads(json.dumps(scored.to_dict()))
        assert plain["sessions"][0]["by_time"]["lfads"]["bps"]["values"] == parts.values

    def test_a_split_in_order_of_time(self, tmp_path: Path, known: Data) -> None:
        known["train_inds"], known["valid_inds"] = np.arange(60), np.arange(60, 90)
        scored = evaluated(tmp_path, known, baselines=False)
        assert any("day0: the valid trials are chronological" in note for note in scored.notes)
        assert scored.sessions[0].by_time == {}
