"""Series in bins: means, interpolation, lags, gaps."""

from __future__ import annotations

import numpy as np
import pytest

from lfads_torch.prep import series
from lfads_torch.prep.series import Sampler
from lfads_torch.prep.sources import Series

RAMP = np.arange(5000) / 1000  # value = time


def ramp(**options: object) -> Series:
    return Series(RAMP, ("time",), rate=1000.0, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("timed", [True, False])
def test_several_samples_per_bin_are_averaged(timed: bool) -> None:
    series = Series(RAMP, ("time",), times=RAMP) if timed else ramp()
    values = Sampler(series, 0.01).sample(np.array([1.0, 0.1 + 0.2, 4.96]), 5)
    assert values.shape == (3, 5, 1)
    # samples at 0, 1, ..., 9 ms of a bin: their mean is 4.5 ms after its beginning
    np.testing.assert_allclose(values[0, :, 0], 1.0045 + 0.01 * np.arange(5))
    np.testing.assert_allclose(values[1, :, 0], 0.3045 + 0.01 * np.arange(5))
    np.testing.assert_allclose(values[2, :4, 0], 4.9645 + 0.01 * np.arange(4))
    assert np.isnan(values[2, 4, 0])  # beyond the end


def test_gaps_and_missing_samples() -> None:
    data = RAMP.copy()
    data[105:110] = np.nan  # half a bin
    data[120:130] = np.nan  # a whole one
    values = Sampler(Series(data, ("time",), rate=1000.0), 0.01).sample(np.array([0.1]), 4)
    np.testing.assert_allclose(values[0, :, 0], [0.102, 0.1145, np.nan, 0.1345])


def test_coarse_series_are_interpolated_or_held() -> None:
    slow = Series(np.array([0.0, 1.0, 4.0]), ("time",), rate=10.0)
    values = Sampler(slow, 0.05).sample(np.array([0.0]), 5)[0, :, 0]
    np.testing.assert_allclose(values, [0.25, 0.75, 1.75, 3.25, np.nan])
    binned = Series(np.array([0.0, 1.0, 4.0]), ("time",), rate=10.0, at_edges=True)
    values = Sampler(binned, 0.05).sample(np.array([0.0]), 7)[0, :, 0]
    np.testing.assert_allclose(values, [0, 0, 1, 1, 4, 4, np.nan])


def test_far_windows_are_read_apart_and_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = np.array([4.0, 0.5, 2.2, 0.5])
    whole = Sampler(ramp(), 0.02).sample(starts, 3)
    monkeypatch.setattr(series, "_AT_ONCE", 10)
    np.testing.assert_allclose(Sampler(ramp(), 0.02).sample(starts, 3), whole)
    np.testing.assert_allclose(whole[:, 0, 0], starts + 0.0095)


def test_conversion_and_channels() -> None:
    data = np.stack([RAMP, 2 * RAMP])  # channel x time
    series = Series(data, ("channel", "time"), rate=1000.0, scale=10.0, offset=1.0)
    values = Sampler(series, 0.001).sample(np.array([1.0]), 2)
    np.testing.assert_allclose(values[0], [[11, 21], [11.01, 21.02]])
    assert series.read(1000, 1001, raw=True).tolist() == [[1.0, 2.0]]
