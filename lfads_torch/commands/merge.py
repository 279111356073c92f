"""`lfads merge`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import UserError
from ..files import expanded
from . import HDF5, check_named, writing_into

SUMMARY = "join overlapping windows to one continuous recording"
TEXT = """\
Join what a model inferred for overlapping windows to continuous series: rates, factors,
inferred inputs and every series of the data file, NaN where there is no window. A run
folder gives one file per session, lfads_merged_sess0.h5 and so on; of another file
(windows, or the output of lfads sample) <name>_merged.h5 is made beside it."""
EXAMPLES = """\
  lfads merge runs/continuous
  lfads merge runs/continuous --only output_params factors
  lfads merge runs/wrist --positions inds --overlap 6
  lfads merge new_rates.h5 --output continuous_rates.h5"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add = parser.add_argument
    add("place", metavar="RUN|FILE", help="run folder, or HDF5 file of windows")
    add("--output", type=HDF5, metavar="FILE", help="merged file (of a single session)")
    add("--overwrite", action="store_true", help="replace that file if it is there")
    add("--only", nargs="+", metavar="NAME", help="series to join, without their split (all)")
    add("--positions", metavar="KEY", help="per-window key that numbers windows cut elsewhere")
    add("--overlap", type=int, metavar="N", help="bins that such neighbours share")


def run(options: argparse.Namespace) -> int:
    """Run the command; see ``lfads merge --help``."""
    from ..post_run.outputs import output_files
    from ..prep.merging import merge_file

    check_named(options.output, options.place, options.overwrite)
    place = expanded(options.place)
    # None: `merge_file` names the result after its source.
    jobs: list[tuple[Path, Path | None]]
    if place.is_dir():
        jobs = [
            (path, place / f"lfads_merged_sess{number}.h5")
            for number, path in enumerate(output_files(place))
        ]
    else:
        jobs = [(place, None)]
    if options.output:
        if len(jobs) > 1:
            raise UserError(
                f"{place} holds {len(jobs)} sessions; --output is for one: name the session's "
                f"output file ({jobs[0][0].name}), or leave --output out"
            )
        jobs = [(jobs[0][0], expanded(options.output))]
    with writing_into(options.place, options.output):
        for source, target in jobs:
            path = merge_file(
                source,
                target,
                only=options.only,
                positions=options.positions,
                overlap=options.overlap,
            )
            print(f"written: {path}")
    return 0
