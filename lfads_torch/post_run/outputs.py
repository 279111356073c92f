"""What a run left behind, read back as named arrays: `load_outputs`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ..data import SPLITS, Order, bin_width_ms, open_h5, read_order
from ..data.find import warn_of_other_files
from ..data.tree import unwritten
from ..errors import DataError, UserError, did_you_mean
from ..files import absent, expanded
from ..folder import lacks
from .trials import DIMENSIONS, WRITTEN, Trials

Array = NDArray[Any]

_ENSEMBLE = "lfads_output_ensemble"
_NUMBERED = re.compile(r"_sess(\d+)$")


class SessionOutputs:
    """The outputs of one session; ``train``, ``valid`` and ``test`` are its trials.

    Attributes
    ----------
    path : Path
        The file.
    name : str
        The session: its data file's name without ending.
    attrs : dict
        The file's attributes, such as ``num_samples``.
    keys : tuple of str
        All keys of the file; those that are of no split are read with `read`.
    bin_ms : float or None
        Bin width in milliseconds, where known.
    splits : tuple of str
        Splits that have outputs.
    """

    def __init__(self, path: Path, bin_ms: float | None = None) -> None:
        self.path = path
        # Keys and shapes alone, and the file is closed again: many runs can be kept at hand.
        with open_h5(path) as file:
            warn_of_other_files(file)
            self.attrs: dict[str, Any] = dict(file.attrs)
            _check_arrays(file)
            shapes = {k: v.shape or () for k, v in file.items() if isinstance(v, h5py.Dataset)}
            known = [file.attrs, *(file[k].attrs for k in shapes if k.endswith("_recon_data"))]
            widths = [width for width in map(bin_width_ms, known) if width is not None]
        self.keys = tuple(shapes)
        self._shapes: dict[str, tuple[int, ...]] = shapes
        self.splits = tuple(s for s in SPLITS if f"{s}_output_params" in shapes)
        if not self.splits:
            raise DataError(
                f"{path} holds no model output (it lacks 'train_output_params'); name a run "
                "folder, or a file that `lfads sample` wrote"
            )
        name = str(self.attrs.get("session_name", path.stem))
        self.name = name.encode(errors="backslashreplace").decode()  # bytes that are no text
        self.bin_ms = float(bin_ms) if bin_ms is not None else next(iter(widths), None)
        self._trials: dict[str, Trials] = {}

    @property
    def train(self) -> Trials:
        """Training trials."""
        return self.trials("train")

    @property
    def valid(self) -> Trials:
        """Validation trials."""
        return self.trials("valid")

    @property
    def test(self) -> Trials:
        """Test trials, where the file has them."""
        return self.trials("test")

    def trials(self, split: str) -> Trials:
        """Return the trials of a split.

        Raises
        ------
        UserError
            If the split has no outputs.
        """
        if split not in self.splits:
            raise UserError(
                f"{self.path} has no outputs for split {split!r}; legal are "
                f"{', '.join(self.splits)}"
            )
        if split not in self._trials:
            self._trials[split] = Trials(self, [split])
        return self._trials[split]

    def merged(self, splits: Sequence[str] | None = None) -> Trials:
        """Return trials of several splits, in the order in which they were recorded.

        Parameters
        ----------
        splits : sequence of str, optional
            By default all that have ``{split}_inds``, the trials' positions in the recording.

        Raises
        ------
        DataError
            If the file lacks ``{split}_inds``, or two trials have the same position.
        """
        chosen = [s for s in self.splits if f"{s}_inds" in self.keys] if splits is None else splits
        lacking = [s for s in chosen if f"{s}_inds" not in self.keys]
        if lacking or not chosen:
            named = ", ".join(f"'{split}_inds'" for split in lacking or self.splits)
            raise DataError(
                f"{self.path} does not say where its trials stood before they were split: add "
                f"{named} (a whole number per trial) to the data file and sample again, or use "
                "the splits one by one"
            )
        positions = {split: np.asarray(self.read(f"{split}_inds")) for split in chosen}
        for split, inds in positions.items():
            if inds.shape != (self.n_trials(split),):
                raise DataError(
                    f"{self.path}: '{split}_inds' has shape {inds.shape}; legal is one whole "
                    f"number for each of the {self.n_trials(split)} trials"
                )
        inds = np.concatenate(list(positions.values()))
        values, times = np.unique(inds, return_counts=True)
        if (times > 1).any():
            raise DataError(
                f"{self.path}: position {values[times > 1][0]} is that of "
                f"{times[times > 1][0]} trials in the 'inds' of {', '.join(chosen)}; each trial "
                "needs its own"
            )
        return Trials(self, chosen, np.argsort(inds, kind="stable"))

    def read(self, key: str) -> Array:
        """Read any key of the file, such as ``psth``.

        Raises
        ------
        DataError
            If the file has no such key.
        """
        if key not in self._shapes:
            raise DataError(
                f"{self.path} has no key {key!r}; {did_you_mean(key, self.keys, limit=40)}"
            )
        with open_h5(self.path) as file:
            return np.asarray(file[key][()])

    def n_trials(self, split: str) -> int:
        """Return the number of trials of a split."""
        shape: tuple[int, ...] = self._shapes[f"{split}_output_params"]
        return shape[0]

    def names_of(self, split: str) -> list[str]:
        """Return the names, without the split, of arrays that have a row for each of its trials."""
        prefix, n_trials = f"{split}_", self.n_trials(split)
        return [
            key.removeprefix(prefix)
            for key, shape in self._shapes.items()
            if key.startswith(prefix) and shape[:1] == (n_trials,)
        ]

    @property
    def read_sizes(self) -> tuple[int, int]:
        """Bins and channels that the encoders read."""
        inferred = self._shapes[f"{self.splits[0]}_output_params"]
        shape = self._shapes.get(f"{self.splits[0]}_encod_data", inferred)
        return int(shape[1]), int(shape[2])

    @cached_property
    def order(self) -> Order:
        """Where the trials of all splits lie in the recording."""
        sizes = {split: self.n_trials(split) for split in self.splits}
        return read_order(sizes, self.keys, self.read)

    @cached_property
    def counts(self) -> bool:
        """Whether what was modelled are counts: observed values are whole numbers, never negative.

        Means that are negative speak against it too: no model of spikes infers them.
        """
        # Looked at and not asked of the model: an output file says nothing of its likelihood.
        for trials in map(self.trials, self.splits):
            data = trials["recon_data"] if "recon_data" in trials else trials["encod_data"]
            if data.dtype.kind not in "bu" and bool(
                ((data < 0) | (np.isfinite(data) & (data != np.trunc(data)))).any()
            ):
                return False
            if bool((trials["output_params"] < 0).any()):
                return False
        return True

    def __repr__(self) -> str:
        counts = ", ".join(f"{self.n_trials(s)} {s}" for s in self.splits)
        return f"<outputs of session {self.name}: {counts} trials, {self.path}>"


def _check_arrays(file: h5py.File) -> None:
    """Raise `DataError` where an array is not what a model or a data module writes by its name."""
    sizes: dict[str, tuple[int, str]] = {}
    for key, item in file.items():
        split, _, name = key.partition("_")
        if isinstance(item, h5py.Dataset) and (why := unwritten(item)):
            raise DataError(f"{file.filename}: '{key}' {why}")
        if split not in SPLITS or name not in WRITTEN:
            continue
        axes = ("trial", *DIMENSIONS[name])
        is_array = isinstance(item, h5py.Dataset) and item.dtype.kind in "buif"
        if not is_array or len(item.shape or ()) != len(axes):
            raise DataError(
                f"{file.filename}: '{key}' is no array of numbers, {' x '.join(axes)}; sample the "
                "run again, or delete this key"
            )
        for axis, size in zip(axes[1:], item.shape[1:], strict=True):
            first, other = sizes.setdefault(axis, (size, key))
            if size != first:
                raise DataError(
                    f"{file.filename}: '{key}' has {axis} {size}, '{other}' {first}; they must "
                    "agree. Sample the run again"
                )


def whole_attribute(attrs: Mapping[str, Any], name: str) -> int | None:
    """Return an attribute of a file that is a whole number, None where it is none."""
    value = np.asarray(attrs.get(name))
    if value.shape or value.dtype.kind not in "iuf" or not np.isfinite(value):
        return None
    return int(value)


class RunOutputs:
    """The outputs of a run, by session.

    ``outputs[0]`` or ``outputs["name"]`` is a session (`SessionOutputs`). Of a run on a single
    session, ``outputs.valid``, ``outputs.merged()`` and the like are that session's.

    Attributes
    ----------
    path : Path
        What was named.
    sessions : tuple of SessionOutputs
    """

    def __init__(self, path: Path, sessions: Sequence[SessionOutputs]) -> None:
        self.path = path
        self.sessions = tuple(sessions)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the sessions."""
        return tuple(session.name for session in self.sessions)

    def __len__(self) -> int:
        return len(self.sessions)

    def __iter__(self) -> Iterator[SessionOutputs]:
        return iter(self.sessions)

    def __getitem__(self, session: int | str) -> SessionOutputs:
        if isinstance(session, str):
            if session not in self.names:
                raise UserError(
                    f"{self.path} has no session {session!r}; {did_you_mean(session, self.names)}"
                )
            return self.sessions[self.names.index(session)]
        return self.sessions[session]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "sessions":
            raise AttributeError(name)
        if len(self.sessions) == 1:
            return getattr(self.sessions[0], name)
        if hasattr(SessionOutputs, name) or hasattr(self.sessions[0], name):
            raise AttributeError(
                f"{self.path} has {len(self.sessions)} sessions, each with its own {name!r}: "
                f"choose one, outputs[0] or outputs[{self.names[0]!r}]"
            )
        raise AttributeError(f"outputs have no attribute {name!r}")

    def __repr__(self) -> str:
        return f"<outputs of {self.path}: {', '.join(self.names)}>"


