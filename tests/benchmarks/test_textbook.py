"""What the package is measured against is LFADS: it reproduces every reference file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from textbook import TextbookLFADS, posterior_means, sample_loader
from torch import Tensor, nn

from lfads_torch.modules.augmentations import AugmentationStack, CoordinatedDropout
from tests.golden_utils import (
    GOLDEN_NAMES,
    Golden,
    assert_all_close,
    build_lfads,
    load_golden,
    session_batches,
)


@pytest.fixture(scope="module", params=GOLDEN_NAMES)
def golden(request: pytest.FixtureRequest) -> Golden:
    return load_golden(request.param)


def textbook(golden: Golden, **changes: Any) -> TextbookLFADS:
    """The file's model, in evaluation mode."""
    return TextbookLFADS(build_lfads(golden, **changes)).eval()


def without_co_kl(golden: Golden) -> TextbookLFADS:
    """The file's model; the files leave the sampled KL out of losses, gradients and steps."""
    model = textbook(golden, kl_co_scale=0.0)
    if model.co_prior is not None:
        model.co_prior.requires_grad_(False)
    return model


def evaluate(model: TextbookLFADS, golden: Golden) -> dict[str, Tensor]:
    batch = session_batches(golden)
    return model.loss_terms(batch, model(batch, output_means=False))


def test_outputs_and_elementwise_loss(golden: Golden) -> None:
    model, batch = textbook(golden), session_batches(golden)
    with torch.no_grad():
        parameters, means = model(batch, output_means=False), model(batch)
    assert parameters.keys() == golden.outputs.keys()
    for s, expected in golden.outputs.items():
        got = parameters[s]._asdict()
        got["output_means"] = means[s].output_params
        got["recon_loss"] = model.element_loss(s, batch[s].recon_data, parameters[s].output_params)
        assert_all_close(got, expected, 1e-5, f"session {s}")


def test_losses(golden: Golden) -> None:
    terms = evaluate(without_co_kl(golden), golden)
    assert terms.keys() == golden.losses.keys()
    for name, expected in golden.losses.items():
        assert terms[name].item() == pytest.approx(expected, rel=1e-5), name


def gradients(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gradients that there are, but for parameters without entries."""
    return {n: p.grad for n, p in parameters.items() if p.grad is not None and p.numel() > 0}


def test_gradients(golden: Golden) -> None:
    model = without_co_kl(golden)
    evaluate(model, golden)["total"].backward()
    expected = {name: grad for name, grad in golden.grads.items() if grad.numel() > 0}
    assert_all_close(gradients(dict(model.named_parameters())), expected, 1e-5, "gradient")


def test_three_optimiser_steps(golden: Golden) -> None:
    model = without_co_kl(golden)
    optimizer = model.configure_optimizers()
    for _ in range(3):
        optimizer.zero_grad()
        evaluate(model, golden)["total"].backward()
        nn.utils.clip_grad_norm_(model.parameters(), golden.clip)
        optimizer.step()
    assert_all_close(model.state_dict(), golden.after3, 1e-4, "parameter after three steps")


def test_kl_of_inferred_inputs_is_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    golden = load_golden("controller")
    model, own = textbook(golden), build_lfads(golden)
    assert model.co_prior is not None
    mean, std = torch.randn(4, 20, 3), torch.rand(4, 20, 3) + 0.1
    noise = torch.randn(4, 20, 3)
    monkeypatch.setattr(torch, "randn_like", lambda *_, **__: noise)
    monkeypatch.setattr(
        torch.distributions.Normal, "rsample", lambda self: self.loc + self.scale * noise
    )
    torch.testing.assert_close(model.co_prior(mean, std), own.co_prior(mean, std))


def test_coordinated_dropout_learns_from_hidden_entries_only() -> None:
    golden = load_golden("ic_segment")
    stack = AugmentationStack([CoordinatedDropout(0.4, ic_enc_seq_len=5)], [0], [0])
    model = textbook(golden, train_aug_stack=stack)
    batch = session_batches(golden)[0]
    data = batch.encod_data + 1
    dropped, learn = model.coordinated_dropout(batch._replace(encod_data=data))
    seen = dropped.encod_data[:, 5:]
    hidden = seen == 0
    assert 0.3 < hidden.float().mean() < 0.5
    torch.testing.assert_close(seen[~hidden], data[:, 5:][~hidden] / 0.6)
    assert torch.equal(learn[:, 5:], hidden)
    assert torch.equal(dropped.encod_data[:, :5], data[:, :5])
    assert learn[:, :5].all()


def test_training_step_hides_and_samples() -> None:
    golden = load_golden("forward_heldout")
    model = textbook(golden, train_aug_stack=AugmentationStack([CoordinatedDropout(0.3)], [0], [0]))
    losses = [model.train().training_step(session_batches(golden)) for _ in range(2)]
    losses[0].backward()
    assert all(grad.isfinite().all() for grad in gradients(dict(model.named_parameters())).values())
    assert losses[0].isfinite()
    assert losses[0] != losses[1]


def test_posterior_means_of_certain_posteriors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without noise every sample is the pass with posterior means, in the trials' order."""
    golden = load_golden("controller")
    model, batch = textbook(golden), session_batches(golden)[0]
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    got = posterior_means(model, sample_loader(batch, 2, shuffle=False), n_samples=3)
    with torch.no_grad():
        expected = model({0: batch})[0]
    assert_all_close(got._asdict(), expected._asdict(), 1e-5, "posterior mean")


def test_loader_draws_every_trial_once_in_another_order() -> None:
    batch = session_batches(load_golden("controller"))[0]
    numbered = batch._replace(encod_data=torch.arange(8.0).reshape(8, 1, 1))
    numbered = numbered._replace(
        **{
            name: value[:1].expand(8, *value.shape[1:])
            for name, value in batch._asdict().items()
            if name != "encod_data" and value is not None
        }
    )
    drawn = torch.cat([step[0] for step in sample_loader(numbered, 4, shuffle=True)]).flatten()
    assert not torch.equal(drawn, torch.arange(8.0))
    assert torch.equal(drawn.sort().values, torch.arange(8.0))
