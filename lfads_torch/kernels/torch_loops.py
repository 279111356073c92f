"""The loops over bins, forward and backward, in torch operations: for any device and precision.

`c_loops` has the same four functions in C for float32 on the CPU. None knows of autograd. A forward
function returns the states and what its backward function needs; a backward function returns a
gradient for every input (None for noise and masks) and takes None for gradients that are not given.
All tensors lead with the axis K.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .reference import turn_odd
from .types import (
    DecoderInputs,
    DecoderSaved,
    DecoderStates,
    GRUInputs,
    GRUSaved,
    GRUStates,
    Options,
)


class DecoderGradients(NamedTuple):
    """What the decoder's backward loop gives; the weights' gradients follow from it."""

    con_x: Tensor  # (K, T, B, 3C), of the input products
    gen_x: Tensor  # (K, T, B, 3G)
    con_h0: Tensor  # (K, B, C), of the initial states
    gen_h0: Tensor  # (K, B, G)
    factors: Tensor  # (K, T + 1, B, F), all paths counted
    co: Tensor  # (K, T, B, 2U), all paths counted
    con_reset: Tensor  # (K, T, B, C), states before each bin times the reset gate
    gen_reset: Tensor  # (K, T, B, G)
    fac_in: Tensor  # (K, T, B, F), factors before each bin times their mask, if any
    gen_in: Tensor  # (K, T + 1, B, G), generator states times their mask, if any


def weight_gradients(
    grad: DecoderGradients, p: DecoderInputs, states: DecoderStates
) -> DecoderInputs:
    """Return the gradients of the decoder's inputs, those of weights as products over all bins."""
    # Axes on which one entry of the generator's input product stands for all bins, or all trials.
    shared = tuple(i for i in (1, 2) if p.gen_proj.shape[i] < p.con_proj.shape[i])
    return DecoderInputs(
        con_proj=grad.con_x,
        gen_proj=sum_over(grad.gen_x, shared),
        con_h0=grad.con_h0,
        gen_h0=grad.gen_h0,
        w_con_fac=over_bins(grad.con_x, grad.fac_in),
        w_con_hh=recurrent_gradient(grad.con_x, p.con_h0, states.con_states, grad.con_reset),
        w_co=over_bins(grad.co, states.con_states),
        b_co=grad.co.sum(dim=(1, 2)),
        w_gen_u=over_bins(grad.gen_x, states.inputs),
        w_gen_hh=recurrent_gradient(grad.gen_x, p.gen_h0, states.gen_states, grad.gen_reset),
        w_fac=over_bins(grad.factors, grad.gen_in),
    )


