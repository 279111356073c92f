"""Splits are disjoint and complete, balanced over conditions, the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lfads_torch.errors import UserError
from lfads_torch.prep.splits import conditions_of, count_splits, draw_splits, labels_from_column


@given(
    st.integers(5, 200),
    st.floats(0.05, 0.5),
    st.floats(0.0, 0.4),
    st.integers(0, 5),
    st.sampled_from(["random", "conditions", "blocks"]),
)
@settings(max_examples=150, deadline=None)
def test_every_trial_is_in_one_split(
    n: int, valid: float, test: float, seed: int, how: str
) -> None:
    options: dict[str, object] = {"valid_fraction": valid, "test_fraction": test, "seed": seed}
    if how == "conditions":
        options["strata"] = np.arange(n) % 3
    elif how == "blocks":
        options["block"] = max(1, n // 20)
    try:
        labels = draw_splits(n, **options)  # type: ignore[arg-type]
    except UserError:  # too few blocks or trials for three splits
        assert n < 20
        return
    assert labels.shape == (n,)
    counts = count_splits(labels)
    assert sum(counts.values()) == n
    assert counts["train"] >= 1
    assert counts["valid"] >= 1
    assert ("test" in counts) == (test > 0)
    np.testing.assert_array_equal(labels, draw_splits(n, **options))  # type: ignore[arg-type]
    if how == "random":
        assert counts["valid"] == pytest.approx(n * valid, abs=1)


@given(st.lists(st.integers(0, 4), min_size=10, max_size=120), st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_each_condition_has_its_share(conditions: list[int], seed: int) -> None:
    strata = np.array(conditions)
    labels = draw_splits(len(strata), valid_fraction=0.25, strata=strata, seed=seed)
    for condition in set(conditions):
        of_it = labels[strata == condition]
        assert (of_it == 0).any()  # one at least trains
        # within a trial of its share, but where another condition had too few to give
        assert abs((of_it == 1).sum() - 0.25 * len(of_it)) <= 2


def test_blocks_stay_whole_and_spread_over_the_session() -> None:
    labels = draw_splits(103, valid_fraction=0.2, test_fraction=0.1, block=10, seed=3)
    blocks = [labels[i : i + 10] for i in range(0, 103, 10)]
    assert all(len(set(block.tolist())) == 1 for block in blocks)
    valid = [i for i, block in enumerate(blocks) if block[0] == 1]
    assert len(valid) == 2
    assert valid[0] < 6 <= valid[1] + 1


@pytest.mark.parametrize("how", ["random", "conditions", "blocks"])
def test_what_selects_is_carved_out_of_what_trains(how: str) -> None:
    options: dict[str, object] = {"valid_fraction": 0.1, "test_fraction": 0.2, "seed": 1}
    options |= {"strata": np.arange(100) % 4} if how == "conditions" else {}
    options |= {"block": 5} if how == "blocks" else {}
    before = draw_splits(100, **options)  # type: ignore[arg-type]
    labels = draw_splits(100, select_fraction=0.1, **options)  # type: ignore[arg-type]
    assert count_splits(labels) == {"train": 60, "valid": 10, "test": 20, "select": 10}
    assert set(before[labels == 3]) == {0}
    np.testing.assert_array_equal(labels[labels != 3], before[labels != 3])


def test_seeds_differ_and_fractions_are_checked() -> None:
    assert (draw_splits(50, seed=0) != draw_splits(50, seed=1)).any()
    for valid, test in ((0.0, 0.0), (0.7, 0.5), (1.0, 0.0), (0.2, -0.1)):
        with pytest.raises(UserError, match="legal are fractions"):
            draw_splits(50, valid_fraction=valid, test_fraction=test)
    with pytest.raises(UserError, match="at least 2"):
        draw_splits(1)
    with pytest.raises(UserError, match="No condition has the 2 trials"):
        draw_splits(4, strata=np.arange(4))
    with pytest.raises(UserError, match="not both"):
        draw_splits(10, strata=np.zeros(10), block=2)
    with pytest.raises(UserError, match=r"block \(trials\) is 0"):
        draw_splits(10, block=0)
    with pytest.raises(UserError, match="one for each"):
        draw_splits(10, strata=np.zeros(9))


def test_splits_of_the_file() -> None:
    labels = labels_from_column(np.array(["train", "VAL", "valid", "test", "select", "none"]))
    assert labels.tolist() == [0, 1, 1, 2, 3, -1]
    with pytest.raises(UserError, match="holds dev; legal are train"):
        labels_from_column(np.array(["train", "dev"]))


def test_conditions_are_sorted_and_missing_ones_have_none() -> None:
    columns = {"a": np.array([2.0, 1.0, np.nan, 2.0]), "b": np.array(["x", "x", "x", "y"])}
    conditions, labels = conditions_of(columns, ["a", "b"], np.arange(4))
    assert conditions == [(1.0, "x"), (2.0, "x"), (2.0, "y")]
    assert labels.tolist() == [1, 0, -1, 2]
