import json
import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lfads_torch.errors import ConfigError
from lfads_torch.search.rules import (
    Patience,
    Rung,
    Schedule,
    halving_rungs,
    successive_halving,
    tournament,
)

SCORE = st.one_of(st.floats(-1e6, 1e6), st.sampled_from([math.nan, math.inf, -math.inf, 0.5]))
SCORES = st.lists(SCORE, max_size=30)


class TestTournament:
    @given(SCORES, st.integers(0, 999))
    @example([], 0)
    @example([1.0], 0)
    @example([math.nan], 0)
    @example([math.nan, 1.0, math.nan], 0)
    @example([math.nan] * 5, 0)
    def test_rules(self, scores, seed):
        scores = np.array(scores)
        parents = tournament(scores, np.random.default_rng(seed))
        own = np.arange(len(scores))
        finite = np.isfinite(scores)
        lost = parents != own
        assert parents.shape == own.shape
        if not finite.any():
            assert not lost.any(), "where nobody is finite, nobody is copied"
            return
        assert not lost[finite & (scores == scores[finite].min())].any(), "the best never loses"
        assert lost[~finite].all(), "what is not finite always loses"
        assert finite[parents].all()
        assert (parents[parents] == parents).all(), "nobody copies from a loser"
        better = finite & lost
        assert (scores[parents[better]] < scores[better]).all()

    @given(st.lists(st.floats(0, 1), unique=True, max_size=30), st.integers(0, 999))
    def test_half_of_them_lose_and_with_an_odd_number_one_sits_out(self, scores, seed):
        parents = tournament(scores, np.random.default_rng(seed))
        lost = parents != np.arange(len(scores))
        assert lost.sum() == len(scores) // 2
        assert len(np.unique(parents[lost])) == lost.sum(), "a winner is copied once"

    def test_of_equals_neither_loses(self):
        assert (tournament(np.ones(6), np.random.default_rng(0)) == np.arange(6)).all()

    def test_depends_on_the_generator_alone(self):
        scores = np.random.default_rng(0).normal(size=20)
        one, two = (tournament(scores, np.random.default_rng(7)) for _ in range(2))
        assert (one == two).all()
        others = [tournament(scores, np.random.default_rng(s)) for s in range(5)]
        assert not all((other == one).all() for other in others)

    def test_pairs_are_drawn_evenly(self):
        """The second of four loses to the best alone: in a third of the pairings."""
        rng = np.random.default_rng(0)
        parents = np.array([tournament([1.0, 2.0, 3.0, 4.0], rng) for _ in range(3000)])
        assert np.mean(parents[:, 1] == 0) == pytest.approx(1 / 3, abs=0.03)
        assert np.mean(parents[:, 2] == 0) == pytest.approx(1 / 3, abs=0.03)
        assert np.mean(parents[:, 2] == 1) == pytest.approx(1 / 3, abs=0.03)
        for winner in range(3):
            assert np.mean(parents[:, 3] == winner) == pytest.approx(1 / 3, abs=0.03)

    def test_those_without_a_finite_rival_copy_any_survivor(self):
        scores = np.array([1.0, 2.0, math.inf] + [math.nan] * 40)
        rng = np.random.default_rng(0)
        parents = np.array([tournament(scores, rng) for _ in range(50)])
        both = parents[parents[:, 1] == 1]
        assert len(both) > 30
        assert np.mean(both[:, 2:] == 0) == pytest.approx(0.5, abs=0.05)
        assert np.mean(both[:, 2:] == 1) == pytest.approx(0.5, abs=0.05)

    def test_the_best_score_never_gets_worse(self):
        rng = np.random.default_rng(0)
        scores = rng.normal(size=7)
        for _ in range(50):
            scores[rng.integers(7)] = rng.choice([np.nan, 3.0, scores[0]])
            best = np.nanmin(scores)
            scores = scores[tournament(scores, rng)]
            assert np.nanmin(scores) == best


class TestSchedule:
    def test_first_generation_ends_after_ramps_and_an_interval(self):
        schedule = Schedule(80, 25, 200)
        assert [n for n in range(201) if schedule.ends(n)] == [105, 130, 155, 180]
        assert [schedule.generation(e) for e in (0, 80, 104, 105, 129, 130)] == [0, 0, 0, 1, 1, 2]

    @given(st.integers(0, 50), st.integers(1, 30))
    def test_generations_change_where_they_end(self, burn_in, interval):
        schedule = Schedule(burn_in, interval, 150)
        for n in range(1, 150):
            is_new = schedule.generation(n) != schedule.generation(n - 1)
            assert is_new == schedule.ends(n)

    def test_nobody_copies_at_the_last_epoch(self):
        schedule = Schedule(0, 5, 20)
        assert [n for n in range(30) if schedule.exchanges(n)] == [5, 10, 15]
        assert schedule.ends(20)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("burn_in_period", -1),
            ("perturbation_interval", 0),
            ("perturbation_interval", 2.5),
            ("max_epochs", 0),
            ("max_epochs", True),
        ],
    )
    def test_what_is_refused(self, name, value):
        with pytest.raises(ConfigError, match=f"{name} is {value}; legal are whole numbers"):
            Schedule(**{name: value})


