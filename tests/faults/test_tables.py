"""Tables in CSV tell the truth: after a kill at any moment, with odd names, and when damaged."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from lfads_torch import run_model
from lfads_torch.errors import DataError, DataWarning
from lfads_torch.files import Table, csv_text, read_table
from lfads_torch.folder import METRICS, POPULATION
from lfads_torch.search.run import run_search
from lfads_torch.tables import read_csv_log, read_exchanges, read_hyperparameters, read_population

from .test_moved import write_data
from .test_ownership import SMALL

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of one and of three epochs."""
    place = tmp_path_factory.mktemp("made")
    data = {"datamodule.datafile_pattern": str(write_data(place / "data.h5"))}
    for name, epochs in (("one", 1), ("three", 3)):
        run_model({**SMALL, **data, "trainer.max_epochs": epochs}, run_dir=place / name)
    return place


def with_holes(row: dict[str, str]) -> list[dict[str, str]]:
    """Return an epoch as Lightning logs it: learning rate, validation, training."""
    rates = {name: row[name] for name in row if name.startswith("lr-")}
    place = {name: row[name] for name in ("epoch", "step")}
    valid = {n: row[n] for n in row if n.startswith("valid/") or n == "hp_metric"}
    others = {n: row[n] for n in row if n not in {*rates, *valid}}
    return [{**rates, "step": place["epoch"]}, {**valid, **place}, others]


def left_by_kill(how: str, log: Path) -> None:
    """Leave the log of one epoch as a kill may leave it."""
    text = log.read_text()
    with open(log, newline="") as file:
        rows = list(csv.DictReader(file))
    if how == "before the first epoch was logged":
        log.unlink()
        log.touch()
    elif how == "within the first epoch":
        log.write_text(text[: text.index("\n") // 2])
    elif how.startswith("by an earlier version"):
        kept = [part for row in rows for part in with_holes(row)]
        if how.endswith("before training's row"):
            del kept[-1]
        names = [name for name in rows[0] if any(row.get(name) for row in kept)]
        log.write_text(csv_text(names, kept))
    elif how == "within the last row":
        log.write_text(text[: text.rindex(",")])
    elif how == "within the last number":
        log.write_text(text[:-2])
    elif how == "without the last row":
        log.write_text(text[: text.rindex("\n", 0, -1) + 1])
    else:
        # A rewrite that never took the place of the file.
        (log.parent / f".{log.name}.12345.tmp").write_text(text[:100])


@pytest.mark.parametrize(
    "how",
    [
        "by an earlier version",
        "by an earlier version before training's row",
        "within the last row",
        "within the last number",
        "without the last row",
        "within a rewrite",
    ],
)
def test_a_resumed_log_is_that_of_an_unbroken_run(how: str, made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "one", tmp_path / "r")
    status = tmp_path / "r" / "status.json"
    status.write_text(json.dumps({**json.loads(status.read_text()), "stage": "training"}))
    left_by_kill(how, tmp_path / "r" / METRICS)
    run_model({"trainer.max_epochs": 3}, run_dir=tmp_path / "r", resume=True)
    assert (tmp_path / "r" / METRICS).read_bytes() == (made / "three" / METRICS).read_bytes()
    assert not list((tmp_path / "r").rglob("*.tmp"))


@pytest.mark.parametrize("how", ["before the first epoch was logged", "within the first epoch"])
def test_a_log_without_a_checkpoint_begins_again(how: str, made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "one", tmp_path / "r")
    shutil.rmtree(tmp_path / "r" / "lightning_checkpoints")
    (tmp_path / "r" / "status.json").write_text('{"stage": "training"}')
    left_by_kill(how, tmp_path / "r" / METRICS)
    run_model({"trainer.max_epochs": 3}, run_dir=tmp_path / "r", resume=True)
    assert (tmp_path / "r" / METRICS).read_bytes() == (made / "three" / METRICS).read_bytes()


def test_a_log_that_lacks_epochs_is_said(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "three", tmp_path / "r")
    log = tmp_path / "r" / METRICS
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:2]) + lines[2][:50])
    with pytest.warns(DataWarning, match=r"lacks 1 of the 2 epochs before epoch 2, from epoch 1"):
        run_model({"trainer.max_epochs": 4}, run_dir=tmp_path / "r", resume=True)
    assert [row["epoch"] for row in read_table(log)[1]] == ["0", "2", "3"]


ODD = ["my,score", 'a "b"', "two\nlines", "dos\r\nlines", "mac\rlines", " blank ", "ж%", "'", "a;b"]


