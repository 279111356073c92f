"""`lfads add-session`."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import add_accept_changed_data, add_trust, print_result, start_run

SUMMARY = "add a session to a trained model"
TEXT = """\
Give a trained model a read-in and a read-out for one more session and train only these, on
the new session's trials; what the model says of the other sessions stays as it is. With
--then-all everything is trained further on all sessions. The result is an ordinary run in
a folder of its own. What follows the files changes the configuration (KEY=VALUE)."""
EXAMPLES = """\
  lfads add-session runs/two_days day3.h5 --run-dir runs/three_days
  lfads add-session runs/two_days day3.h5 --conditions target --epochs 50
  lfads add-session runs/two_days day3.h5 --then-all 100 model.lr_init=2e-3"""
TAKES_OVERRIDES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add = parser.add_argument
    add("run_folder", metavar="RUN", help="run folder or checkpoint of the trained model")
    add("new", metavar="FILE", help="data file of the new session")
    add(
        "overrides", nargs="*", default=[], metavar="KEY=VALUE", help="changes of the configuration"
    )
    add("--run-dir", metavar="DIR", help="new run folder (runs/<time>_add_<new>)")
    add("--epochs", type=int, default=100, metavar="N", help="of the new maps (%(default)s)")
    add("--then-all", type=int, default=0, metavar="N", help="epochs of everything, after that")
    add("--conditions", metavar="KEY", help="start the maps from averages of these conditions")
    add("--data", nargs="+", metavar="FILE", help="files of the other sessions (the run's own)")
    add("--last", action="store_true", help="begin from the last checkpoint, not the best")
    add("--overwrite", action="store_true", help="delete the run that DIR holds")
    add_trust(parser)
    add_accept_changed_data(parser)


def run(options: argparse.Namespace) -> int:
    """Run the command; see ``lfads add-session --help``."""
    from ..sessions.add import add_session

    # The result is an ordinary run, so `lfads train --resume` goes on with it.
    folder = start_run(options, f"add_{Path(options.new).stem}")
    added = add_session(
        options.run_folder,
        options.new,
        folder,
        epochs=options.epochs,
        all_epochs=options.then_all,
        conditions=options.conditions,
        data=options.data,
        overrides=options.overrides,
        best=not options.last,
        overwrite=options.overwrite,
        trust=options.trust,
        accept_changed_data=options.accept_changed_data,
    )
    width = max(map(len, added.losses))
    print("\nreconstruction loss on validation trials, before and after")
    for name, (before, after) in added.losses.items():
        note = "  (new)" if name == added.name else ""
        print(f"  {name:{width}}  {before:.5f}  {after:.5f}{note}")
    print_result(added.result)
    return 0
