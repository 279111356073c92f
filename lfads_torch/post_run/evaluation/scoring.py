"""Predictions of rates and behaviour, and their scores on one session, each kept per trial."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...data.smoothing import smoothing_sums
from ...errors import DataError, DataWarning
from ...metrics.decoding import fit_decoder
from ...metrics.evaluation import PsthScore, SpeedScore
from ...metrics.nlb import NLB_BIN_MS, RatesAndBehavior, nlb_scores, set_go_mask
from ...metrics.regression import ridge
from ...metrics.trialwise import CorrelationScore, ErrorScore, SpikeScore, TrialScore
from .behavior import SCORED, TRAIN, Recording

Array = NDArray[Any]

# Features are scaled to unit variance, so that the penalty counts against the number of rows: from
# next to none for some trials, up to beyond what any recording has.
ALPHAS = tuple(float(a) for a in np.logspace(-2, 7, 10))
"""Ridge penalties of linear maps, on weights of scaled features."""

# Within the 40 to 70 ms by which the benchmark's data sets smooth theirs.
PSTH_SMOOTHING_MS = 50.0
"""Width of the Gaussian that smooths PSTHs measured here, where the file has none."""


Features = Callable[[], tuple[Array, Array]]


@dataclass
class Prediction:
    """What a row of the table knows.

    `rates` are the expected data per bin, (scored trials, T_r, N_r). `unseen_rates` are used for
    scoring on the very data that were read: each is inferred without its own bin. Without `rates`,
    they may be NaN where nothing is predicted. `features` are
    functions that return (training, scored) arrays of shape (trials, bins, features), for linear
    maps to behaviour and latents; cross-validation chooses among several for each target column.
    A source in `lags` is read at these bins before the target, others at its own bin alone.
    `choices` says what was chosen, in words or numbers. `behavior` is predicted as it is, without a
    map, (scored trials, bins, D).
    """

    name: str
    rates: Array | None = None
    unseen_rates: Array | None = None
    features: dict[str, Features] = field(default_factory=dict)
    choices: dict[str, Any] = field(default_factory=dict)
    lags: dict[str, tuple[int, ...]] = field(default_factory=dict)
    behavior: Array | None = None


def model_predictions(recording: Recording) -> list[Prediction]:
    """Return the model's rates, its factors, and behaviour that it reads out itself."""
    predictions = []
    for name, source in (("lfads", "output_params"), ("lfads_factors", "factors")):
        if any(source not in recording.trials[kind] for kind in (TRAIN, SCORED)):
            continue  # models of an ensemble share no factors
        train, scored = (recording.trials[kind][source] for kind in (TRAIN, SCORED))
        rates = scored if source == "output_params" else None
        predictions.append(Prediction(name, rates, features=only(train, scored)))
    read, behavior = recording.readout, recording.behavior.get(SCORED)
    if read is not None and behavior is not None and behavior.ndim == 3:
        predictions.append(Prediction("lfads_readout", behavior=read))
    return predictions


def true_rates(recording: Recording) -> list[Prediction]:
    """Return the rates that the data were drawn from, where the file has them: the ceiling."""
    if not recording.truth:
        return []
    train, scored = (recording.truth[kind] for kind in (TRAIN, SCORED))
    if not all(np.isfinite(array).all() for array in (train, scored)):
        return []
    return [Prediction("truth", scored, features=only(train, scored))]


def only(train: Array, scored: Array) -> dict[str, Features]:
    """Return features without anything to choose."""
    return {"": lambda: (train, scored)}


def trial_scores(recording: Recording, prediction: Prediction) -> dict[str, TrialScore]:
    """Compute every score of a prediction for which the recording has data, by name."""
    scores = _data_scores(recording, prediction)
    if prediction.rates is not None:
        scores |= _psth_score(recording, prediction.rates)
        scores |= _truth_scores(recording, prediction)
        behavior = recording.behavior.get(SCORED)
        if behavior is not None and behavior.ndim == 2 and recording.jitter is not None:
            n_bins = recording.n_bins
            bin_ms = recording.session.bin_ms or NLB_BIN_MS
            mask = set_go_mask(behavior[:, -1], recording.jitter, n_bins, bin_ms)
            scores["tp_corr"] = SpeedScore.of(prediction.rates[:, :n_bins], behavior, mask)
    if prediction.features:
        if recording.behavior and recording.behavior[SCORED].ndim == 3:
            scores["behavior_r2"] = _mapped(
                prediction, recording.behavior, recording.sets, recording.n_bins, "behavior"
            )
        if recording.latents:
            whole = {kind: np.ones((1, len(x)), bool) for kind, x in recording.latents.items()}
            scores["latents_r2"] = _mapped(
                prediction, recording.latents, whole, recording.n_bins, "latents"
            )
    if prediction.behavior is not None:
        scores["behavior_r2"] = _as_read(recording, prediction.behavior)
    return scores


