"""The command line, `lfads`. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import argparse
import io
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn, TextIO

from . import progress
from .commands import COMMANDS, with_data
from .consent import look_in
from .errors import UserError, WriteError, did_you_mean, nearest
from .processes import Stopped, stoppable

#: What shells report for a process that a signal ended is 128 more than its number.
SIGNALLED, INTERRUPTED = 128, 128 + 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command."""
    # A name from a disk that was written with another encoding can be printed all the same.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    parser = build_parser()
    words = sys.argv[1:] if arguments is None else list(arguments)
    command = next((word for word in words if not word.startswith("-")), None)
    if command is not None and command not in COMMANDS:
        parser.error(f"there is no command {command!r}; {did_you_mean(command, COMMANDS)}")
    # Not `parse_args`: overrides may also stand after an option, where argparse gives up.
    options, rest = parser.parse_known_args(words)
    if options.command is None:
        parser.print_help()
        return 0
    takes_overrides = hasattr(options, "overrides")
    strange = [text for text in rest if text.startswith("-") or not takes_overrides]
    if strange:
        _refuse(options.parser, strange)
    warnings.showwarning = _show_warning
    _warned.clear()
    progress.Line.is_silent = options.quiet
    # A user's own components are in the working directory. It comes last on the path, so that a
    # file there, such as random.py, hides no installed module.
    look_in(str(Path.cwd()))
    try:
        if takes_overrides:
            options.overrides = with_data(options.overrides + rest)
        with stoppable(), progress.quiet_libraries(options.verbose):
            return int(options.run(options))
    except UserError as error:
        if options.verbose:
            raise
        for text in (*getattr(error, "__notes__", ()), f"lfads {options.command}: {error}"):
            print(text, file=sys.stderr)
        if isinstance(error, WriteError) and (how := getattr(options, "resume_with", None)):
            print(f"once that is mended, go on with: {how}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        how = getattr(options, "resume_with", None)
        hint = f"; go on with: {how}" if how else ""
        why = str(error) if isinstance(error, Stopped) else "interrupted"
        print(f"\nlfads {options.command}: {why}{hint}", file=sys.stderr)
        return SIGNALLED + error.number if isinstance(error, Stopped) else INTERRUPTED
    finally:
        if hasattr(options, "made"):
            with suppress(OSError):  # something was written
                options.made.rmdir()


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="lfads",
        description="Latent factor analysis via dynamical systems: train, sample, check data.",
        epilog="examples:\n"
        "  lfads demo                                       see what LFADS does, in minutes\n"
        "  lfads check my_data.h5                           is my file fit for training?\n"
        "  lfads train my_data.h5\n"
        "  lfads sample runs/my_run --samples 100\n"
        "\n`lfads COMMAND --help` says more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="versions, commit and kernels")
    _add_loudness(parser, default=False)
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
        _add_loudness(command, default=argparse.SUPPRESS)
        command.set_defaults(run=module.run, parser=command, program=parser)
    return parser


def _add_loudness(parser: argparse.ArgumentParser, default: Any) -> None:
    """Add ``-q`` and ``-v``, which may stand before and after the command."""
    add = parser.add_mutually_exclusive_group().add_argument
    options: Any = {"action": "store_true", "default": default}
    add("-q", "--quiet", help="no progress and no warnings", **options)
    add("-v", "--verbose", help="what libraries say, and tracebacks", **options)


def _refuse(parser: argparse.ArgumentParser, words: Sequence[str]) -> NoReturn:
    """Name arguments that a command does not have, and what is spelt alike."""
    legal = [name for action in parser._actions for name in action.option_strings]
    near = [name for word in words for name in nearest(word.partition("=")[0], legal, most=1)]
    hint = f"; did you mean {' or '.join(dict.fromkeys(near))}?" if near else ""
    parser.error(f"there is no {', '.join(words)}{hint}")


class _Version(argparse.Action):
    """Print what computes here; torch is imported for it, so not before it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *args: Any) -> NoReturn:
        from .provenance import describe_install

        print(describe_install())
        parser.exit()


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    # A command that trains several models of one file would say the same of the file each time.
    if not progress.Line.is_silent and str(message) not in _warned:
        _warned.add(str(message))
        print(f"warning: {message}", file=file or sys.stderr)


_warned: set[str] = set()


if __name__ == "__main__":
    # `python -m` puts the working directory first on the path, before the libraries. See `look_in`.
    if sys.path[:1] == [str(Path.cwd())]:
        del sys.path[0]
    sys.exit(main())
