"""Tests of the recurrent kernels."""

import torch

from lfads_torch.kernels import IMPLEMENTATIONS
from lfads_torch.kernels.recurrent import triton_loops

_MODULE, WHY_NO_TRITON = triton_loops()
WHY_NO_TRITON = WHY_NO_TRITON or _MODULE.why_not(torch.zeros(1))
# Triton runs on a CPU only as `make test-triton` has it: interpreted, and a thousand times slower.
RUN_HERE = [name for name in sorted(IMPLEMENTATIONS) if name != "triton" or not WHY_NO_TRITON]