class TestPatience:
    def run(self, bests, **kwargs):
        rule = Patience(**kwargs)
        return [rule.update([best + 1, best]) for best in bests]

    def test_stops_where_improvement_over_its_generations_is_small(self):
        # Improvement over 2 generations, relative: 0.1, 0.01 / 0.95, 0.0 / 0.9.
        bests = [1.0, 0.95, 0.9, 0.94, 0.9]
        assert self.run(bests, patience=2, min_ratio=0.01) == [False] * 3 + [False, True]

    def test_the_limit_itself_stops(self):
        assert self.run([1.0, 0.75], patience=1, min_ratio=0.25) == [False, True]
        assert self.run([1.0, 0.74], patience=1, min_ratio=0.25) == [False, False]

    def test_by_default_four_generations_and_five_in_ten_thousand(self):
        assert self.run([1.0, 0.9999, 0.9998, 0.9997, 0.9995]) == [False] * 4 + [True]
        assert self.run([1.0, 0.9999, 0.9998, 0.9997, 0.9994]) == [False] * 5

    def test_only_a_new_best_is_an_improvement(self):
        assert self.run([1.0, 2.0, 1.5], patience=1) == [False, True, True]

    def test_relative_to_the_magnitude(self):
        assert self.run([-100.0, -100.4], patience=1, min_ratio=0.005) == [False, True]
        assert self.run([-100.0, -100.6], patience=1, min_ratio=0.005) == [False, False]
        assert self.run([0.0, 0.0], patience=1) == [False, True]
        assert self.run([0.0, -1.0], patience=1) == [False, False]

    def test_diverged_members_do_not_count(self):
        rule = Patience(patience=1, min_ratio=0.1)
        assert not rule.update([math.nan, math.inf])
        assert not rule.update([math.nan, 1.0]), "there was nothing to improve upon"
        assert not rule.update([-math.inf, 0.5, math.nan])
        assert rule.update([math.nan, math.nan]), "nobody got better"
        assert rule.best == [math.inf, 1.0, 0.5, 0.5]
        assert not Patience().update([])

    def test_goes_on_from_its_state(self):
        whole, first = Patience(patience=2), Patience(patience=2)
        scores = np.exp(-np.linspace(0, 3, 8))[:, None]
        decisions = [whole.update(row) for row in scores]
        before = [first.update(row) for row in scores[:4]]
        second = Patience(patience=2)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert before + [second.update(row) for row in scores[4:]] == decisions

    def test_two_rules_share_nothing(self):
        Patience().update([1.0])
        assert Patience().best == []

    def test_what_is_refused(self):
        with pytest.raises(ConfigError, match="patience is 0"):
            Patience(patience=0)
        with pytest.raises(ConfigError, match="ratio is nan"):
            Patience(min_ratio=math.nan)


class TestHalving:
    def test_rungs(self):
        assert halving_rungs(27, 100, 10) == [Rung(10, 9), Rung(30, 3), Rung(90, 1)]
        assert halving_rungs(60, 1000, 100, 2) == [
            Rung(100, 30),
            Rung(200, 15),
            Rung(400, 7),
            Rung(800, 3),
        ]
        assert halving_rungs(1, 100, 10) == []
        assert halving_rungs(20, 100, 100) == []

    @given(st.integers(1, 80), st.integers(1, 300), st.integers(1, 300), st.floats(1.01, 5))
    def test_any_rungs(self, n, one, two, factor):
        least, most = sorted((one, two))
        rungs = halving_rungs(n, most, least, factor)
        epochs, members = [r.epochs for r in rungs], [r.n_members for r in rungs]
        assert epochs == sorted(set(epochs)) and all(least <= e < most for e in epochs)
        assert members == sorted(set(members), reverse=True) and all(1 <= m < n for m in members)

    @pytest.mark.parametrize("bad", [(0, 9, 3, 3), (9, 9, 0, 3), (9, 3, 9, 3), (9, 9, 3, 1)])
    def test_what_is_refused(self, bad):
        with pytest.raises(ConfigError, match="successive halving of"):
            halving_rungs(*bad)

    @given(SCORES, st.integers(0, 40))
    def test_the_best_go_on(self, scores, n_keep):
        scores = np.array(scores)
        kept = successive_halving(scores, n_keep)
        finite = np.isfinite(scores)
        assert len(kept) == min(n_keep, finite.sum())
        assert (np.diff(kept) > 0).all() and finite[kept].all()
        left = np.setdiff1d(np.flatnonzero(finite), kept)
        if len(kept) and len(left):
            assert scores[kept].max() <= scores[left].min()

    def test_by_hand(self):
        scores = [3.0, math.nan, 1.0, 2.0, -math.inf]
        assert list(successive_halving(scores, 2)) == [2, 3]
        assert list(successive_halving([1.0, 1.0, 1.0], 2)) == [0, 1]
        assert list(successive_halving(scores, 0)) == []
