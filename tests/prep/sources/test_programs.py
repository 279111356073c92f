"""Files of acquisition programs: through neo, or refused with the steps that help."""

import struct
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from lfads_torch.cli import main
from lfads_torch.errors import DataError, UserError
from lfads_torch.prep import open_recording, prepare

HZ = 20_000


def write_nex(path: Path, units: dict[str, np.ndarray], events: dict[str, np.ndarray]) -> None:
    """A NeuroExplorer file: a header, a header of 208 bytes per variable, ticks as int32."""
    variables = [(0, n, t) for n, t in units.items()] + [(1, n, t) for n, t in events.items()]
    last = max(int(t.max()) for _, _, t in variables)
    data = 544 + 208 * len(variables)
    parts = [
        struct.pack(
            "<ii256sdiii260s", 827868494, 104, b"made by a test", HZ, 0, last, len(variables), b""
        )
    ]
    for kind, name, ticks in variables:
        head = struct.pack("<ii64sii", kind, 101, name.encode(), data, len(ticks))
        parts.append(head + struct.pack("<iiiidddd", 0, 0, 0, 0, 0, 0, 0, 0))
        parts[-1] = parts[-1].ljust(208, b"\0")
        data += 4 * len(ticks)
    assert len(parts[0]) == 544
    parts += [ticks.astype("<i4").tobytes() for _, _, ticks in variables]
    path.write_bytes(b"".join(parts))


def test_neuroexplorer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("neo")
    rng = np.random.default_rng(0)
    units = {f"sig{i:03d}a": np.unique(rng.integers(0, 60 * HZ, 400)) for i in range(3)}
    go = np.arange(2, 56, 2) * HZ
    path = tmp_path / "day1.nex"
    write_nex(path, units, {"go": go})
    assert main(["prep", str(path), "--list"]) == 0
    listed = capsys.readouterr().out
    assert "Units: 3" in listed and "sig000a" in listed and "go" in listed
    done = prepare(path, tmp_path / "o.h5", trials="go", align="timestamps:-100:300", bin_ms=10)
    # 10 ms are 200 ticks, and windows begin on an edge.
    counts = np.stack([np.bincount(t // 200, minlength=6000) for t in units.values()], axis=1)
    with h5py.File(done.path) as file:
        for trial, got in zip(file["train_trial"], file["train_encod_data"], strict=True):
            first = go[trial] // 200 - 10
            np.testing.assert_array_equal(got, counts[first : first + 40])
        assert file.attrs["source_format"] == "NeuroExplorer file"


@pytest.mark.parametrize(
    "name, words",
    [
        ("a.ns5", "Blackrock hold voltages, not spikes. Sort them"),
        ("a.rhd", "Intan hold voltages"),
        ("a.continuous", "Open Ephys hold voltages"),
        ("a.nex5", "save it as .nex"),
        ("a.pkl", "it would be executed"),
        ("a.plx", "file of Plexon, and neo cannot read it"),
        ("a.nev", "file of Blackrock or Neuralynx, and neo cannot read it"),
        ("a.xlsx", "save the sheet as CSV"),
        ("a.xyz", "unknown format"),
    ],
)
def test_what_is_not_read_says_what_to_do(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / name).write_bytes(b"no such thing" * 100)
    with pytest.raises(DataError, match=words.replace(".", r"\.")):
        open_recording(tmp_path / name)


def test_without_neo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "neo", None)
    (tmp_path / "a.plx").write_bytes(b"x")
    with pytest.raises(UserError, match=r"pip install 'lfads-torch\[neo\]'.*a column of times"):
        open_recording(tmp_path / "a.plx")
