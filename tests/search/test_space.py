"""Hyper-parameters: how one is drawn and moved; spaces: how they are read, checked and moved."""

import math
import pickle

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from lfads_torch.errors import ConfigError
from lfads_torch.search.space import (
    DEFAULT_SPACE,
    MAX_TRIES,
    HyperParam,
    check_space,
    default_space,
    first_values,
    parse_space,
    perturbed,
)

POSITIVE = st.floats(1e-6, 1e6)
WIDTH = st.floats(0.001, 3.0)
CD = "train_aug_stack.transforms.0.cd_rate"
SCALARS = ["dropout_rate", "lr_init", "weight_decay", "l2_ic_enc_scale", "l2_ci_enc_scale"]
SCALARS += ["l2_gen_scale", "l2_con_scale", "kl_ic_scale", "kl_co_scale"]
TUNABLES = [*SCALARS, CD]


def log_factors(hp, value=1.0, n=4000, seed=0):
    rng = np.random.default_rng(seed)
    return np.log([hp.perturb(value, rng) / value for _ in range(n)])


class Draws:
    """A generator that gives the numbers it was made with, and counts."""

    def __init__(self, ups, share=1.0):
        self.ups, self.n, self.share = list(ups), 0, share

    def uniform(self, low, high):
        return low + self.share * (high - low)

    def random(self):
        self.n += 1
        return 0.0 if self.ups[min(self.n - 1, len(self.ups) - 1)] else 0.9


class TestSample:
    @given(POSITIVE, st.floats(1.0, 1e4), st.integers(0, 99))
    def test_stays_within_limits(self, low, ratio, seed):
        rng = np.random.default_rng(seed)
        for sample_fn in ("loguniform", "uniform"):
            hp = HyperParam(low, low * ratio, sample_fn=sample_fn)
            assert hp.min_samp <= hp.sample(rng) <= hp.max_samp

    def test_distributions(self):
        rng = np.random.default_rng(0)
        logs = np.log10([HyperParam(1e-5, 1e-1).sample(rng) for _ in range(4000)])
        plain = [HyperParam(-2, 2, sample_fn="uniform").sample(rng) for _ in range(4000)]
        # Uniform on a span of 4: standard deviation 4 / sqrt(12), of the mean of 4000: 0.018.
        for values, centre in ((logs, -3.0), (plain, 0.0)):
            assert np.mean(values) == pytest.approx(centre, abs=0.08)
            assert np.std(values) == pytest.approx(4 / math.sqrt(12), rel=0.04)
            assert np.mean(np.array(values) < centre - 1) == pytest.approx(0.25, abs=0.03)

    def test_whole_numbers_include_both_limits(self):
        rng = np.random.default_rng(0)
        for sample_fn in ("randint", "lograndint"):
            drawn = [HyperParam(1, 4, sample_fn=sample_fn).sample(rng) for _ in range(400)]
            assert set(drawn) == {1.0, 2.0, 3.0, 4.0}
        # 1 to 4 in log space: [1, 2) is ln 2 / ln 5 of it.
        hp = HyperParam(1, 4, sample_fn="lograndint")
        share = np.mean([hp.sample(rng) == 1 for _ in range(4000)])
        assert share == pytest.approx(math.log(2) / math.log(5), abs=0.03)

    def test_first_is_init_where_it_is_given(self):
        rng = np.random.default_rng(0)
        assert HyperParam(1e-5, 5e-3, init=4e-3).first(rng) == 4e-3
        assert 1e-5 <= HyperParam(1e-5, 5e-3).first(rng) <= 5e-3
        assert HyperParam(0.2, 0.2).first(rng) == pytest.approx(0.2)

    def test_the_generator_alone_decides(self):
        hp = HyperParam(1e-5, 5e-3)
        one, two = (
            [hp.perturb(hp.sample(rng), rng) for _ in range(5)]
            for rng in (np.random.default_rng(3), np.random.default_rng(3))
        )
        assert one == two


