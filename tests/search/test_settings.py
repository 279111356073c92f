"""Settings of a search: defaults of the packaged files, and every mistake told with its remedy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lfads_torch.errors import ConfigError
from lfads_torch.runs.compose import compose_config
from lfads_torch.search.settings import SearchSettings
from lfads_torch.search.space import DEFAULT_SPACE

DATA = {"datamodule.datafile_pattern": "x.h5"}
TUNABLES = [*DEFAULT_SPACE, "weight_decay"]


def composed(primary: str, **overrides: Any) -> dict[str, Any]:
    return compose_config(primary, {**DATA, **overrides})["search"]


def test_the_packaged_files_hold_the_published_settings_and_space() -> None:
    pbt = SearchSettings.from_config(composed("pbt"))
    assert (pbt.method, pbt.n_members, pbt.perturbation_interval) == ("pbt", 20, 25)
    assert (pbt.patience, pbt.min_improvement_ratio, pbt.burn_in_period) == (4, 5e-4, None)
    assert pbt.space_for(TUNABLES) == DEFAULT_SPACE
    random = SearchSettings.from_config(composed("search"))
    assert (random.method, random.n_members, random.metric) == ("random", 60, "auto")
    assert random.space_for(TUNABLES) == DEFAULT_SPACE
    near = SearchSettings.from_config(composed("pbt", search="near"))
    assert replace(near, space=pbt.space) == pbt
    starts = {name: hp.start for name, hp in near.space_for(TUNABLES).items()}
    assert starts.keys() == DEFAULT_SPACE.keys() and None not in starts.values()
    halving = SearchSettings.from_config(composed("search", search="halving"))
    assert (halving.method, halving.n_members, halving.halving_factor) == ("halving", 60, 3)


def test_a_search_is_added_where_a_configuration_has_none(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "pbt.yaml").write_text("defaults: [single, _self_]\nseed: 3\n")
    groups = {"search": "pbt"}
    config = compose_config("../configs/pbt.yaml", DATA, groups=groups)
    assert (config["seed"], config["search"]["num_workers"]) == (3, 20)
    chosen = {**DATA, "search": "halving", "search.num_samples": 5}
    assert compose_config("pbt", chosen, groups=groups)["search"]["num_samples"] == 5
    packaged = compose_config("pbt", {**DATA, "search.num_workers": 3}, groups=groups)
    assert packaged["search"]["num_workers"] == 3


def test_names_are_taken_out_and_put_in_from_the_command_line() -> None:
    texts = [
        "datamodule.datafile_pattern=x.h5",
        "search.space.lr_init=null",
        "search.space.train_aug_stack=null",
        "search.space.weight_decay={min_samp:1e-6,max_samp:1e-2}",
        "search.space.dropout_rate.max_samp=0.4",
        "search.space.kl_co_scale={init:1e-6,min_samp:1e-8}",
    ]
    node = compose_config("pbt", texts)["search"]
    space = SearchSettings.from_config(node).space_for(TUNABLES)
    assert "lr_init" not in space
    assert not [name for name in space if "cd_rate" in name]
    assert space["weight_decay"].max_samp == 1e-2
    assert space["dropout_rate"].max_samp == 0.4
    assert (space["kl_co_scale"].start, space["kl_co_scale"].max_samp) == (1e-6, 1e-4)


def test_without_a_space_it_is_that_of_autolfads_as_far_as_the_model_has_it() -> None:
    settings = SearchSettings(space=None)
    assert list(settings.space_for(["kl_co_scale", "lr_init"])) == ["lr_init", "kl_co_scale"]


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"num_worker": 3}, r"search has no num_worker; did you mean num_workers"),
        ({"num_workers": 1}, r"search\.num_workers is 1: a population of one.*lfads train"),
        ({"method": "random", "num_samples": 1}, r"search\.num_samples is 1"),
        ({"num_workers": 0}, r"search\.num_workers is 0; legal are whole numbers >= 1"),
        ({"num_workers": 2.5}, r"search\.num_workers is 2\.5"),
        ({"num_workers": True}, r"search\.num_workers is True"),
        ({"method": "ptb"}, r"search\.method is 'ptb'; did you mean pbt"),
        ({"mode": "minimum"}, r"search\.mode is 'minimum'; did you mean min"),
        ({"metric": None}, r"search\.metric is None"),
        ({"patience": 0}, r"search\.patience is 0"),
        ({"burn_in_period": -1}, r"search\.burn_in_period is -1"),
        ({"chunk": 0}, r"search\.chunk is 0"),
        ({"halving_factor": 1}, r"search\.halving_factor is 1"),
        ({"min_improvement_ratio": float("nan")}, r"search\.min_improvement_ratio is nan"),
        ({"space": 3}, r"search\.space is 3; give a mapping"),
        (None, r"search is None; choose one"),
    ],
)
def test_each_mistake_in_the_settings_is_named(node: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SearchSettings.from_config(node)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"lr_int": {"min_samp": 1, "max_samp": 2}}, r"lr_int.*did you mean lr_init"),
        ({"gen_dim": {"min_samp": 1, "max_samp": 2}}, r"gen_dim.*no tunable.*search\.space\.NAME"),
        ({"lr_init": {"min_samp": 1, "max_samp": 0.1}}, r"lr_init.*wrong way round"),
        ({"lr_init": None}, r"space is empty"),
        ({"lr_init": {"max_samp": 1}}, r"lr_init.*min_samp"),
    ],
)
def test_each_mistake_in_the_space_is_named(space: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SearchSettings.from_config({"space": space}).space_for(TUNABLES)


def test_a_metric_that_is_never_logged_is_refused() -> None:
    SearchSettings(metric="valid/bps").judged(["valid/recon", "valid/bps"])
    with pytest.raises(ConfigError, match=r"never logged; did you mean valid/recon"):
        SearchSettings(metric="valid/recn").judged(["valid/recon", "valid/bps"])
