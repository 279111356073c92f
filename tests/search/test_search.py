"""Searches with members that train: an ordinary best model, single runs as members, kills."""

from __future__ import annotations

import copy
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lfads_torch
from lfads_torch import cli
from lfads_torch.checkpoint import load_model, read_checkpoint
from lfads_torch.data import write_session
from lfads_torch.data.synthetic import lorenz
from lfads_torch.folder import RunFolder
from lfads_torch.post_run.plots import read_csv_log
from lfads_torch.run_model import run_model
from lfads_torch.search import result
from lfads_torch.search.population import Population
from lfads_torch.search.run import run_search
from lfads_torch.search.space import DEFAULT_SPACE
from lfads_torch.tables import read_exchanges, read_population

EPOCHS = 7
SIZES = ("ic_enc_dim", "ci_enc_dim", "con_dim", "ic_dim", "gen_dim")
SMALL: dict[str, Any] = {
    "trainer": {"max_epochs": EPOCHS, "accelerator": "cpu"},
    "model": {
        **dict.fromkeys(SIZES, 4),
        **{"fac_dim": 3, "co_dim": 1, "l2_increase_epoch": 1, "kl_increase_epoch": 1},
    },
    "datamodule": {"batch_size": 16},
    "posterior_sampling.fn.num_samples": 2,
    "search.num_workers": 4,
    "search.perturbation_interval": 2,
}

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pytorch_lightning")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "tiny.h5"
    write_session(path, lorenz(4, 6, 5, 10, 0.5, seed=1), {"bin_ms": 10.0})
    return path


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted search."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run_search(overrides(data), run_dir=folder)
    return folder


def overrides(data: Path, **more: Any) -> dict[str, Any]:
    return {"datamodule.datafile_pattern": str(data), **copy.deepcopy(SMALL), **more}


