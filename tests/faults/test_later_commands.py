"""Faults of the commands that follow training, each command with each fault."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lfads_torch import cli
from lfads_torch.data import write_session

from .test_moments import Killed
from .test_ownership import other_owner
from .test_paths import SMALL
from .test_reports import DAMAGES

pytestmark = pytest.mark.filterwarnings("ignore")

ONE = ["trainer.max_epochs=1", "callbacks=null"]

#: Each command, with `OUT` for what it writes and the names of the places below for what it reads.
COMMANDS = {
    "ensemble": "ensemble seeds -o OUT --samples 2",
    "decode": "decode run --lags 0:1 --draws 5 --output OUT",
    "save": "decode run --lags 0:1 --draws 5 --output scores --save OUT.json",
    "split": "split data.h5 -o OUT.h5 --valid 0.2 --test 0.2 --positions inds --overlap 0",
    "export": "export run OUT.npz --decoder run/decoder.json",
    "stream": "stream run --data data.h5 --decoder run/decoder.json -o OUT.h5",
    "align": "align run data.h5 --run-dir OUT --epochs 1 --seeds 1 --samples 2",
    "seeds": shlex.join(["train", "data.h5", *SMALL, *ONE, "--seeds", "2"]) + " --run-dir OUT",
    "few-shot": "evaluate run --few-shot 6 --no-baselines --draws 5 --output OUT",
    "merge": "merge run --positions inds --overlap 0 --output OUT.h5",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, a run that has a decoder, and seeds."""
    place = tmp_path_factory.mktemp("made")
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split, n, first in (("train", 10, 0), ("valid", 6, 10)):
        spikes = rng.poisson(1.0, (n, 6, 5)).astype("f4")
        arrays |= {f"{split}_encod_data": spikes[..., :4], f"{split}_recon_data": spikes[..., :4]}
        arrays |= {
            f"{split}_extra_data": spikes[..., 4:],
            f"{split}_inds": np.arange(first, first + n),
        }
        arrays[f"{split}_behavior"] = rng.normal(size=(n, 6, 2)).astype("f4")
    write_session(place / "data.h5", arrays, {"bin_ms": 10.0})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        one = ["data.h5", *SMALL, *ONE]
        assert cli.main(["train", *one, "model=causal", "--run-dir", "run"]) == 0
        assert cli.main(["train", *one, "--seeds", "2", "--run-dir", "seeds"]) == 0
        assert cli.main(shlex.split(COMMANDS["decode"].replace("OUT", "run"))) == 0
    return place


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, as the working directory."""
    place = Path(shutil.copytree(made, tmp_path / "here"))
    monkeypatch.chdir(place)
    return place


def words(command: str, out: str = "out", **places: str) -> list[str]:
    return words_of(COMMANDS[command], out, **places)


def words_of(command: str, out: str = "out", **places: str) -> list[str]:
    found = []
    for word in shlex.split(command):
        first, slash, rest = word.partition("/")
        word = f"{places.get(first, first)}{slash}{rest}"
        found.append(places.get(word, word).replace("OUT", out))
    return found


def left(place: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(place)): file.read_bytes()
        for file in place.rglob("*")
        if file.is_file() and not file.is_symlink()
    }


def refused(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that has to end with one line; return that."""
    capsys.readouterr()
    assert cli.main(command) == 2
    said = [x for x in capsys.readouterr().err.splitlines() if not x.startswith("warning")]
    said = [line for line in said if line.startswith("lfads ")]
    assert len(said) == 1, said
    return said[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_any_name(command: str, here: Path) -> None:
    name = "-dé[1] {a}='b',$x#(2) "
    places = {}
    for stem in ("run", "seeds", "data.h5"):
        places[stem] = f"./{name}{stem}"
        os.replace(stem, places[stem])
    assert cli.main(words(command, f"./out {name}", **places)) == 0
    assert any(path.startswith(f"out {name}") for path in left(here))


@pytest.mark.parametrize("command", ["save", "split", "export", "stream", "merge"])
def test_a_file_that_is_there_stays(
    command: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = next(Path(word).suffix for word in words(command) if word.startswith("out."))
    Path(f"out{other}").write_text("mine")
    if command == "save":  # its ending says what it is, and another one is refused
        Path("out.h5").write_text("mine")
        with pytest.raises(SystemExit, match="2"):
            cli.main([word.replace("out.json", "out.h5") for word in words(command)])
        assert Path("out.h5").read_text() == "mine"
        return
    assert "exists" in refused(words(command), capsys)
    assert Path(f"out{other}").read_text() == "mine"


@pytest.mark.parametrize("command", ["ensemble", "align", "seeds"])
def test_a_folder_that_is_there_stays(
    command: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree("run", "out")
    before = left(here)
    refused(words(command), capsys)
    assert left(here) == before


@pytest.mark.parametrize("command", ["ensemble", "align", "seeds", "decode", "few-shot"])
def test_a_folder_in_use_stays(
    command: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = "run" if command in ("decode", "few-shot") else "out"
    with other_owner(Path(folder)):
        before = left(here)
        given = [word for word in words(command, folder) if command != "decode" or word != folder]
        if command in ("decode", "few-shot"):  # into the run itself
            given = words(command)
            given = [
                w for i, w in enumerate(given) if "--output" not in given[max(i - 1, 0) : i + 1]
            ]
        assert "in use" in refused(given, capsys)
        assert left(here) == before


#: More commands that write, of which other files provoke other faults.
WRITE = {
    **COMMANDS,
    "train": shlex.join(["train", "data.h5", *SMALL, *ONE]) + " --run-dir OUT",
    "pbt": shlex.join(["pbt", "data.h5", *SMALL, *ONE[:1], "search.num_workers=2"])
    + " --run-dir OUT",
    "sample": "sample run --samples 2 --data data.h5 --output OUT.h5",
    "report": "report run --quick --output OUT.html --figures OUT",
    "compare": "compare seeds --quick --output OUT.html",
    "repack": "repack data.h5 -o OUT.h5",
    "nwb": "export run OUT.nwb",
}


@contextmanager
def ordinary_user() -> Iterator[None]:
    """Have permissions count, as they do not for root."""
    libc = ctypes.CDLL(None)
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if os.geteuid() != 0:
        yield
        return
    if not hasattr(libc, "capset") or libc.capget(header, sets):
        pytest.skip("permissions do not count for root here")
    before = sets[0]
    sets[0] = before & ~0b1110  # to read, search and change what permissions forbid
    libc.capset(header, sets)
    try:
        yield
    finally:
        sets[0] = before
        libc.capset(header, sets)


@pytest.mark.parametrize("command", WRITE)
def test_a_folder_that_takes_no_file(
    command: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "closed").mkdir(mode=0o555)
    with ordinary_user():
        said = refused(words_of(WRITE[command], "closed/out"), capsys)
    assert re.search(r"cannot be written: \S*closed is not writable", said)
    assert not list((here / "closed").iterdir())


@pytest.mark.parametrize(
    "command",
    [
        *("sample run --samples 2", "evaluate run --no-baselines --draws 5", "report run --quick"),
        *("decode run --lags 0:1 --draws 5", "train --resume run trainer.max_epochs=2"),
        "train --resume seeds trainer.max_epochs=2",
    ],
)
def test_a_run_that_may_be_read_alone(
    command: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = left(here)
    places = [here / name for name in ("run", "seeds")]
    for file in (file for place in places for file in (place, *place.rglob("*"))):
        file.chmod(file.stat().st_mode & ~0o222)
    with ordinary_user():
        assert "is not writable" in refused(shlex.split(command), capsys)
    assert left(here) == before


@pytest.mark.parametrize("file", ["data.h5", "run/config.yaml", "run/lightning_checkpoints"])
@pytest.mark.parametrize("command", ["stream", "export", "align", "sample", "train"])
def test_what_may_not_be_read(
    file: str, command: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / file).chmod(0)
    try:
        with ordinary_user():
            capsys.readouterr()
            status = cli.main(words_of(WRITE[command]))
            said = [x for x in capsys.readouterr().err.splitlines() if x.startswith("lfads ")]
        assert (status, len(said)) in ((0, 0), (2, 1)), said
        reads = {"data.h5": command != "export", "run/config.yaml": command == "align"}
        assert status == 2 or not reads.get(file, command != "train")
    finally:
        (here / file).chmod(0o755)


def test_a_name_that_is_too_long(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("check", "train", "sample", "report"):
        assert "File name too long" in refused([command, "a" * 300], capsys)


def test_a_stream_whose_model_never_runs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["stream", "run", "--data", "data.h5", "--mode", "window", "-o", "out.h5"]
    for more in (["--every", "99"], ["--every", "99", "--warmup", "zeros"]):
        assert "lower --every" in refused([*given, *more], capsys)
    assert not (here / "out.h5").exists()


#: Fills a file system of its own but for some kB, and runs a command there.
FULL = """
import os, sys
from pathlib import Path
from lfads_torch import cli
place, free, command = Path("full"), int(sys.argv[1]), sys.argv[2:]
room = os.statvfs(place)
(place / "filler").write_bytes(bytes(max(room.f_bavail * room.f_bsize - 1024 * free, 0)))
status = cli.main(command)
files = [f for f in place.rglob("*") if f.is_file() and f.name != "filler"]
print("empty:", [f.name for f in files if not f.stat().st_size])
print("left:", [f.name for f in files if f.name.startswith(".")])
(place / "filler").unlink()
going_on = [command[0], "--resume", "full/out"]
is_run = "--run-dir" in command and Path("full/out/status.json").exists()
again = cli.main(going_on if is_run else command) if status else 0
print("status:", status, again)
"""


@pytest.mark.slow
@pytest.mark.parametrize("free", [0, 8, 40, 100])
@pytest.mark.parametrize("command", WRITE)
def test_a_file_system_that_is_full(command: str, free: int, here: Path) -> None:
    """Libraries have ends of their own for it: HDF5 a segmentation fault, torch an abort."""
    (here / "full").mkdir()
    given = shlex.join([str(free), *words_of(WRITE[command], "full/out")])
    line = "mount -t tmpfs -o size=4m tmpfs full || exit 77; " + shlex.join(
        [sys.executable, "-W", "ignore", "-c", FULL]
    )
    if shutil.which("unshare") is None:
        pytest.skip("no file system of its own can be made here")
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", f"{line} {given}"], capture_output=True, text=True
    )
    if done.returncode in (1, 77) and "status:" not in done.stdout:
        pytest.skip(f"no file system of its own can be made here: {done.stderr[-200:]}")
    assert done.returncode == 0, done.stderr
    assert "empty: []" in done.stdout and "left: []" in done.stdout
    assert re.search(r"status: (0|2) 0", done.stdout), done.stderr
    said = [x for x in done.stderr.splitlines() if x.startswith("lfads ")]
    assert len(said) == ("status: 2" in done.stdout), said
    assert "Traceback" not in done.stderr and all("the disk is full" in x for x in said)


@contextmanager
def full_disk(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[None]:
    """Let every file below a folder fail to take its name."""
    real = os.replace

    def replace(new: Any, path: Any) -> None:
        if Path(path).absolute().is_relative_to(folder):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        real(new, path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        yield


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk(
    command: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = left(here)
    with full_disk(monkeypatch, here):
        assert "the disk is full" in refused(words(command), capsys)
    rest = {name for name in left(here).keys() - before.keys() if "csv_logs" not in name}
    assert not rest
    assert cli.main(words(command)) == 0


#: What a command reads, and what may be wrong with it.
READ = [
    ("ensemble", "seeds/seed0/lightning_checkpoints/best-epoch=0000.ckpt"),
    ("ensemble", "seeds/seed0/config.yaml"),
    ("ensemble", "seeds/status.json"),
    ("decode", "run/lfads_output_sess0.h5"),
    ("decode", "run/lightning_checkpoints/best-epoch=0000.ckpt"),
    ("split", "data.h5"),
    ("export", "run/decoder.json"),
    ("export", "run/lightning_checkpoints/best-epoch=0000.ckpt"),
    ("stream", "data.h5"),
    ("stream", "run/decoder.json"),
    ("align", "data.h5"),
    ("align", "run/config.yaml"),
    ("align", "run/status.json"),
    ("seeds", "data.h5"),
    ("few-shot", "run/lfads_output_sess0.h5"),
]


@pytest.mark.parametrize(
    "damage",
    [
        *("missing", "cut", "noise"),
        *(pytest.param(d, marks=pytest.mark.slow) for d in ("empty", "zeros", "a folder")),
    ],
)
@pytest.mark.parametrize(("command", "file"), READ)
def test_a_damaged_input(
    command: str, file: str, damage: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    DAMAGES[damage](here / file)
    capsys.readouterr()
    status = cli.main(words(command))
    said = [
        x
        for x in capsys.readouterr().err.splitlines()
        if x.startswith(f"lfads {words(command)[0]}")
    ]
    assert (status, len(said)) in ((0, 0), (2, 1)), said
    # An output file has a second name; behaviour is decoded without a checkpoint.
    is_spared = "output" in file and damage == "missing"
    if file.endswith((".h5", "decoder.json", ".ckpt")) and not is_spared and command != "decode":
        assert status == 2
    if status == 2:
        assert not list(here.glob("out*")) or not left(here / "out")


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in ("seeds", "align")])
def test_a_kill_leaves_the_old_result_or_nothing(
    command: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = words(command)
    if command not in ("decode", "save", "few-shot"):
        again.append("--overwrite")
    count = kill(monkeypatch, None, lambda: cli.main(words(command)))
    assert count
    whole = {name: data for name, data in left(here).items() if "out" in name}
    for nth in range(1, count + 1):
        kill(monkeypatch, nth, lambda: cli.main(again))
        now = {name: data for name, data in left(here).items() if "out" in name}
        assert all(now.get(name) for name in now if not Path(name).name.startswith("."))
        assert now.keys() <= whole.keys() | {
            name for name in now if Path(name).name.startswith(".")
        }
    assert cli.main(again) == 0
    assert {name for name in left(here) if "out" in name} == whole.keys()


def kill(monkeypatch: pytest.MonkeyPatch, nth: int | None, call: Callable[[], Any]) -> int:
    """End a call when a file takes its name for the nth time; return how many did."""
    real, count = os.replace, 0

    def replace(new: Any, path: Any) -> None:
        nonlocal count
        count += 1
        if count == nth:
            raise Killed
        real(new, path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        if nth is None:
            assert call() == 0
        else:
            with pytest.raises(Killed):
                call()
    return count
