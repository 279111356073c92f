"""The benchmark's scores against its published definitions, written here with scipy and sklearn."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import pearsonr, poisson
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV

from lfads_torch.errors import DataError, UserError
from lfads_torch.metrics.nlb import (
    RatesAndBehavior,
    decoding_r2,
    nlb_scores,
    set_go_mask,
    trials_by_condition,
)

READ = (8, 4)  # bins, neurons
ALL = (11, 6)
N_TRAIN, N_VALID, N_CONDITIONS = 33, 24, 5


class Benchmark:
    """A small data set, and its scores by the definitions of Pei et al. 2021 (section 3, appendix).

    Nothing here is shared with the package: likelihoods with their factorials, loops over trials,
    sklearn's decoder and R2.
    """

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.rates = rng.gamma(2.0, 0.3, size=(N_TRAIN + N_VALID, *ALL))
        self.rates[-1, 2, 5] = 0.0
        self.counts = rng.poisson(self.rates).astype(float)
        self.counts[-1, 2, 5] = 1.0
        self.behavior = self.rates[:, : READ[0], :2] @ rng.normal(size=(2, 2)) * 3 + 1
        self.behavior += rng.normal(size=self.behavior.shape)
        self.behavior[3, :4] = np.nan
        self.behavior[-2, 5:] = np.nan
        self.cond_idx = [np.flatnonzero(np.arange(N_VALID) % 6 == c) for c in range(N_CONDITIONS)]
        self.cond_idx[2] = self.cond_idx[2][:0]
        self.psth = rng.gamma(2.0, 0.3, size=(N_CONDITIONS, READ[0], ALL[1]))
        self.psth[1, :2] = np.nan

    def split(self, which: str) -> RatesAndBehavior:
        part = slice(N_TRAIN) if which == "train" else slice(N_TRAIN, None)
        return RatesAndBehavior(self.rates[part], self.behavior[part])

    def bits_per_spike(self, part: tuple[slice, ...]) -> float:
        """Model and null likelihoods with the whole Poisson density; rate 0 counts as 1e-9."""
        rates, counts = self.rates[N_TRAIN:][part], self.counts[N_TRAIN:][part]
        model = poisson.logpmf(counts, np.where(rates == 0, 1e-9, rates)).sum()
        null = poisson.logpmf(counts, counts.mean(axis=(0, 1), keepdims=True)).sum()
        return float((model - null) / counts.sum() / np.log(2))

    def velocity_r2(self) -> float:
        behavior = self.behavior[:N_TRAIN].reshape(-1, 2)
        rates = self.rates[:N_TRAIN, : READ[0]].reshape(-1, ALL[1])
        known = ~np.isnan(behavior).any(axis=1)
        decoder = GridSearchCV(Ridge(), {"alpha": np.logspace(-4, 0, 9)})
        decoder.fit(rates[known], behavior[known])
        rates = self.rates[N_TRAIN:, : READ[0]].reshape(-1, ALL[1])
        behavior = self.behavior[N_TRAIN:].reshape(-1, 2)
        known = ~np.isnan(behavior).any(axis=1)
        return float(decoder.score(rates[known], behavior[known]))

    def psth_r2(self) -> float:
        true, inferred = [], []
        for condition, members in enumerate(self.cond_idx):
            if len(members):
                true.append(self.psth[condition])
                inferred.append(self.rates[N_TRAIN:][members][:, : READ[0]].mean(axis=0))
        joined = np.concatenate(true)
        known = ~np.isnan(joined).any(axis=1)
        return float(r2_score(joined[known], np.concatenate(inferred)[known]))


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_the_published_definitions(seed: int) -> None:
    data = Benchmark(seed)
    scores = nlb_scores(
        data.split("valid"),
        data.counts[N_TRAIN:],
        READ,
        train=data.split("train"),
        psth=data.psth,
        cond_idx=data.cond_idx,
    )
    bins, neurons = READ
    expected = {
        "co_bps": data.bits_per_spike(np.s_[:, :bins, neurons:]),
        "fp_bps": data.bits_per_spike(np.s_[:, bins:, :]),
        "behavior_r2": data.velocity_r2(),
        "psth_r2": data.psth_r2(),
    }
    assert scores.keys() == expected.keys()
    for name, value in expected.items():
        assert scores[name] == pytest.approx(value, abs=1e-6), name


def test_speed_agrees_with_the_published_definition() -> None:
    """Mean distance of successive bins between Set and Go, Pearson's r within each condition."""
    rng = np.random.default_rng(5)
    n_trials, n_bins, bin_ms = 40, 30, 5.0
    jitter = rng.integers(0, 4, size=n_trials)
    produced = rng.uniform(30, 110, size=n_trials)
    conditions = rng.integers(0, 2, size=(n_trials, 2))
    behavior = np.column_stack([conditions, np.zeros((n_trials, 2)), produced])
    rates = rng.normal(size=(n_trials, n_bins + 5, 3)).cumsum(axis=1) / produced[:, None, None]
    correlations = []
    for condition in np.unique(conditions, axis=0):
        chosen = np.flatnonzero((conditions == condition).all(axis=1))
        speeds = []
        for trial in chosen:
            go = n_bins - jitter[trial]
            between = rates[trial, round(go - produced[trial] / bin_ms) : go]
            steps = [np.sqrt(((b - a) ** 2).sum()) for a, b in pairwise(between)]
            speeds.append(np.mean(steps))
        correlations.append(pearsonr(speeds, produced[chosen])[0])
    scores = nlb_scores(
        RatesAndBehavior(rates, behavior), n_read=(n_bins, 3), jitter=jitter, bin_ms=bin_ms
    )
    assert scores == {"tp_corr": pytest.approx(np.mean(correlations), abs=1e-6)}


