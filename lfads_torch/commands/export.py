"""`lfads export`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import UserError, one_of
from . import add_trust, print_written, writing_into

SUMMARY = "write results into an NWB file, or the model into a file for a rig"
TEXT = """\
The ending of FILE chooses what is written.

.nwb: what the model inferred: rates, factors and inferred inputs over the time of the recording,
and a table of trials (or windows) with initial conditions. Windows of a continuous recording are
joined. With --source, results are added to a copy of the recording's NWB file.

.onnx, .pt2, .npz: the model itself, from counts to rates and decoded behaviour, for programs that
run without this package: ONNX, torch.export, or weights for NumPy (numpy_runner.py is written
beside them). One call takes a window of bins; of a causal model, one bin and the states. The file
is compared with the model before it is written; where they differ by more than 1e-4, the command
ends with status 1 and writes nothing."""
EXAMPLES = """\
  lfads export runs/my_run
  lfads export runs/my_run results.nwb
  lfads export runs/my_run results.nwb --source session.nwb
  lfads export runs/my_run/lfads_output_day1.h5 day1.nwb
  lfads export runs/my_run model.onnx
  lfads export runs/causal model.npz --decoder decoder.json
  lfads export runs/two_days model.pt2 --session day1"""

ENDINGS = (".nwb", ".onnx", ".pt2", ".npz")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add = parser.add_argument
    add("run_folder", metavar="RUN", help="run folder, output file (.nwb) or checkpoint (others)")
    add(
        "file",
        nargs="?",
        metavar="FILE",
        help="file to write: .nwb, .onnx, .pt2 or .npz (RUN/lfads_<session>.nwb)",
    )
    add("-o", "--output", metavar="FILE", help="the same")
    add("--bin-ms", type=float, metavar="MS", help="bin width, where the data do not say it")
    add("--overwrite", action="store_true", help="replace the file if it is there")
    nwb = parser.add_argument_group(".nwb")
    nwb.add_argument(
        "--source", metavar="NWB", help="NWB file of the recording, to whose copy results are added"
    )
    model = parser.add_argument_group(".onnx, .pt2 and .npz")
    add = model.add_argument
    add(
        "--mode",
        choices=["auto", "window", "step"],
        default="auto",
        help="what a call takes: a window of bins, or one (auto: one, of a causal model)",
    )
    add("--decoder", metavar="FILE", help="decoder of behaviour, from `lfads decode --save`")
    add("--session", metavar="NAME", help="session of a model of several, by name or number")
    add("--force", action="store_true", help="unroll also windows of more than 128 bins")
    add(
        "--native",
        action="store_true",
        help="keep fast operators in a .pt2, which then needs `import lfads_torch`",
    )
    add("--last", action="store_true", help="last checkpoint, not the best")
    add_trust(model)


def run(options: argparse.Namespace) -> int:
    """Run the command; see ``lfads export --help``."""
    if options.file and options.output:
        raise UserError(f"two files to write, {options.file} and {options.output}; name one")
    file = options.file or options.output
    ending = one_of("the ending of FILE", Path(file or "x.nwb").suffix.lower(), ENDINGS)
    if ending != ".nwb":
        return _export_model(options, file)
    from ..post_run.export import export_nwb

    for name in ("decoder", "session", "force", "native", "last", "trust"):
        if getattr(options, name):
            raise UserError(f"--{name} is for .onnx, .pt2 and .npz; the file is .nwb")
    with writing_into(options.run_folder, file):
        paths = export_nwb(
            options.run_folder,
            file,
            source=options.source,
            bin_ms=options.bin_ms,
            overwrite=options.overwrite,
        )
    print_written(*paths)
    return 0


def _export_model(options: argparse.Namespace, file: str) -> int:
    from ..online.export import CHECKED_BINS, TOLERANCE, export_model

    if options.source:
        raise UserError(f"--source is for .nwb; {file} holds a model")
    exported = export_model(
        options.run_folder,
        file,
        mode=options.mode,
        session=options.session,
        decoder=options.decoder,
        bin_ms=options.bin_ms,
        overwrite=options.overwrite,
        force=options.force,
        native=options.native,
        best=not options.last,
        trust=options.trust,
    )
    print(f"largest difference from the model over {CHECKED_BINS} bins: {exported.difference:.2g}")
    if not exported.paths:
        print(f"{file} is not written: legal is a difference of at most {TOLERANCE:g}")
        return 1
    print_written(*exported.paths)
    return 0
