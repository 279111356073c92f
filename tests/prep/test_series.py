"""Series in bins: means, interpolation, lags, gaps."""

from __future__ import annotations

import numpy as np
import pytest

from lfads_torch.errors import DataError
from lfads_torch.prep import prepare, series
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


def test_stamps_in_float32_stay_in_their_bins() -> None:
    times = 60 + np.arange(2000) / 100  # on every edge of the bins lies a sample
    for stored in (times.astype(np.float32), times.astype(np.float32).astype(float), times):
        made = Series(np.arange(2000.0), ("time",), times=stored)
        values = Sampler(made, 0.02).sample(np.array([60.0, 62.5]), 50)[..., 0]
        np.testing.assert_array_equal(values[0], 0.5 + 2 * np.arange(50))
        np.testing.assert_array_equal(values[1], 250.5 + 2 * np.arange(50))


@pytest.mark.parametrize("scale", [1e3, 1e6, 1e-3])
def test_times_in_another_unit_than_the_spikes(scale: float) -> None:
    spikes = [np.sort(np.random.default_rng(0).uniform(0, 60, 900))]
    times = np.arange(6000) / 100
    source = {"spike_times": spikes, "vel": times, "vel_times": times * scale}
    with pytest.raises(DataError, match=r"'vel' lies from 0 to .*--event-unit"):
        prepare(source, None, bin_ms=20, chop_ms=1000, behavior=["vel"])
    done = prepare(source | {"vel_times": times}, None, bin_ms=20, chop_ms=1000, behavior=["vel"])
    assert np.isfinite(done.arrays["train_behavior"]).all()
