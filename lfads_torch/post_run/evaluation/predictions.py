"""What predicts rates and behaviour: the model, and the baselines beside it.

All baselines are fitted to the training trials alone; what there is to choose (a width, a penalty,
a number of factors) is chosen by cross-validation within them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...data.smoothing import smoothing_sums
from ...metrics.regression import poisson_regression, ridge_by_trials
from ...metrics.trialwise import ErrorScore, SpikeScore, score_value
from .recording import SCORED, TRAIN, Recording

Array = NDArray[Any]
FloatArray = NDArray[np.float64]

WIDTHS = (0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0)
"""Widths of the Gaussian to choose from: standard deviations in bins."""
_REGRESSION_WIDTHS = (1.0, 2.0, 4.0, 8.0, 16.0)
_PRIORS = (0.25, 1.0, 2.0, 5.0, 10.0, 20.0)
_ALMOST_NONE = 1e-6
"""Prior that only shows where no observed bin lies under the kernel."""
_PENALTIES = (1e-3, 1e-2, 1e-1)
_RIDGE = tuple(float(a) for a in np.logspace(-1, 5, 7))
_N_FACTORS = (2, 4, 8, 16, 32)
# Enough to choose by; the final fits take all training trials.
_TRIALS_TO_CHOOSE = 300
# Tighter ones change bits per spike by a few 1e-4 (MC_Maze shape) and take several times as long.
_TOLERANCE, _TOLERANCE_TO_CHOOSE = 1e-5, 1e-4
_FOLDS = 4

Features = Callable[[], tuple[Array, Array]]


@dataclass
class Prediction:
    """What a row of the table knows.

    Attributes
    ----------
    name : str
    rates : array, shape (scored trials, T_r, N_r), or None
        Expected data per bin.
    unseen_rates : array, shape of `rates`, or None
        Where they differ: rates for scoring on the very data, each inferred without its own bin.
    features : dict of str to function that returns (training, scored) arrays
        Of shape (trials, bins, features), for linear maps to behaviour and latents; of several
        the best is chosen by cross-validation, for each column mapped to.
    choices : dict
        What was chosen, in words or numbers.
    """

    name: str
    rates: Array | None = None
    unseen_rates: Array | None = None
    features: dict[str, Features] = field(default_factory=dict)
    choices: dict[str, Any] = field(default_factory=dict)


def model_predictions(recording: Recording) -> list[Prediction]:
    """The model's rates, and its factors."""
    found = []
    for name, source in (("lfads", "output_params"), ("lfads_factors", "factors")):
        train, scored = (recording.trials[kind][source] for kind in (TRAIN, SCORED))
        rates = scored if source == "output_params" else None
        found.append(Prediction(name, rates, features=_only(train, scored)))
    return found


def true_rates(recording: Recording) -> list[Prediction]:
    """The rates that the data were drawn from, where the file has them: the ceiling."""
    if not recording.truth:
        return []
    train, scored = (recording.truth[kind] for kind in (TRAIN, SCORED))
    if not all(np.isfinite(array).all() for array in (train, scored)):
        return []
    return [Prediction("truth", scored, features=_only(train, scored))]


def baseline_predictions(recording: Recording) -> list[Prediction]:
    """Smoothed data, PSTHs and a factor model."""
    read = {kind: _padded(recording, kind) for kind in (TRAIN, SCORED)}
    smoother = choose_smoother(read[TRAIN], recording)
    found = [
        _smoothed(recording, read, smoother),
        _psth(recording),
        _factor_analysis(recording, read, smoother),
    ]
    return [prediction for prediction in found if prediction is not None]


# ---- smoothing ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Smoother:
    """Gaussian smoothing that leans on each channel's mean where it sees little.

    Attributes
    ----------
    width : float
        Standard deviation of the Gaussian in bins.
    prior : float
        How many bins the channel's mean counts for.
    mean : array, shape (channels,)
        Of the training trials.
    """

    width: float
    prior: float
    mean: FloatArray

    def __call__(self, data: Array, leave_own: bool = False) -> FloatArray:
        """Smooth (trials, bins, channels); NaN is missing. `leave_own` predicts a bin by others."""
        total, weight = smoothing_sums(data, self.width, leave_own=leave_own)
        return (total + self.prior * self.mean) / (weight + self.prior)


