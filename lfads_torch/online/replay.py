"""A recording fed to a stream bin by bin, and what comes of it: time, misses, scores, drift."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..data import SPLITS, write_session
from ..errors import UserError, number, one_of, whole
from ..metrics import bits_per_spike
from ..metrics.regression import column_r2
from ..post_run.decode import Source
from .stream import Stream, StreamOutput

Array = NDArray[Any]

MOST_MISSED = 0.001
"""Share of deadlines whose miss is no failure."""

# Borders of the drift report, in windows of training.
_BORDERS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
_LEAST_RATE = 1e-9  # spikes per bin; the logarithm of 0 would make one spike cost everything


@dataclass(frozen=True)
class Recording:
    """Bins in order of time; `pieces` number stretches without a gap, -1 for what is no bin."""

    counts: Array  # (bins, N)
    pieces: NDArray[np.int64]
    targets: Array | None = None  # (bins, N_r): what is reconstructed, where the file has it
    ext: Array | None = None
    behavior: Array | None = None
    bin_ms: float | None = None


@dataclass(frozen=True)
class Replay:
    """What a replay gave, a row per bin that was fed."""

    outputs: StreamOutput
    rows: NDArray[np.int64]  # bins of the recording
    positions: NDArray[np.int64]  # bins since the stream was last reset
    latency: dict[str, float]
    deadlines: int = 0
    missed: int = 0
    scores: dict[str, float] = field(default_factory=dict)
    drift: list[dict[str, float]] = field(default_factory=list)

    @property
    def is_late(self) -> bool:
        """Whether more deadlines were missed than may be."""
        return self.missed > MOST_MISSED * self.deadlines

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers; None where one is not finite."""
        plain = {
            "bins": len(self.rows),
            "latency_ms": self.latency,
            "deadlines": self.deadlines,
            "missed": self.missed,
            "scores": self.scores,
            "drift": self.drift,
        }
        return {k: _finite(v) for k, v in plain.items()}

    def text(self) -> str:
        """Return the table that ``lfads stream`` prints."""
        times = "  ".join(f"{k} {v:.3f}" for k, v in self.latency.items() if k != "calls")
        lines = [f"{len(self.rows)} bins", f"ms per bin: {times}"]
        if self.deadlines:
            share = 100 * self.missed / self.deadlines
            lines.append(f"missed deadlines: {self.missed} of {self.deadlines} ({share:.3g} %)")
        lines += [f"{name}: {value:.4f}" for name, value in self.scores.items()]
        if self.drift:
            names = [name for name in self.drift[0] if name not in ("start", "stop")]
            lines += ["", "by bins since the stream began:"]
            lines.append("  ".join(["bins".ljust(16), *(name.rjust(12) for name in names)]))
            for row in self.drift:
                span = f"{row['start']:g} to {row['stop'] - 1:g}".ljust(16)
                lines.append("  ".join([span, *(f"{row[name]:12.4f}" for name in names)]))
        return "\n".join(lines)

    def write(self, path: Path) -> Path:
        """Write all outputs, a row per bin, as HDF5."""
        named = {k: v for k, v in self.outputs._asdict().items() if v is not None and k != "t"}
        arrays = {**named, "bin": self.rows, "position": self.positions}
        return write_session(path, {k: np.asarray(v) for k, v in arrays.items()})


def read_recording(
    file: str | Path,
    *,
    key: str = "encod_data",
    split: str | None = None,
    behavior: str = "behavior",
    n_bins: int | None = None,
    positions: str | None = None,
    overlap: int | None = None,
) -> Recording:
    """Read a data file as one recording: chopped windows are merged, trials are pieces.

    With `split`, the bins of other splits are gaps.
    """
    source = Source(Path(file), positions, overlap)
    counts = source.rows(source.check_name(key, "--key"))
    pieces = source.layout.stretches.copy()
    if split is not None:
        one_of("--split", split, source.splits)
        pieces = np.where(source.layout.splits == SPLITS.index(split), source.layout.pieces, -1)
    rows = np.flatnonzero(pieces >= 0)
    if n_bins is not None:
        pieces[rows[whole("--bins", n_bins, least=1) :]] = -1
    if not len(rows):
        raise UserError(f"{file} holds no bin to replay")

    def optional(name: str) -> Array | None:
        has_all = all(f"{s}_{name}" in source.shapes for s in source.splits)
        return source.rows(name) if has_all and name in source.names else None

    return Recording(
        counts,
        pieces,
        optional("recon_data") if key == "encod_data" else None,
        optional("ext_input"),
        optional(behavior),
        source.bin_ms,
    )


