"""Time and peak memory of `lfads evaluate` on outputs of the MC_Maze shape at 20 ms.

    python benchmarks/evaluate.py [--json]

1720 training and 574 validation trials, 35 of 45 bins and 137 of 182 channels read, 108 conditions,
hand velocity: what posterior sampling with any number of samples leaves behind, since it writes
their mean. The numbers in it are made up; the work does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lfads_torch.data import write_session
from lfads_torch.data.smoothing import gaussian_smooth

LFADS = str(Path(sys.executable).with_name("lfads"))
TRIALS = {"train": 1720, "valid": 574}
READ, ALL = (35, 137), (45, 182)
N_CONDITIONS, N_LATENTS = 108, 8
GIB = 2**30


def write_outputs(path: Path, scale: float = 1.0) -> None:
    """Write an output file; `scale` shrinks the numbers of trials, for tests."""
    rng = np.random.default_rng(0)
    courses = gaussian_smooth(rng.normal(size=(N_CONDITIONS, ALL[0], N_LATENTS)), 4.0) * 3
    loading = rng.normal(size=(N_LATENTS, ALL[1])) * 0.4
    arrays: dict[str, NDArray[Any]] = {}
    for split, number in TRIALS.items():
        n_trials = max(2, round(number * scale))
        condition = rng.integers(N_CONDITIONS, size=n_trials)
        wobble = gaussian_smooth(rng.normal(size=(n_trials, ALL[0], N_LATENTS)), 4.0)
        latents = courses[condition] + wobble
        rates = 0.15 * np.exp(latents @ loading)
        counts = rng.poisson(rates).astype(np.uint8)
        arrays |= {
            f"{split}_recon_data": counts,
            f"{split}_encod_data": counts[:, : READ[0], : READ[1]],
            f"{split}_output_params": (0.2 * rates.mean() + 0.8 * rates).astype(np.float32),
            f"{split}_factors": latents.astype(np.float32),
            f"{split}_behavior": np.diff(latents[..., :2], axis=1, prepend=0)[:, : READ[0]],
            f"{split}_cond_idx": condition,
            f"{split}_decode_mask": np.ones((n_trials, 1), bool),
        }
    arrays["psth"] = 0.15 * np.exp(courses @ loading)[:, : READ[0]]
    write_session(path, arrays, {"bin_ms": 20.0, "session_name": "mc_maze-20ms-val"})


def measure(scale: float = 1.0) -> dict[str, float]:
    """Wall time, processor time and peak memory of the command, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lfads_output_sess0.h5"
        # A new process inherits the peak memory of the one that starts it: this one stays small.
        writer = get_context("spawn").Process(target=write_outputs, args=(path, scale))
        writer.start()
        writer.join()
        start = time.perf_counter()
        process = subprocess.Popen([LFADS, "evaluate", folder], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
    if status:
        raise RuntimeError(f"lfads evaluate ended with status {os.waitstatus_to_exitcode(status)}")
    in_bytes = 1 if sys.platform == "darwin" else 1024
    return {
        "wall time, s": seconds,
        "processor time, s": usage.ru_utime + usage.ru_stime,
        "peak memory, GiB": usage.ru_maxrss * in_bytes / GIB,
    }


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    figures = measure()
    if parser.parse_args().json:
        print(json.dumps(figures, indent=2))
    else:
        for label, value in figures.items():
            print(f"{label:<20} {value:.2f}")


if __name__ == "__main__":
    main()
