"""What lifts bits per spike of held-out channels: seeds, selection, masks, ensembles.

    python benchmarks/accuracy.py ../shared/data --rows single loss --seeds 4
    python benchmarks/accuracy.py ../shared/data --data reach_before --rows single mean8
    python benchmarks/accuracy.py ../shared/data --data wrist --json

FOLDER holds the recordings (docs/real_data.md). accuracy.yaml has all settings. Runs are kept in
--runs: those that are complete are not run again, those that were broken off go on. Every score is
of the test trials, which choose nothing: checkpoints are chosen on validation trials, members of
ensembles on select trials.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from lfads_torch.checkpoint import load_model
from lfads_torch.data import read_session, write_session
from lfads_torch.datamodules import BasicDataModule
from lfads_torch.errors import UserError
from lfads_torch.folder import BY_LOSS, CHECKPOINTS, RunFolder
from lfads_torch.metrics.trialwise import SpikeScore, interval, ratio, resampled_trials
from lfads_torch.post_run.ensemble import average, greedy_select
from lfads_torch.post_run.outputs import load_outputs
from lfads_torch.run_model import run_model
from lfads_torch.runs.sampling import sample_run

Array = NDArray[Any]
SETTINGS = Path(__file__).with_suffix(".yaml")
ROWS = {
    "loss": "single, checkpoint by loss",
    "single": "single, checkpoint by co-bps",
    "means": "+ posterior means instead of samples",
    "masked": "+ ChannelMask 0.25",
    "long": "+ twice the epochs",
    "mean2": "mean of 2 seeds",
    "mean4": "mean of 4 seeds",
    "mean8": "mean of 8 seeds",
    "greedy": "greedy of the seeds",
    "both": "greedy of seeds with and without masks",
}
#: What a run is scored by: rates by split, held-out channels alone.
Rates = dict[str, Array]


class Row(NamedTuple):
    """A line of the table: mean and spread over what it was measured on, and the paired gain."""

    name: str
    n: int
    mean: float
    sd: float
    gain: float
    low: float
    high: float
    minutes: float


def prepare(folder: Path, place: Path, about: dict[str, Any]) -> Path:
    """Write the data file of a data set, unless it is there."""
    path, source = place / about["file"], folder / about["source"]
    if path.is_file():
        return path
    if not source.is_file():
        raise UserError(f"{source} does not exist; see docs/real_data.md for the recordings")
    place.mkdir(parents=True, exist_ok=True)
    if "prepare" in about:
        script, *options = about["prepare"]
        home = Path(__file__).parents[1]
        command = [sys.executable, str(home / script), str(source), str(path), *options]
        subprocess.run(command, check=True)
    else:
        _split_by_time(source, path, int(about["held_out"]))
    return path


def _split_by_time(source: Path, path: Path, held_out: int) -> None:
    """Hold channels out, and cut validation trials into thirds in time: valid, select, test."""
    session = read_session(source, ["behavior"])
    order = np.random.default_rng(0).permutation(session.splits["train"].recon_data.shape[2])
    arrays: dict[str, Any] = {}
    for split, trials in session.splits.items():
        n = trials.n_trials
        parts = {"train": np.arange(n)}
        if split == "valid":
            thirds = np.array_split(np.arange(n), 3)
            parts = dict(zip(("valid", "select", "test"), thirds, strict=True))
        for name, rows in parts.items():
            counts = np.asarray(trials.recon_data)[rows][..., order].astype(np.uint8)
            arrays[f"{name}_recon_data"] = counts
            arrays[f"{name}_encod_data"] = counts[..., : len(order) - held_out]
            arrays[f"{name}_behavior"] = np.asarray(trials.extras["behavior"])[rows]
    write_session(path, arrays, {"bin_ms": 20.0}, compression="gzip")


def train(folder: Path, overrides: Sequence[str], file: Path, seed: int, epochs: int) -> float:
    """Train a seed, unless it is trained; return the minutes that it took."""
    status = RunFolder(folder).status
    if status.get("stage") != "complete":
        given = [
            f"datamodule.datafile_pattern={file.absolute()}",
            f"seed={seed}",
            f"trainer.max_epochs={epochs}",
            "trainer.enable_progress_bar=false",
            "callbacks.raster_plot=null",
            "callbacks.trajectory_plot=null",
            "logger.tensorboard=null",
            *overrides,
        ]
        goes_on = RunFolder(folder).kind == "run"
        run_model([] if goes_on else given, run_dir=folder, resume=goes_on)
        status = RunFolder(folder).status
    times = [status.get(key) for key in ("started", "finished")]
    seconds = [time.mktime(time.strptime(t, "%Y-%m-%d %H:%M:%S")) for t in times if t]
    return (seconds[1] - seconds[0]) / 60 if len(seconds) == 2 else float("nan")


class Scored:
    """A data set's select and test trials, held-out channels alone."""

    def __init__(self, run: Path, n_draws: int = 2000) -> None:
        session = load_outputs(run)[0]
        self.n_bins, self.n_read = session.read_sizes
        self.data = {s: self.cut(session.trials(s)["recon_data"]) for s in ("select", "test")}
        n = len(self.data["test"])
        self.weights = np.concatenate([np.ones((1, n)), resampled_trials(n, n_draws, 0)])

    def cut(self, array: Array) -> Array:
        """Return the bins that are read, of the channels that are not."""
        return np.asarray(array)[:, : self.n_bins, self.n_read :]

    def rates(self, path: Path) -> Rates:
        """Read rates of a run folder or an output file."""
        session = load_outputs(path)[0]
        return {s: self.cut(session.trials(s)["output_params"]) for s in self.data}

    def score(self, rates: Rates) -> NDArray[np.float64]:
        """Return co-bps of the test trials, and of trials drawn anew."""
        return ratio(*SpikeScore.of(rates["test"], self.data["test"]).parts(self.weights))


