"""Alignment of sessions by principal-component regression, to start a multi-session model from.

Sessions with different neurons see the same task. Condition averages of smoothed trials, all
sessions' channels side by side, give principal components that the sessions share; a ridge
regression for each session then maps its own channels onto them (the read-in), and they back onto
its channels (the read-out) [1]_. A condition that a session lacks is filled in by regularised
iterative PCA [2]_.

.. [1] Pandarinath et al. 2018, Nature Methods 15, Methods, "Multi-session stitching".
.. [2] Josse & Husson 2012, Journal de la Société Française de Statistique 153(2).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..data.find import list_some
from ..data.smoothing import gaussian_smooth
from ..errors import DataError, DataWarning, UserError, number, one_of, whole
from ..metrics.regression import fit_linear

FloatArray = NDArray[np.float64]

PENALTIES = tuple(10.0**k for k in range(-6, 3))
"""Ridge penalties that are tried, in units of the mean eigenvalue of the inputs' products."""

WEIGHINGS = ("channel", "session", "trial")

# Below this the user is warned that a session has next to nothing of the shared components.
_POOR_R2 = 0.1
# Change per unit of the factors, in means, of a channel that is nowhere negative.
_MOST_SLOPE = 3.0

# A change of filled-in entries by this fraction of the spread of the data is far below the error of
# an average over a few trials.
_TOLERANCE = 1e-4
_MAX_ROUNDS = 100


class Trials(NamedTuple):
    """Training trials of one session."""

    name: str
    encod_data: NDArray[Any]  # (n, T, N_e), NaN where missing
    recon_data: NDArray[Any]  # (n, T or more, N_r)
    conditions: NDArray[Any]  # (n,), numbers or text


@dataclass(frozen=True)
class SessionAlignment:
    """One session's maps onto the shared components and back."""

    name: str
    # (encod_data - readout_bias[:N_e]) @ readin_weight are the shared factors,
    # readout_bias + factors @ readout_weight.T the mean counts (or values) per bin.
    readin_weight: FloatArray  # (N_e, K)
    readout_weight: FloatArray  # (N_r, K)
    readin_offset: FloatArray  # (N_e,): the channels that are read where all factors are zero
    readout_bias: FloatArray  # (N_r,)
    factors: FloatArray  # (conditions, T, K) of the condition averages; NaN where it lacks one
    n_trials: NDArray[np.int64]  # by condition
    penalty: float  # of the read-in, see `PENALTIES`
    r2: float  # cross-validated: shared components from averages of held-out trials


@dataclass(frozen=True)
class Alignment:
    """Shared components and the maps of all sessions."""

    conditions: list[Any]  # names, sorted
    components: FloatArray  # (conditions, T, K), scaled so that the first has unit variance
    explained: FloatArray  # (K,): fractions of the variance of all condition averages
    sessions: list[SessionAlignment]
    warnings: list[str] = field(default_factory=list)  # what was doubtful in the data


def align_sessions(
    sessions: Sequence[Trials],
    n_components: int,
    *,
    smooth_bins: float = 3.0,
    min_trials: int = 2,
    weigh_by: str = "channel",
    penalties: Sequence[float] = PENALTIES,
    n_folds: int = 5,
    seed: int = 0,
) -> Alignment:
    """Find components that sessions share, and each session's maps onto them and back.

    Parameters
    ----------
    sessions : sequence of Trials
        Training trials only.
    n_components : int
        Shared components K.
    smooth_bins : float
        Standard deviation in bins of the Gaussian that trials are smoothed with.
    min_trials : int
        A condition with fewer trials counts as missing from the session; at least 2.
    weigh_by : {"channel", "session", "trial"}
        What has equal weight in the components: every channel as it is (the published way),
        every session whatever its channels and rates, or every trial.
    penalties : sequence of float
        Ridge penalties to choose from, in units of the mean eigenvalue.
    n_folds : int
        Folds into which each condition's trials are divided for cross-validation.
    seed : int
        Seed of the folds.

    Returns
    -------
    Alignment
        The components, and each session's maps.

    Raises
    ------
    UserError
        For options out of range, or more components than the averages have.
    DataError
        Where sessions differ in bins, hold no usable condition, share none, or do not vary.
    """
    one_of("weigh_by", weigh_by, WEIGHINGS)
    whole("n_components", n_components, least=1)
    # Cross-validation fits to the average of some trials and scores on that of the others.
    whole("min_trials", min_trials, least=2)
    whole("n_folds", n_folds, least=2)
    number("smooth_bins", smooth_bins, least=0)
    if not sessions or not len(penalties) or min(penalties) <= 0:
        raise UserError("give at least one session and one penalty above 0")
    notes: list[str] = []
    labels = _labels(sessions, min_trials, notes)
    rng = np.random.default_rng(seed)
    averages = [_Averages(s, labels, smooth_bins, min_trials, n_folds, rng) for s in sessions]
    _check_shared(averages, labels)
    components, explained = _components(averages, n_components, weigh_by)
    aligned = [_regress(session, components, penalties) for session in averages]
    for session in aligned:
        if not session.r2 >= _POOR_R2:  # which NaN is not, either
            notes.append(
                f"{session.name}: its channels give the shared components of held-out trials with "
                f"an R2 of only {session.r2:.2f}; it has little of what others share, or too few "
                f"trials"
            )
    for note in notes:
        warnings.warn(note, DataWarning, stacklevel=2)
    return Alignment(labels, components, explained, aligned, notes)