def test_scores_without_their_data_are_absent() -> None:
    data = Benchmark()
    assert nlb_scores(data.split("valid")) == {}
    silent = nlb_scores(data.split("valid"), np.zeros_like(data.counts[N_TRAIN:]), READ)
    assert silent == {}, "without a spike bits per spike are not defined"


def test_psths_of_other_neurons_are_refused() -> None:
    data = Benchmark()
    with pytest.raises(DataError, match=r"psth has shape \(5, 8, 3\).*6 neurons"):
        nlb_scores(data.split("valid"), psth=data.psth[..., :3], cond_idx=data.cond_idx)


def test_decoding_without_masks_uses_all_trials() -> None:
    rates = np.random.default_rng(0).gamma(2.0, 0.4, size=(42, 11, 6))
    behavior = rates[:, :5, :1] * 2 + 1
    parts = (slice(30), slice(30, None))
    trials = [RatesAndBehavior(rates[part], behavior[part]) for part in parts]
    assert decoding_r2(*trials, alphas=(0.0,)) == pytest.approx(1.0)
    with pytest.raises(DataError, match="behaviour in both"):
        decoding_r2(RatesAndBehavior(rates, None), trials[1])


def test_decoding_leaves_out_behaviour_that_does_not_vary() -> None:
    rng = np.random.default_rng(0)
    rates, noise = rng.normal(size=(42, 11, 6)), rng.normal(size=(42, 11, 1))
    varying = rates[..., :1] + noise
    parts = (slice(30), slice(30, None))
    alone, beside, still = (
        decoding_r2(*(RatesAndBehavior(rates[part], behavior[part]) for part in parts))
        for behavior in (
            varying,
            np.concatenate([varying, np.ones_like(varying)], axis=2),
            np.ones_like(varying),
        )
    )
    assert beside == pytest.approx(alone, abs=0.01)
    assert np.isnan(still)


def test_set_go_mask_by_hand() -> None:
    mask = set_go_mask([10.0, 20.0, np.nan], [0, 2, 0], n_bins=6, bin_ms=5.0)
    assert mask.astype(int).tolist() == [
        [0, 0, 0, 0, 1, 1],
        [1, 1, 1, 1, 0, 0],
        [0, 0, 0, 0, 0, 0],
    ]


class TestTrialsByCondition:
    def test_forms(self) -> None:
        ragged = np.empty(3, dtype=object)
        ragged[:] = [np.array([2, 0]), np.array([], dtype=int), np.array([1])]
        for given in (ragged, [[2, 0], [], [1]]):
            lists = trials_by_condition(given, 3)
            assert [x.tolist() for x in lists] == [[2, 0], [], [1]]
        numbered = trials_by_condition(np.array([0, 2, 0]), 3)
        assert [x.tolist() for x in numbered] == [[0, 2], [], [1]]
        square = trials_by_condition(np.array([[0, 1], [2, 3]]), 2)
        assert [x.tolist() for x in square] == [[0, 1], [2, 3]]

    def test_contradictions(self) -> None:
        with pytest.raises(DataError, match="2 conditions, psth has 3"):
            trials_by_condition([[0, 1], [2]], 3)
        with pytest.raises(DataError, match="numbers 0 to 3, but psth has 3"):
            trials_by_condition([0, 3], 3)


def test_too_few_samples_for_folds_is_a_users_error() -> None:
    one = RatesAndBehavior(np.ones((1, 2, 1)), np.ones((1, 2, 1)))
    with pytest.raises(UserError, match="5 folds need"):
        decoding_r2(one, one)
