"""The recurrent nets with a backward pass written out.

Autograd through a loop over bins records a dozen small operations per bin and adds every weight
gradient bin by bin. Here the forward pass keeps only the gates and states in preallocated buffers;
the backward pass computes all elementwise derivatives for all bins before its loop, leaves in the
loop only what depends on the gradient of the next bin, and gets each weight gradient as one product
over all bins.

`torch.func` maps (vmap) fold the mapped axis into the axis K of independent nets.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function

from .signatures import DecoderInputs, DecoderStates


def clipped_gru(
    x_proj: Float[Tensor, "K T B H3"],
    h0: Float[Tensor, "K B H"],
    w_hh: Float[Tensor, "K H3 H"],
    clip: float,
) -> Float[Tensor, "K T B H"]:
    """See `lfads_torch.kernels.Kernels.clipped_gru`."""
    return _ClippedGRU.apply(x_proj, h0, w_hh, clip, torch.is_grad_enabled())[0]


def decoder(inputs: DecoderInputs, clip: float) -> DecoderStates:
    """See `lfads_torch.kernels.Kernels.decoder`."""
    results = _Decoder.apply(*inputs, clip, torch.is_grad_enabled())
    return DecoderStates(*results[: len(DecoderStates._fields)])


class _Cell:
    """Forward and backward of one clipped GRU, bin by bin, in preallocated buffers.

    `gates` holds update and reset gate (..., 2H), `cand` the candidate (..., H).
    """

    def __init__(self, w_hh: Tensor, clip: float) -> None:
        n_units = w_hh.shape[-1]
        self.n_units = n_units
        self.clip = clip
        self.w_zr, self.w_n = w_hh[:, : 2 * n_units], w_hh[:, 2 * n_units :]

    def allocate(self, like: Tensor, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Buffers for states, gates and candidates over the axes (K, T, B) of `like`.

        Without `keep`, for lack of a backward pass, all bins share one bin's gates and candidates.
        """
        n_nets, n_bins, n_trials = like.shape[:3]
        states = like.new_empty(n_nets, n_bins, n_trials, self.n_units)
        kept = n_bins if keep else 1
        gates = like.new_empty(n_nets, kept, n_trials, 2 * self.n_units)
        cand = like.new_empty(n_nets, kept, n_trials, self.n_units)
        return states, gates.expand(-1, n_bins, -1, -1), cand.expand(-1, n_bins, -1, -1)

    def forward(self, x: Tensor, h: Tensor, state: Tensor, gates: Tensor, cand: Tensor) -> None:
        """One bin: input product `x` and state `h` into `state`, `gates`, `cand`."""
        n = self.n_units
        torch.baddbmm(x[..., : 2 * n], h, self.w_zr.mT, out=gates)
        gates.sigmoid_()
        torch.baddbmm(x[..., 2 * n :], gates[..., n:] * h, self.w_n.mT, out=cand)
        cand.tanh_()
        torch.lerp(cand, h, gates[..., :n], out=state)
        state.clamp_(-self.clip, self.clip)

    def prepare_backward(self, h0: Tensor, states: Tensor, gates: Tensor, cand: Tensor) -> None:
        """Everything of the backward pass that does not depend on gradients, for all bins."""
        n = self.n_units
        z, r = gates[..., :n], gates[..., n:]
        self.reset = r
        self.previous = torch.cat([h0.unsqueeze(1), states[:, :-1]], dim=1)
        inside = (states.abs() < self.clip).to(states.dtype)
        z_inside = z * inside
        self.carry = z_inside
        self.by_n = (inside - z_inside) * (1 - cand * cand)
        self.by_z = (self.previous - cand) * z_inside * (1 - z)
        self.by_r = self.previous * r * (1 - r)
        self.grad_x = states.new_empty(*states.shape[:3], 3 * n)

    def backward(self, t: int, grad_h: Tensor) -> Tensor:
        """Gradient of the state after bin t to that before it; fills `grad_x` of bin t."""
        n = self.n_units
        grad_x = self.grad_x[:, t]
        torch.mul(grad_h, self.by_z[:, t], out=grad_x[..., :n])
        torch.mul(grad_h, self.by_n[:, t], out=grad_x[..., 2 * n :])
        grad_rh = torch.bmm(grad_x[..., 2 * n :], self.w_n)
        torch.mul(grad_rh, self.by_r[:, t], out=grad_x[..., n : 2 * n])
        grad_prev = torch.addcmul(grad_rh.mul_(self.reset[:, t]), grad_h, self.carry[:, t])
        return grad_prev.baddbmm_(grad_x[..., : 2 * n], self.w_zr)

    def grad_w_hh(self) -> Tensor:
        """Gradient of the recurrent weights: one product over all bins per gate group."""
        n = self.n_units
        grad_x = self.grad_x
        grad_zr = _over_bins(grad_x[..., : 2 * n], self.previous)
        grad_n = _over_bins(grad_x[..., 2 * n :], self.previous.mul_(self.reset))
        return torch.cat([grad_zr, grad_n], dim=1)


