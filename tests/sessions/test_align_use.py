"""What `lfads align` leaves is used like any run: by every command that reads one."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from lfads_torch import cli
from lfads_torch.checkpoint import load_model
from lfads_torch.data import write_session
from lfads_torch.data.synthetic import days
from lfads_torch.online.numpy_runner import Runner
from lfads_torch.run_model import run_model
from lfads_torch.sessions.align_day import AlignOptions, align_day
from tests.sessions.test_align_day import SMALL
from tests.small import batch_of

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def with_phase(day: dict[str, Any]) -> dict[str, Any]:
    """Add a condition of each window: the quarter of its turn in which it begins."""
    for split in ("train", "valid"):
        first = day[f"{split}_latents"][:, 0]
        angle = np.arctan2(first[:, 1], first[:, 0])
        day[f"{split}_phase"] = (angle // (np.pi / 2)).astype(np.int64)
    return day


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal run of two sessions, and a third day aligned to the second."""
    place = tmp_path_factory.mktemp("use")
    for k, day in enumerate(days(3, 8, 60, n_bins=10, seed=1)):
        write_session(place / f"day{k}.h5", with_phase(day), {"bin_ms": 20.0})
    data = {"datamodule.datafile_pattern": str(place / "day[01].h5")}
    run_model({**SMALL, **data, "model.causal": True}, run_dir=place / "run")
    saved = ["--from", "gen_states", "--lags", "0", "--save", str(place / "decoder.json")]
    assert cli.main(["decode", str(place / "run" / "lfads_output_day1.h5"), *saved]) == 0
    # A rate so high that the aligner is seen in what follows.
    options = AlignOptions(session="day1", epochs=2, seeds=1, init="random", lr=0.1, num_samples=1)
    align_day(place / "run", place / "day2.h5", place / "aligned", options)
    readin: Any = load_model(place / "aligned").readin[0]
    assert float(readin.aligner.outer.weight.detach().abs().max()) > 0.05
    return place


def run(capsys: pytest.CaptureFixture[str], *command: Any, code: int = 0) -> str:
    """Run a command; return what it printed."""
    assert cli.main(list(map(str, command))) == code
    printed = capsys.readouterr()
    return printed.out + printed.err


def offline(place: Path) -> tuple[np.ndarray, Any]:
    """Counts of a window and what the aligned model infers of it at posterior means."""
    with h5py.File(place / "day2.h5") as file:
        counts = file["valid_encod_data"][()].astype(np.float32)
    model = load_model(place / "aligned")
    with torch.no_grad():
        return counts, model({0: batch_of(torch.from_numpy(counts))})[0]


def test_the_session_of_day_0_is_the_one_that_was_named(place: Path) -> None:
    record = json.loads((place / "aligned" / "alignment.json").read_text())
    assert record["origin"]["session"] == "day1"
    one, other = load_model(place / "run"), load_model(place / "aligned")
    assert len(other.readin) == 1
    for before, after in zip(one.decoder.parameters(), other.decoder.parameters(), strict=True):
        assert torch.equal(before, after)


def test_a_session_must_be_named(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = run(capsys, "align", place / "run", place / "day2.h5", "--run-dir", place / "x", code=2)
    assert "has 2 sessions: day0, day1; choose one (--session NAME or NUMBER)" in said


def test_a_start_from_conditions(place: Path, tmp_path: Path) -> None:
    options = AlignOptions(session="0", epochs=0, init="pcr", conditions="phase", num_samples=1)
    done = align_day(place / "run", place / "day2.h5", tmp_path / "pcr", options)
    assert done.record["seeds"][0]["init"] == "pcr"
    assert done.record["origin"]["session"] == "day0"
    model = load_model(tmp_path / "pcr")
    assert float(model.readin[0].linear.weight.norm()) > 0


def test_a_stream_infers_what_the_model_does(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--decoder", place / "decoder.json", "--split", "valid", "-o", tmp_path / "s.h5"]
    said = run(capsys, "stream", place / "aligned", "--data", place / "day2.h5", *given)
    assert "r2_uniform" in said
    with h5py.File(tmp_path / "s.h5") as file:
        rates = file["rates"][()]
    _, output = offline(place)
    streamed = rates[np.isfinite(rates).all(1)]
    np.testing.assert_allclose(streamed, output.output_params.flatten(0, 1), rtol=1e-3)


@pytest.mark.parametrize("ending", ["npz", pytest.param("onnx", marks=pytest.mark.slow)])
def test_an_export_is_the_aligned_model(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], ending: str
) -> None:
    file = tmp_path / f"m.{ending}"
    said = run(capsys, "export", place / "aligned", file, "--decoder", place / "decoder.json")
    assert float(re.search(r"largest difference .*: (\S+)", said).group(1)) < 1e-4  # type: ignore[union-attr]
    if ending != "npz":
        return
    counts, output = offline(place)
    runner = Runner(file)
    rates = [runner.step(bin_)["rates"].copy() for bin_ in counts[0]]
    np.testing.assert_allclose(rates, output.output_params[0], rtol=1e-4)
    with pytest.raises(ValueError, match=r"counts of shape \(5,\) .*takes \(8,\)"):
        runner.step(np.zeros(5))


def test_scores_samples_and_the_decoder_of_day_0(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    aligned = shutil.copytree(place / "aligned", place / "moved")
    said = run(capsys, "evaluate", aligned, "--draws", "10", "--no-baselines")
    assert "12 valid trials of day2" in said and (aligned / "scores.json").is_file()
    run(capsys, "sample", aligned, "--samples", "1", "--overwrite")
    said = run(capsys, "decode", aligned, "--apply", place / "decoder.json")
    assert "nothing was fitted here" in said
