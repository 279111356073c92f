"""What a reader should be warned of: checks of a run, each with its result and what to do."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ...data import shared_ends, shared_trials
from ...data.smoothing import gaussian_smooth
from ...metrics.trialwise import SpikeScore, score_value
from ..evaluation import BASELINES, COLUMNS
from ..evaluation.behavior import SCORED, TRAIN, Recording
from ..evaluation.table import row_names
from ..posterior import ACTIVE, active_share
from .record import RunRecord


class Finding(NamedTuple):
    """One warning: its level of `LEVELS`, its title, the facts, and what to do."""

    level: str
    title: str
    text: str
    advice: str = ""


LEVELS = ("problem", "caution", "note")
"""Not to be trusted; to be looked at; to be known."""

CHECKED = (
    "divergence",
    "overfitting (training against validation)",
    "convergence and ramps",
    "posterior collapse",
    "silent channels and flat rates",
    "rates and inputs that follow bursts of spikes",
    "the baselines",
    "states at the clip",
    "validation trials that are training trials",
)
"""What the checks look at, for a reader who sees no warning."""

RISE = 0.05
"""Share of the whole descent of the validation loss that it rose again after its best epoch."""
LEAST_DESCENT = 0.002
"""Share of itself by which the validation loss must fall for its course to mean anything."""
LAST = 0.03
"""Share of the epochs that are the last ones: a best epoch among them, training was cut short."""
GAP = 0.2
"""Share of the training trials' bits per spike that validation trials lack, above which the model
is said to overfit."""
LEAST_GAP = 0.02
"""Bits per spike; a smaller difference is no sign of overfitting, whatever its share."""
FLAT = 0.02
"""Standard deviation of a channel's rate over its mean, below which the rate is called flat."""
BURST = 2.0, 3.0
"""Standard deviations in bins: that rates are smoothed by, and what a burst is faster than."""
LEAST_BURST = 0.002
"""Bits per spike that smoothed rates gain in held-out channels where bursts are noise."""
FOLLOWS = 0.7
"""R2 of bursts of all channels together, above which inferred inputs are said to follow them."""
FEW = 20
"""Validation trials below which scores are uncertain."""


def find_all(record: RunRecord) -> list[Finding]:
    """Run all checks on a run; return the findings, problems first."""
    findings = [finding for check in RUN_CHECKS for finding in _results(check, record)]
    for recording in record.recordings:
        where = f"{recording.session.name}: " if len(record.recordings) > 1 else ""
        for session_check in SESSION_CHECKS:
            results = _results(session_check, record, recording)
            findings += [finding._replace(text=where + finding.text) for finding in results]
    return sorted(findings, key=lambda finding: LEVELS.index(finding.level))


def _results(check: Callable[..., Iterator[Finding]], *about: Any) -> list[Finding]:
    try:
        return list(check(*about))
    except Exception as error:  # the rest of a report is worth having without one check
        name = check.__name__.strip("_").replace("_", " ")
        why = f"{name}: {type(error).__name__}: {error}."
        return [Finding("caution", "A check could not be made", why, "Is a file damaged?")]


def _stage(record: RunRecord) -> Iterator[Finding]:
    stage = record.status.get("stage")
    if stopped := record.status.get("stopped"):
        yield Finding("problem", "Training stopped", str(stopped))
    elif stage is not None and stage != "complete":
        yield Finding(
            "caution",
            "The run is not finished",
            f"It got as far as: {stage}.",
            _resume(record),
        )


def _resume(record: RunRecord) -> str:
    """Return the command that goes on; a search goes on as a whole."""
    return f"lfads {record.command} --resume {shlex.quote(str(record.folder))}"


def _diverged(record: RunRecord) -> Iterator[Finding]:
    broken = {
        name: int(epochs[~np.isfinite(values)][0])
        for name, (epochs, values) in record.log.items()
        if name.partition("/")[0] in ("train", "valid") and not np.isfinite(values).all()
        if "bps" not in name and "r2" not in name
    }
    if broken:
        first = min(broken, key=lambda name: broken[name])
        yield Finding(
            "problem",
            "Training diverged",
            f"{first} is not finite in epoch {broken[first]}"
            + (f", nor are {len(broken) - 1} other terms." if len(broken) > 1 else "."),
            "Lower model.lr_init or trainer.gradient_clip_val, look for extreme values with lfads "
            "check, or train with on_nan=recover.",
        )


