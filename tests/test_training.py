"""Training under Lightning: ramps, exact scores, smoothed loss, optimiser, repeatability."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from lfads_torch.errors import ConfigError
from lfads_torch.metrics import bits_per_spike, r2_score
from lfads_torch.model import LFADS
from lfads_torch.modules import recons
from lfads_torch.modules.augmentations import (
    AugmentationStack,
    CoordinatedDropout,
    SampleValidation,
)
from tests.small import arrays, batch_of, counts, datamodule, lfads, trainer, write


class Record(pl.Callback):
    """Numbers of every epoch."""

    def __init__(self) -> None:
        self.ramps: list[tuple[float, float, float]] = []
        self.metrics: list[dict[str, float]] = []

    def on_train_batch_start(self, trainer: Any, model: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            decay = trainer.optimizers[0].param_groups[0]["weight_decay"]
            self.ramps.append((model.l2_ramp.item(), model.kl_ramp.item(), decay))

    # An epoch's numbers are complete only after its end: callbacks come before the model's hook.
    def on_train_epoch_start(self, trainer: Any, model: Any) -> None:
        if self.ramps:
            self.on_train_end(trainer, model)

    def on_train_end(self, trainer: Any, model: Any) -> None:
        self.metrics.append({k: v.item() for k, v in trainer.callback_metrics.items()})


def fit(
    folder: Path, model: LFADS, data: Any, n_epochs: int, **options: Any
) -> tuple[pl.Trainer, Record]:
    record = Record()
    callbacks = [record, *options.pop("callbacks", [])]
    run = trainer(folder, max_epochs=n_epochs, callbacks=callbacks, **options)
    run.fit(model, data)
    return run, record


# ---- ramps -------------------------------------------------------------------------------------


def test_ramps_and_weight_decay_go_by_epoch(tmp_path: Path) -> None:
    data = datamodule(write(tmp_path, arrays()), batch_size=3)
    model = lfads(
        data,
        l2_start_epoch=0,
        l2_increase_epoch=1,
        kl_start_epoch=2,
        kl_increase_epoch=3,
        weight_decay=0.25,
    )
    assert model.l2_ramp == 0.5  # of epoch 0, before any training
    assert model.kl_ramp == 0
    _, record = fit(tmp_path, model, data, 7)
    l2 = [0.5, 1, 1, 1, 1, 1, 1]
    kl = [0, 0, 0.25, 0.5, 0.75, 1, 1]
    assert record.ramps == [(a, b, 0.25 * a) for a, b in zip(l2, kl, strict=True)]
    for epoch, metrics in enumerate(record.metrics):
        for split in ("train", "valid"):
            assert metrics[f"{split}/wt_l2/ramp"] == l2[epoch]
            assert metrics[f"{split}/wt_kl/ramp"] == kl[epoch]
        assert metrics["cur_epoch"] == epoch


def test_the_objective_is_its_terms_at_their_ramps(tmp_path: Path) -> None:
    data = datamodule(write(tmp_path, arrays()))
    model = lfads(
        data,
        loss_scale=10.0,
        l2_increase_epoch=1,
        kl_increase_epoch=3,
        kl_ic_scale=0.5,
        kl_co_scale=0.25,
    )
    _, record = fit(tmp_path, model, data, 2)
    for m in record.metrics:
        for s in ("train", "valid"):
            terms = m[f"{s}/recon"] + m[f"{s}/wt_l2/ramp"] * m[f"{s}/wt_l2"]
            terms += m[f"{s}/wt_kl/ramp"] * m[f"{s}/wt_kl"]
            assert m[f"{s}/loss"] == pytest.approx(10 * terms, rel=1e-5)
            kl = m[f"{s}/wt_kl/ic"] + m[f"{s}/wt_kl/co"]
            assert m[f"{s}/wt_kl"] == pytest.approx(kl, rel=1e-5)
            assert m[f"{s}/wt_l2"] > 0


# ---- scores ------------------------------------------------------------------------------------

SESSIONS = [
    arrays(6, n_valid, bins=(5, 7), channels=(n, n + 2), truth=True, seed=n)
    for n, n_valid in ((2, 3), (3, 8), (4, 5))
]


def validated(folder: Path, model: LFADS, data: Any) -> dict[str, float]:
    found = trainer(folder).validate(model, data, verbose=False)[0]
    return {name: value for name, value in found.items() if not math.isnan(value)}


def test_validation_scores_are_exact_whatever_the_batches(tmp_path: Path) -> None:
    """Means over trials and then sessions; bits per spike and R2 over all that is evaluated."""
    pattern = write(tmp_path, *SESSIONS)
    model = lfads(datamodule(pattern), variational=False)
    with torch.no_grad():
        for readout in model.readout:
            readout.weight.mul_(3)
    found = [validated(tmp_path, model, datamodule(pattern, batch_size=b)) for b in (3, 7, 12, 60)]
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-5)

    model.eval()
    recon, log_rates, targets, rates, truths = [], [], [], [], []
    for number, session in enumerate(SESSIONS):
        counts = torch.from_numpy(session["valid_recon_data"])
        n_read = counts.shape[2] - 2
        batch = {number: batch_of(counts[:, :5, :n_read], counts)}
        with torch.no_grad():
            params = model(batch, output_means=False)[number].output_params
        recon.append(recons.Poisson().compute_loss(counts, params).mean().item())
        log_rates.append(params[..., 0])
        targets.append(counts)
        rates.append(params[..., 0].exp())
        truths.append(torch.from_numpy(session["valid_truth"]))
    for number, value in enumerate(recon):
        assert found[0][f"valid/recon/sess{number}"] == pytest.approx(value, rel=1e-5)
    assert found[0]["valid/recon"] == pytest.approx(np.mean(recon), rel=1e-5)

    def pooled(bins: slice, held_out: bool | None) -> float:
        """Bits per spike by hand: of all sessions' channels together."""
        gain, n_spikes = 0.0, 0.0
        for p, x in zip(log_rates, targets, strict=True):
            n = x.shape[2] - 2
            chans = slice(None) if held_out is None else slice(n, None) if held_out else slice(n)
            spikes = x[:, bins, chans].sum().item()
            gain += bits_per_spike(p[:, bins, chans], x[:, bins, chans]).item() * spikes
            n_spikes += spikes
        return gain / n_spikes

    assert found[0]["valid/bps"] == pytest.approx(pooled(slice(5), False), rel=1e-4)
    assert found[0]["valid/co_bps"] == pytest.approx(pooled(slice(5), True), rel=1e-4)
    assert found[0]["valid/fp_bps"] == pytest.approx(pooled(slice(5, None), None), rel=1e-4)
    r2 = [
        r2_score(r[..., c : c + 1], t[..., c : c + 1]).item()
        for r, t in zip(rates, truths, strict=True)
        for c in range(r.shape[2])
    ]
    assert found[0]["valid/r2"] == pytest.approx(np.mean(r2), rel=1e-4)


