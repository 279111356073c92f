"""The commands of `lfads`, one file each.

A command is a module with ``SUMMARY`` (a line), ``TEXT`` (what it does), ``EXAMPLES`` (command
lines), ``add_arguments(parser)`` and ``run(options) -> exit status``. A command with an argument
``overrides`` takes ``KEY=VALUE`` of the configuration and data files there, also after options.
`run` imports what is heavy, and calls `can_resume` where an interrupted command can be gone on
with. Every command has ``-q`` and ``-v``. To add a command: write its file and name it in
`COMMANDS`.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING

from ..arguments import ROOT
from ..errors import UserError
from ..files import cannot_write, check_writable, expanded
from ..progress import Line

if TYPE_CHECKING:
    from ..runs.run import RunResult
    from ..search.seeds import SeedResults

COMMANDS = (
    "demo",
    "prep",
    "train",
    "pbt",
    "search",
    "sample",
    "evaluate",
    "decode",
    "stream",
    "report",
    "compare",
    "ensemble",
    "export",
    "configs",
    "completion",
    "nlb-submit",
    "check",
    "repack",
    "merge",
    "split",
    "align-init",
    "align",
    "add-session",
)
"""In the order in which `lfads --help` lists them; ``some-name`` is in ``some_name.py``."""


def new_run_folder(options: argparse.Namespace, name: str) -> Path:
    """Make a run folder that did not exist, ``runs/<time>_<name>``; `options` remember it."""
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}_{name}"
    # The jobs of an array start within a second, and each needs its own: to make a folder says
    # whether it was there, to look beforehand does not.
    number = 1
    while True:
        folder = Path("runs", stem if number == 1 else f"{stem}-{number}").absolute()
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
        except OSError as error:
            raise cannot_write(folder, error) from error
        else:
            options.made = folder
            return folder


def can_resume(options: argparse.Namespace, folder: Path, command: str) -> None:
    """Let an interrupted command say how to go on, once the folder holds a run."""
    options.resumes = folder
    options.resume_with = f"lfads {command} --resume {shlex.quote(str(folder))}"


def start_run(options: argparse.Namespace, name: str, command: str = "train") -> Path:
    """Choose the run folder, to be said when the run begins; `command` resumes the run there."""
    from ..folder import RunFolder

    given = getattr(options, "resume", None) or options.run_dir or new_run_folder(options, name)
    folder = expanded(given).absolute()
    can_resume(options, folder, command)
    # Flushed, the folder stands in a batch job's log while the run goes on; JSON stands alone.
    place = sys.stderr if getattr(options, "json", False) else sys.stdout
    RunFolder.announced[folder] = lambda path: print(f"run folder: {path}", file=place, flush=True)
    return folder


#: What files of other kinds end in; a name such as rates.day2 says nothing of a kind.
_TABLES = (".csv", ".h5", ".hdf5", ".json", ".mat", ".npy", ".npz", ".nwb", ".tsv", ".txt", ".xlsx")
_ENDINGS = (*_TABLES, ".htm", ".html", ".pdf", ".png", ".svg")


def ending_in(*legal: str, only: bool = False) -> Callable[[str], str]:
    """Return the type of an option that names a file to write; of a folder, without endings.

    With `only`, no other ending is legal, else none that says of another kind of file.
    """

    def check(text: str) -> str:
        ending = Path(text).suffix.lower()
        if (only or ending in _ENDINGS) and ending not in legal:
            what = f"legal: {', '.join(legal)}" if legal else "it has to be a folder"
            raise argparse.ArgumentTypeError(f"{text} ends in {ending or 'nothing'}; {what}")
        return text

    return check


HDF5 = ending_in(".h5", ".hdf5")
JSON = ending_in(".json")
PAGE = ending_in(".html", ".htm")
FIGURE = ending_in(".png", ".pdf", ".svg", only=True)
FOLDER = ending_in()


def seed_number(text: str) -> int:
    """Read an option that seeds random numbers."""
    try:
        return int(ROOT["seed"].check("it", int(text)))
    except ValueError as error:  # ours is one, too
        raise argparse.ArgumentTypeError(
            f"{text!r} is no seed; legal are whole numbers from 0 to 4294967295"
        ) from error


def check_named(output: str | None, source: str, overwrite: bool) -> None:
    """Refuse to write over a file that was named: it is somebody's data or result."""
    from ..data.find import check_output

    if output:
        check_output(expanded(source).absolute(), expanded(output).absolute(), overwrite)


@contextmanager
def writing_into(run: str | Path, output: str | None = None) -> Iterator[None]:
    """Own a run's folder while a command writes into it; with `output` it writes elsewhere."""
    from ..folder import RunFolder

    folder = RunFolder.around(expanded(run).absolute())
    if output:
        check_writable(expanded(output))
    if output or folder.kind == "none":
        yield
        return
    with folder.owned("writing results"):
        yield


def check_resume(options: argparse.Namespace, kind: str) -> None:
    """Refuse options that contradict ``--resume``."""
    if options.resume and (options.run_dir or options.config or options.overwrite):
        raise UserError(
            f"--resume goes on in the {kind}'s own folder with its own configuration; it "
            "does not go with --run-dir, --config or --overwrite"
        )