class TestPerturb:
    @given(WIDTH, POSITIVE, st.integers(0, 99))
    def test_size_of_a_step(self, width, value, seed):
        hp = HyperParam(1, 2, explore_wt=width)
        step = abs(math.log(hp.perturb(value, np.random.default_rng(seed)) / value))
        smallest, largest = math.log1p(0.002 * width), math.log1p(width)
        assert smallest - 1e-9 <= step <= largest + 1e-9

    def test_smallest_and_largest_step(self):
        hp = HyperParam(1, 2, explore_wt=0.5)
        assert hp.perturb(1.0, Draws([True], share=0.0)) == pytest.approx(1.001, rel=1e-12)
        assert hp.perturb(1.0, Draws([False], share=0.0)) == pytest.approx(1 / 1.001, rel=1e-12)
        assert hp.perturb(1.0, Draws([True])) == pytest.approx(1.5)
        assert hp.perturb(1.0, Draws([False])) == pytest.approx(1 / 1.5)

    @pytest.mark.parametrize("width", [0.1, 0.3, 0.8])
    def test_symmetric_in_log_space(self, width):
        """No drift: the fault of factors 1 +- U, whose mean log is below zero."""
        steps = log_factors(HyperParam(1e-9, 1e9, explore_wt=width))
        largest = math.log1p(width)
        error = np.std(steps) / math.sqrt(len(steps))
        assert abs(steps.mean()) < 3.5 * error
        assert np.mean(steps > 0) == pytest.approx(0.5, abs=0.03)
        # Up and down steps have one distribution: uniform in log space.
        up, down = np.sort(steps[steps > 0]), np.sort(-steps[steps < 0])
        quantiles = np.linspace(0.05, 0.95, 7)
        expected = math.log1p(0.002 * width) * (1 - quantiles) + largest * quantiles
        assert np.quantile(up, quantiles) == pytest.approx(expected, abs=0.05 * largest)
        assert np.quantile(down, quantiles) == pytest.approx(expected, abs=0.05 * largest)

    def test_a_walk_without_selection_goes_nowhere(self):
        hp, rng = HyperParam(1e-4, 1.0, explore_wt=0.8), np.random.default_rng(0)
        ends = []
        for _ in range(300):
            value = 1e-2
            for _ in range(20):
                value = hp.perturb(value, rng)
            ends.append(math.log(value / 1e-2))
        assert abs(np.mean(ends)) < 3.5 * np.std(ends) / math.sqrt(len(ends))

    @given(st.floats(0.01, 0.7), st.integers(0, 99))
    @example(0.7, 0)
    @example(0.01, 1)
    def test_limits_hold_where_enforced(self, value, seed):
        hp = HyperParam(0.01, 0.7, sample_fn="uniform", explore_wt=0.3, enforce_limits=True)
        assert 0.01 <= hp.perturb(value, np.random.default_rng(seed)) <= 0.7

    def test_limits_do_not_hold_otherwise(self):
        steps = log_factors(HyperParam(0.9, 1.1, explore_wt=0.8))
        assert np.exp(steps).min() < 0.9 and np.exp(steps).max() > 1.1

    def test_values_beyond_limits_are_drawn_again(self):
        hp = HyperParam(0.1, 1.0, explore_wt=0.5, enforce_limits=True)
        rng = Draws([True, True, False])
        assert hp.perturb(0.9, rng) == pytest.approx(0.6)
        assert rng.n == 3

    @pytest.mark.parametrize(("value", "end"), [(50.0, 1.0), (1e-4, 0.1)])
    def test_clipped_after_so_many_draws(self, value, end):
        hp = HyperParam(0.1, 1.0, explore_wt=0.5, enforce_limits=True)
        rng = Draws([True])
        assert hp.perturb(value, rng) == end
        assert rng.n == MAX_TRIES == 99

    def test_at_a_limit_it_moves_inwards(self):
        hp = HyperParam(0.1, 1.0, explore_wt=0.2, enforce_limits=True)
        rng = np.random.default_rng(0)
        assert all(1 / 1.2 <= hp.perturb(1.0, rng) < 1.0 for _ in range(50))

    def test_without_width_nothing_moves(self):
        assert (
            HyperParam(0, 1, sample_fn="uniform", explore_wt=0).perturb(
                0.3, np.random.default_rng(0)
            )
            == 0.3
        )

    def test_negative_values_keep_their_sign(self):
        hp = HyperParam(-2, -1, sample_fn="uniform")
        assert all(hp.perturb(-1.5, np.random.default_rng(s)) < 0 for s in range(20))

    def test_whole_numbers_stay_whole_and_do_not_drift_by_rounding(self):
        hp, rng = HyperParam(1, 1000, sample_fn="randint", explore_wt=0.2), np.random.default_rng(0)
        moved = np.array([hp.perturb(2.0, rng) for _ in range(4000)])
        assert set(moved) == {1.0, 2.0, 3.0}
        # E exp(s m) with m uniform between a and b: (sinh b - sinh a) / (b - a).
        low, high = math.log1p(0.0004), math.log1p(0.2)
        mean = 2 * (math.sinh(high) - math.sinh(low)) / (high - low)
        assert moved.mean() == pytest.approx(mean, abs=0.03)
        small = [HyperParam(1, 2, None, "randint", 0.8).perturb(1.0, rng) for _ in range(200)]
        assert set(small) == {1.0, 2.0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_samp": 2, "max_samp": 1}, "wrong way round: min_samp is 2, max_samp 1"),
        ({"min_samp": 0, "max_samp": 1}, "min_samp is 0, which loguniform cannot draw.*uniform"),
        ({"min_samp": 0, "max_samp": 3, "sample_fn": "lograndint"}, "sample_fn: randint"),
        ({"min_samp": 1, "max_samp": 2, "sample_fn": "logunifrom"}, "did you mean loguniform"),
        ({"min_samp": 1, "max_samp": 2, "sample_fn": ["uniform"]}, "sample_fn is .*mean uniform"),
        ({"min_samp": 1, "max_samp": 2.5, "sample_fn": "randint"}, "whole numbers.* 1 and 2.5"),
        ({"min_samp": math.nan, "max_samp": 1}, "min_samp is nan; legal are finite numbers"),
        ({"min_samp": 1, "max_samp": math.inf}, "max_samp is inf"),
        ({"min_samp": "tiny", "max_samp": 1}, "min_samp is 'tiny'"),
        ({"min_samp": True, "max_samp": 1}, "min_samp is True"),
        ({"min_samp": None, "max_samp": 1}, "min_samp is None"),
        ({"min_samp": 1, "max_samp": 2, "explore_wt": -0.1}, "explore_wt is -0.1"),
        ({"min_samp": 1, "max_samp": 2, "enforce_limits": "yes"}, "enforce_limits is 'yes'"),
        ({"min_samp": 0, "max_samp": 1, "init": 0, "sample_fn": "uniform"}, "no factor can change"),
        ({"min_samp": 1, "max_samp": 2, "init": 3, "enforce_limits": True}, "init is 3, outside"),
    ],
)
def test_what_a_hyper_parameter_refuses(arguments, message):
    with pytest.raises(ConfigError, match=message):
        HyperParam(**arguments)


