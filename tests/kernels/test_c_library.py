"""The loops in C against those in torch in float64, at the sizes where loops in C go wrong."""

from __future__ import annotations

import ctypes
import math
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad, vmap

from lfads_torch.kernels import DecoderInputs, c_library, get_kernels

pytestmark = pytest.mark.skipif(
    bool(c_library.why_not()), reason=f"native loops: {c_library.why_not()}"
)
few_examples = settings(max_examples=25, deadline=None, derandomize=True, database=None)
sizes = st.integers(1, 37)
TRAINED = len(DecoderInputs._fields) - 3


@pytest.fixture(params=[16, 8, 0], ids=["AVX-512", "AVX2", "BLAS"], scope="module")
def products(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each kind of matrix product that this processor has."""
    use_lanes = c_library.library().lfads_use_lanes
    if use_lanes(request.param) == request.param:
        yield
        use_lanes(16)
    else:
        pytest.skip("this processor lacks it")


def assert_near(got: Tensor, exact: Tensor, in_torch: Tensor | None = None) -> None:
    """Agreement to float32 rounding, relative to the largest entry.

    Where the terms of a sum cancel, float32 loses more: then no worse than torch does.
    """
    assert got.dtype == torch.float32

    def error(x: Tensor) -> float:
        return float((x.double() - exact).abs().max() / exact.abs().max().clamp_min(1e-6))

    assert error(got) < (2e-5 if in_torch is None else max(2e-5, 2 * error(in_torch)))


def in_both(
    run: Callable[..., tuple[Tensor, ...]], tensors: list[Tensor | None], n_trained: int
) -> None:
    """Outputs and gradients of `run(kernels, *tensors)` agree between C and float64."""
    results: dict[tuple[str, torch.dtype], tuple[Tensor, ...]] = {}
    kinds = (
        ("native", torch.float32),
        ("explicit", torch.float64),
        ("explicit", torch.float32),
    )
    for name, dtype in kinds:
        converted = [None if x is None else x.to(dtype) for x in tensors]
        leaves = [x.requires_grad_() for x in converted[:n_trained] if x is not None]
        outputs = run(get_kernels(name), *converted)
        torch.manual_seed(1)
        total = sum((x * torch.randn(x.shape, dtype=torch.float64)).sum() for x in outputs)
        results[name, dtype] = (*outputs, *torch.autograd.grad(total, leaves))
    for got, exact, in_torch in zip(*(results[kind] for kind in kinds), strict=True):
        assert_near(got, exact, in_torch)


@given(
    st.integers(1, 3), st.integers(1, 6), sizes, sizes, st.sampled_from([0.2, 5.0]), st.booleans()
)
@few_examples
@pytest.mark.usefixtures("products")
def test_gru(
    n_nets: int, n_bins: int, n_trials: int, n_units: int, clip: float, two_way: bool
) -> None:
    torch.manual_seed(0)
    x = torch.randn(n_nets, n_bins, n_trials, 3 * n_units)
    h0 = torch.randn(n_nets, n_trials, n_units)
    w = torch.randn(n_nets, 3 * n_units, n_units) / math.sqrt(n_units)
    in_both(lambda k, *a: k.clipped_gru(*a, clip, two_way), [x, h0, w], 3)


def decoder_inputs(
    n_nets: int, n_bins: int, n_trials: int, dims: tuple[int, int, int, int], random: bool
) -> list[Tensor | None]:
    c, g, f, u = dims

    def weight(*shape: int) -> Tensor:
        return torch.randn(n_nets, *shape) / math.sqrt(shape[-1])

    def mask(*shape: int) -> Tensor | None:
        return (torch.rand(n_nets, *shape) > 0.3) / 0.7 if random else None

    return [
        torch.randn(n_nets, n_bins, n_trials, 3 * c),
        torch.randn(n_nets, n_bins, n_trials, 3 * g),
        torch.randn(n_nets, n_trials, c),
        torch.randn(n_nets, n_trials, g),
        weight(3 * c, f),
        weight(3 * c, c),
        weight(2 * u, c),
        torch.randn(n_nets, 2 * u),
        weight(3 * g, u),
        weight(3 * g, g),
        weight(f, g),
        torch.randn(n_nets, n_bins, n_trials, u) if random else None,
        mask(n_bins, n_trials, f),
        mask(n_bins + 1, n_trials, g),
    ]


@given(
    st.integers(1, 2),
    st.integers(1, 5),
    st.integers(1, 9),
    st.tuples(sizes, sizes, sizes, st.integers(1, 5)),
    st.booleans(),
    st.sampled_from([0.2, 5.0]),
)
@few_examples
@pytest.mark.usefixtures("products")
def test_decoder(
    n_nets: int,
    n_bins: int,
    n_trials: int,
    dims: tuple[int, int, int, int],
    random: bool,
    clip: float,
) -> None:
    torch.manual_seed(0)
    tensors = decoder_inputs(n_nets, n_bins, n_trials, dims, random)
    in_both(lambda k, *a: k.decoder(DecoderInputs(*a), clip), tensors, TRAINED)


@pytest.mark.usefixtures("products")
def test_more_trials_than_one_share_and_shared_input_products() -> None:
    tensors = decoder_inputs(1, 4, 300, (7, 9, 5, 2), True)
    in_both(lambda k, *a: k.decoder(DecoderInputs(*a), 5.0), tensors, TRAINED)
    # The generator's biases alone, for all bins and trials.
    tensors[1] = torch.randn(1, 1, 1, 27)
    in_both(lambda k, *a: k.decoder(DecoderInputs(*a), 5.0), tensors, TRAINED)
    decoder = get_kernels("native").decoder
    with torch.no_grad():
        shared = DecoderInputs(*tensors)
        whole = shared._replace(gen_proj=shared.gen_proj.repeat(1, 4, 300, 1))
        for x, y in zip(decoder(shared, 5.0), decoder(whole, 5.0), strict=True):
            assert torch.equal(x, y)


@given(st.integers(1, 3), st.integers(1, 150), sizes, sizes, st.booleans())
@few_examples
@pytest.mark.usefixtures("products")
def test_linear(n_bins: int, n_trials: int, n_in: int, n_out: int, needs_x: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(n_bins, n_trials, n_in)
    weight, bias = torch.randn(n_out, n_in) / math.sqrt(n_in), torch.randn(n_out)
    if needs_x:
        in_both(lambda k, *a: (k.linear(*a),), [x, weight, bias], 3)
    else:
        in_both(lambda k, w, b, x: (k.linear(x, w, b),), [weight, bias, x], 2)


def test_without_a_backward_pass_the_states_are_the_same() -> None:
    x, h0, w = torch.randn(2, 5, 40, 18), torch.randn(2, 40, 6), torch.randn(2, 18, 6)
    gru = get_kernels("native").clipped_gru
    kept = gru(x, h0, w, 5.0).states
    with torch.no_grad():
        assert torch.equal(gru(x, h0, w, 5.0).states, kept)


def test_nan_stays_nan() -> None:
    x = torch.zeros(1, 3, 4, 9)
    x[0, 1, 2] = math.nan
    gru = get_kernels("native").clipped_gru
    states = gru(x, torch.zeros(1, 4, 3), torch.zeros(1, 9, 3), 5.0).states
    assert states[0, 1:, 2].isnan().all()
    assert states[0, :, [0, 1, 3]].isfinite().all()


def test_large_inputs_saturate() -> None:
    x = torch.cat([torch.full((1, 1, 2, 6), -1e4), torch.full((1, 1, 2, 3), 1e4)], dim=-1)
    gru = get_kernels("native").clipped_gru
    states = gru(x, torch.zeros(1, 2, 3), torch.zeros(1, 9, 3), 5.0).states
    assert torch.equal(states, torch.ones(1, 1, 2, 3))


def test_mapped() -> None:
    x, h0, w = torch.randn(3, 2, 4, 5, 9), torch.randn(2, 5, 3), torch.randn(3, 2, 9, 3)

    def loss(w: Tensor, x: Tensor) -> Tensor:
        return (get_kernels("native").clipped_gru(x, h0, w, 5.0).states ** 2).sum()

    mapped = vmap(grad(loss))(w, x)
    each = torch.stack([grad(loss)(w[i], x[i]) for i in range(3)])
    torch.testing.assert_close(mapped, each)


def test_it_can_be_switched_off() -> None:
    code = "from lfads_torch.kernels import c_library; print(c_library.why_not())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "LFADS_NATIVE": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "LFADS_NATIVE=0" in done.stdout


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler here")
def test_the_source_compiles_without_a_warning(tmp_path: object) -> None:
    sources = list(Path(c_library.__file__).parent.glob("*.c"))
    flags = "-O1 -std=gnu11 -Wall -Wextra -Werror -Wno-unknown-pragmas -fPIC -shared"
    for library, more in (("plain.so", []), ("threads.so", ["-fopenmp"])):
        command = ["cc", *flags.split(), *more, "-o", f"{tmp_path}/{library}", *sources]
        subprocess.run(command, check=True)
        if sys.platform != "darwin":
            built = ctypes.CDLL(f"{tmp_path}/{library}")
            assert built.lfads_has_threads() == bool(more)


@pytest.mark.parametrize(
    ("platform", "name"), [("linux", "libtorch_cpu.so"), ("darwin", "libtorch_cpu.dylib")]
)
def test_the_matrix_product_is_that_of_torch(
    platform: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, real = [], ctypes.CDLL

    def load(path: str, *mode: int) -> ctypes.CDLL:
        asked.append(Path(path))
        return real(path, *mode)

    is_here = platform == sys.platform
    monkeypatch.setattr(c_library.sys, "platform", platform)
    monkeypatch.setattr(c_library.ctypes, "CDLL", load)
    _, reason = c_library._load.__wrapped__()
    assert asked[-1] == Path(torch.__file__).parent / "lib" / name
    assert is_here == (not reason)
    # Threads are those of torch: its library of them, and no other, answers.
    carried = [path for path in asked[-1].parent.glob("libgomp*")]
    assert asked[0] in carried or not carried


def test_a_build_without_a_library_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(c_library, "__file__", str(tmp_path / "c_library.py"))
    monkeypatch.setattr(c_library, "_load", c_library._load.__wrapped__)
    assert c_library.describe() == "torch (not built: the install found no C compiler)"
    monkeypatch.setattr(c_library.sys, "platform", "win32")
    assert "Windows" in c_library.why_not()
    (tmp_path / "_native.so").write_bytes(b"no library")
    assert "_native.so cannot be used" in c_library.why_not()


THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(not THP.is_file(), reason="the system has no pages of 2 MiB to give")
@pytest.mark.skipif("glibc" not in platform.libc_ver(), reason="only glibc reserves memory")
@pytest.mark.skipif(any(x.startswith("MALLOC_") for x in os.environ), reason="MALLOC_ is set")
@pytest.mark.parametrize("limit", [None, 2**40], ids=["unlimited", "limited"])
def test_large_arrays_lie_in_large_pages(limit: int | None) -> None:
    # In a process of its own: what other tests took and gave back changes the heap.
    code = "from lfads_torch.kernels import c_library; assert not c_library.why_not()\n"
    code += "print(open('/proc/self/smaps').read())"
    if limit:
        code = f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({limit}, -1))\n{code}"
    maps = subprocess.check_output([sys.executable, "-c", code], text=True)
    heaps = re.findall(
        r"^([0-9a-f]+)-([0-9a-f]+) [^\n]*\[heap\]\n.*?^VmFlags:([^\n]*)",
        maps,
        re.MULTILINE | re.DOTALL,
    )
    advised = [int(end, 16) - int(start, 16) for start, end, flags in heaps if " hg" in flags]
    assert sum(advised) == 0 if limit else sum(advised) > 2**30
