"""A population: its members are models trained alone, whatever they are made of."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Independent, Laplace, Normal

from lfads_torch.checkpoint import load_model
from lfads_torch.errors import ConfigError, DataError, UserError
from lfads_torch.folder import LAST
from lfads_torch.model import LFADS
from lfads_torch.modules import priors, recons
from lfads_torch.modules.augmentations import (
    AugmentationStack,
    ChannelMask,
    CoordinatedDropout,
    SampleValidation,
    SelectiveBackpropThruTime,
    SpikeJitter,
    TemporalShift,
)
from lfads_torch.run_model import run_model
from lfads_torch.search.population import Population, capacity, epochs
from lfads_torch.tuples import SessionBatch
from tests.search.reference_training import (
    CLIP,
    TOLERANCE,
    Lone,
    assert_as_alone,
    assert_same,
    seeds_of,
    train_all_alone,
)
from tests.small import DIMS, arrays, datamodule, lfads, write

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:pytorch_lightning"),
    pytest.mark.filterwarnings("ignore:.*batch of .* trials is more than"),
]


@pytest.fixture(autouse=True)
def _no_global_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):  # which `seed_everything` leaves behind
        monkeypatch.setenv(name, "0")


@pytest.fixture
def data(tmp_path: Path) -> Any:
    return datamodule(write(tmp_path, arrays(20, 7)), batch_size=8)


def cd_stack(rate: float = 0.3) -> AugmentationStack:
    return AugmentationStack([CoordinatedDropout(rate)], [0], [0])


def members(data: Any, n: int = 3, **options: Any) -> list[LFADS]:
    """Models that start from different weights; options are given, or made anew for each."""
    models = []
    for k in range(n):
        torch.manual_seed(k)
        arguments = {name: x() if callable(x) else x for name, x in options.items()}
        models.append(lfads(data, **{"lr_init": 0.01, "train_aug_stack": cd_stack(), **arguments}))
    return models


def population(data: Any, n: int = 3, **options: Any) -> Population:
    seeds = list(range(n))
    return Population(members(data, n, **options), data, seeds, gradient_clip_val=CLIP)


def weights(trained: Population) -> list[dict[str, Tensor]]:
    return [trained.member(k).state_dict() for k in range(trained.n_members)]


def different_members(data: Any) -> list[LFADS]:
    models = []
    for k in range(5):
        torch.manual_seed(k)
        models.append(
            lfads(
                data,
                train_aug_stack=cd_stack(0.1 + 0.1 * k),
                lr_init=0.005 * (k + 1),
                dropout_rate=0.1 * k,
                weight_decay=0.2 * k,
                kl_ic_scale=1e-3 * k,
                kl_co_scale=1e-3 * (k + 1),
                l2_gen_scale=0.1 * k,
                l2_con_scale=0.3,
                lr_adam_beta1=0.9 - 0.1 * k,
                lr_adam_epsilon=1e-8 * 10**k,
                l2_increase_epoch=k,
                kl_increase_epoch=2,
                lr_scheduler=k % 2 == 0,
                lr_patience=0,
                lr_decay=0.5,
            )
        )
    return models


# ---- as alone ------------------------------------------------------------------------------------


class Different(NamedTuple):
    """Models with their hyper-parameters, and what becomes of them alone."""

    data: Any
    models: list[LFADS]
    lone: Lone


@pytest.fixture(scope="module")
def different(tmp_path_factory: pytest.TempPathFactory) -> Different:
    folder = tmp_path_factory.mktemp("different")
    data = datamodule(write(folder, arrays(20, 7)), batch_size=8)
    models = different_members(data)
    return Different(data, models, train_all_alone(folder, models, data, 4))


@pytest.mark.parametrize(("stack_size", "n_threads"), [(None, 1), (2, 1), (5, 1), (None, 2)])
def test_members_equal_models_trained_alone(
    different: Different, stack_size: int | None, n_threads: int
) -> None:
    """Each with its own hyper-parameters, whichever way they are cut into stacks and threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        data, models, lone = different
        trained = Population(
            models, data, seeds_of(models), gradient_clip_val=CLIP, stack_size=stack_size
        )
        metrics = [trained.train_epoch() for _ in range(4)]
        assert torch.get_num_threads() == n_threads
    finally:
        torch.set_num_threads(before)
    assert trained.stack_size == stack_size or (5 if n_threads == 1 else 3)
    assert trained.stacked == "all"
    assert trained.alive.all()
    for k in range(5):
        assert_same(trained, metrics, lone, k, k)


