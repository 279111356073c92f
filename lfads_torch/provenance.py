"""What made a file: version, commit, packages, and what it was computed with."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from importlib import metadata
from typing import Any

from .data.fingerprint import fingerprints
from .version import read_version

_PACKAGES = ("torch", "pytorch-lightning", "numpy", "h5py", "hydra-core", "scikit-learn")


def provenance(device: Any = None, datamodule: Any = None) -> dict[str, Any]:
    """Describe what makes a file, in plain numbers and names, none of them of hosts or users.

    With a device also what computes on it, with a data module also the fingerprints of its data.
    """
    facts: dict[str, Any] = {
        **read_version()._asdict(),
        "python": platform.python_version(),
        "packages": {},
    }
    for name in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            facts["packages"][name] = metadata.version(name)
    if device is not None:
        facts |= _computing(str(device))
    if datamodule is not None:
        facts["data"] = fingerprints(datamodule)
    return facts


def _computing(device: str) -> dict[str, Any]:
    import torch

    from .kernels.c_library import describe

    on_gpu = device.startswith("cuda") and torch.cuda.is_available()
    return {
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(torch.device(device)) if on_gpu else device,
        "kernels": describe(),
    }


def describe_install() -> str:
    """Say in a few lines which versions compute, and whether the kernels are in C."""
    facts = provenance("cpu")
    which = ""
    if facts["commit"]:
        changed = ", with changes that are not committed" if facts["dirty"] else ""
        which = f" (commit {facts['commit'][:10]}{changed})"
    packages = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
    return (
        f"lfads-torch {facts['version']}{which}\nkernels in {facts['kernels']}\n"
        f"Python {facts['python']}, {packages}"
    )
