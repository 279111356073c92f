"""`lfads align`: a trained model on the neurons of another day, without labels.

Encoders, controller, generator, factors and day 0's decoder stay as they are; a read-in with an
aligner and a read-out are trained from several starts, stacked as a population, so that the states
are distributed as on day 0 and the new day's data are likely. Epoch and start are chosen by both,
on validation windows, without labels.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..checkpoint import find_checkpoint, load_model, load_weights, restore, write_checkpoint
from ..consent import Trust, trust_of
from ..data import find_sessions
from ..data.fingerprint import check_unchanged, fingerprints
from ..datamodules import BasicDataModule
from ..errors import DataError, DataWarning, UserError, number, one_of, whole
from ..files import expanded, write_whole
from ..folder import ALIGNMENT, CONFIG, LAST, METRICS, STARTS, RunFolder, read_csv_log
from ..model import LFADS
from ..online.session import session_number
from ..post_run.analysis import match_sessions
from ..processes import stoppable
from ..progress import Line, quiet_libraries
from ..provenance import provenance
from ..runs.build import build, pick_device
from ..runs.compose import absolute_pattern, read_config, write_config
from ..runs.resume import RUN_KEY
from ..runs.run import RunResult, parts_of
from ..runs.sampling import sample_run
from ..search.seeds import train_seeds
from ..version import read_version
from .add import START, save_start
from .day_model import (
    CRITERION,
    DIVERGENCE,
    DIVERGENCES,
    NLL,
    REFERENCE,
    STATES,
    DayAlignment,
    DayData,
    alignment_model,
    reference_state,
)
from .day_start import (
    INITS,
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
from .moments import SHARE, SHRINKAGE, StateMoments

PATIENCE, CLIP = 30, 10.0
_FEW_WINDOWS = 200
_NEAR, _LIKE = 0.05, 0.5  # a criterion is close to the best, states are alike


@dataclass(frozen=True)
class AlignOptions:
    """What `align_day` takes.

    Parameters
    ----------
    session : str, optional
        Day 0's session by name or number, of a run of several.
    divergence : {"kl", "coral", "mmd"}
        How far the whitened states of the new day are from day 0's.
    states : {"gen_states", "factors"}
        Of which states.
    weight_moments, weight_nll : float
        Weights of the divergence and of the mean loss of the new day's data.
    init : {"auto", "day0", "pcr", "random"}
        Where the maps start; "auto" tries what there is, and random starts.
    conditions : str, optional
        Per-trial key of conditions, for the start "pcr".
    seeds : int
        Starts that train side by side.
    epochs : int
        At most; 0 leaves the maps as they start, normalised.
    lr : float
        Learning rate of AdamW at the start.
    batch_size : int, optional
        Windows of a step; by default 64, or more where the covariance needs them.
    num_samples : int
        Posterior samples of the output file.
    seed : int
        The first seed.

    Raises
    ------
    UserError
        For options out of range.
    """

    session: str | None = None
    divergence: str = "kl"
    states: str = "gen_states"
    weight_moments: float = 1.0
    weight_nll: float = 10.0
    init: str = "auto"
    conditions: str | None = None
    seeds: int = 6
    epochs: int = 200
    lr: float = 1e-3
    batch_size: int | None = None
    num_samples: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        one_of("--divergence", self.divergence, DIVERGENCES)
        one_of("--states", self.states, STATES)
        one_of("--init", self.init, INITS)
        number("--weight-moments", self.weight_moments, least=0)
        number("--weight-nll", self.weight_nll, least=0)
        number("--lr", self.lr, above=0)
        whole("--seeds", self.seeds, least=1)
        whole("--epochs", self.epochs, least=0)
        whole("--samples", self.num_samples, least=1)
        whole("--seed", self.seed, least=0)
        if self.batch_size is not None:
            whole("--batch-size", self.batch_size, least=1)
        if not (self.weight_moments or self.weight_nll):
            raise UserError(
                "--weight-moments and --weight-nll are both 0; nothing would be trained"
            )


@dataclass
class Alignment:
    """The new run, and what ``alignment.json`` says of it."""

    result: RunResult
    record: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    def text(self) -> str:
        """Return the table of seeds, for a terminal."""
        lines = [["seed", "start", "epoch", "divergence", "NLL", "criterion", "like the chosen"]]
        for row in self.record["seeds"]:
            mark = " *" if row["seed"] == self.record["chosen"] else ""
            lines.append(
                [
                    f"{row['seed']}{mark}",
                    row["init"],
                    str(row["best_epoch"]),
                    f"{row['divergence']:.4f}",
                    f"{row['nll']:.5f}",
                    f"{row['criterion']:.4f}",
                    f"{row['likeness']:.2f}",
                ]
            )
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = [
            "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
            for line in lines
        ]
        before, after = (self.record["moments"][key] for key in ("before", "after"))
        table.append(
            f"divergence {before['divergence']:.4f} -> {after['divergence']:.4f}, "
            f"mean |mu| {before['mean_norm']:.3f} -> {after['mean_norm']:.3f} "
            f"({self.record['q']} whitened dimensions)"
        )
        return "\n".join(table)


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
    run_dir: str | Path, *, verbose: bool = False, trust: bool | Trust = False
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
            begin = _Beginning(*places, options, bool(about["best"]), trust, False)
        return _align(target, about, begin, verbose, trust)


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
    target: Path, about: dict[str, Any], begin: _Beginning | None, verbose: bool, trust: Any
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
        )
    return _Ending(target, record, seeds, facts, trust).write(time.monotonic() - began)


@dataclass
class _Measured:
    """What a model says of the validation windows of the day."""

    divergence: float
    nll: float
    criterion: float
    mean_norm: float
    spectrum: list[float]
    states: np.ndarray

    def summary(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self).items() if k != "states"}


class _Ending:
    """Choose among the seeds, and make an ordinary run folder of the chosen one."""

    def __init__(
        self,
        target: Path,
        record: dict[str, Any],
        seeds: list[int],
        facts: dict[str, Any],
        trust: Any,
    ) -> None:
        self.target, self.record, self.seeds, self.trust = target, record, seeds, trust
        self.facts, self.options = facts, AlignOptions(**record["options"])
        first = target / STARTS / f"seed{seeds[0]}"
        self.config = read_config(first / START, trust_of(first / START / CONFIG, trust))
        self.day = build(self.config["datamodule"], "datamodule")
        self.day.setup("fit")

    def write(self, seconds: float) -> Alignment:
        """Write the run folder, sample it, and return what there is to say."""
        before = {seed: self._measure(seed, None) for seed in self.seeds}
        trained = bool(self.options.epochs)
        paths = {seed: self._best(seed) if trained else None for seed in self.seeds}
        after = {seed: self._measure(seed, paths[seed]) for seed in self.seeds}
        chosen = min(self.seeds, key=lambda seed: after[seed].criterion)
        matrix = _likeness([after[seed].states for seed in self.seeds])
        likeness = dict(zip(self.seeds, matrix[self.seeds.index(chosen)], strict=True))
        rows = [
            self._row(seed, after[seed]) | {"likeness": float(likeness[seed])}
            for seed in self.seeds
        ]
        record = {
            **self.record,
            "chosen": chosen,
            "init": self.record["inits"][str(chosen)],
            "seeds": rows,
            "moments": {"before": before[chosen].summary(), "after": after[chosen].summary()},
            "likeness": matrix.tolist(),
            "seconds": round(self.record.get("seconds", 0.0) + seconds, 1),
        }
        notes = self._warnings(record, before[chosen], after, likeness)
        record["warnings"] = [*self.record["warnings"], *notes]
        checkpoint = self._write_run(chosen, paths[chosen])
        write_whole(self.target / ALIGNMENT, json.dumps(record, indent=1) + "\n")
        outputs = sample_run(self.target, num_samples=self.options.num_samples, trust=self.trust)
        names = [path.relative_to(self.target).as_posix() for path in outputs]
        RunFolder(self.target).write_status("complete", **self.facts, outputs=names)
        result = RunResult(self.target, checkpoint, self.target / LAST, outputs)
        return Alignment(result, record, record["warnings"])

    def _seed(self, seed: int) -> Path:
        return self.target / STARTS / f"seed{seed}"

    def _best(self, seed: int) -> Path:
        path = find_checkpoint(self._seed(seed), best=True)
        if path is None:
            raise UserError(
                f"{self._seed(seed)} holds no checkpoint: it diverged in its first epoch; lower "
                "--lr and begin anew (--overwrite)"
            )
        return path

    def _measure(self, seed: int, checkpoint: Path | None) -> _Measured:
        """Measure a seed's start, or its checkpoint."""
        settings = {k: v for k, v in self.config["model"].items() if k not in ("_target_", "path")}
        model = alignment_model(self._seed(seed) / START / "model.ckpt", **settings)
        if checkpoint is not None:
            restore(model, checkpoint)
        return measure(model.eval(), self.day)

    def _row(self, seed: int, after: _Measured) -> dict[str, Any]:
        row = {"seed": seed, "init": self.record["inits"][str(seed)], "best_epoch": 0}
        row |= {"divergence": after.divergence, "nll": after.nll, "criterion": after.criterion}
        if self.options.epochs:
            log = read_csv_log(self._seed(seed) / METRICS)
            epochs, values = log[f"valid/{CRITERION}"]
            row["best_epoch"] = int(epochs[np.nanargmin(values)])
            names = {"divergence": DIVERGENCE, "nll": NLL, "criterion": CRITERION}
            row["by_epoch"] = {
                name: [float(v) for v in log[f"valid/{key}"][1]] for name, key in names.items()
            }
        return row

    def _warnings(
        self,
        record: dict[str, Any],
        before: _Measured,
        after: dict[int, _Measured],
        likeness: dict[int, float],
    ) -> list[str]:
        notes = []
        chosen = record["chosen"]
        best = after[chosen]
        if self.options.epochs and best.divergence > before.divergence / 2:
            notes.append(
                f"the divergence fell from {before.divergence:.3g} to {best.divergence:.3g}, not "
                "to half: the day may not fit, or more epochs or seeds are needed"
            )
        limit = best.criterion + _NEAR * abs(best.criterion)
        rivals = [
            seed for seed in self.seeds if after[seed].criterion <= limit and likeness[seed] < _LIKE
        ]
        if rivals:
            notes.append(
                f"the answer is ambiguous: the criterion of seeds {', '.join(map(str, rivals))} is "
                f"within {_NEAR:.0%} of that of seed {chosen}, but their states differ (median "
                f"correlation below {_LIKE}); the matrix is in {ALIGNMENT}"
            )
        for text in notes:
            warnings.warn(text, stacklevel=4)
        return notes

    def _write_run(self, chosen: int, best: Path | None) -> Path:
        """Write the folded model, its configuration and its log; return the best checkpoint."""
        home = self._seed(chosen)
        last = home / LAST if best is not None else home / START / "model.ckpt"
        best = best or home / START / "model.ckpt"
        name = best.name if best.name != "model.ckpt" else "best-epoch=0000.ckpt"
        checkpoint = self.target / Path(LAST).parent / name
        checkpoint.parent.mkdir(exist_ok=True)
        data = fingerprints(self.day)
        for source, path in ((best, checkpoint), (last, self.target / LAST)):
            model = folded(load_model(source, trust=trust_of(home / START / CONFIG, self.trust)))
            state: dict[str, Any] = {"state_dict": model.state_dict(), RUN_KEY: {"data": data}}
            model.on_save_checkpoint(state)
            write_checkpoint(path, state)
        relative = checkpoint.relative_to(self.target).as_posix()
        config = {
            **self.config,
            "model": {"_target_": "lfads_torch.checkpoint.load_model", "path": relative},
            "datamodule": {
                **self.config["datamodule"],
                "_target_": "lfads_torch.datamodules.BasicDataModule",
            },
            "posterior_sampling": {
                "use_best_ckpt": True,
                "fn": {
                    "_target_": "lfads_torch.post_run.analysis.run_posterior_sampling",
                    "_partial_": True,
                    "filename": "lfads_output.h5",
                    "num_samples": self.options.num_samples,
                },
            },
        }
        write_config(self.target / CONFIG, config, parts_of(model))
        if (log := home / METRICS).is_file():
            (self.target / METRICS).parent.mkdir(exist_ok=True)
            shutil.copyfile(log, self.target / METRICS)
        self.facts |= {
            "seed": chosen,
            "finished": time.strftime("%Y-%m-%d %H:%M:%S"),
            "epochs": int(RunFolder(home).status.get("epochs", 0)),
            "environment": provenance(pick_device(self.config["trainer"], is_stacked=True)),
            "data": data,
            "best_checkpoint": relative,
        }
        RunFolder(self.target).write_status("sampling", **self.facts)
        return checkpoint


