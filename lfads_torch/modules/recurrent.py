"""Parameters of the clipped GRU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

from ..kernels import GRUStates, Kernels


class ClippedGRUCell(nn.Module):
    """Weights of a GRU whose reset gate acts before the recurrent product.

    Rows are stacked in the order update gate, reset gate, candidate.

    Parameters
    ----------
    input_size, hidden_size : int
    is_encoder : bool
        Encoder weights start from N(0, 1 / (input_size + hidden_size)), decoder weights from
        N(0, 1 / fan-in).
    """

    def __init__(self, input_size: int, hidden_size: int, *, is_encoder: bool) -> None:
        super().__init__()
        self.input_size, self.hidden_size = input_size, hidden_size
        rows = 3 * hidden_size
        fan_ih = input_size + hidden_size if is_encoder else max(1, input_size)
        fan_hh = input_size + hidden_size if is_encoder else hidden_size
        self.weight_ih = nn.Parameter(torch.randn(rows, input_size) / fan_ih**0.5)
        self.weight_hh = nn.Parameter(torch.randn(rows, hidden_size) / fan_hh**0.5)
        bias = torch.cat([torch.ones(2 * hidden_size), torch.zeros(hidden_size)])
        self.bias_ih = nn.Parameter(bias)
        # Zero and fixed; it stays for the layout of existing checkpoints.
        self.bias_hh = nn.Parameter(torch.zeros(rows), requires_grad=False)

    @property
    def bias(self) -> Float[Tensor, " H3"]:
        """Sum of both biases: the reset gate acts before the recurrent product, not on it."""
        return self.bias_ih + self.bias_hh


class ClippedGRU(nn.Module):
    """Holder of one direction's `cell`, as checkpoints name it."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.cell = ClippedGRUCell(input_size, hidden_size, is_encoder=True)


class BidirectionalClippedGRU(nn.Module):
    """A clipped GRU over the bins and a second one over the bins in reverse.

    Parameters
    ----------
    input_size, hidden_size : int
    clip : float
        States stay within [-clip, clip].
    """

    def __init__(self, input_size: int, hidden_size: int, clip: float) -> None:
        super().__init__()
        self.fwd_gru = ClippedGRU(input_size, hidden_size)
        self.bwd_gru = ClippedGRU(input_size, hidden_size)
        self.clip = clip

    @property
    def cells(self) -> Sequence[ClippedGRUCell]:
        """Forward and backward cell."""
        return self.fwd_gru.cell, self.bwd_gru.cell

    def forward(
        self,
        x: Float[Tensor, "T B N"],
        h0: Float[Tensor, "2 1 H"],
        kernels: Kernels,
    ) -> GRUStates:
        """Return the states of both directions.

        Parameters
        ----------
        x : Tensor, shape (T, B, N)
        h0 : Tensor, shape (2, 1, H)
        kernels : Kernels
        """
        cells = self.cells
        weight_ih = torch.cat([cell.weight_ih for cell in cells])
        weight_hh = torch.stack([cell.weight_hh for cell in cells])
        bias = torch.cat([cell.bias for cell in cells])
        x_proj = linear(x, weight_ih, bias).unflatten(-1, (2, -1)).movedim(2, 0)
        h0 = h0.expand(-1, x.shape[1], -1)
        return kernels.clipped_gru(x_proj, h0, weight_hh, self.clip, two_way=True)
