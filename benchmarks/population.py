"""Members x steps per second of a population, and of the same members one after another.

stacked    an epoch of `lfads_torch.search.population.Population`: gathering, steps, scores, and a
           validation batch of one trial for each epoch
alone      as many steps of `lfads_torch.LFADS`, one member after another, with the fastest kernel
exchange   every member takes over from another one

Measured in turns within one run; a ratio is the median over rounds of the ratio within a round.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path

import torch
from shapes import SHAPES, Shape, build_batch, build_datamodule, build_model
from steps import CLIP, stepper
from timing import by_turns, median_ratio, peak_bytes

from lfads_torch.search.population import Population

POPULATION_SHAPES = {
    "lorenz": replace(SHAPES["lorenz"], bins_read=50, bins=50),
    "mc_maze": SHAPES["mc_maze"],
}
"""MC_Maze at 20 ms as elsewhere; the Lorenz data with trials of 50 bins."""

Figures = dict[str, float]


def measure(
    shape: Shape, n_members: int, n_steps: int, rounds: int, chunk: int | None, device: str
) -> Figures:
    """Throughput of both, and the cost of an exchange."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = build_datamodule(shape, Path(folder), train=n_steps * shape.batch, valid=1)
        models = [build_model(shape) for _ in range(n_members)]
        seeds = list(range(n_members))
        population = Population(
            models, data, seeds, gradient_clip_val=CLIP, stack_size=chunk, device=device
        )

        def stacked() -> None:
            population.train_epoch()
            _wait(device)

        model = build_model(shape).to(device)
        batch = build_batch(shape)
        batch = batch._replace(
            **{n: x.to(device) for n, x in batch._asdict().items() if x is not None}
        )
        optimizer = model.configure_optimizers()
        step = stepper(model, lambda: model.training_step(batch, 0), optimizer)

        # The same number of steps costs the same, whichever member's they are.
        n_alone = max(1, min(n_steps * n_members, 2 * n_steps))

        def alone() -> None:
            for _ in range(n_alone):
                step()
            _wait(device)

        seconds = by_turns({"stacked": stacked, "alone": alone}, rounds)
        began = time.perf_counter()
        population.exchange([*range(1, n_members), 0])
        _wait(device)
        exchange = time.perf_counter() - began
    per_member_step = [t / (n_members * n_steps) for t in seconds["stacked"]]
    per_step = [t / n_alone for t in seconds["alone"]]
    return {
        "stacked / alone": median_ratio(per_step, per_member_step),
        "stacked, members x steps per s": 1 / statistics.median(per_member_step),
        "alone, members x steps per s": 1 / statistics.median(per_step),
        "exchange of all members, s": exchange,
        "exchange / 25 epochs": exchange / (25 * statistics.median(seconds["stacked"])),
        "members": n_members,
        "members stacked at a time": population.stack_size,
        "peak memory, GiB": peak_bytes() / 2**30,
    }


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=[*POPULATION_SHAPES, "all"], default="all")
    parser.add_argument("--members", type=int, default=16)
    parser.add_argument("--steps", type=int, default=8, help="steps of an epoch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--chunk", type=int, help="members stacked at a time")
    parser.add_argument("--threads", type=int, help="threads of torch")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    results: dict[str, object] = {
        "machine": {
            "machine": platform.machine(),
            "device": args.device,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "python": platform.python_version(),
        }
    }
    for name, shape in POPULATION_SHAPES.items():
        if args.shape not in (name, "all"):
            continue
        figures = measure(shape, args.members, args.steps, args.rounds, args.chunk, args.device)
        results[name] = figures
        if not args.json:
            print(name)
            for label, value in figures.items():
                print(f"    {label:<44} {value:10.4g}", flush=True)
    if args.json:
        print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
