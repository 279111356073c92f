"""What data hold of behaviour: its dimensions, and their mean and spread over training trials."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..data import SessionData, list_some, names_of
from ..errors import ConfigError, DataError

KEY = "behavior"
"""The batch key of behaviour: ``{split}_behavior`` of a data file."""

# Trials that are read at a time: few MB for any window of spikes.
_TRIALS = 4096

Array = NDArray[Any]


class BehaviorFacts(NamedTuple):
    """Behaviour of the training trials, by dimension; NaN where nothing was observed."""

    names: tuple[str, ...]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]  # 0 where all values are the same


def is_by_bin(session: SessionData) -> bool:
    """Return whether a session's behaviour was read, with a row per bin."""
    return KEY in session.pooled and session.pooled[KEY].ndim == 3


def splits_with(session: SessionData) -> set[str]:
    """Return the splits of which a session has behaviour per bin."""
    return {s for s in session.splits if is_by_bin(session) and f"{s}_{KEY}" in session.keys}


def dimensions(sessions: Sequence[SessionData]) -> int:
    """Return the dimensions of behaviour, the same in every session, or raise."""
    for session in sessions:
        if KEY not in session.pooled:
            raise ConfigError(
                f"{session.path}: behaviour is to be read out (behavior_dim), but the data module "
                f"does not read it; list it (datamodule.batch_keys=[{KEY}]), or set behavior_dim: 0"
            )
        shape, n_bins = session.pooled[KEY].shape, session.pooled["recon_data"].shape[1]
        if not is_by_bin(session) or 0 in shape or shape[1] > n_bins:
            of_trial = " x ".join(map(str, shape[1:])) or "one number"
            raise DataError(
                f"{session.path}: 'train_{KEY}' has {of_trial} per trial; to be read out "
                "(behavior_dim), it must have bins x dimensions, and at "
                f"most the {n_bins} bins that are reconstructed. Change the file, or set "
                "behavior_dim: 0"
            )
    sizes = {session.path: int(session.pooled[KEY].shape[2]) for session in sessions}
    first, n_dims = next(iter(sizes.items()))
    for path, size in sizes.items():
        if size != n_dims:
            raise DataError(
                f"{path}: 'train_{KEY}' has {size} dimensions, that of {first} has {n_dims}; one "
                "readout serves all sessions, so they must agree: leave dimensions or files out, "
                "or set behavior_dim: 0"
            )
    return n_dims


def facts_of(sessions: Sequence[SessionData], rows: Sequence[Mapping[str, Any]]) -> BehaviorFacts:
    """Survey behaviour of the training trials of some sessions, in blocks.

    Means and squared deviations are merged block by block (Chan et al. 1983, The American
    Statistician 37), so that large offsets do not cancel.
    """
    n_dims = dimensions(sessions)
    n, mean, spread = np.zeros(n_dims), np.zeros(n_dims), np.zeros(n_dims)
    least, most = np.full(n_dims, np.inf), np.full(n_dims, -np.inf)
    for session, own in zip(sessions, rows, strict=True):
        for y in _training(session, own["train"]):
            known = ~np.isnan(y)
            if np.isinf(y).any():
                raise DataError(
                    f"{session.path}: 'train_{KEY}' holds {np.isinf(y).sum()} infinite values in "
                    f"dimensions {list_some(np.flatnonzero(np.isinf(y).any(0)).tolist())} (counted "
                    "from 0); legal are numbers, and NaN where nothing was observed"
                )
            count = known.sum(axis=0)
            some = np.where(known, y, 0).sum(axis=0) / np.maximum(count, 1)
            gap, total = some - mean, np.maximum(n + count, 1)
            spread += (np.where(known, y - some, 0) ** 2).sum(axis=0) + gap**2 * n * count / total
            mean += gap * count / total
            n += count
            least = np.minimum(least, np.where(known, y, np.inf).min(axis=0, initial=np.inf))
            most = np.maximum(most, np.where(known, y, -np.inf).max(axis=0, initial=-np.inf))
    # By the values, since the sum of squares of a constant is rounding.
    std = np.where(most > least, np.sqrt(spread / np.maximum(n, 1)), 0.0)
    names = names_of(sessions[0].attrs, KEY, n_dims) or map(str, range(n_dims))
    return BehaviorFacts(tuple(names), np.where(n > 0, mean, np.nan), std)


def _training(session: SessionData, rows: NDArray[np.int64]) -> Iterator[Array]:
    """Yield values (bins, D) of training trials, float64, without padding."""
    for start in range(0, len(rows), _TRIALS):
        chosen = rows[start : start + _TRIALS]
        block = np.asarray(session.pooled[KEY][chosen], np.float64)
        if session.lengths is not None:
            block = block[np.arange(block.shape[1]) < session.lengths[chosen][:, None]]
        yield block.reshape(-1, block.shape[-1])