def test_members_equal_runs_of_run_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way: configuration, seeds, checkpoints; and a run goes on where a member ended."""
    pattern = write(tmp_path, arrays(20, 7), arrays(9, 4, channels=(2, 2), seed=1))
    config: dict[str, Any] = {
        "datamodule": {
            "_target_": "lfads_torch.datamodules.BasicDataModule",
            **{"datafile_pattern": pattern, "batch_size": 8},
        },
        "model": {**DIMS, "lr_init": 0.02, "lr_scheduler": True, "lr_patience": 0},
        "trainer": {"gradient_clip_val": CLIP, "enable_progress_bar": False},
        "callbacks": {"raster_plot": None, "trajectory_plot": None},
        "logger.tensorboard": None,
    }
    runs = []
    for seed in (4, 5):
        config["seed"], config["trainer"]["max_epochs"] = seed, 2
        run_dir = tmp_path / f"run{seed}"
        runs.append(run_model(config, run_dir=run_dir, do_posterior_sample=False))
    firsts = []
    for seed in (4, 5):
        monkeypatch.setattr("lfads_torch.runs.run._Run._train", _Stop(firsts))
        with pytest.raises(_StoppedError):
            run_model({**config, "seed": seed}, run_dir=tmp_path / "x", do_posterior_sample=False)
    monkeypatch.undo()
    models, data = [model for model, _ in firsts], firsts[0][1]
    trained = Population(models, data, [4, 5], gradient_clip_val=CLIP)
    metrics = [trained.train_epoch() for _ in range(2)][-1]
    for k, run in enumerate(runs):
        logged = {n: v for n, v in run.metrics.items() if n.startswith(("train/", "valid/"))}
        assert set(logged) == set(metrics)
        for name, value in logged.items():
            np.testing.assert_allclose(metrics[name][k], value, **TOLERANCE, err_msg=name)
        saved = torch.load(run.run_dir / LAST, weights_only=True)
        checkpoint = trained.checkpoint(k)
        for name, value in saved["state_dict"].items():
            torch.testing.assert_close(checkpoint["state_dict"][name], value, **TOLERANCE, msg=name)
        assert checkpoint["global_step"] == saved["global_step"]
        assert checkpoint["lfads"]["parts"] == saved["lfads"]["parts"]
        assert {**checkpoint["lr_schedulers"][0], "best": 0} == {
            **saved["lr_schedulers"][0],
            "best": 0,
        }
        assert (
            checkpoint["optimizer_states"][0]["param_groups"]
            == saved["optimizer_states"][0]["param_groups"]
        )

    # The other way round: a run that resumes from a member's checkpoint goes on as the member does.
    torch.save(trained.checkpoint(1), tmp_path / "run5" / LAST)
    longer = {"trainer.max_epochs": 3, "trainer.gradient_clip_val": CLIP}
    resumed = run_model(longer, run_dir=tmp_path / "run5", resume=True, do_posterior_sample=False)
    metrics = trained.train_epoch()
    for name in ("train/loss", "valid/recon_smth", "valid/bps"):
        np.testing.assert_allclose(metrics[name][1], resumed.metrics[name], **TOLERANCE)


class _StoppedError(Exception):
    pass


class _Stop:
    """Takes model and data of a run just before it trains, and ends it."""

    def __init__(self, pairs: list[Any]) -> None:
        self.pairs = pairs

    def __get__(self, instance: Any, owner: Any) -> Any:
        return self

    def __call__(self, model: Any, data: Any) -> Any:
        self.pairs.append((model, data))
        raise _StoppedError


def test_several_sessions(tmp_path: Path) -> None:
    """Sessions of different lengths and channels, some of the last batches lack some of them."""
    shape: dict[str, Any] = {"bins": (5, 7), "truth": True}
    pattern = write(
        tmp_path,
        arrays(20, 3, channels=(2, 4), **shape),
        arrays(9, 8, channels=(3, 5), seed=1, **shape),
    )
    data = datamodule(pattern, batch_size=8)
    assert_as_alone(tmp_path, members(data, 3, weigh_sessions="trial"), data)


RATES = itertools.cycle([0.1, 0.5])  # members differ

PARTS: dict[str, dict[str, Any]] = {
    "autonomous": {"co_dim": 0, "ci_enc_dim": 0, "con_dim": 0},
    "external input": {"_arrays": {"ext": 2}},
    "initial segment": {"ic_enc_seq_len": 2},
    "causal": {"causal": True, "tbptt_bins": 4, "ci_lag": 2},
    "not variational": {"variational": False},
    "StudentT": {"ic_prior": lambda: priors.MultivariateStudentT(0.0, 0.3, 5.0, DIMS["ic_dim"])},
    "Gaussian": {"reconstruction": recons.Gaussian, "lr_init": 1e-3},
    "MSE": {"reconstruction": recons.MSE},
    "PoissonBPS": {"reconstruction": recons.PoissonBPS},
    "ZeroInflatedGamma": {
        "reconstruction": lambda: recons.ZeroInflatedGamma(3, 0.5, 1.5, 2.0, 0.1),
        "lr_init": 1e-3,
    },
    "sums": {"recon_reduce_mean": False, "loss_scale": 1.0},
    "TemporalShift": {
        "train_aug_stack": lambda: AugmentationStack([TemporalShift(1.0, 2)], [0], []),
        "reconstruction": recons.MSE,
    },
    "SpikeJitter": {
        "train_aug_stack": lambda: AugmentationStack([SpikeJitter(1)], [0], []),
    },
    "ChannelMask": {
        "train_aug_stack": lambda: AugmentationStack(
            [CoordinatedDropout(0.3), ChannelMask(next(RATES))], [0, 1], [0, 1]
        ),
    },
    "SampleValidation": {
        "train_aug_stack": lambda: AugmentationStack(
            [SampleValidation(0.2), CoordinatedDropout(0.3)], [0, 1], [1, 0]
        ),
        "infer_aug_stack": lambda: AugmentationStack([SampleValidation(0.2)], [0], [0]),
        "_data": {"sv_rate": 0.2},
    },
    "missing bins": {
        "train_aug_stack": lambda: AugmentationStack([SelectiveBackpropThruTime()], [0], [0]),
        "infer_aug_stack": lambda: AugmentationStack([SelectiveBackpropThruTime()], [0], [0]),
        "_missing": True,
    },
    "reference kernel": {"kernel": "reference"},
    "explicit kernel": {"kernel": "explicit"},
}


@pytest.mark.parametrize("name", PARTS)
def test_every_part_of_the_package_is_stacked(tmp_path: Path, name: str) -> None:
    options = dict(PARTS[name])
    session = arrays(12, 5, truth=True, **options.pop("_arrays", {}))
    if options.pop("_missing", False):
        for split in ("train", "valid"):
            session[f"{split}_recon_data"][::2, 1] = np.nan
            session[f"{split}_encod_data"] = session[f"{split}_recon_data"]
    data = datamodule(write(tmp_path, session), batch_size=6, **options.pop("_data", {}))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*one after another")
        assert_as_alone(tmp_path, members(data, 2, **options), data, 1, members=[1])


class ReadingJitter(SpikeJitter):
    """Reads a number of what it drew."""

    def process_batch(self, batch: SessionBatch) -> SessionBatch:
        batch = super().process_batch(batch)
        return batch._replace(encod_data=batch.encod_data / max(1.0, batch.encod_data.max().item()))


def test_what_reads_a_number_runs_member_by_member_and_the_rest_is_stacked(
    tmp_path: Path, data: Any
) -> None:
    models = members(
        data,
        train_aug_stack=lambda: AugmentationStack(
            [ReadingJitter(1), CoordinatedDropout(0.3)], [0, 1], [1]
        ),
    )
    note = r"augmentations run one after another.*transforms\.0 \(ReadingJitter\) cannot be mapped"
    with pytest.warns(UserWarning, match=note):
        assert_as_alone(tmp_path, models, data, stacked="model")


# ---- parts of a user -----------------------------------------------------------------------------


class LaplacePrior(nn.Module):
    """Draws and scores by `torch.distributions`, as one would write it."""

    def __init__(self, shape: int) -> None:
        super().__init__()
        self.shape = shape
        self.log_scale = nn.Parameter(torch.zeros(shape))

    def make_posterior(self, mean: Tensor, std: Tensor) -> Any:
        return Independent(Normal(mean, std, validate_args=False), 1, validate_args=False)

    def forward(self, mean: Tensor, std: Tensor) -> Tensor:
        u = self.make_posterior(mean, std).rsample()
        prior = Laplace(0.0, self.log_scale.exp(), validate_args=False)
        posterior = Normal(mean, std, validate_args=False)
        return (posterior.log_prob(u) - prior.log_prob(u)).sum(-1).mean()


class BranchingPrior(priors.MultivariateNormal):
    """Its program depends on the data."""

    def __init__(self, shape: int) -> None:
        super().__init__(0.0, 0.1, shape)

    def forward(self, mean: Tensor, std: Tensor) -> Tensor:
        kl = super().forward(mean, std)
        return kl * 2 if kl > 1e9 else kl


class RememberingMask:
    """The manner of older augmentations: what the loss needs waits in an attribute."""

    def __init__(self) -> None:
        self.masks: list[Tensor] = []

    def process_batch(self, batch: Any) -> Any:
        kept = torch.rand_like(batch.encod_data) > 0.3
        self.masks.append(kept)
        return batch._replace(encod_data=batch.encod_data * kept)

    def process_losses(self, loss: Tensor, batch: Any, log_fn: Any, split: str) -> Tensor:
        kept = self.masks.pop()
        log_fn(f"{split}/kept", kept.float().mean())
        return torch.where(kept, loss, loss.detach())


class NumpyNoise:
    """Draws from a generator that knows of no members."""

    def process_batch(self, batch: Any) -> Any:
        noise = torch.from_numpy(np.random.normal(size=batch.encod_data.shape)).float()
        return batch._replace(encod_data=batch.encod_data + 0.1 * noise)


class SmoothReadin(nn.Module):
    """Buffers that training changes, its dropout, and a running number."""

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        self.n_channels = n_channels
        self.norm = nn.BatchNorm1d(n_channels, track_running_stats=True)
        self.drop = nn.Dropout(0.2)
        self.n_calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.n_calls += 1
        return self.drop(self.norm(x.transpose(1, 2)).transpose(1, 2))


class WaveReadout(nn.Module):
    """A small network of one's own."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(n_in, 6), nn.GELU(), nn.LayerNorm(6), nn.Linear(6, n_out)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


