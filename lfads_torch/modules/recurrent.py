"""The clipped GRU: its parameters, one step, one and two directions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Generic, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..kernels import GRUStates, Kernels, get_kernels
from .initializers import init_gru_cell_

Cell = TypeVar("Cell", bound=nn.Module)

# Input products that keep a state, whatever the state adds to them: an update gate of exactly 1,
# and a reset gate of next to 0, so that with no input the candidate is next to 0, too, which
# z h + (1 - z) n, written as n + z (h - n), rounds away. A lower reset gate would make denormal
# numbers, which are slow.
_UPDATE, _RESET = 1e4, -50.0


class ClippedGRUCell(nn.Module):
    """A GRU cell whose reset gate acts before the recurrent product, its state clipped.

    Rows of the weights are stacked in the order update gate, reset gate, candidate. Encoder weights
    start from N(0, 1 / (input_size + hidden_size)), others from N(0, 1 / inputs). Source:
    Pandarinath et al. 2018 (doi:10.1038/s41592-018-0109-9).

    Parameters
    ----------
    input_size, hidden_size : int
        Numbers of inputs and of units.
    clip_value : float
        The state stays within [-clip_value, clip_value].
    is_encoder : bool
        How weights start.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        clip_value: float = math.inf,
        is_encoder: bool = False,
    ) -> None:
        super().__init__()
        self.input_size, self.hidden_size = input_size, hidden_size
        self.clip_value = clip_value
        rows = 3 * hidden_size
        self.weight_ih = nn.Parameter(torch.empty(rows, input_size))
        self.weight_hh = nn.Parameter(torch.empty(rows, hidden_size))
        self.bias_ih = nn.Parameter(torch.empty(rows))
        # Zero and fixed; it stays for the layout of existing checkpoints.
        self.bias_hh = nn.Parameter(torch.empty(rows), requires_grad=False)
        init_gru_cell_(self, input_size + hidden_size if is_encoder else None)

    @property
    def bias(self) -> Float[Tensor, " H3"]:
        """Return the sum of both biases, which act alike: the reset gate scales neither."""
        return self.bias_ih + self.bias_hh

    def forward(
        self, input: Float[Tensor, "B N"], hidden: Float[Tensor, "B H"]
    ) -> Float[Tensor, "B H"]:
        """Compute the next state, for example to look for fixed points.

        Parameters
        ----------
        input : Tensor, shape (B, input_size)
        hidden : Tensor, shape (B, hidden_size)
            The state before.

        Returns
        -------
        Tensor, shape (B, hidden_size)
        """
        return _run([self], input.unsqueeze(0), hidden.unsqueeze(0)).last[0]


