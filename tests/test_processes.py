"""Marks of processes, what they leave, and signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lfads_torch.files import write_whole
from lfads_torch.processes import (
    Stopped,
    is_gone,
    mark,
    remove_leftovers,
    stoppable,
    temporary,
)


def other_mark() -> tuple[subprocess.Popen[str], str]:
    """A process that waits, and its mark."""
    code = "from lfads_torch.processes import mark; print(mark(), flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", code], text=True, **pipes)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def test_a_process_is_gone_once_it_was_killed_even_if_nobody_waited_for_it() -> None:
    assert is_gone(mark()) is False
    process, its = other_mark()
    assert is_gone(its) is False
    process.kill()
    deadline = time.monotonic() + 5
    while not is_gone(its) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert is_gone(its) is True
    process.communicate()
    assert is_gone(its) is True


def test_a_number_that_another_process_has_now_is_not_the_same_process() -> None:
    host, pid, boot, container, started = mark().rsplit("_", 4)
    if not started:
        pytest.skip("this system does not say when a process started")
    assert is_gone("_".join((host, pid, boot, container, str(int(started) - 1)))) is True
    # Nor is one from before the machine was started anew.
    assert is_gone("_".join((host, pid, "00000000", container, started))) is True


@pytest.mark.parametrize("of", ["elsewhere_1_a_b_c", "", "what", "a_b_c_d_e"])
def test_of_other_machines_nothing_is_known(of: str) -> None:
    assert is_gone(of) is None
    # A container of this machine that numbers its processes by itself.
    host, pid, boot, container, started = mark().rsplit("_", 4)
    assert is_gone("_".join((host, pid, boot, f"{container}1", started))) is None


def test_leftovers_of_ended_processes_go_and_nothing_else(tmp_path: Path) -> None:
    process, its = other_mark()
    path = tmp_path / "a.b.csv"
    mine, other = temporary(tmp_path / "c"), tmp_path / f".a.b.csv.{its}.tmp"
    folder = tmp_path / f".counts.{its}.tmp"
    kept = [mine, tmp_path / ".a.b.csv.elsewhere_1_a_b_c.tmp", tmp_path / ".notes.tmp"]
    for file in (*kept, other):
        file.touch()
    folder.mkdir()
    (folder / "counts.h5").touch()
    remove_leftovers(tmp_path)
    assert other.exists() and folder.exists()  # their process still runs
    process.kill()
    process.communicate()
    write_whole(tmp_path / "other.csv", "")
    assert other.exists()  # not to become that file
    write_whole(path, "")
    assert not other.exists() and folder.exists()
    remove_leftovers(tmp_path)
    assert not folder.exists() and all(file.exists() for file in kept)


@pytest.mark.parametrize("name", ["ж" * 120, "a" * 250])
def test_a_long_name_can_be_written(tmp_path: Path, name: str) -> None:
    write_whole(tmp_path / name, "text")
    assert [file.name for file in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_ends_what_is_written_and_leaves_nothing(tmp_path: Path, number: int) -> None:
    from lfads_torch.data import new_file
    from lfads_torch.files import replacing

    # What started the tests, such as nohup, may have them ignore it.
    signal.signal(number, signal.SIG_DFL)
    with (
        pytest.raises(Stopped) as stopped,
        stoppable(),
        replacing(tmp_path / "a"),
        new_file(tmp_path / "b.h5"),
    ):
        assert len(list(tmp_path.iterdir())) == 2
        os.kill(os.getpid(), number)
    assert stopped.value.number == number
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(number) == signal.SIG_DFL


def test_handlers_of_the_user_stay() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stoppable():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