def choose_smoother(train: Array, recording: Recording) -> Smoother:
    """Choose width and prior by how well training bins are predicted from those around them."""
    mean = _finite_mean(train)
    data = train[_spread(len(train), _TRIALS_TO_CHOOSE)]
    best = Smoother(WIDTHS[0], _PRIORS[0], mean)
    least = np.inf
    for width in _widths(train.shape[1], WIDTHS):
        total, weight = smoothing_sums(data, width, leave_own=True)
        for prior in _PRIORS:
            loss = _loss((total + prior * mean) / (weight + prior), data, recording.counts)
            if loss < least:
                best, least = Smoother(width, prior, mean), loss
    return best


def _smoothed(recording: Recording, read: dict[str, Array], smoother: Smoother) -> Prediction:
    """Smoothed data; held-out channels by regression from them, later bins by the kernel's tail."""
    shape = recording.data[SCORED].shape
    rates, unseen = np.empty(shape, np.float32), np.empty(shape, np.float32)
    rates[..., : recording.n_channels] = smoother(read[SCORED])
    unseen[..., : recording.n_channels] = smoother(read[SCORED], leave_own=True)
    choices: dict[str, Any] = {"width_bins": smoother.width, "prior_bins": smoother.prior}
    if shape[2] > recording.n_channels:
        chosen = [
            (_regression_loss(recording, features, width), width)
            for width in _widths(recording.n_bins, _REGRESSION_WIDTHS)
            for features in [_subset(Smoother(width, 1.0, smoother.mean)(read[TRAIN]))]
        ]
        choices["heldout_width_bins"] = width = min(chosen)[1]
        own = Smoother(width, 1.0, smoother.mean)
        parts = _regress(recording, own(read[TRAIN]), own(read[SCORED]), recording.n_channels)
        rates[..., recording.n_channels :] = parts
        unseen[..., recording.n_channels :] = parts
    features = {
        f"width {width:g} bins": _smoothing_features(
            Smoother(width, _ALMOST_NONE, smoother.mean), read
        )
        for width in _widths(recording.n_bins, WIDTHS)
    }
    return Prediction("smoothing", rates, unseen, features, choices)


def _smoothing_features(smoother: Smoother, read: dict[str, Array]) -> Features:
    return lambda: (smoother(read[TRAIN]), smoother(read[SCORED]))


# ---- PSTH --------------------------------------------------------------------------------------


def _psth(recording: Recording) -> Prediction:
    """Each trial's condition average over training trials; without conditions, that of all."""
    data, labels = recording.data[TRAIN], recording.labels[TRAIN]
    n_conditions = max(1, len(recording.condition_names))
    folds = [np.arange(k, len(data), _FOLDS) for k in range(min(_FOLDS, len(data)))]
    sums = np.zeros((len(folds), 2, n_conditions, *data.shape[1:]))
    for own, fold in zip(sums, folds, strict=True):
        for condition in range(n_conditions):
            part = data[fold[labels[fold] == condition]]
            observed = np.isfinite(part)
            own[0, condition] = np.where(observed, part, 0.0).sum(axis=0)
            own[1, condition] = observed.sum(axis=0)
    total, count = sums.sum(axis=0)
    mean = _finite_mean(data)
    losses = {0.0: 0.0}
    if len(folds) > 1:
        widths = (0.0, *_widths(data.shape[1], WIDTHS))
        losses = {width: _psth_loss(sums, mean, width, recording.counts) for width in widths}
    width = min(losses, key=lambda key: losses[key])
    averages = _averages(total, count, mean, width).astype(np.float32)
    # A trial of an unknown condition gets the average over all.
    everything = _averages(total.sum(0, keepdims=True), count.sum(0, keepdims=True), mean, width)
    table = np.concatenate([averages, everything.astype(np.float32)])
    rates = {kind: table[recording.labels[kind]] for kind in (TRAIN, SCORED)}
    choices = {
        "width_bins": width,
        "conditions": len(recording.condition_names),
        "condition_key": recording.condition_key,
    }
    return Prediction("psth", rates[SCORED], None, _only(rates[TRAIN], rates[SCORED]), choices)


