"""Scripts with constants at the top: what they ask for is a legal configuration."""

from __future__ import annotations

import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lfads_torch.runs.check_config import check_config
from lfads_torch.runs.compose import compose_config
from lfads_torch.search import run
from lfads_torch.search.settings import SearchSettings
from lfads_torch.search.space import DEFAULT_SPACE, HyperParam, parse_space, space_overrides

SCRIPTS = Path(__file__).parents[1] / "scripts"


def test_a_python_that_is_not_here_is_skipped_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # As pyenv has them for a version that is switched off, and for one that is there.
    for version, answer in (("3.12", "exit 127"), ("3.13", "echo 3.13")):
        shim = tmp_path / f"python{version}"
        shim.write_text(f"#!/bin/sh\n{answer}\n")
        shim.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    pythons = runpy.run_path(str(SCRIPTS / "pythons.py"))
    assert pythons["find_python"]("3.13") == tmp_path / "python3.13"
    assert pythons["main"](["3.12"]) == 1
    assert "Python 3.12: skipped: there is no python3.12" in capsys.readouterr().out


@pytest.mark.parametrize(("script", "method"), [("run_pbt", "pbt"), ("run_multi", "random")])
def test_a_script_searches_the_space_at_its_top(
    script: str, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def run_search(overrides: Mapping[str, Any], config_path: str, **more: Any) -> Any:
        asked.update(more, overrides=dict(overrides), config_path=config_path)
        return type("Result", (), {"outputs": []})

    monkeypatch.setattr(run, "run_search", run_search)
    names = runpy.run_path(str(SCRIPTS / f"{script}.py"), run_name="__main__")
    assert asked["backend"] == names["BACKEND"] == "local"
    assert asked["run_dir"] == names["RUN_DIR"]
    assert asked["run_dir"].parts[-3:-1] == (names["PROJECT_STR"], names["DATASET_STR"])
    config = compose_config(asked["config_path"], asked["overrides"], tmp_path)
    check_config(config)
    settings = SearchSettings.from_config(config["search"])
    assert settings.method == method == asked.get("method", "pbt")
    assert settings.n_members == {"pbt": 20, "random": 60}[method]
    assert settings.space_for(DEFAULT_SPACE) == parse_space(names["HYPERPARAM_SPACE"])


def test_a_space_takes_the_place_of_the_packaged_one(tmp_path: Path) -> None:
    space = {"model.weight_decay": HyperParam(1e-6, 1e-2), "lr_init": HyperParam(1e-4, 1e-3)}
    overrides = {"datamodule.datafile_pattern": "x.h5", **space_overrides(space)}
    config = compose_config("pbt.yaml", overrides, tmp_path)
    found = SearchSettings.from_config(config["search"]).space_for(["weight_decay", "lr_init"])
    assert found == parse_space(space)
    assert np.isclose(found["lr_init"].max_samp, 1e-3)
