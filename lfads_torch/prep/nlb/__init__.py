"""Data files of the Neural Latents Benchmark, from its NWB files."""
