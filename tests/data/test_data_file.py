"""Reading, writing and validating data files: every fault a file can have gets its own message."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lfads_torch import data as schema
from lfads_torch.data.quality import _same_trials
from lfads_torch.data.survey import Survey
from lfads_torch.errors import DataError, UserError, WriteError

RECORDINGS = Path(__file__).parents[3] / "shared" / "data"
needs_recordings = pytest.mark.skipif(
    not RECORDINGS.is_dir(), reason=f"the real recordings are not at {RECORDINGS}"
)
Arrays = dict[str, Any]


def spikes(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).poisson(1.0, shape).astype(np.uint8)


def good() -> Arrays:
    """12 + 4 + 3 trials, 10 of 12 bins and 4 of 6 channels read."""
    arrays: Arrays = {}
    for seed, (split, n) in enumerate({"train": 12, "valid": 4, "test": 3}.items()):
        recon = spikes(n, 12, 6, seed=seed)
        arrays |= {f"{split}_recon_data": recon, f"{split}_encod_data": recon[:, :10, :4]}
        arrays[f"{split}_behavior"] = np.arange(n * 24.0).reshape(n, 12, 2)
    return arrays


def write(folder: Path, arrays: Arrays, name: str = "day1.h5", **attrs: Any) -> Path:
    """Write with bare h5py, so that reading is tested against files of other programs."""
    path = folder / name
    with h5py.File(path, "w") as file:
        for key, value in arrays.items():
            file[key] = value
        file.attrs.update(attrs)
    return path


# ---- reading good files ------------------------------------------------------------------------


def test_reads_every_split_in_float32_and_holds_data_once(tmp_path: Path) -> None:
    arrays = good()
    session = schema.read_session(write(tmp_path, arrays, bin_ms=20.0), ["behavior"])
    assert (session.name, session.bin_ms) == ("day1", 20.0)
    assert list(session.splits) == ["train", "valid", "test"]
    for split, data in session.splits.items():
        assert data.encod_data.dtype == data.recon_data.dtype == np.float32
        np.testing.assert_array_equal(data.encod_data, arrays[f"{split}_encod_data"])
        np.testing.assert_array_equal(data.recon_data, arrays[f"{split}_recon_data"])
        np.testing.assert_array_equal(data.extras["behavior"], arrays[f"{split}_behavior"])
        assert np.shares_memory(data.encod_data, data.recon_data)
        assert data.ext_input is None and data.truth is None
    assert sorted(session.keys) == sorted(arrays)


@pytest.mark.parametrize("dtype", ["float64", "float16", "int64", "int8", "uint16", "bool"])
def test_any_numeric_type_is_read(tmp_path: Path, dtype: str) -> None:
    arrays = {key: np.minimum(value, 1).astype(dtype) for key, value in good().items()}
    data = schema.read_session(write(tmp_path, arrays)).splits["train"]
    assert data.recon_data.dtype == np.float32
    np.testing.assert_array_equal(data.recon_data, arrays["train_recon_data"].astype(np.float32))


def test_encod_data_of_its_own_is_kept(tmp_path: Path) -> None:
    arrays = good()
    arrays["train_encod_data"] = arrays["train_encod_data"] * 0.5
    session = schema.read_session(write(tmp_path, arrays))
    data = session.splits["train"]
    np.testing.assert_array_equal(data.encod_data, arrays["train_encod_data"])
    assert not np.shares_memory(data.encod_data, data.recon_data)
    assert any("'train_encod_data' is not the first" in w for w in schema.warnings_for(session))


def test_truth_is_divided_by_the_conversion_factor(tmp_path: Path) -> None:
    arrays = good()
    arrays |= {f"{s}_truth": arrays[f"{s}_recon_data"] * 5.0 for s in ("train", "valid")}
    arrays["conversion_factor"] = 5.0
    session = schema.read_session(write(tmp_path, arrays))
    np.testing.assert_array_equal(session.splits["valid"].truth, arrays["valid_recon_data"])
    assert session.splits["test"].truth is None
    assert session.conversion_factor == 5.0


def test_test_split_without_recon_is_unknown_beyond_what_is_read(tmp_path: Path) -> None:
    arrays = good()
    del arrays["test_recon_data"], arrays["test_behavior"]
    data = schema.read_session(write(tmp_path, arrays), ["behavior"]).splits["test"]
    assert not data.has_recon and data.recon_data.shape == (3, 12, 6)
    np.testing.assert_array_equal(data.recon_data[:, :10, :4], arrays["test_encod_data"])
    assert np.isnan(data.recon_data[:, 10:]).all() and np.isnan(data.recon_data[:, :, 4:]).all()
    assert np.isnan(data.extras["behavior"]).all()


def test_integer_batch_keys_stay_integers_and_attribute_keys_stay_as_they_are(
    tmp_path: Path,
) -> None:
    arrays = good() | {"train_cond": np.arange(12), "valid_cond": np.arange(4)}
    arrays["psth"] = np.ones((8, 12, 6), np.float16)
    path = write(tmp_path, arrays)
    with h5py.File(path, "a") as file:
        lists = file.create_dataset("train_cond_idx", 2, dtype=h5py.vlen_dtype(np.int64))
        lists[0], lists[1] = [0, 1], [2, 3, 4]
    session = schema.read_session(path, ["cond"], ["psth", "train_cond_idx"])
    assert session.splits["train"].extras["cond"].dtype == np.int64
    assert session.splits["test"].extras["cond"].tolist() == [-1, -1, -1]
    assert session.arrays["psth"].dtype == np.float16
    assert [row.tolist() for row in session.arrays["train_cond_idx"]] == [[0, 1], [2, 3, 4]]


def test_nan_is_read_as_it_is(tmp_path: Path) -> None:
    arrays = good()
    arrays["train_recon_data"] = arrays["train_recon_data"].astype(float)
    arrays["train_recon_data"][0, 0, 0] = np.nan
    arrays["train_encod_data"] = arrays["train_recon_data"][:, :10, :4]
    data = schema.read_session(write(tmp_path, arrays)).splits["train"]
    assert np.isnan(data.encod_data[0, 0, 0])
    assert np.shares_memory(data.encod_data, data.recon_data)


@pytest.mark.parametrize(
    ("attrs", "width_ms"),
    [
        ({"bin_ms": 5}, 5.0),
        ({"bin_width_ms": np.float32(20)}, 20.0),
        ({"bin_width_s": 0.01}, 10.0),
        ({"bin_ms": "twenty"}, None),
        ({"bin_ms": 0.0}, None),
        ({}, None),
    ],
)
def test_bin_width(attrs: dict[str, Any], width_ms: float | None) -> None:
    assert schema.bin_width_ms(attrs) == width_ms


# ---- structural faults -------------------------------------------------------------------------


def drop(*keys: str) -> Callable[[Arrays], None]:
    return lambda arrays: [arrays.pop(key) for key in keys] and None


def rename(old: str, new: str) -> Callable[[Arrays], None]:
    return lambda arrays: arrays.update({new: arrays.pop(old)})


def put(key: str, value: Any) -> Callable[[Arrays], None]:
    return lambda arrays: arrays.update({key: value})


INFINITE = np.where(np.arange(12 * 12 * 6).reshape(12, 12, 6) == 15, np.inf, 1.0)
FAULTS: dict[str, tuple[Callable[[Arrays], None], list[str]]] = {
    "missing": (drop("valid_recon_data"), ["required key 'valid_recon_data' is missing"]),
    "misspelt": (
        rename("train_encod_data", "train_encode_data"),
        ["'train_encod_data' is missing", "did you mean 'train_encode_data'?"],
    ),
    "2-D": (
        put("train_recon_data", np.ones((12, 12))),
        ["'train_recon_data' has 2 dimension(s), shape 12 x 12", "n_samples x n_timesteps"],
    ),
    "4-D": (put("valid_encod_data", np.ones((4, 10, 4, 1))), ["has 4 dimension(s)"]),
    "scalar": (put("valid_encod_data", 3.0), ["has 0 dimension(s), shape scalar"]),
    "no trials": (put("valid_recon_data", np.ones((0, 12, 6))), ["is empty, shape 0 x 12 x 6"]),
    "null": (put("valid_recon_data", h5py.Empty("f4")), ["'valid_recon_data' holds no data"]),
    "text": (
        put("train_recon_data", np.full((12, 12, 6), b"a")),
        ["'train_recon_data' has type |S1", "integers, floats and bools"],
    ),
    "complex": (put("train_recon_data", np.ones((12, 12, 6), complex)), ["complex128"]),
    "infinite": (
        put("train_recon_data", INFINITE),
        ["'train_recon_data' holds 1 infinite", "channels 3 (counted from 0)"],
    ),
    "beyond float32": (put("train_recon_data", INFINITE.clip(0, 1e300)), ["beyond float32"]),
    "bins disagree": (
        put("valid_encod_data", np.ones((4, 9, 4))),
        ["'train_encod_data' has 10 bins, 'valid_encod_data' 9"],
    ),
    "channels disagree": (
        put("valid_recon_data", np.ones((4, 12, 7))),
        ["'train_recon_data' has 6 channels, 'valid_recon_data' 7"],
    ),
    "test channels disagree": (
        put("test_encod_data", np.ones((3, 10, 5))),
        ["'train_encod_data' has 4 channels, 'test_encod_data' 5"],
    ),
    "recon with fewer bins": (
        put("train_recon_data", np.ones((12, 8, 6))),
        ["'train_recon_data' has fewer bins (8) than 'train_encod_data' (10)"],
    ),
    "recon with fewer channels": (
        put("valid_recon_data", np.ones((4, 12, 2))),
        ["'valid_recon_data' has fewer channels (2) than 'valid_encod_data' (4)"],
    ),
    "trials disagree": (
        put("train_recon_data", np.ones((11, 12, 6))),
        ["'train_recon_data' has 11 trials", "12"],
    ),
    "truth of another shape": (
        put("train_truth", np.ones((12, 12, 4))),
        ["'train_truth' has 12 x 4 bins x channels, 'train_recon_data' 12 x 6"],
    ),
    "ext_input in train alone": (
        put("train_ext_input", np.ones((12, 12, 1))),
        ["'train_ext_input' is there but 'valid_ext_input' is not", "'test_ext_input' is not"],
    ),
    "ext_input in valid alone": (
        put("valid_ext_input", np.ones((4, 12, 1))),
        ["'valid_ext_input' is there but 'train_ext_input' is not"],
    ),
    "ext_input disagrees": (
        lambda a: a.update(
            train_ext_input=np.ones((12, 12, 1)),
            valid_ext_input=np.ones((4, 12, 2)),
            test_ext_input=np.ones((3, 12, 1)),
        ),
        ["'train_ext_input' has 1 channels, 'valid_ext_input' 2"],
    ),
    "test without encod": (drop("test_encod_data"), ["is there without 'test_encod_data'"]),
    "conversion factor zero": (put("conversion_factor", 0.0), ["'conversion_factor'", "value 0"]),
    "conversion factor array": (
        put("conversion_factor", np.ones(6)),
        ["'conversion_factor' has shape 6"],
    ),
    "readin_weight 1-D": (put("readin_weight", np.ones(4)), ["'readin_weight' has shape 4"]),
    "readin_weight of others": (
        put("readin_weight", np.ones((9, 3))),
        ["'readin_weight' is for 9 channels, the data have 4 (read) and 6"],
    ),
    "readout_bias of others": (put("readout_bias", np.ones(9)), ["'readout_bias' is for 9"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_structural_fault_is_named(tmp_path: Path, fault: str) -> None:
    spoil, parts = FAULTS[fault]
    arrays = good()
    spoil(arrays)
    path = write(tmp_path, arrays)
    with pytest.raises(DataError) as caught:
        schema.read_session(path)
    for part in [str(path), *parts]:
        assert part in str(caught.value)
    report = schema.check_file(path)
    assert not report.ok
    if "infinite" not in parts[0] and "float32" not in parts[0]:
        assert all(part in "\n".join(report.errors) for part in parts)


def test_all_faults_are_named_at_once(tmp_path: Path) -> None:
    arrays = good()
    for fault in ("misspelt", "channels disagree", "conversion factor zero"):
        FAULTS[fault][0](arrays)
    with pytest.raises(DataError, match="3 problems") as caught:
        schema.read_session(write(tmp_path, arrays))
    assert str(caught.value).count("\n  - ") == 3


@pytest.mark.parametrize(
    ("keys", "parts"),
    [
        ({"batch_keys": ["behaviour"]}, ["'train_behaviour' is not", "did you mean 'behavior'?"]),
        ({"batch_keys": ["train_behavior"]}, ["name it without the split: 'behavior'"]),
        ({"batch_keys": ["psth"]}, ["'train_psth' is not in the file", "It has "]),
        ({"batch_keys": ["short"]}, ["'train_short' has shape 3", "12 trials"]),
        ({"batch_keys": ["uneven"]}, ["5 per trial in train, 6 in valid"]),
        ({"batch_keys": ["label"]}, ["'train_label' has type", "numbers"]),
        ({"attr_keys": ["psht"]}, ["attribute key 'psht'", "did you mean 'psth'?"]),
    ],
)
def test_faulty_request_is_named(tmp_path: Path, keys: dict[str, Any], parts: list[str]) -> None:
    arrays = good() | {
        "psth": np.ones(3),
        "train_short": np.ones(3),
        "valid_short": np.ones(4),
        "train_uneven": np.ones((12, 5)),
        "valid_uneven": np.ones((4, 6)),
        "train_label": np.full(12, b"x"),
        "valid_label": np.full(4, b"x"),
    }
    with pytest.raises(DataError) as caught:
        schema.read_session(write(tmp_path, arrays), **keys)
    for part in parts:
        assert part in str(caught.value)


# ---- files that are no data files --------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "is empty (0 bytes)"),
        (b"time,unit\n" * 99, "is not an HDF5 file."),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"MATLAB 5.0 MAT-file" + bytes(200), "`lfads prep "),
        (b"PK\x03\x04" + bytes(200), ".npz"),
    ],
)
def test_not_hdf5(tmp_path: Path, content: bytes, part: str) -> None:
    path = tmp_path / "day1.h5"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        schema.read_session(path)
    assert part in str(caught.value) and str(path) in str(caught.value)
    assert schema.check_file(path).errors == [str(caught.value)]


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.99])
def test_cut_short(tmp_path: Path, fraction: float) -> None:
    path = write(tmp_path, good())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(fraction * len(whole))])
    with pytest.raises(DataError, match="cut short"):
        schema.read_session(path)
    assert "cut short" in schema.check_file(path).errors[0]


def test_damaged_inside(tmp_path: Path) -> None:
    path = tmp_path / "day1.h5"
    arrays = good()
    with h5py.File(path, "w") as file:
        for key, value in arrays.items():
            file.create_dataset(key, data=value, compression="gzip", fletcher32=True)
        chunk = file["train_recon_data"].id.get_chunk_info(0)
    with path.open("rb+") as raw:
        raw.seek(chunk.byte_offset + 10)
        raw.write(bytes(20))
    with pytest.raises(DataError, match="damaged or cut short"):
        schema.read_session(path)
    assert "damaged" in schema.check_file(path).errors[-1]


def test_missing_file_and_folder_in_place_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        schema.read_session(tmp_path / "none.h5")
    with pytest.raises(DataError, match="is a folder"):
        schema.read_session(tmp_path)


# ---- finding files -----------------------------------------------------------------------------


def test_finds_files_sorted_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep").mkdir()
    names = ["b.h5", "a.h5", "c[1].h5", "deep/d.h5"]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "folder.h5").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    top = [tmp_path / "a.h5", tmp_path / "b.h5", tmp_path / "c[1].h5"]
    assert schema.find_sessions("*.h5") == top
    assert schema.find_sessions("~/*.h5") == top
    assert schema.find_sessions(tmp_path / "**" / "*.h5") == [*top, tmp_path / "deep" / "d.h5"]
    listed = schema.find_sessions(["b.h5", "*.h5", Path("a.h5")])
    assert listed == [tmp_path / "b.h5", tmp_path / "a.h5", tmp_path / "c[1].h5"]
    assert schema.find_sessions("c[1].h5") == [tmp_path / "c[1].h5"]


@pytest.mark.parametrize(
    ("pattern", "part"),
    [
        ("mc_maz.h5", "Did you mean 'mc_maze.h5'?"),
        ("zzz*.h5", "The folder holds mc_maze.h5."),
        ("nowhere/x.h5", "does not exist"),
        ("empty/x.h5", "holds no HDF5 files"),
        ("empty", "write 'empty/*.h5'"),
        ("*/x.h5", "No data file matches '*/x.h5'"),
        ([], "is empty"),
        ("datasets/mc_rtt-05ms-val.h5", "DANDI:000129"),
        ("datasets/mc_maze_small-05ms-val.h5", "DANDI:000140"),
        ("datasets/dmfc_rsg-05ms-val.h5", "{train,valid}_jitter"),
    ],
)
def test_no_file_matches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: Any, part: str
) -> None:
    (tmp_path / "mc_maze.h5").touch()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        schema.find_sessions(pattern)
    assert part in str(caught.value)
    assert not pattern or str(tmp_path) in str(caught.value)


# ---- warnings ----------------------------------------------------------------------------------


def warnings_of(folder: Path, arrays: Arrays) -> list[str]:
    path = write(folder, arrays)
    texts = schema.warnings_for(schema.read_session(path))
    assert [f"day1.h5: {text}" for text in schema.check_file(path).warnings] == texts
    return texts


def test_good_data_get_no_warning(tmp_path: Path) -> None:
    assert warnings_of(tmp_path, good()) == []


def test_silent_channels(tmp_path: Path) -> None:
    arrays = good()
    for key in arrays:
        if key.endswith("_data"):
            arrays[key] = arrays[key].copy()
            arrays[key][:, :, 1] = 0
            if key.startswith("train"):
                arrays[key][:, :, 3] = 0
    (message,) = warnings_of(tmp_path, arrays)
    assert "2 of 6 channels are silent in every training trial: 1, 3" in message
    assert "of these, 3 fire in valid" in message


def test_trials_without_spikes_are_not_called_duplicates(tmp_path: Path) -> None:
    arrays = good()
    for key, trial in (("train", 5), ("valid", 2)):
        for kind in ("encod", "recon"):
            arrays[f"{key}_{kind}_data"] = arrays[f"{key}_{kind}_data"].copy()
            arrays[f"{key}_{kind}_data"][trial] = 0
    first, second = warnings_of(tmp_path, arrays)
    assert "1 of 12 trials of 'train_encod_data' hold no spikes: trials 5" in first
    assert "1 of 4 trials of 'valid_encod_data' hold no spikes: trials 2" in second


def test_trials_in_both_train_and_valid(tmp_path: Path) -> None:
    arrays = good()
    for kind in ("encod", "recon"):
        arrays[f"valid_{kind}_data"] = arrays[f"valid_{kind}_data"].copy()
        arrays[f"valid_{kind}_data"][[1, 3]] = arrays[f"train_{kind}_data"][[7, 0]]
    (message,) = warnings_of(tmp_path, arrays)
    assert "2 of 4 validation trials are identical to a training trial" in message
    assert "valid trials 1, 3" in message


def test_misspelt_optional_key(tmp_path: Path) -> None:
    arrays = good() | {"train_ext_inputs": np.ones((12, 12, 1))}
    (message,) = warnings_of(tmp_path, arrays)
    assert "'train_ext_inputs' is none of the keys" in message
    assert "did you mean 'train_ext_input'?" in message


def test_external_input_longer_than_the_trial(tmp_path: Path) -> None:
    arrays = good()
    arrays |= {f"{s}_ext_input": np.ones((n, 15, 1)) for s, n in (("train", 12), ("valid", 4))}
    arrays["test_ext_input"] = np.ones((3, 15, 1))
    assert "'train_ext_input' has 15 bins" in warnings_of(tmp_path, arrays)[0]


@given(
    data=hnp.arrays(np.float32, (9, 3, 2), elements=st.sampled_from([0.0, 1.0, 2.0, np.nan])),
    pairs=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), max_size=3),
)
@settings(max_examples=60, deadline=None)
def test_shared_trials_are_those_a_plain_search_finds(
    data: np.ndarray, pairs: list[tuple[int, int]]
) -> None:
    train, valid = data[:6].copy(), data[6:].copy()
    for source, target in pairs:
        valid[target] = train[source]
    plain = [
        i
        for i, trial in enumerate(valid)
        if np.nansum(trial) > 0 and any(np.array_equal(trial, t, equal_nan=True) for t in train)
    ]
    assert schema.shared_trials(train, valid).tolist() == plain


def test_a_shared_trial_is_not_hidden_by_another_of_its_hash() -> None:
    train = np.ones((3, 3, 2), np.float32)
    train[0, 0, 1] = train[1, 1, 0] = 0
    surveys = [
        dataclasses.replace(Survey.of(trials), hashes=np.zeros(len(trials), np.uint64))
        for trials in (train, train[1:])
    ]
    assert _same_trials(train, train[1:], *surveys).tolist() == [0, 1]


# ---- `lfads check` -----------------------------------------------------------------------------


def test_report_is_a_table_with_rates_and_notes(tmp_path: Path) -> None:
    arrays = good() | {"psth": np.ones((2, 12, 6)), "note": "who and when"}
    path = write(tmp_path, arrays, bin_ms=10)
    report = schema.check_file(path)
    text = report.format()
    lines = text.splitlines()
    assert lines[0] == f"{path}  (bins of 10 ms)"
    assert lines[2].split() == ["key", "shape", "type", "mean/bin", "spikes/s", "note"]
    rate = arrays["train_recon_data"].mean()
    row = next(line for line in lines if line.startswith("train_recon_data"))
    assert row.split()[1:] == [
        *["12", "x", "12", "x", "6", "uint8"],
        f"{rate:.4g}",
        f"{100 * rate:.4g}",
        "reconstructed",
    ]
    assert "per trial (batch key 'behavior')" in text
    assert "No problems found." in text
    # Columns line up: the types of all rows begin at the same place.
    start = lines[2].index("type")
    assert all(line[start - 2 : start] == "  " for line in lines[4 : 4 + len(report.rows)])
    assert all(line == line.rstrip() for line in lines)


def test_report_without_bin_width_has_no_rates_per_second(tmp_path: Path) -> None:
    assert "spikes/s" not in schema.check_file(write(tmp_path, good())).format()


def test_report_goes_on_after_the_first_fault(tmp_path: Path) -> None:
    arrays = good()
    FAULTS["misspelt"][0](arrays)
    FAULTS["channels disagree"][0](arrays)
    arrays["train_recon_data"][:, :, 2] = 0
    report = schema.check_file(write(tmp_path, arrays))
    text = report.format()
    assert "\n2 errors\n" in text and "\n2 warnings\n" in text
    assert "silent" in report.warnings[0] and "not the first" in report.warnings[1]
    assert "train_encode_data" in text


def spoilt(values: dict[tuple[int, int, int], float]) -> Arrays:
    arrays = good()
    recon = np.ones((12, 12, 6)) * np.arange(1, 13)[:, None, None]
    for place, value in values.items():
        recon[place] = value
    return arrays | {"train_recon_data": recon, "train_encod_data": recon[:, :10, :4]}


@pytest.mark.parametrize(
    ("value", "part"),
    [(-1.0, "1 negative values in channels 5"), (0.5, "1 fractional values in channels 5")],
)
def test_faulty_counts_are_errors(tmp_path: Path, value: float, part: str) -> None:
    report = schema.check_file(write(tmp_path, spoilt({(3, 11, 5): value})))
    assert len(report.errors) == 1
    assert part in report.errors[0] and "Poisson needs whole numbers >= 0" in report.errors[0]


def test_nan_is_reported_as_missing(tmp_path: Path) -> None:
    report = schema.check_file(write(tmp_path, spoilt({(3, 11, 5): np.nan})))
    assert report.ok
    assert report.missing[0].startswith("train: 0.")


@pytest.mark.parametrize(
    ("shift", "advice"),
    [
        (-0.5, "use Gaussian or MSE."),
        (0.25, "use Gaussian or MSE or Gamma."),
        (0.0, "Gamma once the 1 zeros are made positive"),
    ],
)
def test_data_that_are_no_counts_get_advice(tmp_path: Path, shift: float, advice: str) -> None:
    values = np.random.default_rng(0).uniform(0.01, 1, (12, 12, 6))
    values[0, 0, 0] = 0
    arrays = {k: v for k, v in good().items() if "behavior" not in k}
    arrays |= {"train_recon_data": values + shift, "train_encod_data": (values + shift)[:, :10, :4]}
    report = schema.check_file(write(tmp_path, arrays))
    assert report.ok
    assert any("does not hold spike counts" in w and advice in w for w in report.warnings)


def test_report_of_a_file_with_other_keys(tmp_path: Path) -> None:
    report = schema.check_file(write(tmp_path, {"spikes": spikes(5, 6, 7)}))
    assert len(report.errors) == 1
    assert "none of the required keys" in report.errors[0] and "spikes" in report.errors[0]
    assert f"`lfads prep {report.path} --list`" in report.errors[0]
    assert report.rows[0].mean_rate is not None


# ---- writing -----------------------------------------------------------------------------------


def test_round_trip(tmp_path: Path) -> None:
    arrays = good() | {"lists": [[1, 2], [3]], "names": np.array(["a", "bc"]), "one": 3}
    path = schema.write_session(
        tmp_path / "new" / "day1.h5", arrays, {"bin_ms": 20, "run": tmp_path}, compression="gzip"
    )
    session = schema.read_session(path, ["behavior"], ["lists", "names", "one"])
    np.testing.assert_array_equal(session.splits["train"].recon_data, arrays["train_recon_data"])
    assert [row.tolist() for row in session.arrays["lists"]] == [[1, 2], [3]]
    assert session.arrays["names"].tolist() == [b"a", b"bc"]
    assert session.attrs == {"bin_ms": 20, "run": str(tmp_path)}
    assert os.listdir(path.parent) == ["day1.h5"]


def test_copies_the_rest_of_another_file(tmp_path: Path) -> None:
    source = write(tmp_path, good() | {"group/inner": np.arange(3)}, bin_ms=20, lab="A")
    path = schema.write_session(
        tmp_path / "out.h5", {"valid_behavior": np.ones(4)}, {"lab": "B"}, copy_from=source
    )
    with h5py.File(path) as new, h5py.File(source) as old:
        assert set(new) == set(old)
        assert new["valid_behavior"].shape == (4,)
        assert new["group/inner"][()].tolist() == [0, 1, 2]
        assert dict(new.attrs) == {"bin_ms": 20, "lab": "B"}


def test_failure_keeps_the_earlier_file_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = schema.write_session(tmp_path / "out.h5", {"a": np.arange(3)})
    before = path.read_bytes()
    with pytest.raises(DataError, match="cannot hold 'b'"):
        schema.write_session(path, {"a": np.arange(4), "b": [object()]})
    with pytest.raises(DataError, match="attribute 'x'"):
        schema.write_session(path, {"a": np.arange(4)}, {"x": object()})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["out.h5"]


def test_interrupted_write_leaves_nothing_behind(tmp_path: Path) -> None:
    class Interrupting:
        def __array__(self, *_: Any, **__: Any) -> np.ndarray:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        schema.write_session(tmp_path / "out.h5", {"a": np.arange(9), "b": Interrupting()})
    assert os.listdir(tmp_path) == []


def test_full_disk(tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk: writing stops midway as well."""
    pytest.importorskip("resource", reason="this system cannot limit the size of files")
    code = (
        "import resource, sys, numpy as np\n"
        "from lfads_torch.data import write_session\n"
        "from lfads_torch.errors import WriteError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))\n"
        "try:\n"
        "    write_session(sys.argv[1], {'a': np.ones(9_000), 'b': np.ones(90_000)})\n"
        "except WriteError as err:\n"
        "    print(err)\n"
    )
    path = tmp_path / "out.h5"
    path.write_bytes(b"earlier")
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
    )
    assert f"{path} cannot be written: the disk is full" in done.stdout, done.stderr
    assert os.listdir(tmp_path) == ["out.h5"]
    assert path.read_bytes() == b"earlier"


