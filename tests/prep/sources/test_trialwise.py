"""Data stored trial by trial, in each format, are trials x bins x units in the order stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.io import savemat
from scipy.sparse import csc_array

from lfads_torch.data import check_file
from lfads_torch.errors import DataError, UserError
from lfads_torch.prep import SourceOptions, open_recording, prepare
from tests.prep.mat73_files import save_mat73

N, UNITS, MS = 30, 12, 400


def bits(shape: tuple[int, ...], seed: int = 5) -> np.ndarray:
    return (np.random.default_rng(seed).random(shape) < 0.03).astype("u1")


def summed(trials: np.ndarray, width: int = 10) -> np.ndarray:
    """Trials x units x ms to trials x bins x units."""
    n, units, ms = trials.shape
    return trials.reshape(n, units, ms // width, width).sum(axis=3).transpose(0, 2, 1)


def in_order(path: Path, key: str = "recon_data") -> np.ndarray:
    """Rows of all splits in the order of the recording's trials."""
    with h5py.File(path) as file:
        splits = [s for s in ("train", "valid", "test") if f"{s}_{key}" in file]
        rows = np.concatenate([file[f"{s}_{key}"][()] for s in splits])
        trials = np.concatenate([file[f"{s}_trial"][()] for s in splits])
    assert sorted(trials) == list(range(len(trials)))
    return rows[np.argsort(trials)]


def cells(arrays: list[Any], shape: tuple[int, ...]) -> np.ndarray:
    result = np.empty(len(arrays), dtype=object)
    for i, array in enumerate(arrays):
        result[i] = array
    return result.reshape(shape)


def save_mat5(path: Path, variables: Mapping[str, Any]) -> Path:
    savemat(path, variables)
    return path


Save = Callable[[Path, Mapping[str, Any]], Path]
MATLAB = pytest.mark.parametrize("save", [save_mat5, save_mat73], ids=["v5", "v7.3"])


def structs(**fields: Any) -> np.ndarray:
    """An array of structs, 1 x n."""
    n = len(next(iter(fields.values())))
    result = np.zeros((1, n), dtype=[(name, object) for name in fields])
    for i in range(n):
        for name, values in fields.items():
            result[0, i][name] = values[i]
    return result


@MATLAB
def test_a_struct_for_each_trial_and_a_cell_for_each_trial(tmp_path: Path, save: Save) -> None:
    trials = bits((N, UNITS, MS))
    target = np.arange(N) % 8 + 1.0
    dat = structs(trialId=np.arange(N) + 1.0, spikes=trials, target=target)
    save(tmp_path / "dat.mat", {"dat": dat})
    save(tmp_path / "cells.mat", {"trials": cells(list(trials), (N, 1))})
    given = {"input_bin_ms": 1.0, "bin_ms": 10.0}
    prepare(
        tmp_path / "dat.mat",
        tmp_path / "dat.h5",
        spikes="dat.spikes",
        axes="unit,time",
        conditions=["target"],
        **given,
    )
    prepare(
        tmp_path / "cells.mat", tmp_path / "cells.h5", spikes="trials", axes="unit,time", **given
    )
    for name in ("dat.h5", "cells.h5"):
        np.testing.assert_array_equal(in_order(tmp_path / name), summed(trials))
    np.testing.assert_array_equal(in_order(tmp_path / "dat.h5", "target"), target)
    assert set(in_order(tmp_path / "dat.h5", "cond_idx")) == set(range(8))


@MATLAB
def test_an_array_of_units_ms_and_trials(tmp_path: Path, save: Save) -> None:
    trials = bits((N, UNITS, MS))
    table = {"go": np.full(N, 0.2), "target": np.arange(N) % 8}
    save(tmp_path / "s.mat", {"spikes": trials.transpose(1, 2, 0), "trials": table})
    done = prepare(
        tmp_path / "s.mat", tmp_path / "o.h5", input_bin_ms=1, bin_ms=10, conditions=["target"]
    )
    np.testing.assert_array_equal(in_order(tmp_path / "o.h5"), summed(trials))
    np.testing.assert_array_equal(in_order(tmp_path / "o.h5", "target"), table["target"])
    assert any("'trials' has 30 rows" in note for note in done.notes)


