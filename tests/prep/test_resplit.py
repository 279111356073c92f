"""Ready files split anew: counts bit for bit, and no bin in two splits."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from lfads_torch.cli import main
from lfads_torch.data import read_order, split_kind, write_session
from lfads_torch.errors import DataError, UserError
from lfads_torch.prep.chop import cut_windows
from lfads_torch.prep.merging import covered_bins, merge_file
from lfads_torch.prep.resplit import split_file

WRIST = Path(__file__).parents[2].parent / "shared" / "data"
WINDOW, OVERLAP, N_WINDOWS = 10, 4, 60
SPLITS = ("train", "valid", "test")


def read(path: Path) -> dict[str, np.ndarray]:
    with h5py.File(path) as file:
        return {key: data[()] for key, data in file.items()}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Every fifth window validates, and neighbours share bins."""
    rng = np.random.default_rng(0)
    n_bins = (N_WINDOWS - 1) * (WINDOW - OVERLAP) + WINDOW
    series = {
        "encod_data": rng.poisson(0.4, (n_bins, 5)).astype(np.uint8),
        "behavior": rng.normal(size=(n_bins, 2)),
    }
    series["recon_data"] = series["encod_data"]
    inds = np.arange(N_WINDOWS)
    valid = inds % 5 == 3
    arrays: dict[str, np.ndarray] = {"psth": np.ones((2, 3))}
    for split, chosen in (("train", inds[~valid]), ("valid", inds[valid])):
        for name, values in series.items():
            starts = chosen * (WINDOW - OVERLAP)
            arrays[f"{split}_{name}"] = cut_windows(values, starts, WINDOW)
        arrays[f"{split}_inds"] = chosen
        arrays[f"{split}_target"] = chosen // 20
        arrays[f"{split}_list"] = np.arange(3)
    return write_session(tmp_path / "windows.h5", arrays, {"bin_ms": 20.0, "behavior": "x, y"})


@pytest.mark.parametrize("by", ["time", "blocks"])
def test_counts_come_back_and_no_bin_is_in_two_splits(file: Path, tmp_path: Path, by: str) -> None:
    done = split_file(
        file,
        tmp_path / "new.h5",
        by=by,
        positions="inds",
        overlap=OVERLAP,
        guard=2 if by == "time" else 0,
    )
    assert set(done.windows) == set(SPLITS)
    assert done.left_out == ["list"]
    new = read(done.path)
    with h5py.File(done.path) as made:
        assert made.attrs["bin_ms"] == 20
        n_bins = int(made.attrs["chop_n_bins"])
    covered = np.stack([covered_bins(new[f"{s}_chop_start"], WINDOW, n_bins) for s in SPLITS])
    assert (covered.sum(axis=0) <= 1).all()
    assert int((~covered.any(axis=0)).sum()) == done.uncovered
    whole = read(merge_file(file, tmp_path / "a.h5", positions="inds", overlap=OVERLAP))
    again = read(merge_file(done.path, tmp_path / "b.h5"))
    for name in ("encod_data", "recon_data", "behavior"):
        inside = covered.any(axis=0)
        np.testing.assert_array_equal(whole[name][inside], again[name][inside])
        assert new[f"test_{name}"].dtype == read(file)[f"train_{name}"].dtype
    np.testing.assert_array_equal(new["psth"], np.ones((2, 3)))
    # What has a row per window goes with the nearest old window.
    nearest = np.rint(new["test_chop_start"] / (WINDOW - OVERLAP)).astype(int)
    assert (abs(new["test_target"] - nearest // 20) <= 1).all()
    assert (new["test_target"] == nearest // 20).mean() > 0.8
    if by == "time":
        last = {s: int(new[f"{s}_chop_start"].max()) + WINDOW for s in SPLITS}
        assert last["train"] + 4 <= new["valid_chop_start"].min()
        assert last["valid"] + 4 <= new["test_chop_start"].min()


@pytest.mark.parametrize("day", [0, 95])
def test_the_wrist_recordings_in_order_of_time(day: int, tmp_path: Path) -> None:
    source = WRIST / f"isometric_wrist_day{day}.h5"
    if not source.is_file():
        pytest.skip(f"{source} is not here")
    done = split_file(source, tmp_path / "new.h5", positions="inds", overlap=6, guard=5)
    new = read(done.path)
    assert new["train_chop_start"].max() + 30 + 5 < new["valid_chop_start"].min()
    assert new["valid_chop_start"].max() + 30 + 5 < new["test_chop_start"].min()
    whole = read(merge_file(source, tmp_path / "a.h5", positions="inds", overlap=6))["encod_data"]
    again = read(merge_file(done.path, tmp_path / "b.h5"))["encod_data"]
    inside = np.isfinite(again).all(axis=1)
    assert inside.mean() > 0.98
    np.testing.assert_array_equal(whole[: len(again)][inside], again[inside])
    sizes = {s: len(new[f"{s}_encod_data"]) for s in SPLITS}
    order = read_order(sizes, new, new.__getitem__)
    assert split_kind(order, "test").name == split_kind(order, "valid").name == "chronological"


def test_kinds_of_split(file: Path) -> None:
    old = read(file)
    order = read_order({"train": 48, "valid": 12}, old, old.__getitem__)
    kind = split_kind(order, "valid")
    assert (order.key, kind.name, kind.between) == ("inds", "interleaved", 1.0)
    blocks = {"train_inds": np.r_[0:10, 20:30], "valid_inds": np.arange(10, 20)}
    kind = split_kind(read_order({"train": 20, "valid": 10}, blocks, blocks.__getitem__), "valid")
    assert (kind.name, kind.between) == ("blocks", 0.0)
    assert (
        split_kind(read_order({"train": 2, "valid": 1}, {}, dict().get), "valid").name == "unknown"
    )


def test_check_warns_of_windows_between_training_windows(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(file)]) == 0
    assert "100% of the validation windows lie between two" in " ".join(
        capsys.readouterr().out.split()
    )
    command = ["split", str(file), "-o", str(tmp_path / "t.h5"), "--positions", "inds", "--overlap"]
    assert main([*command, "4"]) == 0
    assert "left out, since they have no row for each window: list" in capsys.readouterr().out
    assert main(["check", str(tmp_path / "t.h5")]) == 0
    assert "lie between" not in capsys.readouterr().out


def test_errors(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "new.h5"
    with pytest.raises(DataError, match=r"windows disagree in .* check --positions"):
        split_file(file, out, positions="inds", overlap=3)
    with pytest.raises(DataError, match="does not say where its windows lie"):
        split_file(file, out)
    with pytest.raises(UserError, match=r"no window of 10 bins fits into what is valid"):
        split_file(file, out, positions="inds", overlap=4, valid=0.02)
    with pytest.raises(UserError, match="by is 'tme'"):
        split_file(file, out, by="tme", positions="inds", overlap=4)
    assert not out.exists()
    with pytest.raises(UserError, match="is the source itself"):
        split_file(file, file, positions="inds", overlap=4)
