import numpy as np
import pytest
from omegaconf import OmegaConf

from lfads_torch.errors import ConfigError
from lfads_torch.search.space import (
    DEFAULT_SPACE,
    HyperParam,
    check_space,
    default_space,
    first_values,
    parse_space,
    perturbed,
)

CD = "train_aug_stack.transforms.0.cd_rate"
SCALARS = ["dropout_rate", "lr_init", "weight_decay", "l2_ic_enc_scale", "l2_ci_enc_scale"]
SCALARS += ["l2_gen_scale", "l2_con_scale", "kl_ic_scale", "kl_co_scale"]
TUNABLES = [*SCALARS, CD]


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
        found = default_space([*SCALARS, second, second.replace("1", "2")])
        assert found[second] == DEFAULT_SPACE[CD]
        assert len(found) == len(DEFAULT_SPACE)
        assert CD not in default_space(SCALARS)
        assert not default_space([]) and not default_space([CD.replace("cd_rate", "lr_init")])
        check_space(found, [*SCALARS, second])


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
