"""Random masks: their rate, their independence, and that the seed settles them."""

from __future__ import annotations

import pytest
import torch
from torch.func import vmap

from lfads_torch.kernels import c_library
from lfads_torch.modules.masks import (
    coordinated_masks,
    dropout_mask,
    random_mask,
    scaled_gradient,
)


@pytest.fixture(params=["native", "torch"])
def draws(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "native" and c_library.why_not():
        pytest.skip(f"native loops: {c_library.why_not()}")
    if request.param == "torch":
        monkeypatch.setattr(c_library, "fits", lambda _: False)
    return str(request.param)


@pytest.mark.parametrize("rate", [0.02, 0.3, 0.9])
def test_rate_and_scale(draws: str, rate: float) -> None:
    mask = dropout_mask((50, 40, 101), torch.tensor(rate))
    assert mask.dtype == torch.float32
    assert mask.shape == (50, 40, 101)
    assert mask.unique().tolist() == pytest.approx([0, 1 / (1 - rate)])
    # Five standard deviations of the mean of 202000 draws.
    assert (mask == 0).double().mean() == pytest.approx(rate, abs=5 * (0.25 / 202_000) ** 0.5)
    drawn = random_mask((50, 40, 101), torch.tensor(rate))
    assert drawn.unique().tolist() == [0, 1]
    assert drawn.double().mean() == pytest.approx(rate, abs=5 * (0.25 / 202_000) ** 0.5)


def test_coordinated_masks_complement_one_another(draws: str) -> None:
    scaled, dropped = coordinated_masks((30, 41), torch.tensor(0.3))
    assert torch.equal(dropped, (scaled == 0).float())
    assert 0 < dropped.sum() < dropped.numel()


def test_only_the_gradient_is_scaled() -> None:
    x, mask = torch.randn(3, 4, requires_grad=True), torch.tensor([0.0, 1.0, 2.0, 0.0]).expand(3, 4)
    out = scaled_gradient(x, mask)
    assert torch.equal(out, x)
    (grad,) = torch.autograd.grad((out**2).sum(), x)
    assert torch.equal(grad, 2 * x.detach() * mask)
    mapped = vmap(torch.func.grad(lambda x, m: (scaled_gradient(x, m) ** 2).sum()))(x, mask)
    assert torch.equal(mapped, grad)


def test_rate_zero_keeps_everything(draws: str) -> None:
    assert torch.equal(dropout_mask((5, 999), torch.tensor(0.0)), torch.ones(5, 999))
    assert not random_mask((2049,), torch.tensor(0.0)).any()


def test_the_seed_settles_a_mask_and_masks_differ(draws: str) -> None:
    rate = torch.tensor(0.5)
    torch.manual_seed(3)
    first, second = random_mask((4000,), rate), random_mask((4000,), rate)
    torch.manual_seed(3)
    assert torch.equal(random_mask((4000,), rate), first)
    for other in (second, first.roll(1), first.roll(4), first.roll(1024)):
        assert (first == other).double().mean() == pytest.approx(0.5, abs=0.05)


def test_every_member_of_a_population_has_its_own(draws: str) -> None:
    rates = torch.tensor([0.1, 0.5, 0.5])
    masks = vmap(lambda r: random_mask((20, 400), r), randomness="different")(rates)
    assert masks.shape == (3, 20, 400)
    hit = masks.double().mean(dim=(1, 2))
    assert hit.tolist() == pytest.approx([0.1, 0.5, 0.5], abs=0.03)
    assert (masks[1] == masks[2]).double().mean() == pytest.approx(0.5, abs=0.03)
    shared = torch.tensor(0.5)
    masks = vmap(lambda x: random_mask((8000,), shared) * x, randomness="different")(torch.ones(2))
    assert (masks[0] == masks[1]).double().mean() == pytest.approx(0.5, abs=0.03)
