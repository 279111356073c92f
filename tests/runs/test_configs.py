"""Every shipped configuration is composed, checked against signatures and instantiated."""

from __future__ import annotations

import inspect
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from lfads_torch.data import write_session
from lfads_torch.errors import ConfigError, UserError, did_you_mean
from lfads_torch.runs.build import _loggers, build, build_model, why_no_wandb
from lfads_torch.runs.check_config import check_config, find_target
from lfads_torch.runs.compose import (
    PACKAGED,
    absolute_pattern,
    compose_config,
    draw_seed,
    locate_config,
)
from lfads_torch.runs.places import starting_from

#: Data set -> (read, reconstructed) channels, (T_e, T_r) bins, attribute keys, file.
SHAPES: dict[str, tuple[tuple[int, int], tuple[int, int], str]] = {
    "nlb_mc_maze": ((137, 182), (35, 45), "mc_maze-20ms-val.h5"),
    "nlb_mc_maze_large": ((122, 162), (140, 180), "mc_maze_large-05ms-val.h5"),
    "nlb_mc_maze_medium": ((114, 152), (140, 180), "mc_maze_medium-05ms-val.h5"),
    "nlb_mc_maze_small": ((107, 142), (140, 180), "mc_maze_small-05ms-val.h5"),
    "nlb_mc_rtt": ((98, 130), (120, 160), "mc_rtt-05ms-val.h5"),
    "nlb_area2_bump": ((49, 65), (120, 160), "area2_bump-05ms-val.h5"),
    "nlb_dmfc_rsg": ((40, 54), (300, 340), "dmfc_rsg-05ms-val.h5"),
}
SCALING_SETS = ("nlb_mc_maze_large", "nlb_mc_maze_medium", "nlb_mc_maze_small")


def write_nlb(folder: Path, name: str) -> Path:
    (n_read, n_all), (t_read, t_all), file = SHAPES[name]
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {"psth": np.zeros((2, t_all, n_all), np.float32)}
    for split, trials in (("train", 4), ("valid", 2)):
        counts = rng.poisson(1.0, (trials, t_all, n_all)).astype(np.uint8)
        arrays[f"{split}_recon_data"] = counts
        arrays[f"{split}_encod_data"] = counts[:, :t_read, :n_read]
        arrays[f"{split}_behavior"] = rng.normal(size=(trials, t_all, 2)).astype(np.float32)
        arrays[f"{split}_cond_idx"] = np.arange(trials) % 2
        arrays[f"{split}_decode_mask"] = np.ones((trials, t_all), bool)
        arrays[f"{split}_jitter"] = np.zeros(trials, int)
    path = folder / "datasets" / file
    path.parent.mkdir(exist_ok=True)
    write_session(path, arrays)
    return path


def write_rouse(folder: Path, n_factors: int) -> None:
    rng = np.random.default_rng(0)
    place = folder / "datasets" / "rouse_multisession"
    place.mkdir(parents=True)
    for session, n_channels in enumerate((60, 70)):
        arrays: dict[str, Any] = {
            "readin_weight": rng.normal(size=(n_channels, n_factors)).astype(np.float32),
            "readout_bias": np.ones(n_channels, np.float32),
        }
        for split in ("train", "valid"):
            counts = rng.poisson(1.0, (3, 30, n_channels)).astype(np.uint8)
            arrays[f"{split}_encod_data"] = arrays[f"{split}_recon_data"] = counts
        write_session(place / f"session{session}.h5", arrays)


def built(config: dict[str, Any]) -> tuple[Any, Any]:
    check_config(config)
    datamodule = build(config["datamodule"], "datamodule")
    datamodule.setup("fit")
    model = build_model(config["model"], datamodule)
    model.check_data(datamodule)
    return model, datamodule


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", SHAPES)
def test_nlb_configs(name: str, tmp_path: Path) -> None:
    write_nlb(tmp_path, name)
    config = compose_config("single", {"model": name, "datamodule": name, "callbacks": "nlb"})
    model, datamodule = built(config)
    (n_read, n_all), (t_read, t_all), _ = SHAPES[name]
    size = datamodule.sizes[0]
    assert (size.encod_dim, size.recon_dim) == (n_read, n_all)
    assert (model.hparams.encod_seq_len, model.hparams.recon_seq_len) == (t_read, t_all)
    assert model.readout[0].out_features == n_all
    for key in config["datamodule"]["attr_keys"]:
        assert hasattr(datamodule, key)
    assert {"psth"} <= set(config["datamodule"]["attr_keys"]) or name == "nlb_mc_rtt"


