"""What a population is made of: draws, optimiser, schedule, stacks, scores."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import vmap
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lfads_torch.errors import UserError
from lfads_torch.metrics.epoch import EpochScores
from lfads_torch.search.population import draws
from lfads_torch.search.population.capacity import fitting_stack, workers_of
from lfads_torch.search.population.draws import (
    NotMappableError,
    OtherDrawsError,
    StackedCalls,
    StackedDraws,
    Streams,
    global_generators,
    no_other_draws,
)
from lfads_torch.search.population.epochs import StackedScores, even_stacks
from lfads_torch.search.population.optimiser import Optimiser
from lfads_torch.search.population.tensors import MemberTensors
from lfads_torch.seeds import seed_all
from tests.small import arrays, datamodule, lfads, write

CPU = torch.device("cpu")
SEEDS, EPOCH = [5, 6, 7], 2


# ---- draws ---------------------------------------------------------------------------------------


def stacked(function: Callable[[Tensor], Any], x: Tensor) -> Any:
    def one(x: Tensor) -> Any:
        with StackedCalls(x):
            return function(x)

    with no_other_draws(), StackedDraws(Streams(SEEDS, EPOCH, CPU)):
        return vmap(one, randomness="different")(x)


def normal(x: Tensor) -> torch.distributions.Distribution:
    return torch.distributions.Normal(x, 1.0, validate_args=False)


DRAWS: dict[str, Callable[[Tensor], Any]] = {
    "randn": lambda x: torch.randn(3, 40),
    "randn float64": lambda x: torch.randn(40, dtype=torch.float64),
    "rand": lambda x: torch.rand((2, 5)),
    "randint": lambda x: torch.randint(9, (20,)),
    "randint from": lambda x: torch.randint(-(2**63), 2**63 - 1, (3,)),
    "randperm": lambda x: torch.cat([torch.randperm(7), torch.randperm(5)]),
    "randn_like": torch.randn_like,
    "rand_like": torch.rand_like,
    "randn_like, turned": lambda x: torch.randn_like(x.transpose(0, 1)),
    "randint_like": lambda x: torch.randint_like(x, 5),
    "bernoulli": lambda x: torch.bernoulli(x.sigmoid()),
    "normal": lambda x: torch.normal(x, 1.0),
    "normal of numbers": lambda x: torch.normal(0.0, 2.0, (20,)),
    "poisson": lambda x: torch.poisson(x.exp()),
    "normal_": lambda x: x.clone().normal_(1.0, 2.0),
    "uniform_": lambda x: torch.empty_like(x).uniform_(),
    "exponential_": lambda x: x.clone().exponential_(),
    "empty, then normal_": lambda x: torch.empty(4, 5).normal_(),
    "dropout": lambda x: nn.functional.dropout(x, 0.3),
    "dropout, turned": lambda x: nn.Dropout(0.2)(x.transpose(0, 1)),
    "Normal": lambda x: normal(x).rsample((2,)),
    "several": lambda x: torch.randn(20) + torch.rand(20) + torch.randn(1),
    "none": lambda x: x + torch.empty(3).fill_(1.0).sum(),
    "no dropout": lambda x: nn.functional.dropout(x, 0.3, training=False),
}


@pytest.mark.parametrize("name", DRAWS)
def test_each_member_draws_what_it_would_alone(name: str) -> None:
    x = torch.randn(3, 6, 20)
    results = stacked(DRAWS[name], x)
    for k, seed in enumerate(SEEDS):
        with global_generators():
            seed_all(seed, EPOCH)
            assert torch.equal(results[k], DRAWS[name](x[k])), k


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (
            lambda x: torch.randn(3, generator=torch.Generator()),
            NotMappableError,
            "its own generator",
        ),
        (lambda x: x * float(np.random.random()), OtherDrawsError, "NumPy"),
        (lambda x: x * random.random(), OtherDrawsError, "random"),
    ],
)
def test_draws_that_have_no_axis_of_members(
    function: Callable[[Tensor], Tensor],
    error: type[Exception],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "beartype", raising=False)
    with pytest.raises(error, match=message):
        stacked(function, torch.ones(3, 2))


def test_streams_lend_all_generators_and_take_them_back() -> None:
    streams = Streams(SEEDS, EPOCH, CPU)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()

    def drawn() -> list[float]:
        return [torch.rand(()).item(), np.random.random(), random.random()]

    results = []
    for _ in range(2):
        for k in range(3):
            with streams.lent(k):
                results.append((k, drawn()))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]
    assert random.getstate() == before[2]
    for k, seed in enumerate(SEEDS):
        seed_all(seed, EPOCH)
        assert [numbers for member, numbers in results if member == k] == [drawn(), drawn()]


def test_streams_know_their_devices() -> None:
    with pytest.raises(NotMappableError, match="meta"):
        Streams(SEEDS, EPOCH, CPU).on(torch.device("meta"))


def test_operations_that_are_drawn_by_the_default_generator_leave_it_alone() -> None:
    before = torch.get_rng_state()
    stacked(torch.poisson, torch.ones(3, 4))
    stacked(lambda x: torch.randint_like(x, 5), torch.ones(3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert draws._is_random(torch.ops.aten.randn.default)
    assert not draws._is_random(torch.ops.aten.add.Tensor)


# ---- optimiser -----------------------------------------------------------------------------------


@pytest.fixture
def tensors(tmp_path: Path) -> MemberTensors:
    data = datamodule(write(tmp_path, arrays(4, 2)))
    models = []
    for k in range(3):
        options = {
            "lr_init": 0.01 * (k + 1),
            "weight_decay": 0.3 * k,
            "lr_adam_beta2": 0.9 + 0.03 * k,
        }
        models.append(lfads(data, l2_increase_epoch=k, **options))
    return MemberTensors(models, [0, 1, 2], CPU)


@pytest.mark.parametrize("clip", [0.0, 0.7])
@pytest.mark.parametrize("absent", [(), (0,), (3, 4, 7)])
def test_a_step_is_torchs(tensors: MemberTensors, clip: float, absent: tuple[int, ...]) -> None:
    """Of AdamW after clipping, with each member's numbers; parameters without gradient stay."""
    optimiser = Optimiser(tensors, clip)
    optimiser.begin_epoch(0)
    lone = []
    for k in range(3):
        model = tensors.detached(k)
        model.set_ramps(0)
        lone.append((model, model.configure_optimizers()))
        lone[k][1].param_groups[0]["weight_decay"] = model.ramped_weight_decay
    for _ in range(3):
        leaves = tensors.leaves(slice(0, 3))
        gradients: list[Any] = [torch.randn_like(x) * 0.1 for x in leaves.values()]
        for i in absent:
            gradients[i] = None
        optimiser.step(slice(0, 2), [g if g is None else g[:2] for g in gradients])
        optimiser.step(slice(2, 3), [g if g is None else g[2:] for g in gradients])
        for k, (model, reference) in enumerate(lone):
            for name, gradient in zip(tensors.names, gradients, strict=True):
                model.get_parameter(name).grad = None if gradient is None else gradient[k].clone()
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            reference.step()
    for k, (model, _) in enumerate(lone):
        for name, value in tensors.split(tensors.weights[k]).items():
            torch.testing.assert_close(value, model.get_parameter(name).data)
    assert tensors.steps.tolist() == [3, 3, 3]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.sampled_from([0.5, 1.0, 1.5, 2.0, float("nan")]), min_size=1, max_size=12),
    st.integers(0, 3),
    st.sampled_from([0.3, 0.9]),
)
def test_the_schedule_is_torchs(losses: list[float], patience: int, decay: float) -> None:
    hp = SimpleNamespace(lr_scheduler=True, lr_patience=patience, lr_decay=decay, lr_stop=0.01)
    fake: Any = SimpleNamespace(
        models=[SimpleNamespace(hparams=hp)],
        smoothed=torch.zeros(1),
        plateau_best=torch.full((1,), torch.inf, dtype=torch.float64),
        plateau_bad=torch.zeros(1, dtype=torch.int64),
        lr=torch.tensor([0.1], dtype=torch.float64),
    )
    optimiser = Optimiser(fake, 0.0)
    lone = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule = ReduceLROnPlateau(
        lone, factor=decay, patience=patience, threshold=0.0, min_lr=hp.lr_stop
    )
    for loss in losses:
        fake.smoothed[0] = loss
        optimiser.end_epoch()
        schedule.step(float(fake.smoothed[0]))
        assert float(fake.lr[0]) == lone.param_groups[0]["lr"]
        assert int(fake.plateau_bad[0]) == schedule.num_bad_epochs


