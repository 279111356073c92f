"""The library of kernels in C, for float32 on the CPU, and its passes over arrays.

The ordinary install builds the library where it finds a C compiler and leaves it out elsewhere;
`why_not` says what is wrong. Where it has no matrix product for a processor, it takes that of the
BLAS that torch carries, and its threads are those of torch (both use the same OpenMP library).
`c_loops` calls its loops over bins.
"""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

_TORCH = Path(torch.__file__).parent / "lib"
_OPENMP = ("libgomp.so.1", "libiomp5.so", "libomp.dylib")
_NOT_BUILT = {"win32": "not built: on Windows torch exports no matrix product that they could call"}


def _load_openmp() -> None:
    """Let the library find the OpenMP functions that torch uses; a build without needs none."""
    # torch's wheels carry it, some under a name with a hash; in conda's it is where libraries are.
    stems = [name.partition(".")[0] for name in _OPENMP]
    places = (_TORCH, _TORCH.parents[1] / "torch.libs")
    carried = [p for place in places for stem in stems for p in place.glob(f"{stem}[.-]*")]
    for name in (*map(str, carried), *_OPENMP):
        with suppress(OSError):
            ctypes.CDLL(name, ctypes.RTLD_GLOBAL)
            return


@cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    """Return the library, or None and the reason."""
    if os.environ.get("LFADS_NATIVE") == "0":
        return None, "switched off by LFADS_NATIVE=0"
    # The shortest name: builds of earlier states have Python's ABI in theirs.
    paths = Path(__file__).parent.glob("_native.*so")
    path = min(paths, key=lambda path: len(path.name), default=None)
    if path is None:
        return None, _NOT_BUILT.get(sys.platform, "not built: the install found no C compiler")
    try:
        _load_openmp()
        library = ctypes.CDLL(str(path))
        # The product comes from the BLAS inside torch, which every install has, by its address at
        # run time: to link to it would bind a build to one version of torch, and a second BLAS
        # would be one more dependency with threads that compete with torch's.
        suffix = ".dylib" if sys.platform == "darwin" else ".so"
        blas = ctypes.CDLL(str(_TORCH / f"libtorch_cpu{suffix}"))
        # A library built from earlier sources reads other structs; it lacks this name.
        _ = library.lfads_use_lanes
        library.lfads_set_sgemm.argtypes = [ctypes.c_void_p]
        library.lfads_set_sgemm(ctypes.cast(blas.sgemm_, ctypes.c_void_p))
        # glibc would return the memory of large tensors after each step and fetch it again; who
        # sets MALLOC_... wants another rule.
        if not any(name.startswith("MALLOC_") for name in os.environ):
            library.lfads_keep_memory()
    except (OSError, AttributeError) as error:
        return None, f"{path.name} cannot be used: {error}"
    return library, ""


def why_not() -> str:
    """Return why the library cannot be used on this machine; empty where it can."""
    return _load()[1]


def describe() -> str:
    """Say in a few words whether the kernels are in C, and what they lack."""
    loaded, reason = _load()
    if loaded is None:
        return f"torch ({reason})"
    has_threads = not hasattr(loaded, "lfads_has_threads") or loaded.lfads_has_threads()
    return "C" if has_threads else "C (on one thread: the compiler had no OpenMP)"


def fits(like: Tensor) -> bool:
    """Return whether the library can work on tensors such as `like`."""
    is_right = like.device.type == "cpu" and like.dtype == torch.float32
    # A tensor of another class, as those of `FakeTensorMode`, may have no numbers.
    has_numbers = type(like) in (Tensor, torch.nn.Parameter)
    return is_right and has_numbers and _load()[0] is not None


def library() -> ctypes.CDLL:
    """Return the library, or raise `RuntimeError` where `fits` says that none can be used."""
    loaded, reason = _load()
    if loaded is None:
        raise RuntimeError(f"the native kernels are {reason}")
    return loaded


def address(tensor: Tensor | None) -> ctypes.c_void_p:
    """Return the address of a tensor's numbers; NULL for None."""
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def last_contiguous(tensor: Tensor) -> Tensor:
    """Return the tensor itself where its last axis is contiguous, else a contiguous copy."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def strides(tensor: Tensor, n_axes: int) -> ctypes.Array[ctypes.c_int64]:
    """Return the strides of the first axes, in entries."""
    return (ctypes.c_int64 * n_axes)(*tensor.stride()[:n_axes])


def fill_mask(out: Tensor, seed: int, threshold: int, kept: float, dropped: float) -> None:
    """Fill a contiguous mask: `dropped` with probability threshold / 65536, else `kept`.

    Entry i depends on the seed and i alone.
    """
    library().lfads_mask(
        ctypes.c_int64(out.numel()),
        ctypes.c_uint64(seed % 2**64),
        ctypes.c_int(threshold),
        ctypes.c_float(kept),
        ctypes.c_float(dropped),
        address(out),
    )


def poisson_loss(log_rates: Tensor, counts: Tensor) -> Tensor:
    """Compute `lfads_torch.kernels.likelihood.poisson_loss`."""
    log_rates, counts = log_rates.contiguous(), counts.contiguous()
    out = torch.empty_like(log_rates)
    size = ctypes.c_int64(out.numel())
    library().lfads_poisson_loss(size, *map(address, (log_rates, counts, out)))
    return out


def poisson_gradient(grad: Tensor, log_rates: Tensor, counts: Tensor) -> Tensor:
    """Return ``grad (exp(log_rate) - count)``; `grad` may be one number, expanded."""
    log_rates, counts = log_rates.contiguous(), counts.contiguous()
    is_one = not any(grad.stride())
    grad = grad if is_one else grad.contiguous()
    out = torch.empty_like(log_rates)
    library().lfads_poisson_gradient(
        ctypes.c_int64(out.numel()),
        address(grad),
        ctypes.c_int(not is_one),
        *map(address, (log_rates, counts, out)),
    )
    return out


def spike_sums(log_rates: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Sum spikes and ``exp(log_rate) - count log_rate`` over (B, T, N), per channel in float64."""
    log_rates, counts = last_contiguous(log_rates), last_contiguous(counts)
    sums = torch.empty(2, counts.shape[-1], dtype=torch.float64)
    library().lfads_spike_sums(
        *map(ctypes.c_int, counts.shape),
        *(address(log_rates), *map(ctypes.c_int64, log_rates.stride()[:2])),
        *(address(counts), *map(ctypes.c_int64, counts.stride()[:2])),
        address(sums),
    )
    return sums[0], sums[1]
