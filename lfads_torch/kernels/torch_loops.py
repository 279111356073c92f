"""The loops over bins, forward and backward, in torch operations: for any device and precision.

`c_loops` has the same four functions in C for float32 on the CPU. None knows of autograd. A
forward function returns what it computed and what its backward function wants to have saved, whose
tensors all lead with the axis K.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .reference import turn_odd
from .types import DecoderInputs, DecoderStates, GRUStates


class GRUGradients(NamedTuple):
    """Gradients of a clipped GRU: x (M, K / M, T, B, 3H), h0 (K, B, H), w_hh (K, 3H, H)."""

    x: Tensor
    h0: Tensor
    w_hh: Tensor


class DecoderGradients(NamedTuple):
    """What the decoder's backward loop gives; the weights' gradients follow from it.

    Attributes
    ----------
    con_x, gen_x : Tensor, shape (K, T, B, 3C) and (K, T, B, 3G)
        Gradients of the input products.
    con_h0, gen_h0 : Tensor, shape (K, B, C) and (K, B, G)
        Gradients of the initial states.
    factors : Tensor, shape (K, T + 1, B, F)
    co : Tensor, shape (K, T, B, 2U)
        Gradients, all paths counted.
    con_before, gen_before : Tensor, shape (K, T, B, C) and (K, T, B, G)
        States before each bin.
    con_after : Tensor, shape (K, T, B, C)
        Controller's states.
    con_reset, gen_reset : Tensor, shape (K, T, B, C) and (K, T, B, G)
        Those times the reset gate.
    fac_in : Tensor, shape (K, T, B, F)
        Factors as the controller reads them.
    gen_in : Tensor, shape (K, T + 1, B, G)
        Generator states as they make factors.
    """

    con_x: Tensor
    gen_x: Tensor
    con_h0: Tensor
    gen_h0: Tensor
    factors: Tensor
    co: Tensor
    con_before: Tensor
    gen_before: Tensor
    con_after: Tensor
    con_reset: Tensor
    gen_reset: Tensor
    fac_in: Tensor
    gen_in: Tensor


def over_bins(grad_out: Tensor, inp: Tensor) -> Tensor:
    """Weight gradient (K, out, in) of a product applied at every bin (K, T, B, .)."""
    # In this order, BLAS is twice as fast for the few inputs of the generator.
    return torch.bmm(inp.flatten(1, 2).mT, grad_out.flatten(1, 2)).mT


def recurrent_gradient(grad_x: Tensor, before: Tensor, reset: Tensor) -> Tensor:
    """Gradient of w_hh; the reset gate acts before the candidate's product.

    Parameters
    ----------
    grad_x : Tensor, shape (K, T, B, 3H)
    before, reset : Tensor, shape (K, T, B, H)
        The states before each bin, and those times the reset gate.
    """
    n_zr = 2 * before.shape[-1]
    return torch.cat(
        [over_bins(grad_x[..., :n_zr], before), over_bins(grad_x[..., n_zr:], reset)], dim=1
    )


def gate_buffers(h0: Tensor, n_bins: int, keep: bool) -> tuple[Tensor, Tensor]:
    """Room for gates (K, T, B, 2H) and candidates (K, T, B, H) of nets with h0 (K, B, H).

    Without `keep`, for lack of a backward pass, all bins share one bin's.
    """
    n_nets, n_trials, n_units = h0.shape
    kept = n_bins if keep else 1
    gates = h0.new_empty(n_nets, kept, n_trials, 2 * n_units)
    cand = h0.new_empty(n_nets, kept, n_trials, n_units)
    return gates.expand(-1, n_bins, -1, -1), cand.expand(-1, n_bins, -1, -1)


def from_initial(h0: Tensor, n_bins: int) -> Tensor:
    """Room for states (K, T + 1, B, H), entry 0 filled with the initial ones."""
    states = h0.new_empty(h0.shape[0], n_bins + 1, *h0.shape[1:])
    states[:, 0] = h0
    return states


class _Cell:
    """One bin of a clipped GRU, and its backward pass with all elementwise parts done before.

    `states` (K, T + 1, B, H) from the initial one, gates and candidates in the order of the loop.
    """

    def __init__(
        self, w_hh: Tensor, clip: float, states: Tensor, gates: Tensor, cand: Tensor
    ) -> None:
        n = w_hh.shape[-1]
        self.n_units, self.clip = n, clip
        self.states, self.gates, self.cand = states, gates, cand
        self.w_zr, self.w_n = w_hh[:, : 2 * n], w_hh[:, 2 * n :]

    def forward(self, t: int, x: Tensor) -> Tensor:
        n, h, state = self.n_units, self.states[:, t], self.states[:, t + 1]
        gates, cand = self.gates[:, t], self.cand[:, t]
        torch.baddbmm(x[..., : 2 * n], h, self.w_zr.mT, out=gates)
        gates.sigmoid_()
        torch.baddbmm(x[..., 2 * n :], gates[..., n:] * h, self.w_n.mT, out=cand)
        cand.tanh_()
        torch.lerp(cand, h, gates[..., :n], out=state)
        return state.clamp_(-self.clip, self.clip)

    def prepare_backward(self) -> None:
        n, gates, cand = self.n_units, self.gates, self.cand
        self.before, states = self.states[:, :-1], self.states[:, 1:]
        z, r = gates[..., :n], gates[..., n:]
        inside = (states.abs() < self.clip).to(states.dtype)
        self.r = r
        self.reset = self.before * r
        self.carry = z * inside
        self.by_n = (inside - self.carry) * (1 - cand * cand)
        self.by_z = (self.before - cand) * self.carry * (1 - z)
        self.by_r = self.reset * (1 - r)
        self.grad_x = states.new_empty(*states.shape[:3], 3 * n)

    def backward(self, t: int, grad_h: Tensor) -> Tensor:
        n, grad_x = self.n_units, self.grad_x[:, t]
        torch.mul(grad_h, self.by_z[:, t], out=grad_x[..., :n])
        torch.mul(grad_h, self.by_n[:, t], out=grad_x[..., 2 * n :])
        grad_rh = torch.bmm(grad_x[..., 2 * n :], self.w_n)
        torch.mul(grad_rh, self.by_r[:, t], out=grad_x[..., n : 2 * n])
        grad_prev = torch.addcmul(grad_rh.mul_(self.r[:, t]), grad_h, self.carry[:, t])
        return grad_prev.baddbmm_(grad_x[..., : 2 * n], self.w_zr)


def gru_forward(
    x_proj: Tensor, h0: Tensor, w_hh: Tensor, clip: float, two_way: bool, keep: bool
) -> tuple[GRUStates, tuple[Tensor, ...]]:
    """Run, as `lfads_torch.kernels.Kernels.clipped_gru` says.

    Parameters
    ----------
    x_proj : Tensor, shape (M, K / M, T, B, 3H)
        Of M models, each with as many nets, whose products are one: to fold them would copy it.
    h0, w_hh, clip, two_way
        Of all K nets.
    keep : bool
        For a backward pass.
    """
    x_proj = x_proj.flatten(0, 1)
    n_bins = x_proj.shape[1]
    states = from_initial(h0, n_bins)
    gates, cand = gate_buffers(h0, n_bins, keep)
    cell, x = _Cell(w_hh, clip, states, gates, cand), turn_odd(x_proj, two_way)
    for t in range(n_bins):
        cell.forward(t, x[:, t])
    last = states[:, -1].clone()
    return GRUStates(turn_odd(states[:, 1:], two_way), last), (states, gates, cand)


def gru_backward(
    grad: GRUStates,
    w_hh: Tensor,
    clip: float,
    two_way: bool,
    n_models: int,
    saved: tuple[Tensor, ...],
) -> GRUGradients:
    """Run backward; entries of `grad` may be None."""
    cell = _Cell(w_hh, clip, *saved)
    cell.prepare_backward()
    outside = None if grad.states is None else turn_odd(grad.states, two_way)
    grad_h = torch.zeros_like(saved[0][:, 0]) if grad.last is None else grad.last.clone()
    for t in reversed(range(cell.grad_x.shape[1])):
        if outside is not None:
            grad_h = grad_h.add_(outside[:, t])
        grad_h = cell.backward(t, grad_h)
    return GRUGradients(
        turn_odd(cell.grad_x, two_way).unflatten(0, (n_models, -1)),
        grad_h,
        recurrent_gradient(cell.grad_x, cell.before, cell.reset),
    )


def decoder_forward(
    p: DecoderInputs, clip: float, keep: bool
) -> tuple[DecoderStates, tuple[Tensor, ...]]:
    """Run; `keep` for a backward pass."""
    n_nets, n_bins, n_trials = p.con_proj.shape[:3]
    n_inputs = p.w_gen_u.shape[-1]
    con_states, gen_states = from_initial(p.con_h0, n_bins), from_initial(p.gen_h0, n_bins)
    con_gates = gate_buffers(p.con_h0, n_bins, keep)
    gen_gates = gate_buffers(p.gen_h0, n_bins, keep)
    con = _Cell(p.w_con_hh, clip, con_states, *con_gates)
    gen = _Cell(p.w_gen_hh, clip, gen_states, *gen_gates)
    make = p.con_h0.new_empty
    factors = make(n_nets, n_bins + 1, n_trials, p.w_fac.shape[1])
    all_co = make(n_nets, n_bins, n_trials, 2 * n_inputs)
    inputs = make(n_nets, n_bins, n_trials, n_inputs)
    gen_proj, b_co = p.gen_proj.expand(-1, n_bins, n_trials, -1), p.b_co.unsqueeze(1)
    torch.bmm(_masked(gen_states[:, 0], p.gen_mask, 0), p.w_fac.mT, out=factors[:, 0])
    for t in range(n_bins):
        f = _masked(factors[:, t], p.fac_mask, t)
        c = con.forward(t, torch.baddbmm(p.con_proj[:, t], f, p.w_con_fac.mT))
        co, u = all_co[:, t], inputs[:, t]
        torch.baddbmm(b_co, c, p.w_co.mT, out=co)
        if p.noise is None:
            u.copy_(co[..., :n_inputs])
        else:
            std = torch.mul(co[..., n_inputs:], 0.5).exp_()
            torch.addcmul(co[..., :n_inputs], p.noise[:, t], std, out=u)
        g = gen.forward(t, torch.baddbmm(gen_proj[:, t], u, p.w_gen_u.mT))
        torch.bmm(_masked(g, p.gen_mask, t + 1), p.w_fac.mT, out=factors[:, t + 1])
    states = DecoderStates(factors[:, 1:], gen_states[:, 1:], con_states[:, 1:], all_co, inputs)
    return states, (factors, con_states, *con_gates, gen_states, *gen_gates)


def decoder_backward(
    grad: DecoderStates,
    p: DecoderInputs,
    clip: float,
    co_params: Tensor,
    saved: tuple[Tensor, ...],
) -> DecoderGradients:
    """Run backward; entries of `grad` may be None, and so may the input products in `p`."""
    factors = saved[0]
    con, gen = _Cell(p.w_con_hh, clip, *saved[1:4]), _Cell(p.w_gen_hh, clip, *saved[4:])
    con.prepare_backward()
    gen.prepare_backward()
    n_inputs = p.w_gen_u.shape[-1]
    grad_f = torch.zeros_like(factors)
    if grad.factors is not None:
        grad_f[:, 1:] = grad.factors
    given: Tensor | None = grad.co_params
    grad_co = torch.zeros_like(co_params) if given is None else given.clone()
    if p.noise is not None:
        by_logvar = (co_params[..., n_inputs:] * 0.5).exp_().mul_(p.noise).mul_(0.5)
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
    return DecoderGradients(
        con_x=con.grad_x,
        gen_x=gen.grad_x,
        con_h0=grad_c,
        gen_h0=grad_g,
        factors=grad_f,
        co=grad_co,
        con_before=con.before,
        gen_before=gen.before,
        con_after=con.states[:, 1:],
        con_reset=con.reset,
        gen_reset=gen.reset,
        fac_in=factors[:, :-1] if p.fac_mask is None else factors[:, :-1] * p.fac_mask,
        gen_in=gen.states if p.gen_mask is None else gen.states * p.gen_mask,
    )


def _masked(x: Tensor, mask: Tensor | None, t: int) -> Tensor:
    return x if mask is None else x * mask[:, t]
