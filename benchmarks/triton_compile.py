"""What the compilers make of the loops in Triton at the shapes of the benchmarks; needs no GPU.

For each kernel and architecture: the registers of a thread, the bytes of a thread that did not fit
registers and are spilled to memory, and the bytes of shared memory of a program.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from itertools import product
from typing import Any, NamedTuple

import torch
import triton
from shapes import SHAPES, Shape
from triton.backends.compiler import GPUTarget

from lfads_torch.kernels import triton_loops
from lfads_torch.kernels.types import DecoderInputs, GRUInputs, Options

ARCHITECTURES = (80, 90, 100)
OPTIONS = Options(clip=5.0, two_way=True, keep=True, loops="triton")


class _Driver:
    """Stand in for a card of one architecture, so far as compiling asks for it."""

    def __init__(self, architecture: int) -> None:
        self.target = GPUTarget("cuda", architecture, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch

    def get_current_stream(self, device: int) -> int:
        return 0


class Use(NamedTuple):
    """What a compiled kernel takes of a processor."""

    kernel: str
    registers: int  # of a thread
    spilled: int  # bytes of a thread, stored and loaded again
    shared: int  # bytes of a program


def compiled(call: Callable[[], Any], architecture: int, known: dict[str, Use]) -> list[Use]:
    """Compile what a call would launch, launch nothing, and read what ptxas reports."""
    uses: list[Use] = []

    def launch(kernel: Any, grid: Any, *args: Any, **options: Any) -> None:
        with redirect_stdout(StringIO()) as report:
            built = kernel.warmup(*args, **options, grid=grid)
        # Without a report, the kernel is the same as at an earlier shape.
        if text := report.getvalue():
            spilled = sum(int(n) for n in re.findall(r"(\d+) bytes spill", text))
            registers = int(re.findall(r"Used (\d+) registers", text)[0])
            known[built.hash] = Use(built.name, registers, spilled, built.metadata.shared)
        uses.append(known[built.hash])

    real, triton_loops.launch = triton_loops.launch, launch
    triton.runtime.driver.set_active(_Driver(architecture))
    # A kernel of the cache has no report.
    triton.knobs.compilation.always_compile = triton.knobs.nvidia.dump_ptxas_log = True
    try:
        call()
    finally:
        triton_loops.launch = real
    return uses


def _empty(*sizes: int) -> torch.Tensor:
    return torch.empty(*sizes, device="meta")


def encoder(n_units: int, n_bins: int, n_trials: int) -> None:
    """Run both directions of an encoder forward and backward, on tensors without numbers."""
    inputs = GRUInputs(
        _empty(1, 2, n_bins, n_trials, 3 * n_units),
        _empty(2, n_trials, n_units),
        _empty(2, 3 * n_units, n_units),
    )
    states, saved = triton_loops.clipped_gru_forward(inputs, OPTIONS)
    triton_loops.clipped_gru_backward(states, inputs, states, saved, OPTIONS)


def decoder(shape: Shape) -> None:
    """Run a decoder in training forward and backward, on tensors without numbers."""
    n_con, n_gen, n_fac, n_inputs = shape.con, shape.gen, shape.fac, shape.co
    bins = 1, shape.bins, shape.batch
    inputs = DecoderInputs(
        con_proj=_empty(*bins, 3 * n_con),
        gen_proj=_empty(1, 1, 1, 3 * n_gen),
        con_h0=_empty(1, shape.batch, n_con),
        gen_h0=_empty(1, shape.batch, n_gen),
        w_con_fac=_empty(1, 3 * n_con, n_fac),
        w_con_hh=_empty(1, 3 * n_con, n_con),
        w_co=_empty(1, 2 * n_inputs, n_con),
        b_co=_empty(1, 2 * n_inputs),
        w_gen_u=_empty(1, 3 * n_gen, n_inputs),
        w_gen_hh=_empty(1, 3 * n_gen, n_gen),
        w_fac=_empty(1, n_fac, n_gen),
        noise=_empty(*bins, n_inputs),
        fac_mask=_empty(*bins, n_fac),
        gen_mask=_empty(1, shape.bins + 1, shape.batch, n_gen),
    )
    states, saved = triton_loops.decoder_forward(inputs, OPTIONS)
    triton_loops.decoder_backward(states, inputs, states, saved, OPTIONS)


def uses(shape: Shape, architecture: int, known: dict[str, Use]) -> Iterator[Use]:
    """Compile all kernels of a training step."""
    for n_units in sorted({shape.ic_enc, shape.ci_enc}):
        run = partial(encoder, n_units, shape.bins_read, shape.batch)
        for use in compiled(run, architecture, known):
            yield use._replace(kernel=f"{use.kernel} of {n_units}")
    yield from compiled(partial(decoder, shape), architecture, known)


def main() -> None:
    """Compile and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, action="append", help="default: all")
    parser.add_argument(
        "--architecture", type=int, action="append", help="80 is sm_80; default: 80, 90 and 100"
    )
    parser.add_argument("--tf32", action="store_true", help="products of TF32 instead of float32")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    if triton_loops.IS_INTERPRETED:
        parser.error("TRITON_INTERPRET is set, so that nothing is compiled; unset it")
    torch.set_float32_matmul_precision("high" if args.tf32 else "highest")
    known: dict[str, Use] = {}
    rows = []
    line = "{shape:10}{architecture:14}{kernel:26}{registers:>10}{spilled:>9}{shared:>8}"
    if not args.json:
        print(line.format(**{name: name for name in ("shape", "architecture", *Use._fields)}))
    for name, number in product(args.shape or SHAPES, args.architecture or ARCHITECTURES):
        for use in uses(SHAPES[name], number, known):
            rows.append({"shape": name, "architecture": f"sm_{number}", **use._asdict()})
            if not args.json:
                print(line.format(**rows[-1]), flush=True)
    if args.json:
        facts = {"triton": triton.__version__, "tf32": args.tf32, "kernels": rows}
        print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
