"""Counting: in every unit of time, type and layout equal to a plain histogram by integers."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import savemat

from lfads_torch.data import read_session
from lfads_torch.prep import prepare
from tests.prep.nwb_files import write_nwb

HZ = 30_000
LENGTH_S = 30
# Unit of the file, how many of it are a second, and types that hold it without loss of a bin.
UNITS = {
    "s": (1, ("f4", "f8")),
    "ms": (1000, ("f4", "f8")),
    "us": (1_000_000, ("f8", "i4", "i8", "u8")),
    "ns": (1_000_000_000, ("i8", "u8")),
    "samples": (HZ, ("f4", "f8", "i4", "i8", "u8")),
}
LAYOUTS = ("index", "labels", "cells", "groups", "vlen", "csv", "nwb")


@st.composite
def recordings(draw: st.DrawFn) -> tuple[list[np.ndarray], int]:
    """Samples of some units, of which many lie on edges of bins, and the width of these in ms."""
    width = draw(st.sampled_from([1, 2, 5, 20]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    units = []
    for _ in range(draw(st.integers(1, 4))):
        n = draw(st.integers(30, 200))
        edges = rng.integers(0, LENGTH_S * 1000 // width, n) * width * HZ // 1000
        # Whole microseconds, and samples: every third of them.
        between = rng.integers(0, LENGTH_S * HZ // 3, n) * 3
        units.append(np.unique(np.concatenate([edges, between])))
    return units, width


def write(path: Path, layout: str, units: list[np.ndarray]) -> tuple[Path, dict[str, Any]]:
    together, owner = np.concatenate(units), np.repeat(np.arange(len(units)), list(map(len, units)))
    order = np.argsort(together, kind="stable")
    if layout == "index":
        ends = np.cumsum([len(t) for t in units])
        np.savez(path / "s.npz", spike_times=together, spike_times_index=ends)
        return path / "s.npz", {}
    if layout == "labels":
        np.savez(path / "s.npz", spike_times=together[order], spike_clusters=owner[order])
        return path / "s.npz", {}
    if layout == "cells":
        cells = np.empty((1, len(units)), dtype=object)
        cells[0, :] = [t[:, None] for t in units]
        savemat(path / "s.mat", {"units": cells})
        return path / "s.mat", {"spikes": "units"}
    if layout in ("groups", "vlen"):
        with h5py.File(path / "s.h5", "w") as file:
            if layout == "groups":
                for i, times in enumerate(units):
                    file[f"spike_times/unit_{i}"] = times
            else:
                kind = h5py.vlen_dtype(units[0].dtype)
                data = file.create_dataset("spike_times", (len(units),), kind)
                for i, times in enumerate(units):
                    data[i] = times
        return path / "s.h5", {}
    if layout == "csv":
        # As many digits as the type has, which is how programs write it.
        rows = [f"{t},{u}" for t, u in zip(together[order], owner[order], strict=True)]
        (path / "s.csv").write_text("\n".join(["time,unit", *rows]))
        return path / "s.csv", {}
    return write_nwb(path / "s.nwb", units), {}


@pytest.mark.parametrize("layout", LAYOUTS)
@given(recording=recordings(), unit=st.sampled_from(sorted(UNITS)), data=st.data())
@settings(max_examples=12, deadline=None)
def test_counts_are_those_of_integers(
    layout: str, recording: tuple[list[np.ndarray], int], unit: str, data: st.DataObject
) -> None:
    samples, width = recording
    per_second, kinds = UNITS[unit]
    kind = data.draw(st.sampled_from(kinds))
    if layout == "nwb":
        kind = "f8"  # as NWB defines it
    if np.dtype(kind).kind == "f":
        stored = [(k * (per_second / HZ)).astype(kind) for k in samples]
        if kind == "f4" and data.draw(st.booleans()):  # as many programs hand it on
            stored = [times.astype("f8") for times in stored]
    else:
        stored = [(k * per_second // HZ).astype(kind) for k in samples]
    options = {"bin_ms": width, "chop_ms": 1000, "time_unit": unit}
    if unit == "samples":
        options["sampling_hz"] = HZ
    with tempfile.TemporaryDirectory() as folder:
        source, more = write(Path(folder), layout, stored)
        prepare(source, Path(folder) / "o.h5", **options, **more)
        session = read_session(Path(folder) / "o.h5", ["window_start"])
    for split in session.splits.values():
        for window, start in zip(split.recon_data, split.extras["window_start"], strict=True):
            for i, k in enumerate(samples):
                bins = k * 1000 // (HZ * width) - round(start * 1000) // width
                expected = np.bincount(
                    bins[(bins >= 0) & (bins < len(window))], minlength=len(window)
                )
                np.testing.assert_array_equal(window[:, i], expected)