@torch.no_grad()
def of_posterior_means(run: Path, file: Path, scored: Scored) -> Rates:
    """Infer rates from the means of the posteriors, without samples."""
    model, data = load_model(run), BasicDataModule(str(file))
    rates = {}
    for split in ("select", "test"):
        batches = data.split_loader(split, batch_size=64)
        outputs = [model.predict_step(b, 0, sample_posteriors=False)[0] for b in batches]
        rates[split] = scored.cut(np.concatenate([o.output_params.numpy() for o in outputs]))
    return rates


def by_loss(run: Path, samples: int) -> Path:
    """Return the rates of the best checkpoint by the loss, sampled unless they are there."""
    path = run / "by_loss.h5"
    if not path.is_file():
        (checkpoint,) = (run / CHECKPOINTS).glob(f"{BY_LOSS}*.ckpt")
        sample_run(run, member=checkpoint, num_samples=samples, output=path, rates_only=True)
    return path


def _mean(members: Sequence[Rates]) -> Rates:
    return {split: average(np.stack([m[split] for m in members])) for split in members[0]}


def _greedy(members: Sequence[Rates], scored: Scored) -> Rates:
    rates = np.stack([m["select"] for m in members])
    weights = greedy_select(rates, scored.data["select"], "bps").weights
    return {split: average(np.stack([m[split] for m in members]), weights) for split in members[0]}