@pytest.mark.parametrize("name", ODD)
def test_odd_names_lose_no_row(name: str, tmp_path: Path) -> None:
    table = Table(tmp_path / "t.csv")
    table.append([{"epoch": "0", "x": "1"}])
    table.append([{"epoch": "1", name: "2"}])
    Table(tmp_path / "t.csv").append([{"epoch": "2", name: "3", "y": "4"}])
    expected = [("0", ""), ("1", "2"), ("2", "3")]
    assert [(row["epoch"], row[name]) for row in read_table(tmp_path / "t.csv")[1]] == expected
    text = (tmp_path / "t.csv").read_bytes()
    # A kill within any of the rows that were appended.
    for end in range(text.index(b"\n1,") + 1 if b"\n1," in text else len(text) - 4, len(text)):
        (tmp_path / "cut.csv").write_bytes(text[:end])
        rows = read_table(tmp_path / "cut.csv")[1]
        n = len(rows)
        assert [(row["epoch"], row[name]) for row in rows] == expected[:n] and n >= 1


DAMAGES: dict[str, Any] = {
    "a row too short": lambda t: t.replace("\n1,", "\n", 1),
    "a row too long": lambda t: t.replace("\n1,", "\n1,7,", 1),
    "a stray quote": lambda t: t.replace("\n1,", '\n1,"', 1),
    "a quote in the header": lambda t: '"' + t,
    "two columns of one name": lambda t: t.replace("member", "epoch", 1).replace("step", "epoch"),
    "zeros of the disk": lambda t: t.replace("\n1,", "\n\0\0,", 1),
    "bytes that are no text": lambda t: t.replace("\n1,", "\n\udcff\udcfe1,", 1),
}


def damaged(path: Path, how: str) -> str:
    text = DAMAGES[how](path.read_text())
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    return str(path)


@pytest.mark.parametrize("how", DAMAGES)
def test_readers_refuse_a_damaged_log(how: str, tmp_path: Path) -> None:
    lines = ["epoch,step,x,y", *(f"{k},{k},0.5,0.25" for k in range(4))]
    log = tmp_path / "metrics.csv"
    log.write_text("\n".join(lines) + "\n")
    name = damaged(log, how)
    with pytest.raises(DataError, match=r"is damaged: (line \d|epoch is )") as refusal:
        read_csv_log(log)
    assert name in str(refusal.value)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search of three epochs, and one of five."""
    place = tmp_path_factory.mktemp("searched")
    data = {"datamodule.datafile_pattern": str(write_data(place / "data.h5"))}
    for name, epochs in (("three", 3), ("five", 5)):
        more = {"search.num_workers": 2, "trainer.max_epochs": epochs}
        run_search({**SMALL, **data, **more}, run_dir=place / name)
    return place


@pytest.mark.parametrize("how", DAMAGES)
def test_readers_refuse_a_damaged_history(how: str, searched: Path, tmp_path: Path) -> None:
    shutil.copy(searched / "three" / POPULATION, tmp_path / POPULATION)
    damaged(tmp_path / POPULATION, how)
    for read in (read_population, read_hyperparameters):
        with pytest.raises(DataError, match=POPULATION):
            read(tmp_path)
    shutil.copytree(searched / "three", tmp_path / "s")
    damaged(tmp_path / "s" / POPULATION, how)
    with pytest.raises(DataError, match=POPULATION):
        run_search({"trainer.max_epochs": 5}, run_dir=tmp_path / "s", resume=True)


def test_a_history_without_its_epochs_is_not_gone_on_from(searched: Path, tmp_path: Path) -> None:
    shutil.copytree(searched / "three", tmp_path / "s")
    (tmp_path / "s" / POPULATION).write_text("")
    with pytest.raises(DataError, match=r"population.csv lacks epoch 0 of member 0"):
        run_search({"trainer.max_epochs": 5}, run_dir=tmp_path / "s", resume=True)


def test_a_history_that_was_cut_by_a_kill_is_that_of_an_unbroken_search(
    searched: Path, tmp_path: Path
) -> None:
    shutil.copytree(searched / "three", tmp_path / "s")
    table = tmp_path / "s" / POPULATION
    # Rows of an epoch that was never saved, the last one cut.
    rows = (searched / "five" / POPULATION).read_text().splitlines()
    table.write_text("\n".join(rows[: 1 + 2 * 4])[:-7])
    run_search({"trainer.max_epochs": 5}, run_dir=tmp_path / "s", resume=True)
    assert table.read_bytes() == (searched / "five" / POPULATION).read_bytes()
    assert not len(read_exchanges(tmp_path / "s")["epoch"])
