"""From named arrays (.npz, .mat, HDF5) to a recording: spikes, units, trials and series."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...data.find import list_some
from ...errors import UserError
from ..names import BEGINS, INVALID, OBSERVED, RATE_ENDINGS, TIME_ENDINGS, TIMES, TRIALS, UNITS
from .observed import add_invalid, observe_units
from .recording import (
    BinnedSpikes,
    Clock,
    Recording,
    Series,
    SourceOptions,
    SpikeTimes,
    Table,
    count_rows,
)
from .sorting import sorting_of_arrays
from .spike_lists import sampling_hz
from .spikes import read_spikes, spikes_keys
from .timeline import settle
from .tree import (
    Ragged,
    Source,
    Tree,
    as_column,
    attrs_of,
    column_name,
    gather,
    last_name,
    vectors_of,
)
from .trialwise import add_columns, add_series, nodes_of_trials


def recording_from_tree(
    path: Path, kind: str, tree: Tree, options: SourceOptions, attrs: Mapping[str, Any]
) -> Recording:
    """Make a recording out of everything that a file holds, or say what is unclear.

    `attrs` are the attributes of the file, which may give the bin width.
    """
    if (sorting := sorting_of_arrays(path, tree, options)) is not None:
        return sorting
    if {"train_data", "valid_data"} <= set(tree) and not options.spikes:
        raise UserError(
            f"{path.name} is split already (train_data, valid_data), as files of the earlier LFADS "
            "are. `lfads prep` keeps the split of an HDF5 file: write these arrays (trials x bins "
            "x units) with h5py. Or choose one with --spikes, which is split anew."
        )
    tree = gather(tree)
    matlab = kind.startswith("MATLAB")
    source = Source(path.name, tree, vectors_of(tree), options, attrs, matlab)
    keys = spikes_keys(source)
    read = read_spikes(source, keys)
    spikes = read.spikes
    recording = Recording(path, kind, spikes, clock=options.clock(), notes=read.notes)
    recording.sampling_hz = sampling_hz(source)
    rest = {key: node for key, node in tree.items() if key not in read.used}
    recording.units = {**read.units, **_table(rest, UNITS, spikes.n_units)}
    others = _table(rest, UNITS, None)
    rows = count_rows(others)
    if rows > 1 and rows != spikes.n_units:
        recording.warnings.append(
            f"the table of units has {rows} rows, the spikes have {spikes.n_units} units; columns "
            f"of that length are left out: {list_some(list(others))}"
        )
    if read.trials is not None:
        read.trials.place(recording)
    _add_stretches(recording, rest)
    prefixes = (options.table,) if options.table else TRIALS
    recording.trials = _table(rest, prefixes, None, recording.warnings)
    if options.table and not recording.trials:
        raise UserError(
            f"{path.name} has no table {options.table!r}; a table is a group or struct of arrays "
            f"of one length. It holds: {list_some(sorted(tree), 20)}."
        )
    if not recording.trials and not read.n_trials:
        recording.tables = _other_tables(rest)
    if read.n_trials:
        nodes = nodes_of_trials(source, rest, keys)
        add_columns(recording, nodes, read.n_trials, read.trials, 1 if source.matlab else 0)
        if isinstance(spikes, SpikeTimes) and spikes.trials is not None:
            settle(recording, options)
        add_series(recording, nodes, read.n_trials, read.trials)
    else:
        recording.series = _series(rest, spikes, recording.clock)
    return recording


def _table(
    tree: Tree, prefixes: tuple[str, ...], n_rows: int | None, warnings: list[str] | None = None
) -> Table:
    """Read columns of one length under a prefix: a group, a struct, or how names begin."""
    for prefix in prefixes:
        columns: Table = {}
        for key, vector in vectors_of(tree).items():
            if (name := column_name(key, prefix)) and vector.dtype.kind in "buifSUO":
                columns[name] = as_column(vector[:])
        # A group may hold more than its table, such as a sampling rate: the usual length decides.
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


def _other_tables(tree: Tree) -> dict[str, int]:
    """Count the rows of tables that have a column of starts: groups, structs, common prefixes."""
    tables: dict[str, int] = {}
    for key in tree:
        ending = next((e for e in BEGINS if key.lower().endswith((f".{e}", f"_{e}"))), None)
        name = key[: -len(ending) - 1] if ending else ""
        table = _table(tree, (name,), None) if name and last_name(name) not in INVALID else {}
        size = count_rows(table)
        if ending in [column.lower() for column in table] and size > 1:
            tables[name] = size
    return tables


def _add_stretches(recording: Recording, rest: Tree) -> None:
    """Add what the file says was recorded, or is not valid, by the names that say so."""
    for key, node in rest.items():
        name = last_name(key)
        if name in INVALID and not isinstance(node, Ragged):
            add_invalid(recording, key, node[:])
        elif name in OBSERVED:
            rows = node.rows if isinstance(node, Ragged) else [node]
            observe_units(recording, [row[:] for row in rows], key)
    groups = {key.rpartition(".")[0] for key in rest}
    for name in dict.fromkeys([*INVALID, *(g for g in sorted(groups) if last_name(g) in INVALID)]):
        if table := _table(rest, (name,), None):
            add_invalid(recording, name, table)


def _series(tree: Tree, spikes: SpikeTimes | BinnedSpikes, clock: Clock) -> dict[str, Series]:
    """Describe arrays with one entry per bin, with times, or with a sampling rate."""
    series: dict[str, Series] = {}
    vectors = vectors_of(tree)
    shared = next((k for k, v in vectors.items() if k.lower() in TIMES and v.shape[0] > 1), None)
    for key, node in tree.items():
        ending = key.endswith((*TIME_ENDINGS, *RATE_ENDINGS)) or key == shared
        if isinstance(node, Ragged) or node.dtype.kind not in "buif" or ending:
            continue
        if not 1 <= len(node.shape) <= 2:
            continue
        stem = key.removesuffix(".data")
        times, rate = (
            next((vectors[name] for end in endings if (name := f"{stem}{end}") in vectors), None)
            for endings in (TIME_ENDINGS, RATE_ENDINGS)
        )
        start, hz, at_edges = 0.0, 1.0, False
        if times is not None:
            n = times.shape[0]
        elif rate is not None or "rate" in attrs_of(node):
            hz = float(rate[:][0] if rate is not None else attrs_of(node)["rate"])
            n = max(node.shape)
        elif isinstance(spikes, BinnedSpikes):
            start, hz, at_edges, n = spikes.start, 1 / spikes.bin_s, True, spikes.n_bins
        elif shared is not None:
            times = vectors[shared]
            n = times.shape[0]
        else:
            continue
        if n > 1 and n in node.shape:
            axes: tuple[str, ...] = ("time", "channel") if len(node.shape) == 2 else ("time",)
            axes = axes[::-1] if node.shape[0] != n else axes
            series[stem] = Series(node, axes, times, start, hz, at_edges=at_edges, clock=clock)
    return series
