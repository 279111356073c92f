"""Speed and memory against a textbook LFADS and against the matrix products alone.

Everything is measured in turns within one run; a ratio is the median over rounds of the ratio
within a round.

step      forward, backward, clipping and optimiser on a batch that is there: textbook (textbook.py)
          over package, and package over roofline (roofline.py)
epoch     an epoch under Lightning, with loaders, validation, scores, loggers and checkpoint, over
          its training and validation steps alone
sampling  posterior means from 50 samples: textbook over package
memory    peak memory of steps: package over textbook, each in a process of its own, beyond what
          imports and batch take
cold      from starting Python to the end of the first step, in a process of its own
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from epoch import measure_epoch
from fresh import measure_cold, measure_memory
from matplotlib.figure import Figure
from roofline import Roofline
from shapes import SHAPES, Shape, build_batch, build_datamodule, build_model
from steps import package_step, textbook_step
from textbook import TextbookLFADS, posterior_means, sample_loader
from timing import by_turns, median_ratio

from lfads_torch.kernels import IMPLEMENTATIONS
from lfads_torch.post_run.analysis import sample_posterior

N_SAMPLES = 50
Figures = dict[str, float]

SCALING: dict[str, list[Shape]] = {
    "batch": [replace(SHAPES["mc_maze"], batch=n) for n in (16, 64, 256, 1024)],
    "bins": [replace(SHAPES["mc_maze"], bins_read=n - 10, bins=n) for n in (15, 45, 90, 180)],
    "channels": [
        replace(SHAPES["mc_maze"], n_read=n * 3 // 4, n_recon=n) for n in (32, 182, 512, 1024)
    ],
    "gen": [replace(SHAPES["mc_maze"], gen=n) for n in (64, 128, 200, 400)],
}
"""Shapes around MC_Maze, one size changed at a time. Beyond these, the textbook takes over 8 GB."""

_SIZES = {"batch": "batch", "bins": "bins", "channels": "n_recon", "gen": "gen"}
_LABELS = {
    "batch": "trials of a batch",
    "bins": "bins",
    "channels": "channels",
    "gen": "units of the generator",
}


def measure_step(shape: Shape, kernel: str, rounds: int) -> Figures:
    """Training step of package, textbook and roofline."""
    roofline = Roofline(shape)
    seconds = by_turns(
        {
            "package": package_step(shape, kernel),
            "textbook": textbook_step(shape),
            "roofline": roofline.run,
        },
        rounds,
    )
    return {
        "textbook / package": median_ratio(seconds["textbook"], seconds["package"]),
        "package / roofline": median_ratio(seconds["package"], seconds["roofline"]),
        **{f"{name}, s": statistics.median(times) for name, times in seconds.items()},
        "roofline, GFLOP": roofline.flops / 1e9,
    }


def measure_sampling(shape: Shape, kernel: str, rounds: int, n_trials: int) -> Figures:
    """Posterior means of `n_trials` trials."""
    model = build_model(shape, kernel).eval()
    textbook = TextbookLFADS(model)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = build_datamodule(shape, Path(folder), train=shape.batch, valid=n_trials)
        loader = sample_loader(build_batch(shape, n_trials), shape.batch, shuffle=False)
        seconds = by_turns(
            {
                "package": lambda: sample_posterior(model, data, N_SAMPLES, "valid"),
                "textbook": lambda: posterior_means(textbook, loader, N_SAMPLES),
            },
            rounds,
        )
    return {
        "textbook / package": median_ratio(seconds["textbook"], seconds["package"]),
        **{f"{name}, s": statistics.median(times) for name, times in seconds.items()},
        "trials": n_trials,
    }


ROUNDS = {"step": 20, "epoch": 5, "sampling": 3, "memory": 1, "cold": 3}


def measure(
    shape: Shape, names: list[str], kernel: str, rounds: int | None, n_trials: int
) -> dict[str, Figures]:
    """Figures of one shape, by what is measured."""
    functions: dict[str, Callable[[Shape, str, int], Figures]] = {
        "step": measure_step,
        "epoch": measure_epoch,
        "sampling": partial(measure_sampling, n_trials=n_trials),
        "memory": measure_memory,
        "cold": measure_cold,
    }
    return {what: functions[what](shape, kernel, rounds or ROUNDS[what]) for what in names}


def scaling_shapes() -> dict[str, Shape]:
    """Return the shapes of `SCALING` by what changes and its size."""
    return {
        f"{what} {getattr(shape, _SIZES[what])}": shape
        for what, group in SCALING.items()
        for shape in group
    }


def draw_scaling(report: Mapping[str, Any]) -> Figure:
    """Draw the time of a step against each size, from the report of ``--scaling``."""
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    axes = figure.subplots(1, len(SCALING), sharey=True)
    styles = {"textbook": "C7o-", "package": "C0o-", "roofline": "C1o--"}
    for axis, (what, group) in zip(axes, SCALING.items(), strict=True):
        sizes = [getattr(shape, _SIZES[what]) for shape in group]
        for name, style in styles.items():
            seconds = [report[f"{what} {size}"]["step"][f"{name}, s"] for size in sizes]
            axis.loglog(sizes, seconds, style, label=name, markersize=4)
        axis.set_xticks(sizes, [str(size) for size in sizes])
        axis.minorticks_off()
        axis.set_xlabel(_LABELS[what])
    axes[0].set_ylabel("time of a step (s)")
    axes[0].legend(frameon=False)
    return figure


def machine(kernel: str) -> dict[str, object]:
    """Where and with what the figures were made."""
    return {
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "kernel": kernel,
    }


def show(name: str, results: dict[str, Figures]) -> None:
    """Print a shape's figures, each ratio before what it was made of."""
    for what, figures in results.items():
        print(f"{name} {what}")
        for label, value in figures.items():
            print(f"    {label:<44} {value:10.4g}")
    sys.stdout.flush()