def test_published_settings_of_the_nlb_models() -> None:
    def model_of(name: str) -> dict[str, Any]:
        return compose_config("single", {"model": name, "datamodule": name})["model"]

    maze, rtt, dmfc = model_of("nlb_mc_maze"), model_of("nlb_mc_rtt"), model_of("nlb_dmfc_rsg")
    common = ("ic_enc_dim", "ci_enc_dim", "con_dim", "co_dim", "ic_dim", "gen_dim", "fac_dim")
    assert [rtt[key] for key in common] == [100, 80, 80, 4, 100, 100, 40]
    assert [maze[key] for key in common] == [64, 64, 64, 4, 64, 200, 100]
    assert [dmfc[key] for key in common] == [100, 64, 64, 4, 100, 100, 40]
    assert (maze["dropout_rate"], rtt["dropout_rate"], dmfc["dropout_rate"]) == (0.3, 0.02, 0.15)
    assert (maze["lr_init"], rtt["lr_init"], dmfc["lr_init"]) == (4e-3, 1e-2, 5e-3)
    assert (maze["lr_scheduler"], rtt["lr_scheduler"], dmfc["lr_scheduler"]) == (False, True, False)
    assert (rtt["lr_adam_epsilon"], dmfc["lr_adam_epsilon"]) == (1e-7, 3.16e-7)
    assert maze["kl_ic_scale"] == maze["kl_co_scale"] == 1e-7
    for model in (maze, rtt, dmfc):
        assert (model["ci_lag"], model["cell_clip"], model["loss_scale"]) == (1, 5.0, 1e4)
        assert model["train_aug_stack"]["transforms"][0]["cd_rate"] == 0.3
        assert model["kl_increase_epoch"] == model["l2_increase_epoch"] == 80
    batches = [
        compose_config("single", {"datamodule": name})["datamodule"]["batch_size"]
        for name in ("nlb_mc_maze", "nlb_mc_maze_medium", "nlb_mc_maze_small")
    ]
    assert batches == [256, 128, 64]


def test_multisession_maze(tmp_path: Path) -> None:
    for name in SCALING_SETS:
        write_nlb(tmp_path, name)
    name = "nlb_multisession_mc_maze"
    model, datamodule = built(compose_config("multi", {"model": name, "datamodule": name}))
    assert [size.encod_dim for size in datamodule.sizes] == [122, 114, 107]
    assert len(model.readin) == len(model.readout) == 3


@pytest.mark.parametrize(
    ("name", "factors", "trained"),
    [("rouse_multisession_PCR", 50, False), ("rouse_multisession_random", 30, True)],
)
def test_rouse(name: str, factors: int, trained: bool, tmp_path: Path) -> None:
    write_rouse(tmp_path, n_factors=50)
    config = compose_config("multi", {"model": name, "datamodule": "rouse_multisession"})
    model, _ = built(config)
    assert model.hparams.fac_dim == model.hparams.encod_data_dim == factors
    assert model.readin[0].weight.requires_grad is trained


@pytest.mark.parametrize("primary", ["single", "multi", "pbt", "demo"])
@pytest.mark.parametrize("name", ["default", "demo", "causal", "multisession"])
def test_configs_for_own_data(primary: str, name: str, tmp_path: Path) -> None:
    path = write_nlb(tmp_path, "nlb_area2_bump")
    chosen = {"model": name, "datamodule.datafile_pattern": str(path)}
    model, datamodule = built(compose_config(primary, chosen))
    assert model.hparams.recon_seq_len == datamodule.sizes[0].recon_len
    assert model.readout[0].out_features == 65


