"""Behaviour and other series, brought to the bins of windows."""

from __future__ import annotations

import numpy as np

from ..errors import DataError
from .binning import TOLERANCE_S, Floats, Indices, stored_type
from .sources.recording import Series
from .trials import neighbours

_AT_ONCE = 1 << 21  # values (16 MB) that are read at once


class Sampler:
    """Values of a series in bins of `bin_s` seconds; NaN where nothing was recorded.

    Where the series has a sample or more per bin, the mean of the bin's samples (those that are
    not NaN). Where it is coarser than the bins, linear interpolation at the bins' centres, or the
    value of the coarser bin where its samples stand for bins.
    """

    def __init__(self, series: Series, bin_s: float, name: str = "a series") -> None:
        self.series, self.bin_s, self.name = series, bin_s, name
        self.times = None if series.times is None else series.seconds(0, series.n_samples)
        if self.times is not None and (falls := np.flatnonzero(np.diff(self.times) < 0)).size:
            at = int(falls[0])
            raise DataError(
                f"The times of {name} fall back {len(falls)} times, first from "
                f"{self.times[at]:.6g} to {self.times[at + 1]:.6g} s at sample {at + 1}, where "
                "those of the spikes do not. Bring both to one clock."
            )
        self.slack_s = TOLERANCE_S  # a sample this little below an edge counts as on it
        if series.times is not None and self.times is not None:
            latest = float(np.abs(self.times[np.isfinite(self.times)]).max(initial=0))
            stored = stored_type(np.asarray(series.times[:]))
            self.slack_s = max(self.slack_s, series.clock.tolerance(latest, stored))
        step = self._step()
        # A rate such as 1 / 0.01 may miss the bins' by rounding alone.
        self.coarse = step > bin_s * (1 + 1e-6)

    def check_span(self, span: tuple[float, float]) -> None:
        """Refuse times that last a thousand times as long as the recording, or as short."""
        last = self.series.n_samples - 1
        if last < 1 or not span[1] > span[0]:
            return
        first, end = (float(self.series.seconds(i, i + 1)[0]) for i in (0, last))
        ratio = (end - first) / (span[1] - span[0])
        if any(0.5 <= ratio * scale <= 2 for scale in (1e-9, 1e-6, 1e-3, 1e3, 1e6, 1e9)):
            raise DataError(
                f"{self.name} lies from {first:g} to {end:g} s, the recording from {span[0]:g} to "
                f"{span[1]:g} s: its times or its rate are in another unit. Name that of trials "
                "and series with --event-unit, or bring both to one."
            )

    def _step(self) -> float:
        if self.times is None:
            return 1 / self.series.rate
        # The median does not see the gaps in which nothing was recorded.
        return float(np.median(np.diff(self.times))) if len(self.times) > 1 else np.inf

    def sample(self, starts: Floats, n_bins: int) -> Floats:
        """Return values in windows that begin at `starts` (seconds): windows x bins x channels."""
        result = np.full((len(starts), n_bins, self.series.n_channels), np.nan)
        width = n_bins * self.bin_s
        most = _AT_ONCE / max(1, self.series.n_channels) * min(self._step(), width)
        for rows in neighbours(starts, width, most):
            low, high = starts[rows].min() - self.bin_s, starts[rows].max() + width + self.bin_s
            # One more on each side, for interpolation.
            begin = max(0, int(self._index(np.array([low]))[0]) - 1)
            end = min(self.series.n_samples, int(self._index(np.array([high]))[0]) + 1)
            if begin < end:
                values = self.series.read(begin, end)
                bins = starts[rows, None] + np.arange(n_bins + 1) * self.bin_s
                take = self._interpolate if self.coarse else self._average
                result[rows] = take(values, begin, bins)
        return result

    def _index(self, times: Floats) -> Indices:
        """Return the first sample at or after each time."""
        if self.times is not None:
            return np.searchsorted(self.times, times - self.slack_s).astype(np.int64)
        position = (times - self.series.start) * self.series.rate
        index = np.ceil(position - TOLERANCE_S * self.series.rate)
        return np.clip(index, 0, self.series.n_samples).astype(np.int64)

    def _average(self, values: Floats, begin: int, bins: Floats) -> Floats:
        known = np.isfinite(values)
        # A running sum of values far from 0 loses digits; of deviations from the mean it does not.
        mean = np.where(known, values, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
        total = np.zeros((len(values) + 1, values.shape[1]))
        np.cumsum(np.where(known, values - mean, 0), axis=0, out=total[1:])
        number = np.zeros((len(values) + 1, values.shape[1]), dtype=np.int64)
        np.cumsum(known, axis=0, out=number[1:])
        edges = np.clip(self._index(bins.ravel()).reshape(bins.shape) - begin, 0, len(values))
        count = number[edges[:, 1:]] - number[edges[:, :-1]]
        sums = total[edges[:, 1:]] - total[edges[:, :-1]]
        return np.where(count > 0, sums / np.maximum(count, 1) + mean, np.nan)

    def _interpolate(self, values: Floats, begin: int, bins: Floats) -> Floats:
        centres = (bins[:, :-1] + bins[:, 1:]) / 2
        end = begin + len(values)
        times = self.series.seconds(begin, end) if self.times is None else self.times[begin:end]
        if self.series.at_edges:
            place = np.searchsorted(times, centres, side="right") - 1
            inside = (place >= 0) & (centres < times[-1] + self._step())
            return np.where(inside[..., None], values[place.clip(0)], np.nan)
        # `np.interp` would repeat the first and last value: NaN says that nothing was recorded.
        channels = [
            np.interp(centres, times, column, left=np.nan, right=np.nan) for column in values.T
        ]
        return np.stack(channels, axis=-1)
