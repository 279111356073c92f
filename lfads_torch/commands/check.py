"""`lfads check`."""

from __future__ import annotations

import argparse

SUMMARY = "look a data file through"
TEXT = """\
Print keys, shapes, types and mean rates of data files, and every problem found.
The exit status is 1 if a file cannot be used as it is."""
EXAMPLES = """\
  lfads check my_data.h5
  lfads check sessions/*.h5"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="HDF5 data files")


def run(options: argparse.Namespace) -> int:
    """Run the command; see ``lfads check --help``."""
    from ..data import check_file
    from ..data.find import find_sessions

    reports = [check_file(file) for file in find_sessions(options.files)]
    print("\n\n".join(report.format() for report in reports))
    return int(any(report.errors for report in reports))
