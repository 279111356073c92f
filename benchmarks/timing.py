"""Timing by turns, and memory of one process."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

MIN_SECONDS = 0.05


def by_turns(
    actions: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 1
) -> dict[str, list[float]]:
    """Seconds of each action, in turns (A B C A B C ...), so that all meet the same disturbances.

    A quick action is repeated within its turn; every other round goes in reverse order.
    """
    repeats: dict[str, int] = {}
    for name, action in actions.items():
        for _ in range(max(1, warm_up)):
            start = time.perf_counter()
            action()
            took = max(time.perf_counter() - start, 1e-6)
            repeats[name] = min(1000, max(1, round(MIN_SECONDS / took)))
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for number in range(rounds):
        for name in list(actions)[:: 1 if number % 2 == 0 else -1]:
            start = time.perf_counter()
            for _ in range(repeats[name]):
                actions[name]()
            seconds[name].append((time.perf_counter() - start) / repeats[name])
    return seconds


def median_ratio(above: list[float], below: list[float]) -> float:
    """Median over rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def resident_bytes() -> int:
    """Memory that the process holds now; its peak so far where the system tells only that."""
    status = _status()
    return status["VmRSS"] if status else _maxrss()


def peak_bytes() -> int:
    """Return the most memory that the process has held.

    On Linux not `ru_maxrss`, which a new process inherits from the one that started it.
    """
    status = _status()
    return status["VmHWM"] if status else _maxrss()


def _status() -> dict[str, int]:
    path = Path("/proc/self/status")
    if not path.is_file():
        return {}
    lines = (line.split() for line in path.read_text().splitlines())
    return {x[0].rstrip(":"): 1024 * int(x[1]) for x in lines if x and x[0].startswith("Vm")}


def _maxrss() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
