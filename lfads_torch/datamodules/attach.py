"""Arrays as the trials of a data module, for data modules of your own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data import session_of
from .module import BasicDataModule
from .rows import redraw

MANDATORY_KEYS = {
    "train": ["encod_data", "recon_data"],
    "valid": ["encod_data", "recon_data"],
    "test": ["encod_data"],
}
"""Arrays that a split must have; train and valid must be there, test may be."""


def to_tensor(array: Any) -> Tensor:
    """Return an array as a float32 tensor."""
    return torch.as_tensor(np.asarray(array), dtype=torch.float32)


def reshuffle_train_valid(
    data_dict: Mapping[str, Any], seed: int, ratio: float | None = None
) -> dict[str, Any]:
    """Join every pair of ``train_`` and ``valid_`` arrays, and draw the split anew.

    Parameters
    ----------
    data_dict : mapping of str to array
        By the keys of a data file.
    seed : int
        Seed of the draw, which is that of scikit-learn's `train_test_split`.
    ratio : float or int, optional
        Fraction of the trials that go to validation, or their number; by default as many as before.

    Returns
    -------
    dict of str to array
        The same keys.

    Raises
    ------
    KeyError
        Where a ``train_`` array has no ``valid_`` array.
    """
    arrays = dict(data_dict)
    for key in data_dict:
        if "train_" not in key:
            continue
        other = key.replace("train_", "valid_")
        if other not in data_dict:
            raise KeyError(f"{key} has no {other}; add it, or take {key} out")
        parts = [np.asarray(data_dict[name]) for name in (key, other)]
        rows = redraw(len(parts[0]), len(parts[1]), seed, ratio)
        joined = np.concatenate(parts)
        arrays[key], arrays[other] = (joined[chosen] for chosen in rows)
    return arrays


def attach_tensors(
    datamodule: Any, data_dicts: Sequence[Mapping[str, Any]], extra_keys: Sequence[str] = ()
) -> None:
    """Give a data module its data as arrays, in its own `setup`.

    A `BasicDataModule` then makes its batches of them. Another one gets the attributes
    ``{train,valid,test}_data`` and ``{train,valid,test}_ds`` that a `BasicDataModule` has.

    Parameters
    ----------
    datamodule : LightningDataModule
    data_dicts : sequence of mapping of str to array
        One per session, by the keys of a data file.
    extra_keys : sequence of str
        Per-trial arrays that travel with the batch, named without their split.

    Raises
    ------
    DataError
        Where an array is missing, or arrays contradict each other.
    """
    sessions = [
        session_of(arrays, Path(f"session{number}"), extra_keys)
        for number, arrays in enumerate(data_dicts)
    ]
    is_basic = isinstance(datamodule, BasicDataModule)
    holder = datamodule if is_basic else BasicDataModule("arrays", batch_size=len(sessions))
    holder.batch_keys = tuple(extra_keys)
    holder.hold(sessions)
    if is_basic:
        return
    for name in ("train_data", "valid_data", "test_data", "train_ds", "valid_ds", "test_ds"):
        if hasattr(holder, name):
            setattr(datamodule, name, getattr(holder, name))
