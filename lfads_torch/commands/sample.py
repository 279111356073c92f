"""`lfads sample`."""

from __future__ import annotations

import argparse

from . import HDF5, add_accept_changed_data, add_trust, print_written

SUMMARY = "average posterior samples of a trained model"
TEXT = """\
Average posterior samples of a trained model and write one HDF5 file per session: rates,
factors, initial conditions, inferred inputs, and every key of the data file. Of a search,
its best model is sampled, or all its final members (--ensemble: rates alone).
A checkpoint of the existing lfads_torch may not say which reconstruction it has: --config names
the YAML of its model, --reconstruction the kind."""
EXAMPLES = """\
  lfads sample runs/my_run
  lfads sample runs/my_run --samples 200 --last
  lfads sample runs/my_run --data new_trials.h5 --output new_rates.h5
  lfads sample runs/my_search --ensemble
  lfads sample old/last.ckpt --data maze.h5 --reconstruction gaussian
  lfads sample old/best_model --data maze.h5 --config configs/model/maze.yaml"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add = parser.add_argument
    add("run_folder", metavar="RUN", help="run folder or checkpoint")
    add("--data", metavar="FILE", help="other trials of the same channels (the run's own data)")
    add("--samples", type=int, default=50, metavar="N", help="posterior samples (%(default)s)")
    add(
        "--output",
        type=HDF5,
        metavar="FILE",
        help="output file (RUN/lfads_output.h5; RUN/<data>_output.h5)",
    )
    add("--overwrite", action="store_true", help="replace the output file that is there")
    add("--ensemble", action="store_true", help="mean rates of the final members of a search")
    add("--members", type=int, metavar="N", help="only the N best of them (all)")
    add("--config", metavar="FILE", help="YAML of the model, or of the run, of an old checkpoint")
    add(
        "--reconstruction",
        metavar="NAME",
        help="that of an old checkpoint: poisson, mse, gaussian, gamma, "
        "'ZeroInflatedGamma(gamma_loc=0.1, ...)'",
    )
    add_trust(parser)
    add_accept_changed_data(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--best", action="store_true", help="best checkpoint (default)")
    which.add_argument("--last", action="store_true", help="last checkpoint")


def run(options: argparse.Namespace) -> int:
    """Run the command; see ``lfads sample --help``."""
    from ..runs.sampling import sample_run

    paths = sample_run(
        options.run_folder,
        data=options.data,
        num_samples=options.samples,
        output=options.output,
        overwrite=options.overwrite,
        best=not options.last,
        ensemble=options.ensemble,
        members=options.members,
        config=options.config,
        reconstruction=options.reconstruction,
        trust=options.trust,
        accept_changed_data=options.accept_changed_data,
    )
    print_written(*paths)
    return 0
