"""Train a model from a configuration: compose, check, fit, sample, write the run folder."""

from __future__ import annotations

import shutil
import signal
import time
import warnings
from collections.abc import Mapping
from contextlib import chdir, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..consent import Trust, trust_of
from ..data.fingerprint import check_unchanged, fingerprints
from ..errors import ConfigError, UserError
from ..files import expanded
from ..folder import CONFIG, LAST, RunFolder, Stage
from ..processes import Stopped, stoppable
from ..progress import Line, html_table, quiet_libraries
from ..provenance import provenance
from ..version import read_version
from .build import build, build_model, build_trainer, check_trainer, pick_device
from .changes import (
    Changes,
    changes_of,
    check_changes,
    check_that_they_act,
    follow_data,
    is_longer,
    recorded_changes,
)
from .check_config import arguments_of, check_config, check_parts, find_target
from .compose import Overrides, compose_config, draw_seed, read_config, write_config

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from ..model import LFADS


@dataclass
class RunResult:
    """What a run left behind.

    Attributes
    ----------
    run_dir : Path
        The run folder.
    best_checkpoint, last_checkpoint : Path or None
        Checkpoints of the best epoch by `select_by`, and of the last one.
    outputs : list of Path
        Output files of posterior sampling, one per session.
    metrics : dict of str to float
        What was logged last.
    """

    run_dir: Path
    best_checkpoint: Path | None = None
    last_checkpoint: Path | None = None
    outputs: list[Path] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)

    def _repr_html_(self) -> str:
        loss = self.metrics.get("valid/recon_smth")
        return html_table(
            "Run",
            {
                "folder": self.run_dir,
                "best checkpoint": self.best_checkpoint and self.best_checkpoint.name,
                "smoothed validation loss": loss and f"{loss:.5g}",
                "outputs": ", ".join(path.name for path in self.outputs) or None,
            },
        )


def run_model(
    overrides: Overrides | None = None,
    checkpoint_dir: str | Path | None = None,
    config_path: str | Path = "../configs/single.yaml",
    do_train: bool = True,
    do_posterior_sample: bool = True,
    *,
    run_dir: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    verbose: bool = False,
    trust: bool | Trust = False,
    accept_changed_data: bool = False,
) -> RunResult:
    """Train a model and average its posterior samples.

    Everything is checked before training: keys and targets of the configuration, the data, the
    model's sizes against the data, and the run folder.

    Parameters
    ----------
    overrides : mapping or sequence of str, optional
        Changes of the configuration: a mapping, nested or dotted, or strings as on the command
        line.
    checkpoint_dir : str or Path, optional
        A checkpoint, or a folder with checkpoints, to go on from.
    config_path : str or Path, default="../configs/single.yaml"
        The primary configuration, seen from the folder of the script, from the working directory
        where this package was imported, or from the present one. Where none of them has it, the
        default paths and a bare name mean the packaged file.
    do_train : bool, default=True
        Whether to train. Without training the weights come from `checkpoint_dir`, or from the
        run folder.
    do_posterior_sample : bool, default=True
        Whether to write the output files.
    run_dir : str or Path, optional
        The run folder; the working directory by default.
    resume : bool, default=False
        Go on with the run that `run_dir` holds, with its own configuration, from its last epoch.
        A run of the existing implementation holds none: there `config_path` and `overrides` count.
    overwrite : bool, default=False
        Delete the run that `run_dir` holds.
    verbose : bool, default=False
        Show what Lightning and torch say of themselves.
    trust : bool, default=False
        Of a run that somebody else made, resume also one whose configuration names code outside
        this package, or places outside its folder.
    accept_changed_data : bool, default=False
        Resume a run although its data files hold other numbers than those it was trained on.

    Returns
    -------
    RunResult

    Raises
    ------
    UserError
        For whatever is wrong with configuration, data, checkpoint or folder.
    DivergedError
        If the loss turns NaN or infinite.
    """
    folder = expanded(run_dir or Path.cwd()).absolute()
    # Existing scripts resume by naming a checkpoint of the folder's run, without `resume`.
    continued = checkpoint_dir is not None and RunFolder(folder).kind != "none"
    before = None
    if resume:
        # The existing implementation leaves no configuration: there `config_path` counts.
        is_old = not (folder / CONFIG).is_file() and RunFolder(folder).checkpoint() is not None
        if not (folder / CONFIG).is_file() and not is_old:
            raise ConfigError(f"{folder} holds no run to resume: there is no {folder / CONFIG}")
        if RunFolder(folder).kind == "search":
            raise ConfigError(
                f"{folder} holds a search; go on with it: lfads pbt --resume {folder}"
            )
        if "alignment" in RunFolder(folder).status:
            raise ConfigError(
                f"{folder} holds an alignment, whose maps are trained by lfads align alone; go on "
                f"with one that was interrupted: lfads align --resume {folder}"
            )
        config_path = config_path if is_old else folder / CONFIG
        trust = trust_of(folder / CONFIG, trust)
        before = None if is_old else read_config(folder, trust)
    config = compose_config(config_path, overrides or ())
    draw_seed(config)
    check_parts(config)
    check_config(config, is_trained=do_train, is_sampled=do_posterior_sample)
    changes: Changes = {}
    if overrides and before is not None:
        follow_data(before, config)
        changes = changes_of(before, config)
    check_changes(changes)
    goes_on, place = resume or continued, RunFolder(folder)
    claimed = place.claimed("training", resume=goes_on, overwrite=overwrite)
    given = expanded(checkpoint_dir).absolute() if checkpoint_dir else None
    # Existing YAML and Lightning's loggers write below the working directory, and scripts of labs
    # change into the run folder themselves.
    with (
        stoppable(),
        claimed if do_train else place.owned("sampling") as is_own,
        chdir(folder),
        quiet_libraries(verbose, ignore_warnings=bool(config.get("ignore_warnings"))),
    ):
        run = _Run(
            config,
            folder,
            given,
            goes_on=goes_on,
            overwrite=overwrite and is_own,
            changes=changes,
            accept_changed_data=accept_changed_data,
            trusts_all=trust is True or (isinstance(trust, Trust) and trust.everything),
        )
        return run.run(do_train, do_posterior_sample)


