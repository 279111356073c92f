"""Reference numbers: reading ``tests/golden/*.npz`` and measuring agreement with them.

Each file holds hyper-parameters (`meta`), one batch per session, parameters, and what a trusted
implementation made of them in float32 with posterior means: outputs, losses, gradients before
clipping, and the parameters after three AdamW steps.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lfads_torch.model import LFADS
from lfads_torch.modules import priors, recons
from lfads_torch.modules.readin_readout import FanInLinear
from lfads_torch.runs.resume import AtomicCheckpointIO
from lfads_torch.tuples import SessionBatch
from tests import oracle
from tests.small import trainer

GOLDEN_DIR = Path(__file__).parent / "golden"
GOLDEN_NAMES = sorted(path.stem for path in GOLDEN_DIR.glob("*.npz") if path.stem != "priors")

# The zero-inflated file's meta leaves these out. They are what its own numbers imply:
# output_means / q - alpha / beta = 0.1 in every entry, and loss/l2 less the recurrent weights'
# penalty is 1e-4 * 0.5 * sum (scale - 20)^2.
ZIG_ARGS = {"gamma_loc": 0.1, "scale_init": 20.0, "scale_prior": 20.0, "scale_penalty": 1e-4}

# Entries that describe the file and are not hyper-parameters of the model.
NOT_HYPERPARAMETERS = {"reconstruction", "sessions", "ramp", "gradient_clip_val", *ZIG_ARGS}


@dataclass(frozen=True)
class Golden:
    """One reference file; all arrays are float32 tensors."""

    name: str
    hps: dict[str, Any]
    sessions: list[tuple[int, int]]
    ramp: float
    clip: float
    batch: dict[int, dict[str, Tensor]]
    params: dict[str, Tensor]
    outputs: dict[int, dict[str, Tensor]]
    losses: dict[str, float]
    grads: dict[str, Tensor]
    after3: dict[str, Tensor]


def load_arrays(name: str) -> dict[str, Any]:
    """Everything in the file called `name`; arrays as tensors, `meta` as a dict."""
    with np.load(GOLDEN_DIR / f"{name}.npz") as file:
        arrays: dict[str, Any] = {k: torch.from_numpy(file[k]) for k in file if k != "meta"}
        if "meta" in file:
            arrays["meta"] = json.loads(str(file["meta"]))
    return arrays


def load_golden(name: str) -> Golden:
    """Read one reference file."""
    arrays = load_arrays(name)
    meta = arrays.pop("meta")

    def group(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}

    n_sessions = len(meta["sessions"])
    return Golden(
        name=name,
        hps=meta | ZIG_ARGS,
        sessions=[(n_read, n_recon) for n_read, n_recon in meta["sessions"]],
        ramp=meta["ramp"],
        clip=meta["gradient_clip_val"],
        batch={s: group(f"in/{s}/") for s in range(n_sessions)},
        params=group("param/"),
        outputs={s: group(f"out/{s}/") for s in range(n_sessions)},
        losses={k: float(v) for k, v in group("loss/").items()},
        grads=group("grad/"),
        after3=group("after3/"),
    )


def build_recon(golden: Golden, n_channels: int) -> recons.Reconstruction:
    """Observation model of the file, for a session of `n_channels`."""
    kind = getattr(recons, golden.hps["reconstruction"])
    if golden.hps["reconstruction"] == "ZeroInflatedGamma":
        return kind(recon_dim=n_channels, **ZIG_ARGS)
    return kind()


def build_lfads(golden: Golden, **changes: Any) -> LFADS:
    """Build the model of the file with its parameters, in evaluation mode.

    Both ramps are at the file's value (one half) in epoch 0.
    """
    assert golden.ramp == 0.5
    hps = {name: value for name, value in golden.hps.items() if name not in NOT_HYPERPARAMETERS}
    hps |= {"l2_increase_epoch": 1, "kl_increase_epoch": 1}
    hps |= changes
    n_recons = [n_recon for _, n_recon in golden.sessions]
    recon_list = [build_recon(golden, n_recon) for n_recon in n_recons]
    readin: nn.Module = nn.Identity()
    if len(golden.sessions) > 1:
        readin = nn.ModuleList(FanInLinear(n, hps["encod_data_dim"]) for n, _ in golden.sessions)
    readout = nn.ModuleList(
        FanInLinear(hps["fac_dim"], recon.n_params * n_recon)
        for recon, n_recon in zip(recon_list, n_recons, strict=True)
    )
    co_prior: nn.Module = priors.Null()
    if "co_prior.logtaus" in golden.params:
        co_prior = priors.AutoregressiveMultivariateNormal(1.0, 1.0, hps["co_dim"])
    model = LFADS(
        reconstruction=nn.ModuleList(recon_list),
        readin=readin,
        readout=readout,
        ic_prior=priors.MultivariateNormal(0.0, 1.0, hps["ic_dim"]),
        co_prior=co_prior,
        **hps,
    )
    model.load_state_dict(golden.params, strict=True)
    return model.eval()


def session_batches(golden: Golden, dtype: torch.dtype = torch.float32) -> dict[int, SessionBatch]:
    """Batch of the file as the model takes it."""
    batches = {}
    for s, arrays in golden.batch.items():
        data = {name: array.to(dtype) for name, array in arrays.items()}
        none = data["encod_data"].new_zeros(data["encod_data"].shape[0], 0, 0)
        batches[s] = SessionBatch(truth=none, sv_mask=none.bool(), masks=None, **data)
    return batches


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Largest absolute deviation over the largest absolute value of `expected`.

    The norm is per tensor: an entry near zero is held to the rounding of its neighbours, not to
    its own. Empty tensors agree; a tensor of zeros is met only exactly.
    """
    assert got.shape == expected.shape, f"shape {tuple(got.shape)}, not {tuple(expected.shape)}"
    if expected.numel() == 0:
        return 0.0
    deviation = float((got.detach() - expected).abs().max())
    if deviation == 0.0:
        return 0.0
    return deviation / max(float(expected.abs().max()), float(np.finfo(np.float64).tiny))


