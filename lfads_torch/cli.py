"""The command line, `lfads`. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from . import __version__
from .errors import UserError

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    arguments : sequence of str, optional
        As typed after ``lfads``; those of the process by default.

    Returns
    -------
    int
        Exit status: 0 done, 1 `lfads check` found problems, 2 a mistake that the user can mend,
        130 interrupted.
    """
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and (options.command != "train" or any(text.startswith("-") for text in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # overrides after an option
        options.overrides += rest
    if options.command is None:
        parser.print_help()
        return 0
    warnings.showwarning = _show_warning
    # components of one's own lie where the command is started
    sys.path.append(str(Path.cwd()))
    try:
        return int(options.run(options))
    except UserError as error:
        print(f"lfads {options.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        folder = getattr(options, "folder", None)
        how = f"; go on with: lfads train --resume {folder}" if folder else ""
        print(f"\nlfads {options.command}: interrupted{how}", file=sys.stderr)
        return INTERRUPTED


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line.

    Returns
    -------
    argparse.ArgumentParser
    """
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
    _add_demo(commands)
    _add_train(commands)
    _add_sample(commands)
    _add_check(commands)
    return parser


def _add(commands: Any, name: str, summary: str, text: str, examples: str) -> Any:
    command = commands.add_parser(
        name,
        help=summary,
        description=text,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=globals()[f"_{name}"])
    return command


def _add_demo(commands: Any) -> None:
    command = _add(
        commands,
        "demo",
        "generate spikes, train, score and draw",
        "Generate spikes of a population that is driven by a Lorenz system, train LFADS on them,\n"
        "average posterior samples, score them against the truth and draw figures.",
        "  lfads demo\n  lfads demo --units 60 --mean-rate 0.1 --run-dir runs/sparse",
    )
    add = command.add_argument
    add("--seed", type=int, default=0, help="seed of data and training (%(default)s)")
    add("--conditions", type=int, default=65, help="initial states (%(default)s)")
    add("--trials", type=int, default=16, help="trials of each condition (%(default)s)")
    add("--units", type=int, default=30, help="units (%(default)s)")
    add("--bins", type=int, default=50, help="bins of a trial (%(default)s)")
    add("--mean-rate", type=float, default=0.3, help="spikes per bin and unit (%(default)s)")
    add("--epochs", type=int, help="epochs at most (as in the demo's configuration)")
    add("--run-dir", metavar="DIR", help="run folder (runs/<time>_demo)")
    add("--overwrite", action="store_true", help="delete the run that DIR holds")


def _add_train(commands: Any) -> None:
    command = _add(
        commands,
        "train",
        "train a model and average its posterior samples",
        "Train a model. What follows the command changes the configuration: GROUP=NAME chooses a\n"
        "file of a group (model, datamodule, callbacks), KEY=VALUE sets a key. A folder configs/\n"
        "in the working directory layers over the packaged one.",
        "  lfads train datamodule.datafile_pattern=my_data.h5\n"
        "  lfads train model=nlb_mc_maze datamodule=nlb_mc_maze trainer.max_epochs=500\n"
        "  lfads train --config multi datamodule.datafile_pattern='sessions/*.h5'\n"
        "  lfads train datamodule.datafile_pattern=my_data.h5 model.gen_dim=200\n"
        "  lfads train --resume runs/my_run\n"
        "  lfads train --resume runs/my_run trainer.max_epochs=2000",
    )
    add = command.add_argument
    add("overrides", nargs="*", metavar="KEY=VALUE", help="changes of the configuration")
    add("--config", metavar="single|multi|PATH", help="primary configuration (single)")
    add("--run-dir", metavar="DIR", help="run folder (runs/<time>_<datamodule>)")
    add("--resume", metavar="RUN", help="go on with the run in this folder")
    add("--overwrite", action="store_true", help="delete the run that DIR holds")


def _add_sample(commands: Any) -> None:
    command = _add(
        commands,
        "sample",
        "average posterior samples of a trained model",
        "Average posterior samples of a trained model and write one HDF5 file per session: rates,\n"
        "factors, initial conditions, inferred inputs, and every key of the data file.",
        "  lfads sample runs/my_run\n"
        "  lfads sample runs/my_run --samples 200 --last\n"
        "  lfads sample runs/my_run --data new_trials.h5 --output new_rates.h5",
    )
    add = command.add_argument
    add("run_folder", metavar="RUN", help="run folder or checkpoint")
    add("--data", metavar="FILE", help="other trials of the same channels (the run's own data)")
    add("--samples", type=int, default=50, metavar="N", help="posterior samples (%(default)s)")
    add("--output", metavar="FILE", help="output file (RUN/lfads_output.h5; RUN/<data>_output.h5)")
    which = command.add_mutually_exclusive_group()
    which.add_argument("--best", action="store_true", help="best checkpoint (default)")
    which.add_argument("--last", action="store_true", help="last checkpoint")


def _add_check(commands: Any) -> None:
    command = _add(
        commands,
        "check",
        "look a data file through",
        "Print keys, shapes, types and mean rates of data files, and every problem found.\n"
        "The exit status is 1 if a file cannot be used as it is.",
        "  lfads check my_data.h5\n  lfads check sessions/*.h5",
    )
    command.add_argument("files", nargs="+", metavar="FILE", help="HDF5 data files")


def _demo(options: argparse.Namespace) -> int:
    from .demo import run_demo

    options.folder = Path(options.run_dir or new_run_folder("demo")).absolute()
    _quieten()
    run_demo(
        options.folder,
        seed=options.seed,
        n_conditions=options.conditions,
        n_trials=options.trials,
        n_units=options.units,
        n_bins=options.bins,
        mean_rate=options.mean_rate,
        max_epochs=options.epochs,
        overwrite=options.overwrite,
    )
    return 0


def _train(options: argparse.Namespace) -> int:
    if options.resume and (options.run_dir or options.config or options.overwrite):
        raise UserError(
            "--resume goes on in the run's own folder with its own configuration; it "
            "does not go with --run-dir, --config or --overwrite"
        )
    from .run_model import run_model

    folder = options.resume or options.run_dir or new_run_folder(_data_name(options.overrides))
    options.folder = Path(folder).expanduser().absolute()
    _quieten()
    print(f"run folder: {options.folder}", flush=True)
    result = run_model(
        options.overrides,
        config_path=options.config or "../configs/single.yaml",
        run_dir=options.folder,
        resume=bool(options.resume),
        overwrite=options.overwrite,
    )
    for path in (result.best_checkpoint, *result.outputs):
        if path is not None:
            print(f"written: {path}")
    return 0


def _sample(options: argparse.Namespace) -> int:
    from .running.sampling import sample_run

    _quieten()
    paths = sample_run(
        options.run_folder,
        data=options.data,
        num_samples=options.samples,
        output=options.output,
        best=not options.last,
    )
    for path in paths:
        print(f"written: {path}")
    return 0


def _check(options: argparse.Namespace) -> int:
    from .data.schema import check_file

    reports = [check_file(file) for file in options.files]
    print("\n\n".join(report.format() for report in reports))
    return int(any(report.errors for report in reports))


def new_run_folder(name: str) -> Path:
    """Return a run folder that does not exist yet, under ``runs`` in the working directory.

    Parameters
    ----------
    name : str
        What the run is about.

    Returns
    -------
    Path
    """
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}_{name}"
    candidates = (
        Path("runs") / f"{stem}{suffix}" for suffix in ("", *map("-{}".format, range(2, 1000)))
    )
    return next(path for path in candidates if not path.exists())


def _data_name(overrides: Sequence[str]) -> str:
    given = dict(text.split("=", 1) for text in overrides if "=" in text)
    chosen = given.get("datamodule", "default")
    pattern = given.get("datamodule.datafile_pattern", "").strip("'\"")
    stem = Path(pattern).stem.replace("*", "").strip("_-. ") if pattern else ""
    return stem if chosen == "default" and stem else chosen


def _quieten() -> None:
    """Leave out what Lightning says about devices it has not found and services it sells."""
    import logging

    import pytorch_lightning  # noqa: F401 - it sets its own level when it is imported

    for name in ("pytorch_lightning", "lightning_fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric|torch")


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
