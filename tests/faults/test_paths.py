"""Any name of a file or folder: as an argument of each command, and where overrides name one."""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lfads_torch import cli
from lfads_torch.data import write_session
from lfads_torch.files import expanded
from lfads_torch.folder import RunFolder
from lfads_torch.runs.compose import compose_config, read_config, write_config

pytestmark = pytest.mark.filterwarnings("ignore")

NAMES = [
    "données",
    "e\u0301te\u0301",  # accents as macOS writes them
    "日本",
    "my data",
    " leading",
    "trailing ",
    "-leading",
    "a[1]",
    "[1]",
    "[a,b]",
    "a,b",
    "a=b",
    "a.b=c",
    "$HOME",
    "${HOME}",
    "a${b}c",
    "\\${b}",
    "a#b",
    "#b",
    "{a}",
    "{a:1}",
    "it's",
    "'quoted'",
    '"quoted"',
    'say "so"',
    "~nobody",
    "~",
    "*?",
    "a(b)",
    "choice(a,b)",
    "a&b;c|d<e>f",
    "100%d",
    "%(a)s",
    "`a`",
    "!a",
    "@a",
    "a:b",
    "+a",
    "null",
    "true",
    "1e3",
    "C:\\data\\new",
    "\\\\server\\share",
    "back\\",
    "back\\'s",
    "new\nline",
    "tab\tbed",
    os.fsdecode(b"latin-\xe9"),  # a name of a disk that was written with another encoding
]
SMALL = [
    *(f"model.{name}=4" for name in ("ic_enc_dim", "ci_enc_dim", "con_dim", "ic_dim", "gen_dim")),
    *("model.fac_dim=3", "model.co_dim=1", "trainer.accelerator=cpu"),
    "posterior_sampling.fn.num_samples=2",
]


def pattern_of(overrides: Any) -> Any:
    return compose_config("single.yaml", overrides)["datamodule"]["datafile_pattern"]


def counts() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split, first in (("train", 0), ("valid", 8)):
        spikes = rng.poisson(1.0, (8, 12, 5)).astype("f4")
        arrays |= {f"{split}_encod_data": spikes, f"{split}_recon_data": spikes}
        arrays[f"{split}_cond"] = np.arange(8) % 2
        arrays[f"{split}_inds"] = np.arange(first, first + 8)
    return arrays


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_pattern_is_taken_as_it_is_written(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / name / f"{name}.h5", tmp_path / f"{name}.h5"):
        path.parent.mkdir(exist_ok=True)
        path.touch()
        for given_path in (str(path), os.path.relpath(path, tmp_path)):
            if expanded(given_path) != Path(given_path):
                continue  # a home
            assert pattern_of([f"datamodule.datafile_pattern={given_path}"]) == str(path)
            assert pattern_of({"datamodule.datafile_pattern": given_path}) == str(path)
            assert pattern_of({"datamodule": {"datafile_pattern": given_path}}) == str(path)
        both = {"datamodule.datafile_pattern": [str(path), str(path)]}
        assert pattern_of(both) == [str(path), str(path)]
    # A run keeps it, and one that is gone is named as it was written.
    config = compose_config("single.yaml", [f"datamodule.datafile_pattern={path}"])
    run = tmp_path / name
    write_config(run / "config.yaml", config)
    assert read_config(run)["datamodule"]["datafile_pattern"] == str(path)
    assert compose_config(run / "config.yaml", ["trainer.max_epochs=3"]) == {
        **config,
        "trainer": {**config["trainer"], "max_epochs": 3},
    }


def test_a_name_of_another_encoding_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    write_session(NAMES[-1], counts())
    assert cli.main(["check", NAMES[-1]]) == 0
    assert "latin-\\udce9" in capsys.readouterr().out


def test_patterns_and_lists_still_say_what_they_say(tmp_path: Path) -> None:
    key = "datamodule.datafile_pattern"
    for name in ("a.h5", "b c.h5", "ü.h5"):
        (tmp_path / name).touch()
    assert pattern_of([f"{key}={tmp_path}/*.h5"]) == f"{tmp_path}/*.h5"
    for text in (
        f"[{tmp_path}/a.h5,{tmp_path}/b c.h5]",
        f"['{tmp_path}/a.h5', '{tmp_path}/b c.h5']",
    ):
        assert pattern_of([f"{key}={text}"]) == [f"{tmp_path}/a.h5", f"{tmp_path}/b c.h5"]
    text = f"[{tmp_path}/a.h5,{tmp_path}/ü.h5]"
    assert pattern_of([f"{key}={text}"]) == [f"{tmp_path}/a.h5", f"{tmp_path}/ü.h5"]
    assert pattern_of([f"{key}='{tmp_path}/b c.h5'"]) == f"{tmp_path}/b c.h5"
    assert pattern_of([f"{key}={tmp_path}/${{trainer.devices}}.h5"]) == f"{tmp_path}/1.h5"


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1))
@example("'")
@example("\\")
@example("a\\'b'")
def test_any_text_is_a_name(text: str) -> None:
    path = f"/x/{text}.h5"
    if "${" not in text:  # where nothing is there, that is a reference
        assert pattern_of([f"datamodule.datafile_pattern={path}"]) == path
        assert pattern_of({"datamodule.datafile_pattern": path}) == path


