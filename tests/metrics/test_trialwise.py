"""Scores from sums per trial: values by hand, bootstrap weights, groups, missing data."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import r2_score as sklearn_r2

from lfads_torch.errors import UserError
from lfads_torch.metrics import bits_per_spike
from lfads_torch.metrics.evaluation import PsthScore, SpeedScore, psth_r2
from lfads_torch.metrics.trialwise import (
    CorrelationScore,
    ErrorScore,
    SpikeScore,
    interval,
    ratio,
    resampled_trials,
    score_value,
)


def spikes(seed: int = 0, shape: tuple[int, int, int] = (9, 7, 4)):
    rng = np.random.default_rng(seed)
    rates = rng.gamma(2.0, 0.4, size=shape)
    return rates, rng.poisson(rates).astype(float)


def drawn(kind, preds, targets, weights):
    """The score of the drawn trials themselves, each as often as it was drawn."""
    rows = np.repeat(np.arange(len(weights)), weights.astype(int))
    return score_value(kind.of(preds[rows], targets[rows]), len(rows))


class TestSpikes:
    def test_by_hand(self):
        # Counts 0 and 2 at rates 1/2 and 2: see tests/test_metrics.py.
        score = SpikeScore.of([[[0.5], [2.0]]], [[[0.0], [2.0]]])
        assert score_value(score, 1) == pytest.approx(1 - 0.25 / math.log(2), rel=1e-9)

    def test_as_the_score_kept_while_training(self):
        rates, counts = spikes()
        counts[2, 3:] = np.nan
        counts[:, 1, 2] = np.nan
        expected = bits_per_spike(torch.tensor(rates).log(), torch.tensor(counts)).item()
        assert score_value(SpikeScore.of(rates, counts), 9) == pytest.approx(expected, abs=1e-9)

    def test_channels_and_groups(self):
        rates, counts = spikes()
        counts[..., 3] = 0
        score = SpikeScore.of(rates, counts)
        channels = score.by_column()
        for c in range(3):
            alone = score_value(SpikeScore.of(rates[..., [c]], counts[..., [c]]), 9)
            assert channels[c] == pytest.approx(alone)
        assert np.isnan(channels[3]), "a silent channel has no bits per spike"
        groups = [np.array([0, 3, 4]), np.array([1, 2, 5, 6, 7, 8]), np.array([], dtype=int)]
        values = score.by_group(groups)
        assert np.isnan(values[2])
        # Against the mean rates of all trials, groups average to the whole by their spikes.
        n = [counts[g].sum() for g in groups[:2]]
        assert np.average(values[:2], weights=n) == pytest.approx(score_value(score, 9))

    def test_no_spike_is_nan_and_nan_rates_are_not_hidden(self):
        assert math.isnan(score_value(SpikeScore.of(np.ones((2, 3, 1)), np.zeros((2, 3, 1))), 2))
        rates, counts = spikes()
        rates[0, 0, 0] = np.nan
        assert math.isnan(score_value(SpikeScore.of(rates, counts), 9))
        counts[0, 0, 0] = np.nan
        assert math.isfinite(score_value(SpikeScore.of(rates, counts), 9))

    def test_shapes(self):
        with pytest.raises(UserError, match="must agree"):
            SpikeScore.of(np.ones((2, 3, 1)), np.ones((2, 3, 2)))


class TestErrors:
    def test_r2_and_r_by_hand(self):
        # Errors 0, 1, 0 against a spread of 2: R2 = 1/2. r of (1, 3, 3) and (1, 2, 3): sqrt(3)/2.
        targets = np.array([1.0, 2.0, 3.0]).reshape(3, 1, 1)
        preds = np.array([1.0, 3.0, 3.0]).reshape(3, 1, 1)
        assert score_value(ErrorScore.of(preds, targets), 3) == pytest.approx(0.5)
        r = score_value(CorrelationScore.of(preds, targets), 3)
        assert r == pytest.approx(math.sqrt(3) / 2)

    def test_as_sklearn_and_numpy(self):
        rng = np.random.default_rng(0)
        targets = rng.normal(size=(6, 5, 3)) + 1e4
        preds = targets + rng.normal(size=(6, 5, 3))
        flat = [x.reshape(-1, 3) for x in (targets, preds)]
        score = ErrorScore.of(preds, targets)
        assert score_value(score, 6) == pytest.approx(sklearn_r2(*flat), abs=1e-9)
        each = sklearn_r2(*flat, multioutput="raw_values")
        assert score.by_column() == pytest.approx(each, abs=1e-9)
        r = [np.corrcoef(a, b)[0, 1] for a, b in zip(flat[0].T, flat[1].T, strict=True)]
        correlation = CorrelationScore.of(preds, targets)
        assert correlation.by_column() == pytest.approx(r, abs=1e-9)
        assert score_value(correlation, 6) == pytest.approx(np.mean(r), abs=1e-9)

    @pytest.mark.parametrize("kind", [ErrorScore, CorrelationScore])
    def test_missing_constant_and_broken(self, kind):
        rng = np.random.default_rng(1)
        targets = rng.normal(size=(5, 4, 3))
        preds = targets + rng.normal(size=targets.shape)
        whole = score_value(kind.of(preds[..., :1], targets[..., :1]), 5)
        targets[..., 1] = 7.0
        targets[..., 2] = np.nan
        assert score_value(kind.of(preds, targets), 5) == pytest.approx(whole)
        assert np.isnan(kind.of(preds, targets).by_column()[1:]).all()
        assert math.isnan(score_value(kind.of(preds[..., 1:], targets[..., 1:]), 5))
        preds[0, 0, 0] = np.nan
        assert math.isnan(score_value(kind.of(preds, targets), 5)), "NaN is not passed over"
        targets[0, 0, 0] = np.nan
        assert math.isfinite(score_value(kind.of(preds, targets), 5))

    def test_groups_are_held_against_the_mean_of_all(self):
        targets = np.array([0.0, 0.0, 4.0, 4.0]).reshape(4, 1, 1)
        preds = np.array([1.0, 0.0, 4.0, 4.0]).reshape(4, 1, 1)
        score = ErrorScore.of(preds, targets)
        # About the mean of 2 either group has a spread of 8; the first has an error of 1.
        groups = [np.array([0, 1]), np.array([2, 3]), np.array([], dtype=int)]
        values = score.by_group(groups)
        assert values[:2] == pytest.approx([7 / 8, 1.0])
        assert np.isnan(values[2])
        r = CorrelationScore.of(preds, targets).by_group(groups)
        assert np.isnan(r).all(), "targets do not vary within a group"


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), n_trials=st.integers(2, 9))
def test_weights_are_as_good_as_drawing_the_trials(seed, n_trials):
    rates, counts = spikes(seed, (n_trials, 6, 3))
    weights = resampled_trials(n_trials, 1, seed)
    for kind, targets in ((SpikeScore, counts), (ErrorScore, counts), (CorrelationScore, counts)):
        got = ratio(*kind.of(rates, targets).parts(weights))[0]
        expected = drawn(kind, rates, targets, weights[0])
        assert got == pytest.approx(expected, abs=1e-8, nan_ok=True)


def test_psth_weights_are_as_good_as_drawing_the_trials():
    rng = np.random.default_rng(3)
    rates = rng.normal(size=(12, 8, 2))
    psth = rng.normal(size=(3, 8, 2))
    labels = np.arange(12) % 3
    jitter = rng.integers(-2, 3, size=12)
    weights = resampled_trials(12, 40, 1)
    members = [np.flatnonzero(labels == c) for c in range(3)]
    got = ratio(*PsthScore.of(rates, psth, members, jitter).parts(weights))
    for own, value in zip(weights, got, strict=True):
        rows = np.repeat(np.arange(12), own.astype(int))
        lists = [np.flatnonzero(labels[rows] == c) for c in range(3)]
        assert value == pytest.approx(psth_r2(rates[rows], psth, lists, jitter[rows]), abs=1e-9)


def test_speed_weights_are_as_good_as_drawing_the_trials():
    rng = np.random.default_rng(4)
    rates = rng.normal(size=(14, 6, 2))
    behavior = np.column_stack([np.arange(14) % 2, np.zeros((14, 2)), rng.uniform(size=14)])
    mask = np.ones((14, 6), bool)
    weights = resampled_trials(14, 30, 2)
    got = ratio(*SpeedScore.of(rates, behavior, mask).parts(weights))
    for own, value in zip(weights, got, strict=True):
        rows = np.repeat(np.arange(14), own.astype(int))
        again = SpeedScore.of(rates[rows], behavior[rows], mask[rows])
        assert value == pytest.approx(score_value(again, 14), abs=1e-9)


def test_psth_score_says_what_does_not_fit():
    with pytest.raises(UserError, match="2 conditions, bins, 3 neurons"):
        PsthScore.of(np.zeros((4, 5, 3)), np.zeros((2, 5, 2)), [[0], [1]])
    empty = PsthScore.of(np.zeros((4, 5, 3)), np.zeros((1, 5, 3)), [[]])
    assert empty.by_column() is None
    assert math.isnan(score_value(empty, 4))


class TestBootstrap:
    def test_draws(self):
        weights = resampled_trials(7, 5, 3)
        assert weights.shape == (5, 7)
        assert (weights.sum(axis=1) == 7).all()
        assert np.array_equal(weights, resampled_trials(7, 5, 3))
        assert resampled_trials(7, 0).shape == (0, 7)
        with pytest.raises(UserError, match="n_trials=0"):
            resampled_trials(0, 5)

    def test_interval(self):
        assert interval(50.0, np.arange(101.0), 0.9) == pytest.approx((5.0, 95.0))
        assert interval(7.0, [1.0, np.nan, 3.0], 0.5) == (6.5, 7.5), "about the value"
        assert all(math.isnan(x) for x in interval(1.0, [np.nan]))
        assert all(math.isnan(x) for x in interval(math.nan, [1.0, 2.0]))
        # One trial, or the same rates and targets whatever is drawn: no width, no interval.
        assert all(math.isnan(x) for x in interval(0.7, [0.7, 0.7 + 1e-14, 0.7]))

    def test_it_holds_what_it_promises(self):
        """Of a mean: the interval's width is that of theory, 2 * 1.96 standard errors."""
        rng = np.random.default_rng(0)
        targets = rng.normal(size=(200, 20, 1))
        preds = targets + rng.normal(size=targets.shape) * 0.5
        score = ErrorScore.of(preds, targets)
        value = score_value(score, 200)
        low, high = interval(value, ratio(*score.parts(resampled_trials(200, 2000))))
        # Var of the ratio error/spread of 4000 independent samples, to first order.
        e, s = ((preds - targets) ** 2).ravel(), (targets**2).ravel()
        deviation = (e - e.mean() / s.mean() * s) / s.mean()
        assert high - low == pytest.approx(2 * 1.96 * deviation.std() / math.sqrt(4000), rel=0.15)
        assert low < value < high


