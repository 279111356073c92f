"""The run folder of an alignment: the chosen seed, its record, and an ordinary run of it."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..checkpoint import find_checkpoint, load_model, load_weights, restore, write_checkpoint
from ..consent import trust_of
from ..data.fingerprint import fingerprints
from ..errors import UserError
from ..files import copy_whole, write_whole
from ..folder import ALIGNMENT, CONFIG, LAST, METRICS, STARTS, RunFolder
from ..model import LFADS
from ..provenance import provenance
from ..runs.build import build, pick_device
from ..runs.compose import read_config, write_config
from ..runs.resume import RUN_KEY
from ..runs.run import RunResult, parts_of
from ..runs.sampling import sample_run
from ..tables import read_csv_log
from .add import START
from .day_model import CRITERION, DIVERGENCE, NLL, DayAlignment, alignment_model
from .day_start import AlignOptions
from .moments import StateMoments

_NEAR, _LIKE = (
    0.05,
    0.5,
)  # of the fall of the criterion, a seed is close to the best; states are alike


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


class Ending:
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
        notes = self._warnings(chosen, before, after, likeness)
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
        chosen: int,
        before: dict[int, _Measured],
        after: dict[int, _Measured],
        likeness: dict[int, float],
    ) -> list[str]:
        notes = []
        start, best = before[chosen], after[chosen]
        if self.options.epochs and best.divergence > start.divergence / 2:
            notes.append(
                f"the divergence fell from {start.divergence:.3g} to {best.divergence:.3g}, not "
                "to half: the day may not fit, or more epochs or seeds are needed"
            )
        rivals = rivals_of(
            {seed: one.criterion for seed, one in before.items()},
            {seed: one.criterion for seed, one in after.items()},
            likeness,
        )
        if rivals:
            notes.append(
                f"the answer is ambiguous: the criterion of seeds {', '.join(map(str, rivals))} is "
                f"as near to that of seed {chosen} as {_NEAR:.0%} of its fall, but their states "
                f"differ (median correlation below {_LIKE}); the matrix is in {ALIGNMENT}"
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
            copy_whole(log, self.target / METRICS)
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


def rivals_of(
    before: Mapping[int, float], after: Mapping[int, float], likeness: Mapping[int, float]
) -> list[int]:
    """Return the seeds whose criterion is close to the best, but whose states are not alike."""
    # Close in relation to what training gains: the likelihood has a floor that no alignment can
    # pass, and a share of the criterion itself would take wrong starts for rivals.
    best = min(after.values())
    limit = best + _NEAR * (max(before.values()) - best)
    return [seed for seed in after if after[seed] <= limit and likeness[seed] < _LIKE]


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
