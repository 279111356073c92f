"""Running a model end to end: repeatability, resuming after a kill, and each mistake."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from pytorch_lightning.callbacks import Callback

from lfads_torch.data import write_session
from lfads_torch.data.synthetic import lorenz
from lfads_torch.errors import ConfigError, DivergedError, UserError
from lfads_torch.folder import LAST, METRICS, RunFolder
from lfads_torch.run_model import RunResult, run_model
from lfads_torch.runs.resume import AtomicCheckpointIO, RunCSVLogger, seed_all
from lfads_torch.tables import read_csv_log

EPOCHS = 5
SMALL: dict[str, Any] = {
    "trainer": {"max_epochs": EPOCHS, "enable_progress_bar": False, "accelerator": "cpu"},
    "model": {
        **dict.fromkeys(("ic_enc_dim", "ci_enc_dim", "con_dim", "ic_dim", "gen_dim"), 6),
        **{"fac_dim": 4, "co_dim": 1, "lr_init": 0.02},
        # the plateau scheduler acts at the first epoch that is not better
        **{"lr_scheduler": True, "lr_patience": 0, "lr_decay": 0.5, "dropout_rate": 0.2},
    },
    "datamodule": {"batch_size": 16},
    "callbacks": {"raster_plot": None, "trajectory_plot": None},
    "posterior_sampling.fn.num_samples": 3,
}

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pytorch_lightning")


class Fail(Callback):
    """Breaks a run off in a hook of an epoch, as a kill would."""

    def __init__(self, epoch: int, hook: str) -> None:
        self.epoch, self.hook = epoch, hook

    def _reach(self, trainer: Any, hook: str) -> None:
        if hook == self.hook and trainer.current_epoch == self.epoch:
            raise RuntimeError("broken off")

    def on_train_epoch_start(self, trainer: Any, *_: Any) -> None:
        self._reach(trainer, "start")

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self._reach(trainer, "batch")

    def on_train_epoch_end(self, trainer: Any, *_: Any) -> None:
        self._reach(trainer, "end")

    def on_train_end(self, trainer: Any, *_: Any) -> None:
        self._reach(trainer, "done")


class Interrupt(Callback):
    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt


class Spoil(Callback):
    """Makes a weight NaN, as a step that is too large would."""

    def on_train_epoch_start(self, trainer: Any, model: Any) -> None:
        if trainer.current_epoch == 2:
            model.decoder.ic_to_g0.weight.data.fill_(float("nan"))


class Slow(Callback):
    def on_train_batch_end(self, *_: Any) -> None:
        time.sleep(0.05)


def target(callback: type) -> dict[str, str]:
    return {"_target_": f"{__name__}.{callback.__name__}"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "tiny.h5"
    write_session(path, lorenz(8, 6, 6, 12, 0.5, seed=1), {"bin_ms": 10.0})
    return path


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """An uninterrupted run."""
    return train(data, tmp_path_factory.mktemp("whole") / "run")


def train(data: Path, folder: Path, overrides: Mapping[str, Any] = {}, **more: Any) -> RunResult:
    own = {"datamodule.datafile_pattern": str(data), **SMALL, **overrides}
    return run_model(own, run_dir=folder, **more)


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / METRICS, newline="") as file:
        return [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]


def logged(folder: Path) -> dict[tuple[str, str], str]:
    """Every value by step and name; fails where one was logged twice."""
    values: dict[tuple[str, str], str] = {}
    for row in rows(folder):
        for name, value in row.items():
            key = (row["step"], name)
            if name not in ("step", "epoch"):
                assert key not in values, f"{key} was logged twice"
                values[key] = value
    return values


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(folder / LAST, weights_only=True)["state_dict"]
    return state


def arrays(path: Path) -> dict[str, np.ndarray]:
    with h5py.File(path) as file:
        return {key: np.asarray(item[()]) for key, item in file.items()}


def assert_same_run(first: Path, second: Path) -> None:
    ours, theirs = weights(first), weights(second)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name
    assert logged(first) == logged(second)
    one, other = (arrays(folder / "lfads_output_tiny.h5") for folder in (first, second))
    for key, array in one.items():
        np.testing.assert_array_equal(array, other[key], err_msg=key)


def test_a_run_leaves_everything_that_is_promised(whole: RunResult, data: Path) -> None:
    folder = whole.run_dir
    status = RunFolder(folder).status
    assert status["stage"] == "complete"
    assert status["epochs"] == EPOCHS
    assert status["outputs"] == ["lfads_output_tiny.h5"]
    assert whole.best_checkpoint is not None and whole.best_checkpoint.is_file()
    assert whole.last_checkpoint == folder / LAST
    assert list((folder / "tensorboard").glob("events*"))
    assert (folder / "config.yaml").is_file()
    names = {name for row in rows(folder) for name in row}
    assert {"train/loss", "valid/recon_smth", "valid/bps", "hp_metric", "cur_epoch"} <= names
    output, source = arrays(whole.outputs[0]), arrays(data)
    assert output["valid_output_params"].shape == source["valid_recon_data"].shape
    np.testing.assert_array_equal(output["train_recon_data"], source["train_recon_data"])
    assert whole.metrics["valid/recon_smth"] > 0


def test_the_working_directory_is_left_as_it_was(whole: RunResult) -> None:
    assert Path.cwd() != whole.run_dir


def test_the_same_seed_gives_the_same_run_and_another_does_not(
    whole: RunResult, data: Path, tmp_path: Path
) -> None:
    train(data, tmp_path / "same")
    assert_same_run(whole.run_dir, tmp_path / "same")
    train(data, tmp_path / "other", {"seed": 1}, do_posterior_sample=False)
    assert logged(tmp_path / "other") != logged(whole.run_dir)


@pytest.mark.parametrize(
    ("hook", "epoch"),
    [("batch", 0), ("start", 2), ("batch", 3), ("end", 3), ("done", EPOCHS)],
)
def test_a_run_broken_off_anywhere_ends_as_if_it_were_not(
    hook: str, epoch: int, whole: RunResult, data: Path, tmp_path: Path
) -> None:
    fail = {**target(Fail), "hook": hook, "epoch": epoch}
    with pytest.raises(RuntimeError, match="broken off"):
        train(data, tmp_path, {"callbacks.fail": fail})
    assert RunFolder(tmp_path).status["stage"] == "training"
    assert not list(tmp_path.glob("*.h5"))
    run_model({"callbacks.fail": None}, run_dir=tmp_path, resume=True)
    assert RunFolder(tmp_path).status["stage"] == "complete"
    assert_same_run(whole.run_dir, tmp_path)


def test_a_kill_between_checkpoint_and_log_loses_no_row(
    whole: RunResult, data: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole.run_dir, tmp_path / "run")
    path = tmp_path / "run" / METRICS
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]) + lines[-1][: len(lines[-1]) // 2])
    status = {**RunFolder(tmp_path / "run").status, "stage": "training"}
    (tmp_path / "run" / "status.json").write_text(json.dumps(status))
    run_model(run_dir=tmp_path / "run", resume=True)
    assert_same_run(whole.run_dir, tmp_path / "run")


def test_more_epochs_go_on_from_the_last(whole: RunResult, data: Path, tmp_path: Path) -> None:
    train(data, tmp_path, {"trainer": {**SMALL["trainer"], "max_epochs": 2}})
    run_model({"trainer.max_epochs": EPOCHS}, run_dir=tmp_path, resume=True)
    assert_same_run(whole.run_dir, tmp_path)
    before = (tmp_path / LAST).stat().st_mtime_ns
    run_model(run_dir=tmp_path, resume=True)  # nothing is left to train
    assert (tmp_path / LAST).stat().st_mtime_ns == before


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.0, 0.13, 0.31, 0.52])
def test_kill_nine(delay: float, whole: RunResult, data: Path, tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
        f"from tests.runs.test_run import *\n"
        f"train(Path({str(data)!r}), Path({str(tmp_path)!r}), "
        "{'callbacks.slow': {'_target_': 'tests.runs.test_run.Slow'}})"
    )
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code])
    while process.poll() is None and not (tmp_path / LAST).is_file():
        time.sleep(0.02)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert RunFolder(tmp_path).status.get("stage") != "complete"
    run_model({"callbacks.slow": None}, run_dir=tmp_path, resume=True)
    assert_same_run(whole.run_dir, tmp_path)


def test_interrupting_is_no_crash_and_can_be_resumed(
    whole: RunResult, data: Path, tmp_path: Path
) -> None:
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path, {"callbacks.interrupt": target(Interrupt)})
    assert signal.getsignal(signal.SIGINT) is handler
    run_model({"callbacks.interrupt": None}, run_dir=tmp_path, resume=True)
    assert_same_run(whole.run_dir, tmp_path)


def test_an_occupied_folder_is_refused_resumed_or_overwritten(data: Path, tmp_path: Path) -> None:
    short = {"trainer": {**SMALL["trainer"], "max_epochs": 1}}
    train(data, tmp_path, short)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"already holds a finished run.*--resume.*--overwrite"):
        train(data, tmp_path, short)
    with pytest.raises(UserError, match="exclude each other"):
        run_model(run_dir=tmp_path, resume=True, overwrite=True)
    with pytest.raises(ConfigError):  # nothing is deleted before everything is checked
        train(data, tmp_path, {"model.gen_dmi": 3}, overwrite=True)
    assert RunFolder(tmp_path).status["stage"] == "complete"
    train(data, tmp_path, {**short, "seed": 3}, overwrite=True)
    assert RunFolder(tmp_path).status["seed"] == 3
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_scripts_that_change_into_the_run_folder_work_unedited(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    overrides = {
        "datamodule": "default",
        "model": "default",
        "datamodule.batch_size": 16,
        "datamodule.datafile_pattern": str(data),
        "trainer.max_epochs": 1,
        **{f"model.{key}": value for key, value in SMALL["model"].items()},
    }
    run_model(overrides=overrides, config_path="../configs/single.yaml")
    assert (tmp_path / "lfads_output_tiny.h5").is_file()


def test_sampling_alone_takes_the_weights_of_a_checkpoint(
    whole: RunResult, data: Path, tmp_path: Path
) -> None:
    result = train(data, tmp_path, checkpoint_dir=whole.run_dir, do_train=False)
    one, other = arrays(whole.outputs[0]), arrays(result.outputs[0])
    np.testing.assert_array_equal(one["valid_factors"], other["valid_factors"])
    assert not (tmp_path / "status.json").exists()
    with pytest.raises(UserError, match="no checkpoint to sample from"):
        train(data, tmp_path / "empty", do_train=False)


def test_training_on_goes_on_from_a_given_checkpoint(
    whole: RunResult, data: Path, tmp_path: Path
) -> None:
    longer = {"trainer": {**SMALL["trainer"], "max_epochs": EPOCHS + 1}}
    folder = whole.run_dir / "lightning_checkpoints"
    train(data, tmp_path, longer, checkpoint_dir=folder, do_posterior_sample=False)
    assert {row["epoch"] for row in rows(tmp_path) if "epoch" in row} == {str(EPOCHS)}
    with pytest.raises(UserError, match=r"there is no checkpoint \(\*\.ckpt\)"):
        train(data, tmp_path / "b", checkpoint_dir=data.parent)


def test_loss_that_turns_nan_stops_and_keeps_the_last_good_checkpoint(
    data: Path, tmp_path: Path
) -> None:
    with pytest.raises(DivergedError, match=r"(?s)epoch"):
        train(data, tmp_path, {"callbacks.spoil": target(Spoil)})
    status = RunFolder(tmp_path).status
    assert status["stage"] == "training" and "epoch" in status["stopped"]
    assert all(value.isfinite().all() for value in weights(tmp_path).values())


def test_on_nan_recover_goes_on(data: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning):
        train(data, tmp_path, {"callbacks.spoil": target(Spoil), "on_nan": "recover"})
    assert RunFolder(tmp_path).status["stage"] == "complete"


def test_callbacks_and_loggers_of_lightning_are_taken_as_they_are(
    data: Path, tmp_path: Path
) -> None:
    timer = {"_target_": "pytorch_lightning.callbacks.Timer", "duration": "00:01:00:00"}
    config = {
        "callbacks": {
            **SMALL["callbacks"],
            **{"model_checkpoint": None, "early_stopping": None, "timer": timer},
        },
        "trainer": {**SMALL["trainer"], "max_epochs": 1},
        "logger": {"tensorboard": None},
    }
    result = train(data, tmp_path, config)
    assert result.best_checkpoint is not None and result.best_checkpoint.is_file()
    assert not (tmp_path / "tensorboard").exists()


def test_arguments_of_the_old_trainer_are_left_out_with_a_warning(
    data: Path, tmp_path: Path
) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "old.yaml").write_text(
        "defaults: [single, _self_]\ntrainer: {gpus: 0, weights_summary: null, max_epochs: 1}\n"
    )
    with pytest.warns(UserWarning, match=r"trainer\.gpus=0 is left out"):
        train(data, tmp_path / "run", config_path=tmp_path / "configs" / "old.yaml")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model.gen_dmi": 3}, r"model\.gen_dmi.*did you mean gen_dim"),
        ({"model.encod_data_dim": 7}, r"tiny\.h5.*encod_data.* 6.*encod_data_dim.* 7"),
        ({"model.recon_seq_len": 20}, r"tiny\.h5.*recon_data.* 12.*recon_seq_len.* 20"),
        ({"model.gen_dim": "many"}, r"gen_dim.*many"),
        ({"model.ic_prior._target_": "mine.Prior"}, r"model\.ic_prior\._target_=mine\.Prior"),
        ({"datamodule.datafile_pattern": "/nowhere/x.h5"}, r"/nowhere/x\.h5"),
        ({"datamodule.batch_size": 0}, r"datamodule\.batch_size"),
        ({"trainer.max_epochs": "x"}, r"trainer\.max_epochs is 'x'; legal are whole numbers"),
        ({"on_nan": "perhaps"}, r"on_nan"),
    ],
)
def test_each_mistake_is_named_before_anything_is_written(
    overrides: dict[str, Any],
    message: str,
    data: Path,
    tmp_path: Path,
) -> None:
    flat = {f"{part}.{key}": v for part in ("model", "trainer") for key, v in SMALL[part].items()}
    own = {**flat, "datamodule.datafile_pattern": str(data), "datamodule.batch_size": 16}
    with pytest.raises(UserError, match=message):
        run_model({**own, **overrides}, run_dir=tmp_path / "run")
    assert not (tmp_path / "run" / "status.json").exists()


def test_a_checkpoint_of_another_model_is_refused(
    whole: RunResult, data: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole.run_dir, tmp_path / "run")
    longer = {"trainer.max_epochs": 9}
    with pytest.raises(ConfigError, match=r"model\.gen_dim was 6 from the start"):
        run_model({**longer, "model.gen_dim": 9}, run_dir=tmp_path / "run", resume=True)
    with pytest.raises(ConfigError, match=r"model cannot be chosen here"):
        run_model({"model": "default"}, run_dir=tmp_path / "run", resume=True)
    with pytest.raises(ConfigError, match="holds no run to resume"):
        run_model(run_dir=tmp_path / "none", resume=True)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs permissions that bind")
def test_a_folder_that_may_not_be_written_to(data: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match=r"cannot be written"):
        train(data, tmp_path / "run")


def test_a_run_folder_that_is_a_file(data: Path, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match=r"run cannot be written"):
        train(data, tmp_path / "run")


def test_a_full_disk_leaves_no_partial_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"a": 1}, path)
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"last\.ckpt cannot be written: the disk is full"):
        AtomicCheckpointIO().save_checkpoint({"a": 2}, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_rewinding_metrics(tmp_path: Path) -> None:
    path = tmp_path / "csv_logs" / "metrics.csv"
    path.parent.mkdir()
    path.write_text("epoch,step,a,b\n0,2,1.0,\n1,5,2.0,\n2,8,3.0,\n2,8")
    RunFolder(tmp_path).rewind_metrics(6, 3, {"epoch": 1.0, "a": 2.0, "b": 7.0})
    assert path.read_text() == "a,b,epoch,step\n1.0,,0,2\n2.0,7.0,1,5\n"
    RunFolder(tmp_path).rewind_metrics()
    assert path.read_text() == "a,b,epoch,step\n"
    RunFolder(tmp_path / "none").rewind_metrics(3)
    assert not (tmp_path / "none").exists()


def test_names_of_metrics_with_commas_survive_resumes(tmp_path: Path) -> None:
    for step in range(3):
        logger = RunCSVLogger(str(tmp_path), name="csv_logs", version="")
        logger.log_metrics({"epoch": step, "my,score": step + 0.5, f"new_{step}": 1.0}, step)
        logger.finalize("success")
        RunFolder(tmp_path).rewind_metrics(step + 1)
    assert [row["my,score"] for row in rows(tmp_path)] == ["0.5", "1.5", "2.5"]
    assert list(read_csv_log(tmp_path)["my,score"][1]) == [0.5, 1.5, 2.5]


def test_the_log_has_a_row_an_epoch(whole: RunResult) -> None:
    table = rows(whole.run_dir)
    assert [row["epoch"] for row in table] == [str(k) for k in range(EPOCHS)]
    assert [float(row["cur_epoch"]) for row in table] == list(range(EPOCHS))
    for row in table:
        assert {"lr-AdamW", "valid/recon_smth", "valid/loss", "train/loss"} <= row.keys()


def test_what_is_logged_twice_an_epoch_is_kept(tmp_path: Path) -> None:
    logger = RunCSVLogger(str(tmp_path), name="csv_logs", version="")
    for epoch in range(2):
        for step in (2 * epoch, 2 * epoch + 1):
            logger.log_metrics({"lr": step}, step)
            logger.save()
            logger.log_metrics({"valid/loss": step / 2, "epoch": epoch}, step)
        logger.log_metrics({"train/loss": epoch, "epoch": epoch}, 2 * epoch + 1)
    logger.log_metrics({"lr": 4}, 4)  # of an epoch that is broken off
    logger.finalize("failed")
    names = ("epoch", "step", "lr", "valid/loss", "train/loss")
    table = [tuple(row.get(name, "") for name in names) for row in rows(tmp_path)]
    assert table == [
        ("0", "0", "0", "0.0", ""),
        ("0", "1", "1", "0.5", "0"),
        ("1", "2", "2", "1.0", ""),
        ("1", "3", "3", "1.5", "1"),
    ]


def test_finding_checkpoints(tmp_path: Path) -> None:
    assert RunFolder(tmp_path).checkpoint() is None
    folder = tmp_path / "lightning_checkpoints"
    folder.mkdir()
    for name in ("best-epoch=0001.ckpt", "last.ckpt"):
        (folder / name).write_bytes(b"")
    assert RunFolder(tmp_path).checkpoint() == folder / "last.ckpt"
    assert RunFolder(tmp_path).checkpoint(best=True) == folder / "best-epoch=0001.ckpt"
    for place in (folder, folder / "last.ckpt"):
        assert RunFolder(place).checkpoint() == folder / "last.ckpt"


def test_seeding_depends_on_every_number() -> None:
    def draw(*entropy: int) -> float:
        seed_all(*entropy)
        return float(torch.rand(()))

    assert draw(0, 1) == draw(0, 1)
    assert len({draw(0, 1), draw(1, 0), draw(0, 2), draw(0)}) == 4
