"""Data files: from recordings to LFADS data and back. NumPy and h5py only, never torch.

Public names are imported when first used.
"""

from importlib import import_module
from typing import Any

_PUBLIC = {
    "PrepOptions": "prep_options",
    "Prepared": "prep",
    "SourceOptions": "sources",
    "bin_spikes": "binning",
    "bin_windows": "binning",
    "chop_recording": "chop",
    "describe_recording": "sources.listing",
    "merge_chops": "merging",
    "open_recording": "sources",
    "prepare": "prep",
    "prepare_nlb": "nlb_recipes",
}

__all__ = [*_PUBLIC]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
