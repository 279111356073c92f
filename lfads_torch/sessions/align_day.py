"""`lfads align`: a trained model on the neurons of another day, without labels.

Encoders, controller, generator, factors and day 0's decoder stay as they are; a read-in with an
aligner and a read-out are trained from several starts, stacked as a population, so that the states
are distributed as on day 0 and the new day's data are likely. Epoch and start are chosen by both,
on validation windows, without labels.
"""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..checkpoint import find_checkpoint, load_model
from ..consent import Trust, trust_of
from ..data import find_sessions
from ..data.fingerprint import check_unchanged, fingerprints
from ..datamodules import BasicDataModule
from ..errors import DataError, DataWarning, UserError
from ..files import expanded, write_whole
from ..folder import ALIGNMENT, CONFIG, STARTS, RunFolder
from ..online.session import session_number
from ..post_run.analysis import match_sessions
from ..processes import stoppable
from ..progress import Line, quiet_libraries
from ..runs.build import build
from ..runs.check_config import check_parts
from ..runs.compose import absolute_pattern, read_config
from ..search.seeds import train_seeds
from ..version import read_version
from .add import START, save_start
from .day_model import (
    CRITERION,
    REFERENCE,
    DayData,
    reference_state,
)
from .day_result import Alignment, Ending
from .day_start import (
    AlignOptions,
    Channels,
    Map,
    check_day,
    day0_map,
    day0_reference,
    day0_start,
    day_model,
    pcr_start,
    random_start,
    start_kinds,
    write_maps,
)
from .moments import SHARE, SHRINKAGE

__all__ = ["AlignOptions", "Alignment", "align_day", "resume_alignment"]

PATIENCE, CLIP = 30, 10.0
_FEW_WINDOWS = 200


def align_day(
    run: str | Path,
    day: str | Path,
    run_dir: str | Path,
    options: AlignOptions | None = None,
    *,
    best: bool = True,
    overwrite: bool = False,
    verbose: bool = False,
    trust: bool | Trust = False,
    accept_changed_data: bool = False,
) -> Alignment:
    """Align a trained model to another day's neurons, without labels of that day.

    A patent application, US 2022/0129071 A1, covers related methods; see ``docs/alignment.md``.

    Parameters
    ----------
    run : str or Path
        Run folder or checkpoint of day 0. Of an alignment, its origin is taken, with a warning.
    day : str or Path
        Data file of the new day: the same bins and windows, any channels.
    run_dir : str or Path
        The new run folder, an ordinary run of the one session.
    options : AlignOptions, optional
        Divergence, weights, starts, seeds and epochs.
    best : bool
        Begin from the best checkpoint, else from the last.
    overwrite : bool
        Delete the run that `run_dir` holds.
    verbose : bool
        Show what Lightning and torch say of themselves.
    trust : bool
        Consent to code outside this package that the run names.
    accept_changed_data : bool
        Go on although day 0's file holds other numbers than the model was trained on.

    Returns
    -------
    Alignment
        The new run, and the content of its ``alignment.json``.

    Raises
    ------
    UserError
        Where the day does not fit the model, or the read-in is not linear.

    References
    ----------
    The idea is that of Karpowicz et al. 2025 (doi:10.1038/s41467-025-59652-y).
    """
    options = options or AlignOptions()
    target = expanded(run_dir).absolute()
    origin = _origin(expanded(run).absolute())
    if target == RunFolder.around(origin).path:
        raise UserError(f"the new run needs a folder of its own, not {target}")
    [path] = _only(find_sessions(absolute_pattern(str(day), Path.cwd())), day)
    if RunFolder(target).kind != "none" and not overwrite:
        raise UserError(
            f"{target} already holds a run; go on with it (lfads align --resume {target}), delete "
            "it (--overwrite; overwrite=True) or name another"
        )
    about = {"run": str(origin), "day": str(path), "options": asdict(options), "best": best}
    with (
        stoppable(),
        RunFolder(target).claimed("aligning", overwrite=overwrite),
        quiet_libraries(verbose),
    ):
        begin = _Beginning(origin, path, options, best, trust, accept_changed_data)
        if overwrite:
            RunFolder(target).delete()
        return _align(target, about, begin, verbose, trust)


