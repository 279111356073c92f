"""Tiles of matrices, their products, and a bin of a clipped GRU, in Triton.

A matrix is a pair of its address and the stride of its rows, which are trials; weights are a triple
of address, stride along the entries of what they multiply, and stride along those of the result.
Either is None where it is not given. Each product is in tiles that are padded with zeros, because
`tl.dot` has least sizes.
"""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl

# The least number of rows of a product on tensor cores. Few trials a program means many programs:
# 256 trials in both directions are 32 of them, on a card with 108 or 132 processors.
TRIALS = tl.constexpr(16)

# `no_type_check` keeps the checks of annotations that tests add out of what Triton compiles.


@triton.constexpr_function
@no_type_check
def width(size, most):
    """Return the width of tiles over an axis: a power of two, 16 or more as `tl.dot` wants."""
    return min(most, max(16, triton.next_power_of_2(size)))


@triton.jit
@no_type_check
def wide(number):
    """Return a number of bins in 64 bits: offsets of many samples pass 2 ** 31."""
    return tl.cast(number, tl.int64)


@triton.jit
@no_type_check
def at(pointer, offset):
    """Return an address further on; None, for a tensor that is not given, stays None."""
    if pointer is None:
        return None
    else:
        return pointer + offset


@triton.jit
@no_type_check
def matrix(pointer, first_row, n_columns):
    """Return a matrix without gaps from a row on; None for a tensor that is not given."""
    if pointer is None:
        return None
    else:
        return pointer + first_row * n_columns, n_columns


@triton.jit
@no_type_check
def _tile(matrix, trials, columns, n_columns):
    """Return the addresses of a tile of a matrix, and which are inside the matrix."""
    first, n_trials = trials
    rows = tl.arange(0, TRIALS)
    inside = (rows < n_trials - first)[:, None] & (columns < n_columns)[None, :]
    start = matrix[0] + first.to(tl.int64) * matrix[1]
    return start + rows[:, None] * matrix[1] + columns[None, :], inside


@triton.jit
@no_type_check
def load(matrix, trials, columns, n_columns):
    """Load a tile of a matrix; entries past its ends are 0."""
    places, inside = _tile(matrix, trials, columns, n_columns)
    return tl.load(places, inside, other=0.0)


@triton.jit
@no_type_check
def store(matrix, trials, columns, n_columns, tile):
    """Store a tile of a matrix, and nothing past its ends."""
    places, inside = _tile(matrix, trials, columns, n_columns)
    tl.store(places, tile, inside)


