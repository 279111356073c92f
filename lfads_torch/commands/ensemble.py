"""`lfads ensemble`."""

from __future__ import annotations

import argparse
import json

from . import FOLDER, add_accept_changed_data, add_trust, print_written, seed_number, terminal_line

SUMMARY = "choose among trained models and average their rates"
TEXT = """\
Average the rates of several models of the same data: runs, seeds, members of a search. Greedy
selection takes, one after another and with replacement, the model that helps the mean most on
trials that nothing else is scored on: the split `select` of the data file (lfads prep --select
0.1), else a third of the validation trials. The folder is a run folder to lfads evaluate,
report, compare, nlb-submit, and sample --data."""
EXAMPLES = """\
  lfads ensemble runs/seed* -o runs/mean
  lfads ensemble runs/my_search -o runs/mean --select top:8
  lfads ensemble runs/a runs/b runs/c -o runs/mean --metric bps --json
  lfads ensemble runs/seed* -o runs/mean --also mint
  lfads sample runs/mean --data new_trials.h5"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add = parser.add_argument
    add("run_folders", nargs="+", metavar="RUN", help="runs, searches, folders of seeds")
    add("-o", "--output", type=FOLDER, required=True, metavar="DIR", help="folder of the ensemble")
    add("--select", default="greedy", metavar="HOW", help="greedy, top:N or all (%(default)s)")
    add("--max", type=int, default=32, metavar="N", help="greedy choices at most (%(default)s)")
    add("--metric", metavar="NAME", help="co_bps, bps, fp_bps or loss (the first that there is)")
    add(
        "--select-split",
        type=_fraction_or_split,
        metavar="FRACTION|SPLIT",
        help="trials that select: of the validation trials, or a split (select, else a third)",
    )
    add("--split", metavar="NAME", help="trials that are scored (test, else valid)")
    add("--space", default="rate", metavar="NAME", help="average of rate or log (%(default)s)")
    add("--samples", type=int, default=50, metavar="N", help="posterior samples (%(default)s)")
    add(
        "--seed",
        type=seed_number,
        default=0,
        metavar="N",
        help="of the draw of trials (%(default)s)",
    )
    add("--checkpoints", action="store_true", help="every checkpoint of a run is a member")
    add("--data", metavar="FILE", help="other trials of the same channels (the runs' own data)")
    add(
        "--also",
        action="append",
        default=[],
        metavar="NAME",
        help="a baseline as a member: mint, mint-causal (libraries of PSTHs)",
    )
    add("--condition", metavar="KEY", help="each trial's condition, for --also (target, ...)")
    add("--overwrite", action="store_true", help="replace the ensemble that DIR holds")
    add("--json", action="store_true", help="print ensemble.json instead of the table")
    add_trust(parser)
    add_accept_changed_data(parser)


def _fraction_or_split(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def run(options: argparse.Namespace) -> int:
    """Run the command; see ``lfads ensemble --help``."""
    from ..runs.ensembling import make_ensemble

    with terminal_line() as line:
        ensemble = make_ensemble(
            options.run_folders,
            options.output,
            select=options.select,
            most=options.max,
            metric=options.metric,
            select_split=options.select_split,
            split=options.split,
            space=options.space,
            num_samples=options.samples,
            seed=options.seed,
            checkpoints=options.checkpoints,
            data=options.data,
            also=options.also,
            condition=options.condition,
            overwrite=options.overwrite,
            trust=options.trust,
            accept_changed_data=options.accept_changed_data,
            tell=lambda text: line.show(f"{text} ..."),
        )
    if options.json:
        print(json.dumps(ensemble.to_dict()))
        return 0
    print(ensemble.text())
    print_written(*ensemble.outputs, ensemble.path / "ensemble.json")
    return 0
