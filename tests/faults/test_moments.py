"""An end at the worst moment: a best model is written, and what names it is not yet."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from lfads_torch import run_model
from lfads_torch.arguments import LOSS
from lfads_torch.checkpoint import read_checkpoint
from lfads_torch.errors import UserError
from lfads_torch.folder import CHECKPOINTS, LAST, RunFolder
from lfads_torch.search.population import Population
from lfads_torch.search.run import run_search
from lfads_torch.search.seeds import train_seeds

from .test_kill import left, same
from .test_moved import OVERFITS, write_data

pytestmark = pytest.mark.filterwarnings("ignore")

#: Steps that ruin a model, so that every epoch from there on is worse than any before.
RUINS = {"model.lr_init": 3.0, "trainer.max_epochs": 4}
#: Later epochs are better.
IMPROVES = {**OVERFITS, "model.lr_init": 1e-3, "trainer.max_epochs": 2}
FIXED = {"callbacks.model_checkpoint.filename": "best"}


class Killed(BaseException):
    """Ends a run as kill -9 does, but for what `finally` removes."""


@contextmanager
def killed(monkeypatch: pytest.MonkeyPatch, name: str, nth: int) -> Iterator[None]:
    """End what runs in this block when a file takes its name for the nth time."""
    real, count = os.replace, 0

    def replace(new: Any, path: Any) -> None:
        nonlocal count
        count += Path(path).name == name
        if count == nth and Path(path).name == name:
            raise Killed
        real(new, path)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, "replace", replace)
        yield
    assert count == nth


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Any]:
    return {"datamodule.datafile_pattern": str(write_data(tmp_path / "data.h5"))}


def checkpoints(run: Path) -> dict[str, Any]:
    return {file.name: torch.load(file) for file in (run / CHECKPOINTS).glob("*.ckpt*")}


def best_of(run: Path) -> tuple[str, float]:
    """Name and score of the best model, as the last checkpoint has them."""
    (state,) = (
        state
        for key, state in read_checkpoint(run / LAST)["callbacks"].items()
        if key.startswith("ModelCheckpoint") and "recon_smth" in key
    )
    return Path(state["best_model_path"]).name, float(state["best_model_score"])


@pytest.mark.parametrize("nth", [1, 2])
@pytest.mark.parametrize("more", [{}, {"select_by": "valid/bps"}], ids=["", "select_by"])
def test_an_epoch_is_trained_again(
    nth: int,
    more: dict[str, Any],
    data: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = {**IMPROVES, **data, **more}
    run_model(settings, run_dir=tmp_path / "unbroken")
    with killed(monkeypatch, "last.ckpt", nth):
        run_model(settings, run_dir=tmp_path / "run")
    assert list((tmp_path / "run" / CHECKPOINTS).glob("best-*.ckpt"))
    run_model(run_dir=tmp_path / "run", resume=True)
    expected, left = checkpoints(tmp_path / "unbroken"), checkpoints(tmp_path / "run")
    assert left.keys() == expected.keys()
    for name, checkpoint in expected.items():
        assert str(left[name]["callbacks"]) == str(checkpoint["callbacks"])


@pytest.mark.parametrize("name", [{}, FIXED], ids=["numbered", "one_name"])
@pytest.mark.parametrize("moves", [False, True], ids=["", "moved"])
def test_a_worse_epoch_never_replaces_the_best(
    name: dict[str, Any],
    moves: bool,
    data: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = tmp_path / "run"
    with killed(monkeypatch, "last.ckpt", 2):
        run_model({**IMPROVES, **data, **name}, run_dir=run)
    before = best_of(run)
    newer = "best.ckpt" if name else "best-epoch=0001.ckpt"
    assert read_checkpoint(run / CHECKPOINTS / newer)["epoch"] == 1
    if moves:
        run = Path(shutil.move(run, tmp_path / "elsewhere [1]"))
    result = run_model(RUINS, run_dir=run, resume=True)
    assert best_of(run) == before
    assert result.best_checkpoint is not None and result.best_checkpoint.name == before[0]
    assert read_checkpoint(result.best_checkpoint)["epoch"] == 0
    assert not list((run / CHECKPOINTS).glob("best*.previous"))


def test_a_best_model_that_is_named_too_late_counts(data: dict[str, Any], tmp_path: Path) -> None:
    """Where the last checkpoint is lost, too, the folder knows a best one that is newer."""
    run = tmp_path / "run"
    run_model({**IMPROVES, **data, "trainer.max_epochs": 2}, run_dir=run)
    before = best_of(run)
    assert before[0] == "best-epoch=0001.ckpt"
    (run / LAST).unlink()
    run_model(RUINS, run_dir=run, resume=True)
    assert best_of(run) == before and (run / CHECKPOINTS / before[0]).is_file()


def test_the_best_of_a_search(
    data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with killed(monkeypatch, "search_state.pt", 2):
        run_search({**IMPROVES, **data, "search.num_workers": 2}, run_dir=run)
    best = run / "best_model" / CHECKPOINTS / "best.ckpt"
    assert read_checkpoint(best)["epoch"] == 1
    train_epoch = Population.train_epoch

    def train_worse(population: Population) -> Any:
        metrics = train_epoch(population)
        return {**metrics, LOSS: metrics[LOSS] + 100}

    monkeypatch.setattr(Population, "train_epoch", train_worse)
    run_search(run_dir=run, resume=True)
    assert RunFolder(run).status["best"]["epoch"] == read_checkpoint(best)["epoch"] == 0
    assert not best.with_name("best.ckpt.previous").exists()


def test_seeds_whose_checkpoint_has_one_name(data: dict[str, Any], tmp_path: Path) -> None:
    result = train_seeds({**IMPROVES, **data, **FIXED}, 2, run_dir=tmp_path / "runs")
    for run in result.runs:
        assert run.best_checkpoint is not None and run.best_checkpoint.is_file()
        names = sorted(file.name for file in (run.run_dir / CHECKPOINTS).iterdir())
        assert names == ["best.ckpt", "last.ckpt", "last.ckpt.previous"]


#: Of three seeds, one stops two epochs before the others.
STOPS = {
    **OVERFITS,
    **{"model.lr_init": 0.05, "trainer.max_epochs": 4, "model.dropout_rate": 0.1},
    **{"callbacks.early_stopping.burn_in_period": 0, "callbacks.early_stopping.patience": 1},
}


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """Settings, and the folder of three seeds that nothing interrupted."""
    place = tmp_path_factory.mktemp("seeds")
    settings = {**STOPS, "datamodule.datafile_pattern": str(write_data(place / "data.h5"))}
    result = train_seeds(settings, 3, run_dir=place / "seeds")
    epochs = [RunFolder(run.run_dir).status["epochs"] for run in result.runs]
    assert min(epochs) < max(epochs) == 4, epochs  # otherwise these tests show less
    return settings, place / "seeds"


@pytest.mark.parametrize(
    ("name", "nth"),
    [("last.ckpt", nth) for nth in (1, 2, 4, 6, 9)]
    + [("best-epoch=0001.ckpt", 1), ("metrics.csv", 3), ("status.json", 7), ("data.h5", 2)],
)
def test_stacked_seeds_go_on_to_the_bit(
    name: str,
    nth: int,
    seeds: tuple[dict[str, Any], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A kill between two seeds, or within what one of them writes in an epoch."""
    settings, unbroken = seeds
    name = "lfads_output_data.h5" if name == "data.h5" else name
    with killed(monkeypatch, name, nth):
        train_seeds(settings, 3, run_dir=tmp_path / "seeds")
    train_seeds(run_dir=tmp_path / "seeds", resume=True)
    assert same(left(tmp_path / "seeds"), left(unbroken))


