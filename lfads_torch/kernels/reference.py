"""The recurrent nets as plain differentiable loops: the definition the other kernels agree with.

Sources: Pandarinath et al. 2018 (Nature Methods 15); the equations are in ``docs/model.md``.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from .types import DecoderInputs, DecoderStates, GRUStates


def clipped_gru_cell(
    x_proj: Float[Tensor, "K B H3"],
    h: Float[Tensor, "K B H"],
    w_hh: Float[Tensor, "K H3 H"],
    clip: float,
) -> Float[Tensor, "K B H"]:
    """One bin of a GRU whose reset gate acts before the recurrent product, state clipped."""
    n_units = h.shape[-1]
    w_zr, w_n = w_hh.split([2 * n_units, n_units], dim=1)
    x_zr, x_n = x_proj.split([2 * n_units, n_units], dim=-1)
    z, r = torch.baddbmm(x_zr, h, w_zr.mT).sigmoid().chunk(2, dim=-1)
    n = torch.baddbmm(x_n, r * h, w_n.mT).tanh()
    return (z * h + (1 - z) * n).clamp(-clip, clip)


def clipped_gru(
    x_proj: Float[Tensor, "K T B H3"],
    h0: Float[Tensor, "K B H"],
    w_hh: Float[Tensor, "K H3 H"],
    clip: float,
    two_way: bool = False,
) -> GRUStates:
    """See `lfads_torch.kernels.Kernels.clipped_gru`."""
    h, states = h0, []
    for x_t in turn_odd(x_proj, two_way).unbind(1):
        h = clipped_gru_cell(x_t, h, w_hh, clip)
        states.append(h)
    return GRUStates(turn_odd(torch.stack(states, dim=1), two_way), h)


def turn_odd(x: Float[Tensor, "K T B M"], two_way: bool) -> Float[Tensor, "K T B M"]:
    """Reverse the bins of the nets of odd number, where nets run both ways."""
    if not two_way:
        return x
    turned = x.clone()
    turned[1::2] = x[1::2].flip(1)
    return turned


def decoder(inputs: DecoderInputs, clip: float) -> DecoderStates:
    """See `lfads_torch.kernels.Kernels.decoder`."""
    p = inputs

    def factors_of(g: Tensor, bin_: int) -> Tensor:
        if p.gen_mask is not None:
            g = g * p.gen_mask[:, bin_ + 1]
        return torch.bmm(g, p.w_fac.mT)

    gen_proj = p.gen_proj.expand(-1, *p.con_proj.shape[1:3], -1)
    g, c = p.gen_h0, p.con_h0
    f = factors_of(g, -1)
    bins = []
    for t in range(p.con_proj.shape[1]):
        f_in = f if p.fac_mask is None else f * p.fac_mask[:, t]
        c = clipped_gru_cell(
            torch.baddbmm(p.con_proj[:, t], f_in, p.w_con_fac.mT), c, p.w_con_hh, clip
        )
        co = torch.baddbmm(p.b_co.unsqueeze(1), c, p.w_co.mT)
        mean, logvar = co.chunk(2, dim=-1)
        u = mean if p.noise is None else mean + p.noise[:, t] * (logvar / 2).exp()
        g = clipped_gru_cell(torch.baddbmm(gen_proj[:, t], u, p.w_gen_u.mT), g, p.w_gen_hh, clip)
        f = factors_of(g, t)
        bins.append((f, g, c, co, u))
    return DecoderStates(*(torch.stack(x, dim=1) for x in zip(*bins, strict=True)))
