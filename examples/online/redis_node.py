"""Redis streams: counts are read from one stream, results are added to another.

    python examples/online/redis_node.py runs/my_run --input binned --field samples --dtype int8
    python examples/online/redis_node.py runs/my_run --fake --bins 100      # a source of its own

An entry of the input is one bin: a field with the counts of all channels as raw numbers. An entry
of the output has the number of the bin and float32 fields rates, factors and decoded. Needs redis:
pip install 'lfads-torch[online]', and a server.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import redis

import lfads_torch


def fake_source(server: Any, options: Any, n_channels: int, bin_ms: float) -> threading.Thread:
    """Add counts of no meaning, one bin every `bin_ms`."""
    rng = np.random.default_rng(0)

    def send() -> None:
        for _ in range(options.bins or 100):
            counts = rng.poisson(0.5, n_channels).astype(options.dtype)
            server.xadd(options.input, {options.field: counts.tobytes()})
            time.sleep(bin_ms / 1000)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    return thread


def main(arguments: Sequence[str] | None = None) -> None:
    """Read bins until `--bins` of them came, or nothing came for `--timeout` seconds."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run")
    parser.add_argument("--decoder", help="file of `lfads decode --save`")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=6379)
    parser.add_argument("--input", default="spike_counts", help="stream to read")
    parser.add_argument("--field", default="counts", help="field of an entry that holds the counts")
    parser.add_argument("--dtype", default="<f4", help="type of the counts, as NumPy names it")
    parser.add_argument("--output", default="lfads", help="stream to add to")
    parser.add_argument("--from-start", action="store_true", help="read what is there already, too")
    parser.add_argument("--bins", type=int, help="stop after this many")
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds")
    parser.add_argument("--fake", action="store_true", help="start a source of counts")
    options = parser.parse_args(arguments)

    live = lfads_torch.stream(options.run, decoder=options.decoder)
    server: Any = redis.Redis(options.host, options.port)
    try:
        server.ping()
    except redis.ConnectionError as error:
        raise SystemExit(f"no Redis server at {options.host}:{options.port}: {error}") from error
    n, after = 0, b"0"
    if not options.from_start:
        newest = server.xrevrange(options.input, count=1)
        after = newest[0][0] if newest else after
    if options.fake:
        fake_source(server, options, live.n_channels, live.bin_ms or 20.0)
    while options.bins is None or n < options.bins:
        # Entries that came meanwhile are read at once: every bin counts, in its order.
        replies = server.xread({options.input: after}, block=int(options.timeout * 1000))
        if not replies:
            break
        entries = next(iter(replies.values()))[0] if isinstance(replies, dict) else replies[0][1]
        for entry, fields in entries:
            if n == options.bins:
                break
            after = entry
            try:
                output = live.step(np.frombuffer(fields[options.field.encode()], options.dtype))
            except ValueError as error:  # the stream is as it was, and goes on
                print(error)
                continue
            n += 1
            results = {"rates": output.rates, "factors": output.factors, "decoded": output.decoded}
            arrays = {k: v.astype("<f4").tobytes() for k, v in results.items() if v is not None}
            server.xadd(options.output, {"t": output.t, **arrays}, maxlen=100_000)
    print(f"{n} bins; {live.latency()['p99']:.2f} ms (99th percentile)")


if __name__ == "__main__":
    main()