def resume_alignment(
    run_dir: str | Path,
    *,
    verbose: bool = False,
    trust: bool | Trust = False,
    accept_changed_data: bool = False,
) -> Alignment:
    """Go on with an alignment that was interrupted, with the settings that it began with."""
    target = expanded(run_dir).absolute()
    status = RunFolder(target).status
    about = status.get("alignment")
    if about is None:
        raise UserError(f"{target} holds no alignment to resume; begin one: lfads align RUN DAY.h5")
    if status["stage"] == "complete":
        raise UserError(f"the alignment in {target} is complete; --overwrite makes it anew")
    with (
        stoppable(),
        RunFolder(target).claimed("aligning", resume=True),
        quiet_libraries(verbose),
    ):
        begin = None
        if not (target / STARTS / ALIGNMENT).is_file():
            options = AlignOptions(**about["options"])
            places = Path(about["run"]), Path(about["day"])
            best = bool(about["best"])
            begin = _Beginning(*places, options, best, trust, accept_changed_data)
        return _align(target, about, begin, verbose, trust, accept_changed_data)


def _origin(place: Path) -> Path:
    """Return the run of day 0: that of an alignment, where this is one."""
    about = RunFolder.around(place).single.status.get("alignment")
    if about is None:
        return place
    origin = Path(about["run"])
    if not origin.exists():
        raise UserError(
            f"{place} is an alignment of {origin}, which is gone; alignments always go back to "
            "day 0: name its run"
        )
    warnings.warn(
        f"{place} is itself an alignment; its origin {origin} is aligned instead, because errors "
        "would add up from day to day",
        stacklevel=3,
    )
    return origin


def _only(paths: list[Path], day: Any) -> list[Path]:
    if len(paths) != 1:
        raise UserError(f"{day} names {len(paths)} files; give the file of one day")
    return paths