def _averages(total: FloatArray, count: FloatArray, mean: FloatArray, width: float) -> FloatArray:
    """Smoothed condition averages in which the channel's mean counts as one more trial."""
    if width:
        total, count = (smoothing_sums(x, width)[0] for x in (total, count))
    return (total + mean) / (count + 1)


def _psth_loss(sums: FloatArray, mean: FloatArray, width: float, counts: bool) -> float:
    whole = sums.sum(axis=0)
    loss = 0.0
    for fold in sums:
        rates = _averages(whole[0] - fold[0], whole[1] - fold[1], mean, width)
        if counts:
            rates = np.maximum(rates, 1e-9)
            loss += float((fold[1] * rates - fold[0] * np.log(rates)).sum())
        else:  # the part of the squared error that depends on the prediction
            loss += float((fold[1] * rates**2 - 2 * fold[0] * rates).sum())
    return loss


# ---- factor analysis ---------------------------------------------------------------------------


def _factor_analysis(
    recording: Recording, read: dict[str, Array], smoother: Smoother
) -> Prediction | None:
    """Factor analysis of smoothed data; rates by a regression from the factors."""
    smooth = {kind: smoother(read[kind]) for kind in (TRAIN, SCORED)}
    sample = smooth[TRAIN][:, : recording.n_bins]
    spread = sample.std(axis=(0, 1))
    varies = np.flatnonzero(spread > 0)
    sizes = [k for k in _N_FACTORS if k < len(varies)]
    if not sizes or len(sample) < 2:
        return None
    scale, centre = spread[varies], sample.mean(axis=(0, 1))[varies]
    scaled = {kind: (smooth[kind][..., varies] - centre) / scale for kind in smooth}
    own = scaled[TRAIN][:, : recording.n_bins]
    chosen = _subset(own)
    judge, rest = _judge_and_rest(len(chosen))
    held_out = chosen[judge].reshape(-1, len(varies))
    logs = {k: fit_factors(chosen[rest], k).score(held_out) for k in sizes}
    n_factors = max(logs, key=lambda k: logs[k])
    model = fit_factors(own, n_factors)
    latents = {
        kind: model.transform(x.reshape(-1, len(varies))).reshape(*x.shape[:2], n_factors)
        for kind, x in scaled.items()
    }
    rates = _regress(recording, latents[TRAIN], latents[SCORED], 0)
    choices = {"n_factors": n_factors, "width_bins": smoother.width}
    return Prediction(
        "factor_analysis", rates, None, _only(latents[TRAIN], latents[SCORED]), choices
    )


def fit_factors(data: Array, n_factors: int) -> Any:
    """Fit scikit-learn's factor analysis to centred data of shape (trials, bins, channels).

    Its likelihood knows the data by their covariance alone. So it is given few samples that have
    the same one, which takes a fraction of the time.
    """
    from sklearn.decomposition import FactorAnalysis

    flat = data.reshape(-1, data.shape[-1])
    power, axes = np.linalg.eigh(flat.T @ flat / len(flat))
    root = axes.T * np.sqrt(np.maximum(power, 0) * len(power))[:, None]
    return FactorAnalysis(n_factors, svd_method="lapack").fit(np.concatenate([root, -root]))


# ---- regression from features to the data ------------------------------------------------------


