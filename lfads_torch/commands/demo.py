"""`lfads demo`."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import can_resume, new_run_folder, seed_number

SUMMARY = "generate spikes, train, score and draw"
TEXT = """\
Generate spikes of a population that is driven by a Lorenz system, train LFADS on them,
average posterior samples, score them against the truth and draw figures. With --pbt a
population of models is trained, and the best one and all together are scored."""
EXAMPLES = """\
  lfads demo
  lfads demo --pbt
  lfads demo --units 60 --mean-rate 0.1 --run-dir runs/sparse"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add = parser.add_argument
    add("--seed", type=seed_number, default=0, help="seed of data and training (%(default)s)")
    add("--conditions", type=int, default=65, help="initial states (%(default)s)")
    add("--trials", type=int, default=16, help="trials of each condition (%(default)s)")
    add("--units", type=int, default=30, help="units (%(default)s)")
    add("--bins", type=int, default=50, help="bins of a trial (%(default)s)")
    add("--mean-rate", type=float, default=0.3, help="spikes per bin and unit (%(default)s)")
    add("--epochs", type=int, help="epochs at most (as in the demo's configuration)")
    add("--pbt", action="store_true", help="a population of models instead of one (AutoLFADS)")
    add("--members", type=int, default=8, help="models of the population (%(default)s)")
    add("--run-dir", metavar="DIR", help="run folder (runs/<time>_demo)")
    add("--overwrite", action="store_true", help="delete the run that DIR holds")


def run(options: argparse.Namespace) -> int:
    """Run the command; see ``lfads demo --help``."""
    from ..demo import run_demo

    folder = Path(options.run_dir or new_run_folder(options, "demo")).absolute()
    command = "pbt" if options.pbt else "train"
    can_resume(options, folder, command)
    run_demo(
        folder,
        seed=options.seed,
        n_conditions=options.conditions,
        n_trials=options.trials,
        n_units=options.units,
        n_bins=options.bins,
        mean_rate=options.mean_rate,
        max_epochs=options.epochs,
        population=options.members if options.pbt else None,
        overwrite=options.overwrite,
    )
    return 0