@pytest.mark.parametrize(
    "part",
    [
        {"ic_prior": lambda: LaplacePrior(DIMS["ic_dim"])},
        {"co_prior": lambda: LaplacePrior(DIMS["co_dim"])},
        {"train_aug_stack": lambda: AugmentationStack([RememberingMask()], [0], [0])},
        {"readout": lambda: WaveReadout(DIMS["fac_dim"], 3)},
        {"readin": lambda: SmoothReadin(3)},
    ],
    ids=["ic_prior", "co_prior", "augmentation", "readout", "readin"],
)
def test_ones_own_parts_are_stacked_without_being_told(
    tmp_path: Path, data: Any, part: dict[str, Any]
) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*one after another")
        assert_as_alone(tmp_path, members(data, 2, **part), data, members=[1])


def test_a_part_that_cannot_be_mapped_trains_member_by_member(tmp_path: Path, data: Any) -> None:
    models = members(data, 2, ic_prior=lambda: BranchingPrior(DIMS["ic_dim"]))
    note = r"members train one after another.*ic_prior \(BranchingPrior\) cannot be mapped"
    with pytest.warns(UserWarning, match=note):
        assert_as_alone(tmp_path, models, data, stacked="none")


def test_draws_from_numpy_are_each_members_own(tmp_path: Path, data: Any) -> None:
    part = {"train_aug_stack": lambda: AugmentationStack([NumpyNoise(), CoordinatedDropout(0.3)])}
    models = members(data, 2, **part)
    for model in models:
        model.train_aug_stack.batch_order, model.train_aug_stack.loss_order = [0, 1], [1]
    with pytest.warns(UserWarning, match="augmentations run one after another.*NumPy"):
        trained = assert_as_alone(tmp_path, models, data, stacked="model")
    states = np.random.get_state()[1].tolist(), torch.get_rng_state()
    trained.train_epoch()
    assert np.random.get_state()[1].tolist() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])


