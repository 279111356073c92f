"""What missing data cost: a training step on the same batch with and without them, by turns."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from functools import partial
from typing import Any

import torch
from shapes import SHAPES, Shape, build_batch, build_model
from steps import stepper
from timing import median_ratio

from lfads_torch.tuples import SessionBatch


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
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds + 1):
        for name, action in actions.items():
            start = time.process_time()
            action()
            seconds[name].append(time.process_time() - start)
    seconds = {name: values[1:] for name, values in seconds.items()}  # the first one warms up
    results = {f"{name}, ms": 1000 * statistics.median(values) for name, values in seconds.items()}
    plain = seconds.pop("complete")
    return results | {
        f"{n} / complete": median_ratio(values, plain) for n, values in seconds.items()
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="mc_maze")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = measure(SHAPES[options.shape], options.rounds)
    if options.json:
        print(json.dumps({"shape": options.shape, "threads": options.threads, **results}, indent=2))
    else:
        for name, value in results.items():
            print(f"{name:28} {value:8.2f}")


if __name__ == "__main__":
    main()
