"""Ensembles: the rule of greedy selection, scores, and what a folder of one is good for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from lfads_torch.checkpoint import load_model
from lfads_torch.cli import main
from lfads_torch.data import write_session
from lfads_torch.errors import ConfigError, DataError, UserError
from lfads_torch.folder import RunFolder
from lfads_torch.metrics import bits_per_spike
from lfads_torch.post_run.analysis import sample_posterior
from lfads_torch.post_run.ensemble import average, choose_trials, ensemble_models, greedy_select
from lfads_torch.post_run.evaluation import evaluate_run
from lfads_torch.post_run.outputs import load_outputs
from lfads_torch.post_run.report import Wanted
from lfads_torch.post_run.report.record import read_run
from lfads_torch.run_model import run_model
from lfads_torch.runs.ensembling import make_ensemble
from lfads_torch.runs.sampling import sample_run
from lfads_torch.tables import read_csv_log
from tests.small import DIMS, arrays

pytestmark = pytest.mark.filterwarnings("ignore:.*batch of .* trials is more than")


def bits(rates: Any, counts: Any) -> float:
    logs = torch.from_numpy(np.asarray(rates, dtype=np.float64)).log()
    return float(bits_per_spike(logs, torch.from_numpy(np.asarray(counts, dtype=np.float64))))


def plain_greedy(rates: np.ndarray, counts: np.ndarray, most: int) -> list[int]:
    """The rule as a plain loop over whole arrays."""
    chosen: list[int] = []
    curve = []
    for _ in range(most):
        scores = [bits(rates[[*chosen, k]].mean(0), counts) for k in range(len(rates))]
        best = max(scores)
        chosen.append(next(k for k, score in enumerate(scores) if score > best - 1e-10))
        curve.append(best)
    return chosen[: next(i for i, score in enumerate(curve) if score > max(curve) - 1e-10) + 1]


@pytest.fixture(scope="module")
def made_up() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    truth = rng.uniform(0.1, 2.0, (20, 12, 5))
    counts = rng.poisson(truth).astype(np.float32)
    counts[3, 8:] = np.nan
    noise = rng.normal(scale=0.6, size=(6, *truth.shape))
    return truth * np.exp(noise), counts


def test_greedy_selection_is_its_rule(made_up: tuple[np.ndarray, np.ndarray]) -> None:
    rates, counts = made_up
    selection = greedy_select(rates, counts, most=8)
    assert selection.members == plain_greedy(rates, counts, 8)
    mean = average(rates, selection.weights)
    np.testing.assert_allclose(mean, rates[selection.members].mean(0))
    assert bits(mean, counts) == pytest.approx(max(selection.curve), abs=1e-6)
    singles = [bits(one, counts) for one in rates]
    assert max(selection.curve) >= max(singles)
    # The order of members changes their numbers and nothing else.
    turned = greedy_select(rates[::-1].copy(), counts, most=8)
    assert [5 - k for k in turned.members] == selection.members


def test_log_rates_and_other_data(made_up: tuple[np.ndarray, np.ndarray]) -> None:
    rates, counts = made_up
    selection = greedy_select(rates, counts, most=4, space="log")
    mean = average(rates, selection.weights, space="log")
    np.testing.assert_allclose(mean, np.exp(np.log(rates[selection.members]).mean(0)))
    assert bits(mean, counts) == pytest.approx(max(selection.curve), abs=1e-6)
    smooth = greedy_select(rates, rates[:2].mean(0), "r2", most=6)
    assert smooth.members == [0, 1] or smooth.members == [1, 0]
    assert max(smooth.curve) == pytest.approx(1.0)


def test_the_best_pair_is_found_and_equal_members_are_one() -> None:
    truth = np.full((4, 6, 3), 0.5)
    truth[:2] = 2.0
    counts = np.repeat(truth[:, :, :1], 3, axis=2)
    high, low = np.where(truth > 1, 3.0, 0.5), np.where(truth > 1, 1.0, 0.5)
    rates = np.stack([np.full_like(truth, 1.25), low, high])
    assert sorted(set(greedy_select(rates, counts, most=10).members)) == [1, 2]
    same = greedy_select(np.stack([high, high, high]), counts, most=9)
    assert same.members == [0] and same.weights == {0: 1.0}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda r: r[:1], r"ensemble of 1 member\(s\); it needs 2 or more"),
        (lambda r: np.where(np.arange(20)[:, None, None] == 7, np.nan, r), r"member 0.*trials 7 "),
        (lambda r: r[:, :, :5], r"rates have shape \(20, 5, 5\), the data \(20, 12, 5\)"),
    ],
)
def test_rates_that_cannot_be_averaged(
    change: Any, error: str, made_up: tuple[np.ndarray, np.ndarray]
) -> None:
    rates, counts = made_up
    with pytest.raises(UserError, match=error):
        greedy_select(change(rates), counts)


# ---- runs ----------------------------------------------------------------------------------------

SETTINGS: dict[str, Any] = {
    "trainer": {"max_epochs": 2, "accelerator": "cpu", "enable_progress_bar": False},
    "model": {**DIMS, "l2_increase_epoch": 1, "kl_increase_epoch": 1, "lr_init": 0.02},
    "callbacks": {"raster_plot": None, "trajectory_plot": None},
    "logger.tensorboard": None,
    "posterior_sampling.fn.num_samples": 3,
    "datamodule.batch_keys": ["target"],
}


def with_targets(values: dict[str, Any]) -> dict[str, Any]:
    for split in ("train", "valid", "select"):
        if f"{split}_encod_data" in values:
            values[f"{split}_target"] = np.arange(len(values[f"{split}_encod_data"])) % 3
    return values


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    values = arrays(12, 9, 6, channels=(3, 5))
    write_session(folder / "plain.h5", with_targets(values), {"bin_ms": 10.0})
    more = arrays(12, 9, channels=(3, 5), seed=5)
    values |= {f"select_{name}": more[f"valid_{name}"] for name in ("encod_data", "recon_data")}
    write_session(folder / "data.h5", with_targets(values), {"bin_ms": 10.0})
    for name, file, seed in (("seed0", "data", 0), ("seed1", "data", 1), ("plain", "plain", 0)):
        given = {"datamodule.datafile_pattern": str(folder / f"{file}.h5"), "seed": seed}
        run_model({**SETTINGS, **given}, run_dir=folder / name)
    return folder


def test_trials_that_select_train_nothing(runs: Path) -> None:
    with_split, without = (read_csv_log(runs / name) for name in ("seed0", "plain"))
    for name in ("train/recon", "valid/recon", "valid/co_bps_smth"):
        np.testing.assert_array_equal(with_split[name][1], without[name][1])
    assert load_outputs(runs / "seed0").trials("select").n_trials == 9


def test_an_ensemble_of_runs(runs: Path, tmp_path: Path) -> None:
    members = [runs / "seed0", runs / "seed1"]
    made = make_ensemble(members, tmp_path / "mean", num_samples=3, select="all")
    assert (made.select.split, made.scored.split) == ("select", "test")
    about = json.loads((tmp_path / "mean" / "ensemble.json").read_text())
    assert [member["count"] for member in about["members"]] == [1, 1]
    outputs = load_outputs(tmp_path / "mean")
    rates = [load_outputs(run).trials("test")["output_params"] for run in members]
    np.testing.assert_allclose(outputs.test["output_params"], np.mean(rates, axis=0), rtol=1e-6)
    assert "factors" not in outputs.test
    expected = bits(np.mean(rates, axis=0)[..., 3:], outputs.test["recon_data"][..., 3:])
    assert made.scores["ensemble"]["scored"].value == pytest.approx(expected, abs=1e-5)
    evaluation = evaluate_run(tmp_path / "mean", split="test", baselines=False, n_draws=0)
    assert evaluation.scores["lfads"]["co_bps"].value == pytest.approx(expected, abs=1e-5)
    assert RunFolder(tmp_path / "mean").kind == "ensemble"
    with pytest.raises(UserError, match=r"holds an ensemble.*name one of its members: .*seed0"):
        RunFolder(tmp_path / "mean").checkpoint()
    with pytest.raises(UserError, match=r"already holds a finished run"):
        make_ensemble(members, tmp_path / "mean")
    record = read_run(tmp_path / "mean", Wanted(quick=True))
    assert record.scores is not None and record.model is None
    assert record.absent == [], "an ensemble lacks nothing that it could have"
    # Trials of another file: the mean of what each member says of them.
    (new,) = sample_run(tmp_path / "mean", data=runs / "plain.h5", num_samples=3)
    draws = [
        sample_posterior(load_model(run, best=True), runs / "plain.h5", 3, "test", seed=k)
        for k, run in enumerate(members)
    ]
    expected_rates = np.mean([draw.output_params.numpy() for draw in draws], axis=0)
    with h5py.File(new) as file:
        np.testing.assert_allclose(file["test_output_params"][()], expected_rates, rtol=1e-5)


def test_what_the_command_prints_as_json(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    members = [str(runs / "seed0"), str(runs / "seed1")]
    printed = []
    for name in ("a", "b"):
        command = ["ensemble", *members, "-o", str(tmp_path / name), "--samples", "3", "--json"]
        assert main(command) == 0
        printed.append(json.loads(capsys.readouterr().out, parse_constant=pytest.fail))
        assert printed[-1] == json.loads((tmp_path / name / "ensemble.json").read_text())
    for key in ("multiset", "select_curve", "scores", "differences"):
        assert printed[0][key] == printed[1][key], key


def test_a_library_is_a_member(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mean"
    made = make_ensemble([runs / "seed0"], folder, num_samples=3, select="all", also=["mint"])
    assert [member.name for member in made.members] == ["seed0", "mint"]
    outputs = load_outputs(folder)
    pair = [load_outputs(place) for place in (runs / "seed0", folder / "members" / "mint")]
    for split in ("train", "select", "test"):
        rates = [one.trials(split)["output_params"] for one in pair]
        mean = outputs.trials(split)["output_params"]
        np.testing.assert_allclose(mean, np.mean(rates, axis=0), rtol=1e-6)
    # Looked up in the training trials, by the channels that are read.
    library = evaluate_run(runs / "seed0", split="select", baselines=["mint"], n_draws=0)
    row = made.scores["mint"]["select"].value
    assert row == pytest.approx(library.scores["mint"]["co_bps"].value, abs=1e-5)
    with pytest.raises(UserError, match=r"mint, a member of .*samples no other trials"):
        sample_run(folder, data=runs / "plain.h5", num_samples=3)
    with pytest.raises(UserError, match="--also is 'psth'"):
        make_ensemble([runs / "seed0"], tmp_path / "b", also=["psth"])
    with pytest.raises(UserError, match="no 'targets'"):
        make_ensemble(
            [runs / "seed0"], tmp_path / "b", num_samples=3, also=["mint"], condition="targets"
        )


def test_an_ensemble_moves_together_with_its_runs(runs: Path, tmp_path: Path) -> None:
    lab, moved = tmp_path / "lab", tmp_path / "moved"
    members = [shutil.copytree(runs / name, lab / name) for name in ("seed0", "seed1")]
    make_ensemble(members, lab / "mean", num_samples=3, select="all")
    lab.rename(moved)
    _, files, _ = ensemble_models(moved / "mean")
    assert [file.resolve().relative_to(moved).parts[0] for file in files] == ["seed0", "seed1"]
    shutil.rmtree(moved / "seed1")
    with pytest.raises(UserError, match=r"seed1.*a member of .*mean, is gone"):
        ensemble_models(moved / "mean")


def test_greedy_of_checkpoints_and_a_third_of_the_validation_trials(
    runs: Path, tmp_path: Path
) -> None:
    made = make_ensemble(
        [runs / "seed0", runs / "seed1"],
        tmp_path / "mean",
        num_samples=2,
        checkpoints=True,
        select_split=1 / 3,
        split="valid",
        metric="bps",
    )
    assert len(made.members) >= 4
    select, scored = made.select.rows[0], made.scored.rows[0]
    assert len(select) == 3 and sorted([*select, *scored]) == list(range(9))
    targets = load_outputs(runs / "seed0").valid["target"]
    assert sorted(targets[select]) == [0, 1, 2]
    assert "the scored trials chose" in made.text() and "gain over the best member" in made.text()
    best = max(kinds["select"].value for kinds in made.scores.values())
    assert made.scores["ensemble"]["select"].value == pytest.approx(best)
    again = make_ensemble(
        [runs / "seed0", runs / "seed1"],
        tmp_path / "again",
        num_samples=2,
        checkpoints=True,
        select_split=1 / 3,
        split="valid",
        metric="bps",
    )
    assert again.scores == made.scores
    select, scored = choose_trials(load_outputs(runs / "seed0"), 1 / 3, None, 0)
    assert (select.split, scored.split) == ("valid", "test")


def test_what_an_ensemble_refuses(runs: Path, tmp_path: Path) -> None:
    place = tmp_path / "mean"
    with pytest.raises(ConfigError, match=r"ensemble of 1 member\(s\); it needs 2"):
        make_ensemble([runs / "seed0"], place)
    with pytest.raises(DataError, match=r"seed0 and .*plain are not of the same data: the shape"):
        make_ensemble([runs / "seed0", runs / "plain"], place, num_samples=3)
    pair = [runs / "seed0", runs / "seed1"]
    for options, message in (
        ({"metric": "fp_bps"}, r"--metric is 'fp_bps'; .*co_bps"),
        ({"select": "top"}, r"--select is 'top'; legal are greedy, all and top:N"),
        ({"select": "top:5"}, r"top:N is 5; legal are whole numbers >= 1 and <= 2"),
        ({"select_split": "other"}, r"--select-split is 'other'"),
        ({"select_split": 1.5}, r"--select-split is 1\.5; legal are a fraction"),
    ):
        with pytest.raises(UserError, match=message):
            make_ensemble(pair, place, num_samples=3, **options)
    assert not place.exists()
    shutil.copytree(runs / "seed1", tmp_path / "broken")
    (file,) = [p for p in (tmp_path / "broken").glob("lfads_output*.h5") if not p.is_symlink()]
    with h5py.File(file, "r+") as opened:
        opened["select_output_params"][4] = np.nan
    with pytest.raises(DataError, match=r"broken: the rates of trials 4 .*are NaN"):
        make_ensemble([runs / "seed0", tmp_path / "broken"], place, num_samples=3)
    make_ensemble(pair, place, num_samples=3)
    # A mistake does not cost the ensemble that was to be overwritten.
    (place / "members").mkdir(exist_ok=True)
    (place / "members" / "of_before.h5").touch()
    whole = (place / "ensemble.json").read_bytes()
    with pytest.raises(UserError, match=r"--metric is 'fp_bps'"):
        make_ensemble(pair, place, num_samples=3, metric="fp_bps", overwrite=True)
    assert (place / "ensemble.json").read_bytes() == whole and load_outputs(place)
    make_ensemble(pair, place, num_samples=3, overwrite=True)
    assert not (place / "members" / "of_before.h5").exists()
    about = json.loads((place / "ensemble.json").read_text())
    about["members"][0] |= {"sha256": "0", "count": 1}
    (place / "ensemble.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match=r"has changed since .* was made; make the ensemble again"):
        sample_run(place, data=runs / "plain.h5")