def sum_over(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Sum (K, T, B, M) over bins, trials or both, which are kept as axes of size 1."""
    if len(axes) < 2:
        return x.sum(axes, keepdim=True) if axes else x
    # A product with ones is twice as fast as a sum over both axes.
    rows = x.flatten(1, 2)
    return torch.bmm(x.new_ones(rows.shape[0], 1, rows.shape[1]), rows).unsqueeze(1)


def over_bins(grad_out: Tensor, inp: Tensor) -> Tensor:
    """Return the weight gradient (K, out, in) of a product that each bin (K, T, B, .) applies."""
    # In this order, BLAS is twice as fast for the few inputs of the generator.
    return torch.bmm(inp.flatten(1, 2).mT, grad_out.flatten(1, 2)).mT.contiguous()


def recurrent_gradient(
    grad_x: Tensor, h0: Tensor, states: Tensor, reset: Tensor, *, backward: bool = False
) -> Tensor:
    """Return the gradient of w_hh (K, 3H, H) from those of the input products (K, T, B, 3H).

    `reset` are the states before each bin times the reset gate, which acts before the candidate's
    product. `backward` says that the nets ran from the last bin to the first.
    """
    zr, n = grad_x.split([2 * h0.shape[-1], h0.shape[-1]], dim=-1)
    # Two products, because to join the initial state to the others would copy these.
    if backward:
        grad_zr = over_bins(zr[:, :-1], states[:, 1:]) + over_bins(zr[:, -1:], h0.unsqueeze(1))
    else:
        grad_zr = over_bins(zr[:, 1:], states[:, :-1]) + over_bins(zr[:, :1], h0.unsqueeze(1))
    return torch.cat([grad_zr, over_bins(n, reset)], dim=1)


def directions(two_way: bool) -> list[tuple[slice, bool]]:
    """Return the nets of each direction, and whether it is the backward one."""
    if not two_way:
        return [(slice(None), False)]
    return [(slice(0, None, 2), False), (slice(1, None, 2), True)]


def fill_last(states: GRUStates, two_way: bool) -> GRUStates:
    """Fill in the states that K clipped GRUs computed last, from those of all bins."""
    for nets, backward in directions(two_way):
        states.last[nets] = states.states[nets, 0 if backward else -1]
    return states


def every_gru_gradient(
    grad_x: Tensor, grad_h0: Tensor, inputs: GRUInputs, states: Tensor, reset: Tensor, two_way: bool
) -> GRUInputs:
    """Return the gradients of K clipped GRUs, all but that of the weights from their loop."""
    grad_w = torch.empty_like(inputs.w_hh, memory_format=torch.contiguous_format)
    for nets, backward in directions(two_way):
        grad_w[nets] = recurrent_gradient(
            grad_x[:, nets].flatten(0, 1),
            *(inputs.h0[nets], states[nets], reset[nets]),
            backward=backward,
        )
    return GRUInputs(grad_x, grad_h0, grad_w)


def gate_buffers(h0: Tensor, n_bins: int | torch.SymInt, keep: bool) -> tuple[Tensor, Tensor]:
    """Return room for gates (K, T, B, 2H) and candidates (K, T, B, H) of nets with h0 (K, B, H)."""
    n_nets, n_trials, n_units = h0.shape
    # Where no backward pass follows, all bins share the room of one.
    kept = n_bins if keep else 1
    gates = h0.new_empty(n_nets, kept, n_trials, 2 * n_units)
    return gates, h0.new_empty(n_nets, kept, n_trials, n_units)


def gru_room(inputs: GRUInputs, keep: bool) -> tuple[GRUStates, GRUSaved]:
    """Return room for the results of K clipped GRUs."""
    h0, n_bins = inputs.h0, inputs.x_proj.shape[2]
    states = h0.new_empty(h0.shape[0], n_bins, *h0.shape[1:])
    last = torch.empty_like(h0, memory_format=torch.contiguous_format)
    return GRUStates(states, last), GRUSaved(*gate_buffers(h0, n_bins, keep))


def decoder_room(p: DecoderInputs, keep: bool) -> tuple[DecoderStates, DecoderSaved]:
    """Return room for the decoder's results."""
    (n_nets, n_bins, n_trials), n_inputs = p.con_proj.shape[:3], p.w_gen_u.shape[-1]
    n_factors, make = p.w_fac.shape[1], p.con_h0.new_empty
    saved = DecoderSaved(
        make(n_nets, n_trials, n_factors),
        *gate_buffers(p.con_h0, n_bins, keep),
        *gate_buffers(p.gen_h0, n_bins, keep),
    )
    states = DecoderStates(
        factors=make(n_nets, n_bins, n_trials, n_factors),
        gen_states=make(n_nets, n_bins, *p.gen_h0.shape[1:]),
        con_states=make(n_nets, n_bins, *p.con_h0.shape[1:]),
        co_params=make(n_nets, n_bins, n_trials, 2 * n_inputs),
        inputs=make(n_nets, n_bins, n_trials, n_inputs),
    )
    return states, saved


def gru_gradient(inputs: GRUInputs) -> Tensor:
    """Return room for the gradient of the input products of K clipped GRUs."""
    # A model's nets come from one input product, so its gradient has them side by side, too.
    n_models, n_each, n_bins, n_trials, _ = inputs.x_proj.shape
    size = n_models, n_bins, n_trials, n_each, inputs.w_hh.shape[1]
    return inputs.w_hh.new_empty(size).permute(0, 3, 1, 2, 4)


def decoder_gradients(
    from_co: Tensor | None, p: DecoderInputs, states: DecoderStates, saved: DecoderSaved
) -> DecoderGradients:
    """Return room for what the decoder's backward loop gives, with all that needs no loop."""
    con, gen, factors, make = (
        *(states.con_states, states.gen_states, states.factors),
        states.inputs.new_empty,
    )

    def before(initial: Tensor, bins: Tensor, mask: Tensor | None) -> Tensor:
        # A loop has only the product with a mask to add.
        return after(initial, bins) if mask is None else make(mask.shape)

    return DecoderGradients(
        con_x=make(*con.shape[:3], 3 * con.shape[3]),
        gen_x=make(*gen.shape[:3], 3 * gen.shape[3]),
        con_h0=make(p.con_h0.shape),
        gen_h0=make(p.gen_h0.shape),
        factors=make(factors.shape[0], factors.shape[1] + 1, *factors.shape[2:]),
        co=torch.zeros_like(states.co_params) if from_co is None else from_co.clone(),
        con_reset=make(con.shape),
        gen_reset=make(gen.shape),
        fac_in=before(saved.first, factors[:, :-1], p.fac_mask),
        gen_in=before(p.gen_h0, gen, p.gen_mask),
    )


def after(initial: Tensor, bins: Tensor) -> Tensor:
    """Put initial states (K, B, H) before those of the bins (K, T, B, H)."""
    return torch.cat([initial.unsqueeze(1), bins], dim=1)


class _Cell:
    """One bin of a clipped GRU, forward and backward, over buffers in the order of the loop."""

    def __init__(
        self, w_hh: Tensor, clip: float, h0: Tensor, states: Tensor, gates: Tensor, cand: Tensor
    ) -> None:
        n, n_bins = w_hh.shape[-1], states.shape[1]
        self.n_units, self.clip, self.h0, self.states = n, clip, h0, states
        self.gates, self.cand = (x.expand(-1, n_bins, -1, -1) for x in (gates, cand))
        self.w_zr, self.w_n = w_hh[:, : 2 * n], w_hh[:, 2 * n :]

    def forward(self, t: int, x: Tensor) -> Tensor:
        n, state = self.n_units, self.states[:, t]
        h = self.states[:, t - 1] if t else self.h0
        gates, cand = self.gates[:, t], self.cand[:, t]
        torch.baddbmm(x[..., : 2 * n], h, self.w_zr.mT, out=gates)
        gates.sigmoid_()
        torch.baddbmm(x[..., 2 * n :], gates[..., n:] * h, self.w_n.mT, out=cand)
        cand.tanh_()
        torch.lerp(cand, h, gates[..., :n], out=state)
        return state.clamp_(-self.clip, self.clip)

    def prepare_backward(self) -> None:
        # All that does not depend on the gradient of the next bin, for all bins at once.
        n, gates, cand = self.n_units, self.gates, self.cand
        states, before = self.states, after(self.h0, self.states[:, :-1])
        z, r = gates[..., :n], gates[..., n:]
        inside = (states.abs() < self.clip).to(states.dtype)
        self.r = r
        self.reset = before * r
        self.carry = z * inside
        self.by_n = (inside - self.carry) * (1 - cand * cand)
        self.by_z = (before - cand) * self.carry * (1 - z)
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


def clipped_gru_forward(inputs: GRUInputs, options: Options) -> tuple[GRUStates, GRUSaved]:
    """Run K clipped GRUs over the bins."""
    x = turn_odd(inputs.x_proj.flatten(0, 1), options.two_way)
    (states, last), saved = gru_room(inputs, options.keep)
    cell = _Cell(inputs.w_hh, options.clip, inputs.h0, states, *saved)
    for t in range(x.shape[1]):
        cell.forward(t, x[:, t])
    last.copy_(states[:, -1])
    return GRUStates(turn_odd(states, options.two_way), last), saved


def clipped_gru_backward(
    grad: GRUStates, inputs: GRUInputs, states: GRUStates, saved: GRUSaved, options: Options
) -> GRUInputs:
    """Run K clipped GRUs backward."""
    in_order = turn_odd(states.states, options.two_way)
    cell = _Cell(inputs.w_hh, options.clip, inputs.h0, in_order, *saved)
    cell.prepare_backward()
    outside = None if grad.states is None else turn_odd(grad.states, options.two_way)
    grad_h = torch.zeros_like(in_order[:, 0]) if grad.last is None else grad.last.clone()
    for t in reversed(range(cell.grad_x.shape[1])):
        if outside is not None:
            grad_h = grad_h.add_(outside[:, t])
        grad_h = cell.backward(t, grad_h)
    turned = turn_odd(cell.grad_x, options.two_way).unflatten(0, inputs.x_proj.shape[:2])
    grad_x = gru_gradient(inputs).copy_(turned)
    grad_w = recurrent_gradient(cell.grad_x, inputs.h0, in_order, cell.reset)
    return GRUInputs(grad_x, grad_h, grad_w)


def decoder_forward(p: DecoderInputs, options: Options) -> tuple[DecoderStates, DecoderSaved]:
    """Run controller, inferred input, generator and factors over the bins."""
    (n_bins, n_trials), n_inputs = p.con_proj.shape[1:3], p.w_gen_u.shape[-1]
    states, saved = decoder_room(p, options.keep)
    con, gen = _cells(p, states, saved, options)
    gen_proj, b_co = p.gen_proj.expand(-1, n_bins, n_trials, -1), p.b_co.unsqueeze(1)
    torch.bmm(_masked(p.gen_h0, p.gen_mask, 0), p.w_fac.mT, out=saved.first)
    for t in range(n_bins):
        f = _masked(states.factors[:, t - 1] if t else saved.first, p.fac_mask, t)
        c = con.forward(t, torch.baddbmm(p.con_proj[:, t], f, p.w_con_fac.mT))
        co, u = states.co_params[:, t], states.inputs[:, t]
        torch.baddbmm(b_co, c, p.w_co.mT, out=co)
        if p.noise is None:
            u.copy_(co[..., :n_inputs])
        else:
            std = torch.mul(co[..., n_inputs:], 0.5).exp_()
            torch.addcmul(co[..., :n_inputs], p.noise[:, t], std, out=u)
        g = gen.forward(t, torch.baddbmm(gen_proj[:, t], u, p.w_gen_u.mT))
        torch.bmm(_masked(g, p.gen_mask, t + 1), p.w_fac.mT, out=states.factors[:, t])
    return states, saved


def decoder_backward(
    grad: DecoderStates,
    p: DecoderInputs,
    states: DecoderStates,
    saved: DecoderSaved,
    options: Options,
) -> DecoderInputs:
    """Run the decoder backward."""
    con, gen = _cells(p, states, saved, options)
    con.prepare_backward()
    gen.prepare_backward()
    n_inputs = p.w_gen_u.shape[-1]
    bins = torch.zeros_like(states.factors) if grad.factors is None else grad.factors
    grad_f = after(torch.zeros_like(saved.first), bins)
    given: Tensor | None = grad.co_params
    grad_co = torch.zeros_like(states.co_params) if given is None else given.clone()
    if p.noise is not None:
        by_logvar = (states.co_params[..., n_inputs:] * 0.5).exp_().mul_(p.noise).mul_(0.5)
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
    fac_in, gen_in = after(saved.first, states.factors[:, :-1]), after(p.gen_h0, states.gen_states)
    gradients = DecoderGradients(
        con_x=con.grad_x,
        gen_x=gen.grad_x,
        con_h0=grad_c,
        gen_h0=grad_g,
        factors=grad_f,
        co=grad_co,
        con_reset=con.reset,
        gen_reset=gen.reset,
        fac_in=fac_in if p.fac_mask is None else fac_in * p.fac_mask,
        gen_in=gen_in if p.gen_mask is None else gen_in * p.gen_mask,
    )
    return weight_gradients(gradients, p, states)


def _cells(
    p: DecoderInputs, states: DecoderStates, saved: DecoderSaved, options: Options
) -> tuple[_Cell, _Cell]:
    con = p.con_h0, states.con_states, saved.con_gates, saved.con_cand
    gen = p.gen_h0, states.gen_states, saved.gen_gates, saved.gen_cand
    return _Cell(p.w_con_hh, options.clip, *con), _Cell(p.w_gen_hh, options.clip, *gen)


def _masked(x: Tensor, mask: Tensor | None, t: int) -> Tensor:
    return x if mask is None else x * mask[:, t]