def test_a_generator_of_ones_own_is_no_members(data: Any) -> None:
    class Own:
        def __init__(self) -> None:
            self.generator = torch.Generator().manual_seed(0)

        def process_batch(self, batch: Any) -> Any:
            noise = torch.randn(batch.encod_data.shape, generator=self.generator)
            return batch._replace(encod_data=batch.encod_data + noise)

    trained = population(data, 2, train_aug_stack=lambda: AugmentationStack([Own()], [0], []))
    with pytest.warns(UserWarning, match="augmentations run.*its own generator"):
        trained.train_epoch()


def test_a_fault_of_a_part_is_told_and_leaves_the_population_as_it_was(data: Any) -> None:
    class Faulty(priors.Null):
        def forward(self, mean: Tensor, std: Tensor) -> Tensor:
            raise ZeroDivisionError("no such prior")

    models = members(data, 2, ic_prior=Faulty)
    trained = Population(models, data, [0, 1], gradient_clip_val=CLIP, stack_size=2)
    before = weights(trained)
    with pytest.warns(UserWarning, match="ic_prior"), pytest.raises(ZeroDivisionError):
        trained.train_epoch()
    assert trained.epoch == 0
    for old, new in zip(before, weights(trained), strict=True):
        assert all(torch.equal(old[name], new[name]) for name in old)