def test_folder_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match="is not a folder"):
        schema.write_session(tmp_path / "file" / "out.h5", {"a": 1})


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere"
)
def test_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(WriteError, match="is not writable"):
        schema.write_session(tmp_path / "out.h5", {"a": 1})


def test_refused_by_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(WriteError, match=f"{tmp_path} is not writable"):
        schema.write_session(tmp_path / "out.h5", {"a": 1})
    assert os.listdir(tmp_path) == []


# ---- real recordings ---------------------------------------------------------------------------


@needs_recordings
@pytest.mark.parametrize(("day", "n_silent"), [(0, 7), (95, 14)])
def test_wrist_recording(day: int, n_silent: int) -> None:
    path = RECORDINGS / f"isometric_wrist_day{day}.h5"
    report = schema.check_file(path)
    assert report.ok
    silent, overlapping, between = report.warnings
    assert f"{n_silent} of 100 channels are silent" in silent
    share = {0: "100%", 95: "99%"}[day]
    assert f"{share} of the validation windows begin with the last 6 bins of a" in overlapping
    assert "100% of the validation windows lie between two training windows" in between
    session = schema.read_session(path, ["behavior"])
    assert session.bin_ms == 20
    assert np.shares_memory(session.pooled["encod_data"], session.pooled["recon_data"])


@needs_recordings
def test_recordings_in_other_formats() -> None:
    report = schema.check_file(RECORDINGS / "delayed_reach.h5")
    assert "none of the required keys" in report.errors[0]
    # 9.84 spikes/s: the bin width stands at the data set.
    assert report.rows[0].per_second is not None
    assert report.rows[0].per_second == pytest.approx(9.84, abs=0.01)
    assert "MATLAB" in schema.check_file(RECORDINGS / "m1_center_out.mat").errors[0]