def test_stacked_seeds_whose_last_checkpoint_is_damaged(
    seeds: tuple[dict[str, Any], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All go back an epoch with the one whose last checkpoint is gone."""
    settings, unbroken = seeds
    with killed(monkeypatch, "last.ckpt", 8):
        train_seeds(settings, 3, run_dir=tmp_path / "seeds")
    (tmp_path / "seeds" / "seed0" / LAST).write_bytes(b"x")
    with pytest.warns(UserWarning, match=r"last.ckpt cannot be used"):
        train_seeds(run_dir=tmp_path / "seeds", resume=True)
    assert same(left(tmp_path / "seeds"), left(unbroken))


def test_a_change_of_seeds_reaches_all_of_them(
    seeds: tuple[dict[str, Any], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A kill before the later seeds have taken it up changes nothing; they go on alone."""
    settings, _ = seeds
    folder = tmp_path / "seeds"
    with killed(monkeypatch, "last.ckpt", 7):
        train_seeds(settings, 3, run_dir=folder)
    with killed(monkeypatch, "last.ckpt", 1):
        train_seeds({"model.kl_ic_scale": 2e-3}, run_dir=folder, resume=True)
    train_seeds(run_dir=folder, resume=True)
    assert "one after another: their settings have changed" in capsys.readouterr().err
    for name in ("seed0", "seed1", "seed2"):
        changes = RunFolder(folder / name).status.get("changes", [])
        goes_on = read_checkpoint(folder / name / LAST)["epoch"] > 1
        assert [one["now"] for one in changes] == [2e-3] * goes_on
    # Nothing is left that it could change.
    with pytest.raises(UserError, match=r"model.lr_init would change nothing"):
        train_seeds({"model.lr_init": 1e-3}, run_dir=folder, resume=True)
    train_seeds(run_dir=folder, resume=True)
