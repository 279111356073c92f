"""Run folders can be moved, copied, linked: what a run goes on from names no place."""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from lfads_torch import cli, load_model, run_model
from lfads_torch.data import write_session
from lfads_torch.folder import LAST, RunFolder
from lfads_torch.runs.sampling import sample_run
from lfads_torch.search.run import run_search

from .test_ownership import SMALL

pytestmark = pytest.mark.filterwarnings("ignore")

#: A learning rate with which the first epochs are best: later ones overfit.
OVERFITS = {**SMALL, "model.lr_init": 0.1, "model.dropout_rate": 0.0, "trainer.max_epochs": 8}


def write_data(path: Path) -> Path:
    rng = np.random.default_rng(0)
    counts = {}
    for split, n in (("train", 4), ("valid", 20)):
        spikes = rng.poisson(0.5, (n, 5, 3)).astype("f4")
        counts |= {f"{split}_encod_data": spikes, f"{split}_recon_data": spikes}
    return write_session(path, counts)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 8 epochs, and one of 12 that nobody touched."""
    place = tmp_path_factory.mktemp("made")
    data = {"datamodule.datafile_pattern": str(write_data(place / "data.h5"))}
    run_model({**OVERFITS, **data}, run_dir=place / "run")
    run_model({**OVERFITS, **data, "trainer.max_epochs": 12}, run_dir=place / "unbroken")
    best = str(RunFolder(place / "unbroken").status["best_checkpoint"])
    # Otherwise these tests show nothing.
    assert best < "lightning_checkpoints/best-epoch=0006.ckpt"
    return place


def moved(run: Path, to: Path) -> Path:
    return Path(shutil.move(run, to / "b"))


def copied(run: Path, to: Path) -> Path:
    shutil.copytree(run, to / "b")
    return to / "b"


def linked(run: Path, to: Path) -> Path:
    """The folder on another disk, a link in its place."""
    shutil.move(run, to / "elsewhere")
    (to / "b").symlink_to(to / "elsewhere")
    return to / "b"


def odd(run: Path, to: Path) -> Path:
    return Path(shutil.move(run, to / "ein Ort [1] ä=ö, $x"))


WAYS = [moved, copied, linked, odd]


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "csv_logs" / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def same_weights(one: Path, two: Path) -> bool:
    first, second = (torch.load(p, weights_only=False)["state_dict"] for p in (one, two))
    return all(torch.equal(first[name], second[name]) for name in first)


def texts_of(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from (*texts_of(key), *texts_of(item))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from texts_of(item)
    elif isinstance(value, str | Path):
        yield str(value)


@pytest.mark.parametrize("way", WAYS)
def test_best_and_log_are_those_of_a_run_that_stayed(
    way: Callable[[Path, Path], Path], made: Path, tmp_path: Path
) -> None:
    shutil.copytree(made / "run", tmp_path / "a")
    run = way(tmp_path / "a", tmp_path)
    run_model({"trainer.max_epochs": 12}, run_dir=run, resume=True)
    unbroken = RunFolder(made / "unbroken")
    assert RunFolder(run).status["best_checkpoint"] == unbroken.status["best_checkpoint"]
    assert rows(run) == rows(unbroken.path)
    for best in (False, True):
        mine, other = (f.checkpoint(best=best) for f in (RunFolder(run), unbroken))
        assert mine and other and mine.name == other.name and same_weights(mine, other)
    names = {file.name for file in (run / "lightning_checkpoints").iterdir()}
    assert names == {file.name for file in (unbroken.path / "lightning_checkpoints").iterdir()}


@pytest.mark.parametrize("before", [None, "/gone/run", r"C:\lab\run"])
def test_checkpoints_that_name_whole_paths_are_resumed_too(
    before: str | None, made: Path, tmp_path: Path
) -> None:
    shutil.copytree(made / "run", tmp_path / "b")
    last = tmp_path / "b" / LAST
    (last.with_name("last.ckpt.previous")).unlink(missing_ok=True)
    content = torch.load(last, weights_only=False)
    [key] = [key for key, state in content["callbacks"].items() if "best_k_models" in state]
    state, place = content["callbacks"][key], before or str(made / "run")

    def as_before(path: str) -> str:
        return (f"{place}/{path}" if path else path).replace("/", "\\" if "C:" in place else "/")

    for name in ("dirpath", "best_model_path", "kth_best_model_path"):
        state[name] = as_before(state[name])
    state["best_k_models"] = {as_before(p): score for p, score in state["best_k_models"].items()}
    torch.save(content, last)
    run_model({"trainer.max_epochs": 12}, run_dir=tmp_path / "b", resume=True)
    of_unbroken = RunFolder(made / "unbroken").status["best_checkpoint"]
    assert RunFolder(tmp_path / "b").status["best_checkpoint"] == of_unbroken


def test_no_file_of_a_run_but_its_record_names_the_folder(made: Path) -> None:
    run = made / "run"
    for checkpoint in (run / "lightning_checkpoints").iterdir():
        content = torch.load(checkpoint, weights_only=False)
        assert not [text for text in texts_of(content) if str(run) in text]
    for file in ("status.json", "config.yaml", "csv_logs/metrics.csv"):
        assert str(run) not in (run / file).read_text()


def test_a_moved_run_can_be_sampled_scored_and_reported(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "run", tmp_path / "a")
    run = moved(tmp_path / "a", tmp_path)
    (path,) = sample_run(run, num_samples=2)
    assert path.parent == run
    with h5py.File(path) as file, h5py.File(made / "run" / path.name) as before:
        assert set(file) == set(before)
    assert cli.main(["evaluate", str(run), "--no-baselines"]) == 0
    assert cli.main(["report", str(run), "--quick"]) == 0
    assert load_model(run) is not None


def test_data_in_the_folder_move_with_it(tmp_path: Path) -> None:
    (tmp_path / "a" / "files").mkdir(parents=True)
    data = write_data(tmp_path / "a" / "files" / "data.h5")
    run_model({**SMALL, "datamodule.datafile_pattern": str(data)}, run_dir=tmp_path / "a")
    run = moved(tmp_path / "a", tmp_path)
    assert sample_run(run, num_samples=2)
    run_model({"trainer.max_epochs": 2}, run_dir=run, resume=True)
    assert RunFolder(run).status["stage"] == "complete"


SEARCH = {**SMALL, "search.num_workers": 2}


@pytest.mark.slow
def test_searches_too(tmp_path: Path) -> None:
    data = {"datamodule.datafile_pattern": str(write_data(tmp_path / "data.h5"))}
    for name, epochs in (("a", 4), ("unbroken", 6)):
        run_search({**SEARCH, **data, "trainer.max_epochs": epochs}, run_dir=tmp_path / name)
    assert str(tmp_path / "a") not in (tmp_path / "a" / "status.json").read_text()
    run = moved(tmp_path / "a", tmp_path)
    run_search({"trainer.max_epochs": 6}, run_dir=run, resume=True)
    table = "population.csv"
    assert (run / table).read_bytes() == (tmp_path / "unbroken" / table).read_bytes()
    for checkpoint in ("best", "last"):
        file = f"best_model/lightning_checkpoints/{checkpoint}.ckpt"
        assert same_weights(run / file, tmp_path / "unbroken" / file)
    (path,) = sample_run(run, ensemble=True, num_samples=2)
    assert path.parent == run and os.path.exists(path)
    run_model({"trainer.max_epochs": 7}, run_dir=run / "best_model", resume=True)
    # A member's folder is an ordinary run, wherever it lies.
    best_model = shutil.move(run / "best_model", tmp_path / "alone")
    run_model({"trainer.max_epochs": 8}, run_dir=best_model, resume=True)
    assert cli.main(["report", str(best_model), "--quick"]) == 0
