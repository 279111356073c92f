"""One timeline: trial-relative times, clocks that begin anew, what was not observed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pynwb
import pytest
from scipy.io import savemat

from lfads_torch.data import read_session
from lfads_torch.errors import DataError, UserError
from lfads_torch.prep import describe_file, prepare
from lfads_torch.prep.counting import bin_windows
from lfads_torch.prep.sources import spike_lists as reader
from lfads_torch.prep.sources.recording import Clock
from lfads_torch.prep.sources.time_unit import judge, sample_units
from lfads_torch.prep.sources.trial_times import lay_out_trials


def trials_of_cells(cells: list[list[np.ndarray]]) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each unit of trials x units, its times and the trial of each."""
    units = []
    for lists in zip(*cells, strict=True):
        rows = np.repeat(np.arange(len(lists)), [len(times) for times in lists])
        units.append((np.concatenate(lists), rows))
    return units


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


# ---- what was not recorded, or is not valid ------------------------------------------------------

START = 1 + 2.0 * np.arange(60)


def spikes(n_units: int = 8, length: float = 130.0) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [np.sort(rng.uniform(0, length, round((3 + u / 4) * length))) for u in range(n_units)]


def nwb(path: Path, units: list[dict[str, Any]], invalid: Sequence[Sequence[float]] = ()) -> Path:
    file = pynwb.NWBFile("x", "id", datetime(2024, 1, 1, tzinfo=UTC))
    for unit in units:
        file.add_unit(**unit)
    for start in START:
        file.add_trial(start_time=start, stop_time=start + 2)
    for start, stop in invalid:
        file.add_invalid_time_interval(start_time=start, stop_time=stop, tags=["x"])
    with pynwb.NWBHDF5IO(path, "w") as io:
        io.write(file)
    return path


def npz(path: Path, lists: Sequence[np.ndarray], **more: Any) -> Path:
    ends = np.cumsum([len(t) for t in lists])
    arrays = {"spike_times": np.concatenate(lists), "spike_times_index": ends}
    np.savez(path, **{"trials_start_time": START, **arrays, **more})
    return path


def histogram(times: np.ndarray, start: float, n_bins: int, bin_s: float) -> np.ndarray:
    bins = np.floor((times - start) / bin_s + 1e-7).astype(int)
    return np.bincount(bins[(bins >= 0) & (bins < n_bins)], minlength=n_bins)


def windows_of(path: Path) -> dict[float, np.ndarray]:
    """Counts by the start of the window."""
    return {
        round(float(start), 6): window
        for split in read_session(path, ["window_start"]).splits.values()
        for window, start in zip(split.recon_data, split.extras["window_start"], strict=True)
    }


def check(path: Path, lists: Sequence[np.ndarray], starts: Sequence[float], bin_s: float) -> None:
    """The file has windows of these starts alone, with the spikes that are in them."""
    windows = windows_of(path)
    assert sorted(windows) == sorted(round(float(s), 6) for s in starts)
    for start, window in windows.items():
        for unit, times in enumerate(lists):
            expected = histogram(times, start, len(window), bin_s)
            np.testing.assert_array_equal(window[:, unit], expected)


def test_what_nwb_marks_as_invalid_is_left_out(tmp_path: Path) -> None:
    lists = [t[(t < 40) | (t > 60)] for t in spikes()]
    source = nwb(tmp_path / "s.nwb", [{"spike_times": t} for t in lists], [(40.0, 60.0)])
    options = {"bin_ms": 20, "align": "start_time:0:1000"}
    done = prepare(source, tmp_path / "o.h5", **options)
    left = [s for s in START if s + 1 <= 40 or s >= 60]
    assert len(left) == 50
    check(tmp_path / "o.h5", lists, left, 0.02)
    assert any("10 of 60 trials" in t and "invalid_times" in t for t in done.warnings)
    done = prepare(source, tmp_path / "c.h5", bin_ms=20, chop_ms=1000)
    assert any("invalid_times" in text for text in done.warnings)
    assert not any(39 < start < 60 for start in windows_of(tmp_path / "c.h5"))
    everything = nwb(tmp_path / "e.nwb", [{"spike_times": t} for t in lists], [(0.0, np.inf)])
    with pytest.raises(DataError, match=r"No window is left.*invalid_times"):
        prepare(everything, tmp_path / "x.h5", **options)


