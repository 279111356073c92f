"""Descriptions of parts: plain numbers and names out, the same part back in, nothing else."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lfads_torch.consent import EVERYTHING
from lfads_torch.errors import ConfigError, UserError
from lfads_torch.modules import augmentations, priors, readin_readout, recons
from lfads_torch.modules.spec import from_spec, to_spec
from lfads_torch.tuples import SessionBatch
from tests.small import arrays, write

STACK = augmentations.AugmentationStack(
    [
        augmentations.CoordinatedDropout(0.25, 0.5, 3),
        augmentations.SampleValidation(0.1, 2, False),
        augmentations.SelectiveBackpropThruTime(),
        augmentations.TemporalShift(1.5, 3),
        augmentations.SpikeJitter(1),
    ],
    batch_order=[0, 2, 3],
    loss_order=[0, 2],
)
PARTS = [
    priors.Null(),
    priors.MultivariateNormal(0.5, 0.25, 3),
    priors.AutoregressiveMultivariateNormal(8.0, 0.125, 3),
    priors.MultivariateStudentT(0.5, 2.0, 5.0, 3),
    recons.Poisson(),
    recons.PoissonBPS(),
    recons.MSE(),
    recons.Gaussian(),
    recons.Gamma(),
    recons.ZeroInflatedGamma(4, 0.125, 20.0, 10.0, 0.5),
    nn.Identity(),
    readin_readout.FanInLinear(3, 2),
    readin_readout.FanInLinear(3, 2, bias=False),
    nn.ModuleList([recons.Gaussian(), recons.Poisson()]),
    *STACK.transforms,
    STACK,
    augmentations.AugmentationStack(),
]


def stored(spec: Any) -> Any:
    """What a checkpoint gives back without executing anything."""
    buffer = io.BytesIO()
    torch.save(spec, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def members(part: Any) -> dict[str, Any]:
    """Plain attributes and tensors of a part."""
    plain = {k: v for k, v in vars(part).items() if isinstance(v, (bool, int, float, str))}
    return plain | {k: v.tolist() for k, v in part.state_dict().items()}


@pytest.mark.parametrize("part", PARTS, ids=lambda part: type(part).__name__)
def test_every_part_survives(part: Any) -> None:
    spec = stored(to_spec(part))
    again = from_spec(spec)
    assert type(again) is type(part)
    assert to_spec(again) == spec
    again_members, part_members = members(again), members(part)
    if not isinstance(part, readin_readout.FanInLinear):  # whose weights are drawn
        assert again_members == part_members
    else:
        assert again.weight.shape == part.weight.shape
        assert (again.bias is None) == (part.bias is None)


def test_a_stack_keeps_its_transforms_and_orders() -> None:
    again = from_spec(stored(to_spec(STACK)))
    assert [type(t) for t in again.transforms] == [type(t) for t in STACK.transforms]
    assert [members(t) for t in again.transforms] == [members(t) for t in STACK.transforms]
    assert (again.batch_order, again.loss_order) == ([0, 2, 3], [0, 2])
    assert again.transforms[0].cd_rate == 0.25


def test_sessions_from_files_need_no_files_later(tmp_path: Path) -> None:
    pattern = write(tmp_path, arrays(channels=(3, 3)), arrays(channels=(2, 4)))
    readin = readin_readout.MultisessionReadin(pattern, out_features=5, pcr_init=False)
    zig = recons.ZeroInflatedGamma(1, 0.125, 20.0, 10.0, 0.5)
    recon = recons.MultisessionReconstruction(pattern, zig)
    specs = stored([to_spec(readin), to_spec(recon)])
    for file in tmp_path.iterdir():
        file.unlink()
    readin_again, recon_again = from_spec(specs)
    assert [tuple(m.weight.shape) for m in readin_again] == [(5, 3), (5, 2)]
    assert [tuple(m.scale.shape) for m in recon_again] == [(2, 3), (2, 4)]


class Scaled:
    """A user's transform, its argument an attribute."""

    def __init__(self, factor: float, inner: Any = None) -> None:
        self.factor, self.inner = factor, inner

    def process_batch(self, batch: SessionBatch) -> SessionBatch:
        return batch._replace(encod_data=self.factor * batch.encod_data)


class Declared(nn.Module):
    """A user's prior that says its arguments in `init_args`."""

    def __init__(self, width: float, *rest: Any, **options: Any) -> None:
        super().__init__()
        self.init_args = {"width": width}
        self.logwidth = nn.Parameter(torch.tensor([width]).log())

    def make_posterior(self, mean: Tensor, std: Tensor) -> Any:
        return priors.gaussian_posterior(mean, std)

    def forward(self, mean: Tensor, std: Tensor) -> Tensor:
        return ((mean / self.logwidth.exp()) ** 2).mean()


class Silent(nn.Module):
    """Does not say what it was built from."""

    def __init__(self, width: float) -> None:
        super().__init__()
        self.register_buffer("hidden", torch.full((2,), width))


def test_parts_of_ones_own() -> None:
    again = from_spec(stored(to_spec(Scaled(3.0, inner=Declared(2.0)))))
    assert isinstance(again, Scaled)
    assert again.factor == 3.0
    assert isinstance(again.inner, Declared)
    assert again.inner.logwidth.exp().item() == pytest.approx(2.0)


def test_a_part_that_keeps_its_arguments_to_itself() -> None:
    with pytest.raises(ConfigError, match=r"Silent cannot be rebuilt.*attribute of the same name"):
        from_spec(stored(to_spec(Silent(2.0))))


def test_building_leaves_the_random_numbers_alone() -> None:
    spec = to_spec(readin_readout.FanInLinear(3, 2))
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    from_spec(spec)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "builtins.exec",
        "subprocess.Popen",
        "pathlib.Path",
        "torch.load",
        "lfads_torch.modules.spec.from_spec",
    ],
)
def test_functions_and_other_classes_are_refused(target: str) -> None:
    with pytest.raises(UserError, match=rf"needs {re.escape(target)}\. Nothing of it was imported"):
        from_spec({"_target_": target, "command": "exit 1"})
    # Consent is to import it, not to call what is no part of a model.
    with pytest.raises(ConfigError, match=r"neither a torch\.nn\.Module nor an augmentation"):
        from_spec({"_target_": target, "command": "exit 1"}, EVERYTHING)


@pytest.mark.parametrize(
    "target", ["no_such_lab.Prior", "lfads_torch.modules.priors.Nul", "Null", ""]
)
def test_targets_that_cannot_be_imported(target: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot be imported here.*PYTHONPATH"):
        from_spec({"_target_": target}, EVERYTHING)


def test_refusal_reaches_nested_parts() -> None:
    spec = to_spec(STACK)
    spec["transforms"][1] = {"_target_": "os.system", "command": "exit 1"}
    with pytest.raises(UserError, match=r"os\.system"):
        from_spec(spec)
