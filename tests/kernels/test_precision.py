"""What fewer bits in matrix products change: loss and gradients of a step.

No GPU is needed: TF32 and bfloat16 round the operands of a product, as `Rounded` does, and add up
in float32.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lfads_torch.model import LFADS
from lfads_torch.tuples import SessionBatch
from tests.small import DIMS

_aten = torch.ops.aten
PRODUCTS = (_aten.mm, _aten.bmm, _aten.addmm, _aten.baddbmm)


class Rounded(TorchDispatchMode):
    """Rounds both operands of every matrix product to so many bits behind the leading one."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.drop = 23 - bits
        self.n_products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "overloadpacket", None) in PRODUCTS:
            self.n_products += 1
            args = (*args[:-2], *map(self._rounded, args[-2:]))
        return func(*args, **(kwargs or {}))

    def _rounded(self, x: Tensor) -> Tensor:
        bits = x.contiguous().view(torch.int32)
        even = (bits >> self.drop) & 1
        return (bits + (1 << (self.drop - 1)) - 1 + even).bitwise_and(-1 << self.drop).view(x.dtype)


def step(precision: AbstractContextManager[Any], kernel: str) -> tuple[float, Tensor]:
    """Return the loss of a step and its gradient."""
    torch.manual_seed(0)
    dims = {**DIMS, "gen_dim": 40, "fac_dim": 20}
    data = torch.poisson(torch.full((16, 20, 12), 0.3))
    model = LFADS(
        encod_data_dim=12, encod_seq_len=20, recon_seq_len=20, kernel=kernel, **dims
    ).train()
    none = data.new_zeros(16, 0, 0)
    with precision:
        loss = model.training_step(SessionBatch(data, data, data[..., :0], none, none.bool()), 0)
        if isinstance(precision, Rounded):
            loss.backward()
    if not isinstance(precision, Rounded):  # as Lightning: outside of autocast
        loss.backward()
    grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return loss.item(), torch.cat(grads)


def changes(precision: AbstractContextManager[Any], kernel: str) -> tuple[float, float]:
    """Return by which parts the loss and the gradient change."""
    (loss, grad), (exact, wanted) = step(precision, kernel), step(nullcontext(), kernel)
    return abs(loss / exact - 1), float((grad - wanted).norm() / wanted.norm())


# Bounds are some three times what was measured, which docs/performance.md names.
@pytest.mark.parametrize(("bits", "of_loss", "of_grad"), [(10, 1e-4, 3e-3), (7, 1e-3, 2e-2)])
def test_rounded_operands(bits: int, of_loss: float, of_grad: float) -> None:
    """TF32 keeps 10 bits, bfloat16 keeps 7."""
    rounded = Rounded(bits)
    loss, grad = changes(rounded, "reference")  # whose products a mode sees
    print(f"{bits} bits: loss {loss:.1e}, gradient {grad:.1e}")
    assert rounded.n_products > 20 * 10  # the loops' products are among them
    assert 0 < loss < of_loss
    assert of_grad / 100 < grad < of_grad


@pytest.mark.parametrize("kernel", ["explicit", "native"])
def test_mixed_precision(kernel: str) -> None:
    """Read-in and read-out alone are of few bits."""
    loss, grad = changes(torch.autocast("cpu", torch.bfloat16), kernel)
    print(f"bf16-mixed: loss {loss:.1e}, gradient {grad:.1e}")
    assert 0 < loss < 5e-4
    assert 1e-4 < grad < 1e-2


def test_the_switch_of_a_command() -> None:
    """A variable of torch's, which also says how the loops in Triton multiply."""
    code = "import torch; print(torch.get_float32_matmul_precision())"
    environment = {**os.environ, "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}
    command = [sys.executable, "-c", code]
    assert subprocess.check_output(command, env=environment, text=True).strip() == "high"


def test_rounding_keeps_what_it_should() -> None:
    x = torch.tensor([1.0, 1 + 2**-7, 1 + 2**-8, 1 + 3 * 2**-8, -3.0, 0.0])
    assert torch.equal(Rounded(7)._rounded(x), x.bfloat16().float())
    y = torch.randn(1000)
    assert torch.equal(Rounded(7)._rounded(y), y.bfloat16().float())
