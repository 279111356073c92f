"""`lfads stream`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..files import expanded
from . import HDF5, add_trust, check_named, print_written

SUMMARY = "replay a recording bin by bin through a trained model"
TEXT = """\
Feed a recording to a trained model bin by bin, as a rig would, and say how long a bin takes, how
well the rates and the decoded behaviour fit, and how that changes the longer the stream runs.
Chopped windows are merged first; gaps and new trials reset the stream. With --realtime one bin
comes every MS; the command ends with status 1 where more than 0.1 % of the bins came too late."""
EXAMPLES = """\
  lfads stream runs/wrist --data wrist.h5
  lfads stream runs/wrist --data wrist.h5 --split valid --decoder runs/wrist/decoder.json
  lfads stream runs/wrist --data wrist.h5 --realtime 20 --bins 3000 --json
  lfads stream runs/causal --data wrist.h5 --restart 1000 -o streamed.h5"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add = parser.add_argument
    add("run_folder", metavar="RUN", help="run folder or checkpoint")
    add("--data", metavar="FILE", required=True, help="data file to replay")
    add("--split", metavar="SPLIT", help="only these bins, others are gaps (all)")
    add("--key", default="encod_data", metavar="KEY", help="what is fed (%(default)s)")
    add("--behavior", default="behavior", metavar="KEY", help="what the decoder is scored by")
    add("--bins", type=int, metavar="N", help="only the first N bins")
    add("--positions", metavar="KEY", help="per-window key that numbers windows cut elsewhere")
    add("--overlap", type=int, metavar="N", help="bins that such neighbours share")
    add("--realtime", type=float, metavar="MS", help="one bin every MS (as fast as it goes)")
    add("--json", action="store_true", help="print the result as JSON")
    add("-o", "--output", type=HDF5, metavar="FILE", help="write the outputs of every bin (HDF5)")
    add("--overwrite", action="store_true", help="replace that file if it is there")
    model = parser.add_argument_group("the stream")
    add = model.add_argument
    add("--mode", default="auto", metavar="M", help="auto, window or step (%(default)s)")
    add("--decoder", metavar="FILE", help="decoder of lfads decode --save")
    add("--session", default="0", metavar="NAME", help="name or number of the session (0)")
    add("--threads", type=int, default=1, metavar="N", help="threads of torch (%(default)s)")
    add("--every", type=int, default=1, metavar="N", help="a window at every Nth bin (1)")
    add("--warmup", default="nan", metavar="HOW", help="nan, repeat or zeros (%(default)s)")
    add("--restart", type=int, default=0, metavar="N", help="a new state every N bins (never)")
    add("--blend", type=int, metavar="N", help="bins over which it takes over (20)")
    add("--last", action="store_true", help="last checkpoint, not the best")
    add_trust(model)


def run(options: argparse.Namespace) -> int:
    """Run the command; see ``lfads stream --help``."""
    from ..online.replay import read_recording, replay
    from ..online.stream import Stream

    check_named(options.output, options.data, options.overwrite)
    recording = read_recording(
        expanded(options.data),
        key=options.key,
        split=options.split,
        behavior=options.behavior,
        n_bins=options.bins,
        positions=options.positions,
        overlap=options.overlap,
    )
    stream = Stream(
        options.run_folder,
        options.mode,
        session=options.session,
        decoder=options.decoder,
        threads=options.threads,
        warmup=options.warmup,
        every=options.every,
        bin_ms=recording.bin_ms,
        restart=options.restart,
        blend=options.blend,
        best=not options.last,
        trust=options.trust,
    )
    result = replay(stream, recording, realtime_ms=options.realtime)
    print(json.dumps(result.to_dict()) if options.json else result.text())
    if options.output:
        written = result.write(Path(expanded(options.output)))
        if not options.json:
            print_written(written)
    return 1 if result.is_late else 0