@pytest.mark.parametrize("is_table", [True, False])
def test_artifacts_in_any_order_overlapping_and_without_end(tmp_path: Path, is_table: bool) -> None:
    rows = np.array([[90, 95], [20.5, 20.7], [50, 50], [20.6, 24], [99, 94], [110, np.nan]])
    table = {"artifacts.start": rows[:, 0], "artifacts.stop": rows[:, 1]}
    source = npz(tmp_path / "s.npz", spikes(), **(table if is_table else {"artifacts": rows}))
    done = prepare(source, tmp_path / "o.h5", bin_ms=20, align="start_time:0:1000")
    marked = [(20.5, 24), (90, 99), (110, 1e9)]
    left = [s for s in START if not any(s < b and s + 1 > a for a, b in marked)]
    check(tmp_path / "o.h5", spikes(), left, 0.02)
    assert any("before they begin" in text for text in done.warnings)
    assert any("no length" in text for text in done.warnings)


def test_a_unit_that_was_not_observed_is_missing_not_silent(tmp_path: Path) -> None:
    lists = spikes()
    seen = [[(0.0, 130.0)]] * 5 + [[(0.0, 50.5)], [(90.0, 130.0), (0.0, 30.0)], [(127.0, 128.0)]]
    lists = [
        np.concatenate([t[(t >= a) & (t <= b)] for a, b in sorted(rows)])
        for t, rows in zip(lists, seen, strict=True)
    ]
    units = [{"spike_times": t, "obs_intervals": r} for t, r in zip(lists, seen, strict=True)]
    source = nwb(tmp_path / "s.nwb", units)
    done = prepare(source, tmp_path / "o.h5", bin_ms=20, align="start_time:0:1000", min_rate=1.5)
    assert any("missing (NaN), not 0" in text for text in done.warnings)
    assert any("1 units were not observed" in text for text in done.warnings)
    assert done.n_units == 7  # the rate of a unit is that of the time in which it was observed
    windows = windows_of(tmp_path / "o.h5")
    assert len(windows) == 60
    for start, window in windows.items():
        edges = start + 0.02 * np.arange(50)
        for unit in range(7):
            known = np.any(
                [(edges > a - 1e-6) & (edges + 0.02 < b + 1e-6) for a, b in seen[unit]], axis=0
            )
            np.testing.assert_array_equal(np.isnan(window[:, unit]), ~known)
            expected = histogram(lists[unit], start, 50, 0.02)
            np.testing.assert_array_equal(window[known, unit], expected[known])


# ---- times that count from the start of the trial ------------------------------------------------


