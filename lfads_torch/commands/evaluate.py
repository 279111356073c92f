"""`lfads evaluate`."""

from __future__ import annotations

import argparse

from ..files import expanded
from . import FOLDER, print_written, seed_number, writing_into

SUMMARY = "score a run beside simpler methods"
TEXT = """\
Score what a run inferred of its validation trials: bits per spike (read, held-out, forward),
PSTHs, decoding of behaviour, agreement with true rates and latents; beside smoothed spikes,
PSTHs and factor analysis, with bootstrap intervals over trials. Prints a table and writes
scores.json and scores.md into the run folder. docs/scores.md describes all rows."""
EXAMPLES = """\
  lfads evaluate runs/my_run
  lfads evaluate runs/my_run --behavior hand_vel --condition target
  lfads evaluate runs/my_run --split test --draws 5000
  lfads evaluate runs/my_run --baselines smoothing,psth,psth-oracle
  lfads evaluate runs/my_run --few-shot 10,30,100,all"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add = parser.add_argument
    add("run_folder", metavar="RUN", help="run folder or output file")
    add("--split", default="valid", help="trials to score: train, valid or test (%(default)s)")
    add("--behavior", default="behavior", metavar="KEY", help="what to decode (%(default)s)")
    add("--condition", metavar="KEY", help="each trial's condition (cond_idx, target, ...)")
    add("--latents", default="latents", metavar="KEY", help="true latents (%(default)s)")
    add("--bin-ms", type=float, metavar="MS", help="bin width, where the data do not say it")
    add("--draws", type=int, default=1000, metavar="N", help="bootstrap draws (%(default)s)")
    add("--level", type=float, default=0.95, help="of the intervals (%(default)s)")
    add("--seed", type=seed_number, default=0, help="of the draws (%(default)s)")
    add("--by-time", type=int, metavar="N", help="also N consecutive parts of time, and the slope")
    add("--few-shot", metavar="N[,all]", help="score channels never seen after N training trials")
    rows = parser.add_mutually_exclusive_group()
    rows.add_argument(
        "--baselines",
        type=_names,
        metavar="NAMES",
        default=True,
        help="simpler methods beside the model, such as smoothing,psth-oracle",
    )
    rows.add_argument(
        "--no-baselines",
        dest="baselines",
        action="store_const",
        const=False,
        help="only the model",
    )
    add("--output", type=FOLDER, metavar="DIR", help="folder for the files (the run folder)")


def _names(text: str) -> list[str]:
    return text.split(",")


def run(options: argparse.Namespace) -> int:
    """Run the command; see ``lfads evaluate --help``."""
    from ..post_run.evaluation import evaluate_run
    from ..post_run.evaluation.few_shot import parse_few_shot

    with writing_into(options.run_folder, options.output):
        evaluation = evaluate_run(
            options.run_folder,
            split=options.split,
            baselines=options.baselines,
            n_draws=options.draws,
            level=options.level,
            seed=options.seed,
            bin_ms=options.bin_ms,
            behavior=options.behavior,
            condition=options.condition,
            latents=options.latents,
            by_time=options.by_time,
            few_shot=parse_few_shot(options.few_shot) if options.few_shot else (),
        )
        print(evaluation.text())
        place = expanded(options.run_folder).absolute()
        folder = expanded(options.output or (place if place.is_dir() else place.parent))
        print()
        print_written(*evaluation.write(folder))
    return 0
