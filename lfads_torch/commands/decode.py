"""`lfads decode`."""

from __future__ import annotations

import argparse
from typing import Any

from ..errors import UserError
from ..files import check_writable, expanded
from . import FOLDER, JSON, print_written, seed_number, writing_into

SUMMARY = "fit a decoder of behaviour with lags, or apply one"
TEXT = """\
Decode behaviour linearly from what a run inferred (factors, rates, gen_states or any series of
its output file), with lags that cross no trial, gap or border between splits, beside the same
decoder on smoothed spikes. Fitted on one split, scored on the others; the penalty is chosen
by folds in order of time. Writes decoder.json, which `lfads stream` and `lfads export` read, and
decode.json into the run folder. --apply scores a decoder on another run or day and fits nothing."""
EXAMPLES = """\
  lfads decode runs/wrist --lags 0:3
  lfads decode runs/wrist --from rates --behavior hand_vel --score valid,test --by-time 5
  lfads decode runs/day95 --apply runs/wrist/decoder.json --score train,valid,test
  lfads decode wrist_time.h5 --from encod_data --smooth-ms 80 --causal --save spikes.json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add = parser.add_argument
    add("place", metavar="RUN|FILE", help="run folder, its output file, or data file")
    add("--apply", metavar="DECODER", help="score this decoder; nothing is fitted")
    add("--json", action="store_true", help="print the result as JSON instead of the table")
    add("--save", type=JSON, metavar="FILE", help="where it goes (decoder.json of the run)")
    add("--output", type=FOLDER, metavar="DIR", help="where decode.json goes (the run folder)")

    add = parser.add_argument_group("what is decoded from what").add_argument
    add(
        "--from", dest="features", metavar="KEY", help="factors, rates, gen_states, a key (factors)"
    )
    add("--behavior", default="behavior", metavar="KEY", help="what to decode (%(default)s)")
    add(
        "--lags",
        metavar="A:B",
        help="features A to B bins before; look ahead with --lags=-A:B (0:3)",
    )
    add("--smooth-ms", type=float, metavar="MS", help="smooth features by a Gaussian (0)")
    add("--causal", action="store_true", help="smooth by the past alone, refuse to look ahead")
    add(
        "--alpha",
        type=float,
        action="append",
        metavar="A",
        help="penalty (folds choose: .1 to 1e6)",
    )
    add("--positions", metavar="KEY", help="per-window key that numbers windows cut elsewhere")
    add("--overlap", type=int, metavar="N", help="bins that such neighbours share")

    add = parser.add_argument_group("what is fitted and scored").add_argument
    add("--fit", metavar="SPLIT[,SPLIT]", help="splits that are fitted to (train)")
    add("--score", metavar="SPLIT[,SPLIT]", help="splits that are scored (the others)")
    add("--where", metavar="KEY", help="score only bins where this mask is true")
    add("--fastest", type=float, metavar="SHARE", help="score the share of fastest bins")
    add("--by-time", type=int, metavar="N", help="also score N consecutive parts, and the slope")
    add("--no-baselines", action="store_true", help="without smoothed spikes")
    add("--draws", type=int, default=1000, metavar="N", help="bootstrap draws (%(default)s)")
    add("--level", type=float, default=0.95, help="of the intervals (%(default)s)")
    add("--seed", type=seed_number, default=0, help="of the draws (%(default)s)")


_OF_THE_FIT = ("features", "lags", "smooth_ms", "causal", "alpha", "fit", "save")


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def run(options: argparse.Namespace) -> int:
    """Run the command; see ``lfads decode --help``."""
    import json

    from ..metrics.decoder import Decoder
    from ..metrics.decoding import parse_lags
    from ..post_run.decode import DECODER, DecodeOptions, decode_run, write_result

    if options.apply and (given := [name for name in _OF_THE_FIT if getattr(options, name)]):
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UserError(
            f"--apply takes a decoder as it is, with its own features and lags; leave out "
            f"{flags.replace('--features', '--from')}, or fit a decoder without --apply"
        )
    names = ("behavior", "causal", "positions", "overlap", "where", "fastest", "by_time", "level")
    chosen: dict[str, Any] = {name: getattr(options, name) for name in (*names, "seed")}
    chosen |= {
        name: value
        for name, value in {
            "features": options.features,
            "smooth_ms": options.smooth_ms,
            "fit": options.fit and _words(options.fit),
            "lags": options.lags and parse_lags(options.lags),
            "alphas": options.alpha and tuple(options.alpha),
            "score": options.score and _words(options.score),
        }.items()
        if value is not None
    }
    settings = DecodeOptions(**chosen, baselines=not options.no_baselines, n_draws=options.draws)
    decoder = Decoder.load(expanded(options.apply)) if options.apply else None
    place = expanded(options.place).absolute()
    if options.save:
        check_writable(expanded(options.save))
    with writing_into(options.place, options.output):
        result = decode_run(place, settings, decoder=decoder)
        print(json.dumps(result.to_dict(), indent=1) if options.json else result.text())
        folder = expanded(options.output) if options.output else place if place.is_dir() else None
        save = expanded(options.save) if options.save else None
        if save is None and decoder is None and folder is not None:
            save = folder / DECODER
        written = write_result(result, folder, save)
        if not options.json:
            print()
            print_written(*written)
    return 0
