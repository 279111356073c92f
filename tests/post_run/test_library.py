"""Trials looked up in a library of courses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lfads_torch.data.smoothing import gaussian_smooth
from lfads_torch.post_run.evaluation import evaluate_run
from lfads_torch.post_run.evaluation.library import SHARES, Library, Settings
from tests.post_run.outputs_of import arrays, write_run

Array = np.ndarray[Any, Any]


def courses_of(rng: np.random.Generator, shape: tuple[int, int, int], spikes: float) -> Array:
    """Make smooth courses of rates that sum to a number of spikes over the bins of a channel."""
    rates = np.exp(gaussian_smooth(rng.normal(size=shape), 5.0) * 5)
    return rates * spikes / rates.sum(axis=1, keepdims=True)


def shifted(course: Array, shift: int) -> Array:
    """Return the course from bin `shift` on; its ends stay."""
    return course[np.clip(np.arange(len(course)) + shift, 0, len(course) - 1)]


@pytest.mark.parametrize("causal", [True, False])
def test_known_courses_and_shifts_come_back(causal: bool) -> None:
    rng = np.random.default_rng(0)
    courses = courses_of(rng, (8, 100, 20), spikes=20)
    conditions, shifts = rng.integers(8, size=60), rng.integers(-10, 11, size=60)
    rates = [shifted(courses[c], s) for c, s in zip(conditions, shifts, strict=True)]
    counts = rng.poisson(np.stack(rates)).astype(float)
    match = Library(courses, Settings(0.0, 30, 0 if causal else 30, 15)).match(counts)
    # A window that has just begun holds few spikes.
    late = slice(10, None)
    assert (match.first == conditions[:, None])[:, late].mean() >= 0.95
    true_bin = np.clip(np.arange(100) + shifts[:, None], 0, 99)
    assert np.median(np.abs(match.first_bin - true_bin)[:, late]) <= 2


@pytest.mark.parametrize("settings", [Settings(0.0, 3, 0, 2), Settings(0.0, 4, 4, 1)])
@pytest.mark.parametrize("leave_own", [False, True])
def test_against_plain_loops(settings: Settings, leave_own: bool) -> None:
    rng = np.random.default_rng(1)
    courses = rng.uniform(0.1, 2.0, size=(3, 9, 4))
    counts = rng.poisson(1.0, size=(2, 7, 3)).astype(float)
    counts[1, 2, 0] = counts[1, 5] = np.nan
    rates = Library(courses, settings).rates_of(counts, leave_own)
    assert rates.shape == (2, 9, 4)

    def likelihood(trial: int, t: int, rate: Any) -> float:
        total = 0.0
        for u in range(max(0, t - settings.before), min(7, t + settings.after + 1)):
            for n in range(3):
                x = counts[trial, u, n]
                if np.isfinite(x) and not (leave_own and u == t):
                    total += x * np.log(rate(u)[n]) - rate(u)[n]
        return total

    def at(c: int, d: int, u: int) -> Array:
        return np.asarray(courses[c, min(max(u + d, 0), 8)])

    for trial in range(2):
        for t in range(9):
            now = min(t, 6)
            scores = {
                (c, d): likelihood(trial, now, lambda u, c=c, d=d: at(c, d, u))
                for c in range(3)
                for d in sorted(
                    range(-settings.max_shift, settings.max_shift + 1), key=lambda d: (abs(d), d)
                )
            }
            first = max(scores, key=lambda key: scores[key])
            second = max((k for k in scores if k[0] != first[0]), key=lambda key: scores[key])

            def mixed(u: int, a: float, pair: Any = (first, second)) -> Array:
                return (1 - a) * at(*pair[0], u) + a * at(*pair[1], u)

            share = max(SHARES, key=lambda a: likelihood(trial, now, lambda u: mixed(u, a)))
            if leave_own and settings.after == 0 and now == 0:
                continue  # an empty window: nothing tells the courses apart
            np.testing.assert_allclose(rates[trial, t], mixed(t, share), err_msg=f"{trial} {t}")


def test_a_bin_that_is_scored_is_not_seen() -> None:
    rng = np.random.default_rng(2)
    library = Library(rng.uniform(0.1, 2.0, size=(4, 12, 5)), Settings(0.0, 6, 6, 2))
    counts = rng.poisson(1.0, size=(1, 12, 5)).astype(float)
    changed = counts.copy()
    changed[0, 5] += 9
    before, after = (library.rates_of(x, leave_own=True) for x in (counts, changed))
    np.testing.assert_array_equal(before[0, 5], after[0, 5])
    assert (before[0, 7] != after[0, 7]).any()


def test_trials_that_wander_in_time_are_predicted_better_than_by_their_psth(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    courses = courses_of(rng, (4, 50, 30), spikes=20)
    session: dict[str, Any] = {}
    for split, n in (("train", 100), ("valid", 40)):
        condition = np.arange(n) % 4
        truth = np.stack([shifted(courses[c], rng.integers(-8, 9)) for c in condition])
        counts = rng.poisson(truth).astype(np.float32)
        session |= {
            f"{split}_recon_data": counts,
            f"{split}_encod_data": counts[:, :44, :24],
            f"{split}_output_params": np.ones(counts.shape, np.float32),
            f"{split}_truth": truth,
            f"{split}_cond_idx": condition,
            f"{split}_behavior": np.log(truth[:, :44, :2]),
        }
    rows = ["mint", "mint_causal", "psth"]
    result = evaluate_run(write_run(tmp_path, session), n_draws=0, baselines=rows)
    scores = result.scores
    for score in ("bps", "co_bps", "fp_bps", "behavior_r2", "truth_r2"):
        assert scores["mint"][score].value > scores["psth"][score].value + 0.02, score
    assert scores["mint"]["co_bps"].value > scores["mint_causal"]["co_bps"].value
    assert result.sessions[0].choices["mint"]["max_shift_bins"] > 0


def test_training_trials_of_no_known_condition(tmp_path: Path) -> None:
    session = arrays()
    for known, in_scores in ((np.arange(60) % 30 == 1, True), (np.zeros(60, bool), False)):
        session["train_cond_idx"] = np.where(known, np.arange(60) % 4, np.nan)
        result = evaluate_run(write_run(tmp_path, session), n_draws=0, baselines=["mint"])
        assert ("mint" in result.scores) is in_scores
        assert any("day0 lacks library" in note for note in result.notes) is not in_scores
