"""Files of acquisition and analysis programs, through `neo` where it reads spikes in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import DataError, UserError
from .objects import neo_segments
from .recording import Recording, SourceOptions

# Files with sorted or detected spikes, which neo reads.
_SPIKES = {
    ".plx": "Plexon",
    ".pl2": "Plexon",
    ".nev": "Blackrock or Neuralynx",
    ".nex": "NeuroExplorer",
    ".nse": "Neuralynx",
    ".ntt": "Neuralynx",
    ".smr": "Spike2",
    ".smrx": "Spike2",
    ".nix": "NIX",
    ".kwik": "KlustaKwik",
    ".spikes": "Open Ephys",
    ".tsq": "TDT",
    ".tev": "TDT",
    ".gdf": "NEST",
    ".mcd": "Multi Channel Systems",
    ".edf": "EDF",
}
# Files with what the electrodes measured.
_VOLTAGES = {
    **dict.fromkeys((".ns1", ".ns2", ".ns3", ".ns4", ".ns5", ".ns6"), "Blackrock"),
    **dict.fromkeys((".rhd", ".rhs"), "Intan"),
    **dict.fromkeys((".continuous", ".oebin"), "Open Ephys"),
    **dict.fromkeys((".ncs", ".nrd"), "Neuralynx"),
    **dict.fromkeys((".bin", ".meta", ".cbin", ".dat"), "SpikeGLX, Open Ephys or the like"),
    ".rec": "SpikeGadgets",
    ".abf": "Axon",
    ".sev": "TDT",
}
_OTHERS = {
    ".nex5": ("NeuroExplorer 5", "save it as .nex, or export its units as text (.csv)"),
    ".pkl": ("Python's pickle", "it would be executed; save its arrays with numpy.savez"),
    ".pickle": ("Python's pickle", "it would be executed; save its arrays with numpy.savez"),
    ".xlsx": ("Excel", "save the sheet as CSV"),
    ".xls": ("Excel", "save the sheet as CSV"),
    ".parquet": ("Parquet", "save the table as CSV, or give its DataFrame to prepare()"),
    ".pqt": ("Parquet", "save the table as CSV, or give its DataFrame to prepare()"),
}
_EXPORT = "export spike times from the program as text, a column of times for each unit (.csv)"


def read_program(path: Path, options: SourceOptions) -> Recording | None:
    """Open a file of another program, or say what to do with it; None for an unknown ending."""
    ending = path.suffix.lower()
    if ending in _VOLTAGES:
        raise DataError(
            f"{path.name}: files {ending} of {_VOLTAGES[ending]} hold voltages, not spikes. Sort "
            "them (Kilosort, SpikeInterface), and give the folder that the sorter writes: "
            "lfads prep FOLDER --list."
        )
    if ending in _OTHERS:
        program, step = _OTHERS[ending]
        raise DataError(f"{path.name}: a file of {program} is not read: {step}.")
    if ending not in _SPIKES:
        return None
    return _with_neo(path, _SPIKES[ending], options)


def _with_neo(path: Path, program: str, options: SourceOptions) -> Recording:
    what = f"{path.name} is a file of {program}"
    try:
        import neo
    except ImportError as err:
        raise UserError(
            f"{what}, which neo reads: pip install 'lfads-torch[neo]'. Or {_EXPORT}."
        ) from err
    faults = []
    # By the ending alone: what else neo tries may execute a file (PickleIO).
    for reader in neo.io.iolist:
        if path.suffix.lower().lstrip(".") not in reader.extensions or reader is neo.io.PickleIO:
            continue
        try:
            segments = _segments(reader(str(path)))
        # A reader of another program's file of this ending raises anything.
        except Exception as err:
            faults.append(f"{reader.__name__}: {type(err).__name__}: {err}")
        else:
            recording = neo_segments(segments, path, options)
            recording.kind = f"{program} file"
            return recording
    raise DataError(
        f"{what}, and neo cannot read it ({'; '.join(faults)}). {_EXPORT.capitalize()}."
    )


def _segments(reader: Any) -> list[Any]:
    """Read segments without their voltages, where the reader can leave these in the file."""
    from neo import Segment

    if not reader.support_lazy:
        return [segment for block in reader.read() for segment in block.segments]
    result = []
    for stored in (segment for block in reader.read(lazy=True) for segment in block.segments):
        segment = Segment(name=stored.name, **stored.annotations)
        segment.spiketrains.extend([train.load() for train in stored.spiketrains])
        segment.events.extend([event.load() for event in stored.events])
        segment.epochs.extend([epoch.load() for epoch in stored.epochs])
        result.append(segment)
    return result
