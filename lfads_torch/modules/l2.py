"""The L2 term as a function of a model and its numbers, for code that computes its own loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..objective import penalty


def compute_l2_penalty(lfads: Any, hps: Any) -> Tensor:
    """Compute the L2 term, without its ramp and the loss's scale.

    Parameters
    ----------
    lfads : LFADS
    hps : mapping or namespace
        Holds `l2_ic_enc_scale`, `l2_ci_enc_scale`, `l2_gen_scale` and `l2_con_scale`, as
        ``lfads.hparams`` does.

    Returns
    -------
    Tensor
        A scalar.
    """
    values = hps if isinstance(hps, Mapping) else vars(hps)
    scales = {
        name: torch.as_tensor(float(values[f"{name}_scale"]), device=lfads.device)
        for name in ("l2_ic_enc", "l2_ci_enc", "l2_gen", "l2_con")
    }
    return penalty(lfads, lfads.weights._replace(**scales))
