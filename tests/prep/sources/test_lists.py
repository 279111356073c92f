"""Spike times of units as labs keep them: groups of any names, equal lengths, padded matrices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from scipy.io import savemat

from lfads_torch.errors import UserError
from lfads_torch.prep import SourceOptions, open_recording
from lfads_torch.prep.sources import BinnedSpikes, SpikeTimes


def ascending(n: int, seed: int) -> Any:
    return np.sort(np.random.default_rng(seed).uniform(0, 60, n))


def units_of(path: Path, **options: Any) -> list[Any]:
    spikes = open_recording(path, SourceOptions(**options)).spikes
    assert isinstance(spikes, SpikeTimes)
    return [np.asarray(unit[:]) for unit in spikes.units]


@pytest.mark.parametrize("names", [("u0", "u1", "u2"), ("sig001a", "sig001b", "sig010a"), "abc"])
@pytest.mark.parametrize("group", ["spike_times", "spikes", "data/spikes"])
def test_a_group_of_spikes_is_a_list_whatever_its_members_are_called(
    tmp_path: Path, names: Any, group: str
) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for seed, name in enumerate(names):
            file[f"{group}/{name}"] = ascending(300, seed)  # all of one length
    units = units_of(tmp_path / "a.h5")
    assert all(np.array_equal(unit, ascending(300, k)) for k, unit in enumerate(units))
    assert len(units) == 3


def test_one_list_in_a_group_stays_one_list(tmp_path: Path) -> None:
    labels = np.arange(600) % 3
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["spikes/times"], file["spikes/clusters"] = ascending(600, 0), labels
    units = units_of(tmp_path / "a.h5")
    assert [len(unit) for unit in units] == [200, 200, 200]


def test_units_of_one_length_are_no_columns(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **{f"unit_{k}": ascending(400, k) for k in range(12)})
    units = units_of(tmp_path / "a.npz")
    assert all(np.array_equal(unit, ascending(400, k)) for k, unit in enumerate(units))


@pytest.mark.parametrize("by_column", [False, True])
@pytest.mark.parametrize("fill", [np.nan, 0.0])
@pytest.mark.parametrize("suffix", [".npz", ".mat"])
def test_matrices_that_are_filled_up(
    tmp_path: Path, fill: float, suffix: str, by_column: bool
) -> None:
    lists = [ascending(n, n) for n in (250, 500, 0, 320)]
    matrix = np.full((4, 500), fill)
    for row, times in zip(matrix, lists, strict=True):
        row[: len(times)] = times
    arrays = {"spike_times": matrix.T if by_column else matrix}
    path = tmp_path / f"a{suffix}"
    np.savez(path, **arrays) if suffix == ".npz" else savemat(path, arrays)
    for unit, times in zip(units_of(path), lists, strict=True):
        assert np.array_equal(unit, times)


def test_counts_are_not_taken_for_lists(tmp_path: Path) -> None:
    counts = np.random.default_rng(0).poisson(0.5, (4, 500)).astype(float)
    counts[:, 400:] = 0
    np.savez(tmp_path / "a.npz", spikes=counts, bin_ms=10.0)
    spikes = open_recording(tmp_path / "a.npz").spikes
    assert isinstance(spikes, BinnedSpikes)
    assert spikes.n_units == 4


def test_what_is_no_count_is_asked_about(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(500, 2))
    np.savez(tmp_path / "a.npz", time=np.arange(500) * 0.01, pos=values)
    with pytest.raises(UserError, match=r"unclear.*pos"):
        open_recording(tmp_path / "a.npz")
    spikes = open_recording(tmp_path / "a.npz", SourceOptions(spikes="pos")).spikes
    assert isinstance(spikes, BinnedSpikes)
