"""What is changed when a run or a search goes on acts from then on, or is refused."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from lfads_torch import run_model
from lfads_torch.checkpoint import read_checkpoint
from lfads_torch.data import write_session
from lfads_torch.errors import ConfigError
from lfads_torch.folder import LAST, RunFolder
from lfads_torch.runs import run as of_runs
from lfads_torch.runs.compose import read_config
from lfads_torch.search.run import run_search
from tests.small import arrays

from .test_checkpoints import RUN, SMALL

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs with a plateau schedule that has lowered its rate, and a search."""
    folder = tmp_path_factory.mktemp("made")
    write_session(folder / "data.h5", arrays(n_train=8))
    data = {"datamodule.datafile_pattern": str(folder / "data.h5"), "datamodule.batch_size": 4}
    schedule = {"model.lr_scheduler": True, "model.lr_patience": 0, "model.lr_decay": 0.5}
    # A negative threshold would count the second epoch as a plateau: so does a loss that rises.
    run_model(
        {**RUN, **data, **schedule, "trainer.max_epochs": 2, "model.lr_init": 0.5},
        run_dir=folder / "run",
    )
    run_search(
        {**SMALL, **data, "search.num_workers": 2, "trainer.max_epochs": 2},
        run_dir=folder / "search",
    )
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made / "run", tmp_path / "run")


def go_on(run: Path, epochs: int = 3, **overrides: Any) -> None:
    run_model({"trainer.max_epochs": epochs, **overrides}, run_dir=run, resume=True)


def rows(run: Path, name: str) -> list[float]:
    with open(run / "csv_logs/metrics.csv") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row[name]]


def test_the_optimiser_takes_every_change(run: Path) -> None:
    changes = {
        "model.lr_init": 0.03,
        "model.lr_adam_beta1": 0.8,
        "model.lr_adam_beta2": 0.99,
        "model.lr_adam_epsilon": 1e-6,
        "model.weight_decay": 0.7,
        "model.l2_increase_epoch": 0,
        "model.lr_decay": 0.9,
        "model.lr_patience": 17,
        "model.lr_stop": 1e-4,
    }
    go_on(run, **changes)
    state = read_checkpoint(run / LAST)
    (group,) = state["optimizer_states"][0]["param_groups"]
    assert group["lr"] == pytest.approx(0.03)
    assert group["betas"] == (0.8, 0.99)
    assert group["eps"] == 1e-6
    assert group["weight_decay"] == pytest.approx(0.7)
    (schedule,) = state["lr_schedulers"]
    assert (schedule["factor"], schedule["patience"]) == (0.9, 17)
    assert schedule["min_lrs"] == [1e-4]
    assert rows(run, "hp/lr_init") == pytest.approx([0.5, 0.5, 0.03])
    recorded = RunFolder(run).status["changes"]
    assert {entry["key"] for entry in recorded} == {*changes, "trainer.max_epochs"}
    assert {entry["from_epoch"] for entry in recorded} == {2}
    before = {entry["key"]: entry["before"] for entry in recorded}
    assert (before["model.lr_init"], before["model.lr_patience"]) == (0.5, 0)
    # A second change is added to the first.
    go_on(run, 4, **{"model.lr_init": 0.02})
    recorded = RunFolder(run).status["changes"]
    found = [(e["from_epoch"], e["now"]) for e in recorded if e["key"] == "model.lr_init"]
    assert found == [(2, 0.03), (3, 0.02)]


def test_a_rate_that_the_schedule_has_lowered_stays_where_nothing_is_changed(run: Path) -> None:
    state = read_checkpoint(run / LAST)
    before = (
        state["lr_schedulers"][0]["best"],
        state["optimizer_states"][0]["param_groups"][0]["lr"],
    )
    go_on(run, **{"model.kl_ic_scale": 1e-3})
    after = read_checkpoint(run / LAST)
    lr = after["optimizer_states"][0]["param_groups"][0]["lr"]
    assert lr <= before[1]
    assert after["lr_schedulers"][0]["best"] <= before[0]


def test_terms_of_the_objective_and_batches_change(run: Path) -> None:
    changes = {
        "model.kl_ic_scale": 0.25,
        "model.kl_increase_epoch": 0,
        "model.dropout_rate": 0.4,
        "model.train_aug_stack.transforms.0.cd_rate": 0.1,
        "datamodule.batch_size": 8,
        "model.cell_clip": 2.0,
    }
    steps = read_checkpoint(run / LAST)["global_step"]
    go_on(run, **changes)
    state = read_checkpoint(run / LAST)
    assert state["global_step"] == steps + 1  # of 8 trials, where 4 made two steps
    assert rows(run, "hp/dropout_rate")[-1] == pytest.approx(0.4)
    assert rows(run, "hp/kl_ic_scale")[-1] == pytest.approx(0.25)
    assert rows(run, "hp/cd_rate")[-1] == pytest.approx(0.1)
    assert rows(run, "train/wt_kl/ramp")[-1] == 1
    weighted = rows(run, "train/wt_kl/ic")
    assert weighted[-1] > 1e4 * weighted[-2]  # of the sizes 0.25 and 1e-6
    assert state["hyper_parameters"]["cell_clip"] == 2.0


