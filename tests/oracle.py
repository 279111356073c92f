"""A plain LFADS: one function per equation, Python loops over bins, autograd through everything.

It is slow and obvious on purpose, and shares no code with the package, so that the package's fast
kernels have something to be compared with. Every function takes a flat mapping of parameters under
their checkpoint names (for example ``encoder.ic_enc.fwd_gru.cell.weight_ih``); everything random is
an explicit argument (`Noise`), and an absent mask or sample means evaluation mode.

Shapes: B trials, T_e bins read, T_r >= T_e bins reconstructed, N_e channels read, N_r channels
reconstructed. All maps act on row vectors, ``y = x W^T + b``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Params = Mapping[str, Tensor]
HyperParams = Mapping[str, Any]
Batch = Mapping[int, Mapping[str, Tensor]]


@dataclass(frozen=True)
class Noise:
    """Everything random in one pass; ``None`` turns that source off.

    Dropout masks multiply, and already hold the factor 1 / (1 - rate) where they keep.

    Attributes
    ----------
    ic_eps : Tensor, shape (B, ic_dim)
        Standard normal; the initial condition is ``ic_mean + ic_std * ic_eps``.
    co_eps : Tensor, shape (B, T_r, co_dim)
        Standard normal; the inferred input is ``co_mean + co_std * co_eps``.
    drop_data : Tensor, shape (B, T_e, encod_data_dim)
        Dropout of the encoders' input, shared by both encoders.
    drop_ic : Tensor, shape (B, 2 * ic_enc_dim)
        Dropout of the IC encoder's last states.
    drop_con : Tensor, shape (B, T_r, 2 * ci_enc_dim + fac_dim)
        Dropout of the controller's input.
    drop_gen_init : Tensor, shape (B, gen_dim)
        Dropout of the initial generator state on its way to the factors of "bin -1".
    drop_gen : Tensor, shape (B, T_r, gen_dim)
        Dropout of the generator states on their way to the factors.
    drop_ext : Tensor, shape (B, T_r, ext_input_dim)
        Dropout of the external inputs.
    """

    ic_eps: Tensor | None = None
    co_eps: Tensor | None = None
    drop_data: Tensor | None = None
    drop_ic: Tensor | None = None
    drop_con: Tensor | None = None
    drop_gen_init: Tensor | None = None
    drop_gen: Tensor | None = None
    drop_ext: Tensor | None = None


NO_NOISE = Noise()


def apply_mask(x: Tensor, mask: Tensor | None) -> Tensor:
    """Dropout with its mask given: ``x * mask``, or `x` where there is none."""
    return x if mask is None else x * mask


def at(mask: Tensor | None, t: int) -> Tensor | None:
    """Bin `t` of a sequence that may be absent."""
    return None if mask is None else mask[:, t]


# ------------------------------------------------------------------ recurrent cells


def gru_cell(
    x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor, clip: float
) -> Tensor:
    """One step of the clipped GRU; gates stacked as (z, r, n), reset before the product.

    `x` is (B, n_in), `h` is (B, n), `w_ih` is (3n, n_in), `w_hh` is (3n, n).
    """
    (wz, wr, wn), (uz, ur, un) = w_ih.chunk(3), w_hh.chunk(3)
    (bz, br, bn), (dz, dr, dn) = b_ih.chunk(3), b_hh.chunk(3)
    z = torch.sigmoid(x @ wz.T + bz + h @ uz.T + dz)
    r = torch.sigmoid(x @ wr.T + br + h @ ur.T + dr)
    n = torch.tanh(x @ wn.T + bn + (r * h) @ un.T + dn)
    return torch.clamp(z * h + (1 - z) * n, -clip, clip)


def cell_params(params: Params, name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Parameters of the cell called `name`, in the order that `gru_cell` takes them."""
    w_ih, w_hh = params[f"{name}.weight_ih"], params[f"{name}.weight_hh"]
    return w_ih, w_hh, params[f"{name}.bias_ih"], params[f"{name}.bias_hh"]


