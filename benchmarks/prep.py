"""`lfads prep`: spikes binned per second, and memory for a recording of 2 GB.

python benchmarks/prep.py
python benchmarks/prep.py --what bin --json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
from timing import peak_bytes

from lfads_torch.prep import bin_spikes, bin_windows

SPIKES = 100_000_000
UNIT_SPIKES = 1_000_000  # per unit
RATE_HZ = 20.0
BIN_S = 0.005
GIGABYTES = 2.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--what", choices=("bin", "memory", "all"), default="all")
    parser.add_argument("--gigabytes", type=float, default=GIGABYTES, help="size of the recording")
    parser.add_argument("--folder", help="where the recording is made (a temporary folder)")
    parser.add_argument("--json", action="store_true", help="print the figures for machines")
    parser.add_argument("--child", nargs=2, metavar=("SOURCE", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        _prepare(*options.child)
        return
    figures: dict[str, float] = {}
    if options.what in ("bin", "all"):
        figures |= measure_binning()
    if options.what in ("memory", "all"):
        figures |= measure_memory(options.gigabytes, options.folder)
    if options.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:60s} {value:10.3g}")


def measure_binning() -> dict[str, float]:
    """Spikes binned per second on one core: along a recording, and in windows around events."""
    rng = np.random.default_rng(0)
    n_bins = round(UNIT_SPIKES / RATE_HZ / BIN_S)
    # Windows of 700 ms every 800 ms, as of a session of many trials.
    starts = np.arange(0.013, UNIT_SPIKES / RATE_HZ - 1, 0.8)
    seconds, counted = {"continuous": 0.0, "windows": 0.0}, {"continuous": 0, "windows": 0}
    for _ in range(SPIKES // UNIT_SPIKES):
        times = np.cumsum(rng.exponential(1 / RATE_HZ, UNIT_SPIKES))
        for name in seconds:
            begin = time.process_time()  # of this core, whatever else the machine does
            if name == "continuous":
                counts = bin_spikes(times, BIN_S, 0.0, n_bins)
            else:
                counts = bin_windows(times, starts, 140, BIN_S)
            seconds[name] += time.process_time() - begin
            counted[name] += int(counts.sum())
    return {
        "spikes in all, millions": SPIKES / 1e6,
        "continuous, 5 ms bins: million spikes/s": counted["continuous"]
        / seconds["continuous"]
        / 1e6,
        "windows of 700 ms, 5 ms bins: million spikes/s": counted["windows"]
        / seconds["windows"]
        / 1e6,
    }


def measure_memory(gigabytes: float, folder: str | None) -> dict[str, float]:
    """Peak memory and time of `lfads prep` of spike times, and of binned spikes, in a process."""
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=folder) as place:
        for name, make in (("spike times", _write_times), ("binned spikes", _write_bins)):
            source, out = Path(place) / "source.h5", Path(place) / "out.h5"
            make(source, gigabytes)
            command = [sys.executable, __file__, "--child", str(source), str(out)]
            begin = time.perf_counter()
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            seconds = time.perf_counter() - begin
            size = source.stat().st_size
            figures |= {
                f"{name}: source, GB": size / 1e9,
                f"{name}: lfads prep, peak memory, MB": int(done.stdout.split()[-1]) / 1e6,
                f"{name}: lfads prep, s": seconds,
                f"{name}: data file, GB": out.stat().st_size / 1e9,
            }
            source.unlink()
            out.unlink()
    return figures


def _write_times(path: Path, gigabytes: float, n_units: int = 200) -> None:
    """Spike times as float64, unit after unit, with their ends, and trials every second."""
    each = round(gigabytes * 1e9 / 8 / n_units)
    rng = np.random.default_rng(0)
    last = each / RATE_HZ
    with h5py.File(path, "w") as file:
        data = file.create_dataset("spike_times", (each * n_units,), np.float64)
        for unit in range(n_units):
            times = np.cumsum(rng.exponential(1 / RATE_HZ, each))
            data[unit * each : (unit + 1) * each] = times
        file["spike_times_index"] = np.arange(1, n_units + 1) * each
        file["trials/start_time"] = np.arange(1.0, last - 10)


def _write_bins(path: Path, gigabytes: float, n_units: int = 200) -> None:
    """Return counts in bins of 1 ms as bytes, and trials every second."""
    n_bins = round(gigabytes * 1e9 / n_units)
    rng = np.random.default_rng(0)
    some = rng.poisson(RATE_HZ / 1000, (100_000, n_units)).astype(np.uint8)
    with h5py.File(path, "w") as file:
        data = file.create_dataset("spikes", (n_bins, n_units), np.uint8)
        data.attrs["bin_ms"] = 1.0
        for start in range(0, n_bins, len(some)):
            data[start : start + len(some)] = some[: n_bins - start]
        file["trials/start_time"] = np.arange(1.0, n_bins / 1000 - 10)


def _prepare(source: str, out: str) -> None:
    from lfads_torch.cli import main as lfads

    status = lfads(["prep", source, "-o", out, "--bin-ms", "5", "--align", "start_time:0:800"])
    print(peak_bytes())
    sys.exit(status)


if __name__ == "__main__":
    main()
