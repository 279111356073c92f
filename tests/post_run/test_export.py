"""Results for other programs: NWB files that pynwb and its inspector accept, pynapple series."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pynapple
import pynwb
import pytest
from nwbinspector import Importance, inspect_nwbfile

from lfads_torch import cli, load_outputs
from lfads_torch.data import DataWarning
from lfads_torch.errors import DataError, UserError
from lfads_torch.post_run.export import export_nwb, to_pynapple
from lfads_torch.prep import prepare
from tests.post_run.outputs_of import arrays, write_run
from tests.prep.nwb_files import write_nwb

BIN_S, N_UNITS = 0.01, 6
STARTS = 1 + 2.0 * np.arange(30)


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr("warnings.showwarning", warnings.showwarning)


def course(times: Any, n: int) -> np.ndarray:
    """What the model is made to infer: known functions of the time of a bin, one per column."""
    return np.exp(np.sin(np.asarray(times)[..., None] * (1 + np.arange(n))))


def recording() -> Path:
    rng = np.random.default_rng(0)
    trials = {
        "start_time": STARTS,
        "stop_time": STARTS + 1.5,
        "target": np.array(["left", "right"] * 15),
    }
    spikes = [np.sort(rng.uniform(0, 64, 400)) for _ in range(N_UNITS)]
    return write_nwb(Path("session.nwb"), spikes, trials=trials)


def run_of(**options: Any) -> Path:
    """Prepare the recording and write what a model would have inferred, as `lfads sample` does."""
    prepare(recording(), "data.h5", bin_ms=BIN_S * 1000, overwrite=True, **options)
    Path("run").mkdir(exist_ok=True)
    path = Path("run/lfads_output_data.h5")
    path.write_bytes(Path("data.h5").read_bytes())
    with h5py.File(path, "a") as file:
        for split in ("train", "valid"):
            starts = file[f"{split}_window_start"][()]
            shape = file[f"{split}_recon_data"].shape
            times = starts[:, None] + np.arange(shape[1]) * BIN_S
            file[f"{split}_output_params"] = course(times, N_UNITS) * BIN_S
            file[f"{split}_factors"] = course(times, 3)
            file[f"{split}_co_means"] = course(times, 2)
            file[f"{split}_co_stds"] = np.ones((*times.shape, 2))
            file[f"{split}_ic_mean"] = course(starts, 4)
        file.attrs.update({"session_name": "data", "num_samples": 50})
    return Path("run")


def check(path: Path) -> None:
    """Let pynwb and its inspector object."""
    assert not pynwb.validate(path=str(path))
    # Whose recording it is, only --source knows.
    messages = inspect_nwbfile(nwbfile_path=path, ignore=["check_subject_exists"])
    serious = [m for m in messages if m.importance != Importance.BEST_PRACTICE_SUGGESTION]
    assert not serious, serious


def times_of(series: pynwb.TimeSeries) -> np.ndarray:
    if series.timestamps is not None:
        return np.asarray(series.timestamps[:])
    return np.asarray(series.starting_time + np.arange(len(series.data)) / series.rate)


@pytest.mark.parametrize(
    "options",
    [{"align": "start_time:0:500"}, {"align": "start_time:-200:1000", "forward_ms": 100}],
)
def test_trials_stand_at_their_times(options: dict[str, Any]) -> None:
    run = run_of(conditions=["target"], **options)
    assert cli.main(["export", str(run), "out.nwb"]) == 0
    check(Path("out.nwb"))
    with pynwb.NWBHDF5IO("out.nwb", "r") as io:
        file = io.read()
        module = file.processing["lfads"]
        assert set(module.data_interfaces) == {
            "rates",
            "factors",
            "inferred_inputs",
            "inferred_inputs_std",
        }
        assert module["rates"].unit == "Hz"
        assert "counted from 0: 0, 1, 2, 3, 4, 5." in module["rates"].description
        begin = float(options["align"].split(":")[1]) / 1000
        length = {"start_time:0:500": 50, "start_time:-200:1000": 130}[options["align"]]
        expected = (STARTS[:, None] + begin + np.arange(length) * BIN_S).ravel()
        for name, n in (("rates", N_UNITS), ("factors", 3), ("inferred_inputs", 2)):
            times = times_of(module[name])
            np.testing.assert_allclose(times, expected, atol=1e-9)
            np.testing.assert_allclose(module[name].data[:], course(times, n), rtol=1e-5)
        table = file.trials.to_dataframe()
        np.testing.assert_allclose(table.start_time, STARTS + begin)
        np.testing.assert_allclose(table.stop_time - table.start_time, length * BIN_S)
        assert table.target.tolist() == ["left", "right"] * 15
        assert table.trial.tolist() == list(range(30))
        assert sorted(set(table.split)) == ["train", "valid"]
        np.testing.assert_allclose(np.stack(table.initial_condition), course(table.start_time, 4))


def test_chops_are_joined() -> None:
    run = run_of(chop_ms=1000, overlap_ms=200, block_ms=8000)
    (path,) = export_nwb(run)
    assert path == Path("run/lfads_data.nwb").absolute()
    check(path)
    with pynwb.NWBHDF5IO(path, "r") as io:
        file = io.read()
        rates = file.processing["lfads"]["rates"]
        times = times_of(rates)
        assert (np.diff(times) > 0).all()
        np.testing.assert_allclose(rates.data[:], course(times, N_UNITS), rtol=1e-5)
        assert file.trials is None
        windows = file.intervals["lfads_windows"].to_dataframe()
        inside = (times[:, None] >= windows.start_time.to_numpy() - 1e-6) & (
            times[:, None] < windows.stop_time.to_numpy() - 1e-6
        )
        assert inside.any(axis=1).all()
        np.testing.assert_allclose(windows.stop_time - windows.start_time, 1.0)
    frame = to_pynapple(load_outputs(run), "factors")
    assert isinstance(frame, pynapple.TsdFrame)
    assert len(frame) == len(times)
    np.testing.assert_allclose(frame.d, course(frame.t, 3), rtol=1e-5)


def test_windows_that_overlap_are_apart() -> None:
    run = run_of(align="start_time:0:2500", split="blocks", block=6)
    (path,) = export_nwb(run, "o.nwb")
    with pynwb.NWBHDF5IO(path, "r") as io:
        file = io.read()
        module, rows = file.processing["lfads"], 0
        for name in ("factors", "factors_2"):
            times = times_of(module[name])
            assert (np.diff(times) > 0).all()
            np.testing.assert_allclose(module[name].data[:], course(times, 3), rtol=1e-5)
            rows += len(times)
        assert rows == 250 * len(file.trials)
    with pytest.raises(UserError, match="overlap in time"):
        to_pynapple(load_outputs(run))


def test_results_are_added_to_a_copy_of_the_recording() -> None:
    run, before = run_of(align="start_time:0:500"), Path("session.nwb").read_bytes()
    assert cli.main(["export", str(run), "-o", "both.nwb", "--source", "session.nwb"]) == 0
    assert Path("session.nwb").read_bytes() == before
    assert not pynwb.validate(path="both.nwb")
    with pynwb.NWBHDF5IO("both.nwb", "r") as io:
        file = io.read()
        assert len(file.units) == N_UNITS
        np.testing.assert_allclose(file.trials["stop_time"][:], STARTS + 1.5)
        assert len(file.intervals["lfads_windows"]) == 30
        times = times_of(file.processing["lfads"]["rates"])
        np.testing.assert_allclose(times.reshape(30, 50)[:, 0], STARTS)
    with pytest.raises(UserError, match="module 'lfads' already"):
        export_nwb(run, "third.nwb", source="both.nwb")
    assert not Path("third.nwb").exists()
    Path("other.nwb").write_bytes(before)
    with pytest.warns(DataWarning, match="made of session.nwb"):
        export_nwb(run, "third.nwb", source="other.nwb")


def test_pynapple_has_the_windows_as_its_support() -> None:
    run = run_of(align="start_time:0:500", until="stop_time")
    with h5py.File(run / "lfads_output_data.h5", "a") as file:
        lengths = file["train_lengths"]
        lengths[:] = 20 + np.arange(len(lengths))
        starts = file["train_window_start"][()]
    train = load_outputs(run).train
    frame = to_pynapple(train)
    assert len(frame) == lengths_sum(len(train))
    np.testing.assert_allclose(frame.d, course(frame.t, N_UNITS), rtol=1e-5)
    np.testing.assert_allclose(frame.time_support.start, np.sort(starts))
    for start, n in zip(starts, 20 + np.arange(len(starts)), strict=True):
        inside = frame.get(start - 1e-6, start + 0.6)
        np.testing.assert_allclose(inside.t, start + np.arange(n) * BIN_S)


def lengths_sum(n: int) -> int:
    return sum(20 + i for i in range(n))


def test_without_times_trials_follow_one_another(tmp_path: Path) -> None:
    run = write_run(tmp_path, arrays(), arrays(seed=1))
    paths = export_nwb(run, "out.nwb")
    assert [path.name for path in paths] == ["out_day0.nwb", "out_day1.nwb"]
    session = load_outputs(run)[0].merged()  # in the order of the recording, by `inds`
    with pynwb.NWBHDF5IO(paths[0], "r") as io:
        file = io.read()
        factors = file.processing["lfads"]["factors"]
        assert "not the recording's" in factors.description
        np.testing.assert_array_equal(factors.data[:], session.factors.reshape(-1, 2))
        assert "inferred_inputs" not in file.processing["lfads"].data_interfaces
        np.testing.assert_array_equal(file.trials["cond_idx"][:], session.cond_idx)
    dataset = load_outputs(run)[0].train.to_xarray()
    assert dataset.factors.dims == ("trial", "time", "factor")


def test_xarray_says_when_trials_were() -> None:
    dataset = load_outputs(run_of(align="start_time:0:500")).valid.to_xarray()
    at = dataset.window_start + dataset.time
    np.testing.assert_allclose(dataset.rates.values, course(at.values, N_UNITS), rtol=1e-5)
    assert "window_start" in dataset.coords


def test_what_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run = write_run(tmp_path, arrays(), arrays(seed=1))
    nameless = tmp_path / "nameless"
    write_run(nameless, arrays(), bin_ms=None)
    Path("no.nwb").write_bytes(b"x")
    Path("there.nwb").write_bytes(b"")
    with h5py.File("plain.nwb", "w") as file:
        file["x"] = 1
    one = str(run / "lfads_output_sess0.h5")
    for arguments, message in (
        ([str(run), "out.h5"], "legal: .npz, .nwb"),
        ([str(run), "a.nwb", "-o", "b.nwb"], "name one"),
        ([one, "there.nwb"], "--overwrite"),
        ([one, "x.nwb", "--source", "gone.nwb"], "does not exist"),
        ([one, "x.nwb", "--source", "no.nwb"], "no.nwb is not an HDF5 file"),
        ([one, "x.nwb", "--source", "plain.nwb"], "plain.nwb cannot be read as NWB"),
        ([one, "plain.nwb", "--source", "plain.nwb", "--overwrite"], "is the source itself"),
        ([str(run), "x.nwb", "--source", "plain.nwb"], "name the output file"),
        ([str(nameless), "x.nwb"], "--bin-ms"),
        ([str(tmp_path / "empty"), "x.nwb"], "does not exist"),
    ):
        assert cli.main(["export", *arguments]) == 2, arguments
        assert message in capsys.readouterr().err
    assert sorted(p.name for p in Path().glob("*.nwb")) == ["no.nwb", "plain.nwb", "there.nwb"]
    assert cli.main(["export", str(nameless), "x.nwb", "--bin-ms", "10"]) == 0
    with pytest.raises(UserError, match="2 sessions"):
        to_pynapple(load_outputs(run))
    with pytest.raises(DataError, match="no 'rate'"):
        to_pynapple(load_outputs(run)[0], "rate")
