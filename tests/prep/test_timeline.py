"""One timeline: trial-relative times, clocks that begin anew, what was not observed."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from lfads_torch.data import read_session
from lfads_torch.prep import prepare
from lfads_torch.prep.counting import bin_windows
from lfads_torch.prep.sources.recording import Clock
from lfads_torch.prep.sources.timeline import lay_out_trials, trials_of_cells


@pytest.mark.parametrize("kind", ["float64", "float32", "int64"])
def test_trials_follow_one_another_and_share_no_time(kind: str) -> None:
    rng = np.random.default_rng(0)
    n_trials, n_units = 7, 3
    cells = [
        [(rng.integers(0, 2000, 40 + 10 * u)).astype(kind) for u in range(n_units)]
        for _ in range(n_trials)
    ]
    cells[2] = [times[:0] for times in cells[2]]  # a trial without a spike
    cells[3][1] = cells[3][1][:0]
    laid = lay_out_trials(trials_of_cells(cells), Clock(1e-3), n_trials, np.full(n_trials, 2.0))
    assert (laid.observed[1:, 0] > laid.observed[:-1, 1]).all()
    np.testing.assert_allclose(np.diff(laid.observed, axis=1), 2.0)
    for unit in range(n_units):
        times = np.concatenate([t for t, _ in laid.spikes.blocks(unit)] or [np.empty(0)])
        counts = bin_windows(times, laid.starts, 100, 0.02)
        expected = [np.bincount(row[unit].astype(int) // 20, minlength=100) for row in cells]
        np.testing.assert_array_equal(counts, expected)


def test_where_no_length_is_given_the_last_spike_ends_a_trial() -> None:
    rng = np.random.default_rng(1)
    alike = [[np.sort(rng.uniform(0, 5, 80))] for _ in range(50)]
    ragged = [[np.sort(rng.uniform(0, 1 + k % 2, 80))] for k in range(50)]
    spread = []
    for cells in (alike, ragged):
        laid = lay_out_trials(trials_of_cells(cells), Clock(), 50)
        spread.append(np.diff(laid.observed, axis=1).ravel())
    assert (np.abs(spread[0] - 5) < 0.02).all()
    assert (np.abs(spread[1][::2] - 1) < 0.3).all()
    assert (np.abs(spread[1][1::2] - 2) < 0.3).all()


def test_the_times_at_which_trials_began_are_kept_where_trials_do_not_overlap() -> None:
    cells = [[np.array([0.1, 0.9])], [np.array([0.2, 1.5])]]
    for onsets, is_kept in (([10.0, 12.0], True), ([12.0, 10.0], True), ([10.0, 10.5], False)):
        laid = lay_out_trials(trials_of_cells(cells), Clock(), 2, None, np.array(onsets))
        assert (laid.starts.tolist() == onsets) == is_kept


@pytest.mark.parametrize("layout", ["index", "labels", "groups", "labels.h5"])
@pytest.mark.parametrize(("hz", "kind"), [(30_000, "f4"), (25_000, "f4"), (30_000, "f8")])
def test_a_stored_time_is_in_its_bin_in_every_layout(
    tmp_path: Path, layout: str, hz: int, kind: str
) -> None:
    rng = np.random.default_rng(2)
    step = hz // 1000
    samples = [
        np.unique(np.r_[rng.integers(0, 20_000, 900) * step, rng.integers(0, 20 * hz, 900)])
        for _ in range(3)
    ]
    times = [(k / hz).astype(kind) for k in samples]
    owner = np.repeat(np.arange(3), [len(t) for t in times])
    order = np.argsort(np.concatenate(times), kind="stable")
    path = tmp_path / f"s.{'h5' if layout in ('groups', 'labels.h5') else 'npz'}"
    together = np.concatenate(times)
    labels = {"spike_times": together[order], "spike_clusters": owner[order]}
    if layout == "index":
        np.savez(path, spike_times=together, spike_times_index=np.cumsum([len(t) for t in times]))
    elif layout == "labels":
        np.savez(path, **labels)
    else:
        with h5py.File(path, "w") as file:
            groups = {f"spike_times/{u}": t for u, t in enumerate(times)}
            for key, array in (groups if layout == "groups" else labels).items():
                file[key] = array
    prepare(path, tmp_path / "o.h5", bin_ms=1, chop_ms=1000)
    for split in read_session(tmp_path / "o.h5", ["window_start"]).splits.values():
        for window, start in zip(split.recon_data, split.extras["window_start"], strict=True):
            for unit, k in enumerate(samples):
                bins = k // step - round(start * 1000)
                expected = np.bincount(bins[(bins >= 0) & (bins < 1000)], minlength=1000)
                np.testing.assert_array_equal(window[:, unit], expected)
