"""Checkpoints that are cut short, empty, gone or overwritten: said, and the intact one is used."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from lfads_torch import load_model, run_model
from lfads_torch.checkpoint import (
    find_checkpoint,
    newest_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from lfads_torch.data import write_session
from lfads_torch.errors import UserError
from lfads_torch.files import damage, generation_before
from lfads_torch.folder import LAST, RunFolder
from lfads_torch.runs.sampling import sample_run
from lfads_torch.search.coordinator import Coordinator, read_state
from lfads_torch.search.run import run_search
from tests.small import DIMS, arrays

STATE = "search_state.pt"
SMALL: dict[str, Any] = {
    **{f"model.{name}": value for name, value in DIMS.items()},
    "trainer.accelerator": "cpu",
    "trainer.enable_progress_bar": False,
    "logger.tensorboard": None,
    "posterior_sampling.fn.num_samples": 2,
}
RUN = {**SMALL, "callbacks.raster_plot": None, "callbacks.trajectory_plot": None}


def zero_40_bytes(file: Path) -> None:
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 40] = bytes(40)
    file.write_bytes(content)


def flip_a_bit_of_a_weight(file: Path) -> None:
    content = bytearray(file.read_bytes())
    weights = torch.load(file, weights_only=True)["state_dict"]
    at = content.find(weights["readout.0.weight"].numpy().tobytes())
    assert at > 0
    content[at + 3] ^= 0x10
    file.write_bytes(content)


FAULTS: dict[str, Callable[[Path], None]] = {
    "deleted": Path.unlink,
    "empty": lambda file: file.write_bytes(b"") and None,
    "cut": lambda file: file.write_bytes(file.read_bytes()[:30000]) and None,
    "cut at its end": lambda file: file.write_bytes(file.read_bytes()[:-40]) and None,
    "zeroed": zero_40_bytes,
    "a bit flipped": flip_a_bit_of_a_weight,
    "another file": lambda file: file.write_bytes(np.random.default_rng(0).bytes(9999)) and None,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run and a search, and longer ones of the same seeds."""
    folder = tmp_path_factory.mktemp("made")
    write_session(folder / "data.h5", arrays())
    data = {"datamodule.datafile_pattern": str(folder / "data.h5"), "datamodule.batch_size": 4}
    for name, epochs in (("run", 3), ("longer", 4)):
        run_model({**RUN, **data, "trainer.max_epochs": epochs}, run_dir=folder / name)
    search = {**SMALL, **data, "search.num_workers": 3, "search.burn_in_period": 1}
    search |= {"search.perturbation_interval": 2}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, epochs in (("search", 4), ("longer_search", 5)):
            run_search({**search, "trainer.max_epochs": epochs}, run_dir=folder / name)
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made / "run", tmp_path / "run")


@pytest.fixture
def search(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made / "search", tmp_path / "search")


def go_on(run: Path) -> None:
    run_model({"trainer.max_epochs": 4}, run_dir=run, resume=True)


def assert_same_results(run: Path, other: Path, table: str = "csv_logs/metrics.csv") -> None:
    assert (run / table).read_bytes() == (other / table).read_bytes()
    one, two = (RunFolder(place).checkpoint(best=True) for place in (run, other))
    assert one is not None
    assert two is not None
    assert one.name == two.name
    a, b = read_checkpoint(one)["state_dict"], read_checkpoint(two)["state_dict"]
    assert all(torch.equal(a[name], b[name]) for name in b)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_last_checkpoint_is_said_and_the_one_before_is_used(
    fault: str, run: Path, made: Path
) -> None:
    FAULTS[fault](run / LAST)
    said = r"last\.ckpt cannot be used: .*last\.ckpt\.previous.* is intact"
    with pytest.warns(UserWarning, match=said):
        model = load_model(run, best=False)
    before = read_checkpoint(generation_before(run / LAST))
    assert before["epoch"] == 1  # of 0, 1, 2
    assert torch.equal(model.state_dict()["readout.0.bias"], before["state_dict"]["readout.0.bias"])
    with pytest.warns(UserWarning, match=said):
        go_on(run)
    assert_same_results(run, made / "longer")
    # The damaged one is not kept as a generation.
    assert read_checkpoint(run / LAST)["epoch"] == 3
    assert read_checkpoint(generation_before(run / LAST))["epoch"] == 2


