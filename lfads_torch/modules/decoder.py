"""Decoder: from an initial condition and controller inputs to factors, bin by bin.

Source: Pandarinath et al. 2018 (doi:10.1038/s41592-018-0109-9); the equations are in
``docs/model.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

from ..kernels import DecoderInputs, DecoderStates, Kernels, get_kernels
from .masks import dropout_mask
from .readin_readout import FanInLinear
from .readin_readout import NormalizedLinear as KernelNormalizedLinear
from .recurrent import CellHolder, ClippedGRUCell, stretches


class _Decoding(NamedTuple):
    """The fields that a decoding unpacks to; `Decoding` describes them."""

    gen_init: Float[Tensor, "B G"]
    gen_states: Float[Tensor, "B T G"]
    con_states: Float[Tensor, "B T C"]
    co_means: Float[Tensor, "B T U"]
    co_stds: Float[Tensor, "B T U"]
    gen_inputs: Float[Tensor, "B T UE"]
    factors: Float[Tensor, "B T F"]


class Decoding(_Decoding):
    """What the decoder infers, trials first (B trials, or samples x trials).

    The fields are those of `lfads_torch.tuples.SessionOutput`, in the order in which user code
    unpacks them. Without a controller the generator
    takes the external input alone; `co_means` are then 0, `co_stds` 1 and `con_states` 0.
    `gen_mask` is the dropout of the generator's states that the factors see, None outside training.
    """

    gen_mask: Float[Tensor, "B T G"] | None = None


class DecoderCell(nn.Module):
    """Parameters of the decoder's recurrence, under the names of existing checkpoints.

    Sizes are (inputs, units): of the controller None where the model has none.
    """

    def __init__(
        self,
        gen: tuple[int, int],
        fac_dim: int,
        con: tuple[int, int] | None,
        co_dim: int,
        clip: float,
    ) -> None:
        super().__init__()
        self.gen_cell = ClippedGRUCell(*gen, clip)
        self.fac_linear = KernelNormalizedLinear(gen[1], fac_dim)
        if con is not None:
            self.con_cell = ClippedGRUCell(*con, clip)
            self.co_linear = FanInLinear(con[1], 2 * co_dim)


class Decoder(nn.Module):
    """Controller, generator and factors; `causal` and `tbptt_bins` are those of the encoder."""

    def __init__(
        self,
        *,
        recon_seq_len: int,
        ic_dim: int,
        ci_enc_dim: int,
        con_dim: int,
        co_dim: int,
        ext_input_dim: int,
        gen_dim: int,
        fac_dim: int,
        cell_clip: float,
        use_con: bool,
        causal: bool = False,
        tbptt_bins: int = 0,
    ) -> None:
        super().__init__()
        self.recon_seq_len = recon_seq_len
        self.tbptt_bins = tbptt_bins
        self.ci_width = ci_enc_dim if causal else 2 * ci_enc_dim
        self.co_dim = co_dim
        # Inferred inputs that the generator takes, none without a controller.
        self.n_inferred = co_dim if use_con else 0
        self.clip = cell_clip
        self.use_con = use_con
        self.con_h0 = nn.Parameter(torch.zeros(1, con_dim))
        self.ic_to_g0 = FanInLinear(ic_dim, gen_dim)
        gen = self.n_inferred + ext_input_dim, gen_dim
        con = (self.ci_width + fac_dim, con_dim) if use_con else None
        self.rnn = CellHolder(DecoderCell(gen, fac_dim, con, co_dim, cell_clip))

    def forward(
        self,
        ic_samp: Float[Tensor, "SB I"],
        ci: Float[Tensor, "B T E"] | None,
        ext_input: Float[Tensor, "B Tx X"],
        sample_posteriors: bool = True,
        dropout_rate: Tensor | None = None,
        kernels: Kernels | None = None,
        n_bins: int | None = None,
    ) -> Decoding:
        """Decode S initial conditions for each of B trials, the trials of one sample together.

        With `sample_posteriors`, the inferred inputs are drawn from their posterior; else they are
        its mean. Bins missing at the end of `ext_input` are zeros. Without `dropout_rate`
        (evaluation, and calls by hand), nothing is dropped; without `n_bins`, all bins are decoded.
        """
        kernels = kernels or get_kernels()
        n_bins = self.recon_seq_len if n_bins is None else n_bins
        cell, n_rows = self.rnn.cell, ic_samp.shape[0]
        n_samples = n_rows // ext_input.shape[0] if ext_input.shape[0] else 1

        def mask(*shape: int) -> Tensor | None:
            return None if dropout_rate is None else dropout_mask(shape, dropout_rate)

        gen_init = gen_h0 = self.ic_to_g0(ic_samp)
        ext = _to_length(ext_input, n_bins).transpose(0, 1)
        ext = _masked(ext, mask(*ext.shape))
        w_gen_u, w_gen_ext = cell.gen_cell.weight_ih.tensor_split([self.n_inferred], dim=1)
        # Without an external input, one row of biases stands for all bins and trials.
        gen_proj = cell.gen_cell.bias.view(1, 1, -1)
        if w_gen_ext.shape[1]:
            gen_proj = _repeat_trials(kernels.linear(ext, w_gen_ext, cell.gen_cell.bias), n_samples)
        gen_mask = mask(n_bins + 1, *gen_h0.shape)
        w_fac = cell.fac_linear.unit_weight

        if self.use_con:
            assert ci is not None
            w_con_ci, w_con_fac = cell.con_cell.weight_ih.tensor_split([self.ci_width], dim=1)
            ci = ci.transpose(0, 1)
            ci = _masked(ci, mask(*ci.shape))
            con_proj = kernels.linear(ci, w_con_ci, cell.con_cell.bias)
            size = n_bins, n_rows, self.co_dim
            noise = None
            if sample_posteriors:
                noise = torch.randn(*size, device=gen_h0.device, dtype=gen_h0.dtype)
            inputs = DecoderInputs(
                con_proj=_repeat_trials(con_proj, n_samples),
                gen_proj=gen_proj,
                con_h0=self.con_h0.expand(n_rows, -1),
                gen_h0=gen_h0,
                w_con_fac=w_con_fac,
                w_con_hh=cell.con_cell.weight_hh,
                w_co=cell.co_linear.weight,
                b_co=cell.co_linear.bias,
                w_gen_u=w_gen_u,
                w_gen_hh=cell.gen_cell.weight_hh,
                w_fac=w_fac,
                noise=noise,
                fac_mask=mask(n_bins, n_rows, w_fac.shape[0]),
                gen_mask=gen_mask,
            )
            con_h0, pieces = inputs.con_h0, []
            for start, stop in stretches(0, n_bins, self.tbptt_bins):
                piece = _bins(inputs, start, stop)._replace(con_h0=con_h0, gen_h0=gen_h0)
                states = _one_net(lambda *x: kernels.decoder(DecoderInputs(*x), self.clip), piece)
                con_h0, gen_h0 = states.con_states[-1].detach(), states.gen_states[-1].detach()
                pieces.append(states)
            states = DecoderStates(*map(_joined, zip(*pieces, strict=True)))
        else:
            pieces, run = [], partial(kernels.clipped_gru, clip=self.clip)
            gen_proj, w_hh = gen_proj.expand(n_bins, n_rows, -1), cell.gen_cell.weight_hh
            for start, stop in stretches(0, n_bins, self.tbptt_bins):
                states, gen_h0 = _one_net(run, (gen_proj[start:stop], gen_h0, w_hh))
                pieces.append(states)
                gen_h0 = gen_h0.detach()
            gen_states = _joined(pieces)
            zeros = partial(gen_states.new_zeros, n_bins, n_rows)
            kept = gen_states if gen_mask is None else gen_states * gen_mask[1:]
            states = DecoderStates(
                factors=linear(kept, w_fac),
                gen_states=gen_states,
                con_states=zeros(self.con_h0.shape[1]),
                co_params=zeros(2 * self.co_dim),
                inputs=zeros(0),
            )
        co_means, co_logvars = states.co_params.transpose(0, 1).chunk(2, dim=-1)
        gen_inputs = torch.cat([states.inputs, _repeat_trials(ext, n_samples)], dim=-1)
        decoding = Decoding(
            factors=states.factors.transpose(0, 1),
            co_means=co_means,
            co_stds=(co_logvars / 2).exp(),
            gen_states=states.gen_states.transpose(0, 1),
            gen_init=gen_init,
            gen_inputs=gen_inputs.transpose(0, 1),
            con_states=states.con_states.transpose(0, 1),
        )
        decoding.gen_mask = None if gen_mask is None else gen_mask[1:].transpose(0, 1)
        return decoding


def _one_net(kernel: Callable[..., Any], tensors: Iterable[Tensor | None]) -> Any:
    """Run a kernel with the leading axis K of independent nets, here of size 1."""
    # The kernels have this axis for the two directions of an encoder, and for a population, whose
    # members vmap folds into it. The decoder is one net, so that the axis exists in these two
    # lines alone.
    states = kernel(*(None if x is None else x.unsqueeze(0) for x in tensors))
    return type(states)(*(x.squeeze(0) for x in states))


def _bins(inputs: DecoderInputs, start: int, stop: int) -> DecoderInputs:
    """Return the decoder's inputs of the bins [start, stop); initial states stay."""
    if stop - start == len(inputs.con_proj):
        return inputs
    by_bin = {"con_proj": stop, "noise": stop, "fac_mask": stop, "gen_mask": stop + 1}
    if len(inputs.gen_proj) > 1:
        by_bin["gen_proj"] = stop
    cut = {
        name: x[start:end]
        for name, end in by_bin.items()
        if (x := getattr(inputs, name)) is not None
    }
    return inputs._replace(**cut)


def _joined(pieces: Sequence[Tensor]) -> Tensor:
    """Join bins (T, B, M)."""
    return pieces[0] if len(pieces) == 1 else torch.cat(list(pieces))


def _to_length(ext_input: Tensor, n_bins: int) -> Tensor:
    """Cut or zero-pad the bins of an external input."""
    n_trials, n_given, n_inputs = ext_input.shape
    if n_given >= n_bins:
        return ext_input[:, :n_bins]
    # Not `pad`, which in torch 2.6 refuses an input without channels.
    zeros = ext_input.new_zeros(n_trials, n_bins - n_given, n_inputs)
    return torch.cat([ext_input, zeros], dim=1)


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x * mask


def _repeat_trials(x: Float[Tensor, "T B M"], n_samples: int) -> Float[Tensor, "T SB M"]:
    return x if n_samples == 1 else x.repeat(1, n_samples, 1)
