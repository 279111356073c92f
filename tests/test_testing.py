"""Contracts for a user's own components: the shipped ones keep them, broken ones are named."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from lfads_torch.errors import ConfigError
from lfads_torch.modules import augmentations, priors, recons
from lfads_torch.testing import check_augmentation, check_likelihood, check_prior
from lfads_torch.tuples import SessionBatch

COUNTS = torch.poisson(torch.full((6, 8, 4), 1.5), generator=torch.Generator().manual_seed(0))
PRIORS = [
    priors.Null(),
    priors.MultivariateNormal(0.5, 0.25, 3),
    priors.AutoregressiveMultivariateNormal(8.0, 0.125, 3),
    priors.MultivariateStudentT(0.5, 2.0, 5.0, 3),
]
LIKELIHOODS = [
    recons.Poisson(),
    recons.PoissonBPS(),
    recons.MSE(),
    recons.Gaussian(),
    recons.Gamma(),
    recons.ZeroInflatedGamma(4, 0.125, 20.0, 10.0, 0.5),
]
AUGMENTATIONS = [
    augmentations.CoordinatedDropout(0.25, 0.5, 3),
    augmentations.CoordinatedDropout(0.0),
    augmentations.CoordinatedDropoutTF2(0.25),
    augmentations.ChannelMask(0.25, segment=3),
    augmentations.SampleValidation(0.2, 2),
    augmentations.SelectiveBackpropThruTime(),
    augmentations.TemporalShift(1.5, 3),
    augmentations.SpikeJitter(1),
]


def named(components: list[Any]) -> Any:
    return pytest.mark.parametrize("one", components, ids=lambda one: type(one).__name__)


@named(PRIORS)
def test_every_shipped_prior_of_inputs_keeps_its_contract(one: Any) -> None:
    check_prior(one, 3)


@named([one for one in PRIORS if not hasattr(one, "logtaus")])
def test_every_shipped_prior_of_initial_conditions_keeps_its_contract(one: Any) -> None:
    check_prior(one, 3, n_bins=None)


@named(LIKELIHOODS)
def test_every_shipped_likelihood_keeps_its_contract(one: Any) -> None:
    check_likelihood(one, COUNTS + 1 if type(one) is recons.Gamma else COUNTS)


@named(AUGMENTATIONS)
def test_every_shipped_augmentation_keeps_its_contract(one: Any) -> None:
    check_augmentation(one)


def test_none_is_forgotten() -> None:
    for module, components in (
        (priors, PRIORS),
        (recons, LIKELIHOODS),
        (augmentations, AUGMENTATIONS),
    ):
        shipped = {
            name
            for name, cls in inspect.getmembers(module, inspect.isclass)
            if cls.__module__ == module.__name__ and not name.startswith("_")
        }
        bases = {"Reconstruction", "MultisessionReconstruction", "AugmentationStack"}
        assert shipped - bases == {type(one).__name__ for one in components}


def test_checks_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    check_prior(PRIORS[2], 3)
    check_likelihood(LIKELIHOODS[0], COUNTS)
    check_augmentation(AUGMENTATIONS[0])
    assert torch.equal(torch.get_rng_state(), before)


# Broken ones: each differs from a good one in a single way ----------------------------------------


class Unit(nn.Module):
    """A standard normal prior."""

    def make_posterior(self, mean: Tensor, std: Tensor) -> Any:
        return Independent(Normal(mean, std), 1)

    def forward(self, mean: Tensor, std: Tensor) -> Tensor:
        return (0.5 * (std**2 + mean**2 - 1) - std.log()).flatten(1).sum(1).mean()


class PriorOfEachNumber(Unit):
    def make_posterior(self, mean: Tensor, std: Tensor) -> Any:
        return Normal(mean, std)


class PriorOverTrials(Unit):
    def forward(self, mean: Tensor, std: Tensor) -> Tensor:
        return super().forward(mean, std) * len(mean)


class PriorMeanOfBins(Unit):
    def forward(self, mean: Tensor, std: Tensor) -> Tensor:
        return super().forward(mean, std) / mean.shape[1]


class PriorPerTrial(Unit):
    def forward(self, mean: Tensor, std: Tensor) -> Tensor:
        return (mean**2).sum((1, 2))


class PriorUpsideDown(Unit):
    def forward(self, mean: Tensor, std: Tensor) -> Tensor:
        return -super().forward(mean, std)


class PriorDetached(Unit):
    def forward(self, mean: Tensor, std: Tensor) -> Tensor:
        return super().forward(mean.detach(), std.detach())


class PriorIgnoresMask(Unit):
    def forward(self, mean: Tensor, std: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(mean, std)


class PriorForgets(Unit):
    def __init__(self, scale: float) -> None:
        super().__init__()


class PriorWithIf(Unit):
    def forward(self, mean: Tensor, std: Tensor) -> Tensor:
        return super().forward(mean, std) if mean.max() > 0 else std.sum()


@pytest.mark.parametrize(
    ("prior", "n_bins", "message"),
    [
        (PriorOfEachNumber(), None, "over the last axis; wrap it in .*Independent"),
        (PriorOverTrials(), 6, "twice the trials, not 1 times; sum over bins"),
        (PriorMeanOfBins(), 6, "twice the bins, not 2 times; sum over bins"),
        (PriorPerTrial(), 6, r"is \(64,\); return a tensor of shape \(\)"),
        (PriorUpsideDown(), 6, "is -.* return E_q"),
        (PriorDetached(), 6, "passes no gradient on"),
        (PriorIgnoresMask(), 6, "depends on bins where `mask` is False"),
        (PriorForgets(1.0), 6, "does not keep scale; keep each constructor argument"),
        (PriorWithIf(), 6, "does not work for a population at once: .* stacked=False"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_broken_prior_is_named(prior: nn.Module, n_bins: int | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_prior(prior, 3, n_bins=n_bins)


def test_a_good_prior_passes_and_one_that_cannot_be_stacked_says_so() -> None:
    check_prior(Unit(), 3)
    check_prior(PriorWithIf(), 3, stacked=False)


class Squares(nn.Module):
    """Squared error."""

    n_params = 1

    def reshape_output_params(self, output_params: Tensor) -> Tensor:
        return output_params.unsqueeze(-1)

    def compute_loss(self, data: Tensor, output_params: Tensor) -> Tensor:
        return (data - output_params[..., 0]) ** 2

    def compute_means(self, output_params: Tensor) -> Tensor:
        return output_params[..., 0]


class NoCount(Squares):
    n_params = None  # type: ignore[assignment]


class Unshaped(Squares):
    def reshape_output_params(self, output_params: Tensor) -> Tensor:
        return output_params


class MeanLoss(Squares):
    def compute_loss(self, data: Tensor, output_params: Tensor) -> Tensor:
        return super().compute_loss(data, output_params).mean()


class RootLoss(Squares):
    def compute_loss(self, data: Tensor, output_params: Tensor) -> Tensor:
        return output_params[..., 0].sqrt()


class BadGradient(Squares):
    def compute_loss(self, data: Tensor, output_params: Tensor) -> Tensor:
        x = output_params[..., 0]
        return torch.where(x > 0, x.sqrt(), x**2)


class NotALogRate(Squares):
    for_counts = True


class LosesNothing(Squares):
    def observed_loss(self, data: Tensor, observed: Tensor, output_params: Tensor) -> Tensor:
        return self.compute_loss(data.nan_to_num(7.0), output_params)


@pytest.mark.parametrize(
    ("recon", "message"),
    [
        (NoCount(), "n_params is None; set it"),
        (Unshaped(), r"return a tensor of shape \(6, 8, 4, 1\)"),
        (MeanLoss(), r"is \(\); return a tensor of shape \(6, 8, 4\)"),
        (RootLoss(), "NaN or infinite; bound what you divide by"),
        (BadGradient(), "torch.where passes the gradient of the unused branch"),
        (NotALogRate(), "make the first parameter the log rate"),
        (LosesNothing(), "not 0 where an entry is missing; mask it"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_broken_likelihood_is_named(recon: nn.Module, message: str) -> None:
    check_likelihood(Squares(), COUNTS)
    with pytest.raises(ConfigError, match=message):
        check_likelihood(recon, COUNTS)


class Nothing:
    pass


class InPlace:
    def process_batch(self, batch: SessionBatch) -> SessionBatch:
        batch.encod_data.mul_(2)
        return batch


class Forgetful:
    def process_batch(self, batch: SessionBatch) -> None:
        return None


class Cut:
    def process_batch(self, batch: SessionBatch) -> SessionBatch:
        return batch._replace(encod_data=batch.encod_data[:, 1:])


class Smooth:
    """Spreads missing entries to the bins before them."""

    def process_batch(self, batch: SessionBatch) -> SessionBatch:
        data = batch.encod_data
        return batch._replace(encod_data=(data + data.roll(-1, dims=1)) / 2)


class Silenced:
    def process_losses(
        self, recon_loss: Tensor, batch: SessionBatch, log_fn: Any, data_split: str
    ) -> Tensor:
        return recon_loss.detach()


class Counted(nn.Module):
    """Reads a number of the batch."""

    def process_batch(self, batch: SessionBatch) -> SessionBatch:
        noise = torch.rand_like(batch.encod_data)
        return (
            batch if noise.sum().item() < 0 else batch._replace(encod_data=batch.encod_data + noise)
        )


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (Nothing(), "neither process_batch nor process_losses; add one"),
        (InPlace(), "changes encod_data in place; change a copy"),
        (Forgetful(), "must return a SessionBatch"),
        (Cut(), r"is \(64, 7, 5\); return a tensor of shape \(64, 8, 5\)"),
        (Smooth(), "different lengths: encod_data .* let no missing entry spread"),
        (Silenced(), "process_losses passes no gradient on"),
        (Counted(), "Counted does not work for a population at once"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_a_broken_augmentation_is_named(transform: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_augmentation(transform)
