"""Data files of the Neural Latents Benchmark, from its NWB files."""

from .session import prepare_nlb

__all__ = ["prepare_nlb"]
