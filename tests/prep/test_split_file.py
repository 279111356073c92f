"""Data files of the earlier LFADS keep their split."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from lfads_torch.cli import main
from lfads_torch.errors import DataError, UserError
from lfads_torch.prep import prepare

RNG = np.random.default_rng(0)


def write(path: Path, *, n: tuple[int, int] = (40, 10), dtype: str = "f4", **more: object) -> Path:
    x = RNG.poisson(0.3, (sum(n), 30, 10)).astype(dtype)
    with h5py.File(path, "w") as file:
        file["train_data"], file["valid_data"] = x[: n[0]], x[n[0] :]
        file["train_inds"] = np.arange(1, n[0] + 1)
        file["valid_inds"] = np.arange(n[0] + 1, sum(n) + 1)
        file["train_truth"] = RNG.uniform(5, 25, (n[0], 30, 10))
        file["valid_truth"] = RNG.uniform(5, 25, (n[1], 30, 10))
        file["conversion_factor"] = 50.0
        for key, value in more.items():
            file[key] = value
    return path


@pytest.mark.parametrize(
    "dtype, n, more",
    [
        ("f4", (40, 10), {}),
        (
            "i8",
            (12, 7),
            {
                "train_ext_input": RNG.normal(size=(12, 30, 2)),
                "valid_ext_input": RNG.normal(size=(7, 30, 2)),
                "alignment_matrix_cxf": RNG.normal(size=(10, 4)),
                "alignment_bias_c": RNG.normal(size=(1, 10)),
                "notes": "day 3",
            },
        ),
    ],
)
def test_split_and_all_else_are_kept(
    tmp_path: Path, dtype: str, n: tuple[int, int], more: dict[str, object]
) -> None:
    path = write(tmp_path / "lfads_day1.h5", n=n, dtype=dtype, **more)
    done = prepare(path, tmp_path / "o.h5")
    assert done.trials == {"train": n[0], "valid": n[1]}
    with h5py.File(path) as old, h5py.File(done.path) as new:
        for split in ("train", "valid"):
            for name in ("encod", "recon"):
                data = new[f"{split}_{name}_data"]
                assert data.dtype == old[f"{split}_data"].dtype
                np.testing.assert_array_equal(data[()], old[f"{split}_data"][()])
        rest = set(old) - {"train_data", "valid_data"}
        assert set(new) - rest <= {
            *(f"{s}_{k}_data" for s in ("train", "valid") for k in ("encod", "recon")),
            "readin_weight",
            "readout_bias",
        }
        for key in rest:
            assert np.array_equal(new[key][()], old[key][()]), key
        if "alignment_matrix_cxf" in more:
            np.testing.assert_array_equal(new["readin_weight"][()], more["alignment_matrix_cxf"])
            assert new["readout_bias"].shape == (10,)
    assert main(["check", str(done.path)]) == 0


def test_command_and_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "lfads_dataset001.h5")
    assert main(["prep", str(path), "--list"]) == 0
    listed = capsys.readouterr().out
    assert "its split is kept" in listed and f"lfads prep {path} -o" in listed
    output = tmp_path / "o.h5"
    assert main(["prep", str(path), "-o", str(output), "--input-bin-ms", "20"]) == 0
    with h5py.File(output) as file:
        assert file.attrs["bin_ms"] == 20.0
    # What would split anew, or change the bins, is refused by name.
    with pytest.raises(UserError, match="leave out --spikes, --valid"):
        prepare(path, tmp_path / "p.h5", spikes="train_data", valid=0.1)
    assert not (tmp_path / "p.h5").exists()


def test_shapes_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["train_data"], file["valid_data"] = np.ones((3, 5, 2)), np.ones((2, 5, 3))
    with pytest.raises(DataError, match="as many in each"):
        prepare(path, tmp_path / "o.h5")


@pytest.mark.parametrize("kind", ["npz", "mat 7.3"])
def test_other_formats_say_what_to_do(tmp_path: Path, kind: str) -> None:
    arrays = {"train_data": np.ones((8, 5, 2)), "valid_data": np.ones((2, 5, 2))}
    path = tmp_path / ("x.npz" if kind == "npz" else "x.mat")
    if kind == "npz":
        np.savez(path, **arrays)
    else:
        with h5py.File(path, "w") as file:
            for name, value in arrays.items():
                file[name] = value.T
                file[name].attrs["MATLAB_class"] = np.bytes_("double")
    with pytest.raises(UserError, match=r"split already.*with h5py"):
        prepare(path, tmp_path / "o.h5")


def test_the_width_that_the_file_gives_is_taken_and_not_contradicted(tmp_path: Path) -> None:
    path = write(tmp_path / "lfads.h5", dt=0.02)
    assert prepare(path, tmp_path / "o.h5").path is not None
    with h5py.File(tmp_path / "o.h5") as file:
        assert file.attrs["bin_ms"] == 20.0
    with pytest.raises(UserError, match=r"binned at 20 ms.*leave out --bin-ms"):
        prepare(path, tmp_path / "p.h5", bin_ms=40)
