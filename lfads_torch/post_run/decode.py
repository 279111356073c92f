"""Decode behaviour with lags from what a run inferred, or from a data file: `lfads decode`."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ..data import SPLITS, Order, bin_width_ms, list_some, names_of, open_h5, read_order, split_kind
from ..data.smoothing import gaussian_smooth
from ..errors import (
    ConfigError,
    DataError,
    DataWarning,
    UserError,
    did_you_mean,
    fraction,
    number,
    whole,
)
from ..files import expanded, write_whole
from ..folder import RunFolder
from ..metrics.decoder import Decoder, Decoding, plain
from ..metrics.decoding import ALPHAS, fit_decoder
from ..metrics.trialwise import ByTime, score_by_time
from ..prep.chop import find_segments
from ..prep.merging import START_KEY, covered_bins, merge_chops, window_places
from .evaluation.table import by_time_text
from .outputs import output_files

Array = NDArray[Any]

DECODER, SCORES = "decoder.json", "decode.json"
"""What is written into a run folder."""

BASELINE_MS = (40.0, 80.0, 160.0, 320.0)
"""Standard deviations of the Gaussian that smooths spikes for comparison; the folds choose."""

LAGS = (0, 1, 2, 3)

_NAMES = {"rates": "output_params"}


@dataclass(frozen=True)
class Layout:
    """Rows in order of time: bins of trials, or of a recording whose windows were merged.

    `pieces` number stretches without a gap within one split, `stretches` those whatever the split;
    `splits` hold the index in `SPLITS` of each row, -1 for none.
    """

    pieces: NDArray[np.int64]
    stretches: NDArray[np.int64]
    splits: NDArray[np.int64]
    guard: int
    text: str


class Source:
    """A data file or output file, read as rows in order of time."""

    def __init__(
        self, path: Path, positions: str | None = None, overlap: int | None = None
    ) -> None:
        if overlap is not None and positions is None:
            raise UserError("overlap is of windows that positions number; give both or neither")
        self.path, self._positions, self._overlap = path, positions, overlap
        with open_h5(path) as file:
            self.attrs = dict(file.attrs)
            self.shapes = {k: v.shape for k, v in file.items() if isinstance(v, h5py.Dataset)}
            known = [file.attrs, *(file[k].attrs for k in self.shapes if k.endswith("_data"))]
            self.bin_ms = next((w for w in map(bin_width_ms, known) if w is not None), None)
        self.splits = [s for s in SPLITS if f"{s}_encod_data" in self.shapes] or [
            s for s in SPLITS if f"{s}_output_params" in self.shapes
        ]
        if not self.splits:
            raise DataError(
                f"{path} holds neither windows nor model output ('train_encod_data'); name a run "
                "folder, its output file or a data file"
            )
        self.is_output = f"{self.splits[0]}_output_params" in self.shapes
        main = "encod_data" if f"{self.splits[0]}_encod_data" in self.shapes else "output_params"
        self.sizes = {split: int(self.shapes[f"{split}_{main}"][0]) for split in self.splits}

    def read(self, key: str) -> Array:
        """Read a key of the file."""
        with open_h5(self.path) as file:
            return np.asarray(file[key][()])

    @cached_property
    def order(self) -> Order:
        """Where windows or trials lie in the recording."""
        return read_order(self.sizes, self.shapes, self.read)

    @cached_property
    def names(self) -> list[str]:
        """Names, without their split, of series: a row per bin of each trial."""
        first = self.splits[0]
        names = [key.removeprefix(f"{first}_") for key in self.shapes if key.startswith(first)]
        return [n for n in names if len(self.shapes[f"{first}_{n}"]) == 3]

    def check_name(self, name: str, option: str) -> str:
        """Return the key of a series that every split has, or name those that there are."""
        key = _NAMES.get(name, name)
        if lacking := [s for s in self.splits if f"{s}_{key}" not in self.shapes]:
            raise UserError(
                f"{self.path} has no '{lacking[0]}_{key}' ({option} {name}); it has series "
                f"{list_some(self.names, 30)}; {did_you_mean(name, self.names, limit=0)}".rstrip(
                    "; "
                )
            )
        if key not in self.names:
            raise UserError(
                f"{self.path}: '{self.splits[0]}_{key}' has shape "
                f"{self.shapes[f'{self.splits[0]}_{key}']}; legal for {option} are trials x bins x "
                f"columns, such as {list_some(self.names, 30)}"
            )
        return key

    @cached_property
    def windows(self) -> tuple[dict[str, Array], int, int] | None:
        """First bins of windows, their length and the recording's; None for trials."""
        if self._positions is None and f"{self.splits[0]}_{START_KEY}" not in self.shapes:
            return None
        with open_h5(self.path) as file:
            return window_places(file, self.path, self._positions, self._overlap)

    @cached_property
    def n_bins(self) -> int:
        """Bins of a trial that are read; what is only predicted is not decoded."""
        first = self.splits[0]
        keys = [f"{first}_{name}" for name in ("encod_data", "output_params")]
        return min(int(self.shapes[key][1]) for key in keys if key in self.shapes)

    def rows(self, name: str, columns: bool = True) -> Array:
        """Return a series as rows in order of time, shape (rows, columns)."""
        parts = {split: self.read(f"{split}_{name}") for split in self.splits}
        if columns:
            parts = {split: self._ended(split, part) for split, part in parts.items()}
        if self.windows is None:
            joined = np.concatenate([part[:, : self.n_bins] for part in parts.values()])
            shape = (len(joined), self.n_bins, *joined.shape[2:])
            # Behaviour may have fewer bins than what is read: the first ones are meant.
            out = np.full(shape, np.nan)
            out[:, : joined.shape[1]] = joined[self._trial_order]
            return out.reshape(-1, *shape[2:])
        starts, _, n_bins = self.windows
        first = np.concatenate([starts[split] for split in parts])
        merged = merge_chops(np.concatenate(list(parts.values())), first, n_bins)
        return merged.astype(np.float64)

    def _ended(self, split: str, part: Array) -> Array:
        """Return a series with NaN past the ends of trials."""
        if f"{split}_lengths" not in self.shapes:
            return part
        lengths = self.read(f"{split}_lengths")
        past = np.arange(part.shape[1]) >= lengths[:, None]
        return np.where(past[..., None], np.nan, part)

    @cached_property
    def _trial_order(self) -> Array:
        return np.argsort(np.concatenate(list(self.order.positions.values())), kind="stable")

    @cached_property
    def layout(self) -> Layout:
        """Which rows belong together."""
        if self.windows is None:
            labels = np.repeat([SPLITS.index(s) for s in self.splits], list(self.sizes.values()))
            labels = np.repeat(labels[self._trial_order], self.n_bins)
            pieces = np.arange(len(labels)) // self.n_bins
            by = self.order.key
            text = f"trials in order of {by}" if by else "trials in the file's order"
            return Layout(pieces, pieces, labels, 0, text)
        starts, window, n_bins = self.windows
        labels = np.full(n_bins, -1, dtype=np.int64)
        # The first split is written last: bins that it shares with another were seen in training.
        for split in reversed(self.splits):
            labels[covered_bins(starts[split], window, n_bins)] = SPLITS.index(split)
        covered = labels >= 0
        stretches = np.full(n_bins, -1, dtype=np.int64)
        for stretch, (start, stop) in enumerate(find_segments(covered)):
            stretches[start:stop] = stretch
        changes = (np.diff(labels, prepend=labels[0]) != 0) | (
            np.diff(stretches, prepend=stretches[0]) != 0
        )
        shared = self._overlap
        if shared is None:
            shared = int(self.attrs.get("chop_overlap", 0))
        text = f"one recording of {n_bins} bins, merged from windows of {window}"
        return Layout(np.cumsum(changes), stretches, labels, shared, text)

    def smoothed(self, x: Array, width_ms: float, causal: bool) -> Array:
        """Smooth rows along stretches without a gap, whatever their split: it reads no target."""
        if not width_ms:
            return x
        if self.bin_ms is None:
            raise DataError(
                f"{self.path} does not say how wide its bins are (attribute bin_ms), so "
                "--smooth-ms means nothing; add it, or leave --smooth-ms out"
            )
        out, stretches = np.full_like(x, np.nan), self.layout.stretches
        if self.windows is None:
            trials = x.reshape(-1, self.n_bins, x.shape[1])
            return gaussian_smooth(trials, width_ms / self.bin_ms, causal).reshape(x.shape)
        for start, stop in find_segments(stretches >= 0):
            out[start:stop] = gaussian_smooth(x[start:stop], width_ms / self.bin_ms, causal)
        return out


