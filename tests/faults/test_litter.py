"""No litter: what killed runs left goes with the next start, and signals leave none."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lfads_torch import cli, run_model
from lfads_torch.ownership import LOCK
from lfads_torch.processes import mark
from lfads_torch.runs.sampling import sample_run

from .test_moved import write_data
from .test_ownership import SMALL

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, with its data beside it."""
    place = tmp_path_factory.mktemp("finished")
    data = {"datamodule.datafile_pattern": str(write_data(place / "data.h5"))}
    run_model({**SMALL, **data}, run_dir=place / "run")
    return place / "run"


def leave_litter(run: Path) -> tuple[list[Path], list[Path]]:
    """Leave what killed processes leave, of this version and of earlier ones; and other files."""
    host, _, boot, container, _ = mark().rsplit("_", 4)
    dead, elsewhere = f"{host}_1_{boot}_{container}_1", "node17_12_a1_5_99"
    litter = [
        run / ".lfads_output_data.h5.0a1b2c3d.partial",
        run / "csv_logs" / ".metrics.csv.4711.tmp",
        run / "lightning_checkpoints" / f".last.ckpt.{dead}.tmp",
        run / f".status.json.{elsewhere}.tmp",
        run / f"..lock.{dead}.tmp",
        run / ".probe.4711",
    ]
    others = [run / ".notes.tmp", run / "a.tmp", run / ".git.partial", run / "my" / ".x.12.txt"]
    (run / "my").mkdir()
    for file in (*litter, *others):
        file.write_text("")
    return litter, others


STARTS: dict[str, Callable[[Path], object]] = {
    "resume": lambda run: run_model(run_dir=run, resume=True),
    "overwrite": lambda run: run_model(
        {**SMALL, "datamodule.datafile_pattern": str(run.parent / "data.h5")},
        run_dir=run,
        overwrite=True,
    ),
    "sample": lambda run: sample_run(run, num_samples=1),
    "report": lambda run: cli.main(["report", str(run), "--quick"]),
}


@pytest.mark.parametrize("start", STARTS)
def test_the_next_start_removes_what_killed_ones_left(
    start: str, finished: Path, tmp_path: Path
) -> None:
    shutil.copy(finished.parent / "data.h5", tmp_path)
    shutil.copytree(finished, tmp_path / "run")
    litter, others = leave_litter(tmp_path / "run")
    STARTS[start](tmp_path / "run")
    assert not [file for file in litter if file.exists()]
    assert all(file.exists() for file in others)


def test_a_terminated_training_leaves_nothing_under_way(finished: Path, tmp_path: Path) -> None:
    words = [*(f"{k}={'null' if v is None else v}" for k, v in SMALL.items())]
    words += ["trainer.max_epochs=100000", "--run-dir", str(tmp_path / "r")]
    command = [sys.executable, "-m", "lfads_torch.cli", "train", str(finished.parent / "data.h5")]
    process = subprocess.Popen([*command, *words], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "r" / "csv_logs" / "metrics.csv").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    assert (tmp_path / "r" / LOCK).exists()
    process.terminate()
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + signal.SIGTERM
    assert f"stopped by SIGTERM; go on with: lfads train --resume {tmp_path / 'r'}" in said
    assert "Traceback" not in said
    assert not [file for file in (tmp_path / "r").rglob(".*")]
