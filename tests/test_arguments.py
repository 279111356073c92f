"""The table of LFADS' numbers agrees with the signature, the buffers and the packaged YAML."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml

from lfads_torch.arguments import AUGMENTATION_NUMBERS, NUMBERS, TUNABLES, number_of, search_ranges
from lfads_torch.errors import ConfigError
from lfads_torch.model import LFADS
from lfads_torch.network import PARTS
from lfads_torch.search.space import parse_space

CONFIGS = Path(__file__).parents[1] / "lfads_torch" / "configs"
NOT_NUMBERS = {*PARTS, "variational", "recon_reduce_mean", "lr_scheduler", "kernel"}
NOT_NUMBERS |= {"weigh_sessions", "causal", "behavior_detach", "behavior_from", "behavior_lr"}


def test_the_table_has_the_numbers_and_defaults_of_the_signature() -> None:
    signature = inspect.signature(LFADS).parameters
    defaults = {n: p.default for n, p in signature.items() if n not in NOT_NUMBERS}
    assert defaults == {name: entry.default for name, entry in NUMBERS.items()}
    for name, entry in NUMBERS.items():
        if entry.default is not None:
            assert entry.check(name, entry.default) == entry.default


def test_the_tunables_are_buffers_of_the_model() -> None:
    model = LFADS(encod_data_dim=2, encod_seq_len=3, behavior_dim=2)
    assert tuple(model.tunables()) == TUNABLES
    for name in TUNABLES:
        assert model.get_buffer(name).item() == pytest.approx(NUMBERS[name].default)


def test_the_packaged_space_is_the_default_one() -> None:
    packaged: Any = yaml.safe_load((CONFIGS / "search" / "default.yaml").read_text())["space"]
    ranges = [(name, tuple(entry)) for name, entry in search_ranges().items()]
    # In this order: first values are drawn one after another.
    fields = ["min_samp", "max_samp", "start", "sample_fn", "explore_wt", "enforce_limits"]
    assert ranges == [
        (name, tuple(getattr(entry, field) for field in fields))
        for name, entry in parse_space(packaged).items()
    ]
    searched = {**NUMBERS, **AUGMENTATION_NUMBERS}
    assert set(search_ranges()) == {name for name, entry in searched.items() if entry.search}


@pytest.mark.parametrize("path", sorted((CONFIGS / "model").glob("*.yaml")), ids=lambda p: p.stem)
def test_packaged_models_have_legal_numbers(path: Path) -> None:
    for name, value in yaml.safe_load(path.read_text()).items():
        if name in NUMBERS and isinstance(value, int | float):
            NUMBERS[name].check(name, value)


def test_limits_of_a_tunable_by_its_path() -> None:
    assert number_of("kl_ic_scale") is NUMBERS["kl_ic_scale"]
    rate = number_of("train_aug_stack.transforms.2.cd_rate")
    assert rate is not None
    with pytest.raises(ConfigError, match=r"cd_rate is 1; legal are numbers >= 0 and < 1"):
        rate.check("cd_rate", 1)
    assert number_of("train_aug_stack.transforms.0.strength") is None
