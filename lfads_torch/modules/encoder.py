"""Encoders: from a trial's data to the posterior of its initial condition and controller input.

Source: Pandarinath et al. 2018 (doi:10.1038/s41592-018-0109-9); the equations are in
``docs/model.md``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad

from ..kernels import Kernels
from ..tuples import bins_past
from .masks import dropout_mask
from .readin_readout import FanInLinear
from .recurrent import BidirectionalClippedGRU, stretches


class Encoding(NamedTuple):
    """Posterior of the initial condition, and input of the controller at every bin (if any)."""

    ic_mean: Float[Tensor, "B I"]
    ic_std: Float[Tensor, "B I"]
    ci: Float[Tensor, "B T E"] | None


class Encoder(nn.Module):
    """Initial-condition (IC) and controller-input (CI) encoders.

    The IC encoder reads bins [0, ic_enc_seq_len) when `ic_enc_seq_len` > 0, else all; the CI
    encoder reads the bins from `ic_enc_seq_len` on. Without a controller, no CI encoder exists.
    A `causal` CI encoder runs forward only; without an IC segment, the initial condition is then a
    parameter, `ic_learned`. No gradient passes from one stretch of `tbptt_bins` bins to the one
    before (0: one stretch).
    """

    ic_learned: Tensor

    def __init__(
        self,
        *,
        encod_data_dim: int,
        recon_seq_len: int,
        ic_enc_seq_len: int,
        ic_enc_dim: int,
        ic_dim: int,
        ci_enc_dim: int,
        ci_lag: int,
        ic_post_var_min: float,
        cell_clip: float,
        use_con: bool,
        causal: bool = False,
        tbptt_bins: int = 0,
    ) -> None:
        super().__init__()
        self.recon_seq_len = recon_seq_len
        self.ic_enc_seq_len = ic_enc_seq_len
        self.ci_lag = ci_lag
        self.ic_post_var_min = ic_post_var_min
        self.tbptt_bins = tbptt_bins
        self.has_ic = ic_enc_seq_len > 0 or not causal
        if self.has_ic:
            self.ic_enc_h0 = nn.Parameter(torch.zeros(2, 1, ic_enc_dim))
            self.ic_enc = BidirectionalClippedGRU(encod_data_dim, ic_enc_dim, cell_clip)
            self.ic_linear = FanInLinear(2 * ic_enc_dim, 2 * ic_dim)
        else:
            self.ic_learned = nn.Parameter(torch.zeros(1, ic_dim))
        self.use_con = use_con
        if use_con:
            self.ci_enc_h0 = nn.Parameter(torch.zeros(1 if causal else 2, 1, ci_enc_dim))
            self.ci_enc = BidirectionalClippedGRU(encod_data_dim, ci_enc_dim, cell_clip, causal)

    def forward(
        self,
        data: Float[Tensor, "B T N"],
        dropout_rate: Tensor | None = None,
        kernels: Kernels | None = None,
        lengths: Int[Tensor, " B"] | None = None,
        n_recon: int | None = None,
    ) -> Encoding:
        """Encode a batch; what follows a trial's `lengths` bins may be anything.

        Without `lengths`, all trials are whole; without `dropout_rate` (evaluation, and calls by
        hand), nothing is dropped. `n_recon` are the bins to be reconstructed, by default all.
        """
        n_recon = self.recon_seq_len if n_recon is None else n_recon
        if dropout_rate is not None:
            data = data * dropout_mask(data.shape, dropout_rate)
        # Contiguous once, not for each encoder.
        x = data.transpose(0, 1).contiguous()
        n_bins, segment = x.shape[0], self.ic_enc_seq_len
        padded = None if lengths is None else bins_past(lengths, n_bins).T

        if self.has_ic:
            end = segment or n_bins
            last = self.ic_enc.run(x[:end], self.ic_enc_h0, kernels, _bins(padded, 0, end)).last
            summary = torch.cat([last[0], last[1]], dim=-1)
            if dropout_rate is not None:
                summary = summary * dropout_mask(summary.shape, dropout_rate)
            ic_mean, ic_logvar = self.ic_linear(summary).chunk(2, dim=-1)
            # The floor is added, not clamped, so that a variance below it keeps its gradient.
            ic_std = (ic_logvar.exp() + self.ic_post_var_min).sqrt()
        else:
            ic_mean = self.ic_learned.expand(x.shape[1], -1)
            ic_std = torch.zeros_like(ic_mean)
        if not self.use_con:
            return Encoding(ic_mean, ic_std, None)

        # The controller at bin t sees the forward state of bin t - lag and the backward state of
        # bin t + lag, or 0 where none exists.
        h0: Tensor = self.ci_enc_h0
        if segment >= n_bins:  # every trial ends within the segment, and nobody reads what follows
            ci = x.new_zeros(x.shape[1], n_recon, len(h0) * h0.shape[-1])
            return Encoding(ic_mean, ic_std, ci)
        pieces, lag = [], self.ci_lag
        before = x.new_zeros(lag, x.shape[1], h0.shape[-1])
        for start, stop in stretches(segment, n_bins, self.tbptt_bins):
            past_end = _bins(padded, start, stop)
            states, h0 = self.ci_enc.run(x[start:stop], h0, kernels, past_end)
            if past_end is not None:
                # A lag reaches past the end of a trial as it does past that of the window.
                states = states.masked_fill(past_end.unsqueeze(-1), 0.0)
            # Taken apart at once: the gradient of each of several slices is as large as them all.
            first, *others = states.unbind()
            n_kept = max(0, stop - start - lag)
            late = torch.cat([before[: stop - start], first[:n_kept]])
            early = [pad(x[lag:], (0, 0, 0, 0, 0, min(lag, len(x)))) for x in others]
            pieces.append(torch.cat([late, *early], dim=-1))
            h0 = h0.detach()
            before = torch.cat([before[stop - start :], first[n_kept:]]).detach()
        ci = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        if segment > 0 or n_recon > n_bins:
            ci = pad(ci, (0, 0, 0, 0, segment, n_recon - n_bins))
        return Encoding(ic_mean, ic_std, ci.transpose(0, 1))


def _bins(padded: Tensor | None, start: int, stop: int) -> Tensor | None:
    return None if padded is None else padded[start:stop]
