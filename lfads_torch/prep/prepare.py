"""From a recording to a data file: `prepare` puts the steps together.

Open the source; cut windows (around an event of each trial, or overlapping ones of a continuous
recording); split them; count spikes; choose units; write. Counts that do not fit in memory go
through a temporary file, and what is written is written block by block, so that a recording may be
larger than memory. The same file and options give the same bytes.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..data.find import absolute_pattern, check_output, make_folder
from ..errors import UserError, explained, number
from .counting import IN_MEMORY, Progress, count, silent
from .listing import naming
from .options import PrepOptions
from .plan import check_disk, coarse_times, implausible_rates, plan_windows
from .series import Sampler
from .sources import BinnedSpikes, Recording, open_recording
from .sources.recording import find
from .sources.stores import is_url
from .split_file import convert_split_file, is_split_file
from .trials import Align, whole_bins
from .units import choose_heldout, choose_units, heldout_flags, sum_units
from .write import Contents, Prepared, write_contents


def prepare(
    source: Any,
    output: str | os.PathLike[str] | None,
    options: PrepOptions | None = None,
    *,
    overwrite: bool = False,
    progress: Progress = silent,
    **changes: Any,
) -> Prepared:
    """Make a data file out of a recording; see `lfads prep --help`.

    Parameters
    ----------
    source : str, path or object
        NWB, .npz, .mat, HDF5 or CSV file; folder of a spike sorter. Or an object in memory, as
        `open_recording` takes it: arrays, a TsGroup of pynapple, a sorting of SpikeInterface, spike
        trains of Neo, an array of xarray and the like.
    output : str, path or None
        Data file to write. With None nothing is written, and `Prepared.arrays` has what would be in
        the file, which `BasicDataModule` takes.
    options : PrepOptions, optional
        What to make of the recording, and how to read it. Its `trials` may be an object, too, such
        as an IntervalSet of pynapple, a DataFrame, or an array of starts and stops (columns
        ``start_time`` and ``stop_time``); without `align`, these intervals are the windows.
    overwrite : bool
        Whether to replace an existing file.
    progress : callable
        Called with what is going on, how much of it is done, and of how much.
    **changes
        Changes of `options`, by name.

    Returns
    -------
    Prepared
        Where the file is, its trials, bins and units, notes and warnings.

    Raises
    ------
    DataError, UserError
        For files that cannot be read or written, options that are out of range or do not fit the
        recording; with `strict` for everything else that would be a warning. Nothing is written
        then.

    Examples
    --------
    >>> from lfads_torch.prep import prepare
    >>> align = "move_onset_time:-250:450"
    >>> prepare("session.nwb", "maze.h5", bin_ms=5, align=align)  # doctest: +SKIP

    Objects in memory, as of pynapple, with an IntervalSet of the trials:

    >>> prepare(units, "maze.h5", trials=epochs, bin_ms=10)  # doctest: +SKIP

    Its columns are events, as those of a table of a file (`align`, `select`, `conditions`, `keep`).
    """
    options = replace(options or PrepOptions(), **changes)
    if output is None:
        return _in_memory(source, options, progress)
    path = Path(absolute_pattern(output))
    if is_url(source) or not isinstance(source, str | os.PathLike):
        check_output(path.with_name("the recording"), path, overwrite)
        recording = open_recording(source, options)
        with explained(recording.warnings, recording.notes):
            return _prepare(recording, path, options, progress)
    file = Path(absolute_pattern(source))
    check_output(file, path, overwrite)
    if is_split_file(file):
        return convert_split_file(file, path, options, progress)
    with naming(source):
        recording = open_recording(source, options)
    with naming(source), explained(recording.warnings, recording.notes):
        return _prepare(recording, path, options, progress)


def _in_memory(source: Any, options: PrepOptions, progress: Progress) -> Prepared:
    """Prepare by way of a file that is gone before the result is returned."""
    with tempfile.TemporaryDirectory() as folder:
        done = prepare(source, Path(folder) / "session.h5", options, progress=progress)
        with h5py.File(done.path) as file:
            done.arrays = {key: data[()] for key, data in file.items()}
    return done


def _prepare(
    recording: Recording, path: Path, options: PrepOptions, progress: Progress
) -> Prepared:
    bin_s = _bin_width(recording, options)
    options = _around_intervals(recording, options, bin_s)
    recording.warnings += [*implausible_rates(recording), *coarse_times(recording, bin_s)]
    plan = plan_windows(recording, options, bin_s)
    carried = (
        ("behavior", options.behavior, options.lag_ms),
        ("ext_input", options.ext_input, 0.0),
    )
    series = {
        key: (
            [Sampler(find(recording.series, n, "time series"), bin_s, repr(n)) for n in names],
            lag_ms,
        )
        for key, names, lag_ms in carried
        if names
    }
    for samplers, _ in series.values():
        for sampler in samplers:
            sampler.check_span(recording.span())
    # What figures and tables call the columns.
    columns = {
        key: [c for n in names for c in find(recording.series, n, "time series").names(n)]
        for key, names, _ in carried
        if names
    }
    fine = _divisions(recording, options, bin_s)
    flags = heldout_flags(recording, options)
    make_folder(path)  # before the counts, which take minutes: it may fail
    check_disk(plan.windows, recording.n_units, path.parent, IN_MEMORY)
    counted = count(
        recording,
        plan.windows,
        path.parent,
        fine=fine,
        drop_duplicates=options.drop_duplicates,
        progress=progress,
    )
    with closing(counted.store):
        sums, largest = sum_units(counted, plan.labels == 0, options.max_correlation is not None)
        kept = choose_units(recording, options, sums, bin_s / fine)
        # Drawn among the units that remain, so that a fraction is a fraction of these.
        if flags is None and options.hold_out:
            flags = np.zeros(recording.n_units, dtype=bool)
            flags[kept[choose_heldout(len(kept), float(options.hold_out), options.seed)]] = True
        # LFADS reads the first channels of what it reconstructs, so held-out units come last.
        held = kept[flags[kept]] if flags is not None else kept[:0]
        read = np.setdiff1d(kept, held)
        never = read[:0]
        if options.never_seen:
            drawn = choose_heldout(len(read), options.never_seen, options.seed, "--never-seen")
            read, never = read[~drawn], read[drawn]
        if not len(read):
            raise UserError("No unit is left to read; loosen --min-rate, --units or --hold-out.")
        units = np.concatenate([read, held])
        return write_contents(
            path,
            Contents(
                counted, plan.labels, units, len(read), largest, series, plan.per_window, never
            ),
            recording,
            options,
            progress,
            attrs=plan.attrs | columns,
            notes=recording.notes,
            warnings=recording.warnings,
        )


def _around_intervals(recording: Recording, options: PrepOptions, bin_s: float) -> PrepOptions:
    """Take the intervals of a table in memory as windows, where nothing else says which."""
    given = options.align or options.until or options.chop_ms is not None
    is_table = options.trials is not None and not isinstance(options.trials, str)
    names = ("start_time", "stop_time")
    if given or not is_table or not set(names) <= set(recording.trials):
        return options
    starts, stops = map(recording.event_times, names)
    # Decimal times are not exact in binary: an end on the edge of a bin must not cost that bin.
    lengths = np.floor((stops - starts) / bin_s + 1e-6)
    longest = float(np.nanmax(lengths, initial=0))
    if longest < 1:
        raise UserError(f"No interval of trials is as long as a bin of {bin_s * 1000:g} ms.")
    recording.notes.append(f"windows: the intervals of trials, of up to {longest:g} bins")
    until = names[1] if np.nanmin(lengths) < longest else None
    return replace(options, align=Align(names[0], 0, longest * bin_s * 1000), until=until)


def _divisions(recording: Recording, options: PrepOptions, bin_s: float) -> int:
    """Return into how many finer bins a bin is divided to correlate units."""
    if options.max_correlation is None:
        return 1
    width_ms = number("--correlation-ms", options.correlation_ms, above=0)
    if isinstance(recording.spikes, BinnedSpikes):  # it has no finer bins than these
        width_ms = max(width_ms, recording.spikes.bin_s * 1000)
    return whole_bins(bin_s * 1000, min(width_ms, bin_s * 1000), "A bin")


def _bin_width(recording: Recording, options: PrepOptions) -> float:
    if options.bin_ms is not None:
        return number("--bin-ms", options.bin_ms, above=0) / 1000
    if isinstance(recording.spikes, BinnedSpikes):
        return recording.spikes.bin_s
    raise UserError("The bin width is missing: give it with --bin-ms; 5 to 20 ms are usual.")
