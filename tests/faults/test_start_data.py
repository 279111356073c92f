"""What the end of a run needs of a data file is checked at the start; absurd numbers are named."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from lfads_torch.cli import main
from lfads_torch.data import DataWarning, check_file
from lfads_torch.datamodules import BasicDataModule
from lfads_torch.errors import DataError
from tests.small import arrays, write


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write(tmp_path, arrays())
    return tmp_path / "day0.h5"


def external(file: h5py.File, key: str) -> None:
    file[key] = h5py.ExternalLink("nowhere.h5", "/notes")


def no_such_key(file: h5py.File, key: str) -> None:
    with h5py.File(Path(file.filename).with_name("other.h5"), "w") as other:
        other["x"] = 1
    file[key] = h5py.ExternalLink("other.h5", "/notes")


def virtual(file: h5py.File, key: str) -> None:
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource("nowhere.h5", "x", (4,), "f4")
    file.create_virtual_dataset(key, layout)


def virtual_of_virtual(file: h5py.File, key: str) -> None:
    virtual(file, "inner")
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource(".", "inner", (4,), "f4")
    file.create_virtual_dataset(key, layout)


def raw(file: h5py.File, key: str) -> None:
    file.create_dataset(key, (4,), "f4", external=[("nowhere.bin", 0, 16)])


def soft(file: h5py.File, key: str) -> None:
    file[key] = h5py.SoftLink("/nowhere")


def unwritten(file: h5py.File, key: str) -> None:
    file.create_dataset(key, (10**4,) * 3, "f4", chunks=(1, 100, 10**4))


def unwritten_whole(file: h5py.File, key: str) -> None:
    data = file.create_dataset(key, (10**4,) * 3, "f4")
    data[0, 0, 0] = 1  # HDF5 lays all of it out, and the disk keeps a hole


BREAK = [soft, external, no_such_key, virtual, virtual_of_virtual, raw, unwritten, unwritten_whole]


@pytest.mark.parametrize("key", ["notes", "deep/down/notes", "valid_truth"])
@pytest.mark.parametrize("broken", BREAK)
def test_what_is_not_there_is_named(
    file: Path, broken: Callable[[h5py.File, str], None], key: str
) -> None:
    with h5py.File(file, "a") as data:
        try:
            broken(data, key)
        except OSError as error:  # a disk without files that have holes
            pytest.skip(str(error))
    started = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        errors = check_file(file).errors
        with pytest.raises(DataError, match=key):
            BasicDataModule(file).setup()
    assert any(f"'{key}'" in error for error in errors)
    assert time.monotonic() - started < 5


def test_links_that_lead_somewhere_pass(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lfads_torch.data.tree._LARGE", 1 << 20)
    with h5py.File(file.with_name("other.h5"), "w") as other:
        other["x"] = np.ones(4, "f4")
    with h5py.File(file, "a") as data:
        data["soft"] = h5py.SoftLink("/valid_encod_data")
        data["deep/loop"] = h5py.SoftLink("/deep")
        data["outside"] = h5py.ExternalLink("other.h5", "/x")
        layout = h5py.VirtualLayout((8,), "f4")
        layout[:4] = h5py.VirtualSource("other.h5", "x", (4,), "f4")
        data.create_virtual_dataset("joined", layout)
        # Much of real data is the same number: gzip packs it well, and it is all there.
        data.create_dataset("still", data=np.zeros((2**9, 2**10), "f4"), compression="gzip")
    with pytest.warns(DataWarning, match=r"other\.h5"):
        assert check_file(file).ok


@pytest.mark.parametrize("key", ["readin_weight", "readout_weight", "lists"])
def test_arrays_larger_than_the_memory_are_refused(
    file: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with h5py.File(file, "a") as data:
        data[key] = np.ones((3, 1000), "f4")
    monkeypatch.setattr("lfads_torch.data.validate.available_bytes", lambda: 11_999)
    extra = (key,) if key == "lists" else ()
    with pytest.raises(DataError, match=f"{key}' has shape 3 x 1000: it takes .* of memory"):
        BasicDataModule(file, attr_keys=extra).setup()
    monkeypatch.setattr("lfads_torch.data.validate.available_bytes", lambda: 12_000)
    BasicDataModule(file, attr_keys=extra).setup()


def test_huge_readin_of_no_numbers_is_refused_by_the_command(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with h5py.File(file, "a") as data:
        data.create_dataset("readin_weight", (3, 10**11), "f4", chunks=(1, 10**6))
    assert main(["check", str(file)]) == 1
    assert "'readin_weight' declares 3e+11 entries" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("value", "dtype", "text"),
    [
        (10**6, "f4", "1000000"),
        (1e30, "f8", "1e+30"),
        (2**24 + 1, "i8", "16777216"),
        (2**62, "i8", "4.611686e+18"),
        (5000, "u2", "5000"),
    ],
)
@pytest.mark.parametrize("in_memory", [True, False])
def test_absurd_counts_are_named(
    file: Path, value: float, dtype: str, text: str, in_memory: bool
) -> None:
    with h5py.File(file, "a") as data:
        counts = data["valid_recon_data"][()].astype(dtype)
        counts[2, 3, 1] = value
        for key in ("valid_recon_data", "valid_encod_data"):
            del data[key]
            data[key] = counts
    expected = f"channel 1: {text} "
    with pytest.warns(DataWarning) as caught:
        BasicDataModule(file, max_memory_gb=None if in_memory else 0).setup()
    for texts in ([str(one.message) for one in caught], check_file(file).warnings):
        about = [one for one in texts if expected in one]
        assert {key for key in ("valid_recon_data", "valid_encod_data") if key in str(about)} == {
            "valid_recon_data",
            "valid_encod_data",
        }
        assert ("2^24" in about[0]) == (value >= 2**24)


def test_numbers_of_other_kinds_may_be_large_but_not_absurd(file: Path) -> None:
    rng = np.random.default_rng(0)
    with h5py.File(file, "a") as data:
        for split in ("train", "valid"):
            values = rng.normal(0, 3e4, data[f"{split}_recon_data"].shape)
            data[f"{split}_recon_data"][...] = values
            data[f"{split}_encod_data"][...] = values
    assert not any("large" in text for text in check_file(file).warnings)
    with h5py.File(file, "a") as data:
        data["train_recon_data"][0, 0, 2] = -7e6
    assert any("channel 2: 7000000 " in text for text in check_file(file).warnings)


def test_prep_refuses_a_recording_of_no_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with h5py.File(tmp_path / "recording.h5", "w") as data:
        for key, dtype in (("spike_times", "f8"), ("spike_clusters", "i8")):
            data.create_dataset(key, (10**12,), dtype, chunks=(10**6,))
    command = ["prep", str(tmp_path / "recording.h5"), "-o", str(tmp_path / "data.h5")]
    assert main([*command, "--bin-ms", "5"]) == 2
    assert "declares 1e+12 entries" in capsys.readouterr().err
