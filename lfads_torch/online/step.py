"""One bin of a causal model as plain tensor operations: what a stream runs and an export traces.

Equations: ``docs/model.md``. Nothing here knows autograd or the kernels, so that `torch.export` can
trace it. Axes: B streams, N channels read, N_r reconstructed, E external inputs.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import ConfigError
from ..kernels import get_kernels
from ..model import LFADS
from ..modules import augmentations
from ..modules.recurrent import ClippedGRUCell


class StepState(NamedTuple):
    """What a causal model keeps from bin to bin; ci and con are None without a controller."""

    ci: Float[Tensor, "B L1 H"] | None  # the CI encoder's state, then its ci_lag last, oldest first
    con: Float[Tensor, "B C"] | None
    gen: Float[Tensor, "B G"]
    fac: Float[Tensor, "B F"]


class StepOutput(NamedTuple):
    """Posterior means of one bin, and the state after it."""

    rates: Float[Tensor, "B Nr"]
    factors: Float[Tensor, "B F"]
    gen_states: Float[Tensor, "B G"]
    inputs: Float[Tensor, "B U"]
    behavior: Float[Tensor, "B D"]  # in the units of the data; D = 0 where none is read out
    state: StepState


def reads_ahead(model: LFADS) -> str:
    """Say what of a model reads later bins; empty for a causal one."""
    if model.causal:
        return ""
    segment = model.encoder.ic_enc_seq_len
    ahead = [] if segment else ["the IC encoder over all bins"]
    ahead += ["the backward CI encoder"] if model.use_con else []
    return " and ".join(ahead) or "what the initial condition is decoded from"


class Cell(nn.Module):
    """One bin of a clipped GRU, weights laid out for rows times matrices."""

    bias: Tensor
    w_x: Tensor
    w_zr: Tensor
    w_n: Tensor

    def __init__(self, cell: ClippedGRUCell) -> None:
        super().__init__()
        n = cell.hidden_size
        self.n_gates, self.clip = 2 * n, cell.clip_value
        self.register_buffer("bias", cell.bias.detach().clone())
        for name, weight in (
            ("w_x", cell.weight_ih),
            ("w_zr", cell.weight_hh[: 2 * n]),
            ("w_n", cell.weight_hh[2 * n :]),
        ):
            self.register_buffer(name, weight.detach().T.contiguous())

    def forward(self, x: Float[Tensor, "B N"], h: Float[Tensor, "B H"]) -> Float[Tensor, "B H"]:
        """Return the next state."""
        x_zr, x_n = torch.addmm(self.bias, x, self.w_x).tensor_split([self.n_gates], dim=1)
        z, r = torch.addmm(x_zr, h, self.w_zr).sigmoid().chunk(2, dim=1)
        n = torch.addmm(x_n, r * h, self.w_n).tanh()
        state = n + z * (h - n)
        return state if self.clip == math.inf else state.clamp(-self.clip, self.clip)


class Step(nn.Module):
    """One bin of every net of a causal model, for one of its sessions, at posterior means.

    Missing channels are NaN, and 0 at the encoder. `first_bins` S is the number of bins that the
    initial condition reads: 0, and a stream starts from `initial`; or more, and it starts from what
    `start` makes of its first S bins.
    """

    # Parts of your own are any callables.
    readin: Any
    readout: Any
    recon: Any
    behavior: Any
    to_g0: Any
    ic_linear: Any
    ic_enc: Any
    gen: Cell
    ci: Cell
    con: Cell
    w_fac: Tensor
    w_co: Tensor
    b_co: Tensor
    ic_h0: Tensor
    zero: Tensor
    ic_learned: Tensor
    con_h0: Tensor
    ci_h0: Tensor

    def __init__(self, model: LFADS, session: int = 0) -> None:
        super().__init__()
        if ahead := reads_ahead(model):
            raise ConfigError(
                f"mode is 'step', but the model is not causal: {ahead} read bins to come; use "
                "mode='window', or train with model.causal: true"
            )
        packaged = augmentations.__name__
        for transform in model.infer_aug_stack.batch_transforms:
            if (kind := type(transform)).__module__ != packaged:
                raise ConfigError(
                    f"infer_aug_stack: {kind.__name__} changes what the model reads, and a step "
                    "cannot know from which bins; use mode='window', or make it a readin"
                )
        encoder, decoder, cell = model.encoder, model.decoder, model.decoder.rnn.cell
        self.readin, self.readout = model.readin[session], model.readout[session]
        self.recon, self.behavior = model.recon[session], model.behavior
        self.first_bins, self.n_lag = encoder.ic_enc_seq_len, encoder.ci_lag
        self.has_con, self.n_inputs = model.use_con, decoder.co_dim
        self.n_read = int(getattr(self.readin, "in_features", model.hparams["encod_data_dim"]))
        self.n_ext = int(model.hparams["ext_input_dim"])
        self.gen = Cell(cell.gen_cell)
        self.register_buffer("w_fac", cell.fac_linear.unit_weight.detach().T.contiguous())
        self.register_buffer("con_h0", decoder.con_h0.detach().clone())
        self.to_g0 = decoder.ic_to_g0
        self.register_buffer("zero", torch.zeros(()))
        if self.has_con:
            self.ci, self.con = Cell(encoder.ci_enc.fwd_gru.cell), Cell(cell.con_cell)
            self.register_buffer("ci_h0", encoder.ci_enc_h0[0].detach().clone())
            # The other half of the map is the posterior's log variance.
            mean = slice(0, self.n_inputs)
            self.register_buffer("w_co", cell.co_linear.weight[mean].detach().T.contiguous())
            self.register_buffer("b_co", cell.co_linear.bias[mean].detach().clone())
        if encoder.has_ic:
            self.ic_enc, self.ic_linear = encoder.ic_enc, encoder.ic_linear
            self.register_buffer("ic_h0", encoder.ic_enc_h0.detach().clone())
        else:
            self.register_buffer("ic_learned", encoder.ic_learned.detach().clone())

    def forward(
        self, x: Float[Tensor, "B N"], ext: Float[Tensor, "B E"] | None, state: StepState
    ) -> StepOutput:
        """Take the counts of one bin; `ext` is None where the model has no external inputs."""
        ci_t, ci = None, None
        if state.ci is not None:
            h = self.ci(self.read_in(x.unsqueeze(1)).squeeze(1), state.ci[:, 0])
            seen = torch.cat([state.ci[:, 1:], h.unsqueeze(1)], dim=1)  # bins t - ci_lag .. t
            ci_t, ci = seen[:, 0], torch.cat([h.unsqueeze(1), seen[:, 1:]], dim=1)
        return self.decode(ci_t, ext, state._replace(ci=ci))

    def decode(
        self, ci_t: Float[Tensor, "B H"] | None, ext: Float[Tensor, "B E"] | None, state: StepState
    ) -> StepOutput:
        """Run controller, generator, factors and read-out for one bin; the state's ci stays."""
        n, con = state.gen.shape[0], state.con
        if con is None or ci_t is None:
            inputs = state.gen.new_zeros(n, self.n_inputs)
            driven = []
        else:
            con = self.con(torch.cat([ci_t, state.fac], dim=1), con)
            inputs = torch.addmm(self.b_co, con, self.w_co)
            driven = [inputs]
        if ext is not None:
            driven.append(ext)
        gen = self.gen(
            torch.cat(driven, dim=1) if driven else state.gen.new_zeros(n, 0),
            state.gen,
        )
        fac = gen @ self.w_fac
        params = self.recon.reshape_output_params(self.readout(fac.unsqueeze(1)).to(fac.dtype))
        rates = self.recon.compute_means(params).squeeze(1)
        behavior = gen.new_zeros(n, 0)
        if self.behavior is not None:
            z = self.behavior.features(gen.unsqueeze(1), fac.unsqueeze(1), params, self.recon)
            behavior = self.behavior.in_units(self.behavior(z.squeeze(1)))
        state = StepState(state.ci, con, gen, fac)
        return StepOutput(rates, fac, gen, inputs, behavior, state)

    def ahead(self, state: StepState) -> StepOutput:
        """Take one bin that is not seen: no encoder, no external inputs, as past a window's end."""
        n = state.gen.shape[0]
        ci_t = None if state.ci is None else torch.zeros_like(state.ci[:, 0])
        return self.decode(ci_t, state.gen.new_zeros(n, self.n_ext) if self.n_ext else None, state)

    def initial(self, n_streams: int = 1) -> StepState:
        """Return the state before the first bin, with the learned initial condition."""
        return self._begin(self.ic_learned.expand(n_streams, -1))

    def start(
        self, x: Float[Tensor, "B S N"], ext: Float[Tensor, "B S E"] | None = None
    ) -> StepOutput:
        """Infer the initial condition from the first S bins, and return the output at bin S - 1."""
        # Plain operations here, too; this runs once.
        run = self.ic_enc.run(self.read_in(x).transpose(0, 1), self.ic_h0, get_kernels("reference"))
        summary = torch.cat([run.last[0], run.last[1]], dim=1)
        state = self._begin(self.ic_linear(summary).chunk(2, dim=1)[0])
        unseen = None if state.ci is None else torch.zeros_like(state.ci[:, 0])
        for t in range(self.first_bins):
            output = self.decode(unseen, None if ext is None else ext[:, t], state)
            state = output.state
        return output

    def read_in(self, x: Float[Tensor, "B T N"]) -> Float[Tensor, "B T D"]:
        """Map channels to what the encoders read, 0 where they are missing."""
        return self.readin(torch.where(x.isnan(), self.zero, x)).to(x.dtype)

    def _begin(self, ic: Float[Tensor, "B I"]) -> StepState:
        gen = self.to_g0(ic)
        ci, con, n = None, None, ic.shape[0]
        if self.has_con:
            h0 = self.ci_h0.expand(n, -1)
            # Before the first bin the controller sees zeros, not the encoder's initial state.
            ci = torch.cat([h0.unsqueeze(1), h0.new_zeros(n, self.n_lag, h0.shape[1])], dim=1)
            con = self.con_h0.expand(n, -1)
        return StepState(ci, con, gen, gen @ self.w_fac)