def align_to(
    trials: Trials,
    components: FloatArray,
    labels: Sequence[Any],
    *,
    smooth_bins: float = 3.0,
    min_trials: int = 2,
    penalties: Sequence[float] = PENALTIES,
    n_folds: int = 5,
    seed: int = 0,
) -> SessionAlignment:
    """Map one session onto components that are given, and back."""
    if trials.encod_data.shape[1] != components.shape[1]:
        raise DataError(
            f"{trials.name} has {trials.encod_data.shape[1]} bins, what it is to be mapped onto "
            f"has {components.shape[1]}"
        )
    conditions = _labels([trials], min_trials, [])
    rng = np.random.default_rng(seed)
    averages = _Averages(trials, labels, smooth_bins, min_trials, n_folds, rng)
    if not (averages.n_trials > 0).any():
        raise DataError(
            f"{trials.name} shares no condition with the aligned sessions: it has "
            f"{list_some(conditions)}, they have {list_some(list(labels))}"
        )
    return _regress(averages, np.asarray(components, dtype=np.float64), penalties)


class _Averages:
    """Condition averages of a session: of all trials, and with each fold left out or alone."""

    def __init__(
        self,
        trials: Trials,
        labels: Sequence[Any],
        smooth_bins: float,
        min_trials: int,
        n_folds: int,
        rng: np.random.Generator,
    ) -> None:
        self.name = trials.name
        n_bins = trials.encod_data.shape[1]
        shapes = [(len(labels), n_bins, d.shape[2]) for d in (trials.encod_data, trials.recon_data)]
        self.encod, self.recon = (np.full(shape, np.nan) for shape in shapes)
        # [fold, what]: averages of the trials outside the fold, and of those in it.
        self.encod_folds = np.full((n_folds, 2, *shapes[0]), np.nan)
        self.recon_folds = np.full((n_folds, 2, *shapes[1]), np.nan)
        self.n_trials = np.zeros(len(labels), dtype=np.int64)
        for i, label in enumerate(labels):
            rows = rng.permutation(np.flatnonzero(trials.conditions == label))
            if len(rows) < min_trials:
                continue
            self.n_trials[i] = len(rows)
            fold = np.arange(len(rows)) % n_folds
            for data, average, folds in (
                (trials.encod_data, self.encod, self.encod_folds),
                (trials.recon_data, self.recon, self.recon_folds),
            ):
                # Factors exist for the bins that are read; reconstructed ones beyond are left out.
                smooth = gaussian_smooth(data[rows, :n_bins], smooth_bins)
                average[i] = _mean(smooth)
                # With fewer trials than folds the last folds lack this condition: they stay NaN.
                for k in range(min(n_folds, len(rows))):
                    folds[k, 0, i] = _mean(smooth[fold != k])
                    folds[k, 1, i] = _mean(smooth[fold == k])


def _mean(trials: FloatArray) -> FloatArray:
    observed = np.isfinite(trials)
    count = observed.sum(axis=0)
    total = np.where(observed, trials, 0.0).sum(axis=0)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def _labels(sessions: Sequence[Trials], min_trials: int, notes: list[str]) -> list[Any]:
    """Return, sorted, all conditions of which some session has enough trials."""
    lengths = {s.name: s.encod_data.shape[1] for s in sessions}
    if len(set(lengths.values())) > 1:
        raise DataError(
            f"bins per trial are {lengths}; sessions must have the same bins to be averaged"
        )
    usable: set[Any] = set()
    for session in sessions:
        for key, data in (("encod", session.encod_data), ("recon", session.recon_data)):
            if data.dtype.kind == "f" and np.isinf(data).any():
                raise DataError(f"{session.name}: train_{key}_data holds infinite values")
        names, counts = np.unique(session.conditions, return_counts=True)
        few = [f"{c} ({n})" for c, n in zip(names, counts, strict=True) if n < min_trials]
        if len(few) == len(names):
            raise DataError(
                f"{session.name}: no condition has the {min_trials} training trials that an "
                f"average needs, but {list_some(few) or 'no trial has a condition'}. Join "
                "conditions, or name another key of conditions."
            )
        if few:
            notes.append(
                f"{session.name}: {len(few)} of {len(names)} conditions have fewer than "
                f"{min_trials} training trials and count as missing: {list_some(few)}"
            )
        usable |= set(names[counts >= min_trials].tolist())
    try:
        return sorted(usable)
    except TypeError as err:
        raise DataError(f"conditions are of different kinds in the sessions: {usable}") from err


