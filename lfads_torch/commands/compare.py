"""`lfads compare`."""

from __future__ import annotations

import argparse

from . import PAGE, terminal_line
from .report import add_data_arguments, wanted_of

SUMMARY = "write one HTML page with several runs beside each other"
TEXT = """\
Write one HTML file with several runs beside each other: scores, warnings, the settings that
differ, training curves and figures. Like a report it loads nothing and runs no script."""
EXAMPLES = """\
  lfads compare runs/small runs/large
  lfads compare runs/seed* --output seeds.html --condition target
  lfads compare runs/seed* --cross"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add = parser.add_argument
    add("run_folders", nargs="+", metavar="RUN", help="run folders, two or more")
    add("--output", type=PAGE, metavar="FILE", help="the page (comparison.html)")
    add("--cross", action="store_true", help="also R2 of each run's factors from each other's")
    add_data_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Run the command; see ``lfads compare --help``."""
    from ..post_run.report import compare_runs

    with terminal_line() as line:
        report = compare_runs(
            options.run_folders,
            options.output,
            wanted_of(options),
            cross=options.cross,
            tell=lambda text: line.show(f"{text} ..."),
        )
    print(f"written: {report.path}")
    return 0