def parse_arguments() -> argparse.Namespace:
    def some_of(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in ROUNDS:
                raise argparse.ArgumentTypeError(f"{name!r}; legal are {', '.join(ROUNDS)}")
        return names

    def positive(text: str) -> int:
        if not text.isdecimal() or int(text) < 1:
            raise argparse.ArgumentTypeError(f"{text!r}; legal are whole numbers >= 1")
        return int(text)

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=[*SHAPES, "all"], default="all")
    parser.add_argument("--what", type=some_of, default=list(ROUNDS), help="list with commas")
    parser.add_argument(
        "--scaling", action="store_true", help="the step around MC_Maze instead, size by size"
    )
    parser.add_argument("--kernel", choices=["auto", *IMPLEMENTATIONS], default="auto")
    parser.add_argument("--rounds", type=positive, help=f"by default {ROUNDS}")
    parser.add_argument("--trials", type=positive, default=256, help="trials that are sampled")
    parser.add_argument("--threads", type=positive, help="threads of torch")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--figure", type=Path, help="file for a figure of --scaling")
    args = parser.parse_args()
    if args.figure and not args.scaling:
        parser.error("--figure draws what --scaling measures; add --scaling")
    return args


def main() -> None:
    args = parse_arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    shapes: dict[str, Shape] = {
        name: shape for name, shape in SHAPES.items() if args.shape in (name, "all")
    }
    if args.scaling:
        args.what, args.rounds = ["step"], args.rounds or 5
        shapes = scaling_shapes()
    report: dict[str, object] = {"machine": machine(args.kernel)}
    for name, shape in shapes.items():
        results = measure(shape, args.what, args.kernel, args.rounds, args.trials)
        report[name] = results
        if not args.json:
            show(name, results)
    if args.json:
        print(json.dumps(report, indent=2))
    if args.figure:
        draw_scaling(report).savefig(args.figure, dpi=80)


if __name__ == "__main__":
    main()
