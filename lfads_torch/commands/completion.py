"""`lfads completion`."""

from __future__ import annotations

import argparse

from ..errors import UserError

SUMMARY = "print what makes a shell complete commands and options"
TEXT = """\
Print a script with which a shell completes commands, options and file names of lfads."""
EXAMPLES = """\
  lfads completion bash >> ~/.bash_completion
  lfads completion zsh > ~/.zfunc/_lfads"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="the shell")


def run(options: argparse.Namespace) -> int:
    """Run the command; see ``lfads completion --help``."""
    try:
        import shtab
    except ImportError as error:
        raise UserError("this needs shtab: pip install 'lfads-torch[completion]'") from error
    print(shtab.complete(options.program, shell=options.shell))
    return 0
