"""Chopping a continuous recording into windows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lfads_torch.errors import DataError, UserError
from lfads_torch.prep.chop import (
    chop_recording,
    chop_starts,
    cut_windows,
    find_segments,
    plan_chops,
)
from lfads_torch.prep.merging import covered_bins, leaking_windows, merge_chops


@st.composite
def recordings(draw: st.DrawFn) -> dict[str, Any]:
    window = draw(st.integers(1, 12))
    overlap = draw(st.integers(0, window - 1))
    block = draw(st.integers(window, 4 * window))
    n_blocks = draw(st.integers(3, 8))
    return {
        "n_bins": n_blocks * block + draw(st.integers(0, block)),
        "window": window,
        "overlap": overlap,
        "block": block,
        "valid_fraction": draw(st.sampled_from([0.1, 0.3, 0.5])),
        "seed": draw(st.integers(0, 99)),
    }


@settings(max_examples=80, deadline=None)
@given(recordings())
def test_splits_are_disjoint_and_complete_and_merging_is_exact(options: dict[str, Any]) -> None:
    n_bins = options.pop("n_bins")
    rng = np.random.default_rng(0)
    series = {
        "encod_data": rng.poisson(1.0, (n_bins, 2)).astype(np.uint8),
        "position": rng.normal(size=n_bins),
    }
    arrays, attributes = chop_recording(series, **options)
    starts = {s: arrays[f"{s}_chop_start"] for s in ("train", "valid")}
    covered = [covered_bins(first, options["window"], n_bins) for first in starts.values()]
    assert (covered[0] ^ covered[1]).all()
    assert attributes["chop_uncovered"] == 0
    assert not leaking_windows(starts["valid"], starts["train"], options["window"]).any()
    for name, whole in series.items():
        chops = np.concatenate([arrays[f"{split}_{name}"] for split in starts])
        merged = merge_chops(chops, np.concatenate(list(starts.values())), n_bins)
        np.testing.assert_array_equal(merged, whole)


def test_windows_of_a_stretch_by_hand() -> None:
    assert chop_starts(0, 10, 4, 1).tolist() == [0, 3, 6]
    assert chop_starts(0, 11, 4, 1).tolist() == [0, 3, 6, 7]  # the last one is shifted back
    assert chop_starts(5, 9, 4, 1).tolist() == [5]
    assert chop_starts(5, 8, 4, 1).tolist() == []
    assert chop_starts(0, 8, 4, 0).tolist() == [0, 4]


def test_windows_hold_what_the_recording_holds() -> None:
    series = np.arange(40).reshape(20, 2)
    windows = cut_windows(series, [0, 7, 15], 5)
    assert windows.shape == (3, 5, 2)
    np.testing.assert_array_equal(windows[1], series[7:12])
    with pytest.raises(UserError, match="bins 16 to 16 do not lie in a series of 20 bins"):
        cut_windows(series, [16], 5)


def test_gaps_are_in_no_window() -> None:
    observed = np.ones(120, dtype=bool)
    observed[[0, 40, 41, 42, 110]] = False
    segments = find_segments(observed)
    assert segments.tolist() == [[1, 40], [43, 110], [111, 120]]
    plan = plan_chops(120, 10, 3, block=20, segments=segments)
    covered = covered_bins(np.concatenate(list(plan.starts.values())), 10, 120)
    # The last segment is shorter than a window.
    np.testing.assert_array_equal(covered, observed & (np.arange(120) < 110))
    assert plan.uncovered() == 5 + 9 == plan.attributes()["chop_uncovered"]
    merged = merge_chops(
        cut_windows(np.arange(120.0), np.concatenate(list(plan.starts.values())), 10),
        np.concatenate(list(plan.starts.values())),
        120,
    )
    np.testing.assert_array_equal(np.isnan(merged), ~covered)


def test_no_segment_at_all() -> None:
    assert find_segments(np.zeros(5, dtype=bool)).shape == (0, 2)
    assert find_segments(np.ones(5, dtype=bool)).tolist() == [[0, 5]]


def test_a_guard_parts_the_splits() -> None:
    plan = plan_chops(400, 10, 2, block=40, guard=3)
    train, valid = (covered_bins(plan.starts[s], 10, 400) for s in ("train", "valid"))
    for shift in range(1, 7):
        assert not (train[shift:] & valid[:-shift]).any()
        assert not (valid[shift:] & train[:-shift]).any()
    in_valid = np.isin(np.arange(10), plan.starts["valid"] // 40)
    assert plan.uncovered() == 6 * (np.diff(in_valid.astype(int)) != 0).sum()


def test_fractions_and_seeds() -> None:
    plan = plan_chops(10_000, 20, 5, block=100, valid_fraction=0.2, test_fraction=0.1, seed=3)
    amount = {split: covered_bins(s, 20, 10_000).sum() for split, s in plan.starts.items()}
    assert amount == {"train": 7000, "valid": 2000, "test": 1000}
    # One validation block in each fifth block's stretch: drift reaches all splits alike.
    assert (np.diff(np.unique(plan.starts["valid"] // 100)) < 10).all()
    again = plan_chops(10_000, 20, 5, block=100, valid_fraction=0.2, test_fraction=0.1, seed=3)
    other = plan_chops(10_000, 20, 5, block=100, valid_fraction=0.2, test_fraction=0.1, seed=4)
    for split, first in plan.starts.items():
        np.testing.assert_array_equal(first, again.starts[split])
    assert not np.array_equal(plan.starts["valid"], other.starts["valid"])


@pytest.mark.parametrize("n_bins", [60, 130, 500, 5000])
def test_the_default_block_leaves_something_for_every_split(n_bins: int) -> None:
    plan = plan_chops(n_bins, 10, 3)
    assert set(plan.starts) == {"train", "valid"}
    assert plan.uncovered() == 0
    # Windows tile it exactly, so that few bins are in two windows.
    assert (plan.block - 3) % 7 == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window is 0; legal are whole numbers >= 1"),
        ({"window": 2.5}, "window is 2.5"),
        ({"overlap": 10}, "overlap=10 bins of a window of 10; legal is 0 to 9"),
        ({"overlap": -1}, "overlap is -1"),
        ({"block": 9}, "block=9 bins do not hold a window of 10"),
        ({"block": 12, "guard": 2}, "legal is 14 or more"),
        ({"valid_fraction": 0.0}, "valid_fraction=0.0 and test_fraction=0.0"),
        ({"valid_fraction": 0.6, "test_fraction": 0.4}, "leave something for training"),
        ({"block": 100}, r"the recording has 1 block\(s\), too few .* make block smaller"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan_chops(100, **{"window": 10, "overlap": 2, **options})


@pytest.mark.parametrize(
    "segments",
    [[[0, 50], [40, 90]], [[0, 101]], [[-1, 5]], [[5, 5]], [[9, 4]], [[0.0, 5.0]], [0, 5], []],
)
def test_segments_out_of_order(segments: Any) -> None:
    with pytest.raises(DataError, match="segments"):
        plan_chops(100, 10, 2, segments=segments)


def test_recordings_that_cannot_be_chopped() -> None:
    with pytest.raises(DataError, match=r"No stretch .*holds a window of 10"):
        plan_chops(100, 10, 2, block=20, segments=[[0, 9], [20, 25]])
    with pytest.raises(DataError, match=r"'b': 9.*; legal are series with one row per bin"):
        chop_recording({"a": np.zeros(10), "b": np.zeros(9)}, 2, 0)
    for empty in ({}, {"a": np.zeros(0)}, {"a": np.float64(3)}):
        with pytest.raises(DataError, match="series with one row per bin"):
            chop_recording(empty, 2, 0)