def test_default_model_reads_sizes_of_several_sessions(tmp_path: Path) -> None:
    for name in SCALING_SETS:
        write_nlb(tmp_path, name)
    pattern = {"datamodule.datafile_pattern": "datasets/mc_maze_*.h5"}
    model, _ = built(compose_config("single", pattern))
    assert len(model.readin) == 3


@pytest.mark.parametrize("path", sorted((PACKAGED / "model").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_model_names_all_of_the_constructor(path: Path) -> None:
    pattern = {"model": path.stem, "datamodule.datafile_pattern": "x.h5"}
    config = compose_config("single", pattern)
    check_config(config)
    known = set(inspect.signature(find_target(config["model"]["_target_"], "")).parameters)
    assert known - {"kernel"} == set(config["model"]) - {"_target_"}
    assert len(config["model"]) == 1 + 55


@pytest.mark.parametrize(
    "path", sorted((PACKAGED / "datamodule").glob("*.yaml")), ids=lambda p: p.stem
)
def test_every_datamodule_has_a_pattern_and_legal_keys(path: Path) -> None:
    chosen = {"datamodule": path.stem}
    own = [line for line in path.read_text().splitlines() if line.startswith("datafile_pattern:")]
    if not own or "???" in own[0]:
        chosen["datamodule.datafile_pattern"] = "x.h5"
    config = compose_config("single", chosen)
    check_config(config)
    assert Path(config["datamodule"]["datafile_pattern"]).is_absolute()


@pytest.mark.parametrize("name", SHAPES)
def test_a_missing_benchmark_file_says_how_to_make_it(name: str) -> None:
    config = compose_config("single", {"model": name, "datamodule": name})
    with pytest.raises(UserError, match=r"(?s)DANDI:000\d\d\d.*train,valid.*trials x .* channels"):
        built(config)


def test_a_missing_file_of_ones_own_gets_no_advice_on_the_benchmark() -> None:
    config = compose_config("single", {"datamodule.datafile_pattern": "nowhere.h5"})
    with pytest.raises(UserError, match=r"nowhere\.h5") as caught:
        built(config)
    assert "DANDI" not in str(caught.value)


def test_nested_dotted_and_text_overrides_are_the_same() -> None:
    data = {"datamodule.datafile_pattern": "x.h5"}
    nested = {**data, "model": {"gen_dim": 7, "co_prior": {"tau": 3.0}}, "trainer.max_time": None}
    dotted = {**data, "model.gen_dim": 7, "model.co_prior.tau": 3.0, "trainer.max_time": None}
    text = [
        "datamodule.datafile_pattern=x.h5",
        "model.gen_dim=7",
        "model.co_prior.tau=3.0",
        "trainer.max_time=null",
    ]
    first = compose_config("single", nested)
    assert first == compose_config("single", dotted) == compose_config("single", text)
    assert first["model"]["gen_dim"] == 7
    assert first["trainer"]["max_time"] is None  # legal, though the file does not hold it


@pytest.mark.parametrize(
    "value", ["it's", "back\\", "C:\\data\\x.h5", "a,b", "x=[1]", "null", "", 'say "yes"', "é", "1"]
)
def test_text_reaches_the_configuration_unchanged(value: str) -> None:
    overrides = {"datamodule.datafile_pattern": "x.h5", "posterior_sampling.fn.filename": value}
    config = compose_config("single", overrides)
    assert config["posterior_sampling"]["fn"]["filename"] == value


def test_list_items_lists_and_new_callbacks() -> None:
    config = compose_config(
        "single",
        {
            "datamodule.datafile_pattern": ["a.h5", "b.h5"],
            "model.train_aug_stack.transforms.0.cd_rate": 0.1,
            "callbacks.timer": {"_target_": "pytorch_lightning.callbacks.Timer", "duration": None},
            "callbacks.raster_plot": None,
        },
    )
    check_config(config)
    assert config["model"]["train_aug_stack"]["transforms"][0]["cd_rate"] == 0.1
    assert config["callbacks"]["timer"]["duration"] is None
    assert config["callbacks"]["raster_plot"] is None
    assert [Path(path).is_absolute() for path in config["datamodule"]["datafile_pattern"]] == [
        True,
        True,
    ]


def test_values_are_set_in_their_order() -> None:
    pattern = "datamodule.datafile_pattern=x.h5"
    texts = ["seed=3", "++seed=4", "+new=${seed}", "trainer.max_time=1", "~trainer.max_time"]
    config = compose_config("single", [pattern, *texts])
    assert (config["seed"], config["new"]) == (4, 4)
    assert "max_time" not in config["trainer"]


def test_resolvers(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "single.yaml").write_text(
        "a: ${max:1,5,3}\nb: ${sum:[1,2],3}\nc: ${relpath:datasets/x.h5}\nd: ${relpath:/abs/x.h5}\n"
        "trainer: {}\n"
    )
    config = compose_config("configs/single.yaml")
    assert (config["a"], config["b"]) == (5, 6)
    assert config["c"] == str(tmp_path / "datasets" / "x.h5")
    assert config["d"] == "/abs/x.h5"


def test_a_folder_configs_layers_over_the_packaged_one(tmp_path: Path) -> None:
    (tmp_path / "configs" / "model").mkdir(parents=True)
    own = "defaults: [default, _self_]\ngen_dim: 33\n"
    (tmp_path / "configs" / "model" / "mine.yaml").write_text(own)
    chosen = {"model": "mine", "datamodule.datafile_pattern": "x.h5"}
    config = compose_config("../configs/single.yaml", chosen)
    assert config["model"]["gen_dim"] == 33
    assert config["model"]["fac_dim"] == 40


def test_a_path_that_does_not_exist_means_the_packaged_file(tmp_path: Path) -> None:
    assert locate_config("../configs/multi.yaml", tmp_path) == PACKAGED / "multi.yaml"
    (tmp_path / "multi.yaml").write_text("trainer: {}\n")
    assert locate_config("multi", tmp_path) == tmp_path / "multi.yaml"


def test_patterns_are_taken_from_where_they_match(tmp_path: Path) -> None:
    assert absolute_pattern("~/x.h5", tmp_path) == str(Path.home() / "x.h5")
    assert absolute_pattern("sub/*.h5", tmp_path) == str(tmp_path / "sub" / "*.h5")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["modle=x"], r"modle: .*did you mean model"),
        (["model=nlb_mz_maze"], r"there is no nlb_mz_maze.yaml.*did you mean nlb_mc_maze"),
        (["model.gen_dmi=3"], r"no argument gen_dmi; did you mean gen_dim"),
        (["model.co_prior.tua=3"], r"no argument tua; did you mean tau"),
        (["model.gen_dim.x=3"], r"model.gen_dim is 100, it has no keys"),
        (["trainer.max_epohs=3"], r"no argument max_epohs; did you mean max_epochs"),
        (["callbacks.raster_plot.splt=valid"], r"no argument splt; did you mean split"),
        (["posterior_sampling.use_bestckpt=true"], r"there is no use_bestckpt.*use_best_ckpt"),
        (["model.gen_dim=[3"], r"single.yaml: .*\[3"),
        (["model.gen_dim=1,2"], r"single.yaml: Ambiguous value.*gen_dim=1,2"),
        (["seed=3", "+seed=4"], r"single.yaml: .*already at 'seed'"),
        (["~callbacks.nowhere"], r"single.yaml: Could not delete.*callbacks.nowhere"),
        (["gen_dim"], r"'gen_dim' is not an override"),
        (["+mine=${nowhere}"], r"nowhere"),
        (["datamodule.datafile_pattern=???"], r"datafile_pattern has no value; give one"),
    ],
)
def test_each_mistake_in_an_override_is_named(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose_config("single", ["datamodule.datafile_pattern=x.h5", *overrides])


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("lfads_torch.modules.priors.Nul", "has no Nul; did you mean Null"),
        ("lfads_torch.modules.prior.Null", "has no prior"),
        ("nowhere_at_all.Prior", "no package nowhere_at_all"),
        ("lfads_torch.errors.__name__", "neither a class nor a function"),
    ],
)
def test_each_mistake_in_a_target_is_named(target: str, message: str) -> None:
    config = {"model": {"ic_prior": {"_target_": target}}}
    with pytest.raises(ConfigError, match=message) as caught:
        check_config(config)
    assert "model.ic_prior._target_" in str(caught.value)


