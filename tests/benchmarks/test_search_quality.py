"""The comparison of searches runs at sizes that take no time, and repeats nothing that is done."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import search_quality

from lfads_torch.data import write_session
from lfads_torch.data.synthetic import lorenz
from lfads_torch.folder import RunFolder

SMALL = [
    *(f"model.{name}=4" for name in ("ic_enc_dim", "ci_enc_dim", "con_dim", "ic_dim", "gen_dim")),
    "model.l2_increase_epoch=1",
    "model.kl_increase_epoch=1",
    "trainer.accelerator=cpu",
    "posterior_sampling.fn.num_samples=2",
]

FEW = ["--members", "2", "--epochs", "3", "--interval", "1"]

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_quality, "RAMPS", SMALL)


def table(text: str) -> dict[str, list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row[1:] for row in [cells[0], *cells[2:]]}


@pytest.mark.slow
def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = search_quality.parse(["demo", "--seeds", "0", "1", *FEW, "--folder", str(tmp_path)])
    options.lorenz = (6, 6, 5, 10, 0.5)
    found = table(search_quality.demo(options))
    assert list(found)[1:] == ["single default model", "random search", "PBT", "PBT, all members"]
    assert len(found[""]) == 5
    assert RunFolder(tmp_path / "demo" / "pbt_1").status["epochs"] == 3
    assert RunFolder(tmp_path / "demo" / "random_0").status["epochs"] == 3
    losses = [float(text) for text in found["PBT"][:3]]
    assert losses[2] == pytest.approx((losses[0] + losses[1]) / 2, abs=1e-5)

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(search_quality, "run_search", refuse)
    monkeypatch.setattr(search_quality, "run_model", refuse)
    assert table(search_quality.demo(options)) == found


def test_wrist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = lorenz(8, 10, 5, 20, 0.5, seed=1)
    rng = np.random.default_rng(0)
    n_train, n_valid = len(arrays["train_recon_data"]), len(arrays["valid_recon_data"])
    order = rng.permutation(n_train + n_valid)
    for split, inds in (("train", order[:n_train]), ("valid", order[n_train:])):
        arrays[f"{split}_inds"] = inds
        arrays[f"{split}_behavior"] = rng.normal(size=(len(inds), 20, 4))
    write_session(tmp_path / "wrist.h5", arrays)
    monkeypatch.setattr(search_quality, "WRIST", [*search_quality.DEMO, *SMALL])
    wrist = ["wrist", str(tmp_path / "wrist.h5"), "--seeds", "0"]
    options = search_quality.parse([*wrist, *FEW, "--folder", str(tmp_path)])
    text = search_quality.wrist(options)
    found = table(text)
    assert list(found)[1:] == [
        "best of 1 single default models",
        "PBT, best model",
        "PBT, all members",
    ]
    assert all(len(row) == 5 for row in found.values())
    assert "the search ended after 3 epochs" in text
