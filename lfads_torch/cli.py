"""The command line, `lfads`. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TextIO

from . import __version__
from .commands import COMMANDS
from .errors import UserError

#: What shells report for a process that Ctrl-C ended: 128 + SIGINT.
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command."""
    parser = build_parser()
    # Not `parse_args`: overrides may also stand after an option, where argparse gives up.
    options, rest = parser.parse_known_args(arguments)
    takes_overrides = getattr(options, "takes_overrides", False)
    if rest and (not takes_overrides or any(text.startswith("-") for text in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # overrides after an option
        options.overrides += rest
    if options.command is None:
        parser.print_help()
        return 0
    warnings.showwarning = _show_warning
    # A user's own components are in the working directory. It comes last on the path, so that a
    # file there, such as random.py, hides no installed module.
    sys.path.append(str(Path.cwd()))
    try:
        return int(options.run(options))
    except UserError as error:
        for text in (*getattr(error, "__notes__", ()), f"lfads {options.command}: {error}"):
            print(text, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        how = getattr(options, "resume_with", None)
        hint = f"; go on with: {how}" if how else ""
        print(f"\nlfads {options.command}: interrupted{hint}", file=sys.stderr)
        return INTERRUPTED


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="lfads",
        description="Latent factor analysis via dynamical systems: train, sample, check data.",
        epilog="examples:\n"
        "  lfads demo                                       see what LFADS does, in minutes\n"
        "  lfads check my_data.h5                           is my file fit for training?\n"
        "  lfads train datamodule.datafile_pattern=my_data.h5\n"
        "  lfads sample runs/my_run --samples 100\n"
        "\n`lfads COMMAND --help` says more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"lfads-torch {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name in COMMANDS:
        module = import_module(f"lfads_torch.commands.{name.replace('-', '_')}")
        command = commands.add_parser(
            name,
            help=module.SUMMARY,
            description=module.TEXT,
            epilog=f"examples:\n{module.EXAMPLES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(
            run=module.run, takes_overrides=getattr(module, "TAKES_OVERRIDES", False)
        )
    return parser


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    print(f"warning: {message}", file=file or sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