def test_what_a_hyper_parameter_takes():
    assert HyperParam("1e-5", "5e-3").min_samp == 1e-5, "YAML reads 1e-5 as text"
    assert HyperParam(1, 2, init=3).init == 3, "init may lie outside limits that are not enforced"
    hp = HyperParam(1e-5, 5e-3, 4e-3, "loguniform", 0.3, True)
    assert pickle.loads(pickle.dumps(hp)) == hp
    assert HyperParam(1, 2) == HyperParam(1, 2, None, "loguniform", 0.2, False)


class TestParse:
    def test_all_ways_to_write_it(self):
        hp = HyperParam(1e-5, 5e-3, init=4e-3, enforce_limits=True)
        arguments = {"min_samp": "1e-5", "max_samp": 5e-3, "init": 4e-3, "enforce_limits": True}
        target = {"_target_": "lfads_torch.extensions.tune.HyperParam", **arguments}
        for mapping in (
            {"model.lr_init": hp},
            {"lr_init": arguments},
            {"model.lr_init": target},
            {"model": {"lr_init": target}},
            {"model": {"lr_init": hp}},
            OmegaConf.create({"model": {"lr_init": target}}),
        ):
            assert parse_space(mapping) == {"lr_init": hp}

    def test_nested_path_of_an_augmentation(self):
        entry = {"min_samp": 0.01, "max_samp": 0.7}
        nested = {"model": {"train_aug_stack": {"transforms": {0: {"cd_rate": entry}}}}}
        assert list(parse_space(nested)) == list(parse_space({f"model.{CD}": entry})) == [CD]

    @pytest.mark.parametrize(
        ("mapping", "message"),
        [
            ({}, "search space is empty"),
            ({"model.lr_init": 1e-3}, "model.lr_init in the search space is 0.001; give a mapping"),
            ({"model.lr_init": None}, "model.lr_init in the search space is None"),
            ({"lr_init": {"min_samp": 1}}, "lr_init in the search space lacks max_samp"),
            ({"lr_init": {}}, "lacks min_samp and max_samp"),
            (
                {"lr_init": {"min_samp": 1, "max_smap": 2}},
                "lr_init.max_smap in the search space: did you mean max_samp",
            ),
            (
                {"lr_init": {"min_samp": 2, "max_samp": 1}},
                "lr_init in the search space: limits the wrong way round",
            ),
            (
                {"lr_init": {"_target_": "ray.tune.uniform", "min_samp": 1, "max_samp": 2}},
                "lr_init._target_ in the search space is ray.tune.uniform; legal: lfads_torch",
            ),
            (
                {"lr_init": HyperParam(1, 2), "model.lr_init": HyperParam(1, 2)},
                "names lr_init twice",
            ),
        ],
    )
    def test_what_is_refused(self, mapping, message):
        with pytest.raises(ConfigError, match=message):
            parse_space(mapping)


