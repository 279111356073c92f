"""A data file that holds other numbers than a run was trained on is noticed."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from lfads_torch import cli, run_model
from lfads_torch.checkpoint import read_checkpoint
from lfads_torch.data import write_session
from lfads_torch.data.fingerprint import fingerprints
from lfads_torch.errors import DataError
from lfads_torch.folder import LAST, RunFolder
from lfads_torch.runs.ensembling import make_ensemble
from lfads_torch.runs.sampling import sample_run
from lfads_torch.search.run import run_search
from lfads_torch.search.seeds import train_seeds
from lfads_torch.sessions.add import add_session
from tests.small import arrays, datamodule

from .test_checkpoints import RUN, SMALL
from .test_moments import killed

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two sessions."""
    folder = tmp_path_factory.mktemp("made")
    for day in range(2):
        write_session(folder / f"day{day}.h5", arrays(n_train=8, seed=day, ext=1))
    data = {"datamodule.datafile_pattern": str(folder / "day*.h5"), "datamodule.batch_size": 8}
    overrides = {**RUN, **data, "trainer.max_epochs": 1}
    run_model(overrides, run_dir=folder / "run", config_path="multi.yaml")
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    """A copy of the folder, where the run names its data anew."""
    place = shutil.copytree(made, tmp_path / "copy")
    config = place / "run/config.yaml"
    config.write_text(config.read_text().replace(str(made), str(place)))
    return place


def alter(file: Path, change: Callable[[dict[str, np.ndarray]], None], **options: Any) -> None:
    """Write a file anew, with changed arrays."""
    with h5py.File(file) as old:
        content = {key: old[key][()] for key in old}
    change(content)
    with h5py.File(file, "w") as new:
        for key, array in content.items():
            new.create_dataset(key, data=array, **options)


def add_a_spike(content: dict[str, np.ndarray]) -> None:
    for kind in ("encod", "recon"):
        content[f"valid_{kind}_data"][3, 2, 1] += 1


def swap_trials(content: dict[str, np.ndarray]) -> None:
    for kind in ("encod_data", "recon_data", "ext_input"):
        content[f"train_{kind}"] = content[f"train_{kind}"][::-1]


def drop_a_trial(content: dict[str, np.ndarray]) -> None:
    for kind in ("encod_data", "recon_data", "ext_input"):
        if f"train_{kind}" in content:
            content[f"train_{kind}"] = content[f"train_{kind}"][1:]


def scale_the_input(content: dict[str, np.ndarray]) -> None:
    content["train_ext_input"] *= 2