def _validation_loss(record: RunRecord) -> Iterator[Finding]:
    series = record.log.get("valid/recon_smth")
    if series is None:
        return
    epochs, values = (column[np.isfinite(series[1])] for column in series)
    if len(values) < 10:  # too short a course to say anything of it
        return
    best = int(values.argmin())
    descent = float(values[: best + 1].max() - values[best])
    if descent <= 0:
        yield Finding(
            "problem",
            "The validation loss never fell",
            f"It was lowest in epoch {epochs[best]:.0f}, {values[best]:.4g}.",
            "Lower model.lr_init; look at the data with lfads check.",
        )
        return
    if descent < LEAST_DESCENT * float(np.abs(values).max()):
        yield Finding(
            "problem",
            "The validation loss hardly fell",
            f"From {values[: best + 1].max():.5g} to {values[best]:.5g}: the model has learnt "
            "next to nothing.",
            "Raise model.lr_init, or train longer; look at the data with lfads check.",
        )
        return
    # Measured in the descent, because a loss has no scale: it depends on bins, channels and rates.
    rise = float(values[-1] - values[best]) / descent
    if rise > RISE:
        yield Finding(
            "caution",
            "The validation loss rose again",
            f"It was lowest in epoch {epochs[best]:.0f} and rose by {rise:.0%} of its descent "
            f"until epoch {epochs[-1]:.0f}: the model began to learn training trials by heart. "
            f"Outputs are of epoch {record.best_epoch}, the best by {record.select_by}.",
            "More regularisation: coordinated dropout (cd_rate), dropout_rate, kl_ic_scale, "
            "kl_co_scale, l2_gen_scale; or a smaller generator.",
        )
    elif best >= len(values) - max(1, round(LAST * len(values))):
        yield Finding(
            "note",
            "Training was still improving",
            f"The validation loss was lowest in epoch {epochs[best]:.0f} of "
            f"{epochs[-1] + 1:.0f}, at the very end.",
            f"Go on: {_resume(record)} trainer.max_epochs={int(1.5 * (epochs[-1] + 1))}",
        )


def _selection(record: RunRecord) -> Iterator[Finding]:
    """Look whether the score that chooses told the epochs apart: bits per spike stop at -1."""
    _, values = record.log.get(record.select_by, ((), np.zeros(0)))
    if len(values) > 1 and np.isfinite(values).all() and not np.ptp(values):
        yield Finding(
            "problem",
            "The score that chose is the same in all epochs",
            f"{record.select_by} is {values[0]:g} throughout, so the outputs are of epoch "
            f"{record.best_epoch}, the first.",
            "Train longer, or choose by the loss: select_by=valid/recon_smth.",
        )


def _ramps(record: RunRecord) -> Iterator[Finding]:
    weights = {term: record.last(f"train/wt_{term}/ramp") for term in ("kl", "l2")}
    early = {term: weight for term, weight in weights.items() if weight < 1}
    if early:
        names = " and ".join(term.upper() for term in early)
        one = len(early) == 1
        shown = " and ".join(dict.fromkeys(f"{weight:.2f}" for weight in early.values()))
        yield Finding(
            "caution",
            f"The {names} {'ramp' if one else 'ramps'} had not ended",
            f"The last epoch weighted the {names} {'term' if one else 'terms'} with {shown}, so "
            "the model was never trained on its full objective.",
            f"Train longer, or shorten {' and '.join(f'model.{t}_increase_epoch' for t in early)}.",
        )


