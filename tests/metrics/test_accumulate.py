import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score as sklearn_r2
from sklearn.model_selection import GridSearchCV

from lfads_torch.metrics import (
    NLB_ALPHAS,
    BitsPerSpikeSums,
    ExpSmoothedMetric,
    R2Sums,
    WeightedMeans,
    bits_per_spike,
    fit_linear,
    gaussian_smooth,
    linear_map_r2,
    psth_r2,
    r2_score,
    ridge_r2,
    speed_tp_correlation,
)


class TestBitsPerSpike:
    def test_hand_computed(self):
        # One channel, counts 0 and 2: the null rate is 1, so NLL(null) = 2 - 2 log 1 = 2.
        # Rates 1/2 and 2: NLL = 2.5 - 2 log 2, so bps = (2 log 2 - 0.5) / (2 log 2).
        counts = torch.tensor([[[0.0], [2.0]]])
        rates = torch.tensor([[[0.5], [2.0]]])
        expected = 1 - 0.25 / math.log(2)
        assert bits_per_spike(rates.log(), counts).item() == pytest.approx(expected, rel=1e-6)

    def test_agrees_with_poisson_likelihoods(self):
        torch.manual_seed(0)
        counts = torch.poisson(torch.rand(5, 7, 3, dtype=torch.float64))
        rates = torch.rand(5, 7, 3, dtype=torch.float64) + 0.1
        null = counts.mean((0, 1)).expand_as(counts)
        gain = torch.distributions.Poisson(rates).log_prob(counts).sum()
        gain = gain - torch.distributions.Poisson(null).log_prob(counts).sum()
        expected = gain / (counts.sum() * math.log(2))
        torch.testing.assert_close(bits_per_spike(rates.log(), counts), expected)

    def test_mean_rate_scores_zero_even_with_a_silent_channel(self):
        counts = torch.poisson(torch.rand(4, 5, 3, dtype=torch.float64))
        counts[..., 1] = 0
        log_rates = counts.mean((0, 1)).log().expand_as(counts)
        assert abs(bits_per_spike(log_rates, counts).item()) < 1e-12

    def test_no_spike_is_nan(self):
        assert bits_per_spike(torch.zeros(2, 3, 1), torch.zeros(2, 3, 1)).isnan()
        assert BitsPerSpikeSums().compute().isnan()

    def test_zero_rate_where_a_spike_was_is_minus_infinity(self):
        counts = torch.tensor([[1.0], [0.0]])
        assert bits_per_spike(torch.tensor([[-math.inf], [0.0]]), counts).item() == -math.inf

    def test_nan_counts_are_ignored(self):
        counts = torch.tensor([[0.0], [2.0], [math.nan]])
        rates = torch.tensor([[0.5], [2.0], [99.0]])
        torch.testing.assert_close(
            bits_per_spike(rates.log(), counts), bits_per_spike(rates[:2].log(), counts[:2])
        )

    @settings(max_examples=25, deadline=None)
    @given(cut=st.integers(1, 11), seed=st.integers(0, 99))
    def test_batches_add_up(self, cut, seed):
        generator = torch.Generator().manual_seed(seed)
        counts = torch.poisson(torch.ones(12, 4, 2, dtype=torch.float64), generator)
        log_rates = torch.randn(12, 4, 2, dtype=torch.float64, generator=generator)
        sums = BitsPerSpikeSums()
        sums.update(log_rates[:cut], counts[:cut])
        sums.update(log_rates[cut:], counts[cut:])
        torch.testing.assert_close(sums.compute(), bits_per_spike(log_rates, counts))
        sums.reset()
        assert sums.compute().isnan()

    def test_sessions_keep_their_own_mean_rates(self):
        sums = BitsPerSpikeSums()
        for key, rate, n in ((0, 1.0, 2), (1, 5.0, 3)):
            counts = torch.full((2, 3, n), rate)
            sums.update(counts.log(), counts, key=key)
        assert abs(sums.compute().item()) < 1e-6

    def test_shapes_must_agree(self):
        # With the shapes checked by the import hook, that check speaks first.
        shown = r"\(2, 3\) and \(2, 4\)|Type-check"
        with pytest.raises((ValueError, TypeError), match=shown):
            bits_per_spike(torch.zeros(2, 3), torch.zeros(2, 4))