@MATLAB
def test_a_cell_of_trials_by_units(tmp_path: Path, save: Save) -> None:
    rng = np.random.default_rng(0)
    times = [
        [np.sort(rng.uniform(-0.5, 1, rng.integers(1, 9))) for _ in range(8)] for _ in range(N)
    ]
    edges = np.arange(-0.5, 1.0001, 0.05)
    right = np.array([[np.histogram(t, edges)[0] for t in trial] for trial in times])
    stored = cells([t[None, :] for trial in times for t in trial], (N, 8))
    save(tmp_path / "tu.mat", {"spikes": stored, "target": np.arange(N)[:, None] % 4})
    for name, axes, align in (("o.h5", None, None), ("p.h5", "trial,unit", "0:-500:1000")):
        prepare(tmp_path / "tu.mat", tmp_path / name, axes=axes, bin_ms=50, align=align)
        np.testing.assert_array_equal(in_order(tmp_path / name), right.transpose(0, 2, 1))
    save(tmp_path / "bare.mat", {"spikes": stored})
    with pytest.raises(UserError, match=r"--axes trial,unit(.|\n)*--axes unit,trial"):
        prepare(tmp_path / "bare.mat", tmp_path / "q.h5", bin_ms=50)


@MATLAB
@pytest.mark.parametrize("units_first", [True, False])
def test_trials_of_several_lengths(tmp_path: Path, save: Save, units_first: bool) -> None:
    lengths = np.random.default_rng(1).integers(200, 400, N)
    trials = [bits((UNITS, n), seed=i) for i, n in enumerate(lengths.tolist())]
    pos = [np.stack([np.arange(n), -np.arange(n)]) * 0.5 for n in lengths.tolist()]
    turn = (lambda a: a) if units_first else (lambda a: a.T)
    dat = structs(
        M1_spikes=[turn(t) for t in trials],
        pos=[turn(p) for p in pos],
        bin_size=np.full(N, 0.001),
        idx_goCueTime=lengths // 2,
    )
    save(tmp_path / "td.mat", {"trial_data": dat})
    prepare(tmp_path / "td.mat", tmp_path / "o.h5", bin_ms=10, behavior=["pos"])
    counts, found = in_order(tmp_path / "o.h5"), in_order(tmp_path / "o.h5", "lengths")
    np.testing.assert_array_equal(found, lengths // 10)
    behavior = in_order(tmp_path / "o.h5", "behavior")
    for i, trial in enumerate(trials):
        n = lengths[i] // 10
        right = trial[:, : n * 10].reshape(UNITS, n, 10).sum(axis=2).T
        np.testing.assert_array_equal(counts[i, :n], right)
        assert np.isnan(counts[i, n:]).all()
        means = pos[i][:, : n * 10].reshape(2, n, 10).mean(axis=2).T
        np.testing.assert_allclose(behavior[i, :n], means, rtol=1e-6)
    assert not check_file(tmp_path / "o.h5").errors
    # the bin of index k, from 1, begins k - 1 bins after the trial does
    prepare(tmp_path / "td.mat", tmp_path / "g.h5", bin_ms=10, align="idx_goCueTime:-50:50")
    for i, found_counts in enumerate(in_order(tmp_path / "g.h5")):
        first = lengths[i] // 2 - 1 - 50
        right = trials[i][:, first : first + 100].reshape(UNITS, 10, 10).sum(axis=2).T
        np.testing.assert_array_equal(found_counts, right)


LENGTHS = np.random.default_rng(3).integers(100, 200, 12).tolist()
RAGGED = [bits((5, n), seed=n + i) for i, n in enumerate(LENGTHS)]
SUMS = [
    t[:, : n // 10 * 10].reshape(5, n // 10, 10).sum(2).T
    for t, n in zip(RAGGED, LENGTHS, strict=True)
]
TARGET = np.arange(12) % 3


def as_numbered_arrays(folder: Path) -> Path:
    names = {f"spikes_{i}": t for i, t in enumerate(RAGGED)}
    np.savez(folder / "x.npz", **names, target=TARGET)
    return folder / "x.npz"


def as_objects(folder: Path) -> Path:
    np.savez(folder / "x.npz", neural_spikes=cells([t.T for t in RAGGED], (12,)), target=TARGET)
    return folder / "x.npz"


def as_dicts(folder: Path) -> Path:
    rows = [{"spikes": t, "target": i % 3} for i, t in enumerate(RAGGED)]
    np.savez(folder / "x.npz", trials=cells(rows, (12,)))
    return folder / "x.npz"


def as_groups(folder: Path) -> Path:
    with h5py.File(folder / "x.h5", "w") as file:
        for i, trial in enumerate(RAGGED):
            file[f"trials/{i}/spikes"], file[f"trials/{i}/target"] = trial.T, i % 3
    return folder / "x.h5"


def as_named_groups(folder: Path) -> Path:
    with h5py.File(folder / "x.h5", "w") as file:
        for i, trial in enumerate(RAGGED):
            file[f"Trial{i + 1}/binned"], file[f"Trial{i + 1}/target"] = trial, i % 3
    return folder / "x.h5"


def as_numbered_names(folder: Path) -> Path:
    fields = {f"trial{i:02d}_spikes": t for i, t in enumerate(RAGGED)}
    fields |= {f"trial{i:02d}_target": np.array(t) for i, t in enumerate(TARGET)}
    savemat(folder / "x.mat", fields)
    return folder / "x.mat"


def as_table_of_lists(folder: Path) -> Path:
    rows = [("target", "i8"), ("spikes", h5py.vlen_dtype("u1"))]
    with h5py.File(folder / "x.h5", "w") as file:
        data = file.create_dataset("trials", 12, dtype=rows)
        for i, trial in enumerate(RAGGED):
            data[i] = (TARGET[i], trial[0])
    return folder / "x.h5"


@pytest.mark.parametrize(
    "write",
    [as_numbered_arrays, as_objects, as_dicts, as_groups, as_named_groups, as_numbered_names],
)
def test_trials_of_several_lengths_in_python_formats(
    tmp_path: Path, write: Callable[[Path], Path]
) -> None:
    done = prepare(
        write(tmp_path), tmp_path / "o.h5", input_bin_ms=1, bin_ms=10, conditions=["target"]
    )
    counts, lengths = in_order(tmp_path / "o.h5"), in_order(tmp_path / "o.h5", "lengths")
    assert lengths.tolist() == [n // 10 for n in LENGTHS]
    for trial, n, right in zip(counts, lengths, SUMS, strict=True):
        np.testing.assert_array_equal(trial[:n], right)
        assert np.isnan(trial[n:]).all()
    np.testing.assert_array_equal(in_order(tmp_path / "o.h5", "target"), TARGET)
    assert any("is missing" in note for note in done.notes)


@MATLAB
def test_arrays_of_several_areas_are_joined_or_asked_about(tmp_path: Path, save: Save) -> None:
    other = [bits((n, 3), seed=n) for n in LENGTHS]
    dat = structs(
        M1_spikes=RAGGED,
        PMd_spikes=[t.T for t in other],
        M1_unit_guide=[np.arange(10).reshape(5, 2)] * 12,
        bin_size=np.full(12, 0.01),
    )
    path = save(tmp_path / "td.mat", {"trial_data": dat})
    with pytest.raises(UserError, match="--spikes M1_spikes,PMd_spikes"):
        open_recording(path)
    recording = open_recording(path, SourceOptions(spikes="M1_spikes,PMd_spikes"))
    assert recording.units["area"].tolist() == ["M1"] * 5 + ["PMd"] * 3
    assert any("bin_size = 0.01, taken as s" in note for note in recording.notes)
    prepare(path, tmp_path / "o.h5", spikes="M1_spikes,PMd_spikes")
    for row, n, m1, pmd in zip(in_order(tmp_path / "o.h5"), LENGTHS, RAGGED, other, strict=True):
        np.testing.assert_array_equal(row[:n], np.concatenate([m1.T, pmd], axis=1))


TIMES = [
    [np.sort(np.random.default_rng([i, u]).uniform(0, 0.8, 4 + i % 3)) for u in range(4)]
    for i in range(12)
]
EDGES = np.arange(0, 0.8001, 0.02)
COUNTS = np.array([[np.histogram(t, EDGES)[0] for t in trial] for trial in TIMES])
COUNTS = COUNTS.transpose(0, 2, 1)


def as_cells_in_structs(folder: Path, save: Save) -> Path:
    dat = structs(spikes=[cells(trial, (4, 1)) for trial in TIMES], trialId=np.arange(12) + 1.0)
    return save(folder / "x.mat", {"dat": dat})


def as_structs_in_structs(folder: Path, save: Save) -> Path:
    dat = structs(unit=[structs(spikes=trial) for trial in TIMES], go=np.full(12, 0.1))
    return save(folder / "x.mat", {"tr": dat})


def as_units_beside(folder: Path, save: Save) -> Path:
    owner = [np.repeat(np.arange(4.0), [len(t) for t in trial]) for trial in TIMES]
    dat = structs(spikeTimes=[np.concatenate(t) for t in TIMES], unit=owner, go=np.full(12, 0.1))
    return save(folder / "x.mat", {"tr": dat})


def as_units_by_trials(folder: Path, save: Save) -> Path:
    grid = cells([t for trial in TIMES for t in trial], (12, 4)).T
    return save(folder / "x.mat", {"spk": grid, "target": TARGET})


def as_float32(folder: Path, save: Save) -> Path:
    grid = cells([t.astype("f4") for trial in TIMES for t in trial], (12, 4))
    return save(folder / "x.mat", {"spk": grid, "target": TARGET})


def as_groups_of_units(folder: Path, save: Save) -> Path:
    with h5py.File(folder / "x.h5", "w") as file:
        for i, trial in enumerate(TIMES):
            file[f"trial_{i:02d}/target"] = i % 3
            for u, times in enumerate(trial):
                file[f"trial_{i:02d}/unit_{u}"] = times
    return folder / "x.h5"


def as_lists(folder: Path, save: Save) -> Path:
    with h5py.File(folder / "x.h5", "w") as file:
        data = file.create_dataset("spikes", (12, 4), dtype=h5py.vlen_dtype(float))
        for i, u in np.ndindex(12, 4):
            data[i, u] = TIMES[i][u]
        file["target"] = TARGET
    return folder / "x.h5"


@pytest.mark.parametrize(
    ("write", "save"),
    [
        *((w, s) for w in (as_cells_in_structs, as_structs_in_structs, as_units_beside,
                           as_units_by_trials, as_float32) for s in (save_mat5, save_mat73)),
        (as_groups_of_units, save_mat5),
        (as_lists, save_mat5),
    ],
)  # fmt: skip
def test_spike_times_of_each_trial_and_unit(
    tmp_path: Path, write: Callable[[Path, Save], Path], save: Save
) -> None:
    path = write(tmp_path, save)
    for align in (None, "0:0:800"):
        prepare(path, tmp_path / "o.h5", bin_ms=20, align=align, overwrite=True)
        np.testing.assert_array_equal(in_order(tmp_path / "o.h5"), COUNTS)


@MATLAB
def test_trials_that_end_at_their_duration(tmp_path: Path, save: Save) -> None:
    rng = np.random.default_rng(8)
    durations = rng.uniform(0.4, 1.2, 12).round(3)
    times = [[np.sort(rng.uniform(0, d, 20)) for _ in range(4)] for d in durations]
    times[2][1] = np.zeros(0)
    dat = structs(spikes=[cells(t, (4, 1)) for t in times], duration=durations)
    prepare(save(tmp_path / "x.mat", {"d": dat}), tmp_path / "o.h5", bin_ms=20)
    counts, lengths = in_order(tmp_path / "o.h5"), in_order(tmp_path / "o.h5", "lengths")
    np.testing.assert_array_equal(lengths, np.floor(durations / 0.02 + 1e-6))
    for trial, n, row in zip(times, lengths, counts, strict=True):
        right = [np.histogram(t, np.arange(n + 1) * 0.02)[0] for t in trial]
        np.testing.assert_array_equal(row[:n], np.transpose(right))


@MATLAB
def test_times_on_one_clock_stay_there_though_stored_by_trial(tmp_path: Path, save: Save) -> None:
    onsets = np.cumsum(np.random.default_rng(2).uniform(1.5, 2.5, 12))
    moved = [[t + onset for t in trial] for trial, onset in zip(TIMES, onsets, strict=True)]
    dat = structs(spikes=[cells(t, (4, 1)) for t in moved], startTime=onsets)
    path = save(tmp_path / "x.mat", {"d": dat})
    prepare(path, tmp_path / "o.h5", bin_ms=20, align="startTime:0:800")
    right = [
        [np.histogram(t, EDGES + onset)[0] for t in trial]
        for trial, onset in zip(moved, onsets, strict=True)
    ]
    np.testing.assert_array_equal(in_order(tmp_path / "o.h5"), np.transpose(right, (0, 2, 1)))


@MATLAB
def test_bins_with_times_of_their_own_in_each_trial(tmp_path: Path, save: Save) -> None:
    onsets = np.cumsum(np.random.default_rng(2).uniform(1.5, 2.5, 12)).round(3)
    right = [t[:, 30:90].reshape(5, 6, 10).sum(axis=2).T for t in RAGGED]
    for start, go in ((np.full(12, -0.05), np.zeros(12)), (onsets, onsets + 0.05)):
        clock = [np.arange(n) / 1000 + s for n, s in zip(LENGTHS, start, strict=True)]
        path = save(tmp_path / "x.mat", {"d": structs(spikes=RAGGED, t=clock, goTime=go)})
        prepare(path, tmp_path / "o.h5", bin_ms=10, align="goTime:-20:40", overwrite=True)
        np.testing.assert_array_equal(in_order(tmp_path / "o.h5"), right)


@MATLAB
def test_empty_trials_and_events_are_left_out_and_said(tmp_path: Path, save: Save) -> None:
    spikes: list[Any] = [np.zeros((0, 0)) if i == 4 else t for i, t in enumerate(RAGGED)]
    go = [np.zeros((0, 0)) if i == 7 else np.array(0.05) for i in range(12)]
    path = save(tmp_path / "x.mat", {"d": structs(spikes=spikes, go=go)})
    done = prepare(path, tmp_path / "o.h5", input_bin_ms=1, bin_ms=10)
    assert sum(done.trials.values()) == 11
    assert any("1 trials are shorter than a bin (trials 4" in text for text in done.warnings)
    done = prepare(path, tmp_path / "p.h5", input_bin_ms=1, bin_ms=10, align="go:0:40")
    assert any("1 of 12 trials have no 'go'" in text for text in done.warnings)


def test_an_entry_for_each_unit_of_trials_by_bins(tmp_path: Path) -> None:
    trials = bits((20, 6, 300))
    by_unit = cells([trials[:, u] for u in range(6)], (6, 1))
    path = save_mat5(tmp_path / "x.mat", {"raster": by_unit, "trials": {"go": np.zeros(20)}})
    prepare(path, tmp_path / "o.h5", input_bin_ms=1, bin_ms=10)
    np.testing.assert_array_equal(in_order(tmp_path / "o.h5"), summed(trials))
    bare = save_mat5(tmp_path / "y.mat", {"y": by_unit})
    with pytest.raises(UserError, match=r"--axes trial,unit,time(.|\n)*--axes unit,trial,time"):
        open_recording(bare)


def test_counts_in_cells_and_sparse_matrices(tmp_path: Path) -> None:
    trials = bits((12, 4, 100))
    grid = cells([row for trial in trials for row in trial], (12, 4))
    sparse = structs(spikes=[csc_array(t.astype(float)) for t in trials], target=TARGET)
    for variables in ({"spikes": grid, "target": TARGET}, {"dat": sparse}):
        path = save_mat5(tmp_path / "x.mat", variables)
        prepare(path, tmp_path / "o.h5", input_bin_ms=1, bin_ms=10, overwrite=True)
        np.testing.assert_array_equal(in_order(tmp_path / "o.h5"), summed(trials))


# Bins of 1 ms, of which the trial's number is the count of the first, so that no axis is swapped.
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    order=st.permutations(["trial", "time", "unit"]),
    kind=st.sampled_from(["mat", "mat73", "npz", "h5"]),
    hint=st.sampled_from(["axes", "table", "times", "units"]),
    seed=st.integers(0, 99),
)
def test_any_order_of_axes(
    tmp_path: Path, order: list[str], kind: str, hint: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    sizes = dict(
        zip(("trial", "time", "unit"), rng.choice(np.arange(5, 40), 3, False), strict=True)
    )
    trials = rng.poisson(0.4, (sizes["trial"], sizes["time"], sizes["unit"])).astype("u1")
    roles = ("trial", "time", "unit")
    array = trials.transpose([roles.index(role) for role in order])
    named: dict[str, Any] = {
        "table": {"trials": {"go": np.zeros(sizes["trial"]), "rank": rng.random(sizes["trial"])}},
        "times": {"time": np.arange(sizes["time"]) * 0.001},
        "units": {"unit_names": rng.random(sizes["unit"])},
        "axes": {},
    }
    # Two roles that the file says leave one reading.
    extra = (
        named["axes"]
        if hint == "axes"
        else named[hint] | named["units" if hint == "table" else "table"]
    )
    path, variables = tmp_path / f"x.{kind.removesuffix('73')}", {"spikes": array} | extra
    if kind == "mat":
        savemat(path, variables)
    elif kind == "mat73":
        save_mat73(path, variables)
    else:
        table = variables.pop("trials", {})
        variables |= {f"trials_{k}": v for k, v in table.items()}
        if kind == "npz":
            np.savez(path, **variables)
        else:
            with h5py.File(path, "w") as file:
                for key, value in variables.items():
                    file[key] = value
    given_axes = ",".join(order) if hint == "axes" else None
    recording = open_recording(path, SourceOptions(axes=given_axes, input_bin_ms=1.0))
    assert recording.extents is not None
    for trial, (start, stop) in zip(
        trials, np.round(recording.extents * 1000).astype(int), strict=True
    ):
        np.testing.assert_array_equal(recording.spikes.read(start, stop), trial)


def test_what_two_readings_fit_is_asked(tmp_path: Path) -> None:
    def saved(**arrays: Any) -> Path:
        np.savez(tmp_path / "x.npz", **arrays)
        return tmp_path / "x.npz"

    trials = bits((20, 7, 30))
    asked = r"--axes [a-z,]+: .*\n.*--axes [a-z,]+: "
    for path in (
        saved(spikes=trials, bin_ms=1),
        saved(spikes=trials, bin_ms=1, trials_go=np.zeros(20)),  # 7 and 30: bins or units
        saved(spikes=bits((20, 20, 30)), bin_ms=1, trials_go=np.zeros(20)),
        saved(spikes=bits((30, 40)), bin_ms=1),
        saved(spikes=bits((30, 4000)), bin_ms=1, trials_go=np.zeros(30)),  # units, or trials
    ):
        with pytest.raises(UserError, match=asked):
            open_recording(path)
    with pytest.raises(UserError, match=r"legal are trial,time,unit|legal are unit,time,trial"):
        open_recording(saved(spikes=trials), SourceOptions(axes="time,unit"))
    with pytest.raises(UserError, match=r"10 ms by bin_size = 10.*20 ms by the steps"):
        open_recording(saved(spikes=bits((400, 5)), bin_size=10, time=np.arange(400) * 0.02))


def test_times_in_equal_steps_are_not_spikes(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", t=np.arange(100) * 0.01, frame_times=np.arange(50) * 0.02)
    with pytest.raises(UserError, match="--spikes"):
        open_recording(tmp_path / "x.npz")
    units = structs(timestamps=[t[:40] for t in np.cumsum(np.ones((3, 40)), 1)])
    savemat(tmp_path / "x.mat", {"frames": units})
    with pytest.raises(UserError, match="--spikes"):
        open_recording(tmp_path / "x.mat")
    rng = np.random.default_rng(0)
    spikes = [np.sort(rng.uniform(0, 60, 300)) for _ in range(3)]
    savemat(tmp_path / "n.mat", {"neurons": structs(timestamps=spikes, name=list("abc"))})
    assert open_recording(tmp_path / "n.mat").n_units == 3
    with pytest.raises(UserError, match="equal steps"):
        open_recording(tmp_path / "x.npz", SourceOptions(spikes="frame_times"))


def test_a_csv_table_goes_with_trials_that_are_stored_one_by_one(tmp_path: Path) -> None:
    trials = bits((12, 5, 200))
    np.savez(tmp_path / "x.npz", spikes=trials)
    (tmp_path / "t.csv").write_text("go,target\n" + "0.1,2\n" * 12)
    options = {"trials": str(tmp_path / "t.csv"), "input_bin_ms": 1, "bin_ms": 10}
    prepare(tmp_path / "x.npz", tmp_path / "o.h5", **options)
    np.testing.assert_array_equal(in_order(tmp_path / "o.h5"), summed(trials))
    (tmp_path / "t.csv").write_text("go,target\n" + "0.1,2\n" * 9)
    with pytest.raises(UserError, match="9 rows"):
        prepare(tmp_path / "x.npz", tmp_path / "p.h5", axes="trial,unit,time", **options)


def test_trials_with_other_units_are_refused(tmp_path: Path) -> None:
    rows = [bits((5 + i % 2, n)) for i, n in enumerate(LENGTHS)]
    savemat(tmp_path / "x.mat", {"dat": structs(spikes=rows, trialId=np.arange(12))})
    with pytest.raises(DataError, match="5 to 6 units"):
        open_recording(tmp_path / "x.mat", SourceOptions(axes="unit,time", input_bin_ms=1.0))


@MATLAB
def test_the_trials_of_fieldtrip(tmp_path: Path, save: Save) -> None:
    trials = bits((12, 4, 300))
    data = {
        "trial": cells(list(trials), (1, 12)),
        "time": cells([np.arange(300) / 1000 - 0.1] * 12, (1, 12)),
        "fsample": 1000.0,
        "label": cells(["a", "b", "c", "d"], (4, 1)),
    }
    path = save(tmp_path / "x.mat", {"data": data})
    prepare(path, tmp_path / "o.h5", bin_ms=10)
    np.testing.assert_array_equal(in_order(tmp_path / "o.h5"), summed(trials))
    prepare(path, tmp_path / "p.h5", bin_ms=10, align="0:-50:150")
    np.testing.assert_array_equal(in_order(tmp_path / "p.h5"), summed(trials)[:, 5:25])


def test_times_that_are_padded_with_nan(tmp_path: Path) -> None:
    padded = np.full((12, 4, 9), np.nan)
    for i, u in np.ndindex(12, 4):
        padded[i, u, : len(TIMES[i][u])] = TIMES[i][u]
    savemat(tmp_path / "m.mat", {"spikeTimes": padded.transpose(2, 1, 0), "target": TARGET})
    np.savez(tmp_path / "n.npz", spike_times=padded, target=TARGET)
    for name in ("m.mat", "n.npz"):
        prepare(tmp_path / name, tmp_path / "o.h5", bin_ms=20, overwrite=True)
        np.testing.assert_array_equal(in_order(tmp_path / "o.h5"), COUNTS)


def test_a_lag_does_not_reach_into_the_next_trial(tmp_path: Path) -> None:
    hand = [np.full((80, 2), float(i)) for i in range(12)]
    lists = [cells(trial, (4, 1)) for trial in TIMES]
    timed = structs(spikes=lists, hand=hand, hand_times=[np.arange(80) * 0.01] * 12)
    binned = structs(spikes=[bits((5, 80), seed=i) for i in range(12)], hand=hand, go=np.zeros(12))
    for dat, width in ((timed, None), (binned, 10.0)):
        savemat(tmp_path / "x.mat", {"d": dat})
        for bin_ms in (10, 5) if width is None else (10,):
            prepare(
                tmp_path / "x.mat",
                tmp_path / "o.h5",
                bin_ms=bin_ms,
                input_bin_ms=width,
                align="0:0:800",
                behavior=["hand"],
                lag_ms=100,
                overwrite=True,
            )
            values = in_order(tmp_path / "o.h5", "behavior")
            last = round(690 / bin_ms)  # the last sample is at 0.79 s
            for i, trial in enumerate(values):
                np.testing.assert_allclose(trial[:last], i, atol=1e-6)
                assert np.isnan(trial[last + 1 :]).all()


def test_a_table_that_contradicts_the_array_is_named(tmp_path: Path) -> None:
    table = {"go": np.zeros(23), "target": np.zeros(23)}
    savemat(tmp_path / "x.mat", {"spikes": bits((7, 300, 20)), "trials": table})
    with pytest.raises(UserError, match="'trials' has 23 rows, which no axis has"):
        open_recording(tmp_path / "x.mat", SourceOptions(input_bin_ms=1.0))


def test_a_table_with_a_list_of_counts_in_each_row(tmp_path: Path) -> None:
    options = {"axes": "trial", "input_bin_ms": 1, "bin_ms": 10}
    prepare(as_table_of_lists(tmp_path), tmp_path / "o.h5", **options)
    counts, lengths = in_order(tmp_path / "o.h5"), in_order(tmp_path / "o.h5", "lengths")
    for row, n, right in zip(counts, lengths, SUMS, strict=True):
        np.testing.assert_array_equal(row[:n], right[:, :1])


@MATLAB
def test_trials_with_other_numbers_of_cells_are_named(tmp_path: Path, save: Save) -> None:
    lists = [cells(trial[: 3 + i % 2], (3 + i % 2, 1)) for i, trial in enumerate(TIMES)]
    path = save(tmp_path / "x.mat", {"dat": structs(spikes=lists, trialId=np.arange(12.0))})
    with pytest.raises(DataError, match=r"'dat.spikes' holds 3 x 1 cells in some.*4 x 1 in others"):
        open_recording(path)


def test_a_struct_called_trial_data_is_no_table_of_trials(tmp_path: Path) -> None:
    dat = structs(spikes=RAGGED, bin_size=np.full(12, 0.01), idx_go=np.full(12, 20.0))
    savemat(tmp_path / "x.mat", {"trial_data": dat})
    recording = open_recording(tmp_path / "x.mat")
    assert set(recording.trials) == {"start_time", "bin_size", "idx_go"}
    np.testing.assert_allclose(recording.trials["idx_go"], 0.19)
