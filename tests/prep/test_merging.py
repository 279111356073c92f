"""Joining overlapping windows, as arrays and as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lfads_torch.data import DataWarning, write_session
from lfads_torch.errors import DataError, UserError
from lfads_torch.prep.chop import chop_recording
from lfads_torch.prep.merging import leaking_windows, merge_chops, merge_file, merge_weights


@given(st.integers(0, 200))
def test_weights_sum_to_one(overlap: int) -> None:
    earlier, later = merge_weights(overlap)
    assert len(earlier) == len(later) == overlap
    np.testing.assert_allclose(earlier + later, 1)
    assert (np.diff(later) >= 0).all()


def test_weights_by_hand() -> None:
    np.testing.assert_allclose(merge_weights(4)[1], np.array([1 / 4, 5 / 12, 7 / 12, 3 / 4]) ** 2)
    np.testing.assert_allclose(merge_weights(2)[0], [0.75, 0.75])


def test_two_windows_by_hand() -> None:
    merged = merge_chops(np.array([[1.0] * 4, [5.0] * 4]), np.array([1, 3]), 8)
    np.testing.assert_allclose(merged, [np.nan, 1, 1, 1 + 4 / 4, 1 + 4 / 4, 5, 5, np.nan])


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 8), st.integers(0, 5), st.randoms(use_true_random=False))
def test_what_is_merged_lies_between_the_windows(window: int, extra: int, random: Any) -> None:
    """Weights are convex also where three and more windows overlap, and order does not matter."""
    n_bins = window + extra
    starts = np.array([random.randrange(0, extra + 1) for _ in range(6)])
    chops = np.array([[random.uniform(-1, 1) for _ in range(window)] for _ in range(6)])
    merged = merge_chops(chops, starts, n_bins)
    for t in range(n_bins):
        values = [chops[i, t - s] for i, s in enumerate(starts) if s <= t < s + window]
        assert np.isnan(merged[t]) == (not values)
        assert not values or min(values) - 1e-12 <= merged[t] <= max(values) + 1e-12
    if len(set(starts)) == len(starts):
        shuffled = np.random.default_rng(0).permutation(6)
        np.testing.assert_array_equal(
            merge_chops(chops[shuffled], starts[shuffled], n_bins), merged
        )


def test_missing_values_do_not_spread() -> None:
    chops = np.array([[[1.0], [np.nan], [1.0], [np.nan]], [[3.0], [3.0], [np.nan], [3.0]]])
    merged = merge_chops(chops, np.array([0, 1]), 5)[:, 0]
    assert np.isnan(merged[3])  # in neither
    np.testing.assert_array_equal(merged[[0, 1, 2, 4]], [1, 3, 1 + 2 / 4, 3])


def test_infinite_values_that_agree() -> None:
    merged = merge_chops(np.array([[0, np.inf], [np.inf, 0]]), np.array([0, 1]), 3)
    np.testing.assert_array_equal(merged, [0, np.inf, 0])


@pytest.mark.parametrize(
    ("kind", "merged_kind"),
    [("uint8", "float32"), ("int64", "float64"), ("float32", "float32"), ("bool", "float32")],
)
def test_types(kind: str, merged_kind: str) -> None:
    assert merge_chops(np.ones((2, 3, 4), kind), np.array([0, 2]), 6).dtype == merged_kind


@pytest.mark.parametrize(
    ("starts", "message"),
    [
        ([0.0, 1.0], "whole number for each window"),
        ([0], "whole number for each window"),
        ([-1, 2], "they do not lie in a recording of 6 bins"),
        ([0, 4], "they do not lie in a recording of 6 bins"),
    ],
)
def test_starts_that_do_not_fit(starts: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        merge_chops(np.zeros((2, 3, 1)), np.array(starts), 6)


def test_no_window() -> None:
    assert np.isnan(merge_chops(np.zeros((0, 3, 2)), np.zeros(0, int), 5)).all()


def test_leaks() -> None:
    train, valid = np.array([0, 10, 40]), np.array([4, 5, 15, 30, 46])
    assert leaking_windows(valid, train, 5).tolist() == [
        True,
        False,
        False,
        False,
        False,
    ]
    assert leaking_windows(valid, train, 7).tolist() == [
        True,
        True,
        True,
        False,
        True,
    ]


# Files --------------------------------------------------------------------------------------------


@pytest.fixture
def chopped(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    spikes = rng.poisson(0.5, (300, 5)).astype(np.uint8)
    series = {
        "encod_data": spikes[:, :3],
        "recon_data": spikes,
        "speed": rng.normal(size=300),
        "hand": rng.normal(size=(300, 2)).astype(np.float32),
    }
    arrays, attributes = chop_recording(series, 10, 4, segments=[[0, 140], [150, 300]])
    for split in ("train", "valid"):
        n = len(arrays[f"{split}_chop_start"])
        arrays[f"{split}_ic_mean"] = rng.normal(size=(n, 10))  # no series, whatever its length
        arrays[f"{split}_tensor"] = rng.normal(size=(n, 3, 3))
        arrays[f"{split}_name"] = np.array(["a"] * n)
        arrays[f"{split}_output_params"] = arrays[f"{split}_recon_data"] * 0.5
    return write_session(tmp_path / "m1.h5", arrays, {**attributes, "bin_ms": 50.0}), series


def test_a_file_and_back(chopped: tuple[Path, dict[str, np.ndarray]]) -> None:
    path, series = chopped
    merged = merge_file(path)
    assert merged == path.with_name("m1_merged.h5")
    with h5py.File(merged) as file:
        assert set(file) == {*series, "output_params", "split"}
        gap = np.isin(np.arange(300), np.arange(140, 150))
        for name, whole in series.items():
            joined = file[name][()]
            np.testing.assert_array_equal(joined[~gap], whole[~gap])
            assert np.isnan(joined[gap]).all()
        np.testing.assert_array_equal(file["output_params"][~gap], series["recon_data"][~gap] / 2)
        split = file["split"][()]
        np.testing.assert_array_equal(split == -1, gap)
        assert set(np.unique(split)) == {-1, 0, 1}
        assert file.attrs["bin_ms"] == 50.0
        assert file.attrs["merged_from"] == str(path)
        assert list(file.attrs["split_names"]) == ["train", "valid", "test"]


def test_some_series(chopped: tuple[Path, dict[str, np.ndarray]], tmp_path: Path) -> None:
    path, _ = chopped
    merged = merge_file(path, tmp_path / "deep" / "hand.h5", only=["hand"])
    with h5py.File(merged) as file:
        assert set(file) == {"hand", "split"}
    with pytest.raises(UserError, match=r"no series 'hands' to merge; did you mean 'hand'\?"):
        merge_file(path, only=["hands"])
    with pytest.raises(UserError, match="no series 'ic_mean'"):
        merge_file(path, only=["ic_mean"])
    with pytest.raises(UserError, match="would overwrite"):
        merge_file(path, path)


def numbered(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """Windows cut elsewhere, every fifth for validation, so that windows of both overlap."""
    x = np.random.default_rng(0).poisson(0.5, (246, 4)).astype(np.float32)
    windows = np.stack([x[i * 24 : i * 24 + 30] for i in range(10)])
    is_valid = np.arange(10) % 5 == 2
    arrays: dict[str, Any] = {}
    for split, chosen in (("train", ~is_valid), ("valid", is_valid)):
        arrays[f"{split}_encod_data"] = arrays[f"{split}_recon_data"] = windows[chosen]
        arrays[f"{split}_inds"] = np.flatnonzero(chosen)
    return write_session(tmp_path / "wrist.h5", arrays), x


def test_windows_cut_elsewhere(tmp_path: Path) -> None:
    path, x = numbered(tmp_path)
    with pytest.warns(DataWarning, match=r"wrist.h5: 2 of 2 validation windows share bins"):
        merged = merge_file(path, positions="inds", overlap=6)
    with h5py.File(merged) as file:
        np.testing.assert_array_equal(file["encod_data"][()], x)
        assert (file["split"][()] == 1).sum() == 2 * 18  # shared bins count as train


def test_what_is_refused(tmp_path: Path) -> None:
    path, _ = numbered(tmp_path)
    with pytest.raises(DataError, match=r"does not say where .*--positions.*train_inds"):
        merge_file(path)
    with pytest.raises(DataError, match=r"no 'train_ind'; did you mean 'train_inds'"):
        merge_file(path, positions="ind", overlap=6)
    with pytest.raises(UserError, match="belong together"):
        merge_file(path, positions="inds")
    with pytest.raises(UserError, match="overlap=30 bins of a window of 30; legal is 0 to 29"):
        merge_file(path, positions="inds", overlap=30)
    with pytest.raises(DataError, match=r"'train_encod_data' must hold a whole number"):
        merge_file(path, positions="encod_data", overlap=6)
    with pytest.raises(DataError, match="does not exist"):
        merge_file(tmp_path / "none.h5")
    empty = write_session(tmp_path / "empty.h5", {"train_chop_start": np.arange(3)})
    with pytest.raises(DataError, match="holds no windows"):
        merge_file(empty)