def test_models_are_views_of_the_arrays(tensors: MemberTensors) -> None:
    with torch.no_grad():
        tensors.weights[1] = 0.5
        tensors.tunable("dropout_rate")[2] = 0.75
        tensors.models[0].readout[0].bias.fill_(3.0)
    assert (tensors.models[1].encoder.ic_enc_h0 == 0.5).all()
    assert tensors.models[2].dropout_rate == 0.75
    assert (tensors.split(tensors.weights[0])["readout.0.bias"] == 3).all()
    assert tensors.detached(2).hparams.dropout_rate == 0.75


# ---- stacks --------------------------------------------------------------------------------------


@given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 8))
def test_stacks_cover_all_members_evenly(n_members: int, most: int, workers: int) -> None:
    stacks = even_stacks(n_members, most, workers)
    sizes = [rows.stop - rows.start for rows in stacks]
    assert [k for rows in stacks for k in range(rows.start, rows.stop)] == list(range(n_members))
    assert max(sizes) <= most
    assert max(sizes) - min(sizes) <= 1
    assert len(stacks) % workers == 0 or len(stacks) == n_members


def test_stacks_are_no_larger_than_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def free(n: int | None) -> None:
        monkeypatch.setattr("lfads_torch.search.population.capacity.bytes_available", lambda _: n)

    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert [workers_of(CPU, n) for n in (1, 4, 5, 16, 40)] == [1, 1, 2, 4, 4]
    assert workers_of(torch.device("cuda"), 40) == 1
    free(None)
    assert fitting_stack(40, 2**20, torch.device("cuda")) == 40
    assert fitting_stack(40, 2**20, CPU) == 5  # ten for each thread, as even as can be
    assert fitting_stack(3, 2**20, CPU) == 3
    assert fitting_stack(40, 2**40, CPU) == 1
    free(10 * 2**30)
    assert fitting_stack(40, 2**30, torch.device("cuda")) == 8
    assert fitting_stack(20, 2**30, torch.device("cuda")) == 7


