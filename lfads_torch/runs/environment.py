"""What a run was computed with: versions, system and device, for its record."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

PACKAGES = ("torch", "pytorch-lightning", "numpy", "h5py", "hydra-core", "scikit-learn")


def environment(device: str | None = None) -> dict[str, Any]:
    """Describe what computes, without names of hosts, users or folders.

    Parameters
    ----------
    device : str, optional
        Where the model is; "cuda" brings in the name of the GPU.

    Returns
    -------
    dict
        ``python``, ``system``, ``cores``, ``threads``, ``device`` and ``packages`` (version by
        name).
    """
    import torch

    found: dict[str, Any] = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device or "cpu",
        "packages": {},
    }
    if found["device"].startswith("cuda") and torch.cuda.is_available():
        found["device"] = torch.cuda.get_device_name(torch.device(found["device"]))
    for name in PACKAGES:
        try:
            found["packages"][name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