def test_a_users_mistake_is_told_at_once(data: Any) -> None:
    class Refusing(recons.Poisson):
        def element_loss(self, data: Tensor, output_params: Tensor) -> Tensor:
            raise DataError("no such data")

    models = members(data, 2, reconstruction=Refusing)
    trained = Population(models, data, [0, 1], gradient_clip_val=CLIP, stack_size=2)
    with warnings.catch_warnings(), pytest.raises(DataError, match="no such data"):
        warnings.simplefilter("error")
        trained.train_epoch()


# ---- members that diverge ------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["stacked", "one by one"])
def test_nan_in_one_member_does_not_touch_the_others(tmp_path: Path, data: Any, how: str) -> None:
    prior = {"ic_prior": lambda: BranchingPrior(DIMS["ic_dim"])} if how == "one by one" else {}
    models = members(data, 3, **prior)
    with torch.no_grad():
        models[1].readout[0].weight[0, 0] = torch.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        trained = assert_as_alone(
            tmp_path, models, data, members=[0, 2], stacked="none" if prior else "all"
        )
    assert trained.alive.tolist() == [True, False, True]
    trained.exchange([0, 2, 2])
    assert trained.alive.all()
    assert np.isfinite(trained.train_epoch()["valid/loss"]).all()


def test_a_part_may_raise_at_nan(data: Any) -> None:
    """One by one, a member whose part refuses NaN is lost; its numbers are NaN."""

    class Strict(priors.MultivariateNormal):
        def __init__(self) -> None:
            super().__init__(0.0, 0.1, DIMS["ic_dim"])

        def forward(self, mean: Tensor, std: Tensor) -> Tensor:
            if mean.isnan().any():
                raise ValueError("NaN")
            return super().forward(mean, std)

    models = members(data, 2, ic_prior=Strict)
    with torch.no_grad():
        models[0].encoder.ic_linear.weight.fill_(torch.nan)
    trained = Population(models, data, [0, 1], gradient_clip_val=CLIP, stack_size=2)
    with pytest.warns(UserWarning, match="ic_prior"):
        metrics = trained.train_epoch()
    assert trained.alive.tolist() == [False, True]
    assert np.isnan(metrics["valid/loss"][0])
    assert np.isfinite(metrics["valid/loss"][1])


