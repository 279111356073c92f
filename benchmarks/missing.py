"""What missing data cost: a training step on the same batch with and without them, by turns.

And what trials of different lengths cost: an epoch of training steps on trials of half to all bins,
mixed in batches of all bins, over the same trials in batches of like lengths (the data module's
`group_by_length`), with the bins that each computes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from shapes import SHAPES, SPIKES_PER_BIN, Shape, build_batch, build_model
from steps import stepper
from timing import median_ratio

from lfads_torch.data import write_session
from lfads_torch.datamodules import BasicDataModule
from lfads_torch.tuples import SessionBatch, sessions_of


def batches(shape: Shape) -> dict[str, SessionBatch]:
    """One batch: complete; without a tenth of its entries; with trials of half to all bins."""
    whole = build_batch(shape)
    torch.manual_seed(0)
    data = whole.recon_data
    every = torch.full((shape.batch,), shape.bins)
    lengths = torch.randint(shape.bins // 2, shape.bins + 1, (shape.batch,))
    past = torch.arange(shape.bins) >= lengths.unsqueeze(1)
    return {
        "complete": whole,
        "entries missing": _of(whole, shape, torch.rand(data.shape) < 0.1, every),
        "ragged": _of(whole, shape, past.unsqueeze(-1), lengths),
    }


def _of(
    whole: SessionBatch, shape: Shape, missing: torch.Tensor, lengths: torch.Tensor
) -> SessionBatch:
    recon = whole.recon_data.masked_fill(missing, torch.nan)
    encod = recon[:, : shape.bins_read, : shape.n_read].contiguous()
    return whole._replace(encod_data=encod, recon_data=recon, lengths=lengths)


def measure(shape: Shape, rounds: int) -> dict[str, float]:
    """Processor time of a step in ms, and medians of the ratios within a round."""
    actions = {}
    for name, batch in batches(shape).items():
        model = build_model(shape)
        optimizer: Any = model.configure_optimizers()
        actions[name] = stepper(model, partial(model.training_step, batch, 0), optimizer)
    seconds = by_turns(actions, rounds)
    results = {f"{name}, ms": 1000 * statistics.median(values) for name, values in seconds.items()}
    plain = seconds.pop("complete")
    return results | {
        f"{n} / complete": median_ratio(values, plain) for n, values in seconds.items()
    }


def by_turns(actions: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Processor seconds of each action, in turns; the first round warms up and does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds + 1):
        for name, action in actions.items():
            start = time.process_time()
            action()
            seconds[name].append(time.process_time() - start)
    return {name: values[1:] for name, values in seconds.items()}


def measure_epochs(shape: Shape, rounds: int) -> dict[str, float]:
    """Training steps of an epoch of ragged trials, mixed over grouped, and the bins computed."""
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split, n in (("train", shape.n_train), ("valid", shape.batch)):
        lengths = rng.integers(shape.bins // 2, shape.bins + 1, n)
        counts = rng.poisson(SPIKES_PER_BIN, (n, shape.bins, shape.n_recon)).astype(np.uint8)
        arrays[f"{split}_recon_data"], arrays[f"{split}_lengths"] = counts, lengths
        arrays[f"{split}_encod_data"] = counts[:, : shape.bins_read, : shape.n_read]
    actions, bins = {}, {}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "ragged.h5"
        write_session(path, arrays)
        for name, on in (("mixed", False), ("grouped", True)):
            data = BasicDataModule(path, batch_size=shape.batch, group_by_length=on)
            batches = [sessions_of(step)[0] for step in data.train_dataloader()]
            n_bins = [x.recon_data.shape[1] for x in batches]  # of as many trials each
            bins[name] = statistics.mean(n_bins) / float(arrays["train_lengths"].mean())
            model = build_model(shape)
            optimizer: Any = model.configure_optimizers()
            steps = [stepper(model, partial(model.training_step, x, 0), optimizer) for x in batches]
            actions[name] = partial(_all, steps)
        seconds = by_turns(actions, rounds)
    return {
        **{f"bins of an epoch, {name} / the trials' own": ratio for name, ratio in bins.items()},
        "epoch, mixed / grouped": median_ratio(seconds["mixed"], seconds["grouped"]),
    }


def _all(steps: list[Callable[[], None]]) -> None:
    for step in steps:
        step()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="mc_maze")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    shape = SHAPES[options.shape]
    results = measure(shape, options.rounds)
    results |= measure_epochs(shape, max(1, options.rounds // 3))
    if options.json:
        print(json.dumps({"shape": options.shape, "threads": options.threads, **results}, indent=2))
    else:
        for name, value in results.items():
            print(f"{name:46} {value:8.2f}")


if __name__ == "__main__":
    main()
