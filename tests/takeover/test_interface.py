"""Names, signatures and hooks of the existing implementation that the given user code lacks."""

from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.combined_loader import CombinedLoader
from torch import nn
from torch.utils.data import DataLoader, default_collate

from lfads_torch.callbacks import RasterPlot, TestEval, has_image_loggers
from lfads_torch.datamodules import BasicDataModule, attach_tensors
from lfads_torch.metrics import regional_bits_per_spike
from lfads_torch.model import LFADS
from lfads_torch.modules import priors, recons
from lfads_torch.modules.augmentations import AugmentationStack, pad_mask
from lfads_torch.modules.initializers import init_gru_cell_, init_linear_, init_variance_scaling_
from lfads_torch.modules.l2 import compute_l2_penalty
from lfads_torch.modules.readin_readout import FanInLinear, MultisessionReadin, MultisessionReadout
from lfads_torch.modules.recons import Poisson, Reconstruction
from lfads_torch.modules.recurrent import BidirectionalClippedGRU, ClippedGRU, ClippedGRUCell
from lfads_torch.tuples import SessionBatch
from tests.takeover.test_user_code import USER_CODE

pytestmark = pytest.mark.filterwarnings("ignore")

settings, arrays, fit, write = (
    USER_CODE.settings,
    USER_CODE.arrays,
    USER_CODE.fit,
    USER_CODE.write,
)
READ, RECON, FACTORS = USER_CODE.READ, USER_CODE.RECON, USER_CODE.FACTORS
READ_BINS, RECON_BINS = USER_CODE.READ_BINS, USER_CODE.RECON_BINS


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def data(folder: Path) -> BasicDataModule:
    return USER_CODE.data(folder)


# ---- batches and data modules --------------------------------------------------------------------


def test_batches_are_five_tensors_for_the_outside() -> None:
    batch = SessionBatch(*[torch.rand(2, 3)] * 5)
    assert len(batch) == len([*batch]) == 5
    stacked = default_collate([batch, batch])
    assert isinstance(stacked, SessionBatch) and stacked.encod_data.shape == (2, 2, 3)
    whole = batch._replace(lengths=torch.tensor([1, 2]), masks={"mine": torch.ones(1)})
    for other in (pickle.loads(pickle.dumps(whole)), copy.deepcopy(whole), whole.to("cpu")):
        assert torch.equal(other.truth, whole.truth)
        assert torch.equal(other.lengths, whole.lengths) and "mine" in other.masks


def test_a_data_module_of_ones_own_with_its_own_loaders() -> None:
    class Mine(pl.LightningDataModule):
        def setup(self, stage: str | None = None) -> None:
            attach_tensors(self, [arrays()])

        def train_dataloader(self) -> Any:
            return CombinedLoader({0: DataLoader(self.train_ds[0], 20)}, mode="max_size_cycle")

        def val_dataloader(self) -> Any:
            return CombinedLoader({0: DataLoader(self.valid_ds[0], 20)}, mode="max_size_cycle")

    assert math.isfinite(fit(LFADS(**settings()), Mine()).callback_metrics["valid/recon"])


def test_a_trainer_predicts_with_the_data_module(data: BasicDataModule) -> None:
    outputs = USER_CODE.trainer().predict(LFADS(**settings()), datamodule=data)
    assert sum(len(step[0].factors) for step in outputs) == 56


def test_double_precision_keeps_the_ends_of_trials(folder: Path) -> None:
    content = arrays()
    for split in ("train", "valid"):
        counts = content[f"{split}_recon_data"].copy()
        counts[3, 20:] = np.nan
        content[f"{split}_recon_data"] = counts
        content[f"{split}_encod_data"] = counts[:, :READ_BINS, :READ]
    path = write("ends.h5", **content)
    data = USER_CODE.data(folder, datafile_pattern=path)
    metrics = fit(LFADS(**settings()), data, precision=64).callback_metrics
    assert math.isfinite(metrics["valid/recon"])


# ---- parts of your own ---------------------------------------------------------------------------


class Squares:
    n_params = 1

    def reshape_output_params(self, output_params: Any) -> Any:
        return output_params.unsqueeze(-1)

    def compute_loss(self, data: Any, output_params: Any) -> Any:
        return (data - output_params[..., 0]) ** 2

    def compute_means(self, output_params: Any) -> Any:
        return output_params[..., 0]


class PlainSquares(Squares, Reconstruction):
    """No module."""


class BaseFirst(Squares, Reconstruction, nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((1,), 3.0))

    def compute_l2(self) -> Any:
        return self.scale.pow(2).sum()


@pytest.mark.parametrize("kind", [list, tuple])
def test_plain_objects_in_plain_lists(kind: Any, data: BasicDataModule) -> None:
    model = LFADS(
        **settings(
            reconstruction=kind([PlainSquares()]),
            readin=kind([nn.Identity()]),
            readout=kind([FanInLinear(FACTORS, RECON)]),
        )
    )
    assert math.isfinite(fit(copy.deepcopy(model), data).callback_metrics["valid/recon"])