class ClippedGRU(nn.Module):
    """A clipped GRU over the bins of a batch.

    Parameters
    ----------
    input_size, hidden_size, clip_value, is_encoder
        As in `ClippedGRUCell`.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        clip_value: float = math.inf,
        is_encoder: bool = False,
    ) -> None:
        super().__init__()
        self.cell = ClippedGRUCell(input_size, hidden_size, clip_value, is_encoder)

    def forward(
        self, input: Float[Tensor, "B T N"], h_0: Float[Tensor, "*one B H"]
    ) -> tuple[Tensor, Tensor]:
        """Run over all bins.

        Parameters
        ----------
        input : Tensor, shape (B, T, input_size)
        h_0 : Tensor, shape (B, hidden_size) or (1, B, hidden_size)
            The initial state.

        Returns
        -------
        output : Tensor, shape (B, T, hidden_size)
            The state at every bin.
        h_n : Tensor, shape of `h_0`
            The last state.
        """
        result = _run([self.cell], input.transpose(0, 1), h_0.reshape(1, *h_0.shape[-2:]))
        return result.states[0].transpose(0, 1), result.last.reshape(h_0.shape)


class CellHolder(nn.Module, Generic[Cell]):
    """Hold a `cell`, because the names in existing checkpoints have this step."""

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self.cell = cell


class BidirectionalClippedGRU(nn.Module):
    """Run a clipped GRU over the bins and a second one over the bins in reverse.

    Parameters
    ----------
    input_size, hidden_size : int
        Numbers of inputs, and of units per direction.
    clip_value : float
        All states stay within [-clip_value, clip_value].
    causal : bool
        Leave out the second one, so that no state has seen a later bin; D, the number of
        directions, is then 1 instead of 2.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        clip_value: float = math.inf,
        causal: bool = False,
    ) -> None:
        super().__init__()
        self.fwd_gru = ClippedGRU(input_size, hidden_size, clip_value, is_encoder=True)
        if not causal:
            self.bwd_gru = ClippedGRU(input_size, hidden_size, clip_value, is_encoder=True)

    @property
    def cells(self) -> Sequence[ClippedGRUCell]:
        """Return the forward cell and, if there is one, the backward cell."""
        return [gru.cell for gru in self.children() if isinstance(gru, ClippedGRU)]

    def forward(
        self, input: Float[Tensor, "B T N"], h_0: Float[Tensor, "D B H"]
    ) -> tuple[Tensor, Tensor]:
        """Run over all bins.

        Parameters
        ----------
        input : Tensor, shape (B, T, input_size)
        h_0 : Tensor, shape (D, B, hidden_size)
            Initial states, forward and backward.

        Returns
        -------
        output : Tensor, shape (B, T, D * hidden_size)
            States at every bin, forward and backward.
        h_n : Tensor, shape (D, B, hidden_size)
            Last states, the backward one at bin 0.
        """
        result = self.run(input.transpose(0, 1), h_0)
        return torch.cat([*result.states], dim=-1).transpose(0, 1), result.last

    def run(
        self,
        x: Float[Tensor, "T B N"],
        h0: Float[Tensor, "D B H"],
        kernels: Kernels | None = None,
        padded: Bool[Tensor, "T B"] | None = None,
    ) -> GRUStates:
        """Return the states of all directions; they pass the bins that `padded` marks unchanged.

        So does the gradient: the last states are those of the trial alone. (An initial state beyond
        the clip, which training would have to bring about, is clipped by those bins.)
        """
        return _run(self.cells, x, h0, kernels, padded)


def _run(
    cells: Sequence[ClippedGRUCell],
    x: Float[Tensor, "T B N"],
    h0: Float[Tensor, "K B H"],
    kernels: Kernels | None = None,
    padded: Bool[Tensor, "T B"] | None = None,
) -> GRUStates:
    """Run one cell forward, or a forward and a backward one."""
    weight_ih = torch.cat([cell.weight_ih for cell in cells])
    weight_hh = torch.stack([cell.weight_hh for cell in cells])
    bias = torch.cat([cell.bias for cell in cells])
    kernels = kernels or get_kernels()
    if padded is not None:
        # One more input, which is 1 past the end: cheaper than to write over the products.
        past = padded.unsqueeze(-1)
        x = torch.cat([x.masked_fill(past, 0.0), past.to(x.dtype)], dim=-1)
        hold = _hold(bias.unflatten(0, (len(cells), 3, -1)))
        weight_ih = torch.cat([weight_ih, hold], dim=1)
    x_proj = kernels.linear(x, weight_ih, bias)
    x_proj = x_proj.unflatten(-1, (len(cells), -1)).movedim(2, 0)
    h0, clip = h0.expand(-1, x.shape[1], -1), cells[0].clip_value
    return kernels.clipped_gru(x_proj, h0, weight_hh, clip, two_way=len(cells) == 2)


def stretches(first: int, last: int, length: int) -> list[tuple[int, int]]:
    """Cut the bins [first, last) at the multiples of `length`, beyond which no gradient passes.

    With length 0, or without gradients, they are one stretch.
    """
    length = length if torch.is_grad_enabled() else 0
    cuts = range(length * (first // length + 1), last, length) if length else ()
    return list(pairwise([first, *cuts, last]))


def _hold(bias: Float[Tensor, "D 3 H"]) -> Float[Tensor, "DH3 1"]:
    """Return the weights of an input that holds the state of all directions."""
    cand = bias[:, 2]
    gates = [torch.full_like(cand, value) for value in (_UPDATE, _RESET)]
    return torch.stack([*gates, -cand], dim=1).flatten().unsqueeze(1)
