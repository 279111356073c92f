"""HDF5 sessions as batches: read once, held once on the device, drawn by index."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from ..data import (
    SPLITS,
    DataWarning,
    SessionData,
    absolute_pattern,
    find_sessions,
    read_session,
    session_of,
    slow_reads,
    warnings_for,
)
from ..data.memory import default_bound
from ..errors import UserError, one_of, whole
from ..progress import html_table
from .batches import (
    Draw,
    PackedMask,
    SessionDataset,
    SessionTensors,
    StreamedSession,
    plan_memory,
)
from .behavior import BehaviorFacts, dimensions, facts_of
from .given import are_paths, arrays_of, memory_sessions
from .loaders import Lengths, OrderedLoader, SessionLoader, TrainLoader, in_length_order
from .rows import (
    Indices,
    SessionSizes,
    check_pairs,
    check_together,
    file_rows,
    redrawn_rows,
    sizes_of,
    sv_mask,
)


class BasicDataModule(pl.LightningDataModule):
    """Data files, one per session, as batches of trials.

    A step of a loader is a dict from session number to (`SessionBatch`, extras), where extras are
    the batch keys' tensors in the order of `batch_keys`. Nothing is read before `setup`, which
    the Trainer calls and which `sessions`, `sizes` and the loaders call when needed.

    Parameters
    ----------
    datafile_pattern : str, path or sequence of these; or arrays or an object in memory
        Path or glob pattern of the files. Sessions are numbered in sorted path order; of several
        patterns, one after another. Without files: arrays by the keys of a data file, such as
        ``prepare(source, None, ...)`` gives, or a sequence of these; or a recording in memory as
        `lfads_torch.prep.prepare` takes it (a TsGroup of pynapple, arrays of spike times and the
        like), with `prep`.
    batch_keys : sequence of str
        Extra per-trial arrays that travel with the batch, named without their split.
    attr_keys : sequence of str
        Further arrays that become attributes of the data module by their own name. Of several
        sessions that is the last one's array; all are in ``sessions[i].arrays``.
    batch_size : int
        Trials per step, divided equally among the sessions.
    reshuffle_tv_seed : int, optional
        When given, train and valid trials are pooled and the split is drawn anew, as scikit-learn's
        `train_test_split` draws it.
    reshuffle_tv_ratio : float or int, optional
        Fraction of the pooled trials that go to validation, or their number; by default the file's
        number.
    sv_rate : float
        Fraction of the entries of `encod_data` held out for sample validation.
    sv_seed : int
        Seed of that mask, which is drawn once per session and split.
    dm_ic_enc_seq_len : int
        First bins that the mask never holds out.
    fit_sessions : sequence of str, optional
        Names of the sessions that are trained and validated on; by default all. Sampling still
        covers all.
    max_memory_gb : float, optional
        Memory in 10^9 bytes that the arrays of all sessions may take; by default half of what is
        available when they are read. The smallest sessions are held, those beyond are streamed:
        their trials are read from the file batch by batch, which must stay as it is. Batches are
        the same either way. 0 streams all.
    group_by_length : bool
        Where the trials of all sessions differ in length, train and validate on batches of trials
        of like lengths that end with their longest trial, so that padding costs next to nothing
        (`docs/missing.md`). False gives batches of all bins, trials of all lengths mixed.
    prep : mapping, optional
        How to prepare a recording in memory: the options of `lfads_torch.prep.prepare` by name,
        such as ``{"bin_ms": 10, "trials": epochs, "align": "start_time:0:500"}``.
    data_paths : sequence of str, optional
        Name of `datafile_pattern` in version 1.0.0 of the existing implementation.

    Raises
    ------
    UserError
        Here or from `setup`: arguments out of range, more sessions than trials per batch.
    DataError
        From `setup`: files that cannot be read, are faulty or do not fit together.
    """

    def __init__(
        self,
        datafile_pattern: Any = None,
        batch_keys: Sequence[str] = (),
        attr_keys: Sequence[str] = (),
        batch_size: int = 64,
        reshuffle_tv_seed: int | None = None,
        reshuffle_tv_ratio: float | None = None,
        sv_rate: float = 0.0,
        sv_seed: int = 0,
        dm_ic_enc_seq_len: int = 0,
        fit_sessions: Sequence[str] | None = None,
        max_memory_gb: float | None = None,
        group_by_length: bool = True,
        prep: Mapping[str, Any] | None = None,
        data_paths: Sequence[str | os.PathLike[str]] | None = None,
    ) -> None:
        super().__init__()
        given = data_paths if datafile_pattern is None else datafile_pattern
        if given is None:
            raise UserError("datafile_pattern is missing; give the path or pattern of the data")
        patterns = [given] if isinstance(given, str | os.PathLike) else given
        self._memory = None if are_paths(patterns) else memory_sessions(given)
        self._prep = dict(prep or {})
        # Absolute from here on, whatever becomes of the working directory.
        self.datafile_patterns = (
            [absolute_pattern(pattern) for pattern in patterns]
            if self._memory is None
            else [f"session{number}" for number in range(len(self._memory))]
        )
        self.batch_keys, self.attr_keys = _names(batch_keys), _names(attr_keys)
        self.batch_size = whole("batch_size", batch_size, least=1)
        self.reshuffle_tv_seed = reshuffle_tv_seed
        self.reshuffle_tv_ratio = reshuffle_tv_ratio
        self.sv_rate = float(sv_rate)
        self.sv_seed = whole("sv_seed", sv_seed, least=0)
        self.dm_ic_enc_seq_len = whole("dm_ic_enc_seq_len", dm_ic_enc_seq_len, least=0)
        self.fit_sessions = None if fit_sessions is None else _names(fit_sessions)
        self.max_memory_gb = None if max_memory_gb is None else float(max_memory_gb)
        self.group_by_length = bool(one_of("group_by_length", group_by_length, (True, False)))
        self._check_arguments()
        # Lightning compares what it saves with every argument, which arrays do not bear.
        datafile_pattern = data_paths = None
        # For callbacks and checkpoints; the loggers record the composed configuration instead.
        self.save_hyperparameters(
            {
                "datafile_pattern": self.datafile_patterns[0]
                if isinstance(given, str | os.PathLike)
                else list(self.datafile_patterns),
                "batch_keys": list(self.batch_keys),
                "attr_keys": list(self.attr_keys),
                "batch_size": self.batch_size,
                "reshuffle_tv_seed": reshuffle_tv_seed,
                "reshuffle_tv_ratio": reshuffle_tv_ratio,
                "sv_rate": self.sv_rate,
                "sv_seed": self.sv_seed,
                "dm_ic_enc_seq_len": self.dm_ic_enc_seq_len,
                "fit_sessions": self.fit_sessions and list(self.fit_sessions),
                "max_memory_gb": self.max_memory_gb,
                "group_by_length": self.group_by_length,
            },
            logger=False,
        )
        self._sessions: list[SessionData] = []
        self._tensors: list[SessionTensors | StreamedSession] = []
        self._rows: list[dict[str, Indices]] = []
        self._behavior: BehaviorFacts | None = None
        self._passes = 0

    def _check_arguments(self) -> None:
        if not 0 <= self.sv_rate < 1:
            raise UserError(f"sv_rate={self.sv_rate}; legal is at least 0 and below 1.")
        if self.max_memory_gb is not None and not self.max_memory_gb >= 0:
            raise UserError(
                f"max_memory_gb={self.max_memory_gb}; legal is a number of at least 0, or nothing "
                f"for half of the available memory."
            )
        if self.reshuffle_tv_ratio is not None:
            if self.reshuffle_tv_seed is None:
                raise UserError(
                    f"reshuffle_tv_ratio={self.reshuffle_tv_ratio} without reshuffle_tv_seed; "
                    f"give a seed to redraw the split, or leave both out to keep the file's."
                )
            is_number = isinstance(self.reshuffle_tv_ratio, int)
            if not (self.reshuffle_tv_ratio >= 1 if is_number else 0 < self.reshuffle_tv_ratio < 1):
                raise UserError(
                    f"reshuffle_tv_ratio={self.reshuffle_tv_ratio}; legal is a fraction between 0 "
                    "and 1, that of the trials for validation, or their whole number."
                )
        if self.reshuffle_tv_seed is not None:
            self.reshuffle_tv_seed = whole("reshuffle_tv_seed", self.reshuffle_tv_seed, least=0)
            if self.attr_keys:
                raise UserError(
                    f"attr_keys {list(self.attr_keys)} with reshuffle_tv_seed: such arrays cannot "
                    "follow a redrawn split; leave out one of the two."
                )
        taken = [key for key in self.attr_keys if hasattr(type(self), key) or key in vars(self)]
        if taken:
            raise UserError(
                f"attr_keys {taken} would overwrite attributes of {type(self).__name__}; rename "
                f"these arrays in the files."
            )

    # ---- reading -------------------------------------------------------------------------------

    def setup(self, stage: str | None = None) -> None:
        """Read and check all files; further calls do nothing.

        Warns (`DataWarning`) of silent channels, trials without spikes, trials that are both in
        train and valid, likely misspelt keys, and batches larger than the data.

        Parameters
        ----------
        stage : str, optional
            Of no account; the Trainer passes it.
        """
        if self._sessions:
            return
        if self._memory is not None:
            self._check_batch_size(len(self._memory))
            arrays = [arrays_of(one, self._prep, self.attr_keys) for one in self._memory]
            named = zip(arrays, map(Path, self.datafile_patterns), strict=True)
            self.hold(session_of(one, path, self.batch_keys) for one, path in named)
            self._set_attributes()
            return
        paths = find_sessions(self.datafile_patterns)
        gb = self.max_memory_gb
        bound = default_bound() if gb is None else gb * 1e9
        self._check_batch_size(len(paths))
        held = plan_memory(paths, self.batch_keys, self.sv_rate, bound)
        self.hold(
            (
                read_session(path, self.batch_keys, self.attr_keys, in_memory=in_memory)
                for path, in_memory in zip(paths, held, strict=True)
            ),
            held,
        )
        self._set_attributes()

    def _set_attributes(self) -> None:
        for key in self.attr_keys:
            setattr(self, key, self._sessions[-1].arrays[key])

    def hold(self, given: Iterable[SessionData], in_memory: Sequence[bool] = ()) -> None:
        """Take sessions as the data: check that they fit together, and draw their splits.

        Parameters
        ----------
        given : iterable of SessionData
        in_memory : sequence of bool, optional
            For each session, whether its arrays are held; by default all are.

        Raises
        ------
        DataError, UserError
        """
        sessions = []
        for session in given:
            sessions.append(session)
            # At once: what is noticed of one file may explain an error about it or the next.
            for text in filter(None, [*warnings_for(session), slow_reads(session)]):
                warnings.warn(text, DataWarning, stacklevel=3)
        self._check_batch_size(len(sessions))
        check_together(sessions)
        encod_len = sessions[0].pooled["encod_data"].shape[1]
        if self.dm_ic_enc_seq_len > encod_len:
            raise UserError(
                f"dm_ic_enc_seq_len={self.dm_ic_enc_seq_len}, but the files have {encod_len} bins "
                f"to read; legal is 0 to {encod_len}."
            )
        self._rows = [file_rows(session) for session in sessions]
        if (seed := self.reshuffle_tv_seed) is not None:
            for session in sessions:
                check_pairs(session)
            self._rows = [
                redrawn_rows(session, rows, seed, self.reshuffle_tv_ratio)
                for session, rows in zip(sessions, self._rows, strict=True)
            ]
        held = in_memory or [True] * len(sessions)
        self._tensors = [
            self._ready(number, session, is_held)
            for number, (session, is_held) in enumerate(zip(sessions, held, strict=True))
        ]
        self._sessions, self._behavior = sessions, None

    def _check_batch_size(self, n_sessions: int) -> None:
        if n_sessions > self.batch_size:
            raise UserError(
                f"batch_size={self.batch_size} is less than the {n_sessions} sessions that match "
                f"{', '.join(self.datafile_patterns)}; each step takes at least one trial of each "
                f"session: raise batch_size to {n_sessions} or more."
            )

    def _ensure(self) -> None:
        # A data module of your own may override `setup`, and read anew at each call of it.
        if not self._sessions:
            self.setup()

    def _ready(
        self, number: int, session: SessionData, in_memory: bool
    ) -> SessionTensors | StreamedSession:
        mask = (self.sv_rate, [self.sv_seed, number], self.dm_ic_enc_seq_len)
        train = self._rows[number]["train"]
        if in_memory:
            return SessionTensors(session, self.batch_keys, sv_mask(session, *mask), train)
        packed = PackedMask(session, *mask) if self.sv_rate else None
        return StreamedSession(session, self.batch_keys, packed, train)

    # ---- what was read -------------------------------------------------------------------------

    @property
    def sessions(self) -> list[SessionData]:
        """The sessions as read, trials as split in the files, in sorted path order."""
        self._ensure()
        return self._sessions

    @property
    def n_sessions(self) -> int:
        """Number of sessions."""
        return len(self.sessions)

    def _repr_html_(self) -> str:
        # To look at an object must not read its files.
        sizes = zip(self.session_names, self.sizes, strict=True) if self._sessions else ()
        facts = {
            name: f"{s.n_train} + {s.n_valid} trials x {s.recon_len} bins x {s.recon_dim} channels"
            for name, s in sizes
        }
        return html_table("Data", {"files": ", ".join(self.datafile_patterns), **facts})

    @property
    def session_names(self) -> list[str]:
        """File names without ending; with their folder's name where two are alike."""
        names = [session.name for session in self.sessions]
        return [
            f"{session.path.parent.name}/{name}" if names.count(name) > 1 else name
            for session, name in zip(self.sessions, names, strict=True)
        ]

    def fit_numbers(self) -> list[int]:
        """Numbers of the sessions that are trained and validated on.

        Raises
        ------
        UserError
            If `fit_sessions` names a session that there is not.
        """
        names = self.session_names
        if self.fit_sessions is None:
            return list(range(len(names)))
        unknown = [name for name in self.fit_sessions if name not in names]
        if unknown or not self.fit_sessions:
            raise UserError(
                f"fit_sessions={list(self.fit_sessions)}; legal are one or more of the sessions "
                f"{', '.join(names)}."
            )
        return sorted({names.index(name) for name in self.fit_sessions})

    @property
    def sizes(self) -> list[SessionSizes]:
        """Channels, bins and trials of each session."""
        return [
            sizes_of(session, rows) for session, rows in zip(self.sessions, self._rows, strict=True)
        ]

    @property
    def behavior_dim(self) -> int:
        """Dimensions of behaviour, the same in all sessions; an error where none is read."""
        return dimensions(self.sessions)

    @property
    def behavior_facts(self) -> BehaviorFacts:
        """Behaviour of the trials that are trained on: names, mean and spread of its dimensions."""
        if self._behavior is None:
            numbers, rows = self.fit_numbers(), self.all_rows()
            chosen = [self.sessions[n] for n in numbers]
            self._behavior = facts_of(chosen, [rows[n] for n in numbers])
        return self._behavior

    @property
    def train_inds(self) -> list[Indices]:
        """For each session, where its training trials stand among the file's train + valid."""
        return self._split_inds("train")

    @property
    def valid_inds(self) -> list[Indices]:
        """For each session, where its validation trials stand among the file's train + valid."""
        return self._split_inds("valid")

    def _split_inds(self, split: str) -> list[Indices]:
        self._ensure()
        return [rows[split] for rows in self._rows]

    # ---- batches -------------------------------------------------------------------------------

    def train_dataloader(self, shuffle: bool = True) -> TrainLoader | OrderedLoader:
        """Return shuffled batches, see `TrainLoader`; or each training trial once, in order."""
        if not shuffle:
            return self.split_loader("train", session=self.fit_numbers())
        numbers, rows = self.fit_numbers(), self.all_rows()
        share = max(1, self.batch_size // len(numbers))
        train = {number: rows[number]["train"] for number in numbers}
        return TrainLoader(self.ready_tensors(), train, share, self.begin_pass, self._grouped())

    def _grouped(self) -> Lengths | None:
        """Return the trials' lengths where batches have trials of like lengths, else None."""
        lengths: dict[int, Indices] = {}
        for number in self.fit_numbers() if self.group_by_length else ():
            ends, train = self.sessions[number].lengths, self.all_rows()[number]["train"]
            # Where all trials of one session are whole, so is every batch.
            if ends is None or ends[train].min() == self.sizes[number].recon_len:
                return None
            lengths[number] = ends
        return lengths or None

    def val_dataloader(self) -> OrderedLoader:
        """Each validation trial once; in the order of their lengths where these differ."""
        numbers, lengths = self.fit_numbers(), self._grouped()
        if lengths is None:
            return self.split_loader("valid", session=numbers)
        rows = {n: in_length_order(lengths[n], self.all_rows()[n]["valid"]) for n in numbers}
        share = max(1, self.batch_size // len(numbers))
        return OrderedLoader(self.ready_tensors(), [("valid", rows)], share, lengths)

    def test_dataloader(self) -> OrderedLoader:
        """Each test trial once; a `UserError` where no file has a test split."""
        return self.split_loader("test")

    def predict_dataloader(self) -> Any:
        """Return a loader for each session and split, which gives each trial once, in order.

        A Trainer that predicts gets one loader of all instead: train, valid, then test, no batch
        of two splits.

        Returns
        -------
        dict of int to dict of str to iterable, or OrderedLoader
            ``predict_dataloader()[session]["valid"]`` gives pairs of `SessionBatch` and extras.
        """
        if self.trainer is not None and self.trainer.predicting:
            named = [s for s in SPLITS if any(s in rows for rows in self.all_rows())]
            return self.split_loader(named)
        return {
            number: {
                split: SessionLoader(self.split_loader(split, session=number), number)
                for split in rows
                if split in self._splits_of_all()
            }
            for number, rows in enumerate(self.all_rows())
        }

    def _splits_of_all(self) -> list[str]:
        return [s for s in SPLITS if all(s in rows for rows in self.all_rows())]

    @property
    def train_data(self) -> list[Draw]:
        """For each session, all its training trials: a `SessionBatch` and a tuple of extras."""
        return self._all_trials("train")

    @property
    def valid_data(self) -> list[Draw]:
        """For each session, all its validation trials."""
        return self._all_trials("valid")

    @property
    def test_data(self) -> list[Draw]:
        """For each session, all its test trials; no such attribute unless all files have some."""
        if "test" not in self._splits_of_all():
            raise AttributeError("not every data file has a test split, so there is no test_data")
        return self._all_trials("test")

    def _all_trials(self, split: str) -> list[Draw]:
        trials = []
        for tensors, rows, session in zip(
            self.ready_tensors(), self.all_rows(), self.sessions, strict=True
        ):
            chosen = torch.from_numpy(rows[split]).to(tensors.row_device)
            batch, extras = tensors.batch(chosen, split)
            if not session.splits[split].has_recon:
                batch = batch._replace(recon_data=batch.recon_data[:, :0, :0])
            trials.append((batch, extras))
        return trials

    @property
    def train_ds(self) -> list[SessionDataset]:
        """`train_data` as data sets of torch."""
        return [SessionDataset(*trials) for trials in self.train_data]

    @property
    def valid_ds(self) -> list[SessionDataset]:
        """`valid_data` as data sets of torch."""
        return [SessionDataset(*trials) for trials in self.valid_data]

    @property
    def test_ds(self) -> list[SessionDataset]:
        """`test_data` as data sets of torch."""
        return [SessionDataset(*trials) for trials in self.test_data]

    def split_loader(
        self,
        split: str | Sequence[str],
        batch_size: int | None = None,
        session: int | Sequence[int] | None = None,
    ) -> OrderedLoader:
        """Load each trial of a split once, in the order of the file.

        Parameters
        ----------
        split : {"train", "valid", "test", "select"} or sequence of these
        batch_size : int, optional
            Trials per step, divided among the sessions; by default the data module's.
        session : int or sequence of int, optional
            Only this session or these; by default all.

        Returns
        -------
        OrderedLoader
            A session that has run out of trials is absent from a step's dict.

        Raises
        ------
        UserError
            If there is no such split or session.
        """
        splits = [split] if isinstance(split, str) else list(split)
        for name in splits:
            if name not in SPLITS:
                raise UserError(f"split={name!r}; legal are {', '.join(SPLITS)}.")
            if not any(name in rows for rows in self.all_rows()):
                raise UserError(
                    f"No data file has a {name!r} split: add '{name}_encod_data' to "
                    f"{', '.join(str(s.path) for s in self.sessions)}."
                )
        asked = range(self.n_sessions) if session is None else session
        numbers: Sequence[int] = [asked] if isinstance(asked, int) else asked
        if not set(numbers) <= set(range(self.n_sessions)):
            raise UserError(f"session={session}; legal are 0 to {self.n_sessions - 1}.")
        total = self.batch_size if batch_size is None else whole("batch_size", batch_size, least=1)
        rows = self.all_rows()
        parts = [(s, {n: rows[n][s] for n in numbers if s in rows[n]}) for s in splits]
        return OrderedLoader(self.ready_tensors(), parts, max(1, total // len(numbers)))

    def all_rows(self) -> list[dict[str, Indices]]:
        """Return the rows of each session's pooled arrays by split, which may be redrawn."""
        self._ensure()
        return self._rows

    @property
    def device(self) -> torch.device:
        """Device that batches are on."""
        self._ensure()
        return self._tensors[0].device

    def to(self, device: torch.device | str) -> BasicDataModule:
        """Move the data to a device; with a Trainer this happens by itself."""
        self._ensure()
        for tensors in self._tensors:
            tensors.to(torch.device(device))
        return self

    @property
    def streamed(self) -> list[bool]:
        """For each session, whether its trials are read from the file batch by batch."""
        self._ensure()
        return [isinstance(tensors, StreamedSession) for tensors in self._tensors]

    def ready_tensors(self) -> list[SessionTensors | StreamedSession]:
        """Return the sessions' tensors, on the Trainer's device where there is a Trainer."""
        self._ensure()
        if self.trainer is not None:
            if self.trainer.world_size > 1:
                raise UserError(
                    f"The Trainer uses {self.trainer.world_size} processes, but the data are held "
                    f"on one device; set trainer.devices=1 and trainer.num_nodes=1."
                )
            self.to(self.trainer.strategy.root_device)
        return self._tensors

    def begin_pass(self) -> int:
        """Epoch of the training pass that begins: the Trainer's, else a count of passes."""
        if self.trainer is not None:
            return int(self.trainer.current_epoch)
        self._passes += 1
        return self._passes - 1


def _names(keys: Sequence[str] | str | None) -> tuple[str, ...]:
    return (keys,) if isinstance(keys, str) else tuple(keys or ())