class TestR2:
    def test_hand_computed(self):
        # Errors 0, 1, 0 against a spread of 2: R2 = 1/2; the second channel is exact.
        targets = torch.tensor([[1.0, 0.0], [2.0, 5.0], [3.0, 1.0]])
        preds = torch.tensor([[1.0, 0.0], [3.0, 5.0], [3.0, 1.0]])
        assert r2_score(preds, targets).item() == pytest.approx(0.75)

    def test_constant_channels_and_missing_targets_are_left_out(self):
        targets = torch.tensor([[1.0, 7.0], [2.0, 7.0], [3.0, 7.0], [math.nan, 7.0]])
        preds = torch.tensor([[1.0, 0.0], [3.0, 0.0], [3.0, 0.0], [50.0, 0.0]])
        assert r2_score(preds, targets).item() == pytest.approx(0.5)
        assert r2_score(preds[:, 1:], targets[:, 1:]).isnan()

    @settings(max_examples=25, deadline=None)
    @given(cut=st.integers(1, 11), offset=st.floats(-1e6, 1e6), seed=st.integers(0, 99))
    def test_batches_add_up_to_sklearn(self, cut, offset, seed):
        rng = np.random.default_rng(seed)
        targets = rng.normal(size=(12, 3)) + offset
        preds = targets + rng.normal(size=(12, 3))
        sums = R2Sums()
        for part in (slice(None, cut), slice(cut, None)):
            sums.update(torch.tensor(preds[part]), torch.tensor(targets[part]))
        assert sums.compute().item() == pytest.approx(sklearn_r2(targets, preds), rel=1e-6)


class TestWeightedMeans:
    def test_weights(self):
        means = WeightedMeans()
        value = torch.tensor(1.0, requires_grad=True)
        means.add("a", value, weight=3)
        means.add("a", torch.tensor(5.0), weight=1)
        means.add("b", 2, weight=4)
        result = means.compute()
        assert set(result) == {"a", "b"}
        assert result["a"].item() == 2.0
        assert not result["a"].requires_grad
        assert result["b"].item() == 2.0
        means.reset()
        assert means.compute() == {}

    def test_zero_weight_is_nan(self):
        means = WeightedMeans()
        means.add("a", 3.0, weight=0)
        assert means.compute()["a"].isnan()


class TestExpSmoothedMetric:
    def test_hand_computed(self):
        metric = ExpSmoothedMetric(coef=0.3)
        assert metric.smoothed.isnan()
        values = []
        for new in (10.0, 0.0, torch.tensor(1.0)):
            values.append(metric.smooth(new).item())
        assert values == pytest.approx([10.0, 3.0, 0.3 * 3.0 + 0.7])

    def test_an_epoch_is_the_mean_of_its_batches_weighted_by_trials(self):
        metric = ExpSmoothedMetric(coef=0.7)
        metric.update(torch.tensor(1.0), 1)
        metric.update(4.0, batch_size=2)
        assert metric.compute().item() == pytest.approx(3.0)
        metric.reset()
        metric.update(1.0, 5)
        assert metric.compute().item() == pytest.approx(0.7 * 3.0 + 0.3)

    def test_a_restored_state_continues(self):
        metric = ExpSmoothedMetric(coef=0.3)
        assert metric.smooth(1.0).item() == 1.0
        metric.smoothed = torch.tensor(10.0)
        assert metric.compute().item() == 10.0
        assert metric.smooth(0.0).item() == pytest.approx(3.0)

    def test_one_item_keeps_its_axis(self):
        metric = ExpSmoothedMetric(coef=0.3)
        metric.smoothed = torch.tensor([torch.nan])
        for new, smoothed in ((10.0, [10.0]), (0.0, [3.0])):
            assert metric.smooth(torch.tensor([new])).tolist() == pytest.approx(smoothed)

    def test_leaves_no_trace_in_a_state_dict(self):
        module = torch.nn.Module()
        module.smooth = ExpSmoothedMetric()
        module.smooth.update(1.0)
        assert module.state_dict() == {}

    @pytest.mark.parametrize("coef", [-0.1, 1.0])
    def test_coef_range(self, coef):
        with pytest.raises(ValueError, match="coef"):
            ExpSmoothedMetric(coef=coef)


