"""A decoder class as benchmark harnesses call it: one bin of counts in, one behaviour out.

python examples/online/predict_class.py runs/my_run --decoder decoder.json --fake --bins 100

decoder = LFADSDecoder("runs/my_run", "decoder.json")
decoder.reset(["day1"])                    # a new recording, one for each stream side by side
behavior = decoder.predict(counts)         # (streams, channels) to (streams, targets)
decoder.on_done(np.array([True]))          # a trial has ended
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np

import lfads_torch


class LFADSDecoder:
    """Decode behaviour bin by bin, several streams side by side.

    Parameters
    ----------
    run : str
        Run folder.
    decoder : str
        File of ``lfads decode --save``.
    session : str or int, optional
        Session of a model of several.
    batch : int
        Streams side by side.
    forget : bool
        Whether a stream begins anew when its trial ends.
    """

    def __init__(
        self,
        run: str,
        decoder: str,
        session: str | int | None = None,
        batch: int = 1,
        forget: bool = False,
    ) -> None:
        options: dict[str, Any] = {} if session is None else {"session": session}
        self.streams = [lfads_torch.stream(run, decoder=decoder, **options) for _ in range(batch)]
        self.forget = forget
        self.tags: list[str] = []

    def reset(self, dataset_tags: Sequence[str]) -> None:
        """Begin anew; a tag names the recording of each stream."""
        if len(dataset_tags) != len(self.streams):
            raise ValueError(f"{len(dataset_tags)} tags for {len(self.streams)} streams")
        self.tags = list(dataset_tags)
        for stream in self.streams:
            stream.reset()

    def predict(self, counts: Any) -> Any:
        """Take a bin (streams, channels); return behaviour (streams, targets), 0 while unknown."""
        rows = np.atleast_2d(counts)
        decoded = [s.step(row).decoded for s, row in zip(self.streams, rows, strict=True)]
        # A harness moves something with each answer, so that a missing one is no movement.
        return np.nan_to_num(np.stack(decoded))

    def on_done(self, dones: Any) -> None:
        """Be told which streams have ended a trial."""
        for stream, done in zip(self.streams, dones, strict=True):
            if done and self.forget:
                stream.reset()


def main(arguments: Sequence[str] | None = None) -> None:
    """Decode counts of no meaning."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run")
    parser.add_argument("--decoder", required=True, help="file of `lfads decode --save`")
    parser.add_argument("--bins", type=int, default=100)
    parser.add_argument("--fake", action="store_true", help="counts of no meaning")
    options = parser.parse_args(arguments)
    if not options.fake:
        raise SystemExit("a harness calls LFADSDecoder itself; add --fake to see it at work")
    decoder, rng = LFADSDecoder(options.run, options.decoder), np.random.default_rng(0)
    decoder.reset(["fake"])
    for _ in range(options.bins):
        behavior = decoder.predict(rng.poisson(0.5, (1, decoder.streams[0].n_channels)))
    print(f"{options.bins} bins; the last is decoded as {np.round(behavior[0], 3).tolist()}")


if __name__ == "__main__":
    main()
