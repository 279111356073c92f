"""`lfads nlb-submit`."""

from __future__ import annotations

import argparse

from ..files import expanded
from . import HDF5, check_named, writing_into

SUMMARY = "write a submission to the Neural Latents Benchmark"
TEXT = """\
Write the rates of one or more runs as a submission file of the Neural Latents Benchmark. In
the test phase (default) training and validation trials both count as training trials, in the
order of their 'inds'; --split valid writes a file for the benchmark's validation phase."""
EXAMPLES = """\
  lfads nlb-submit runs/mc_maze
  lfads nlb-submit runs/maze runs/rtt --dataset mc_maze mc_rtt --output both.h5
  lfads nlb-submit runs/mc_maze --split valid"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="run folders or output files, one per data set")
    add("--dataset", nargs="+", metavar="NAME", help="data set of each run (from the file's name)")
    add("--split", default="test", help="test or valid (%(default)s)")
    add("--bin-ms", type=float, metavar="MS", help="bin width, where the data do not say it")
    add("--output", type=HDF5, metavar="FILE", help="submission file (RUN/nlb_submission.h5)")
    add("--overwrite", action="store_true", help="replace that file if it is there")


def run(options: argparse.Namespace) -> int:
    """Run the command; see ``lfads nlb-submit --help``."""
    from ..post_run.nlb_submission import nlb_submission

    check_named(options.output, options.runs[0], options.overwrite)
    place = expanded(options.runs[0]).absolute()
    folder = place if place.is_dir() else place.parent
    with writing_into(options.runs[0], options.output):
        path, shapes = nlb_submission(
            options.runs,
            options.output or folder / "nlb_submission.h5",
            datasets=options.dataset,
            split=options.split,
            bin_ms=options.bin_ms,
        )
    for key, shape in shapes.items():
        print(f"{key:<44} {' x '.join(map(str, shape))}")
    print(f"written: {path}")
    return 0