class TestCheck:
    def test_the_default_space_fits_the_model(self):
        check_space(DEFAULT_SPACE, TUNABLES)

    @pytest.mark.parametrize(
        ("space", "message"),
        [
            ({"lr_inti": HyperParam(1, 2)}, "model.lr_inti, which is no tunable.*mean lr_init"),
            ({"gen_dim": HyperParam(1, 2)}, "model.gen_dim, which is no tunable.*sizes"),
            ({CD.replace("0", "1"): HyperParam(0.1, 0.5)}, "did you mean .*transforms.0.cd_rate"),
            (
                {"dropout_rate": HyperParam(0.1, 1, enforce_limits=True)},
                "dropout_rate is a probability, but its limits are 0.1 and 1",
            ),
            ({CD: HyperParam(0.1, 0.5)}, "cd_rate is a probability.*enforce_limits: true"),
            (
                {"kl_ic_scale": HyperParam(-1, 1, sample_fn="uniform")},
                "min_samp of model.kl_ic_scale is -1",
            ),
        ],
    )
    def test_what_is_refused(self, space, message):
        with pytest.raises(ConfigError, match=message):
            check_space(space, TUNABLES)

    def test_ones_own_numbers_may_be_anything(self):
        mine = "train_aug_stack.transforms.1.my_scale"
        check_space({mine: HyperParam(-1, 1, sample_fn="uniform")}, [mine])
        fixed = HyperParam(0.1, 0.5, explore_wt=0)
        check_space({CD: fixed}, [CD])


class TestDefaultSpace:
    def test_is_that_of_autolfads(self):
        assert list(default_space(TUNABLES)) == list(DEFAULT_SPACE)
        assert DEFAULT_SPACE["lr_init"] == HyperParam(1e-5, 5e-3, 4e-3, "loguniform", 0.3, True)
        assert DEFAULT_SPACE["dropout_rate"] == HyperParam(0, 0.6, None, "uniform", 0.3, True)
        assert DEFAULT_SPACE[CD] == HyperParam(0.01, 0.7, 0.5, "uniform", 0.3, True)
        assert DEFAULT_SPACE["kl_co_scale"] == HyperParam(1e-6, 1e-4, explore_wt=0.8)
        assert DEFAULT_SPACE["kl_ic_scale"] == HyperParam(1e-6, 1e-3, explore_wt=0.8)
        assert DEFAULT_SPACE["l2_gen_scale"] == DEFAULT_SPACE["l2_con_scale"]
        assert DEFAULT_SPACE["l2_con_scale"] == HyperParam(1e-4, 1.0, explore_wt=0.8)

    def test_follows_the_model(self):
        second = "train_aug_stack.transforms.1.cd_rate"
        space = default_space([*SCALARS, second, second.replace("1", "2")])
        assert space[second] == DEFAULT_SPACE[CD]
        assert len(space) == len(DEFAULT_SPACE)
        assert CD not in default_space(SCALARS)
        assert not default_space([]) and not default_space([CD.replace("cd_rate", "lr_init")])
        check_space(space, [*SCALARS, second])


class TestValues:
    def test_first_values(self):
        rng = np.random.default_rng(0)
        values = first_values(DEFAULT_SPACE, 5, rng)
        assert {name: column.shape for name, column in values.items()} == {
            name: (5,) for name in DEFAULT_SPACE
        }
        assert all(column.dtype == np.float64 for column in values.values())
        assert (values["lr_init"] == 4e-3).all()
        assert len(np.unique(values["kl_co_scale"])) == 5
        drawn = first_values(DEFAULT_SPACE, 5, np.random.default_rng(0), use_init=False)
        assert len(np.unique(drawn["lr_init"])) == 5
        again = first_values(DEFAULT_SPACE, 5, np.random.default_rng(0), use_init=False)
        assert all((drawn[name] == again[name]).all() for name in drawn)

    def test_perturbed_moves_those_members_and_those_values_alone(self):
        rng = np.random.default_rng(0)
        values = first_values(DEFAULT_SPACE, 6, rng)
        values["weight_decay"] = np.arange(6.0)
        before = {name: column.copy() for name, column in values.items()}
        moved = perturbed(DEFAULT_SPACE, values, [1, 4], rng)
        for name, column in moved.items():
            changed = np.flatnonzero(column != before[name])
            assert list(changed) == ([] if name == "weight_decay" else [1, 4]), name
            assert (values[name] == before[name]).all(), "given arrays stay as they are"
        same = perturbed(DEFAULT_SPACE, values, [], rng)
        assert all((same[name] == before[name]).all() for name in same)
