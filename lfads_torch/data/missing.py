"""What is missing in a session's arrays, and where each trial ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from .find import list_some
from .stored import StoredArray, past_end
from .survey import Survey

Array = NDArray[Any]
Lengths = NDArray[np.int64]

_NAMES = ("encod_data", "recon_data")


def given_lengths(file: h5py.File, split: str) -> Lengths | None:
    """Return the bins of each trial as ``{split}_lengths`` says, None without such a key."""
    key = f"{split}_lengths"
    return np.asarray(file[key][()]).astype(np.int64) if key in file else None


def length_faults(
    file: h5py.File, keys: Sequence[str], shapes: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """List what is wrong with the keys ``{split}_lengths``; `shapes` of the sound arrays."""
    splits = list(dict.fromkeys(key.split("_", 1)[0] for key in shapes))
    stated = [split for split in splits if f"{split}_lengths" in keys]
    if not stated:
        return []
    problems = [
        f"'{stated[0]}_lengths' is there but '{split}_lengths' is not; give the trials' lengths in "
        f"every split, or mark the bins past a trial's end with NaN instead."
        for split in splits
        if split not in stated
    ]
    for split in stated:
        data, key = file[f"{split}_lengths"], f"{split}_lengths"
        pair = [shapes[f"{split}_{name}"] for name in _NAMES if f"{split}_{name}" in shapes]
        if not pair:
            continue
        n_trials, n_bins = pair[0][0], max(shape[1] for shape in pair)
        if data.dtype.kind not in "uif" or data.shape != (n_trials,):
            problems.append(
                f"{key!r} has shape {'x'.join(map(str, data.shape or ())) or 'scalar'}, type "
                f"{data.dtype}; it says how many bins each trial has, so legal is one whole "
                f"number for each of the {n_trials} trials. Rename it if it is something else."
            )
            continue
        values = data[()].astype(np.float64)  # float64, so that 12.5 and NaN are refused, too
        bad = np.flatnonzero(~((values >= 1) & (values <= n_bins) & (values == np.floor(values))))
        if len(bad):
            problems.append(
                f"{key!r} is {values[bad[0]]:g} for trial {bad[0]} ({len(bad)} of {n_trials} "
                f"trials: {list_some(bad.tolist())}, counted from 0); legal are whole numbers from "
                f"1 to {n_bins}, the bins of '{split}_recon_data'."
            )
    return problems


class Settled(NamedTuple):
    """Where the trials of a split end, what is wrong with them, and what its arrays hold."""

    lengths: Lengths | None  # -1 where a trial is as long as can be; None where nothing is missing
    problems: list[str]
    surveys: dict[str, Survey]


def settle_split(split: str, arrays: Mapping[str, Array], given: Lengths | None) -> Settled:
    """Survey a split's arrays and mark what lies past the ends of trials, in place.

    `given` are the lengths that the file states; without them, NaN says where a trial ends.
    """
    surveys = {name: Survey.of(arrays[name], given) for name in _NAMES if name in arrays}
    complete = all(survey.complete for survey in surveys.values())
    lengths = np.max([survey.lengths for survey in surveys.values()], axis=0)
    if "recon_data" not in arrays:
        # What comes after the bins that are read is unknown, so the trial may go on to the end.
        lengths[lengths == arrays["encod_data"].shape[1]] = -1
    problems = []
    if (lengths == 0).any():
        none = np.flatnonzero(lengths == 0).tolist()
        problems.append(
            f"{len(none)} of {len(lengths)} trials of '{split}' have no observed entry, only NaN: "
            f"trials {list_some(none)} (counted from 0); leave them out of the file."
        )
    # What the file states counts, even where all is NaN from some earlier bin on: that is how rates
    # are inferred for last bins in which nothing was recorded.
    lengths = lengths if given is None else given
    for name, array in arrays.items():
        # The generator runs on past the end of a trial, and needs a number there.
        filler = 0.0 if name == "ext_input" else np.nan
        is_data = name in _NAMES
        ends = given if is_data or complete else np.where(lengths < 0, array.shape[1], lengths)
        if not is_data:
            surveys[name] = Survey.of(array, ends, filler)
        if ends is not None:
            _mark_ends(array, ends, filler)
    if "ext_input" in surveys and (gaps := surveys["ext_input"].gaps).any():
        problems.append(
            f"'{split}_ext_input' is NaN in {int(gaps.sum())} bins within trials "
            f"{list_some(np.flatnonzero(gaps).tolist())} (counted from 0); the generator needs "
            f"external inputs in every bin of a trial: fill them in, for example with 0."
        )
    return Settled(None if complete else lengths, problems, surveys)


def _mark_ends(array: Array, lengths: Lengths, filler: float) -> None:
    """Give the bins past each trial's end a value, in place."""
    if isinstance(array, StoredArray):
        array.end_at(lengths, filler)
    else:
        array[past_end(lengths, array.shape[1])] = filler


def describe_missing(split: str, settled: Settled) -> str | None:
    """Say how many entries of a split are missing, which channels, and how long trials are."""
    if settled.lengths is None:
        return None
    encod = settled.surveys["encod_data"]
    main = settled.surveys.get("recon_data", encod)
    n_channels = len(main.missing)
    n_bins = main.size // n_channels // len(main.lengths)
    ends = np.where(settled.lengths < 0, n_bins, settled.lengths)
    text = f"{split}: {main.missing.sum() / main.size:.1%} of the entries are missing"
    if tail := int(np.maximum(n_bins - ends, 0).sum()) * n_channels:
        text += (
            f" ({tail / main.size:.1%} past the ends of trials, which have {ends.min()} to "
            f"{ends.max()} bins, median {np.median(ends):g})"
        )
    if main.size != encod.size and (unread := int(encod.missing.sum())):
        text += f"; {unread / encod.size:.1%} of what the encoders read"
    if never := np.flatnonzero(~main.observed_channels).tolist():
        text += f"; channels {list_some(never)} are missing altogether (counted from 0)"
    return text + "."
