"""The loops over bins, forward and backward, in torch operations: for any device and precision.

`native` has the same four functions in C for float32 on the CPU. Both fill buffers that the caller
allocates; neither knows of autograd.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .signatures import DecoderInputs, DecoderStates


class CellBuffers(NamedTuple):
    """What one GRU leaves of its forward pass; axes (K, T, B, units).

    Attributes
    ----------
    states : Tensor, shape (K, T, B, H)
    gates : Tensor, shape (K, T, B, 2H)
        Update and reset gate.
    cand : Tensor, shape (K, T, B, H)
        Candidate.
    """

    states: Tensor
    gates: Tensor
    cand: Tensor

    @staticmethod
    def allocate(x_proj: Tensor, keep: bool) -> CellBuffers:
        """Make buffers for input products (K, T, B, 3H).

        Without `keep`, for lack of a backward pass, all bins share one bin's gates and candidates.
        """
        n_nets, n_bins, n_trials, rows = x_proj.shape
        n_units, kept = rows // 3, n_bins if keep else 1
        gates = x_proj.new_empty(n_nets, kept, n_trials, 2 * n_units)
        cand = x_proj.new_empty(n_nets, kept, n_trials, n_units)
        return CellBuffers(
            x_proj.new_empty(n_nets, n_bins, n_trials, n_units),
            gates.expand(-1, n_bins, -1, -1),
            cand.expand(-1, n_bins, -1, -1),
        )


class DecoderBuffers(NamedTuple):
    """What the decoder leaves of its forward pass.

    Attributes
    ----------
    con, gen : CellBuffers
    factors : Tensor, shape (K, T + 1, B, F)
        Entry 0 belongs to the initial state.
    co : Tensor, shape (K, T, B, 2U)
    inputs : Tensor, shape (K, T, B, U)
    """

    con: CellBuffers
    gen: CellBuffers
    factors: Tensor
    co: Tensor
    inputs: Tensor


class _Cell:
    """One bin of a clipped GRU, and its backward pass with all elementwise parts done before."""

    def __init__(self, w_hh: Tensor, clip: float, buffers: CellBuffers) -> None:
        n = w_hh.shape[-1]
        self.n_units, self.clip, self.buffers = n, clip, buffers
        self.w_zr, self.w_n = w_hh[:, : 2 * n], w_hh[:, 2 * n :]

    def forward(self, t: int, x: Tensor, h: Tensor) -> Tensor:
        n = self.n_units
        state, gates, cand = (buffer[:, t] for buffer in self.buffers)
        torch.baddbmm(x[..., : 2 * n], h, self.w_zr.mT, out=gates)
        gates.sigmoid_()
        torch.baddbmm(x[..., 2 * n :], gates[..., n:] * h, self.w_n.mT, out=cand)
        cand.tanh_()
        torch.lerp(cand, h, gates[..., :n], out=state)
        return state.clamp_(-self.clip, self.clip)

    def prepare_backward(self, h0: Tensor) -> None:
        n, (states, gates, cand) = self.n_units, self.buffers
        z, r = gates[..., :n], gates[..., n:]
        previous = torch.cat([h0.unsqueeze(1), states[:, :-1]], dim=1)
        inside = (states.abs() < self.clip).to(states.dtype)
        self.reset = r
        self.carry = z * inside
        self.by_n = (inside - self.carry) * (1 - cand * cand)
        self.by_z = (previous - cand) * self.carry * (1 - z)
        self.by_r = previous * r * (1 - r)
        self.grad_x = states.new_empty(*states.shape[:3], 3 * n)

    def backward(self, t: int, grad_h: Tensor) -> Tensor:
        n, grad_x = self.n_units, self.grad_x[:, t]
        torch.mul(grad_h, self.by_z[:, t], out=grad_x[..., :n])
        torch.mul(grad_h, self.by_n[:, t], out=grad_x[..., 2 * n :])
        grad_rh = torch.bmm(grad_x[..., 2 * n :], self.w_n)
        torch.mul(grad_rh, self.by_r[:, t], out=grad_x[..., n : 2 * n])
        grad_prev = torch.addcmul(grad_rh.mul_(self.reset[:, t]), grad_h, self.carry[:, t])
        return grad_prev.baddbmm_(grad_x[..., : 2 * n], self.w_zr)


def gru_forward(
    x_proj: Tensor, h0: Tensor, w_hh: Tensor, clip: float, buffers: CellBuffers
) -> None:
    """Fill the buffers; shapes as in `lfads_torch.kernels.Kernels.clipped_gru`."""
    cell, h = _Cell(w_hh, clip, buffers), h0
    for t in range(x_proj.shape[1]):
        h = cell.forward(t, x_proj[:, t], h)


def gru_backward(
    grad_states: Tensor, h0: Tensor, w_hh: Tensor, clip: float, buffers: CellBuffers
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the input products and of the initial state."""
    cell = _Cell(w_hh, clip, buffers)
    cell.prepare_backward(h0)
    grad_h = torch.zeros_like(h0)
    for t in reversed(range(grad_states.shape[1])):
        grad_h = cell.backward(t, grad_h.add_(grad_states[:, t]))
    return cell.grad_x, grad_h


