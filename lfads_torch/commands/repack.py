"""`lfads repack`."""

from __future__ import annotations

import argparse

from . import HDF5

SUMMARY = "write a data file anew so that trials are quick to read"
TEXT = """\
Copy an HDF5 file trial by trial: same keys, numbers and attributes. Sessions that stay in
their file because they are larger than memory are read many times faster from the copy, if
the original holds many trials in one compressed chunk. The file may be larger than memory."""
EXAMPLES = """\
  lfads repack my_data.h5 -o quick.h5
  lfads repack my_data.h5 -o smaller.h5 --compress"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add = parser.add_argument
    add("file", metavar="FILE", help="HDF5 data file")
    add("-o", "--output", type=HDF5, metavar="FILE", required=True, help="the new file")
    add("--compress", action="store_true", help="compress each trial with gzip: slower to read")
    add("--overwrite", action="store_true", help="replace the new file if it is there")


def run(options: argparse.Namespace) -> int:
    """Run the command; see ``lfads repack --help``."""
    from ..data.repack import repack

    path = repack(
        options.file, options.output, compress=options.compress, overwrite=options.overwrite
    )
    print(f"written: {path}")
    return 0
