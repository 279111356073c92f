"""Output of spike sorters: phy and Kilosort folders, sortings of SpikeInterface."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy.io import savemat

from lfads_torch.cli import main
from lfads_torch.errors import DataError, UserError
from lfads_torch.prep import SourceOptions, open_recording, prepare
from lfads_torch.prep.sources import BinnedSpikes, SpikeTimes

HZ, SECONDS, N = 30000, 60, 12


def write_phy(folder: Path, kind: str = "phy") -> tuple[np.ndarray, np.ndarray]:
    """A folder as `kind` writes it: samples and clusters of its spikes."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    samples = np.sort(rng.integers(0, SECONDS * HZ, 4000))
    clusters = rng.integers(0, N, 4000)
    if kind == "unsorted":
        order = rng.permutation(4000)
        samples, clusters = samples[order], clusters[order]
    labels = {c: "good" if c % 3 else "noise" for c in range(N)}
    if kind == "kilosort4":
        np.save(folder / "spike_times.npy", samples.astype("i8"))
        np.save(folder / "spike_templates.npy", clusters.astype("i4"))
        np.save(folder / "ops.npy", np.array({"fs": HZ}, dtype=object))
        (folder / "params.py").write_text(
            f"dat_path = r'x.bin'\nsample_rate = {HZ}.  # Hz\nhp_filtered = False\n"
        )
        text = "cluster_id\tKSLabel\n" + "".join(f"{c}\t{v}\n" for c, v in labels.items())
        (folder / "cluster_KSLabel.tsv").write_text(text)
    else:
        np.save(folder / "spike_times.npy", samples.astype("u8")[:, None])
        np.save(folder / "spike_clusters.npy", clusters.astype("i4"))
        # What phy would execute: here a file appears if anything did.
        (folder / "params.py").write_text(
            f"open({str(folder / 'executed')!r}, 'w')\nsample_rate = {HZ}.0\n"
        )
        text = "cluster_id\tgroup\n" + "".join(f"{c}\t{v}\n" for c, v in labels.items() if c != 5)
        (folder / "cluster_group.tsv").write_text(text)
        info = "cluster_id\tch\tfr\tgroup\n" + "".join(
            f"{c}\t{2 * c}\t1.5\told\n" for c in range(N)
        )
        (folder / "cluster_info.tsv").write_text(info)
    return samples, clusters


def recorded_counts(path: Path) -> np.ndarray:
    """All bins of a chopped file in the order of time, (bins, units)."""
    with h5py.File(path) as file:
        starts = np.concatenate([file[f"{s}_chop_start"][()] for s in ("train", "valid")])
        data = np.concatenate([file[f"{s}_encod_data"][()] for s in ("train", "valid")])
    bins = np.zeros((starts.max() + data.shape[1], data.shape[2]), int)
    for start, window in zip(starts, data, strict=True):  # the last one of a block may overlap
        bins[start : start + len(window)] = window
    return bins


