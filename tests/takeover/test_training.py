"""Training as the existing implementation trains, from its files and in its settings.

Its losses cannot be repeated, because its noise is unknown. So a plain oracle, which its golden
files bear out, trains on from its checkpoints, and what its own log says of itself holds here.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lfads_torch.compat.records import load_pickled
from lfads_torch.datamodules import BasicDataModule
from lfads_torch.model import LFADS
from lfads_torch.modules import priors, recons
from lfads_torch.modules.augmentations import AugmentationStack
from lfads_torch.tuples import SessionBatch
from tests import oracle
from tests.golden_utils import one_batch, train_and_compare, two_halves
from tests.small import arrays, datamodule, lfads, trainer, write
from tests.takeover.test_checkpoints import (
    ANSWERS,
    CHECKPOINTS,
    FILES,
    INPUTS,
    load_quietly,
    means,
)

RUN = FILES / "run_reach"
KINDS = {"bps": "PoissonBPS", "mse": "MSE", "gaussian": "Gaussian", "gamma": "Gamma"}
KINDS |= {"zig_list": "ZeroInflatedGamma"}
ZIG = {"gamma_loc": 0.1, "scale_init": 1.0, "scale_prior": 1.0, "scale_penalty": 1e-3}

NAMES: list[Any] = sorted(path.stem for path in CHECKPOINTS.glob("*.ckpt"))


def input_batch(name: str) -> dict[int, SessionBatch]:
    return {
        s: SessionBatch(*(torch.tensor(fields["input"][key]) for key in INPUTS))
        for s, fields in means(name).items()
    }


# ---- from its checkpoints ----------------------------------------------------------------------


# These four have every kind of part that takes another path through a step; the others are slow.
QUICK = ("modlist", "poisson", "sbtt", "zig_list")


@pytest.mark.filterwarnings("ignore:goes on from")
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in NAMES]
)
def test_twenty_steps_from_a_checkpoint(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, moments, epoch and step are its; so is which parameters are trained."""
    path = CHECKPOINTS / f"{name}.ckpt"
    stored = load_pickled(path)
    numbers = stored["hyper_parameters"] | {"reconstruction": KINDS.get(name, "Poisson"), **ZIG}
    hps = numbers | {"dropout_rate": 0.0, "kl_increase_epoch": 7, "l2_increase_epoch": 9}
    changes: dict[str, Any] = {n: hps[n] for n in ("dropout_rate", *RAMPS)}
    answer = {"bps": "PoissonBPS", **ANSWERS}.get(name)
    if answer:
        changes["reconstruction"] = answer
    if name != "sbtt":
        changes["train_aug_stack"] = AugmentationStack()
    else:
        changes["train_aug_stack"] = load_quietly(path).infer_aug_stack
    model = load_quietly(path, **changes)

    state, optimizer = stored["state_dict"], stored["optimizer_states"][0]
    moments = {key: optimizer["state"].get(i) for i, key in enumerate(state)}
    trained = {key for key, values in moments.items() if values}
    run = oracle.Training(
        dict(state),
        optimizer["param_groups"][0]["lr"],
        {k: (v["exp_avg"].double(), v["exp_avg_sq"].double()) for k, v in moments.items() if v},
        stored["global_step"],
    )
    if name == "zig_list":  # trained here, and not there
        for parameter in model.recon.parameters():
            parameter.requires_grad_(False)
        run.params["recon.0.scale"] = torch.ones(2, 26)
    batch = input_batch(name)
    train_and_compare(
        tmp_path,
        model,
        (two_halves(batch), one_batch(batch)),
        run,
        hps,
        trained,
        monkeypatch,
        first_epoch=stored["epoch"] + 1,
        resume=path,
    )


RAMPS = ("kl_increase_epoch", "l2_increase_epoch")


# ---- in its settings ---------------------------------------------------------------------------


class Penalised(recons.Poisson):
    """A user's reconstruction with a penalty on a parameter that it has."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.full((3,), 2.0))

    def compute_l2(self) -> torch.Tensor:
        return 0.25 * (self.gain**2).sum()


def student(size: int) -> nn.Module:
    return priors.MultivariateStudentT(0.25, 0.5, 5.0, size)


BINS = {"bins": (6, 9), "channels": (3, 5)}
SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "held-out channels and bins, IC segment": (BINS, {"ic_enc_seq_len": 2}),
    "sums, small loss": ({}, {"recon_reduce_mean": False, "loss_scale": 0.5}),
    "scheduler": ({}, {"lr_scheduler": True, "lr_init": 0.05, "lr_patience": 0, "lr_decay": 0.5}),
    "scheduler at its end": (
        {},
        {"lr_scheduler": True, "lr_init": 0.05, "lr_patience": 0, "lr_decay": 0.1, "lr_stop": 0.02},
    ),
    "weight decay, all L2": (
        {},
        {"weight_decay": 0.5, "l2_ic_enc_scale": 2.0, "l2_ci_enc_scale": 3.0}
        | {"l2_gen_scale": 4.0, "l2_con_scale": 5.0, "l2_increase_epoch": 5},
    ),
    "ramps that start late": (
        {},
        {"l2_start_epoch": 2, "l2_increase_epoch": 3, "kl_start_epoch": 4, "kl_increase_epoch": 2}
        | {"kl_ic_scale": 0.1, "kl_co_scale": 0.1},
    ),
    "penalty of a user's": ({}, {"reconstruction": [Penalised()]}),
    "Student-t": ({}, {"co_prior": student(2), "kl_co_scale": 0.1, "kl_increase_epoch": 0}),
    "betas, epsilon": (
        {},
        {"lr_adam_beta1": 0.8, "lr_adam_beta2": 0.9, "lr_adam_epsilon": 1e-3},
    ),
    "external input": ({"ext": 2}, {}),
    "several sessions": (BINS, {"weight_decay": 0.1, "kl_ic_scale": 0.1}),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_twenty_steps_in_a_setting(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the data module: two batches an epoch, shuffled; the oracle takes the same batches."""
    sizes, arguments = SETTINGS[name]
    sessions = [arrays(8, 4, **sizes)]
    if name == "several sessions":
        more = sizes | {"channels": (4, 7)}
        sessions.append(arrays(8, 4, **more, seed=1))
    data = datamodule(write(tmp_path, *sessions), batch_size=4 * len(sessions))
    torch.manual_seed(0)
    model = lfads(data, dropout_rate=0.0, **arguments)
    hps: dict[str, Any] = dict(model.hparams) | {"reconstruction": "Poisson", "df": 5.0}
    if name.startswith("penalty"):
        hps["recon_l2"] = penalty
    trained = {n for n in model.state_dict() if not n.endswith(("bias_hh", "ic_prior.logvar"))}
    start = {n: p.clone() for n, p in model.state_dict().items()}
    run = oracle.Training(start, hps["lr_init"])
    train_and_compare(tmp_path, model, (data,), run, hps, trained, monkeypatch)
    if hps["lr_scheduler"]:
        assert run.lr < hps["lr_init"], "the setting has no plateau"