def test_the_kl_is_an_exact_mean_over_trials(tmp_path: Path) -> None:
    pattern = write(tmp_path, *SESSIONS)
    model = lfads(datamodule(pattern), kl_ic_scale=1.0)
    found = [
        validated(tmp_path, model, datamodule(pattern, batch_size=b))["valid/wt_kl/ic"]
        for b in (3, 10, 60)
    ]
    assert found == pytest.approx([found[0]] * 3, rel=1e-5)


def test_what_is_logged(tmp_path: Path) -> None:
    data = datamodule(
        write(tmp_path, arrays(bins=(5, 7), channels=(3, 5), truth=True)), sv_rate=0.2
    )
    train = AugmentationStack([SampleValidation(0.2), CoordinatedDropout(0.3)], [0, 1], [1, 0])
    infer = AugmentationStack([SampleValidation(0.2)], [0], [0])
    model = lfads(data, train_aug_stack=train, infer_aug_stack=infer)
    _, record = fit(tmp_path, model, data, 1)
    metrics = record.metrics[0]
    per_split = (
        "loss recon bps co_bps fp_bps r2 wt_l2 wt_l2/ramp wt_kl wt_kl/ic wt_kl/co wt_kl/ramp "
        "recon/sess0 recon/sv"
    )
    names = {f"{split}/{name}" for split in ("train", "valid") for name in per_split.split()}
    names |= {"valid/recon_smth", "hp_metric", "cur_epoch", "hp/dropout_rate", "hp/lr_init"}
    names |= {"hp/kl_co_scale", "hp/weight_decay", "hp/train_aug_stack.transforms.1.cd_rate"}
    assert names <= metrics.keys()
    assert all(math.isfinite(metrics[name]) for name in names)
    assert metrics["hp/train_aug_stack.transforms.1.cd_rate"] == pytest.approx(0.3)
    assert metrics["hp_metric"] == metrics["valid/recon_smth"]


