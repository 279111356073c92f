"""One session of the Neural Latents Benchmark: its windows, behaviour, conditions and masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...data.find import list_some
from ...data.validate import SPLITS
from ...errors import DataError
from ..binning import first_bin
from ..counting import Progress, count
from ..sources.nwb import unit_flags
from ..sources.recording import Recording, Series, SpikeTimes, find
from ..splits import Labels, conditions_of, labels_from_column
from ..trials import Windows, in_recording
from ..unit_selection import sum_units
from ..write import Contents
from .heldout import condition_averages, decimated, jitter_bins, ragged
from .recipe import Recipe

Array = NDArray[Any]
Indices = NDArray[np.int64]

_SHORT = 0.8  # trials shorter than this part of their condition's mean are in no PSTH


class NLBSession:
    """The trials of a file that train and validate.

    Parameters
    ----------
    recipe : Recipe
    recording : Recording
    bin_s : float
        Bin width in seconds.

    Attributes
    ----------
    windows : Windows
    labels : ndarray of int
        Split of each window.
    units : ndarray of int
        Units that are read, then those that are held out.
    n_read_units : int
    jitter : ndarray of int, or None
        Bins by which each window was moved to later times.
    warnings : list of str
    """

    def __init__(self, recipe: Recipe, recording: Recording, bin_s: float) -> None:
        self.recipe, self.recording, self.bin_s = recipe, recording, bin_s
        self.bin_ms = round(bin_s * 1000)
        self.warnings: list[str] = []
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
            for number in (0, 1):
                of_split = labels == number
                shift[of_split] = jitter_bins(produced[of_split], window_ms, self.bin_ms)
        known = np.isfinite(event[rows])
        if missing := int((~known).sum()):
            self.warnings.append(
                f"{missing} of {len(rows)} trials have no {recipe.event!r}; they are left out"
            )
        rows = rows[known]
        self.windows = self.cut(event[rows] + shift[rows] * bin_s, rows, forward=True)
        inside = in_recording(recording, self.windows, slack_s=bin_s)
        if not inside.all():
            self.warnings.append(
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
        """Windows around events, on the grid of bins that begins at 0 s."""
        n_read = (self.recipe.stop_ms - self.recipe.start_ms) // self.bin_ms
        more = self.recipe.forward_ms // self.bin_ms if forward else 0
        first = first_bin(event + self.recipe.start_ms / 1000, self.bin_s)
        starts = np.asarray(first * self.bin_s, dtype=np.float64)
        return Windows(starts, rows, n_read, n_read + more, self.bin_s)

    def per_window(self, progress: Progress) -> dict[str, Array]:
        """Behaviour, and masks or jitter, with a row per window."""
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
        values = decimated(series, self._end(), self.bin_ms)
        first = np.round(self.windows.starts / self.bin_s).astype(np.int64)
        first += self.recipe.lag_ms // self.bin_ms
        place = first[:, None] + np.arange(self.windows.n_read)
        inside = (place >= 0) & (place < len(values))
        taken = values[place.clip(0, len(values) - 1)]
        return np.where(inside[..., None], taken, np.nan)

    def _end(self) -> float:
        ends = [self.recording.span()[1]]
        if "stop_time" in self.recording.trials:
            ends.append(float(np.nanmax(self.recording.event_times("stop_time"))))
        return max(ends)

    def averages(self, progress: Progress) -> dict[str, Any]:
        """PSTHs and the trials of each condition; nothing where there are no conditions."""
        recipe, table = self.recipe, self.recording.trials
        if not recipe.conditions or not isinstance(self.recording.spikes, SpikeTimes):
            return {}
        found, labels = conditions_of(table, recipe.conditions, self.rows)
        if recipe.outliers:
            labels = np.where(table[recipe.outliers][self.rows] == 1, -1, labels)
        members = [np.flatnonzero(labels == number) for number in range(len(found))]
        members = [trials for trials in members if len(trials)]
        starts, lengths = self.windows.starts, [self.windows.n_read] * len(members)
        if recipe.from_event:
            begin = first_bin(self.recording.event_times(recipe.from_event)[self.rows], self.bin_s)
            end = first_bin(self.recording.event_times(recipe.event)[self.rows], self.bin_s)
            duration = end - begin
            members = [m[duration[m] >= _SHORT * duration[m].mean()] for m in members]
            lengths = [min(self.windows.n_read, int(duration[m].min())) for m in members]
            starts = np.asarray((end - self.windows.n_read) * self.bin_s, dtype=np.float64)
        psth = condition_averages(
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
            result[f"{split}_cond_idx"] = ragged(lists)
        return result


def test_contents(
    session: NLBSession, recording: Recording, folder: Path, progress: Progress
) -> tuple[Contents | None, list[str]]:
    """Count the trials for testing, of which only the units that are read are known.

    Returns
    -------
    contents : Contents or None
        None where they cannot be cut like the others.
    warnings : list of str
    """
    recipe = session.recipe
    if recipe.event not in recording.trials:
        return None, [f"{recording.path.name} has no {recipe.event!r}; it is left out"]
    event = recording.event_times(recipe.event)
    chosen = (labels_from_column(recording.trials["split"]) == 2) & np.isfinite(event)
    rows = np.flatnonzero(chosen)
    units = np.flatnonzero(~unit_flags(recording, "heldout"))
    if len(units) != session.n_read_units or not len(rows):
        return None, [
            f"{recording.path.name} has {len(units)} units to read and {len(rows)} trials for "
            f"testing, the other file {session.n_read_units} units; it is left out"
        ]
    windows = session.cut(event[rows], rows, forward=False)
    counted = count(recording, windows, folder, progress=progress)
    _, largest = sum_units(counted, np.zeros(len(rows), dtype=bool), pairs=False)
    labels = np.full(len(rows), 2)
    kept = {"trial": rows, "window_start": windows.starts}
    contents = Contents(counted, labels, units, len(units), largest, {}, kept)
    return contents, counted.warnings