def assert_close(got: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    """Fail, naming `what`, where `relative_error` is above `tolerance` or not a number."""
    error = relative_error(got, expected)
    assert error <= tolerance, f"{what}: relative error {error:.2e} is above {tolerance:.0e}"


def assert_all_close(
    got: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float, what: str
) -> None:
    """`assert_close` for two dicts of tensors, which must have the same names."""
    assert got.keys() == expected.keys(), (
        f"{what}: missing {sorted(expected.keys() - got.keys())}, "
        f"unexpected {sorted(got.keys() - expected.keys())}"
    )
    for name, value in expected.items():
        assert_close(got[name], value, tolerance, f"{what} {name}")


# ------------------------------------------------------------------ training runs


class FixedPosterior:
    """Posterior of the initial condition whose one sample is known beforehand."""

    def __init__(self, mean: Tensor, std: Tensor, eps: Tensor) -> None:
        self.sample = mean + std * eps

    def rsample(self, shape: tuple[int, ...]) -> Tensor:
        return self.sample.expand(*shape, *self.sample.shape)


draw_normal = torch.randn


def fixed_normal(*shape: int) -> Tensor:
    """Standard normal numbers that depend on the shape alone, in float64."""
    generator = torch.Generator().manual_seed(sum(shape))
    return draw_normal(*shape, generator=generator).double()


def fix_noise(monkeypatch: pytest.MonkeyPatch, model: LFADS) -> None:
    """Make every posterior sample of the model the same in every step."""

    def like(x: Tensor, **_: Any) -> Tensor:
        return fixed_normal(*x.shape).to(x.dtype)

    monkeypatch.setattr(
        torch, "randn", lambda *size, dtype=None, **_: fixed_normal(*size).to(dtype)
    )
    monkeypatch.setattr(torch, "randn_like", like)
    monkeypatch.setattr(
        model.ic_prior, "make_posterior", lambda mean, std: FixedPosterior(mean, std, like(mean))
    )


def fixed_noise(hps: Mapping[str, Any], batch: oracle.Batch) -> tuple[oracle.Noise, Tensor | None]:
    """Return the same noise as the oracle takes it."""
    if not hps["variational"]:
        return oracle.NO_NOISE, None
    n_trials = sum(len(trials["encod_data"]) for trials in batch.values())
    n_bins, co_dim = hps["recon_seq_len"], hps["co_dim"]
    ic_eps = fixed_normal(n_trials, hps["ic_dim"])
    if not oracle.has_controller(hps):
        return oracle.Noise(ic_eps=ic_eps), None
    co_eps = fixed_normal(n_bins, n_trials, co_dim).transpose(0, 1)
    return oracle.Noise(ic_eps=ic_eps, co_eps=co_eps), fixed_normal(n_trials, n_bins, co_dim)


def plain(batch: Any) -> oracle.Batch:
    """Return a batch of the model as the oracle takes it, in float64."""
    names = ("encod_data", "recon_data", "ext_input")
    sessions = {s: pair if isinstance(pair, SessionBatch) else pair[0] for s, pair in batch.items()}
    return {s: {n: getattr(b, n).double() for n in names} for s, b in sessions.items()}


class Record(pl.Callback):
    """Notes batches, losses and learning rates of the steps, and what is logged for the epochs."""

    def __init__(self) -> None:
        self.epochs: list[tuple[list[oracle.Batch], oracle.Batch]] = []
        self.losses: list[list[float]] = []
        self.rates: list[float] = []
        self.logged: list[dict[str, float]] = []

    def on_train_epoch_start(self, trainer: Any, model: Any) -> None:
        self.epochs.append(([], {}))
        self.losses.append([])
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_start(self, trainer: Any, model: Any, batch: Any, batch_idx: int) -> None:
        self.epochs[-1][0].append(plain(batch))

    def on_train_batch_end(self, trainer: Any, model: Any, outputs: Any, *_: Any) -> None:
        self.losses[-1].append(outputs["loss"].item())

    def on_validation_batch_start(self, trainer: Any, model: Any, batch: Any, *_: Any) -> None:
        assert not self.epochs[-1][1], "the oracle validates on one batch"
        self.epochs[-1] = self.epochs[-1][0], plain(batch)

    def on_train_epoch_end(self, trainer: Any, model: Any) -> None:
        self.logged.append({k: v.item() for k, v in trainer.callback_metrics.items()})


def one_batch(batch: dict[int, SessionBatch]) -> DataLoader[Any]:
    """Return a loader of one step, as a data module's."""
    return DataLoader([{s: (trials, ()) for s, trials in batch.items()}], batch_size=None)


def two_halves(batch: dict[int, SessionBatch]) -> DataLoader[Any]:
    """Return a loader of two steps, each of every other trial."""
    halves = [
        {s: (trials._make(x[first::2] for x in trials), ()) for s, trials in batch.items()}
        for first in (0, 1)
    ]
    return DataLoader(halves, batch_size=None)


def train_and_compare(
    folder: Path,
    model: LFADS,
    data: Sequence[Any],
    run: oracle.Training,
    hps: Mapping[str, Any],
    trained: set[str],
    monkeypatch: pytest.MonkeyPatch,
    *,
    n_epochs: int = 10,
    first_epoch: int = 0,
    resume: Path | None = None,
) -> None:
    """Train under Lightning in float32 and the oracle in float64; losses differ by 1e-6 at most.

    `data` are what `Trainer.fit` takes; `run` and `hps` are the oracle's start and numbers.
    Everything that is logged for an epoch, the learning rates and the last parameters are compared.
    """
    fix_noise(monkeypatch, model)
    record = Record()
    fitting = trainer(
        folder,
        max_epochs=first_epoch + n_epochs,
        gradient_clip_val=200,
        callbacks=[record],
        plugins=[AtomicCheckpointIO()],
    )
    fitting.fit(model.train(), *data, ckpt_path=resume, weights_only=True)
    run.params = {name: p.double() for name, p in run.params.items()}

    def draw(batch: oracle.Batch) -> tuple[oracle.Noise, Tensor | None]:
        return fixed_noise(hps, batch)

    epochs = oracle.fit(run, hps, record.epochs, trained, draw, first_epoch)
    assert len(epochs) == n_epochs
    assert record.rates == pytest.approx([epoch.lr for epoch in epochs], rel=1e-6)
    errors = [
        abs(loss / step["total"] - 1)
        for losses, epoch in zip(record.losses, epochs, strict=True)
        for loss, step in zip(losses, epoch.steps, strict=True)
    ]
    assert len(errors) == 20
    print(f"largest error of a loss: {max(errors):.1e}")
    assert max(errors) < 1e-6
    # An epoch's log weighs steps by their trials and observed entries, the oracle all alike.
    sizes = [
        {s: int(batch.recon_data.isfinite().sum()) for s, (batch, _) in step.items()}
        for step in fitting.train_dataloader
    ]
    for logged, epoch in zip(record.logged, epochs, strict=True):
        for name, expected in expected_log(epoch, hps).items():
            if name.startswith("train/") and sizes[0] != sizes[1]:
                continue
            close = pytest.approx(expected, rel=1e-5, abs=1e-6)
            assert logged[name] == close, (name, logged[name], expected)
    # Priors of an autonomous model have no entries, and here no names either.
    expected = {n: p for n, p in run.params.items() if p.numel()}
    state = {n: p.double() for n, p in model.state_dict().items() if n in expected}
    assert_all_close(state, expected, 1e-4, "parameter at the end")


def expected_log(epoch: oracle.Epoch, hps: Mapping[str, Any]) -> dict[str, float]:
    """Return what an epoch's log says, from the oracle's terms."""
    expected = {"valid/recon_smth": epoch.smoothed, "hp_metric": epoch.valid["recon"]}
    for split, steps in (("train", epoch.steps), ("valid", [epoch.valid])):
        mean = {name: float(np.mean([step[name] for step in steps])) for name in steps[0]}
        ic, co = hps["kl_ic_scale"] * mean["ic_kl"], hps["kl_co_scale"] * mean["co_kl"]
        terms = {"loss": mean["total"], "recon": mean["recon"], "wt_l2": mean["l2"]}
        terms |= {"wt_kl": ic + co, "wt_kl/ic": ic, "wt_kl/co": co}
        expected |= {f"{split}/{name}": value for name, value in terms.items()}
    return expected
