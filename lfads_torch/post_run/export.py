"""What a model inferred, for other programs: NWB and pynapple, on the clock of the recording.

xarray is `Trials.to_xarray`. The time of a bin is when it begins, as everywhere in this package.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..data import DataWarning
from ..data.find import absolute_pattern, check_output, new_file, open_h5
from ..errors import DataError, UserError
from ..prep.merging import START_KEY, covered_bins, merge_chops
from ..version import read_version
from .outputs import RunOutputs, SessionOutputs, load_outputs
from .trials import Trials

if TYPE_CHECKING:
    import pynapple

Array = NDArray[Any]

MODULE = "lfads"
"""Processing module of the NWB file."""

# What goes into the file: name there, unit, what it is.
_SERIES = {
    "rates": ("rates", "Hz", "Inferred rates of all channels, spikes/s."),
    "output_params": (
        "predicted_data",
        "a.u.",
        "Mean that the model expects of the data, in their unit.",
    ),
    "factors": ("factors", "a.u.", "LFADS factors; rates are a function of a linear map of them."),
    "co_means": ("inferred_inputs", "a.u.", "Posterior mean of the inputs that were inferred."),
    "co_stds": ("inferred_inputs_std", "a.u.", "Posterior standard deviation of these inputs."),
    "behavior_prediction": (
        "predicted_behavior",
        "a.u.",
        "Behaviour that the model reads out, in the unit of the data.",
    ),
}
_CLOSE_S = 1e-9  # by this much windows may overlap, or steps of time differ, by rounding


@dataclass
class Continuous:
    """A series over time: values (bins, ...) at ascending `times`, and the stretches they fill."""

    times: Array  # seconds at which bins begin
    values: Array
    starts: Array  # of stretches without a gap, seconds
    stops: Array
    is_clock: bool  # whether times are those of the recording


def on_clock(trials: Sequence[Trials], name: str) -> list[Continuous]:
    """Lay an array of all these trials out over time.

    Windows of a continuous recording are joined as by `lfads merge`. Trials stand at their times,
    without the bins past their ends; where trials overlap in time there are several series. Where
    the file does not say when its windows were, they follow one another.
    """
    bin_s = _bin_s(trials[0].session)
    values = np.concatenate([_array(one, name) for one in trials])
    length = values.shape[1]
    if all(START_KEY in one for one in trials):
        first = np.concatenate([one[START_KEY] for one in trials]).astype(np.int64)
        attrs = trials[0].session.attrs
        n_bins = int(attrs.get("chop_n_bins", first.max() + length))
        covered = covered_bins(first, length, n_bins)
        times = float(attrs.get("chop_first_s", 0.0)) + np.arange(n_bins) * bin_s
        merged = merge_chops(values, first, n_bins)[covered]
        return [_continuous(times[covered], merged, bin_s, "chop_first_s" in attrs)]
    starts, is_clock = _starts(trials, length * bin_s)
    ends = [one.past_end for one in trials]
    past = np.concatenate(
        [
            np.zeros((len(one), length), bool) if end is None else end[:, :length]
            for one, end in zip(trials, ends, strict=True)
        ]
    )
    series = []
    for rows in _apart(starts, length * bin_s):
        times = starts[rows, None] + np.arange(length) * bin_s
        known = ~past[rows]
        series.append(_continuous(times[known], values[rows][known], bin_s, is_clock))
    return series


def _bin_s(session: SessionOutputs) -> float:
    if session.bin_ms is None:
        raise DataError(
            f"{session.path} does not say how wide its bins are, so times are not known: give "
            "--bin-ms, in Python bin_ms of load_outputs."
        )
    return session.bin_ms / 1000


def _array(trials: Trials, name: str) -> Array:
    array = trials.rates if name == "rates" else trials[name]
    if array.ndim != 3:
        raise UserError(f"{name!r} has shape {array.shape}; a series has trials x bins x channels.")
    return array


def _starts(trials: Sequence[Trials], window_s: float) -> tuple[Array, bool]:
    """Return when windows begin, and whether these are times of the recording."""
    if all("window_start" in one for one in trials):
        return np.concatenate([one["window_start"] for one in trials]).astype(np.float64), True
    order = np.arange(sum(map(len, trials)))
    if all("inds" in one for one in trials):
        # Positions in the recording; ranks, since the trials of other splits may be missing.
        order = np.argsort(np.argsort(np.concatenate([one["inds"] for one in trials])))
    return order * window_s, False


def _apart(starts: Array, length: float) -> list[Array]:
    """Share windows out in groups, in order of time, so that none overlaps one of its group."""
    groups: list[list[int]] = []
    for row in np.argsort(starts, kind="stable").tolist():
        free = (g for g in groups if starts[g[-1]] + length <= starts[row] + _CLOSE_S)
        group = next(free, None)
        if group is None:
            groups.append(group := [])
        group.append(row)
    return [np.array(group) for group in groups]


def _continuous(times: Array, values: Array, bin_s: float, is_clock: bool) -> Continuous:
    gaps = np.flatnonzero(np.diff(times) > bin_s + _CLOSE_S)
    starts = times[np.r_[0, gaps + 1]]
    return Continuous(times, values, starts, times[np.r_[gaps, len(times) - 1]] + bin_s, is_clock)


def _parts(outputs: RunOutputs | SessionOutputs | Trials) -> list[Trials]:
    """Return the trials of all splits of a session."""
    if isinstance(outputs, Trials):
        return [outputs]
    if isinstance(outputs, RunOutputs):
        if len(outputs) > 1:
            raise UserError(
                f"{outputs.path} has {len(outputs)} sessions: choose one, such as "
                f"outputs[{outputs.names[0]!r}]."
            )
        outputs = outputs[0]
    return [outputs.trials(split) for split in outputs.splits]


# ---- pynapple ------------------------------------------------------------------------------------


def to_pynapple(
    outputs: RunOutputs | SessionOutputs | Trials, name: str = "rates"
) -> pynapple.TsdFrame:
    """Return a series over time as pynapple's `TsdFrame`.

    Parameters
    ----------
    outputs : RunOutputs, SessionOutputs or Trials
        What `load_outputs` returns, a session of it, or the trials of a split.
    name : str
        ``rates`` (spikes/s), ``factors``, ``co_means`` (inferred inputs), or any other array with
        bins.

    Returns
    -------
    pynapple.TsdFrame
        Bins by the time at which they begin, on the clock of the recording where the data file has
        ``window_start`` or ``chop_start``; else trials follow one another. Its time support are
        the windows.

    Raises
    ------
    UserError
        If pynapple is not installed, or windows overlap in time and are no chops of a recording.
    DataError
        If the array does not exist, or the bin width is not known.
    """
    try:
        import pynapple
    except ImportError as error:
        raise UserError(
            "pynapple is not installed; `pip install 'lfads-torch[analysis]'`, or take the arrays "
            "as they are."
        ) from error
    trials = _parts(outputs)
    series = on_clock(trials, name)
    if len(series) > 1:
        raise UserError(
            f"Windows of {trials[0].session.path.name} overlap in time, so that {name!r} has "
            "several values at once; take Trials.to_xarray, which has them by trial."
        )
    one = series[0]
    # Half a bin short: intervals that touch would become one.
    half = _bin_s(trials[0].session) / 2
    support = pynapple.IntervalSet(start=one.starts, end=one.stops - half)
    return pynapple.TsdFrame(t=one.times, d=one.values, time_support=support)


# ---- NWB -----------------------------------------------------------------------------------------


def export_nwb(
    run: str | Path | RunOutputs,
    output: str | os.PathLike[str] | None = None,
    *,
    source: str | os.PathLike[str] | None = None,
    bin_ms: float | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Write what was inferred into NWB files, one for each session.

    The processing module ``lfads`` has time series of rates, factors and inferred inputs, on the
    clock of the recording where the data file says when its windows were. A table of the windows
    has their times, split, initial conditions, and what the data file says of each.

    Parameters
    ----------
    run : str, Path or RunOutputs
        Run folder or output file.
    output : str or path, optional
        By default ``lfads_<session>.nwb`` beside the output file. With several sessions their names
        are added to it.
    source : str or path, optional
        NWB file of the recording: the results are added to a copy of it.
    bin_ms : float, optional
        Bin width, where the files do not say it.
    overwrite : bool
        Whether to replace existing files.

    Returns
    -------
    list of Path

    Raises
    ------
    UserError, DataError
        If pynwb is not installed, the run has no outputs, a file exists, or `source` is no NWB
        file or has results already.
    """
    _pynwb()
    outputs = run if isinstance(run, RunOutputs) else load_outputs(run, bin_ms=bin_ms)
    original = Path(absolute_pattern(source)) if source is not None else None
    if original is not None:
        with open_h5(original):  # for its errors
            pass
    if original is not None and len(outputs) > 1:
        raise UserError(
            f"{outputs.path} has {len(outputs)} sessions, but --source is one recording: name the "
            f"output file of its session, such as {outputs[0].path}."
        )
    targets = [_target(session, output, len(outputs) > 1) for session in outputs]
    for path, session in zip(targets, outputs, strict=True):
        check_output(original or session.path, path, overwrite)
    for path, session in zip(targets, outputs, strict=True):
        _write(path, session, original)
    return targets