def test_psths_measured_on_the_trials_are_drawn_with_them():
    rng = np.random.default_rng(5)
    counts = rng.poisson(2.0, (14, 9, 2)).astype(float)
    counts[3, 2, 1] = np.nan
    labels = np.arange(14) % 3
    members = [np.flatnonzero(labels == c) for c in range(3)]
    # What the PSTH baseline says: the same rates in all trials of a condition.
    rates = rng.normal(2.0, 0.5, (3, 9, 2))[labels]
    weights = resampled_trials(14, 60, 1)

    def psths(rows, lists):
        mean = []
        for trials in lists:
            observed = np.isfinite(counts[rows[trials]])
            total = np.where(observed, counts[rows[trials]], 0).sum(axis=0)
            near = np.exp(-0.5 * ((np.arange(9)[:, None] - np.arange(9)) / 1.5) ** 2)
            near[np.abs(np.arange(9)[:, None] - np.arange(9)) > 6] = 0
            mean.append((near @ total) / (near @ observed.sum(axis=0)))
        return np.array(mean)

    whole = psths(np.arange(14), members)
    score = PsthScore.of(rates, whole, members, None, counts, 1.5)
    assert score_value(score, 14) == pytest.approx(psth_r2(rates, whole, members))
    got = ratio(*score.parts(weights))
    for own, value in zip(weights, got, strict=True):
        rows = np.repeat(np.arange(14), own.astype(int))
        lists = [np.flatnonzero(labels[rows] == c) for c in range(3)]
        assert value == pytest.approx(psth_r2(rates[rows], psths(rows, lists), lists), abs=1e-9)
    low, high = interval(score_value(score, 14), got)
    assert high - low > 0.01
    # Against PSTHs that are given, the baseline is the same whatever trials are drawn.
    given_ = ratio(*PsthScore.of(rates, whole, members).parts(weights))
    assert np.ptp(given_[np.isfinite(given_)]) < 0.5 * np.ptp(got)
