"""`lfads train`."""

from __future__ import annotations

import argparse
import json

from ..errors import UserError
from ..files import expanded
from . import (
    add_run_arguments,
    check_resume,
    data_name,
    print_config,
    print_result,
    print_seeds,
    start_run,
)

SUMMARY = "train a model and average its posterior samples"
TEXT = """\
Train a model. What follows the command is data files and changes of the configuration: GROUP=NAME
chooses a file of a group (lfads configs lists them), KEY=VALUE sets a key. A folder configs/
in the working directory layers over the packaged one."""
EXAMPLES = """\
  lfads train my_data.h5
  lfads train model=nlb_mc_maze datamodule=nlb_mc_maze trainer.max_epochs=500
  lfads train --config multi sessions/*.h5
  lfads train my_data.h5 model.gen_dim=200
  lfads train my_data.h5 --seeds 8
  lfads train --resume runs/my_run
  lfads train --resume runs/my_run trainer.max_epochs=2000
  lfads train --resume old_run --config configs/single.yaml trainer.max_epochs=2000"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add_run_arguments(parser, "single; multi for sessions", "runs/<time>_<datamodule>")
    parser.add_argument(
        "--seeds",
        type=int,
        metavar="N",
        help="train N seeds, stacked where memory allows, in folders seed0, seed1, ...",
    )
    parser.add_argument("--json", action="store_true", help="of --seeds: print scores as JSON")


def run(options: argparse.Namespace) -> int:
    """Run the command; see ``lfads train --help``."""
    if options.config and _left_no_config(options.resume):
        check_resume(argparse.Namespace(**{**vars(options), "config": None}), "run")
    else:
        check_resume(options, "run")
        if _left_no_config(options.resume):
            raise UserError(
                f"{options.resume} holds a run without config.yaml, as the existing lfads_torch "
                "leaves it; name the configuration it was trained with: --config "
                "configs/single.yaml model=... datamodule=..."
            )
    if options.cfg:
        return print_config(options, "../configs/single.yaml")
    if options.seeds is not None or _holds_seeds(options.resume):
        return _train_seeds(options)
    if options.json:
        raise UserError("--json prints the scores of several seeds; give --seeds N, too")
    # Imported here, so that a wrong option is refused before torch is loaded.
    from ..run_model import run_model

    folder = start_run(options, data_name(options.overrides))
    result = run_model(
        options.overrides,
        config_path=options.config or "../configs/single.yaml",
        run_dir=folder,
        resume=bool(options.resume),
        overwrite=options.overwrite,
        verbose=options.verbose,
        trust=options.trust,
        accept_changed_data=options.accept_changed_data,
    )
    print_result(result)
    return 0


def _holds_seeds(run: str | None) -> bool:
    from ..folder import RunFolder

    return run is not None and RunFolder(expanded(run)).kind == "seeds"


def _train_seeds(options: argparse.Namespace) -> int:
    if options.resume and options.seeds is not None:
        raise UserError("--resume goes on with the seeds of the folder; leave out --seeds")
    from ..search.seeds import train_seeds

    folder = start_run(options, f"{data_name(options.overrides)}_seeds")
    result = train_seeds(
        options.overrides,
        options.seeds,
        options.config or "../configs/single.yaml",
        run_dir=folder,
        resume=bool(options.resume),
        overwrite=options.overwrite,
        verbose=options.verbose,
        trust=options.trust,
        accept_changed_data=options.accept_changed_data,
    )
    if options.json:
        print(json.dumps({"seeds": result.scores, "summary": result.summary()}))
        return 0
    print_seeds(result)
    return 0


def _left_no_config(run: str | None) -> bool:
    """Whether a folder is a run of the existing implementation."""
    from ..folder import CONFIG, RunFolder

    folder = expanded(run or "")
    has_config = (folder / CONFIG).is_file()
    return run is not None and not has_config and RunFolder(folder).checkpoint() is not None