def _regress(recording: Recording, train: Array, scored: Array, first: int) -> Array:
    """Predict the channels from `first` on, from features of the same bin.

    Bins that were read and those beyond have a regression each: features of the latter are
    extrapolated.
    """
    data = recording.data[TRAIN][..., first:]
    out = np.empty((*scored.shape[:2], data.shape[2]), np.float32)
    for bins in (slice(recording.n_bins), slice(recording.n_bins, None)):
        if not train[:, bins].size:
            continue
        x, y = train[:, bins], data[:, bins]
        scale = scale_of(x)
        penalty = _PENALTIES[0]
        if len(x) > _FOLDS:
            few = _subset(x / scale), _subset(y)
            losses = [(_split_loss(*few, value, recording.counts), value) for value in _PENALTIES]
            penalty = min(losses)[1]
        predict = _fit(x / scale, y, penalty, recording.counts)
        out[:, bins] = predict(scored[:, bins] / scale)
    return out


def _regression_loss(recording: Recording, features: Array, width: float) -> float:
    data = _subset(recording.data[TRAIN])[:, : recording.n_bins, recording.n_channels :]
    x = features[:, : recording.n_bins]
    return _split_loss(x / scale_of(x), data, _PENALTIES[1], recording.counts)


def _split_loss(x: Array, y: Array, penalty: float, counts: bool) -> float:
    """Loss on a quarter of the trials of a regression on the others."""
    if len(x) < 2:
        return 0.0
    judge, rest = _judge_and_rest(len(x))
    if not np.isfinite(y[rest]).any():
        return 0.0
    predict = _fit(x[rest], y[rest], penalty, counts, _TOLERANCE_TO_CHOOSE)
    return _loss(predict(x[judge]), y[judge], counts)


def _fit(
    x: Array, y: Array, penalty: float, counts: bool, tolerance: float = _TOLERANCE
) -> Callable[[Array], Array]:
    if counts:
        log_linear = poisson_regression(x, y, penalty, tolerance)
        return lambda features: np.exp(np.minimum(log_linear(features), 20.0))
    linear = ridge_by_trials(x, y, [penalty * x.shape[0] * x.shape[1]], n_folds=1).fit
    return lambda features: linear(features)


# ---- helpers -----------------------------------------------------------------------------------


def _only(train: Array, scored: Array) -> dict[str, Features]:
    return {"": lambda: (train, scored)}


def _padded(recording: Recording, kind: str) -> Array:
    """What was read, with bins beyond it missing: shape (trials, T_r, channels read)."""
    trials = recording.trials[kind]
    read = trials["encod_data"] if "encod_data" in trials else trials["recon_data"]
    n_more = recording.data[kind].shape[1] - read.shape[1]
    return np.pad(read.astype(np.float32), ((0, 0), (0, n_more), (0, 0)), constant_values=np.nan)


def _widths(n_bins: int, offered: Sequence[float]) -> list[float]:
    return [width for width in offered if width <= max(n_bins, 1)] or [offered[0]]


def _finite_mean(data: Array) -> FloatArray:
    observed = np.isfinite(data)
    count = np.maximum(observed.sum(axis=(0, 1)), 1)
    return np.where(observed, data, 0.0).sum(axis=(0, 1), dtype=np.float64) / count


def _spread(n_trials: int, at_most: int) -> NDArray[np.int64]:
    """Trials spread evenly over the recording."""
    return np.unique(np.linspace(0, n_trials - 1, min(n_trials, at_most)).astype(np.int64))


def _subset(data: Array) -> Array:
    return data[_spread(len(data), _TRIALS_TO_CHOOSE)]


def _judge_and_rest(n_trials: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    every = np.arange(n_trials)
    judge = every[every % _FOLDS == 0]
    return judge, every[every % _FOLDS != 0]


def scale_of(x: Array) -> FloatArray:
    """Standard deviation of each feature of (trials, bins, features), 1 where it does not vary."""
    spread = np.asarray(x, dtype=np.float64).std(axis=(0, 1))
    return np.where(spread > 0, spread, 1.0)


def _loss(rates: Array, data: Array, counts: bool) -> float:
    """Minus bits per spike, or minus R2, of predictions."""
    kind = SpikeScore if counts else ErrorScore
    value = score_value(kind.of(rates, data), len(data))
    return -value if np.isfinite(value) else 0.0