@triton.jit
@no_type_check
def plus_product(
    tile,
    left,
    factor,
    weights,
    trials,
    columns,
    n_left: tl.constexpr,
    n_columns: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Add to a tile the product of `left`, entry by entry times `factor`, and weights."""
    STEP: tl.constexpr = width(n_left, 32)
    for start in range(0, n_left, STEP):
        inner = start + tl.arange(0, STEP)
        x = load(left, trials, inner, n_left)
        if factor is not None:
            x *= load(factor, trials, inner, n_left)
        inside = (inner < n_left)[:, None] & (columns < n_columns)[None, :]
        places = inner[:, None] * weights[1] + columns[None, :] * weights[2]
        w = tl.load(weights[0] + places, inside, other=0.0)
        tile = tl.dot(x, w, tile, input_precision=PRECISION, out_dtype=tile.dtype)
    return tile


@triton.jit
@no_type_check
def product(
    out,
    first,
    scale,
    left,
    factor,
    weights,
    trials,
    n_left: tl.constexpr,
    n_columns: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Store the sum of `first` and of `scale` times a product, as `plus_product` has it."""
    WIDTH: tl.constexpr = width(n_columns, 64)
    for start in range(0, n_columns, WIDTH):
        columns = start + tl.arange(0, WIDTH)
        tile = tl.zeros([TRIALS, WIDTH], out[0].dtype.element_ty)
        tile = plus_product(
            tile, left, factor, weights, trials, columns, n_left, n_columns, PRECISION
        )
        if scale is not None:
            tile *= load(scale, trials, columns, n_columns)
        if first is not None:
            tile += load(first, trials, columns, n_columns)
        store(out, trials, columns, n_columns, tile)
    tl.debug_barrier()


@triton.jit
@no_type_check
def cell(
    x,
    more,
    more_mask,
    w_more,
    before,
    w_hh,
    gates,
    cand,
    state,
    trials,
    clip,
    N: tl.constexpr,
    M: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Run one bin of a clipped GRU of N units; `more` are M inputs whose product `x` lacks."""
    WIDTH: tl.constexpr = width(N, 64)
    for start in range(0, 2 * N, WIDTH):
        columns = start + tl.arange(0, WIDTH)
        tile = load(x, trials, columns, 2 * N)
        if more is not None:
            tile = plus_product(
                tile, more, more_mask, (w_more, 1, M), trials, columns, M, 2 * N, PRECISION
            )
        tile = plus_product(
            tile, (before, N), None, (w_hh, 1, N), trials, columns, N, 2 * N, PRECISION
        )
        store((gates, 2 * N), trials, columns, 2 * N, tl.sigmoid(tile))
    tl.debug_barrier()
    for start in range(0, N, WIDTH):
        columns = start + tl.arange(0, WIDTH)
        tile = load((x[0] + 2 * N, x[1]), trials, columns, N)
        if more is not None:
            w_n = w_more + 2 * N * M, 1, M
            tile = plus_product(tile, more, more_mask, w_n, trials, columns, M, N, PRECISION)
        # The reset gate acts before the product.
        reset, w_n = (gates + N, 2 * N), (w_hh + 2 * N * N, 1, N)
        tile = plus_product(tile, (before, N), reset, w_n, trials, columns, N, N, PRECISION)
        c = 2 * tl.sigmoid(2 * tile) - 1  # tanh
        z = load((gates, 2 * N), trials, columns, N)
        h = load((before, N), trials, columns, N)
        h = tl.minimum(tl.maximum(c + z * (h - c), -clip), clip)
        store((cand, N), trials, columns, N, c)
        store((state, N), trials, columns, N, h)
    tl.debug_barrier()


@triton.jit
@no_type_check
def cell_backward(
    grad_h,
    outside,
    before,
    w_hh,
    gates,
    cand,
    state,
    grad_x,
    reset,
    trials,
    clip,
    N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Turn the gradient of a bin's state, in `grad_h`, into that of the state before it."""
    WIDTH: tl.constexpr = width(N, 64)
    grad_z, grad_r, grad_c = grad_x, (grad_x[0] + N, grad_x[1]), (grad_x[0] + 2 * N, grad_x[1])
    for start in range(0, N, WIDTH):
        columns = start + tl.arange(0, WIDTH)
        grad = load((grad_h, N), trials, columns, N)
        if outside is not None:
            grad += load((outside, N), trials, columns, N)
        # A clipped state passes no gradient on.
        is_free = tl.abs(load((state, N), trials, columns, N)) < clip
        grad = tl.where(is_free, grad, 0.0)
        h = load((before, N), trials, columns, N)
        z = load((gates, 2 * N), trials, columns, N)
        r = load((gates + N, 2 * N), trials, columns, N)
        c = load((cand, N), trials, columns, N)
        store(grad_z, trials, columns, N, grad * (h - c) * z * (1 - z))
        store(grad_c, trials, columns, N, grad * (1 - z) * (1 - c * c))
        store((reset, N), trials, columns, N, h * r)
        store((grad_h, N), trials, columns, N, grad * z)
    tl.debug_barrier()
    for start in range(0, N, WIDTH):
        columns = start + tl.arange(0, WIDTH)
        tile, w_n = tl.zeros([TRIALS, WIDTH], grad_h.dtype.element_ty), (w_hh + 2 * N * N, N, 1)
        tile = plus_product(tile, grad_c, None, w_n, trials, columns, N, N, PRECISION)
        r = load((gates + N, 2 * N), trials, columns, N)
        by_r = load((reset, N), trials, columns, N) * (1 - r)
        store(grad_r, trials, columns, N, tile * by_r)
        tile = tile * r + load((grad_h, N), trials, columns, N)
        store((grad_h, N), trials, columns, N, tile)
    tl.debug_barrier()
    before_it = (grad_h, N)
    product(before_it, before_it, None, grad_x, None, (w_hh, N, 1), trials, 2 * N, N, PRECISION)
