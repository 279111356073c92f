"""A training step stays on its device: nothing waits for a number, and no device is mixed in.

The device is torch's `meta`, whose tensors have shapes and no numbers: to read one, and to mix
them with tensors of the CPU, raises, as it would wait or raise on a GPU.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn

from lfads_torch import network
from lfads_torch.model import LFADS
from lfads_torch.modules import recons
from lfads_torch.modules.augmentations import AugmentationStack, CoordinatedDropout
from lfads_torch.objective import augment, count_batch, evaluate
from lfads_torch.tuples import SessionBatch
from tests.small import DIMS


def batch_of(device: str, lengths: bool) -> dict[int, SessionBatch]:
    data = torch.zeros(4, 5, 3, device=device)
    none = data.new_zeros(4, 0, 0)
    n_bins = data.new_full((4,), 3, dtype=torch.long) if lengths else None
    return {0: SessionBatch(data, data, data[..., :0], none, none.bool(), lengths=n_bins)}


@pytest.mark.parametrize("lengths", [False, True])
@pytest.mark.parametrize("recon", [recons.Poisson, recons.Gaussian])
def test_step_and_sampling(recon: Any, lengths: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # Mixed precision knows no such device.
    monkeypatch.setattr(network, "_own_precision", lambda _: nullcontext())
    model = LFADS(
        encod_data_dim=3,
        encod_seq_len=5,
        recon_seq_len=5,
        reconstruction=recon(),
        train_aug_stack=AugmentationStack([CoordinatedDropout(0.3)], [0], [0]),
        **DIMS,
    ).train()
    for likelihood in model.recon:
        likelihood.data_checked = True
    optimizer: Any = model.configure_optimizers()
    model.to("meta")
    trained = [p for p in model.parameters() if p.requires_grad and p.numel()]
    optimizer = type(optimizer)(trained, lr=0.01)
    weights, stack = model.weights, model.train_aug_stack
    batch = batch_of("meta", lengths)
    result = evaluate(model, weights, augment(stack, batch), stack, "train")
    result.terms.total.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 200.0)
    optimizer.step()
    count_batch(model.scores["train"], result)
    assert all(p.grad is not None and p.grad.is_meta for p in trained)
    with torch.no_grad():
        assert all(x.is_meta for x in model.eval()(batch, sample_posteriors=True)[0])
    with pytest.raises(RuntimeError):
        result.terms.total.item()
    with pytest.raises(RuntimeError):
        model(batch_of("cpu", lengths))