def measure(
    place: Path, file: Path, about: dict[str, Any], settings: dict[str, Any], rows: Sequence[str]
) -> Iterator[Row]:
    """Train what the rows need, and yield them."""
    n_seeds, samples = int(about["seeds"]), int(settings["samples"])
    minutes: dict[str, list[float]] = {}
    runs: dict[str, list[Path]] = {}
    kinds = [kind for kind in settings["kinds"] if kind in ("default", *rows)]
    for kind in [*kinds, *(["masked"] if "both" in rows and "masked" not in kinds else [])]:
        overrides = [*about["overrides"], *settings["kinds"][kind]]
        if kind == "long":
            overrides.append(f"trainer.max_epochs={2 * int(settings['epochs'])}")
        runs[kind] = [place / kind / f"seed{seed}" for seed in range(n_seeds)]
        minutes[kind] = [
            train(run, overrides, file, seed, int(settings["epochs"]))
            for seed, run in enumerate(runs[kind])
        ]
    scored = Scored(runs["default"][0])
    rates = {kind: [scored.rates(run) for run in of_kind] for kind, of_kind in runs.items()}
    singles = [scored.score(one) for one in rates["default"]]
    # The gain is over the mean of single models, on the same trials, drawn anew together.
    reference = np.mean(singles, axis=0)
    cost = float(np.mean(minutes["default"]))

    def row(name: str, scores: Sequence[Array], cost: float) -> Row:
        values, draws = np.array([s[0] for s in scores]), np.mean(scores, axis=0) - reference
        low, high = interval(float(draws[0]), draws[1:])
        sd = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        return Row(ROWS[name], len(values), float(values.mean()), sd, draws[0], low, high, cost)

    for name in rows:
        if name == "single":
            yield row(name, singles, cost)
        elif name == "loss":
            losses = [scored.score(scored.rates(by_loss(r, samples))) for r in runs["default"]]
            yield row(name, losses, cost)
        elif name == "means":
            means = [of_posterior_means(run, file, scored) for run in runs["default"]]
            yield row(name, [scored.score(one) for one in means], cost)
        elif name in settings["kinds"]:
            spent = float(np.mean(minutes[name]))
            yield row(name, [scored.score(one) for one in rates[name]], spent)
        elif name.startswith("mean"):
            n = int(name[4:])
            if n > n_seeds:
                continue
            subsets = list(combinations(range(n_seeds), n))
            rng = np.random.default_rng(0)
            chosen = rng.choice(len(subsets), min(int(settings["draws"]), len(subsets)), False)
            drawn = [[rates["default"][k] for k in subsets[i]] for i in chosen]
            yield row(name, [scored.score(_mean(members)) for members in drawn], n * cost)
        else:
            chosen_kinds = ["default", "masked"] if name == "both" else ["default"]
            members = [one for kind in chosen_kinds for one in rates[kind]]
            total = sum(sum(minutes[kind]) for kind in chosen_kinds)
            yield row(name, [scored.score(_greedy(members, scored))], total)


def markdown(rows: Sequence[Row]) -> str:
    """Lay the rows out."""
    lines = ["| row | n | test co-bps | sd | gain over the single mean | minutes |"]
    lines.append("|---|---:|---:|---:|---:|---:|")
    for r in rows:
        gain = f"{r.gain:+.4f} [{r.low:+.4f}, {r.high:+.4f}]" if r.low == r.low else "0"
        sd = f"{r.sd:.4f}" if r.n > 1 else ""
        lines.append(f"| {r.name} | {r.n} | {r.mean:.4f} | {sd} | {gain} | {r.minutes:.1f} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="folder of the recordings")
    add("--data", default="reach", help="data set of accuracy.yaml (%(default)s)")
    add("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), help="rows (all)")
    add("--runs", type=Path, default=Path("runs/accuracy"), help="folder of runs (%(default)s)")
    add("--settings", type=Path, default=SETTINGS, help="settings (accuracy.yaml)")
    add("--seeds", type=int, help="how many (of the settings)")
    add("--epochs", type=int, help="how many (of the settings)")
    add("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    settings = yaml.safe_load(options.settings.read_text(encoding="utf-8"))
    if options.data not in settings["data"]:
        raise UserError(f"--data is {options.data}; legal are {', '.join(settings['data'])}")
    about = settings["data"][options.data]
    settings["epochs"] = options.epochs or about.get("epochs", settings["epochs"])
    about["seeds"] = options.seeds or about["seeds"]
    place = options.runs / options.data
    rows = list(
        measure(place, prepare(options.folder, place, about), about, settings, options.rows)
    )
    print(json.dumps([row._asdict() for row in rows]) if options.json else markdown(rows))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
