"""What chooses the best checkpoint of a run and the winner of a search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from lfads_torch.arguments import LOSS, mode_of
from lfads_torch.data import write_session
from lfads_torch.errors import ConfigError
from lfads_torch.folder import RunFolder
from lfads_torch.run_model import run_model
from lfads_torch.search import group, result
from lfads_torch.search.run import run_search
from lfads_torch.search.settings import SearchSettings
from lfads_torch.tables import read_csv_log

from ..search.fake import FakePopulation
from ..small import DIMS, arrays

HELD_OUT = "valid/co_bps_smth"
SETTINGS: dict[str, Any] = {
    "trainer": {"max_epochs": 3, "accelerator": "cpu", "enable_progress_bar": False},
    "model": {**DIMS, "l2_increase_epoch": 1, "kl_increase_epoch": 1},
    "callbacks": {"raster_plot": None, "trajectory_plot": None},
    "logger.tensorboard": None,
    "posterior_sampling.fn": None,
}


def write(folder: Path, **options: Any) -> dict[str, Any]:
    path = write_session(folder / "data.h5", arrays(12, 8, **options), {"bin_ms": 10.0})
    return {**SETTINGS, "datamodule.datafile_pattern": str(path)}


def test_the_score_is_logged_smoothed_and_chooses(tmp_path: Path) -> None:
    settings = write(tmp_path, channels=(3, 5), bins=(6, 8))
    run = run_model(
        {**settings, "select_by": "valid/co_bps_smth", "model.lr_init": 0.05},
        run_dir=tmp_path / "run",
    )
    log = read_csv_log(run.run_dir)
    for name in ("bps", "co_bps", "fp_bps"):
        expected: list[float] = []
        for value in log[f"valid/{name}"][1]:
            expected.append(0.3 * expected[-1] + 0.7 * value if expected else value)
        np.testing.assert_allclose(log[f"valid/{name}_smth"][1], expected, rtol=1e-5)
    best = int(np.argmax(log["valid/co_bps_smth"][1]))
    loss = int(np.argmin(log["valid/recon_smth"][1]))
    names = {path.name for path in (run.run_dir / "lightning_checkpoints").iterdir()}
    expected_names = {f"best-epoch={best:04d}.ckpt", f"best-recon-epoch={loss:04d}.ckpt"}
    assert names - {"last.ckpt", "last.ckpt.previous"} == expected_names
    assert run.best_checkpoint is not None and run.best_checkpoint.name == min(expected_names)
    # While training, nothing but the names says which is which.
    (run.run_dir / "status.json").unlink()
    assert RunFolder(run.run_dir).checkpoint(best=True) == run.best_checkpoint


def test_a_resumed_run_goes_on_with_the_smoothed_scores(tmp_path: Path) -> None:
    settings = {**write(tmp_path, channels=(3, 5)), "select_by": "valid/co_bps_smth"}
    whole = run_model(settings, run_dir=tmp_path / "whole")
    run_model({**settings, "trainer.max_epochs": 2}, run_dir=tmp_path / "cut")
    cut = run_model({"trainer.max_epochs": 3}, run_dir=tmp_path / "cut", resume=True)
    name = "valid/co_bps_smth"
    np.testing.assert_array_equal(
        read_csv_log(cut.run_dir)[name][1], read_csv_log(whole.run_dir)[name][1]
    )
    with pytest.raises(ConfigError, match=r"select_by was .* the best checkpoint so far"):
        run_model({"select_by": "valid/recon_smth"}, run_dir=cut.run_dir, resume=True)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"select_by": "valid/co_bps_smth"}, r"select_by is valid/co_bps_smth.*valid/bps_smth"),
        ({"select_by": 3}, r"select_by is 3; legal is the name of a logged metric"),
        (
            {"callbacks.early_stopping.monitor": "valid/fp_bps_smth"},
            r"callbacks\.early_stopping\.monitor is valid/fp_bps_smth.*valid/bps_smth",
        ),
    ],
)
def test_a_score_that_the_data_do_not_have_is_refused_before_training(
    given: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_model({**write(tmp_path), **given}, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_names_imply_the_mode() -> None:
    assert [mode_of(name) for name in ("valid/co_bps_smth", "nlb/psth_r2", "valid/r2")] == 3 * [
        "max"
    ]
    assert [mode_of(name) for name in ("valid/recon_smth", "train/wt_kl/co")] == 2 * ["min"]
    assert SearchSettings(metric="valid/bps_smth").sign == -1
    assert SearchSettings(metric="valid/mine", mode="max").sign == -1
    with pytest.raises(ConfigError, match=r"more is better; leave search\.mode out"):
        SearchSettings(metric="valid/bps_smth", mode="min")


def test_the_data_decide_the_metric_of_a_search() -> None:
    auto = SearchSettings(metric="auto")
    logged = [LOSS, HELD_OUT, "valid/recon/sv", "valid/bps_smth"]
    assert auto.judged(logged).metric == HELD_OUT
    assert auto.judged(logged).sign == -1
    without = [LOSS, "valid/recon/sv"]
    assert (auto.judged(without).metric, auto.judged(without).sign) == ("valid/recon/sv", 1)
    assert auto.judged([LOSS]).metric == LOSS
    assert auto.judged(logged, "valid/bps_smth").metric == "valid/bps_smth"
    assert SearchSettings(metric=LOSS).judged(logged).metric == LOSS
    with pytest.raises(ConfigError, match=r"search\.metric is valid/bps_smth, which is never"):
        auto.judged([LOSS], "valid/bps_smth")


def test_a_lower_loss_does_not_win_against_a_higher_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Planted(FakePopulation):
        def train_epoch(self) -> dict[str, np.ndarray]:
            metrics = super().train_epoch()  # the loss grows with the seed
            return {**metrics, "valid/co_bps_smth": 0.1 * self.seeds / (1 + self.epoch)}

    monkeypatch.setattr(group, "Population", Planted)
    monkeypatch.setattr(result, "run_model", lambda *_, **__: run_result)
    run_result = result.RunResult(tmp_path)
    settings = {
        **write(tmp_path, channels=(3, 5)),
        **{"search.num_samples": 3, "search.stop_after": None},
    }
    run_search(settings, "../configs/search.yaml", method="random", run_dir=tmp_path / "run")
    status = RunFolder(tmp_path / "run").status
    assert [member["member"] for member in status["members"]] == [2, 1, 0]
    assert status["best"] == {"score": pytest.approx(0.1), "member": 2, "epoch": 0}
    for folder in (tmp_path / "run", tmp_path / "run" / "best_model"):
        assert yaml.safe_load((folder / "config.yaml").read_text())["select_by"] == HELD_OUT
    assert (tmp_path / "run" / "figures" / "search_scores.png").is_file()