def gru(x: Tensor, h0: Tensor, cell: Sequence[Tensor], clip: float) -> Tensor:
    """All states (B, T, n) of a cell run over `x` (B, T, n_in) from `h0` (B, n)."""
    w_ih, w_hh, b_ih, b_hh = cell
    h, states = h0, []
    for t in range(x.shape[1]):
        h = gru_cell(x[:, t], h, w_ih, w_hh, b_ih, b_hh, clip)
        states.append(h)
    return torch.stack(states, dim=1)


def bidirectional_gru(
    x: Tensor, h0: Tensor, fwd: Sequence[Tensor], bwd: Sequence[Tensor], clip: float
) -> tuple[Tensor, Tensor]:
    """States of both directions, each (B, T, n) in the order of time; `h0` is (2, 1, n)."""
    n_trials = x.shape[0]
    states_fwd = gru(x, h0[0].expand(n_trials, -1), fwd, clip)
    states_bwd = gru(x.flip(1), h0[1].expand(n_trials, -1), bwd, clip).flip(1)
    return states_fwd, states_bwd


# ------------------------------------------------------------------ encoders


def linear(x: Tensor, params: Params, name: str) -> Tensor:
    """``x W^T + b`` with the weight and bias called `name`."""
    return x @ params[f"{name}.weight"].T + params[f"{name}.bias"]


def has_controller(hps: HyperParams) -> bool:
    """Whether all three sizes that a controller needs are positive."""
    return min(hps["ci_enc_dim"], hps["con_dim"], hps["co_dim"]) > 0