def replay(stream: Stream, recording: Recording, *, realtime_ms: float | None = None) -> Replay:
    """Feed a recording, reset at every gap; with `realtime_ms`, one bin every so many ms.

    A deadline is missed where the outputs of a bin come after the next bin is due.
    """
    if realtime_ms is not None:
        number("--realtime", realtime_ms, above=0)
    if recording.counts.shape[1] != stream.n_channels:
        raise UserError(
            f"the recording has {recording.counts.shape[1]} channels; the model reads "
            f"{stream.n_channels}"
        )
    rows = np.flatnonzero(recording.pieces >= 0)
    outputs, missed, piece = [], 0, None
    began = time.perf_counter()
    for k, row in enumerate(rows):
        if recording.pieces[row] != piece:
            piece = recording.pieces[row]
            stream.reset()
        if realtime_ms is not None:
            due = began + k * realtime_ms / 1000
            time.sleep(max(0.0, due - time.perf_counter()))
        ext = None if recording.ext is None else recording.ext[row]
        outputs.append(stream.step(recording.counts[row], ext, copy=True))
        if realtime_ms is not None:
            missed += time.perf_counter() > due + realtime_ms / 1000
    columns: Any = zip(*outputs, strict=True)
    stacked: list[Any] = [None if c[0] is None else np.stack(c) for c in columns]
    joined, n_due = StreamOutput(*stacked), len(rows) if realtime_ms is not None else 0
    ran, longest = joined.t[joined.fresh.astype(bool)], int(joined.t.max()) + 1
    if not len(ran) or (longest > 1 and not ran.max()):
        where = "at the first bin of each stretch alone" if len(ran) else "at no bin"
        raise UserError(
            f"the model ran {where}: the longest stretch without a gap has {longest} bins, and a "
            f"window {stream.window}; lower --every, or replay a longer recording"
        )
    scored = _Scored(stream, recording, joined, rows)
    return Replay(
        joined,
        rows,
        joined.t,
        stream.latency(),
        n_due,
        missed,
        scored.of(np.ones(len(rows), bool)),
        scored.drift(joined.t, stream.window),
    )


class _Scored:
    """Bits per spike of the channels read and held out, and R2 of what was decoded."""

    def __init__(
        self, stream: Stream, recording: Recording, outputs: StreamOutput, rows: Array
    ) -> None:
        targets = recording.counts if recording.targets is None else recording.targets
        self._rates, self._n_read = outputs.rates, stream.n_channels
        self._counts = targets[rows] if stream.for_counts else None
        self._decoded, self._behavior = outputs.decoded, None
        if recording.behavior is not None and outputs.decoded is not None:
            self._behavior = recording.behavior[rows]
            if self._behavior.shape != outputs.decoded.shape:
                raise UserError(
                    f"the decoder gives {outputs.decoded.shape[1]} targets, the behaviour of the "
                    f"file has {self._behavior.shape[1]}; they must agree"
                )

    def of(self, chosen: NDArray[np.bool_]) -> dict[str, float]:
        """Score some bins, of those with outputs."""
        scores = {}
        has_rates = chosen & np.isfinite(self._rates).all(axis=1)
        if self._counts is not None and has_rates.any():
            n = min(self._rates.shape[1], self._counts.shape[1])
            for name, some in (("bps", slice(self._n_read)), ("co_bps", slice(self._n_read, n))):
                rates, counts = self._rates[has_rates, some], self._counts[has_rates, some]
                if rates.size and rates.shape == counts.shape:
                    log_rates = torch.from_numpy(np.maximum(rates, _LEAST_RATE)).log()
                    scores[name] = float(bits_per_spike(log_rates, torch.from_numpy(counts)))
        if self._behavior is not None and self._decoded is not None:
            known = np.isfinite(self._decoded) & np.isfinite(self._behavior)
            rows = chosen & known.all(axis=1)
            if rows.sum() > 1:
                y, p = self._behavior[rows], self._decoded[rows].astype(np.float64)
                r2 = column_r2(p, y)
                scores |= {f"r2_{i}": float(value) for i, value in enumerate(r2)}
                scores["r2_uniform"] = float(np.mean(r2))
        return scores

    def drift(self, positions: Array, window: int) -> list[dict[str, float]]:
        """Score bins by how long the stream has run, in windows of training."""
        table = []
        for first, last in zip(_BORDERS, (*_BORDERS[1:], math.inf), strict=True):
            chosen = (positions >= first * window) & (positions < last * window)
            if chosen.any() and (scores := self.of(chosen)):
                stop = min(last * window, int(positions.max()) + 1)
                table.append({"start": first * window, "stop": stop, **scores})
        # A row lacks a score that its bins do not have.
        names = dict.fromkeys(name for row in table for name in row)
        return [{name: row.get(name, math.nan) for name in names} for row in table]


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
