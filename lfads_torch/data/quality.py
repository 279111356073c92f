"""Checks of the numbers in a data file: silence, repeated trials, values that are not counts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import nearest
from .find import list_some
from .stored import BLOCK_ENTRIES, blocks, same_numbers, window
from .survey import Survey, bin_hashes
from .validate import REQUIRED_KEYS, SCHEMA_KEYS, SPLITS

Array = NDArray[Any]

# Data of which at least this fraction are counts are taken to be spikes with faults in them.
_MOSTLY_COUNTS = 0.99

# A neuron fires at most some 1000 times a second, and a bin is shorter than that. Numbers of other
# kinds have any unit, and none that a network takes well beyond this.
_MOST_COUNT, _MOST_VALUE = 1e3, 1e6

# Keys of the user may well resemble those of the schema, so only a slip of a letter or two counts.
_SIMILAR = 0.85

# Hashes of bins that are compared at a time: 8 MB. Those of a whole recording with one channel
# would take twice the room of the recording.
_MOST_HASHES = 1 << 20
# This many validation windows show the least share below as 25, and bound the comparisons.
_MOST_WINDOWS = 500
# A smaller share of windows is no sign of overlap, nor is one that is not this many times the share
# of those that begin with the same bins as another by chance: bins with few spikes repeat.
_LEAST_SHARE = 0.05
_BY_CHANCE = 10


def data_warnings(
    arrays: Mapping[str, Array], surveys: Mapping[str, Survey], keys: Sequence[str]
) -> list[str]:
    """List doubtful things in a session's arrays, by key; `keys` are all of the file's."""
    return [
        *misspelt_keys(keys),
        *silent_channels(surveys),
        *trials_without_spikes(surveys),
        *absurd_values(surveys),
        *_repeated(arrays, surveys),
        *_misaligned(arrays),
    ]


def misspelt_keys(keys: Sequence[str]) -> list[str]:
    """Name keys that look like a misspelt optional key of the schema that is absent.

    Required keys that are absent are errors, and named as such.
    """
    absent = [key for key in SCHEMA_KEYS if key not in keys and key not in REQUIRED_KEYS]
    near = {
        key: match[0]
        for key in keys
        if key not in SCHEMA_KEYS and (match := nearest(key, absent, most=1, cutoff=_SIMILAR))
    }
    return [
        f"{key!r} is none of the keys that the model reads and is only carried along; did you "
        f"mean {meant!r}?"
        for key, meant in near.items()
    ]


def silent_channels(surveys: Mapping[str, Survey]) -> list[str]:
    """Name channels of `recon_data` without a single spike in train; numbers count from 0.

    Channels of which train has no observed entry are named apart.
    """
    train, valid = surveys.get("train_recon_data"), surveys.get("valid_recon_data")
    if train is None:
        return []
    active, observed, messages = train.active_channels, train.observed_channels, []
    if missing := np.flatnonzero(~observed).tolist():
        messages.append(
            f"{len(missing)} of {len(active)} channels are missing (NaN) in every training trial: "
            f"{list_some(missing, 30)} (counted from 0). Nothing is learnt of them: their rates in "
            f"the output mean nothing."
        )
        # A channel that is missing is not silent as well, unless nothing at all was observed.
        if observed.any():
            active = active | ~observed
    if silent := np.flatnonzero(~active).tolist():
        messages.append(
            f"{len(silent)} of {len(active)} channels are silent in every training trial: "
            f"{list_some(silent, 30)} (counted from 0)"
        )
        if valid is not None and len(valid.missing) == len(active):
            late = np.flatnonzero(~active & valid.active_channels).tolist()
            if late:
                messages[-1] += f"; of these, {list_some(late)} fire in valid, with rates unlearnt"
        messages[-1] += "."
    return messages


def trials_without_spikes(surveys: Mapping[str, Survey]) -> list[str]:
    """Count, per split, the trials in which `encod_data` holds no spike at all."""
    return [
        f"{len(empty)} of {len(survey.active)} trials of {key!r} hold no spikes: trials "
        f"{list_some(empty)} (counted from 0)."
        for key, survey in surveys.items()
        if key.endswith("_encod_data") and (empty := np.flatnonzero(~survey.active).tolist())
    ]


def absurd_values(surveys: Mapping[str, Survey]) -> list[str]:
    """Name the channels that hold numbers which no recording has, and the largest of each."""
    messages = []
    for key, survey in surveys.items():
        is_counts = key.endswith(("_encod_data", "_recon_data")) and _are_counts(survey)
        most = _MOST_COUNT if is_counts else _MOST_VALUE
        largest = np.where(np.isfinite(survey.largest), survey.largest, 0)
        if not (channels := np.flatnonzero(largest > most)).size:
            continue
        # The shortest text that is this number in float32.
        values = [f"{float(str(value)):.9g}" for value in largest[channels]]
        named = list_some(
            [f"channel {i}: {v}" for i, v in zip(channels.tolist(), values, strict=True)]
        )
        what = "spike counts in one bin that no neuron has" if is_counts else "very large numbers"
        exact = (
            " Whole numbers beyond 16777216 (2^24) are rounded, too."
            if largest.max() >= 2**24
            else ""
        )
        advice = "mend them, or mark them missing with NaN" if is_counts else "choose a larger unit"
        messages.append(
            f"{key!r} holds {what}: {named} (counted from 0); legal, but the loss will be theirs "
            f"alone: {advice}.{exact}"
        )
    return messages


def shared_trials(train: Array, valid: Array) -> NDArray[np.intp]:
    """Find the trials of `valid` that are also, bit for bit, in `train`.

    Trials without spikes are left out: they are alike by necessity.

    Parameters
    ----------
    train, valid : ndarray of float32, shape (n, T, N)
        Trials of both splits, with as many bins and channels.

    Returns
    -------
    ndarray of int
        Indices into `valid`.
    """
    return _same_trials(train, valid, Survey.of(train), Survey.of(valid))


def _same_trials(
    train: Array, valid: Array, train_survey: Survey, valid_survey: Survey
) -> NDArray[np.intp]:
    if train.shape[1:] != valid.shape[1:]:
        return np.empty(0, np.intp)
    train_hash, valid_hash = train_survey.hashes, valid_survey.hashes
    order = np.argsort(train_hash, kind="stable")
    first, end = (
        np.searchsorted(train_hash[order], valid_hash, side) for side in ("left", "right")
    )
    same = np.zeros(len(valid), bool)
    # Different trials can have the same hash, so the few candidates are compared bit for bit, one
    # training trial of their hash after another.
    while len(candidates := np.flatnonzero((first < end) & valid_survey.active & ~same)):
        for _, numbers in blocks(candidates, BLOCK_ENTRIES // valid[0].size):
            pair = (valid[numbers], train[order[first[numbers]]])
            left, right = (np.ascontiguousarray(trials).view(np.uint32) for trials in pair)
            same[numbers] = (left == right).all(axis=(1, 2))
        first[candidates] += 1
    return np.flatnonzero(same)


def _repeated(arrays: Mapping[str, Array], surveys: Mapping[str, Survey]) -> list[str]:
    """Say which validation trials, or which ends of them, are training data too."""
    pair = ("train_encod_data", "valid_encod_data")
    if not all(key in arrays for key in pair):
        return []
    train, valid = (arrays[key] for key in pair)
    messages = []
    if shared := _same_trials(train, valid, *(surveys[key] for key in pair)).tolist():
        messages.append(
            f"{len(shared)} of {len(valid)} validation trials are identical to a training trial, "
            f"so validation scores flatter: valid trials {list_some(shared)} (counted from 0)."
        )
    overlap, share = shared_ends(train, valid)
    if overlap:
        messages.append(
            f"{share:.0%} of the validation windows begin with the last {overlap} bins of a "
            f"training window: they overlap, and validation scores flatter. Split a continuous "
            f"recording by blocks (lfads prep, lfads_torch.prep.chop.chop_recording)."
        )
    return messages


def shared_ends(train: Array, valid: Array) -> tuple[int, float]:
    """Return how many first bins of validation windows end a training window, and how often.

    Both are 0 where windows (n, T, N) do not overlap.
    """
    n_bins = train.shape[1]
    if train.shape[1:] != valid.shape[1:] or n_bins < 2:
        return 0, 0.0
    rows = np.linspace(0, len(valid) - 1, min(len(valid), _MOST_WINDOWS)).round().astype(int)
    valid_bins = np.concatenate(list(_bin_hashes(valid[rows])))
    # The hash of a run of bins is a polynomial in a fixed odd number, modulo 2^64, so that a run
    # that is longer by one bin costs one product (Karp & Rabin 1987).
    powers = np.full(n_bins, 0x9E3779B97F4A7C15, np.uint64)
    base, powers[0] = powers[1], 1
    powers = np.cumprod(powers, dtype=np.uint64)
    begins = np.cumsum(valid_bins * powers, axis=1, dtype=np.uint64)
    # Bins without a spike are alike by necessity.
    is_distinct = np.cumsum(valid_bins != 0, axis=1) >= 2
    overlaps = np.zeros((len(rows), n_bins), bool)  # by length
    # By sorting: hashes are spread out too far for a table, which NumPy 2.0 tries and fails with.
    is_in = partial(np.isin, kind="sort")
    for bins in _bin_hashes(train):
        ends = np.zeros(len(bins), np.uint64)
        for length in range(1, n_bins):
            ends = bins[:, n_bins - length] + base * ends
            overlaps[:, length] |= is_in(begins[:, length - 1], ends)
    overlaps[:, 1:] &= is_distinct[:, :-1]
    shares = overlaps.mean(axis=0)
    # Runs that say less than it takes to tell all pairs of windows apart are alike by chance: those
    # of a single channel, or of few spikes.
    counts = np.unique(valid_bins, return_counts=True)[1] / valid_bins.size
    bits = -np.arange(n_bins) * (counts * np.log2(counts)).sum()
    tells = bits >= np.log2(len(rows) * len(train) * n_bins)
    likely = np.flatnonzero(tells & (shares >= max(_LEAST_SHARE, 2 / len(rows)))).tolist()
    # Most recordings have no likely length, and are spared this second pass.
    alike = np.zeros_like(overlaps)
    for bins in _bin_hashes(train) if likely else ():
        train_begins = np.cumsum(bins * powers, axis=1, dtype=np.uint64)
        for length in likely:
            alike[:, length] |= is_in(begins[:, length - 1], train_begins[:, length - 1])
    share, overlap = 0.0, 0
    for length in likely:
        chance = (alike[:, length] & is_distinct[:, length - 1]).mean()
        # Of equal shares that of the longest run counts, which is the least likely by chance.
        if shares[length] >= share and shares[length] > _BY_CHANCE * chance:
            share, overlap = float(shares[length]), length
    return overlap, share


def _bin_hashes(array: Any) -> Iterator[NDArray[np.uint64]]:
    """Yield the hashes of all bins, some trials at a time, shape (n, T)."""
    stack: list[NDArray[np.uint64]] = []
    for _, block in blocks(array):
        stack.append(bin_hashes(block))
        if sum(hashes.size for hashes in stack) >= _MOST_HASHES:
            yield np.concatenate(stack)
            stack = []
    if stack:
        yield np.concatenate(stack)


def _misaligned(arrays: Mapping[str, Array]) -> list[str]:
    messages = []
    for split in SPLITS:
        encod, recon = arrays.get(f"{split}_encod_data"), arrays.get(f"{split}_recon_data")
        if encod is None or recon is None or len(encod) != len(recon):
            continue
        read = window(recon, *encod.shape[1:])
        if read.shape == encod.shape and not same_numbers(encod, read):
            messages.append(
                f"'{split}_encod_data' is not the first {encod.shape[1]} bins and "
                f"{encod.shape[2]} channels of '{split}_recon_data'; channels are matched by "
                f"their order, so held-out ones must come last."
            )
        ext = arrays.get(f"{split}_ext_input")
        if ext is not None and ext.shape[1] > recon.shape[1]:
            messages.append(
                f"'{split}_ext_input' has {ext.shape[1]} bins, '{split}_recon_data' "
                f"{recon.shape[1]}; the bins beyond are not used."
            )
    return messages


def count_faults(key: str, survey: Survey) -> tuple[list[str], list[str]]:
    """Return errors and warnings that separate faulty spike counts from data that are no counts."""
    errors, warnings = [], []
    negative, fractional, zero = survey.negative, survey.fractional, survey.zero
    bad = int((negative + fractional).sum())
    if survey.infinite.any():
        errors.append(
            f"{key!r} holds {_entries(survey.infinite, 'infinite')}; make them finite or NaN."
        )
    if bad and _are_counts(survey):
        for faulty, what in ((negative, "negative"), (fractional, "fractional")):
            if faulty.any():
                errors.append(
                    f"{key!r} holds {_entries(faulty, what)} among spike counts; Poisson needs "
                    f"whole numbers >= 0. Mend them, or mark them missing with NaN."
                )
    elif bad:
        fits = "Gaussian or MSE"
        if not negative.any():
            fits += (
                f", ZeroInflatedGamma, or Gamma once the {int(zero.sum())} zeros are made positive"
                if zero.any()
                else " or Gamma"
            )
        warnings.append(
            f"{key!r} does not hold spike counts ({_entries(negative, 'negative')}, "
            f"{_entries(fractional, 'fractional')}): Poisson will refuse it; use {fits}."
        )
    return errors, warnings


def _are_counts(survey: Survey) -> bool:
    bad = int((survey.negative + survey.fractional).sum())
    return bad <= (1 - _MOSTLY_COUNTS) * (survey.size - int(survey.missing.sum()))


def _entries(per_channel: NDArray[np.int64], what: str) -> str:
    channels = np.flatnonzero(per_channel).tolist()
    if not channels:
        return f"no {what} values"
    where = f" in channels {list_some(channels)}" if len(channels) < len(per_channel) else ""
    return f"{int(per_channel.sum())} {what} values{where}"