class _Beginning:
    """Day 0 and the new day, read and checked; `write` leaves the starts of all seeds."""

    def __init__(
        self,
        origin: Path,
        path: Path,
        options: AlignOptions,
        best: bool,
        trust: bool | Trust,
        accept_changed_data: bool,
    ) -> None:
        self.options, self.notes = options, list[str]()
        checkpoint = find_checkpoint(origin, best=best)
        if checkpoint is None:
            raise UserError(f"{origin} holds no checkpoint; name the run of day 0")
        self.checkpoint = checkpoint
        folder = RunFolder.around(checkpoint)
        if not (folder.path / CONFIG).is_file():
            raise UserError(f"{folder.path} has no {CONFIG}; name the run folder of day 0")
        trust = trust_of(folder.path / CONFIG, trust)
        self.config = read_config(folder.path, trust)
        check_parts(self.config, folder.path / CONFIG)
        self.model = load_model(checkpoint, trust=trust)
        self.number = session_number(options.session, self.model, origin)
        settings = {**self.config["datamodule"], "fit_sessions": None}
        self.known: BasicDataModule = build(settings, "datamodule")
        self.known.setup("fit")
        recorded = folder.status.get("data")
        check_unchanged(recorded, fingerprints(self.known), accept=accept_changed_data)
        self.index = match_sessions(self.model, self.known).index(self.number)
        self.origin = {
            "run": str(folder.path),
            "checkpoint": checkpoint.name,
            "checkpoint_sha256": _sha256(checkpoint),
            "session": self.known.session_names[self.index],
        }
        self.settings = {
            **{k: v for k, v in settings.items() if k not in ("attr_keys", "data_paths")},
            "datafile_pattern": [str(path)],
            "batch_keys": [],
            **{"reshuffle_tv_seed": None, "reshuffle_tv_ratio": None, "sv_rate": 0.0},
        }
        rest = {k: v for k, v in self.settings.items() if k != "_target_"}
        self.day = DayData(**rest)
        self.day.setup("fit")
        self.channels = Channels.of(self.day.sessions[0])
        check_day(self.day, self.channels, self.model, self.known.sessions[self.index])
        self._check_channels()

    def _check_channels(self) -> None:
        session, known = self.day.sessions[0], self.known.sessions[self.index]
        self.before = Channels.of(known)
        self.map = day0_map(self.model, self.number, self.before, self.origin["run"])
        if isinstance(self.model.readin[self.number], nn.Identity):
            self._note(
                f"{self.origin['run']} has no read-in, so the aligner has "
                f"{len(self.map.weight)} dimensions; a low-dimensional read-in (encod_data_dim of "
                "32 to 64) aligns better"
            )
        if (n_dead := int(self.channels.is_dead.sum())) > 0:
            self._note(
                f"{session.path.name}: {n_dead} of {len(self.channels.sd)} channels do not change "
                "in the training windows and read as 0"
            )
        sizes, old = self.day.sizes[0], self.known.sizes[self.index]
        if sizes.n_train < _FEW_WINDOWS:
            self._note(
                f"{session.path.name} has {sizes.n_train} training windows; below {_FEW_WINDOWS} "
                "an alignment is uncertain"
            )
        self.kinds = start_kinds(
            self.options.init,
            self.options.seeds,
            same_size=(sizes.encod_dim, sizes.recon_dim) == (old.encod_dim, old.recon_dim),
            conditions=self.options.conditions is not None,
        )
        if not self.options.epochs:
            self.kinds = self.kinds[:1]
            if self.kinds == ["random"]:
                raise UserError(
                    "--epochs 0 leaves the maps as they start, and random ones mean nothing; give "
                    "--conditions KEY with --init pcr, or epochs"
                )

    def _note(self, text: str) -> None:
        self.notes.append(text)
        warnings.warn(text, DataWarning, stacklevel=4)

    def write(self, folder: Path) -> None:
        """Write the start of each seed, and last the record of all."""
        options, session = self.options, self.day.sessions[0]
        Line().say("inferring the states of day 0")
        reference = day0_reference(self.model, self.known, self.index, self.number, options.states)
        q = len(reference.spectrum)
        n_states = self.day.sizes[0].n_train * self.day.sizes[0].recon_len
        if n_states < 10 * q:
            raise DataError(
                f"{session.path} has {n_states} training bins for {q} whitened dimensions; legal "
                f"are {10 * q} and more: record longer"
            )
        starts = {kind: self._start(kind) for kind in dict.fromkeys(self.kinds) if kind != "random"}
        state = {REFERENCE: reference_state(reference)}
        for k, kind in enumerate(self.kinds):
            seed = options.seed + k
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model = day_model(self.model, self.number, self.day, options)
            start = starts.get(kind) or random_start(self.map, model, session, seed)
            write_maps(model, start, self.channels)
            save_start(folder / f"seed{seed}", model, self._config(q), state)
        record = {
            "format": 1,
            "origin": self.origin,
            "day": {
                "file": str(session.path),
                "train_windows": self.day.sizes[0].n_train,
                "valid_windows": self.day.sizes[0].n_valid,
                "dead_channels": np.flatnonzero(self.channels.is_dead).tolist(),
            },
            "options": asdict(options),
            **{"q": q, "share": SHARE, "shrinkage": SHRINKAGE},
            "inits": {str(options.seed + k): kind for k, kind in enumerate(self.kinds)},
            "day0_spectrum": reference.spectrum.tolist(),
            "warnings": self.notes,
        }
        write_whole(folder / ALIGNMENT, json.dumps(record, indent=1) + "\n")

    def _start(self, kind: str) -> Map:
        if kind == "day0":
            like = day_model(self.model, self.number, self.day, self.options)
            return day0_start(self.map, like, self.before, self.channels)
        path = self.day.sessions[0].path
        paths = sorted([*(session.path for session in self.known.sessions), path])
        settings = {**self.settings, "datafile_pattern": [str(p) for p in paths]}
        everything: BasicDataModule = build(settings, "datamodule")
        everything.setup("fit")
        name = everything.session_names[paths.index(path)]
        assert self.options.conditions is not None
        return pcr_start(self.model, everything, name, self.options.conditions, self.channels)

    def _config(self, q: int) -> dict[str, Any]:
        """Return the configuration of the seeds' runs."""
        options, sizes = self.options, self.day.sizes[0]
        # The covariance of a batch needs some ten states for each dimension.
        batch = options.batch_size or max(64, -(-10 * q // sizes.recon_len))
        burn_in = options.epochs // 3  # the likelihood's ramp
        trainer = self.config.get("trainer") or {}
        accelerator = trainer.get("accelerator", "auto")
        target = "lfads_torch.sessions.day_model"
        return {
            "seed": options.seed,
            "select_by": f"valid/{CRITERION}",
            "trainer": {
                "_target_": "pytorch_lightning.Trainer",
                "accelerator": accelerator,
                "devices": 1,
                "max_epochs": max(1, options.epochs),
                "gradient_clip_val": CLIP,
                "num_sanity_val_steps": 0,
                "log_every_n_steps": 1,
                "enable_model_summary": False,
                "use_distributed_sampler": False,
            },
            "logger": {
                "csv": {
                    "_target_": "pytorch_lightning.loggers.CSVLogger",
                    **{"save_dir": ".", "name": "csv_logs", "version": ""},
                }
            },
            "callbacks": {
                "early_stopping": {
                    "_target_": "lfads_torch.extensions.tune.EarlyStoppingWithBurnInPeriod",
                    "burn_in_period": burn_in,
                    "monitor": f"valid/{CRITERION}",
                    **{"mode": "min", "patience": PATIENCE, "min_delta": 0.0},
                },
                "progress_bar": {"_target_": "lfads_torch.callbacks.EpochProgressBar"},
            },
            "datamodule": {
                **self.settings,
                "_target_": f"{target}.DayData",
                "batch_size": min(batch, sizes.n_train),
            },
            "model": {
                "_target_": f"{target}.alignment_model",
                "path": f"{START}/model.ckpt",
                "divergence": options.divergence,
                "states": options.states,
                "weight_moments": options.weight_moments,
                "weight_nll": options.weight_nll,
            },
            "posterior_sampling": {"fn": None},
        }


def _align(
    target: Path,
    about: dict[str, Any],
    begin: _Beginning | None,
    verbose: bool,
    trust: Any,
    accept_changed_data: bool = False,
) -> Alignment:
    """Write the starts where they are not there, train what is left, and make the run of it."""
    place, folder, began = target / STARTS, RunFolder(target), time.monotonic()
    facts: dict[str, Any] = {
        "version": read_version().version,
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
        **{k: v for k, v in folder.status.items() if k != "stage"},
        "alignment": about,
    }
    folder.write_status("training", **facts)
    if begin is not None:
        begin.write(place)
    record = json.loads((place / ALIGNMENT).read_text(encoding="utf-8"))
    seeds = [int(seed) for seed in record["inits"]]
    if AlignOptions(**record["options"]).epochs:
        goes_on = RunFolder(place).kind == "seeds"
        train_seeds(
            n_seeds=len(seeds),
            config_path=place / f"seed{seeds[0]}" / START / CONFIG,
            run_dir=place,
            resume=goes_on,
            verbose=verbose,
            trust=trust,
            accept_changed_data=accept_changed_data,
        )
    return Ending(target, record, seeds, facts, trust).write(time.monotonic() - began)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
