"""A run folder has one owner: a second job gets a folder of its own, or a refusal."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lfads_torch import cli, run_model
from lfads_torch.data import write_session
from lfads_torch.errors import UserError
from lfads_torch.ownership import LOCK, owned
from lfads_torch.processes import host, mark
from lfads_torch.runs.sampling import sample_run
from lfads_torch.search.run import run_search

pytestmark = pytest.mark.filterwarnings("ignore")

SMALL: dict[str, Any] = {
    **{f"model.{name}": 4 for name in ("ic_enc_dim", "ci_enc_dim", "con_dim", "ic_dim", "gen_dim")},
    "model.fac_dim": 3,
    "model.co_dim": 1,
    "trainer.max_epochs": 1,
    "trainer.accelerator": "cpu",
    "trainer.enable_progress_bar": False,
    "callbacks.raster_plot": None,
    "callbacks.trajectory_plot": None,
    "logger.tensorboard": None,
    "posterior_sampling.fn.num_samples": 2,
}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data file in a folder that is the working directory."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    counts = {}
    for split in ("train", "valid"):
        spikes = rng.poisson(1.0, (6, 5, 3)).astype("f4")
        counts |= {f"{split}_encod_data": spikes, f"{split}_recon_data": spikes}
    return write_session(tmp_path / "data.h5", counts)


@contextmanager
def other_owner(folder: Path, code: str = "") -> Iterator[subprocess.Popen[str]]:
    """Own a folder in another process; `code` is what that does next."""
    folder.mkdir(exist_ok=True)
    text = (
        "import sys; from pathlib import Path; from lfads_torch.ownership import owned\n"
        "from lfads_torch.processes import stoppable\n"
        "with stoppable(), owned(Path(sys.argv[1]), 'training'):\n"
        f"    print('ready', flush=True); {code or 'input()'}"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", text, str(folder)], text=True, **pipes)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def written_by(process: str, folder: Path, **more: Any) -> None:
    """Leave a lock in a folder."""
    _, pid, *_ = process.rsplit("_", 4)
    holder = {"process": process, "host": process.rsplit("_", 4)[0], "pid": int(pid)}
    more = {"since": "2026-01-02 03:04:05", "doing": "training", "folder": str(folder), **more}
    (folder / LOCK).write_text(json.dumps(holder | more))


def overrides(data: Path, **more: Any) -> dict[str, Any]:
    return {**SMALL, "datamodule.datafile_pattern": str(data), **more}


# ---- folders are made, not looked for ------------------------------------------------------------


def test_jobs_of_one_second_get_a_folder_each(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "strftime", lambda *args: "20260101-000000")
    # Whether a folder is there does not count: another job may make it just after.
    monkeypatch.setattr(Path, "exists", lambda path: False)
    from argparse import Namespace

    from lfads_torch.commands import new_run_folder

    folders = [new_run_folder(Namespace(), "x") for _ in range(3)]
    assert [f.name for f in folders] == [f"20260101-000000_x{s}" for s in ("", "-2", "-3")]


def test_a_folder_that_was_made_goes_where_nothing_was_written(data: Path) -> None:
    assert cli.main(["train", str(data), "model.gen_dim=-3"]) == 2
    assert not any(Path("runs").iterdir())


# ---- a second owner is refused -------------------------------------------------------------------


def train(data: Path, folder: Path) -> None:
    run_model(overrides(data), run_dir=folder)


def resume(data: Path, folder: Path) -> None:
    run_model({"trainer.max_epochs": 2}, run_dir=folder, resume=True)


def begin_again(data: Path, folder: Path) -> None:
    run_model(overrides(data), run_dir=folder, overwrite=True)


def sample_in_script(data: Path, folder: Path) -> None:
    run_model(overrides(data), run_dir=folder, do_train=False)


def search(data: Path, folder: Path) -> None:
    run_search(overrides(data), run_dir=folder, overwrite=True)


def command(*words: str) -> Callable[[Path, Path], None]:
    def run(data: Path, folder: Path) -> None:
        assert cli.main(["-v", words[0], str(folder), *words[1:]]) == 0

    return run


WRITERS = {
    "train": train,
    "resume": resume,
    "overwrite": begin_again,
    "sample": lambda data, folder: sample_run(folder, num_samples=1),
    "script": sample_in_script,
    "search": search,
    "report": command("report", "--quick"),
    "evaluate": command("evaluate", "--no-baselines"),
    "merge": command("merge"),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, with its data beside it."""
    place = tmp_path_factory.mktemp("finished")
    rng = np.random.default_rng(0)
    spikes = rng.poisson(1.0, (6, 5, 3)).astype("f4")
    counts = {f"{s}_{k}_data": spikes for s in ("train", "valid") for k in ("encod", "recon")}
    run_model(overrides(write_session(place / "data.h5", counts)), run_dir=place / "run")
    assert not (place / "run" / LOCK).exists()
    return place / "run"