def test_paths_of_windows_stay_as_they_are() -> None:
    for path in (
        "C:\\data\\new\\tiny.h5",
        "\\\\server\\share\\a b.h5",
        "C:\\it's\\",
        "D:\\[1]\\*.h5",
    ):
        assert pattern_of([f"datamodule.datafile_pattern={path}"]).endswith(path)
        saved = [f"logger.csv.save_dir={path}", "datamodule.datafile_pattern=x"]
        config = compose_config("single.yaml", saved)
        assert config["logger"]["csv"]["save_dir"] == path


@pytest.mark.parametrize(
    "name",
    [
        "dé[1] {a}='b',$x#(2) ",
        pytest.param("$a$_{b}^ ${c} ", marks=pytest.mark.slow),
        pytest.param('-\\ "q"~\n%d*', marks=pytest.mark.slow),
    ],
    ids=ascii,
)
def test_every_command_takes_any_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    place = tmp_path / name
    place.mkdir()
    monkeypatch.chdir(place)
    data, other, run = (f"{stem}{name}" for stem in ("./", "other ", "run "))
    data, other = f"{data}.h5", f"{other}.h5"
    for file in (data, other):
        write_session(file, counts(), {"bin_ms": 10.0})
    np.savez(f"recording {name}.npz", spikes=counts()["train_encod_data"])

    def lfads(*arguments: str) -> None:
        assert cli.main(arguments) == 0, capfd.readouterr().err

    lfads("check", data)
    lfads("repack", data, "-o", f"packed {name}.h5")
    bins = ["--input-bin-ms", "10", "--axes", "trial,time,unit"]
    lfads("prep", f"recording {name}.npz", "-o", f"made {name}.h5", *bins)
    overrides = [f"datamodule.datafile_pattern={data}", *SMALL]
    lfads("train", *overrides, "--run-dir", run, "trainer.max_epochs=1")
    config = yaml.safe_load((place / run / "config.yaml").read_text("utf-8"))
    assert config["datamodule"]["datafile_pattern"].replace("\\${", "${") == str(place / data[2:])
    shutil.move(run, f"moved {run}")
    run = f"moved {run}"
    lfads("train", "--resume", run, "trainer.max_epochs=2")
    lfads("sample", run, "--data", other, "--samples", "2", "--output", f"rates {name}.h5")
    with h5py.File(f"rates {name}.h5") as file:
        assert file["valid_output_params"].shape == (8, 12, 5)
    lfads("evaluate", run, "--draws", "10", "--output", f"scores {name}")
    merge = ["--positions", "inds", "--overlap", "2"]
    lfads("merge", f"rates {name}.h5", "--output", f"merged {name}.h5", *merge)
    align = ["--condition", "cond", "--components", "5"]
    lfads("align-init", data, other, *align, "--output-dir", f"aligned {name}")
    lfads("add-session", run, other, "--run-dir", f"added {name}", "--epochs", "1")
    search = ["search.num_workers=2", "search.perturbation_interval=1", "trainer.max_epochs=2"]
    lfads("pbt", *overrides, *search, "search.burn_in_period=0", "--run-dir", f"search {name}")
    lfads("sample", f"search {name}", "--samples", "2")


def test_the_command_to_go_on_with_can_be_pasted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    write_session("a b.h5", counts())

    def interrupted(*_: Any, **__: Any) -> None:
        Path("my run's").mkdir()
        RunFolder("my run's").write_status("training")
        raise KeyboardInterrupt

    monkeypatch.setattr("lfads_torch.runs.run.check_config", interrupted)
    cli.main(["train", "a b.h5", "--run-dir", "my run's"])
    command = capsys.readouterr().err.split("go on with: ")[1].strip()
    assert shlex.split(command) == ["lfads", "train", "--resume", str(tmp_path / "my run's")]