# ---- among one another ---------------------------------------------------------------------------


def test_exchange_copies_all_but_the_seed(data: Any) -> None:
    trained = population(data, 4, lr_scheduler=True, lr_patience=0, lr_decay=0.5)
    trained.set_values({"lr_init": [0.01, 0.02, 0.03, 0.04], "dropout_rate": [0.1, 0.2, 0.3, 0.4]})
    for _ in range(3):
        metrics = trained.train_epoch()
    old = trained.state_dict()["members"]
    trained.exchange(np.array([2, 1, 2, 0]))
    new = trained.state_dict()["members"]
    for name in old:
        if name in ("frozen", "buffers"):
            for k, v in old[name].items():
                assert torch.equal(new[name][k], v[[2, 1, 2, 0]])
        elif name != "seeds":  # scores that the data do not have are NaN
            np.testing.assert_array_equal(new[name], old[name][[2, 1, 2, 0]])
    assert torch.equal(new["seeds"], old["seeds"])
    np.testing.assert_allclose(trained.values["lr_init"], [0.03, 0.02, 0.03, 0.01], rtol=1e-6)
    smoothed = trained.checkpoint(0)["lfads_run"]["metrics"]["valid/recon_smth"]
    assert smoothed == metrics["valid/recon_smth"][2]
    # Same weights and numbers, other seeds: they part from here on.
    after = trained.train_epoch()
    assert after["train/recon"][0] != after["train/recon"][2]


def test_members_that_are_the_same_stay_the_same(data: Any) -> None:
    models = members(data, 1) * 3
    trained = Population(models, data, [7, 7, 7], gradient_clip_val=CLIP, stack_size=3)
    # A product over all members may round each a little differently, as torch 2.6 does.
    for values in trained.train_epoch().values():
        np.testing.assert_allclose(values, values[[0, 0, 0]], rtol=1e-6, atol=0)


def test_a_population_of_one_member(data: Any) -> None:
    trained = population(data, 1)
    for _ in range(2):
        scores = trained.train_epoch()["valid/recon_smth"]
    assert scores.shape == (1,) and np.isfinite(scores).all()
    assert trained.checkpoint(0)["epoch"] == 1


def test_keep(data: Any) -> None:
    whole, part = population(data, 4), population(data, 4)
    for trained in (whole, part):
        trained.train_epoch()
    part.keep([3, 1])
    assert part.n_members == 2
    expected, found_metrics = whole.train_epoch(), part.train_epoch()
    for name, values in found_metrics.items():
        np.testing.assert_allclose(values, expected[name][[3, 1]], **TOLERANCE)
    assert part.values["lr_init"].shape == (2,)


def test_adopt_from_another_population(data: Any) -> None:
    one, other = population(data, 2), population(data, 3)
    other.set_values({"lr_init": [0.1, 0.2, 0.3]})
    for trained in (one, other):
        trained.train_epoch()
    one.adopt(0, other.state_dict(), 2)
    got, given = one.member(0).state_dict(), other.member(2).state_dict()
    assert all(torch.equal(got[name], given[name]) for name in given)
    assert one.values["lr_init"][0] == pytest.approx(0.3)
    assert one.values["lr_init"][1] == pytest.approx(0.01)


# ---- numbers that a search sets ------------------------------------------------------------------