def _beside_baselines(record: RunRecord) -> Iterator[Finding]:
    differences = (record.scores or {}).get("differences", {})
    names = row_names(session["facts"] for session in (record.scores or {}).get("sessions", []))
    # Not PSTH R2: its PSTHs, of the trials that are scored, hold the noise that smoothing keeps.
    # Scores of channels that were read flatter the model, which makes a worse one say the more.
    scores = ("bps", "co_bps", "fp_bps", "r2", "co_r2", "fp_r2")
    titles = {score: COLUMNS[score] for score in scores} | {"behavior_r2": "decoding of behaviour"}
    ceilings = [row.name for row in BASELINES.values() if row.is_ceiling]
    for row, by_score in differences.items():
        if row in ceilings:
            continue
        below = [
            f"in {title} by {-estimate['value']:.3f} ({-estimate['high']:.3f} to "
            f"{-estimate['low']:.3f})"
            for score, title in titles.items()
            if (estimate := by_score.get(score))
            and estimate["high"] is not None
            and estimate["high"] < 0
        ]
        if below:
            name = names.get(row, row)
            yield Finding(
                "caution",
                f"A simpler method does better: {name}",
                f"The model is below it {' and '.join(below)}.",
                "Train longer, or search hyper-parameters: lfads pbt.",
            )


def _generator_clip(record: RunRecord) -> Iterator[Finding]:
    clip = float(record.set_up("cell_clip") or math.inf)
    for recording in record.recordings:
        states = recording.trials[SCORED].get("gen_states")
        if states is None or not states.size:
            continue
        # Just below the clip, since outputs are averages over samples, some of which reach it.
        share = float((np.abs(states) >= 0.98 * clip).mean())
        if share > 0.01:
            yield Finding(
                "caution",
                "Generator states sit at the clip",
                f"{share:.1%} of the states of {recording.session.name} are at ±{clip:g}.",
                "Raise model.cell_clip, or model.l2_gen_scale.",
            )


def _aligned(record: RunRecord) -> Iterator[Finding]:
    for text in (record.alignment or {}).get("warnings", []):
        advice = "docs/alignment.md says what it means and what to try."
        # As it is: it may begin with the name of a file.
        yield Finding("caution", "The alignment", f"{text}.", advice)


RUN_CHECKS: tuple[Callable[[RunRecord], Iterator[Finding]], ...] = (
    _stage,
    _diverged,
    _validation_loss,
    _selection,
    _ramps,
    _beside_baselines,
    _generator_clip,
    _aligned,
)


def _not_finite(record: RunRecord, recording: Recording) -> Iterator[Finding]:
    for split in recording.session.splits:
        trials = recording.session.trials(split)
        rates, past = trials["output_params"], trials.past_end
        bad = np.any(~np.isfinite(rates), axis=2)
        n_bad = int(np.any(bad if past is None else bad & ~past, axis=1).sum())
        if n_bad:
            yield Finding(
                "problem",
                "Rates are not finite",
                f"{n_bad} of {len(rates)} {split} trials have NaN or infinite rates.",
                "Look at these trials with lfads check; the model diverged or the data are broken.",
            )


def _gap(record: RunRecord, recording: Recording) -> Iterator[Finding]:
    """Compare bits per spike of training and validation trials, both of posterior means."""
    # Not the losses that were logged: training ones have dropout and masked inputs in them.
    if not recording.counts or recording.session.splits[:2] != ("train", "valid"):
        return
    read = slice(None), slice(recording.n_bins), slice(recording.n_channels)
    rates = {kind: recording.trials[kind]["output_params"][read] for kind in (TRAIN, SCORED)}
    scores = {kind: SpikeScore.of(r, recording.data[kind][read]) for kind, r in rates.items()}
    train, valid = (score_value(scores[kind], len(rates[kind])) for kind in (TRAIN, SCORED))
    if not (math.isfinite(train) and math.isfinite(valid)) or train <= 0:
        return
    gap = (train - valid) / train
    if gap > GAP and train - valid > LEAST_GAP:
        yield Finding(
            "problem" if gap > 0.5 else "caution",
            "Overfitting",
            f"{train:.3f} bits per spike on training trials, {valid:.3f} on validation trials "
            f"({gap:.0%} less).",
            "More regularisation: coordinated dropout (cd_rate), dropout_rate, kl_ic_scale, "
            "kl_co_scale, l2_gen_scale; a smaller generator; or more trials.",
        )


