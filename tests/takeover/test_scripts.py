"""Labs' scripts, as they are, run to the end and leave the folders that their last lines expect."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lfads_torch.extensions.tune import read_pbt_fitlog
from lfads_torch.post_run.pbt import read_pbt_hps

LAB = Path(__file__).parent / "files" / "lab"
PACKAGE = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the lab's folder, with data."""
    folder = shutil.copytree(LAB, tmp_path_factory.mktemp("project") / "lab")
    subprocess.run([sys.executable, str(folder / "make_data.py")], check=True)
    return folder


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A working directory that is not the lab's; what a script writes there goes after the test."""
    yield tmp_path
    shutil.rmtree(tmp_path / "runs", ignore_errors=True)


def start(script: Path, folder: Path) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(PACKAGE),
        "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    environment.pop("RAY_ADDRESS", None)
    return subprocess.Popen(
        [sys.executable, str(script)],
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def run(script: Path, folder: Path) -> Path:
    """Run a script to its end; return its run folder."""
    process = start(script, folder)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output[-6000:]
    (place,) = folder.glob("runs/arm-lab/*/*")
    return place


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_one_model(lab: Path) -> None:
    """From the lab's folder, into a folder that the script changes to."""
    folder = run(lab / "scripts" / "run_single.py", lab)
    names = ("csv_logs/metrics.csv", "csv_logs/hparams.yaml", "lightning_checkpoints/last.ckpt")
    assert all((folder / name).is_file() for name in names)
    assert len(list(folder.glob("lfads_output*.h5"))) == 1
    assert list(folder.glob("events.out.tfevents*"))


def test_one_model_of_several_days(lab: Path, elsewhere: Path) -> None:
    """The tutorial of several sessions: another model, another data set, from elsewhere."""
    text = (lab / "scripts" / "run_single.py").read_text()
    text, n = re.subn(
        r'"datamodule": DATASET_STR, "model": DATASET_STR',
        '"datamodule": "reach_days", "model": "reach_days_PCR"',
        text,
    )
    assert n == 1
    script = lab / "scripts" / "run_days.py"
    script.write_text(text)
    assert len(list(run(script, elsewhere).glob("lfads_output*.h5"))) == 3


@pytest.mark.slow
def test_a_random_search(lab: Path, elsewhere: Path) -> None:
    pytest.importorskip("ray.tune", reason="Ray comes with the extra tune")
    folder = run(lab / "scripts" / "run_multi.py", elsewhere)
    trials = sorted(path.parent for path in folder.glob("run_model_*/params.json"))
    assert len(trials) == 3
    for trial in trials:
        assert len(list(trial.glob("lfads_output*.h5"))) == 1
        assert (trial / "csv_logs" / "metrics.csv").is_file()
        assert list((trial / "lightning_checkpoints").glob("*-*.ckpt"))
        assert [result["cur_epoch"] for result in lines(trial / "result.json")] == [0, 1, 2]
    assert len({(trial / "params.json").read_text() for trial in trials}) == 3


def test_a_population(lab: Path, elsewhere: Path) -> None:
    """Stopped as early as a copy can be seen; the slow test below runs the script as it is."""
    pytest.importorskip("ray.tune", reason="Ray comes with the extra tune")
    text = (lab / "scripts" / "run_pbt.py").read_text()
    text, n = re.subn(
        "patience=2,\n        min_improvement_ratio=5e-4",
        "patience=1,\n        min_improvement_ratio=0.9",
        text,
    )
    assert n == 1
    script = lab / "scripts" / "run_short.py"
    script.write_text(text)
    check_population(run(script, elsewhere))


@pytest.mark.slow
def test_a_population_that_was_killed_is_begun_again(lab: Path, elsewhere: Path) -> None:
    pytest.importorskip("ray.tune", reason="Ray comes with the extra tune")
    process = start(lab / "scripts" / "run_pbt.py", elsewhere)
    deadline = time.monotonic() + 300
    while not list(elsewhere.glob("runs/*/*/*/run_model_*/checkpoint_*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.5)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    (folder,) = elsewhere.glob("runs/arm-lab/*/*")
    time.sleep(10)  # for the workers, which end later than the script that started them
    shutil.rmtree(folder)  # the script refuses a folder that is there
    check_population(run(lab / "scripts" / "run_pbt.py", elsewhere))


def check_population(folder: Path) -> None:
    """The members, and the best one with its posterior means, are where the script has them."""
    trials = sorted(path.parent for path in folder.glob("run_model_*/params.json"))
    assert len(trials) == 3
    first = [lines(trial / "result.json")[0] for trial in trials]
    assert len({result["valid/recon_smth"] for result in first}) == 3, "seed: null"
    assert all(result["config"]["model.lr_init"] == 4e-3 for result in first)
    for trial in trials:
        reports = lines(trial / "result.json")
        assert [report["cur_epoch"] for report in reports] == list(range(len(reports)))
        assert len(list(trial.glob("csv_logs/version_*/metrics.csv"))) >= 2
    best = folder / "best_model"
    (checkpoint,) = best.glob("checkpoint_*/tune.ckpt")
    assert checkpoint.is_file()
    assert len(list(best.glob("lfads_output*.h5"))) == 1
    scores = {trial.name: lines(trial / "result.json")[-1] for trial in trials}
    chosen = lines(best / "result.json")[-1]
    assert chosen["valid/recon_smth"] == min(one["valid/recon_smth"] for one in scores.values())

    taken = lines(folder / "pbt_global.txt")
    table = read_pbt_hps(folder)
    assert taken and len(table) == 3 + len(taken)
    for target, source, at, since, before, after in taken:
        assert at == since >= 4 and target != source
        assert before["model.lr_init"] != after["model.lr_init"]
    epochs = len(lines(trials[0] / "result.json"))
    log = read_pbt_fitlog(folder)
    assert len(log) == 3 * epochs and {"worker_id", "valid/recon_smth"} <= set(log.columns)
