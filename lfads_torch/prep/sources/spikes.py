"""Which arrays of a file hold the spikes, and what they are: times or bins, by unit or by trial."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...data.find import list_some
from ...data.stored import flat
from ...data.validate import show_shape
from ...errors import DataError, UserError
from ..binning import Array
from ..names import LIKE_SPIKES, NOT_SPIKES, SPIKES
from .axes import (
    has_equal_steps,
    is_times,
)
from .binned import read_bins
from .spike_lists import LONG, SpikesRead, hold_counts, read_times, splitter
from .tree import Node, Ragged, Source, is_regular, is_vector, last_name, last_of


def spikes_keys(source: Source) -> list[str]:
    """Return the keys that hold the spikes, or raise an error that lists all keys."""
    tree = source.tree
    if source.options.spikes:
        return [source.key(word.strip()) for word in source.options.spikes.split(",")]
    if "train_encod_data" in tree:
        raise UserError(
            f"{source.file} is a data file already: train on it, or check it with lfads check."
        )
    candidates = {
        key: node
        for key, node in tree.items()
        if not _is_time_base(key, node)
        and (isinstance(node, Ragged) or (node.dtype.kind in "buif" and node.shape))
    }
    for name in SPIKES:
        keys = [key for key in candidates if last_name(key) == name]
        if len(keys) == 1:
            return keys
    within = [k for k in candidates if is_times(k) and last_name(k.rpartition(".")[0]) in SPIKES]
    if len(within) == 1:  # spikes.times, of which spikes.clusters has the units
        return within
    named = [
        key
        for key in candidates
        if LIKE_SPIKES.search(last_name(key)) and not NOT_SPIKES.search(last_name(key))
    ]
    if len(named) == 1:
        return named
    likely = [
        key
        for key, node in candidates.items()
        if (not node.problem if isinstance(node, Ragged) else not is_vector(node))
    ]
    # Calcium and EMG are no counts and may be meant; a position is not, so they are asked about.
    if len(likely) == 1 and not named and _hold_whole_numbers(candidates[likely[0]]):
        return likely
    arrays = [
        f"{k} ({show_shape(n.shape)} arrays)"
        if isinstance(n, Ragged)
        else f"{k} ({show_shape(n.shape)} {n.dtype})"
        for k, n in tree.items()
    ]
    how = "name it with --spikes"
    if named:
        how += f", such as --spikes {last_of(named[0])}, or join several as units: --spikes "
        how += ",".join(map(last_of, named))
    raise UserError(
        f"{source.file}: which array holds the spikes is unclear; {how}. It has: "
        f"{list_some(arrays, 20) or 'nothing'}."
    )


def _hold_whole_numbers(node: Node) -> bool:
    """Return whether an array may hold counts; lists may hold times."""
    if isinstance(node, Ragged):
        return True
    some: Array = np.asarray(node[:1000])
    known = some[np.isfinite(some)] if some.dtype.kind == "f" else some
    return bool((known == np.floor(known)).all() and (known >= 0).all())


def _is_time_base(key: str, node: Node) -> bool:
    """Return whether an array holds times in equal steps: those of samples, never of spikes."""
    if last_name(key) in SPIKES:
        return False
    if isinstance(node, Ragged):
        long = [flat(row) for row in node.rows[:20] if np.prod(row.shape) >= 10]
        return bool(long) and is_times(key) and all(map(has_equal_steps, long))
    if not is_vector(node) or node.dtype.kind not in "uif" or np.prod(node.shape) < 10:
        return False
    return has_equal_steps(flat(node))


def read_spikes(source: Source, keys: Sequence[str]) -> SpikesRead:
    """Describe arrays as spikes, or raise an error where axes, bins or units are unclear."""
    for key in keys:
        node = source.tree[key]
        if isinstance(node, Ragged) and node.problem:
            raise DataError(
                f"{source.file}: {key!r} {node.problem}; legal are arrays, or as many lists of "
                "spike times (one for each unit) in each entry."
            )
        if not isinstance(node, Ragged) and node.dtype.kind not in "buif":
            raise UserError(f"{source.file}: {key!r} holds {node.dtype}, not numbers (--spikes).")
        if not isinstance(node, Ragged) and len(node.shape) > 1 and 0 in node.shape:
            raise UserError(f"{source.file}: {key!r} is empty ({show_shape(node.shape)}).")
        if _is_time_base(key, node):
            raise UserError(
                f"{source.file}: {key!r} ascends in equal steps: these are times of samples or "
                "bins, not of spikes. Name another array with --spikes."
            )
    padded = [key for key in keys if _split_padded(source, key)]
    binned = [_is_binned(source, key) for key in keys]
    if any(binned) and not all(binned):
        raise UserError(
            f"{source.file}: of --spikes {','.join(keys)} some hold times, some bins; name those "
            "of one kind."
        )
    read = read_bins(source, keys) if binned[0] else read_times(source, keys)
    read.notes += [f"{key!r} is padded lists of spike times" for key in padded]
    if len(keys) > 1:
        read.notes.insert(0, f"units of {list_some(list(keys))} are joined, in this order")
    return read


def _split_padded(source: Source, key: str) -> bool:
    """Make lists of an array whose rows or columns are spike times, padded with NaN or 0."""
    node = source.tree[key]
    if isinstance(node, Ragged) or is_vector(node) or len(node.shape) not in (2, 3):
        return False
    if np.prod(node.shape) > LONG or (len(node.shape) == 2 and source.options.axes):
        return False
    values: Array = np.asarray(node[:], dtype=np.float64)
    for axis in (-1, 0):
        lists = np.moveaxis(values, axis, -1)
        matrix = lists.reshape(-1, lists.shape[-1])
        known = np.isfinite(matrix) & ((matrix != 0) | np.isnan(matrix[:, -1:]))
        lengths = known.sum(axis=1)
        # Counts repeat and fall, and rows of samples all end together.
        if lengths.max() <= 2 or (lengths == matrix.shape[1]).all():
            continue
        if not (known == (np.arange(matrix.shape[1]) < lengths[:, None])).all():
            continue
        rows = [row[:n] for row, n in zip(matrix, lengths, strict=True)]
        long = [row for row in rows if len(row) > 2]
        if all((np.diff(row) > 0).all() for row in rows) and not all(map(is_regular, long)):
            arrays = [np.asarray(row, dtype=node.dtype) for row in rows]
            source.tree[key] = Ragged(arrays, shape=lists.shape[:-1])
            return True
    return False


def _is_binned(source: Source, key: str) -> bool:
    node = source.tree[key]
    if isinstance(node, Ragged):
        return not all(is_vector(row) for row in node.rows) or hold_counts(node)
    if not is_vector(node) or (source.options.axes and len(node.shape) > 1):
        return True
    # With one list of all spikes, another has the unit of each.
    is_list = "time" in key.lower() or len(splitter(source, key)[1]) > 1
    return not is_list and hold_counts(Ragged([node]))
