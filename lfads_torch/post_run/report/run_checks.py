"""Checks of a run: whether it finished, converged, and beat something simple."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from ..evaluation.behavior import SCORED
from .finding import Finding
from .record import RunRecord

RISE = 0.05
"""Share of the whole descent of the validation loss that it rose again after its best epoch."""
LEAST_DESCENT = 0.002
"""Share of itself by which the validation loss must fall for its course to mean anything."""
LAST = 0.03
"""Share of the epochs that are the last ones: a best epoch among them, training was cut short."""


def _stage(record: RunRecord) -> Iterator[Finding]:
    stage = record.status.get("stage")
    if stopped := record.status.get("stopped"):
        yield Finding("problem", "Training stopped", str(stopped))
    elif stage is not None and stage != "complete":
        yield Finding(
            "caution",
            "The run is not finished",
            f"It got as far as: {stage}.",
            f"lfads train --resume {record.place}",
        )


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
    epochs, values = (part[np.isfinite(series[1])] for part in series)
    if len(values) < 10:
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
    rise = float(values[-1] - values[best]) / descent
    if rise > RISE:
        yield Finding(
            "caution",
            "The validation loss rose again",
            f"It was lowest in epoch {epochs[best]:.0f} and rose by {rise:.0%} of its descent "
            f"until epoch {epochs[-1]:.0f}: the model began to learn training trials by heart. "
            "Outputs are of the best epoch.",
            "More regularisation: coordinated dropout (cd_rate), dropout_rate, kl_ic_scale, "
            "kl_co_scale, l2_gen_scale; or a smaller generator.",
        )
    elif best >= len(values) - max(1, round(LAST * len(values))):
        yield Finding(
            "note",
            "Training was still improving",
            f"The validation loss was lowest in epoch {epochs[best]:.0f} of "
            f"{epochs[-1] + 1:.0f}, at the very end.",
            f"Go on: lfads train --resume {record.place} "
            f"trainer.max_epochs={int(1.5 * (epochs[-1] + 1))}",
        )


def _ramps(record: RunRecord) -> Iterator[Finding]:
    for term, name in (("kl", "KL"), ("l2", "L2")):
        weight = record.last(f"train/wt_{term}/ramp")
        if weight < 1:
            yield Finding(
                "caution",
                f"The {name} ramp had not ended",
                f"The last epoch weighted the {name} term with {weight:.2f}, so the model was "
                "never trained on its full objective.",
                f"Train longer, or shorten model.{term}_increase_epoch.",
            )


def _beside_baselines(record: RunRecord) -> Iterator[Finding]:
    differences = (record.scores or {}).get("differences", {})
    # Not PSTHs: measured on the trials that are scored, they hold the noise that smoothing keeps.
    names = {"co_bps": "co-bps", "fp_bps": "fp-bps", "behavior_r2": "decoding of behaviour"}
    rows = {
        "smoothing": "smoothed spikes",
        "factor_analysis": "factor analysis",
        "psth": "the PSTH",
    }
    for row, own in differences.items():
        for score, title in names.items():
            estimate = own.get(score)
            if estimate and estimate["high"] is not None and estimate["high"] < 0:
                yield Finding(
                    "caution",
                    f"A simpler method does better: {rows.get(row, row)}",
                    f"In {title} the model is {-estimate['value']:.3f} below {rows.get(row, row)} "
                    f"(interval {estimate['low']:.3f} to {estimate['high']:.3f}).",
                    "Train longer, or search hyper-parameters: lfads pbt.",
                )


def _generator_clip(record: RunRecord) -> Iterator[Finding]:
    clip = float(record.config.get("model", {}).get("cell_clip") or math.inf)
    for recording in record.recordings:
        states = recording.trials[SCORED].get("gen_states")
        if states is None or not states.size:
            continue
        share = float((np.abs(states) >= 0.98 * clip).mean())
        if share > 0.01:
            yield Finding(
                "caution",
                "Generator states sit at the clip",
                f"{share:.1%} of the states of {recording.session.name} are at ±{clip:g}.",
                "Raise model.cell_clip, or model.l2_gen_scale.",
            )


RUN_CHECKS: tuple[Callable[[RunRecord], Iterator[Finding]], ...] = (
    _stage,
    _diverged,
    _validation_loss,
    _ramps,
    _beside_baselines,
    _generator_clip,
)
