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
    # What other programs understand, and a beginner types first.
    if words[:1] == ["help"]:
        words = [*words[1:2], "--help"]
    elif words == ["version"]:
        words = ["--version"]
    command = next((word for word in words if not word.startswith("-")), None)
    if command is not None and command not in COMMANDS:
        parser.error(f"there is no command {command!r}; {did_you_mean(command, COMMANDS)}")
    options, rest = parser.parse_known_args(words)
    if rest:
        _refuse(getattr(options, "parser", parser), rest, options)
    if options.command is None:
        parser.print_help()
        return 0
    warnings.showwarning = _show_warning
    _warned.clear()
    progress.Line.is_silent = options.quiet
    # A user's own components are in the working directory. It comes last on the path, so that a
    # file there, such as random.py, hides no installed module.
    look_in(str(Path.cwd()))
    try:
        if hasattr(options, "overrides"):
            options.overrides = with_data(options.overrides)
        with stoppable(), progress.quiet_libraries(options.verbose):
            return int(options.run(options))
    except UserError as error:
        if options.verbose:
            raise
        for text in (*getattr(error, "__notes__", ()), f"lfads {options.command}: {error}"):
            print(text, file=sys.stderr)
        if isinstance(error, WriteError) and (how := _how_to_resume(options)):
            print(f"once that is mended, go on with: {how}", file=sys.stderr)
        return 2
    except OSError as error:
        # A folder that may not be entered, a name that is too long, a disk that is gone: any look
        # at a file can meet them. A file that is missing is noticed where it is looked for.
        if options.verbose or error.filename is None or isinstance(error, FileNotFoundError):
            raise
        why = f"{error.filename} cannot be used: {error.strerror}"
        print(f"lfads {options.command}: {why}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        how = _how_to_resume(options)
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
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_CommandParser)
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


class _CommandParser(argparse.ArgumentParser):
    """A parser of a command, whose arguments may stand on both sides of its options."""

    _splits = False

    def parse_known_args(self, *args: Any) -> Any:  # type: ignore[override]
        """Take the options first, then what is left."""
        # argparse gives up at the second of `lfads compare RUN1 --quick RUN2`. Its remedy calls
        # this method for either half.
        if self._splits:
            return super().parse_known_args(*args)
        self._splits = True
        try:
            return self.parse_known_intermixed_args(*args)
        finally:
            self._splits = False


def _refuse(
    parser: argparse.ArgumentParser, words: Sequence[str], options: argparse.Namespace
) -> NoReturn:
    """Name arguments that a command does not have, and what may have been meant."""
    strange = [word for word in words if word.startswith("-")]
    legal = [name for action in parser._actions for name in action.option_strings]
    if not strange:
        # A place where results shall go is what most people mean.
        place = next((name for name in ("--run-dir", "--output") if name in legal), None)
        hint = f"; where results go is said by {place} {words[0]}" if place else ""
        parser.error(f"no argument {words[0]!r} is expected here{hint}")
    near = [
        n for word in strange for n in nearest(word.partition("=")[0], legal, most=1, cutoff=0.7)
    ]
    hint = ""
    if not near and hasattr(options, "overrides"):
        from .runs.compose import keys_named

        near = [f"{key}=..." for word in strange for key in keys_named(word, options.command)]
        hint = f"; settings are KEY=VALUE, and `lfads {options.command} --cfg` lists them"
    hint = f"; did you mean {' or '.join(dict.fromkeys(near))}?" if near else hint
    parser.error(f"there is no {', '.join(strange)}{hint}")


def _how_to_resume(options: argparse.Namespace) -> str | None:
    """Return the command that goes on with what was begun, or None where nothing was."""
    if not hasattr(options, "resumes"):
        return None
    from .folder import RunFolder

    return options.resume_with if RunFolder(options.resumes).kind != "none" else None


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
