"""Settings for the whole test run: one thread, and the same random numbers in every test."""

from __future__ import annotations

import random
from collections.abc import Iterator

import matplotlib
import numpy as np
import pytest
import torch

matplotlib.use("Agg")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """Seed every generator before each test, so that no test depends on the ones before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    default_dtype = torch.get_default_dtype()
    yield
    torch.set_default_dtype(default_dtype)
