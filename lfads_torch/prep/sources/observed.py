"""What a file says was recorded, or is not valid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ...data.find import list_some
from ..binning import Array
from ..stretches import join, of_table, stretches
from .recording import Recording, SpikeTimes


def add_invalid(recording: Recording, name: str, table: Mapping[str, Array] | Array) -> None:
    """Mark the stretches of a table, or of an array of starts and stops, as not valid."""
    rows = of_table(table) if isinstance(table, Mapping) else table
    if rows is None:
        columns = ", ".join(table) if isinstance(table, Mapping) else ""
        recording.warnings.append(
            f"{name!r} has no start_time and stop_time, so nothing is left out by it; it has "
            f"{columns or 'no columns'}"
        )
        return
    what = f"intervals of {name!r}"
    seconds = recording.clock.seconds(rows)
    pieces = stretches(seconds, what, recording.warnings, is_open=True)
    if len(pieces):
        recording.invalid[name] = pieces
        total = float(np.diff(pieces, axis=1).sum())
        recording.notes.append(
            f"not valid by {name!r}: {total:.6g} s in {len(pieces)} stretches; no window is taken "
            "there"
        )


def observe_units(recording: Recording, rows: Sequence[Array], what: str) -> None:
    """Add the stretches in which each unit was recorded, in the file's unit of time."""
    spikes, clock, noticed = recording.spikes, recording.clock, list[str]()
    pieces = [stretches(clock.seconds(some), what, noticed) for some in rows]
    recording.warnings += dict.fromkeys(noticed)
    if not any(len(some) for some in pieces):
        return
    # All units together: one that was lost early must not cost the trials of the others.
    recording.observed = join(np.concatenate(pieces))
    if not isinstance(spikes, SpikeTimes):
        return
    unknown = [u for u, some in enumerate(pieces) if not len(some) and spikes.count(u)]
    if unknown:
        recording.warnings.append(
            f"{len(unknown)} units have spikes but no {what} (units {list_some(unknown)}, counted "
            "from 0); they are taken as recorded whenever another unit was"
        )
        pieces = [recording.observed if u in unknown else some for u, some in enumerate(pieces)]
    differ = [u for u, some in enumerate(pieces) if not np.array_equal(some, recording.observed)]
    if differ:
        recording.unit_observed = pieces
        recording.warnings.append(
            f"units were observed for different times ({what}; units {list_some(differ)}, counted "
            "from 0, lack some): their bins outside are missing (NaN), not 0"
        )
