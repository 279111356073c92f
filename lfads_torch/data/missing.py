"""What is missing in a session's arrays, and where each trial ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from .find import list_some
from .stored import StoredArray, blocks, shares

Array = NDArray[Any]
Lengths = NDArray[np.int64]

_NAMES = ("encod_data", "recon_data")


def given_lengths(file: h5py.File, split: str) -> Lengths | None:
    """Bins of each trial as ``{split}_lengths`` says, None where the file has no such key."""
    key = f"{split}_lengths"
    return np.asarray(file[key][()]).astype(np.int64) if key in file else None


def length_faults(
    file: h5py.File, keys: Sequence[str], shapes: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """List what is wrong with the keys ``{split}_lengths``; `shapes` of the sound arrays."""
    splits = list(dict.fromkeys(key.split("_", 1)[0] for key in shapes))
    there = [split for split in splits if f"{split}_lengths" in keys]
    if not there:
        return []
    problems = [
        f"'{there[0]}_lengths' is there but '{split}_lengths' is not; give the trials' lengths in "
        f"every split, or mark the bins past a trial's end with NaN instead."
        for split in splits
        if split not in there
    ]
    for split in there:
        data, key = file[f"{split}_lengths"], f"{split}_lengths"
        own = [shapes[f"{split}_{name}"] for name in _NAMES if f"{split}_{name}" in shapes]
        if not own:
            continue
        n_trials, n_bins = own[0][0], max(shape[1] for shape in own)
        if data.dtype.kind not in "uif" or data.shape != (n_trials,):
            problems.append(
                f"{key!r} has shape {'x'.join(map(str, data.shape or ())) or 'scalar'}, type "
                f"{data.dtype}; it says how many bins each trial has, so legal is one whole "
                f"number for each of the {n_trials} trials. Rename it if it is something else."
            )
            continue
        values = data[()].astype(np.float64)
        bad = np.flatnonzero(~((values >= 1) & (values <= n_bins) & (values == np.floor(values))))
        if len(bad):
            problems.append(
                f"{key!r} is {values[bad[0]]:g} for trial {bad[0]} ({len(bad)} of {n_trials} "
                f"trials: {list_some(bad.tolist())}, counted from 0); legal are whole numbers from "
                f"1 to {n_bins}, the bins of '{split}_recon_data'."
            )
    return problems


def past_end(lengths: Lengths, n_bins: int) -> NDArray[np.bool_]:
    """Which bins lie past the end of each trial, shape (trials, bins)."""
    return np.arange(n_bins) >= lengths[:, None]


def mark_ends(arrays: Mapping[str, Array], lengths: Lengths) -> None:
    """Mark the bins past each trial's end as missing, in place: NaN, external inputs 0."""
    for name, array in arrays.items():
        past = 0.0 if name == "ext_input" else np.nan
        if isinstance(array, StoredArray):
            array.end_at(lengths, past)
        else:
            array[past_end(lengths, array.shape[1])] = past


class Extent(NamedTuple):
    """What is observed of some trials.

    Attributes
    ----------
    complete : bool
        Whether no entry is missing.
    lengths : ndarray of int, shape (n,)
        One more than the last bin with an observed entry; 0 where there is none.
    """

    complete: bool
    lengths: Lengths


def observed_extent(encod: Array, recon: Array | None) -> Extent:
    """Look for NaN in what is read and what is reconstructed (None where that is not known).

    A trial without `recon` that is read to the end is as long as can be: -1.
    """
    complete, lengths = _extent(encod)
    if recon is None:
        return Extent(complete, np.where(lengths == encod.shape[1], -1, lengths))
    if recon.shape == encod.shape and shares(recon, encod):
        return Extent(complete, lengths)
    rest, longer = _extent(recon)
    return Extent(complete and rest, np.maximum(lengths, longer))


def _extent(array: Array) -> Extent:
    complete, lengths = True, np.full(len(array), array.shape[1], np.int64)
    for rows, chunk in blocks(array):
        missing: NDArray[np.bool_] = np.asarray(np.isnan(chunk))
        if missing.any():
            complete = False
            seen = np.any(~missing, axis=2)
            after = np.argmax(seen[:, ::-1], axis=1)
            lengths[rows] = np.where(np.any(seen, axis=1), array.shape[1] - after, 0)
    return Extent(complete, lengths)


def settle_split(
    split: str, arrays: Mapping[str, Array], given: Lengths | None
) -> tuple[Lengths | None, list[str]]:
    """Return a split's lengths and its problems, and mark what lies past the ends in place.

    A length is -1 for a trial that is as long as can be; lengths are None where nothing is missing.
    """
    if given is not None:
        mark_ends(arrays, given)
    complete, lengths = observed_extent(arrays["encod_data"], arrays.get("recon_data"))
    problems = []
    if (lengths == 0).any():
        none = np.flatnonzero(lengths == 0).tolist()
        problems.append(
            f"{len(none)} of {len(lengths)} trials of '{split}' have no observed entry, only NaN: "
            f"trials {list_some(none)} (counted from 0); leave them out of the file."
        )
    lengths = lengths if given is None else given
    ext = arrays.get("ext_input")
    if ext is not None:
        ends = np.where(lengths < 0, ext.shape[1], lengths)
        if not complete and given is None:
            mark_ends({"ext_input": ext}, ends)
        bad = np.concatenate([np.isnan(block).any(axis=2) for _, block in blocks(ext)])
        if bad.any():
            trials = np.flatnonzero(bad.any(axis=1)).tolist()
            problems.append(
                f"'{split}_ext_input' is NaN in {int(bad.sum())} bins within trials "
                f"{list_some(trials)} (counted from 0); the generator needs external inputs in "
                f"every bin of a trial: fill them in, for example with 0."
            )
    if not complete and given is None and "truth" in arrays:
        truth = arrays["truth"]
        mark_ends({"truth": truth}, np.where(lengths < 0, truth.shape[1], lengths))
    return (None if complete else lengths), problems


def describe_missing(arrays: Mapping[str, Array], lengths: Mapping[str, Lengths]) -> list[str]:
    """Say, by split, how many entries are missing, which channels, and how long trials are."""
    lines = []
    for split in dict.fromkeys(key.split("_", 1)[0] for key in arrays):
        encod, recon = (arrays.get(f"{split}_{name}") for name in _NAMES)
        if encod is None:
            continue
        complete, found = observed_extent(encod, recon)
        ends = lengths.get(split, np.where(found < 0, encod.shape[1], found))
        main = encod if recon is None else recon
        if complete:
            continue
        missing, tail, channels = 0, 0, np.zeros(main.shape[2], bool)
        for rows, chunk in blocks(main):
            unknown: NDArray[np.bool_] = np.asarray(np.isnan(chunk))
            missing += int(unknown.sum())
            tail += int(past_end(ends[rows], chunk.shape[1]).sum()) * chunk.shape[2]
            channels |= np.any(~unknown, axis=(0, 1))
        text = f"{split}: {missing / main.size:.1%} of the entries are missing"
        if tail:
            text += (
                f" ({tail / main.size:.1%} past the ends of trials, which have {ends.min()} to "
                f"{ends.max()} bins, median {np.median(ends):g})"
            )
        if recon is not None and recon.shape[1:] != encod.shape[1:]:
            unread = sum(int(np.isnan(block).sum()) for _, block in blocks(encod))
            text += f"; {unread / encod.size:.1%} of what the encoders read" if unread else ""
        never = np.flatnonzero(~channels).tolist()
        if never:
            text += f"; channels {list_some(never)} are missing altogether (counted from 0)"
        lines.append(text + ".")
    return lines
