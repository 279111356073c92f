"""The operators as torch sees them: their registration, and graphs that hold them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from packaging.version import Version
from torch import Tensor, nn
from torch.func import vmap

from lfads_torch.kernels import c_library, reference
from lfads_torch.model import LFADS
from lfads_torch.tuples import SessionBatch
from tests.golden_utils import load_golden
from tests.kernels.test_c_library import decoder_inputs
from tests.small import DIMS

OPTIONS = (0.4, False, True, "native")  # clip, two_way, keep, loops
GOLDEN = load_golden("controller")


def gru_arguments() -> list[Any]:
    """Sizes of the file's encoder: both directions of one model."""
    n_trials, n_bins, _ = GOLDEN.batch[0]["encod_data"].shape
    n_units = GOLDEN.hps["ci_enc_dim"]
    x = torch.randn(1, 2, n_bins, n_trials, 3 * n_units)
    return [x, torch.randn(2, n_trials, n_units), torch.randn(2, 3 * n_units, n_units)]


def decoder_arguments() -> list[Any]:
    """Sizes of the file's decoder, with noise and masks."""
    n_trials, n_bins, _ = GOLDEN.batch[0]["recon_data"].shape
    dims = [GOLDEN.hps[name] for name in ("con_dim", "gen_dim", "fac_dim", "co_dim")]
    return decoder_inputs(1, n_bins, n_trials, (dims[0], dims[1], dims[2], dims[3]), random=True)


def backward_arguments(name: str, arguments: list[Any], n_states: int) -> list[Any]:
    """Gradients of ones for the states, and what the forward pass keeps."""
    results = list(getattr(torch.ops.lfads, name)(*arguments, *OPTIONS))
    return [*map(torch.ones_like, results[:n_states]), *arguments, *results]


def one_call(name: str) -> tuple[Any, ...]:
    """Arguments of an operator."""
    counts, log_rates = torch.poisson(torch.ones(3, 4, 5)), torch.randn(3, 4, 5)
    two_way = OPTIONS[0], True, *OPTIONS[2:]
    calls: dict[str, Callable[[], tuple[Any, ...]]] = {
        "clipped_gru": lambda: (*gru_arguments(), *two_way),
        "clipped_gru_backward": lambda: (
            *backward_arguments("clipped_gru", gru_arguments(), 2),
            *two_way,
        ),
        "decoder": lambda: (*decoder_arguments(), *OPTIONS),
        "decoder_backward": lambda: (
            *backward_arguments("decoder", decoder_arguments(), 5),
            *OPTIONS,
        ),
        "poisson_loss": lambda: (log_rates, counts),
        "poisson_gradient": lambda: (torch.ones(3, 4, 5), log_rates, counts),
        "spike_sums": lambda: (log_rates, counts),
        "linear": lambda: (torch.randn(2, 40, 7), torch.randn(2, 19, 7), torch.randn(2, 19)),
        "linear_backward": lambda: (
            *(torch.randn(2, 40, 19), torch.randn(2, 40, 7), torch.randn(2, 19, 7)),
            True,
        ),
        "mask": lambda: (torch.tensor([7]), torch.tensor(0.3), [4, 9], True),
    }
    return calls[name]()


@pytest.mark.skipif(bool(c_library.why_not()), reason=c_library.why_not())
@pytest.mark.parametrize(
    "name",
    [
        *("clipped_gru", "clipped_gru_backward", "decoder", "decoder_backward"),
        *("poisson_loss", "poisson_gradient", "spike_sums", "mask", "linear", "linear_backward"),
    ],
)
def test_registration(name: str) -> None:
    """Schema, gradient, shapes without numbers and traced gradient, as torch checks them."""
    torch.manual_seed(0)
    arguments = one_call(name)
    if name in ("clipped_gru", "decoder", "poisson_loss", "linear"):
        for i in (0, 2) if name == "clipped_gru" else (0,):
            arguments[i].requires_grad_()
    torch.library.opcheck(getattr(torch.ops.lfads, name).default, arguments)


@pytest.mark.parametrize("name", ["clipped_gru", "decoder", "poisson_loss", "spike_sums", "linear"])
def test_three_members_are_mapped_as_one_after_the_other(name: str) -> None:
    operator = getattr(torch.ops.lfads, name)
    members = [one_call(name) for _ in range(3)]
    stacked = [
        torch.stack(xs) if isinstance(xs[0], Tensor) else xs[0] for xs in zip(*members, strict=True)
    ]
    in_dims = tuple(0 if isinstance(x, Tensor) else None for x in stacked)
    mapped = vmap(operator, in_dims)(*stacked)
    for i, member in enumerate(members):
        alone, got = operator(*member), mapped
        if isinstance(alone, Tensor):
            alone, got = (alone,), (mapped,)
        for x, y in zip(got, alone, strict=True):
            torch.testing.assert_close(x[i], y)


class Outputs(nn.Module):
    """A model as a function of tensors."""

    def __init__(self, model: LFADS) -> None:
        super().__init__()
        self.model = model

    def forward(self, data: Tensor) -> tuple[Tensor, ...]:
        none = data.new_zeros(data.shape[0], 0, 0)
        ext_input = data.new_zeros(*data.shape[:2], 0)
        batch = SessionBatch(data, data, ext_input, none, none.bool())
        return tuple(self.model({0: batch})[0])


@pytest.mark.parametrize("kernel", ["reference", "auto"])
def test_the_model_becomes_one_graph(kernel: str) -> None:
    """`torch.export` with any number of trials, and `torch.compile` without a break."""
    model = LFADS(encod_data_dim=3, encod_seq_len=3, recon_seq_len=3, kernel=kernel, **DIMS).eval()
    run, data = Outputs(model), torch.poisson(torch.ones(4, 3, 3))
    batch = torch.export.Dim("batch", min=1)
    exported = torch.export.export(run, (data,), dynamic_shapes=({0: batch},))
    operators = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    is_called = {f"lfads.{name}.default" in operators for name in ("clipped_gru", "decoder")}
    assert is_called == {kernel == "auto"}
    for n in (1, 4, 7):
        data = torch.poisson(torch.ones(n, 3, 3))
        with torch.no_grad():
            expected = run(data)
            for x, y in zip(exported.module()(data), expected, strict=True):
                torch.testing.assert_close(x, y)
    if kernel == "auto" and Version(torch.__version__) < Version("2.13"):
        return  # torch 2.8 does not follow `_replace` of a NamedTuple
    if kernel == "reference" and hasattr(reference.decoder, "__wrapped__"):
        return  # torch does not trace what the tests wrap functions in: see the next one
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    gradients = []
    for call in (run, compiled):
        model.zero_grad()
        sum(x.sum() for x in call(data) if x is not None).backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for x, y in zip(*gradients, strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.slow
def test_the_plain_loop_becomes_one_graph_without_the_checks_of_annotations() -> None:
    one = f"{__file__}::test_the_model_becomes_one_graph[reference]"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts="]
    done = subprocess.run([*command, one], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout
