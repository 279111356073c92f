"""A lab's configurations as they stand: composed, instantiated, trained for an epoch."""

from __future__ import annotations

import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from lfads_torch.compat.configs import translate
from lfads_torch.data import DataWarning
from lfads_torch.errors import ConfigError
from lfads_torch.run_model import run_model
from lfads_torch.runs.check_config import check_config
from lfads_torch.runs.compose import compose_config

LAB = Path(__file__).parent / "files" / "lab"
MODELS = sorted(path.stem for path in (LAB / "configs" / "model").glob("*.yaml"))


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("lab") / "lab"
    shutil.copytree(LAB, root)
    subprocess.run([sys.executable, str(root / "make_data.py")], check=True)
    return root


def overrides(model: str, **more: Any) -> dict[str, Any]:
    data = "reach_days" if "days" in model else "reach"
    return {"model": model, "datamodule": data, **more}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model", MODELS)
def test_every_model_trains_and_is_sampled(
    model: str, lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(lab)
    chosen = overrides(model, **{"trainer.max_epochs": 1, "trainer.enable_progress_bar": False})
    result = run_model(chosen, config_path="../configs/single.yaml", run_dir=tmp_path / "run")
    names = {path.name for path in (tmp_path / "run").glob("lfads_output*.h5")}
    days = {f"lfads_output_day_{day}.h5" for day in range(3)}
    assert names == (days if "days" in model else {"lfads_output_reach.h5"})
    assert len(result.outputs) == len(names)
    with h5py.File(result.outputs[0]) as file:
        assert np.isfinite(file["valid_output_params"][()]).all()


@pytest.mark.parametrize("primary", ["single", "multi", "pbt"])
@pytest.mark.parametrize("model", MODELS)
def test_every_configuration_is_composed_and_instantiated(
    model: str, primary: str, lab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(lab)
    config = compose_config(f"../configs/{primary}.yaml", overrides(model))
    assert config["datamodule"]["datafile_pattern"].startswith(str(lab / "datasets"))
    net = instantiate(OmegaConf.create(config).model)
    assert len(net.readin) == (3 if "days" in model else 1)
    assert config["posterior_sampling"]["fn"]["_partial_"]


def test_a_labs_file_wins_over_a_packaged_one_of_the_same_name(
    lab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(lab)
    for group in ("model", "datamodule"):
        own = lab / "configs" / group / "nlb_mc_maze.yaml"
        shutil.copy(lab / "configs" / group / "reach.yaml", own)
    config = compose_config(
        "../configs/single.yaml", {"model": "nlb_mc_maze", "datamodule": "nlb_mc_maze"}
    )
    assert config["model"]["encod_data_dim"] == 14 and config["datamodule"]["batch_size"] == 24


def test_a_folder_of_configurations_of_another_name(
    lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = Path(shutil.copytree(lab, tmp_path / "lab"))
    (lab / "configs").rename(lab / "konfig é")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    config = compose_config(str(lab / "konfig é" / "single.yaml"), overrides("reach"))
    assert config["datamodule"]["datafile_pattern"] == str(lab / "datasets" / "reach.h5")


def test_a_configuration_that_is_not_there_is_an_error(
    lab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(lab)
    with pytest.raises(ConfigError, match=r"there is no configuration ../configs/singel.yaml.*lab"):
        compose_config("../configs/singel.yaml")
    with pytest.raises(ConfigError, match=r"there is no configuration elsewhere/single\.yaml"):
        compose_config("elsewhere/single.yaml")


def test_dropped_arguments_of_the_trainer_are_left_out_with_a_word() -> None:
    config: dict[str, Any] = {"trainer": {"gpus": 1, "accelerator": None, "max_epochs": None}}
    with pytest.warns(UserWarning, match="trainer.gpus=1 is left out.*accelerator: gpu, devices"):
        translate(config)
    assert config["trainer"] == {"max_epochs": None}


def test_the_first_version_wrote_data_paths(
    lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [str(lab / "datasets" / "reach_days" / f"day_{day}.h5") for day in (2, 0)]
    node = {"_target_": "lfads_torch.datamodules.BasicDataModule", "data_paths": paths}
    data = instantiate(OmegaConf.create(node))
    assert data.session_names == ["day_2", "day_0"]


def test_ignored_warnings_are_not_those_about_the_data(
    lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(lab)
    shutil.copy(lab / "datasets" / "reach.h5", lab / "datasets" / "silent.h5")
    with h5py.File(lab / "datasets" / "silent.h5", "r+") as file:
        for key in ("train_encod_data", "train_recon_data"):
            file[key][:, :, 3] = 0
    chosen = overrides(
        "reach",
        **{
            "ignore_warnings": True,
            "datamodule.datafile_pattern": str(lab / "datasets" / "silent.h5"),
            "trainer.max_epochs": 1,
            "trainer.enable_progress_bar": False,
            "trainer.enable_model_summary": False,
        },
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run_model(
            chosen,
            config_path="../configs/single.yaml",
            run_dir=tmp_path / "run",
            do_posterior_sample=False,
        )
    assert any(issubclass(w.category, DataWarning) for w in caught)
    # Before the run the configuration is read, which nothing silences.
    assert all("lfads_torch" in w.filename or issubclass(w.category, DataWarning) for w in caught)


def test_paths_of_a_configuration_composed_by_hand_count_from_where_it_is_composed(
    lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(lab)
    compose_config("../configs/single.yaml", overrides("reach"))
    other = tmp_path / "other"
    (other / "configs").mkdir(parents=True)
    monkeypatch.chdir(other)
    config = OmegaConf.create({"path": "${relpath:datasets/mine.h5}"})
    assert config.path == str(other / "datasets" / "mine.h5")


@pytest.mark.parametrize("primary", ["single", "multi", "pbt"])
def test_scripts_without_configurations_override_nodes_by_their_names(
    primary: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = {"datamodule.datafile_pattern": "reach.h5"}
    changes = {
        **data,
        "logger.wandb_logger.project": "arm",
        "logger.wandb_logger.tags.1": "reach",
        "logger.wandb_logger.tags.2": "today",
        "callbacks.learning_rate_monitor.logging_interval": "step",
        "callbacks.tune_report_callback.metrics": ["valid/recon_smth"],
        "ignore_warnings": True,
        "model.lr_scheduler": False,
        "trainer.gpus": 1,
        "model.train_aug_stack.transforms.0.cd_rate": np.float32(0.25),
    }
    with pytest.warns(UserWarning, match=r"trainer\.gpus=1 is left out"):
        config = compose_config(f"../configs/{primary}.yaml", changes)
    check_config(config)
    wandb = config["logger"]["wandb_logger"]
    assert wandb["_target_"].endswith(".WandbLogger") and wandb["tags"] == ["reach", "today"]
    assert config["model"]["train_aug_stack"]["transforms"][0]["cd_rate"] == 0.25
    config = compose_config("single.yaml", {**data, "logger.mine.project": "x"})
    with pytest.raises(ConfigError, match=r"logger\.mine has no _target_"):
        check_config(config)
    with pytest.raises(ConfigError, match=r"logger\.wandb_logger has no _target_"):
        check_config(compose_config("single.yaml", {**data, "logger.wandb_logger": 5}))
    drawn = {**data, "model.dropout_rate": lambda spec: 0.3}
    with pytest.raises(ConfigError, match=r"model\.dropout_rate"):
        check_config(compose_config("single.yaml", drawn))


def test_a_list_takes_the_place_of_a_single_component(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recons = [{"_target_": "lfads_torch.modules.recons.MSE"}]
    changes = {"datamodule.datafile_pattern": "x.h5", "model.reconstruction": recons}
    assert compose_config("single.yaml", changes)["model"]["reconstruction"] == recons
