"""Synthetic Lorenz recordings: shapes, the dynamics, the rates and the repeatability."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lfads_torch import data as schema
from lfads_torch.data.synthetic import (
    BETA,
    RHO,
    SIGMA,
    _advance,
    _flow,
    _roessler,
    days,
    lorenz,
)
from lfads_torch.errors import UserError


@pytest.fixture(scope="module")
def demo() -> dict[str, np.ndarray]:
    return lorenz()


def test_defaults_are_the_demo(demo: dict[str, np.ndarray]) -> None:
    for split, n in (("train", 832), ("valid", 208)):
        for name, width in (("encod_data", 30), ("recon_data", 30), ("truth", 30), ("latents", 3)):
            assert demo[f"{split}_{name}"].shape == (n, 50, width)
        counts = np.bincount(demo[f"{split}_cond_idx"], minlength=65)
        assert len(counts) == 65 and counts.max() - counts.min() <= 1
    assert demo["train_recon_data"].dtype == np.uint8
    assert demo["train_truth"].dtype == np.float32


def test_rates_have_the_asked_mean_and_vary(demo: dict[str, np.ndarray]) -> None:
    truth = np.concatenate([demo["train_truth"], demo["valid_truth"]])
    spikes = np.concatenate([demo["train_recon_data"], demo["valid_recon_data"]])
    np.testing.assert_allclose(truth.mean(axis=(0, 1)), 0.3, rtol=1e-4)
    np.testing.assert_allclose(np.log(truth).std(axis=(0, 1)), 1.0, rtol=1e-3)
    # Poisson: mean of (x - rate)^2 / rate is 1.
    assert ((spikes - truth) ** 2 / truth).mean() == pytest.approx(1.0, abs=0.02)


def test_trials_of_a_condition_share_the_trajectory(demo: dict[str, np.ndarray]) -> None:
    where = demo["train_cond_idx"] == 7
    other = demo["valid_cond_idx"] == 7
    first = demo["train_latents"][where][0]
    assert (demo["train_latents"][where] == first).all()
    assert (demo["valid_latents"][other] == first).all()
    assert not (demo["train_recon_data"][where] == demo["train_recon_data"][where][0]).all()


def test_latents_are_standardised_and_conditions_differ(demo: dict[str, np.ndarray]) -> None:
    latents = np.concatenate([demo["train_latents"], demo["valid_latents"]])
    np.testing.assert_allclose(latents.mean(axis=(0, 1)), 0, atol=1e-4)
    np.testing.assert_allclose(latents.std(axis=(0, 1)), 1, atol=1e-4)
    starts = latents[:, 0][np.unique(demo["train_cond_idx"], return_index=True)[1]]
    assert len(np.unique(starts.round(3), axis=0)) == len(starts)


def test_log_rates_are_linear_in_the_latents(demo: dict[str, np.ndarray]) -> None:
    x = demo["valid_latents"].reshape(-1, 3)
    x = np.column_stack([x, np.ones(len(x))])
    y = np.log(demo["valid_truth"].reshape(-1, 30))
    residual = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
    assert np.abs(residual).max() < 1e-4


def test_flow_is_the_lorenz_system() -> None:
    edge = np.sqrt(BETA * (RHO - 1))
    fixed_points = np.array([[0, 0, 0], [edge, edge, RHO - 1], [-edge, -edge, RHO - 1]])
    np.testing.assert_allclose(_flow(fixed_points), 0, atol=1e-12)
    # Divergence -(sigma + 1 + beta): volumes shrink at this rate.
    state, h = np.array([1.0, 2.0, 20.0]), 1e-5
    jacobian = [(_flow(state + h * e) - _flow(state - h * e)) / (2 * h) for e in np.eye(3)]
    assert np.trace(jacobian) == pytest.approx(-(SIGMA + 1 + BETA), abs=1e-6)


def test_integration_is_of_fourth_order() -> None:
    start = np.array([[1.0, 2.0, 20.0]])
    exact = start
    for _ in range(1000):
        exact = _advance(exact, 1e-4)
    # One call of 0.1 takes 20 steps of 0.005.
    assert np.abs(_advance(start, 0.1) - exact).max() < 1e-6


def test_seed_decides_all() -> None:
    options: dict[str, Any] = {"n_conditions": 4, "n_trials": 5, "n_units": 6, "n_bins": 8}
    first, again, other = (lorenz(**options, seed=seed) for seed in (3, 3, 4))
    assert all((first[key] == again[key]).all() for key in first)
    assert not (first["train_recon_data"] == other["train_recon_data"]).all()


def test_held_out_units_and_bins() -> None:
    data = lorenz(4, 5, 6, 8, heldout_units=2, forward_bins=3)
    assert data["train_encod_data"].shape == (16, 5, 4)
    assert data["train_recon_data"].shape == (16, 8, 6)
    assert (data["train_encod_data"] == data["train_recon_data"][:, :5, :4]).all()


@pytest.mark.parametrize("mean_rate", [0.01, 2.0, 300.0])
def test_counts_fit_their_type(mean_rate: float) -> None:
    data = lorenz(5, 10, 6, 20, mean_rate)
    assert data["train_recon_data"].mean() == pytest.approx(data["train_truth"].mean(), rel=0.2)


def test_written_file_has_no_faults(tmp_path: Path) -> None:
    path = schema.write_session(tmp_path / "lorenz.h5", lorenz(10, 10), {"bin_ms": 10})
    report = schema.check_file(path)
    assert report.ok and report.warnings == []


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"n_conditions": 0}, "n_conditions is 0; legal are whole numbers >= 1"),
        ({"n_bins": 1}, "n_bins is 1"),
        ({"n_units": 2.5}, "n_units is 2.5"),
        ({"mean_rate": 0.0}, "mean_rate is 0.0; legal are numbers > 0"),
        ({"mean_rate": np.nan}, "mean_rate is nan"),
        ({"heldout_units": 30}, "heldout_units=30 of 30"),
        ({"forward_bins": 50}, "forward_bins=50 of 50"),
        ({"valid_fraction": 0.0}, "0 for validation"),
        ({"valid_fraction": 1.0}, "0 for training"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], part: str) -> None:
    with pytest.raises(UserError) as caught:
        lorenz(**options)
    assert part in str(caught.value)


def whole(day: dict[str, np.ndarray], name: str) -> np.ndarray:
    """Both splits of a day in order of time, (bins, channels)."""
    both = np.concatenate([day[f"train_{name}"], day[f"valid_{name}"]])
    return both.reshape(-1, both.shape[2]).astype(np.float64)


def tuning(day: dict[str, np.ndarray]) -> np.ndarray:
    """Slopes of the log rates by the latents, (3, units), from the truth alone."""
    x = whole(day, "latents")
    return np.linalg.lstsq(x - x.mean(0), np.log(whole(day, "truth")), rcond=None)[0]


def test_roessler_follows_its_equations() -> None:
    from scipy.integrate import solve_ivp

    path = _roessler(np.random.default_rng(3), 40, 0.17)

    def flow(_: float, s: np.ndarray) -> list[float]:
        x, y, z = s
        return [-y - z, x + 0.2 * y, 0.2 + z * (x - 5.7)]

    t = 0.17 * np.arange(40)
    exact = solve_ivp(flow, (0, t[-1]), path[0], t_eval=t, rtol=1e-10, atol=1e-10).y.T
    np.testing.assert_allclose(path, exact, atol=1e-3)


def test_days_share_dynamics_and_behaviour_and_redraw_units() -> None:
    both = days(n_windows=60, seed=4)
    assert len(both) == 2
    for day in both:
        assert day["train_encod_data"].shape == (48, 30, 30)
        assert day["valid_behavior"].shape == (12, 30, 2)
        assert (day["train_encod_data"] == day["train_recon_data"]).all()
        truth, spikes = whole(day, "truth"), whole(day, "encod_data")
        gains = truth.mean(axis=0) / 0.3
        assert gains.min() >= 0.5 - 1e-3 and gains.max() <= 2 + 1e-3 and gains.std() > 0.1
        assert ((spikes - truth) ** 2 / truth).mean() == pytest.approx(1.0, abs=0.05)
    # One map to behaviour for all days.
    x, y = (np.concatenate([whole(day, name) for day in both]) for name in ("latents", "behavior"))
    slopes = np.linalg.lstsq(x, y, rcond=None)
    np.testing.assert_allclose(x @ slopes[0], y, atol=1e-4)
    # Half of the units are the same ones at other places, the other half are not.
    before, after = map(tuning, both)
    likeness = np.corrcoef(before.T, after.T)[:30, 30:]
    distance = np.abs(before[:, :, None] - after[:, None]).max(axis=0).min(axis=1)
    assert (distance < 0.05).sum() == pytest.approx(15, abs=3)
    assert not np.allclose(np.diag(likeness), 1)


def test_days_stay_in_place_where_asked_and_repeat() -> None:
    first, second, third = days(3, 10, 40, redrawn=0.2, gain=(1, 1), permuted=False, seed=1)
    for one, other in ((first, second), (second, third)):
        same = np.abs(tuning(one) - tuning(other)).max(axis=0) < 0.1
        assert same.sum() >= 8
    np.testing.assert_allclose(whole(third, "truth").mean(axis=0), 0.3, rtol=1e-4)
    again = days(3, 10, 40, redrawn=0.2, gain=(1, 1), permuted=False, seed=1)
    np.testing.assert_array_equal(again[2]["train_encod_data"], third["train_encod_data"])
    other_seed = days(3, 10, 40, redrawn=0.2, gain=(1, 1), permuted=False, seed=2)
    assert (other_seed[0]["train_encod_data"] != first["train_encod_data"]).any()


def test_days_refuse_options_out_of_range() -> None:
    for wrong in ({"redrawn": 1.5}, {"gain": (0.0, 1.0)}, {"gain": (2.0, 1.0)}, {"n_days": 0}):
        with pytest.raises(UserError):
            days(**wrong)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="both need at least one"):
        days(n_windows=3, valid_fraction=0.1)