def _collapse(record: RunRecord, recording: Recording) -> Iterator[Finding]:
    trials = recording.trials[SCORED]
    if record.set_up("variational") is False or len(trials) < 2:
        return
    # A causal model may learn one initial condition for all trials, which has no spread.
    if {"ic_mean", "ic_std"} <= set(trials.names) and np.any(trials["ic_std"]):
        n_active, n_all = _active(trials["ic_mean"], trials["ic_std"])
        if n_active == 0:
            yield Finding(
                "problem",
                "The initial conditions have collapsed",
                f"None of {n_all} dimensions differs between trials by more than {ACTIVE:.0%} of "
                "its variance: every trial starts alike.",
                "Lower model.kl_ic_scale, or lengthen model.kl_increase_epoch.",
            )
        elif n_active < 0.25 * n_all:
            yield Finding(
                "note",
                "Few initial-condition dimensions are used",
                f"{n_active} of {n_all} differ between trials.",
                "model.ic_dim can be smaller, or model.kl_ic_scale lower.",
            )
    if {"co_means", "co_stds"} <= set(trials.names) and np.any(trials["co_means"]):
        n_active, n_all = _active(trials["co_means"], trials["co_stds"])
        if n_active == 0:
            yield Finding(
                "caution",
                "The inferred inputs have collapsed",
                f"None of {n_all} carries anything of a trial. That is right for dynamics that "
                "run by themselves, and wrong if inputs were expected.",
                "Lower model.kl_co_scale if inputs were expected; else leave the controller out "
                "(model.con_dim=0).",
            )
        elif n_active < n_all:
            yield Finding(
                "note",
                "Some inferred inputs are not used",
                f"{n_all - n_active} of {n_all} carry nothing of a trial.",
                "model.co_dim can be smaller.",
            )


def _active(mean: ArrayLike, std: ArrayLike) -> tuple[int, int]:
    share = active_share(mean, std)
    return int((share > ACTIVE).sum()), len(share)


def _bursts(record: RunRecord, recording: Recording) -> Iterator[Finding]:
    """Look whether fast changes of rates are shared by channels that were not read."""
    trials = recording.trials[SCORED]
    rates, data = trials["output_params"].astype(np.float64), recording.data[SCORED]
    n_bins, n_read = recording.n_bins, recording.n_channels
    is_whole = np.isfinite(rates).all() and np.isfinite(data).all()
    if not recording.counts or not is_whole or n_bins < 20:
        return
    if n_read < data.shape[2]:
        rates, data = rates[:, :n_bins, n_read:], data[:, :n_bins, n_read:]
        smooth = gaussian_smooth(rates, BURST[0])
        as_is, smoothed = (score_value(SpikeScore.of(r, data), len(r)) for r in (rates, smooth))
        if smoothed > 0 and smoothed - as_is > LEAST_BURST:
            yield Finding(
                "caution",
                "Rates follow bursts that other channels do not share",
                f"Smoothed over time by {BURST[0]:g} bins they predict held-out channels better: "
                f"{smoothed:.3f} bits per spike, {as_is:.3f} as they are.",
                "Search by held-out channels (lfads pbt with search.metric=valid/co_bps_smth), or "
                "raise model.kl_co_scale, dropout_rate, cd_rate.",
            )
    elif {"co_means", "co_stds"} <= set(trials.names) and np.any(trials["co_means"]):
        r2 = explained_bursts(data[:, :n_bins].sum(axis=2), trials["co_means"][:, :n_bins])
        if r2 > FOLLOWS:
            yield Finding(
                "note",
                "Inferred inputs follow every burst of spikes",
                f"They explain {r2:.0%} of the variance of fast changes of the spikes of all "
                "channels together. That may be signal or noise: only channels that are not read "
                "can tell.",
                "Hold channels out: lfads prep --hold-out 0.25. A search then judges by them.",
            )


def explained_bursts(counts: ArrayLike, inputs: ArrayLike) -> float:
    """Return the R2 of fast changes of counts (B, T) from inputs (B, T, C) two bins around."""
    fast = [
        x - gaussian_smooth(x, BURST[1])
        for x in (np.asarray(counts, np.float64)[..., None], np.asarray(inputs, np.float64))
    ]
    target = fast[0][:, 2:-2, 0]
    around = np.concatenate([np.roll(fast[1], lag, axis=1) for lag in range(-2, 3)], axis=2)
    errors = 0.0
    halves = [slice(k, None, 2) for k in (0, 1)]
    for fitted, scored in (halves, halves[::-1]):
        x, y = around[fitted, 2:-2], target[fitted]
        weights, *_ = np.linalg.lstsq(x.reshape(-1, x.shape[2]), y.ravel(), rcond=None)
        errors += float(((target[scored] - around[scored, 2:-2] @ weights) ** 2).sum())
    total = float(((target - target.mean()) ** 2).sum())
    return 1 - errors / total if total else 0.0


