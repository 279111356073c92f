"""Scores and advice that would mislead are not given."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lfads_torch import cli
from lfads_torch.commands import can_resume
from lfads_torch.data import write_session
from lfads_torch.errors import DataError
from lfads_torch.files import cannot_write
from lfads_torch.folder import RunFolder
from lfads_torch.post_run.outputs import load_outputs
from lfads_torch.post_run.report import findings
from lfads_torch.post_run.report.comparison import caveats, score_comparison
from lfads_torch.post_run.report.record import Wanted, read_run


def record(bps: float, data: Any, place: str = "run") -> Any:
    estimate = {"value": bps, "low": bps, "high": bps}
    recording = SimpleNamespace(
        session=SimpleNamespace(name="day"), n_scored=len(data), n_channels=2, data={"scored": data}
    )
    scores = {"scores": {"lfads": {"bps": estimate}, "smoothing": {}}}
    return SimpleNamespace(scores=scores, recordings=[recording], absent=[], place=Path(place))


@pytest.mark.parametrize("other", ["same", "fewer trials", "other counts"])
def test_a_best_run_is_named_only_among_scores_that_compare(other: str) -> None:
    data = np.random.default_rng(0).poisson(1.0, (6, 5, 3)).astype("f4")
    theirs = {"same": data.copy(), "fewer trials": data[:4], "other counts": data + 1}[other]
    records = [record(0.2, data), record(0.3, theirs)]
    table = score_comparison(["a", "b"], records)
    assert table is not None
    assert [cell["best"] for cell in table["rows"][0]["cells"]] == [False, other == "same"]
    assert any("do not compare" in line for line in caveats(["a", "b"], records)) == (
        other != "same"
    )


def test_advice_to_resume_is_given_only_where_there_is_something_to_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    RunFolder(tmp_path).write_status("training")
    error = cannot_write("report.html", OSError(errno.ENOSPC, "full"))
    assert "disk is full" in str(error)

    def failing(options: Any) -> int:
        raise error

    def train(options: Any) -> int:
        can_resume(options, tmp_path, "train")
        raise error

    for command, run in (("report", failing), ("train", train)):
        monkeypatch.setattr(f"lfads_torch.commands.{command}.run", run)
        assert cli.main([command, "runs/a"] if command == "report" else [command]) == 2
        assert ("--resume" in capsys.readouterr().err) == (command == "train")


def test_outputs_that_are_no_arrays_are_named(tmp_path: Path) -> None:
    write_session(tmp_path / "lfads_output_day.h5", {"valid_output_params": "text"})
    with pytest.raises(DataError, match="'valid_output_params' is no array"):
        load_outputs(tmp_path)[0].n_trials("valid")


@pytest.mark.parametrize(
    ("search", "command"), [(None, "train"), ("pbt", "pbt"), ("random", "search")]
)
def test_a_report_names_the_command_that_goes_on(
    search: str | None, command: str, tmp_path: Path
) -> None:
    status = {"stage": "training"}
    if search:
        best = tmp_path / "best_model"
        best.mkdir()
        (best / "status.json").write_text(json.dumps(status))
        status["search"] = search
    (tmp_path / "status.json").write_text(json.dumps(status))
    record = read_run(tmp_path, Wanted(quick=True))
    [finding] = findings._stage(record)
    assert f"lfads {command} --resume {tmp_path}" in str(finding)
