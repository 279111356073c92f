"""kill -9 at random moments: what a resumed run leaves is that of an unbroken one, to the bit."""

from __future__ import annotations

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

from .test_moved import write_data
from .test_ownership import SMALL

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

KINDS = {
    "train": ["trainer.max_epochs=12"],
    "pbt": ["trainer.max_epochs=8", "search.num_workers=3", "search.perturbation_interval=2"],
}


def start(kind: str, data: Path, folder: Path, *more: str) -> subprocess.Popen[bytes]:
    words = [*(f"{k}={'null' if v is None else v}" for k, v in SMALL.items()), *KINDS[kind]]
    where = [str(data), *words, "--run-dir", str(folder), *more]
    # A kill before the run has a status leaves nothing to resume.
    if (folder / "status.json").exists():
        where = ["--resume", str(folder)]
    command = [sys.executable, "-m", "lfads_torch.cli", "-q", kind, *where]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


@pytest.fixture(scope="module", params=KINDS)
def unbroken(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, float]:
    """Kind, folder, and the seconds that it took once it had a status."""
    place = tmp_path_factory.mktemp(request.param)
    process = start(request.param, write_data(place / "data.h5"), place / "run")
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
        elif file.suffix == ".ckpt":
            state = torch.load(file, weights_only=False)
            found[name] = [state["state_dict"], state["optimizer_states"], state["callbacks"]]
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


@pytest.mark.parametrize("seed", range(20))
def test_killed_at_random_moments(
    seed: int, unbroken: tuple[str, Path, float], tmp_path: Path
) -> None:
    kind, folder, seconds = unbroken
    draw = random.Random(seed)
    for _ in range(draw.choice([1, 1, 2])):
        process = start(kind, folder.parent / "data.h5", tmp_path / "run", "--overwrite")
        wait_for_status(process, tmp_path / "run")
        time.sleep(draw.uniform(0, seconds))
        process.kill()
        process.wait()
    process = start(kind, folder.parent / "data.h5", tmp_path / "run", "--overwrite")
    said = process.communicate()[1].decode()
    assert process.returncode == 0, said
    before, now = left(folder), left(tmp_path / "run")
    assert now.keys() == before.keys()
    for name in before:
        assert same(before[name], now[name]), name
