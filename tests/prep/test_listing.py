"""`lfads prep FILE --list`: names all that is there, never fails, proposes commands that run."""

from __future__ import annotations

import shlex
import sys
import warnings
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pynwb
import pytest
import scipy.io
import scipy.sparse
from hdmf.common import VectorData
from pynwb.epoch import TimeIntervals
from pynwb.misc import Units

from lfads_torch import cli

N_UNITS, STARTS = 8, 1 + 2.0 * np.arange(60)


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr("warnings.showwarning", warnings.showwarning)


def spikes(n_units: int = N_UNITS) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [np.sort(rng.uniform(0, 130, 400 + 30 * u)) for u in range(n_units)]


def units(name: str, n_units: int, *, times: bool = True) -> Units:
    columns = None if times else [VectorData(name="depth", description="d", data=[1.0] * n_units)]
    table = Units(name=name, description="d", columns=columns)
    for one in spikes(n_units) if times else ():
        table.add_unit(spike_times=one)
    return table


def intervals(name: str, starts: Any, **columns: Any) -> TimeIntervals:
    table = TimeIntervals(name=name, description="d")
    for key in columns:
        table.add_column(key, key)
    for row, start in enumerate(starts):
        more = {key: column[row] for key, column in columns.items()}
        table.add_interval(start_time=start, stop_time=start + 1.0, **more)
    return table


def new_nwb() -> pynwb.NWBFile:
    return pynwb.NWBFile("x", "id", datetime(2024, 1, 1, tzinfo=UTC))


def save(file: pynwb.NWBFile) -> None:
    with pynwb.NWBHDF5IO("s.nwb", "w") as io:
        io.write(file)


# ---- files, each with what the list of it must name ----------------------------------------------


def nwb_tables_of_intervals() -> list[str]:
    file = new_nwb()
    for one in spikes():
        file.add_unit(spike_times=one)
    for name in ("flashes_presentations", "gratings_presentations"):
        file.add_time_intervals(intervals(name, STARTS[:30], orientation=np.arange(30) % 4 * 45.0))
    save(file)
    return [
        "flashes_presentations (30 rows)",
        "gratings_presentations (30 rows)",
        "orientation",
        "--trials gratings_presentations --bin-ms 20 --align start_time:0:1000 "
        "--conditions orientation",
    ]


def nwb_epochs_and_tables_of_modules() -> list[str]:
    if not hasattr(pynwb, "event"):
        pytest.skip("tables of events came with a later pynwb")
    file = new_nwb()
    for one in spikes():
        file.add_unit(spike_times=one)
    for start in STARTS[:40]:
        file.add_epoch(start_time=start, stop_time=start + 0.5, tags=["a", "b"])
    module = file.create_processing_module("behavior", "b")
    module.add(intervals("reaches", STARTS, hand=["left", "right"] * 30))
    table = pynwb.event.EventsTable(name="licks", description="d")
    for start in STARTS[5:]:
        table.add_row(timestamp=start)
    file.add_events_table(table)
    module.add(pynwb.TimeSeries(name="hand_vel", data=np.zeros((2600, 2)), unit="m/s", rate=20.0))
    save(file)
    return [
        "epochs (40 rows)",
        "epochs.tags",
        "several values per row (80 in all)",
        "processing.behavior.reaches (60 rows)",
        "events.licks (55 rows)",
        "--behavior processing.behavior.hand_vel",
        "20 samples/s  0 to 129.95 s",
    ]


def nwb_units_of_a_module() -> list[str]:
    file = new_nwb()
    file.create_processing_module("ecephys", "e").add(units("units", 8))
    for start in STARTS:
        file.add_trial(start_time=start, stop_time=start + 2)
    save(file)
    return ["Units: 8", "processing.ecephys.units", "Trials: 60", "start_time:0:1000"]


def nwb_several_tables_of_units() -> list[str]:
    file = new_nwb()
    file.units = units("units", 5)
    module = file.create_processing_module("sorting", "e")
    module.add(units("ks", 8))
    module.add(units("only_depths", 4, times=False))
    for start in STARTS:
        file.add_trial(start_time=start, stop_time=start + 2)
    save(file)
    return [
        "processing.sorting.ks (8 units), units (5 units)",
        "processing.sorting.only_depths",
        "--spikes units --bin-ms",
        "--spikes processing.sorting.ks --bin-ms",
    ]