def test_unknown_and_missing_arguments_are_named() -> None:
    prior = "lfads_torch.modules.priors.AutoregressiveMultivariateNormal"
    with pytest.raises(ConfigError, match=r"x\.tua: .* did you mean tau"):
        check_config({"x": {"_target_": prior, "tua": 1, "nvar": 1, "shape": 1}})
    with pytest.raises(ConfigError, match=r"needs shape; give x\.shape="):
        check_config({"x": {"_target_": prior, "tau": 1, "nvar": 1}})
    check_config({"x": {"_target_": prior, "_partial_": True}})
    early = "lfads_torch.extensions.tune.EarlyStoppingWithBurnInPeriod"
    check_config({"x": {"_target_": early, "monitor": "valid/recon_smth", "patience": 3}})
    with pytest.raises(ConfigError, match="did you mean patience"):
        check_config({"x": {"_target_": early, "monitor": "valid/recon_smth", "patienc": 3}})


def test_did_you_mean_lists_legal_names_where_none_is_near() -> None:
    assert did_you_mean("gen_dmi", ["gen_dim", "fac_dim"]) == "did you mean gen_dim?"
    assert did_you_mean("zzz", ["b", "a"]) == "legal: a, b"
    assert did_you_mean("zzz", []) == ""


def test_without_tensorboard_a_run_goes_on_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose_config(overrides=["datamodule.datafile_pattern=x.h5"])
    for name in ("tensorboard", "tensorboardX"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.warns(UserWarning, match=r"tensorboard is left out: .*csv_logs") as record:
        loggers = _loggers(config, 0)
    assert [type(logger).__name__ for logger in loggers] == ["RunCSVLogger"]
    assert len(record) == 1


def test_without_wandb_or_a_login_a_run_goes_on_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = {
        "_target_": "pytorch_lightning.loggers.WandbLogger",
        "project": "arm",
        "tags": ["pbt", None],
    }
    config = {"logger": {"wandb_logger": node}}
    check_config(config)  # tags are an argument of wandb.init
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.warns(UserWarning, match=r"logger\.wandb_logger is left out: .*not installed"):
        assert _loggers(config, 0) == []
    module = ModuleType("wandb")
    module.__spec__ = ModuleSpec("wandb", None)
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setattr("sys.stdin", None)
    with pytest.warns(UserWarning, match=r"left out: there is no login.*WANDB_API_KEY"):
        assert _loggers(config, 0) == []
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password x\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert why_no_wandb() is None
    (tmp_path / ".netrc").unlink()
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert why_no_wandb() is None


def test_paths_count_from_the_folder_that_holds_configs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lab" / "configs").mkdir(parents=True)
    (tmp_path / "lab" / "scripts").mkdir()
    (tmp_path / "lab" / "configs" / "mine.yaml").write_text("a: ${relpath:datasets/x.h5}\n")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    expected = str(tmp_path / "lab" / "datasets" / "x.h5")
    main = sys.modules["__main__"]
    monkeypatch.setattr(
        main, "__file__", str(tmp_path / "lab" / "scripts" / "run.py"), raising=False
    )
    assert compose_config("../configs/mine.yaml")["a"] == expected
    with starting_from([tmp_path / "lab"]):  # as in a worker of Ray
        assert compose_config("../configs/mine.yaml")["a"] == expected
    monkeypatch.setattr(main, "__file__", str(Path(sys.executable).parent / "lfads"))
    for config_path in ("../configs/mine.yaml", "mine"):
        with pytest.raises(ConfigError, match=r"there is no .*elsewhere/configs/mine\.yaml"):
            compose_config(config_path)
    with pytest.raises(ConfigError, match=r"other/single\.yaml"):
        compose_config("../other/single.yaml")


def test_no_seed_means_another_one_each_time() -> None:
    drawn = [{"seed": None}, {"seed": None}]
    for config in drawn:
        draw_seed(config)
    assert drawn[0] != drawn[1] and all(0 <= config["seed"] < 2**32 for config in drawn)
    given = {"seed": 3}
    draw_seed(given)
    assert given == {"seed": 3}
