"""Reference numbers: reading ``tests/golden/*.npz`` and measuring agreement with them.

Each file holds hyper-parameters (`meta`), one batch per session, parameters, and what a trusted
implementation made of them in float32 with posterior means: outputs, losses, gradients before
clipping, and the parameters after three AdamW steps.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lfads_torch.model import LFADS
from lfads_torch.modules import priors, recons
from lfads_torch.modules.readin_readout import FanInLinear
from lfads_torch.tuples import SessionBatch

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