class _Run:
    """One run: what is built from the configuration, and the order in which it happens."""

    def __init__(
        self,
        config: dict[str, Any],
        folder: Path,
        given: Path | None,
        *,
        goes_on: bool,
        overwrite: bool,
        changes: Changes,
        accept_changed_data: bool,
        trusts_all: bool,
    ) -> None:
        self.config = config
        self.folder = folder
        self.given = given
        self.goes_on = goes_on
        self.overwrite = overwrite
        self.changes = changes
        self.accept_changed_data = accept_changed_data
        self.trusts_all = trusts_all
        self.seed = int(config.get("seed") or 0)

    def run(self, do_train: bool, do_posterior_sample: bool) -> RunResult:
        """Build, check, train, sample."""
        import pytorch_lightning as pl

        if do_train:
            check_trainer(self.config)
        # Before anything is built: initial weights are drawn as the model is.
        pl.seed_everything(self.seed, workers=True, verbose=False)
        datamodule = build(self.config["datamodule"], "datamodule")
        datamodule.setup("fit")
        model = build_model(self.config["model"], datamodule, trusts_all=self.trusts_all)
        model.check_data(datamodule)
        if do_posterior_sample:
            self._warn_of_full_disk(model, datamodule)
        status = RunFolder(self.folder).status if self.goes_on or not do_train else {}
        metrics: dict[str, float] = {}
        # A run that was killed while it sampled is trained already; only more epochs train it on.
        max_epochs = self.config["trainer"].get("max_epochs")
        is_left = status.get("stage", "training") == "training" or is_longer(max_epochs, status)
        if do_train and is_left:
            status, metrics = self._train(model, datamodule)
        elif self.goes_on and do_train:
            self._check_data(datamodule, status.get("data"))
            if self.changes:
                n_epochs = int(status.get("epochs", 0))
                # A damaged status does not say what was trained.
                self._check_that_changes_act(n_epochs, is_over="epochs" in status)
                status = {**status, "changes": self._record(status, n_epochs)}
                status["data"] = fingerprints(datamodule)
                write_config(self.folder / CONFIG, self.config, parts_of(model))
        outputs = self._sample(model, datamodule, trained=do_train) if do_posterior_sample else []
        if do_train:
            names = [_relative(path, self.folder) for path in outputs]
            status = {**status, "outputs": names or status.get("outputs", [])}
            self._write_status("complete", status)
        best = status.get("best_checkpoint")
        last = self.folder / LAST
        return RunResult(
            run_dir=self.folder,
            best_checkpoint=self.folder / best if best else None,
            last_checkpoint=last if last.is_file() else None,
            outputs=outputs,
            metrics=metrics,
        )

    def _warn_of_full_disk(self, model: LFADS, datamodule: Any) -> None:
        from ..post_run.analysis import output_bytes

        if not (self.config.get("posterior_sampling") or {}).get("fn"):
            return
        needed, free = output_bytes(model, datamodule), shutil.disk_usage(self.folder).free
        if needed > free:
            warnings.warn(
                f"outputs and checkpoints take about {needed / 1e9:.3g} GB, and the disk of "
                f"{self.folder} has {free / 1e9:.3g} GB left: free some, or sample later "
                "(posterior_sampling.fn=null, then lfads sample with --output)",
                stacklevel=2,
            )

    def _check_data(self, datamodule: Any, recorded: Any) -> None:
        """Refuse changed data, or take what is accepted for a change of the run."""
        if self.given is None:  # else what is trained begins with weights of another run
            now = fingerprints(datamodule)
            self.changes |= check_unchanged(recorded, now, accept=self.accept_changed_data)

    def _record(self, status: Mapping[str, Any], n_epochs: int) -> list[dict[str, Any]]:
        for key, (before, now) in self.changes.items():
            Line().say(f"from epoch {n_epochs} on: {key}={now} (before: {before})")
        return recorded_changes(status.get("changes"), self.changes, n_epochs)

    def _check_that_changes_act(self, n_epochs: int, *, is_over: bool = False) -> None:
        """Refuse changes of training where no epoch is left to be trained."""
        now = {key: value for key, (_, value) in self.changes.items()}
        max_epochs = self.config["trainer"].get("max_epochs")
        check_that_they_act(now, max_epochs, n_epochs, is_over=is_over)

    def _write_status(self, stage: Stage, facts: Mapping[str, Any]) -> None:
        RunFolder(self.folder).write_status(
            stage, **{k: v for k, v in facts.items() if k != "stage"}
        )

    def _train(self, model: LFADS, datamodule: Any) -> tuple[dict[str, Any], dict[str, float]]:
        from ..checkpoint import restore
        from .monitors import check_monitors
        from .resume import RUN_KEY

        check_monitors(self.config, model, datamodule)
        # Not when the folder is claimed: a mistake in configuration or data, which is noticed in
        # between, must not cost the run that is overwritten.
        if self.overwrite:
            RunFolder(self.folder).delete()
        checkpoint = self._checkpoint_to_go_on_from()
        step = n_epochs = 0
        if checkpoint is not None:
            # Lightning restores it again; here a checkpoint of another shape gets our error.
            state = restore(model, checkpoint)
            step = int(state.get("global_step", 0))
            n_epochs = int(state.get("epoch", -1)) + 1
            run = state.get(RUN_KEY, {})
            recorded = run.get("data") or RunFolder(self.folder).status.get("data")
            self._check_data(datamodule, recorded)
            self._check_that_changes_act(n_epochs)
            first = int(run.get("first_step", 0))
            RunFolder(self.folder).rewind_metrics(step, first, run.get("metrics"))
        elif self.goes_on:
            RunFolder(self.folder).rewind_metrics()
        trainer = build_trainer(self.config, self.folder, self.seed, step)
        facts = {
            "version": read_version().version,
            "seed": self.seed,
            "max_epochs": self.config["trainer"].get("max_epochs"),
            "started": time.strftime("%Y-%m-%d %H:%M:%S"),
            "environment": provenance(pick_device(self.config["trainer"])),
            "data": fingerprints(datamodule),
        }
        before = RunFolder(self.folder).status if self.goes_on else {}
        if changes := self._record(before, n_epochs):
            facts["changes"] = changes
        write_config(self.folder / CONFIG, self.config, parts_of(model))
        self._write_status("training", facts)
        try:
            self._fit(trainer, model, datamodule, checkpoint)
        except UserError as error:
            self._write_status("training", {**facts, "stopped": str(error)})
            raise
        best = _best_of(trainer)
        facts["finished"] = time.strftime("%Y-%m-%d %H:%M:%S")
        facts["epochs"] = trainer.current_epoch
        facts["best_checkpoint"] = _relative(best, self.folder) if best else None
        self._write_status("sampling", facts)
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        return facts, metrics

    def _checkpoint_to_go_on_from(self) -> Path | None:
        from ..checkpoint import last_whole, newest_checkpoint

        if self.given is None:
            path = last_whole(RunFolder(self.folder)) if self.goes_on else None
            if path is None and self.goes_on:
                warnings.warn(
                    f"{self.folder} holds no checkpoint of a whole epoch: the run stopped in its "
                    "first epoch and begins again",
                    stacklevel=2,
                )
            return path
        path = newest_checkpoint(self.given)
        if path is None:
            raise UserError(f"checkpoint_dir={self.given}: there is no checkpoint (*.ckpt) in it")
        return path

    def _fit(self, trainer: pl.Trainer, model: LFADS, datamodule: Any, path: Path | None) -> None:
        from lightning_fabric.utilities.exceptions import MisconfigurationException

        interrupt = signal.getsignal(signal.SIGINT)
        try:
            trainer.fit(model, datamodule=datamodule, ckpt_path=path, weights_only=True)
        except (MisconfigurationException, ValueError, RuntimeError) as error:
            # Such as a monitor that nothing logs; Lightning has no class of its own for two.
            text = str(error)
            is_ours = isinstance(error, UserError) or not (
                isinstance(error, MisconfigurationException)
                or "val_check_interval" in text
                or text.startswith("Early stopping conditioned on")
            )
            if is_ours:
                raise
            raise ConfigError(f"trainer, callbacks: {' '.join(str(error).split())}") from error
        except SystemExit as error:
            if trainer.interrupted:  # Lightning turns Ctrl-C into an exit
                cause = error.__context__
                raise (cause if isinstance(cause, Stopped) else KeyboardInterrupt()) from error
            raise
        finally:
            # Once interrupted, Lightning leaves Ctrl-C ignored.
            with suppress(ValueError, TypeError):  # not the main thread
                signal.signal(signal.SIGINT, interrupt)

    def _sample(self, model: LFADS, datamodule: Any, *, trained: bool) -> list[Path]:
        from ..checkpoint import find_checkpoint, newest_checkpoint, restore

        settings = self.config.get("posterior_sampling") or {}
        if not settings.get("fn"):
            return []
        best = bool(settings.get("use_best_ckpt", True))
        place, find = self.folder, find_checkpoint
        if self.given is not None and not trained:
            place, find = self.given, newest_checkpoint
        path = find(place, best=best)
        if path is None:
            raise UserError(f"{place} holds no checkpoint to sample from; train first")
        restore(model, path)
        model.float()  # trained in another precision: data and outputs are float32
        known = arguments_of(find_target(settings["fn"]["_target_"], "posterior_sampling.fn"))
        facts = {"run": str(self.folder), "checkpoint": _relative(path, self.folder)}
        # A user's function may take model and data module alone.
        facts = {name: value for name, value in facts.items() if name in known.legal}
        sample = build({**settings["fn"], "_partial_": True}, "posterior_sampling.fn")
        model.to(pick_device(self.config["trainer"]))
        try:
            outputs = sample(model=model, datamodule=datamodule, **facts)
        finally:
            model.to("cpu")
        return [Path(output).absolute() for output in outputs or []]


def parts_of(model: Any) -> set[str]:
    """Return the classes that a checkpoint of the model will name."""
    from ..modules.spec import targets_of, to_spec

    parts = model.parts() if hasattr(model, "parts") else {}
    return targets_of([to_spec(part) for part in parts.values()])


def _relative(path: Path, folder: Path) -> str:
    # Lightning resolves links in the paths of its checkpoints.
    for one, of in ((path, folder), (path.resolve(), folder.resolve())):
        if one.is_relative_to(of):
            return one.relative_to(of).as_posix()
    return str(path)


def _best_of(trainer: pl.Trainer) -> Path | None:
    path = getattr(trainer.checkpoint_callback, "best_model_path", "")
    return Path(path) if path and Path(path).is_file() else None
