"""Augmentations: what they do to the batch, to the loss and to its gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lfads_torch.errors import ConfigError
from lfads_torch.modules.augmentations import (
    AugmentationStack,
    ChannelMask,
    CoordinatedDropout,
    SampleValidation,
    SelectiveBackpropThruTime,
    SpikeJitter,
    TemporalShift,
)
from lfads_torch.modules.spec import to_spec
from lfads_torch.tuples import SessionBatch
from tests.small import batch_of, counts

few_examples = settings(max_examples=30, deadline=None, derandomize=True, database=None)


def ignore(name: str, value: Tensor) -> None:
    """A log function for losses that log nothing of interest."""


def one(transform: Any) -> AugmentationStack:
    """Stack of a single transform, used for batch and loss where it has the methods."""
    return AugmentationStack(
        [transform],
        [0] if hasattr(transform, "process_batch") else [],
        [0] if hasattr(transform, "process_losses") else [],
    )


def gradient_of_loss(stack: AugmentationStack, batch: SessionBatch) -> tuple[Tensor, Tensor]:
    """Processed loss per element and the gradient of its sum; unprocessed, each is itself."""
    loss = torch.rand(batch.recon_data.shape, requires_grad=True)
    out = stack.process_losses(loss, batch, ignore, "train")
    grads = torch.autograd.grad(out.sum(), loss, allow_unused=True)[0]
    return out, torch.zeros_like(loss) if grads is None else grads


# ---- coordinated dropout -----------------------------------------------------------------------

sizes = st.tuples(
    st.integers(1, 4), st.integers(2, 6), st.integers(0, 3), st.integers(1, 4), st.integers(0, 3)
)


@few_examples
@given(sizes=sizes, segment=st.integers(0, 1), rate=st.floats(0.05, 0.9), seed=st.integers(0, 9))
def test_coordinated_dropout_hides_what_it_learns_from(
    sizes: tuple[int, ...], segment: int, rate: float, seed: int
) -> None:
    torch.manual_seed(seed)
    n, n_bins, more_bins, n_read, more_channels = sizes
    recon = 1 + torch.rand(n, n_bins + more_bins, n_read + more_channels)
    raw = batch_of(recon[:, :n_bins, :n_read], recon)
    stack = one(CoordinatedDropout(rate, ic_enc_seq_len=segment))
    batch = stack.process_batch(raw)

    assert torch.equal(batch.encod_data[:, :segment], raw.encod_data[:, :segment])
    seen = batch.encod_data[:, segment:] != 0
    scaled = raw.encod_data[:, segment:] / (1 - rate)
    torch.testing.assert_close(batch.encod_data[:, segment:], scaled * seen)
    assert torch.equal(batch.recon_data, raw.recon_data)

    loss, grad = gradient_of_loss(stack, batch)
    plain = loss.detach().clone()
    assert torch.equal(loss, plain)
    # Learnt from: exactly what was hidden, and all that is never masked.
    expected = torch.ones_like(grad)
    expected[:, segment:n_bins, :n_read] = (~seen).float()
    assert torch.equal(grad, expected)


def test_coordinated_dropout_leaves_the_value_of_the_loss() -> None:
    batch = batch_of(counts(3, 5, 4))
    stack = one(CoordinatedDropout(0.5))
    loss = torch.rand(3, 5, 4)
    assert torch.equal(
        stack.process_losses(loss, stack.process_batch(batch), ignore, "train"), loss
    )


def test_coordinated_dropout_hides_at_its_rate() -> None:
    batch = one(CoordinatedDropout(0.3)).process_batch(batch_of(torch.ones(50, 40, 20)))
    hidden = (batch.encod_data == 0).float().mean().item()
    assert hidden == pytest.approx(0.3, abs=0.01)
    # Scaled up, the expected input is what it was.
    assert batch.encod_data.mean().item() == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize(("pass_rate", "learnt"), [(0.0, 0.3), (0.4, 0.3 + 0.7 * 0.4), (1.0, 1.0)])
def test_passed_gradients(pass_rate: float, learnt: float) -> None:
    stack = one(CoordinatedDropout(0.3, cd_pass_rate=pass_rate))
    batch = stack.process_batch(batch_of(torch.ones(50, 40, 20)))
    _, grad = gradient_of_loss(stack, batch)
    assert grad.mean().item() == pytest.approx(learnt, abs=0.01)
    assert (grad[batch.encod_data == 0] == 1).all()


def test_coordinated_dropout_of_rate_zero_is_off() -> None:
    raw = batch_of(counts(3, 5, 4))
    stack = one(CoordinatedDropout(0.0))
    batch = stack.process_batch(raw)
    assert torch.equal(batch.encod_data, raw.encod_data)
    _, grad = gradient_of_loss(stack, batch)
    assert (grad == 1).all()


@pytest.mark.parametrize(
    ("arguments", "legal"),
    [
        ({"cd_rate": 1.0}, "cd_rate is 1.0; legal are numbers >= 0 and < 1"),
        ({"cd_rate": -0.1}, "numbers >= 0 and < 1"),
        ({"cd_rate": float("nan")}, "numbers >= 0 and < 1"),
        (
            {"cd_rate": 0.3, "cd_pass_rate": 1.05},
            "cd_pass_rate is .*; legal are numbers >= 0 and <= 1",
        ),
        (
            {"cd_rate": 0.3, "cd_pass_rate": -0.1},
            "cd_pass_rate is .*; legal are numbers >= 0 and <= 1",
        ),
    ],
)
def test_coordinated_dropout_refuses_rates(arguments: dict[str, float], legal: str) -> None:
    with pytest.raises(ConfigError, match=legal):
        CoordinatedDropout(**arguments)


# ---- channel mask ------------------------------------------------------------------------------


@few_examples
@given(
    sizes=sizes,
    segment=st.integers(0, 1),
    rate=st.floats(0.05, 0.9),
    scale=st.booleans(),
    seed=st.integers(0, 9),
)
def test_channel_mask_silences_channels_and_learns_from_them(
    sizes: tuple[int, ...], segment: int, rate: float, scale: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    n, n_bins, more_bins, n_read, more_channels = sizes
    recon = 1 + torch.rand(n, n_bins + more_bins, n_read + more_channels)
    raw = batch_of(recon[:, :n_bins, :n_read], recon)
    stack = one(ChannelMask(rate, scale=scale, segment=segment))
    batch = stack.process_batch(raw)

    assert torch.equal(batch.encod_data[:, :segment], raw.encod_data[:, :segment])
    seen = batch.encod_data[:, segment:] != 0
    assert torch.equal(seen, seen[:, :1].expand(seen.shape))  # over all bins
    assert seen.any(dim=2).all()  # one channel stays
    factor = 1 / (1 - rate + rate**n_read / n_read) if scale else 1.0
    torch.testing.assert_close(
        batch.encod_data[:, segment:], raw.encod_data[:, segment:] * seen * factor
    )
    grad = gradient_of_loss(stack, batch)[1]
    expected = torch.ones_like(grad)
    expected[:, segment:n_bins, :n_read] = (~seen).float()
    assert torch.equal(grad, expected)
    everywhere = one(ChannelMask(rate, loss="all", segment=segment))
    assert (gradient_of_loss(everywhere, everywhere.process_batch(raw))[1] == 1).all()


@pytest.mark.parametrize("n_channels", [1, 2, 30])
def test_channel_mask_keeps_the_mean_and_the_value_of_the_loss(n_channels: int) -> None:
    raw = batch_of(torch.ones(40_000 // n_channels, 2, n_channels))
    stack = one(ChannelMask(0.25))
    batch = stack.process_batch(raw)
    assert batch.encod_data.mean().item() == pytest.approx(1.0, abs=0.01)
    loss = torch.rand(raw.recon_data.shape)
    assert torch.equal(stack.process_losses(loss, batch, ignore, "train"), loss)


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
@pytest.mark.parametrize("learnt", ["masked", "all"])
def test_channel_mask_and_coordinated_dropout_learn_from_what_either_hides(
    order: list[int], learnt: str
) -> None:
    raw = batch_of(1 + torch.rand(20, 6, 9)[..., :7], 1 + torch.rand(20, 6, 9))
    stack = AugmentationStack(
        [CoordinatedDropout(0.3), ChannelMask(0.25, loss=learnt)], order, [0, 1]
    )
    batch = stack.process_batch(raw)
    seen = batch.encod_data != 0
    assert seen.float().mean().item() == pytest.approx(0.7 * 0.75, abs=0.08)
    grad = gradient_of_loss(stack, batch)[1]
    assert torch.equal(grad[..., :7], (~seen).float())
    assert (grad[..., 7:] == 1).all()


@pytest.mark.parametrize(
    ("arguments", "legal"),
    [
        ({"rate": 1.0}, r"rate of ChannelMask is 1.0; legal are numbers >= 0 and < 1"),
        ({"loss": "hidden"}, r"loss of ChannelMask is 'hidden'.*all, masked"),
        ({"segment": -1}, r"segment of ChannelMask is -1; legal are whole numbers >= 0"),
    ],
)
def test_channel_mask_refuses(arguments: dict[str, Any], legal: str) -> None:
    with pytest.raises(ConfigError, match=legal):
        ChannelMask(**arguments)


def test_channel_mask_of_rate_zero_is_off() -> None:
    off = one(ChannelMask(0.0))
    batch = off.process_batch(raw := batch_of(counts(3, 5, 4)))
    assert torch.equal(batch.encod_data, raw.encod_data)
    assert (gradient_of_loss(off, batch)[1] == 1).all()


def test_a_tunable_number_is_a_tensor_described_as_it_was_given() -> None:
    transform = CoordinatedDropout(0.1)
    assert dict(transform.named_buffers()) == {"cd_rate": transform.cd_rate}
    assert to_spec(transform)["cd_rate"] == 0.1
    transform.cd_rate.fill_(0.25)
    assert to_spec(transform)["cd_rate"] == 0.25


# ---- sample validation -------------------------------------------------------------------------


def sv_batch(segment: int = 0) -> SessionBatch:
    recon = 1 + counts(4, 7, 5)
    kept = torch.rand(4, 6, 3) >= 0.4
    kept[:, :segment] = True
    return batch_of(recon[:, :6, :3], recon, sv_mask=kept)


@pytest.mark.parametrize("segment", [0, 2])
@pytest.mark.parametrize("reduce_mean", [True, False])
def test_sample_validation(segment: int, reduce_mean: bool) -> None:
    raw = sv_batch(segment)
    stack = one(SampleValidation(0.4, segment, reduce_mean))
    batch = stack.process_batch(raw)
    kept = raw.sv_mask
    torch.testing.assert_close(
        batch.encod_data[:, segment:], (raw.encod_data * kept / 0.6)[:, segment:]
    )
    assert torch.equal(batch.encod_data[:, :segment], raw.encod_data[:, :segment])

    logged: dict[str, Tensor] = {}
    loss = torch.rand(4, 7, 5)
    out = stack.process_losses(loss, batch, logged.__setitem__, "valid")
    weight = torch.ones(4, 7, 5)
    weight[:, segment:6, :3] = kept[:, segment:] / 0.6
    torch.testing.assert_close(out, loss * weight)
    held_out = loss[:, :6, :3] * ~kept
    expected = held_out.sum() / (~kept).sum() if reduce_mean else held_out.sum(dim=(1, 2)).mean()
    assert list(logged) == ["valid/recon/sv"]
    torch.testing.assert_close(logged["valid/recon/sv"], expected)


def test_sample_validation_of_rate_zero_is_off() -> None:
    raw = batch_of(counts(3, 5, 4))
    stack = one(SampleValidation(0.0))
    assert torch.equal(stack.process_batch(raw).encod_data, raw.encod_data)
    loss, grad = gradient_of_loss(stack, raw)
    assert (grad == 1).all()
    assert loss.shape == raw.recon_data.shape


def test_sample_validation_without_a_mask_says_which_setting_draws_it() -> None:
    stack = one(SampleValidation(0.2))
    with pytest.raises(ConfigError, match=r"datamodule\.sv_rate: 0\.2"):
        stack.process_batch(batch_of(counts(2, 3, 2)))
    with pytest.raises(ConfigError, match=r"sv_rate is .*; legal are numbers >= 0 and < 1"):
        SampleValidation(1.0)


# ---- missing bins ------------------------------------------------------------------------------


def test_sbtt_is_nothing_where_nothing_is_missing() -> None:
    raw = batch_of(counts(3, 5, 4))
    stack = one(SelectiveBackpropThruTime())
    batch = stack.process_batch(raw)
    assert torch.equal(batch.encod_data, raw.encod_data)
    loss = torch.rand(3, 5, 4)
    assert torch.equal(stack.process_losses(loss, batch, ignore, "train"), loss)


@few_examples
@given(share=st.floats(0.0, 1.0), seed=st.integers(0, 20))
def test_sbtt_averages_over_observed_entries(share: float, seed: int) -> None:
    torch.manual_seed(seed)
    missing = torch.rand(3, 5, 4) < share
    data = torch.where(missing, torch.nan, counts(3, 5, 4))
    stack = one(SelectiveBackpropThruTime())
    batch = stack.process_batch(batch_of(data[:, :4, :2], data))
    assert torch.equal(batch.encod_data, data[:, :4, :2].nan_to_num(nan=0.0))
    loss = torch.rand(3, 5, 4)
    out = stack.process_losses(loss, batch, ignore, "train")
    expected = loss[~missing].mean() if (~missing).any() else torch.tensor(0.0)
    torch.testing.assert_close(out.mean(), expected)
    assert (out[missing] == 0).all()


def test_sbtt_does_not_see_the_loss_of_missing_bins() -> None:
    data = counts(3, 5, 4)
    data[0, 2:4, 1] = torch.nan
    stack = one(SelectiveBackpropThruTime())
    batch = stack.process_batch(batch_of(data))
    loss = torch.rand(3, 5, 4)
    absurd = torch.where(data.isnan(), torch.nan, loss)
    torch.testing.assert_close(
        stack.process_losses(absurd, batch, ignore, "train"),
        stack.process_losses(loss, batch, ignore, "train"),
    )
    _, grad = gradient_of_loss(stack, batch)
    assert (grad[data.isnan()] == 0).all()
    assert (grad[~data.isnan()] > 0).all()


# ---- shifts and jitter -------------------------------------------------------------------------


def test_temporal_shift_moves_whole_channels_and_repeats_edges() -> None:
    ramp = torch.arange(20.0).view(1, -1, 1).expand(300, -1, 3)
    batch = TemporalShift(std=2.0, max_shift=4).process_batch(batch_of(ramp.clone()))
    for shifted in (batch.encod_data, batch.recon_data):
        shift = ramp[:, 10] - shifted[:, 10]
        assert torch.equal(shift, shift.round())
        assert shift.abs().max() == 4
        expected = (torch.arange(20.0).view(1, -1, 1) - shift.unsqueeze(1)).clamp(0, 19)
        assert torch.equal(shifted, expected)
        assert shift.std().item() == pytest.approx(2.0, abs=0.15)
    assert not torch.equal(batch.encod_data, batch.recon_data)


def test_temporal_shift_of_nothing() -> None:
    raw = batch_of(counts(3, 5, 4))
    for none in (TemporalShift(0.0, 6), TemporalShift(3.0, 0)):
        assert torch.equal(none.process_batch(raw).encod_data, raw.encod_data)


@few_examples
@given(
    data=st.lists(st.lists(st.integers(0, 5), min_size=3, max_size=3), min_size=1, max_size=9),
    width=st.integers(0, 12),
    seed=st.integers(0, 5),
)
def test_jitter_loses_no_spike(data: list[list[int]], width: int, seed: int) -> None:
    torch.manual_seed(seed)
    spikes = torch.tensor([data, data[::-1]], dtype=torch.float32)
    batch = SpikeJitter(width).process_batch(batch_of(spikes))
    for moved in (batch.encod_data, batch.recon_data):
        assert torch.equal(moved.sum(dim=1), spikes.sum(dim=1))
        assert (moved >= 0).all()
        assert torch.equal(moved, moved.round())


def test_jitter_moves_uniformly_within_its_width() -> None:
    spikes = torch.zeros(4000, 11, 1)
    spikes[:, 5] = 1
    moved = SpikeJitter(2).process_batch(batch_of(spikes)).encod_data.mean(dim=(0, 2))
    expected = torch.zeros(11)
    expected[3:8] = 0.2
    torch.testing.assert_close(moved, expected, atol=0.03, rtol=0)


def test_spikes_of_a_bin_are_jittered_independently() -> None:
    """Counts of one bin at five offsets are multinomial."""
    spikes = torch.zeros(8000, 11, 1)
    spikes[:, 5] = 5
    moved = SpikeJitter(2).process_batch(batch_of(spikes)).encod_data[:, 3:8, 0]
    expected = 5 * (0.2 * torch.eye(5) - 0.04)
    torch.testing.assert_close(moved.mean(dim=0), torch.ones(5), atol=0.05, rtol=0)
    torch.testing.assert_close(moved.T.cov(), expected, atol=0.06, rtol=0)


def test_jitter_reflects_at_both_ends_and_keeps_missing_bins() -> None:
    spikes = torch.zeros(2000, 6, 2)
    spikes[:, 0, 0] = 1
    spikes[:, -1, 1] = 1
    spikes[:, 3, 0] = torch.nan
    moved = SpikeJitter(1).process_batch(batch_of(spikes)).recon_data
    assert moved[:, 3, 0].isnan().all()
    first = moved[:, :2, 0].mean(dim=0)
    last = moved[:, -2:, 1].mean(dim=0)
    # A spike that would leave by one bin comes back to the outermost one.
    torch.testing.assert_close(first, torch.tensor([2 / 3, 1 / 3]), atol=0.04, rtol=0)
    torch.testing.assert_close(last, torch.tensor([1 / 3, 2 / 3]), atol=0.04, rtol=0)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (SpikeJitter, {"width": -1}),
        (TemporalShift, {"std": -1.0}),
        (TemporalShift, {"max_shift": -2}),
    ],
)
def test_negative_widths_are_refused(kind: Any, arguments: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(arguments))):
        kind(**arguments)


# ---- stacks and your own transforms -------------------------------------------------------------


class Doubles:
    """Plain class, no module; only changes the batch."""

    def process_batch(self, batch: SessionBatch) -> SessionBatch:
        return batch._replace(encod_data=2 * batch.encod_data)


class Forgets:
    """Drops the masks of the transforms before it."""

    def process_batch(self, batch: SessionBatch) -> SessionBatch:
        return batch._replace(masks=None)


class Anew:
    """Builds the batch from its five documented fields."""

    def process_batch(self, batch: SessionBatch) -> SessionBatch:
        encod_data, recon_data, ext_input, truth, sv_mask, *_ = batch
        return SessionBatch(encod_data, recon_data, ext_input, truth, sv_mask)


class Halves:
    """Only changes the loss."""

    def process_losses(self, recon_loss: Tensor, batch: Any, log_fn: Any, split: str) -> Tensor:
        log_fn(f"{split}/mine", recon_loss.mean())
        return recon_loss / 2


@pytest.mark.parametrize("careless", [Forgets(), Anew()], ids=["forgets", "anew"])
def test_masks_survive_careless_transforms(careless: Any) -> None:
    stack = AugmentationStack(
        [CoordinatedDropout(0.5), careless, SelectiveBackpropThruTime(), Doubles(), Halves()],
        batch_order=[0, 1, 2, 1, 3],
        loss_order=[0, 2, 4],
    )
    raw = batch_of(torch.ones(4, 6, 3))
    batch = stack.process_batch(raw)
    assert set(batch.masks or {}) == {"coordinated_dropout", "observed"}
    assert batch.encod_data.unique().tolist() == [0.0, 4.0]
    loss, grad = gradient_of_loss(stack, batch)
    assert torch.equal(grad, 0.5 * (batch.encod_data == 0))
    assert loss.shape == raw.recon_data.shape


def test_a_transforms_own_log_reaches_the_log_function() -> None:
    logged: dict[str, Tensor] = {}
    out = one(Halves()).process_losses(
        torch.ones(2, 3, 4), batch_of(counts(2, 3, 4)), logged.__setitem__, "train"
    )
    assert (out == 0.5).all()
    assert logged["train/mine"] == 1


def test_order_decides_and_transforms_may_stand_idle() -> None:
    stack = AugmentationStack([Doubles(), SpikeJitter(0)], batch_order=[0, 0])
    raw = batch_of(counts(2, 3, 4))
    assert torch.equal(stack.process_batch(raw).encod_data, 4 * raw.encod_data)
    assert len(stack) == 2
    assert len(AugmentationStack()) == 0


@pytest.mark.parametrize(
    ("orders", "part"),
    [
        ({"batch_order": [2]}, r"batch_order names transform 2; legal are \[0, 1\]"),
        ({"loss_order": [-1]}, "loss_order names transform -1"),
        ({"loss_order": [0]}, "Doubles, which has no method process_losses"),
        ({"batch_order": [1]}, "Halves, which has no method process_batch"),
    ],
)
def test_orders_that_name_nothing(orders: dict[str, list[int]], part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        AugmentationStack([Doubles(), Halves()], **orders)


def test_a_batch_is_never_changed_in_place() -> None:
    data = counts(3, 6, 4)
    before = data.clone()
    everything = AugmentationStack(
        [CoordinatedDropout(0.4), SelectiveBackpropThruTime(), TemporalShift(), SpikeJitter()],
        batch_order=[0, 1, 2, 3],
    )
    everything.process_batch(batch_of(data))
    assert torch.equal(data, before)