def encode_ic(x: Tensor, params: Params, hps: HyperParams, noise: Noise) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (B, ic_dim) of the initial condition, from read-in data."""
    segment = x[:, : hps["ic_enc_seq_len"]] if hps["ic_enc_seq_len"] > 0 else x
    states_fwd, states_bwd = bidirectional_gru(
        segment,
        params["encoder.ic_enc_h0"],
        cell_params(params, "encoder.ic_enc.fwd_gru.cell"),
        cell_params(params, "encoder.ic_enc.bwd_gru.cell"),
        hps["cell_clip"],
    )
    # Each direction's last state: the backward one ends at the segment's first bin.
    last = torch.cat([states_fwd[:, -1], states_bwd[:, 0]], dim=1)
    mean, logvar = linear(apply_mask(last, noise.drop_ic), params, "encoder.ic_linear").chunk(2, 1)
    return mean, torch.sqrt(torch.exp(logvar) + hps["ic_post_var_min"])


def encode_ci(x: Tensor, params: Params, hps: HyperParams) -> Tensor:
    """Controller input (B, T_r, 2 * ci_enc_dim) in absolute time, from read-in data."""
    start, lag = hps["ic_enc_seq_len"], hps["ci_lag"]
    states_fwd, states_bwd = bidirectional_gru(
        x[:, start:],
        params["encoder.ci_enc_h0"],
        cell_params(params, "encoder.ci_enc.fwd_gru.cell"),
        cell_params(params, "encoder.ci_enc.bwd_gru.cell"),
        hps["cell_clip"],
    )
    n_trials, n_bins, _ = states_fwd.shape
    nothing = x.new_zeros(n_trials, hps["ci_enc_dim"])
    ci = []
    for t in range(hps["recon_seq_len"]):
        s = t - start
        read = 0 <= s < n_bins
        past = states_fwd[:, s - lag] if read and s >= lag else nothing
        future = states_bwd[:, s + lag] if read and s + lag < n_bins else nothing
        ci.append(torch.cat([past, future], dim=1))
    return torch.stack(ci, dim=1)


# ------------------------------------------------------------------ decoder


def unit_rows(weight: Tensor) -> Tensor:
    """Rows scaled to unit Euclidean norm, as the factor matrix is at every use."""
    return weight / torch.sqrt((weight**2).sum(dim=1, keepdim=True))


def pad_ext(ext_input: Tensor, n_bins: int) -> Tensor:
    """External inputs (B, T, E) cut or zero-padded at the end to `n_bins`."""
    n_trials, have, n_ext = ext_input.shape
    if have >= n_bins:
        return ext_input[:, :n_bins]
    return torch.cat([ext_input, ext_input.new_zeros(n_trials, n_bins - have, n_ext)], dim=1)


def decode(
    gen_init: Tensor,
    ci: Tensor | None,
    ext_input: Tensor,
    params: Params,
    hps: HyperParams,
    noise: Noise,
) -> dict[str, Tensor]:
    """Run controller, generator and factors over T_r bins; `ci` is None when autonomous."""
    n_trials, n_bins = gen_init.shape[0], hps["recon_seq_len"]
    factor_map = unit_rows(params["decoder.rnn.cell.fac_linear.weight"])
    gen_cell = cell_params(params, "decoder.rnn.cell.gen_cell")
    ext = apply_mask(pad_ext(ext_input, n_bins), noise.drop_ext)

    gen = gen_init
    factors = apply_mask(gen_init, noise.drop_gen_init) @ factor_map.T
    con = params["decoder.con_h0"].expand(n_trials, -1)
    co_mean = gen.new_zeros(n_trials, hps["co_dim"])
    co_std = gen.new_ones(n_trials, hps["co_dim"])

    steps: list[tuple[Tensor, ...]] = []
    for t in range(n_bins):
        if ci is None:
            gen_input = ext[:, t]
        else:
            con_input = torch.cat([ci[:, t], factors], dim=1)
            con_cell = cell_params(params, "decoder.rnn.cell.con_cell")
            con_input = apply_mask(con_input, at(noise.drop_con, t))
            con = gru_cell(con_input, con, *con_cell, hps["cell_clip"])
            co_mean, co_logvar = linear(con, params, "decoder.rnn.cell.co_linear").chunk(2, 1)
            co_std = torch.exp(co_logvar / 2)
            co_eps = at(noise.co_eps, t)
            con_output = co_mean if co_eps is None else co_mean + co_std * co_eps
            gen_input = torch.cat([con_output, ext[:, t]], dim=1)
        gen = gru_cell(gen_input, gen, *gen_cell, hps["cell_clip"])
        factors = apply_mask(gen, at(noise.drop_gen, t)) @ factor_map.T
        steps.append((factors, co_mean, co_std, gen, gen_input, con))

    names = ("factors", "co_means", "co_stds", "gen_states", "gen_inputs", "con_states")
    return {
        name: torch.stack(seq, dim=1)
        for name, seq in zip(names, zip(*steps, strict=True), strict=True)
    }


# ------------------------------------------------------------------ reconstruction


def log_factorial(x: Tensor) -> Tensor:
    """Stirling's approximation of log x!, and 0 for x <= 1."""
    above = torch.where(x > 1, x, torch.full_like(x, 2.0))
    stirling = above * torch.log(above) - above + 0.5 * torch.log(2 * math.pi * above)
    return torch.where(x > 1, stirling, torch.zeros_like(x))


def poisson_nll(x: Tensor, p: Tensor) -> Tensor:
    """-log P(x) of counts with log rate ``p[..., 0]``."""
    log_rate = p[..., 0]
    return torch.exp(log_rate) - x * log_rate + log_factorial(x)


def poisson_bits(x: Tensor, p: Tensor) -> Tensor:
    """Bits per spike that the rates lose to each channel's mean rate in the batch."""
    mean = x.mean(dim=(0, 1)).expand_as(x)
    # Without the factorial, which both have; a silent channel's mean rate fits it without loss.
    null = mean - torch.where(x > 0, x * torch.log(mean), torch.zeros_like(x))
    log_rate = p[..., 0]
    return (torch.exp(log_rate) - x * log_rate - null) / (math.log(2) * x.mean())