def test_more_patience_goes_on_where_less_had_stopped(made: Path, tmp_path: Path) -> None:
    stopping = {"mode": "max", "patience": 1, "burn_in_period": 0}
    data = {"datamodule.datafile_pattern": str(made / "data.h5"), "datamodule.batch_size": 4}
    # Of a loss that falls the largest value is the first: each later epoch is one without progress.
    settings = {
        "callbacks.early_stopping": stopping,
        "trainer.max_epochs": 6,
        "model.lr_init": 0.01,
    }
    run = tmp_path / "run"
    run_model({**RUN, **data, **settings}, run_dir=run)
    epochs = RunFolder(run).status["epochs"]
    assert epochs < 6
    go_on(run, 7)
    assert RunFolder(run).status["epochs"] == epochs  # stopped is stopped
    with pytest.raises(ConfigError, match=r"would change nothing: .* early stopping ended"):
        go_on(run, 7, **{"model.lr_init": 0.03})
    go_on(run, 8, **{"callbacks.early_stopping.patience": 50})
    assert RunFolder(run).status["epochs"] == 8


REFUSED: dict[str, tuple[Any, str]] = {
    "seed": (3, "draws so far come from it"),
    "model.gen_dim": (9, "what the network is made of"),
    "model.variational": (False, "what the network is made of"),
    "model.ic_prior.variance": (0.3, "where its weights begin"),
    "model.co_prior.tau": (3.0, "where its weights begin"),
    "model.ci_lag": (2, "what the network is made of"),
    "datamodule.reshuffle_tv_seed": (1, "validation has held out"),
    "datamodule.sv_rate": (0.2, "validation has held out"),
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_cannot_act_is_refused_and_nothing_is_written(key: str, run: Path) -> None:
    files = {f: f.read_bytes() for f in run.rglob("*") if f.is_file() and not f.is_symlink()}
    value, reason = REFUSED[key]
    with pytest.raises(ConfigError, match=rf"{key} was .* cannot become {value!r}.*{reason}"):
        go_on(run, **{key: value})
    assert {f: f.read_bytes() for f in files} == files


def test_a_change_without_an_epoch_to_act_in_is_refused(run: Path) -> None:
    for key in ("model.lr_init", "trainer.gradient_clip_val"):
        with pytest.raises(ConfigError, match=rf"{key} would change nothing: 2 epochs are trained"):
            go_on(run, 2, **{key: 0.9})
    # Samples are drawn again, so what concerns them acts.
    go_on(run, 2, **{"posterior_sampling.fn.num_samples": 3})
    assert read_config(run)["posterior_sampling"]["fn"]["num_samples"] == 3
    assert json.loads((run / "status.json").read_text())["changes"][-1]["now"] == 3


def test_a_change_is_kept_where_its_run_is_killed_before_the_next_checkpoint(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(of_runs._Run, "_fit", killed)
        go_on(run, **{"model.lr_init": 0.03})
    run_model(run_dir=run, resume=True)
    group = read_checkpoint(run / LAST)["optimizer_states"][0]["param_groups"][0]
    assert group["lr"] <= 0.03
    assert rows(run, "hp/lr_init") == pytest.approx([0.5, 0.5, 0.03])
    found = [e for e in RunFolder(run).status["changes"] if e["key"] == "model.lr_init"]
    assert [entry["from_epoch"] for entry in found] == [2]


def test_a_search_refuses_what_its_decisions_follow_from(made: Path, tmp_path: Path) -> None:
    search = shutil.copytree(made / "search", tmp_path / "search")
    for key, value in (("model.lr_init", 0.1), ("search.patience", 9), ("seed", 5)):
        with pytest.raises(ConfigError, match=rf"{key} was .* cannot become .* a search goes on"):
            run_search({key: value}, run_dir=search, resume=True)
    more = {"trainer.max_epochs": 3, "trainer.gradient_clip_val": 1.5, "search.chunk": 1}
    run_search(more, run_dir=search, resume=True)
    recorded = {e["key"]: e["from_epoch"] for e in RunFolder(search).status["changes"]}
    assert recorded == dict.fromkeys(more, 2)
