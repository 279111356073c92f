"""NWB in Zarr stores, and read by its address."""

import contextlib
import datetime
import http.server
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lfads_torch.cli import main
from lfads_torch.errors import DataError, UserError
from lfads_torch.prep import open_recording, prepare
from lfads_torch.prep.sources import SpikeTimes

pynwb = pytest.importorskip("pynwb")
RNG = np.random.default_rng(0)
TICKS = [np.unique(RNG.integers(0, 20_000, 300)) for _ in range(4)]  # ms
STARTS = np.arange(1, 19, 1.5)


def session() -> Any:
    start = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    file = pynwb.NWBFile("a", "b", start)
    file.add_unit_column("quality", "q")
    for unit in TICKS:
        file.add_unit(spike_times=unit / 1000, quality="good", obs_intervals=[[0, 20.0]])
    file.add_trial_column("side", "left or right")
    for i, time in enumerate(STARTS):
        file.add_trial(start_time=time, stop_time=time + 1, side="lr"[i % 2])
    times = np.arange(2000) * 0.01
    hand = pynwb.TimeSeries(name="hand", data=times[:, None] * [1, 2], timestamps=times, unit="m")
    # Its times are a link to those of the other.
    speed = pynwb.TimeSeries(name="speed", data=times, timestamps=hand, unit="m/s")
    eye = pynwb.TimeSeries(name="eye", data=times, rate=100.0, starting_time=0.0, unit="m")
    module = file.create_processing_module("behavior", "b")
    for series in (hand, speed, eye):
        module.add(series)
    return file


def check(arrays: dict[str, np.ndarray]) -> None:
    rows = arrays["train_trial"]
    right = np.stack([np.bincount(unit // 10, minlength=2000) for unit in TICKS], axis=1)
    first = np.round(STARTS[rows] * 100).astype(int)
    windows = right[first[:, None] + np.arange(50)]
    np.testing.assert_array_equal(arrays["train_encod_data"], windows)
    np.testing.assert_allclose(arrays["train_behavior"][:, 0, 0], STARTS[rows], atol=1e-6)
    assert [bytes(side).decode() for side in arrays["train_side"]] == ["lr"[i % 2] for i in rows]


@pytest.mark.parametrize("name", ["day.nwb.zarr", "day"])
@pytest.mark.parametrize("behavior", ["hand", "speed", "eye"])
def test_nwb_zarr(tmp_path: Path, name: str, behavior: str) -> None:
    hdmf_zarr = pytest.importorskip("hdmf_zarr")
    path = tmp_path / name
    with hdmf_zarr.NWBZarrIO(str(path), "w") as io:
        io.write(session())
    align = {"align": "start_time:0:500", "bin_ms": 10, "keep": ["side"]}
    done = prepare(path, None, behavior=[behavior], **align)
    check(done.arrays)
    assert main(["prep", str(path), "--list"]) == 0


def test_zarr_of_spikeinterface(tmp_path: Path) -> None:
    pytest.importorskip("zarr")
    core = pytest.importorskip("spikeinterface.core")
    sorting = core.generate_sorting(num_units=3, durations=[10.0], seed=0)
    sorting.save(folder=tmp_path / "s.zarr", format="zarr")
    spikes = open_recording(tmp_path / "s.zarr").spikes
    assert isinstance(spikes, SpikeTimes)
    for i, unit in enumerate(sorting.unit_ids):
        samples = sorting.get_unit_spike_train(unit, segment_index=0)
        np.testing.assert_array_equal(spikes.units[i][:], samples)


class Ranges(http.server.SimpleHTTPRequestHandler):
    """Python's server of a folder does not know ranges, which streaming takes."""

    served = 0

    def do_GET(self) -> None:
        data = (Path(self.directory) / self.path.lstrip("/")).read_bytes()
        start, stop = 0, len(data)
        if given := self.headers.get("Range"):
            first, last = given.removeprefix("bytes=").split("-")
            start, stop = int(first), min(stop, int(last) + 1) if last else stop
        self.send_response(206 if given else 200)
        self.send_header("Content-Length", str(stop - start))
        self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # who asks may take the head alone
            self.wfile.write(data[start:stop])
            type(self).served += stop - start if given else 0

    def do_HEAD(self) -> None:
        path = Path(self.directory) / self.path.lstrip("/")
        self.send_response(200 if path.is_file() else 404)
        if path.is_file():
            self.send_header("Content-Length", str(path.stat().st_size))
            self.send_header("Accept-Ranges", "bytes")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    def handler(*args: Any) -> Ranges:
        return Ranges(*args, directory=str(tmp_path))

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_nwb_by_its_address(tmp_path: Path, address: str) -> None:
    pytest.importorskip("remfile")
    file = session()
    # Raw voltages, which nobody asks for, are not transferred.
    raw = RNG.normal(size=(200_000, 8))
    file.add_acquisition(pynwb.TimeSeries(name="raw", data=raw, rate=1e4, unit="V"))
    path = tmp_path / "day.nwb"
    with pynwb.NWBHDF5IO(path, "w") as io:
        io.write(file)
    Ranges.served = 0
    align = {"align": "start_time:0:500", "bin_ms": 10, "keep": ["side"]}
    done = prepare(f"{address}/day.nwb", tmp_path / "o.h5", behavior=["hand"], **align)
    assert done.path.is_file()
    assert Ranges.served < path.stat().st_size / 3
    check(prepare(f"{address}/day.nwb", None, behavior=["hand"], **align).arrays)


def test_addresses_that_do_not_work(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.nwb").write_bytes(b"no HDF5" * 1000)
    with pytest.raises(DataError, match=r"it is no HDF5 file\. Check address and network"):
        open_recording(f"{address}/x.nwb")
    with pytest.raises(DataError, match="Check address and network, or download"):
        open_recording("http://127.0.0.1:9/day.nwb")
    with pytest.raises(UserError, match=r"dandi://.*api\.dandiarchive\.org"):
        open_recording("dandi://000128/sub-Jenkins.nwb")
    monkeypatch.setitem(sys.modules, "remfile", None)
    with pytest.raises(UserError, match=r"lfads-torch\[remote\]"):
        open_recording("s3://bucket/day.nwb")
    monkeypatch.setitem(sys.modules, "zarr", None)
    store = tmp_path / "a.zarr"
    store.mkdir()
    (store / ".zgroup").write_text("{}")
    with pytest.raises(UserError, match=r"lfads-torch\[zarr\]"):
        open_recording(store)
