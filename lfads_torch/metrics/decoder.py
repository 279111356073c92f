"""Decoders of behaviour with lags: what they predict, how well, saved as JSON, run bin by bin.

A decoder reads the features of several bins and gives the targets of one. Lags never cross the
border of a piece: a trial, or a stretch of a recording without a gap. NumPy alone, so that a
decoder runs where there is no torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import DataError, UserError
from ..files import write_whole
from .regression import LinearMap
from .trialwise import CorrelationScore, ErrorScore, interval, ratio, resampled_trials

FloatArray = NDArray[np.float64]
Mask = NDArray[np.bool_]

FORMAT = 1
BLOCK_S = 5.0
"""Seconds of the blocks that a longer piece is divided into when intervals are drawn."""


@dataclass(frozen=True)
class Decoding:
    """How well a decoder's predictions match the targets.

    Attributes
    ----------
    targets : list of str
        Names of the targets.
    r2, r : list of float
        R2 and Pearson's correlation of each target; NaN for one that does not vary.
    r2_uniform : float
        Mean of `r2`.
    r2_weighted : float
        One minus the sum of squared errors by that of squared deviations, over all targets.
    rows, left_out : int
        Rows that were scored, and rows that lack a lag, a feature or a target.
    intervals : dict of str to (low, high)
        Bootstrap intervals of the other numbers: over pieces, of which those longer than 5 s are
        divided into blocks. A list of pairs for `r2`.
    """

    targets: list[str]
    r2: list[float]
    r: list[float]
    r2_uniform: float
    r2_weighted: float
    rows: int
    left_out: int
    intervals: dict[str, Any] = field(default_factory=dict)


class BlockSums(NamedTuple):
    """Sums behind the scores of a decoder, by block: pieces, those over 5 s divided evenly."""

    error: ErrorScore
    correlation: CorrelationScore
    rows: int
    left_out: int


@dataclass(frozen=True, eq=False)
class Decoder:
    """A linear decoder with lags.

    The prediction of a bin t is ``bias + sum over lags l of ((x[t - l] - feature_mean) /
    feature_scale) @ weight[l]``; a feature of scale 0 is not read.

    Attributes
    ----------
    lags : tuple of int
        Bins by which the features come before the targets, increasing; negative ones look ahead.
    feature_mean, feature_scale : array, shape (features,)
    weight : array, shape (lags, features, targets)
    bias : array, shape (targets,)
    alpha : array, shape (targets,)
        Penalty of each target.
    features : str
        What the features are: ``factors``, ``output_params``, a key of a data file.
    bin_ms : float or None
        Bin width in milliseconds.
    channels : list of str or None
        Names of the features, where they have any.
    target_names : list of str
    causal : bool
        Whether a prediction needs no later bin: no lag is negative, and smoothing looks back alone.
    smooth_ms : float
        Standard deviation of the Gaussian that smoothed the features; 0 for none.
    fitted_on : dict
        Run or file, SHA-256 of the checkpoint, split, rows.
    scores : dict
        By split, what ``lfads decode`` found.
    """

    lags: tuple[int, ...]
    feature_mean: FloatArray
    feature_scale: FloatArray
    weight: FloatArray
    bias: FloatArray
    alpha: FloatArray
    features: str = "features"
    bin_ms: float | None = None
    channels: list[str] | None = None
    target_names: list[str] = field(default_factory=list)
    causal: bool = False
    smooth_ms: float = 0.0
    fitted_on: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n_features, n_targets = len(self.feature_mean), len(self.bias)
        if not self.target_names:
            object.__setattr__(self, "target_names", [f"target {k}" for k in range(n_targets)])
        shapes = {
            "weight": (self.weight, (len(self.lags), n_features, n_targets)),
            "feature_scale": (self.feature_scale, (n_features,)),
            "alpha": (self.alpha, (n_targets,)),
            "target_names": (np.asarray(self.target_names), (n_targets,)),
        }
        for name, (array, legal) in shapes.items():
            if array.shape != legal:
                raise DataError(f"a decoder's {name} has shape {array.shape}; legal is {legal}")
        if list(self.lags) != sorted(set(self.lags)) or not self.lags:
            raise DataError(f"a decoder's lags are {self.lags}; legal are whole numbers that grow")

    @property
    def n_features(self) -> int:
        """Features of a bin."""
        return len(self.feature_mean)

    def matrices(self) -> LinearMap:
        """Return plain matrices, which read features as they are.

        Returns
        -------
        LinearMap
            ``weight`` of shape (lags, features, targets) and ``bias`` (targets,): the prediction of
            bin t is ``bias + sum over lags l of x[t - l] @ weight[l]``.
        """
        used = self.feature_scale > 0
        weight = self.weight * (used / np.where(used, self.feature_scale, 1.0))[:, None]
        return LinearMap(weight, self.bias - np.einsum("f,lfd->d", self.feature_mean, weight))

    def state(self, batch: int | None = None) -> DecoderState:
        """Return a decoder that takes one bin after another; `batch` streams side by side."""
        return DecoderState(self, batch)

    def predict(self, x: ArrayLike, pieces: ArrayLike | None = None) -> FloatArray:
        """Predict the targets of every bin.

        Parameters
        ----------
        x : array, shape (rows, features) or (trials, bins, features)
            Bins in order of time.
        pieces : array of int, shape (rows,), optional
            Number of the piece that each row is of; by default all rows are one, or each trial is.

        Returns
        -------
        array, shape (rows, targets) or (trials, bins, targets)
            NaN where a lag leaves the piece, or a feature is missing.

        Raises
        ------
        UserError
            If `x` has another number of features.
        """
        flat, labels = rows_of(x, pieces)
        self._check(flat)
        used = self.feature_scale > 0
        rows = np.flatnonzero(complete_rows(whole_rows(flat[:, used]), labels, self.lags))
        flat = flat[:, used]
        weight, bias = self.matrices()
        out = np.full((len(flat), len(bias)), np.nan)
        out[rows] = bias + sum(
            flat[rows - lag] @ matrix[used] for lag, matrix in zip(self.lags, weight, strict=True)
        )
        return out.reshape(*np.shape(x)[:-1], len(bias))

    def score(
        self,
        x: ArrayLike,
        y: ArrayLike,
        pieces: ArrayLike | None = None,
        *,
        where: ArrayLike | None = None,
        n_draws: int = 0,
        level: float = 0.95,
        seed: int | Sequence[int] = 0,
    ) -> Decoding:
        """Score predictions.

        Parameters
        ----------
        x, pieces : as of `predict`
        y : array, shape (rows, targets) or (trials, bins, targets)
            NaN is left out.
        where : array of bool, shape (rows,) or (trials, bins), optional
            Rows that are scored.
        n_draws : int
            Bootstrap draws; 0 for no intervals.
        level : float
            Of the intervals.
        seed : int or sequence of int
            Of the draws.

        Returns
        -------
        Decoding

        Raises
        ------
        UserError
            If sizes do not agree, or nothing is left to score.
        """
        sums = self.sums(x, y, pieces, where=where)
        error, both = sums.error, sums.correlation
        weights = np.ones((1, len(error.n)))
        # From one block there is nothing to draw.
        if n_draws and len(error.n) > 1:
            weights = np.concatenate([weights, resampled_trials(len(error.n), n_draws, seed)])
        scores = {
            "r2": error.columns(weights)[0],
            "r2_uniform": ratio(*error.parts(weights)),
            "r2_weighted": ratio(*error.pooled(weights)),
            "r": both.columns(weights)[0],
        }
        intervals: dict[str, Any] = {}
        for name, values in scores.items() if len(weights) > 1 else ():
            if values.ndim == 1:
                intervals[name] = interval(float(values[0]), values[1:], level)
            else:
                intervals[name] = [interval(float(v[0]), v[1:], level) for v in values.T]
        return Decoding(
            targets=list(self.target_names),
            r2=scores["r2"][0].tolist(),
            r=scores["r"][0].tolist(),
            r2_uniform=float(scores["r2_uniform"][0]),
            r2_weighted=float(scores["r2_weighted"][0]),
            rows=sums.rows,
            left_out=sums.left_out,
            intervals=intervals,
        )

    def sums(
        self,
        x: ArrayLike,
        y: ArrayLike,
        pieces: ArrayLike | None = None,
        *,
        where: ArrayLike | None = None,
    ) -> BlockSums:
        """Sum up what scores are made of, by blocks in the order of the rows; as of `score`."""
        _, labels = rows_of(x, pieces)
        preds, targets = self.predict(x, pieces), np.asarray(y, dtype=np.float64)
        if preds.shape != targets.shape:
            raise UserError(
                f"the decoder gives targets of shape {preds.shape}, those that score it have "
                f"{targets.shape}; they must agree ({', '.join(self.target_names)})"
            )
        preds, targets = (a.reshape(-1, a.shape[-1]) for a in (preds, targets))
        chosen = np.ones(len(preds), bool) if where is None else np.ravel(where).astype(bool)
        known = chosen & np.isfinite(preds).all(axis=1) & np.isfinite(targets).all(axis=1)
        if not known.any():
            raise UserError("no row has all its lags, features and targets: nothing can be scored")
        blocks = _blocks_of(labels, self.bin_ms)[known]
        starts = np.flatnonzero(np.diff(blocks, prepend=-1))
        # A row is a trial of its own first: the scores' sums per trial then add up by block.
        p, t = preds[known][:, None], targets[known][:, None]
        error, both = ErrorScore.of(p, t), CorrelationScore.of(p, t)
        error = ErrorScore(
            *(np.add.reduceat(s, starts) for s in (error.n, error.total, error.power, error.error))
        )
        both = CorrelationScore(np.add.reduceat(both.sums, starts, axis=1))
        return BlockSums(error, both, int(known.sum()), int(chosen.sum() - known.sum()))

    def save(self, path: str | Path) -> Path:
        """Write the decoder as JSON; `load` reads every number back as it is."""
        target = Path(path)
        write_whole(target, json.dumps(self.to_dict(), indent=1) + "\n")
        return target

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as the file holds them."""
        return {"format": FORMAT, **plain(asdict(self))}

    @classmethod
    def load(cls, path: str | Path) -> Decoder:
        """Read a decoder that `save` wrote.

        Raises
        ------
        DataError
            If the file is missing or is no decoder.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(
                f"{path} is not a decoder that can be read ({error}); name the file that "
                "`lfads decode --save` wrote"
            ) from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            known = content.get("format") if isinstance(content, dict) else None
            raise DataError(
                f"{path} is no decoder of format {FORMAT} (its format: {known}); name the file "
                "that `lfads decode --save` wrote"
            )
        if lacking := [name for name in _NEEDED if name not in content]:
            raise DataError(f"{path} is no whole decoder: it lacks {', '.join(lacking)}")
        values = {f.name: content[f.name] for f in fields(cls) if f.name in content}
        try:
            arrays = {name: np.array(values[name], dtype=np.float64) for name in _ARRAYS}
            lags = tuple(int(lag) for lag in values["lags"])
            # Another program may have written a whole number.
            for name in ("bin_ms", "smooth_ms"):
                if values.get(name) is not None:
                    values[name] = float(values[name])
            return cls(**{**values, **arrays, "lags": lags})
        except (TypeError, ValueError) as error:
            raise DataError(f"{path} is damaged: {error}") from error

    def _check(self, x: FloatArray) -> None:
        if x.shape[1] != self.n_features:
            raise UserError(
                f"the decoder reads {self.n_features} features ({self.features}), the data have "
                f"{x.shape[1]}"
            )


_ARRAYS = ("feature_mean", "feature_scale", "weight", "bias", "alpha")
_NEEDED = (*_ARRAYS, "lags")


class DecoderState:
    """A decoder that takes the features of one bin after another.

    It keeps the last ``max(lags) + 1`` bins. ``step`` gives the same numbers as `Decoder.predict`
    on all bins as one piece.

    Parameters
    ----------
    decoder : Decoder
    batch : int, optional
        Streams side by side.

    Raises
    ------
    UserError
        If a lag is negative: it would need a bin that has not come.
    """

    def __init__(self, decoder: Decoder, batch: int | None = None) -> None:
        if min(decoder.lags) < 0:
            raise UserError(
                f"the decoder has lags {min(decoder.lags)} to {max(decoder.lags)} and so reads "
                "later bins; bin by bin legal are lags of 0 and more: fit it with --lags 0:3"
            )
        weight, bias = decoder.matrices()
        self._unused = np.flatnonzero(decoder.feature_scale <= 0)
        self._lags, self._weights, self._bias = decoder.lags, list(weight), bias
        shape = () if batch is None else (batch,)
        self._ring = np.full((max(decoder.lags) + 1, *shape, decoder.n_features), np.nan)
        # Made once, so that a step allocates nothing.
        self._finite = np.empty((*shape, decoder.n_features), dtype=bool)
        self._complete = np.empty(shape, dtype=bool)
        self._part = np.empty((*shape, len(bias)))
        self._out = np.empty_like(self._part)
        self._position = 0

    def step(self, features: ArrayLike) -> FloatArray:
        """Take the next bin.

        Parameters
        ----------
        features : array, shape (features,) or (batch, features)

        Returns
        -------
        array, shape (targets,) or (batch, targets)
            NaN until ``max(lags) + 1`` bins were taken, and where a feature that is read is
            missing. The array is used again by the next step.
        """
        values = np.asarray(features)
        row = self._ring[self._position % len(self._ring)]
        if values.shape != row.shape:
            raise UserError(f"features have shape {values.shape}; the decoder takes {row.shape}")
        row[...] = values
        row[..., self._unused] = 0.0
        np.isfinite(row, out=self._finite)
        np.all(self._finite, axis=-1, out=self._complete)
        # A bin that lacks one feature is missing as a whole, as in the fit.
        row[~self._complete] = np.nan
        self._out[...] = self._bias
        for lag, weight in zip(self._lags, self._weights, strict=True):
            np.matmul(self._ring[(self._position - lag) % len(self._ring)], weight, out=self._part)
            self._out += self._part
        self._position += 1
        return self._out

    def reset(self) -> None:
        """Forget all bins: a new trial begins, or a gap has ended."""
        self._ring[...] = np.nan
        self._position = 0

    def state(self) -> dict[str, Any]:
        """Return what `load_state` goes on from, as copies."""
        return {"ring": self._ring.copy(), "position": self._position}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of a decoder of the same sizes."""
        ring = np.asarray(state["ring"])
        if ring.shape != self._ring.shape:
            raise UserError(
                f"the state is of a decoder with a ring of shape {ring.shape}; this one's is "
                f"{self._ring.shape}"
            )
        self._ring[...] = ring
        self._position = int(state["position"])


