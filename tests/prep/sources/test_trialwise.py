"""Data stored trial by trial, in each format, are trials x bins x units in the order stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from scipy.io import savemat

from lfads_torch.data import check_file
from lfads_torch.errors import UserError
from lfads_torch.prep import prepare

N, UNITS, MS = 30, 12, 400


def bits(shape: tuple[int, ...], seed: int = 5) -> np.ndarray:
    return (np.random.default_rng(seed).random(shape) < 0.03).astype("u1")


def summed(trials: np.ndarray, width: int = 10) -> np.ndarray:
    """Trials x units x ms to trials x bins x units."""
    n, units, ms = trials.shape
    return trials.reshape(n, units, ms // width, width).sum(axis=3).transpose(0, 2, 1)


def in_order(path: Path, key: str = "recon_data") -> np.ndarray:
    """Rows of all splits in the order of the recording's trials."""
    with h5py.File(path) as file:
        splits = [s for s in ("train", "valid", "test") if f"{s}_{key}" in file]
        rows = np.concatenate([file[f"{s}_{key}"][()] for s in splits])
        trials = np.concatenate([file[f"{s}_trial"][()] for s in splits])
    assert sorted(trials) == list(range(len(trials)))
    return rows[np.argsort(trials)]


def cells(arrays: list[Any], shape: tuple[int, ...]) -> np.ndarray:
    result = np.empty(len(arrays), dtype=object)
    for i, array in enumerate(arrays):
        result[i] = array
    return result.reshape(shape)


def structs(**fields: Any) -> np.ndarray:
    """An array of structs, 1 x n."""
    n = len(next(iter(fields.values())))
    result = np.zeros((1, n), dtype=[(name, object) for name in fields])
    for i in range(n):
        for name, values in fields.items():
            result[0, i][name] = values[i]
    return result


def test_a_struct_for_each_trial_and_a_cell_for_each_trial(tmp_path: Path) -> None:
    trials = bits((N, UNITS, MS))
    target = np.arange(N) % 8 + 1.0
    dat = structs(trialId=np.arange(N) + 1.0, spikes=trials, target=target)
    savemat(tmp_path / "dat.mat", {"dat": dat})
    savemat(tmp_path / "cells.mat", {"trials": cells(list(trials), (N, 1))})
    given = {"input_bin_ms": 1.0, "bin_ms": 10.0}
    prepare(
        tmp_path / "dat.mat",
        tmp_path / "dat.h5",
        spikes="dat.spikes",
        axes="unit,time",
        conditions=["target"],
        **given,
    )
    prepare(
        tmp_path / "cells.mat", tmp_path / "cells.h5", spikes="trials", axes="unit,time", **given
    )
    for name in ("dat.h5", "cells.h5"):
        np.testing.assert_array_equal(in_order(tmp_path / name), summed(trials))
    np.testing.assert_array_equal(in_order(tmp_path / "dat.h5", "target"), target)
    assert set(in_order(tmp_path / "dat.h5", "cond_idx")) == set(range(8))


def test_an_array_of_units_ms_and_trials(tmp_path: Path) -> None:
    trials = bits((N, UNITS, MS))
    table = {"go": np.full(N, 0.2), "target": np.arange(N) % 8}
    savemat(tmp_path / "s.mat", {"spikes": trials.transpose(1, 2, 0), "trials": table})
    done = prepare(
        tmp_path / "s.mat", tmp_path / "o.h5", input_bin_ms=1, bin_ms=10, conditions=["target"]
    )
    np.testing.assert_array_equal(in_order(tmp_path / "o.h5"), summed(trials))
    np.testing.assert_array_equal(in_order(tmp_path / "o.h5", "target"), table["target"])
    assert any("'trials' has 30 rows" in note for note in done.notes)


def test_a_cell_of_trials_by_units(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    times = [
        [np.sort(rng.uniform(-0.5, 1, rng.integers(1, 9))) for _ in range(8)] for _ in range(N)
    ]
    edges = np.arange(-0.5, 1.0001, 0.05)
    right = np.array([[np.histogram(t, edges)[0] for t in trial] for trial in times])
    stored = cells([t[None, :] for trial in times for t in trial], (N, 8))
    savemat(tmp_path / "tu.mat", {"spikes": stored, "target": np.arange(N)[:, None] % 4})
    for axes in (None, "trial,unit"):
        for align in (None, "0:-500:1000"):
            prepare(
                tmp_path / "tu.mat",
                tmp_path / "o.h5",
                axes=axes,
                bin_ms=50,
                align=align,
                overwrite=True,
            )
            np.testing.assert_array_equal(in_order(tmp_path / "o.h5"), right.transpose(0, 2, 1))
    savemat(tmp_path / "bare.mat", {"spikes": stored})
    with pytest.raises(UserError, match=r"--axes trial,unit(.|\n)*--axes unit,trial"):
        prepare(tmp_path / "bare.mat", tmp_path / "p.h5", bin_ms=50)


@pytest.mark.parametrize("units_first", [True, False])
def test_trials_of_several_lengths(tmp_path: Path, units_first: bool) -> None:
    lengths = np.random.default_rng(1).integers(200, 400, N)
    trials = [bits((UNITS, n), seed=i) for i, n in enumerate(lengths.tolist())]
    pos = [np.stack([np.arange(n), -np.arange(n)]) * 0.5 for n in lengths.tolist()]
    turn = (lambda a: a) if units_first else (lambda a: a.T)
    dat = structs(
        M1_spikes=[turn(t) for t in trials],
        pos=[turn(p) for p in pos],
        bin_size=np.full(N, 0.001),
        idx_goCueTime=lengths // 2,
    )
    savemat(tmp_path / "td.mat", {"trial_data": dat})
    prepare(tmp_path / "td.mat", tmp_path / "o.h5", bin_ms=10, behavior=["pos"])
    counts, found = in_order(tmp_path / "o.h5"), in_order(tmp_path / "o.h5", "lengths")
    np.testing.assert_array_equal(found, lengths // 10)
    behavior = in_order(tmp_path / "o.h5", "behavior")
    for i, trial in enumerate(trials):
        n = lengths[i] // 10
        right = trial[:, : n * 10].reshape(UNITS, n, 10).sum(axis=2).T
        np.testing.assert_array_equal(counts[i, :n], right)
        assert np.isnan(counts[i, n:]).all()
        means = pos[i][:, : n * 10].reshape(2, n, 10).mean(axis=2).T
        np.testing.assert_allclose(behavior[i, :n], means, rtol=1e-6)
    assert not check_file(tmp_path / "o.h5").errors
    # the bin of index k, from 1, begins k - 1 bins after the trial does
    prepare(tmp_path / "td.mat", tmp_path / "g.h5", bin_ms=10, align="idx_goCueTime:-50:50")
    for i, found_counts in enumerate(in_order(tmp_path / "g.h5")):
        first = lengths[i] // 2 - 1 - 50
        right = trials[i][:, first : first + 100].reshape(UNITS, 10, 10).sum(axis=2).T
        np.testing.assert_array_equal(found_counts, right)