def test_bits_per_spike_are_of_spikes_only(tmp_path: Path) -> None:
    data = datamodule(write(tmp_path, arrays()))
    found = validated(tmp_path, lfads(data, reconstruction=recons.Gaussian()), data)
    assert not any("bps" in name or "r2" in name for name in found)


def test_held_out_entries_are_not_trained_on(tmp_path: Path) -> None:
    """With sample validation the gradient knows nothing of the held-out entries' values."""
    data = counts(4, 6, 3)
    kept = torch.rand(4, 6, 3) >= 0.4
    stack = AugmentationStack([SampleValidation(0.4)], [0], [0])
    grads = []
    for x in (data, torch.where(kept, data, data + 5)):
        torch.manual_seed(0)
        model = LFADS(encod_data_dim=3, encod_seq_len=6, train_aug_stack=stack)
        torch.manual_seed(1)
        model.training_step({0: batch_of(x, sv_mask=kept)}, 0).backward()
        grads.append(
            torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        )
    torch.testing.assert_close(grads[0], grads[1])


def test_smoothed_validation_loss(tmp_path: Path) -> None:
    data = datamodule(write(tmp_path, arrays()), batch_size=3)
    model = lfads(data)
    # A sanity check before training must not count as an epoch.
    _, record = fit(tmp_path, model, data, 5, num_sanity_val_steps=-1)
    recon = [m["valid/recon"] for m in record.metrics]
    expected = [recon[0]]
    for value in recon[1:]:
        expected.append(0.3 * expected[-1] + 0.7 * value)
    assert [m["valid/recon_smth"] for m in record.metrics] == pytest.approx(expected, rel=1e-5)


def test_test_split(tmp_path: Path) -> None:
    data = datamodule(write(tmp_path, arrays(n_test=4)))
    model = lfads(data, variational=False)
    found = trainer(tmp_path).test(model, data, verbose=False)[0]
    assert math.isfinite(found["test/recon"])
    assert math.isfinite(found["test/bps"])


# ---- optimiser ---------------------------------------------------------------------------------


def test_optimiser_has_the_models_numbers() -> None:
    model = LFADS(
        encod_data_dim=3,
        encod_seq_len=4,
        lr_init=0.02,
        lr_adam_beta1=0.8,
        lr_adam_beta2=0.95,
        lr_adam_epsilon=1e-7,
        weight_decay=0.1,
    )
    optimizer = model.configure_optimizers()
    assert isinstance(optimizer, torch.optim.AdamW)
    group = optimizer.param_groups[0]
    assert group["lr"] == pytest.approx(0.02)
    assert group["betas"] == (0.8, 0.95)
    assert group["eps"] == 1e-7
    assert group["weight_decay"] == pytest.approx(0.1)
    trained = {id(p) for p in group["params"]}
    assert id(model.encoder.ic_enc.fwd_gru.cell.bias_hh) not in trained
    assert id(model.ic_prior.logvar) not in trained
    assert id(model.co_prior.logtaus) in trained


