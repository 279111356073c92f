"""`lfads prep` as it is typed, and what its files are good for."""

from __future__ import annotations

import io
import sys
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest

from lfads_torch import cli
from lfads_torch.commands import terminal_line
from tests.prep.test_nlb import write as write_benchmark
from tests.prep.test_prepare import ALIGN, session


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr("warnings.showwarning", warnings.showwarning)


def test_list_says_what_there_is_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session(tmp_path)
    assert cli.main(["prep", "s.npz", "--list"]) == 0
    text = capsys.readouterr().out
    for part in (
        "Units: 6",
        "spikes/s",
        "Trials: 30",
        "go_time",
        "left (15), right (15)",
        "hand_vel  64000 x 2",
        "lfads prep s.npz -o",
    ):
        assert part in text
    assert [p.name for p in tmp_path.iterdir()] == ["s.npz"]


def test_list_takes_the_bin_width_that_is_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session(tmp_path)
    assert cli.main(["prep", "s.npz", "--list", "--bin-ms", "4"]) == 0
    text = capsys.readouterr().out
    assert "in bins of 4 ms" in text and "--bin-ms 4 " in text
    np.savez(tmp_path / "b.npz", spikes=np.ones((900, 5), np.uint8))
    assert cli.main(["prep", "b.npz", "--list", "--input-bin-ms", "50", "--bin-ms", "20"]) == 0
    assert "take 50 ms" in capsys.readouterr().out