def add_run_arguments(parser: argparse.ArgumentParser, configs: str, folder: str) -> None:
    """Add what every command that trains has; `configs` and `folder` say the defaults."""
    add = parser.add_argument
    add(
        "overrides",
        nargs="*",
        default=[],
        metavar="FILE|KEY=VALUE",
        help="data files, changes of the configuration",
    )
    add("--config", metavar="NAME|PATH", help=f"primary configuration ({configs})")
    add("--run-dir", metavar="DIR", help=f"run folder ({folder})")
    add("--resume", metavar="RUN", help="go on with what is in this folder")
    add("--overwrite", action="store_true", help="delete the run that DIR holds")
    add("--cfg", action="store_true", help="print the configuration and stop")
    add_trust(parser)
    add_accept_changed_data(parser)


def add_trust(parser: argparse._ActionsContainer) -> None:
    """Add the option that consents to a stranger's code."""
    parser.add_argument(
        "--trust",
        action="store_true",
        help="run also code outside this package that the run or checkpoint names",
    )


def add_accept_changed_data(parser: argparse.ArgumentParser) -> None:
    """Add the option that consents to data that have changed."""
    parser.add_argument(
        "--accept-changed-data",
        action="store_true",
        help="go on although the data files hold other numbers than the run was trained on",
    )


def print_written(*paths: Path | None) -> None:
    """Print a line for each file that was written; None stands for one that there is not."""
    for path in paths:
        if path is not None:
            print(f"written: {path}")


def print_result(result: RunResult, *more: Path) -> None:
    """Print a line for each file of a run, and give its output files their second names."""
    from ..folder import number_outputs

    number_outputs(result.outputs)
    print_written(result.best_checkpoint, *result.outputs, *more)
    folder, here = result.run_dir, Path.cwd()
    short = folder.relative_to(here) if folder.is_relative_to(here) else folder
    print(f"next: lfads report {shlex.quote(str(short))}")


def print_seeds(result: SeedResults) -> None:
    """Print the scores of several seeds, and their files."""
    print(result.text())
    folder = result.run_dir
    print_written(*(path for run in result.runs for path in run.outputs), folder / "seeds.json")
    names = shlex.quote(str(folder)), shlex.quote(f"{folder}_mean")
    print(f"next: lfads ensemble {names[0]} -o {names[1]}")


_GROUPS = r"(callbacks|datamodule|logger|model|posterior_sampling|search|trainer)\.\w+"


def with_data(overrides: Sequence[str]) -> list[str]:
    """Return overrides in which data files that stand alone became the data module's."""
    # A file may have "=" in its name, and a pattern may be left to us by the shell.
    files = [text for text in overrides if Path(text).exists() or not re.search(r"=|^~\w", text)]
    rest = [text for text in overrides if text not in files]
    if not files:
        return rest
    from ..data.find import no_match
    from ..folder import RunFolder

    for file in files:
        if Path(file).is_dir() and RunFolder(file).kind != "none":
            raise UserError(
                f"{file} is the folder of a run, not a data file; to go on with the run: --resume "
                f"{shlex.quote(file)}"
            )
        if Path(file).exists() or glob(file):
            continue
        # `model.gen_dim = 64`, `trainer.max_epochs 10`
        if file == "=" or re.match(_GROUPS, file):
            raise UserError(
                f"{file} sets nothing; a setting is one word, KEY=VALUE, without spaces"
            )
        raise UserError(no_match(file))
    if any(text.lstrip("+").startswith("datamodule.datafile_pattern=") for text in rest):
        raise UserError(f"{files[0]} and datamodule.datafile_pattern both name data; give one")
    from ..runs.compose import literal

    pattern = literal(files if len(files) > 1 else files[0])
    return [f"datamodule.datafile_pattern={pattern}", *rest]


def print_config(
    options: argparse.Namespace, config: str, groups: Mapping[str, str] | None = None
) -> int:
    """Print the configuration that a command would run with, as YAML."""
    from ..consent import trust_of
    from ..folder import CONFIG
    from ..runs.compose import compose_config, config_text, read_config

    place = options.config or config
    if options.resume:
        place = expanded(options.resume) / CONFIG
        read_config(place.parent, trust_of(place, options.trust))
    print(config_text(compose_config(place, options.overrides, groups=groups)), end="")
    return 0


def data_name(overrides: Sequence[str]) -> str:
    """Name the data that overrides choose, for a run folder."""
    given = dict(text.split("=", 1) for text in overrides if "=" in text)
    chosen = given.get("datamodule", "default")
    # Of several files, the first.
    pattern = given.get("datamodule.datafile_pattern", "").strip("[]").split(",")[0].strip("'\"")
    stem = Path(pattern).stem.replace("*", "").strip("_-. ") if pattern else ""
    # "default" says nothing of the data, the file's name does.
    return stem[:60] if chosen == "default" and stem else chosen


@contextmanager
def terminal_line(refresh_s: float = 0.0) -> Iterator[Line]:
    """Give a line of progress that is shown on terminals only, and clear it at the end."""
    line = Line(refresh_s=refresh_s, every_s=None)
    try:
        yield line
    finally:
        line.clear()
