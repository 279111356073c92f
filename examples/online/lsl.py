"""Lab Streaming Layer: a stream of counts in, a stream of decoded behaviour (or rates) out.

    python examples/online/lsl.py runs/my_run --input spike_counts --decoder decoder.json
    python examples/online/lsl.py runs/my_run --fake --bins 100      # a source of its own

A sample of the input is one bin: the counts of all channels, NaN where one is missing. The output
has the time stamps of the input. Needs pylsl: pip install 'lfads-torch[online]'
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Sequence

import numpy as np
import pylsl

import lfads_torch


def outlet(name: str, kind: str, n_channels: int, bin_ms: float) -> pylsl.StreamOutlet:
    """Open a stream that others may read."""
    info = pylsl.StreamInfo(name, kind, n_channels, 1000 / bin_ms, "float32", f"{name}-lfads")
    return pylsl.StreamOutlet(info)


def fake_source(name: str, n_channels: int, bin_ms: float, n_bins: int) -> threading.Thread:
    """Send counts of no meaning, one bin every `bin_ms`."""
    out, rng = outlet(name, "counts", n_channels, bin_ms), np.random.default_rng(0)

    def send() -> None:
        out.wait_for_consumers(10)
        for _ in range(n_bins):
            out.push_sample(rng.poisson(0.5, n_channels).astype(np.float32).tolist())
            time.sleep(bin_ms / 1000)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    return thread


def main(arguments: Sequence[str] | None = None) -> None:
    """Read bins until `--bins` of them came, or nothing came for `--timeout` seconds."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run")
    parser.add_argument("--decoder", help="file of `lfads decode --save`; without, rates are sent")
    parser.add_argument("--input", default="spike_counts", help="name of the stream to read")
    parser.add_argument("--output", default="lfads", help="name of the stream to send")
    parser.add_argument("--bins", type=int, help="stop after this many")
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds")
    parser.add_argument("--fake", action="store_true", help="start a source of counts")
    options = parser.parse_args(arguments)

    live = lfads_torch.stream(options.run, decoder=options.decoder)
    bin_ms = live.bin_ms or 20.0
    if options.fake:
        fake_source(options.input, live.n_channels, bin_ms, options.bins or 100)
    found = pylsl.resolve_byprop("name", options.input, timeout=options.timeout)
    if not found:
        raise SystemExit(f"no stream is named {options.input!r}; start the source, or add --fake")
    if found[0].channel_count() != live.n_channels:
        raise SystemExit(
            f"{options.input} has {found[0].channel_count()} channels, the model reads "
            f"{live.n_channels}"
        )
    inlet, out, n = pylsl.StreamInlet(found[0]), None, 0
    inlet.open_stream(options.timeout)
    while options.bins is None or n < options.bins:
        counts, stamp = inlet.pull_sample(timeout=options.timeout)
        if counts is None:
            break
        output = live.step(counts)
        values = output.rates if output.decoded is None else output.decoded
        if out is None:  # its width is known from the first bin on
            kind = "rates" if output.decoded is None else "behavior"
            out = outlet(options.output, kind, len(values), bin_ms)
        out.push_sample(values.tolist(), stamp)
        n += 1
    print(f"{n} bins; {live.latency()['p99']:.2f} ms (99th percentile)")


if __name__ == "__main__":
    main()
