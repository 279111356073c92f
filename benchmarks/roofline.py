"""The matrix products of one training step, and nothing else: what a step cannot be faster than.

Counted, in float32, forward (F) and backward (D: gradient of the input, W: of the weights):

- both encoders, each direction: input product F, W over all bins at once (the data need no
  gradient); recurrent products F, D bin by bin, update and reset gate in one product and the
  candidate in another, since the reset gate acts before it; their W over all bins at once;
- the IC encoder's read-out and the map to the initial state: F, D, W;
- the controller's product with the CI encoder's output: F, D, W over all bins at once;
- controller with factors, controller recurrent (two products as above), inferred inputs,
  generator with inferred inputs, generator recurrent (two), factors: F, D bin by bin, W over all
  bins at once;
- the factors of the initial state: F, D, W;
- the read-out: F, D, W over all bins at once.

Each is one `torch.mm` into memory that is there already; what is bin by bin runs in the order of
the step, from and to another part of memory at every bin. There is one session, no read-in and no
external input. Nothing elementwise, no random number, no likelihood and no optimiser is counted.

A step of fewer and larger products (all nets of an encoder batched, say) could be faster than this.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from shapes import Shape
from torch import Tensor


@dataclass(frozen=True)
class Product:
    """(rows, k) times (k, n); `weight_gradient`: (rows, k) transposed times (rows, n)."""

    rows: int
    k: int
    n: int
    weight_gradient: bool = False

    @property
    def flops(self) -> int:
        """Floating-point operations, a multiplication and an addition each."""
        return 2 * self.rows * self.k * self.n


@dataclass(frozen=True)
class Phase:
    """Products that run in order, `bins` times over."""

    bins: int
    products: list[Product]


def phases(shape: Shape) -> list[Phase]:
    """All products of a step, in order."""
    batch, read, bins = shape.batch, shape.bins_read, shape.bins

    def recurrent(size: int) -> list[tuple[int, int]]:
        return [(size, 2 * size), (size, size)]

    def forward(rows: int, sizes: list[tuple[int, int]]) -> list[Product]:
        return [Product(rows, k, n) for k, n in sizes]

    def backward(rows: int, sizes: list[tuple[int, int]]) -> list[Product]:
        return [Product(rows, n, k) for k, n in reversed(sizes)]

    def weights(rows: int, sizes: list[tuple[int, int]]) -> list[Product]:
        return [Product(rows, n, k, weight_gradient=True) for k, n in sizes]

    nets = [shape.ic_enc, shape.ic_enc, shape.ci_enc, shape.ci_enc]
    encoder_in = [(shape.n_read, 3 * size) for size in nets]
    decoder_loop = [
        (shape.fac, 3 * shape.con),
        *recurrent(shape.con),
        (shape.con, 2 * shape.co),
        (shape.co, 3 * shape.gen),
        *recurrent(shape.gen),
        (shape.gen, shape.fac),
    ]
    start = [(2 * shape.ic_enc, 2 * shape.ic), (shape.ic, shape.gen), (shape.gen, shape.fac)]
    ci_in = [(2 * shape.ci_enc, 3 * shape.con)]
    readout = [(shape.fac, shape.n_recon)]
    return [
        Phase(1, forward(read * batch, encoder_in)),
        *(Phase(read, forward(batch, recurrent(size))) for size in nets),
        Phase(1, forward(batch, start) + forward(bins * batch, ci_in)),
        Phase(bins, forward(batch, decoder_loop)),
        Phase(1, forward(bins * batch, readout)),
        Phase(1, backward(bins * batch, readout) + weights(bins * batch, readout)),
        Phase(bins, backward(batch, decoder_loop)),
        Phase(1, weights(bins * batch, decoder_loop)),
        Phase(1, backward(bins * batch, ci_in) + weights(bins * batch, ci_in)),
        Phase(1, backward(batch, start) + weights(batch, start)),
        *(Phase(read, backward(batch, recurrent(size))) for size in nets),
        *(Phase(1, weights(read * batch, recurrent(size))) for size in nets),
        Phase(1, weights(read * batch, encoder_in)),
    ]


class Roofline:
    """The products of a step at a shape, ready to run.

    Products of the same sizes share memory, which is several times what the caches hold.

    Parameters
    ----------
    shape : Shape
    """

    def __init__(self, shape: Shape) -> None:
        self._buffers: dict[tuple[str, int], Tensor] = {}
        self._rows = shape.bins * shape.batch
        steps = phases(shape)
        self.flops = sum(phase.bins * p.flops for phase in steps for p in phase.products)
        self._calls = [
            self._call(product, bin_)
            for phase in steps
            for bin_ in range(phase.bins)
            for product in phase.products
        ]

    def _buffer(self, role: str, width: int, first: int, rows: int) -> Tensor:
        key = (role, width)
        if key not in self._buffers:
            self._buffers[key] = torch.rand(self._rows, width).sub_(0.5).mul_(0.1)
        return self._buffers[key][first : first + rows]

    def _call(self, product: Product, bin_: int) -> tuple[Tensor, Tensor, Tensor]:
        rows, k, n = product.rows, product.k, product.n
        left = self._buffer("input", k, bin_ * rows, rows)
        if product.weight_gradient:
            return left.T, self._buffer("output", n, 0, rows), torch.empty(k, n)
        weight = self._weight(k, n)
        return left, weight, self._buffer("output", n, bin_ * rows, rows)

    def _weight(self, k: int, n: int) -> Tensor:
        key = (f"weight {k}", n)
        if key not in self._buffers:
            self._buffers[key] = torch.randn(n, k).T / k
        return self._buffers[key]

    def run(self) -> None:
        """All products once."""
        with torch.no_grad():
            for left, right, out in self._calls:
                torch.mm(left, right, out=out)
