"""Training from a file against training from memory, at the MC_Maze shape.

python benchmarks/streaming.py
python benchmarks/streaming.py --layout gzip --trials 6000 --json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from shapes import SHAPES, build_model
from timing import median_ratio

from lfads_torch.data import DataWarning
from lfads_torch.data.repack import repack
from lfads_torch.datamodules import BasicDataModule

LAYOUTS = ("contiguous", "gzip by trials", "gzip of h5py")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=SHAPES["mc_maze"].n_train, help="to train on")
    parser.add_argument("--layout", choices=LAYOUTS, action="append", help="all by default")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true", help="print the figures for machines")
    options = parser.parse_args()
    warnings.simplefilter("ignore", DataWarning)
    os.environ["PL_GLOBAL_SEED"] = "0"
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = write_layouts(Path(folder), options.trials)
        for layout in options.layout or LAYOUTS:
            figures |= measure(paths[layout], layout, options.rounds, options.device)
    if options.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:66s} {value:10.3g}")


def write_layouts(folder: Path, n_trials: int) -> dict[str, Path]:
    """Write counts as bytes: contiguous, compressed by trial, and in the chunks h5py chooses."""
    shape, rng = SHAPES["mc_maze"], np.random.default_rng(0)
    paths = {layout: folder / f"{number}.h5" for number, layout in enumerate(LAYOUTS)}
    with h5py.File(paths["contiguous"], "w") as one, h5py.File(paths["gzip of h5py"], "w") as two:
        for split, n in (("train", n_trials), ("valid", n_trials // 3)):
            recon = rng.poisson(0.2, (n, shape.bins, shape.n_recon)).astype(np.uint8)
            for name, data in (
                ("encod", recon[:, : shape.bins_read, : shape.n_read]),
                ("recon", recon),
            ):
                one[f"{split}_{name}_data"] = data
                two.create_dataset(f"{split}_{name}_data", data=data, compression="gzip")
    repack(paths["contiguous"], paths["gzip by trials"], compress=True)
    return paths


def measure(path: Path, layout: str, rounds: int, device: str) -> dict[str, float]:
    """Time of an epoch's batches alone, and of an epoch of training, with their ratios."""
    held = BasicDataModule(path, batch_size=SHAPES["mc_maze"].batch, max_memory_gb=1000)
    streamed = BasicDataModule(path, batch_size=SHAPES["mc_maze"].batch, max_memory_gb=0)
    model = build_model(SHAPES["mc_maze"]).to(device)
    optimizer: Any = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def batches(data: BasicDataModule) -> None:
        for _ in data.train_dataloader():
            pass

    def train(data: BasicDataModule) -> None:
        for batch in data.train_dataloader():
            optimizer.zero_grad()
            model.training_step(batch, 0).backward()
            optimizer.step()
        if device != "cpu":
            torch.cuda.synchronize()

    for data in (held, streamed):
        data.to(device)
    times: dict[str, list[float]] = {}
    for number in range(rounds + 1):
        for what, act in (("batches", batches), ("training", train)):
            # In turns, so that both meet the same disturbances; the first round warms up.
            for where, data in [("memory", held), ("file", streamed)][:: 1 - 2 * (number % 2)]:
                wall, cpu = time.perf_counter(), time.process_time()
                act(data)
                if number:
                    spent = (time.perf_counter() - wall, time.process_time() - cpu)
                    for clock, seconds in zip(("s", "CPU s"), spent, strict=True):
                        times.setdefault(f"{what}, {where}, {clock}", []).append(seconds)
    figures = {f"{layout}: {name}": statistics.median(each) for name, each in times.items()}
    for what in ("batches", "training"):
        for clock in ("s", "CPU s"):
            pair = (times[f"{what}, {where}, {clock}"] for where in ("file", "memory"))
            figures[f"{layout}: {what}, file over memory, {clock}"] = median_ratio(*pair)
    return figures


if __name__ == "__main__":
    main()
