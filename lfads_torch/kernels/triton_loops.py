"""The loops over bins in Triton, for float32 on a GPU of NVIDIA: see `torch_loops`.

One program takes `TRIALS` trials of one net through all bins, so a call is one launch. States and
gates of a bin go through global memory, where other threads of the program read them after a
barrier: what a program wrote is in its cache. Weights are read in tiles at every bin. 100 units
(120 kB) stay in the first cache of a processor, 200 units (480 kB) in the second, and no size is
too large; weights kept in shared memory would end at 128 units, or 64 on smaller cards.
"""

from __future__ import annotations

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import torch_loops
from .c_library import last_contiguous
from .triton_cells import (
    TRIALS,
    at,
    cell,
    cell_backward,
    load,
    matrix,
    plus_product,
    product,
    store,
    wide,
    width,
)
from .types import (
    DecoderInputs,
    DecoderSaved,
    DecoderStates,
    GRUInputs,
    GRUSaved,
    GRUStates,
    Options,
)

IS_INTERPRETED = triton.knobs.runtime.interpret


def why_not(like: Tensor) -> str:
    """Return why these loops cannot work on tensors such as `like`; empty where they can."""
    if IS_INTERPRETED and like.device.type == "cpu":
        return ""
    if like.device.type != "cuda":
        return f"they need a GPU of NVIDIA, and the tensors are on {like.device.type}"
    if like.dtype != torch.float32:
        return f"they are for float32, not for {like.dtype}"
    return ""


def _precision() -> str:
    """Return how products of float32 round: as torch's do, without or with TF32."""
    # Three products of TF32 leave out 2 ** -22 of the operands. One of float32 takes no
    # tensor core, and its operands so many registers that 100 units spill.
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"


