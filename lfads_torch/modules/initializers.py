"""How weights are drawn. Source: Pandarinath et al. 2018 (doi:10.1038/s41592-018-0109-9)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def init_variance_scaling_(weight: Tensor, scale_dim: int) -> Tensor:
    """Draw a weight from N(0, 1 / scale_dim), in place.

    Parameters
    ----------
    weight : Tensor
    scale_dim : int
        Number of inputs that add up; 0 counts as 1.

    Returns
    -------
    Tensor
        The weight.
    """
    return nn.init.normal_(weight, std=max(1, scale_dim) ** -0.5)


def init_linear_(linear: nn.Linear) -> nn.Linear:
    """Draw a linear map's weight from N(0, 1 / in_features), and set its bias to 0, in place."""
    init_variance_scaling_(linear.weight, linear.in_features)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
    return linear


def init_gru_cell_(cell: Any, scale_dim: int | None = None) -> Any:
    """Draw the weights of a GRU cell, in place; the biases of both gates are 1, all others 0.

    Parameters
    ----------
    cell : ClippedGRUCell
        Or another module with `weight_ih`, `weight_hh`, `bias_ih` and `bias_hh`.
    scale_dim : int, optional
        Both weights are drawn from N(0, 1 / scale_dim); by default each by its own inputs.

    Returns
    -------
    ClippedGRUCell
        The cell.
    """
    for weight in (cell.weight_ih, cell.weight_hh):
        init_variance_scaling_(weight, weight.shape[1] if scale_dim is None else scale_dim)
    with torch.no_grad():
        cell.bias_ih.fill_(1.0)[2 * cell.weight_hh.shape[1] :] = 0.0
        cell.bias_hh.zero_()
    return cell