def _pynwb() -> Any:
    try:
        import pynwb
    except ImportError as error:
        raise UserError(
            "pynwb is not installed; `pip install 'lfads-torch[nwb]'` (reading NWB needs it not)."
        ) from error
    return pynwb


def _target(
    session: SessionOutputs, output: str | os.PathLike[str] | None, is_several: bool
) -> Path:
    if output is None:
        return session.path.with_name(f"lfads_{session.name}.nwb")
    path = Path(absolute_pattern(output))
    if path.suffix.lower() != ".nwb":
        raise UserError(
            f"{path.name}: legal is a name that ends in .nwb. In Python, load_outputs(RUN) gives "
            "arrays, Trials.to_xarray and to_pandas tables, post_run.export.to_pynapple series."
        )
    return path.with_name(f"{path.stem}_{session.name}.nwb") if is_several else path


def _write(path: Path, session: SessionOutputs, original: Path | None) -> None:
    pynwb, trials = _pynwb(), _parts(session)
    with new_file(path, copy_of=original) as h5:
        try:
            with pynwb.NWBHDF5IO(file=h5, mode="w" if original is None else "a") as io:
                file = _new_nwb(session) if original is None else io.read()
                if MODULE in file.processing:
                    raise UserError(
                        f"{original} has a processing module {MODULE!r} already; name the file of "
                        "the recording, without results."
                    )
                _fill(file, session, trials)
                io.write(file)
        except (TypeError, KeyError, AttributeError) as error:
            # What pynwb raises, from deep within, for HDF5 that is not NWB.
            raise DataError(f"{original} cannot be read as NWB: {error}") from error
    named = session.attrs.get("source")
    if original is not None and named not in (None, original.name):
        warnings.warn(
            f"the data were made of {named}, the results were added to {original.name}: is it the "
            "same recording?",
            DataWarning,
            stacklevel=4,
        )


