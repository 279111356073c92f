"""kill -9 at random moments: what a resumed run leaves is that of an unbroken one, to the bit."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from lfads_torch import run_model
from lfads_torch.data import write_session
from lfads_torch.data.synthetic import days
from lfads_torch.folder import RunFolder

from .test_moved import write_data
from .test_ownership import SMALL

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

POPULATION = ["search.num_workers=3", "search.perturbation_interval=2"]
#: Some runs stop before the others, so that the stack of those that train changes.
STOPS = ["callbacks.early_stopping.burn_in_period=0", "callbacks.early_stopping.patience=1"]
SEEDS = ["trainer.max_epochs=8", "model.lr_init=0.05", "--seeds", "3"]
HALVING = ["search=halving", "search.num_samples=4", "search.perturbation_interval=1"]
#: How each begins, and how many seeds draw moments for it.
KINDS = {
    "train": (["train", "trainer.max_epochs=12"], 20),
    "pbt": (["pbt", "trainer.max_epochs=8", *POPULATION], 20),
    "select_by": (["pbt", "trainer.max_epochs=8", *POPULATION, "select_by=valid/bps"], 6),
    "halving": (["search", *HALVING, "search.halving_factor=2", "trainer.max_epochs=12"], 6),
    "seeds": (["train", *SEEDS], 12),
    "stopping": (["train", *SEEDS, *STOPS, "select_by=valid/bps_smth"], 12),
    "align": (["align", "--epochs", "8", "--seeds", "3", "--samples", "2"], 8),
}


def start(kind: str, place: Path, folder: Path, *more: str) -> subprocess.Popen[bytes]:
    (command, *options), _ = KINDS[kind]
    settings = [f"{k}={'null' if v is None else v}" for k, v in SMALL.items()]
    what = [str(place / "day0"), str(place / "day1.h5")]
    what = what if kind == "align" else [str(place / "data.h5"), *settings]
    where = [*what, *options, "--run-dir", str(folder), *more]
    # A kill before the run has a status leaves nothing to resume.
    if (folder / "status.json").exists():
        where = ["--resume", str(folder)]
        if kind == "align" and RunFolder(folder).status["stage"] == "complete":
            where = [*what, *options, "--run-dir", str(folder), "--overwrite"]
    command = [sys.executable, "-m", "lfads_torch.cli", "-q", command, *where]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


@pytest.fixture(scope="module")
def unbroken(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, float]:
    """Kind, folder, and the seconds that it took once it had a status."""
    place = tmp_path_factory.mktemp(request.param)
    write_data(place / "data.h5")
    if request.param == "align":
        for k, day in enumerate(days(2, 6, 40, n_bins=6, seed=1)):
            write_session(place / f"day{k}.h5", day, {"bin_ms": 20.0})
        day0 = {**SMALL, "datamodule.datafile_pattern": str(place / "day0.h5")}
        run_model(day0, run_dir=place / "day0")
    process = start(request.param, place, place / "run")
    began = wait_for_status(process, place / "run")
    assert process.wait() == 0, process.communicate()[1]
    return request.param, place / "run", time.monotonic() - began


def wait_for_status(process: subprocess.Popen[bytes], folder: Path) -> float:
    while not (folder / "status.json").exists() and process.poll() is None:
        time.sleep(0.005)
    return time.monotonic()


def left(folder: Path) -> dict[str, Any]:
    """Everything that a run leaves but times: tables, weights, states, arrays of outputs."""
    found: dict[str, Any] = {}
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        if file.suffix == ".csv":
            found[name] = file.read_bytes()
        elif file.name in ("seeds.json", "alignment.json"):
            found[name] = {k: v for k, v in json.loads(file.read_text()).items() if k != "seconds"}
        elif file.suffix == ".ckpt":
            state = torch.load(file, weights_only=False)
            names = ("state_dict", "optimizer_states", "callbacks")  # an alignment has the first
            found[name] = [state.get(key) for key in names]
        elif file.suffix == ".h5":
            with h5py.File(file) as arrays:
                found[name] = {key: np.asarray(arrays[key]) for key in arrays}
        elif not file.is_dir() and file.name.startswith("."):
            found[name] = "litter"
    return found


def same(one: Any, two: Any) -> bool:
    if isinstance(one, dict):
        return list(one) == list(two) and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    if isinstance(one, torch.Tensor | np.ndarray):
        return one.dtype == two.dtype and np.array_equal(one, two, equal_nan=one.dtype != object)
    return bool(one == two) or (one != one and two != two)


@pytest.mark.parametrize(
    ("unbroken", "seed"),
    [(kind, seed) for kind, (_, n_seeds) in KINDS.items() for seed in range(n_seeds)],
    indirect=["unbroken"],
)
def test_killed_at_random_moments(
    seed: int, unbroken: tuple[str, Path, float], tmp_path: Path
) -> None:
    kind, folder, seconds = unbroken
    draw = random.Random(seed)
    for _ in range(draw.choice([1, 1, 2])):
        process = start(kind, folder.parent, tmp_path / "run", "--overwrite")
        wait_for_status(process, tmp_path / "run")
        time.sleep(draw.uniform(0, seconds))
        process.kill()
        process.wait()
    process = start(kind, folder.parent, tmp_path / "run", "--overwrite")
    said = process.communicate()[1].decode()
    assert process.returncode == 0, said
    before, now = left(folder), left(tmp_path / "run")
    assert now.keys() == before.keys()
    for name in before:
        assert same(before[name], now[name]), name
