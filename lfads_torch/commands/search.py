"""`lfads search`."""

from __future__ import annotations

import argparse

from . import pbt

SUMMARY = "random search or successive halving, and keep the best model"
TEXT = """\
Train many models at once, each with hyper-parameters drawn at random, and keep the best.
A member stops when it has not improved for long (search.stop_after); with search=halving
all but the best are stopped early (successive halving). Everything else is as for lfads pbt."""
EXAMPLES = """\
  lfads search my_data.h5
  lfads search model=nlb_mc_maze datamodule=nlb_mc_maze search.num_samples=20
  lfads search search=halving my_data.h5
  lfads search --resume runs/my_search"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    pbt.add_search_arguments(parser, "search")


def run(options: argparse.Namespace) -> int:
    """Run the command; see ``lfads search --help``."""
    return pbt.search(options, command="search", method="random")
