"""The same session in every format gives the same recording."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from scipy.io import savemat

from lfads_torch.errors import DataError, UserError
from lfads_torch.prep import SourceOptions, describe_file, open_recording
from lfads_torch.prep.sources import BinnedSpikes, Recording, SpikeTimes
from tests.prep.nwb_files import write_nwb

SPIKES = [np.array([0.1, 0.5, 1.25]), np.array([0.2]), np.array([0.3, 0.30005, 1.9, 2.5])]
TRIALS: dict[str, Any] = {
    "start_time": np.array([0.0, 1.0, 2.0]),
    "stop_time": np.array([1.0, 2.0, 3.0]),
    "go_time": np.array([0.4, np.nan, 2.4]),
    "target": np.array([2, 1, 2]),
}
HAND = np.stack([np.arange(3000) / 1000, np.ones(3000)], axis=1)


def seconds(recording: Recording) -> list[list[float]]:
    spikes = recording.spikes
    assert isinstance(spikes, SpikeTimes)
    return [
        sorted(t for times, _ in spikes.blocks(u) for t in times.tolist())
        for u in range(spikes.n_units)
    ]


def index(lists: list[np.ndarray]) -> np.ndarray:
    return np.cumsum([len(one) for one in lists])


def as_nwb(folder: Path) -> Path:
    return write_nwb(
        folder / "s.nwb",
        SPIKES,
        trials=TRIALS,
        units={"quality": ["a", "b", "a"]},
        series={"hand": HAND},
        observed=[[0.0, 3.0]],
    )


def as_npz_index(folder: Path) -> Path:
    np.savez(
        folder / "s.npz",
        spike_times=np.concatenate(SPIKES),
        spike_times_index=index(SPIKES),
        hand=HAND,
        hand_times=HAND[:, 0],
        units_quality=np.array(["a", "b", "a"]),
        **{f"trials_{k}": v for k, v in TRIALS.items()},
    )
    return folder / "s.npz"


def as_npz_objects(folder: Path) -> Path:
    spikes = np.empty(3, dtype=object)
    spikes[:] = SPIKES
    np.savez(
        folder / "s.npz",
        spikes=spikes,
        hand=HAND,
        hand_hz=1000.0,
        units_quality=np.array(["a", "b", "a"]),
        **{f"trials_{k}": v for k, v in TRIALS.items()},
    )
    return folder / "s.npz"


def as_npz_pairs(folder: Path) -> Path:
    owner = np.repeat([3, 7, 11], [len(s) for s in SPIKES])
    mixed = np.random.default_rng(0).permutation(len(owner))
    np.savez_compressed(
        folder / "s.npz",
        spike_times=np.concatenate(SPIKES)[mixed],
        spike_clusters=owner[mixed],
        hand=HAND.T,
        time=HAND[:, 0],
        units_quality=np.array(["a", "b", "a"]),
        **{f"trials/{k}": v for k, v in TRIALS.items()},
    )
    return folder / "s.npz"


def as_mat(folder: Path) -> Path:
    cells = np.empty((1, 3), dtype=object)
    cells[0, :] = SPIKES
    savemat(
        folder / "s.mat",
        {
            "spikes": cells,
            "trials": TRIALS,
            "hand": {"data": HAND, "timestamps": HAND[:, 0]},
            "units": {"quality": np.array(["a", "b", "a"], dtype=object)},
        },
    )
    return folder / "s.mat"


def as_mat_structs(folder: Path) -> Path:
    """An array of structs, one per trial, as many labs keep them."""
    kind = [(name, object) for name in TRIALS]
    structs = np.array([tuple(v[i] for v in TRIALS.values()) for i in range(3)], dtype=kind)
    units = np.array(
        [(s, q) for s, q in zip(SPIKES, "aba", strict=True)],
        dtype=[("spike_times", object), ("quality", object)],
    )
    savemat(folder / "s.mat", {"units": units, "trials": structs, "hand": HAND, "hand_rate": 1000})
    return folder / "s.mat"


def as_mat73(folder: Path) -> Path:
    """Version 7.3: HDF5 with axes in reverse and cells as references, as MATLAB writes it."""

    def text(group: Any, name: str, value: str) -> Any:
        codes = np.array([[ord(c)] for c in value], dtype=np.uint16)
        data = group.create_dataset(name, data=codes)
        data.attrs["MATLAB_class"] = np.bytes_("char")
        return data

    def numbers(group: Any, name: str, value: np.ndarray) -> Any:
        data = group.create_dataset(name, data=np.atleast_2d(value.T))
        data.attrs["MATLAB_class"] = np.bytes_("double")
        return data

    with h5py.File(folder / "s.mat", "w", userblock_size=512) as file:
        refs = file.create_group("#refs#")
        cells = [numbers(refs, f"s{i}", s[:, None]).ref for i, s in enumerate(SPIKES)]
        data = file.create_dataset("spikes", data=np.array([cells]).T, dtype=h5py.ref_dtype)
        data.attrs["MATLAB_class"] = np.bytes_("cell")
        for name, table in (("trials", TRIALS), ("hand", {"data": HAND, "rate": np.array([1e3])})):
            group = file.create_group(name)
            group.attrs["MATLAB_class"] = np.bytes_("struct")
            for key, value in table.items():
                numbers(group, key, np.asarray(value, dtype=float))
        group = file.create_group("units")
        group.attrs["MATLAB_class"] = np.bytes_("struct")
        names = [text(refs, f"q{i}", q).ref for i, q in enumerate("aba")]
        quality = group.create_dataset("quality", data=np.array([names]), dtype=h5py.ref_dtype)
        quality.attrs["MATLAB_class"] = np.bytes_("cell")
    with (folder / "s.mat").open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")
    return folder / "s.mat"


def as_hdf5_group(folder: Path) -> Path:
    with h5py.File(folder / "s.h5", "w") as file:
        for i, times in enumerate(SPIKES):
            file[f"spike_times/unit_{i:03d}"] = times
        for name, column in TRIALS.items():
            file[f"trials/{name}"] = column
        file["units/quality"] = ["a", "b", "a"]
        file["hand"] = HAND
        file["hand"].attrs["rate"] = 1000.0
    return folder / "s.h5"


def as_hdf5_table(folder: Path) -> Path:
    """Lists of variable length, and a table for the trials."""
    with h5py.File(folder / "s.h5", "w") as file:
        data = file.create_dataset("spikes", (3,), dtype=h5py.vlen_dtype(float))
        for i, times in enumerate(SPIKES):
            data[i] = times
        kind = [(k, np.asarray(v).dtype) for k, v in TRIALS.items()]
        file["trials"] = np.array(list(zip(*TRIALS.values(), strict=True)), dtype=kind)
        file["units/quality"] = ["a", "b", "a"]
        file["hand/data"], file["hand/timestamps"] = HAND, HAND[:, 0]
    return folder / "s.h5"


def as_csv(folder: Path) -> Path:
    rows = sorted((t, u) for u, times in enumerate(SPIKES) for t in times)
    lines = ["time,unit", *(f"{t!r},{u}" for t, u in ((float(a), b) for a, b in rows))]
    (folder / "s.csv").write_text("\n".join(lines))
    header = ",".join(TRIALS)
    table = [
        ",".join("" if v != v else f"{v:g}" for v in row)
        for row in zip(*TRIALS.values(), strict=True)
    ]
    (folder / "trials.csv").write_text("\n".join([header, *table]))
    return folder / "s.csv"


FORMATS = [
    as_nwb,
    as_npz_index,
    as_npz_objects,
    as_npz_pairs,
    as_mat,
    as_mat_structs,
    as_mat73,
    as_hdf5_group,
    as_hdf5_table,
    as_csv,
]


@pytest.mark.parametrize("write", FORMATS)
def test_every_format_holds_the_same_session(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    path = write(tmp_path)
    csv = path.suffix == ".csv"
    options = SourceOptions(trials=str(tmp_path / "trials.csv") if csv else None)
    recording = open_recording(path, options)
    assert seconds(recording) == [s.tolist() for s in SPIKES]
    for name, column in TRIALS.items():
        np.testing.assert_array_equal(recording.trials[name], column)
    np.testing.assert_array_equal(recording.event_times("go_time"), TRIALS["go_time"])
    if not csv:
        hand = recording.series[next(k for k in recording.series if k.endswith("hand"))]
        assert (hand.n_samples, hand.n_channels) == (3000, 2)
        np.testing.assert_allclose(hand.read(10, 20), HAND[10:20])
        assert recording.units["quality"].tolist() == ["a", "b", "a"]
    text = describe_file(path, options)
    assert "Units: 3" in text
    assert "go_time" in text
    assert "lfads prep" in text


def test_nwb_is_read_as_pynwb_reads_it(tmp_path: Path) -> None:
    import pynwb

    path = as_nwb(tmp_path)
    recording = open_recording(path)
    with pynwb.NWBHDF5IO(path, "r") as io:
        file = io.read()
        for u in range(3):
            assert seconds(recording)[u] == file.units["spike_times"][u].tolist()
        trials = file.trials.to_dataframe()
        for name in TRIALS:
            np.testing.assert_array_equal(recording.trials[name], trials[name])
        cursor = file.processing["behavior"]["cursor_pos"]["cursor"]
        expected = cursor.data[:5] * cursor.conversion + cursor.offset
    name = next(k for k in recording.series if k.endswith("cursor"))
    np.testing.assert_allclose(recording.series[name].read(0, 5), expected)
    assert recording.observed is not None
    assert recording.observed.tolist() == [[0.0, 3.0]]


COUNTS = np.arange(24, dtype=np.uint8).reshape(6, 4)  # bins x units


@pytest.mark.parametrize("axes", ["time,unit", "unit,time"])
@pytest.mark.parametrize("kind", ["npz", "h5", "mat"])
def test_binned_arrays_of_either_orientation(tmp_path: Path, kind: str, axes: str) -> None:
    array = COUNTS if axes == "time,unit" else COUNTS.T
    arrays = {"counts": array, "bin_ms": 20.0, "speed": np.arange(6.0)}
    path = tmp_path / f"x.{kind}"
    if kind == "npz":
        np.savez(path, **arrays)
    elif kind == "mat":
        savemat(path, arrays)
    else:
        with h5py.File(path, "w") as file:
            for key, value in arrays.items():
                file[key] = value
    for given in (axes, None):  # the longer axis is time
        recording = open_recording(path, SourceOptions(axes=given))
        spikes = recording.spikes
        assert isinstance(spikes, BinnedSpikes)
        assert (spikes.axes, spikes.bin_s, spikes.n_bins) == (tuple(axes.split(",")), 0.02, 6)
        np.testing.assert_array_equal(spikes.read(1, 5), COUNTS[1:5])
        assert recording.series["speed"].read(2, 4).tolist() == [[2.0], [3.0]]


def test_binned_trials_stand_one_after_another(tmp_path: Path) -> None:
    data = np.arange(2 * 5 * 3).reshape(2, 5, 3)
    arrays = {"spikes": data, "target": np.array([4, 5]), "force": data[..., 0] * 2.0}
    np.savez(tmp_path / "a.npz", **arrays)
    np.savez(tmp_path / "b.npz", **arrays | {"spikes": data.transpose(2, 1, 0)})
    for name, axes in (("a.npz", None), ("b.npz", "unit,time,trial")):
        options = SourceOptions(axes=axes, input_bin_ms=10.0)
        recording = open_recording(tmp_path / name, options)
        assert isinstance(recording.spikes, BinnedSpikes)
        assert recording.trials["target"].tolist() == [4, 5]
        starts = recording.event_times("start_time")
        assert np.diff(starts) > 0.05  # no window and no lag reaches from a trial into the next
        force = recording.series["force"]
        for trial, start in enumerate(np.round(starts / 0.01).astype(int).tolist()):
            np.testing.assert_array_equal(recording.spikes.read(start, start + 5), data[trial])
            values = force.read(start, start + 6).ravel()
            np.testing.assert_array_equal(values, [*data[trial, :, 0] * 2.0, np.nan])


def test_csv_of_bins_and_names_of_units(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("time;n1;n2;speed\n0,;1;0;5\n".replace(",", "") + "0.02;2;1;6\n0.04;0;3;7\n")
    recording = open_recording(path, SourceOptions(spikes="n*"))
    assert isinstance(recording.spikes, BinnedSpikes)
    assert recording.spikes.bin_s == pytest.approx(0.02)
    assert recording.spikes.read(0, 3).tolist() == [[1, 0], [2, 1], [0, 3]]
    assert recording.units["name"].tolist() == ["n1", "n2"]
    assert recording.series["speed"].read(0, 3).ravel().tolist() == [5, 6, 7]
    path.write_text("time,unit\n0.5,left\n0.1,right\n0.2,left\n")
    named = open_recording(path)
    assert named.units["name"].tolist() == ["left", "right"]
    assert seconds(named) == [[0.2, 0.5], [0.1]]


def test_units_of_time(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", spike_times=np.array([15000, 30001]), trials_go=np.array([30000]))
    options = SourceOptions(time_unit="samples", sampling_hz=30000)
    recording = open_recording(tmp_path / "x.npz", options)
    assert seconds(recording) == [[0.5, 30001 / 30000]]
    assert recording.event_times("go").tolist() == [1.0]
    recording = open_recording(tmp_path / "x.npz", SourceOptions(time_unit="ms"))
    assert seconds(recording) == [[15.0, 30.001]]
    with pytest.raises(UserError, match="--sampling-hz"):
        open_recording(tmp_path / "x.npz", SourceOptions(time_unit="samples"))
    with pytest.raises(UserError, match="legal are s, ms, us, ns, samples"):
        open_recording(tmp_path / "x.npz", SourceOptions(time_unit="h"))


def test_large_members_of_an_archive_are_read_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lfads_torch.prep.sources import grouping, npz

    monkeypatch.setattr(npz, "_SMALL", 0)
    monkeypatch.setattr(grouping, "_IN_MEMORY", 3)
    for write in (as_npz_index, as_npz_pairs):
        recording = open_recording(write(tmp_path))
        assert seconds(recording) == [s.tolist() for s in SPIKES]
    np.savez_compressed(tmp_path / "b.npz", counts=COUNTS, bin_ms=5.0)
    binned = open_recording(tmp_path / "b.npz", SourceOptions(axes="time,unit")).spikes
    assert isinstance(binned, BinnedSpikes)
    np.testing.assert_array_equal(binned.read(4, 6), COUNTS[4:])
    np.testing.assert_array_equal(binned.read(0, 2), COUNTS[:2])


def bad_files(folder: Path) -> dict[str, tuple[Path, str]]:
    def put(name: str, content: bytes) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    whole = as_npz_index(folder).read_bytes()
    nwb = as_nwb(folder).read_bytes()
    mat = as_mat(folder).read_bytes()
    np.savez(folder / "two.npz", a=np.zeros((3, 4)), b=np.zeros((5, 6)))
    np.savez(folder / "none.npz", spikes=np.zeros((30, 4)))
    evil = np.empty(1, dtype=object)
    evil[0] = Path("x")
    np.savez(folder / "evil.npz", spikes=evil)
    np.savez(folder / "four.npz", spikes=np.zeros((2, 2, 2, 2)))
    np.savez(folder / "index.npz", spike_times=np.zeros(3), spike_times_index=np.array([2, 9]))
    return {
        "missing": (folder / "nowhere.nwb", "does not exist"),
        "folder": (folder, "is a folder"),
        "cut npz": (put("cut.npz", whole[: len(whole) // 2]), "make or copy it again"),
        "cut nwb": (put("cut.nwb", nwb[: len(nwb) // 2]), "cut short"),
        "cut mat": (put("cut.mat", mat[: len(mat) // 2]), "make or copy it again"),
        "empty": (put("empty.h5", b""), "0 bytes"),
        "unknown": (put("x.xyz", b"abc"), "unknown format"),
        "which": (folder / "two.npz", "--spikes"),
        "bin width": (folder / "none.npz", "--input-bin-ms"),
        "code": (folder / "evil.npz", "executing code"),
        "dimensions": (folder / "four.npz", "4 dimensions"),
        "index": (folder / "index.npz", "cut short or damaged"),
        "no header": (put("h.csv", b"0.1,1\n0.2,1\n"), "no header"),
        "no numbers": (put("n.csv", b"time,unit\n0.1,1\nx,1\n"), "not numbers"),
        "short rows": (put("r.csv", b"a,b\n1,2\n3\n"), "rows"),
        "blank": (put("b.csv", b""), "is empty"),
        "no bins": (put("w.csv", b"a,b\n1,2\n3,4\n"), "--input-bin-ms"),
    }


def test_each_fault_of_a_file_is_named(tmp_path: Path) -> None:
    for what, (path, message) in bad_files(tmp_path).items():
        with pytest.raises(UserError, match=message) as caught:
            open_recording(path)
        assert len(str(caught.value)) > 20, what


def test_names_that_are_not_there(tmp_path: Path) -> None:
    path = as_npz_index(tmp_path)
    with pytest.raises(UserError, match=r"spike_tmes.*did you mean 'spike_times'"):
        open_recording(path, SourceOptions(spikes="spike_tmes"))
    with pytest.raises(UserError, match="no table 'blocks'"):
        open_recording(path, SourceOptions(trials="blocks"))
    with pytest.raises(DataError, match="one unit for each spike"):
        np.savez(tmp_path / "p.npz", spike_times=np.zeros(3), owner=np.zeros(2))
        open_recording(tmp_path / "p.npz", SourceOptions(spike_units="owner"))
    with pytest.raises(UserError, match="--axes"):
        np.savez(tmp_path / "q.npz", spikes=np.zeros((9, 3)), bin_ms=1)
        open_recording(tmp_path / "q.npz", SourceOptions(axes="time,place"))
    nwb = open_recording(as_nwb(tmp_path))
    with pytest.raises(UserError, match="no column of the trials 'gotime'"):
        nwb.event_times("gotime")
    plain = write_nwb(tmp_path / "none.nwb", [], series={"hand": HAND})
    with pytest.raises(DataError, match=r"--spikes.*hand"):
        open_recording(plain)
    with h5py.File(plain, "r+") as file:
        file["processing/behavior/hand/timestamps"][5:] += 0.0004  # no equal steps any more
    with pytest.raises(DataError, match="time for each sample"):
        open_recording(plain, SourceOptions(spikes="hand"))


def test_binned_spikes_in_an_nwb_time_series(tmp_path: Path) -> None:
    path = write_nwb(tmp_path / "b.nwb", [], series={"threshold_crossings": COUNTS}, rate=50.0)
    spikes = open_recording(path, SourceOptions(spikes="threshold_crossings")).spikes
    assert isinstance(spikes, BinnedSpikes)
    assert (spikes.bin_s, spikes.n_bins, spikes.n_units) == (0.02, 6, 4)
    np.testing.assert_array_equal(spikes.read(2, 4), COUNTS[2:4])
