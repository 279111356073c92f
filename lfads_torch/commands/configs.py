"""`lfads configs`."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from shutil import get_terminal_size

SUMMARY = "list the configurations that can be chosen"
TEXT = """\
List the primary configurations (--config NAME) and the files of each group (GROUP=NAME), each with
the comment that its file begins with. Those of a folder configs/ in the working directory come
first and hide packaged ones of the same name."""
EXAMPLES = """\
  lfads configs
  lfads configs model
  lfads train my_data.h5 model=nlb_mc_maze --cfg     what would run"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("group", nargs="?", metavar="GROUP", help="only the files of this group")


def run(options: argparse.Namespace) -> int:
    """Run the command; see ``lfads configs --help``."""
    from ..errors import one_of
    from ..runs.compose import option_files

    files = option_files()
    named = [group for group in files if group]  # the primary configurations are the group ""
    groups = [one_of("GROUP", options.group, named)] if options.group else list(files)
    width = max(len(name) for group in groups for name in files[group])
    for group in groups:
        print(f"{group}=NAME" if group else "--config NAME")
        for name, path in sorted(files[group].items()):
            line = f"  {name:{width}}  {_first_comment(path)}".rstrip()
            # A terminal gets a line for each; a file or a pipe has room for the whole.
            print(line[: get_terminal_size().columns] if sys.stdout.isatty() else line)
    return 0


def _first_comment(path: Path) -> str:
    """Return the first sentence of the comment that a file begins with."""
    words: list[str] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.startswith("#"):
            break
        words += line.lstrip("# ").split()
    sentence = re.split(r"(?<=\w)[.:] ", " ".join(words), maxsplit=1)[0]
    return sentence.rstrip(".")