def _channels(record: RunRecord, recording: Recording) -> Iterator[Finding]:
    data = recording.data[TRAIN]
    seen = np.isfinite(data)
    silent = ~((data != 0) & seen).any(axis=(0, 1))
    n_channels = data.shape[2]
    if silent.any():
        listed = ", ".join(map(str, np.flatnonzero(silent)[:20].tolist()))
        more = ", ..." if silent.sum() > 20 else ""
        yield Finding(
            "caution" if silent.sum() > 0.2 * n_channels else "note",
            "Silent channels",
            f"{int(silent.sum())} of {n_channels} channels have no event in any training trial: "
            f"{listed}{more} (counted from 0). Their rates mean nothing.",
            "Leave them out of the data file.",
        )
    rates = recording.trials[SCORED]["output_params"].astype(np.float64)
    rates = rates[np.isfinite(rates).all(axis=2)]  # bins x channels, past no trial's end
    if not len(rates):
        return
    spread = rates.std(axis=0) / np.maximum(np.abs(rates.mean(axis=0)), 1e-12)
    flat = (spread < FLAT) & ~silent
    if flat.sum() > 0.5 * (~silent).sum():
        yield Finding(
            "problem",
            "Rates are flat",
            f"The rates of {int(flat.sum())} of {int((~silent).sum())} channels that fire vary by "
            f"less than {FLAT:.0%} of their mean.",
            "The model has learnt little more than mean rates: train longer, raise model.lr_init, "
            "lower the KL and L2 scales.",
        )


def _below_mean(record: RunRecord, recording: Recording) -> Iterator[Finding]:
    by_channel = record.session_scores(recording).get("by_channel", {})
    bits = by_channel.get("lfads", {}).get("bps", [])
    values = np.array([np.nan if v is None else v for v in bits], dtype=np.float64)
    below, scored = int((values < 0).sum()), int(np.isfinite(values).sum())
    if below > 0.5 * scored:
        yield Finding(
            "problem",
            "Most channels are predicted worse than by their mean",
            f"{below} of {scored} channels have negative bits per spike: the model has learnt "
            "nothing that holds for trials it has not seen.",
            "Train longer, or with another model.lr_init; look at the warnings beside this one.",
        )
    elif below > 0.1 * scored:
        yield Finding(
            "note",
            "Some channels are predicted worse than by their mean",
            f"{below} of {scored} channels have negative bits per spike. Often they hardly fire.",
            "Leave channels with very few spikes out, or give the model more trials.",
        )


def _trials(record: RunRecord, recording: Recording) -> Iterator[Finding]:
    if recording.n_scored < FEW:
        yield Finding(
            "note",
            "Few validation trials",
            f"There are {recording.n_scored}; scores are uncertain (see their intervals).",
        )
    trials = recording.trials
    if recording.session.splits[:2] == ("train", "valid") and "encod_data" in trials[TRAIN]:
        # Compared as the bytes of float32, which is what the model was trained on.
        pair = [
            np.ascontiguousarray(trials[kind]["encod_data"], dtype=np.float32)
            for kind in (TRAIN, SCORED)
        ]
        shared = shared_trials(*pair)
        if len(shared):
            yield Finding(
                "problem",
                "Validation trials are training trials",
                f"{len(shared)} of {recording.n_scored} validation trials are, bit for bit, also "
                "in training, so validation scores flatter.",
                "Split the trials anew.",
            )
        overlap, share = shared_ends(*pair)
        if overlap:
            yield Finding(
                "caution",
                "Validation windows overlap training windows",
                f"{share:.0%} of them begin with the last {overlap} bins of a training window, so "
                "validation scores flatter.",
                "Split a continuous recording by blocks: lfads prep --chop-ms.",
            )


SESSION_CHECKS: tuple[Callable[[RunRecord, Recording], Iterator[Finding]], ...] = (
    _not_finite,
    _gap,
    _collapse,
    _bursts,
    _channels,
    _below_mean,
    _trials,
)