def squared_error(x: Tensor, p: Tensor) -> Tensor:
    """``(x - p)^2``."""
    return (x - p[..., 0]) ** 2


def gaussian_nll(x: Tensor, p: Tensor) -> Tensor:
    """-log N(x) with mean and log variance, without the constant; variance at least 1e-6."""
    var = torch.clamp(torch.exp(p[..., 1]), min=1e-6)
    return 0.5 * (torch.log(var) + (x - p[..., 0]) ** 2 / var)


def log_gamma_density(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """Log density of Gamma(shape alpha, rate beta) at x > 0."""
    log_norm = alpha * torch.log(beta) - torch.lgamma(alpha)
    return log_norm + (alpha - 1) * torch.log(x) - beta * x


def gamma_nll(x: Tensor, p: Tensor) -> Tensor:
    """-log Gamma(x) with log shape and log rate."""
    return -log_gamma_density(x, torch.exp(p[..., 0]), torch.exp(p[..., 1]))


def zig_parameters(p: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Shape, rate and probability of a non-zero value; `scale` (2, N_r) holds A and B."""
    s = torch.clamp(torch.sigmoid(p), min=1e-5)
    return s[..., 0] * scale[0], s[..., 1] * scale[1], s[..., 2]


def zig_nll(x: Tensor, p: Tensor, scale: Tensor, gamma_loc: float) -> Tensor:
    """-log P(x): 0 with probability 1 - q, else gamma_loc plus a Gamma variable."""
    alpha, beta, q = zig_parameters(p, scale)
    positive = torch.where(x > 0, x - gamma_loc, torch.ones_like(x))
    nonzero = torch.log(q) + log_gamma_density(positive, alpha, beta)
    return -torch.where(x > 0, nonzero, torch.log(1 - q))


N_PARAMS = {
    "Poisson": 1,
    "PoissonBPS": 1,
    "MSE": 1,
    "Gaussian": 2,
    "Gamma": 2,
    "ZeroInflatedGamma": 3,
}


def recon_loss(x: Tensor, p: Tensor, params: Params, hps: HyperParams, s: int) -> Tensor:
    """Loss per (trial, bin, channel) of session `s` for parameters `p` (B, T_r, N_r, k)."""
    if hps["reconstruction"] == "ZeroInflatedGamma":
        return zig_nll(x, p, params[f"recon.{s}.scale"], hps["gamma_loc"])
    plain = {
        "Poisson": poisson_nll,
        "PoissonBPS": poisson_bits,
        "MSE": squared_error,
        "Gaussian": gaussian_nll,
        "Gamma": gamma_nll,
    }
    return plain[hps["reconstruction"]](x, p)


def recon_mean(p: Tensor, params: Params, hps: HyperParams, s: int) -> Tensor:
    """Mean (B, T_r, N_r) of the observation model of session `s`."""
    kind = hps["reconstruction"]
    if kind in ("Poisson", "PoissonBPS"):
        return torch.exp(p[..., 0])
    if kind == "Gamma":
        return torch.exp(p[..., 0]) / torch.exp(p[..., 1])
    if kind == "ZeroInflatedGamma":
        alpha, beta, q = zig_parameters(p, params[f"recon.{s}.scale"])
        return q * (alpha / beta + hps["gamma_loc"])
    return p[..., 0]


def output_params(factors: Tensor, params: Params, hps: HyperParams, s: int) -> Tensor:
    """Read-out of session `s`: k blocks of N_r, reshaped to (B, T_r, N_r, k)."""
    flat = linear(factors, params, f"readout.{s}")
    return torch.stack(flat.chunk(N_PARAMS[hps["reconstruction"]], dim=-1), dim=-1)


# ------------------------------------------------------------------ the whole model


def readin(data: Tensor, params: Params, s: int) -> Tensor:
    """Session `s`'s data in the shared encoder's space; identity without a read-in weight."""
    return linear(data, params, f"readin.{s}") if f"readin.{s}.weight" in params else data


def forward(
    params: Params,
    hps: HyperParams,
    batch: Mapping[int, Mapping[str, Tensor]],
    noise: Noise = NO_NOISE,
) -> dict[int, dict[str, Tensor]]:
    """Run the model on ``{session: {encod_data, recon_data, ext_input}}``.

    Returns ``{session: outputs}``: all fields of the model's output with `output_params` as
    parameters (B, T_r, N_r, k), and their means as `output_means`. Noise is over the
    concatenated trials of all sessions.
    """
    sessions = sorted(batch)
    n_trials = [batch[s]["encod_data"].shape[0] for s in sessions]
    data = {s: torch.nan_to_num(batch[s]["encod_data"], nan=0.0) for s in sessions}
    x = torch.cat([readin(data[s], params, s) for s in sessions])
    ext = torch.cat([batch[s]["ext_input"] for s in sessions])
    x = apply_mask(x, noise.drop_data)

    ic_mean, ic_std = encode_ic(x, params, hps, noise)
    ci = encode_ci(x, params, hps) if has_controller(hps) else None
    ic = ic_mean if noise.ic_eps is None else ic_mean + ic_std * noise.ic_eps
    gen_init = linear(ic, params, "decoder.ic_to_g0")
    out = decode(gen_init, ci, ext, params, hps, noise)
    out |= {"ic_mean": ic_mean, "ic_std": ic_std, "gen_init": gen_init}

    parts = {name: value.split(n_trials) for name, value in out.items()}
    outputs = {}
    for i, s in enumerate(sessions):
        outputs[s] = {name: part[i] for name, part in parts.items()}
        p = output_params(outputs[s]["factors"], params, hps, s)
        outputs[s] |= {"output_params": p, "output_means": recon_mean(p, params, hps, s)}
    return outputs


# ------------------------------------------------------------------ priors


def normal_log_density(x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    """Elementwise log N(x; mean, var)."""
    return -0.5 * ((x - mean) ** 2 / var + torch.log(2 * math.pi * var))


def kl_normal(mean: Tensor, std: Tensor, prior_mean: Tensor, prior_logvar: Tensor) -> Tensor:
    """KL(N(mean, std^2) || N(prior_mean, exp(prior_logvar))), averaged over trials."""
    prior_var = torch.exp(prior_logvar)
    ratio = std**2 / prior_var
    kl = 0.5 * (ratio + (mean - prior_mean) ** 2 / prior_var - 1 - torch.log(ratio))
    return kl.flatten(1).sum(dim=1).mean()


def ar_log_density(u: Tensor, logtaus: Tensor, lognvars: Tensor) -> Tensor:
    """Log density (B,) of u (B, T, co_dim) under the first-order autoregressive prior."""
    a, nvar = torch.exp(-1 / torch.exp(logtaus)), torch.exp(lognvars)
    total = normal_log_density(u[:, 0], torch.zeros_like(u[:, 0]), nvar / (1 - a**2))
    for t in range(1, u.shape[1]):
        total = total + normal_log_density(u[:, t], a * u[:, t - 1], nvar)
    return total.sum(dim=1)


def kl_sampled_ar(
    mean: Tensor, std: Tensor, eps: Tensor, logtaus: Tensor, lognvars: Tensor
) -> Tensor:
    """Compute log q(u) - log p(u) at one sample ``u = mean + std * eps``, averaged over trials."""
    u = mean + std * eps
    log_q = normal_log_density(u, mean, std**2).sum(dim=(1, 2))
    return (log_q - ar_log_density(u, logtaus, lognvars)).mean()


def student_t_log_density(u: Tensor, loc: Tensor, logscale: Tensor, df: float) -> Tensor:
    """Log density (B,) of u under Student's t, independent in every dimension and bin."""
    z = (u - loc) / torch.exp(logscale)
    norm = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - 0.5 * math.log(df * math.pi)
    log_p = norm - logscale - 0.5 * (df + 1) * torch.log1p(z**2 / df)
    return log_p.flatten(1).sum(dim=1)


def kl(
    params: Params, hps: HyperParams, name: str, mean: Tensor, std: Tensor, eps: Tensor | None
) -> Tensor:
    """KL to the prior called `name`, whose parameters say its kind; none: 0.

    `eps` is the standard normal sample of the priors whose KL is sampled.
    """
    mine = {key.partition(".")[2]: p for key, p in params.items() if key.startswith(f"{name}.")}
    if "mean" in mine:
        return kl_normal(mean, std, mine["mean"], mine["logvar"])
    if not mine or eps is None:
        return mean.new_zeros(())
    if "logtaus" in mine:
        return kl_sampled_ar(mean, std, eps, mine["logtaus"], mine["lognvars"])
    u = mean + std * eps
    log_q = normal_log_density(u, mean, std**2).flatten(1).sum(dim=1)
    return (log_q - student_t_log_density(u, mine["loc"], mine["logscale"], hps["df"])).mean()


# ------------------------------------------------------------------ objective


def l2_penalty(params: Params, hps: HyperParams, n_sessions: int = 1) -> Tensor:
    """Penalty of the recurrent weights, with that of ZeroInflatedGamma's scales."""
    recurrent = {
        "encoder.ic_enc.fwd_gru.cell": hps["l2_ic_enc_scale"],
        "encoder.ic_enc.bwd_gru.cell": hps["l2_ic_enc_scale"],
        "decoder.rnn.cell.gen_cell": hps["l2_gen_scale"],
    }
    if has_controller(hps):
        recurrent |= {
            "encoder.ci_enc.fwd_gru.cell": hps["l2_ci_enc_scale"],
            "encoder.ci_enc.bwd_gru.cell": hps["l2_ci_enc_scale"],
            "decoder.rnn.cell.con_cell": hps["l2_con_scale"],
        }
    penalty, n_entries = params["encoder.ic_enc_h0"].new_zeros(()), 0
    for name, scale in recurrent.items():
        if scale > 0:
            weight = params[f"{name}.weight_hh"]
            penalty = penalty + scale * 0.5 * (weight**2).sum()
            n_entries += weight.numel()
    penalty = penalty / max(n_entries, 1)
    if hps["reconstruction"] == "ZeroInflatedGamma":
        for s in range(n_sessions):
            deviation = params[f"recon.{s}.scale"] - hps["scale_prior"]
            penalty = penalty + 0.5 * hps["scale_penalty"] * (deviation**2).sum()
    return penalty


def ramp(epoch: int, start: int, increase: int) -> float:
    """Weight of a regulariser in `epoch`, from 0 up to 1."""
    return min(max((epoch + 1 - start) / (increase + 1), 0.0), 1.0)


def session_loss(
    params: Params, hps: HyperParams, batch: Mapping[str, Tensor], p: Tensor, s: int
) -> Tensor:
    """Loss of one session: over the observed entries, NaN being missing ones."""
    data = batch["recon_data"]
    observed = ~torch.isnan(data)
    loss = recon_loss(torch.where(observed, data, torch.ones_like(data)), p, params, hps, s)
    loss = torch.where(observed, loss, torch.zeros_like(loss))
    return loss.sum() / observed.sum() if hps["recon_reduce_mean"] else loss.sum() / len(loss)


def losses(
    params: Params,
    hps: HyperParams,
    batch: Batch,
    outputs: Mapping[int, Mapping[str, Tensor]],
    l2_ramp: float,
    kl_eps: Tensor | None = None,
    kl_ramp: float | None = None,
) -> dict[str, Tensor]:
    """Terms of the objective, and `total`; without `kl_ramp` both ramps are the same.

    `kl_eps` (B, T_r, co_dim) is the standard normal sample that the KL of the inferred inputs is
    taken at; without it that term is left out where it is sampled. ``hps["recon_l2"]``, where
    given, is a user's penalty, a function of the parameters.
    """
    sessions = sorted(batch)
    per_session = [
        session_loss(params, hps, batch[s], outputs[s]["output_params"], s) for s in sessions
    ]
    recon = torch.stack(per_session).mean()
    l2 = l2_penalty(params, hps, len(sessions))
    if "recon_l2" in hps:
        l2 = l2 + hps["recon_l2"](params)

    def of_all(name: str) -> Tensor:
        return torch.cat([outputs[s][name] for s in sessions])

    ic_kl = kl(params, hps, "ic_prior", of_all("ic_mean"), of_all("ic_std"), None)
    co_kl = torch.zeros_like(recon)
    if has_controller(hps):
        co_kl = kl(params, hps, "co_prior", of_all("co_means"), of_all("co_stds"), kl_eps)

    all_kl = hps["kl_ic_scale"] * ic_kl + hps["kl_co_scale"] * co_kl
    kl_ramp = l2_ramp if kl_ramp is None else kl_ramp
    total = hps["loss_scale"] * (recon + l2_ramp * l2 + kl_ramp * all_kl)
    return {"recon": recon, "l2": l2, "ic_kl": ic_kl, "co_kl": co_kl, "total": total}


# ------------------------------------------------------------------ optimiser


def clip_gradients(grads: Mapping[str, Tensor], max_norm: float) -> dict[str, Tensor]:
    """Scale all gradients together so that their joint norm is at most `max_norm`."""
    norm = torch.sqrt(torch.stack([(g**2).sum() for g in grads.values()]).sum())
    scale = min(1.0, max_norm / (float(norm) + 1e-6))
    return {name: g * scale for name, g in grads.items()}


def adamw_step(
    param: Tensor,
    grad: Tensor,
    state: tuple[Tensor, Tensor],
    step: int,
    hps: HyperParams,
    lr: float,
    weight_decay: float,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """One AdamW update; `state` holds both moments, `step` counts from 1."""
    beta1, beta2 = hps["lr_adam_beta1"], hps["lr_adam_beta2"]
    first = beta1 * state[0] + (1 - beta1) * grad
    second = beta2 * state[1] + (1 - beta2) * grad**2
    first_hat, second_hat = first / (1 - beta1**step), second / (1 - beta2**step)
    decayed = param * (1 - lr * weight_decay)
    update = lr * first_hat / (torch.sqrt(second_hat) + hps["lr_adam_epsilon"])
    return decayed - update, (first, second)


@dataclass
class Training:
    """A training run: parameters, AdamW's moments by name, and steps taken so far."""

    params: dict[str, Tensor]
    lr: float
    moments: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    n_steps: int = 0

    def step(
        self, grads: Mapping[str, Tensor], hps: HyperParams, weight_decay: float, max_norm: float
    ) -> None:
        """Clip the gradients and update the parameters."""
        self.n_steps += 1
        for name, grad in clip_gradients(grads, max_norm).items():
            nothing = (torch.zeros_like(grad), torch.zeros_like(grad))
            self.params[name], self.moments[name] = adamw_step(
                self.params[name],
                grad,
                self.moments.get(name, nothing),
                self.n_steps,
                hps,
                self.lr,
                weight_decay,
            )


def train(
    params: Params,
    hps: HyperParams,
    batch: Batch,
    ramp_value: float,
    n_steps: int,
    weight_decay: float,
    max_norm: float = 200.0,
) -> dict[str, Tensor]:
    """Parameters after `n_steps` full-batch steps with posterior means, at constant ramps."""
    run = Training(dict(params), hps["lr_init"])
    for _ in range(n_steps):
        run.step(gradients(run.params, hps, batch, ramp_value), hps, weight_decay, max_norm)
    return run.params


def gradients(
    params: Params, hps: HyperParams, batch: Batch, ramp_value: float
) -> dict[str, Tensor]:
    """Gradients of `total` at posterior means for every parameter that it reaches and is trained.

    ``bias_hh`` and the IC prior's variance are fixed.
    """
    trained = {n for n in params if not n.endswith(("bias_hh", "ic_prior.logvar"))}
    return step_terms(params, hps, batch, trained, NO_NOISE, None, ramp_value, ramp_value)[1]


def step_terms(
    params: Params,
    hps: HyperParams,
    batch: Batch,
    trained: set[str],
    noise: Noise,
    kl_eps: Tensor | None,
    l2_ramp: float,
    kl_ramp: float,
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Terms of the objective, and its gradients for the `trained` parameters that it reaches."""
    leaves = {
        name: p.detach().clone().requires_grad_(name in trained) for name, p in params.items()
    }
    outputs = forward(leaves, hps, batch, noise)
    terms = losses(leaves, hps, batch, outputs, l2_ramp, kl_eps, kl_ramp)
    wanted = [name for name in leaves if name in trained]
    grads = torch.autograd.grad(
        terms["total"], [leaves[name] for name in wanted], allow_unused=True
    )
    numbers = {name: term.item() for name, term in terms.items()}
    return numbers, {n: g for n, g in zip(wanted, grads, strict=True) if g is not None}


class Plateau:
    """Learning rate that falls by a factor after more than `patience` epochs without a new best."""

    def __init__(self) -> None:
        self.best, self.n_bad = math.inf, 0

    def next_rate(self, lr: float, value: float, hps: HyperParams) -> float:
        """Learning rate of the next epoch, after an epoch that ended with `value`."""
        self.n_bad = 0 if value < self.best else self.n_bad + 1
        self.best = min(self.best, value)
        if self.n_bad <= hps["lr_patience"]:
            return lr
        self.n_bad = 0
        return max(lr * hps["lr_decay"], hps["lr_stop"])


@dataclass(frozen=True)
class Epoch:
    """What an epoch gave: terms of each training step and of validation."""

    steps: list[dict[str, float]]
    valid: dict[str, float]
    smoothed: float
    lr: float


def fit(
    run: Training,
    hps: HyperParams,
    epochs: Sequence[tuple[Sequence[Batch], Batch]],
    trained: set[str],
    draw: Callable[[Batch], tuple[Noise, Tensor | None]],
    first_epoch: int = 0,
    max_norm: float = 200.0,
) -> list[Epoch]:
    """Train on each epoch's batches, then validate; `draw` gives the noise of a batch."""
    done: list[Epoch] = []
    plateau = Plateau()
    for number, (batches, valid_batch) in enumerate(epochs, first_epoch):
        l2 = ramp(number, hps["l2_start_epoch"], hps["l2_increase_epoch"])
        ramps = l2, ramp(number, hps["kl_start_epoch"], hps["kl_increase_epoch"])
        lr, steps = run.lr, []
        for batch in batches:
            numbers, grads = step_terms(run.params, hps, batch, trained, *draw(batch), *ramps)
            run.step(grads, hps, hps["weight_decay"] * l2, max_norm)
            steps.append(numbers)
        noise, kl_eps = draw(valid_batch)
        outputs = forward(run.params, hps, valid_batch, noise)
        terms = losses(run.params, hps, valid_batch, outputs, ramps[0], kl_eps, ramps[1])
        valid = {name: term.item() for name, term in terms.items()}
        smoothed = valid["recon"]
        if done:
            smoothed = 0.3 * done[-1].smoothed + 0.7 * smoothed
        if hps["lr_scheduler"]:
            run.lr = plateau.next_rate(run.lr, smoothed, hps)
        done.append(Epoch(steps, valid, smoothed, lr))
    return done
