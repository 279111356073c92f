"""Which windows of a recording go to which split, and what looks wrong about them."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..data.find import list_some
from ..data.memory import default_bound
from ..data.validate import SPLITS
from ..errors import DataError, UserError, number
from .binning import Array, Flags, Floats, Indices, first_bin
from .chop import find_segments, plan_chops
from .merging import leaking_windows
from .options import PrepOptions
from .sources.recording import BinnedSpikes, Recording, SpikeTimes, find
from .splits import (
    UNUSED,
    Labels,
    conditions_of,
    count_splits,
    draw_splits,
    labels_from_column,
    read_split,
)
from .trials import Windows, parse_align, select_rows, trial_windows, whole_bins


@dataclass
class Plan:
    """Windows with their splits, and what goes along with them."""

    windows: Windows
    labels: Labels
    per_window: dict[str, Array] = field(default_factory=dict)
    attrs: dict[str, Any] = field(default_factory=dict)


def plan_windows(recording: Recording, options: PrepOptions, bin_s: float) -> Plan:
    """Cut windows around events, or chop the recording, and split them."""
    recording.check()
    how, valid, test = read_split(options.split, options.valid, options.test)
    options = replace(options, split=how, valid=valid, test=test)
    if options.chop_ms is not None:
        if options.until is not None:
            raise UserError(
                f"--until {options.until} says where trials end, but --chop-ms cuts windows that "
                "are no trials; leave one of them out."
            )
        plan = _chopped(recording, options, bin_s)
    else:
        plan = _trials(recording, options, bin_s)
    counts = count_splits(plan.labels)
    for split, what in zip(SPLITS[:2], ("train", "validate"), strict=True):
        if split not in counts:
            raise UserError(
                f"No trial is left to {what} (trials by split: {counts or 'none'}); change "
                "--split, --valid or --select."
            )
    return plan


def _trials(recording: Recording, options: PrepOptions, bin_s: float) -> Plan:
    align = parse_align(options.align) if isinstance(options.align, str) else options.align
    ends = _ends(recording, options)
    windows = trial_windows(recording, align, bin_s, options.forward_ms, ends)
    chosen = select_rows(recording.trials, options.select, "trials")
    if chosen is not None:
        recording.notes.append(
            f"trials: {int(chosen.sum())} of {len(chosen)} by {list_some(options.select)}"
        )
        windows = windows.keep(chosen[windows.trials])
        if not len(windows.trials):
            raise UserError(f"No trial is left of those that {list_some(options.select)} selects.")
    lengths = None
    if ends is not None:
        windows, lengths = _ending(recording, windows, ends, options.until)
    rows = windows.trials
    plan = Plan(windows, np.zeros(len(rows), np.int64))
    plan.per_window = {"trial": rows, "window_start": windows.starts}
    if lengths is not None:
        plan.per_window["lengths"] = lengths
    names = dict.fromkeys([*options.conditions, *options.keep])
    columns = {name: find(recording.trials, name, "column of the trials") for name in names}
    for name, column in columns.items():
        # HDF5 would make a group of what stands before a slash.
        plan.per_window[name.replace("/", "_")] = column[rows]
    strata = None
    if options.conditions:
        conditions, strata = conditions_of(columns, options.conditions, rows)
        plan.per_window["cond_idx"] = strata
        recording.notes.append(f"conditions: {len(conditions)} by {', '.join(options.conditions)}")
        plan.attrs["conditions"] = json.dumps(conditions)
    plan.labels = _labels(recording, options, windows, strata)
    recording.warnings += leaks(windows, plan.labels)
    if (plan.labels == UNUSED).any():
        recording.notes.append(f"{int((plan.labels == UNUSED).sum())} trials are in no split")
    return plan


def _ends(recording: Recording, options: PrepOptions) -> Floats | None:
    """Return when trials end, in seconds, where that may be within their windows."""
    if options.until is not None:
        return recording.event_times(options.until) if recording.n_trials else None
    if options.align is not None or recording.starts is None or recording.extents is None:
        return None
    ends = recording.extents[:, 1]
    return ends if np.ptp(ends - recording.starts) > 1e-6 else None


def _ending(
    recording: Recording, windows: Windows, ends: Floats, until: str | None
) -> tuple[Windows, Indices]:
    """Return the windows with a whole bin before their end, and how many each has."""
    # Decimal times are not exact in binary: an event on the edge of a bin must not cost that bin.
    lengths = np.floor((ends[windows.trials] - windows.starts) / windows.bin_s + 1e-6)
    chosen = lengths >= 1
    if not chosen.any():
        raise UserError(
            f"--until {until}: no trial has a bin before it; it is to come after the window's "
            "beginning (--align)."
        )
    if left_out := int((~chosen).sum()):
        what = "are shorter than a bin" if until is None else f"have no {until!r}, or no whole bin"
        what += "" if until is None else " before it"
        recording.warnings.append(
            f"{left_out} trials {what} (trials "
            f"{list_some(windows.trials[~chosen].tolist())}, counted from 0); they are left out"
        )
    lengths = lengths[chosen].clip(max=windows.n_bins).astype(np.int64)
    if until is None:
        recording.notes.append(
            f"trials end after {lengths.min()} to {lengths.max()} bins: the rest of their window "
            "is missing (`lengths`)"
        )
    return windows.keep(chosen), lengths


def _labels(
    recording: Recording,
    options: PrepOptions,
    windows: Windows,
    strata: Labels | None,
) -> Labels:
    how = options.split
    if how is None:
        # Only a column of text: numbers under this name may mean anything.
        given = "split" in recording.trials and recording.trials["split"].dtype.kind == "U"
        how = "split" if given else "random" if strata is None else "conditions"
    fractions: dict[str, Any] = {
        "valid_fraction": options.valid,
        "test_fraction": options.test,
        "select_fraction": options.select_fraction,
        "seed": options.seed,
    }
    n, order = len(windows.starts), np.argsort(windows.starts, kind="stable")
    labels = np.empty(n, dtype=np.int64)
    if how == "random":
        labels = draw_splits(n, **fractions)
    elif how == "conditions":
        if strata is None:
            raise UserError("--split conditions needs --conditions COLUMN[,COLUMN].")
        labels = draw_splits(n, strata=strata, **fractions)
    elif how in ("blocks", "time"):
        in_time = how == "time"
        block = None if in_time else options.block
        labels[order] = draw_splits(n, block=block, in_time=in_time, **fractions)
        # Left out, because in the other block they would overlap windows of the block they left.
        guard_s = number("--guard-ms", options.guard_ms, least=0) / 1000
        shared = overlapping(windows, labels, guard_s)
        labels[shared] = UNUSED
        if shared.any():
            near = f" or lie within {options.guard_ms:g} ms of one" if guard_s else ""
            what = "splits" if in_time else "blocks"
            recording.notes.append(
                f"{int(shared.sum())} trials at the borders of {what} are in no split: their "
                f"windows overlap one of another split{near}"
            )
        if in_time:
            recording.notes.append("split: in order of time")
            return labels
    else:
        column = find(recording.trials, how, "column of the trials")
        labels = labels_from_column(column, how)[windows.trials]
        recording.notes.append(f"split: column {how!r} of the file")
        return labels
    recording.notes.append(f"split: {how}, seed {options.seed}")
    return labels


def _chopped(recording: Recording, options: PrepOptions, bin_s: float) -> Plan:
    bin_ms = bin_s * 1000
    for name in ("align", "select", "conditions", "keep"):  # all are of trials
        if getattr(options, name):
            raise UserError(f"--chop-ms cuts the whole recording; it does not go with --{name}.")
    if options.forward_ms:
        raise UserError("--chop-ms leaves no time to predict; it does not go with --forward-ms.")
    begin, end = recording.span()
    check_memory((end - begin) / bin_s, recording.n_units, f"{end - begin:.6g} s", bin_s)
    start, observed = _observed_bins(recording, bin_s)
    for name, pieces in recording.invalid.items():
        edges = (np.clip(pieces - start, 0, len(observed) * bin_s)) / bin_s
        low = np.floor(edges[:, 0] + 1e-6).astype(int)
        high = np.ceil(edges[:, 1] - 1e-6).astype(int)
        before = int(observed.sum())
        for a, b in zip(low, high, strict=True):
            observed[a:b] = False
        recording.warnings.append(
            f"{(before - int(observed.sum())) * bin_s:g} s of {before * bin_s:g} s are not valid "
            f"by {name!r}; they are in no window"
        )
    if options.split not in (None, "blocks", "time"):
        raise UserError(
            f"--split {options.split} is for trials; of a recording that is chopped legal are "
            "blocks (the default), time and last:20%."
        )
    block_ms = options.block_ms
    window = whole_bins(options.chop_ms or 0.0, bin_ms, "A window (--chop-ms)")
    chops = plan_chops(
        len(observed),
        window,
        whole_bins(options.overlap_ms, bin_ms, "An overlap (--overlap-ms)"),
        block=None if block_ms is None else whole_bins(block_ms, bin_ms, "A block (--block-ms)"),
        valid_fraction=options.valid,
        test_fraction=options.test,
        select_fraction=options.select_fraction,
        guard=whole_bins(options.guard_ms, bin_ms, "A guard (--guard-ms)"),
        seed=options.seed,
        segments=find_segments(observed),
        by=options.split or "blocks",
    )
    first = np.concatenate([chops.starts.get(split, []) for split in SPLITS]).astype(np.int64)
    labels = np.concatenate(
        [np.full(len(chops.starts.get(split, [])), i) for i, split in enumerate(SPLITS)]
    )
    # In order of time, whatever their split: neighbours are read together, and share their bins.
    order = np.argsort(first, kind="stable")
    first, labels = first[order], labels[order]
    starts = np.asarray(start + first * bin_s, dtype=np.float64)
    windows = Windows(starts, np.full(len(first), -1), window, window, bin_s)
    series = ["encod_data", "recon_data"]
    series += [key for key in ("behavior", "ext_input") if getattr(options, key)]
    plan = Plan(windows, labels, {"chop_start": first, "window_start": starts})
    plan.attrs = chops.attributes(series) | {"chop_first_s": start}
    how = (
        f"blocks of {chops.block} bins, seed {options.seed}" if chops.block else "in order of time"
    )
    recording.notes.append(f"split: {how}")
    return plan


# A byte in the output for each count, once to read and once to reconstruct.
_BYTES = 2


def describe_size(recording: Recording, bin_s: float) -> str:
    """Say how many bins a whole recording has, and how large a data file with all of them is."""
    begin, end = recording.span()
    n_bins = np.ceil((end - begin) / bin_s)
    size = _BYTES * n_bins * recording.n_units
    return (
        f"in bins of {bin_s * 1000:g} ms: {n_bins:.4g} bins x {recording.n_units} units, "
        + (f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB")
        + " without --compress"
    )


def check_memory(n_bins: float, n_units: int, length: str, bin_s: float) -> None:
    """Refuse more bins of a recording than fit in memory, for each unit at a time."""
    # A unit's counts, what was observed, and the places of the windows.
    needed, free = 12 * n_bins, default_bound()
    if needed > free:
        raise DataError(
            f"{length} are {n_bins:.3g} bins of {bin_s * 1000:g} ms, of {n_units} units: "
            f"{needed / 1e9:.3g} GB of memory, and {free / 1e9:.3g} GB may be taken. Are times in "
            "another unit (--time-unit)? Else take wider bins."
        )


def check_disk(windows: Windows, n_units: int, folder: Path, in_memory: int) -> None:
    """Refuse an output that does not fit on the disk, before anything is counted."""
    counts = len(windows.starts) * windows.n_bins * n_units
    # Two bytes each in a temporary file, where memory does not hold them, and the output.
    needed = 2 * counts * (2 * counts > in_memory) + _BYTES * counts
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{len(windows.starts)} windows of {windows.n_bins} bins x {n_units} units take about "
            f"{needed / 1e9:.3g} GB in {folder}, which has {free / 1e9:.3g} GB left. Take fewer "
            "or wider bins or windows, or another disk (-o)."
        )


def _observed_bins(recording: Recording, bin_s: float) -> tuple[float, Flags]:
    """Return the left edge of the recording's first bin, and which bins were observed whole."""
    first, last = recording.span()
    spikes = recording.spikes
    # The bins of spike times are those of a grid from 0 s, whenever the first spike comes.
    origin = spikes.start if isinstance(spikes, BinnedSpikes) else 0.0
    stretches = recording.observed
    if stretches is None and not isinstance(spikes, BinnedSpikes):
        # Bins that hold the first and the last spike.
        low, high = np.floor((np.array([first, last]) - origin) / bin_s + 1e-9).astype(int)
        return origin + low * bin_s, np.ones(high - low + 1, dtype=bool)
    stretches = np.array([[first, last]]) if stretches is None else stretches
    # Only bins that were observed whole: others have too few spikes. The last edge at or before the
    # end is the first one at or after it in mirrored time.
    begin = first_bin(stretches[:, 0], bin_s, origin)
    end = -first_bin(-(stretches[:, 1] - origin), bin_s)
    low = int(begin.min())
    observed = np.zeros(max(1, int(end.max()) - low), dtype=bool)
    for a, b in zip(begin - low, end - low, strict=True):
        observed[a:b] = True
    return origin + low * bin_s, observed