def relative(n_trials: int = 60, n_units: int = 12) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Times of each unit since the start of the trial, not in order, and the trial of each."""
    rng = np.random.default_rng(1)
    times = [rng.uniform(0, 5, 400) for _ in range(n_units)]
    return times, [np.sort(rng.integers(0, n_trials, 400)) for _ in range(n_units)]


def check_trials(path: Path, times: list[np.ndarray], rows: list[np.ndarray], begin: float) -> None:
    data = read_session(path, ["trial"]).splits.values()
    assert sum(split.n_trials for split in data) == 60
    for split in data:
        for window, trial in zip(split.recon_data, split.extras["trial"], strict=True):
            for unit, (t, row) in enumerate(zip(times, rows, strict=True)):
                expected = histogram(t[row == trial], begin, len(window), 0.01)
                np.testing.assert_array_equal(window[:, unit], expected)


@pytest.mark.parametrize("layout", ["mat", "labels", "ids", "start times", "csv"])
def test_spikes_with_the_trial_of_each_are_read_per_trial(tmp_path: Path, layout: str) -> None:
    times, rows = relative()
    align, more, begin = "go:-500:500", {}, 2.0
    path = tmp_path / ("s.mat" if layout == "mat" else "s.csv" if layout == "csv" else "s.npz")
    order = np.random.default_rng(0).permutation(sum(map(len, times)))
    unit = np.repeat(np.arange(12), 400)[order]
    spikes, trial = np.concatenate(times)[order], np.concatenate(rows)[order]
    go = np.full(60, 2.5)
    if layout == "mat":
        clusters = np.zeros((1, 12), dtype=[("trialtm", object), ("trial", object)])
        for u in range(12):
            clusters[0, u]["trialtm"], clusters[0, u]["trial"] = times[u][:, None], rows[u] + 1.0
        savemat(path, {"obj": {"clu": clusters, "ev": {"go": go[:, None]}}})
        more = {"spikes": "obj.clu.trialtm", "trials": "obj.ev"}
    elif layout == "csv":
        lines = [f"{t!r},{u},{k}" for t, u, k in zip(spikes.tolist(), unit, trial, strict=True)]
        path.write_text("\n".join(["time,unit,trial", *lines]))
        (tmp_path / "t.csv").write_text("\n".join(["trial,go", *(f"{k},2.5" for k in range(60))]))
        more = {"trials": str(tmp_path / "t.csv")}
    else:
        arrays = {"spike_times": spikes, "spike_clusters": unit, "trials_go": go}
        arrays["which"] = trial
        more = {"spike_trials": "which"}
        if layout == "ids":
            arrays |= {"which": trial * 3 + 100, "trials_trial_id": np.arange(60) * 3 + 100}
        if layout == "start times":  # of the trials on the clock of the recording, and one event
            starts = 7 + 6.25 * np.arange(60)
            arrays |= {"trials_start_time": starts, "trials_go": starts + 2.5}
        np.savez(path, **arrays)
    done = prepare(path, tmp_path / "o.h5", bin_ms=10, align=align, **more)
    assert any("count from the start of their trial" in text for text in done.notes)
    check_trials(tmp_path / "o.h5", times, rows, begin)


def test_without_the_trial_of_each_spike_relative_times_are_refused(tmp_path: Path) -> None:
    times, rows = relative()
    ordered = [t[np.lexsort([t, row])] for t, row in zip(times, rows, strict=True)]
    go = {"trials_start_time": None, "trials_go": np.full(60, 2.5)}
    later = {"trials_go": 2.5 + 6 * np.arange(60), "trials_start_time": None}
    jitter = {"trials_start_time": None, "trials_go": np.random.default_rng(0).uniform(2, 3, 60)}
    options = {"bin_ms": 10, "align": "go:-500:500"}
    for lists, trials, message in (
        (times, go, r"from 2.5 to 2.5 s.*from 0.00.* to 4.99"),
        ([np.sort(t) for t in times], jitter, "nearly the same stretch"),
        ([np.sort(t) for t in times], later, r"spikes lie from 0.0.* to 4.99.*2.5 to 356.5 s"),
        (ordered, later, r"12 of 12 units fall back up to 57 times.*--spike-trials"),
    ):
        arrays = {k: v for k, v in trials.items() if v is not None}
        ends = np.cumsum([len(t) for t in lists])
        np.savez(
            tmp_path / "s.npz",
            spike_times=np.concatenate(lists),
            spike_times_index=ends,
            **arrays,
        )
        with pytest.raises(UserError, match=message):
            prepare(tmp_path / "s.npz", tmp_path / "o.h5", **options)
    with pytest.raises(UserError, match="fall back up to 57 times"):
        prepare(tmp_path / "s.npz", tmp_path / "o.h5", bin_ms=10, chop_ms=500)
    assert "fall back up to 57 times" in describe_file(tmp_path / "s.npz")


def test_the_trial_of_each_spike_may_be_extra_information(tmp_path: Path) -> None:
    lists = spikes()
    trial = {"spike_trials": np.concatenate([np.floor(t / 2) for t in lists])}
    source = npz(tmp_path / "s.npz", lists, **trial)
    prepare(source, tmp_path / "o.h5", bin_ms=20, align="start_time:0:1000")
    check(tmp_path / "o.h5", lists, START, 0.02)


# ---- a clock that was reset ----------------------------------------------------------------------


def reset(lists: list[np.ndarray], at: float = 65.0) -> list[np.ndarray]:
    return [np.r_[t[t < at], t[t >= at] - at] for t in lists]


@pytest.mark.parametrize("layout", ["nwb", "labels"])
def test_a_clock_that_was_reset_splits_the_recording(tmp_path: Path, layout: str) -> None:
    lists = spikes()
    if layout == "nwb":
        source = nwb(tmp_path / "s.nwb", [{"spike_times": t} for t in reset(lists)])
    else:
        owner = np.repeat(np.arange(8), [len(t) for t in lists])
        order = np.argsort(np.concatenate(lists), kind="stable")
        source = tmp_path / "s.npz"
        np.savez(
            source,
            spike_times=np.concatenate(reset(lists))[order],
            spike_clusters=owner[order],
            trials_start_time=START,
        )
    done = prepare(source, tmp_path / "o.h5", bin_ms=20, align="start_time:0:1000")
    assert any("8 of 8 units fall back once" in text for text in done.warnings)
    check(tmp_path / "o.h5", lists, [s for s in START if s + 1 < 65], 0.02)


def test_trials_whose_times_fall_back_too_belong_to_their_block(tmp_path: Path) -> None:
    lists = [np.sort(np.r_[t, [64.9, 65.03]]) for t in spikes()]
    lists.append(np.array([1.5, 2.5, 100.5]))  # cannot be attributed, and is left out
    starts = np.where(START < 65, START, START - 65)
    source = npz(tmp_path / "s.npz", reset(lists), trials_start_time=starts)
    done = prepare(source, tmp_path / "o.h5", bin_ms=20, align="start_time:0:1000")
    assert done.n_units == 8 or any("too few spikes" in text for text in done.warnings)
    for split in read_session(tmp_path / "o.h5", ["trial"]).splits.values():
        for window, trial in zip(split.recon_data, split.extras["trial"], strict=True):
            for unit in range(8):
                expected = histogram(lists[unit], START[trial], 50, 0.02)
                np.testing.assert_array_equal(window[:, unit], expected)
    done = prepare(source, tmp_path / "c.h5", bin_ms=20, chop_ms=1000)
    counts = [w[:, 0].sum() for w in windows_of(tmp_path / "c.h5").values()]
    assert abs(sum(counts) - len(lists[0])) < 10  # but for the ends of the blocks


def test_resets_that_cannot_be_resolved_are_refused(tmp_path: Path) -> None:
    lists, options = spikes(), {"bin_ms": 20, "align": "start_time:0:1000"}
    half = reset(lists)[:4] + lists[4:]
    with pytest.raises(UserError, match=r"4 of 8 units.*units 4, 5, 6, 7"):
        prepare(npz(tmp_path / "a.npz", half), tmp_path / "o.h5", **options)
    early = {"trials_start_time": START / 2}
    with pytest.raises(UserError, match="does not say to which of the 2 blocks"):
        prepare(npz(tmp_path / "b.npz", reset(lists), **early), tmp_path / "o.h5", **options)
    with pytest.raises(UserError, match="also says when"):
        source = npz(tmp_path / "c.npz", reset(lists), invalid_times=np.array([[3.0, 5.0]]))
        prepare(source, tmp_path / "o.h5", **options)
    again = {"trials_start_time": np.where(START < 65, START, START - 64.3)}
    with pytest.raises(UserError, match="'start_time' falls back by"):
        prepare(npz(tmp_path / "d.npz", lists, **again), tmp_path / "o.h5", **options)
    prepare(
        npz(tmp_path / "e.npz", lists, **again),
        tmp_path / "o.h5",
        **options,
        spike_times="absolute",
    )


def test_a_few_spikes_out_of_order_are_no_reset(tmp_path: Path) -> None:
    lists = spikes()
    mixed = [t.copy() for t in lists]
    for times in mixed:
        times[[10, 11]] = times[[11, 10]]
        times[[50, 300]] = times[[300, 50]]
    done = prepare(
        npz(tmp_path / "s.npz", mixed), tmp_path / "o.h5", bin_ms=20, align="start_time:0:1000"
    )
    assert any("do not ascend" in text for text in done.warnings)
    check(tmp_path / "o.h5", lists, START, 0.02)
    by_condition = {"trials_start_time": np.r_[START[::2], START[1::2]]}
    source = npz(tmp_path / "t.npz", lists, **by_condition)
    prepare(source, tmp_path / "p.h5", bin_ms=20, align="start_time:0:1000")
    check(tmp_path / "p.h5", lists, START, 0.02)


# ---- the unit of times ---------------------------------------------------------------------------

UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9, "samples": 1 / 30_000}


def in_unit(unit: str, rate: float, *, whole: bool, length: float = 200.0) -> list[np.ndarray]:
    rng = np.random.default_rng(4)
    lists = [np.sort(rng.uniform(0, length, round(rate * length))) for _ in range(30)]
    stored = [t / UNITS[unit] for t in lists]
    return [np.round(t).astype("u8") for t in stored] if whole else stored


def test_samples_that_pass_for_seconds_are_refused_at_once(tmp_path: Path) -> None:
    lists = in_unit("samples", 1.0, whole=True)
    samples, owner = np.concatenate(lists), np.repeat(np.arange(30), [len(t) for t in lists])
    order = np.argsort(samples, kind="stable")
    source, arrays = tmp_path / "ks.npz", {"spike_clusters": owner[order][:, None]}
    np.savez(source, spike_times=samples[order][:, None], **arrays)
    begin = time.perf_counter()
    options = {"bin_ms": 20, "chop_ms": 1000}
    with pytest.raises(UserError, match=r"whole numbers.*1/s as samples at 30000/s.*--time-unit"):
        prepare(source, tmp_path / "o.h5", **options)
    assert time.perf_counter() - begin < 2
    assert not list(tmp_path.glob(".*"))
    assert "whole numbers" in describe_file(source)
    right = {"time_unit": "samples", "sampling_hz": 30_000.0}
    done = prepare(source, tmp_path / "o.h5", **options, **right)
    assert (done.trials, done.n_units) == ({"train": 160, "valid": 40}, 30)
    for start, window in windows_of(tmp_path / "o.h5").items():
        for unit, k in enumerate(lists):
            bins = k.astype(int) // 600 - round(start * 50)
            expected = np.bincount(bins[(bins >= 0) & (bins < 50)], minlength=50)
            np.testing.assert_array_equal(window[:, unit], expected)
    # The file itself may say the rate.
    np.savez(source, spike_times=samples[order], **arrays, sample_rate=30_000)
    done = prepare(source, tmp_path / "p.h5", **options)
    assert any("taken as samples at 30000/s" in text for text in done.notes)
    first, second = (windows_of(tmp_path / f"{name}.h5") for name in "op")
    assert first.keys() == second.keys()
    assert all(np.array_equal(window, second[start]) for start, window in first.items())


@pytest.mark.parametrize("grouped", [True, False])
def test_a_long_list_is_refused_before_it_is_grouped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grouped: bool
) -> None:
    lists = in_unit("samples", 1.0, whole=True)
    samples, owner = np.concatenate(lists), np.repeat(np.arange(30), [len(t) for t in lists])
    np.savez(tmp_path / "s.npz", spike_times=samples, spike_clusters=owner)
    if not grouped:
        monkeypatch.setattr(reader, "LONG", 1000)
        monkeypatch.setattr(reader, "group_by_unit", lambda _: pytest.fail("was grouped"))
    with pytest.raises(UserError, match="as samples at 30000/s"):
        prepare(tmp_path / "s.npz", tmp_path / "o.h5", bin_ms=20, chop_ms=1000)


@pytest.mark.parametrize(
    ("unit", "rate", "whole", "expected"),
    [
        ("s", 0.3, False, "s"),
        ("s", 60.0, False, "s"),
        ("ms", 5.0, False, "ms"),
        ("ms", 40.0, False, "ms"),
        ("us", 10.0, False, "us"),
        ("ms", 8.0, True, "ms"),
        ("ms", 1.0, True, None),
        ("us", 5.0, True, None),
        ("samples", 5.0, True, None),
        ("samples", 0.1, True, None),
    ],
)
def test_the_unit_of_times_is_that_of_plausible_rates_or_refused(
    unit: str, rate: float, whole: bool, expected: str | None
) -> None:
    verdict = judge(sample_units(in_unit(unit, rate, whole=whole, length=400.0)))
    assert bool(verdict.refusal) == (expected is None)
    assert expected is None or verdict.unit == expected
    # It is said wherever it is not plain seconds.
    assert bool(verdict.note or verdict.warning or verdict.refusal) == (expected != "s")


def test_trials_in_the_unit_of_the_spikes_or_in_their_own(tmp_path: Path) -> None:
    lists, options = spikes(), {"bin_ms": 20, "align": "start_time:0:1000"}
    in_ms = [1000 * t for t in lists]
    ms = {"trials_start_time": 1000 * START}
    done = prepare(npz(tmp_path / "a.npz", in_ms, **ms), tmp_path / "a.h5", **options)
    assert any("taken as ms" in text for text in done.warnings)
    check(tmp_path / "a.h5", lists, START, 0.02)
    source = npz(tmp_path / "b.npz", [1e6 * t for t in lists])
    with pytest.raises(UserError, match=r"1e-06 to 0.000119 s.*--event-unit"):
        prepare(source, tmp_path / "b.h5", **options, time_unit="us")
    prepare(source, tmp_path / "b.h5", **options, time_unit="us", event_unit="s")
    check(tmp_path / "b.h5", lists, START, 0.02)


def test_more_than_memory_or_disk_hold_is_refused_before_it_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lists = [np.array([0.5, 1.5, 1e9]), np.array([1.0])]
    with pytest.raises(UserError, match=r"1e\+12 bins of 1 ms.*GB of memory.*--time-unit"):
        prepare(npz(tmp_path / "a.npz", lists), tmp_path / "o.h5", bin_ms=1, chop_ms=1000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match=r"windows of 50 bins x 8 units.*GB left"):
        prepare(npz(tmp_path / "b.npz", spikes()), tmp_path / "o.h5", bin_ms=20, chop_ms=1000)
    assert not (tmp_path / "o.h5").exists()


# ---- what else must lie on the clock of the spikes -----------------------------------------------


def test_observation_series_and_bins_that_do_not_lie_where_the_spikes_do(tmp_path: Path) -> None:
    lists, options = spikes(), {"bin_ms": 20, "align": "start_time:0:1000"}
    in_ms = [{"spike_times": t, "obs_intervals": [(0.0, 0.13)]} for t in lists]
    with pytest.raises(UserError, match=r"0.0.* to 129.99.* s.*from 0 to 0.13 s"):
        prepare(nwb(tmp_path / "a.nwb", in_ms), tmp_path / "o.h5", **options)
    t = np.arange(0, 130, 0.01)
    hand = {"hand": np.sin(t), "hand_times": np.where(t < 65, t, t - 65)}
    with pytest.raises(UserError, match=r"'hand' fall back 1 times, first from 64.99 to 0 s"):
        source = npz(tmp_path / "b.npz", lists, **hand)
        prepare(source, tmp_path / "o.h5", **options, behavior=["hand"])
    # Where the spikes fall back, too, series go with their block.
    source = npz(tmp_path / "c.npz", reset(lists), **hand)
    prepare(source, tmp_path / "c.h5", **options, behavior=["hand"])
    for split in read_session(tmp_path / "c.h5", ["behavior", "window_start"]).splits.values():
        middle = split.extras["window_start"][:, None] + 0.01 + 0.02 * np.arange(50)
        np.testing.assert_allclose(split.extras["behavior"][..., 0], np.sin(middle), atol=0.02)
    counts = np.random.default_rng(0).poisson(0.3, (5000, 4))
    for times in (np.r_[0:50:0.02, 60:110:0.02], np.r_[0:50:0.02, 0:50:0.02]):
        np.savez(tmp_path / "d.npz", spikes=counts, time=times)
        with pytest.raises(UserError, match=r"at bin 2500.*do not adjoin"):
            prepare(tmp_path / "d.npz", tmp_path / "o.h5", chop_ms=1000)


def test_times_too_coarse_for_their_bins_are_named(tmp_path: Path) -> None:
    late = [(t + 40_000).astype("f4") for t in spikes()]
    done = prepare(npz(tmp_path / "s.npz", late), tmp_path / "o.h5", bin_ms=2, chop_ms=1000)
    assert any("float32 times near 40130 s are 3.9" in text for text in done.warnings)


def test_nwb_units_may_name_the_trial_of_each_spike(tmp_path: Path) -> None:
    times, rows = relative()
    file = pynwb.NWBFile("x", "id", datetime(2024, 1, 1, tzinfo=UTC))
    file.add_unit_column("spike_trials", "trial of each spike", index=True)
    for t, row in zip(times, rows, strict=True):
        file.add_unit(spike_times=t, spike_trials=row.tolist())
    file.add_trial_column("go", "go cue")
    for k in range(60):  # on the clock of the recording
        file.add_trial(start_time=6.0 * k, stop_time=6.0 * k + 5, go=6.0 * k + 2.5)
    with pynwb.NWBHDF5IO(tmp_path / "s.nwb", "w") as io:
        io.write(file)
    prepare(tmp_path / "s.nwb", tmp_path / "o.h5", bin_ms=10, align="go:-500:500")
    check_trials(tmp_path / "o.h5", times, rows, 2.0)


# ---- a command that is ended ---------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_a_command_that_is_ended_leaves_nothing(tmp_path: Path, number: int) -> None:
    rng = np.random.default_rng(0)
    times, owner = rng.uniform(0, 600, 40_000), rng.integers(0, 60, 40_000)
    np.savez(tmp_path / "s.npz", spike_times=times, spike_clusters=owner)
    # Half of the file is written when the signal comes.
    code = (
        "import os, signal, sys\n"
        # What started the tests, such as nohup, may have them ignore it.
        "usual = {2: signal.default_int_handler}\n"
        f"{int(number)} == 9 or signal.signal({int(number)}, usual.get({int(number)}, 0))\n"
        "from lfads_torch import cli\n"
        "from lfads_torch.prep import counting, write\n"
        "counting.IN_MEMORY = 0\n"
        "blocks = write.Counted.blocks\n"
        "def slow(self, *a, **k):\n"
        "    for block in blocks(self, *a, **k):\n"
        "        yield block\n"
        "        if a:\n"
        f"            os.kill(os.getpid(), {int(number)})\n"
        "write.Counted.blocks = slow\n"
        "sys.exit(cli.main(sys.argv[1:]))\n"
    )
    command = ["prep", "s.npz", "-o", "o.h5", "--bin-ms", "5", "--chop-ms", "1000"]
    ended = subprocess.run([sys.executable, "-c", code, *command], cwd=tmp_path, check=False)
    assert ended.returncode != 0
    left = {path.name for path in tmp_path.iterdir()} - {"s.npz"}
    # Nothing can act on SIGKILL; the next command removes what it left.
    assert bool(left) == (number == signal.SIGKILL)
    if left:
        prepare(tmp_path / "s.npz", tmp_path / "o.h5", bin_ms=5, chop_ms=1000)
        assert {path.name for path in tmp_path.iterdir()} == {"s.npz", "o.h5"}


@pytest.mark.parametrize("fault", [MemoryError(), OSError(28, "No space left on device")])
def test_a_failure_while_writing_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise fault

    monkeypatch.setattr("lfads_torch.prep.write.add_to_file", fail)
    with pytest.raises((MemoryError, UserError)):
        prepare(npz(tmp_path / "s.npz", spikes()), tmp_path / "o.h5", bin_ms=20, chop_ms=1000)
    assert [path.name for path in tmp_path.iterdir()] == ["s.npz"]


def test_events_beside_a_sorter_have_a_unit_of_their_own(tmp_path: Path) -> None:
    lists = [np.round(30_000 * t).astype("i8") for t in spikes()]
    folder = tmp_path / "phy"
    folder.mkdir()
    owner = np.repeat(np.arange(8), [len(t) for t in lists])
    order = np.argsort(np.concatenate(lists), kind="stable")
    np.save(folder / "spike_times.npy", np.concatenate(lists)[order])
    np.save(folder / "spike_clusters.npy", owner[order])
    (folder / "params.py").write_text("sample_rate = 30000.\n")
    (tmp_path / "t.csv").write_text("\n".join(["start_time", *map(str, START.tolist())]))
    options = {"bin_ms": 20, "align": "start_time:0:1000", "trials": str(tmp_path / "t.csv")}
    for given in ({"event_unit": "s"}, {}):
        prepare(folder, tmp_path / "o.h5", **options, **given, overwrite=True)
        check(tmp_path / "o.h5", [k / 30_000 for k in lists], START, 0.02)
    del options["trials"]
    samples = {"time_unit": "samples", "sampling_hz": 30_000.0}
    done = prepare(npz(tmp_path / "s.npz", lists), tmp_path / "p.h5", **options, **samples)
    assert any("taken as seconds" in text for text in done.warnings)
    check(tmp_path / "p.h5", [k / 30_000 for k in lists], START, 0.02)


def test_milliseconds_of_trials_are_told_from_seconds(tmp_path: Path) -> None:
    """Trials of 20 minutes, in which a unit fires 24 times, are trials of 1.2 s."""
    rng = np.random.default_rng(0)
    trial = np.repeat(np.arange(30), 24)
    np.savez(
        tmp_path / "a.npz",
        spike_times=np.concatenate([rng.uniform(0, 1200, 720) for _ in range(2)]),
        spike_clusters=np.repeat([0, 1], 720),
        spike_trials=np.concatenate([trial, trial]),
        trials_go=np.full(30, 500.0),
    )
    done = prepare(tmp_path / "a.npz", tmp_path / "o.h5", bin_ms=20, align="go:-500:600")
    assert any("taken as ms" in text for text in done.warnings)
    with h5py.File(tmp_path / "o.h5") as file:
        counts = np.concatenate([file["train_encod_data"][()], file["valid_encod_data"][()]])
    assert counts.shape == (30, 55, 2)
    assert 0.8 * 1440 < counts.sum() < 1440  # all but those of the last 100 ms


@pytest.mark.parametrize("rows", [[(-np.inf, np.inf)], [(20.0, np.inf)]])
def test_observed_without_end(tmp_path: Path, rows: list[tuple[float, float]]) -> None:
    units = [{"spike_times": t, "obs_intervals": rows} for t in spikes()]
    source = nwb(tmp_path / "s.nwb", units)
    prepare(source, tmp_path / "o.h5", bin_ms=20, align="start_time:0:1000")
    check(tmp_path / "o.h5", spikes(), [s for s in START if s >= rows[0][0]], 0.02)
    prepare(source, tmp_path / "c.h5", bin_ms=20, chop_ms=1000)
    assert min(windows_of(tmp_path / "c.h5")) >= rows[0][0]


def test_events_beside_bins_have_a_unit_of_their_own(tmp_path: Path) -> None:
    counts = np.random.default_rng(0).poisson(0.3, (6500, 4)).astype("u1")
    np.savez(tmp_path / "s.npz", spikes=counts, bin_ms=20.0, trials_start_time=1000 * START)
    options = {"align": "start_time:0:1000"}
    with pytest.raises(UserError, match=r"from 0 to 130 s.*1000 to 119000 s.*--event-unit"):
        prepare(tmp_path / "s.npz", tmp_path / "o.h5", **options)
    prepare(tmp_path / "s.npz", tmp_path / "o.h5", **options, event_unit="ms")
    for start, window in windows_of(tmp_path / "o.h5").items():
        np.testing.assert_array_equal(window, counts[round(start * 50) :][:50])