@dataclass
class Scored:
    """One decoder's scores on one split."""

    features: str
    split: str
    kind: str
    scores: Decoding
    by_time: ByTime | None = None


@dataclass
class DecodeResult:
    """What `lfads decode` did: the decoder, scores by features and split, and what to know."""

    source: str
    behavior: str
    decoder: Decoder
    table: list[Scored]
    level: float
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; numbers that are not finite are None."""
        table = [
            {**asdict(row), "by_time": row.by_time and row.by_time._asdict()} for row in self.table
        ]
        content = {
            "format": 1,
            "source": self.source,
            "behavior": self.behavior,
            "lags": list(self.decoder.lags),
            "alpha": self.decoder.alpha,
            "fitted_on": self.decoder.fitted_on,
            "level": self.level,
            "table": table,
            "notes": self.notes,
        }
        return dict(plain(content))

    def text(self) -> str:
        """Return the table, for a terminal."""
        names = self.decoder.target_names
        lines = [["R2", "split", *names, "mean", "weighted", "r", "rows", "left out"]]
        for row in self.table:
            s = row.scores
            low, high = s.intervals.get("r2_uniform", (math.nan, math.nan))
            between = f" [{low:.3f}, {high:.3f}]" if math.isfinite(low) else ""
            correlation = float(np.mean(s.r))
            lines.append(
                [
                    row.features,
                    row.split,
                    *(f"{value:.3f}" for value in s.r2),
                    f"{s.r2_uniform:.3f}{between}",
                    f"{s.r2_weighted:.3f}",
                    f"{correlation:.3f}",
                    str(s.rows),
                    str(s.left_out),
                ]
            )
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        parts = [
            "\n".join(
                "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
                for line in lines
            )
        ]
        for row in self.table:
            if row.by_time is not None:
                parts.append(by_time_text(f"{row.features}, {row.split}: mean R2", row.by_time))
        kinds = {row.split: row.kind for row in self.table}
        parts.append("\n".join(f"{split}: {kind}" for split, kind in kinds.items()))
        parts += [f"note: {note}" for note in self.notes]
        return "\n\n".join(parts)


@dataclass(frozen=True)
class DecodeOptions:
    """What `decode_run` takes; see ``lfads decode --help``."""

    features: str | None = None
    behavior: str = "behavior"
    lags: tuple[int, ...] = LAGS
    alphas: tuple[float, ...] = ALPHAS
    fit: tuple[str, ...] = ("train",)
    score: tuple[str, ...] | None = None
    smooth_ms: float = 0.0
    causal: bool = False
    positions: str | None = None
    overlap: int | None = None
    where: str | None = None
    fastest: float | None = None
    by_time: int | None = None
    baselines: bool = True
    n_draws: int = 1000
    level: float = 0.95
    seed: int = 0


def decode_run(
    run: str | Path, options: DecodeOptions | None = None, *, decoder: Decoder | None = None
) -> DecodeResult:
    """Decode behaviour from a run, its output file or a data file.

    Parameters
    ----------
    run : str or Path
    options : DecodeOptions, optional
    decoder : Decoder, optional
        A decoder to apply; nothing is fitted then.

    Returns
    -------
    DecodeResult

    Raises
    ------
    UserError
        If the file lacks a series or split, or the decoder does not fit it.
    """
    options = options or DecodeOptions()
    number("--smooth-ms", options.smooth_ms, least=0)
    if options.by_time is not None:
        whole("--by-time", options.by_time, least=2)
    if options.causal and min(options.lags) < 0:
        raise ConfigError(
            f"--lags {options.lags[0]}:{options.lags[-1]} looks ahead, which --causal refuses; "
            "legal are lags of 0 and more"
        )
    source = open_source(run, options.positions, options.overlap)
    behavior = source.check_name(options.behavior, "--behavior")
    y = source.rows(behavior)
    scored = _scored_splits(source, options, decoder)
    notes = [f"{source.path.name}: {source.layout.text}"]
    if decoder is not None:
        _check_fits(decoder, source, y.shape[1])
        decoders = [decoder]
    else:
        default = "factors" if source.is_output else "encod_data"
        names = [options.features or default]
        fitted = _fit(source, names[0], y, options.smooth_ms, options)
        decoders = [fitted]
        if (
            options.baselines
            and source.is_output
            and f"{source.splits[0]}_encod_data" in (source.shapes)
        ):
            decoders.append(_fit_baseline(source, y, options, notes))
    table = []
    for number_, one in enumerate(decoders):
        x = source.rows(source.check_name(one.features, "--from"))
        x = source.smoothed(x, one.smooth_ms, one.causal)
        name = describe_features(one)
        for split in scored:
            where = _where(source, split, y, options)
            seed = [options.seed, SPLITS.index(split)]
            pieces = source.layout.pieces
            result = one.score(
                x, y, pieces, where=where, n_draws=options.n_draws, level=options.level, seed=seed
            )
            parts = None
            if options.by_time:
                error = one.sums(x, y, pieces, where=where).error
                if len(error.n) < options.by_time:
                    note = (
                        f"{split} is too short for {options.by_time} parts of time: it has "
                        f"{len(error.n)} trials or blocks of 5 s"
                    )
                    notes += [] if note in notes else [note]
                else:
                    groups = consecutive(error.n[:, 0], options.by_time)
                    parts = score_by_time(error, groups, options.n_draws, options.level, seed)
            kind = split_kind(source.order, split).text
            if decoder is not None:
                kind = f"nothing was fitted here; the decoder is of {one.fitted_on.get('run')}"
            elif split in options.fit:
                kind = "the decoder was fitted to these rows"
            table.append(Scored(name, split, kind, result, parts))
        if decoder is None and number_ == 0:
            own = {row.split: plain(asdict(row.scores)) for row in table}
            decoders[0] = one = replace(one, scores=own)
    return DecodeResult(str(run), options.behavior, decoders[0], table, options.level, notes)


def open_source(
    run: str | Path, positions: str | None = None, overlap: int | None = None
) -> Source:
    """Open the one output file of a run, or a file."""
    place = expanded(run).absolute()
    paths = output_files(place)
    if len(paths) > 1:
        raise UserError(
            f"{place} holds {len(paths)} sessions, each with its own decoder; name one of their "
            f"output files: {list_some([path.name for path in paths])}"
        )
    return Source(paths[0], positions, overlap)


def describe_features(decoder: Decoder) -> str:
    """Name the features of a decoder in a table."""
    if decoder.smooth_ms:
        return f"{decoder.features}, smoothed by {decoder.smooth_ms:g} ms"
    return decoder.features


def consecutive(rows: Array, n_parts: int) -> list[NDArray[np.int64]]:
    """Divide blocks in order of time into consecutive parts of about as many rows."""
    middle = np.cumsum(rows) - np.asarray(rows) / 2
    part = np.minimum((middle * n_parts / np.sum(rows)).astype(np.int64), n_parts - 1)
    parts = [np.flatnonzero(part == k) for k in range(n_parts)]
    # Blocks of very different lengths may leave a part empty.
    return parts if all(map(len, parts)) else np.array_split(np.arange(len(rows)), n_parts)


def _scored_splits(
    source: Source, options: DecodeOptions, decoder: Decoder | None
) -> tuple[str, ...]:
    asked = options.score
    if asked is None:
        asked = tuple(s for s in source.splits if decoder is not None or s not in options.fit)
    for split in (*asked, *(() if decoder else options.fit)):
        if split not in source.splits:
            raise UserError(
                f"{source.path} has no split {split!r}; legal are {', '.join(source.splits)}"
            )
    return asked


def _fit(source: Source, name: str, y: Array, smooth_ms: float, options: DecodeOptions) -> Decoder:
    key = source.check_name(name, "--from")
    x = source.smoothed(source.rows(key), smooth_ms, options.causal)
    layout = source.layout
    fitted_on: dict[str, Any] = {"run": str(source.path), "split": ",".join(options.fit)}
    if (checkpoint := _checkpoint(source)) is not None:
        with checkpoint.open("rb") as file:
            fitted_on["checkpoint_sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    return fit_decoder(
        x,
        y,
        layout.pieces,
        options.lags,
        options.alphas,
        guard=layout.guard,
        where=np.isin(layout.splits, [SPLITS.index(split) for split in options.fit]),
        features=name,
        bin_ms=source.bin_ms,
        channels=names_of(source.attrs, f"{key}_names"),
        target_names=names_of(source.attrs, options.behavior, y.shape[1])
        or [f"{options.behavior} {k}" for k in range(y.shape[1])],
        causal=min(options.lags) >= 0 and (not smooth_ms or options.causal),
        smooth_ms=smooth_ms,
        fitted_on=fitted_on,
    )


def _checkpoint(source: Source) -> Path | None:
    """Find the checkpoint that an output file is of: the one that it names, or the run's best."""
    if not source.is_output:
        return None
    named = Path(str(source.attrs.get("checkpoint", "")))
    folder = RunFolder.around(source.path)
    if named.is_file() or folder.kind == "none":
        return named if named.is_file() else None
    best = folder.checkpoint(best=True)
    return best if best is not None and best.is_file() else None