def plain(value: Any) -> Any:
    """Return what JSON can hold: lists for arrays, None for numbers that are not finite."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def rows_of(x: ArrayLike, pieces: ArrayLike | None) -> tuple[FloatArray, NDArray[np.int64]]:
    """Return features by row, and the number of each row's piece."""
    array = np.asarray(x, dtype=np.float64)
    if array.ndim not in (2, 3):
        raise UserError(
            f"features have shape {array.shape}; legal are (rows, features) and (trials, bins, "
            "features)"
        )
    flat = array.reshape(-1, array.shape[-1])
    if pieces is not None:
        labels = np.ravel(pieces).astype(np.int64)
        if len(labels) != len(flat):
            raise UserError(f"pieces number {len(labels)} rows, there are {len(flat)}")
        # What is not side by side is not one piece, whatever its number.
        return flat, np.cumsum(np.diff(labels, prepend=labels[:1]) != 0)
    n_bins = array.shape[1] if array.ndim == 3 else max(len(flat), 1)
    return flat, np.arange(len(flat)) // n_bins


def whole_rows(x: FloatArray) -> Mask:
    """Mark rows without a missing entry."""
    return np.asarray(np.isfinite(x).all(axis=1))


def complete_rows(finite: Mask, pieces: NDArray[np.int64], lags: Sequence[int]) -> Mask:
    """Mark rows all of whose lags are in the same piece and finite."""
    complete, rows = np.ones(len(finite), dtype=bool), np.arange(len(finite))
    for lag in lags:
        source = rows - lag
        inside = (source >= 0) & (source < len(finite))
        source = np.where(inside, source, 0)
        complete &= inside & (pieces[source] == pieces) & finite[source]
    return complete


def _blocks_of(pieces: NDArray[np.int64], bin_ms: float | None) -> NDArray[np.int64]:
    """Return the block of each row that is drawn: its piece, or its part of a piece over 5 s."""
    # Without a bin width 20 ms is taken, at which a block is 250 bins.
    most = max(1, round(BLOCK_S * 1000 / (bin_ms or 20.0)))
    _, first, length = np.unique(pieces, return_index=True, return_counts=True)
    blocks, before = np.zeros(len(pieces), dtype=np.int64), 0
    for start, n in zip(first, length, strict=True):
        parts = max(1, n // most)
        blocks[start : start + n] = before + np.arange(n) * parts // n
        before += parts
    return blocks