def _as_read(recording: Recording, read: Array) -> TrialScore:
    """Score behaviour that needs no map, for each set of trials."""
    y = recording.behavior[SCORED]
    n_bins = min(recording.n_bins, y.shape[1])
    y, read = y[:, :n_bins].astype(np.float64), read[:, :n_bins].astype(np.float64)
    sets = recording.sets[SCORED]
    targets = [np.where(in_scored[:, None, None], y, np.nan) for in_scored in sets]
    return ErrorScore.of(
        np.concatenate([read] * len(sets), axis=2), np.concatenate(targets, axis=2)
    )


def _data_scores(recording: Recording, prediction: Prediction) -> dict[str, TrialScore]:
    """Score how well the data themselves are predicted: read, held out, and later in time."""
    rates = prediction.rates if prediction.unseen_rates is None else prediction.unseen_rates
    if rates is None:
        return {}
    read, channels = slice(recording.n_bins), slice(recording.n_channels)
    regions = {
        "": (read, channels),
        "co_": (read, slice(recording.n_channels, None)),
        "fp_": (slice(recording.n_bins, None), slice(None)),
    }
    name, kind = ("bps", SpikeScore) if recording.counts else ("r2", ErrorScore)
    scores: dict[str, TrialScore] = {}
    for prefix, (bins, chosen) in regions.items():
        data, predicted = recording.data[SCORED][:, bins, chosen], rates[:, bins, chosen]
        if data.size and (prediction.rates is not None or np.isfinite(predicted).any()):
            scores[f"{prefix}{name}"] = kind.of(predicted, data)
    return scores


def _psth_score(recording: Recording, rates: Array) -> dict[str, TrialScore]:
    members, psth = recording.members, recording.psth
    if not members:
        return {}
    if psth is None:
        psth, members = measured_psths(recording)
        data, width = recording.data[SCORED], psth_width(recording)
        score = PsthScore.of(rates, psth, members, recording.jitter, data, width)
        return {"psth_r2": score}
    if len(psth) != len(members):
        raise DataError(
            f"{recording.session.path}: psth has {len(psth)} conditions, "
            f"'{recording.condition_key}' {len(members)}"
        )
    return {"psth_r2": PsthScore.of(rates, psth, members, recording.jitter)}


def psth_width(recording: Recording) -> float:
    """Return the width in bins by which PSTHs measured here are smoothed."""
    bin_ms = recording.session.bin_ms
    return PSTH_SMOOTHING_MS / bin_ms if bin_ms else 2.0


def measured_psths(recording: Recording) -> tuple[Array, list[NDArray[np.int64]]]:
    """Average the scored trials of each condition, smoothed, for files without PSTHs."""
    members = [m for m in recording.members if m.size]
    data = recording.data[SCORED]
    psths = np.full((len(members), *data.shape[1:]), np.nan)
    for psth, trials in zip(psths, members, strict=True):
        total, weight = smoothing_sums(data[trials], psth_width(recording))
        weight = np.broadcast_to(weight, total.shape).sum(axis=0)
        np.divide(total.sum(axis=0), weight, out=psth, where=weight > 0)
    return psths, members


def _truth_scores(recording: Recording, prediction: Prediction) -> dict[str, TrialScore]:
    if not recording.truth or prediction.name == "truth" or prediction.rates is None:
        return {}
    truth = recording.truth[SCORED]
    if truth.shape != prediction.rates.shape:
        raise DataError(
            f"{recording.session.path}: truth has shape {truth.shape}, rates "
            f"{prediction.rates.shape}; they must agree"
        )
    return {
        "truth_r2": ErrorScore.of(prediction.rates, truth),
        "truth_corr": CorrelationScore.of(prediction.rates, truth),
    }