def _over_bins(grad_out: Tensor, inp: Tensor) -> Tensor:
    """Weight gradient (K, out, in) of a product applied at every bin (K, T, B, .)."""
    return torch.bmm(grad_out.flatten(1, 2).mT, inp.flatten(1, 2))


def _fold(size: int, in_dims: tuple[int | None, ...], args: tuple[Any, ...]) -> list[Any]:
    """Fold the axis that `torch.func.vmap` maps over into the leading axis K."""
    folded = []
    for arg, dim in zip(args, in_dims, strict=True):
        if isinstance(arg, Tensor):
            arg = arg.expand(size, *arg.shape) if dim is None else arg.movedim(dim, 0)
            arg = arg.flatten(0, 1)
        folded.append(arg)
    return folded


class _FoldedFunction(Function):
    """A `Function` whose tensors all lead with the axis K, mapped by folding into it."""

    @classmethod
    def vmap(cls, info: Any, in_dims: Any, *args: Any) -> Any:
        outputs = cls.apply(*_fold(info.batch_size, in_dims, args))
        unfolded = tuple(
            None if x is None else x.unflatten(0, (info.batch_size, -1)) for x in outputs
        )
        return unfolded, tuple(None if x is None else 0 for x in outputs)


class _ClippedGRU(_FoldedFunction):
    @staticmethod
    def forward(
        x_proj: Tensor, h0: Tensor, w_hh: Tensor, clip: float, keep: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        cell = _Cell(w_hh, clip)
        states, gates, cand = cell.allocate(x_proj, keep)
        h = h0
        for t in range(x_proj.shape[1]):
            cell.forward(x_proj[:, t], h, states[:, t], gates[:, t], cand[:, t])
            h = states[:, t]
        return states, gates, cand

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _, h0, w_hh, clip, _ = inputs
        states, gates, cand = output
        ctx.mark_non_differentiable(gates, cand)
        ctx.save_for_backward(states, gates, cand, h0, w_hh)
        ctx.clip = clip

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        return *_ClippedGRUBackward.apply(grads[0], *ctx.saved_tensors, ctx.clip), None, None


class _ClippedGRUBackward(_FoldedFunction):
    @staticmethod
    def forward(
        grad_states: Tensor,
        states: Tensor,
        gates: Tensor,
        cand: Tensor,
        h0: Tensor,
        w_hh: Tensor,
        clip: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        cell = _Cell(w_hh, clip)
        cell.prepare_backward(h0, states, gates, cand)
        grad_h = torch.zeros_like(h0)
        for t in reversed(range(states.shape[1])):
            grad_h = cell.backward(t, grad_h.add_(grad_states[:, t]))
        return cell.grad_x, grad_h, cell.grad_w_hh()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise NotImplementedError(_NO_SECOND)


_NO_SECOND = "second derivatives need the kernel 'reference': LFADS(..., kernel='reference')"


class _Decoder(_FoldedFunction):
    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        *tensors, clip, keep = args
        p = DecoderInputs(*tensors)
        con, gen = _Cell(p.w_con_hh, clip), _Cell(p.w_gen_hh, clip)
        con_states, con_gates, con_cand = con.allocate(p.con_proj, keep)
        gen_states, gen_gates, gen_cand = gen.allocate(p.gen_proj, keep)
        n_nets, n_bins, n_trials = p.con_proj.shape[:3]
        n_inputs = p.w_gen_u.shape[-1]
        factors = p.con_proj.new_empty(n_nets, n_bins + 1, n_trials, p.w_fac.shape[1])
        co = p.con_proj.new_empty(n_nets, n_bins, n_trials, 2 * n_inputs)
        inputs = p.con_proj.new_empty(n_nets, n_bins, n_trials, n_inputs)
        b_co = p.b_co.unsqueeze(1)

        c, g = p.con_h0, p.gen_h0
        torch.bmm(_masked(g, p.gen_mask, 0), p.w_fac.mT, out=factors[:, 0])
        for t in range(n_bins):
            x = torch.baddbmm(
                p.con_proj[:, t], _masked(factors[:, t], p.fac_mask, t), p.w_con_fac.mT
            )
            con.forward(x, c, con_states[:, t], con_gates[:, t], con_cand[:, t])
            c, co_t, u = con_states[:, t], co[:, t], inputs[:, t]
            torch.baddbmm(b_co, c, p.w_co.mT, out=co_t)
            if p.noise is None:
                u.copy_(co_t[..., :n_inputs])
            else:
                std = torch.mul(co_t[..., n_inputs:], 0.5).exp_()
                torch.addcmul(co_t[..., :n_inputs], p.noise[:, t], std, out=u)
            x = torch.baddbmm(p.gen_proj[:, t], u, p.w_gen_u.mT)
            gen.forward(x, g, gen_states[:, t], gen_gates[:, t], gen_cand[:, t])
            g = gen_states[:, t]
            torch.bmm(_masked(g, p.gen_mask, t + 1), p.w_fac.mT, out=factors[:, t + 1])
        first, rest = factors[:, 0].clone(), factors[:, 1:]
        return (
            *(rest, gen_states, con_states, co, inputs),
            *(first, con_gates, con_cand, gen_gates, gen_cand),
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*output[len(DecoderStates._fields) :])
        # The input products, the largest tensors of all, are not needed again.
        ctx.save_for_backward(None, None, *inputs[2:-2], *output)
        ctx.clip = inputs[-2]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        n_states = len(DecoderStates._fields)
        gradients = _DecoderBackward.apply(*grads[:n_states], *ctx.saved_tensors, ctx.clip)
        return *gradients, None, None


class _DecoderBackward(_FoldedFunction):
    @staticmethod
    def forward(*args: Any) -> tuple[Tensor | None, ...]:
        n_states, n_in = len(DecoderStates._fields), len(DecoderInputs._fields)
        grad = DecoderStates(*args[:n_states])
        p = DecoderInputs(*args[n_states : n_states + n_in])
        out = DecoderStates(*args[n_states + n_in : 2 * n_states + n_in])
        first, con_gates, con_cand, gen_gates, gen_cand = args[2 * n_states + n_in : -1]
        clip = args[-1]

        con, gen = _Cell(p.w_con_hh, clip), _Cell(p.w_gen_hh, clip)
        con.prepare_backward(p.con_h0, out.con_states, con_gates, con_cand)
        gen.prepare_backward(p.gen_h0, out.gen_states, gen_gates, gen_cand)
        n_bins, n_inputs = out.inputs.shape[1], out.inputs.shape[-1]
        grad_f = out.factors.new_zeros(*(out.factors.shape[0], n_bins + 1), *out.factors.shape[2:])
        if grad.factors is not None:
            grad_f[:, 1:] = grad.factors
        grad_co = torch.zeros_like(out.co_params) if grad.co_params is None else grad.co_params
        grad_co = grad_co.clone()
        if p.noise is not None:
            by_logvar = (out.co_params[..., n_inputs:] * 0.5).exp_().mul_(p.noise).mul_(0.5)

        grad_g, grad_c = torch.zeros_like(p.gen_h0), torch.zeros_like(p.con_h0)
        for t in reversed(range(n_bins)):
            grad_g = grad_g + _masked(torch.bmm(grad_f[:, t + 1], p.w_fac), p.gen_mask, t + 1)
            if grad.gen_states is not None:
                grad_g.add_(grad.gen_states[:, t])
            grad_g = gen.backward(t, grad_g)

            grad_u = torch.bmm(gen.grad_x[:, t], p.w_gen_u)
            if grad.inputs is not None:
                grad_u.add_(grad.inputs[:, t])
            co_t = grad_co[:, t]
            co_t[..., :n_inputs].add_(grad_u)
            if p.noise is not None:
                co_t[..., n_inputs:].addcmul_(grad_u, by_logvar[:, t])
            grad_c.baddbmm_(co_t, p.w_co)
            if grad.con_states is not None:
                grad_c.add_(grad.con_states[:, t])
            grad_c = con.backward(t, grad_c)
            grad_f[:, t].add_(_masked(torch.bmm(con.grad_x[:, t], p.w_con_fac), p.fac_mask, t))
        grad_g = grad_g + _masked(torch.bmm(grad_f[:, 0], p.w_fac), p.gen_mask, 0)

        factors_in = torch.cat([first.unsqueeze(1), out.factors[:, :-1]], dim=1)
        if p.fac_mask is not None:
            factors_in.mul_(p.fac_mask)
        gen_in = torch.cat([p.gen_h0.unsqueeze(1), out.gen_states], dim=1)
        if p.gen_mask is not None:
            gen_in.mul_(p.gen_mask)
        return (
            *(con.grad_x, gen.grad_x, grad_c, grad_g),
            _over_bins(con.grad_x, factors_in),
            con.grad_w_hh(),
            _over_bins(grad_co, out.con_states),
            grad_co.sum(dim=(1, 2)),
            _over_bins(gen.grad_x, out.inputs),
            gen.grad_w_hh(),
            _over_bins(grad_f, gen_in),
            *(None, None, None),
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise NotImplementedError(_NO_SECOND)


def _masked(x: Tensor, mask: Tensor | None, t: int) -> Tensor:
    return x if mask is None else x * mask[:, t]