def _fit_baseline(source: Source, y: Array, options: DecodeOptions, notes: list[str]) -> Decoder:
    """Fit the same decoder to smoothed spikes; the folds choose among widths."""
    if source.bin_ms is None:
        notes.append("spikes are not smoothed: the file does not say how wide its bins are")
        return _fit(source, "encod_data", y, 0.0, options)
    with warnings.catch_warnings():
        # Penalties at the end of the grid are those of widths that are too narrow.
        warnings.simplefilter("ignore", DataWarning)
        fits = [_fit(source, "encod_data", y, width, options) for width in BASELINE_MS]
    return max(fits, key=lambda fit: float(fit.fitted_on.get("r2_of_folds", 0.0)))


def _check_fits(decoder: Decoder, source: Source, n_targets: int) -> None:
    if decoder.bin_ms and source.bin_ms and not math.isclose(decoder.bin_ms, source.bin_ms):
        raise UserError(
            f"the decoder was fitted to bins of {decoder.bin_ms:g} ms, {source.path} has bins of "
            f"{source.bin_ms:g} ms; bin the data alike"
        )
    if len(decoder.target_names) != n_targets:
        raise UserError(
            f"the decoder gives {len(decoder.target_names)} targets "
            f"({list_some(decoder.target_names)}), --behavior has {n_targets} columns"
        )