CHANGES = {
    add_a_spike: "valid_encod_data holds other numbers, valid_recon_data holds other numbers",
    swap_trials: "train_encod_data holds other numbers",
    drop_a_trial: "train_encod_data is 7 x 6 x 3, and was 8 x 6 x 3",
    scale_the_input: "train_ext_input holds other numbers",
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_data_are_refused_with_the_file_and_what_changed(
    change: Callable[[dict[str, np.ndarray]], None], place: Path
) -> None:
    alter(place / "day1.h5", change)
    run, said = place / "run", rf"trained on: day1\.h5: {CHANGES[change]}.*--accept-changed-data"
    before = (run / "status.json").read_bytes(), (run / LAST).read_bytes()
    with pytest.raises(DataError, match=said):
        sample_run(run, num_samples=1)
    for epochs in (1, 2):  # nothing but samples is left, or an epoch
        with pytest.raises(DataError, match=said):
            run_model({"trainer.max_epochs": epochs}, run_dir=run, resume=True)
    assert ((run / "status.json").read_bytes(), (run / LAST).read_bytes()) == before


def test_data_that_are_accepted_are_recorded_with_their_epoch(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alter(place / "day0.h5", add_a_spike)
    run = str(place / "run")
    more = ["trainer.max_epochs=2", "--accept-changed-data"]
    assert cli.main(["train", "--resume", run, "trainer.max_epochs=2"]) != 0
    assert "day0.h5" in capsys.readouterr().err
    assert cli.main(["train", "--resume", run, *more]) == 0
    status = RunFolder(run).status
    changed = {entry["key"]: entry["from_epoch"] for entry in status["changes"]}
    assert changed == {"trainer.max_epochs": 1, "data.day0.h5": 1}
    now = fingerprints(datamodule(place / "day*.h5", batch_size=8))
    assert json.loads(json.dumps(now)) == status["data"]
    assert read_checkpoint(place / "run" / LAST)["lfads_run"]["data"] == now
    # From now on these are the run's data.
    assert cli.main(["sample", run, "--samples", "1"]) == 0
    run_model({"trainer.max_epochs": 3}, run_dir=run, resume=True)


def test_samples_of_accepted_data_do_not_make_them_those_of_training(place: Path) -> None:
    alter(place / "day0.h5", add_a_spike)
    sample_run(place / "run", num_samples=1, accept_changed_data=True)
    sample_run(place / "run", num_samples=1)
    with pytest.raises(DataError, match=r"day0\.h5: valid_encod_data"):
        run_model({"trainer.max_epochs": 2}, run_dir=place / "run", resume=True)


def test_moved_repacked_and_compressed_files_are_the_same_data(place: Path) -> None:
    def as_small_integers(content: dict[str, np.ndarray]) -> None:
        for key in content:
            if "encod" in key or "recon" in key:
                content[key] = content[key].astype("u1")

    def add_a_key(content: dict[str, np.ndarray]) -> None:
        content["train_note"] = np.arange(8)
        content["valid_note"] = np.arange(5)

    alter(place / "day0.h5", as_small_integers, compression="gzip", chunks=True)
    alter(place / "day1.h5", add_a_key, compression="lzf", chunks=True)
    (place / "elsewhere").mkdir()
    for day in range(2):
        (place / f"day{day}.h5").rename(place / f"elsewhere/day{day}.h5")
    pattern = {"datamodule.datafile_pattern": str(place / "elsewhere/day*.h5")}
    run_model({**pattern, "trainer.max_epochs": 2}, run_dir=place / "run", resume=True)
    sample_run(place / "run", num_samples=1)


def test_new_trials_are_sampled_and_streamed_data_have_one_fingerprint(place: Path) -> None:
    (place / "new").mkdir()
    for day in range(2):
        write_session(place / f"new/day{day}.h5", arrays(n_train=3, seed=9, ext=1))
    sample_run(place / "run", num_samples=1, data=place / "new/day*.h5")
    held = fingerprints(datamodule(place / "day*.h5", batch_size=8))
    streamed = fingerprints(datamodule(place / "day*.h5", batch_size=8, max_memory_gb=0))
    assert held == streamed
    assert [one["file"] for one in held] == ["day0.h5", "day1.h5"]


def test_a_run_of_an_older_version_has_no_record_and_goes_on(place: Path) -> None:
    run = RunFolder(place / "run")
    run.write_status(**{key: value for key, value in run.status.items() if key != "data"})
    alter(place / "day0.h5", add_a_spike)
    # What the status has lost the checkpoint still knows.
    with pytest.raises(DataError, match=r"day0\.h5"):
        sample_run(run.path, num_samples=1)


def test_a_search_notices_changed_data(made: Path, tmp_path: Path) -> None:
    data = shutil.copy(made / "day0.h5", tmp_path / "day0.h5")
    search = tmp_path / "search"
    settings = {"datamodule.datafile_pattern": str(data), "datamodule.batch_size": 8}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run_search(
            {**SMALL, **settings, "search.num_workers": 2, "trainer.max_epochs": 1}, run_dir=search
        )
    alter(Path(data), add_a_spike)
    more = {"trainer.max_epochs": 2}
    with pytest.raises(DataError, match=r"day0\.h5: valid_encod_data holds other numbers"):
        run_search(more, run_dir=search, resume=True)
    with pytest.raises(DataError, match=r"day0\.h5: valid_encod_data holds other numbers"):
        sample_run(search, num_samples=1)
    run_search(more, run_dir=search, resume=True, accept_changed_data=True)
    changed = {e["key"]: e["from_epoch"] for e in RunFolder(search).status["changes"]}
    assert changed == {"trainer.max_epochs": 1, "data.day0.h5": 1}
    sample_run(search, num_samples=1)


def test_a_session_is_not_added_to_a_model_of_other_data(place: Path) -> None:
    new = place / "day7.h5"
    write_session(new, arrays(n_train=8, seed=7, ext=1))
    alter(place / "day1.h5", add_a_spike)
    with pytest.raises(DataError, match=r"day1\.h5: valid_encod_data holds other numbers"):
        add_session(place / "run", new, place / "three", epochs=1)
    assert not (place / "three").exists()


def test_seeds_and_what_is_made_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeds that train together or alone, and their ensemble."""
    data, seeds = write_session(tmp_path / "data.h5", arrays(n_train=8)), tmp_path / "seeds"
    settings = {**RUN, "datamodule.datafile_pattern": str(data), "trainer.max_epochs": 2}
    with killed(monkeypatch, "last.ckpt", 3):
        train_seeds(settings, 2, run_dir=seeds)
    alter(data, add_a_spike)
    status = (seeds / "status.json").read_bytes()
    with pytest.raises(DataError, match=r"valid_encod_data holds other numbers"):
        train_seeds(run_dir=seeds, resume=True)
    assert (seeds / "status.json").read_bytes() == status
    train_seeds(run_dir=seeds, resume=True, accept_changed_data=True)
    for name in ("seed0", "seed1"):
        assert RunFolder(seeds / name).status["changes"][0]["key"] == "data.data.h5"
    alter(data, drop_a_trial)
    with pytest.raises(DataError, match=r"train_encod_data is 7 x"):
        train_seeds({"trainer.max_epochs": 3}, run_dir=seeds, resume=True)
    with pytest.raises(DataError, match=r"train_encod_data is 7 x"):
        make_ensemble([seeds], tmp_path / "mean", num_samples=5)
    made = make_ensemble([seeds], tmp_path / "mean", num_samples=5, accept_changed_data=True)
    assert made.outputs
