"""Rows that look trials up in a library of the mean courses of conditions.

After the idea of MINT (Perkins et al. 2025, doi:10.7554/eLife.89421): a moment of a trial follows
one course of the library, at about its own time, or lies between two of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .behavior import SCORED, TRAIN, Recording
from .fits import (
    Source,
    finite_mean,
    judge_and_rest,
    loss_of,
    smoothed_averages,
    subset,
    sums_by_condition,
)
from .scoring import Prediction

Array = NDArray[Any]
FloatArray = NDArray[np.float64]
Labels = NDArray[np.int64]

FLOOR = 1e-4
"""Least rate per bin in a library."""
SHARES = np.arange(6) / 10
"""Shares of the second course to choose from."""
_WINDOWS_MS = (50.0, 100.0, 200.0, 400.0, np.inf)
_SHIFTS_MS = (0.0, 50.0, 100.0, 200.0, 400.0)
_WITHOUT_WIDTH_MS = 10.0
"""Bin width by which these are bins where a file does not say its own."""
# Log likelihoods of all courses and shifts of so many entries (32 MB) are made at a time.
_BLOCK_ENTRIES = 1 << 22
# Of equal likelihoods the smallest shift counts.
_SHIFT_COST = 1e-9


class Match(NamedTuple):
    """What each bin of trials follows; all of shape (trials, bins).

    The rates are `1 - share` of course `first` at library bin `first_bin`, and `share` of course
    `second` at `second_bin`.
    """

    first: Labels
    first_bin: Labels
    second: Labels
    second_bin: Labels
    share: FloatArray


@dataclass(frozen=True)
class Settings:
    """What is chosen of a library: the smoothing, and in bins the window and the largest shift."""

    width: float
    before: int
    after: int
    max_shift: int


@dataclass(frozen=True)
class Library:
    """Courses of rates per bin, (conditions, bins, channels), and how trials are looked up."""

    rates: FloatArray
    settings: Settings

    @classmethod
    def of(cls, data: Array, labels: Labels, n_conditions: int, settings: Settings) -> Library:
        """Average the trials of each condition that has any."""
        total, count = sums_by_condition(data, labels, n_conditions)
        has_any = count.any(axis=(1, 2))
        mean = finite_mean(data)
        rates = smoothed_averages(total[has_any], count[has_any], mean, settings.width)
        return cls(np.maximum(rates, FLOOR), settings)

    def rates_of(self, read: Array, leave_own: bool = False) -> FloatArray:
        """Return rates of all channels and bins; (trials, bins, channels) from those read."""
        match = self.match(read, leave_own)
        share = match.share[..., None]
        first = self.rates[match.first, match.first_bin]
        return (1 - share) * first + share * self.rates[match.second, match.second_bin]

    def match(self, read: Array, leave_own: bool = False) -> Match:
        """Look trials up: (trials, bins, channels read), NaN missing, bins beyond them follow.

        ``L_t(c, d) = sum over bins u of the window about t, and channels n, of
        x[u, n] log rate[c, u + d, n] - rate[c, u + d, n]``, where u + d stays within the library;
        the best course and shift d count, and the best other course at its best shift. With
        `leave_own` the window is without bin t.
        """
        n_all, s = self.rates.shape[1], self.settings.max_shift
        n_bins, n_read = read.shape[1:]
        padded = np.pad(self.rates[..., :n_read], ((0, 0), (s, s), (0, 0)), mode="edge")
        padded = np.ascontiguousarray(padded.transpose(1, 0, 2))  # (bins, conditions, channels)
        entries = n_bins * len(self.rates) * (2 * s + 1)
        step = max(1, _BLOCK_ENTRIES // entries)
        blocks = [
            self._match(padded, read[start : start + step], leave_own)
            for start in range(0, len(read), step)
        ]
        first, first_shift, second, second_shift, share = (
            np.concatenate(parts) for parts in zip(*blocks, strict=True)
        )
        # Bins after those read follow the last one that was.
        place = np.minimum(np.arange(n_all), n_bins - 1)
        bins = [
            np.clip(np.arange(n_all) + shift[:, place], 0, n_all - 1)
            for shift in (first_shift, second_shift)
        ]
        return Match(first[:, place], bins[0], second[:, place], bins[1], share[:, place])

    def _match(self, padded: FloatArray, read: Array, leave_own: bool) -> list[Array]:
        """Return courses, shifts and share of each bin read of a few trials."""
        n_trials, n_bins, _ = read.shape
        n_shifts, n_courses = 2 * self.settings.max_shift + 1, len(self.rates)
        seen = np.isfinite(read)
        counts = np.where(seen, read, 0.0).astype(np.float64)
        logs = np.log(padded)
        own = np.empty((n_trials, n_bins, n_shifts * n_courses))
        for t in range(n_bins):
            # Library bins t - s to t + s of all courses lie side by side.
            near = slice(t, t + n_shifts)
            flat = (n_shifts * n_courses, -1)
            own[:, t] = counts[:, t] @ logs[near].reshape(flat).T
            own[:, t] -= seen[:, t] @ padded[near].reshape(flat).T
        window = Window.of(self.settings, n_bins, leave_own)
        total = window.sums(own).reshape(n_trials, n_bins, n_shifts, n_courses)
        shifts = np.arange(n_shifts) - self.settings.max_shift
        total -= _SHIFT_COST * np.abs(shifts)[:, None]
        at_best, best = total.max(axis=2), total.argmax(axis=2)
        first = at_best.argmax(axis=2)
        np.put_along_axis(at_best, first[..., None], -np.inf, axis=2)
        second = at_best.argmax(axis=2) if n_courses > 1 else first
        at, second_at = (
            np.take_along_axis(best, course[..., None], 2)[..., 0] for course in (first, second)
        )
        pairs = np.stack([first, at, second, second_at], axis=2)
        totals = padded.sum(axis=2)
        each = zip(counts, seen, pairs, strict=True)
        share = np.stack([_shares(padded, totals, *trial, window) for trial in each])
        return [first, shifts[at], second, shifts[second_at], share]


class Window(NamedTuple):
    """Bins whose likelihood counts for each bin: from `low` up to before `high`."""

    low: Labels
    high: Labels
    leave_own: bool

    @classmethod
    def of(cls, settings: Settings, n_bins: int, leave_own: bool) -> Window:
        """Return the windows of all bins of a trial."""
        t = np.arange(n_bins)
        low = np.maximum(t - settings.before, 0)
        return cls(low, np.minimum(t + settings.after + 1, n_bins), leave_own)

    def sums(self, own: FloatArray) -> FloatArray:
        """Sum up over the window of each bin; (trials, bins, ...)."""
        before = np.zeros((len(own), own.shape[1] + 1, *own.shape[2:]))
        np.cumsum(own, axis=1, out=before[:, 1:])
        total = before[:, self.high]
        total -= before[:, self.low]
        return total - own if self.leave_own else total


def _shares(
    padded: FloatArray,
    totals: FloatArray,
    counts: FloatArray,
    seen: NDArray[np.bool_],
    pairs: Labels,
    window: Window,
) -> FloatArray:
    """Choose for each bin of a trial how much of the second course best explains its window."""
    # Few bins differ in what they follow, and few entries hold a spike: only these need a
    # logarithm.
    pairs, which = np.unique(pairs, axis=0, return_inverse=True)
    which = which.reshape(-1)
    n_bins = len(counts)
    u, n = np.nonzero(counts)
    place = np.searchsorted(u, np.arange(n_bins + 1))
    rates, sums = [], []
    for course, at in (pairs[:, :2].T, pairs[:, 2:].T):
        rates.append(padded[u + at[:, None], course[:, None], n])
        where = np.arange(n_bins) + at[:, None], course[:, None]
        if seen.all():
            sums.append(totals[where])
        else:
            sums.append((padded[where] * seen).sum(axis=2))
    mixed = rates[0][:, None] * (1 - SHARES[:, None]) + rates[1][:, None] * SHARES[:, None]
    spikes = np.zeros((*mixed.shape[:2], len(u) + 1))
    np.cumsum(np.log(mixed) * counts[u, n], axis=2, out=spikes[..., 1:])
    # (pairs, shares, bins): the likelihood of each bin alone
    own = np.diff(spikes[..., place], axis=2)
    own -= sums[0][:, None] * (1 - SHARES[:, None]) + sums[1][:, None] * SHARES[:, None]
    total = window.sums(np.moveaxis(own, 2, 1))
    best = total[which, np.arange(n_bins)].argmax(axis=1)
    return np.asarray(SHARES[best])


def choose_settings(source: Source, causal: bool) -> Settings:
    """Choose smoothing, window and largest shift by how well some training trials are predicted.

    Held-out channels judge where there are any, else bins that were read, without themselves.
    """
    recording = source.recording
    bin_ms = recording.session.bin_ms or _WITHOUT_WIDTH_MS
    n_all = recording.data[TRAIN].shape[1]
    known = recording.labels[TRAIN] >= 0
    data, labels, read = (
        subset(array[known])
        for array in (recording.data[TRAIN], recording.labels[TRAIN], _read(recording, TRAIN))
    )
    judge, rest = judge_and_rest(len(data))
    n_channels = recording.n_channels
    holds_out = data.shape[2] > n_channels
    scored = data[judge][:, : recording.n_bins, n_channels if holds_out else 0 :]

    def loss(settings: Settings) -> float:
        library = _library(recording, data[rest], labels[rest], settings)
        rates = library.rates_of(read[judge], leave_own=not holds_out)
        return loss_of(rates[:, : recording.n_bins, -scored.shape[2] :], scored, counts=True)

    def in_bins(ms: float) -> int:
        return int(min(round(ms / bin_ms), n_all)) if np.isfinite(ms) else n_all

    windows = sorted({max(1, in_bins(ms)) for ms in _WINDOWS_MS})
    width = source.psth_width
    settings = Settings(width, 1, 0, in_bins(_SHIFTS_MS[2]))
    # One after another: they hardly depend on each other, and all at once take 75 fits.
    for options in (
        [{"before": window, "after": 0 if causal else window} for window in windows],
        [{"max_shift": shift} for shift in sorted({in_bins(ms) for ms in _SHIFTS_MS})],
        [{"width": width} for width in sorted({width / 2, width, 2 * width, 1.0, 2.0})],
    ):
        settings = min((replace(settings, **option) for option in options), key=loss)
    return settings


def _library(recording: Recording, data: Array, labels: Labels, settings: Settings) -> Library:
    return Library.of(data, labels, len(recording.condition_names), settings)


def _read(recording: Recording, kind: str) -> Array:
    """Return what was read of all trials: (trials, bins read, channels read)."""
    trials = recording.trials[kind]
    return trials["encod_data"] if "encod_data" in trials else trials["recon_data"]


def library_of(source: Source, causal: bool = False) -> Library | None:
    """Make the library of all training trials; None unless two have counts and a condition."""
    recording = source.recording
    if not recording.counts or (recording.labels[TRAIN] >= 0).sum() < 2:
        return None
    settings = choose_settings(source, causal)
    return _library(recording, recording.data[TRAIN], recording.labels[TRAIN], settings)


def look_up(source: Source, causal: bool = False) -> Prediction | None:
    """Predict from the library; a bin that was read is scored on rates that have not seen it."""
    recording = source.recording
    library = library_of(source, causal)
    if library is None:
        return None
    settings = library.settings
    read = _read(recording, SCORED)
    rates = library.rates_of(read).astype(np.float32)
    unseen = rates.copy()
    region = np.s_[:, : recording.n_bins, : recording.n_channels]
    unseen[region] = library.rates_of(read, leave_own=True)[region]

    @cache
    def features() -> tuple[Array, Array]:
        # From libraries of other training trials, of which each has a little other courses, a
        # linear map learns the differences between these: R2 -0.3 instead of 0.8 (synthetic).
        return library.rates_of(_read(recording, TRAIN)).astype(np.float32), rates

    choices = {
        "width_bins": settings.width,
        "window_bins": settings.before,
        "max_shift_bins": settings.max_shift,
        "conditions": len(library.rates),
        "condition_key": recording.condition_key,
    }
    name = "mint_causal" if causal else "mint"
    return Prediction(name, rates, unseen, {"": features}, choices)
