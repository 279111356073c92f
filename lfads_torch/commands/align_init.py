"""`lfads align-init`."""

from __future__ import annotations

import argparse

from ..files import check_writable, expanded, save_figure
from . import FIGURE, print_written

SUMMARY = "align sessions, to start a multi-session model from"
TEXT = """\
Find components that sessions with different neurons share (principal-component
regression on condition averages of smoothed training trials) and write each session's
maps into its file: readin_weight, readin_offset, readout_weight, readout_bias. A model
starts from them with model=multisession_aligned (pcr_init: true)."""
EXAMPLES = """\
  lfads align-init 'sessions/*.h5' --components 50
  lfads align-init 'sessions/*.h5' --components 30 --conditions target --smooth-ms 40
  lfads align-init day0.h5 day95.h5 --components 20 --output-dir aligned --figure aligned.png
  lfads train --config multi model=multisession_aligned model.fac_dim=20 \\
      datamodule.datafile_pattern='aligned/*.h5'"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add = parser.add_argument
    add("patterns", nargs="+", metavar="PATTERN", help="session files, or glob patterns of them")
    add("--components", type=int, default=50, help="shared components (%(default)s)")
    add(
        "--conditions",
        default="cond_idx",
        metavar="KEY",
        help="per-trial key that tells the condition, without its split (%(default)s)",
    )
    smoothing = parser.add_mutually_exclusive_group()
    smoothing.add_argument("--smooth-ms", type=float, metavar="MS", help="Gaussian's std in ms")
    smoothing.add_argument("--smooth-bins", type=float, metavar="N", help="... in bins (3)")
    add("--min-trials", type=int, default=2, metavar="N", help="of a condition (%(default)s)")
    add(
        "--weigh-by",
        default="channel",
        metavar="channel|session|trial",
        help="what has equal weight in the components (%(default)s)",
    )
    add("--output-dir", metavar="DIR", help="write copies there, leave the files alone")
    add("--figure", type=FIGURE, metavar="FILE", help="draw the shared factors of every session")
    add("--overwrite", action="store_true", help="replace maps that the files hold")
    add("--strict", action="store_true", help="take warnings for errors; nothing is written")


def run(options: argparse.Namespace) -> int:
    """Run the command; see ``lfads align-init --help``."""
    import warnings

    from ..data import DataWarning, bin_width_ms, open_h5
    from ..errors import DataError
    from ..sessions.align_files import align_files

    for place in filter(None, (options.output_dir, options.figure)):
        check_writable(expanded(place))
    settings = {} if options.smooth_bins is None else {"smooth_bins": options.smooth_bins}
    with warnings.catch_warnings():
        # All warnings come before the first file is written.
        if options.strict:
            warnings.simplefilter("error", DataWarning)
        try:
            alignment, paths = align_files(
                options.patterns,
                options.components,
                condition_key=options.conditions,
                smooth_ms=options.smooth_ms,
                output_dir=options.output_dir,
                overwrite=options.overwrite,
                min_trials=options.min_trials,
                weigh_by=options.weigh_by,
                **settings,
            )
        except DataWarning as warning:
            raise DataError(f"{warning} (--strict)") from warning
    share = alignment.explained
    print(
        f"{len(paths)} sessions, {len(alignment.conditions)} conditions, {len(share)} components "
        f"with {share.sum():.1%} of the variance of the averages (first: {share[0]:.1%})"
    )
    width = max(len(session.name) for session in alignment.sessions)
    for session in alignment.sessions:
        n_trials = session.n_trials[session.n_trials > 0]
        print(
            f"  {session.name:{width}}  {len(session.readin_weight):4d} channels, "
            f"{n_trials.sum():5d} trials of {len(n_trials)} conditions, "
            f"penalty {session.penalty:g}, R2 on held-out trials {session.r2:.3f}"
        )
    if options.figure:
        from ..post_run.plots import shared_factors

        with open_h5(paths[0]) as file:
            bin_ms = bin_width_ms(dict(file.attrs))
        figure = shared_factors(
            [session.factors for session in alignment.sessions],
            [f"{session.name}\n$R^2$ {session.r2:.2f}" for session in alignment.sessions],
            alignment.components,
            [str(label) for label in alignment.conditions],
            bin_ms=bin_ms,
        )
        target = expanded(options.figure)
        save_figure(figure, target)
        print_written(target)
    print_written(*paths)
    return 0
