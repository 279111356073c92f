"""A configuration that cannot end well is refused before the start: key, value, what is legal."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from lfads_torch import run_model
from lfads_torch.errors import ConfigError
from lfads_torch.model import LFADS
from lfads_torch.runs.check_config import check_config
from lfads_torch.runs.compose import compose_config
from lfads_torch.search.members import check_search
from tests.small import arrays, write

SMALL: dict[str, Any] = {
    **{f"model.{name}": 4 for name in ("ic_enc_dim", "ci_enc_dim", "con_dim", "ic_dim", "gen_dim")},
    "model.fac_dim": 3,
    "model.co_dim": 1,
    "trainer.max_epochs": 2,
    "trainer.accelerator": "cpu",
    "trainer.enable_progress_bar": False,
    "callbacks.raster_plot": None,
    "callbacks.trajectory_plot": None,
    "logger.tensorboard": None,
    "posterior_sampling.fn.num_samples": 2,
}

GRU = {"input_size": 9, "hidden_size": 4}

REFUSED: list[tuple[str, Any, str]] = [
    ("trainer.check_val_every_n_epoch", 3, "trainer.max_epochs 2: nothing would be validated"),
    ("trainer.check_val_every_n_epoch", 0, "whole numbers >= 1"),
    ("trainer.limit_val_batches", 0, "numbers > 0"),
    ("trainer.limit_train_batches", 0, "numbers > 0"),
    ("trainer.max_epochs", 0, "whole numbers >= 1, and -1"),
    ("trainer.max_epochs", 1.5, "whole numbers"),
    ("trainer.gradient_clip_val", float("nan"), "numbers >= 0"),
    ("trainer.gradient_clip_algorithm", "norn", "norm"),
    ("trainer.fast_dev_run", True, "posterior_sampling.fn=null"),
    ("trainer.enable_checkpointing", False, "posterior_sampling.fn=null"),
    ("posterior_sampling.fn.num_samples", 0, "whole numbers >= 1"),
    ("posterior_sampling.fn.num_samples", 2.5, "whole numbers >= 1"),
    ("posterior_sampling.fn.filename", "", "name of a file"),
    ("posterior_sampling.use_best_ckpt", 7, "True"),
    ("callbacks.model_checkpoint.save_top_k", 0, "whole numbers >= 1, and -1"),
    ("callbacks.model_checkpoint.every_n_epochs", 3, "1 to 2"),
    ("callbacks.model_checkpoint.mode", "lowest", "max, min"),
    ("callbacks.early_stopping.patience", -1, "whole numbers >= 0"),
    ("callbacks.early_stopping.min_delta", float("inf"), "finite numbers"),
    ("callbacks.lr_monitor.logging_interval", "day", "epoch, step"),
    ("callbacks.raster_plot.n_samples", 0, "whole numbers >= 1"),
    ("callbacks.raster_plot.split", "both", "train, valid"),
    ("callbacks.trajectory_plot.log_every_n_epochs", 0, "whole numbers >= 1"),
    ("datamodule.batch_size", 0, "whole numbers >= 1"),
    ("datamodule.batch_size", float("nan"), "whole numbers >= 1"),
    ("datamodule.sv_rate", 1.0, ">= 0 and < 1"),
    ("datamodule.batch_keys", 5, "a list of texts"),
    ("datamodule.max_memory_gb", -1, "numbers >= 0"),
    ("model.fac_dim", -2, "whole numbers >= 1"),
    ("model.co_dim", -1, "whole numbers >= 0"),
    ("model.gen_dim", 2.5, "whole numbers >= 1"),
    ("model.lr_init", float("inf"), "numbers > 0"),
    ("model.lr_patience", -1, "numbers >= 0"),
    ("model.dropout_rate", 1.0, "< 1"),
    ("model.variational", 7, "True"),
    ("model.ic_prior.variance", 0, "numbers > 0"),
    ("model.ic_prior.variance", float("nan"), "numbers > 0"),
    ("model.co_prior.tau", -10, "numbers > 0"),
    ("model.train_aug_stack.transforms.0.cd_rate", 1.5, "< 1"),
    ("seed", -1, "whole numbers >= 0"),
    ("seed", 2**32, "<= 4294967295"),
    ("on_nan", "ignore", "recover, stop"),
    # Types that an annotation rules out.
    ("posterior_sampling", 3, "legal are keys below it, and null"),
    ("trainer", "fast", "legal are keys below it, and null"),
    ("posterior_sampling.fn", 3, "posterior_sampling.fn._target_="),
    ("posterior_sampling.fn.num_samples", None, "takes a number"),
    ("trainer.detect_anomaly", "on", "takes true or false"),
    ("trainer.inference_mode", [1], "takes true or false"),
    ("logger.csv.name", True, "takes text"),
    ("logger.csv.flush_logs_every_n_steps", 0, "whole numbers >= 1"),
    ("callbacks.model_checkpoint.train_time_interval", 3, "datetime.timedelta"),
    ("callbacks.model_checkpoint.monitor", [1], "takes text"),
    ("callbacks.early_stopping.monitor", None, "name of a logged metric"),
    ("callbacks.early_stopping.monitor", 3, "name of a logged metric"),
    # Parts of the model that are none.
    ("model.readin", 3, "model.readin._target_="),
    ("model.readout", [1], "model.readout._target_="),
    ("model.train_aug_stack", "none", "model.train_aug_stack._target_="),
    ("model.ic_prior", 3, "model.ic_prior._target_="),
    ("model.co_prior", "x", "model.co_prior._target_="),
    ("model.reconstruction", "poisson", "model.reconstruction._target_="),
    ("callbacks.mine._target_", "", "package.Class"),
    ("callbacks.mine._target_", ".", "package.Class"),
]


@pytest.mark.parametrize(("key", "value", "legal"), REFUSED)
def test_the_key_its_value_and_what_is_legal_are_named(key: str, value: Any, legal: str) -> None:
    quiet = ("callbacks.raster_plot", "callbacks.trajectory_plot")
    small = {k: v for k, v in SMALL.items() if k not in quiet}
    config = compose_config(
        "../configs/single.yaml", {**small, "datamodule.datafile_pattern": "x.h5", key: value}
    )
    with pytest.raises(ConfigError) as caught:
        check_config(config)
    text = str(caught.value)
    assert "\n" not in text
    assert key in text
    assert legal in text


def test_a_name_of_digits_is_text() -> None:
    more = {"datamodule.datafile_pattern": "x.h5", "logger.csv.name": 3, "logger.csv.version": 7}
    config = compose_config("../configs/single.yaml", more)
    check_config(config)
    assert (config["logger"]["csv"]["name"], config["logger"]["csv"]["version"]) == ("3", 7)


@pytest.mark.parametrize("group", ["model", "datamodule"])
@pytest.mark.parametrize(
    ("value", "words"),
    [("[1,2]", "no 1.yaml"), ("[default,x]", "no x.yaml"), ("3", "no 3.yaml")],
)
def test_a_group_that_is_no_option(group: str, value: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        run_model([f"{group}={value}"], run_dir=tmp_path)
    with pytest.raises(ConfigError, match=f"has no {group}; choose one"):
        run_model({"datamodule.datafile_pattern": "x.h5"} | {group: None}, run_dir=tmp_path)


def run(folder: Path, **more: Any) -> Path:
    file = folder / "day0.h5"
    if not file.exists():
        write(folder, arrays())
    changes = {name.replace("__", "."): value for name, value in more.items()}
    place = folder / "run"
    shutil.rmtree(place, ignore_errors=True)
    overrides = {**SMALL, "datamodule.datafile_pattern": str(file), **changes}
    return run_model(overrides, run_dir=place).outputs[0]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("precision", "near"),
    [("64-true", 0.5), ("bf16-mixed", 0.05), ("16-mixed", 0.05), ("bf16-true", 0.5)],
)
def test_a_precision_trains_and_samples(tmp_path: Path, precision: str, near: float) -> None:
    rates = []
    for value in ("32-true", precision):
        with h5py.File(run(tmp_path, trainer__precision=value)) as file:
            rates.append(file["valid_output_params"][()])
            assert rates[-1].dtype == np.float32
            assert file["valid_factors"].dtype == np.float32
    # Two epochs lead to much the same rates; noise of another type is drawn anew.
    assert np.isfinite(rates[1]).all()
    np.testing.assert_allclose(rates[1], rates[0], rtol=near)
    assert not np.array_equal(rates[0], rates[1])


def test_a_search_refuses_devices_of_a_trainer(tmp_path: Path) -> None:
    changes = {"devices": [2, [0, 1], -1], "num_nodes": [2], "strategy": ["ddp"]}
    data = {"datamodule.datafile_pattern": str(tmp_path / "data.h5")}
    config = compose_config("pbt.yaml", data)
    check_search(copy.deepcopy(config))
    for name, values in changes.items():
        for value in values:
            changed = {**copy.deepcopy(config), "trainer": {**config["trainer"], name: value}}
            with pytest.raises(ConfigError, match=rf"trainer\.{name}=.* take it out; .*--backend"):
                check_search(changed)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"trainer__precision": "16-true"}, "trainer.precision is '16-true'.*legal are 32-true"),
        ({"trainer__precision": "12"}, "trainer.precision=12: Precision '12' is invalid"),
        ({"trainer__devices": 2}, "trainer.devices=2.*set trainer.devices=1"),
        ({"trainer__num_nodes": 2}, "num_nodes=2.*2 processes"),
        ({"trainer__strategy": "ddp"}, "strategy=ddp.*trainer.strategy=auto"),
        ({"trainer__strategy": "fastest"}, "trainer.strategy=fastest"),
        ({"trainer__accelerator": "tpu"}, "trainer.accelerator=tpu"),
        ({"trainer__accelerator": "quantum"}, "trainer.accelerator=quantum.*auto"),
        ({"trainer__val_check_interval": 7}, "val_check_interval"),
        ({"callbacks__early_stopping.monitor": "valid/recom"}, "monitor is valid/recom.*recon"),
        ({"callbacks__x": {"_target_": "builtins.dict"}}, "dict is no callback"),
        ({"logger__x": {"_target_": "torch.nn.ReLU"}}, "logger.x: torch.nn.ReLU is no logger"),
        ({"callbacks__model_checkpoint__filename": "{"}, "'{' is no name of a checkpoint"),
        ({"model__readout": {"_target_": "torch.nn.Flatten"}}, "readout 0 is for 6"),
        ({"model__readout": {"_target_": "torch.nn.GRUCell", **GRU}}, "readout: GRUCell does not"),
        ({"model__gen_dim": 10**6}, "gen_dim=1000000: .* GB of memory"),
        ({"model__fac_dim": 10**10}, "fac_dim=10000000000 .* GB of memory"),
    ],
)
def test_what_cannot_train_here_is_refused(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        run(tmp_path, **changes)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("group", ["callbacks", "logger", "posterior_sampling"])
def test_a_group_of_its_own_choice_may_be_empty(group: str, tmp_path: Path) -> None:
    pattern = write(tmp_path, arrays())
    small = {key: value for key, value in SMALL.items() if not key.startswith(f"{group}.")}
    changes = {**small, "datamodule.datafile_pattern": pattern, group: None}
    assert run_model(changes, run_dir=tmp_path / "run").best_checkpoint


@pytest.mark.filterwarnings("ignore")
def test_validation_of_every_other_epoch_trains_and_keeps_a_best(tmp_path: Path) -> None:
    run(tmp_path, trainer__check_val_every_n_epoch=2, trainer__max_epochs=5)
    kept = {path.name for path in (tmp_path / "run/lightning_checkpoints").glob("best*.ckpt")}
    assert kept & {"best-epoch=0001.ckpt", "best-epoch=0003.ckpt"}


def test_too_small_a_disk_is_said_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.warns(UserWarning, match=r"outputs and checkpoints take about .* GB left"):
        output = run(tmp_path)
    n_outputs = output.stat().st_size
    n_kept = sum(p.stat().st_size for p in (tmp_path / "run").rglob("*.ckpt"))
    from lfads_torch.checkpoint import load_model
    from lfads_torch.datamodules import BasicDataModule
    from lfads_torch.post_run.analysis import output_bytes

    model = load_model(tmp_path / "run")
    estimate = output_bytes(model, BasicDataModule(tmp_path / "day0.h5"))
    # Tiny files are mostly headers, so all that counts is the order of magnitude.
    assert 0.1 < estimate / (n_outputs + n_kept) < 3


@pytest.mark.parametrize("name", ["fac_dim", "gen_dim", "ic_dim"])
def test_sizes_are_checked_from_python_too(tmp_path: Path, name: str) -> None:
    pattern = write(tmp_path, arrays())
    with pytest.raises(ConfigError, match=f"{name} is -2; legal are whole numbers >= 1"):
        LFADS.from_data(pattern, **{name: -2})
