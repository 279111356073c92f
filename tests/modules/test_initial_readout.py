"""Read-outs that start on a line in the factors, for every observation model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lfads_torch.errors import ConfigError, DataError
from lfads_torch.model import LFADS
from lfads_torch.modules.initial_readout import (
    ChannelStats,
    Line,
    initial_blocks,
    set_blocks,
)
from lfads_torch.modules.readin_readout import FanInLinear, MultisessionReadin, MultisessionReadout
from lfads_torch.modules.recons import (
    MSE,
    Gamma,
    Gaussian,
    Poisson,
    PoissonBPS,
    Reconstruction,
    ZeroInflatedGamma,
)
from tests.small import DIMS, arrays, datamodule, write

N, K = 5, 4

RECONS = {
    "Poisson": Poisson(),
    "PoissonBPS": PoissonBPS(),
    "MSE": MSE(),
    "Gaussian": Gaussian(),
    "Gamma": Gamma(),
    "ZeroInflatedGamma": ZeroInflatedGamma(N, 0.1, 10.0, 10.0, 0.0),
}


def positive(n: int = 200, bins: int = 6, seed: int = 0) -> np.ndarray:
    """Data legal under all of them but counts: zero, or above 0.1."""
    rng = np.random.default_rng(seed)
    events = 0.1 + rng.gamma(3.0, np.linspace(0.3, 1.0, N), (n, bins, N))
    return (events * (rng.random((n, bins, N)) < 0.5)).astype(np.float32)


def line(seed: int = 0) -> Line:
    rng = np.random.default_rng(seed)
    bias = positive().reshape(-1, N).mean(axis=0)
    return Line(0.2 * rng.normal(size=(N, K)) * bias[:, None], bias.astype(np.float64))


@pytest.mark.parametrize("name", RECONS)
def test_means_follow_the_line_to_first_order(name: str) -> None:
    recon, goal = RECONS[name], line()
    layer = FanInLinear(K, recon.n_params * N).double()
    set_blocks(layer, initial_blocks(recon, goal, ChannelStats.of(positive())))

    def means(factors: torch.Tensor) -> torch.Tensor:
        return recon.compute_means(recon.reshape_output_params(layer(factors[None, None])))[0, 0]

    zero = torch.zeros(K, dtype=torch.float64)
    np.testing.assert_allclose(means(zero).detach(), goal.bias, rtol=1e-6)
    slope = torch.autograd.functional.jacobian(means, zero)
    np.testing.assert_allclose(slope, goal.weight, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", ["Gaussian", "Gamma", "ZeroInflatedGamma"])
def test_the_other_parameters_fit_the_data(name: str) -> None:
    """At the start the likelihood is better than with the others at zero, where they were drawn."""
    recon, goal, data = RECONS[name], line(), torch.from_numpy(positive())
    data = data + 0.5 if name == "Gamma" else data
    stats = ChannelStats.of(data.numpy())
    goal = goal._replace(bias=stats.mean)
    blocks = initial_blocks(recon, goal, stats)
    losses = []
    for some in (blocks, [b if b is blocks[0] else None for b in blocks]):
        layer = FanInLinear(K, recon.n_params * N)
        nn.init.zeros_(layer.weight)
        set_blocks(layer, some)
        params = recon.reshape_output_params(layer(torch.zeros(*data.shape[:2], K)))
        losses.append(recon.compute_loss(data, params).mean().item())
    assert losses[0] < losses[1]


@pytest.mark.parametrize("name", RECONS)
def test_silent_channels_start_finite(name: str) -> None:
    data = positive()
    data[..., 2] = 0
    goal = line()
    goal.bias[2], goal.weight[2] = 0.0, 0.0
    layer = FanInLinear(K, RECONS[name].n_params * N)
    set_blocks(layer, initial_blocks(RECONS[name], goal, ChannelStats.of(data)))
    assert all(p.isfinite().all() for p in layer.parameters())
    assert layer.weight.abs().max() < 1e3


def test_statistics_leave_missing_data_out() -> None:
    data = positive()
    holes = data.copy()
    holes[:100, :, 1] = np.nan
    stats, whole = ChannelStats.of(holes), ChannelStats.of(data[100:])
    np.testing.assert_allclose([s[1] for s in stats], [s[1] for s in whole], rtol=1e-6)
    np.testing.assert_allclose(whole.mean, whole.share * whole.event_mean, rtol=1e-6)


class Own(Reconstruction):
    """Two parameters, the first a log rate."""

    n_params = 2
    for_counts = True


class OwnStart(Own):
    def initial_readout(self, goal: Line, stats: ChannelStats) -> list[Line | None]:
        return [None, Line(goal.weight * 0, stats.mean)]


def test_observation_models_of_ones_own() -> None:
    goal, stats = line(), ChannelStats.of(positive())
    first, second = initial_blocks(Own(), goal, stats)
    np.testing.assert_allclose(first.bias, np.log(goal.bias))
    assert second is None
    layer = FanInLinear(K, 2 * N)
    before = layer.weight.clone()
    set_blocks(layer, initial_blocks(OwnStart(), goal, stats))
    torch.testing.assert_close(layer.weight[:N], before[:N])
    np.testing.assert_allclose(layer.bias[N:].detach(), stats.mean, rtol=1e-6)


# In a model ---------------------------------------------------------------------------------------


def aligned(seed: int, n_read: int = N, **changes: Any) -> dict[str, Any]:
    rng, goal = np.random.default_rng(seed), line(seed)
    file = arrays(channels=(n_read, N), seed=seed)
    for split in ("train", "valid"):
        data = positive(len(file[f"{split}_recon_data"]), seed=seed)
        file[f"{split}_recon_data"], file[f"{split}_encod_data"] = data, data[..., :n_read]
    file["readin_weight"] = rng.normal(size=(n_read, K))
    file["readin_offset"] = goal.bias[:n_read]
    file["readout_weight"], file["readout_bias"] = goal.weight, goal.bias
    return {key: value for key, value in {**file, **changes}.items() if value is not None}


@pytest.mark.parametrize("name", ["MSE", "Gaussian", "ZeroInflatedGamma"])
def test_a_model_starts_from_the_files(tmp_path: Path, name: str) -> None:
    sessions = [aligned(0), aligned(1, n_read=3)]
    pattern, recon = write(tmp_path, *sessions), RECONS[name]
    model = LFADS.from_data(
        datamodule(pattern),
        **DIMS,
        encod_data_dim=K,
        readin=MultisessionReadin(pattern),
        readout=MultisessionReadout(pattern, recon_params=recon.n_params),
        reconstruction=recon,
    )
    for number, session in enumerate(sessions):
        means = model.read_out(number, torch.zeros(1, 1, K), output_means=True)[0, 0]
        np.testing.assert_allclose(means.detach(), session["readout_bias"], rtol=1e-4)
        data = torch.from_numpy(session["train_encod_data"])
        read = (session["train_encod_data"] - session["readin_offset"]) @ session["readin_weight"]
        np.testing.assert_allclose(model.readin[number](data).detach(), read, atol=1e-4)


def test_the_link_overrules(tmp_path: Path) -> None:
    pattern = write(tmp_path, aligned(0))
    readout = MultisessionReadout(pattern, link="identity")
    readout.start_from([Poisson()])
    np.testing.assert_allclose(readout[0].bias.detach(), line(0).bias, rtol=1e-6)


def test_what_does_not_fit(tmp_path: Path) -> None:
    pattern = write(tmp_path, aligned(0))
    with pytest.raises(ConfigError, match=r"recon_params is 1, but Gaussian has 2 parameters"):
        MultisessionReadout(pattern).start_from([Gaussian()])
    other = write(tmp_path / "b", aligned(0), aligned(1, readin_weight=np.ones((N, 3))))
    for kind in (MultisessionReadin, MultisessionReadout):
        with pytest.raises(DataError, match=r"different numbers of columns: .*'day1.h5': 3"):
            kind(other)
    lacks = write(tmp_path / "c", aligned(0, readout_weight=np.ones((N, 3))))
    with pytest.raises(DataError, match="readout_weight has 3 columns, readin_weight 4"):
        MultisessionReadout(lacks)
    offset = write(tmp_path / "d", aligned(0, n_read=3, readin_offset=np.ones(N)))
    with pytest.raises(DataError, match="readin_offset has 5 entries"):
        MultisessionReadin(offset)