def decoder_forward(p: DecoderInputs, clip: float, buffers: DecoderBuffers) -> None:
    """Fill the buffers."""
    con, gen = _Cell(p.w_con_hh, clip, buffers.con), _Cell(p.w_gen_hh, clip, buffers.gen)
    factors, n_inputs = buffers.factors, p.w_gen_u.shape[-1]
    b_co = p.b_co.unsqueeze(1)
    c, g = p.con_h0, p.gen_h0
    torch.bmm(_masked(g, p.gen_mask, 0), p.w_fac.mT, out=factors[:, 0])
    for t in range(p.con_proj.shape[1]):
        f = _masked(factors[:, t], p.fac_mask, t)
        c = con.forward(t, torch.baddbmm(p.con_proj[:, t], f, p.w_con_fac.mT), c)
        co, u = buffers.co[:, t], buffers.inputs[:, t]
        torch.baddbmm(b_co, c, p.w_co.mT, out=co)
        if p.noise is None:
            u.copy_(co[..., :n_inputs])
        else:
            std = torch.mul(co[..., n_inputs:], 0.5).exp_()
            torch.addcmul(co[..., :n_inputs], p.noise[:, t], std, out=u)
        g = gen.forward(t, torch.baddbmm(p.gen_proj[:, t], u, p.w_gen_u.mT), g)
        torch.bmm(_masked(g, p.gen_mask, t + 1), p.w_fac.mT, out=factors[:, t + 1])


class DecoderGradients(NamedTuple):
    """Gradients that the decoder's backward loop gives; from them follow those of the weights.

    Attributes
    ----------
    con_x, gen_x : Tensor, shape (K, T, B, 3C) and (K, T, B, 3G)
        Of the input products.
    con_h0, gen_h0 : Tensor, shape (K, B, C) and (K, B, G)
    factors : Tensor, shape (K, T + 1, B, F)
    co : Tensor, shape (K, T, B, 2U)
    """

    con_x: Tensor
    gen_x: Tensor
    con_h0: Tensor
    gen_h0: Tensor
    factors: Tensor
    co: Tensor


def outside_gradients(grad: DecoderStates, buffers: DecoderBuffers) -> tuple[Tensor, Tensor]:
    """Gradients of factors (with the initial state's, zero) and of `co`, for the loop to add to."""
    grad_f = torch.zeros_like(buffers.factors)
    if grad.factors is not None:
        grad_f[:, 1:] = grad.factors
    given: Tensor | None = grad.co_params
    return grad_f, torch.zeros_like(buffers.co) if given is None else given.clone()


def decoder_backward(
    grad: DecoderStates, p: DecoderInputs, clip: float, buffers: DecoderBuffers
) -> DecoderGradients:
    """Run the loop backward; entries of `grad` may be None."""
    con, gen = _Cell(p.w_con_hh, clip, buffers.con), _Cell(p.w_gen_hh, clip, buffers.gen)
    con.prepare_backward(p.con_h0)
    gen.prepare_backward(p.gen_h0)
    n_inputs = buffers.inputs.shape[-1]
    grad_f, grad_co = outside_gradients(grad, buffers)
    if p.noise is not None:
        by_logvar = (buffers.co[..., n_inputs:] * 0.5).exp_().mul_(p.noise).mul_(0.5)
    grad_g, grad_c = torch.zeros_like(p.gen_h0), torch.zeros_like(p.con_h0)
    for t in reversed(range(grad_co.shape[1])):
        grad_g = grad_g + _masked(torch.bmm(grad_f[:, t + 1], p.w_fac), p.gen_mask, t + 1)
        if grad.gen_states is not None:
            grad_g.add_(grad.gen_states[:, t])
        grad_g = gen.backward(t, grad_g)

        grad_u = torch.bmm(gen.grad_x[:, t], p.w_gen_u)
        if grad.inputs is not None:
            grad_u.add_(grad.inputs[:, t])
        co = grad_co[:, t]
        co[..., :n_inputs].add_(grad_u)
        if p.noise is not None:
            co[..., n_inputs:].addcmul_(grad_u, by_logvar[:, t])
        grad_c.baddbmm_(co, p.w_co)
        if grad.con_states is not None:
            grad_c.add_(grad.con_states[:, t])
        grad_c = con.backward(t, grad_c)
        grad_f[:, t].add_(_masked(torch.bmm(con.grad_x[:, t], p.w_con_fac), p.fac_mask, t))
    grad_g = grad_g + _masked(torch.bmm(grad_f[:, 0], p.w_fac), p.gen_mask, 0)
    return DecoderGradients(con.grad_x, gen.grad_x, grad_c, grad_g, grad_f, grad_co)


def _masked(x: Tensor, mask: Tensor | None, t: int) -> Tensor:
    return x if mask is None else x * mask[:, t]