def _check_shared(averages: Sequence[_Averages], labels: Sequence[Any]) -> None:
    """Refuse sessions that no chain of shared conditions links to the first."""
    linked, conditions = {0}, averages[0].n_trials > 0
    while True:
        more = {i for i, a in enumerate(averages) if (conditions & (a.n_trials > 0)).any()}
        if more == linked:
            break
        linked = more
        conditions = np.any([averages[i].n_trials > 0 for i in linked], axis=0)
    apart = [averages[i] for i in range(len(averages)) if i not in linked]
    if apart:
        its, theirs = (
            [label for label, has in zip(labels, has_trials, strict=True) if has]
            for has_trials in (apart[0].n_trials > 0, conditions)
        )
        raise DataError(
            f"{apart[0].name} shares no condition with the sessions before it: it has "
            f"{list_some(its)}, they have {list_some(theirs)}. Shared components need shared "
            "conditions: name them alike in all files, or align these sessions by themselves."
        )


def _components(
    averages: Sequence[_Averages], n_components: int, weigh_by: str
) -> tuple[FloatArray, FloatArray]:
    """Return scores of the shared components, and fractions of the variance that they explain."""
    blocks = [a.encod.reshape(-1, a.encod.shape[-1]) for a in averages]
    shape = averages[0].encod.shape[:2]
    for i, session in enumerate(averages):
        if weigh_by != "channel":
            power = np.nansum((blocks[i] - np.nanmean(blocks[i], axis=0)) ** 2)
            amount = session.n_trials.sum() if weigh_by == "trial" else 1.0
            blocks[i] = blocks[i] * np.sqrt(amount / max(power, 1e-300))
    data = np.concatenate(blocks, axis=1)
    most = min(data.shape[0] - 1, data.shape[1])  # less one, because rows are centred
    if n_components > most:
        raise UserError(
            f"{n_components} components of {shape[0]} conditions x {shape[1]} bins and "
            f"{data.shape[1]} channels in all; legal are 1 to {most}"
        )
    scores, power = principal_components(data, n_components)
    # What rounding leaves of centred constants is smaller than this by some orders.
    if not power[0] > 1e-12 * np.nansum(data**2):
        raise DataError("the condition averages do not vary, so there is nothing to align by")
    # One scale for all components, so that a weak one stays weaker than the first.
    scale = scores[:, 0].std()
    return (scores / scale).reshape(*shape, -1), power[:n_components] / power.sum()


def _regress(
    averages: _Averages, components: FloatArray, penalties: Sequence[float]
) -> SessionAlignment:
    """Fit maps between a session's channels and the shared components, penalties by trial folds."""
    scores = components.reshape(-1, components.shape[-1])
    (encod, encod_folds), (recon, recon_folds) = (
        _by_row(averages.encod, averages.encod_folds),
        _by_row(averages.recon, averages.recon_folds),
    )
    n_folds = len(encod_folds)
    backward = choose_penalty(
        [(scores, recon_folds[k, 0], scores, recon_folds[k, 1]) for k in range(n_folds)],
        penalties,
        intercept=True,
    )[0]
    weight, bias = ridge(scores, recon, [backward], intercept=True)[0]
    # With the same penalty, the offset of a channel that is read equals its bias above, to the last
    # bit only where it is not computed again.
    offset = bias[: encod.shape[1]]
    if not np.array_equal(encod, recon[:, : encod.shape[1]], equal_nan=True):
        offset = ridge(scores, encod, [backward], intercept=True)[0][1]
    # Counts are nowhere negative, however far the origin of the factors lies from the data.
    if np.nanmin(recon) >= 0:
        bias = np.maximum(bias, 0.0)
        # A rare channel's slope is mostly noise, which a logarithmic link would blow up.
        size = np.linalg.norm(weight, axis=0)
        weight = weight * np.minimum(1.0, _MOST_SLOPE * bias / np.maximum(size, 1e-300))
    offset = np.maximum(offset, 0.0) if np.nanmin(encod) >= 0 else offset
    forward, r2 = choose_penalty(
        [
            (encod_folds[k, 0] - offset, scores, encod_folds[k, 1] - offset, scores)
            for k in range(n_folds)
        ],
        penalties,
        intercept=False,
    )
    readin, _ = ridge(encod - offset, scores, [forward], intercept=False)[0]
    return SessionAlignment(
        name=averages.name,
        readin_weight=readin,
        readout_weight=weight.T,
        readin_offset=offset,
        readout_bias=bias,
        factors=(averages.encod - offset) @ readin,
        n_trials=averages.n_trials,
        penalty=forward,
        r2=r2,
    )


