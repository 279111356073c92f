"""`lfads pbt`."""

from __future__ import annotations

import argparse

from ..errors import whole
from . import (
    add_run_arguments,
    check_resume,
    data_name,
    print_config,
    print_result,
    print_seeds,
    start_run,
)

SUMMARY = "train a population of models (AutoLFADS) and keep the best"
TEXT = """\
Train many models at once in generations: losers of a tournament copy a winner and go on
with hyper-parameters moved a little (AutoLFADS). What follows the command changes the
configuration, as for lfads train; search.KEY=VALUE changes the search itself. A search that
was interrupted at any moment goes on with --resume and loses at most the current epoch."""
EXAMPLES = """\
  lfads pbt my_data.h5
  lfads pbt model=nlb_mc_maze datamodule=nlb_mc_maze search.num_workers=12
  lfads pbt my_data.h5 search.space.lr_init.max_samp=1e-2
  lfads pbt my_data.h5 --backend ray
  lfads pbt --resume runs/my_search
  lfads sample runs/my_search --ensemble"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add_search_arguments(parser, "pbt")


def add_search_arguments(parser: argparse.ArgumentParser, config: str) -> None:
    """Add the options that every search has."""
    add_run_arguments(parser, config, "runs/<time>_<datamodule>_<command>")
    parser.add_argument(
        "--backend",
        choices=("local", "ray"),
        help="all members in one process (local), or trials of Ray Tune (local)",
    )


def run(options: argparse.Namespace) -> int:
    """Run the command; see ``lfads pbt --help``."""
    return search(options, command="pbt", method="pbt")


def search(options: argparse.Namespace, command: str, method: str) -> int:
    """Run a search of a kind."""
    if options.cfg:
        groups = None if options.resume else {"search": method}
        return print_config(options, f"../configs/{command}.yaml", groups)
    # Before the import, so that a wrong option is refused before torch is loaded.
    check_resume(options, "search")
    n_seeds = getattr(options, "seeds", None)
    if n_seeds is not None:
        whole("--seeds", n_seeds, least=1)
    from ..search.run import run_search

    folder = start_run(options, f"{data_name(options.overrides)}_{command}", command)
    if n_seeds is not None:  # the folder knows of them only once the search has ended
        options.resume_with += f" --seeds {n_seeds}"
    result = run_search(
        options.overrides,
        options.config or f"../configs/{command}.yaml",
        method=method,
        run_dir=folder,
        resume=bool(options.resume),
        overwrite=options.overwrite,
        backend=options.backend,
        verbose=options.verbose,
        trust=options.trust,
        accept_changed_data=options.accept_changed_data,
    )
    figures = sorted((folder / "figures").glob("*.png"))
    print_result(result, *figures)
    if n_seeds is not None:
        from ..search.seeds import train_winner

        print_seeds(train_winner(folder, n_seeds, verbose=options.verbose, trust=options.trust))
    return 0
