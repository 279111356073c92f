"""A training step stays on its device: nothing waits for a number, and no device is mixed in.

The device is torch's `meta`, whose tensors have shapes and no numbers: to read one, to have a shape
depend on one, and to mix them with tensors of the CPU, raises, as it would wait or raise on a GPU.
`OneDevice` refuses what torch allows besides: single numbers of the CPU among tensors of a device,
which a CUDA graph would keep as they were, and copies from one to the other.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lfads_torch import network
from lfads_torch.model import LFADS
from lfads_torch.modules import recons
from lfads_torch.modules.augmentations import (
    AugmentationStack,
    ChannelMask,
    CoordinatedDropout,
    SampleValidation,
    SelectiveBackpropThruTime,
    SpikeJitter,
    TemporalShift,
)
from lfads_torch.objective import augment, count_batch, evaluate
from lfads_torch.search.population.draws import Streams
from lfads_torch.search.population.steps import run_stacked
from lfads_torch.tuples import SessionBatch
from tests.small import DIMS


class OneDevice(TorchDispatchMode):
    """Refuses operations on tensors of more than one device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)]
        if len(devices := {x.device.type for x in tensors}) > 1:
            raise RuntimeError(f"{func} has tensors on {devices}")
        return out


AUGMENTATIONS = {
    "coordinated": partial(CoordinatedDropout, 0.3),
    "channels": partial(ChannelMask, 0.3),
    "validation": partial(SampleValidation, 0.2),
    "backprop": SelectiveBackpropThruTime,
    "shift": TemporalShift,
    "jitter": SpikeJitter,
}
# torch has none for draws of this kind, which read no number on a GPU either.
_META = torch.library.Library("aten", "IMPL")
_META.impl("binomial", lambda count, prob, generator=None: torch.empty_like(count), "Meta")


def batch_of(device: str, lengths: bool) -> dict[int, SessionBatch]:
    data = torch.zeros(4, 5, 3, device=device)
    none = data.new_zeros(4, 0, 0)
    n_bins = data.new_full((4,), 3, dtype=torch.long) if lengths else None
    return {0: SessionBatch(data, data, data[..., :0], none, none.bool(), lengths=n_bins)}


@pytest.fixture(autouse=True)
def _no_mixed_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    # It knows no such device.
    monkeypatch.setattr(network, "_own_precision", lambda _: nullcontext())


def model_of(augmentation: nn.Module, recon: Any = None) -> LFADS:
    acts = [int(hasattr(augmentation, f"process_{what}")) for what in ("batch", "losses")]
    model = LFADS(
        encod_data_dim=3,
        encod_seq_len=5,
        recon_seq_len=5,
        reconstruction=recon,
        train_aug_stack=AugmentationStack([augmentation], *([0][:n] for n in acts)),
        **DIMS,
    ).train()
    for likelihood in model.recon:
        likelihood.data_checked = True
    return model


@pytest.mark.parametrize("lengths", [False, True])
@pytest.mark.parametrize("recon", [recons.Poisson, recons.Gaussian])
def test_step_and_sampling(recon: Any, lengths: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(CoordinatedDropout(0.3), recon())
    optimizer: Any = model.configure_optimizers()
    model.to("meta")
    trained = [p for p in model.parameters() if p.requires_grad and p.numel()]
    # As a CUDA graph needs it: the rate, too, is a number on the device, not one of Python's.
    for name in ("adam", "adamw"):  # torch 2.6 asks in the second
        module, asked = sys.modules[f"torch.optim.{name}"], "_get_capturable_supported_devices"
        monkeypatch.setattr(module, asked, lambda **_: ["meta"], raising=False)
    optimizer = type(optimizer)(trained, lr=0.01, capturable=True, foreach=True)
    optimizer.param_groups[0]["lr"] = torch.tensor(0.01, device="meta")
    weights, stack = model.weights, model.train_aug_stack
    batch = batch_of("meta", lengths)
    with OneDevice():
        result = evaluate(model, weights, augment(stack, batch), stack, "train")
        result.terms.total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 200.0)
        optimizer.step()
        count_batch(model.scores["train"], result)
    assert all(p.grad is not None and p.grad.is_meta for p in trained)
    with torch.no_grad(), OneDevice():
        assert all(
            x.is_meta for x in model.eval()(batch, sample_posteriors=True)[0] if x is not None
        )
    with pytest.raises(RuntimeError):
        result.terms.total.item()
    with pytest.raises(RuntimeError):
        model(batch_of("cpu", lengths))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentations(name: str) -> None:
    model = model_of(AUGMENTATIONS[name]()).to("meta")
    batch = batch_of("meta", lengths=False)
    if name == "validation":
        batch[0] = batch[0]._replace(sv_mask=torch.ones_like(batch[0].recon_data).bool())
    with OneDevice():
        model.evaluated(batch, "train").terms.total.backward()


def test_a_stacked_population(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(CoordinatedDropout(0.3)).to("meta")
    # A device without numbers has no generators: those of the CPU stand in and draw nothing.
    streams = Streams([0, 1, 2], 0, torch.device("cpu"))
    monkeypatch.setattr(streams, "on", lambda _: streams._torch[torch.device("cpu")])
    tensors = {
        name: torch.stack([x.detach()] * 3).requires_grad_(isinstance(x, nn.Parameter))
        for name, x in (*model.named_parameters(), *model.named_buffers())
    }
    # Without `OneDevice`: vmap makes tensors of plain numbers in Python.
    batch = batch_of("meta", lengths=False)
    result = run_stacked(model, tensors, batch, "train", streams, shared=True)
    result.terms.total.sum().backward()
    assert result.terms.total.shape == (3,)


def test_what_the_mode_refuses() -> None:
    model = model_of(CoordinatedDropout(0.3)).to("meta")
    model.l2_ramp = torch.tensor(0.5)  # stays on the CPU
    with OneDevice(), pytest.raises(RuntimeError, match="has tensors on"):
        model.evaluated(batch_of("meta", lengths=False), "train")