@pytest.mark.parametrize("writer", WRITERS)
def test_who_writes_into_a_folder_in_use_is_refused(
    writer: str, data: Path, finished: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    with other_owner(folder) as process:
        before = {f: f.stat().st_mtime_ns for f in folder.rglob("*")}
        with pytest.raises(UserError) as refusal:
            WRITERS[writer](data, folder)
        for part in (
            str(folder),
            f"process {process.pid} on {host()}",
            "since 20",
            "training there",
        ):
            assert part in str(refusal.value)
        assert {f: f.stat().st_mtime_ns for f in folder.rglob("*")} == before


def test_the_best_model_belongs_to_its_search(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "search"
    (folder / "best_model").mkdir(parents=True)
    (folder / "status.json").write_text('{"stage": "training", "search": "pbt"}')
    with other_owner(folder), pytest.raises(UserError, match="in use: process"):
        run_model(overrides(data), run_dir=folder / "best_model")


@pytest.mark.slow
def test_results_written_elsewhere_need_no_lock(finished: Path, tmp_path: Path) -> None:
    with other_owner(finished):
        assert sample_run(finished, num_samples=1, output=tmp_path / "out.h5")
        page = str(tmp_path / "page.html")
        assert cli.main(["report", str(finished), "--quick", "--output", page]) == 0


# ---- locks that count no more --------------------------------------------------------------------


@pytest.mark.filterwarnings("default")
def test_the_lock_of_a_killed_process_is_taken_over_with_a_word(tmp_path: Path) -> None:
    with other_owner(tmp_path) as process:
        process.kill()
        process.wait()
        assert (tmp_path / LOCK).exists()
        says = pytest.warns(UserWarning, match=f"process {process.pid} on .* has ended")
        with says, owned(tmp_path, "training"):
            assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert not (tmp_path / LOCK).exists()


@pytest.mark.filterwarnings("default")
def test_a_number_that_was_given_again_is_not_the_owner(tmp_path: Path) -> None:
    host_name, pid, boot, container, started = mark().rsplit("_", 4)
    if not started:
        pytest.skip("this system does not say when a process started")
    written_by(f"{host_name}_{pid}_{boot}_{container}_1", tmp_path)
    with pytest.warns(UserWarning, match="taken over"), owned(tmp_path, "training"):
        pass
    written_by(f"{host_name}_1_before_{container}_{started}", tmp_path)
    with pytest.warns(UserWarning, match="taken over"), owned(tmp_path, "training"):
        pass


def test_of_another_machine_the_refusal_says_how_to_go_on(tmp_path: Path) -> None:
    written_by("node17_4711_a_b_c", tmp_path)
    with pytest.raises(UserError) as refusal, owned(tmp_path, "training"):
        pass
    for part in ("process 4711 on node17", "2026-01-02 03:04:05", f"delete {tmp_path / LOCK}"):
        assert part in str(refusal.value)
    (tmp_path / LOCK).unlink()
    with owned(tmp_path, "training"):
        pass


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 3}', "\0\0\0"])
def test_a_lock_that_says_nothing_is_minded(tmp_path: Path, text: str) -> None:
    (tmp_path / LOCK).write_text(text)
    refused = pytest.raises(UserError, match=r"does not say by whom.*delete .*\.lock")
    with refused, owned(tmp_path, "training"):
        pass


def test_a_copy_of_a_folder_in_use_is_free_and_a_moved_one_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with other_owner(folder):
        shutil.copytree(folder, tmp_path / "copy")
        with owned(tmp_path / "copy", "training"):
            pass
        (tmp_path / "link").symlink_to(folder)
        with pytest.raises(UserError, match="in use"), owned(tmp_path / "link", "training"):
            pass
        folder.rename(tmp_path / "moved")
        with pytest.raises(UserError, match="in use"), owned(tmp_path / "moved", "training"):
            pass


def test_of_many_that_take_over_one_lock_one_gets_it(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path\n"
        "from lfads_torch.errors import UserError\n"
        "from lfads_torch.ownership import owned\n"
        "input()\n"
        "try:\n"
        "    with owned(Path(sys.argv[1]), 'x'):\n"
        "        print('mine', flush=True); input()\n"
        "except UserError as error:\n"
        "    print('in use' if 'in use' in str(error) else error, flush=True)\n"
    )
    host_name, _, boot, container, _ = mark().rsplit("_", 4)
    written_by(f"{host_name}_1_{boot}_{container}_1", tmp_path)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    command = [sys.executable, "-c", code, str(tmp_path)]
    all_of_them = [subprocess.Popen(command, text=True, **pipes) for _ in range(4)]
    for process in all_of_them:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.stdout.readline().strip() for process in all_of_them if process.stdout]
    for process in all_of_them:
        process.communicate("\n")
    assert sorted(said) == ["in use"] * 3 + ["mine"]


# ---- the end, and what a process starts ----------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_releases_the_lock(tmp_path: Path, number: int) -> None:
    if signal.getsignal(number) == signal.SIG_IGN:
        pytest.skip("these tests run under nohup, which has this signal ignored")
    with other_owner(tmp_path) as process:
        assert (tmp_path / LOCK).exists()
        process.send_signal(number)
        process.wait(timeout=60)
    assert not list(tmp_path.iterdir())


def test_an_error_releases_the_lock(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gen_dim"):
        run_model(overrides(data, **{"model.gen_dim": -1}), run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_an_owner_starts_is_not_refused_and_does_not_release(tmp_path: Path) -> None:
    with owned(tmp_path, "training") as first:
        with owned(tmp_path, "sampling") as second:
            assert first and second
        code = (
            "import sys; from pathlib import Path; from lfads_torch.ownership import owned\n"
            "with owned(Path(sys.argv[1]), 'x') as taken: print(taken)"
        )
        command = [sys.executable, "-c", code, str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout == "False\n"
        if hasattr(os, "fork"):
            child = os.fork()
            if not child:
                with owned(tmp_path, "x") as taken:
                    os._exit(int(taken))
            assert os.waitpid(child, 0)[1] == 0
        assert (tmp_path / LOCK).exists()
    assert not (tmp_path / LOCK).exists()


def test_without_hard_links_there_still_is_one_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*args: Any) -> None:
        raise PermissionError("no hard links here")

    monkeypatch.setattr(os, "link", link)
    with owned(tmp_path, "training"):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    refused = pytest.raises(UserError, match="in use")
    with other_owner(tmp_path), refused, owned(tmp_path, "training"):
        pass
