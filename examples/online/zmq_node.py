"""ZeroMQ: counts come as raw numbers, results go out as JSON or raw numbers.

    python examples/online/zmq_node.py runs/my_run --input tcp://127.0.0.1:5555
    python examples/online/zmq_node.py runs/my_run --fake --bins 100      # a source of its own

A message of the input (PULL) is one bin: little-endian float32, a number for each channel, NaN
where one is missing. A message of the output (PUSH) is a JSON object with t, rates, factors and
decoded, or with --raw the decoded numbers (or rates) as float32. Needs pyzmq: pip install
'lfads-torch[online]'
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import zmq

import lfads_torch


def fake_source(address: str, n_channels: int, bin_ms: float, n_bins: int) -> threading.Thread:
    """Send counts of no meaning, one bin every `bin_ms`."""
    rng = np.random.default_rng(0)

    def send() -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        with context.socket(zmq.PUSH) as socket:
            socket.connect(address)
            for _ in range(n_bins):
                socket.send(rng.poisson(0.5, n_channels).astype("<f4").tobytes())
                time.sleep(bin_ms / 1000)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    return thread


def message(output: Any, raw: bool) -> bytes:
    """Write what was inferred of a bin; numbers that are not known yet are null in JSON."""
    if raw:
        values = output.rates if output.decoded is None else output.decoded
        return bytes(values.astype("<f4").tobytes())
    fields = {"rates": output.rates, "factors": output.factors, "decoded": output.decoded}
    lists = {k: None if v is None or np.isnan(v).any() else v.tolist() for k, v in fields.items()}
    return json.dumps({"t": output.t, **lists}).encode()


def main(arguments: Sequence[str] | None = None) -> None:
    """Read bins until `--bins` of them came, or nothing came for `--timeout` seconds."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run")
    parser.add_argument("--decoder", help="file of `lfads decode --save`")
    parser.add_argument("--input", default="tcp://127.0.0.1:5555", help="address to listen at")
    parser.add_argument("--output", default="tcp://127.0.0.1:5556", help="address to send to")
    parser.add_argument("--raw", action="store_true", help="float32 instead of JSON")
    parser.add_argument("--bins", type=int, help="stop after this many")
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds")
    parser.add_argument("--fake", action="store_true", help="start a source of counts")
    options = parser.parse_args(arguments)

    live = lfads_torch.stream(options.run, decoder=options.decoder)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
    n = 0
    with context.socket(zmq.PULL) as source, context.socket(zmq.PUSH) as sink:
        source.setsockopt(zmq.RCVTIMEO, int(options.timeout * 1000))
        # Results that nobody reads are dropped: a queue of them would only be late.
        sink.setsockopt(zmq.LINGER, 1000)
        source.bind(options.input)
        sink.connect(options.output)
        if options.fake:
            fake_source(options.input, live.n_channels, live.bin_ms or 20.0, options.bins or 100)
        while options.bins is None or n < options.bins:
            try:
                counts = np.frombuffer(source.recv(), "<f4")
            except zmq.Again:
                break
            try:
                output = live.step(counts)
            except ValueError as error:  # the stream is as it was, and goes on
                print(error)
                continue
            n += 1
            try:
                sink.send(message(output, options.raw), zmq.NOBLOCK)
            except zmq.Again:
                print(f"bin {output.t} is dropped: nobody reads at {options.output}")
    print(f"{n} bins; {live.latency()['p99']:.2f} ms (99th percentile)")


if __name__ == "__main__":
    main()