def test_the_penalty_of_ones_own_likelihood_counts(data: BasicDataModule) -> None:
    scales = {f"l2_{name}_scale": 0.0 for name in ("gen", "con", "ic_enc", "ci_enc")}
    recon = BaseFirst().requires_grad_(False)
    model = LFADS(**settings(**scales, reconstruction=nn.ModuleList([recon])))
    assert fit(model, data).callback_metrics["valid/wt_l2"] == pytest.approx(9.0)


def test_readouts_of_ones_own_start_as_they_say(folder: Path) -> None:
    class Sevens(MultisessionReadout):
        def _get_state_dict(self, data_path: str) -> Any:
            state = super()._get_state_dict(data_path)
            return {**state, "bias": state["bias"] * 0 + 7}

    pattern = USER_CODE.day_files(folder)
    readout = Sevens(pattern)
    layers = {
        "encod_data_dim": FACTORS,
        "readin": MultisessionReadin(pattern),
        "reconstruction": [Poisson() for _ in range(3)],
    }
    model = LFADS(**settings(**layers, readout=readout))
    assert model.readout[2].bias.eq(7).all() and readout.in_features == FACTORS
    assert layers["readin"].out_features == FACTORS


def test_augmentations_are_reset_and_refused_by_their_count() -> None:
    class Three:
        def process_batch(self, batch: Any) -> Any:
            return batch[:3]

    batch = SessionBatch(*[torch.rand(2, 3, 1)] * 5)
    with pytest.raises(Exception, match="a tuple of its 5 tensors"):
        AugmentationStack([Three()], [0], []).process_batch(batch)
    assert pad_mask(torch.zeros(1, 2, 3), torch.zeros(1, 4, 5), 1.0).sum() == 20 - 6


def test_priors_by_keyword() -> None:
    mean, std = torch.zeros(2, 8), torch.ones(2, 8)
    student = priors.MultivariateStudentT(0.0, 1.0, 5.0, 8)
    assert student.make_posterior(post_loc=mean, post_scale=std).mean.shape == (2, 8)
    assert student(post_loc=mean, post_scale=std).shape == ()
    for names in (("post_mean", "post_std"), ("post_loc", "post_scale")):
        keywords = dict(zip(names, (mean, std), strict=True))
        assert priors.Null()(**keywords) == 0
        assert priors.Null().make_posterior(**keywords).mean.shape == (2, 8)
    ar = priors.AutoregressiveMultivariateNormal(10.0, 0.1, 2)
    assert ar.log_prob(sample=torch.rand(3, 5, 2)).shape == (3,)
    assert isinstance(recons.Gamma(), nn.Module) and isinstance(recons.Gamma(), Reconstruction)


# ---- networks called by hand ---------------------------------------------------------------------


def test_recurrent_nets_by_themselves() -> None:
    cell = ClippedGRUCell(3, 5, clip_value=0.1)
    assert cell(torch.rand(4, 3) * 9, torch.zeros(4, 5)).abs().max() <= 0.1
    output, last = ClippedGRU(3, 5, clip_value=2.0)(torch.rand(4, 7, 3), torch.zeros(4, 5))
    assert output.shape == (4, 7, 5) and torch.allclose(output[:, -1], last)
    both = BidirectionalClippedGRU(3, 5)
    output, last = both(torch.rand(4, 7, 3), torch.zeros(2, 4, 5))
    assert output.shape == (4, 7, 10) and last.shape == (2, 4, 5)
    assert torch.allclose(output[:, -1, :5], last[0]) and torch.allclose(output[:, 0, 5:], last[1])


def test_the_generators_cell_makes_the_decoders_steps() -> None:
    model = LFADS(**settings()).eval()
    with torch.no_grad():
        mean, _, ci = model.encoder(torch.rand(4, READ_BINS, READ))
        init, states, *_, inputs, _ = model.decoder(
            mean, ci, torch.zeros(4, READ_BINS, 0), sample_posteriors=False
        )
        hidden = init
        for t in range(RECON_BINS):
            hidden = model.decoder.rnn.cell.gen_cell(inputs[:, t], hidden)
            torch.testing.assert_close(hidden, states[:, t], atol=1e-5, rtol=1e-5)
    assert ci.shape == (4, RECON_BINS, 16)
    # Fixed points: the speed of the state is minimised by its gradient.
    hidden = torch.rand(3, 12, requires_grad=True)
    cell = model.decoder.rnn.cell.gen_cell
    (cell(torch.zeros(3, 2), hidden) - hidden).pow(2).sum().backward()
    assert hidden.grad is not None and hidden.grad.abs().sum() > 0