@torch.no_grad()
def measure(model: DayAlignment, day: Any) -> _Measured:
    """Compute divergence, likelihood, moments and states of the validation windows."""
    moments, sums, n_windows, states = StateMoments(), np.zeros(3), 0, []
    for step in day.val_dataloader():
        [(session, (batch, _))] = step.items()
        result = model.evaluated({session: batch}, "valid")
        values = [float(result.logged[name][0]) for name in (DIVERGENCE, NLL, CRITERION)]
        sums += len(batch.encod_data) * np.array(values)
        n_windows += len(batch.encod_data)
        decoding = model.infer({session: batch}, sample=False).decoding
        seen = getattr(decoding, model.states)
        flat = (
            seen.flatten(0, 1)
            if batch.lengths is None
            else torch.cat([one[:n] for one, n in zip(seen, batch.lengths.tolist(), strict=True)])
        )
        moments.add(((flat - model.white_mean) @ model.white_matrix.T).double().numpy())
        states.append(flat.numpy())
    spectrum = np.linalg.eigvalsh(moments.covariance)[::-1]
    divergence, nll, criterion = (sums / n_windows).tolist()
    norm = float(np.linalg.norm(moments.mean))
    every = np.concatenate(states)
    return _Measured(divergence, nll, criterion, norm, spectrum.tolist(), every)


def folded(model: LFADS) -> LFADS:
    """Return the model with a read-in of the channels as they come, the normalisation in it."""
    readin: Any = model.readin[0].folded()
    parts = {**model.parts(), "readin": nn.ModuleList([readin])}
    plain = LFADS(**{**model.hparams, **parts})
    shared = {k: v for k, v in model.state_dict().items() if not k.startswith("readin.")}
    load_weights(plain, {**plain.state_dict(), **shared}, "the alignment")
    for name, parameter in plain.named_parameters():
        parameter.requires_grad_(name.partition(".")[0] in ("readin", "readout"))
    plain.session_names = list(model.session_names)
    return plain.eval()


def _likeness(states: list[np.ndarray]) -> np.ndarray:
    """Return the median correlation over units of every two seeds' states."""
    with np.errstate(invalid="ignore", divide="ignore"):
        scaled = [(s - s.mean(0)) / s.std(0) for s in states]
    n = len(states)
    matrix = np.eye(n)
    for i in range(n):
        for j in range(i):
            matrix[i, j] = matrix[j, i] = np.nanmedian((scaled[i] * scaled[j]).mean(0))
    return matrix


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
