"""What a search does between epochs: generations, stops and cuts, and that a resume repeats it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lfads_torch.search.rules import PopulationBased, RandomSearch, build_method
from lfads_torch.search.settings import SearchSettings
from lfads_torch.search.space import HyperParam

SPACE = {
    "lr_init": HyperParam(1e-4, 1e-2, init=1e-3),
    "kl_ic_scale": HyperParam(1e-6, 1e-3, explore_wt=0.8),
}


def population(max_epochs: int = 100, burn_in: int = 5, **settings: Any) -> PopulationBased:
    own = SearchSettings(**{"num_workers": 6, "perturbation_interval": 10, **settings})
    method = build_method(own, SPACE, 0, burn_in, max_epochs)
    assert isinstance(method, PopulationBased)
    return method


def random_search(max_epochs: int = 100, burn_in: int = 0, **settings: Any) -> RandomSearch:
    own = SearchSettings(**{"method": "random", "num_samples": 6, **settings})
    method = build_method(own, SPACE, 0, burn_in, max_epochs)
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
    first = population().first_values(6)
    assert set(first["lr_init"]) == {1e-3}
    assert len(set(first["kl_ic_scale"])) == 6
    drawn = random_search().first_values(6)
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
    moved = [m.perturbed(n_epochs, m.first_values(6), ALL[:3]) for m in (first, other)]
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