@pytest.mark.parametrize("fault", ["deleted", "empty", "a bit flipped"])
def test_where_both_generations_are_damaged_the_error_names_what_is_left(
    fault: str, run: Path
) -> None:
    for file in (run / LAST, generation_before(run / LAST)):
        FAULTS[fault](file)
    metrics = (run / "csv_logs/metrics.csv").read_bytes()
    match = r"last\.ckpt cannot be used: .*Intact are best-epoch=\d+\.ckpt.*--overwrite"
    with pytest.raises(UserError, match=match):
        go_on(run)
    with pytest.raises(UserError, match=match):
        sample_run(run, num_samples=1, best=False)
    assert (run / "csv_logs/metrics.csv").read_bytes() == metrics
    # As the message says: the best one in its place goes on from its epoch.
    best = RunFolder(run).checkpoint(best=True)
    assert best is not None
    shutil.copy(best, run / LAST)
    go_on(run)
    assert read_checkpoint(run / LAST)["epoch"] == 3


def test_a_run_without_checkpoints_does_not_begin_again_in_silence(run: Path) -> None:
    shutil.rmtree(run / "lightning_checkpoints")
    for stage in ("complete", "training"):  # of the second only the log says that it got on
        RunFolder(run).write_status(stage)
        with pytest.raises(UserError, match=r"last\.ckpt cannot be used: it is missing"):
            go_on(run)


@pytest.mark.parametrize("fault", ["deleted", "zeroed"])
def test_another_model_never_takes_the_place_of_the_best(fault: str, run: Path) -> None:
    best = RunFolder(run).checkpoint(best=True)
    assert best is not None
    FAULTS[fault](best)
    match = rf"{best.name} cannot be used: .*Intact are last\.ckpt, .*--last"
    for read in (load_model, sample_run):
        with pytest.raises(UserError, match=match):
            read(run)
    sample_run(run, num_samples=1, best=False)


def test_a_folder_of_checkpoints_and_a_run_under_way_are_read_with_the_same_care(run: Path) -> None:
    best, folder = RunFolder(run).checkpoint(best=True), run / "lightning_checkpoints"
    assert best is not None
    (run / LAST).unlink()
    for find in (find_checkpoint, newest_checkpoint):
        with pytest.warns(UserWarning, match=r"last\.ckpt cannot be used: it is missing"):
            assert find(folder) == generation_before(run / LAST)
    # What the best one is the status of a run under way does not say yet.
    RunFolder(run).write_status("training")
    generation_before(run / LAST).rename(run / LAST)
    best.unlink()
    for place in (run, folder):
        with pytest.raises(UserError, match=r"best-epoch=\d+\.ckpt cannot be used: it is missing"):
            load_model(place)


