"""What is measured in a process of its own: peak memory of steps, and the first step of all.

`measure_memory` and `measure_cold` start this file as a script.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from dataclasses import asdict

import torch
from shapes import Shape
from timing import peak_bytes, resident_bytes

STEPS = 3


def measure_memory(shape: Shape, kernel: str, rounds: int) -> dict[str, float]:
    """Peak memory of steps beyond what imports and the batch take."""
    package, textbook = (
        statistics.median(_run("memory", which, shape, kernel)[1] for _ in range(rounds))
        for which in ("package", "textbook")
    )
    return {
        "package / textbook": package / textbook,
        "package, MiB": package / 2**20,
        "textbook, MiB": textbook / 2**20,
    }


def measure_cold(shape: Shape, kernel: str, rounds: int) -> dict[str, float]:
    """From starting Python to the end of the first step."""
    runs = [_run("cold", "package", shape, kernel) for _ in range(rounds)]
    return {
        "start of Python to end of the first step, s": statistics.median(wall for wall, _ in runs),
        "first step alone, s": statistics.median(step for _, step in runs),
    }


def _run(what: str, which: str, shape: Shape, kernel: str) -> tuple[float, float]:
    """Wall time until the child has its number, and the number."""
    command = [sys.executable, __file__, what, which, json.dumps(asdict(shape)), kernel]
    command.append(str(torch.get_num_threads()))
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        wall = time.perf_counter() - start
    if process.returncode:
        raise RuntimeError(f"{command} ended with status {process.returncode}")
    return wall, float(line)


def main() -> None:
    what, which, shape_json, kernel, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    shape = Shape(**json.loads(shape_json))
    # Import all that a step needs before the memory is looked at.
    import steps
    from shapes import build_batch

    if which == "textbook":
        import textbook  # noqa: F401

    batch = build_batch(shape)
    held = resident_bytes()
    del batch  # the step makes its own, in the same place
    start = time.perf_counter()
    step = steps.package_step(shape, kernel) if which == "package" else steps.textbook_step(shape)
    for _ in range(1 if what == "cold" else STEPS):
        step()
    number = time.perf_counter() - start if what == "cold" else peak_bytes() - held
    print(number, flush=True)


if __name__ == "__main__":
    main()
