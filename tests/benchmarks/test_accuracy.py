"""The table of accuracy is made at sizes that take no time, and repeats nothing that is done."""

from __future__ import annotations

import json
from pathlib import Path

import accuracy
import h5py
import numpy as np
import pytest
import yaml

from lfads_torch.folder import RunFolder
from tests.small import DIMS

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]


def test_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    target = np.repeat(np.arange(4), 10)
    rates = 0.02 + 0.02 * rng.random((4, 1, 12))
    spikes = rng.random((40, 100, 12)) < rates[target]
    with h5py.File(tmp_path / "delayed_reach.h5", "w") as file:
        file["spikes"], file["target"] = spikes.astype(np.uint8), target
    settings = yaml.safe_load(accuracy.SETTINGS.read_text())
    settings["samples"] = 2
    reach = settings["data"]["reach"]
    reach["prepare"] += ["--held-out", "4"]
    reach["overrides"] += [f"model.{name}={size}" for name, size in DIMS.items()]
    reach["overrides"] += ["posterior_sampling.fn.num_samples=2", "trainer.accelerator=cpu"]
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(settings))
    arguments = [str(tmp_path), "--settings", str(tmp_path / "tiny.yaml"), "--seeds", "2"]
    arguments += ["--epochs", "2", "--runs", str(tmp_path / "runs"), "--json"]
    accuracy.main(arguments)
    first = json.loads(capsys.readouterr().out.splitlines()[-1])
    names = {row["name"] for row in first}
    assert names == {name for key, name in accuracy.ROWS.items() if key not in ("mean4", "mean8")}
    rows = {row["name"]: row for row in first}
    single, greedy = rows[accuracy.ROWS["single"]], rows[accuracy.ROWS["greedy"]]
    assert single["gain"] == 0 and single["n"] == 2
    assert greedy["gain"] == pytest.approx(greedy["mean"] - single["mean"])
    finished = RunFolder(tmp_path / "runs" / "reach" / "default" / "seed0").status["finished"]
    accuracy.main([*arguments, "--rows", "single", "greedy"])
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert again == [single, greedy]
    status = RunFolder(tmp_path / "runs" / "reach" / "default" / "seed0").status
    assert status["finished"] == finished
