"""Evaluate a run: every score of the model and of its baselines, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...data import SPLITS, split_kind
from ...errors import UserError, did_you_mean, whole
from ...metrics.trialwise import ByTime, interval, ratio, resampled_trials, score_by_time
from ..outputs import RunOutputs, load_outputs
from .baselines import BASELINES, baseline_predictions, chosen_baselines
from .behavior import Keys, Recording, read_recording
from .few_shot import few_shot_scores
from .scoring import (
    PSTH_SMOOTHING_MS,
    Prediction,
    benchmark_scores,
    model_predictions,
    trial_scores,
    true_rates,
)
from .table import Estimate, Evaluation, Scores, SessionScores

FloatArray = NDArray[np.float64]
Parts = tuple[FloatArray, FloatArray]
"""Numerators and denominators: of the trials as they are, then of each draw."""

MODEL = "lfads"


def evaluate_run(
    run: str | Path | RunOutputs,
    *,
    split: str = "valid",
    baselines: bool | Sequence[str] = True,
    n_draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    bin_ms: float | None = None,
    behavior: str = Keys.behavior,
    condition: str | None = None,
    latents: str = Keys.latents,
    by_time: int | None = None,
    few_shot: Sequence[int | None] = (),
) -> Evaluation:
    """Score what a run inferred of its trials, beside what simpler methods reach.

    Parameters
    ----------
    run : str, Path or RunOutputs
        As of `load_outputs`.
    split : {"valid", "train", "test", "select"}
        The trials that are scored. Baselines and decoders are fitted to the training trials.
    baselines : bool or sequence of str
        Rows beside the model, by their names in `lfads_torch.post_run.evaluation.BASELINES`; True
        for those that take little time.
    n_draws : int
        Bootstrap draws of the scored trials; 0 for no intervals.
    level : float
        Of the intervals.
    seed : int
        Of the draws.
    bin_ms : float, optional
        Bin width, where the files do not say it.
    behavior, condition, latents : str
        Keys, without their split, that hold behaviour, each trial's condition (by default one of
        ``cond_idx``, ``cond_id``, ``condition``, ``target``), and true latents.
    by_time : int, optional
        Consecutive parts of the scored trials, in order of time, that are scored as well.
    few_shot : sequence of int or None
        Numbers of training trials, None for all, after which channels that the model never saw
        (``{split}_extra_data``) are predicted from its factors; ten draws of each.

    Returns
    -------
    Evaluation

    Raises
    ------
    UserError
        If there are no outputs, no such split, or a key that was named is absent.
    DataError
        If arrays of a file do not fit together.
    """
    if split not in SPLITS:
        raise UserError(f"split is {split!r}; {did_you_mean(split, SPLITS)}")
    if n_draws < 0 or not 0 < level < 1:
        raise UserError(
            f"n_draws={n_draws}, level={level}; legal are 0 or more draws and a level between "
            "0 and 1"
        )
    if by_time is not None:
        whole("by_time", by_time, least=2)
    outputs = run if isinstance(run, RunOutputs) else load_outputs(run, bin_ms=bin_ms)
    keys = Keys(behavior, latents, condition)
    rows = chosen_baselines(baselines)
    sessions, pooled = [], []
    notes: list[str] = []
    for number, session in enumerate(outputs):
        recording = read_recording(session, split, keys)
        predictions = model_predictions(recording)
        if rows:
            predictions += baseline_predictions(recording, baselines)
            predictions += true_rates(recording)
        absent = set(rows) - {prediction.name for prediction in predictions}
        if absent and not isinstance(baselines, bool):
            titles = ", ".join(BASELINES[row].title for row in rows if row in absent)
            notes.append(
                f"{session.name} lacks {titles}: too few trials or channels, or data that it does "
                "not take (docs/scores.md)"
            )
        # Trials are drawn, not bins: bins of a trial are far from independent. All predictions get
        # the same draws, so that differences between them are of the same trials.
        draws = resampled_trials(recording.n_scored, n_draws, [seed, number])
        weights = np.concatenate([np.ones((1, recording.n_scored)), draws])
        order = session.order
        kind = split_kind(order, split)
        periods: list[NDArray[np.int64]] = []
        if by_time and order.key and recording.n_scored >= by_time:
            in_time = np.argsort(order.positions[split], kind="stable")
            periods = np.array_split(in_time, by_time)
        elif by_time:
            why = "has too few trials" if order.key else "does not say where its trials lie in time"
            notes.append(f"parts of time are not scored: {session.name} {why}")
        drawing = Drawing(n_draws, level, [seed, number])
        scored, parts = _score(recording, predictions, weights, periods, drawing)
        scored.facts |= {"split_kind": kind.name, "between_training": kind.between}
        if kind.name != "unknown":
            notes.append(f"{session.name}: the {split} trials are {kind.text}")
        if few_shot:
            scored.few_shot = few_shot_scores(recording, few_shot, [seed, number])
        scored.nlb = benchmark_scores(recording, split)
        sessions.append(scored)
        pooled.append(parts)
        notes += [note for note in _notes(recording, split, rows) if note not in notes]
    together = pool(pooled)
    return Evaluation(
        run=str(outputs.path),
        split=split,
        level=level,
        n_draws=n_draws,
        sessions=sessions,
        scores={row: _estimates(parts, level) for row, parts in together.items()},
        differences={
            row: {
                name: estimate(ratio(*together[MODEL][name]) - ratio(*part), level)
                for name, part in together[row].items()
                if name in together[MODEL]
            }
            for row in BASELINES
            if row in together
        },
        notes=notes,
    )


class Drawing(NamedTuple):
    """How intervals are drawn."""

    n_draws: int
    level: float
    seed: Sequence[int]


# PSTHs and correlations within a part of time would have too few trials.
_IN_TIME = ("bps", "co_bps", "fp_bps", "r2", "behavior_r2")


def _score(
    recording: Recording,
    predictions: Sequence[Prediction],
    weights: FloatArray,
    periods: Sequence[NDArray[np.int64]],
    drawing: Drawing,
) -> tuple[SessionScores, dict[str, dict[str, Parts]]]:
    level = drawing.level
    by_time: dict[str, dict[str, ByTime]] = {}
    parts: dict[str, dict[str, Parts]] = {}
    scores: Scores = {}
    by_channel: dict[str, dict[str, list[float]]] = {}
    by_condition: dict[str, dict[str, list[float]]] = {}
    for prediction in predictions:
        row = prediction.name
        parts[row], by_channel[row], by_condition[row] = {}, {}, {}
        for name, score in trial_scores(recording, prediction).items():
            parts[row][name] = score.parts(weights)
            if periods and name in _IN_TIME:
                by_time.setdefault(row, {})[name] = score_by_time(score, periods, *drawing)
            if (channels := score.by_column()) is not None:
                by_channel[row][name] = channels.tolist()
            if (groups := score.by_group(recording.members)) is not None and groups.size:
                by_condition[row][name] = groups.tolist()
        scores[row] = _estimates(parts[row], level)
    session = SessionScores(
        name=recording.session.name,
        facts=_facts(recording),
        scores=scores,
        by_channel=by_channel,
        by_condition=by_condition,
        nlb={},
        choices={p.name: p.choices for p in predictions if p.choices},
        by_time=by_time,
    )
    return session, parts


def _facts(recording: Recording) -> dict[str, Any]:
    _, n_bins, n_channels = recording.data["scored"].shape
    return {
        "file": str(recording.session.path),
        "n_trials": recording.n_scored,
        "n_training_trials": recording.trials["train"].n_trials,
        "n_bins_read": recording.n_bins,
        "n_bins": n_bins,
        "n_channels_read": recording.n_channels,
        "n_channels": n_channels,
        "bin_ms": recording.session.bin_ms,
        "counts": recording.counts,
        "condition_key": recording.condition_key,
        "conditions": recording.condition_names,
        "trials_by_condition": [len(members) for members in recording.members],
    }


def _notes(recording: Recording, split: str, baselines: Sequence[str]) -> list[str]:
    notes = []
    if split == "train":
        notes.append("these are training trials: the scores say nothing of trials never seen")
    if baselines and recording.counts:
        notes.append(
            "bits/spike of channels that were read: LFADS has seen the bins that it is scored on, "
            "which flatters it; the baselines have not. co-bps is free of this"
        )
    if recording.condition_names and recording.psth is None:
        bin_ms = recording.session.bin_ms
        width = f"{PSTH_SMOOTHING_MS:g} ms" if bin_ms else "2 bins"
        data = "counts" if recording.counts else "data"
        notes.append(
            f"PSTH R2 is against the mean {data} of the same {split} trials of each "
            f"condition ({recording.condition_key}), smoothed by {width}, since the file has no "
            f"psth; smoothed {'spikes' if recording.counts else 'data'} hold those very {data}, "
            "noise and all, and may exceed true rates"
        )
    elif recording.condition_names:
        notes.append(
            "PSTH R2 is against the psth of the file, which stays as it is when trials are drawn: "
            "its intervals hold the scatter of the inferred rates over trials, and not the noise "
            "in those PSTHs. The row PSTH, of the same rates in all trials of a condition, has "
            "next to none"
        )
    if "psth" in baselines and not recording.condition_names:
        notes.append("the file names no conditions, so the row PSTH is the mean over all trials")
    return notes


def pool(sessions: Sequence[dict[str, dict[str, Parts]]]) -> dict[str, dict[str, Parts]]:
    """Add up numerators and denominators of sessions, by row and score."""
    total: dict[str, dict[str, Parts]] = {}
    for session in sessions:
        for row, scores in session.items():
            for name, (numerator, denominator) in scores.items():
                # A session without a value must not turn the others' to NaN.
                known = denominator > 0
                # Scores of the data are pooled, as if all sessions were one; PSTHs and behaviour
                # have units and noise of their session, so that their scores are averaged.
                if name in ("bps", "co_bps", "fp_bps", "r2", "co_r2", "fp_r2"):
                    part = np.where(known, numerator, 0.0), np.where(known, denominator, 0.0)
                else:
                    value = ratio(numerator, denominator)
                    part = np.where(known, value, 0.0), known.astype(np.float64)
                row_total = total.setdefault(row, {})
                before = row_total.get(name, (0.0, 0.0))
                row_total[name] = (before[0] + part[0], before[1] + part[1])
    return total


def estimate(values: FloatArray, level: float) -> Estimate:
    """Return a score and its interval, from its value and those of the draws after it."""
    return Estimate(float(values[0]), *interval(float(values[0]), values[1:], level))


def _estimates(parts: Mapping[str, Parts], level: float) -> dict[str, Estimate]:
    return {name: estimate(ratio(*part), level) for name, part in parts.items()}