def test_set_values_makes_members_as_if_built_with_them(data: Any) -> None:
    built = Population(different_members(data), data, range(5), gradient_clip_val=CLIP)
    values = built.values
    assert set(values) == set(built.names)
    assert "train_aug_stack.transforms.0.cd_rate" in built.names
    models = different_members(data)
    for model in models:
        for number in model.tunables().values():
            number.fill_(0.25)
    set_later = Population(models, data, range(5), gradient_clip_val=CLIP)
    set_later.set_values(values)
    got, expected = set_later.train_epoch(), built.train_epoch()
    for name, column in expected.items():
        np.testing.assert_array_equal(got[name], column, err_msg=name)


def test_a_changed_learning_rate_starts_anew_and_another_stays(data: Any) -> None:
    trained = population(data, 2, lr_scheduler=True, lr_patience=0, lr_decay=0.5)
    trained.set_values({"lr_init": [1e-12, 1e-12]})  # every epoch but the first is on a plateau
    for _ in range(4):
        trained.train_epoch()
    trained.set_values({"lr_init": [1e-12, 0.02], "dropout_rate": [0.0, 0.0]})
    rates = [
        trained.checkpoint(k)["optimizer_states"][0]["param_groups"][0]["lr"] for k in range(2)
    ]
    assert rates[0] < 1e-12 or rates[0] == pytest.approx(1e-12)
    assert rates[1] == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dropout": [0.1, 0.1]}, "dropout_rate"),
        ({"dropout_rate": [0.1]}, "one finite number for each of the 2"),
        ({"dropout_rate": [0.1, np.nan]}, "one finite number"),
    ],
)
def test_values_that_cannot_be_set(data: Any, values: dict[str, Any], message: str) -> None:
    trained = population(data, 2)
    with pytest.raises(ConfigError, match=message):
        trained.set_values(values)


