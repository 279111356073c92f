"""Latent factor analysis via dynamical systems (LFADS) in PyTorch.

Public names are imported when first used, so that ``import lfads_torch`` costs nothing.
"""

from importlib import import_module
from typing import Any

_PUBLIC = {
    "LFADS": "model",
    "LFADSEstimator": "estimator",
    "BasicDataModule": "datamodules",
    "SessionBatch": "tuples",
    "SessionOutput": "tuples",
    "run_model": "run_model",
    "load_model": "checkpoint",
    "sample_posterior": "post_run.analysis",
    "run_posterior_sampling": "post_run.analysis",
    "load_outputs": "post_run.outputs",
    "stream": "online.stream",
    "Stream": "online.stream",
    "StreamOutput": "online.stream",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from .version import read_version

        globals()[name] = read_version().version
        return globals()[name]
    if name in _PUBLIC:
        value = getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
        globals()[name] = value  # the import has just put the module `run_model` in its place
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