def assert_equal(one: Path, other: Path) -> None:
    """Two searches ended the same to the bit."""
    for name in ("population.csv", "exchanges.csv", "best_model/csv_logs/metrics.csv"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    for path in sorted((one / "members").iterdir()):
        states = [read_checkpoint(folder / "members" / path.name) for folder in (one, other)]
        for name, tensor in states[0]["state_dict"].items():
            assert torch.equal(tensor, states[1]["state_dict"][name])
    status, others = RunFolder(one).status, RunFolder(other).status
    for name in ("ended", "best", "members", "epochs"):
        assert status[name] == others[name]


def test_the_best_model_has_the_weights_and_numbers_of_the_best_member(whole: Path) -> None:
    status = RunFolder(whole).status
    winner = status["members"][0]["member"]
    table = read_population(whole)
    final = (table["epoch"] == EPOCHS - 1) & (table["member"] == winner)
    model = load_model(whole / "best_model", best=False)
    for name, value in model.tunables().items():
        assert float(value) == pytest.approx(table[f"hp/{name}"][final][0])
    last = read_checkpoint(whole / "best_model/lightning_checkpoints/last.ckpt")
    smoothed = float(last["lfads"]["extra"]["recon_smth"])
    assert smoothed == pytest.approx(status["members"][0]["score"])
    assert min(table["valid/recon_smth"]) == status["best"]["score"]
    for record in (status, RunFolder(whole / "best_model").status):
        assert record["environment"]["version"] == lfads_torch.__version__
    assert last["lfads_run"]["data"] == status["data"]
    # Scores of the exchange are those of the epoch before.
    copies = read_exchanges(whole)
    assert set(copies["epoch"].tolist()) == {3, 5}
    for row in range(len(copies["epoch"])):
        before = (table["epoch"] == copies["epoch"][row] - 1) & (
            table["member"] == copies["parent"][row]
        )
        assert copies["parent_score"][row] == table["valid/recon_smth"][before][0]


def test_an_exchange_never_makes_the_best_score_worse(whole: Path) -> None:
    table, copies = read_population(whole), read_exchanges(whole)
    for epoch in np.unique(copies["epoch"]):
        before, after = table["epoch"] == epoch - 1, table["epoch"] == epoch
        best = table["member"][before][np.argmin(table["valid/recon_smth"][before])]
        rows = after & (table["member"] == best)
        assert table["parent"][rows] == best


def test_pictures_are_drawn(whole: Path) -> None:
    for name in ("search_scores.png", "search_hyperparameters.png"):
        assert (whole / "figures" / name).stat().st_size > 10_000


def test_the_best_model_goes_on_as_an_ordinary_run(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "best"
    shutil.copytree(whole / "best_model", folder)
    before = read_csv_log(folder)["valid/recon_smth"]
    run_model({"trainer.max_epochs": EPOCHS + 2}, run_dir=folder, resume=True)
    epochs, values = read_csv_log(folder)["valid/recon_smth"]
    assert epochs.tolist() == list(range(EPOCHS + 2))
    np.testing.assert_array_equal(values[:EPOCHS], before[1])
    assert np.isfinite(values).all()


def test_a_member_equals_a_single_run(data: Path, tmp_path: Path) -> None:
    # One number at one value and all others left out, so that a single run can have them.
    more = {"trainer.max_epochs": 3, "model.lr_init": 4e-3, "seed": 5}
    left_out = [name for name in DEFAULT_SPACE if name != "lr_init"]
    search = {**overrides(data, **more), **{f"search.space.{name}": None for name in left_out}}
    with pytest.warns(UserWarning, match="nobody will copy anybody"):
        run_search({**search, "search.perturbation_interval": 5}, run_dir=tmp_path / "search")
    single = {k: v for k, v in overrides(data, **more).items() if not k.startswith("search")}
    quiet = {"trainer.enable_progress_bar": False, "posterior_sampling.fn": None}
    run_model({**single, **quiet, "seed": 7}, config_path="pbt.yaml", run_dir=tmp_path / "single")
    alone = read_csv_log(tmp_path / "single")
    table = read_population(tmp_path / "search")
    mine = table["member"] == 2
    for name in ("train/loss", "train/recon", "valid/recon_smth", "valid/bps"):
        np.testing.assert_allclose(table[name][mine], alone[name][1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("epoch", [0, 3, 5])
def test_an_interrupted_search_ends_as_the_uninterrupted_one(
    epoch: int, data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Population.train_epoch

    def interrupted(self: Population) -> Any:
        if self.epoch == epoch:
            raise KeyboardInterrupt
        return real(self)

    folder = tmp_path / "run"
    monkeypatch.setattr(result, "draw_search", lambda *_: [])  # the pictures are not compared
    with monkeypatch.context() as patch:
        patch.setattr(Population, "train_epoch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_search(overrides(data), run_dir=folder)
    table = folder / "population.csv"
    assert (max(read_population(folder)["epoch"]) if table.is_file() else -1) == epoch - 1
    run_search(run_dir=folder, resume=True)
    assert_equal(folder, whole)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "lfads_torch.cli", *arguments]


def texts(data: Path) -> list[str]:
    sizes = [f"model.{name}=4" for name in SIZES]
    more = ["model.fac_dim=3", "model.co_dim=1", "trainer.accelerator=cpu"]
    more += ["model.l2_increase_epoch=1", "model.kl_increase_epoch=1"]
    more += [f"trainer.max_epochs={EPOCHS}", "datamodule.batch_size=16"]
    more += ["posterior_sampling.fn.num_samples=2", "search.num_workers=4"]
    more += ["search.perturbation_interval=2", f"datamodule.datafile_pattern={data}"]
    return [*sizes, *more]


@pytest.mark.slow
def test_kills_at_any_moment_lose_at_most_an_epoch(data: Path, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    rng = np.random.default_rng(0)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    arguments = ["pbt", *texts(data), "--run-dir", str(folder)]
    written = [folder / name for name in ("population.csv", "search_state.pt", "exchanges.csv")]
    reached = 0
    for mark in [*written, written[1], written[0]]:
        process = subprocess.Popen(
            command(*arguments), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        # Wait until a file is written, then kill a random while later.
        before = mark.stat().st_mtime_ns if mark.is_file() else 0
        while process.poll() is None:
            if mark.is_file() and mark.stat().st_mtime_ns != before:
                time.sleep(float(rng.uniform(0, 0.3)))
                break
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
        if RunFolder(folder).status.get("stage") == "complete":
            break
        assert process.returncode == -signal.SIGKILL, errors.decode()
        # No more is lost than the epoch that was going on.
        done = read_checkpoint(folder / "search_state.pt") if written[1].is_file() else None
        epochs = done["population"]["epoch"] if done else 0
        assert epochs >= max(read_population(folder)["epoch"], default=0)
        assert epochs >= reached
        reached = epochs
        arguments = ["pbt", "--resume", str(folder)]
    subprocess.run(command(*arguments), env=environment, check=True, capture_output=True)
    assert_equal(folder, whole)


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = subprocess.Popen(
        command("pbt", *texts(data), "trainer.max_epochs=10000", "--run-dir", str(folder)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    while not (folder / "search_state.pt").is_file() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert f"lfads pbt --resume {folder}" in errors.decode()


def test_the_command_line_searches_resumes_and_samples(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr("warnings.showwarning", lambda *_: None)
    monkeypatch.setattr("warnings.filters", [])
    folder = tmp_path / "run"
    overrides = [text for text in texts(data) if "search" not in text]
    overrides += ["trainer.max_epochs=2", "search=halving", "search.num_samples=3"]
    assert cli.main(["search", *overrides, "--run-dir", str(folder)]) == 0
    captured = capsys.readouterr()
    assert f"run folder: {folder}" in captured.out
    assert f"written: {folder / 'best_model/lfads_output_tiny.h5'}" in captured.out
    assert f"written: {folder / 'figures/search_scores.png'}" in captured.out
    assert "members   epoch" in captured.err
    assert "the search ended: trainer.max_epochs=2 is reached" in captured.err
    assert cli.main(["search", "--resume", str(folder), "trainer.max_epochs=3"]) == 0
    assert RunFolder(folder).status["epochs"] == 3
    assert cli.main(["sample", str(folder), "--ensemble", "--samples", "2"]) == 0
    assert "lfads_output_ensemble_tiny.h5" in capsys.readouterr().out
    assert cli.main(["pbt", "--resume", str(folder), "--run-dir", "x"]) == 2
    assert cli.main(["pbt", f"datamodule.datafile_pattern={data}", "search.num_workers=1"]) == 2
    assert "population of one" in capsys.readouterr().err