def _where(source: Source, split: str, y: Array, options: DecodeOptions) -> NDArray[np.bool_]:
    """Mark the rows of a split that are scored."""
    chosen = source.layout.splits == SPLITS.index(split)
    if options.where:
        if any(len(source.shapes.get(f"{s}_{options.where}", ())) != 2 for s in source.splits):
            raise UserError(
                f"{source.path}: --where {options.where} needs '{split}_{options.where}' of shape "
                "(trials, bins) in every split"
            )
        chosen &= np.nan_to_num(source.rows(options.where, columns=False)) > 0.5
    if options.fastest is not None:
        share = fraction("--fastest", options.fastest)
        pieces = source.layout.pieces
        speed = np.full(len(y), np.nan)
        scale = np.nanstd(y[chosen], axis=0)
        change = np.diff(y / np.where(scale > 0, scale, 1.0), axis=0)
        change[pieces[1:] != pieces[:-1]] = np.nan
        speed[1:] = np.linalg.norm(change, axis=1)
        known = speed[chosen & np.isfinite(speed)]
        if not len(known):
            raise UserError(f"no bin of {split} has a rate of change of {options.behavior}")
        with np.errstate(invalid="ignore"):
            chosen &= speed >= np.quantile(known, 1 - share)
    return np.asarray(chosen)


def write_result(result: DecodeResult, folder: Path | None, save: Path | None) -> list[Path]:
    """Write the scores into a folder and the decoder where it is to be saved."""
    written = []
    if save is not None:
        written.append(result.decoder.save(save))
    if folder is not None:
        path = folder / SCORES
        write_whole(path, json.dumps(result.to_dict(), indent=1) + "\n")
        written.append(path)
    return written
