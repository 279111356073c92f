"""Write a data file anew so that each trial can be read by itself: `lfads repack`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from .find import (
    absolute_pattern,
    check_output,
    new_file,
    open_h5,
    trial_chunks,
    warn_of_other_files,
)
from .validate import list_keys

_BLOCK_BYTES = 1 << 26


def repack(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    compress: bool = False,
    overwrite: bool = False,
) -> Path:
    """Copy an HDF5 file trial by trial: same keys, types, numbers and attributes.

    Arrays of numbers with a row per trial become contiguous, or compressed by whole trials. The
    file may be larger than memory. `compress` uses gzip: smaller, and slower to read.
    """
    old_path, new_path = Path(absolute_pattern(source)), Path(absolute_pattern(output))
    check_output(old_path, new_path, overwrite)
    with open_h5(old_path) as old, new_file(new_path) as new:
        warn_of_other_files(old)
        for key in list_keys(old):
            _copy(old, new, key, compress)
        for name in list(old):
            if name not in new:
                old.copy(name, new)
            elif isinstance(old[name], h5py.Group):
                new[name].attrs.update(old[name].attrs)
        new.attrs.update(old.attrs)
    return new_path


def _copy(old: h5py.File, new: h5py.File, key: str, compress: bool) -> None:
    data = old[key]
    chunks = trial_chunks(data.shape, data.dtype) if data.shape else None
    if chunks is None or data.dtype.kind not in "buif":
        old.copy(data, new, name=key)
        return
    options: dict[str, Any] = {"compression": "gzip", "chunks": chunks} if compress else {}
    target = new.create_dataset(key, data.shape, data.dtype, **options)
    target.attrs.update(data.attrs)
    width = data.dtype.itemsize * int(np.prod(data.shape[1:]))
    rows_per_chunk = data.chunks[0] if data.chunks else 1
    # Whole chunks of the old file, as many as go into a block, so that each is unpacked once.
    step = max(1, _BLOCK_BYTES // width)
    step = step // rows_per_chunk * rows_per_chunk or step
    for start in range(0, len(data), step):
        target[start : start + step] = data[start : start + step]
