"""Objects of other libraries as recordings: each against the library itself."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from lfads_torch.errors import DataError, UserError
from lfads_torch.prep import SourceOptions, open_recording, prepare
from lfads_torch.prep.sources import BinnedSpikes, SpikeTimes

# Whole samples of 1 ms, so that integers decide the bin of each spike.
RNG = np.random.default_rng(0)
MS = [np.unique(RNG.integers(0, 60_000, 700)) for _ in range(5)]
STARTS_MS = np.arange(1000, 57_000, 2000)
NAMES = ["a", "b", "c", "d", "e"]
# Trials of 500 ms in bins of 10 ms.
RIGHT = np.stack(
    [
        [np.histogram(unit, start + np.arange(0, 501, 10) - 0.5)[0] for unit in MS]
        for start in STARTS_MS
    ]
).transpose(0, 2, 1)


def trials() -> dict[str, Any]:
    return {"start_time": STARTS_MS / 1000, "side": np.arange(len(STARTS_MS)) % 2}


def numpy_list() -> tuple[Any, Any]:
    return [unit / 1000 for unit in MS], trials()


def numpy_dict() -> tuple[Any, Any]:
    return {"spike_times": [unit / 1000 for unit in MS], "trials": trials()}, None


def dict_by_unit() -> tuple[Any, Any]:
    source = {name: unit / 1000 for name, unit in zip(NAMES, MS, strict=True)}
    return source, np.stack([STARTS_MS, STARTS_MS + 500], axis=1) / 1000


def long_lists() -> tuple[Any, Any]:
    units = np.repeat(np.arange(5), list(map(len, MS)))
    return {"spike_times": np.concatenate(MS) / 1000, "unit": units}, trials()


def pynapple() -> tuple[Any, Any]:
    nap = pytest.importorskip("pynapple")
    units = {i: nap.Ts(unit / 1000) for i, unit in enumerate(MS)}
    group = nap.TsGroup(units, metadata={"area": NAMES})
    side = np.arange(len(STARTS_MS)) % 2
    epochs = nap.IntervalSet(STARTS_MS / 1000, (STARTS_MS + 500) / 1000, metadata={"side": side})
    return group, epochs


def pynapple_in_a_dict() -> tuple[Any, Any]:
    group, epochs = pynapple()
    return {"units": group, "trials": epochs}, None


def spikeinterface() -> tuple[Any, Any]:
    core = pytest.importorskip("spikeinterface.core")
    units = {name: unit * 30 for name, unit in zip(NAMES, MS, strict=True)}
    sorting = core.NumpySorting.from_unit_dict([units], sampling_frequency=30000.0)
    pd = pytest.importorskip("pandas")
    return sorting, pd.DataFrame(trials())


def neo_trains() -> tuple[Any, Any]:
    neo, pq = pytest.importorskip("neo"), pytest.importorskip("quantities")
    trains = [
        neo.SpikeTrain(unit * pq.ms, t_stop=60 * pq.s, name=name)
        for name, unit in zip(NAMES, MS, strict=True)
    ]
    n = len(STARTS_MS)
    side = np.arange(n) % 2
    epoch = neo.Epoch(STARTS_MS * pq.ms, np.full(n, 0.5) * pq.s, array_annotations={"side": side})
    return trains, epoch


def neo_segment() -> tuple[Any, Any]:
    import neo

    trains, epoch = neo_trains()
    segment = neo.Segment()
    segment.spiketrains.extend(trains)
    epoch.name = "trials"
    segment.epochs.append(epoch)
    return segment, None


def quantities() -> tuple[Any, Any]:
    pq = pytest.importorskip("quantities")
    return [unit * pq.ms for unit in MS], np.stack([STARTS_MS, STARTS_MS + 500], axis=1) * pq.ms


def frame() -> tuple[Any, Any]:
    pd = pytest.importorskip("pandas")
    pairs = [(t / 1000, u) for u, unit in enumerate(MS) for t in unit.tolist()]
    return pd.DataFrame(sorted(pairs), columns=["time", "unit"]), pd.DataFrame(trials())


SOURCES: list[Callable[[], tuple[Any, Any]]] = [
    numpy_list,
    numpy_dict,
    dict_by_unit,
    long_lists,
    quantities,
    frame,
    pynapple,
    pynapple_in_a_dict,
    spikeinterface,
    neo_trains,
    neo_segment,
]


@pytest.mark.parametrize("make", SOURCES)
def test_spike_times_with_intervals(tmp_path: Path, make: Callable[[], Any]) -> None:
    source, table = make()
    keep = [] if make in (dict_by_unit, quantities) else ["side"]
    done = prepare(
        source,
        tmp_path / "o.h5",
        trials=table,
        bin_ms=10,
        align="start_time:0:500",
        keep=keep,
    )
    with h5py.File(done.path) as file:
        for split in ("train", "valid"):
            rows = file[f"{split}_trial"][()]
            np.testing.assert_array_equal(file[f"{split}_encod_data"][()], RIGHT[rows])
            if keep:
                np.testing.assert_array_equal(file[f"{split}_side"][()], rows % 2)
    assert done.trials == {"train": 22, "valid": 6}
    units = open_recording(source, SourceOptions(trials=table)).units
    if make in (dict_by_unit, spikeinterface, neo_trains, neo_segment):
        assert units["name"].tolist() == NAMES
    if make is pynapple:
        assert units["area"].tolist() == NAMES


def test_arrays_of_bins(tmp_path: Path) -> None:
    counts = RNG.poisson(0.5, (40, 30, 6))
    done = prepare(counts, tmp_path / "o.h5", axes="trial,time,unit", input_bin_ms=10)
    with h5py.File(done.path) as file:
        rows = file["train_trial"][()]
        np.testing.assert_array_equal(file["train_encod_data"][()], counts[rows])
    # Which axis is which is asked as for a file.
    with pytest.raises(UserError, match="--axes"):
        prepare(counts, tmp_path / "p.h5", input_bin_ms=10)


def test_counts_of_pynapple() -> None:
    nap = pytest.importorskip("pynapple")
    group, _ = pynapple()
    spikes = open_recording(group.count(0.02, ep=nap.IntervalSet(0, 60))).spikes
    assert isinstance(spikes, BinnedSpikes)
    assert (spikes.bin_s, round(spikes.start, 9), spikes.n_bins) == (0.02, 0, 3000)
    right = np.stack([np.bincount(unit // 20, minlength=3000) for unit in MS], axis=1)
    np.testing.assert_array_equal(spikes.read(0, 3000), right)


def test_behaviour_of_pynapple_goes_along(tmp_path: Path) -> None:
    nap = pytest.importorskip("pynapple")
    group, epochs = pynapple()
    times = np.arange(0, 60, 0.01)
    hand = nap.TsdFrame(t=times, d=np.stack([times, -times], axis=1), columns=["x", "y"])
    source = {"units": group, "hand": hand}
    prepare(
        source,
        tmp_path / "hand.h5",
        trials=epochs,
        bin_ms=10,
        align="start_time:0:500",
        behavior=["hand"],
    )
    with h5py.File(tmp_path / "hand.h5") as file:
        assert file.attrs["behavior"].tolist() == ["hand x", "hand y"]
        rows, first = file["train_trial"][()], file["train_behavior"][:, 0, 0]
    np.testing.assert_allclose(first, STARTS_MS[rows] / 1000, atol=1e-6)


@pytest.mark.parametrize("clock", ["anew", "one"])
def test_segments_of_neo_are_trials(tmp_path: Path, clock: str) -> None:
    neo, pq = pytest.importorskip("neo"), pytest.importorskip("quantities")
    block, right = neo.Block(), []
    for i in range(20):
        zero = 0 if clock == "anew" else 2000 * i
        segment = neo.Segment(condition=i % 4)
        spikes = [np.unique(RNG.integers(0, 1000, 60)) for _ in range(3)]
        for unit in spikes:
            train = (unit + zero) * pq.ms
            stop = (1000 + zero) * pq.ms
            segment.spiketrains.append(neo.SpikeTrain(train, t_start=zero * pq.ms, t_stop=stop))
        segment.events.append(neo.Event([300 + zero] * pq.ms, labels=["go"]))
        block.segments.append(segment)
        right.append([np.bincount(unit // 10, minlength=100) for unit in spikes])
    counts = np.stack(right).transpose(0, 2, 1)
    align = "start_time:0:1000"
    done = prepare(block, None, bin_ms=10, align=align, conditions=["condition"])
    rows = done.arrays["train_trial"]
    np.testing.assert_array_equal(done.arrays["train_encod_data"], counts[rows])
    if clock == "anew":
        done = prepare(block, None, bin_ms=10, align="go:-100:400")
        rows = done.arrays["train_trial"]
        np.testing.assert_array_equal(done.arrays["train_encod_data"], counts[rows, 20:70])
        # Without a window, the whole trials.
        assert prepare(block, None, bin_ms=10).arrays["train_encod_data"].shape[1:] == (100, 3)


def test_segments_of_a_sorting_have_a_clock_each() -> None:
    core = pytest.importorskip("spikeinterface.core")
    segments = [{"u": np.arange(30, 3000, 90)}, {"u": np.arange(60, 3000, 90)}]
    sorting = core.NumpySorting.from_unit_dict(segments, sampling_frequency=1000.0)
    recording = open_recording(sorting)
    assert recording.trials["segment"].tolist() == [0, 1]
    spikes, starts = recording.spikes, recording.starts
    assert isinstance(spikes, SpikeTimes) and starts is not None
    right = np.concatenate([s["u"] / 1000 + at for s, at in zip(segments, starts, strict=True)])
    np.testing.assert_allclose(spikes.units[0][:], right)
    # Both stretches were recorded, and no window reaches from one into the other.
    done = prepare(sorting, None, bin_ms=10, chop_ms=100)
    windows = np.concatenate([done.arrays[f"{s}_window_start"] for s in ("train", "valid")])
    assert 56 <= len(windows) <= 80  # with a while after the last spike
    inside = [((windows >= a) & (windows + 0.1 <= b)).sum() for a, b in recording.observed]
    assert sum(inside) == len(windows) and min(inside) >= 28


def test_a_sorting_is_on_the_clock_of_its_recording() -> None:
    core = pytest.importorskip("spikeinterface.core")
    units = {name: unit * 30 for name, unit in zip(NAMES, MS, strict=True)}
    sorting = core.NumpySorting.from_unit_dict([units], sampling_frequency=30000.0)
    traces = core.NumpyRecording([np.zeros((60 * 30000, 1), "int8")], 30000.0)
    traces.shift_times(0.5)  # recording began so long after the clock of the events
    sorting.register_recording(traces)
    table = {"start_time": STARTS_MS / 1000 + 0.5}
    done = prepare(sorting, None, trials=table, bin_ms=10, align="start_time:0:500")
    np.testing.assert_array_equal(
        done.arrays["train_encod_data"], RIGHT[done.arrays["train_trial"]]
    )


@pytest.mark.parametrize("kind", ["array", "dataset", "time in ms"])
def test_xarray(kind: str) -> None:
    xr = pytest.importorskip("xarray")
    counts = RNG.poisson(0.5, (6, 30, 24))  # neuron x time x trial
    scale = 1 if kind == "time in ms" else 1000
    coords = {
        "neuron": [f"n{i}" for i in range(6)],
        "time": ("time", np.arange(30) * 20 / scale, {"units": "ms"} if scale == 1 else {}),
        "target": ("trial", np.arange(24) % 3),
    }
    source = xr.DataArray(counts, dims=("neuron", "time", "trial"), coords=coords)
    if kind == "dataset":
        hand = ("trial", "time", "xy"), RNG.normal(size=(24, 30, 2))
        source = xr.Dataset({"spikes": source, "hand": hand})
    done = prepare(source, None, keep=["target"], behavior=["hand"] if kind == "dataset" else [])
    rows = done.arrays["valid_trial"]
    np.testing.assert_array_equal(done.arrays["valid_target"], rows % 3)
    np.testing.assert_array_equal(done.arrays["valid_encod_data"], counts.transpose(2, 1, 0)[rows])
    if kind == "dataset":
        np.testing.assert_allclose(
            done.arrays["valid_behavior"], source["hand"].values[rows], atol=1e-6
        )
    assert open_recording(source).units["name"].tolist() == coords["neuron"]


def test_what_is_no_recording() -> None:
    with pytest.raises(UserError, match=r"builtins\.int; legal are"):
        open_recording(3)
    with pytest.raises(UserError, match=r"trials is builtins\.int; legal are"):
        open_recording([np.arange(9.0)], SourceOptions(trials=3))
    with pytest.raises(DataError, match="one value per trial"):
        open_recording([np.arange(9.0)], SourceOptions(trials={"a": [1, 2], "b": [1]}))
    nap = pytest.importorskip("pynapple")
    with pytest.raises(UserError, match="IntervalSet has no spikes"):
        open_recording(nap.IntervalSet([0, 1], [0.5, 1.5]))
    neo = pytest.importorskip("neo")
    with pytest.raises(DataError, match="no spike trains"):
        open_recording(neo.Segment())


def test_intervals_are_the_windows() -> None:
    group, epochs = pynapple()
    done = prepare(group, None, trials=epochs, bin_ms=10)
    rows = done.arrays["train_trial"]
    np.testing.assert_array_equal(done.arrays["train_encod_data"], RIGHT[rows])
    # Of several lengths, the longest is the window, and the others end before.
    stops = STARTS_MS + np.where(np.arange(len(STARTS_MS)) % 2, 500, 300)
    table = np.stack([STARTS_MS, stops], axis=1) / 1000
    arrays = prepare([unit / 1000 for unit in MS], None, trials=table, bin_ms=10).arrays
    rows = arrays["train_trial"]
    np.testing.assert_array_equal(arrays["train_lengths"], np.where(rows % 2, 50, 30))
    for row, length, got in zip(
        rows, arrays["train_lengths"], arrays["train_encod_data"], strict=True
    ):
        np.testing.assert_array_equal(got[:length], RIGHT[row, :length])


def test_frames_of_counts() -> None:
    pd = pytest.importorskip("pandas")
    counts = RNG.poisson(0.5, (50, 3))
    source = pd.DataFrame(counts, index=np.arange(50) * 0.02, columns=["a", "b", "c"])
    recording = open_recording(source)
    assert isinstance(recording.spikes, BinnedSpikes)
    assert recording.spikes.bin_s == 0.02
    assert recording.units["name"].tolist() == ["a", "b", "c"]
    np.testing.assert_array_equal(recording.spikes.read(0, 50), counts)


def test_frames_with_arrays_in_their_fields() -> None:
    pd = pytest.importorskip("pandas")
    spikes = [unit / 1000 for unit in MS]
    units = pd.DataFrame({"spike_times": spikes, "area": NAMES}, index=[7, 3, 4, 5, 9])
    recording = open_recording(units)
    assert recording.units["name"].tolist() == [7, 3, 4, 5, 9]
    assert recording.units["area"].tolist() == NAMES
    done = prepare(units, None, trials=pd.DataFrame(trials()), bin_ms=10, align="start_time:0:500")
    np.testing.assert_array_equal(
        done.arrays["train_encod_data"], RIGHT[done.arrays["train_trial"]]
    )
    # A row for each trial, with its counts.
    frame = pd.DataFrame({"side": trials()["side"], "M1_spikes": list(RIGHT), "bin_ms": 10})
    done = prepare(frame, None, conditions=["side"])
    np.testing.assert_array_equal(
        done.arrays["train_encod_data"], RIGHT[done.arrays["train_trial"]]
    )


def test_masked_entries_are_missing() -> None:
    counts = np.ma.masked_array(RNG.poisson(0.5, (20, 10, 3)), np.zeros((20, 10, 3), bool))
    counts[4, 2:5, 1] = np.ma.masked
    options = {"input_bin_ms": 10, "axes": "trial,time,unit"}
    done = prepare(counts, None, split="time", **options)
    right = counts.data.astype(float)
    right[4, 2:5, 1] = np.nan
    np.testing.assert_array_equal(done.arrays["train_encod_data"], right[:16])
    starts = np.ma.masked_array(STARTS_MS / 1000, np.arange(len(STARTS_MS)) == 3)
    done = prepare(
        [unit / 1000 for unit in MS], None, trials={"start_time": starts}, bin_ms=10,
        align="start_time:0:500",
    )  # fmt: skip
    rows = np.concatenate([done.arrays[f"{split}_trial"] for split in ("train", "valid")])
    assert sorted(rows) == [row for row in range(len(STARTS_MS)) if row != 3]


def test_missing_words_are_no_condition() -> None:
    pd = pytest.importorskip("pandas")
    words = pd.array(["a", None, "b", "a"] * (len(STARTS_MS) // 4), dtype="string")
    for column in (words, words.astype(object), list(words.fillna(""))):
        table = {"start_time": STARTS_MS / 1000, "c": column}
        done = prepare(
            [unit / 1000 for unit in MS], None, trials=table, bin_ms=10,
            align="start_time:0:500", conditions=["c"],
        )  # fmt: skip
        labels = done.arrays["train_cond_idx"]
        assert set(labels) == {-1, 0, 1}
        np.testing.assert_array_equal(labels == -1, done.arrays["train_trial"] % 4 == 1)


@pytest.mark.parametrize("kind", ["sparse", "tensor", "lists"])
def test_counts_of_other_makers(kind: str) -> None:
    counts = RNG.poisson(0.5, (500, 3))
    source: Any = counts.tolist()
    if kind == "sparse":
        source = pytest.importorskip("scipy.sparse").csr_array(counts)
    elif kind == "tensor":
        source = pytest.importorskip("torch").tensor(counts)
    spikes = open_recording(source, SourceOptions(input_bin_ms=10, axes="time,unit")).spikes
    assert isinstance(spikes, BinnedSpikes)
    np.testing.assert_array_equal(spikes.read(0, 500), counts)


def test_spike_times_of_other_makers() -> None:
    torch = pytest.importorskip("torch")
    by_trial = [[(unit[unit < ms] / 1000).tolist() for unit in MS] for ms in range(900, 1500, 100)]
    for source, n in (([torch.tensor(unit / 1000) for unit in MS], 0), (by_trial, 6)):
        recording = open_recording(source, SourceOptions(axes="trial,unit" if n else None))
        assert (recording.n_units, recording.n_trials) == (5, n)


def test_numbers_that_are_none_name_their_type() -> None:
    for values, text in (
        (np.zeros((20, 10, 3), complex), "holds complex128"),
        ([unit.astype("timedelta64[ms]") for unit in MS], "turn them into seconds"),
    ):
        with pytest.raises(DataError, match=text):
            open_recording({"spike_times": values})
    torch = pytest.importorskip("torch")
    with pytest.raises(DataError, match=r"torch\.Tensor is no array .*; convert it first"):
        open_recording(torch.zeros(3, 4, dtype=torch.bfloat16))