@triton.jit
@no_type_check
def _gru(
    p,
    states,
    saved,
    x_strides,
    n_bins,
    n_trials,
    clip,
    EACH: tl.constexpr,
    N: tl.constexpr,
    TWO_WAY: tl.constexpr,
    KEEP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Run a tile of trials of one GRU; the arguments are as in `clipped_gru_forward`."""
    net, size = tl.program_id(1).to(tl.int64), n_trials * N
    trials = tl.program_id(0) * TRIALS, n_trials
    x = p.x_proj + (net // EACH) * x_strides[0] + (net % EACH) * x_strides[1]
    before, w_hh = p.h0 + net * size, p.w_hh + net * 3 * N * N
    is_backward = TWO_WAY and net % 2 == 1
    for i in range(n_bins):
        t = n_bins - 1 - i if is_backward else i
        here = net * n_bins + t
        # Without a backward pass, all bins share the room of one.
        slot = net * n_bins + i if KEEP else net
        state = states.states + here * size
        cell(
            (x + wide(t) * x_strides[2], x_strides[3]),
            None,
            None,
            None,
            before,
            w_hh,
            saved.gates + slot * 2 * size,
            saved.cand + slot * size,
            state,
            trials,
            clip,
            N,
            0,
            PRECISION,
        )
        before = state


@triton.jit
@no_type_check
def _gru_backward(
    grad_h,
    outside,
    p,
    states,
    saved,
    grad_x,
    x_strides,
    reset,
    n_bins,
    n_trials,
    clip,
    EACH: tl.constexpr,
    N: tl.constexpr,
    TWO_WAY: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Run a tile of trials of one GRU backward; `grad_h` begins as the last state's gradient."""
    net, size = tl.program_id(1).to(tl.int64), n_trials * N
    trials = tl.program_id(0) * TRIALS, n_trials
    grad_x += (net // EACH) * x_strides[0] + (net % EACH) * x_strides[1]
    w_hh = p.w_hh + net * 3 * N * N
    is_backward = TWO_WAY and net % 2 == 1
    for k in range(n_bins):
        i = n_bins - 1 - k
        t = k if is_backward else i
        here, slot = (net * n_bins + t) * size, (net * n_bins + i) * size
        earlier = here + (size if is_backward else -size)
        before = states + earlier
        if i == 0:
            before = p.h0 + net * size
        cell_backward(
            grad_h + net * size,
            at(outside, here),
            before,
            w_hh,
            saved.gates + 2 * slot,
            saved.cand + slot,
            states + here,
            (grad_x + wide(t) * x_strides[2], x_strides[3]),
            reset + here,
            trials,
            clip,
            N,
            PRECISION,
        )


@triton.jit
@no_type_check
def _decoder(
    p,
    states,
    saved,
    con_strides,
    gen_strides,
    n_bins,
    n_trials,
    clip,
    C: tl.constexpr,
    G: tl.constexpr,
    F: tl.constexpr,
    U: tl.constexpr,
    KEEP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Run a tile of trials of one decoder; the arguments are as in `decoder_forward`."""
    net = tl.program_id(1).to(tl.int64)
    trials = tl.program_id(0) * TRIALS, n_trials
    w_fac = p.w_fac + net * F * G, 1, G
    con, gen = p.con_h0 + net * n_trials * C, p.gen_h0 + net * n_trials * G
    fac = saved.first + net * n_trials * F
    # One bin more than the others have: entry 0 belongs to the initial state.
    gen_mask = matrix(p.gen_mask, net * (n_bins + 1) * n_trials, G)
    product((fac, F), None, None, (gen, G), gen_mask, w_fac, trials, G, F, PRECISION)
    for t in range(n_bins):
        here = (net * n_bins + t) * n_trials
        slot = here if KEEP else net * n_trials
        state = states.con_states + here * C
        cell(
            (p.con_proj + net * con_strides[0] + wide(t) * con_strides[1], con_strides[2]),
            (fac, F),
            matrix(p.fac_mask, here, F),
            p.w_con_fac + net * 3 * C * F,
            con,
            p.w_con_hh + net * 3 * C * C,
            saved.con_gates + slot * 2 * C,
            saved.con_cand + slot * C,
            state,
            trials,
            clip,
            C,
            F,
            PRECISION,
        )
        con = state
        co, u = (states.co_params + here * 2 * U, 2 * U), (states.inputs + here * U, U)
        bias, w_co = (p.b_co + net * 2 * U, 0), (p.w_co + net * 2 * U * C, 1, C)
        product(co, bias, None, (con, C), None, w_co, trials, C, 2 * U, PRECISION)
        columns = tl.arange(0, width(U, 1024))
        tile = load(co, trials, columns, U)
        if p.noise is not None:
            std = tl.exp(load((co[0] + U, 2 * U), trials, columns, U) * 0.5)
            tile += std * load((p.noise + here * U, U), trials, columns, U)
        store(u, trials, columns, U, tile)
        tl.debug_barrier()
        state = states.gen_states + here * G
        cell(
            (p.gen_proj + net * gen_strides[0] + wide(t) * gen_strides[1], gen_strides[2]),
            u,
            None,
            p.w_gen_u + net * 3 * G * U,
            gen,
            p.w_gen_hh + net * 3 * G * G,
            saved.gen_gates + slot * 2 * G,
            saved.gen_cand + slot * G,
            state,
            trials,
            clip,
            G,
            U,
            PRECISION,
        )
        gen, fac = state, states.factors + here * F
        gen_mask = matrix(p.gen_mask, here + (net + 1) * n_trials, G)
        product((fac, F), None, None, (gen, G), gen_mask, w_fac, trials, G, F, PRECISION)


@triton.jit
@no_type_check
def _decoder_backward(
    grad,
    outside,
    p,
    states,
    saved,
    n_bins,
    n_trials,
    clip,
    C: tl.constexpr,
    G: tl.constexpr,
    F: tl.constexpr,
    U: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Run a tile of trials of one decoder backward.

    `grad` are `torch_loops.DecoderGradients`; those of initial states begin as 0, those of factors
    and inferred inputs as the gradients from outside.
    """
    net = tl.program_id(1).to(tl.int64)
    trials = tl.program_id(0) * TRIALS, n_trials
    w_fac, w_co = (p.w_fac + net * F * G, G, 1), (p.w_co + net * 2 * U * C, C, 1)
    w_gen_u, w_con_fac = (p.w_gen_u + net * 3 * G * U, U, 1), (p.w_con_fac + net * 3 * C * F, F, 1)
    grad_gen, grad_con = grad.gen_h0 + net * n_trials * G, grad.con_h0 + net * n_trials * C
    by_gen, by_con = (grad_gen, G), (grad_con, C)
    for k in range(n_bins):
        t = n_bins - 1 - k
        here = (net * n_bins + t) * n_trials
        # Of the factors that the bin reads; those that it makes follow, with one bin more in all.
        before = here + net * n_trials
        after = before + n_trials
        con = states.con_states + (here - n_trials) * C
        gen = states.gen_states + (here - n_trials) * G
        if t == 0:
            con, gen = p.con_h0 + net * n_trials * C, p.gen_h0 + net * n_trials * G
        mask, fac = matrix(p.gen_mask, after, G), (grad.factors + after * F, F)
        product(by_gen, by_gen, mask, fac, None, w_fac, trials, F, G, PRECISION)
        gen_x = grad.gen_x + here * 3 * G, 3 * G
        cell_backward(
            grad_gen,
            at(outside.gen_states, here * G),
            gen,
            p.w_gen_hh + net * 3 * G * G,
            saved.gen_gates + here * 2 * G,
            saved.gen_cand + here * G,
            states.gen_states + here * G,
            gen_x,
            grad.gen_reset + here * G,
            trials,
            clip,
            G,
            PRECISION,
        )
        columns = tl.arange(0, width(U, 1024))
        tile = tl.zeros([TRIALS, width(U, 1024)], grad_gen.dtype.element_ty)
        tile = plus_product(tile, gen_x, None, w_gen_u, trials, columns, 3 * G, U, PRECISION)
        if outside.inputs is not None:
            tile += load((outside.inputs + here * U, U), trials, columns, U)
        mean = grad.co + here * 2 * U, 2 * U
        store(mean, trials, columns, U, load(mean, trials, columns, U) + tile)
        if p.noise is not None:
            places = states.co_params + here * 2 * U + U, 2 * U
            tile *= tl.exp(load(places, trials, columns, U) * 0.5) * 0.5
            tile *= load((p.noise + here * U, U), trials, columns, U)
            logvar = mean[0] + U, 2 * U
            store(logvar, trials, columns, U, load(logvar, trials, columns, U) + tile)
        tl.debug_barrier()
        product(by_con, by_con, None, mean, None, w_co, trials, 2 * U, C, PRECISION)
        con_x = grad.con_x + here * 3 * C, 3 * C
        cell_backward(
            grad_con,
            at(outside.con_states, here * C),
            con,
            p.w_con_hh + net * 3 * C * C,
            saved.con_gates + here * 2 * C,
            saved.con_cand + here * C,
            states.con_states + here * C,
            con_x,
            grad.con_reset + here * C,
            trials,
            clip,
            C,
            PRECISION,
        )
        mask, fac = matrix(p.fac_mask, here, F), (grad.factors + before * F, F)
        product(fac, fac, mask, con_x, None, w_con_fac, trials, 3 * C, F, PRECISION)
    first = net * (n_bins + 1) * n_trials
    mask, fac = matrix(p.gen_mask, first, G), (grad.factors + first * F, F)
    product(by_gen, by_gen, mask, fac, None, w_fac, trials, F, G, PRECISION)


# ---- on the host ---------------------------------------------------------------------------------


def launch(kernel: Any, grid: tuple[int, int], *args: Any, **options: Any) -> None:
    """Launch a kernel."""
    kernel[grid](*args, **options)


def _run(kernel: Any, like: Tensor, *args: Any, **sizes: Any) -> None:
    """Launch a kernel over tiles of trials and nets of tensors like `like` (K, B, .)."""
    n_nets, n_trials = like.shape[:2]
    grid = triton.cdiv(n_trials, TRIALS.value), n_nets
    # One stage: what the next turn of a loop reads is fetched no earlier, because this loop has
    # not been watched on a GPU with copies under way while other threads write. All registers:
    # ptxas alone makes room for more programs and spills up to 256 bytes of a thread.
    launch(kernel, grid, *args, **sizes, PRECISION=_precision(), num_stages=1, maxnreg=255)


def clipped_gru_forward(inputs: GRUInputs, options: Options) -> tuple[GRUStates, GRUSaved]:
    """As `lfads_torch.kernels.torch_loops.clipped_gru_forward`."""
    x_proj = last_contiguous(inputs.x_proj)
    inputs = GRUInputs(x_proj, inputs.h0.contiguous(), inputs.w_hh.contiguous())
    states, saved = torch_loops.gru_room(inputs, options.keep)
    _run(
        _gru,
        inputs.h0,
        *(inputs, states, saved, x_proj.stride()[:4]),
        *(*x_proj.shape[2:4], options.clip),
        EACH=x_proj.shape[1],
        N=inputs.h0.shape[-1],
        TWO_WAY=options.two_way,
        KEEP=options.keep,
    )
    return torch_loops.fill_last(states, options.two_way), saved


def clipped_gru_backward(
    grad: GRUStates, inputs: GRUInputs, states: GRUStates, saved: GRUSaved, options: Options
) -> GRUInputs:
    """As `lfads_torch.kernels.torch_loops.clipped_gru_backward`."""
    inputs = inputs._replace(h0=inputs.h0.contiguous(), w_hh=inputs.w_hh.contiguous())
    bins, saved = states.states.contiguous(), GRUSaved(*(x.contiguous() for x in saved))
    grad_x, reset = torch_loops.gru_gradient(inputs), torch.empty_like(bins)
    grad_h = torch.zeros_like(inputs.h0)
    if grad.last is not None:
        grad_h.copy_(grad.last)
    outside = None if grad.states is None else grad.states.contiguous()
    _run(
        _gru_backward,
        grad_h,
        *(grad_h, outside, inputs, bins, saved, grad_x),
        *(grad_x.stride()[:4], reset, *bins.shape[1:3], options.clip),
        EACH=grad_x.shape[1],
        N=bins.shape[-1],
        TWO_WAY=options.two_way,
    )
    return torch_loops.every_gru_gradient(grad_x, grad_h, inputs, bins, reset, options.two_way)


def _contiguous(p: DecoderInputs) -> DecoderInputs:
    """Return all but the input products without gaps."""
    tensors = {
        name: x if x is None or name.endswith("_proj") else x.contiguous()
        for name, x in p._asdict().items()
    }
    return DecoderInputs(**tensors)


def _decoder_sizes(p: DecoderInputs) -> dict[str, int]:
    n_factors, n_units = p.w_fac.shape[1:]
    return {"C": p.w_con_hh.shape[2], "G": n_units, "F": n_factors, "U": p.w_gen_u.shape[2]}


def decoder_forward(p: DecoderInputs, options: Options) -> tuple[DecoderStates, DecoderSaved]:
    """As `lfads_torch.kernels.torch_loops.decoder_forward`."""
    n_bins, n_trials = p.con_proj.shape[1:3]
    gen_proj = p.gen_proj.expand(-1, n_bins, n_trials, -1)
    p = _contiguous(p)._replace(
        con_proj=last_contiguous(p.con_proj), gen_proj=last_contiguous(gen_proj)
    )
    states, saved = torch_loops.decoder_room(p, options.keep)
    _run(
        _decoder,
        p.con_h0,
        *(p, states, saved),
        *(p.con_proj.stride()[:3], p.gen_proj.stride()[:3], n_bins, n_trials, options.clip),
        **_decoder_sizes(p),
        KEEP=options.keep,
    )
    return states, saved


def decoder_backward(
    grad: DecoderStates,
    p: DecoderInputs,
    states: DecoderStates,
    saved: DecoderSaved,
    options: Options,
) -> DecoderInputs:
    """As `lfads_torch.kernels.torch_loops.decoder_backward`."""
    p = _contiguous(p)
    states = DecoderStates(*(x.contiguous() for x in states))
    saved = DecoderSaved(*(x.contiguous() for x in saved))
    outside = DecoderStates(*(None if x is None else x.contiguous() for x in grad))
    gradients = torch_loops.decoder_gradients(outside.co_params, p, states, saved)
    for x in (gradients.con_h0, gradients.gen_h0, gradients.factors):
        x.zero_()
    if outside.factors is not None:
        gradients.factors[:, 1:] = outside.factors
    before = torch_loops.after
    if p.fac_mask is not None:
        torch.mul(before(saved.first, states.factors[:, :-1]), p.fac_mask, out=gradients.fac_in)
    if p.gen_mask is not None:
        torch.mul(before(p.gen_h0, states.gen_states), p.gen_mask, out=gradients.gen_in)
    n_bins, n_trials = states.inputs.shape[1:3]
    _run(
        _decoder_backward,
        p.con_h0,
        *(gradients, outside, p, states, saved),
        *(n_bins, n_trials, options.clip),
        **_decoder_sizes(p),
    )
    return torch_loops.weight_gradients(gradients, p, states)