def test_on_a_gpu_its_free_memory_bounds_the_stacks(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def mem_get_info(device: torch.device) -> tuple[int, int]:
        asked.append(device)
        return 10 * 2**30, 80 * 2**30  # free, all

    monkeypatch.setattr(torch.cuda, "mem_get_info", mem_get_info)
    second = torch.device("cuda:1")
    assert fitting_stack(40, 2**30, second) == 8
    with pytest.raises(UserError, match=r"takes about 20\.00 GiB.* 10\.00 GiB are free"):
        fitting_stack(40, 20 * 2**30, second)
    assert asked == [second, second]


# ---- scores --------------------------------------------------------------------------------------


def test_stacked_scores_are_those_of_each_member() -> None:
    generator = torch.Generator().manual_seed(3)
    stacked_scores, single = StackedScores(), [EpochScores() for _ in range(2)]
    for n_trials in (4, 3):
        counts = torch.poisson(torch.ones(2, n_trials, 5, 4), generator=generator)
        counts[0, 0, 1] = torch.nan
        rates = torch.rand(2, n_trials, 5, 4, generator=generator)
        losses = torch.rand(2, generator=generator)
        for scores, of in ((stacked_scores, slice(None)), *zip(single, (0, 1), strict=True)):
            scores.add_terms({"wt_l2": losses[of]}, n_trials)
            scores.add_session(1, losses[of] + 1, n_trials)
            scores.add_log_rates(1, rates.log()[of], counts[of], n_read=3, n_bins_read=4)
            scores.r2.update(rates[of], counts[of], key=1)
    for scores, expected in zip(stacked_scores.members(2), single, strict=True):
        assert scores.compute().keys() == expected.compute().keys()
        for name, value in expected.compute().items():
            torch.testing.assert_close(scores.compute()[name], value, msg=name)
