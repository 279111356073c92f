"""The loops in Triton: interpreted on the CPU, compiled for GPUs, and where they cannot be used.

`test_against_oracle` and `test_recurrent` run them, too, where they are interpreted. Nothing here
runs on a GPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lfads_torch.kernels import DecoderInputs, get_kernels, recurrent
from tests.kernels import WHY_NO_TRITON
from tests.kernels.test_c_library import decoder_inputs

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "triton_compile.py"
interpreted = pytest.mark.skipif(bool(WHY_NO_TRITON), reason=f"{WHY_NO_TRITON}: make test-triton")


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape) / shape[-1] ** 0.5


def compare(name: str, inputs: list[Tensor | None], *options: object) -> None:
    """Compare values and gradients, and values without a gradient, with the plain loop."""
    results, weights = [], None
    # The numbers of the loops in Triton are of any width where they are interpreted.
    inputs = [None if x is None else x.double() for x in inputs]
    for kernel in ("reference", "triton"):
        leaves = [None if x is None else x.clone().requires_grad_() for x in inputs]
        trained = [x for x in leaves[:11] if x is not None]
        run = getattr(get_kernels(kernel), name)

        def call(tensors: list[Tensor | None], run: object = run) -> tuple[Tensor, ...]:
            given = [DecoderInputs(*tensors)] if name == "decoder" else tensors
            return run(*given, *options)  # type: ignore[operator]

        states = call(leaves)
        weights = weights or [torch.randn_like(x) for x in states]
        total = sum((x * w).sum() for x, w in zip(states, weights, strict=True))
        results.append([*states, *torch.autograd.grad(total, trained)])
        with torch.no_grad():
            results[-1] += call(inputs)
    for got, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)


@interpreted
@pytest.mark.parametrize("two_way", [False, True])
def test_gru_of_more_units_and_trials_than_a_tile(two_way: bool) -> None:
    torch.manual_seed(0)
    inputs = [randn(2, 3, 19, 3 * 70), 0.3 * randn(2, 19, 70), randn(2, 3 * 70, 70)]
    compare("clipped_gru", inputs, 0.5, two_way)


@interpreted
def test_decoder_of_more_units_and_trials_than_a_tile() -> None:
    torch.manual_seed(0)
    compare("decoder", decoder_inputs(1, 2, 18, (33, 70, 40, 3), random=True), 0.5)


@pytest.mark.skipif(not WHY_NO_TRITON, reason="Triton is interpreted here")
def test_without_a_gpu_the_reason_is_said_once_and_the_cpu_computes() -> None:
    recurrent._warn.cache_clear()
    inputs = randn(1, 3, 2, 12), randn(1, 2, 4), randn(1, 12, 4)
    with pytest.warns(UserWarning, match="'triton', which cannot be used: (it|they) need") as seen:
        states = [get_kernels("triton").clipped_gru(*inputs, 5.0).states for _ in range(2)]
    assert len(seen) == 1
    assert torch.equal(states[0], get_kernels("auto").clipped_gru(*inputs, 5.0).states)


@interpreted
def test_compiled_for_gpus_nothing_spills() -> None:
    command = [sys.executable, str(BENCHMARK), "--shape", "mc_maze", "--architecture", "90"]
    environment = {name: x for name, x in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [*command, "--json"], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    kernels = json.loads(done.stdout)["kernels"]
    assert {row["kernel"].split()[0] for row in kernels} == {
        *("_gru", "_gru_backward", "_decoder", "_decoder_backward")
    }
    assert not [row for row in kernels if row["spilled"]]
