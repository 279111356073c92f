"""What reads a run afterwards survives any damage: one line, or a page that says what it lacks."""

from __future__ import annotations

import html
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from lfads_torch import cli
from lfads_torch.post_run.report.page import Press, Shown

from ..post_run.outputs_of import arrays, write_run

pytestmark = pytest.mark.filterwarnings("ignore")

STATUS, CONFIG, LOG, SCORES = "status.json", "config.yaml", "csv_logs/metrics.csv", "scores.json"
OUTPUT, HISTORY, CHECKPOINT = (
    "lfads_output_sess0.h5",
    "population.csv",
    "lightning_checkpoints/last.ckpt",
)
#: How a page, or an error, names the file.
NAMED = {LOG: "The training log", OUTPUT: "no outputs to look at", HISTORY: "history of the search"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a file of every kind."""
    run = write_run(tmp_path_factory.mktemp("reports") / "run", arrays(), num_samples=2)
    columns = "epoch,member,parent,generation,diverged,valid/recon_smth,hp/lr_init"
    rows = [f"{e},{m},{m},{e},0,{1 / (1 + e)},0.01" for e in range(3) for m in range(2)]
    metrics = ["epoch,step,valid/recon_smth,train/wt_kl/ramp"]
    metrics += [f"{e},{e},{1 / (1 + e)},1.0" for e in range(3)]
    texts = {
        STATUS: json.dumps(
            {
                "stage": "complete",
                "best_checkpoint": "lightning_checkpoints/best.ckpt",
                "environment": {"python": "3.11", "packages": {"torch": "2"}},
                "outputs": [OUTPUT],
            }
        ),
        CONFIG: "seed: 0\nmodel:\n  gen_dim: 4\n  cell_clip: 5.0\n",
        LOG: "\n".join(metrics) + "\n",
        HISTORY: "\n".join([columns, *rows]) + "\n",
        CHECKPOINT: "no checkpoint",
    }
    for name, text in texts.items():
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text(text)
    assert cli.main(["evaluate", str(run), "--draws", "3", "--no-baselines"]) == 0
    assert (run / SCORES).is_file()
    return run


@pytest.fixture
def run(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import shutil

    def show(press: Press, picture: Any, prefix: str = "") -> Shown:
        return Shown(*picture[:3], {}, failure="not drawn here")

    monkeypatch.setattr(Press, "show", show)
    return Path(shutil.copytree(whole, tmp_path / "run"))


def told(run: Path, capsys: pytest.CaptureFixture[str], *command: str) -> tuple[int, str]:
    """Run a command; return its exit status, and its page or the one line of its error."""
    capsys.readouterr()
    page = run.parent / "page.html"
    words = [command[0], str(run), *command[1:]]
    if command[0] != "evaluate":
        words += ["--output", str(page)]
    status = cli.main(words)
    said = [x for x in capsys.readouterr().err.splitlines() if not x.startswith("warning")]
    if status == 0:
        return 0, html.unescape(page.read_text(encoding="utf-8")) if page.is_file() else ""
    assert status == 2 and len(said) == 1 and said[0].startswith("lfads "), said
    return status, said[0]


def flipped(path: Path) -> None:
    content, draw = bytearray(path.read_bytes()), random.Random(1)
    for _ in range(5):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(bytes(content))


def unreadable(path: Path) -> None:
    """Let it be refused, also to root: a link to itself."""
    path.unlink()
    path.symlink_to(path.name)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "noise": lambda path: path.write_bytes(random.Random(0).randbytes(999)),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "flipped": flipped,
    "unreadable": unreadable,
    "a folder": folder,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", [STATUS, CONFIG, LOG, SCORES, OUTPUT, HISTORY, CHECKPOINT])
def test_damaged_files(
    file: str, damage: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    DAMAGES[damage](run / file)
    status, text = told(run, capsys, "report", "--quick")
    # Absent, status, history and log are those of an older run or of no search. A single bit may
    # change a number: these files have no checksum. A table that is cut lacks its last rows.
    is_fault = damage in ("noise", "zeros", "a folder", "unreadable")
    is_no_file = file == HISTORY and damage in ("a folder", "unreadable")
    if file in (STATUS, CONFIG) and is_fault:
        assert (status == 0 and f"{file} cannot be read" in text) or "no mapping" in text
    elif (
        file in NAMED
        and is_fault
        and (file, damage)
        not in (
            (HISTORY, "a folder"),
            (HISTORY, "unreadable"),
        )
    ) or (file in NAMED and is_fault and not is_no_file):
        assert NAMED[file] in text or str(run / file) in text
    elif file == SCORES:
        assert status == 0 and "bits/spike" in text
    if file == OUTPUT and damage != "flipped":
        status, text = told(run, capsys, "evaluate", "--draws", "0")
        assert status == 2 and (OUTPUT in text or "holds no output file" in text)


def with_value(path: Path, keys: list[str], value: Any) -> None:
    content = json.loads(path.read_text()) if path.suffix == ".json" else {"model": {}}
    place = content
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    path.write_text(json.dumps(content))  # which is YAML, too


@pytest.mark.parametrize("value", [None, "text", [1]])
@pytest.mark.parametrize(
    ("file", "keys"),
    [
        (STATUS, ["best_checkpoint"]),
        (STATUS, ["environment"]),
        (STATUS, ["environment", "packages"]),
        (STATUS, ["outputs"]),
        (CONFIG, ["model"]),
        (CONFIG, ["model", "cell_clip"]),
        (SCORES, ["scores"]),
        (SCORES, ["sessions"]),
        (SCORES, ["split"]),
        (SCORES, ["level"]),
    ],
)
def test_values_of_another_type(
    file: str, keys: list[str], value: Any, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_value(run / file, keys, value)
    status, text = told(run, capsys, "report", "--quick")
    assert status == 0 and "bits/spike" in text
    if file == STATUS and keys[-1] == "outputs" and not isinstance(value, list):
        assert "status.json is damaged: outputs is" in text


CUTS: dict[str, Callable[[Any], Any]] = {
    "text": lambda a: "text",
    "texts": lambda a: [b"a"] * len(a),
    "a number": lambda a: 3.0,
    "no numbers": lambda a: h5py.Empty("f4"),
    "records": lambda a: np.zeros(a.shape, [("a", "f4")]),
    "complex": lambda a: a.astype(complex),
    "no trials": lambda a: a[:0],
    "a trial less": lambda a: a[:-1],
    "flat": lambda a: a.reshape(-1),
    "a column less": lambda a: a[..., :-1],
    "NaN": lambda a: np.full(a.shape, np.nan),
    "infinite": lambda a: np.full(a.shape, np.inf),
    "negative": lambda a: -1.0 - a,
}


@pytest.mark.parametrize("name", ["output_params", "recon_data", "factors", "behavior", "cond_idx"])
def test_damaged_arrays(name: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key, original = f"valid_{name}", (run / OUTPUT).read_bytes()
    n_errors = 0
    for cut in CUTS.values():
        (run / OUTPUT).write_bytes(original)
        with h5py.File(run / OUTPUT, "a") as file:
            values = file[key][()]
            del file[key]
            file[key] = cut(values)
        (run / SCORES).unlink(missing_ok=True)
        status, text = told(run, capsys, "evaluate", "--draws", "0", "--no-baselines")
        n_errors += status == 2
        assert status == 0 or OUTPUT in text or "lfads evaluate" in text
    told(run, capsys, "report", "--quick")
    assert n_errors >= 3, "otherwise this shows nothing"


@pytest.mark.parametrize("cell", ["nan", "text", ""])
@pytest.mark.parametrize("column", ["epoch", "valid/recon_smth"])
@pytest.mark.parametrize("file", [LOG, HISTORY])
def test_damaged_columns(
    file: str, column: str, cell: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    header, *rows = (line.split(",") for line in (run / file).read_text().splitlines())
    place = header.index(column)
    rows = [[*row[:place], cell, *row[place + 1 :]] for row in rows]
    (run / file).write_text("".join(",".join(line) + "\n" for line in [header, *rows]))
    status, text = told(run, capsys, "report", "--quick")
    assert status == 0 and "bits/spike" in text
    if column == "epoch" and (file == HISTORY or cell):
        assert NAMED[file] in text


def test_a_session_is_no_path(tmp_path: Path) -> None:
    from lfads_torch.post_run.report.page import Picture

    def draw() -> Any:
        from matplotlib.figure import Figure

        return Figure(figsize=(1, 1))

    press = Press(tmp_path / "figures")
    press.show(Picture("rates", "", "", draw), "../../elsewhere_")
    assert [path.parent for path in press.files] == [tmp_path / "figures"]


def test_a_damaged_run_beside_an_intact_one(
    whole: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / STATUS).write_text("{")
    (run / OUTPUT).write_bytes(b"")
    status, text = told(run, capsys, "compare", str(whole), "--quick")
    assert status == 0 or OUTPUT in text
