"""Channels that a model never saw, predicted from its factors after a few trials of them.

Few-shot co-smoothing (Dabholkar and Barak 2025): factors that hold more than the data need, such as
dynamics of their own, predict new channels badly from few trials, even where co-bps is equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...errors import ConfigError, DataError, UserError
from ...metrics.regression import LinearMap, poisson_regression
from ...metrics.trialwise import SpikeScore, score_value
from .behavior import SCORED, TRAIN, Recording, ended
from .fits import Source, scale_of

Array = NDArray[Any]

N_DRAWS = 10
"""Draws of training trials; of all of them there is one."""
PENALTIES = (0.0, 1e-3, 1e-2, 1e-1, 1.0)
"""Ridge penalties on the weights of scaled features, among which the folds choose."""
_FOLDS = 5
_TOLERANCE, _TOLERANCE_TO_CHOOSE = 1e-8, 1e-4


class FewShot(NamedTuple):
    """Bits per spike of channels never seen, over draws of training trials."""

    n_trials: int
    mean: float
    sd: float
    # Of each draw
    values: list[float]


def parse_few_shot(text: str) -> tuple[int | None, ...]:
    """Read numbers of trials: ``10,100,all``, where None is all."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part == "all" or (part.isdigit() and int(part)) for part in parts):
        raise ConfigError(
            f"--few-shot is {text!r}; legal are numbers of training trials and all, such as "
            "10,30,100,all"
        )
    return tuple(None if part == "all" else int(part) for part in parts)


def few_shot_scores(
    recording: Recording,
    numbers: Sequence[int | None],
    seed: Sequence[int],
    n_draws: int = N_DRAWS,
) -> dict[str, list[FewShot]]:
    """Score predictions of ``extra_data`` from factors, and from smoothed spikes, by row."""
    session = recording.session
    extra: dict[str, Array] = {}
    for kind, trials in recording.trials.items():
        if "extra_data" not in trials:
            raise UserError(
                f"{session.path} has no 'extra_data', which --few-shot predicts: channels that the "
                "model never saw. lfads prep --never-seen 12 sets them apart before training"
            )
        counts = ended(trials, trials["extra_data"])
        extra[kind] = counts[:, : recording.n_bins].astype(np.float64)
        if extra[kind].shape[:2] != (trials.n_trials, recording.n_bins):
            raise DataError(
                f"{session.path}: extra_data of {trials.n_trials} trials has shape "
                f"{extra[kind].shape}; it needs a row per trial, and the {recording.n_bins} bins "
                "that are read"
            )
    n_all = len(extra[TRAIN])
    if too_many := [n for n in numbers if n is not None and n > n_all]:
        raise UserError(
            f"--few-shot {too_many[0]}: {session.path} has {n_all} training trials; legal are 1 to "
            f"{n_all}, and all"
        )
    source = Source(recording)
    rows = {"smoothing": tuple(source.smoother(source.read[k]) for k in (TRAIN, SCORED))}
    if all("factors" in trials for trials in recording.trials.values()):
        rows["lfads_factors"] = tuple(recording.trials[k]["factors"] for k in (TRAIN, SCORED))
    scores: dict[str, list[FewShot]] = {}
    for row, features in rows.items():
        # By the spread in all training trials: in a few, a channel may hardly have fired, and a
        # single spike in another trial would then be far beyond what was fitted.
        scale = scale_of(features[0][:, : recording.n_bins])
        train, scored = (x[:, : recording.n_bins] / scale for x in features)
        scores[row] = []
        for n in numbers:
            # The same trials for each row.
            rng = np.random.default_rng([*seed, n or 0])
            values = []
            for _ in range(n_draws if n else 1):
                chosen = np.sort(rng.choice(n_all, n, replace=False)) if n else np.arange(n_all)
                fit = fit_channels(train[chosen], extra[TRAIN][chosen])
                values.append(score_value(_score(fit, scored, extra[SCORED]), len(scored)))
            sd = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
            scores[row].append(FewShot(n or n_all, float(np.mean(values)), sd, values))
    return scores


def fit_channels(x: Array, counts: Array) -> LinearMap:
    """Fit Poisson regressions with a ridge penalty that folds of trials choose; to log rates."""
    n_folds = min(_FOLDS, len(x))
    fold_of = np.arange(len(x)) % n_folds

    def loss(penalty: float) -> float:
        total = 0.0
        for fold in range(n_folds):
            judge = fold_of == fold
            fit = poisson_regression(x[~judge], counts[~judge], penalty, _TOLERANCE_TO_CHOOSE)
            total += float(_score(fit, x[judge], counts[judge]).nll.sum())
        return total

    # One trial cannot be divided: the largest penalty, as nothing speaks for less.
    penalty = min(PENALTIES, key=loss) if n_folds > 1 else PENALTIES[-1]
    return poisson_regression(x, counts, penalty, _TOLERANCE)


def _score(fit: LinearMap, x: Array, counts: Array) -> SpikeScore:
    # Features beyond those of a few trials are extrapolated; exp(20) is no rate, but is finite.
    return SpikeScore.of(np.exp(np.minimum(fit(x), 20.0)), counts)


def few_shot_table(few_shot: dict[str, list[FewShot]], titles: dict[str, str]) -> list[list[str]]:
    """Return the cells of a table: a row per prediction, a column per number of trials."""
    numbers = [f"{score.n_trials} trials" for score in next(iter(few_shot.values()))]
    return [
        ["", *numbers],
        *([titles[row], *(_cell(score) for score in scores)] for row, scores in few_shot.items()),
    ]


def _cell(score: Any) -> str:
    # What is read back from scores.json has None for a number that is not finite.
    mean, sd = (float("nan") if x is None else x for x in (score.mean, score.sd))
    return f"{mean:.3f} (sd {sd:.3f})" if np.isfinite(sd) else f"{mean:.3f}"
