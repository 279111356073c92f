"""Recipes of the Neural Latents Benchmark on NWB files with a known answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from lfads_torch.data import check_file, read_session
from lfads_torch.errors import DataError, UserError
from lfads_torch.prep import Prepared, prepare_nlb
from lfads_torch.prep.nlb import RECIPES
from tests.prep.nwb_files import write_nwb

N_UNITS, N_HELD, N_TRIALS = 5, 2, 16
LENGTH_S = 56.0
HELDOUT = np.array([False, True, False, False, True])  # held out are units 1 and 4
ORDER = [0, 2, 3, 1, 4]
# Windows of the published configurations: (bins read, all bins) by data set and bin width.
SHAPES = {
    "mc_maze": {5: (140, 180), 20: (35, 45)},
    "mc_maze_large": {5: (140, 180), 20: (35, 45)},
    "mc_maze_medium": {5: (140, 180), 20: (35, 45)},
    "mc_maze_small": {5: (140, 180), 20: (35, 45)},
    "mc_rtt": {5: (120, 160), 20: (30, 40)},
    "area2_bump": {5: (120, 160), 20: (30, 40)},
    "dmfc_rsg": {5: (300, 340), 20: (75, 85)},
}
LAGS_MS = {
    "mc_maze": 100,
    "mc_maze_large": 120,
    "mc_maze_medium": 120,
    "mc_maze_small": 120,
    "mc_rtt": 140,
    "area2_bump": -20,
}


def event_ms(trial: int) -> int:
    """Aligned event in ms; not a multiple of any bin."""
    return 3000 + 3301 * trial


def trials_of(name: str) -> dict[str, Any]:
    """Columns of the trials as the data set has them."""
    n = np.arange(N_TRIALS)
    event = np.array([event_ms(i) for i in n]) / 1000
    columns: dict[str, Any] = {
        "start_time": event if name == "mc_rtt" else event - 1,
        "stop_time": event + 0.6 if name == "mc_rtt" else event + 1,
        # of 16 trials 3 validate and 1 is in no split
        "split": np.where(n == 7, "none", np.where(n % 5 == 4, "val", "train")).tolist(),
    }
    if name.startswith("mc_maze"):
        columns |= {"move_onset_time": event, "trial_type": n % 2, "trial_version": n // 8}
    elif name == "area2_bump":
        columns |= {"move_onset_time": event, "cond_dir": 90.0 * (n % 2), "ctr_hold_bump": n // 8}
        columns["ctr_hold_bump"] = columns["ctr_hold_bump"].astype(bool)
    elif name == "dmfc_rsg":
        produced = 600 + 10 * n  # ms, from Set to Go
        columns |= {
            "go_time": event,
            "set_time": event - produced / 1000,
            "is_eye": n % 2,
            "theta": np.zeros(N_TRIALS),
            "is_short": np.ones(N_TRIALS, dtype=int),
            "ts": np.full(N_TRIALS, 800.0),
            "tp": produced.astype(float),
            "is_outlier": (n == 3).astype(int),
        }
    return columns


def spike_times() -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [np.sort(rng.uniform(0, LENGTH_S, 400 + 100 * u)).round(4) for u in range(N_UNITS)]


def write(folder: Path, name: str, spikes: Sequence[np.ndarray] | None = None, **more: Any) -> Path:
    t = np.arange(round(LENGTH_S * 1000)) / 1000
    # A constant and a ramp pass a symmetric filter of unit gain as they are.
    series = {"hand_vel": np.stack([np.full(len(t), 3.0), t], axis=1)}
    series["finger_vel"] = series["hand_vel"]
    options = {
        "trials": trials_of(name),
        "units": {"heldout": HELDOUT.tolist()},
        "series": series,
        "observed": [[0.0, LENGTH_S]],
    } | more
    return write_nwb(folder / f"{name}.nwb", spikes or spike_times(), **options)


def counted(spikes: np.ndarray, first_bin: int, n_bins: int, bin_ms: int) -> list[int]:
    """Count spikes in a plain way, on a grid of milliseconds that begins at 0."""
    ms = np.floor(spikes * 1000 + 1e-6).astype(int)
    return [int(((ms // bin_ms) == first_bin + k).sum()) for k in range(n_bins)]


def expected_jitter(n: int, produced: np.ndarray, bin_ms: int) -> np.ndarray:
    """The published rule, drawn one by one."""
    np.random.seed(0)
    return np.array(
        [round(np.random.random() * ((min(300, 1500 - produced[i])) // bin_ms)) for i in range(n)]
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Prepared]:
    """Prepare a data set once for all tests that look at it."""
    folder, sources, done = tmp_path_factory.mktemp("nlb"), {}, {}

    def make(name: str, bin_ms: int) -> Prepared:
        if name not in sources:
            sources[name] = write(folder, name)
        if (name, bin_ms) not in done:
            path = folder / f"{name}-{bin_ms}.h5"
            done[name, bin_ms] = prepare_nlb(name, sources[name], path, bin_ms=bin_ms)
        return done[name, bin_ms]

    return make


@pytest.mark.parametrize("bin_ms", [5, 20])
@pytest.mark.parametrize("name", RECIPES)
def test_windows_splits_and_units_are_the_benchmarks(
    prepared: Callable[[str, int], Prepared], name: str, bin_ms: int
) -> None:
    done = prepared(name, bin_ms)
    path = done.path
    n_read, n_bins = SHAPES[name][bin_ms]
    assert (done.n_read, done.n_bins) == (n_read, n_bins)
    assert done.trials == {"train": 12, "valid": 3}
    columns = trials_of(name)
    recipe = RECIPES[name]
    data = read_session(path, ["behavior"], ["train_jitter", "valid_jitter"] * (name == "dmfc_rsg"))
    for split, word in (("train", "train"), ("valid", "val")):
        rows = [i for i, given in enumerate(columns["split"]) if given == word]
        shift = np.zeros(len(rows), dtype=int)
        if name == "dmfc_rsg":
            shift = expected_jitter(len(rows), columns["tp"][rows], bin_ms)
            np.testing.assert_array_equal(data.arrays[f"{split}_jitter"], shift)
        recon = data.splits[split].recon_data
        assert recon.shape == (len(rows), n_bins, N_UNITS)
        np.testing.assert_array_equal(
            data.splits[split].encod_data, recon[:, :n_read, : N_UNITS - N_HELD]
        )
        for k in (0, len(rows) - 1):
            start_ms = event_ms(rows[k]) + recipe.start_ms + shift[k] * bin_ms
            first = -(-start_ms // bin_ms)
            for place, unit in enumerate(ORDER):
                assert recon[k, :, place].tolist() == counted(
                    spike_times()[unit], first, n_bins, bin_ms
                )
    assert not check_file(path).errors


@pytest.mark.parametrize("bin_ms", [5, 20])
@pytest.mark.parametrize("name", LAGS_MS)
def test_behaviour_lags_and_masks(
    prepared: Callable[[str, int], Prepared], name: str, bin_ms: int
) -> None:
    n_read = SHAPES[name][bin_ms][0]
    with h5py.File(prepared(name, bin_ms).path) as file:
        behavior, mask = file["train_behavior"][()], file["train_decode_mask"][()]
        keys = set(file)
    first = -(-(event_ms(0) + RECIPES[name].start_ms) // bin_ms) * bin_ms
    expected = (first + LAGS_MS[name] + bin_ms * np.arange(n_read)) / 1000
    np.testing.assert_allclose(behavior[0, :, 0], 3.0, rtol=1e-5)
    np.testing.assert_allclose(behavior[0, :, 1], expected, atol=2e-3)
    assert mask.dtype == bool
    if name == "area2_bump":  # trials 0 to 6 (without 4) are active, 8 to 15 bumps (without 9, 14)
        assert mask.tolist() == [[True, False]] * 6 + [[False, True]] * 6
    else:
        assert mask.tolist() == [[True]] * 12
    assert ("psth" in keys) == ("train_cond_idx" in keys) == (name != "mc_rtt")


@pytest.mark.parametrize("bin_ms", [5, 20])
def test_psths_are_smoothed_averages_of_the_trials_of_a_condition(
    tmp_path: Path, bin_ms: int
) -> None:
    """Regular firing at 100 spikes/s has a flat PSTH; a unit without spikes one of zeros."""
    regular = np.arange(0.0005, LENGTH_S, 0.01)
    late = [event_ms(i) / 1000 + 0.2005 for i in range(0, N_TRIALS, 2)]
    spikes = [regular, regular, np.array(late), np.array([0.5]), regular]
    prepare_nlb(
        "mc_maze_small", write(tmp_path, "mc_maze_small", spikes), tmp_path / "o.h5", bin_ms=bin_ms
    )
    with h5py.File(tmp_path / "o.h5") as file:
        psth = file["psth"][()]
        lists = [[rows.tolist() for rows in file[f"{s}_cond_idx"][()]] for s in ("train", "valid")]
    n_read = SHAPES["mc_maze_small"][bin_ms][0]
    assert psth.shape == (4, n_read, N_UNITS)
    for place in (0, 3, 4):  # units 0, 1 and 4
        np.testing.assert_allclose(psth[:, :, place], bin_ms / 10, rtol=1e-3)
    np.testing.assert_allclose(psth[:, :, 2], 0, atol=1e-12)
    # unit 2 fires once, 200 ms after the event, in trials of even number: type 0, both versions
    np.testing.assert_allclose(psth[:2, :, 1].sum(axis=1), 1, rtol=1e-3)
    np.testing.assert_allclose(psth[2:, :, 1], 0, atol=1e-12)
    peak_ms = (psth[0, :, 1].argmax() + 0.5) * bin_ms - 250
    assert abs(peak_ms - 200) <= bin_ms
    # the Gaussian's height: 1 / (50 sqrt(2 pi)) per ms, 0.3% of it cut off
    assert psth[0, :, 1].max() / bin_ms == pytest.approx(1 / (50 * np.sqrt(2 * np.pi)), rel=0.05)
    # conditions sorted by type, then version; trials 4, 9, 14 validate, 7 is in no split
    assert lists[0] == [[0, 2, 5], [6, 7, 9], [1, 3, 4], [8, 10, 11]]
    assert lists[1] == [[0], [2], [], [1]]


@pytest.mark.parametrize("bin_ms", [5, 20])
def test_padded_psths_of_intervals_end_at_go(tmp_path: Path, bin_ms: int) -> None:
    columns = trials_of("dmfc_rsg")
    burst = [t - 0.1 + 1e-4 * k for t in columns["go_time"] for k in range(3)]
    spikes = [np.sort(burst), *spike_times()[1:]]
    columns["set_time"][1] = columns["go_time"][1] - 0.3  # much shorter than its condition's mean
    source = write(tmp_path, "dmfc_rsg", spikes, trials=columns)
    prepare_nlb("dmfc_rsg", source, tmp_path / "o.h5", bin_ms=bin_ms)
    with h5py.File(tmp_path / "o.h5") as file:
        psth, behavior = file["psth"][()], file["train_behavior"][()]
        lists = [rows.tolist() for rows in file["train_cond_idx"][()]]
    n_read = SHAPES["dmfc_rsg"][bin_ms][0]
    assert psth.shape == (2, n_read, N_UNITS)
    # Shortest of each condition: trial 0 (600 ms) and trial 5 (650 ms; 1 is too short, 3 an
    # outlier). A bin more or less where Set and Go fall differently on the grid.
    for condition, shortest_ms in ((0, 600), (1, 650)):
        known = np.isfinite(psth[condition]).all(axis=1)
        assert abs(int(known.sum()) * bin_ms - shortest_ms) <= bin_ms
        assert known[-int(known.sum()) :].all()
    peak_ms = (n_read - np.nanargmax(psth[0, :, 0]) - 0.5) * bin_ms
    assert abs(peak_ms - 100) <= bin_ms
    # trials that train: 0 1 2 3 5 6 8 10 11 12 13 15; odd ones without 1 and 3 are condition 1
    assert lists == [[0, 2, 5, 6, 7, 9], [4, 8, 10, 11]]
    assert np.isnan(behavior[3]).all()
    assert behavior[0].tolist() == [0, 0, 1, 800, 600]


def test_trials_for_testing_come_from_a_second_file(tmp_path: Path) -> None:
    folder = tmp_path / "000140"
    folder.mkdir()
    train = write(folder, "mc_maze_small")
    n = np.arange(3)
    event = np.array([2.003, 5.0, np.nan])
    trials = {
        "start_time": np.array([1.0, 4.0, 7.0]),
        "stop_time": np.array([3.0, 6.0, 8.0]),
        "move_onset_time": event,
        "split": ["test"] * 3,
    }
    spikes = [np.array([1.753, 1.755, 2.2]), np.array([]), np.array([4.8])]
    test = write_nwb(
        folder / "mc_maze_small_test.nwb",
        spikes,
        trials=trials,
        units={"heldout": [False] * len(n)},
        observed=[[1.753, 2.453], [4.75, 5.45]],
    )
    done = prepare_nlb("mc_maze_small", folder, tmp_path / "o.h5")
    assert done.trials == {"train": 12, "valid": 3, "test": 2}
    session = read_session(tmp_path / "o.h5", ["window_start"])
    tested = session.splits["test"]
    assert not tested.has_recon
    assert tested.encod_data.shape == (2, 140, 3)
    # the window from 1.753 s begins with the bin at 1.755 s
    assert np.flatnonzero(tested.encod_data[0, :, 0]).tolist() == [0, 89]
    assert np.flatnonzero(tested.encod_data[1, :, 2]).tolist() == [10]
    with pytest.raises(UserError, match="has 2 files with trials to train"):
        prepare_nlb("mc_maze_small", [train, train], tmp_path / "p.h5")
    with pytest.raises(UserError, match="has 0 files"):
        prepare_nlb("mc_maze_small", test, tmp_path / "p.h5")


def test_the_same_files_give_the_same_bytes_and_strict_wants_the_published_size(
    tmp_path: Path,
) -> None:
    source = write(tmp_path, "mc_rtt")
    for name in ("a.h5", "b.h5"):
        done = prepare_nlb("mc_rtt", source, tmp_path / name)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    assert any("98 units to read and 130" in text for text in done.warnings)
    with pytest.raises(DataError, match="98 units"):
        prepare_nlb("mc_rtt", source, tmp_path / "c.h5", strict=True)
    assert not (tmp_path / "c.h5").exists()


def test_what_is_not_the_data_set_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path, "mc_rtt")
    out = tmp_path / "o.h5"
    with pytest.raises(UserError, match=r"mc_mase.*did you mean mc_maze"):
        prepare_nlb("mc_mase", source, out)
    with pytest.raises(UserError, match="5 and 20 ms"):
        prepare_nlb("mc_rtt", source, out, bin_ms=10)
    with pytest.raises(DataError, match=r"lacks column 'move_onset_time'.*finger|lacks column"):
        prepare_nlb("mc_maze", source, out)
    with pytest.raises(UserError, match=r"dandi download DANDI:000129"):
        prepare_nlb("mc_rtt", [], out)
    plain = write_nwb(tmp_path / "plain.nwb", [np.array([1.0, 2.0])])
    with pytest.raises(DataError, match="no column 'split'"):
        prepare_nlb("mc_rtt", plain, out)
    prepare_nlb("mc_rtt", source, out)
    with pytest.raises(UserError, match="--overwrite"):
        prepare_nlb("mc_rtt", source, out)
