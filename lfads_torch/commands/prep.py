"""`lfads prep`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import UserError
from . import HDF5, seed_number, terminal_line

_UNITS = ("s", "ms", "us", "ns", "samples")
SUMMARY = "make a data file out of a recording"
TEXT = """\
Make a data file out of a recording with spike times or binned spikes: NWB (also Zarr, or its
address), .npz, .mat, HDF5, CSV and other text, the folder of a spike sorter (phy, Kilosort,
SpikeInterface), files of Plexon, Blackrock, NeuroExplorer and others through neo, data files of the
earlier LFADS. Windows are cut around an event of each trial (--align), or overlap along a
continuous recording (--chop-ms). --list says what a file holds. Bins are half open, [a, b)."""
EXAMPLES = """\
  lfads prep session.nwb --list
  lfads prep session.nwb -o maze.h5 --bin-ms 5 --align move_onset_time:-250:450
  lfads prep session.nwb -o maze.h5 --bin-ms 5 --align move_onset_time:-250:450 \\
      --behavior hand_vel --lag-ms 100 --conditions trial_type,trial_version --select success=1
  lfads prep recording.mat -o chopped.h5 --chop-ms 1000 --overlap-ms 200 --behavior handVel
  lfads prep phy -o sorted.h5 --bin-ms 10 --chop-ms 1000 --units group=good
  lfads prep --nlb mc_maze 000128/sub-Jenkins -o datasets/mc_maze-20ms-val.h5"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add = parser.add_argument
    add(
        "files",
        nargs="*",
        default=[],
        metavar="FILE",
        help="recording (with --nlb also several)",
    )
    add("-o", "--output", type=HDF5, metavar="FILE", help="data file to write (FILE_<bin>ms.h5)")
    add("--list", action="store_true", help="say what the recording holds, and write nothing")
    add("--nlb", metavar="NAME", help="data set of the Neural Latents Benchmark, as it defines it")
    add("--overwrite", action="store_true", help="replace the data file if it is there")
    add("--strict", action="store_true", help="warnings are errors")
    add("--compress", action="store_true", help="compress the data file")

    add = parser.add_argument_group("bins and windows").add_argument
    add("--bin-ms", type=float, metavar="MS", help="bin width (that of binned recordings)")
    add("--align", metavar="EVENT:START:STOP", help="window around an event of each trial, in ms")
    add("--until", metavar="EVENT", help="where a trial ends, if that is within its window")
    add("--forward-ms", type=float, metavar="MS", help="time after it that is only predicted (0)")
    add(
        "--select",
        action="append",
        metavar="COLUMN=VALUE|FRACTION",
        help="trials to take; also != < > <= >=; or the fraction of the split `select`",
    )
    add("--chop-ms", type=float, metavar="MS", help="cut the recording into windows of this length")
    add("--overlap-ms", type=float, metavar="MS", help="time by which they overlap (0)")

    add = parser.add_argument_group("behaviour and conditions").add_argument
    add("--behavior", type=_words, metavar="NAME[,NAME]", help="time series to carry along")
    add("--lag-ms", type=float, metavar="MS", help="take it later than spikes by this (0)")
    add("--ext-input", type=_words, metavar="NAME[,NAME]", help="time series as external inputs")
    add("--conditions", type=_words, metavar="COLUMN[,COLUMN]", help="what makes a condition")
    add("--keep", type=_words, metavar="COLUMN[,COLUMN]", help="further columns to carry along")

    add = parser.add_argument_group("units").add_argument
    add("--units", action="append", metavar="COLUMN=VALUE", help="units to take; also != < > <= >=")
    add("--min-rate", type=float, metavar="HZ", help="drop units that fire less (0)")
    add(
        "--min-presence",
        type=float,
        metavar="FRACTION",
        help="drop units that fire in less of the session (0)",
    )
    add("--max-correlation", type=float, metavar="R", help="drop copies of another channel")
    add("--correlation-ms", type=float, metavar="MS", help="bin width for that (1)")
    add("--hold-out", type=_number_or_word, metavar="N|FRACTION|COLUMN", help="units not read")
    add("--never-seen", type=float, metavar="N|FRACTION", help="units the model never sees (0)")
    add("--drop-duplicates", action="store_true", help="drop spikes at the time of another")

    add = parser.add_argument_group("split").add_argument
    add(
        "--split",
        metavar="HOW",
        help="random, conditions, blocks, time, last:20%%, or a column that says it",
    )
    add("--valid", type=float, metavar="FRACTION", help="trials that validate (0.2)")
    add("--test", type=float, metavar="FRACTION", help="trials put aside (0)")
    add("--block", type=int, metavar="N", help="trials of a block (10)")
    add("--block-ms", type=float, metavar="MS", help="length of a block of a chopped recording")
    add("--guard-ms", type=float, metavar="MS", help="left out between its splits (0)")
    add("--seed", type=seed_number, metavar="N", help="seed of the split and of drawn units (0)")

    add = parser.add_argument_group("reading the source").add_argument
    add("--spikes", metavar="NAME[,NAME]", help="what holds the spikes; several are joined")
    add(
        "--spike-units",
        metavar="NAME",
        help="what holds the unit of each spike (none: all are of one)",
    )
    add("--axes", metavar="AXIS,AXIS", help="axes of the spikes: of trial, time, unit")
    add("--input-bin-ms", type=float, metavar="MS", help="bin width of binned spikes")
    add(
        "--spike-times",
        choices=("auto", "absolute", "relative"),
        help="whether times count from the start of each trial (auto)",
    )
    add("--spike-trials", metavar="NAME", help="what holds the trial of each spike")
    add("--trials", metavar="NAME|CSV", help="table of trials or events, in the file or beside it")
    add("--time-unit", choices=_UNITS, help="unit of times (s, if it can be)")
    add(
        "--event-unit",
        choices=_UNITS,
        help="unit of the times of trials (that of the spikes)",
    )
    add("--sampling-hz", type=float, metavar="HZ", help="move times to samples of this rate")


