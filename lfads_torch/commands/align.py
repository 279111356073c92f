"""`lfads align`."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from ..errors import UserError
from . import add_accept_changed_data, add_trust, print_result, seed_number, start_run

SUMMARY = "align a trained model to another day, without labels"
TEXT = """\
Use a trained model and its decoder on another day's neurons, without behaviour of that day. The
dynamics stay as they are; a read-in, an aligner and a read-out are trained from several starts,
so that the generator's states are distributed as on day 0 and the new day's spikes are likely.
Epoch and start are chosen by both on validation windows. The result is an ordinary run of the
new day: lfads decode OUT --apply decoder.json, lfads stream, lfads export.
Always align to day 0. --epochs 0 only normalises the channels and keeps day 0's maps.

A patent application, US 2022/0129071 A1, covers related methods for aligning latent dynamics
across sessions; this project grants no right under patents of others; check before commercial
use. See docs/alignment.md and NOTICE."""
EXAMPLES = """\
  lfads align runs/day0 day95.h5 --run-dir runs/day95
  lfads align runs/day0 day95.h5 --divergence mmd --weight-nll 5 --seeds 10
  lfads align runs/day0 day95.h5 --epochs 0 --run-dir runs/day95_normalised
  lfads align --resume runs/day95
  lfads decode runs/day95 --apply runs/day0/decoder.json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add = parser.add_argument
    add("run_folder", metavar="RUN", nargs="?", help="run folder or checkpoint of day 0")
    add("day", metavar="DAY.h5", nargs="?", help="data file of the new day")
    add("--run-dir", metavar="OUT", help="new run folder (runs/<time>_align_<day>)")
    add("--resume", metavar="OUT", help="go on with the alignment in this folder")
    add("--session", metavar="S", help="day 0's session, of a run of several")
    add("--divergence", default="coral", metavar="coral|kl|mmd", help="of the states (%(default)s)")
    add("--states", default="gen_states", metavar="gen_states|factors", help="(%(default)s)")
    add("--weight-moments", type=float, default=1.0, metavar="W", help="of it (%(default)s)")
    add("--weight-nll", type=float, default=10.0, metavar="W", help="of the loss (%(default)s)")
    add("--init", default="auto", metavar="auto|day0|pcr|random", help="starts (%(default)s)")
    add("--conditions", metavar="KEY", help="start from averages of these conditions, too")
    add("--seeds", type=int, default=6, metavar="N", help="starts that train (%(default)s)")
    add("--epochs", type=int, default=200, metavar="N", help="(%(default)s); 0: none")
    add("--lr", type=float, default=1e-3, metavar="RATE", help="learning rate (%(default)s)")
    add("--batch-size", type=int, metavar="N", help="windows of a step (64, or more)")
    add("--samples", type=int, default=50, metavar="N", help="of the posterior (%(default)s)")
    add("--seed", type=seed_number, default=0, metavar="N", help="the first seed (%(default)s)")
    add("--last", action="store_true", help="begin from the last checkpoint, not the best")
    add("--overwrite", action="store_true", help="delete the run that OUT holds")
    add_trust(parser)
    add_accept_changed_data(parser)


def run(options: argparse.Namespace) -> int:
    """Run the command; see ``lfads align --help``."""
    if options.resume and (options.run_folder or options.run_dir or options.overwrite):
        raise UserError("--resume goes on with OUT and its settings; give nothing else with it")
    if not options.resume and (options.run_folder is None or options.day is None):
        raise UserError("name the run of day 0 and the new day's file: lfads align RUN DAY.h5")
    from ..sessions.align_day import AlignOptions, align_day, resume_alignment

    if options.resume:
        folder = start_run(options, "", "align")
        alignment = resume_alignment(
            folder,
            verbose=options.verbose,
            trust=options.trust,
            accept_changed_data=options.accept_changed_data,
        )
    else:
        given = AlignOptions(
            session=options.session,
            divergence=options.divergence,
            states=options.states,
            weight_moments=options.weight_moments,
            weight_nll=options.weight_nll,
            init=options.init,
            conditions=options.conditions,
            seeds=options.seeds,
            epochs=options.epochs,
            lr=options.lr,
            batch_size=options.batch_size,
            num_samples=options.samples,
            seed=options.seed,
        )
        folder = start_run(options, f"align_{Path(options.day).stem}", "align")
        alignment = align_day(
            options.run_folder,
            options.day,
            folder,
            given,
            best=not options.last,
            overwrite=options.overwrite,
            verbose=options.verbose,
            trust=options.trust,
            accept_changed_data=options.accept_changed_data,
        )
    print(f"\n{alignment.text()}")
    print_result(alignment.result, folder / "alignment.json")
    print(f"      lfads decode {shlex.quote(str(folder))} --apply DAY0/decoder.json")
    return 0
