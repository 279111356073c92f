"""NWB files as labs and the Neural Latents Benchmark write them, made with pynwb."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pynwb
from pynwb.behavior import Position, SpatialSeries


def write_nwb(
    path: Path,
    spikes: Sequence[np.ndarray],
    *,
    trials: Mapping[str, Any] | None = None,
    units: Mapping[str, Any] | None = None,
    series: Mapping[str, np.ndarray] | None = None,
    observed: Sequence[Sequence[float]] | None = None,
    rate: float | None = None,
) -> Path:
    """Write units, trials (with start_time and stop_time) and time series at 1 kHz."""
    file = pynwb.NWBFile("test", path.stem, datetime(2020, 1, 1, tzinfo=UTC))
    for name in units or {}:
        file.add_unit_column(name, name)
    for i, times in enumerate(spikes):
        more = {name: column[i] for name, column in (units or {}).items()}
        if observed is not None:
            more["obs_intervals"] = np.asarray(observed, dtype=float)
        file.add_unit(spike_times=np.asarray(times, dtype=float), **more)
    table = dict(trials or {})
    for name in table:
        if name not in ("start_time", "stop_time"):
            file.add_trial_column(name, name)
    for row in range(len(next(iter(table.values()), []))):
        file.add_trial(**{name: column[row] for name, column in table.items()})
    if series:
        module = file.create_processing_module("behavior", "behaviour")
        for name, data in series.items():
            data = np.asarray(data, dtype=float)
            when: dict[str, Any] = {"starting_time": 0.0, "rate": rate or 1000.0}
            if rate is None:
                when = {"timestamps": np.arange(len(data)) / 1000}
            module.add(pynwb.TimeSeries(name=name, data=data, unit="m/s", **when))
        place = SpatialSeries(
            name="cursor",
            data=data[..., :2],
            reference_frame="screen",
            conversion=0.01,
            offset=1.0,
            **when,
        )
        module.add(Position(name="cursor_pos", spatial_series=place))
    with pynwb.NWBHDF5IO(path, "w") as io:
        io.write(file)
    return path