class TestGaussianSmooth:
    def test_hand_computed(self):
        # Weights exp(-lag^2/2) over the bins that exist: 1/(1 + 2e^-0.5 + ...) is checked in full.
        spikes = np.array([[0.0], [0.0], [1.0], [0.0], [0.0]])
        w = np.exp(-0.5 * np.arange(5) ** 2)
        expected = [
            w[2] / w.sum(),
            w[1] / (w[:4].sum() + w[1]),
            w[0] / (w[0] + 2 * w[1] + 2 * w[2]),
        ]
        assert gaussian_smooth(spikes, 1.0)[:3, 0] == pytest.approx(expected)

    def test_causal_looks_only_back(self):
        spikes = np.zeros((1, 9, 1))
        spikes[0, 4] = 1.0
        smooth = gaussian_smooth(spikes, 1.5, causal=True)[0, :, 0]
        assert (smooth[:4] == 0).all()
        assert (smooth[4:] > 0).all()
        assert (np.diff(smooth[4:]) < 0).all()

    @settings(max_examples=20, deadline=None)
    @given(width=st.floats(0, 30), causal=st.booleans(), rate=st.floats(0, 9))
    def test_constants_stay_at_the_edges_and_across_gaps(self, width, causal, rate):
        data = np.full((2, 12, 3), rate)
        data[1, 3, 2] = np.nan
        smooth = gaussian_smooth(data, width, causal)
        seen = np.isfinite(smooth)
        assert smooth[seen] == pytest.approx(rate, rel=1e-5)
        assert seen.sum() >= data.size - 1

    def test_negative_width(self):
        with pytest.raises(ValueError, match="width_bins"):
            gaussian_smooth(np.zeros((4, 1)), -1)


class TestDecoding:
    def test_matches_the_benchmarks_decoder(self):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(103, 6)) @ np.diag([3, 1, 0.1, 0.05, 0.01, 2]) + 4
        y = x[:, :2] @ rng.normal(size=(2, 2)) + rng.normal(size=(103, 2))
        search = GridSearchCV(Ridge(), {"alpha": np.logspace(-4, 0, 9)}).fit(x[:70], y[:70])
        ours = ridge_r2(x[:70], y[:70], x[70:], y[70:], alphas=NLB_ALPHAS)
        assert ours.shape == (2,)
        assert ours.mean() == pytest.approx(search.score(x[70:], y[70:]), rel=1e-8)
        fixed = Ridge(alpha=1e-2).fit(x[:70], y[:70])
        ours = ridge_r2(x[:70], y[:70], x[70:], y[70:], alphas=1e-2)
        assert ours.mean() == pytest.approx(fixed.score(x[70:], y[70:]), rel=1e-8)

    def test_ridge_shrinks_as_computed_by_hand(self):
        # Centred x = (-1, 1), y = (-2, 2): weight = 4 / (2 + alpha).
        [(weight, bias)] = fit_linear([[0.0], [2.0]], [[1.0], [5.0]], alphas=(2.0,))
        assert weight.item() == pytest.approx(1.0)
        assert bias.item() == pytest.approx(2.0)

    def test_duplicate_and_constant_features(self):
        x = np.arange(6.0)[:, None] * np.array([1.0, 1.0, 0.0])
        [(weight, bias)] = fit_linear(x, 2 * x[:, :1] + 1)
        assert weight[:, 0] == pytest.approx([1.0, 1.0, 0.0])
        assert bias.item() == pytest.approx(1.0)

    def test_trials_are_flattened_and_nan_left_out(self):
        x = np.random.default_rng(1).normal(size=(5, 4, 3))
        y = x[..., :1] * 2 + 1
        y[2, 1] = np.nan
        assert ridge_r2(x[:3], y[:3], x[3:], y[3:], alphas=0.0) == pytest.approx([1.0])

    def test_errors(self):
        with pytest.raises(ValueError, match="nothing to fit"):
            fit_linear([[np.nan]], [[1.0]])
        with pytest.raises(ValueError, match="agree in samples"):
            fit_linear([[1.0], [2.0]], [[1.0]])
        with pytest.raises(ValueError, match="5 folds need"):
            ridge_r2([[1.0]], [[1.0]], [[1.0]], [[1.0]])

    def test_linear_map(self):
        rng = np.random.default_rng(2)
        truth = rng.normal(size=(8, 10, 3))
        latents = truth @ rng.normal(size=(3, 5)) + 2
        assert linear_map_r2(latents, truth) == pytest.approx(1.0)
        assert linear_map_r2(latents[4:], truth[4:], (latents[:4], truth[:4])) == pytest.approx(1.0)
        assert linear_map_r2(rng.normal(size=(80, 1)), rng.normal(size=(80, 1))) < 0.2


