"""Start-up times, size of the install, and peak memory of training at the MC_Maze 20 ms shape.

Each figure comes from a process of its own: ``python benchmarks/footprint.py [--json]``. Targets
hold on an idle machine. Sizes are those of what lfads-torch needs, without extras.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import numpy as np

TARGETS = {"import lfads_torch, s": 0.1, "lfads --help, s": 0.3}
LFADS = str(Path(sys.executable).with_name("lfads"))


def median_seconds(command: list[str], runs: int = 5) -> float:
    """Median wall time of a command after one run that is not counted."""
    times = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def write_spikes(path: Path, n_train: int, n_valid: int, shape: list[int]) -> None:
    """Poisson counts of ``shape`` = [channels read, reconstructed, bins read, reconstructed]."""
    from lfads_torch.data import write_session

    n_read, n_recon, bins_read, bins_recon = shape
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n_trials in (("train", n_train), ("valid", n_valid)):
        recon = rng.poisson(0.2, size=(n_trials, bins_recon, n_recon)).astype(np.uint8)
        arrays[f"{split}_recon_data"] = recon
        arrays[f"{split}_encod_data"] = recon[:, :bins_read, :n_read]
    write_session(path, arrays)


def seconds_to_first_epoch(data: Path, folder: Path) -> float:
    """Wall time from typing `lfads train` to the end of its first epoch."""
    log = folder / "csv_logs" / "metrics.csv"
    start = time.perf_counter()
    process = subprocess.Popen(
        [LFADS, "train", f"datamodule.datafile_pattern={data}", "--run-dir", str(folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not log.is_file():
            if process.poll() is not None:
                raise RuntimeError(f"lfads train ended with status {process.returncode}")
            time.sleep(0.02)
        return time.perf_counter() - start
    finally:
        process.kill()
        process.wait()


def peak_memory_gib(data: Path, folder: Path) -> float:
    """Largest resident memory of `lfads train` with the MC_Maze model, two epochs and sampling."""
    command = [LFADS, "train", "model=nlb_mc_maze", f"datamodule.datafile_pattern={data}"]
    command += [
        "trainer.max_epochs=2",
        "posterior_sampling.fn.num_samples=4",
        "--run-dir",
        str(folder),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"lfads train ended with status {os.waitstatus_to_exitcode(status)}")
    in_bytes = 1 if sys.platform == "darwin" else 1024
    return usage.ru_maxrss * in_bytes / 2**30


def install_sizes(name: str = "lfads-torch") -> dict[str, float]:
    """Size on disk of a package and of all that it needs, in MB by package, the largest first."""
    sizes: dict[str, float] = {}
    names = [name]
    while names:
        name = re.sub(r"[-_.]+", "-", names.pop()).lower()
        if name in sizes:
            continue
        with suppress(metadata.PackageNotFoundError):  # needed on other systems only
            package = metadata.distribution(name)
            paths = [Path(str(file.locate())) for file in package.files or ()]
            sizes[name] = sum(path.stat().st_size for path in paths if path.is_file()) / 1e6
            needed = [one for one in package.requires or () if "extra ==" not in one]
            names += [match[0] for one in needed if (match := re.match(r"[\w.-]+", one))]
    return dict(sorted(sizes.items(), key=lambda pair: -pair[1]))


def start_times() -> dict[str, float]:
    """Seconds that a person waits before anything happens."""
    return {
        "python alone, s": median_seconds([sys.executable, "-c", ""]),
        "import lfads_torch, s": median_seconds([sys.executable, "-c", "import lfads_torch"]),
        "lfads --help, s": median_seconds([LFADS, "--help"]),
        "lfads train --help, s": median_seconds([LFADS, "train", "--help"]),
        "lfads --version, s": median_seconds([LFADS, "--version"]),
    }


def training() -> dict[str, float]:
    """Time to the first epoch, and peak memory."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_spikes(folder / "small.h5", 832, 208, [30, 30, 50, 50])
        write_spikes(folder / "maze.h5", 1720, 574, [137, 182, 35, 45])
        return {
            "lfads train to the end of epoch 1, s": seconds_to_first_epoch(
                folder / "small.h5", folder / "small"
            ),
            "peak memory, MC_Maze 20 ms, GiB": peak_memory_gib(folder / "maze.h5", folder / "maze"),
        }


def main() -> None:
    """Print what was measured, and which targets it missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--quick", action="store_true", help="without training")
    options = parser.parse_args()
    figures, sizes = start_times(), install_sizes()
    if not options.quick:
        figures |= training()
    missed = [name for name, target in TARGETS.items() if figures[name] > target]
    if options.json:
        print(json.dumps({"figures": figures, "install_MB": sizes, "missed": missed}, indent=2))
        return
    for name, value in figures.items():
        target = f"   target {TARGETS[name]}" if name in TARGETS else ""
        print(f"{name:<40} {value:.2f}{target}")
    print(f"{'install, MB':<40} {sum(sizes.values()):.0f}")
    for name, size in [pair for pair in sizes.items() if pair[1] >= 1]:
        print(f"  {name:<38} {size:.0f}")
    if missed:
        print(f"missed: {', '.join(missed)}")


if __name__ == "__main__":
    main()
