"""Several seeds at once: each is the run of that seed alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from lfads_torch.checkpoint import load_model
from lfads_torch.cli import main
from lfads_torch.data import write_session
from lfads_torch.errors import DivergedError, UserError
from lfads_torch.folder import RunFolder
from lfads_torch.post_run.report import Wanted
from lfads_torch.post_run.report.comparison import seed_groups
from lfads_torch.post_run.report.record import read_run
from lfads_torch.run_model import run_model
from lfads_torch.runs.compose import compose_config
from lfads_torch.search import seeds
from lfads_torch.search.seeds import train_seeds
from lfads_torch.tables import read_csv_log
from tests.faults.test_kill import left, same
from tests.small import DIMS, arrays

pytestmark = pytest.mark.filterwarnings("ignore:.*batch of .* trials is more than")

SETTINGS: dict[str, Any] = {
    "trainer": {"max_epochs": 4, "accelerator": "cpu", "enable_progress_bar": False},
    "model": {**DIMS, "l2_increase_epoch": 1, "kl_increase_epoch": 1, "lr_init": 0.05},
    "callbacks": {
        **{"raster_plot": None, "trajectory_plot": None},
        "early_stopping": {"burn_in_period": 0, "patience": 1},
    },
    "logger.tensorboard": None,
    "posterior_sampling.fn.num_samples": 2,
    "select_by": "valid/co_bps_smth",
    "seed": 3,
}


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    path = write_session(tmp_path / "data.h5", arrays(12, 8, channels=(3, 5)), {"bin_ms": 10.0})
    return {**SETTINGS, "datamodule.datafile_pattern": str(path)}


def assert_same_runs(one: Path, other: Path) -> None:
    first, second = read_csv_log(one), read_csv_log(other)
    for name in ("train/loss", "valid/recon_smth", "valid/co_bps_smth", "hp_metric", "hp/lr_init"):
        assert first[name][0].tolist() == second[name][0].tolist()
        np.testing.assert_allclose(first[name][1], second[name][1], rtol=2e-4, atol=1e-6)
    names = [
        {p.name for p in (run / "lightning_checkpoints").iterdir()} - {"last.ckpt.previous"}
        for run in (one, other)
    ]
    assert names[0] == names[1]
    weights = [load_model(run).state_dict() for run in (one, other)]
    for name, value in weights[0].items():
        np.testing.assert_allclose(value, weights[1][name], rtol=1e-3, atol=2e-5)
    facts = [RunFolder(run).status for run in (one, other)]
    for key in ("stage", "epochs", "best_checkpoint", "outputs", "data"):
        assert facts[0][key] == facts[1][key], key


def test_stacked_seeds_are_runs_alone_and_go_on(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = train_seeds(settings, 2, run_dir=tmp_path / "seeds")
    assert [run.run_dir.name for run in result.runs] == ["seed3", "seed4"]
    for seed in (3, 4):
        run_model({**settings, "seed": seed}, run_dir=tmp_path / f"alone{seed}")
        assert_same_runs(tmp_path / "seeds" / f"seed{seed}", tmp_path / f"alone{seed}")
    about = json.loads((tmp_path / "seeds" / "seeds.json").read_text())
    values = [scores["valid/co_bps"] for scores in about["seeds"].values()]
    assert about["summary"]["valid/co_bps"]["mean"] == pytest.approx(np.mean(values))
    assert about["summary"]["valid/co_bps"]["sd"] == pytest.approx(np.std(values, ddof=1))
    assert "valid/co_bps" in result.text()
    wanted = Wanted(quick=True)
    records = [read_run(run.run_dir, wanted) for run in result.runs]
    (line,) = seed_groups(["a", "b"], records)
    assert line.startswith("a, b differ by their seed alone: bits/spike ")
    with pytest.raises(UserError, match=r"holds several seeds.*name one of its members: .*seed3"):
        RunFolder(tmp_path / "seeds").checkpoint()

    # Killed after two epochs: what is left is as if nothing had happened.
    keep = seeds._Run.keep

    def killed(run: Any, checkpoint: Any, epoch: int, *rest: Any) -> bool:
        if epoch == 2:
            raise KeyboardInterrupt
        return keep(run, checkpoint, epoch, *rest)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(seeds._Run, "keep", killed)
        train_seeds(settings, 2, run_dir=tmp_path / "cut")
    assert RunFolder(tmp_path / "cut").kind == "seeds"
    train_seeds(run_dir=tmp_path / "cut", resume=True)
    assert same(left(tmp_path / "cut"), left(tmp_path / "seeds"))


def test_what_cannot_be_stacked_trains_one_after_another(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = {"trainer.accumulate_grad_batches": 2, "trainer.max_epochs": 1}
    result = train_seeds({**settings, **more}, 2, run_dir=tmp_path / "seeds")
    assert "one after another: trainer.accumulate_grad_batches=2" in capsys.readouterr().err
    assert main(["train", "--resume", str(tmp_path / "seeds"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert printed == {"seeds": result.scores, "summary": result.summary()}
    assert {RunFolder(run.run_dir).status["stage"] for run in result.runs} == {"complete"}
    train_seeds({"trainer.max_epochs": 2}, run_dir=tmp_path / "seeds", resume=True)
    assert {RunFolder(run.run_dir).status["epochs"] for run in result.runs} == {2}
    changed = yaml.safe_load((tmp_path / "seeds" / "config.yaml").read_text())
    assert changed["trainer"]["max_epochs"] == 2
    with pytest.raises(UserError, match=r"seed=8: the seeds of .* stay as they are"):
        train_seeds({"seed": 8}, run_dir=tmp_path / "seeds", resume=True)
    with pytest.raises(UserError, match=r"--seeds is 0; legal are whole numbers >= 1"):
        train_seeds(settings, 0, run_dir=tmp_path / "none")
    with pytest.raises(UserError, match=r"already holds a finished run"):
        train_seeds(settings, 2, run_dir=tmp_path / "seeds")


def test_the_winner_of_a_search_is_trained_with_several_seeds(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {k: v for k, v in settings.items() if k != "callbacks"}
    config |= {"search.num_samples": 2, "trainer.max_epochs": 3}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(compose_config("../configs/search.yaml", config)))
    place = ["--run-dir", str(tmp_path / "run"), "-q"]
    assert main(["search", "--config", str(path), "--seeds", "2", *place]) == 0
    assert "valid/co_bps" in capsys.readouterr().out
    best = yaml.safe_load((tmp_path / "run" / "best_model" / "config.yaml").read_text())
    assert best["model"]["lr_init"] != settings["model"]["lr_init"]
    seeds_of = tmp_path / "run" / "seeds"
    for k in range(2):
        one = yaml.safe_load((seeds_of / f"seed{best['seed'] + k}" / "config.yaml").read_text())
        for key in ("model", "datamodule"):
            assert one[key] == best[key]
        assert one["trainer"]["max_epochs"] == best["trainer"]["max_epochs"]
    # The first of them is the winner anew: one seed, one result.
    winner, first = tmp_path / "run" / "best_model", seeds_of / f"seed{best['seed']}"
    for name in ("valid/co_bps", "valid/recon"):
        values = [read_csv_log(run)[name][1] for run in (winner, first)]
        np.testing.assert_allclose(values[0], values[1], rtol=2e-4, atol=1e-6)
    again = ["search", "--resume", str(tmp_path / "run"), "--seeds", "2", "-q"]
    assert main(again) == 0
    RunFolder(tmp_path / "run").delete()
    assert not seeds_of.exists()


def test_a_seed_that_diverges_keeps_no_other_from_its_outputs(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = seeds.run_model

    def diverging(*args: Any, run_dir: Path, **options: Any) -> Any:
        if run_dir.name == "seed3":
            raise DivergedError("the loss is NaN")
        return alone(*args, run_dir=run_dir, **options)

    monkeypatch.setattr(seeds, "run_model", diverging)
    with pytest.raises(DivergedError, match="seed3: the loss is NaN"):
        train_seeds({**settings, "trainer.max_epochs": 1}, 2, run_dir=tmp_path / "seeds")
    assert RunFolder(tmp_path / "seeds" / "seed4").status["stage"] == "complete"
