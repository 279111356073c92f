"""Read-in and read-out: initialisation, one per session, principal-component regression."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lfads_torch.errors import ConfigError, DataError, UserError
from lfads_torch.modules.readin_readout import (
    FanInLinear,
    MultisessionReadin,
    MultisessionReadout,
    NormalizedLinear,
)
from tests.small import arrays, write

N_FACTORS = 2


def with_pcr(channels: tuple[int, int], seed: int, **changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    file = arrays(channels=channels, seed=seed)
    file["readin_weight"] = rng.normal(size=(channels[0], N_FACTORS)).astype(np.float32)
    file["readout_bias"] = rng.uniform(0.5, 2.0, channels[0]).astype(np.float32)
    return {key: value for key, value in {**file, **changes}.items() if value is not None}


@pytest.fixture
def sessions() -> list[dict[str, Any]]:
    return [with_pcr((4, 4), 0), with_pcr((6, 6), 1)]


def test_fan_in_initialisation() -> None:
    layer = FanInLinear(400, 300)
    assert layer.weight.std().item() == pytest.approx(1 / 20, rel=0.02)
    assert abs(layer.weight.mean().item()) < 1e-3
    assert (layer.bias == 0).all()
    assert FanInLinear(3, 2, bias=False).bias is None
    assert FanInLinear(0, 2)(torch.zeros(5, 0)).tolist() == [[0.0, 0.0]] * 5


def test_factor_matrix_has_rows_of_unit_norm_at_every_use() -> None:
    layer = NormalizedLinear(7, 3)
    with torch.no_grad():
        layer.weight.mul_(torch.tensor([[0.1], [5.0], [1.0]]))
    torch.testing.assert_close(layer.unit_weight.norm(dim=1), torch.ones(3))
    x = torch.randn(2, 7)
    torch.testing.assert_close(layer(x), x @ (layer.weight / layer.weight.norm(dim=1)[:, None]).T)
    assert layer.bias is None


def test_read_in_projects_centred_counts(tmp_path: Path, sessions: list[dict[str, Any]]) -> None:
    readin = MultisessionReadin(write(tmp_path, *sessions))
    assert len(readin) == 2
    for layer, session in zip(readin, sessions, strict=True):
        x = torch.from_numpy(session["train_encod_data"])
        expected = (x - torch.from_numpy(session["readout_bias"])) @ torch.from_numpy(
            session["readin_weight"]
        )
        torch.testing.assert_close(layer(x), expected)
        assert not any(p.requires_grad for p in layer.parameters())


@pytest.mark.parametrize("recon_params", [1, 2, 3])
def test_read_out_undoes_the_read_in(
    tmp_path: Path, sessions: list[dict[str, Any]], recon_params: int
) -> None:
    """On what the shared components span, with the identity link."""
    pattern = write(tmp_path, *sessions)
    readin = MultisessionReadin(pattern)
    readout = MultisessionReadout(pattern, link="identity", recon_params=recon_params)
    for layer_in, layer_out, session in zip(readin, readout, sessions, strict=True):
        mean, weight = session["readout_bias"], session["readin_weight"]
        spanned = mean + np.random.default_rng(0).normal(size=(9, N_FACTORS)) @ np.linalg.pinv(
            weight
        )
        x = torch.from_numpy(spanned).float()
        out = layer_out(layer_in(x))
        assert out.shape == (9, recon_params * len(mean))
        torch.testing.assert_close(out[:, : len(mean)], x, rtol=1e-4, atol=1e-4)
        assert all(p.requires_grad for p in layer_out.parameters())


def test_read_out_of_log_rates_is_linear_about_the_mean_count(
    tmp_path: Path, sessions: list[dict[str, Any]]
) -> None:
    pattern = write(tmp_path, *sessions)
    readin, readout = MultisessionReadin(pattern), MultisessionReadout(pattern)
    for layer_in, layer_out, session in zip(readin, readout, sessions, strict=True):
        mean, weight = session["readout_bias"], session["readin_weight"]
        x = torch.from_numpy(mean)
        torch.testing.assert_close(layer_out(layer_in(x)).exp(), x, rtol=1e-4, atol=1e-4)
        small = torch.from_numpy(1e-3 * np.ones(N_FACTORS) @ np.linalg.pinv(weight)).float()
        rates = layer_out(layer_in(x + small)).exp()
        torch.testing.assert_close(rates, x + small, rtol=1e-3, atol=1e-4)


def test_silent_channels_have_finite_log_rates(tmp_path: Path) -> None:
    silent = with_pcr((4, 4), 0)
    silent["readout_bias"][1] = 0
    layer = MultisessionReadout(write(tmp_path, silent))[0]
    assert all(p.isfinite().all() for p in layer.parameters())


def test_held_out_channels_start_at_random(tmp_path: Path) -> None:
    layer = MultisessionReadout(write(tmp_path, with_pcr((4, 7), 0)))[0]
    assert layer.weight.shape == (7, N_FACTORS)
    assert (layer.bias[:4] != 0).all()
    assert (layer.bias[4:] == 0).all()


def test_random_maps_per_session(tmp_path: Path) -> None:
    pattern = write(tmp_path, arrays(channels=(4, 5)), arrays(channels=(6, 6)))
    readin = MultisessionReadin(pattern, out_features=3, pcr_init=False, requires_grad=True)
    assert [tuple(m.weight.shape) for m in readin] == [(3, 4), (3, 6)]
    assert all(p.requires_grad for p in readin.parameters())
    readout = MultisessionReadout(pattern, in_features=2, pcr_init=False, recon_params=2)
    assert [tuple(m.weight.shape) for m in readout] == [(10, 2), (12, 2)]
    assert readin[0](torch.randn(2, 4)).shape == (2, 3)


def test_what_is_refused(tmp_path: Path, sessions: list[dict[str, Any]]) -> None:
    pattern = write(tmp_path, *sessions)
    with pytest.raises(ConfigError, match=r"out_features is 5, but readin_weight of .*2 columns"):
        MultisessionReadin(pattern, out_features=5)
    with pytest.raises(ConfigError, match=r"in_features is 5, but readin_weight of .*2 columns"):
        MultisessionReadout(pattern, in_features=5)
    with pytest.raises(ConfigError, match="out_features is needed when pcr_init is false"):
        MultisessionReadin(pattern, pcr_init=False)
    with pytest.raises(ConfigError, match="in_features is needed when pcr_init is false"):
        MultisessionReadout(pattern, pcr_init=False)
    with pytest.raises(ConfigError, match="link is 'exp'; legal: None, identity, log"):
        MultisessionReadout(pattern, link="exp")
    with pytest.raises(UserError, match="No data file"):
        MultisessionReadin(str(tmp_path / "night*.h5"))


@pytest.mark.parametrize("key", ["readin_weight", "readout_bias"])
def test_files_that_lack_the_regression(tmp_path: Path, key: str) -> None:
    pattern = write(tmp_path, with_pcr((4, 4), 0, **{key: None}))
    for kind in (MultisessionReadin, MultisessionReadout):
        with pytest.raises(DataError, match=r"day0\.h5: pcr_init needs .* set pcr_init: false"):
            kind(pattern)


@pytest.mark.parametrize(
    "changes",
    [
        {"readin_weight": np.ones((5, N_FACTORS), np.float32)},
        {"readout_bias": np.ones(5, np.float32)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_regressions_of_other_sizes(tmp_path: Path, changes: dict[str, Any]) -> None:
    pattern = write(tmp_path, with_pcr((4, 4), 0, **changes))
    for kind in (MultisessionReadin, MultisessionReadout):
        with pytest.raises(DataError, match=r"day0\.h5.*" + next(iter(changes))):
            kind(pattern)
