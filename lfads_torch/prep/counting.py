"""Counts of all units in all windows, in memory or in a file in the output's folder."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..data.find import list_some
from ..errors import DataError, UserError
from .binning import MOST_PER_BIN, Array, Flags, Floats, bin_windows, rebin
from .sources.recording import BinnedSpikes, Recording
from .stretches import inside
from .trials import Windows, neighbours, whole_bins

Blocks = Iterator[tuple[int, Array]]
Progress = Callable[[str, int, int], None]
"""Called with what is going on, how much of it is done, and of how much."""

IN_MEMORY = 1 << 27
"""Bytes of counts that are kept in memory; more go to a temporary file."""

_AT_ONCE = 1 << 25  # bytes that are read or written at once


def silent(what: str, done: int, total: int) -> None:
    """Report nothing."""


class CountStore:
    """Counts of bins x units, in memory or in a temporary file in `folder`; read by bins.

    They are written by unit, or by bins of all units: a file is laid out as it is written.
    """

    def __init__(
        self, n_bins: int, n_units: int, dtype: np.dtype[Any], by_unit: bool, folder: Path
    ) -> None:
        self.n_bins, self.n_units, self.dtype, self.by_unit = n_bins, n_units, dtype, by_unit
        self._shape = (n_units, n_bins) if by_unit else (n_bins, n_units)
        self._data: Array | None = None
        self._file: Any = None
        self._folder = folder
        size = n_bins * n_units * dtype.itemsize
        if size <= IN_MEMORY:
            self._data = np.zeros(self._shape, dtype)
            return
        with self._disk():
            # In the output's folder, since /tmp is often small, or in memory. The file has no name,
            # so that nothing of it stays, however the process ends.
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by `close`
            self._file.truncate(size)

    @contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError) as err:
            size = self.n_bins * self.n_units * self.dtype.itemsize / 1e9
            raise DataError(
                f"Cannot write a temporary file of {size:.3g} GB to {self._folder}: {err}. Free "
                "some space, or write to another disk (-o)."
            ) from err

    def put(self, start: int, counts: Array) -> None:
        """Write from the unit `start` on, or from the bin `start` on."""
        if self._data is not None:
            self._data[start : start + len(counts)] = counts
            return
        with self._disk():
            self._file.seek(start * self._shape[1] * self.dtype.itemsize)
            self._file.write(np.ascontiguousarray(counts, self.dtype).data)
            self._file.flush()

    def read(self, start: int, stop: int) -> Array:
        """Read bins `start` to `stop` (exclusive), shape (bins, units)."""
        if self._data is not None:
            rows = self._data[:, start:stop].T if self.by_unit else self._data[start:stop]
            return np.ascontiguousarray(rows)
        counts = np.empty(
            (self.n_units, stop - start) if self.by_unit else (stop - start, self.n_units),
            self.dtype,
        )
        size = self.dtype.itemsize
        with self._disk():
            if self.by_unit:
                for unit, row in enumerate(counts):
                    self._file.seek((unit * self.n_bins + start) * size)
                    self._file.readinto(row.data)
            else:
                self._file.seek(start * self.n_units * size)
                self._file.readinto(counts.data)
        return np.ascontiguousarray(counts.T) if self.by_unit else counts

    def close(self) -> None:
        """Remove the temporary file."""
        if self._file is not None:
            self._file.close()


@dataclass
class Counted:
    """Counts of windows, one after another in `store`, each of ``n_bins * fine`` bins.

    `continuous` says that the recording holds continuous values, which are averaged, not summed.
    """

    store: CountStore
    windows: Windows
    fine: int = 1
    continuous: bool = False

    def blocks(self, units: Array | None = None, *, fine: bool = False) -> Blocks:
        """Yield the number of a first window, and counts: windows x bins x units.

        `units` says which units, in which order; `fine` gives bins as in the store, undivided.
        """
        length = self.windows.n_bins * self.fine
        step = max(1, _AT_ONCE // max(1, 8 * length * self.store.n_units))
        total = len(self.windows.starts)
        for first in range(0, total, step):
            last = min(first + step, total)
            counts = self.store.read(first * length, last * length)
            if units is not None:
                counts = counts[:, units]
            counts = counts.reshape(last - first, length, -1)
            yield first, counts if fine else rebin(counts, self.fine, average=self.continuous)


def count(
    recording: Recording,
    windows: Windows,
    folder: Path,
    *,
    fine: int = 1,
    drop_duplicates: bool = False,
    progress: Progress = silent,
) -> Counted:
    """Count the spikes of all units in all windows; close the `store` of the result when done.

    `fine` divides every bin. `drop_duplicates` counts spikes of a unit at the very same time once.
    """
    spikes = recording.spikes
    if isinstance(spikes, BinnedSpikes):
        return _count_bins(spikes, windows, folder, fine, progress)
    shape = (len(windows.starts), windows.n_bins * fine)
    n_bins = shape[0] * shape[1]
    missing = _missing(recording, windows, shape[1])
    dtype = np.dtype(np.float32 if missing else np.uint16)  # integers have no NaN
    store = CountStore(n_bins, spikes.n_units, dtype, True, folder)
    falls = spikes.scan.n_falls
    repeated: dict[int, int] = {}
    for unit in range(spikes.n_units):
        progress("counting spikes, unit", unit, spikes.n_units)
        counts = np.zeros(shape, dtype=np.uint16)
        for times, tolerance in spikes.blocks(unit):
            ordered = np.sort(times) if falls[unit] else times
            again = ordered[1:] == ordered[:-1]
            if again.any():
                repeated[unit] = repeated.get(unit, 0) + int(again.sum())
                ordered = np.unique(ordered) if drop_duplicates else ordered
            bin_windows(
                ordered,
                windows.starts,
                shape[1],
                windows.bin_s / fine,
                tolerance=tolerance,
                out=counts,
            )
        known = counts.astype(dtype, copy=False)
        if unit in missing:
            known[missing[unit]()] = np.nan
        store.put(unit, known.reshape(1, -1))
    progress("counting spikes, unit", spikes.n_units, spikes.n_units)
    if repeated:
        done = (
            "they were left out"
            if drop_duplicates
            else "they count as spikes; --drop-duplicates leaves them out"
        )
        recording.warnings.append(
            f"{sum(repeated.values())} spikes of {len(repeated)} units have the very time of the "
            f"spike before them (units {list_some(list(repeated))}, counted from 0): {done}"
        )
    return Counted(store, windows, fine)


def _missing(recording: Recording, windows: Windows, n_bins: int) -> dict[int, Callable[[], Flags]]:
    """Return, by unit, what says in which bins of which windows a unit was not recorded."""
    result: dict[int, Callable[[], Flags]] = {}
    width = windows.n_bins * windows.bin_s / n_bins
    for unit, pieces in enumerate(recording.unit_observed or ()):
        if not inside(pieces, windows.starts, windows.stops).all():
            result[unit] = partial(_outside, pieces, windows.starts, n_bins, width)
    return result


def _outside(pieces: Floats, starts: Floats, n_bins: int, width: float) -> Flags:
    edges = starts[:, None] + np.arange(n_bins) * width
    return ~inside(pieces, edges, edges + width)


def _count_bins(
    spikes: BinnedSpikes, windows: Windows, folder: Path, fine: int, progress: Progress
) -> Counted:
    factor = whole_bins(windows.bin_s * 1000, spikes.bin_s * 1000, "A bin (--bin-ms)")
    if fine > 1 and factor % fine:
        raise UserError(
            f"bins of {windows.bin_s * 1000:g} ms hold {factor} of the recording's; "
            f"{fine} finer ones do not divide them. Choose another --correlation-ms."
        )
    inner, length = factor // fine, windows.n_bins * factor
    continuous = _is_continuous(spikes)
    dtype = np.dtype(np.float32 if spikes.array.dtype.kind == "f" else np.uint16)
    done, n_windows = 0, len(windows.starts)
    store = CountStore(n_windows * windows.n_bins * fine, spikes.n_units, dtype, False, folder)
    # Windows begin on edges of the recording's bins (`snap_to_bins`): only rounding is undone.
    first = np.round((windows.starts - spikes.start) / spikes.bin_s).astype(np.int64)
    most = max(1, _AT_ONCE // (spikes.n_units * max(4, spikes.array.dtype.itemsize)))
    for group in neighbours(first, length, most):
        progress("reading bins, window", done, n_windows)
        low, high = int(first[group[0]]), int(first[group[-1]]) + length
        values = spikes.read(low, high)
        if not continuous and (bad := _count_fractions(values)):
            raise DataError(
                f"Binned spikes hold {bad} values that are negative or fractional among counts; "
                "correct them, or mark them missing with NaN."
            )
        for window in group:
            bins = values[first[window] - low :][:length]
            bins = rebin(bins, inner, average=continuous)
            if bins.dtype.kind in "ui" and bins.max(initial=0) > MOST_PER_BIN:
                raise DataError(f"A bin holds {bins.max()} spikes, more than {MOST_PER_BIN}.")
            store.put(int(window) * windows.n_bins * fine, bins.astype(dtype))
        done += len(group)
    progress("reading bins, window", n_windows, n_windows)
    return Counted(store, windows, fine, continuous)


def _is_continuous(spikes: BinnedSpikes) -> bool:
    """Return whether some stretches of a binned recording hold values that are no counts."""
    if spikes.array.dtype.kind in "bui":
        return False
    # Counts are summed into wider bins, other values averaged. Four stretches decide, since a file
    # may be large; where they hold counts, a fraction elsewhere is an error.
    length = min(spikes.n_bins, max(1, (1 << 20) // spikes.n_units))
    starts = np.linspace(0, spikes.n_bins - length, 4).astype(int).tolist()
    return any(_count_fractions(spikes.read(start, start + length)) for start in starts)


def _count_fractions(values: Array) -> int:
    """Count the known values that are no counts: negative or fractional."""
    if values.dtype.kind in "bu":
        return 0
    known = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    return int(((known < 0) | (known != np.floor(known))).sum())
