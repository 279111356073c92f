"""One session of a trained model, with what a rig needs to know of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint import data_settings, find_checkpoint, load_model, read_checkpoint
from ..consent import Trust, trust_of
from ..data import find_sessions, list_some, open_h5
from ..data.read import bin_width_ms, read_attrs
from ..errors import UserError, did_you_mean
from ..files import expanded
from ..folder import CONFIG, RunFolder
from ..model import LFADS
from ..post_run.outputs import output_files
from ..runs.compose import read_config
from ..runs.resume import RUN_KEY

_CLOSE = 1e-6  # share by which two bin widths may differ, by rounding


@dataclass(frozen=True)
class TrainedSession:
    """A session of a trained model: the network in evaluation mode, and facts about its data."""

    model: LFADS
    number: int  # of the session in the model
    name: str
    run: Path  # as it was named
    checkpoint: Path
    bin_ms: float | None  # None where neither data nor outputs are at hand to say it
    channel_names: tuple[str, ...]  # of the channels that are read
    fingerprint: Any  # of the data file, as `lfads_torch.data.fingerprint` makes it, or None

    @property
    def n_channels(self) -> int:
        """Channels that the encoders of this session read."""
        return len(self.channel_names)

    def sha256(self) -> str:
        """Return the checksum of the checkpoint."""
        with self.checkpoint.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def open_session(
    run: str | Path,
    session: str | int | None = None,
    *,
    bin_ms: float | None = None,
    best: bool = True,
    trust: bool | Trust = False,
) -> TrainedSession:
    """Load a trained model for one of its sessions, by number or name; a single one needs none.

    `bin_ms` says the width of bins where the run does not; another one than the run's is an error.
    """
    place = expanded(run).absolute()
    model = load_model(place, best=best, trust=trust)
    checkpoint = find_checkpoint(place, best=best)
    assert checkpoint is not None  # load_model has refused it
    number = session_number(session, model, run)
    names = model.session_names
    name = names[number] if number < len(names) else str(number)
    folder = RunFolder.around(checkpoint)
    n_channels = getattr(model.readin[number], "in_features", model.hparams["encod_data_dim"])
    width, channels = None, None
    for path in _files(folder, checkpoint, name, number, trust):
        with open_h5(path) as file:
            width = width or bin_width_ms(read_attrs(file))
            units = file["unit_ids"][()].tolist() if "unit_ids" in file else []
            if channels is None and len(units) >= n_channels:
                channels = tuple(map(str, units[:n_channels]))
    if bin_ms is not None and width is not None and abs(bin_ms / width - 1) > _CLOSE:
        raise UserError(
            f"bin_ms is {bin_ms:g}, but {run} was trained on bins of {width:g} ms; count spikes in "
            f"bins of {width:g} ms"
        )
    state = folder.status.get("data") or read_checkpoint(checkpoint).get(RUN_KEY, {}).get("data")
    fingerprints = [one for one in state or () if Path(one["file"]).stem == Path(name).name]
    return TrainedSession(
        model,
        number,
        name,
        Path(run),
        checkpoint,
        bin_ms if width is None else width,
        channels or tuple(map(str, range(n_channels))),
        fingerprints[0] if fingerprints else None,
    )


def session_number(session: str | int | None, model: LFADS, run: str | Path) -> int:
    """Return the number of a session of a model, given by number or name; `run` is for errors."""
    names, n_sessions = model.session_names, len(model.readin)
    if session is None and n_sessions == 1:
        return 0
    known = f"{n_sessions} sessions: {list_some(names)}" if names else f"{n_sessions} sessions"
    if session is None:
        raise UserError(f"{run} has {known}; choose one (--session NAME or NUMBER)")
    if str(session) in names:
        return names.index(str(session))
    if str(session).isdecimal() and int(session) < n_sessions:
        return int(session)
    legal = [*names, *map(str, range(n_sessions))]
    raise UserError(f"{run} has no session {session!r}; {did_you_mean(str(session), legal)}")


def _files(
    folder: RunFolder, checkpoint: Path, name: str, number: int, trust: bool | Trust
) -> Iterator[Path]:
    """Yield the data file of a session and its output file, where they are at hand."""
    config = folder.path / CONFIG
    settings: Any = {}
    if config.is_file():
        settings = read_config(folder.path, trust_of(config, trust), ("datamodule",))
    settings = settings.get("datamodule") or data_settings(checkpoint)
    try:
        paths = find_sessions(settings["datafile_pattern"])
    except (UserError, KeyError, TypeError):
        paths = []
    # Of two files with one name, the model knows the folders, too.
    yield from (p for p in paths if f"/{p.parent.name}/{p.stem}".endswith(f"/{name}"))
    try:
        yield output_files(folder.path)[number]
    except (UserError, IndexError):
        return