def load_outputs(run: str | Path, *, bin_ms: float | None = None) -> RunOutputs:
    """Read what a run inferred of its trials.

    Nothing but the files' keys and shapes is read at once; an array is read when it is first
    used.

    Parameters
    ----------
    run : str or Path
        Run folder, an output file, or the name that was given to ``lfads sample --output``.
    bin_ms : float, optional
        Bin width in milliseconds, where the files do not say it.

    Returns
    -------
    RunOutputs

    Raises
    ------
    UserError
        If the run has no outputs.
    DataError
        If a file cannot be read, or is no output file.

    Examples
    --------
    >>> outputs = load_outputs("runs/my_run")  # doctest: +SKIP
    >>> outputs.valid.rates.shape  # trials x bins x channels, spikes/s  # doctest: +SKIP
    (377, 30, 100)
    """
    if bin_ms is not None and not bin_ms > 0:
        raise UserError(f"bin_ms is {bin_ms}; legal is a width above 0, in milliseconds")
    place = expanded(run).absolute()
    return RunOutputs(place, [SessionOutputs(path, bin_ms) for path in output_files(place)])


def output_files(place: Path) -> list[Path]:
    """Find the output files of a run, in the order of its sessions."""
    if place.is_file():
        return [place]
    stem = "lfads_output" if place.is_dir() else place.stem
    folder = place if place.is_dir() else place.parent
    # A session's file may have a second name, which is a link, or a copy where no link could be.
    sessions: dict[Any, tuple[Any, Path]] = {}
    for path in sorted(folder.glob("*.h5"), key=lambda path: (path.is_symlink(), path.name)):
        of_ensemble = path.stem.startswith(f"{_ENSEMBLE}_") and stem != _ENSEMBLE
        if of_ensemble or not path.stem.startswith(f"{stem}_"):
            continue
        number = _session_number(path)
        sessions.setdefault(path.resolve() if number is None else number, (number, path))
    if sessions:
        ordered = sorted(sessions.values(), key=lambda pair: (pair[0] is None, pair[0] or 0))
        return [path for _, path in ordered]
    if place.is_dir():
        advice = f"train until the end, or run `lfads sample {place}`"
        raise lacks(place, "output file (lfads_output*.h5)", advice)
    raise UserError(f"{absent(place)}; name a run folder or an output file")


def _session_number(path: Path) -> int | None:
    """Return the number of the session that a file says it is of, by its contents or its name."""
    with open_h5(path) as file:
        number = whole_attribute(file.attrs, "session_number")
    match = _NUMBERED.search(path.stem)
    return number if number is not None else int(match[1]) if match else None
