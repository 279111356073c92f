"""`lfads split`."""

from __future__ import annotations

import argparse

from . import HDF5, seed_number

SUMMARY = "split a ready file of windows anew, without shared bins"
TEXT = """\
Put the windows of a ready data file together by their positions and cut them anew, so that no
bin is in two splits: in order of time (the first part trains, then comes validation, then test),
or by blocks. Use --by time for claims about later data, --by blocks to choose models.
Spikes and series keep their numbers."""
EXAMPLES = """\
  lfads split wrist.h5 -o wrist_time.h5 --by time --positions inds --overlap 6
  lfads split chopped.h5 -o chopped_time.h5 --valid 0.1 --test 0.2 --guard 30"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add = parser.add_argument
    add("file", metavar="FILE", help="HDF5 data file of windows")
    add("-o", "--output", type=HDF5, metavar="OUT", required=True, help="the new file")
    add("--by", default="time", help="time or blocks (%(default)s)")
    add("--positions", metavar="KEY", help="per-window key that numbers windows cut elsewhere")
    add("--overlap", type=int, metavar="N", help="bins that such neighbours share")
    add("--valid", type=float, default=0.1, metavar="FRACTION", help="validates (%(default)s)")
    add("--test", type=float, default=0.2, metavar="FRACTION", help="put aside (%(default)s)")
    add("--guard", type=int, default=0, metavar="BINS", help="left out at borders (%(default)s)")
    add("--block", type=int, metavar="BINS", help="length of a block (ten windows)")
    add("--seed", type=seed_number, default=0, metavar="N", help="of the blocks (%(default)s)")
    add("--overwrite", action="store_true", help="replace the new file if it is there")


def run(options: argparse.Namespace) -> int:
    """Run the command; see ``lfads split --help``."""
    from ..prep.resplit import split_file

    names = ("by", "positions", "overlap", "valid", "test", "guard", "block", "seed", "overwrite")
    done = split_file(
        options.file, options.output, **{name: getattr(options, name) for name in names}
    )
    windows = ", ".join(f"{split} {count}" for split, count in done.windows.items())
    print(f"{windows} windows; {done.uncovered} bins of the recording are in none")
    if done.left_out:
        from ..data import list_some

        print(f"left out, since they have no row for each window: {list_some(done.left_out)}")
    print(f"written: {done.path}")
    print(f"next: lfads check {done.path}")
    return 0
