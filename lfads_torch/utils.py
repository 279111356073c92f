"""Helpers that scripts and notebooks import."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from pytorch_lightning.utilities import move_data_to_device


def flatten(dictionary: Mapping[str, Any], level: Iterable[str] = ()) -> dict[str, Any]:
    """Turn a nested mapping into one with dotted keys: ``{"a": {"b": 1}}`` into ``{"a.b": 1}``.

    Parameters
    ----------
    dictionary : mapping
    level : sequence of str
        Keys that stand in front of all others.

    Returns
    -------
    dict
    """
    flat: dict[str, Any] = {}
    for key, value in dictionary.items():
        path = [*level, str(key)]
        flat |= flatten(value, path) if isinstance(value, Mapping) else {".".join(path): value}
    return flat


def transpose_lists(lists: Iterable[Iterable[Any]]) -> list[list[Any]]:
    """Turn a list of rows into a list of columns.

    Parameters
    ----------
    lists : sequence of sequences of one length

    Returns
    -------
    list of list
    """
    return [list(column) for column in zip(*lists, strict=True)]


def send_batch_to_device(batch: Any, device: torch.device | str) -> Any:
    """Move all tensors of a batch to a device.

    Parameters
    ----------
    batch : Tensor, SessionBatch, or dict, list or tuple of such
    device : torch.device or str

    Returns
    -------
    The same structure.
    """
    return move_data_to_device(batch, torch.device(device))