def nwb_without_units() -> list[str]:
    from pynwb.ophys import Fluorescence, ImageSegmentation, OpticalChannel, RoiResponseSeries

    file = new_nwb()
    device, module = file.create_device("scope"), file.create_processing_module("ophys", "o")
    plane = file.create_imaging_plane(
        name="plane",
        optical_channel=OpticalChannel(name="c", description="d", emission_lambda=500.0),
        description="d",
        device=device,
        excitation_lambda=600.0,
        indicator="g",
        location="V1",
    )
    masks = ImageSegmentation()
    module.add(masks)
    cells = masks.create_plane_segmentation(name="cells", description="d", imaging_plane=plane)
    for _ in range(5):
        cells.add_roi(image_mask=np.zeros((6, 6)))
    region = cells.create_roi_table_region(region=list(range(5)), description="r")
    values = np.random.default_rng(0).normal(size=(4000, 5))
    trace = RoiResponseSeries(name="dff", data=values, rois=region, unit="a", rate=30.0)
    module.add(Fluorescence(roi_response_series=trace))
    movie = pynwb.TimeSeries(name="movie", data=np.zeros((10, 4, 4)), unit="a", rate=10.0)
    file.add_acquisition(movie)
    for start in STARTS:
        file.add_trial(start_time=start, stop_time=start + 2)
    save(file)
    return ["RoiResponseSeries", "4000 x 5", "6 x 6 values per row", "10 x 4 x 4: images"]


def mat_nested() -> list[str]:
    arrays = {
        "deep": {"inner": {"spike_times": np.array([*spikes(3), None], dtype=object)[:3]}},
        "counts": scipy.sparse.random(12, 900, 0.1, format="csc", random_state=1),
        "mixed": np.array([np.zeros((2, 3)), "word", {"field": 7.0}], dtype=object),
        "structs": np.array([(1.0, "a"), (2.0, "b")], dtype=[("n", "O"), ("name", "O")]),
        "note": "hello",
    }
    scipy.io.savemat("s.mat", arrays)
    return [
        "deep.inner.spike_times",
        "counts",
        "sparse",
        "12 x 900",
        "mixed",
        "structs.n",
        "note",
    ]


def mat73() -> list[str]:
    with h5py.File("s.mat", "w", userblock_size=512) as file:
        refs = file.create_group("#refs#")
        cells = file.create_dataset("spikes", (3, 1), h5py.ref_dtype)
        cells.attrs["MATLAB_class"] = b"cell"
        for i, one in enumerate(spikes(3)):
            refs[str(i)] = one[:, None]
            refs[str(i)].attrs["MATLAB_class"] = b"double"
            cells[i, 0] = refs[str(i)].ref
        sparse = scipy.sparse.random(12, 900, 0.1, format="csc", random_state=1)
        group = file.create_group("lfp_mask")
        group.attrs.update({"MATLAB_class": b"double", "MATLAB_sparse": np.uint64(12)})
        group["data"], group["ir"], group["jc"] = sparse.data, sparse.indices, sparse.indptr
        file["T"] = np.array([[0xDD000000, 2, 1, 1, 1, 1]], dtype=np.uint32)
        file["T"].attrs.update({"MATLAB_class": b"table", "MATLAB_object_decode": np.int32(3)})
        file["session/info/depths"] = np.arange(7.0)[None]
        file["session"].attrs["MATLAB_class"] = b"struct"
    return [
        "Units: 3",
        "lfp_mask",
        "12 x 900",
        "table2struct",
        "session.info.depths",
        "0 to 6",
    ]


def npz_with_objects() -> list[str]:
    arrays: dict[str, Any] = {
        "spike_times": np.concatenate(spikes()),
        "spike_times_index": np.cumsum([len(s) for s in spikes()]),
        "settings": np.array({"rate": 30000, "when": np.arange(3)}, dtype=object),
        "when": np.array([datetime(2024, 1, 1), None], dtype=object),
        "trials_go_time": STARTS,
        "emg": np.zeros((77, 3)),
    }
    np.savez("s.npz", **arrays)
    return ["settings", "rate, when", "datetime.datetime", "not opened", "emg  "]


def npz_with_a_damaged_member() -> list[str]:
    np.savez_compressed("s.npz", spike_times=np.arange(0, 100, 0.1), cut=np.arange(9e5), note="x")
    whole = bytearray(Path("s.npz").read_bytes())
    with zipfile.ZipFile("s.npz") as archive:
        offset = archive.getinfo("cut.npy").header_offset
    whole[offset + 200 : offset + 1200] = bytes(1000)
    Path("s.npz").write_bytes(whole)
    return ["spike_times", "cut", "damaged", "note"]


def npz_with_a_time_that_is_nan() -> list[str]:
    times = np.concatenate([spikes()[0], [np.nan], spikes()[1]])
    np.savez("s.npz", spike_times=times, unit=np.repeat([0, 1], [400, len(times) - 400]))
    return ["1 missing", "Not clear yet: unit 1: 1 spike times are NaN or infinite"]