def test_learning_rate_falls_on_plateaus(tmp_path: Path) -> None:
    data = datamodule(write(tmp_path, arrays()))
    # A learning rate at which nothing changes: every epoch after the first is on a plateau.
    options = {"lr_decay": 0.5, "lr_patience": 1, "variational": False, "dropout_rate": 0.0}
    model = lfads(data, lr_scheduler=True, lr_init=1e-12, lr_stop=3e-13, **options)
    run, _ = fit(tmp_path, model, data, 8)
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(3e-13)
    model = lfads(data, lr_init=1e-12, **options)
    run, _ = fit(tmp_path, model, data, 8)
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-12)


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    data = datamodule(write(tmp_path, arrays(40, 10)), batch_size=20)
    model = lfads(data, lr_init=0.02, dropout_rate=0.0)
    _, record = fit(tmp_path, model, data, 15, gradient_clip_val=200)
    assert record.metrics[-1]["train/recon"] < record.metrics[0]["train/recon"] - 0.05


# ---- before and after --------------------------------------------------------------------------


def test_data_of_other_sizes_are_refused_before_training(tmp_path: Path) -> None:
    data = datamodule(write(tmp_path, arrays()))
    model = LFADS(encod_data_dim=4, encod_seq_len=6)
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(ConfigError, match=r"day0\.h5: channels of encod_data"):
        trainer(tmp_path).fit(model, data)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_seeds_make_a_run_repeat_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):  # which `seed_everything` leaves behind
        monkeypatch.setenv(name, "0")
    pattern = write(tmp_path, *SESSIONS)
    found = []
    for _ in range(2):
        pl.seed_everything(3, verbose=False)
        data = datamodule(pattern, batch_size=6)
        stack = AugmentationStack([CoordinatedDropout(0.3)], [0], [0])
        model = lfads(data, train_aug_stack=stack)
        _, record = fit(tmp_path, model, data, 2)
        found.append((record.metrics, {n: p.tolist() for n, p in model.named_parameters()}))
    assert found[0] == found[1]


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a model without random numbers; ramps, optimiser, schedule and smoothing go on."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    pattern = write(tmp_path, arrays())
    options = {
        "variational": False,
        "dropout_rate": 0.0,
        "lr_scheduler": True,
        "lr_patience": 0,
        "weight_decay": 0.1,
        "l2_increase_epoch": 3,
    }

    def start() -> tuple[LFADS, Any]:
        torch.manual_seed(0)
        data = datamodule(pattern, batch_size=3)
        return lfads(data, **options), data

    whole, data = start()
    run, record = fit(tmp_path, whole, data, 4)
    first, data = start()
    half, _ = fit(tmp_path, first, data, 2)
    half.save_checkpoint(tmp_path / "half.ckpt")
    second, data = start()
    rest = Record()
    resumed = trainer(tmp_path, max_epochs=4, callbacks=[rest])
    resumed.fit(second, data, ckpt_path=str(tmp_path / "half.ckpt"))
    assert rest.ramps == record.ramps[2:]
    assert len(rest.metrics) == 2
    for got, expected in zip(rest.metrics, record.metrics[2:], strict=True):
        assert got == pytest.approx(expected, rel=1e-5, nan_ok=True)
    for (name, a), b in zip(whole.named_parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(a, b, msg=name)
    lr = [t.optimizers[0].param_groups[0]["lr"] for t in (run, resumed)]
    assert lr[0] == lr[1]


def test_a_resumed_run_needs_the_same_sessions(tmp_path: Path) -> None:
    data = datamodule(write(tmp_path, arrays()))
    model = lfads(data)
    run, _ = fit(tmp_path, model, data, 1)
    run.save_checkpoint(tmp_path / "last.ckpt")
    (tmp_path / "day0.h5").rename(tmp_path / "night.h5")
    other = datamodule(tmp_path / "night.h5")
    with pytest.raises(ConfigError, match=r"trained on the sessions day0, the data are night"):
        trainer(tmp_path, max_epochs=2).fit(
            lfads(other), other, ckpt_path=str(tmp_path / "last.ckpt")
        )
