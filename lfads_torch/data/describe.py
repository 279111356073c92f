"""What is wrong, or doubtful, in a data file: the warnings before training and `lfads check`."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from ..errors import DataError
from .find import absolute_pattern, open_h5
from .memory import default_bound
from .missing import describe_missing, given_lengths, settle_split
from .order import read_order, split_kind
from .quality import Array, count_faults, data_warnings, shared_ends
from .read import SessionData, bin_width_ms, read_attrs
from .stored import blocks, store
from .survey import Survey
from .tree import tree_faults
from .validate import (
    MODEL_INPUTS,
    SCHEMA_KEYS,
    SPLITS,
    find_problems,
    list_keys,
    show_shape,
)

_TEXT_WIDTH = 100
_DATA_NAMES = ("encod_data", "recon_data")


def warnings_for(session: SessionData) -> list[str]:
    """List what is legal in a session's data but deserves a second look.

    Silent channels, trials without spikes, trials that are both in train and valid, keys that
    look misspelt, and arrays that do not line up; each with counts, each naming the file.
    """
    arrays: dict[str, Array] = {}
    surveys: dict[str, Survey] = {}
    for split, data in session.splits.items():
        for name, survey in data.surveys.items():
            arrays[f"{split}_{name}"], surveys[f"{split}_{name}"] = getattr(data, name), survey
    texts = data_warnings(arrays, surveys, session.keys)
    return [f"{session.path.name}: {text}" for text in texts]


class ReportRow(NamedTuple):
    """One key of a data file; `mean_rate` is None where the mean of an array means nothing."""

    key: str
    shape: str
    dtype: str
    mean_rate: float | None  # per bin, of trials x bins x channels; NaN entries are left out
    per_second: float | None  # the same in spikes/s, of rates and spikes with a known bin width
    note: str  # what the key is for


@dataclass
class FileReport:
    """All that `check_file` has to say of a file."""

    path: Path
    rows: list[ReportRow] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)  # with these the file cannot be used as it is
    warnings: list[str] = field(default_factory=list)  # legal, but deserves a second look
    attrs: dict[str, Any] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)  # a line for each split that lacks something

    @property
    def ok(self) -> bool:
        """Whether the file can be used as it is."""
        return not self.errors

    def format(self) -> str:
        """Lay the report out as a plain-text table with the problems below it."""
        width_ms = bin_width_ms(self.attrs)
        title = str(self.path) + (f"  (bins of {width_ms:g} ms)" if width_ms else "")
        blocks = [title]
        if self.rows:
            blocks.append(self._table())
        others = [f"  {key} = {value}" for key, value in self.attrs.items()]
        if others:
            blocks.append("\n".join(["Attributes", *others]))
        if self.missing:
            blocks.append("\n".join(["Missing", *map(_bullet, self.missing)]))
        for what, items in (("error", self.errors), ("warning", self.warnings)):
            if items:
                count = f"{len(items)} {what}{'s' if len(items) > 1 else ''}"
                blocks.append("\n".join([count, *map(_bullet, items)]))
        if not self.errors:
            blocks.append("No errors." if self.warnings else "No problems found.")
        return "\n\n".join(blocks)

    def _table(self) -> str:
        cells = [["key", "shape", "type", "mean/bin", "spikes/s", "note"]]
        for row in self.rows:
            rates = ["" if r is None else f"{r:.4g}" for r in (row.mean_rate, row.per_second)]
            cells.append([row.key, row.shape, row.dtype, *rates, row.note])
        if all(row.per_second is None for row in self.rows):
            cells = [line[:4] + line[5:] for line in cells]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        numeric = range(3, len(widths) - 1)
        lines = [
            "  ".join(
                text.rjust(w) if i in numeric else text.ljust(w)
                for i, (text, w) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in cells
        ]
        return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def check_file(path: str | os.PathLike[str], max_bytes: float | None = None) -> FileReport:
    """Look through a data file and report all that is in it and all that is wrong with it.

    Never stops at the first fault and never raises for what a file holds: a file that cannot be
    read gives a report with that one error.

    Parameters
    ----------
    path : str or path
        The HDF5 file.
    max_bytes : float, optional
        Arrays that would take more together are looked through block by block; by default half of
        the available memory.

    Returns
    -------
    FileReport
        Its `format` lays it out as text.
    """
    report = FileReport(Path(absolute_pattern(path)))
    try:
        with open_h5(report.path, is_data_file=True) as file:
            _fill(report, file, default_bound() if max_bytes is None else max_bytes)
    except DataError as err:
        report.errors.append(str(err))
    return report


def _fill(report: FileReport, file: h5py.File, max_bytes: float) -> None:
    report.attrs = read_attrs(file)
    keys = list_keys(file)
    trials = {
        split: file[f"{split}_{name}"].shape or ()
        for split in SPLITS
        for name in _DATA_NAMES
        if f"{split}_{name}" in keys
    }
    problems = find_problems(file)
    report.errors += problems
    # Arrays that contradict each other have no common ends of trials, but are surveyed all the
    # same: one report shows all that has to be mended.
    broken = tree_faults(file)
    sound = [key for key in keys if key not in broken]
    arrays = _model_inputs(report.path, file, sound, max_bytes)
    surveys = (
        {key: Survey.of(array) for key, array in arrays.items()}
        if problems
        else _fill_missing(report, file, arrays)
    )
    for key in sorted(keys, key=_schema_order):
        data, rate = file[key], None
        if key in surveys:
            rate = surveys[key].mean
        # Other arrays of counts have a mean worth knowing; one of floats may be anything.
        elif data.ndim == 3 and data.size and data.dtype.kind in "bui" and key in sound:
            total = sum(float(block.sum(dtype=np.float64)) for _, block in blocks(data))
            rate = total / data.size
        width_ms = bin_width_ms(data.attrs) or bin_width_ms(report.attrs)
        is_spikes = key.endswith((*_DATA_NAMES, "truth", "spikes"))
        report.rows.append(
            ReportRow(
                key=key,
                shape=show_shape(data.shape),
                dtype=_type_name(data.dtype),
                mean_rate=rate,
                per_second=rate * 1000 / width_ms if rate and width_ms and is_spikes else None,
                note=_note(key, data.shape, trials),
            )
        )
    for key, survey in surveys.items():
        if key.endswith(_DATA_NAMES):
            errors, warnings = count_faults(key, survey)
            report.errors += errors
            report.warnings += warnings
    report.warnings += data_warnings(arrays, surveys, keys)
    if not problems:
        report.warnings += _interleaved(file, arrays, report.attrs)


def _interleaved(
    file: h5py.File, arrays: Mapping[str, Array], attrs: Mapping[str, Any]
) -> list[str]:
    """Say which share of validation windows of a recording lies between two training windows."""
    encod = {
        split: arrays[f"{split}_encod_data"] for split in SPLITS if f"{split}_encod_data" in arrays
    }
    order = read_order({s: len(x) for s, x in encod.items()}, file, lambda key: file[key][()])
    if (kind := split_kind(order, "valid")).name != "interleaved":
        return []
    # Trials are drawn at random as a rule; windows of one recording go on in the next.
    n_bins, width_ms = encod["train"].shape[1], bin_width_ms(attrs)
    if order.key == "window_start" and width_ms:
        places = np.sort(np.concatenate(list(order.positions.values())))
        is_recording = np.median(np.diff(places)) < (n_bins + 1) * width_ms / 1000
    else:
        is_recording = (
            order.key == "chop_start" or shared_ends(encod["train"], encod["valid"])[0] > 0
        )
    if not is_recording:
        return []
    return [
        f"{kind.between:.0%} of the validation windows lie between two training windows "
        f"({order.key}), so scores say nothing of later data, which may be decoded far worse. "
        "`lfads split FILE -o OUT --by time` splits in order of time, `--by blocks` by "
        "stretches."
    ]


def _fill_missing(
    report: FileReport, file: h5py.File, arrays: Mapping[str, Array]
) -> dict[str, Survey]:
    """Report what is missing, and return the surveys of all arrays by key."""
    surveys: dict[str, Survey] = {}
    for split in SPLITS:
        inputs = {n: arrays[k] for n in MODEL_INPUTS if (k := f"{split}_{n}") in arrays}
        if inputs:
            settled = settle_split(split, inputs, given_lengths(file, split))
            report.errors += settled.problems
            report.missing += filter(None, [describe_missing(split, settled)])
            surveys |= {f"{split}_{name}": one for name, one in settled.surveys.items()}
    return surveys


def _model_inputs(
    path: Path, file: h5py.File, keys: Sequence[str], max_bytes: float
) -> dict[str, Any]:
    """Return the arrays of the schema as float32, in memory or where they are."""
    inputs = [
        key
        for key in keys
        if key in SCHEMA_KEYS
        and file[key].ndim == 3
        and file[key].size
        and file[key].dtype.kind in "buif"
    ]
    kind = np.dtype(np.float32)
    if kind.itemsize * sum(file[key].size for key in inputs) > max_bytes:
        return {key: store(file, path, [(key, len(file[key]))], kind) for key in inputs}
    with np.errstate(over="ignore"):
        return {key: file[key][()].astype(kind) for key in inputs}


def _bullet(text: str) -> str:
    # Words are never broken, so that paths and keys can still be searched for and copied.
    return textwrap.fill(
        text,
        width=_TEXT_WIDTH,
        initial_indent="  - ",
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _schema_order(key: str) -> tuple[int, str]:
    return (SCHEMA_KEYS.index(key) if key in SCHEMA_KEYS else len(SCHEMA_KEYS), key)


def _type_name(dtype: np.dtype[Any]) -> str:
    if inner := h5py.check_vlen_dtype(dtype):
        return "text" if inner in (str, bytes) else f"lists of {np.dtype(inner)}"
    return "text" if dtype.kind == "S" else str(dtype)


def _note(key: str, shape: Sequence[int] | None, trials: Mapping[str, tuple[int, ...]]) -> str:
    split, _, name = key.partition("_")
    if key in SCHEMA_KEYS:
        meanings = dict(
            zip(
                MODEL_INPUTS,
                ("read by the encoders", "reconstructed", "external inputs", "true rates"),
                strict=True,
            )
        )
        return "bins of each trial" if name == "lengths" else meanings.get(name, "")
    if split in trials and shape and tuple(shape[:1]) == trials[split][:1]:
        return f"per trial (batch key {name!r})"
    return "your own (attribute key)"
