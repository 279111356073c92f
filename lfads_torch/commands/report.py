"""`lfads report`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..files import check_writable, expanded
from . import FOLDER, PAGE, add_trust, print_written, terminal_line, writing_into

if TYPE_CHECKING:
    from ..post_run.report import Wanted

SUMMARY = "write one HTML page about a run"
TEXT = """\
Write one HTML file about a run: scores beside baselines, warnings, figures of every session,
dynamics, training, settings and how to reproduce it. The page loads nothing and runs no
script, so it can be mailed; it follows the reader's choice of light or dark. Scores are those
of `lfads evaluate`; where they are not there they are computed."""
EXAMPLES = """\
  lfads report runs/my_run
  lfads report runs/my_run --condition target --event-ms 200
  lfads report runs/my_run --figures talk/ --figure-format pdf
  lfads report runs/my_run --output my_run.html --quick"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add = parser.add_argument
    add("run_folder", metavar="RUN", help="run folder, also of a search")
    add("--output", type=PAGE, metavar="FILE", help="the page (RUN/report.html)")
    add(
        "--figures",
        type=FOLDER,
        metavar="DIR",
        help="also write the figures as files into this folder",
    )
    add("--figure-format", choices=("png", "pdf", "svg"), default="png", help="of these (png)")
    add_data_arguments(parser)


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what to look for in the data."""
    add = parser.add_argument
    add("--behavior", default="behavior", metavar="KEY", help="what to decode (%(default)s)")
    add("--condition", metavar="KEY", help="each trial's condition (cond_idx, target, ...)")
    add("--latents", default="latents", metavar="KEY", help="true latents (%(default)s)")
    event = parser.add_mutually_exclusive_group()
    event.add_argument("--event", metavar="KEY", help="each trial's bin to align inputs to")
    event.add_argument("--event-ms", type=float, metavar="MS", help="the same time in all trials")
    add("--bin-ms", type=float, metavar="MS", help="bin width, where the data do not say it")
    add("--quick", action="store_true", help="without baselines and fixed points")
    add_trust(parser)


def wanted_of(options: argparse.Namespace) -> Wanted:
    """Read what `add_data_arguments` added."""
    from ..post_run.evaluation.behavior import Keys
    from ..post_run.report import Wanted

    return Wanted(
        keys=Keys(options.behavior, options.latents, options.condition),
        event=options.event,
        event_ms=options.event_ms,
        bin_ms=options.bin_ms,
        quick=options.quick,
        trust=options.trust,
    )


def run(options: argparse.Namespace) -> int:
    """Run the command; see ``lfads report --help``."""
    from ..post_run.report import report_run

    if options.figures:
        check_writable(expanded(options.figures))
    with writing_into(options.run_folder, options.output), terminal_line() as line:
        report = report_run(
            options.run_folder,
            options.output,
            wanted_of(options),
            figures=options.figures,
            figure_format=options.figure_format,
            tell=lambda text: line.show(f"{text} ..."),
        )
    for finding in report.findings:
        print(f"{finding.level}: {finding.title}. {finding.text}")
    print_written(*report.figures, report.path)
    return 0
