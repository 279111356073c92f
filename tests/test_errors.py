"""Checks of arguments: what they return, and what they say."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from lfads_torch.errors import (
    ConfigError,
    UserError,
    did_you_mean,
    fraction,
    number,
    one_of,
    unknown,
    whole,
)


@pytest.mark.parametrize("value", [3, 3.0, np.int64(3), np.float32(3), 2**60])
def test_whole_numbers_of_any_type_are_returned_as_int(value: Any) -> None:
    assert type(whole("n", value, least=1)) is int
    assert whole("n", value) == value


@pytest.mark.parametrize("value", [0, -1, 2.5, math.nan, math.inf, True, "3", None, 3 + 0j])
def test_what_is_no_whole_number_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"gen_dim is .*; legal are whole numbers >= 1$"):
        whole("gen_dim", value, least=1)


def test_limits_are_named_and_kept() -> None:
    assert number("x", 1, least=1, most=2) == 1.0
    with pytest.raises(ConfigError, match=r"x is 2\.0; legal are numbers >= 1 and < 2"):
        number("x", 2.0, least=1, below=2)
    with pytest.raises(ConfigError, match=r"x is 0; legal are numbers > 0"):
        number("x", 0, above=0)
    with pytest.raises(ConfigError, match=r"n is 7; legal are whole numbers >= 1 and <= 5"):
        whole("n", 7, least=1, most=5)
    with pytest.raises(ConfigError, match="finite numbers"):
        number("x", math.nan)
    with pytest.raises(ConfigError, match="share is 1"):
        fraction("share", 1.5)


def test_near_names_are_proposed() -> None:
    assert one_of("split", "train", ["train", "valid"]) == "train"
    with pytest.raises(UserError, match=r"split is 'trian'; did you mean train\?"):
        one_of("split", "trian", ["train", "valid"])
    assert str(unknown("search", "metrc", ["metric"])) == (
        "search has no metrc; did you mean metric?"
    )
    assert did_you_mean("zzz", ["b", "a"]) == "legal: a, b"
    assert did_you_mean("zzz", []) == ""
