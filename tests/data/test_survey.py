"""One pass over an array shows what plain definitions say, in memory, in blocks and with ends."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lfads_torch.data import Survey
from lfads_torch.data.survey import bin_hashes

VALUES = st.sampled_from([0.0, -0.0, 1.0, 2.5, -1.0, np.nan, np.inf, -np.inf])
ARRAYS = hnp.arrays(np.float32, (4, 5, 3), elements=VALUES)


@given(array=ARRAYS, lengths=st.none() | st.lists(st.integers(0, 5), min_size=4, max_size=4))
def test_counts_are_those_of_plain_definitions(
    array: np.ndarray, lengths: list[int] | None
) -> None:
    cut = array.copy()
    for trial, n in zip(cut, lengths or (), strict=lengths is not None):
        trial[n:] = np.nan
    survey = Survey.of(array, None if lengths is None else np.array(lengths))
    finite, missing = np.isfinite(cut), np.isnan(cut)
    for counts, entries in (
        (survey.missing, missing),
        (survey.infinite, np.isinf(array)),
        (survey.negative, finite & (cut < 0)),
        (survey.fractional, finite & (cut > 0) & (np.trunc(cut) != cut)),
        (survey.zero, cut == 0),
    ):
        assert counts.tolist() == entries.sum(axis=(0, 1)).tolist()
    observed = [np.flatnonzero(trial.any(axis=1)) for trial in ~missing]
    assert survey.lengths.tolist() == [max(bins, default=-1) + 1 for bins in observed]
    assert survey.gaps.tolist() == missing.any(axis=2).sum(axis=1).tolist()
    assert survey.active.tolist() == (~missing & (cut != 0)).any(axis=(1, 2)).tolist()
    assert survey.observed_channels.tolist() == (~missing).any(axis=(0, 1)).tolist()
    assert survey.active_channels.tolist() == (~missing & (cut != 0)).any(axis=(0, 1)).tolist()
    assert survey.complete == (not missing.any())


def test_mean_leaves_missing_entries_out() -> None:
    array = np.array([[[1.0, np.nan], [4.0, 4.0]]], np.float32)
    assert Survey.of(array).mean == 3.0
    assert Survey.of(array * np.nan).mean is None


def test_blocks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.random.default_rng(0).poisson(0.3, (50, 7, 3)).astype(np.float32)
    array[3, 5:] = array[9, :, 1] = np.nan
    whole = vars(Survey.of(array))
    monkeypatch.setattr("lfads_torch.data.stored.blocks.__defaults__", (40,))
    for name, value in vars(Survey.of(array)).items():
        np.testing.assert_array_equal(value, whole[name], err_msg=name)


def test_a_hash_tells_bins_apart_and_zeros_from_all_else() -> None:
    bins = np.random.default_rng(0).poisson(1.0, (1, 5000, 20)).astype(np.float32)
    hashes = bin_hashes(bins)[0]
    assert len(np.unique(hashes)) == len(np.unique(bins[0], axis=0))
    assert (bin_hashes(np.array([[[0.0, -0.0], [0.0, 1.0]]], np.float32))[0] == 0).tolist() == [
        True,
        False,
    ]