def test_a_best_model_that_is_lost_is_said_when_its_run_goes_on(made: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    data = {"datamodule.datafile_pattern": str(made / "data.h5"), "datamodule.batch_size": 4}
    run_model({**RUN, **data, "trainer.max_epochs": 2}, run_dir=run)
    best = RunFolder(run).checkpoint(best=True)
    assert best is not None
    zero_40_bytes(best)
    with pytest.warns(UserWarning, match=r"the best model so far, cannot be used"):
        go_on(run)
    again = RunFolder(run).checkpoint(best=True)
    assert again is not None
    assert read_checkpoint(again)["epoch"] >= 2


def test_a_checkpoint_alone_loads_anywhere_and_a_damaged_one_nowhere(
    run: Path, tmp_path: Path
) -> None:
    copy = shutil.copy(run / LAST, tmp_path / "mine.ckpt")
    load_model(copy)
    # By the checksums that torch writes: one of another program or version has no other.
    old = tmp_path / "old.ckpt"
    torch.save(torch.load(copy, weights_only=True), old)
    load_model(old)
    for file in (copy, old):
        flip_a_bit_of_a_weight(file)
        torch.load(file, weights_only=True)  # would take it
        with pytest.raises(UserError, match=r"checksum"):
            load_model(file)


def test_any_flipped_bit_is_noticed(run: Path, tmp_path: Path) -> None:
    content, file = (run / LAST).read_bytes(), tmp_path / "flipped.ckpt"
    rng = np.random.default_rng(0)
    for at in [*rng.integers(len(content), size=60), *range(-60, 0)]:
        flipped = bytearray(content)
        flipped[at] ^= 1 << rng.integers(8)
        file.write_bytes(flipped)
        if damage(file) is None:  # in the word that says that a checksum follows
            assert at < 0
            assert torch.load(file, weights_only=True)["epoch"] == 2


def resume_search(folder: Path) -> None:
    run_search({"trainer.max_epochs": 5}, run_dir=folder, resume=True)


@pytest.mark.filterwarnings("ignore::lfads_torch.data.DataWarning")
@pytest.mark.parametrize("fault", ["deleted", "cut", "zeroed"])
def test_a_search_goes_on_from_the_state_before(fault: str, search: Path, made: Path) -> None:
    FAULTS[fault](search / STATE)
    with pytest.warns(UserWarning, match=r"search_state\.pt cannot be used.*\.previous"):
        resume_search(search)
    assert_same_results(search, made / "longer_search", "population.csv")
    exchanges = [
        (place / "exchanges.csv").read_text() for place in (search, made / "longer_search")
    ]
    assert exchanges[0] == exchanges[1]
    outputs = [next(p.glob("best_model/*output*.h5")) for p in (search, made / "longer_search")]
    with h5py.File(outputs[0]) as one, h5py.File(outputs[1]) as two:
        np.testing.assert_array_equal(one["valid_output_params"], two["valid_output_params"])


def test_a_search_without_an_intact_state_names_what_is_left(search: Path) -> None:
    (search / STATE).unlink()
    zero_40_bytes(generation_before(search / STATE))
    table = (search / "population.csv").read_bytes()
    with pytest.raises(UserError, match=r"Intact are best_model/.*best\.ckpt.*--overwrite"):
        resume_search(search)
    assert (search / "population.csv").read_bytes() == table


def test_a_damaged_member_is_named(search: Path) -> None:
    member = RunFolder(search).models()[-1]
    zero_40_bytes(member)
    with pytest.raises(UserError, match=rf"{member.name} .*checksum"):
        sample_run(search, num_samples=1, ensemble=True)
    zero_40_bytes(search / "best_model/lightning_checkpoints/best.ckpt")
    with pytest.warns(UserWarning, match=r"the best of the epochs from here on takes its place"):
        resume_search(search)


def coordinator_state(folder: Path, checkpoints: list[Any]) -> None:
    state = SimpleNamespace(
        folder=folder, groups=[[0]], checkpoints=checkpoints, over=[False], max_epochs=9, session=0
    )
    Coordinator.write_state(state)  # type: ignore[arg-type]


def test_the_coordinator_of_a_search_over_ray_keeps_two_generations(tmp_path: Path) -> None:
    (tmp_path / "ray").mkdir()
    for n in (3, 4):
        coordinator_state(tmp_path, [[[n, f"checkpoint_{n}"]]])
    file = tmp_path / "ray/state.json"
    whole = file.read_text()
    assert read_state(tmp_path)["checkpoints"] == [[[4, "checkpoint_4"]]]
    # JSON all the same, of another checkpoint; then no JSON; then nothing.
    for damaged in (whole.replace("checkpoint_4", "checkpoint_1"), whole[:40], None):
        file.unlink() if damaged is None else file.write_text(damaged)
        with pytest.warns(UserWarning, match=r"state\.json cannot be used.*state\.json\.previous"):
            assert read_state(tmp_path)["checkpoints"] == [[[3, "checkpoint_3"]]]
    generation_before(file).write_text("{")
    assert read_state(tmp_path) == {}  # nothing is trained yet
    (tmp_path / "population.csv").write_text("epoch,member,parent\n0,0,0\n")
    with pytest.raises(UserError, match=r"state\.json cannot be used.*--overwrite"):
        read_state(tmp_path)


def test_a_trial_of_ray_goes_on_from_its_last_intact_checkpoint(tmp_path: Path) -> None:
    driver = pytest.importorskip("lfads_torch.search.ray.driver").Driver
    of = SimpleNamespace(storage=str(tmp_path))
    saved: list[list[Any]] = [[n, f"checkpoint_{n}"] for n in range(3)]
    for _, name in saved:
        write_checkpoint(tmp_path / name / "state.pt", {"numbers": torch.arange(99)})
    assert driver._intact(of, saved) == saved
    zero_40_bytes(tmp_path / "checkpoint_2/state.pt")
    with pytest.warns(UserWarning, match=r"checkpoint_2.*cannot be used"):
        assert driver._intact(of, saved) == saved[:2]
    for n in range(2):
        (tmp_path / f"checkpoint_{n}/state.pt").unlink()
    with pytest.raises(UserError, match=r"No checkpoint of this trial is left"):
        driver._intact(of, saved)
