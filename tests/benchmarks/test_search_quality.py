"""The comparison of searches runs at sizes that take no time, and repeats nothing that is done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import search_quality
import yaml

from lfads_torch.data import write_session
from lfads_torch.folder import RunFolder
from tests.small import DIMS

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
SETTINGS: dict[str, Any] = yaml.safe_load(search_quality.SETTINGS.read_text())


def recording(path: Path) -> None:
    """Write windows of 30 bins that overlap by 6, every fifth of which validates."""
    rng = np.random.default_rng(0)
    n = 60
    spikes = rng.poisson(0.3, (24 * n + 6, 12)).astype(np.uint8)
    force = rng.normal(size=(len(spikes), 4))
    arrays: dict[str, Any] = {}
    for split, inds in (
        ("train", np.arange(n)[np.arange(n) % 5 > 0]),
        ("valid", np.arange(0, n, 5)),
    ):
        windows = 24 * inds[:, None] + np.arange(30)
        arrays[f"{split}_recon_data"] = arrays[f"{split}_encod_data"] = spikes[windows]
        arrays[f"{split}_behavior"] = force[windows]
        arrays[f"{split}_inds"] = inds
    write_session(path, arrays, {"bin_ms": 20.0})


@pytest.mark.parametrize("search", [search_quality.DEFAULTS, *SETTINGS["searches"]])
def test_all_searches_have_the_same_budget(search: str) -> None:
    overrides = search_quality.overrides_of(search, SETTINGS, members=4, epochs=40)
    values = dict(text.split("=", 1) for text in overrides)
    assert values["trainer.max_epochs"] == "40"
    if search != "halving":
        n = values.get("search.num_workers", values.get("search.num_samples"))
        assert n == (None if search == search_quality.DEFAULTS else "4")
        return
    first = int(values["search.burn_in_period"]) + int(values["search.perturbation_interval"])
    n, spent, begun = int(values["search.num_samples"]), 0, 0
    for cut in (first, 3 * first, 40):
        spent += n * (cut - begun)
        n, begun = n // 3, cut
    assert spent == 4 * 40


@pytest.mark.slow
def test_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recording(tmp_path / "isometric_wrist_day0.h5")
    settings = yaml.safe_load(search_quality.SETTINGS.read_text())
    wrist = settings["data"]["wrist"]
    wrist["held_out"] = 4
    wrist["overrides"] += [f"model.{name}={size}" for name, size in DIMS.items()]
    wrist["overrides"] += ["posterior_sampling.fn.num_samples=2", "trainer.accelerator=cpu"]
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    arguments = [str(tmp_path), "--settings", str(tmp_path / "tiny.yaml"), "--data", "wrist"]
    arguments += ["--members", "2", "--epochs", "8", "--seeds", "0", "1", "--json"]
    arguments += ["--runs", str(tmp_path / "runs")]
    search_quality.main(arguments)
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])
    kinds = [search_quality.DEFAULTS, *settings["searches"]]
    assert [(row["search"], row["seed"]) for row in rows] == [(k, s) for s in (0, 1) for k in kinds]
    assert all(
        np.isfinite([row[key] for key in ("loss", "valid", "test", "r2")]).all() for row in rows
    )
    assert RunFolder(tmp_path / "runs" / "wrist" / "pbt_0").status["epochs"] == 8
    search_quality.main(arguments)
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [{**row, "minutes": 0} for row in rows] == [{**row, "minutes": 0} for row in again]
    assert all(row["minutes"] < 0.1 for row in again)
