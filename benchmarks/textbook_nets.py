"""Recurrent nets and priors of the textbook's LFADS, one cell call per bin.

Sizes are read from `hps`, an object with the hyper-parameters of `lfads_torch.LFADS`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal, kl_divergence
from torch.nn import functional as F


class ClippedGRUCell(nn.Module):
    """One step of the GRU whose reset gate acts before the recurrent product."""

    def __init__(self, input_size: int, hidden_size: int, clip: float) -> None:
        super().__init__()
        self.sizes = [2 * hidden_size, hidden_size]
        self.clip = clip
        self.weight_ih = nn.Parameter(torch.empty(3 * hidden_size, input_size))
        self.weight_hh = nn.Parameter(torch.empty(3 * hidden_size, hidden_size))
        self.bias_ih = nn.Parameter(torch.empty(3 * hidden_size))
        self.bias_hh = nn.Parameter(torch.empty(3 * hidden_size), requires_grad=False)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """State (B, H) after input `x` (B, N) and state `h` (B, H)."""
        x_z, x_r, x_n = F.linear(x, self.weight_ih, self.bias_ih).chunk(3, dim=1)
        weight_zr, weight_n = self.weight_hh.split(self.sizes)
        bias_zr, bias_n = self.bias_hh.split(self.sizes)
        h_z, h_r = F.linear(h, weight_zr, bias_zr).chunk(2, dim=1)
        z = torch.sigmoid(x_z + h_z)
        r = torch.sigmoid(x_r + h_r)
        n = torch.tanh(x_n + F.linear(r * h, weight_n, bias_n))
        return torch.clamp(z * h + (1 - z) * n, -self.clip, self.clip)


class ClippedGRU(nn.Module):
    """A cell over all bins."""

    def __init__(self, input_size: int, hidden_size: int, clip: float) -> None:
        super().__init__()
        self.cell = ClippedGRUCell(input_size, hidden_size, clip)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """States (B, T, H) over inputs (B, T, N) from state `h` (B, H)."""
        states = []
        for x_t in x.unbind(dim=1):
            h = self.cell(x_t, h)
            states.append(h)
        return torch.stack(states, dim=1)


class BidirectionalClippedGRU(nn.Module):
    """One cell over the bins, one over the bins in reverse."""

    def __init__(self, input_size: int, hidden_size: int, clip: float) -> None:
        super().__init__()
        self.fwd_gru = ClippedGRU(input_size, hidden_size, clip)
        self.bwd_gru = ClippedGRU(input_size, hidden_size, clip)

    def forward(self, x: Tensor, h0: Tensor) -> tuple[Tensor, Tensor]:
        """States of both directions, each (B, T, H) in the order of time; `h0` is (2, 1, H)."""
        h_fwd, h_bwd = h0.expand(-1, x.shape[0], -1)
        return self.fwd_gru(x, h_fwd), self.bwd_gru(x.flip(1), h_bwd).flip(1)


class Encoder(nn.Module):
    """Initial-condition and controller-input encoders."""

    def __init__(self, hps: Any, use_con: bool) -> None:
        super().__init__()
        self.hps = hps
        self.use_con = use_con
        self.dropout = nn.Dropout(hps.dropout_rate)
        size, clip = hps.encod_data_dim, hps.cell_clip
        self.ic_enc_h0 = nn.Parameter(torch.zeros(2, 1, hps.ic_enc_dim))
        self.ic_enc = BidirectionalClippedGRU(size, hps.ic_enc_dim, clip)
        self.ic_linear = nn.Linear(2 * hps.ic_enc_dim, 2 * hps.ic_dim)
        if use_con:
            self.ci_enc_h0 = nn.Parameter(torch.zeros(2, 1, hps.ci_enc_dim))
            self.ci_enc = BidirectionalClippedGRU(size, hps.ci_enc_dim, clip)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and deviation of the initial condition, controller input (B, T_r, 2 ci_enc_dim)."""
        hps, segment = self.hps, self.hps.ic_enc_seq_len
        x = self.dropout(x)
        fwd, bwd = self.ic_enc(x[:, :segment] if segment > 0 else x, self.ic_enc_h0)
        last = torch.cat([fwd[:, -1], bwd[:, 0]], dim=1)
        ic_mean, ic_logvar = self.ic_linear(self.dropout(last)).chunk(2, dim=1)
        ic_std = torch.sqrt(torch.exp(ic_logvar) + hps.ic_post_var_min)
        if not self.use_con:
            return ic_mean, ic_std, x.new_zeros(x.shape[0], hps.recon_seq_len, 0)
        fwd, bwd = self.ci_enc(x[:, segment:], self.ci_enc_h0)
        lag = hps.ci_lag
        fwd = F.pad(fwd, (0, 0, lag, -lag))
        bwd = F.pad(bwd, (0, 0, -lag, lag))
        behind = hps.recon_seq_len - x.shape[1]
        return ic_mean, ic_std, F.pad(torch.cat([fwd, bwd], dim=2), (0, 0, segment, behind))


class FactorLinear(nn.Linear):
    """The factor matrix, its rows scaled to unit norm at every use."""

    def forward(self, x: Tensor) -> Tensor:
        """Factors of generator states."""
        return F.linear(x, F.normalize(self.weight, dim=1))