def _new_nwb(session: SessionOutputs) -> Any:
    # NWB wants a time, but the outputs do not have the recording's. That of the file makes no
    # difference between two exports.
    written = datetime.fromtimestamp(session.path.stat().st_mtime, tz=UTC)
    return _pynwb().NWBFile(
        session_description=(
            f"Results of LFADS for {session.name}; session_start_time is that of the results, the "
            "recording's is not known."
        ),
        identifier=f"{session.name} {written.isoformat()}",
        session_start_time=written,
        was_generated_by=[["lfads-torch", read_version().version]],
    )


def _fill(file: Any, session: SessionOutputs, trials: Sequence[Trials]) -> None:
    """Add the module with its series, and the table of windows."""
    pynwb, bin_s, version = _pynwb(), _bin_s(session), read_version().version
    made = [f"{key}: {session.attrs[key]}" for key in _MADE_BY if key in session.attrs]
    module = file.create_processing_module(
        name=MODULE,
        description=f"Inferred by LFADS (lfads-torch {version}). {'; '.join(made)}".strip(),
    )
    units = ""
    if "unit_ids" in session.keys:  # of `lfads prep`
        rows = ", ".join(map(str, session.read("unit_ids").tolist()))
        units = f" Columns are these rows of the recording's units, counted from 0: {rows}."
    skipped = "output_params" if session.counts else "rates"
    clock = True
    for name, (title, unit, text) in _SERIES.items():
        there = name == "rates" or all(name in one for one in trials)
        if name == skipped or not there or _array(trials[0], name).shape[2] == 0:
            continue
        for number, series in enumerate(on_clock(trials, name), 1):
            clock = series.is_clock
            where = "" if clock else " Times are not the recording's: windows follow one another."
            more = " Windows that overlap those of the series before." if number > 1 else ""
            module.add(
                pynwb.TimeSeries(
                    name=title if number == 1 else f"{title}_{number}",
                    data=series.values,
                    unit=unit,
                    description=f"{text} Means over posterior samples; a bin's time is when it "
                    f"begins.{more}{where}{units if name in _OF_CHANNELS else ''}",
                    **_timing(series.times, bin_s),
                )
            )
    _add_windows(file, session, trials)


