"""Pure functions that prepare sessions: which trials are in which split, which are held out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data import SPLITS, SessionData
from ..errors import DataError, UserError

Indices = NDArray[np.int64]


class SessionSizes(NamedTuple):
    """Sizes of one session: channels, bins and trials."""

    encod_dim: int
    recon_dim: int
    encod_len: int
    recon_len: int
    ext_dim: int
    n_train: int
    n_valid: int
    n_test: int


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


def redraw(n_train: int, n_valid: int, seed: int, ratio: float | None) -> tuple[Indices, Indices]:
    """Draw a split of n_train + n_valid trials anew: the rows of training, and of validation.

    `ratio` is the fraction for validation, or its number of trials where it is whole; None keeps
    the number. It is the draw of scikit-learn's `train_test_split`, which the existing
    implementation calls, so that the same seed gives the same split.
    """
    n = n_train + n_valid
    if ratio is None:
        k = n_valid
    else:
        k = int(ratio) if isinstance(ratio, int | np.integer) else math.ceil(ratio * n)
    if not 0 < k < n:
        raise UserError(
            f"reshuffle_tv_ratio={ratio} of {n} trials leaves {n - k} for training and {k} for "
            "validation; both need at least one."
        )
    order = np.random.RandomState(seed).permutation(n)
    return order[k:], order[:k]


def check_pairs(session: SessionData) -> None:
    """Refuse a session whose arrays cannot follow a redrawn split, naming the key."""
    remedy = "take both out of the file, or leave reshuffle_tv_seed out."
    with session.source() as source:
        for key in (key for key in session.keys if "train_" in key):
            for split in ("train", "valid"):
                name, n = key.replace("train_", f"{split}_"), session.splits[split].n_trials
                if name not in session.keys:
                    raise UserError(
                        f"{session.path}: reshuffle_tv_seed joins arrays of train and valid, but "
                        f"{key!r} has no {name!r}; add it, or leave reshuffle_tv_seed out."
                    )
                shape = np.shape(source[name])
                if shape[:1] != (n,):
                    raise UserError(
                        f"{session.path}: {name!r} has shape {shape} for {n} trials, so it cannot "
                        f"follow a redrawn split (reshuffle_tv_seed); {remedy}"
                    )


def redrawn_rows(
    session: SessionData, rows: dict[str, Indices], seed: int, ratio: float | None
) -> dict[str, Indices]:
    """Draw the split of a session anew, the same for every session of as many trials."""
    train, valid = rows["train"], rows["valid"]
    try:
        drawn = redraw(len(train), len(valid), seed, ratio)
    except UserError as error:
        raise UserError(f"{session.path}: {error}") from error
    pooled = np.concatenate([train, valid])
    return rows | {"train": pooled[drawn[0]], "valid": pooled[drawn[1]]}


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


def sizes_of(session: SessionData, rows: Mapping[str, Indices]) -> SessionSizes:
    """Return the sizes of a session whose splits have some rows."""
    encod, recon = session.pooled["encod_data"], session.pooled["recon_data"]
    return SessionSizes(
        encod_dim=encod.shape[2],
        recon_dim=recon.shape[2],
        encod_len=encod.shape[1],
        recon_len=recon.shape[1],
        ext_dim=ext_dim(session),
        n_train=len(rows["train"]),
        n_valid=len(rows["valid"]),
        n_test=len(rows.get("test", ())),
    )