def run(options: argparse.Namespace) -> int:
    """Run the command; see ``lfads prep --help``."""
    from ..prep.options import PrepOptions

    # What is not given keeps the default of `PrepOptions`, which says it once.
    chosen = {k: v for k, v in vars(options).items() if v is not None and v is not False}
    given = {k: v for k, v in chosen.items() if k in PrepOptions.__dataclass_fields__}
    _take_fraction(given)
    if options.nlb:
        make = _make_nlb(options, given)
    elif len(options.files) != 1:
        raise UserError(
            f"{len(options.files)} recordings are named; name one (only --nlb takes several)"
            if options.files
            else "name a recording: lfads prep FILE --list shows what it holds"
        )
    elif options.list:
        from ..prep import SourceOptions, describe_file

        if extra := sorted(set(given) - {"bin_ms", *SourceOptions.__dataclass_fields__}):
            named = ", ".join(f"--{name.replace('_', '-')}" for name in extra)
            raise UserError(f"--list looks at the file and writes nothing; leave out {named}")
        print(describe_file(options.files[0], PrepOptions(**given)))
        return 0
    else:
        from ..prep.prepare import prepare

        width = f"_{options.bin_ms:g}ms" if options.bin_ms else "_lfads"
        output = options.output or f"{Path(options.files[0]).stem}{width}.h5"
        make = partial(prepare, options.files[0], output, PrepOptions(**given))
    with terminal_line(0.1) as line:
        done = make(
            overwrite=options.overwrite,
            progress=lambda what, n_done, n: line.show(f"{what} {n_done}/{n}"),
        )
    _report(done)
    return 0


def _take_fraction(given: dict[str, Any]) -> None:
    """Tell the fraction of the split `select` from rules for trials, which hold an operator."""
    numbers = [x for x in map(_number_or_word, given.get("select", ())) if isinstance(x, float)]
    if len(numbers) > 1:
        raise UserError(f"--select gives {len(numbers)} fractions; give one")
    if numbers:
        rules = [x for x in given.pop("select") if isinstance(_number_or_word(x), str)]
        given |= {"select_fraction": numbers[0], **({"select": rules} if rules else {})}


def _make_nlb(options: argparse.Namespace, given: dict[str, Any]) -> Callable[..., Any]:
    from ..prep.nlb import prepare_nlb

    free = {"bin_ms", "compress", "strict"}
    if extra := sorted(set(given) - free):
        raise UserError(
            f"--nlb {options.nlb} takes windows, lags and splits as the benchmark defines them; "
            f"leave out --{', --'.join(name.replace('_', '-') for name in extra)}"
        )
    if options.list:
        raise UserError("--list looks into one file; leave out --nlb")
    return partial(prepare_nlb, options.nlb, options.files, options.output, **given)


def _report(done: Any) -> None:
    import warnings

    from ..data import DataWarning

    for text in done.warnings:
        warnings.warn(text, DataWarning, stacklevel=1)
    for text in done.notes:
        print(text)
    bins = f"{done.n_read} bins" + (f" read of {done.n_bins}" * (done.n_bins > done.n_read))
    units = f"{done.n_read_units} units"
    units += f" read of {done.n_units}" * (done.n_units > done.n_read_units)
    trials = ", ".join(f"{split} {count}" for split, count in done.trials.items())
    print(f"{trials} windows of {bins} x {units}")
    print(f"written: {done.path}")
    print(f"next: lfads check {done.path}")


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _number_or_word(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
