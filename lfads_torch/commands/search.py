"""`lfads search`."""

from __future__ import annotations

import argparse

from . import pbt

SUMMARY = "random search or successive halving, and keep the best model"
TEXT = """\
Train many models at once, each with hyper-parameters drawn at random, and keep the best.
A member stops when it has not improved for long (search.stop_after); with search=halving
all but the best are stopped early (successive halving). Everything else is as for lfads pbt.
--seeds trains the winner's settings anew with several seeds, to be averaged: one model of a
search is the best of many draws, and part of that is chance."""
EXAMPLES = """\
  lfads search my_data.h5
  lfads search model=nlb_mc_maze datamodule=nlb_mc_maze search.num_samples=20
  lfads search search=halving my_data.h5
  lfads search my_data.h5 --seeds 8
  lfads search --resume runs/my_search --seeds 8"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    pbt.add_search_arguments(parser, "search")
    parser.add_argument(
        "--seeds",
        type=int,
        metavar="N",
        help="then train the winner's settings with N seeds, in the folder seeds/ of the search",
    )


def run(options: argparse.Namespace) -> int:
    """Run the command; see ``lfads search --help``."""
    return pbt.search(options, command="search", method="random")
