"""`lfads export`."""

from __future__ import annotations

import argparse

from ..errors import UserError
from . import print_written, writing_into

SUMMARY = "write rates, factors and inferred inputs into an NWB file"
TEXT = """\
Write what a model inferred into an NWB file: rates, factors and inferred inputs over the time of
the recording, and a table of trials (or windows) with initial conditions. Windows of a continuous
recording are joined. With --source, results are added to a copy of the recording's NWB file."""
EXAMPLES = """\
  lfads export runs/my_run
  lfads export runs/my_run results.nwb
  lfads export runs/my_run results.nwb --source session.nwb
  lfads export runs/my_run/lfads_output_day1.h5 day1.nwb"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add = parser.add_argument
    add("run_folder", metavar="RUN", help="run folder or output file")
    add("file", nargs="?", metavar="FILE", help="NWB file to write (RUN/lfads_<session>.nwb)")
    add("-o", "--output", metavar="FILE", help="the same")
    add(
        "--source", metavar="NWB", help="NWB file of the recording, to whose copy results are added"
    )
    add("--bin-ms", type=float, metavar="MS", help="bin width, where the data do not say it")
    add("--overwrite", action="store_true", help="replace the NWB file if it is there")


def run(options: argparse.Namespace) -> int:
    """Run the command; see ``lfads export --help``."""
    from ..post_run.export import export_nwb

    if options.file and options.output:
        raise UserError(f"two files to write, {options.file} and {options.output}; name one")
    with writing_into(options.run_folder, options.file or options.output):
        paths = export_nwb(
            options.run_folder,
            options.file or options.output,
            source=options.source,
            bin_ms=options.bin_ms,
            overwrite=options.overwrite,
        )
    print_written(*paths)
    return 0
