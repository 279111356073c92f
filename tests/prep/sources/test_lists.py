"""Spike times of units as labs keep them: groups of any names, equal lengths, padded matrices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from scipy.io import savemat

from lfads_torch.errors import DataError, UserError
from lfads_torch.prep import SourceOptions, open_recording, prepare
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


@pytest.mark.parametrize("name", ["unit_id", "neuron", "cluster_ids", "spike_cell", "electrode"])
@pytest.mark.parametrize("suffix", [".npz", ".mat"])
def test_the_unit_of_each_spike_by_its_many_names(tmp_path: Path, name: str, suffix: str) -> None:
    arrays = {"spike_times": ascending(600, 0), name: np.arange(600.0) % 3}
    path = tmp_path / f"a{suffix}"
    np.savez(path, **arrays) if suffix == ".npz" else savemat(path, arrays)
    for unit, times in enumerate(units_of(path)):
        np.testing.assert_array_equal(times, ascending(600, 0)[unit::3])


def test_what_may_be_the_unit_of_each_spike_is_asked_about(tmp_path: Path) -> None:
    times, labels = ascending(600, 0), np.arange(600) % 3
    np.savez(tmp_path / "a.npz", spike_times=times, who=labels, amplitude=labels)
    with pytest.raises(UserError, match=r"'who' says them, --spike-units who; .* none"):
        open_recording(tmp_path / "a.npz")
    assert len(units_of(tmp_path / "a.npz", spike_units="who")) == 3
    np.testing.assert_array_equal(units_of(tmp_path / "a.npz", spike_units="none"), [times])
    # A table that has as many rows as the list says nothing of the units.
    np.savez(tmp_path / "b.npz", spike_times=times, trials_side=labels)
    assert len(units_of(tmp_path / "b.npz")) == 1


@pytest.mark.parametrize("is_text", [False, True])
def test_channel_and_unit_together_name_a_unit(tmp_path: Path, is_text: bool) -> None:
    times, channel, unit = ascending(600, 0), np.arange(600) // 3 % 2, np.arange(600) % 3
    channels = np.array(["a", "b"])[channel] if is_text else channel
    np.savez(tmp_path / "a.npz", spike_times=times, channel=channels, unit=unit)
    right = [times[(channel == c) & (unit == u)] for c in range(2) for u in range(3)]
    for one, other in zip(units_of(tmp_path / "a.npz"), right, strict=True):
        np.testing.assert_array_equal(one, other)
    # Units that are numbered through all channels need no channel.
    np.savez(tmp_path / "b.npz", spike_times=times, channel=channels, unit=3 * channel + unit)
    names = open_recording(tmp_path / "b.npz").units["name"]
    np.testing.assert_array_equal(names.astype(int), np.arange(6))


def test_groups_for_each_trial_with_a_group_for_each_unit(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for trial in range(5):
            group = file.create_group(f"trial_{trial}")
            group.attrs["side"] = "lr"[trial % 2]  # what h5py users say of a group
            for unit in range(3):
                group[f"spikes/unit_{unit}"] = ascending(20 + trial + unit, unit) / 60
        file["again"] = h5py.SoftLink("/")  # links may lead back up
    recording = open_recording(tmp_path / "a.h5")
    assert (recording.n_trials, recording.n_units) == (5, 3)
    assert recording.trials["side"].tolist() == list("lrlrl")


def test_numbers_of_another_file_that_is_gone(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "raw.h5", "w") as file:
        file["counts"] = np.ones((100, 3), "u1")
    layout = h5py.VirtualLayout((100, 3), "u1")
    layout[:] = h5py.VirtualSource(str(tmp_path / "raw.h5"), "counts", (100, 3))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_virtual_dataset("spikes", layout)
        file.attrs["bin_ms"] = 10
    assert open_recording(tmp_path / "a.h5").n_units == 3
    (tmp_path / "raw.h5").unlink()
    with pytest.raises(DataError, match=r"takes its numbers from .*raw\.h5"):
        prepare(tmp_path / "a.h5", None, chop_ms=100)


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
