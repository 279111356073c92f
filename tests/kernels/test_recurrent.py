"""Both kernels under torch.func, and what the explicit one refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lfads_torch.kernels import IMPLEMENTATIONS, DecoderInputs, Kernels, get_kernels
from tests.kernels import RUN_HERE

N, T, B, C, G, F, U = 3, 4, 2, 3, 5, 4, 2


@pytest.fixture(params=RUN_HERE)
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return get_kernels(request.param)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def gru_inputs(n_nets: int) -> tuple[Tensor, Tensor, Tensor]:
    return randn(n_nets, T, B, 3 * G), 0.3 * randn(n_nets, B, G), randn(n_nets, 3 * G, G)


def decoder_inputs(n_nets: int) -> DecoderInputs:
    k = n_nets
    return DecoderInputs(
        con_proj=randn(k, T, B, 3 * C),
        gen_proj=randn(k, T, B, 3 * G),
        con_h0=0.3 * randn(k, B, C),
        gen_h0=0.3 * randn(k, B, G),
        w_con_fac=randn(k, 3 * C, F),
        w_con_hh=randn(k, 3 * C, C),
        w_co=randn(k, 2 * U, C),
        b_co=randn(k, 2 * U),
        w_gen_u=randn(k, 3 * G, U),
        w_gen_hh=randn(k, 3 * G, G),
        w_fac=randn(k, F, G),
        noise=randn(k, T, B, U),
    )


@pytest.mark.parametrize("n_nets", [1, 2])
@pytest.mark.parametrize("in_dims", [(0, 0, 0), (0, None, 0), (None, None, 0), (2, 0, 1)])
def test_mapped_gru(kernels: Kernels, n_nets: int, in_dims: tuple[int | None, ...]) -> None:
    """Over any axis of any argument, forward and backward, as one after the other."""
    members = [gru_inputs(n_nets) for _ in range(N)]
    stacked = [
        members[0][i] if dim is None else torch.stack([m[i] for m in members], dim=dim)
        for i, dim in enumerate(in_dims)
    ]

    def run(x: Tensor, h0: Tensor, w: Tensor) -> Tensor:
        return kernels.clipped_gru(x, h0, w, 1.0).states

    def loss(x: Tensor, h0: Tensor, w: Tensor) -> Tensor:
        return (run(x, h0, w) ** 2).sum()

    states = torch.func.vmap(run, in_dims)(*stacked)
    grads = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1, 2)), in_dims)(*stacked)
    for i in range(N):
        leaves = [
            members[0 if dim is None else i][k].clone().requires_grad_()
            for k, dim in enumerate(in_dims)
        ]
        torch.testing.assert_close(states[i], run(*leaves).detach())
        alone = torch.autograd.grad(loss(*leaves), leaves)
        for got, expected in zip(grads, alone, strict=True):
            torch.testing.assert_close(got[i], expected)


@pytest.mark.parametrize("shared", [(), ("noise",), ("con_proj", "w_fac", "gen_h0")])
def test_mapped_decoder(kernels: Kernels, shared: tuple[str, ...]) -> None:
    members = [decoder_inputs(1) for _ in range(N)]
    members = [m._replace(**{name: getattr(members[0], name) for name in shared}) for m in members]
    fields = [f for f in DecoderInputs._fields if getattr(members[0], f) is not None]
    in_dims = {f: None if f in shared else 0 for f in fields}
    stacked = {
        f: getattr(members[0], f) if f in shared else torch.stack([getattr(m, f) for m in members])
        for f in fields
    }

    def loss(p: dict[str, Tensor]) -> Tensor:
        states = kernels.decoder(DecoderInputs(**p), 1.0)
        return sum(((i + 1) * x**2).sum() for i, x in enumerate(states))  # type: ignore[return-value]

    grads, values = torch.func.vmap(torch.func.grad_and_value(loss), (in_dims,))(stacked)
    for i, member in enumerate(members):
        leaves = {f: getattr(member, f).clone().requires_grad_() for f in fields}
        value = loss(leaves)
        torch.testing.assert_close(values[i], value.detach())
        trained = [f for f in fields if f != "noise"]
        alone = torch.autograd.grad(value, [leaves[f] for f in trained])
        for name, expected in zip(trained, alone, strict=True):
            torch.testing.assert_close(grads[name][i], expected, msg=name)


def twice(kernels: Kernels, which: str) -> Any:
    """Differentiate the squared gradient."""
    if which == "clipped_gru":
        x, h0, w = gru_inputs(1)
        w.requires_grad_()
        out = kernels.clipped_gru(x, h0, w, 5.0).states.sum()
    else:
        p = decoder_inputs(1)
        w = p.w_gen_hh.requires_grad_()
        out = kernels.decoder(p, 5.0).factors.sum()
    (grad,) = torch.autograd.grad(out, w, create_graph=True)
    return torch.autograd.grad((grad**2).sum(), w)[0]


@pytest.mark.parametrize("which", ["clipped_gru", "decoder"])
def test_second_derivatives(which: str) -> None:
    """The explicit kernel has none, and says which kernel has; it never answers wrongly."""
    with pytest.raises(NotImplementedError, match=r"LFADS\(\.\.\., kernel='reference'\)"):
        twice(get_kernels("explicit"), which)
    second = twice(get_kernels("reference"), which)
    assert second.isfinite().all()
    assert (second != 0).any()


def test_names_of_kernels() -> None:
    assert get_kernels() is get_kernels("auto")
    for name, implementation in IMPLEMENTATIONS.items():
        assert get_kernels(name) is implementation
    for unknown in ("", "Explicit", "cuda"):
        with pytest.raises(
            ValueError, match=rf"kernel is {unknown!r}; (legal: auto|did you mean explicit)"
        ):
            get_kernels(unknown)
