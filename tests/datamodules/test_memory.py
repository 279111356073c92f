"""Sessions in memory: arrays, what `prepare` made without a file, and objects of libraries."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lfads_torch.datamodules import BasicDataModule
from lfads_torch.errors import DataError, UserError
from lfads_torch.prep import prepare

RNG = np.random.default_rng(0)
UNITS = [np.sort(RNG.uniform(0, 60, 900)) for _ in range(4)]
STARTS = np.arange(1, 57, 2.0)
PREP = {"bin_ms": 10, "align": "start_time:0:500", "seed": 3}
TRIALS = np.stack([STARTS, STARTS + 0.5], axis=1)


def batch(datamodule: BasicDataModule) -> np.ndarray:
    datamodule.setup()
    return datamodule.train_data[0][0].encod_data.numpy()


def test_prepared_arrays_equal_the_file(tmp_path: Path) -> None:
    done = prepare(UNITS, tmp_path / "o.h5", trials=TRIALS, **PREP)
    right = batch(BasicDataModule(done.path, batch_size=8))
    held = prepare(UNITS, None, trials=TRIALS, **PREP)
    module = BasicDataModule(held, batch_size=8, batch_keys=["trial"])
    np.testing.assert_array_equal(batch(module), right)
    assert module.sizes[0].n_valid == done.trials["valid"]
    np.testing.assert_array_equal(batch(BasicDataModule(held.arrays, batch_size=8)), right)
    two = BasicDataModule([held, held.arrays], batch_size=8)
    assert two.n_sessions == 2
    # With the file, `prepare` keeps no arrays.
    with pytest.raises(UserError, match=r"written to .*o\.h5"):
        BasicDataModule(done).setup()


def test_objects_are_prepared(tmp_path: Path) -> None:
    nap = pytest.importorskip("pynapple")
    group = nap.TsGroup({i: nap.Ts(unit) for i, unit in enumerate(UNITS)})
    epochs = nap.IntervalSet(STARTS, STARTS + 0.5)
    right = prepare(UNITS, None, trials=TRIALS, **PREP).arrays["train_encod_data"]
    for source, trials in ((group, epochs), (UNITS, TRIALS)):
        module = BasicDataModule(source, batch_size=8, prep={"trials": trials, **PREP})
        np.testing.assert_array_equal(batch(module), right)
    with pytest.raises(UserError, match="bin width is missing"):
        BasicDataModule(group).setup()
    module = BasicDataModule(UNITS, attr_keys=["nothing"], prep={"trials": TRIALS, **PREP})
    with pytest.raises(UserError, match="not among the arrays"):
        module.setup()


def test_arrays_of_other_makers() -> None:
    counts = np.random.default_rng(0).poisson(0.5, (20, 10, 3))
    prep = {"input_bin_ms": 10, "axes": "trial,time,unit"}
    for source in (counts, torch.tensor(counts), torch.tensor(counts * 1.0, requires_grad=True)):
        data = BasicDataModule(source, batch_size=4, prep=prep)
        data.setup()
        assert data.sizes[0].encod_dim == 3
    with pytest.raises(UserError, match=r"prep has no bins_ms; did you mean bin_ms"):
        BasicDataModule(counts, prep={"bins_ms": 10}).setup()


def test_what_is_no_array_is_named() -> None:
    arrays = {
        f"{s}_{k}_data": np.ones((4, 10, 3)) for s in ("train", "valid") for k in ("encod", "recon")
    }
    short = [np.ones((n, 3)) for n in (10, 8, 7, 9)]
    with pytest.raises(DataError, match=r"'train_encod_data' is a list of arrays of several sizes"):
        BasicDataModule(arrays | {"train_encod_data": short}).setup()
    half = torch.ones(4, 10, 3, dtype=torch.bfloat16)
    with pytest.raises(DataError, match=r"torch\.Tensor is no array that NumPy can read"):
        BasicDataModule(arrays | {"train_encod_data": half}).setup()
