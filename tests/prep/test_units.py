"""Units: sums, presence, copies and those held out."""

from __future__ import annotations

import numpy as np
import pytest

from lfads_torch.errors import UserError
from lfads_torch.prep.units import UnitSums, choose_heldout, copies


def test_sums_are_those_of_all_bins_at_once() -> None:
    rng = np.random.default_rng(0)
    counts = rng.poisson(0.4, (300, 5)).astype(np.uint16)
    counts[:150, 1] = 0  # fires in the second half only
    counts[:, 2] = 0
    sums = UnitSums(5, 10, pairs=True)
    for i in range(30):
        sums.add(counts[10 * i : 10 * (i + 1)], i // 3)
    np.testing.assert_allclose(sums.mean(), counts.mean(axis=0))
    assert sums.presence()[[1, 2]].tolist() == [0.5, 0.0]
    active = [0, 1, 3, 4]
    expected = np.corrcoef(counts[:, active].T)
    np.testing.assert_allclose(sums.correlations()[np.ix_(active, active)], expected, atol=1e-12)
    assert (sums.correlations()[2] == 0).all()


def test_copies_leave_no_pair_above_the_threshold_and_drop_the_hub_first() -> None:
    pairs = np.eye(5)
    for a, b, r in ((0, 1, 0.5), (1, 2, 0.6), (3, 4, 0.3)):
        pairs[a, b] = pairs[b, a] = r
    assert copies(pairs, 0.2) == [1, 4]
    assert copies(pairs, 0.4) == [1]
    assert copies(pairs, 0.9) == []
    with pytest.raises(UserError, match="threshold"):
        copies(pairs, 0.0)


def test_held_out_units_are_drawn_by_seed() -> None:
    assert choose_heldout(20, 0.25, 0).sum() == 5
    assert choose_heldout(20, 3, 0).sum() == 3
    np.testing.assert_array_equal(choose_heldout(20, 3, 7), choose_heldout(20, 3, 7))
    assert (choose_heldout(20, 3, 7) != choose_heldout(20, 3, 8)).any()
    for wrong in (20, -1, 2.5):
        with pytest.raises(UserError, match="hold-out"):
            choose_heldout(20, wrong, 0)
