"""From recordings to data files: what is written, what is reported, what is refused."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import lfads_torch
from lfads_torch.data import check_file, read_session
from lfads_torch.errors import DataError, UserError
from lfads_torch.prep import PrepOptions, bin_spikes, counting, merge_chops, prepare
from lfads_torch.prep.trials import parse_align, select_rows, whole_bins
from tests.prep.nwb_files import write_nwb

N_TRIALS, N_UNITS, LENGTH_S = 30, 6, 64.0
GO = 1.0 + 2 * np.arange(N_TRIALS) + 0.0037
ALIGN = "go_time:-200:300"
AXES = "trial,time,unit"


def spikes() -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [np.sort(rng.uniform(0, LENGTH_S, 300 * (u + 1))) for u in range(N_UNITS)]


def session(folder: Path, name: str = "s.npz", **changes: Any) -> Path:
    lists = changes.pop("spikes", None) or spikes()
    t = np.arange(round(LENGTH_S * 1000)) / 1000
    arrays = {
        "spike_times": np.concatenate(lists),
        "spike_times_index": np.cumsum([len(s) for s in lists]),
        "hand_vel": np.stack([t, -t], axis=1),
        "hand_vel_times": t,
        "trials_go_time": GO,
        "trials_target": np.arange(N_TRIALS) % 3,
        "trials_success": np.arange(N_TRIALS) != 4,
        "trials_side": np.where(np.arange(N_TRIALS) % 2, "left", "right"),
        "trials_target_split": np.where(np.arange(N_TRIALS) % 3, "train", "val"),
        "units_quality": np.array(["good", "bad"] * (N_UNITS // 2)),
    }
    np.savez(folder / name, **{k: v for k, v in (arrays | changes).items() if v is not None})
    return folder / name


def test_windows_around_an_event(tmp_path: Path) -> None:
    done = prepare(
        session(tmp_path),
        tmp_path / "o.h5",
        bin_ms=10,
        align=ALIGN,
        forward_ms=100,
        behavior=["hand_vel"],
        lag_ms=50,
        conditions=["target"],
        keep=["side"],
        select=["success=1"],
        seed=2,
        test=0.1,
    )
    assert done.trials == {"train": 20, "valid": 6, "test": 3}
    assert (done.n_read, done.n_bins, done.n_read_units, done.n_units) == (50, 60, 6, 6)
    data = read_session(tmp_path / "o.h5", ["behavior", "cond_idx", "trial", "window_start"])
    assert data.bin_ms == 10
    seen: list[int] = []
    for split in data.splits.values():
        for row in range(split.n_trials):
            trial = int(split.extras["trial"][row])
            seen.append(trial)
            assert split.extras["cond_idx"][row] == trial % 3
            start = GO[trial] - 0.2
            assert split.extras["window_start"][row] == pytest.approx(start)
            for unit in (0, 5):
                expected = bin_spikes(spikes()[unit], 0.01, start, 60)
                np.testing.assert_array_equal(split.recon_data[row, :, unit], expected)
            np.testing.assert_array_equal(split.encod_data[row], split.recon_data[row, :50])
            # The mean of the ramp's samples in a bin, 50 ms later; its first sample is up to 1 ms
            # after the bin's beginning.
            middle = start + 0.05 + 0.005 + 0.01 * np.arange(50)
            np.testing.assert_allclose(split.extras["behavior"][row, :, 0], middle, atol=1e-3)
            np.testing.assert_allclose(split.extras["behavior"][row, :, 1], -middle, atol=1e-3)
    assert sorted(seen) == [i for i in range(N_TRIALS) if i != 4]
    report = check_file(tmp_path / "o.h5")
    assert not report.errors
    with h5py.File(tmp_path / "o.h5") as file:
        assert file["train_side"].asstr()[0] in ("left", "right")
        assert file["train_encod_data"].dtype == np.uint8
        options = json.loads(file.attrs["prep_options"])
        assert options["align"] == ALIGN
        assert file.attrs["source"] == "s.npz"
        assert len(file.attrs["source_sha256"]) == 64
        assert json.loads(file.attrs["provenance"])["version"] == lfads_torch.__version__


def test_same_options_same_bytes(tmp_path: Path) -> None:
    source = session(tmp_path)
    options = PrepOptions(bin_ms=10, align=ALIGN, hold_out=2, seed=3)
    for name in ("a.h5", "b.h5"):
        prepare(source, tmp_path / name, options)
    prepare(source, tmp_path / "c.h5", options, seed=4)
    first, second, other = ((tmp_path / f"{n}.h5").read_bytes() for n in "abc")
    assert first == second != other


def test_units_that_the_model_never_sees(tmp_path: Path) -> None:
    source = session(tmp_path)
    options = PrepOptions(bin_ms=10, align=ALIGN, hold_out=1, seed=3, test=0.2)
    whole = prepare(source, None, options).arrays
    parted = prepare(source, None, options, never_seen=2).arrays
    ids, extra = parted["unit_ids"].tolist(), parted["extra_unit_ids"].tolist()
    assert len(extra) == 2 and not set(ids) & set(extra)
    assert ids[-1] == whole["unit_ids"][-1], "the same unit is held out"
    for split in ("train", "valid", "test"):
        place = {unit: k for k, unit in enumerate(whole["unit_ids"].tolist())}
        counts = whole[f"{split}_recon_data"]
        for key, units in (("recon_data", ids), ("extra_data", extra), ("encod_data", ids[:-1])):
            expected = counts[:, :, [place[unit] for unit in units]]
            np.testing.assert_array_equal(parted[f"{split}_{key}"], expected)
    assert parted["train_extra_data"].any()
    with pytest.raises(UserError, match="--never-seen 5 of 5 units"):
        prepare(source, None, options, never_seen=5)


def test_counts_that_do_not_fit_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = session(tmp_path)
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "b.npz", counts=rng.poisson(0.2, (4000, 3)), bin_ms=5.0)
    jobs = {
        "s": (source, {"bin_ms": 10, "align": ALIGN, "max_correlation": 0.5}),
        "b": (tmp_path / "b.npz", {"bin_ms": 10, "chop_ms": 500, "overlap_ms": 100}),
    }
    for name, (path, options) in jobs.items():
        prepare(path, tmp_path / f"{name}-memory.h5", **options)
    monkeypatch.setattr(counting, "IN_MEMORY", 0)
    monkeypatch.setattr(counting, "_AT_ONCE", 5000)
    names = {path.name for path in tmp_path.iterdir()}
    for name, (path, options) in jobs.items():
        # The temporary file has no name while it is used, so that no kill leaves it.
        def look(*_: object) -> None:
            new = {path.name for path in tmp_path.iterdir()} - names
            assert all("disk.h5" in name for name in new)

        prepare(path, tmp_path / f"{name}-disk.h5", **options, progress=look)
        memory, disk = ((tmp_path / f"{name}-{k}.h5").read_bytes() for k in ("memory", "disk"))
        assert memory == disk


def test_units_are_dropped_and_held_out(tmp_path: Path) -> None:
    lists = spikes()
    lists[3] = np.sort(np.concatenate([lists[5], [30.0]]))  # a copy but for one spike
    lists[0] = lists[0][lists[0] < 20]  # lost after a third of the session
    lists[1] = lists[1][:1]
    source = session(tmp_path, spikes=lists)
    done = prepare(
        source,
        tmp_path / "o.h5",
        bin_ms=10,
        align=ALIGN,
        min_rate=0.5,
        min_presence=0.6,
        max_correlation=0.5,
        hold_out=1,
    )
    with h5py.File(tmp_path / "o.h5") as file:
        units = file["unit_ids"][()]
    assert sorted(units) == [2, 4, 5] or sorted(units) == [2, 3, 4]
    assert (done.n_read_units, done.n_units) == (2, 3)
    notes = " ".join(done.notes)
    assert "1 dropped by --min-rate" in notes
    assert "1 dropped by --min-presence" in notes
    assert "1 dropped by --max-correlation" in notes
    prepare(source, tmp_path / "p.h5", bin_ms=10, align=ALIGN, units=["quality=good"])
    with h5py.File(tmp_path / "p.h5") as file:
        assert file["unit_ids"][()].tolist() == [0, 2, 4]


def test_what_an_nwb_file_says_of_splits_and_units_is_followed(tmp_path: Path) -> None:
    split = ["train"] * 20 + ["val"] * 5 + ["test"] * 3 + ["none"] * 2
    trials = {"start_time": GO - 0.5, "stop_time": GO + 1, "go_time": GO, "split": split}
    source = write_nwb(
        tmp_path / "s.nwb",
        spikes(),
        trials=trials,
        units={"heldout": [False, True, False, False, True, False]},
        observed=[[0.0, 40.0], [40.5, LENGTH_S]],
    )
    done = prepare(source, tmp_path / "o.h5", bin_ms=5, align=ALIGN)
    # the window of trial 20 begins at 40.8037 s, that of trial 19 ends at 39.3037 s
    assert done.trials == {"train": 20, "valid": 5, "test": 3}
    assert (done.n_read_units, done.n_units) == (4, 6)
    with h5py.File(tmp_path / "o.h5") as file:
        assert file["unit_ids"][()].tolist() == [0, 2, 3, 5, 1, 4]
    done = prepare(
        source, tmp_path / "p.h5", bin_ms=5, align="go_time:-900:300", split="random", hold_out=0
    )
    assert sum(done.trials.values()) == 29  # the window of trial 20 began before 40.5 s
    assert any("outside the recording" in text for text in done.warnings)
    assert done.n_read_units == 6


def test_chopped_windows_go_back_to_the_recording(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    counts = rng.poisson(0.3, (5, 2000)).astype(np.uint8)  # unit x bin
    velocity = np.cumsum(rng.normal(size=(2000, 2)), axis=0)
    np.savez(tmp_path / "c.npz", spikes=counts, time=7 + 0.02 * np.arange(2000), vel=velocity)
    done = prepare(
        tmp_path / "c.npz", tmp_path / "o.h5", chop_ms=600, overlap_ms=120, behavior=["vel"]
    )
    assert (done.n_read, done.n_units) == (30, 5)
    with h5py.File(tmp_path / "o.h5") as file:
        splits = [s for s in ("train", "valid") if f"{s}_encod_data" in file]
        starts = np.concatenate([file[f"{s}_chop_start"][()] for s in splits])
        windows = np.concatenate([file[f"{s}_recon_data"][()] for s in splits])
        behavior = np.concatenate([file[f"{s}_behavior"][()] for s in splits])
        assert file.attrs["chop_n_bins"] == 2000
        assert file.attrs["bin_ms"] == 20
        assert file.attrs["chop_first_s"] == 7
        assert file.attrs["behavior"].tolist() == ["vel 0", "vel 1"]
    np.testing.assert_array_equal(merge_chops(windows, starts, 2000), counts.T)
    np.testing.assert_allclose(merge_chops(behavior, starts, 2000), velocity, rtol=1e-5)


def test_spike_times_chopped_are_those_binned(tmp_path: Path) -> None:
    source = session(tmp_path)
    prepare(source, tmp_path / "o.h5", bin_ms=20, chop_ms=1000, overlap_ms=200)
    with h5py.File(tmp_path / "o.h5") as file:
        n_bins, first = int(file.attrs["chop_n_bins"]), float(file.attrs["chop_first_s"])
        starts = np.concatenate([file[f"{s}_chop_start"][()] for s in ("train", "valid")])
        windows = np.concatenate([file[f"{s}_recon_data"][()] for s in ("train", "valid")])
    for unit in range(N_UNITS):
        expected = bin_spikes(spikes()[unit], 0.02, first, n_bins)
        np.testing.assert_array_equal(merge_chops(windows[..., unit], starts, n_bins), expected)
        assert expected.sum() == len(spikes()[unit])


def test_binned_trials(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    data = rng.poisson(0.5, (20, 700, 4)).astype(np.uint8)
    np.savez(
        tmp_path / "t.npz",
        spikes=data,
        bin_ms=1.0,
        target=np.arange(20) % 4,
        cue=np.full(20, 0.2),
        force=data[..., :2].astype(float),
    )
    prepare(tmp_path / "t.npz", tmp_path / "whole.h5", bin_ms=10, conditions=["target"])
    prepare(
        tmp_path / "t.npz", tmp_path / "cue.h5", bin_ms=20, align="cue:-100:300", behavior=["force"]
    )
    for name, (start, n_bins, width) in {"whole": (0, 70, 10), "cue": (100, 20, 20)}.items():
        extras = ["trial"] + ["behavior"] * (name == "cue")
        for split in read_session(tmp_path / f"{name}.h5", extras).splits.values():
            for row, trial in enumerate(split.extras["trial"]):
                cut = data[trial, start : start + n_bins * width].reshape(n_bins, width, 4)
                np.testing.assert_array_equal(split.recon_data[row], cut.sum(axis=1))
                if name == "cue":
                    expected = cut[..., :2].mean(axis=1)
                    np.testing.assert_allclose(split.extras["behavior"][row], expected, rtol=1e-6)


def test_values_that_are_no_counts_and_missing_bins(tmp_path: Path) -> None:
    values = np.random.default_rng(3).gamma(2.0, size=(10, 40, 3))
    np.savez(tmp_path / "c.npz", spikes=values, bin_ms=10.0)
    prepare(tmp_path / "c.npz", tmp_path / "c.h5", bin_ms=20, axes=AXES)
    counts = np.ones((10, 40, 3))
    counts[2, 5] = np.nan
    np.savez(tmp_path / "n.npz", spikes=counts, bin_ms=10.0)
    prepare(tmp_path / "n.npz", tmp_path / "n.h5", bin_ms=20, axes=AXES)
    for name, factor in (("c", 1), ("n", 2)):
        with h5py.File(tmp_path / f"{name}.h5") as file:
            assert file["train_recon_data"].dtype == np.float32
            everything = np.concatenate([file[f"{s}_recon_data"][()] for s in ("train", "valid")])
            order = np.concatenate([file[f"{s}_trial"][()] for s in ("train", "valid")])
        source = values if name == "c" else counts
        mean = source.reshape(10, 20, 2, 3).mean(axis=2) * factor
        np.testing.assert_allclose(everything, mean[order], rtol=1e-6)
    broken = np.ones((10, 50_000, 3))
    broken[1, 7] = 0.5
    broken[3:, ::2] = 2
    np.savez(tmp_path / "b.npz", spikes=broken[:, :400], bin_ms=10.0)
    prepare(tmp_path / "b.npz", tmp_path / "b.h5", axes=AXES)  # taken for continuous values


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"spikes": [1000 * s for s in spikes()], "trials_go_time": 1000 * GO}, {}, "--time-unit"),
        ({"spikes": [s[::-1] for s in spikes()]}, {}, "do not ascend"),
        ({"spikes": [np.repeat(s, 2) for s in spikes()]}, {}, "--drop-duplicates"),
        ({"trials_go_time": np.append(GO[:-1], 500.0)}, {}, "outside the recording"),
        ({"trials_go_time": np.append(GO[:-1], np.nan)}, {}, "have no 'go_time'"),
        ({"trials_odd": np.arange(7)}, {}, "odd (7)"),
        ({}, {"align": "go_time:-900:1500"}, "--split blocks"),
        ({}, {"align": "go_time:-1500:1000"}, "1 of 30 trials lie outside"),
        ({"trials_go_time": GO + 4}, {"align": "go_time:0:1500"}, "1 of 30 trials lie outside"),
        ({}, {"align": "go_time:-900:1500", "split": "target_split"}, "overlap one of another"),
        ({"spikes": [*spikes()[:-1], np.empty(0)]}, {}, "no spike in any window"),
    ],
)
def test_what_deserves_a_second_look(
    tmp_path: Path, changes: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    source, path = session(tmp_path, **changes), tmp_path / "o.h5"
    options = {"bin_ms": 10, "align": ALIGN, **options}
    done = prepare(source, path, **options)
    assert any(message in text for text in done.warnings), done.warnings
    path.unlink()
    with pytest.raises(DataError, match=re.escape(message)):
        prepare(source, path, strict=True, **options)
    assert not path.exists()


def test_unsorted_times_and_duplicates_are_mended(tmp_path: Path) -> None:
    whole = session(tmp_path)
    mixed = session(
        tmp_path, "m.npz", spikes=[np.random.default_rng(0).permutation(s) for s in spikes()]
    )
    double = session(tmp_path, "d.npz", spikes=[np.repeat(s, 3) for s in spikes()])
    options = {"bin_ms": 10, "align": ALIGN}
    for name, source, more in (
        ("w", whole, {}),
        ("m", mixed, {}),
        ("d", double, {"drop_duplicates": True}),
    ):
        prepare(source, tmp_path / f"{name}.h5", **options, **more)
    counts = [read_session(tmp_path / f"{n}.h5").pooled["recon_data"] for n in "wmd"]
    np.testing.assert_array_equal(counts[0], counts[1])
    np.testing.assert_array_equal(counts[0], counts[2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bin_ms": None}, "--bin-ms"),
        ({"bin_ms": -1}, "--bin-ms"),
        ({"align": None}, "--align EVENT:START:STOP"),
        ({"align": "go_time"}, "legal is EVENT:START:STOP"),
        ({"align": "go_tim:-200:300"}, "did you mean 'go_time'"),
        ({"align": "side:0:300"}, "an event needs times"),
        ({"align": "go_time:-205:300"}, "take 500 or 510 ms"),
        ({"align": "go_time:300:-200"}, "after its beginning"),
        ({"align": "go_time:1e6:2e6"}, "No window"),
        ({"select": ["success"]}, "legal is COLUMN=VALUE"),
        ({"select": ["target=7"]}, "the column holds 0, 1, 2"),
        ({"select": ["target=a"]}, "holds numbers"),
        ({"select": ["side>left"]}, "one number"),
        ({"select": ["sucess=1"]}, "did you mean 'success'"),
        ({"units": ["qual=good"]}, "quality"),
        ({"behavior": ["hand_velocity"]}, "did you mean 'hand_vel'"),
        ({"keep": ["sied"]}, "did you mean 'side'"),
        ({"split": "conditions"}, "--conditions"),
        ({"split": "days"}, "no column of the trials 'days'"),
        ({"split": "side"}, "legal are train"),
        ({"valid": 1.5}, "legal are fractions"),
        ({"hold_out": 6}, "number below 6"),
        ({"hold_out": "quality"}, "yes and no"),
        ({"min_rate": 1e4}, "No unit is left"),
        ({"max_correlation": 2}, "threshold"),
        ({"max_correlation": 0.5, "correlation_ms": 3}, "whole number of bins"),
        ({"max_correlation": 0.5, "correlation_ms": 0}, "--correlation-ms is 0"),
        ({"chop_ms": 1000}, "does not go with --align"),
        ({"chop_ms": 1000, "align": None, "keep": ["x"]}, "does not go with --keep"),
        ({"chop_ms": 1000, "align": None, "conditions": ["x"]}, "does not go with --conditions"),
        ({"align": None, "chop_ms": 1005}, "take 1000 or 1010"),
        ({"align": None, "chop_ms": 1000, "forward_ms": 100}, "--forward-ms"),
        ({"align": None, "chop_ms": 1000, "overlap_ms": 1000}, "overlap"),
        ({"time_unit": "ms"}, "No window|--time-unit"),
    ],
)
def test_what_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    source = session(tmp_path)
    with pytest.raises(UserError, match=message):
        prepare(
            source, tmp_path / "o.h5", **{"bin_ms": 10, "align": ALIGN, "strict": True} | options
        )
    assert not (tmp_path / "o.h5").exists()
    assert not list(tmp_path.glob(".*"))


def test_blocks_share_no_time(tmp_path: Path) -> None:
    options = {"bin_ms": 10, "align": "go_time:-900:1500", "split": "blocks", "block": 5}
    done = prepare(session(tmp_path), tmp_path / "o.h5", strict=True, **options)
    assert sum(done.trials.values()) < N_TRIALS
    assert any("at the borders of blocks" in text for text in done.notes)
    data = read_session(tmp_path / "o.h5", ["window_start"])
    train, valid = (data.splits[s].extras["window_start"] for s in ("train", "valid"))
    assert (np.abs(train[:, None] - valid) >= 2.4 - 1e-6).all()


def test_everything_that_was_used_is_recorded(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("go,side\n5.0,a\n15.0,b\n25.0,a\n35.0,b\n,a\n")
    options = {"bin_ms": 10, "align": "go:0:200", "conditions": ["side"], "valid": 0.5}
    source, table = session(tmp_path), str(tmp_path / "t.csv")
    prepare(source, tmp_path / "o.h5", trials=table, **options)
    with h5py.File(tmp_path / "o.h5") as file:
        attrs = dict(file.attrs)
    given = json.loads(attrs["prep_options"])
    assert set(given) == set(PrepOptions.__dataclass_fields__) - {"compress", "strict"}
    assert (given["trials"], given["seed"], given["bin_ms"]) == ("t.csv", 0, 10)
    assert str(tmp_path) not in str(attrs)
    assert attrs["trials_sha256"] == hashlib.sha256(Path(table).read_bytes()).hexdigest()
    assert attrs["source_sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert "1 of 5 trials have no 'go'" in attrs["prep_notes"]
    assert json.loads(attrs["conditions"]) == [["a"], ["b"]]


def test_a_data_file_is_no_recording(tmp_path: Path) -> None:
    prepare(session(tmp_path), tmp_path / "o.h5", bin_ms=10, align=ALIGN)
    with pytest.raises(UserError, match="lfads check"):
        prepare(tmp_path / "o.h5", tmp_path / "p.h5")


def test_places_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, options = session(tmp_path), {"bin_ms": 10, "align": ALIGN}
    with pytest.raises(UserError, match=r"cannot be written: .* is not a folder"):
        prepare(source, tmp_path / "s.npz" / "o.h5", **options)
    monkeypatch.setattr(counting, "IN_MEMORY", 0)
    monkeypatch.setattr(
        "tempfile.TemporaryFile", lambda **_: (_ for _ in ()).throw(OSError(28, "No space"))
    )
    with pytest.raises(DataError, match=r"temporary file of .* GB.*another disk"):
        prepare(source, tmp_path / "o.h5", **options)


def test_files_are_not_written_over(tmp_path: Path) -> None:
    source = session(tmp_path)
    options = {"bin_ms": 10, "align": ALIGN}
    with pytest.raises(UserError, match="the source itself"):
        prepare(source, source, overwrite=True, **options)
    prepare(source, tmp_path / "o.h5", **options)
    with pytest.raises(UserError, match="--overwrite"):
        prepare(source, tmp_path / "o.h5", **options)
    prepare(source, tmp_path / "o.h5", overwrite=True, **options)


def test_rules_windows_and_widths() -> None:
    assert parse_align("a:b:-10:20.5") == ("a:b", -10.0, 20.5)
    table = {"n": np.array([1.0, 2.0, np.nan]), "s": np.array(["a", "b", "c"])}
    for rules, expected in (
        (["n>1"], [False, True, False]),
        (["n!=1"], [False, True, True]),
        (["s=a,b", "n<=1"], [True, False, False]),
        (["s != b"], [True, False, True]),
    ):
        assert select_rows(table, rules, "trials").tolist() == expected
    assert select_rows(table, [], "trials") is None
    assert whole_bins(0.3, 0.1, "x") == 3
    with pytest.raises(UserError, match="take 20 or 25 ms"):
        whole_bins(21, 5, "A window")


def test_no_trials_and_no_spikes(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", spike_times=spikes()[0])
    with pytest.raises(UserError, match=r"has no trials.*--chop-ms"):
        prepare(tmp_path / "s.npz", tmp_path / "o.h5", bin_ms=10)
    np.savez(tmp_path / "e.npz", spike_times=np.empty(0), spike_times_index=np.array([0, 0]))
    with pytest.raises(DataError, match="none of the 2 units has a spike"):
        prepare(tmp_path / "e.npz", tmp_path / "o.h5", bin_ms=10, chop_ms=100)


def test_trials_in_order_of_time_with_a_guard(tmp_path: Path) -> None:
    options = {"bin_ms": 10, "align": "go_time:0:200", "strict": True}
    source = session(tmp_path)
    done = prepare(source, tmp_path / "o.h5", split="last:20%,valid:10%", **options)
    assert sum(done.trials.values()) == N_TRIALS
    assert done.trials["test"] == round(0.2 * N_TRIALS)
    names = ["train", "valid", "test"]
    data = read_session(tmp_path / "o.h5", ["window_start"])
    train, valid, test = (data.splits[s].extras["window_start"] for s in names)
    assert train.max() < valid.min() <= valid.max() < test.min()
    guarded = prepare(
        source, tmp_path / "g.h5", split="time", valid=0.1, test=0.2, guard_ms=3_000, **options
    )
    data = read_session(tmp_path / "g.h5", ["window_start"])
    late = {s: data.splits[s].extras["window_start"] for s in names}
    assert late["train"].max() + 0.2 + 3 <= late["valid"].min()
    assert guarded.trials["test"] == done.trials["test"]
    assert any("within 3000 ms" in text for text in guarded.notes)


def test_a_recording_in_order_of_time(tmp_path: Path) -> None:
    source = session(tmp_path)
    options = {"bin_ms": 10, "chop_ms": 500, "overlap_ms": 100}
    prepare(source, tmp_path / "o.h5", split="last:25%", guard_ms=200, **options)
    with h5py.File(tmp_path / "o.h5") as file:
        train, valid = (file[f"{s}_chop_start"][()] for s in ("train", "valid"))
        assert "test_chop_start" not in file
        assert file.attrs["split_by"] == "time"
    assert train.max() + 50 + 40 <= valid.min()
    for how, message in (("random", "is for trials"), ("last:x", "no share of the recording")):
        with pytest.raises(UserError, match=message):
            prepare(source, tmp_path / "p.h5", split=how, **options)
