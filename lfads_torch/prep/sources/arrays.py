"""From named arrays (.npz, .mat, HDF5) to a recording: spikes, units, trials and series."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...data.find import list_some
from ...errors import UserError
from .clock import Clock
from .layout import SPIKES, TIMES, find_spikes, spikes_name
from .lazy import (
    LazyArray,
    Node,
    Ragged,
    Tree,
    Vector,
    as_text,
    is_vector,
    read_all,
)
from .options import SourceOptions
from .recording import (
    BinnedSpikes,
    Recording,
    Series,
    SpikeTimes,
    Table,
)

_TRIALS = ("trials", "trial_info", "trial")
_UNITS = ("units", "unit_info", "unit")
_TIME_ENDINGS = ("_timestamps", "_times", "_time", ".timestamps", ".times", ".time")
_RATE_ENDINGS = ("_rate", "_hz", ".rate", ".hz")
_NUMBERED = re.compile(r"(?P<stem>.*?)[._]?(?:unit|neuron|cell|channel|ch)?_?(?P<number>\d+)")


def recording_from_tree(
    path: Path, kind: str, tree: Tree, options: SourceOptions, attrs: Mapping[str, Any]
) -> Recording:
    """Make a recording out of everything that a file holds.

    Parameters
    ----------
    path : Path
    kind : str
    tree : dict of str to LazyArray or Ragged
    options : SourceOptions
    attrs : mapping
        The file's own attributes, which may tell the bin width.

    Raises
    ------
    DataError, UserError
        Where it is unclear which array holds the spikes, or how; says what there is.
    """
    tree = gather(tree)
    name = spikes_name(path, tree, options)
    found = find_spikes(path, name, tree, options, attrs)
    recording = Recording(path, kind, found.spikes, clock=options.clock(), notes=found.notes)
    rest = {key: node for key, node in tree.items() if key not in found.used}
    recording.units = _table(rest, _UNITS, found.spikes.n_units)
    if len(found.names):
        recording.units = {"name": found.names, **recording.units}
    prefixes = (options.trials,) if options.trials else _TRIALS
    recording.trials = _table(rest, prefixes, None, recording.warnings)
    if options.trials and not recording.trials:
        raise UserError(
            f"{path.name} has no table {options.trials!r}; a table is a group or struct of arrays "
            f"of one length. It holds: {list_some(sorted(tree), 20)}."
        )
    if isinstance(found.spikes, BinnedSpikes) and "trial" in found.spikes.axes:
        _add_trials(recording, found.spikes, rest)
    else:
        times = None if found.time_name is None else tree[found.time_name]
        recording.series = _series(rest, found.spikes, recording.clock, times)
    return recording


def gather(tree: Tree) -> Tree:
    """Put numbered lists (``spike_times.0``, ``spike_times.1``, ``unit_7``) together."""
    groups: dict[str, list[tuple[int, str]]] = {}
    for key, node in tree.items():
        match = _NUMBERED.fullmatch(key)
        if match and not isinstance(node, Ragged) and is_vector(node) and node.dtype.kind in "uif":
            groups.setdefault(match["stem"], []).append((int(match["number"]), key))
    result = dict(tree)
    for stem, members in groups.items():
        lengths = {node.shape for _, k in members if not isinstance(node := tree[k], Ragged)}
        named = stem.lower().rpartition(".")[2] in SPIKES
        if stem not in tree and (named or len(lengths) > 1):
            keys = [key for _, key in sorted(members)]
            rows = [node for k in keys if not isinstance(node := result.pop(k), Ragged)]
            names = [key.removeprefix(stem).lstrip("._") for key in keys]
            result[stem or "spike_times"] = Ragged(rows, names)
    return result


def _table(
    tree: Tree, prefixes: tuple[str, ...], n_rows: int | None, warnings: list[str] | None = None
) -> Table:
    """Columns of one length under one of the prefixes (a group, a struct, a name's beginning)."""
    for prefix in prefixes:
        columns: Table = {}
        for key, node in tree.items():
            tail = key.removeprefix(prefix)
            if tail == key or tail[:1] not in (".", "_") or isinstance(node, Ragged):
                continue
            if is_vector(node) and node.dtype.kind in "buifSUO":
                columns[tail[1:]] = as_text(read_all(Vector(node)))
        sizes = [len(column) for column in columns.values()]
        size = n_rows if n_rows is not None else max(sizes, key=sizes.count, default=0)
        other = [f"{k} ({len(column)})" for k, column in columns.items() if len(column) != size]
        columns = {name: column for name, column in columns.items() if len(column) == size}
        if columns:
            if other and warnings is not None:
                warnings.append(
                    f"{prefix} has {size} rows; columns of another length are left out: "
                    f"{list_some(other)}"
                )
            return columns
    return {}


def _add_trials(recording: Recording, spikes: BinnedSpikes, rest: Tree) -> None:
    """Per-trial columns and series of a recording that comes as binned trials."""
    n_trials = spikes.array.shape[spikes.axes.index("trial")]
    length = spikes.trial_bins * spikes.bin_s
    starts = np.arange(n_trials, dtype=np.float64) * length
    recording.starts = starts
    recording.observed = np.stack([starts, starts + length], axis=1)
    columns: Table = {"start_time": np.zeros(n_trials)}
    columns |= {k: v for k, v in recording.trials.items() if len(v) == n_trials}
    for key, node in rest.items():
        if isinstance(node, Ragged) or node.dtype.kind not in "buifSUO":
            continue
        if is_vector(node) and Vector(node).shape == (n_trials,):
            columns.setdefault(key, as_text(read_all(Vector(node))))
        elif node.shape[:2] == (n_trials, spikes.trial_bins) and len(node.shape) <= 3:
            axes = ("trial", "time", "channel")[: len(node.shape)]
            recording.series[key] = Series(node, axes, rate=1 / spikes.bin_s, at_edges=True)
    recording.trials = columns


def _series(
    tree: Tree, spikes: SpikeTimes | BinnedSpikes, clock: Clock, bin_times: Node | None
) -> dict[str, Series]:
    """Arrays with one entry per bin, or with times or a sampling rate of their own."""
    found: dict[str, Series] = {}
    shared = next((k for k, n in tree.items() if k.lower() in TIMES and _is_list(n)), None)
    for key, node in tree.items():
        ending = key.endswith((*_TIME_ENDINGS, *_RATE_ENDINGS)) or key == shared
        if isinstance(node, Ragged) or node.dtype.kind not in "buif" or ending:
            continue
        if not 1 <= len(node.shape) <= 2:
            continue
        stem = key.removesuffix(".data")
        times, rate = _beside(tree, stem, _TIME_ENDINGS), _beside(tree, stem, _RATE_ENDINGS)
        start, hz, at_edges = 0.0, 1.0, False
        if times is not None:
            n = times.shape[0]
        elif rate is not None or "rate" in node.attrs:
            hz = float(read_all(rate)[0] if rate is not None else node.attrs["rate"])
            n = max(node.shape)
        elif isinstance(spikes, BinnedSpikes):
            start, hz, at_edges, n = spikes.start, 1 / spikes.bin_s, True, spikes.n_bins
        elif shared is not None:
            times = Vector(tree[shared])  # type: ignore[arg-type]  # `_is_list` saw to it
            n = times.shape[0]
        else:
            continue
        if n > 1 and n in node.shape:
            axes: tuple[str, ...] = ("time", "channel") if len(node.shape) == 2 else ("time",)
            axes = axes[::-1] if node.shape[0] != n else axes
            found[stem] = Series(node, axes, times, start, hz, at_edges=at_edges, clock=clock)
    return found


def _is_list(node: Node) -> bool:
    return not isinstance(node, Ragged) and is_vector(node) and Vector(node).shape[0] > 1


def _beside(tree: Tree, stem: str, endings: tuple[str, ...]) -> LazyArray | None:
    for ending in endings:
        node = tree.get(f"{stem}{ending}")
        if node is not None and not isinstance(node, Ragged) and is_vector(node):
            return Vector(node)
    return None
