"""How much memory the machine leaves to this process."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")

SHARE = 0.5
"""Fraction of the available memory that data may take where no bound is given."""


def available_bytes() -> int | None:
    """Return the bytes that are free for a process, within the limits of a container.

    None where the system does not say.
    """
    # In a container /proc/meminfo is that of the host, so the lower of both counts.
    known = [number for number in (_meminfo(), _cgroup()) if number is not None]
    if known:
        return min(known)
    with suppress(ValueError, OSError, AttributeError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def default_bound() -> float:
    """Return the bytes that data may take without a bound: half of the available memory."""
    free = available_bytes()
    return float("inf") if free is None else SHARE * free


def _meminfo() -> int | None:
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _cgroup() -> int | None:
    """Return the bytes that a container's limit leaves."""
    # Version 2 of cgroups, then version 1. Version 2 writes "max" where there is no limit: int()
    # refuses it, and the next file is tried.
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        with suppress(OSError, ValueError):
            taken = int((_CGROUP / used).read_text()) - _cached(_CGROUP / limit)
            return max(0, int((_CGROUP / limit).read_text()) - taken)
    return None


def _cached(limit: Path) -> int:
    """Return the bytes that hold pages of files, which make way for anything else."""
    with suppress(OSError, ValueError, IndexError):
        for line in limit.with_name("memory.stat").read_text(encoding="ascii").splitlines():
            name, size = line.split()[:2]
            if name in ("inactive_file", "total_inactive_file"):
                return int(size)
    return 0
