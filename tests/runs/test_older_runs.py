"""A run and a search that an earlier version made still load, sample and resume.

They were made before the package was laid out in rooms; ``fixtures/before_rooms`` holds what such
folders hold, less figures and outputs.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from lfads_torch.checkpoint import load_model
from lfads_torch.folder import RunFolder
from lfads_torch.run_model import run_model
from lfads_torch.runs.sampling import sample_run
from lfads_torch.tables import read_csv_log, read_hyperparameters, read_population

OLD = Path(__file__).parents[1] / "fixtures" / "before_rooms"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy, because resuming and sampling write into the folder."""
    return Path(shutil.copytree(OLD, tmp_path / "old"))


@pytest.mark.parametrize("place", ["run", "search"])
@pytest.mark.parametrize("best", [True, False])
def test_models_load(place: str, best: bool) -> None:
    model = load_model(OLD / place, best=best)
    assert (model.hparams["gen_dim"], model.hparams["fac_dim"]) == (5, 4)
    assert all(bool(p.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize("place", ["run", "search"])
def test_models_sample(place: str, folder: Path) -> None:
    [path] = sample_run(folder / place, data=folder / "small.h5", num_samples=2)
    with h5py.File(path) as file, h5py.File(folder / "small.h5") as data:
        rates, spikes = file["valid_output_params"][()], data["valid_recon_data"]
        assert rates.shape == spikes.shape and np.isfinite(rates).all()


def test_a_run_resumes(folder: Path) -> None:
    before = read_csv_log(folder / "run")["valid/recon"]
    overrides = {"datamodule.datafile_pattern": str(folder / "small.h5"), "trainer.max_epochs": 3}
    result = run_model(overrides, run_dir=folder / "run", resume=True)
    epochs, values = read_csv_log(folder / "run")["valid/recon"]
    assert epochs.tolist() == [0, 1, 2]
    assert values[:2].tolist() == before[1].tolist()
    assert np.isfinite(values).all() and result.outputs[0].is_file()
    assert RunFolder(folder / "run").status["epochs"] == 3


def test_the_tables_and_the_best_model_of_a_search() -> None:
    search = RunFolder(OLD / "search")
    assert (search.kind, search.single.kind) == ("search", "run")
    assert search.checkpoint(best=True) == search.single.path / "lightning_checkpoints/best.ckpt"
    table = read_population(search.path)
    assert sorted(set(table["member"].tolist())) == [0, 1, 2]
    best = search.status["best"]
    row = (table["member"] == best["member"]) & (table["epoch"] == best["epoch"])
    assert table["valid/recon_smth"][row].item() == pytest.approx(best["score"])
    assert read_hyperparameters(search.path)["model.lr_init"].min() > 0