# ---- what deserves a second look -----------------------------------------------------------------

_SLOW, _FAST = 0.05, 500.0  # spikes/s; medians beyond these are no rates of neurons
_LEAST_SPIKES = 10


def implausible_rates(recording: Recording) -> list[str]:
    """Warn of times that are in another unit than the options say, by the rates they give."""
    spikes = recording.spikes
    if not isinstance(spikes, SpikeTimes) or recording.refusals:
        return []
    counts = np.array([spikes.count(unit) for unit in range(spikes.n_units)])
    active = counts[counts >= _LEAST_SPIKES]
    if not len(active):
        return []
    first, last = recording.span()
    length = last - first
    if recording.starts is not None and recording.observed is not None:  # with time between trials
        length = float(np.diff(recording.observed, axis=1).sum())
    rate = float(np.median(active)) / max(length, 1e-9)
    if _SLOW <= rate <= _FAST:
        return []
    what = "milliseconds or samples" if rate < _SLOW else "seconds"
    return [
        f"the median unit fires {rate:.3g} spikes/s over {length:.6g} s, which is not what "
        f"neurons do: are times in {what}? Give their unit: --time-unit s, ms, us, ns or samples"
    ]


def coarse_times(recording: Recording, bin_s: float) -> list[str]:
    """Warn of times whose stored type cannot tell in which bin a spike is."""
    spikes = recording.spikes
    if not isinstance(spikes, SpikeTimes) or recording.refusals or not spikes.n_units:
        return []
    latest = float(np.abs(recording.span()).max())
    kind = spikes.units[0].dtype
    if (step := spikes.tolerance or spikes.clock.tolerance(latest, kind)) <= bin_s / 4:
        return []
    return [
        f"{kind} times near {latest:.6g} s are {step * 500:.3g} ms apart, too coarse for bins of "
        f"{bin_s * 1000:g} ms: a spike may be counted a bin off. Store them as float64, or take "
        "wider bins"
    ]


def overlapping(windows: Windows, labels: Labels, guard_s: float = 0.0) -> Flags:
    """Return which windows share time with one of a later split of `SPLITS`."""
    # Whole microseconds, so that windows that adjoin do not overlap by rounding.
    starts = np.round(windows.starts * 1e6).astype(np.int64)
    length = round((windows.n_bins * windows.bin_s + guard_s) * 1e6)
    shared = np.zeros(len(starts), dtype=bool)
    for split in range(len(SPLITS) - 1):
        later = starts[labels > split]
        of_split = labels == split
        if later.size and of_split.any():
            shared[of_split] = leaking_windows(starts[of_split], later, length)
    return shared


def leaks(windows: Windows, labels: Labels) -> list[str]:
    """Warn of windows that share time with a window of another split."""
    shared = np.flatnonzero(overlapping(windows, labels)).tolist()
    if not shared:
        return []
    return [
        f"{len(shared)} of {len(labels)} windows overlap one of another split in time (windows "
        f"{list_some(shared)}, counted from 0), so validation scores flatter: take shorter "
        "windows, or --split blocks"
    ]