class TestPsth:
    def test_hand_computed(self):
        # Averages of trials (0, 2) and (1,) are (2, 3) and (1, 5); PSTHs (2, 4) and (1, 5) have
        # mean 3 and spread 1 + 1 + 4 + 4 = 10, the only error is 1: R2 = 0.9.
        rates = np.array([[1.0, 2.0], [1.0, 5.0], [3.0, 4.0]])[..., None]
        psth = np.array([[2.0, 4.0], [1.0, 5.0], [9.0, 9.0]])[..., None]
        assert psth_r2(rates, psth, [[0, 2], [1], []]) == pytest.approx(0.9)

    def test_mean_over_neurons_and_nan_bins(self):
        rates = np.array([[[1.0, 0.0], [2.0, 1.0], [50.0, 50.0]]])
        psth = np.array([[[1.0, 0.0], [2.0, 2.0], [np.nan, np.nan]]])
        # First neuron exact; second: error 1, spread 2.
        assert psth_r2(rates, psth, [[0]]) == pytest.approx(0.75)

    def test_jitter_shifts_a_late_window_back(self):
        course = np.array([1.0, 4.0, 2.0, 8.0])
        early = np.array([0.0, 1.0, 4.0, 2.0])
        rates = np.stack([course, [4.0, 2.0, 8.0, 0.0], early])[..., None]
        psth = course[None, :, None]
        assert psth_r2(rates, psth, [[0, 1, 2]], jitter=[0, 1, -1]) == pytest.approx(1.0)
        assert psth_r2(rates, psth, [[0, 1, 2]]) < 1

    def test_no_trial_of_any_condition_is_nan(self):
        assert math.isnan(psth_r2(np.zeros((1, 2, 1)), np.zeros((1, 2, 1)), [[]]))


class TestSpeedTpCorrelation:
    def test_hand_computed(self):
        # Speeds in the window: 1, 2, 4 in condition A, 3, 1 in B; t_p 3, 2, 1 and 1, 2.
        speed = np.array([1.0, 2.0, 4.0, 3.0, 1.0])
        rates = speed[:, None, None] * np.arange(4)[None, :, None] * np.array([0.6, 0.8])
        rates[:, 0] = 99.0
        mask = np.tile([False, True, True, True], (5, 1))
        conditions = [[0, 0, 0]] * 3 + [[1, 0, 0]] * 2
        behavior = np.column_stack([conditions, np.zeros(5), [3.0, 2.0, 1.0, 1.0, 2.0]])
        within_a = np.corrcoef([1, 2, 4], [3, 2, 1])[0, 1]
        expected = (within_a - 1) / 2
        assert within_a == pytest.approx(-3 / math.sqrt(2 * 42 / 9), rel=1e-9)
        assert speed_tp_correlation(rates, behavior, mask) == pytest.approx(expected)

    def test_trials_without_behaviour_or_window_are_left_out(self):
        rates = np.arange(12.0).reshape(3, 4, 1) ** 2
        behavior = np.array([[0, 0, 0, 2.0], [0, 0, 0, 1.0], [0, 0, 0, np.nan]])
        mask = np.ones((3, 4), dtype=bool)
        assert speed_tp_correlation(rates, behavior, mask) == pytest.approx(-1.0)
        mask[0] = False
        assert math.isnan(speed_tp_correlation(rates, behavior, mask))