@pytest.mark.parametrize("kind", ["phy", "unsorted", "kilosort4"])
def test_folder(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "session"
    inner = folder / "kilosort4" if kind == "kilosort4" else folder
    samples, clusters = write_phy(inner, kind)
    column = "KSLabel" if kind == "kilosort4" else "group"
    done = prepare(folder, tmp_path / "o.h5", bin_ms=20, chop_ms=1000, units=[f"{column}=good"])
    good = [c for c in range(N) if c % 3 and (c != 5 or kind == "kilosort4")]
    # 20 ms are 600 samples: whole numbers decide the bin of each spike.
    first = int(samples.min() // 600)
    counts = np.zeros((SECONDS * 50, N), int)
    np.add.at(counts, (samples // 600, clusters), 1)
    got = recorded_counts(done.path)
    assert np.array_equal(got, counts[first : first + len(got), good])
    assert not (folder / "executed").exists()
    assert main(["prep", str(folder), "--list"]) == 0
    listed = capsys.readouterr().out
    assert f"Units: {N}" in listed and "30000 per second" in listed and "good (" in listed


def test_labels_of_tables_are_joined(tmp_path: Path) -> None:
    write_phy(tmp_path / "phy")
    units = open_recording(tmp_path / "phy" / "spike_times.npy").units
    assert units["ch"].tolist() == [2 * c for c in range(N)]
    # The single table is newer than what phy wrote of all at once; it lacks unit 5.
    assert units["group"][:7].tolist() == ["noise", "good", "good", "noise", "good", "old", "noise"]


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "phy"
    samples, _ = write_phy(folder)
    (folder / "params.py").unlink()
    with pytest.raises(UserError, match="--sampling-hz"):
        open_recording(folder)
    spikes = open_recording(folder, SourceOptions(sampling_hz=HZ)).spikes
    assert spikes.scan.high.max() == samples.max() / HZ
    np.save(folder / "spike_clusters.npy", np.zeros(3, int))
    with pytest.raises(DataError, match=r"has 4000 spikes, spike_clusters\.npy 3"):
        open_recording(folder, SourceOptions(sampling_hz=HZ))
    (folder / "spike_clusters.npy").unlink()
    with pytest.raises(DataError, match=r"spike_templates\.npy"):
        open_recording(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="without the output of a spike sorter"):
        open_recording(tmp_path / "empty")
    write_phy(tmp_path / "two" / "probe0")
    write_phy(tmp_path / "two" / "probe1")
    with pytest.raises(UserError, match="2 sortings: probe0, probe1"):
        open_recording(tmp_path / "two")


@pytest.mark.parametrize("kind", ["npz", "numpy_folder"])
@pytest.mark.parametrize("n_segments", [1, 2])
def test_spikeinterface(tmp_path: Path, kind: str, n_segments: int) -> None:
    core = pytest.importorskip("spikeinterface.core")
    lengths = [20.0, 10.0][:n_segments]
    sorting = core.generate_sorting(num_units=4, durations=lengths, seed=0, sampling_frequency=HZ)
    sorting.set_property("quality", ["good", "mua", "good", "noise"])
    if kind == "npz":
        path = tmp_path / "s.npz"
        core.NpzSortingExtractor.write_sorting(sorting, path)
    else:
        path = tmp_path / "s"
        sorting.save(folder=path)
    done = prepare(path, tmp_path / "o.h5", bin_ms=10, chop_ms=100)
    got = recorded_counts(done.path)
    trains = [
        [sorting.get_unit_spike_train(unit, segment_index=i) for unit in sorting.unit_ids]
        for i in range(n_segments)
    ]
    total = sum(len(train) for segment in trains for train in segment)
    recording = open_recording(path)
    assert sum(recording.spikes.count(unit) for unit in range(4)) == total
    if n_segments == 1:
        first = min(train.min() for train in trains[0]) // 300
        counts = np.stack([np.bincount(t // 300, minlength=2000) for t in trains[0]], axis=1)
        assert np.array_equal(got, counts[first : first + len(got)])
    if n_segments == 2:
        # The second segment begins anew at 0, and never shares a window with the first.
        assert recording.trials["segment"].tolist() == [0, 1]
        assert total - 20 < got.sum() <= total
    if kind == "numpy_folder":
        assert recording.units["quality"].tolist() == ["good", "mua", "good", "noise"]


def test_shanks_of_neurosuite(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    right, names = [], []
    for shank in (1, 2):
        samples, clusters = np.sort(rng.integers(0, 600_000, 500)), rng.integers(0, 4, 500)
        np.savetxt(tmp_path / f"day.res.{shank}", samples, fmt="%d")
        np.savetxt(tmp_path / f"day.clu.{shank}", [4, *clusters], fmt="%d")
        right += [samples[clusters == k] / 20_000 for k in (2, 3)]  # 0 and 1 are no units
        names += [f"{shank}_{k}" for k in (2, 3)]
    with pytest.raises(UserError, match="--sampling-hz"):
        open_recording(tmp_path / "day.res.1")
    (tmp_path / "day.xml").write_text("<a>\n <samplingRate>20000</samplingRate>\n</a>")
    recording = open_recording(tmp_path / "day.clu.2")
    assert recording.units["name"].tolist() == names
    for unit, seconds in enumerate(right):
        spikes = recording.spikes
        assert isinstance(spikes, SpikeTimes)
        np.testing.assert_array_equal(spikes.clock.seconds(spikes.units[unit][:]), seconds)
    prepare(tmp_path / "day.res.1", tmp_path / "o.h5", bin_ms=10, chop_ms=100)


@pytest.mark.parametrize("version", [5, 7])
def test_wave_clus(tmp_path: Path, version: int) -> None:
    rng = np.random.default_rng(0)
    pairs = np.stack([rng.integers(0, 3, 400), np.sort(rng.uniform(0, 6e4, 400))], axis=1)
    path = tmp_path / "times_CSC1.mat"
    if version == 5:
        savemat(path, {"cluster_class": pairs, "spikes": np.zeros((400, 64))})
    else:
        with h5py.File(path, "w") as file:
            for name, value in (("cluster_class", pairs), ("spikes", np.zeros((400, 64)))):
                file[name] = value.T
                file[name].attrs["MATLAB_class"] = np.bytes_("double")
    recording = open_recording(path)
    assert recording.units["name"].tolist() == [1, 2]
    spikes = recording.spikes
    assert isinstance(spikes, SpikeTimes)
    for i in (1, 2):
        seconds = spikes.clock.seconds(spikes.units[i - 1][:])
        np.testing.assert_allclose(seconds, pairs[pairs[:, 0] == i, 1] / 1000)


def test_alf_of_the_international_brain_laboratory(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    times, clusters = np.sort(rng.uniform(0, 60, 900)).round(4), rng.integers(0, 5, 900)
    starts = np.arange(1, 55, 2.0)
    for name, values in {
        "spikes.times": times,
        "spikes.clusters": clusters,
        "_ibl_trials.intervals": np.stack([starts, starts + 1], axis=1),
        "_ibl_trials.stimOn_times": starts + 0.1,
    }.items():
        np.save(tmp_path / f"{name}.npy", values)
    done = prepare(tmp_path, None, bin_ms=10, align="stimOn_times:0:500")
    row = done.arrays["train_trial"][0]
    edges = starts[row] + 0.1 + np.arange(51) / 100 - 1e-6
    right = [np.histogram(times[clusters == unit], edges)[0] for unit in range(5)]
    np.testing.assert_array_equal(done.arrays["train_encod_data"][0], np.transpose(right))


def test_arrays_in_files_of_their_own(tmp_path: Path) -> None:
    counts = np.random.default_rng(0).poisson(0.5, (20, 30, 4))
    np.save(tmp_path / "counts.npy", counts)
    np.save(tmp_path / "target.npy", np.arange(20) % 2)
    how = SourceOptions(axes="trial,time,unit", input_bin_ms=10)
    for path in (tmp_path / "counts.npy", tmp_path):
        spikes = open_recording(path, how).spikes
        assert isinstance(spikes, BinnedSpikes)
        assert spikes.n_units == 4
    assert open_recording(tmp_path, how).trials["target"].tolist() == [0, 1] * 10
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object))
    assert open_recording(tmp_path, how).notes[-1].startswith("not read: ")
    with pytest.raises(DataError, match="Python objects"):
        open_recording(tmp_path / "objects.npy")
