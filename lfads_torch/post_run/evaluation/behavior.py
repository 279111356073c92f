"""What can be scored in one session: counts, conditions, behaviour, truth."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import DataError, UserError
from ...metrics.nlb import trial_sets, trials_by_condition
from ..outputs import SessionOutputs
from ..trials import Trials

Array = NDArray[Any]

TRAIN, SCORED = "train", "scored"

#: Keys, without their split, that are taken for conditions where none is named.
CONDITION_KEYS = ("cond_idx", "cond_id", "condition", "target")


@dataclass(frozen=True)
class Keys:
    """Keys, without their split, of what is scored beside spikes."""

    behavior: str = "behavior"
    latents: str = "latents"
    # The first of `CONDITION_KEYS` that the file has, where None
    condition: str | None = None


@dataclass
class Recording:
    """One session: its training trials under ``train``, those that are scored under ``scored``."""

    session: SessionOutputs
    trials: dict[str, Trials]
    # What was to be modelled; NaN where missing; shape (trials, T_r, N_r)
    data: dict[str, Array]
    # n_bins, n_channels: Of these, what the encoders read
    n_bins: int
    n_channels: int
    # Whether they are counts
    counts: bool
    # Number of each trial's condition; -1 where unknown. All 0 where there are no conditions;
    # shape (trials,)
    labels: dict[str, NDArray[np.int64]]
    # Empty where there are no conditions
    condition_names: list[str]
    condition_key: str | None
    # As the file has them; shape (conditions, bins, N_r)
    psth: Array | None = None
    # shape (scored trials,)
    jitter: Array | None = None
    # behavior, latents, truth: Empty where there are none; truth in the units of `data`
    behavior: dict[str, Array] = field(default_factory=dict)
    latents: dict[str, Array] = field(default_factory=dict)
    truth: dict[str, Array] = field(default_factory=dict)
    # What the model itself read out of the scored trials, where it does; shape (trials, bins, D)
    readout: Array | None = None
    # Sets of trials, each with a decoder of its own; shape (sets, trials)
    sets: dict[str, NDArray[np.bool_]] = field(default_factory=dict)

    @property
    def n_scored(self) -> int:
        """Trials that are scored."""
        return self.trials[SCORED].n_trials

    @property
    def members(self) -> list[NDArray[np.int64]]:
        """Scored trials of each condition."""
        labels = self.labels[SCORED]
        return [np.flatnonzero(labels == k) for k in range(len(self.condition_names))]


def read_recording(session: SessionOutputs, split: str, keys: Keys) -> Recording:
    """Gather what can be scored, or raise where a key that was named is absent or does not fit."""
    trials = {TRAIN: session.trials("train"), SCORED: session.trials(split)}
    for some in trials.values():
        if "recon_data" not in some:
            raise UserError(
                f"{session.path} has no '{split}_recon_data' to score against; choose another "
                "split, or add it to the data file"
            )
    data = {kind: some["recon_data"] for kind, some in trials.items()}
    for kind, some in trials.items():
        if data[kind].shape != some["output_params"].shape:
            raise DataError(
                f"{session.path}: recon_data has shape {data[kind].shape}, output_params "
                f"{some['output_params'].shape}; they must agree"
            )
    n_bins, n_channels = session.read_sizes
    labels, names, key = _conditions(session, trials, split, keys.condition)
    recording = Recording(
        session, trials, data, n_bins, n_channels, session.counts, labels, names, key
    )
    recording.behavior = _pair(trials, keys.behavior, keys.behavior != Keys.behavior)
    if keys.behavior == Keys.behavior:
        recording.readout = trials[SCORED].get("behavior_prediction")
    recording.latents = _pair(trials, keys.latents, keys.latents != Keys.latents)
    recording.truth = _pair(trials, "truth", named=False)
    if "conversion_factor" in session.keys:
        # Files of synthetic data hold true rates times a factor, in other units than the counts.
        factor = _numbers(session, "conversion_factor", session.read("conversion_factor"))
        scale = float(factor.ravel()[0])
        recording.truth = {kind: array / scale for kind, array in recording.truth.items()}
    if "jitter" in trials[SCORED]:
        recording.jitter = _numbers(session, "jitter", trials[SCORED]["jitter"], 1)
    if "psth" in session.keys and key == "cond_idx":
        psth = _numbers(session, "psth", session.read("psth"), 3)
        recording.psth = psth.astype(np.float64)
    for kind, some in trials.items():
        mask = some.get("decode_mask")
        if mask is not None:
            mask = _numbers(session, "decode_mask", mask)
        recording.sets[kind] = trial_sets(mask, some.n_trials)
    return recording


def _pair(trials: dict[str, Trials], name: str, named: bool) -> dict[str, Array]:
    """Return the array of both kinds of trials; nothing where one lacks it and none named it."""
    if not named and not all(name in some for some in trials.values()):
        return {}
    n_axes = 3 if name in (Keys.latents, "truth") else None
    pair = {k: _numbers(some.session, name, some[name], n_axes) for k, some in trials.items()}
    if pair[TRAIN].shape[2:] != pair[SCORED].shape[2:]:
        raise DataError(
            f"{trials[TRAIN].session.path}: '{name}' has shape {pair[TRAIN].shape} for training "
            f"trials, {pair[SCORED].shape} for those that are scored; columns must agree"
        )
    return {kind: ended(some, pair[kind]) for kind, some in trials.items()}


def _numbers(session: SessionOutputs, key: str, array: Array, n_axes: int | None = None) -> Array:
    """Return an array that people have in their data, or raise where it holds no numbers."""
    if array.dtype.kind not in "buif" or not array.size or array.ndim != (n_axes or array.ndim):
        legal = "numbers" + (f", with {n_axes} axes" if n_axes else "")
        raise DataError(
            f"{session.path}: '{key}' is an array of {array.dtype} with shape {array.shape}; legal "
            f"are {legal}. Delete or rename it, and sample the run again"
        )
    return array


def ended(trials: Trials, array: Array) -> Array:
    """Return the array with NaN past the ends of trials, where nothing was inferred."""
    past = trials.past_end
    if past is None or array.ndim != 3 or array.dtype.kind not in "buif":
        return array
    past = past[:, : array.shape[1]]
    values = array.astype(np.result_type(array.dtype, np.float32))
    values[:, : past.shape[1]][past] = np.nan
    return values


def _conditions(
    session: SessionOutputs, trials: dict[str, Trials], split: str, named: str | None
) -> tuple[dict[str, NDArray[np.int64]], list[str], str | None]:
    """Return the number of each trial's condition, the conditions' names, and their key."""
    file_splits = {TRAIN: "train", SCORED: split}
    candidates = CONDITION_KEYS if named is None else (named,)
    present = [k for k in candidates if f"{split}_{k}" in session.keys]
    if not present:
        if named is not None:
            trials[SCORED][named]  # its error names what the file has
        return {kind: np.zeros(p.n_trials, np.int64) for kind, p in trials.items()}, [], None
    key = present[0]
    raw = {
        kind: session.read(f"{name}_{key}") if f"{name}_{key}" in session.keys else None
        for kind, name in file_splits.items()
    }
    conditions: dict[str, Array] = {}
    for kind, values in raw.items():
        n_trials = trials[kind].n_trials
        if values is None:
            conditions[kind] = np.full(n_trials, np.nan)
        elif not values.ndim or values.dtype.kind not in "buifSUO":
            raise DataError(
                f"{session.path}: '{file_splits[kind]}_{key}' is an array of {values.dtype} with "
                f"shape {values.shape}; legal is one condition for each of the {n_trials} trials"
            )
        elif values.ndim == 1 and values.dtype.kind != "O" and len(values) == n_trials:
            conditions[kind] = values
        elif len(values) == n_trials and all(isinstance(value, bytes | str) for value in values):
            conditions[kind] = np.array([_text(value) for value in values])
        elif values.dtype.kind == "O" or values.ndim == 2:
            conditions[kind] = _from_lists(values, n_trials, f"{file_splits[kind]}_{key}", session)
        else:
            raise DataError(
                f"{session.path}: '{file_splits[kind]}_{key}' has shape {values.shape}; legal are "
                f"one condition for each of the {n_trials} trials, or lists of trials"
            )
    known = np.concatenate([_known(values) for values in conditions.values()])
    names = np.unique(known)
    numbers = key == "cond_idx" and known.size and known.dtype.kind in "iu" and known.min() >= 0
    if numbers:
        # PSTHs of the file are in the order of the condition numbers, gaps among them: a condition
        # without trials in these splits keeps its place.
        n_psth = session.read("psth").shape[0] if "psth" in session.keys else 0
        names = np.arange(max(int(known.max()) + 1, n_psth))
    labels = {kind: _codes(values, names) for kind, values in conditions.items()}
    return labels, [_text(name) for name in names], key


def _from_lists(values: Array, n_trials: int, key: str, session: SessionOutputs) -> Array:
    lists = trials_by_condition(values, len(values))
    labels = np.full(n_trials, -1, dtype=np.int64)
    for condition, members in enumerate(lists):
        if members.size and not 0 <= members.min() <= members.max() < n_trials:
            raise DataError(
                f"{session.path}: '{key}' lists trials {members.min()} to {members.max()} of "
                f"condition {condition}; legal are 0 to {n_trials - 1}"
            )
        labels[members] = condition
    return labels


def _known(values: Array) -> Array:
    if values.dtype.kind == "f":
        values = values[np.isfinite(values)]
        whole = values.astype(np.int64)
        return whole if np.array_equal(whole, values) else values
    return values[values >= 0] if values.dtype.kind in "iu" else values


def _codes(values: Array, names: Array) -> NDArray[np.int64]:
    comparable = (values.dtype.kind in "US") == (names.dtype.kind in "US")
    if not len(names) or not comparable:
        return np.full(len(values), -1, dtype=np.int64)
    place = np.searchsorted(names, values).clip(0, len(names) - 1)
    return np.where(names[place] == values, place, -1)


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
