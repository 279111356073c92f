"""Regressions: against sklearn, by hand, and with what breaks them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import PoissonRegressor, Ridge
from sklearn.model_selection import GridSearchCV

from lfads_torch.errors import UserError
from lfads_torch.metrics.regression import poisson_regression, ridge


class TestRidge:
    def data(self, seed=0, n_trials=10):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(n_trials, 6, 5)) * [3, 1, 0.1, 0.05, 2] + 4
        y = x[..., :2] @ rng.normal(size=(2, 3)) + rng.normal(size=(n_trials, 6, 3)) * [0.1, 3, 30]
        return x, y

    def test_each_target_gets_the_penalty_that_sklearn_chooses(self):
        x, y = self.data()
        alphas = tuple(np.logspace(-2, 4, 7).tolist())
        choice = ridge(x, y, alphas)
        trials = np.repeat(np.arange(10), 6)
        # Contiguous folds of two trials each.
        folds = [(trials // 2 != k, trials // 2 == k) for k in range(5)]
        for target in range(3):
            search = GridSearchCV(Ridge(), {"alpha": alphas}, cv=folds)
            search.fit(x.reshape(60, 5), y[..., target].reshape(60))
            assert choice.alpha[target] == search.best_params_["alpha"]
            assert choice.score[target] == pytest.approx(search.best_score_, abs=1e-9)
            assert choice.fit(x)[..., target].ravel() == pytest.approx(
                search.predict(x.reshape(60, 5)), abs=1e-8
            )
        assert len(set(choice.alpha)) > 1

    def test_no_trial_is_in_two_folds(self):
        """Trials that repeat their own noise tempt a decoder whose folds part them."""
        rng = np.random.default_rng(1)
        label = rng.normal(size=(12, 1, 1))
        x = np.repeat(rng.normal(size=(12, 1, 40)), 8, axis=1)
        y = np.repeat(label, 8, axis=1)
        grouped = ridge(x, y, (1e-3, 1e3))
        assert grouped.score[0] < 0.1

    def test_missing_samples_and_trials_are_left_out(self):
        x, y = self.data(2)
        y[3] = np.nan
        y[4, 2] = np.nan
        x[5, 1, 0] = np.nan
        kept = np.isfinite(x).all(axis=2) & np.isfinite(y).all(axis=2)
        expected = Ridge(alpha=0.5).fit(x[kept], y[kept])
        got = ridge(x, y, (0.5,)).fit
        assert got(x[kept]) == pytest.approx(expected.predict(x[kept]), abs=1e-8)

    def test_one_trial_and_none(self):
        x, y = self.data(3, n_trials=1)
        choice = ridge(x, y, (0.1, 1.0))
        assert choice.alpha.tolist() == [0.1] * 3
        assert choice.score.tolist() == [0.0] * 3
        with pytest.raises(UserError, match="nothing to fit"):
            ridge(x, y * np.nan, (0.1,))
        with pytest.raises(UserError, match="must agree"):
            ridge(x, y[:, :3], (0.1,))


class TestPoissonRegression:
    @settings(max_examples=8, deadline=None)
    @given(
        seed=st.integers(0, 99),
        penalty=st.sampled_from([0.0, 1e-3, 0.1]),
        spread=st.sampled_from([1.0, 100.0]),
    )
    def test_as_sklearn_whatever_the_scales(self, seed, penalty, spread):
        rng = np.random.default_rng(seed)
        scale = np.geomspace(1 / spread, spread, 4)
        x = rng.normal(size=(300, 4)) * scale + 3
        y = rng.poisson(np.exp((x - 3) @ (rng.normal(size=(4, 3)) / scale[:, None]) * 0.3 - 1))
        got = poisson_regression(x, y, penalty, tolerance=1e-13)
        for channel in range(3):
            if y[:, channel].any():
                model = PoissonRegressor(
                    alpha=penalty, solver="newton-cholesky", tol=1e-10, max_iter=1000
                ).fit(x, y[:, channel])
                expected = np.log(model.predict(x))
                assert got(x)[:, channel] == pytest.approx(expected, abs=2e-4)

    def test_without_features_that_vary_it_is_the_mean(self):
        counts = np.array([[0.0, 4.0], [1.0, 4.0], [2.0, 4.0]])
        got = poisson_regression(np.ones((3, 2)), counts)
        assert np.exp(got(np.ones((3, 2)))) == pytest.approx(np.tile([1.0, 4.0], (3, 1)))

    def test_a_silent_channel_gets_half_a_spike(self):
        x = np.arange(10.0)[:, None]
        got = poisson_regression(x, np.zeros((10, 1)))
        assert np.exp(got(x)) == pytest.approx(np.full((10, 1), 0.05))

    def test_missing_counts_are_left_out_channel_by_channel(self):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(80, 2))
        y = rng.poisson(np.exp(x[:, :1] * 0.5)).astype(float) @ np.ones((1, 2))
        y[:30, 1] = np.nan
        got = poisson_regression(x, y, 1e-3, tolerance=1e-12)
        alone = poisson_regression(x[30:], y[30:, 1:], 1e-3, tolerance=1e-12)
        assert got(x)[:, 1] == pytest.approx(alone(x)[:, 0], abs=1e-4)

    def test_errors(self):
        with pytest.raises(UserError, match="nothing to fit"):
            poisson_regression([[np.nan]], [[1.0]])
        with pytest.raises(UserError, match="must agree"):
            poisson_regression([[1.0]], [[1.0], [2.0]])