def hdf5_of_all_kinds() -> list[str]:
    with h5py.File("s.h5", "w") as file:
        for i, one in enumerate(spikes(4)):
            file[f"data/spike_times/unit_{i}"] = one
        table = np.zeros(30, dtype=[("go_time", float), ("target", "S5")])
        table["go_time"], table["target"] = STARTS[:30], [b"left", b"right"] * 15
        file["trials"] = table
        file["elsewhere"] = h5py.ExternalLink("gone.h5", "/x")
        csc = scipy.sparse.random(9, 50, 0.2, format="csc", random_state=1)
        file["X/data"], file["X/indices"], file["X/indptr"] = csc.data, csc.indices, csc.indptr
        file["X"].attrs["shape"] = (9, 50)
        file["pickle"] = np.void(b"\x80\x04anything")
        ragged = file.create_dataset("licks", (3,), h5py.vlen_dtype(np.float32))
        ragged[:] = [np.arange(n, dtype=np.float32) for n in (1, 2, 3)]
        file["who"] = "monkey J"
    return [
        "go_time",
        "left (15), right (15)",
        "elsewhere",
        "a link to what is not there",
        "9 x 50",
        "pickle",
        "3 of float32",
        "monkey J",
        "--align go_time",
    ]


def hdf5_tables_of_groups() -> list[str]:
    with h5py.File("s.h5", "w") as file:
        for i, one in enumerate(spikes(4)):
            file[f"spike_times/unit_{i}"] = one
        for name in ("flashes", "sounds"):
            file[f"stimuli/{name}/start_time"] = STARTS[:40]
            file[f"stimuli/{name}/direction"] = np.arange(40) % 4
        file["stimuli/rate"] = 60.0
    return [
        "stimuli.flashes (40 rows)",
        "stimuli.sounds (40 rows)",
        "--trials stimuli.flashes --bin-ms 20 --align start_time:0:1000 --conditions direction",
    ]


def npz_tables_by_names() -> list[str]:
    arrays: dict[str, Any] = {
        "spike_times": np.concatenate(spikes()),
        "spike_clusters": np.repeat(np.arange(N_UNITS), [len(one) for one in spikes()]),
        "reach_onset": STARTS[:50],
        "reach_direction": np.arange(50) % 5,
        "rest_onset": STARTS[50:] + 0.3,
    }
    np.savez("s.npz", **arrays)
    return ["reach (50 rows)", "rest (10 rows)", "--trials reach --bin-ms 20 --align onset:"]


def hdf5_unclear() -> list[str]:
    rng = np.random.default_rng(0)
    with h5py.File("s.h5", "w") as file:
        file["first"] = rng.poisson(0.3, (40, 100, 12))
        file["second"] = rng.poisson(0.3, (40, 100, 9))
        file.attrs["bin_ms"] = 10
    return ["--spikes first", "--spikes second", "40 x 100 x 12"]


def csv_of_rates() -> list[str]:
    Path("s.csv").write_text("a;b;label\n1;2;x\n3;4;y\n")
    return ["a", "2 rows", "label", "x, y"]


def nwb_trials_of_a_module() -> list[str]:
    file = new_nwb()
    for one in spikes():
        file.add_unit(spike_times=one)
    module = file.create_processing_module("behavior", "b")
    module.add(intervals("trials", STARTS, cue=["a", "b"] * 30))
    save(file)
    return ["trials: the table 'processing.behavior.trials'", "Trials: 60", "--conditions cue"]


def nwb_of_nothing() -> list[str]:
    save(new_nwb())
    return ["The file holds:\n  nothing", "no units with spike times"]


def hdf5_of_nothing() -> list[str]:
    h5py.File("s.h5", "w").close()
    return ["The file holds:\n  nothing"]


def folder_of_a_sorter() -> list[str]:
    folder = Path("sorted")
    folder.mkdir()
    order = np.argsort(np.concatenate(spikes()))
    times = np.round(np.concatenate(spikes())[order] * 30000).astype(np.uint64)
    owner = np.repeat(np.arange(N_UNITS), [len(one) for one in spikes()])[order]
    np.save(folder / "spike_times.npy", times)
    np.save(folder / "spike_clusters.npy", owner)
    np.save(folder / "templates.npy", np.zeros((N_UNITS, 61, 4), dtype=np.float32))
    (folder / "params.py").write_text("sample_rate = 30000.0\n")
    groups = [f"{u}\tgood" for u in range(N_UNITS)]
    (folder / "cluster_group.tsv").write_text("\n".join(["cluster_id\tgroup", *groups]))
    return ["Units: 8", "templates.npy", "8 x 61 x 4", "cluster_group.tsv: group", "--chop-ms"]


FILES = [
    nwb_trials_of_a_module,
    nwb_of_nothing,
    hdf5_of_nothing,
    folder_of_a_sorter,
    nwb_tables_of_intervals,
    nwb_epochs_and_tables_of_modules,
    nwb_units_of_a_module,
    nwb_several_tables_of_units,
    nwb_without_units,
    mat_nested,
    mat73,
    npz_with_objects,
    npz_with_a_damaged_member,
    npz_with_a_time_that_is_nan,
    hdf5_of_all_kinds,
    hdf5_tables_of_groups,
    npz_tables_by_names,
    hdf5_unclear,
    csv_of_rates,
]
NO_COMMAND = (npz_with_a_time_that_is_nan, csv_of_rates, nwb_of_nothing, hdf5_of_nothing)


