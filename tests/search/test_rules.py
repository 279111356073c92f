"""Rules of a search, and its methods: who copies, who stops, and that a resume repeats it."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lfads_torch.errors import ConfigError
from lfads_torch.search.rules import (
    Patience,
    PopulationBased,
    RandomSearch,
    Rung,
    Schedule,
    build_method,
    copied_values,
    halving_rungs,
    start_values,
    successive_halving,
    tournament,
)
from lfads_torch.search.settings import SearchSettings
from lfads_torch.search.space import HyperParam

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
        members = np.arange(len(scores))
        finite = np.isfinite(scores)
        lost = parents != members
        assert parents.shape == members.shape
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


# ---- methods -------------------------------------------------------------------------------------

SPACE = {
    "lr_init": HyperParam(1e-4, 1e-2, init=1e-3),
    "kl_ic_scale": HyperParam(1e-6, 1e-3, explore_wt=0.8),
}


def population(max_epochs: int = 100, burn_in: int = 5, **settings: Any) -> PopulationBased:
    chosen = SearchSettings(**{"num_workers": 6, "perturbation_interval": 10, **settings})
    method = build_method(chosen, SPACE, 0, burn_in, max_epochs)
    assert isinstance(method, PopulationBased)
    return method


def random_search(max_epochs: int = 100, burn_in: int = 0, **settings: Any) -> RandomSearch:
    chosen = SearchSettings(**{"method": "random", "num_samples": 6, **settings})
    method = build_method(chosen, SPACE, 0, burn_in, max_epochs)
    assert isinstance(method, RandomSearch)
    return method


def scores(*values: float) -> np.ndarray:
    return np.array(values, dtype=float)


ALL = np.arange(6)
FALLING = scores(0.6, 0.5, 0.4, 0.3, 0.2, 0.1)


def test_a_population_exchanges_at_the_ends_of_generations_alone() -> None:
    method = population()
    plans = {n: method.judge(n, ALL, FALLING / n) for n in range(1, 40)}
    at = [n for n, plan in plans.items() if plan.parents]
    assert at == [15, 25, 35]
    assert [method.generation(n) for n in (0, 14, 15, 24, 25)] == [0, 0, 1, 1, 2]


def test_a_population_starts_at_init_and_random_search_never_does() -> None:
    first = start_values(population(), 6)
    assert set(first["lr_init"]) == {1e-3}
    assert len(set(first["kl_ic_scale"])) == 6
    drawn = start_values(random_search(), 6)
    assert len(set(drawn["lr_init"])) == 6


def test_a_population_ends_when_it_no_longer_improves() -> None:
    method = population(patience=2, min_improvement_ratio=0.01)
    ended = [method.judge(n, ALL, FALLING).ended for n in range(1, 100)]
    # Generations end at 15, 25, 35: the third one is two after the first.
    assert [bool(text) for text in ended].index(True) + 1 == 35
    assert "0.01" in next(filter(None, ended))


def test_a_population_ends_after_so_many_generations() -> None:
    method = population(max_generations=2)
    assert not method.judge(15, ALL, FALLING).ended
    assert method.judge(25, ALL, FALLING / 2).ended == "2 generations are done"


def test_nobody_copies_at_the_last_epoch() -> None:
    method = population(max_epochs=25)
    assert method.judge(15, ALL, FALLING).parents
    assert method.judge(25, ALL, FALLING / 2).parents == {}


@given(seed=st.integers(0, 2**31), n_epochs=st.sampled_from([15, 25, 35]))
def test_decisions_depend_on_seed_scores_and_state_alone(seed: int, n_epochs: int) -> None:
    first = population()
    first.seed = seed
    first.judge(15, ALL, FALLING)
    other = population()
    other.seed = seed
    other.load_state_dict(first.state_dict())
    one, two = (m.judge(n_epochs, ALL, FALLING / n_epochs) for m in (first, other))
    assert one.ended == two.ended
    np.testing.assert_array_equal(one.parents, two.parents)
    moved = [copied_values(m, n_epochs, start_values(m, 6), ALL[:3]) for m in (first, other)]
    for name in SPACE:
        np.testing.assert_array_equal(moved[0][name], moved[1][name])


def test_a_member_of_a_random_search_stops_when_it_has_not_improved_for_long() -> None:
    method = random_search(stop_after=3, burn_in=2)
    for n in range(1, 5):
        plan = method.judge(n, ALL, np.full(6, 1.0))
        assert not plan.finished
    # Epoch 3 was the first that counted; member 2 gets better.
    values = np.full(6, 1.0)
    values[2] = 0.5
    assert not method.judge(5, ALL, values).finished
    assert method.judge(6, ALL, values).finished == (0, 1, 3, 4, 5)
    left = np.array([2])
    assert not method.judge(7, left, scores(0.6)).ended
    last = method.judge(8, left, scores(0.6))
    assert (last.finished, last.ended) == ((2,), "no member trains any more")


def test_a_member_that_diverged_leaves_a_random_search() -> None:
    plan = random_search().judge(1, ALL, scores(1, np.inf, 1, 1, np.inf, 1))
    assert plan.dropped == (1, 4)
    assert not plan.finished
    everybody = random_search().judge(1, ALL, np.full(6, np.inf))
    assert everybody.dropped == tuple(range(6))
    assert not everybody.ended


def test_halving_keeps_the_best_at_each_cut() -> None:
    method = random_search(method="halving", halving_factor=2, perturbation_interval=5, burn_in=5)
    assert [(rung.epochs, rung.n_members) for rung in method.rungs] == [(10, 3), (20, 1)]
    assert [n for n in range(1, 50) if method.ends(n)] == [10, 20]
    assert not method.judge(9, ALL, FALLING).dropped
    assert method.judge(10, ALL, FALLING).dropped == (0, 1, 2)
    assert method.judge(20, np.array([3, 4, 5]), scores(0.3, 0.2, 0.4)).dropped == (3, 5)
    assert [method.generation(n) for n in (0, 9, 10, 20)] == [0, 0, 1, 2]


def test_random_search_goes_on_from_its_state() -> None:
    method = random_search(stop_after=3)
    for n in range(1, 4):
        method.judge(n, ALL, FALLING)
    other = random_search(stop_after=3)
    other.load_state_dict(method.state_dict())
    assert other.judge(4, ALL, FALLING) == method.judge(4, ALL, FALLING)


@pytest.mark.parametrize("stop_after", [None, 1])
def test_without_stopping_everybody_trains_on(stop_after: int | None) -> None:
    method = random_search(stop_after=stop_after)
    n_finished = sum(len(method.judge(n, ALL, FALLING).finished) for n in range(1, 3))
    assert n_finished == (0 if stop_after is None else 6)
