"""Parameters of the clipped GRU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import linear

from ..kernels import GRUStates, Kernels

Cell = TypeVar("Cell", bound=nn.Module)

# Input products that keep a state, whatever the state adds to them: an update gate of exactly 1,
# and a reset gate of next to 0, so that with no input the candidate is next to 0, too, which
# z h + (1 - z) n, written as n + z (h - n), rounds away. A lower reset gate would make denormal
# numbers, which are slow.
_UPDATE, _RESET = 1e4, -50.0


class ClippedGRUCell(nn.Module):
    """Weights of a GRU whose reset gate acts before the recurrent product.

    Rows are stacked in the order update gate, reset gate, candidate. Encoder weights start from
    N(0, 1 / (input_size + hidden_size)), decoder weights from N(0, 1 / fan-in).
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
        """Return the sum of both biases, which act alike: the reset gate scales neither."""
        return self.bias_ih + self.bias_hh


class CellHolder(nn.Module, Generic[Cell]):
    """Hold a `cell`, because the names in existing checkpoints have this step."""

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self.cell = cell


class BidirectionalClippedGRU(nn.Module):
    """Run a clipped GRU over the bins and a second one over the bins in reverse.

    All states stay within [-clip, clip].
    """

    def __init__(self, input_size: int, hidden_size: int, clip: float) -> None:
        super().__init__()
        self.fwd_gru = CellHolder(ClippedGRUCell(input_size, hidden_size, is_encoder=True))
        self.bwd_gru = CellHolder(ClippedGRUCell(input_size, hidden_size, is_encoder=True))
        self.clip = clip

    @property
    def cells(self) -> Sequence[ClippedGRUCell]:
        """Return the forward and the backward cell."""
        return self.fwd_gru.cell, self.bwd_gru.cell

    def forward(
        self,
        x: Float[Tensor, "T B N"],
        h0: Float[Tensor, "2 1 H"],
        kernels: Kernels,
        padded: Bool[Tensor, "T B"] | None = None,
    ) -> GRUStates:
        """Return the states of both directions; they pass the bins that `padded` marks unchanged.

        So does the gradient: the last states are those of the trial alone. (An initial state beyond
        the clip, which training would have to bring about, is clipped by those bins.)
        """
        cells = self.cells
        weight_ih = torch.cat([cell.weight_ih for cell in cells])
        weight_hh = torch.stack([cell.weight_hh for cell in cells])
        bias = torch.cat([cell.bias for cell in cells])
        # The bias is the weight of an input that is 1: its gradient then takes no extra sum.
        extra = [x.new_ones(1).expand(*x.shape[:2], 1)]
        columns = [bias.unsqueeze(1)]
        if padded is not None:
            # One more input, which is 1 past the end: cheaper than to write over the products.
            past = padded.unsqueeze(-1)
            x = x.masked_fill(past, 0.0)
            extra.append(past.to(x.dtype))
            columns.append(self._hold(bias))
        x = torch.cat([x, *extra], dim=-1)
        x_proj = linear(x, torch.cat([weight_ih, *columns], dim=1))
        x_proj = x_proj.unflatten(-1, (2, -1)).movedim(2, 0)
        h0 = h0.expand(-1, x.shape[1], -1)
        return kernels.clipped_gru(x_proj, h0, weight_hh, self.clip, two_way=True)

    def _hold(self, bias: Float[Tensor, " H6"]) -> Float[Tensor, "H6 1"]:
        """Return the weights of an input that holds the state of both directions."""
        cand = bias.unflatten(0, (2, 3, -1))[:, 2]
        gates = [torch.full_like(cand, value) for value in (_UPDATE, _RESET)]
        return torch.stack([*gates, -cand], dim=1).flatten().unsqueeze(1)
