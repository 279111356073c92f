"""The seven data sets of the Neural Latents Benchmark, made from its NWB files [1]_.

Windows, lags, smoothing, conditions, held-out neurons and splits are those of the benchmark: bins
of a grid that begins at 0 s, the window's first bin being the first that begins at or after its
start; behaviour low-pass filtered before it is sampled once per bin; PSTHs of spikes smoothed at
1 ms over the trials that train or validate. The split ``val`` validates; trials of a file with the
split ``test`` become ``test_encod_data``.

.. [1] Pei et al. 2021, NeurIPS Datasets and Benchmarks (arXiv 2109.04463).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data.find import absolute_pattern, check_output, list_some, make_folder
from ..data.nlb_files import NLB_FILES, dandi_download
from ..data.validate import SPLITS
from ..errors import DataError, UserError, explained, one_of
from .binning import TOLERANCE_S, Array, Floats, Indices, bin_windows, first_bin, rebin
from .counting import Progress, count, silent
from .options import PrepOptions
from .sources import Recording, open_recording
from .sources.recording import Series, SpikeTimes, find, unit_flags
from .splits import Labels, conditions_of, labels_from_column
from .trials import Windows, in_recording
from .units import sum_units
from .write import Contents, Prepared, write_contents

_SHORT = 0.8  # trials shorter than this fraction of their condition's mean are in no PSTH
_FILTER_TAPS = 500  # order of the filter that takes out what bins are too wide for
_MS = 1e-3


@dataclass(frozen=True)
class Recipe:
    """How the benchmark cuts a data set, in ms; names are those of its NWB file."""

    event: str = "move_onset_time"
    start_ms: int = -250
    stop_ms: int = 450
    behavior: str = "hand_vel"  # time series; empty where columns of the trials take its place
    lag_ms: int = 120  # by which behaviour is taken later than spikes
    conditions: tuple[str, ...] = ("trial_type", "trial_version")  # empty: no PSTHs
    smoothing_ms: int = 50  # standard deviation of the Gaussian that smooths PSTHs
    decode_by: str = ""  # column of 0 and 1 whose values get a decoder each
    columns: tuple[str, ...] = ()  # of the trials, that are the behaviour
    outliers: str = ""  # column that flags trials without behaviour and PSTH
    # Event at which PSTHs begin, at most a window before `event`; windows then are jittered.
    from_event: str = ""
    bin_ms: int = 5  # of the published configuration
    forward_ms: int = 200  # after the window, only predicted


RECIPES = {
    "mc_maze": Recipe(lag_ms=100, smoothing_ms=70, bin_ms=20),
    "mc_maze_large": Recipe(),
    "mc_maze_medium": Recipe(),
    "mc_maze_small": Recipe(),
    "mc_rtt": Recipe("start_time", 0, 600, "finger_vel", 140, conditions=()),
    "area2_bump": Recipe(
        start_ms=-100,
        stop_ms=500,
        lag_ms=-20,
        conditions=("cond_dir", "ctr_hold_bump"),
        smoothing_ms=40,
        decode_by="ctr_hold_bump",
    ),
    "dmfc_rsg": Recipe(
        "go_time",
        -1500,
        0,
        behavior="",
        lag_ms=0,
        conditions=("is_eye", "theta", "is_short", "ts"),
        smoothing_ms=70,
        columns=("is_eye", "theta", "is_short", "ts", "tp"),
        outliers="is_outlier",
        from_event="set_time",
    ),
}
"""Recipes by the name of the data set."""

BINS_MS = (5, 20)
"""Bin widths in which the benchmark scores."""


def prepare_nlb(
    name: str,
    files: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str] | None = None,
    *,
    bin_ms: float | None = None,
    overwrite: bool = False,
    strict: bool = False,
    compress: bool = False,
    progress: Progress = silent,
) -> Prepared:
    """Make a data file of the Neural Latents Benchmark, in the names that its configurations read.

    The file has, with the spikes, ``{split}_behavior``; ``psth`` (conditions x bins x units, spikes
    per bin) and ``{split}_cond_idx`` (trials of each condition); ``{split}_decode_mask``
    (trials x decoders), or for DMFC_RSG ``{split}_jitter`` (bins by which each window was moved
    to later times).

    Parameters
    ----------
    name : str
        "mc_maze", "mc_maze_large", "mc_maze_medium", "mc_maze_small", "mc_rtt", "area2_bump" or
        "dmfc_rsg".
    files : path, or sequence of these
        The NWB file with the trials that train and validate, also the one with the trials for
        testing where you have it, or a folder with them.
    output : path, optional
        By default ``datasets/<name>-<bin>ms-val.h5``.
    bin_ms : {5, 20}, optional
        By default that of the published configuration.
    overwrite : bool
        Whether to replace an existing file.
    strict : bool
        Raise an error where there would be a warning.
    compress : bool
        Compress the file (gzip).
    progress : callable
        Called with what is going on, how much of it is done, and of how much.

    Returns
    -------
    Prepared
        Where the file is, its trials, bins and units, notes and warnings.

    Raises
    ------
    UserError, DataError
        For unknown names, and files that are not this data set.
    """
    recipe = RECIPES[one_of("--nlb", name, RECIPES)]
    bin_ms = recipe.bin_ms if bin_ms is None else bin_ms
    if bin_ms not in BINS_MS:
        raise UserError(f"--bin-ms is {bin_ms:g}; the benchmark has bins of 5 and 20 ms.")
    path = Path(absolute_pattern(output or f"datasets/{name}-{int(bin_ms):02d}ms-val.h5"))
    train, test = _find_files(name, files)
    check_output(train.path, path, overwrite)
    notes = [f"{name} of the Neural Latents Benchmark, bins of {bin_ms:g} ms: {train.path.name}"]
    with ExitStack() as stores:
        stores.enter_context(explained(train.warnings))
        session = NLBSession(recipe, train, bin_ms / 1000)
        train.warnings += _unlike(name, session)
        make_folder(path)
        counted = count(train, session.windows, path.parent, progress=progress)
        stores.callback(counted.store.close)
        _, largest = sum_units(counted, session.labels == 0, pairs=False)
        tested = None
        if test is not None:
            tested = _contents_for_testing(session, test, path.parent, progress)
            train.warnings += test.warnings
        if tested is not None:
            stores.callback(tested.counted.store.close)
        per_window = session.per_window(progress)
        units, n_read = session.units, session.n_read_units
        return write_contents(
            path,
            Contents(counted, session.labels, units, n_read, largest, {}, per_window),
            train,
            PrepOptions(bin_ms=bin_ms, strict=strict, compress=compress),
            progress,
            attrs={"nlb": name},
            notes=notes,
            warnings=train.warnings,
            extra=session.averages(progress),
            test=tested,
        )


def _find_files(
    name: str, files: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
) -> tuple[Recording, Recording | None]:
    """Open the file with trials to train and validate, and the one with trials for testing."""
    paths: list[Path] = []
    for entry in [files] if isinstance(files, str | os.PathLike) else files:
        path = Path(absolute_pattern(entry))
        paths += sorted(path.rglob("*.nwb")) if path.is_dir() else [path]
    if not paths:
        raise UserError(
            f"--nlb {name} needs the benchmark's NWB files: {dandi_download(name)}, then name the "
            "folder that it makes."
        )
    train: list[Recording] = []
    test: list[Recording] = []
    for path in paths:
        recording = open_recording(path)
        recording.check()
        splits = set(recording.trials["split"].tolist()) if "split" in recording.trials else set()
        if {"train", "val"} <= splits:
            train.append(recording)
        elif "test" in splits:
            test.append(recording)
        else:
            raise DataError(
                f"{path} is no file of the benchmark: its trials have "
                + (f"the splits {list_some(sorted(splits))}" if splits else "no column 'split'")
                + ", not 'train' and 'val'. Use lfads prep without --nlb."
            )
    if len(train) != 1 or len(test) > 1:
        raise UserError(
            f"--nlb {name} has {len(train)} files with trials to train and validate "
            f"({list_some([r.path.name for r in train])}) and {len(test)} with trials for testing; "
            "legal are one, and at most one. Name the files of one data set."
        )
    return train[0], test[0] if test else None


def _unlike(name: str, session: NLBSession) -> list[str]:
    """Warn of a file that is not of the size of the published data set."""
    expected = NLB_FILES[name][1][2:]
    sizes = (session.n_read_units, len(session.units))
    if sizes == expected:
        return []
    others = [key for key, (_, shape) in NLB_FILES.items() if shape[2:] == sizes]
    hint = f"; it looks like {others[0]}" if others else ""
    return [
        f"{name} has {expected[0]} units to read and {expected[1]} in all, this file has "
        f"{sizes[0]} and {sizes[1]}{hint}"
    ]


class NLBSession:
    """The trials of a file that train and validate, cut as a recipe says.

    `units` are those that are read, then those that are held out; `jitter` has the bins by which
    each window was moved to later times, or is None.
    """

    def __init__(self, recipe: Recipe, recording: Recording, bin_s: float) -> None:
        self.recipe, self.recording, self.bin_s = recipe, recording, bin_s
        self.bin_ms = round(bin_s * 1000)
        self._check_columns()
        heldout = unit_flags(recording, "heldout")
        self.units = np.concatenate([np.flatnonzero(~heldout), np.flatnonzero(heldout)])
        self.n_read_units = int((~heldout).sum())
        labels = labels_from_column(recording.trials["split"])
        rows = np.flatnonzero((labels == 0) | (labels == 1))
        event = recording.event_times(recipe.event)
        shift = np.zeros(len(labels), dtype=np.int64)
        if recipe.from_event:
            produced = recording.trials[recipe.columns[-1]].astype(np.float64)
            window_ms = recipe.stop_ms - recipe.start_ms
            # Drawn for all trials of a split in the file's order, before any is left out: with one
            # draw less, all later windows would differ from the published ones.
            for number in (0, 1):
                of_split = labels == number
                shift[of_split] = _jitter_bins(produced[of_split], window_ms, self.bin_ms)
        known = np.isfinite(event[rows])
        if missing := int((~known).sum()):
            recording.warnings.append(
                f"{missing} of {len(rows)} trials have no {recipe.event!r}; they are left out"
            )
        rows = rows[known]
        self.windows = self.cut(event[rows] + shift[rows] * bin_s, rows, forward=True)
        # The grid begins a window up to a bin late, which may carry it past what was observed.
        inside = in_recording(recording, self.windows, slack_s=bin_s)
        if not inside.all():
            recording.warnings.append(
                f"the windows of {int((~inside).sum())} trials were not observed to their end "
                f"(trials {list_some(rows[~inside].tolist())}, counted from 0); they are left out"
            )
        self.windows = self.windows.keep(inside)
        self.rows = rows[inside]
        self.labels: Labels = labels[self.rows]
        self.jitter = shift[self.rows] if recipe.from_event else None
        for number, split in enumerate(SPLITS[:2]):
            if not (self.labels == number).any():
                raise DataError(f"{recording.path}: no trial of the split {split!r} is left.")

    def _check_columns(self) -> None:
        recipe, recording = self.recipe, self.recording
        needed = [recipe.event, recipe.from_event, recipe.decode_by, recipe.outliers]
        needed += [*recipe.conditions, *recipe.columns]
        missing = [name for name in dict.fromkeys(needed) if name and name not in recording.trials]
        if missing or "heldout" not in recording.units:
            lacks = [f"column {name!r} of the trials" for name in missing]
            lacks += ["column 'heldout' of the units"] * ("heldout" not in recording.units)
            raise DataError(
                f"{recording.path} is not the data set named: it lacks {list_some(lacks)}. Its "
                f"trials have {list_some(sorted(recording.trials), 20)}."
            )
        if not isinstance(recording.spikes, SpikeTimes):
            raise DataError(f"{recording.path} holds no spike times.")

    def cut(self, event: Array, rows: Indices, *, forward: bool) -> Windows:
        """Cut windows around events, on the grid of bins that begins at 0 s."""
        n_read = (self.recipe.stop_ms - self.recipe.start_ms) // self.bin_ms
        more = self.recipe.forward_ms // self.bin_ms if forward else 0
        first = first_bin(event + self.recipe.start_ms / 1000, self.bin_s)
        starts = np.asarray(first * self.bin_s, dtype=np.float64)
        return Windows(starts, rows, n_read, n_read + more, self.bin_s)

    def per_window(self, progress: Progress) -> dict[str, Array]:
        """Return behaviour, and masks or jitter, with a row per window."""
        recipe, table = self.recipe, self.recording.trials
        arrays: dict[str, Array] = {"trial": self.rows, "window_start": self.windows.starts}
        if recipe.columns:
            columns = [table[name][self.rows].astype(np.float64) for name in recipe.columns]
            behavior = np.stack(columns, axis=1)
            behavior[table[recipe.outliers][self.rows] != 0] = np.nan
        else:
            progress("filtering behaviour, series", 0, 1)
            behavior = self._behavior(find(self.recording.series, recipe.behavior, "time series"))
            progress("filtering behaviour, series", 1, 1)
        arrays["behavior"] = behavior.astype(np.float32)
        if self.jitter is not None:
            arrays["jitter"] = self.jitter
        elif recipe.decode_by:
            flags = table[recipe.decode_by][self.rows]
            arrays["decode_mask"] = np.stack([flags == 0, flags == 1], axis=1)
        else:
            arrays["decode_mask"] = np.ones((len(self.rows), 1), dtype=bool)
        return arrays

    def _behavior(self, series: Series) -> Array:
        ends = [self.recording.span()[1]]
        if "stop_time" in self.recording.trials:
            ends.append(float(np.nanmax(self.recording.event_times("stop_time"))))
        values = _decimated(series, max(ends), self.bin_ms)
        first = np.round(self.windows.starts / self.bin_s).astype(np.int64)
        first += self.recipe.lag_ms // self.bin_ms
        place = first[:, None] + np.arange(self.windows.n_read)
        inside = (place >= 0) & (place < len(values))
        taken = values[place.clip(0, len(values) - 1)]
        return np.where(inside[..., None], taken, np.nan)

    def averages(self, progress: Progress) -> dict[str, Any]:
        """Return PSTHs and the trials of each condition, or nothing where a recipe has none."""
        recipe, table = self.recipe, self.recording.trials
        if not recipe.conditions or not isinstance(self.recording.spikes, SpikeTimes):
            return {}
        conditions, labels = conditions_of(table, recipe.conditions, self.rows)
        if recipe.outliers:
            labels = np.where(table[recipe.outliers][self.rows] == 1, -1, labels)
        members = [np.flatnonzero(labels == number) for number in range(len(conditions))]
        members = [trials for trials in members if len(trials)]
        starts, lengths = self.windows.starts, [self.windows.n_read] * len(members)
        if recipe.from_event:
            begin = first_bin(self.recording.event_times(recipe.from_event)[self.rows], self.bin_s)
            end = first_bin(self.recording.event_times(recipe.event)[self.rows], self.bin_s)
            duration = end - begin
            members = [m[duration[m] >= _SHORT * duration[m].mean()] for m in members]
            lengths = [min(self.windows.n_read, int(duration[m].min())) for m in members]
            starts = np.asarray((end - self.windows.n_read) * self.bin_s, dtype=np.float64)
        psth = _condition_averages(
            self.recording.spikes,
            starts,
            members,
            self.windows.n_read,
            self.bin_ms,
            recipe.smoothing_ms,
            progress,
        )[:, :, self.units]
        for average, length in zip(psth, lengths, strict=True):
            average[: self.windows.n_read - length] = np.nan
        result: dict[str, Any] = {"psth": psth.astype(np.float32)}
        for number, split in enumerate(SPLITS[:2]):
            # Trials are numbered within their split.
            within = np.cumsum(self.labels == number) - 1
            lists = [within[m[self.labels[m] == number]] for m in members]
            result[f"{split}_cond_idx"] = _ragged(lists)
        return result


def _contents_for_testing(
    session: NLBSession, recording: Recording, folder: Path, progress: Progress
) -> Contents | None:
    """Count the trials for testing, of which only the units that are read are known.

    Return None, and warn, where they cannot be cut like the others.
    """
    recipe = session.recipe
    if recipe.event not in recording.trials:
        recording.warnings.append(f"{recording.path.name} has no {recipe.event!r}; it is left out")
        return None
    event = recording.event_times(recipe.event)
    chosen = (labels_from_column(recording.trials["split"]) == 2) & np.isfinite(event)
    rows = np.flatnonzero(chosen)
    units = np.flatnonzero(~unit_flags(recording, "heldout"))
    if len(units) != session.n_read_units or not len(rows):
        recording.warnings.append(
            f"{recording.path.name} has {len(units)} units to read and {len(rows)} trials for "
            f"testing, the other file {session.n_read_units} units; it is left out"
        )
        return None
    windows = session.cut(event[rows], rows, forward=False)
    counted = count(recording, windows, folder, progress=progress)
    _, largest = sum_units(counted, np.zeros(len(rows), dtype=bool), pairs=False)
    labels = np.full(len(rows), 2)
    kept = {"trial": rows, "window_start": windows.starts}
    return Contents(counted, labels, units, len(units), largest, {}, kept)


def _decimated(series: Series, end_s: float, bin_ms: int) -> Floats:
    """Sample a series once per bin, at the bin's beginning, after a low-pass filter.

    The series is at 1 kHz, and its values as stored. The filter (finite, without phase) passes
    what the bins can hold. Gaps are bridged linearly for it and are NaN in the result, shape
    (bins, channels), whose bin 0 begins at 0 s.
    """
    from scipy.signal import decimate

    n_ms = round(end_s / _MS)
    place = np.round(series.seconds(0, series.n_samples) / _MS).astype(np.int64)
    inside = (place >= 0) & (place < n_ms)
    stored = series.read(0, series.n_samples, raw=True)
    result = np.empty((-(-n_ms // bin_ms), series.n_channels))
    for channel in range(series.n_channels):
        values = np.full(n_ms, np.nan)
        values[place[inside]] = stored[inside, channel]
        unknown = np.isnan(values)
        if unknown.all():
            result[:, channel] = np.nan
            continue
        known = np.flatnonzero(~unknown)
        # A filter would spread a single NaN over all its taps.
        values[unknown] = np.interp(np.flatnonzero(unknown), known, values[known])
        kept = decimate(values, bin_ms, n=_FILTER_TAPS, ftype="fir")
        result[:, channel] = np.where(unknown[::bin_ms], np.nan, kept)
    return result


def _jitter_bins(produced_ms: Floats, window_ms: float, bin_ms: float) -> Indices:
    """Draw by how many bins each window of DMFC_RSG is moved to later times.

    Uniform between 0 and what leaves the interval from Set to Go (`produced_ms`, all trials of a
    split in order) in the window, at most 300 ms; 0 where the interval is unknown.
    """
    most = np.clip(window_ms - np.nan_to_num(produced_ms, nan=window_ms), 0, 300)
    # Rounded before it is floored: rounding of the division must not cost a bin.
    most = np.floor(np.round(most / bin_ms, 4))
    # NumPy's legacy generator, as the benchmark used: only it gives the published windows.
    draws = np.random.RandomState(0).random_sample(len(most))
    return np.round(draws * most).astype(np.int64)


def _condition_averages(
    spikes: SpikeTimes,
    starts: Floats,
    members: Sequence[Indices],
    n_bins: int,
    bin_ms: int,
    smoothing_ms: int,
    progress: Progress,
) -> Floats:
    """Average spikes smoothed at 1 ms over each condition's trials: conditions x bins x units.

    In spikes per bin. `starts` are seconds, `members` the windows of each condition, and
    `smoothing_ms` the standard deviation of a Gaussian, cut off three of them to each side.
    Smoothing and averaging are linear, so the average over trials is smoothed.
    """
    taps = 6 * smoothing_ms
    lags = np.arange(taps) - (taps - 1) / 2
    kernel = np.exp(-0.5 * (lags / smoothing_ms) ** 2)
    kernel /= kernel.sum()
    # Spikes this number of milliseconds before and after a window reach into it.
    before, after = taps // 2, (taps - 1) // 2
    length = n_bins * bin_ms + before + after
    averages = np.zeros((len(members), n_bins, spikes.n_units))
    early = starts - before * _MS
    for unit in range(spikes.n_units):
        progress("averaging conditions, unit", unit, spikes.n_units)
        # One unit at a time: at 1 ms, a thousand windows of a second take 2 MB for each unit.
        counts = np.zeros((len(starts), length), dtype=np.uint16)
        for times, tolerance in spikes.blocks(unit):
            slack = max(tolerance, TOLERANCE_S)
            bin_windows(times, early, length, _MS, tolerance=slack, out=counts)
        for number, trials in enumerate(members):
            if len(trials):
                mean = counts[trials].mean(axis=0)
                smooth = np.convolve(mean, kernel, mode="valid")[:, None]
                averages[number, :, unit] = rebin(smooth, bin_ms)[:, 0]
    return averages


def _ragged(lists: Sequence[Array]) -> Array:
    """Return arrays of different lengths as one array of arrays."""
    array = np.empty(len(lists), dtype=object)
    array[:] = [np.asarray(one, dtype=np.int64) for one in lists]
    return array
