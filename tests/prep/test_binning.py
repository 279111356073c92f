"""Binning: no spike lost or counted twice, exact at edges."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lfads_torch.errors import DataError, UserError
from lfads_torch.prep import bin_spikes, bin_windows
from lfads_torch.prep.binning import first_bin, rebin, time_tolerance

WIDTHS = st.sampled_from([0.001, 0.004, 0.005, 0.01, 0.02, 0.05, 0.1])
# Samples of a 30 kHz clock, so that many lie on edges of bins.
SAMPLES = st.lists(st.integers(0, 30_000 * 100), max_size=60)


@given(SAMPLES, WIDTHS, st.integers(0, 2000))
@settings(max_examples=200, deadline=None)
def test_counts_are_those_of_exact_arithmetic(samples: list[int], width: float, start: int) -> None:
    """As fractions know it: bin k holds start + k w <= t < start + (k + 1) w."""
    times = np.array(samples) / 30_000
    exact, first = Fraction(str(width)), Fraction(start, 1000)
    n_bins = 200
    expected = [0] * n_bins
    for sample in samples:
        k = math.floor((Fraction(sample, 30_000) - first) / exact)
        if 0 <= k < n_bins:
            expected[k] += 1
    assert bin_spikes(times, width, start / 1000, n_bins).tolist() == expected


@given(
    st.lists(st.floats(0, 50, allow_nan=False), max_size=80),
    WIDTHS,
    st.integers(1, 9),
    st.floats(0, 10),
)
@settings(max_examples=200, deadline=None)
def test_windows_that_adjoin_share_out_all_spikes(
    times: list[float], width: float, n_bins: int, begin: float
) -> None:
    """Whatever the times: the windows together count what one window over all of them counts."""
    n_windows = 20
    starts = begin + np.arange(n_windows) * (n_bins * width)
    counts = bin_windows(times, starts, n_bins, width)
    total = sum(starts[0] - 1e-9 <= t < starts[-1] + n_bins * width - 1e-9 for t in times)
    assert counts.sum() == total
    whole = bin_windows(times, starts[:1], n_bins * n_windows, width)
    assert whole.sum() == counts.sum()


@given(st.lists(st.floats(0, 5), max_size=50), st.permutations(range(5)), st.integers(1, 49))
@settings(max_examples=100, deadline=None)
def test_order_and_pieces_do_not_matter(times: list[float], order: list[int], cut: int) -> None:
    starts = np.array([0.0, 0.7, 1.5, 0.9, 4.9])  # they overlap
    counts = bin_windows(times, starts, 10, 0.1)
    shuffled = np.random.default_rng(0).permutation(times)
    np.testing.assert_array_equal(bin_windows(shuffled, starts, 10, 0.1), counts)
    np.testing.assert_array_equal(bin_windows(times, starts[order], 10, 0.1), counts[order])
    pieces = np.zeros((5, 10), dtype=np.uint16)
    for part in (times[:cut], times[cut:]):
        bin_windows(part, starts, 10, 0.1, out=pieces)
    np.testing.assert_array_equal(pieces, counts)


def test_hand_computed() -> None:
    assert bin_spikes([0.1 + 0.2, 0.3], 0.005, 0.295, 3).tolist() == [0, 2, 0]
    assert bin_spikes([0.29], 0.005).argmax() == 58  # 0.29 / 0.005 is 57.99999999999999
    assert bin_spikes([0.0, 0.0049, 0.005, 0.01], 0.005).tolist() == [2, 1, 1]
    assert bin_spikes([-0.001, 0.0, 0.02], 0.01, 0.0, 2).tolist() == [1, 0]
    # windows in any order, overlapping, one beyond the spikes
    counts = bin_windows([1.0, 1.5, 2.0], [1.5, 0.0, 1.0, 9.0], 2, 0.5)
    assert counts.tolist() == [[1, 1], [0, 0], [1, 1], [0, 0]]
    assert bin_spikes([], 0.1).tolist() == []
    assert bin_spikes([3], 1.0).tolist() == [0, 0, 0, 1]


def test_a_float32_time_may_lie_below_its_edge_by_what_float32_resolves() -> None:
    late = np.array([1800.3], dtype=np.float32)  # stored as 1800.30004..., 0.12 ms apart
    early = np.array([1800.2999], dtype=np.float32)
    assert float(early[0]) < 1800.3 < float(late[0])
    assert bin_spikes(np.concatenate([early, late]), 0.005, 1800.3, 1).tolist() == [2]
    assert time_tolerance(1800.3, np.float32) == pytest.approx(2 * 2**-13)
    assert time_tolerance(1800.3) == time_tolerance(5, np.int64) == 1e-9


def test_long_recordings_stay_exact() -> None:
    """A day and a half of one spike per bin, each on its edge, within one chunk and across."""
    times = np.arange(26_000_000, 26_000_000 + 100_000) * 0.005
    counts = bin_spikes(times, 0.005, times[0], 100_000)
    assert (counts == 1).all()


def test_first_bin_is_the_first_that_begins_at_or_after() -> None:
    assert first_bin([0.3, 0.1 + 0.2, 0.3001, 0.0], 0.005).tolist() == [60, 60, 61, 0]
    assert first_bin([1.05], 0.05, start=1.0).tolist() == [1]


def test_rebin() -> None:
    counts = np.arange(12, dtype=np.uint8).reshape(6, 2)
    assert rebin(counts, 3).tolist() == [[6, 9], [24, 27]]
    assert rebin(np.full((2, 1), 200, np.uint8), 2).tolist() == [[400]]
    assert rebin(counts.astype(np.float32), 2, average=True)[0].tolist() == [1, 2]
    assert rebin(counts, 1) is counts


def test_what_cannot_be_binned() -> None:
    with pytest.raises(DataError, match="1 of 3 spike times are NaN"):
        bin_spikes([1.0, np.nan, 2.0], 0.1)
    with pytest.raises(DataError, match="NaN or infinite"):
        bin_spikes([1.0, np.inf], 0.1, 0.0, 3)
    with pytest.raises(DataError, match="numbers"):
        bin_spikes(["a"], 0.1)
    with pytest.raises(UserError, match="bin width"):
        bin_spikes([1.0], 0.0, 0.0, 3)
    with pytest.raises(DataError, match="time-unit"):
        bin_spikes(np.zeros(70_000), 0.1)