def _by_row(averages: FloatArray, folds: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Take conditions and bins as rows, and a channel that was never observed as zeros."""
    rows = averages.reshape(-1, averages.shape[-1])
    dead = np.isnan(rows).all(axis=0)
    by_fold = folds.reshape(*folds.shape[:2], -1, folds.shape[-1])
    return np.where(dead, 0.0, rows), np.where(dead, 0.0, by_fold)


def principal_components(data: FloatArray, rank: int) -> tuple[FloatArray, FloatArray]:
    """Return scores on the first components, and all eigenvalues.

    NaN entries are filled in by regularised iterative PCA, with ever more components: begun with
    all of them, the weak ones would make up what is not there.
    """
    observed = np.isfinite(data)
    seen = observed.any(axis=0)
    data, observed = data[:, seen], observed[:, seen]
    mean = np.nanmean(data, axis=0)
    spread = float(np.sqrt(np.nanmean((data - mean) ** 2))) or 1.0
    filled = np.where(observed, data, mean)
    for some in sorted({min(2**k, rank) for k in range(rank.bit_length() + 1)}):
        for _ in range(_MAX_ROUNDS):
            if observed.all():
                break
            scores, power, weights = _decompose(filled, some)
            # Shrunken by the noise that the other components show, or it would be believed: plain
            # iterative PCA overfits where much is missing (Josse & Husson 2012).
            noise = power[some:].mean() if len(power) > some else 0.0
            shrink = np.maximum(power[:some] - noise, 0.0) / np.maximum(power[:some], 1e-300)
            guess = filled.mean(axis=0) + (scores * shrink) @ weights
            change = np.abs(guess - filled)[~observed].max()
            filled = np.where(observed, data, guess)
            if change < _TOLERANCE * spread:
                break
    scores, power, _ = _decompose(filled, rank)
    # The sign of a component is arbitrary; that of its skewness does not depend on the machine.
    sign = np.sign((scores**3).sum(axis=0))
    return scores * np.where(sign == 0, 1.0, sign), power


def _decompose(data: FloatArray, rank: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return scores on the first components, all eigenvalues, and the components' weights."""
    centred = data - data.mean(axis=0)
    # Whichever side is shorter has the smaller eigenproblem.
    tall = centred.shape[0] > centred.shape[1]
    power, axes = np.linalg.eigh(centred.T @ centred if tall else centred @ centred.T)
    power, axes = np.maximum(power[::-1], 0.0), axes[:, ::-1][:, :rank]
    if tall:
        return centred @ axes, power, axes.T
    size = np.sqrt(power[:rank])
    return axes * size, power, axes.T @ centred / np.maximum(size, 1e-300)[:, None]


def choose_penalty(
    folds: Sequence[tuple[FloatArray, FloatArray, FloatArray, FloatArray]],
    penalties: Sequence[float],
    intercept: bool,
) -> tuple[float, float]:
    """Return the penalty of the least error on held-out trials, and its R2."""
    error, power = np.zeros(len(penalties)), 0.0
    for x_fit, y_fit, x_test, y_test in folds:
        rows = np.isfinite(x_test).all(axis=1) & np.isfinite(y_test).all(axis=1)
        if not (
            rows.any() and (np.isfinite(x_fit).all(axis=1) & np.isfinite(y_fit).all(axis=1)).any()
        ):
            continue
        fits = ridge(x_fit, y_fit, penalties, intercept)
        centre = np.nanmean(y_fit, axis=0) if intercept else 0.0
        power += float(((y_test[rows] - centre) ** 2).sum())
        for i, (weight, bias) in enumerate(fits):
            error[i] += float(((x_test[rows] @ weight + bias - y_test[rows]) ** 2).sum())
    best = int(np.argmin(error))
    return float(penalties[best]), 1 - error[best] / power if power else float("nan")


def ridge(
    x: FloatArray, y: FloatArray, penalties: Sequence[float], intercept: bool
) -> list[tuple[FloatArray, FloatArray]]:
    """Return weights and biases of ridge regressions of y on x, one pair per penalty."""
    rows = np.isfinite(x).all(axis=1) & np.isfinite(y).all(axis=1)
    seen = x[rows] - (x[rows].mean(axis=0) if intercept else 0.0)
    # The mean eigenvalue of the inputs' products: their trace by the number of inputs.
    unit = (seen**2).sum() / x.shape[1] or 1.0
    fits = fit_linear(x, y, [penalty * unit for penalty in penalties], intercept=intercept)
    return [(weight, bias) for weight, bias in fits]