def penalty(params: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return 0.25 * (params["recon.0.gain"] ** 2).sum()


# ---- what its log says -------------------------------------------------------------------------


def columns(path: Path) -> dict[str, list[float]]:
    with path.open() as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows if row[name]] for name in rows[0]}


def run_data(path: Path) -> BasicDataModule:
    """Return its data, which its output file carries on."""
    return datamodule(path / "lfads_output_reach.h5", batch_size=24)


@pytest.mark.filterwarnings("ignore:.*(read as Poisson|goes on from)")
def test_every_logged_name_is_ours(tmp_path: Path) -> None:
    """And numbers of an epoch hang together there as here."""
    import pytorch_lightning as pl

    theirs = columns(RUN / "csv_logs" / "metrics.csv")
    logger = pl.loggers.CSVLogger(tmp_path, name="", version="")
    rates = pl.callbacks.LearningRateMonitor(logging_interval="epoch")
    model = load_quietly(RUN)
    options: dict[str, Any] = {"logger": logger, "callbacks": [rates], "log_every_n_steps": 1}
    trainer(tmp_path, max_epochs=3, **options).fit(model.train(), run_data(RUN))
    ours = columns(tmp_path / "metrics.csv")
    assert theirs.keys() <= ours.keys()
    assert theirs["lr-AdamW"] == pytest.approx(ours["lr-AdamW"], rel=1e-6)
    constant = [n for n in theirs if n.startswith("hp/") or n.endswith("/ramp")]
    for name in [*constant, "cur_epoch", "valid/wt_l2", "train/wt_l2"]:
        assert ours[name] == pytest.approx(theirs[name], rel=1e-6, abs=1e-12), name
    for log in (theirs, ours):
        raw, smooth = log["valid/recon"], log["valid/recon_smth"]
        assert log["hp_metric"] == raw == log["valid/recon/sess0"]
        for i in (1, 2):  # the first value there knows of Lightning's check before training
            assert smooth[i] == pytest.approx(0.3 * smooth[i - 1] + 0.7 * raw[i], rel=1e-6)
        for split in ("train", "valid"):
            for i in range(3):
                terms = {n: log[f"{split}/{n}"][i] for n in TERMS}
                kl = terms["wt_kl/ic"] + terms["wt_kl/co"]
                assert terms["wt_kl"] == pytest.approx(kl, rel=1e-6)
                total = terms["recon"] + terms["wt_kl/ramp"] * terms["wt_kl"]
                assert terms["loss"] == pytest.approx(1e4 * total, rel=1e-6)
            assert all(math.isnan(value) for value in log[f"{split}/r2"])


TERMS = ("loss", "recon", "wt_kl", "wt_kl/ic", "wt_kl/co", "wt_kl/ramp")


def test_validation_of_its_last_weights_is_its_last_row(tmp_path: Path) -> None:
    """Exactly where nothing is drawn; within the spread of posterior samples elsewhere."""
    theirs = {n: v[-1] for n, v in columns(RUN / "csv_logs" / "metrics.csv").items() if v}
    model: LFADS = load_quietly(RUN / "lightning_checkpoints" / "last.ckpt")
    model.set_ramps(2)
    data = run_data(RUN)
    torch.manual_seed(0)
    runs = [trainer(tmp_path).validate(model, data, verbose=False)[0] for _ in range(12)]
    for ours in runs:
        assert ours["valid/wt_kl/ic"] == pytest.approx(theirs["valid/wt_kl/ic"], rel=1e-6)
        for name in ("valid/wt_kl/ramp", "valid/wt_l2", "valid/bps", "valid/co_bps"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-6), name
    for name in ("valid/recon", "valid/loss", "valid/fp_bps", "valid/wt_kl/co"):
        values = torch.tensor([float(ours[name]) for ours in runs])
        assert abs(theirs[name] - values.mean()) < 4 * values.std(), name
