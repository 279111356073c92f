"""Outputs read back: names, order, merging, units, tables, and errors that say what to do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lfads_torch
from lfads_torch.data import write_session
from lfads_torch.errors import DataError, UserError
from lfads_torch.post_run.analysis import run_posterior_sampling
from lfads_torch.post_run.outputs import load_outputs
from lfads_torch.tuples import SessionOutput
from tests import small
from tests.post_run.outputs_of import ALL, N_TRIALS, READ, arrays, write_run


@pytest.fixture
def known() -> dict[str, np.ndarray]:
    return arrays(splits=("train", "valid", "test"))


@pytest.fixture
def run(tmp_path: Path, known: dict[str, np.ndarray]) -> Path:
    return write_run(tmp_path / "run", known | {"psth": np.ones((4, 12, 7))})


def test_arrays_by_name_in_the_files_order(run: Path, known: dict[str, np.ndarray]) -> None:
    outputs = lfads_torch.load_outputs(run)
    for split in ("train", "valid", "test"):
        trials = getattr(outputs, split)
        assert len(trials) == trials.n_trials == N_TRIALS[split]
        for name in ("factors", "output_params", "behavior", "recon_data"):
            assert np.array_equal(trials[name], known[f"{split}_{name}"])
            assert getattr(trials, name) is trials[name]
            assert name in trials
            assert name in dir(trials)
        assert set(trials.split) == {split}
    assert np.array_equal(outputs[0].read("psth"), np.ones((4, 12, 7)))
    assert outputs[0] is outputs["day0"]
    assert outputs[0].read_sizes == READ
    assert "factors" in repr(outputs.valid)
    assert "60 train" in repr(outputs[0])
    assert outputs.valid.get("nothing") is None


def test_the_fields_are_those_of_the_model(tmp_path: Path) -> None:
    data = small.datamodule(small.write(tmp_path, small.arrays(ext=1, n_test=2)))
    model = small.lfads(data)
    run_posterior_sampling(model, data, "lfads_output.h5", 2, folder=tmp_path / "run")
    outputs = load_outputs(tmp_path / "run")
    assert outputs.names == ("day0",)
    assert set(SessionOutput._fields) - {"behavior"} <= set(outputs.train.names)
    assert outputs.test.factors.shape == (2, 6, small.DIMS["fac_dim"])


class TestUnits:
    def test_rates_per_second(self, run: Path, known: dict[str, np.ndarray]) -> None:
        outputs = load_outputs(run)
        assert outputs.bin_ms == 10.0
        assert outputs.valid.rates == pytest.approx(known["valid_output_params"] * 100)
        assert outputs.valid.time_ms == pytest.approx(np.arange(ALL[0]) * 10)
        assert load_outputs(run, bin_ms=5.0).valid.rates == pytest.approx(
            known["valid_output_params"] * 200, rel=1e-6
        )

    def test_an_unknown_width_is_not_guessed(self, tmp_path: Path, known: dict) -> None:
        outputs = load_outputs(write_run(tmp_path, known, bin_ms=None))
        assert outputs.bin_ms is None
        assert outputs.valid.time_ms is None
        with pytest.raises(DataError, match=r"how wide its bins are.*bin_ms="):
            _ = outputs.valid.rates

    @pytest.mark.parametrize("change", ["fractions", "negative data", "negative means"])
    def test_what_is_no_count_has_no_spikes_per_second(
        self, tmp_path: Path, known: dict, change: str
    ) -> None:
        if change == "fractions":
            known["valid_recon_data"][0, 0, 0] = 0.5
        elif change == "negative data":
            known["valid_recon_data"][0, 0, 0] = -1
        else:
            known["valid_output_params"][0, 0, 0] = -0.1
        outputs = load_outputs(write_run(tmp_path, known))
        assert not outputs.counts
        with pytest.raises(DataError, match="not counts"):
            _ = outputs.train.rates

    def test_missing_bins_are_still_counts(self, tmp_path: Path, known: dict) -> None:
        known["valid_recon_data"][0, 2:4] = np.nan
        assert load_outputs(write_run(tmp_path, known)).counts


class TestMerging:
    def test_in_the_order_of_the_recording(self, run: Path, known: dict) -> None:
        merged = load_outputs(run).merged()
        assert merged.n_trials == sum(N_TRIALS[split] for split in ("train", "valid", "test"))
        assert np.array_equal(merged["inds"], np.arange(merged.n_trials))
        for position in (0, 17, 50, 97):
            split = merged.split[position]
            row = np.flatnonzero(known[f"{split}_inds"] == position)[0]
            assert np.array_equal(merged.factors[position], known[f"{split}_factors"][row])
            expected = known[f"{split}_output_params"][row] * 100
            assert merged.rates[position] == pytest.approx(expected)

    def test_some_splits(self, run: Path) -> None:
        merged = load_outputs(run).merged(["train", "valid"])
        assert set(merged.split) == {"train", "valid"}
        assert (np.diff(merged["inds"]) > 0).all()

    @settings(max_examples=15, deadline=None)
    @given(seed=st.integers(0, 999), n_train=st.integers(1, 9), n_valid=st.integers(1, 9))
    def test_undoes_any_split(
        self, tmp_path_factory: pytest.TempPathFactory, seed: int, n_train: int, n_valid: int
    ) -> None:
        rng = np.random.default_rng(seed)
        whole = rng.normal(size=(n_train + n_valid, 3, 2))
        order = rng.permutation(len(whole))
        # Positions need not be consecutive, nor ascending within a split.
        parts = {"train": order[:n_train], "valid": order[n_train:]}
        session = {f"{s}_output_params": whole[rows] for s, rows in parts.items()}
        session |= {f"{s}_inds": rows * 3 + 7 for s, rows in parts.items()}
        folder = write_run(tmp_path_factory.mktemp("merge"), session)
        assert np.array_equal(load_outputs(folder).merged().output_params, whole)

    def test_without_positions(self, tmp_path: Path, known: dict) -> None:
        del known["train_inds"]
        outputs = load_outputs(write_run(tmp_path, known))
        assert set(outputs.merged().split) == {"valid", "test"}, "those that say where they were"
        with pytest.raises(DataError, match="add 'train_inds'"):
            outputs.merged(["train", "valid"])

    def test_two_trials_at_one_position(self, tmp_path: Path, known: dict) -> None:
        known["valid_inds"] = known["train_inds"][:30]
        with pytest.raises(DataError, match=r"position .* is that of 2 trials"):
            load_outputs(write_run(tmp_path, known)).merged()

    def test_positions_of_the_wrong_shape(self, tmp_path: Path, known: dict) -> None:
        known["valid_inds"] = np.arange(3)
        with pytest.raises(DataError, match=r"'valid_inds' has shape \(3,\).*30 trials"):
            load_outputs(write_run(tmp_path, known)).merged()

    def test_arrays_that_do_not_fit(self, tmp_path: Path, known: dict) -> None:
        known["test_truth"] = known["test_truth"][:, :4]
        with pytest.raises(DataError, match="cannot be merged: its shapes are train"):
            _ = load_outputs(write_run(tmp_path, known)).merged()["truth"]


class TestSessions:
    def test_several(self, tmp_path: Path) -> None:
        sessions = [arrays(seed) for seed in range(12)]
        outputs = load_outputs(write_run(tmp_path, *sessions))
        assert len(outputs) == 12
        assert outputs.names[10] == "day10", "sorted by number, not by letters"
        assert np.array_equal(outputs["day10"].valid.factors, sessions[10]["valid_factors"])
        assert [session.name for session in outputs][:2] == ["day0", "day1"]
        with pytest.raises(AttributeError, match=r"12 sessions.*outputs\[0\]"):
            _ = outputs.valid
        with pytest.raises(UserError, match="no session 'dya1'; did you mean day1"):
            _ = outputs["dya1"]

    def test_one_file_or_the_name_given_to_sample(self, run: Path) -> None:
        path = run / "lfads_output_sess0.h5"
        assert load_outputs(path).names == ("day0",)
        assert load_outputs(run / "lfads_output.h5").names == ("day0",)


class TestErrors:
    def test_misspelt_names(self, run: Path) -> None:
        outputs = load_outputs(run)
        with pytest.raises(DataError, match="'factor' for valid; did you mean factors"):
            _ = outputs.valid["factor"]
        with pytest.raises(AttributeError, match="did you mean factors"):
            _ = outputs.valid.factor
        with pytest.raises(DataError, match="no key 'psht'; did you mean psth"):
            outputs.read("psht")

    def test_no_such_split(self, tmp_path: Path) -> None:
        outputs = load_outputs(write_run(tmp_path, arrays()))
        with pytest.raises(UserError, match="no outputs for split 'test'; legal are train, valid"):
            _ = outputs[0].test

    def test_no_outputs(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"no output file.*lfads sample"):
            load_outputs(tmp_path)
        with pytest.raises(UserError, match="does not exist"):
            load_outputs(tmp_path / "nowhere")
        write_session(tmp_path / "data.h5", small.arrays())
        with pytest.raises(DataError, match="holds no model output"):
            load_outputs(tmp_path / "data.h5")
        with pytest.raises(UserError, match="bin_ms is 0"):
            load_outputs(tmp_path / "data.h5", bin_ms=0)


class TestTables:
    def test_xarray(self, run: Path, known: dict) -> None:
        pytest.importorskip("xarray")
        table = load_outputs(run).merged().to_xarray()
        assert table["rates"].dims == ("trial", "time", "channel")
        assert table["rates"].attrs["units"] == "spikes/s"
        assert table["encod_data"].dims == ("trial", "time_read", "channel_read")
        assert table["behavior"].dims == ("trial", "time_read", "behavior_2")
        assert table["co_means"].shape == (98, ALL[0], 0)
        assert table["time"].values == pytest.approx(np.arange(ALL[0]) * 0.01)
        valid = table.isel(trial=table["split"] == "valid")
        assert np.array_equal(valid["factors"].values, known["valid_factors"])

    def test_pandas(self, run: Path, known: dict) -> None:
        pytest.importorskip("pandas")
        valid = load_outputs(run).valid
        table = valid.to_pandas("factors")
        assert table.loc[(3, 5)].tolist() == known["valid_factors"][3, 5].tolist()
        assert table.index.names == ["trial", "bin"]
        assert table.columns.name == "factor"
        assert valid.to_pandas("rates").shape == (30 * ALL[0], ALL[1])
        assert valid.to_pandas("ic_mean").shape == (30, 3)
        assert valid.to_pandas("cond_idx").shape == (30, 1)

    @pytest.mark.parametrize("package", ["xarray", "pandas"])
    def test_not_installed(self, run: Path, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, package, None)
        valid = load_outputs(run).valid
        with pytest.raises(UserError, match=f"pip install {package}"):
            valid.to_xarray() if package == "xarray" else valid.to_pandas("factors")


def test_reading_outputs_needs_no_torch(run: Path) -> None:
    code = (
        "import sys, lfads_torch\n"
        f"print(lfads_torch.load_outputs({str(run)!r}).valid.rates.shape)\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"(30, {ALL[0]}, {ALL[1]})"