def test_initializers_and_the_penalty() -> None:
    linear = init_linear_(nn.Linear(400, 300))
    assert linear.weight.std().item() == pytest.approx(1 / 20, rel=0.05) and not linear.bias.any()
    weight = init_variance_scaling_(torch.empty(300, 300), 100)
    assert weight.std().item() == pytest.approx(1 / 10, rel=0.05)
    cell = init_gru_cell_(ClippedGRUCell(3, 5), 100)
    assert cell.bias_ih.tolist() == [1.0] * 10 + [0.0] * 5
    model = LFADS(**settings())
    l2 = compute_l2_penalty(model, model.hparams)
    gen, con = (getattr(model.decoder.rnn.cell, f"{n}_cell").weight_hh for n in ("gen", "con"))
    squares = 1e-3 * 0.5 * (gen.pow(2).sum() + con.pow(2).sum())
    assert l2.item() == pytest.approx((squares / (gen.numel() + con.numel())).item(), rel=1e-5)


# ---- training ------------------------------------------------------------------------------------


def test_numbers_changed_between_epochs_take_effect(data: BasicDataModule) -> None:
    seen: list[tuple[float, ...]] = []

    class Change(pl.Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == 1:
                pl_module.hparams.kl_ic_scale = 0.5
                pl_module.train_aug_stack.batch_transforms[0].cd_rate = 0.75

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            metrics = trainer.callback_metrics
            assert math.isfinite(metrics["train/loss"])
            seen.append((float(metrics["hp/kl_ic_scale"]), float(metrics["hp/cd_rate"])))

    fit(LFADS(**settings()), data, [Change()], max_epochs=2)
    assert seen == [pytest.approx((1e-5, 0.3)), pytest.approx((0.5, 0.75))]


def test_the_ramp_may_be_overridden(data: BasicDataModule) -> None:
    class Slow(LFADS):
        def __init__(self, factor: float, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.factor = factor

        def _compute_ramp(self, start: float, increase: float) -> float:
            return self.factor * super()._compute_ramp(start, increase)

    model = Slow(0.5, **settings())
    assert fit(model, data).callback_metrics["train/wt_kl/ramp"] == 0.125


def test_scores_without_a_meaning_are_nan_under_their_names(folder: Path) -> None:
    content = {key: value[:, :READ_BINS] for key, value in arrays().items()}
    data = USER_CODE.data(folder, datafile_pattern=write("short.h5", **content))
    best = pl.callbacks.ModelCheckpoint(dirpath="best", monitor="valid/r2", mode="max")
    model = LFADS(**settings(recon_seq_len=READ_BINS, lr_scheduler=True))
    metrics = fit(model, data, [best], enable_checkpointing=True).callback_metrics
    for split in ("train", "valid"):
        assert math.isnan(metrics[f"{split}/fp_bps"]) and math.isnan(metrics[f"{split}/r2"])
        assert metrics[f"{split}/bps"] >= -1 and metrics[f"{split}/co_bps"] >= -1
    assert metrics["hp_metric"] == metrics["valid/recon"]


def test_regional_bits_per_spike() -> None:
    counts = torch.poisson(torch.ones(4, 10, 6))
    bps, co_bps, fp_bps = regional_bits_per_spike(torch.zeros(4, 10, 6), counts, 4, 10)
    assert bps.isfinite() and co_bps.isfinite() and fp_bps.isnan()


def test_callbacks(folder: Path) -> None:
    content = arrays()
    path = write("test.h5", **content, test_encod_data=content["valid_encod_data"])
    data = USER_CODE.data(folder, datafile_pattern=path)

    class Mine(RasterPlot):
        n = 0

        def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            self.n += 1
            super().on_validation_epoch_end(trainer, pl_module)

    plot = Mine(log_every_n_epochs=1)
    trainer = fit(LFADS(**settings()), data, [plot, TestEval()], default_root_dir=str(folder))
    assert plot.n == 1 and (folder / "figures" / "raster_valid.png").is_file()
    assert math.isfinite(trainer.callback_metrics["test/recon"])
    assert not has_image_loggers(trainer.loggers)


@pytest.mark.parametrize("sanity", [0, 2])
def test_scores_are_there_when_callbacks_see_the_epoch_end(folder: Path, sanity: int) -> None:
    content = arrays()
    test = {f"test_{k}": content[f"valid_{k}"] for k in ("encod_data", "recon_data")}
    path = write("test.h5", **content, **test)
    data, seen = USER_CODE.data(folder, datafile_pattern=path), {}

    class Reader(pl.Callback):
        def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            if not trainer.sanity_checking:
                seen["valid"] = dict(trainer.callback_metrics)

        def on_test_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            seen["test"] = dict(trainer.callback_metrics)

    model = LFADS(**settings())
    trainer = fit(model, data, [Reader()], num_sanity_val_steps=sanity)
    logged = dict(trainer.callback_metrics)
    for name in ("valid/recon", "valid/recon_smth", "valid/bps"):
        assert float(seen["valid"][name]) == float(logged[name])
    (again,) = trainer.validate(model, data, verbose=False)
    assert math.isfinite(again["valid/recon"])
    (tested,) = trainer.test(model, data, verbose=False)
    assert float(seen["test"]["test/recon"]) == pytest.approx(tested["test/recon"])