class DecoderCell(nn.Module):
    """One bin of controller, inferred input, generator and factors, in one concatenated state."""

    def __init__(self, hps: Any, use_con: bool) -> None:
        super().__init__()
        self.use_con = use_con
        n_inputs = (hps.co_dim if use_con else 0) + hps.ext_input_dim
        # Generator, controller, mean and deviation of the inferred input, input, factors.
        self.state_sizes = [
            *(hps.gen_dim, hps.con_dim, hps.co_dim, hps.co_dim),
            *(n_inputs, hps.fac_dim),
        ]
        self.input_sizes = [2 * hps.ci_enc_dim if use_con else 0, hps.ext_input_dim]
        self.dropout = nn.Dropout(hps.dropout_rate)
        self.gen_cell = ClippedGRUCell(n_inputs, hps.gen_dim, hps.cell_clip)
        self.fac_linear = FactorLinear(hps.gen_dim, hps.fac_dim, bias=False)
        if use_con:
            n_con_inputs = 2 * hps.ci_enc_dim + hps.fac_dim
            self.con_cell = ClippedGRUCell(n_con_inputs, hps.con_dim, hps.cell_clip)
            self.co_linear = nn.Linear(hps.con_dim, 2 * hps.co_dim)

    def forward(self, inputs: Tensor, state: Tensor, sample: bool) -> Tensor:
        """State after a bin; `inputs` are controller and external input."""
        gen, con, co_mean, co_std, _, factors = state.split(self.state_sizes, dim=1)
        ci, gen_input = inputs.split(self.input_sizes, dim=1)
        if self.use_con:
            con = self.con_cell(self.dropout(torch.cat([ci, factors], dim=1)), con)
            co_mean, co_logvar = self.co_linear(con).chunk(2, dim=1)
            co_std = torch.exp(co_logvar / 2)
            u = co_mean + co_std * torch.randn_like(co_std) if sample else co_mean
            gen_input = torch.cat([u, gen_input], dim=1)
        gen = self.gen_cell(gen_input, gen)
        factors = self.fac_linear(self.dropout(gen))
        return torch.cat([gen, con, co_mean, co_std, gen_input, factors], dim=1)


class DecoderRNN(nn.Module):
    """The decoder's cell over all bins."""

    def __init__(self, cell: DecoderCell) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, inputs: Tensor, state: Tensor, sample: bool) -> Tensor:
        """States (B, T, .) over inputs (B, T, .)."""
        states = []
        for inputs_t in inputs.unbind(dim=1):
            state = self.cell(inputs_t, state, sample)
            states.append(state)
        return torch.stack(states, dim=1)


class Decoder(nn.Module):
    """From initial conditions and controller inputs to factors."""

    def __init__(self, hps: Any, use_con: bool) -> None:
        super().__init__()
        self.hps = hps
        self.dropout = nn.Dropout(hps.dropout_rate)
        self.con_h0 = nn.Parameter(torch.zeros(1, hps.con_dim))
        self.ic_to_g0 = nn.Linear(hps.ic_dim, hps.gen_dim)
        self.rnn = DecoderRNN(DecoderCell(hps, use_con))

    def forward(
        self, ic: Tensor, ci: Tensor, ext_input: Tensor, sample: bool
    ) -> tuple[Tensor, ...]:
        """Return the initial state, and all states of the decoder, each (B, T_r, .)."""
        cell, n_trials = self.rnn.cell, ic.shape[0]
        missing = self.hps.recon_seq_len - ext_input.shape[1]
        # Not F.pad, which torch 2.6 refuses for inputs of no columns.
        after = ext_input.new_zeros(n_trials, missing, ext_input.shape[2])
        ext = self.dropout(torch.cat([ext_input, after], dim=1))
        gen_init = self.ic_to_g0(ic)
        none = gen_init.new_zeros(n_trials, self.hps.co_dim)
        gen_input = gen_init.new_zeros(n_trials, cell.state_sizes[4])
        factors = cell.fac_linear(cell.dropout(gen_init))
        con = self.con_h0.expand(n_trials, -1)
        state = torch.cat([gen_init, con, none, none + 1, gen_input, factors], dim=1)
        states = self.rnn(torch.cat([ci, ext], dim=2), state, sample)
        return gen_init, *states.split(cell.state_sizes, dim=2)


class NormalPrior(nn.Module):
    """Gaussian prior of the initial condition; analytic KL."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(size))
        self.logvar = nn.Parameter(torch.zeros(size), requires_grad=False)

    def forward(self, mean: Tensor, std: Tensor) -> Tensor:
        """KL divergence, averaged over trials."""
        prior = Independent(Normal(self.mean, torch.exp(0.5 * self.logvar)), 1)
        return kl_divergence(Independent(Normal(mean, std), 1), prior).mean()


class AutoregressivePrior(nn.Module):
    """First-order autoregressive prior of the inferred inputs; KL at one sample."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.logtaus = nn.Parameter(torch.zeros(size))
        self.lognvars = nn.Parameter(torch.zeros(size))

    def forward(self, mean: Tensor, std: Tensor) -> Tensor:
        """KL divergence, averaged over trials."""
        posterior = Normal(mean, std)
        u = posterior.rsample()
        a, var = torch.exp(-torch.exp(-self.logtaus)), torch.exp(self.lognvars)
        log_p_first = Normal(0.0, torch.sqrt(var / (1 - a**2))).log_prob(u[:, :1])
        log_p = Normal(a * u[:, :-1], torch.sqrt(var)).log_prob(u[:, 1:])
        log_p = torch.cat([log_p_first, log_p], dim=1)
        return (posterior.log_prob(u) - log_p).sum(dim=(1, 2)).mean()