# ---- state ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [{}, {"ic_prior": lambda: BranchingPrior(DIMS["ic_dim"])}])
@pytest.mark.filterwarnings("ignore:.*one after another")
def test_resuming_gives_the_same_bits(tmp_path: Path, data: Any, parts: dict[str, Any]) -> None:
    options = {"lr_scheduler": True, "lr_patience": 0, "weight_decay": 0.1, **parts}
    whole = population(data, 3, **options)
    metrics = [whole.train_epoch() for _ in range(4)]
    first = population(data, 3, **options)
    for _ in range(2):
        first.train_epoch()
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = population(data, 3, **options)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert second.epoch == 2
    for expected in metrics[2:]:
        for name, values in second.train_epoch().items():
            np.testing.assert_array_equal(values, expected[name], err_msg=name)
    for a, b in zip(weights(whole), weights(second), strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_state_of_other_members_is_refused(data: Any) -> None:
    with pytest.raises(ConfigError, match=r"of 2 members.*population of 3"):
        population(data, 3).load_state_dict(population(data, 2).state_dict())


def test_an_interrupted_epoch_leaves_the_members_as_they_were(data: Any) -> None:
    class Interrupting:
        n_left = 3

        def process_batch(self, batch: Any) -> Any:
            Interrupting.n_left -= 1
            if not Interrupting.n_left:
                raise KeyboardInterrupt
            return batch

    stack = lambda: AugmentationStack([Interrupting(), CoordinatedDropout(0.3)], [0, 1], [1])  # noqa: E731
    trained, other = population(data, 2, train_aug_stack=stack), population(data, 2)
    with pytest.raises(KeyboardInterrupt):
        trained.train_epoch()
    expected = other.train_epoch()
    for name, values in trained.train_epoch().items():
        np.testing.assert_array_equal(values, expected[name])


def test_a_members_checkpoint_is_a_model(tmp_path: Path, data: Any) -> None:
    trained = population(data, 2)
    trained.set_values({"dropout_rate": [0.1, 0.2]})
    with pytest.raises(UserError, match="no epoch is trained yet"):
        trained.checkpoint(0)
    trained.train_epoch()
    torch.save(trained.checkpoint(1), tmp_path / "member.ckpt")
    model = load_model(tmp_path / "member.ckpt")
    member = trained.member(1)
    assert model.session_names == ["day0"]
    assert model.hparams.dropout_rate == pytest.approx(0.2)
    assert model.hparams.lr_init == 0.01
    batch = next(iter(data.val_dataloader()))
    with torch.no_grad():
        a, b = model(batch)[0], member(batch)[0]
    assert torch.equal(a.output_params, b.output_params)
    # A member is a copy: what is done to it is not done to the population.
    with torch.no_grad():
        member.readout[0].weight.zero_()
    assert trained.member(1).readout[0].weight.abs().sum() > 0


def test_the_models_given_are_left_alone(data: Any) -> None:
    models = members(data, 2)
    before = [copy.deepcopy(model.state_dict()) for model in models]
    trained = Population(models, data, [0, 1], gradient_clip_val=CLIP)
    trained.set_values({"dropout_rate": [0.4, 0.4]})
    trained.train_epoch()
    for model, state in zip(models, before, strict=True):
        assert all(torch.equal(model.state_dict()[name], state[name]) for name in state)
        assert model.dropout_rate == pytest.approx(0.05)


# ---- what is refused -----------------------------------------------------------------------------


def test_models_of_different_structure(data: Any) -> None:
    def refused(message: str, **options: Any) -> None:
        models = [lfads(data, train_aug_stack=cd_stack()), lfads(data, **options)]
        with pytest.raises(ConfigError, match=message):
            Population(models, data, [0, 1], gradient_clip_val=CLIP)

    refused("gen_dim is 5 .* and 6", gen_dim=6, train_aug_stack=cd_stack())
    refused(r"cd_rate|transforms", train_aug_stack=AugmentationStack())
    refused("off is False .* and True", train_aug_stack=cd_stack(0.0))
    refused("loss_scale", loss_scale=1.0, train_aug_stack=cd_stack())
    refused("MSE", reconstruction=recons.MSE(), train_aug_stack=cd_stack())


def test_arguments_out_of_range(data: Any) -> None:
    models = members(data, 2)
    with pytest.raises(ConfigError, match="2 models and 3 seeds"):
        Population(models, data, [0, 1, 2], gradient_clip_val=CLIP)
    with pytest.raises(ConfigError, match="at least one model"):
        Population([], data, [], gradient_clip_val=CLIP)
    with pytest.raises(ConfigError, match="stack_size is 0"):
        Population(models, data, [0, 1], gradient_clip_val=CLIP, stack_size=0)
    trained = Population(models, data, [0, 1], gradient_clip_val=0)
    for parents in ([0], [0, 2], [0.0, 1.0], [-1, 0]):
        with pytest.raises(ConfigError, match="from 0 to 1"):
            trained.exchange(parents)
    for kept in ([], [2], [-1]):
        with pytest.raises(ConfigError, match="members to keep"):
            trained.keep(kept)


# ---- memory --------------------------------------------------------------------------------------


def test_members_are_cut_into_stacks_that_fit(data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = capacity.step_bytes(members(data, 1)[0], population(data, 1)._epochs.first_batch())
    assert needed > 0
    for n_fitting, expected in ((1.5, 1), (2.5, 2), (3.7, 2), (100, 4)):
        monkeypatch.setattr(capacity, "bytes_available", lambda _, n=n_fitting: n * needed / 0.8)
        assert population(data, 4).stack_size == expected
    monkeypatch.setattr(capacity, "bytes_available", lambda _: needed // 2)
    with pytest.raises(UserError, match=r"step takes about .* are free; lower"):
        population(data, 4)


@pytest.fixture
def _little_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    stacked = epochs.run_stacked

    def limited(self: Any, tensors: Any, *args: Any, **options: Any) -> Any:
        if len(next(iter(tensors.values()))) > 1:
            raise torch.OutOfMemoryError("too much")
        return stacked(self, tensors, *args, **options)

    monkeypatch.setattr(epochs, "run_stacked", limited)
    yield


@pytest.mark.usefixtures("_little_memory")
def test_out_of_memory_makes_stacks_smaller(tmp_path: Path, data: Any) -> None:
    with pytest.warns(UserWarning, match="2 members are stacked.*out of memory"):
        trained = assert_as_alone(tmp_path, members(data, 4), data, 1, members=[3])
    assert trained.stack_size == 1