_OF_CHANNELS = ("rates", "output_params")
_MADE_BY = ("run", "checkpoint", "session_name", "num_samples", "bin_ms", "source")


def _timing(times: Array, bin_s: float) -> dict[str, Any]:
    if len(times) < 2 or np.abs(np.diff(times) - bin_s).max() < _CLOSE_S:
        return {"starting_time": float(times[0]), "rate": float(f"{1 / bin_s:.12g}")}
    return {"timestamps": times}


def _add_windows(file: Any, session: SessionOutputs, trials: Sequence[Trials]) -> None:
    """Add windows as trials, or as a table of intervals where they are none or there are some."""
    pynwb = _pynwb()
    bin_s = _bin_s(session)
    length = trials[0]["output_params"].shape[1] * bin_s
    if all(START_KEY in one for one in trials):
        first = np.concatenate([one[START_KEY] for one in trials])
        starts = float(session.attrs.get("chop_first_s", 0.0)) + first * bin_s
    else:
        starts = _starts(trials, length)[0]
    is_chopped = all(START_KEY in one for one in trials)
    if file.trials is None and not is_chopped:
        name, text = "trials", "Trials, and what LFADS inferred of each."
    else:
        name, text = "lfads_windows", "Windows of LFADS, and what it inferred of each."
    columns: dict[str, Array] = {"split": np.concatenate([one.split for one in trials])}
    shared = [n for n in trials[0].names if all(n in one for one in trials)]
    for key in shared:
        arrays = [one[key] for one in trials]
        is_column = arrays[0].ndim == 1 and arrays[0].dtype.kind in "buifSUO"
        if (is_column or key in ("ic_mean", "ic_std")) and key not in ("window_start", START_KEY):
            columns[_COLUMNS.get(key, key)] = _storable(np.concatenate(arrays))
    table = pynwb.epoch.TimeIntervals(name=name, description=text)
    order = np.argsort(starts, kind="stable")
    for row in order.tolist():
        table.add_row(start_time=float(starts[row]), stop_time=float(starts[row] + length))
    for key, column in columns.items():
        described = f"{_TEXTS.get(key, 'As in the data file.')}"
        table.add_column(name=key, description=described, data=column[order])
    if name == "trials":
        file.trials = table
    else:
        file.add_time_intervals(table)


_COLUMNS = {"ic_mean": "initial_condition", "ic_std": "initial_condition_std"}
_TEXTS = {
    "split": "Whether LFADS was trained on it, or validated or tested.",
    "initial_condition": "Posterior mean of the generator's initial condition.",
    "initial_condition_std": "Posterior standard deviation of it.",
    "trial": "Row of the recording's table of trials, counted from 0.",
    "inds": "Position of the trial in the recording, counted from 0.",
    "cond_idx": "Condition of the trial, counted from 0; -1 where it has none.",
}


def _storable(column: Array) -> Array:
    """Return text as text: files have it as bytes or objects."""
    if column.dtype.kind in "SO":
        words = [v.decode() if isinstance(v, bytes) else str(v) for v in column.tolist()]
        return np.array(words)
    return column