def _mapped(
    prediction: Prediction,
    target: dict[str, Array],
    sets: dict[str, NDArray[np.bool_]],
    n_bins: int,
    name: str,
) -> TrialScore:
    """Score a linear map from features, fitted to training trials, for each set of trials."""
    y_train, y = target[TRAIN], target[SCORED]
    n_bins = min(n_bins, y.shape[1], y_train.shape[1])
    y_train, y = y_train[:, :n_bins].astype(np.float64), y[:, :n_bins].astype(np.float64)
    if not len(sets[TRAIN]) == len(sets[SCORED]):
        raise DataError("train_decode_mask and that of the scored trials differ in sets")
    preds, targets = [], []
    for in_train, in_scored in zip(sets[TRAIN], sets[SCORED], strict=True):
        fits = {
            source: _linear_fit(
                features()[0][in_train, :n_bins], y_train[in_train], prediction.lags.get(source)
            )
            for source, features in prediction.features.items()
        }
        # For each column of behaviour the source and map that cross-validation prefers.
        sources = list(fits)
        best = np.argmax([fit.score for fit in fits.values()], axis=0)
        chosen = [(sources[k], fits[sources[k]].fit) for k in best]
        if len(prediction.features) > 1:
            names = [source for source, _ in chosen]
            prediction.choices.setdefault(f"{name}_from", []).append(names)
        pred = np.empty(y.shape)
        for column, (source, linear) in enumerate(chosen):
            scored = prediction.features[source]()[1][:, :n_bins]
            pred[..., column] = linear(scored)[..., column]
        preds.append(pred)
        targets.append(np.where(in_scored[:, None, None], y, np.nan))
    return ErrorScore.of(np.concatenate(preds, axis=2), np.concatenate(targets, axis=2))


class LinearFit(NamedTuple):
    """A linear map of features, and the R2 of each target in cross-validation."""

    fit: Callable[[Array], Array]
    score: Array


def _linear_fit(x: Array, y: Array, lags: Sequence[int] | None) -> LinearFit:
    if lags is not None:
        return lagged_fit(x, y, lags)
    choice = ridge(x, y, ALPHAS, scaled=True)
    return LinearFit(lambda features: choice.fit(features), choice.score)


def lagged_fit(x: Array, y: Array, lags: Sequence[int]) -> LinearFit:
    """Fit a decoder with lags to (trials, bins, ...); beyond a trial its first or last bin counts.

    Its predictions have no holes, so that it is scored on the same bins as other rows.
    """
    reach = max(map(abs, lags))
    edges = ((0, 0), (reach, reach), (0, 0))
    with warnings.catch_warnings():
        # A penalty at the end of the grid is that of one among several widths.
        warnings.simplefilter("ignore", DataWarning)
        decoder = fit_decoder(
            np.pad(x, edges, mode="edge"),
            np.pad(y.astype(np.float64), edges, constant_values=np.nan),
            lags=lags,
        )

    def predict(features: Array) -> Array:
        whole = decoder.predict(np.pad(features, edges, mode="edge"))
        return whole[:, reach : whole.shape[1] - reach]

    score = float(decoder.fitted_on.get("r2_of_folds", 0.0))
    return LinearFit(predict, np.full(y.shape[2], score))


def benchmark_scores(recording: Recording, split: str) -> dict[str, float]:
    """Compute the model's scores by the exact definitions of the Neural Latents Benchmark."""
    if not recording.counts:
        return {}
    session, trials = recording.session, recording.trials
    train, scored = (
        RatesAndBehavior(trials[kind]["output_params"], recording.behavior.get(kind))
        for kind in (TRAIN, SCORED)
    )
    decodes = scored.behavior is not None and scored.behavior.ndim == 3
    key = f"{split}_cond_idx"
    return nlb_scores(
        scored,
        recording.data[SCORED],
        (recording.n_bins, recording.n_channels),
        train=train if decodes else None,
        masks=(trials[TRAIN].get("decode_mask"), trials[SCORED].get("decode_mask")),
        psth=recording.psth,
        cond_idx=session.read(key) if recording.psth is not None and key in session.keys else None,
        jitter=recording.jitter,
        bin_ms=session.bin_ms or NLB_BIN_MS,
    )