@pytest.mark.parametrize("write", FILES, ids=lambda write: write.__name__)
def test_all_is_listed_and_the_commands_run(
    capsys: pytest.CaptureFixture[str], write: Callable[[], list[str]]
) -> None:
    parts = write()
    (path,) = Path().iterdir()
    assert cli.main(["prep", str(path), "--list"]) == 0
    text = capsys.readouterr().out
    for part in parts:
        assert part in text, text
    commands = [shlex.split(line) for line in text.splitlines() if line.startswith("  lfads prep ")]
    assert bool(commands) == (write not in NO_COMMAND), text
    for command in commands:
        assert "--list" not in command
        assert cli.main(command[1:]) == 0, (command, capsys.readouterr().err)
        assert Path(command[command.index("-o") + 1]).is_file()


def test_errors_name_the_tables(capsys: pytest.CaptureFixture[str]) -> None:
    nwb_tables_of_intervals()
    command = ["prep", "s.nwb", "-o", "o.h5", "--bin-ms", "20", "--align", "start_time:0:1000"]
    for more in ([], ["--trials", "gratings"]):
        assert cli.main([*command, *more]) == 2
        error = capsys.readouterr().err
        assert "flashes_presentations" in error and "gratings_presentations" in error
    assert cli.main([*command, "--trials", "flashes_presentations"]) == 0
    with h5py.File("o.h5") as file:
        n_trials = len(file["train_encod_data"]) + len(file["valid_encod_data"])
        counts = {split: file[f"{split}_encod_data"][()] for split in ("train", "valid")}
        starts = {split: file[f"{split}_window_start"][()] for split in ("train", "valid")}
    assert n_trials == 30
    for split, windows in starts.items():
        for row, start in enumerate(windows):
            for unit, times in enumerate(spikes()):
                inside = np.histogram(times, start + np.arange(51) * 0.02)[0]
                np.testing.assert_array_equal(counts[split][row, :, unit], inside)


def test_units_of_a_module_count_as_those_at_the_top(capsys: pytest.CaptureFixture[str]) -> None:
    nwb_several_tables_of_units()
    command = ["prep", "s.nwb", "--bin-ms", "20", "--align", "start_time:0:1000"]
    assert cli.main(command) == 2
    error = capsys.readouterr().err
    assert "processing.sorting.ks (8 units), units (5 units)" in error and "--spikes" in error
    assert cli.main([*command, "--spikes", "nothing"]) == 2
    assert "processing.sorting.ks" in capsys.readouterr().err
    for name, n_units in (("units", 5), ("processing.sorting.ks", 8), ("ks", 8)):
        assert cli.main([*command, "-o", "o.h5", "--overwrite", "--spikes", name]) == 0
        with h5py.File("o.h5") as file:
            total = sum(int(file[f"{s}_encod_data"][()].sum()) for s in ("train", "valid"))
            assert file["train_encod_data"].shape[1:] == (50, n_units)
        windows = [(times >= a) & (times < a + 1) for times in spikes(n_units) for a in STARTS]
        assert total == sum(int(inside.sum()) for inside in windows)


def test_a_name_is_looked_for_in_the_whole_file(capsys: pytest.CaptureFixture[str]) -> None:
    npz_with_objects()
    command = ["prep", "s.npz", "--bin-ms", "20", "--align", "go_time:0:500"]
    for option, name, reason in (
        ("--behavior", "emg", "77 x 3"),
        ("--behavior", "settings", "dict  rate, when"),
        ("--conditions", "when", "not opened"),
    ):
        assert cli.main([*command, option, name]) == 2
        error = capsys.readouterr().err
        assert f"in the file: {name}" in error and reason in error


def test_a_file_that_cannot_be_opened_is_no_list(capsys: pytest.CaptureFixture[str]) -> None:
    Path("s.nwb").write_bytes(b"no HDF5")
    assert cli.main(["prep", "s.nwb", "--list"]) == 2
    assert "not an HDF5 file" in (error := capsys.readouterr().err) and "--list" not in error


def test_what_has_to_be_chosen_is_chosen_together_with_list(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "binned.npz"
    np.savez(path, spikes=np.random.default_rng(0).poisson(0.3, (60, 50, 12)))
    assert cli.main(["prep", str(path), "--list"]) == 0
    listed = capsys.readouterr().out
    assert "--axes trial,time,unit" in listed
    assert "Give --list again, with the option that is right" in listed
    assert "No command is known" not in listed
