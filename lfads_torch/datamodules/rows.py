"""Pure functions that prepare sessions: which trials are in which split, which are held out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data import SPLITS, SessionData, open_h5
from ..errors import DataError, UserError

Indices = NDArray[np.int64]


def seeded_generator(*entropy: int) -> torch.Generator:
    """Make a generator whose stream depends on all of the given numbers."""
    state = np.random.SeedSequence(entropy).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def file_rows(session: SessionData) -> dict[str, Indices]:
    """Rows of the session's pooled arrays by split, as in its file."""
    ends = np.cumsum([0, *(data.n_trials for data in session.splits.values())])
    return {
        split: np.arange(start, stop)
        for split, start, stop in zip(session.splits, ends[:-1], ends[1:], strict=True)
    }


def redraw_split(
    session: SessionData,
    rows: dict[str, Indices],
    ratio: float | None,
    seed: Sequence[int],
) -> dict[str, Indices]:
    """Pool train and valid trials and draw the split anew; each keeps the order of the file.

    `ratio` of them go to train, by default the file's fraction.
    """
    n_pooled = len(rows["train"]) + len(rows["valid"])
    n_train = len(rows["train"]) if ratio is None else round(n_pooled * ratio)
    if not 0 < n_train < n_pooled:
        raise UserError(
            f"{session.path}: reshuffle_tv_ratio={ratio} of {n_pooled} trials leaves {n_train} "
            f"for training and {n_pooled - n_train} for validation; both need at least one."
        )
    order = np.random.default_rng(seed).permutation(n_pooled)
    return rows | {"train": np.sort(order[:n_train]), "valid": np.sort(order[n_train:])}


def redrawn_array(key: str, session: SessionData, rows: dict[str, Indices]) -> Any:
    """Let an attribute key's array follow a redrawn split.

    Arrays without a ``train_`` or ``valid_`` in front stay as they are.
    """
    split, _, name = key.partition("_")
    if split not in ("train", "valid"):
        return session.arrays[key]
    pair = [f"train_{name}", f"valid_{name}"]
    with open_h5(session.path) as file:
        parts = [np.atleast_1d(file[k][()]) for k in pair if k in session.keys]
    if [len(part) for part in parts] != [session.splits[s].n_trials for s in ("train", "valid")]:
        raise UserError(
            f"{session.path}: attribute key {key!r} does not hold a row for each trial of both "
            f"train and valid, so it cannot follow a redrawn split; leave out reshuffle_tv_seed "
            f"or this key."
        )
    return np.concatenate(parts)[rows[split]]


def sv_mask(session: SessionData, rate: float, seed: Sequence[int], n_spared: int) -> Tensor | None:
    """Draw the sample-validation mask (n, T_e, N_e) of all splits, True for kept entries.

    None where `rate`, the probability that an entry is held out, is 0.
    """
    if rate == 0:
        return None
    masks = []
    for split, data in session.splits.items():
        generator = seeded_generator(*seed, SPLITS.index(split))
        kept = torch.rand(data.encod_data.shape, generator=generator) >= rate
        kept[:, :n_spared] = True
        masks.append(kept)
    return torch.cat(masks)


def ext_dim(session: SessionData) -> int:
    """Count the channels of external input."""
    ext = session.pooled.get("ext_input")
    return 0 if ext is None else int(ext.shape[2])


def _ext_len(session: SessionData) -> int:
    ext = session.pooled.get("ext_input")
    return 0 if ext is None else int(ext.shape[1])


def check_together(sessions: Sequence[SessionData]) -> None:
    """Check that sessions can share one model."""
    first = sessions[0]
    for other in sessions[1:]:
        pair = (first, other)
        for what, sizes in (
            ("bins of encod_data", [s.pooled["encod_data"].shape[1] for s in pair]),
            ("bins of recon_data", [s.pooled["recon_data"].shape[1] for s in pair]),
            ("channels of ext_input", [ext_dim(s) for s in pair]),
            ("bins of ext_input", [_ext_len(s) for s in pair]),
        ):
            if sizes[0] != sizes[1]:
                raise DataError(
                    f"Sessions of one model must have the same number of {what}: {first.path} has "
                    f"{sizes[0]}, {other.path} has {sizes[1]}."
                )