def test_prep_writes_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    session(tmp_path)
    options = [
        "--bin-ms",
        "10",
        "--align",
        ALIGN,
        "--forward-ms",
        "100",
        "--behavior",
        "hand_vel",
        "--lag-ms",
        "-20",
        "--conditions",
        "target,side",
        "--keep",
        "success",
        "--select",
        "target!=2",
        "--units",
        "quality=good",
        "--hold-out",
        "1",
        "--split",
        "random",
        "--valid",
        "0.25",
        "--seed",
        "3",
        "--compress",
    ]
    assert cli.main(["prep", "s.npz", *options]) == 0
    captured = capsys.readouterr()
    assert "train 15, valid 5 windows of 50 bins read of 60 x 2 units read of 3" in captured.out
    assert "conditions: 4 by target, side" in captured.out
    assert captured.err == ""
    with h5py.File("s_10ms.h5") as file:
        assert file["train_behavior"].shape == (15, 50, 2)
        assert file["train_success"].dtype == bool
        assert file["train_encod_data"].compression == "gzip"
    assert cli.main(["prep", "s.npz", *options]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert cli.main(["prep", "s.npz", *options, "--overwrite"]) == 0


def test_what_is_typed_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    session(tmp_path)
    for arguments, message in (
        ([], "name a recording"),
        (["a.npz", "b.npz"], "2 recordings are named"),
        (["s.npz"], "--bin-ms"),
        (["s.npz", "--list", "--nlb", "mc_maze"], "leave out --nlb"),
        (["s.npz", "--list", "--chop-ms", "9", "--lag-ms", "1"], "leave out --chop-ms, --lag-ms"),
        (["s.npz", "--list", "--bin-ms", "0"], "--bin-ms is 0"),
        (["--nlb", "mc_maze"], "dandi download DANDI:000128"),
        (["--nlb", "mc_maze", "x.nwb", "--lag-ms", "80"], "leave out --lag-ms"),
        (["nowhere.npz", "--bin-ms", "5"], "does not exist"),
    ):
        assert cli.main(["prep", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_warnings_are_shown_and_strict_stops(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session(tmp_path)
    options = ["prep", "s.npz", "--bin-ms", "10", "--align", "go_time:-1500:1500"]
    assert cli.main(options) == 0
    assert "warning: " in capsys.readouterr().err
    assert cli.main([*options, "-o", "x.h5", "--strict"]) == 2
    assert "nothing was written" in capsys.readouterr().err
    assert not Path("x.h5").exists()


def test_hold_out_0_declines_the_files_flags(tmp_path: Path) -> None:
    flags = np.arange(6) < 2
    session(tmp_path, units_heldout=flags)
    options = ["prep", "s.npz", "--bin-ms", "10", "--align", ALIGN]
    for more, n_read in (([], 4), (["--hold-out", "0"], 6), (["--hold-out", "heldout"], 4)):
        assert cli.main([*options, "--overwrite", *more]) == 0
        with h5py.File("s_10ms.h5") as file:
            assert file["train_encod_data"].shape[2] == n_read


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_is_shown_on_terminals_only(
    is_terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.StringIO()
    monkeypatch.setattr(out, "isatty", lambda: is_terminal, raising=False)
    monkeypatch.setattr("sys.stderr", out)
    with terminal_line() as line:
        line.show("trials 1/4")
    assert ("trials 1/4" in out.getvalue()) == is_terminal
    assert not is_terminal or out.getvalue().endswith("\r\x1b[K")


SCORES = {
    "mc_maze_small": {"co_bps", "fp_bps", "behavior_r2", "psth_r2"},
    "mc_rtt": {"co_bps", "fp_bps", "behavior_r2"},
    "area2_bump": {"co_bps", "fp_bps", "behavior_r2", "psth_r2"},
    "dmfc_rsg": {"co_bps", "fp_bps", "psth_r2", "tp_corr"},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SCORES)
def test_the_packaged_configurations_read_and_score_what_prep_writes(
    tmp_path: Path, name: str
) -> None:
    from types import SimpleNamespace

    from lfads_torch.datamodules import BasicDataModule
    from lfads_torch.extensions.nlb import NLBEvaluation
    from lfads_torch.model import LFADS
    from lfads_torch.runs.compose import compose_config
    from tests.small import DIMS

    source = write_benchmark(tmp_path, name)
    # the name that the configuration reads, from the working directory's `datasets`
    output = f"datasets/{name}-05ms-val.h5"
    assert cli.main(["prep", "--nlb", name, str(source), "--bin-ms", "20", "-o", output]) == 0
    chosen = compose_config("single", {"datamodule": f"nlb_{name}"})["datamodule"]
    assert chosen["datafile_pattern"].endswith(output)
    data = BasicDataModule(
        output, batch_keys=chosen["batch_keys"], attr_keys=chosen["attr_keys"], batch_size=64
    )
    model = LFADS.from_data(data, **DIMS)
    scores = NLBEvaluation().evaluate(SimpleNamespace(datamodule=data), model)  # type: ignore[arg-type]
    assert set(scores) == SCORES[name]
    assert np.isfinite(list(scores.values())).all()


@pytest.mark.parametrize(
    ("file", "commands"),
    [
        ("datasets/mc_maze-20ms-val.h5", ["lfads prep --nlb mc_maze 000128 --bin-ms 20 -o "]),
        (
            "datasets/mc_maze_*-05ms-val.h5",
            [
                f"lfads prep --nlb mc_maze_{n} 000{d} --bin-ms 5"
                for n, d in (("large", 138), ("medium", 139), ("small", 140))
            ],
        ),
    ],
)
def test_a_missing_benchmark_file_names_the_command(
    tmp_path: Path, file: str, commands: list[str]
) -> None:
    from lfads_torch.data import find_sessions
    from lfads_torch.errors import UserError

    with pytest.raises(UserError) as caught:
        find_sessions(file)
    for command in commands:
        assert command in str(caught.value)
    assert str(tmp_path / "datasets") in str(caught.value)


@pytest.mark.parametrize(
    ("options", "cause", "error"),
    [
        # The windows of all trials but the last begin before the first spike; one cannot be split.
        (
            ["--align", "go_time:-58500:300"],
            "the windows of 29 of 30 trials lie outside",
            "1 trial",
        ),
        (
            ["--align", "go_time:-200:300", "--select", "target=2,7", "--until", "late"],
            "trials: 10 of 30 by target=2,7",
            "--until late",
        ),
        (["--align", "rare:-200:300"], "29 of 30 trials have no 'rare' (NaN)", "1 trial"),
    ],
)
def test_what_was_noticed_stands_before_the_error(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    cause: str,
    error: str,
) -> None:
    session(tmp_path, trials_late=np.full(30, -5.0), trials_rare=np.r_[9.0, [np.nan] * 29])
    assert cli.main(["prep", "s.npz", "--bin-ms", "10", *options]) == 2
    text = capsys.readouterr().err
    assert 0 <= text.find(cause) < text.find(f"lfads prep: {error}")
    # An error that repeats the warnings, as with --strict, needs them once.
    assert (
        cli.main(["prep", "s.npz", "--bin-ms", "10", "--strict", "--align", "go_time:-1500:300"])
        == 2
    )
    assert capsys.readouterr().err.count("lie outside") == 1
