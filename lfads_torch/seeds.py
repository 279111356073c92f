"""Random number streams that are named by whole numbers, such as a run's seed and an epoch."""

from __future__ import annotations

import random

import numpy as np
import torch


def stream_seeds(*entropy: int) -> tuple[int, int]:
    """Seeds of a stream: for Python's and NumPy's generators, and for PyTorch's."""
    # SeedSequence mixes its numbers: seeds 0 and 1 of epochs 1 and 0 get unrelated streams, which
    # a sum of seed and epoch would not give.
    words = np.random.SeedSequence([number % 2**32 for number in entropy]).generate_state(2)
    return int(words[0]), int(words[0]) * 2**31 + int(words[1]) // 2


def seed_all(*entropy: int) -> None:
    """Seed Python's, NumPy's and PyTorch's global generators."""
    seed, torch_seed = stream_seeds(*entropy)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(torch_seed)
