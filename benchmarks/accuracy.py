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
from lfads_torch.errors import UserError, one_of
from lfads_torch.folder import BY_LOSS, CHECKPOINTS, RunFolder
from lfads_torch.metrics.decoding import fit_decoder
from lfads_torch.metrics.regression import column_r2
from lfads_torch.metrics.trialwise import SpikeScore, interval, ratio, resampled_trials
from lfads_torch.post_run.ensemble import average, greedy_select
from lfads_torch.post_run.outputs import load_outputs
from lfads_torch.prep.resplit import split_file
from lfads_torch.runs.sampling import sample_run
from lfads_torch.search.seeds import train_seeds

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
#: What a run is scored by: rates of all channels by split.
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
    r2: float  # of behaviour, NaN where the data have none
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
        _split(source, path, str(about["by"]), int(about["held_out"]))
    return path


def _split(source: Path, path: Path, by: str, held_out: int) -> None:
    """Split windows anew, so that no bin is in two splits, hold channels out, and set select aside.

    The windows of the file overlap, and every fifth one validates: its bins are trained on, too.
    """
    whole = path.with_stem(f"{path.stem}_whole")
    split_file(source, whole, by=by, positions="inds", overlap=6, valid=0.2, overwrite=True)
    session = read_session(whole, ["behavior"])
    order = np.random.default_rng(0).permutation(session.splits["train"].recon_data.shape[2])
    arrays: dict[str, Any] = {}
    for split, trials in session.splits.items():
        rows = np.arange(trials.n_trials)
        half = len(rows) // 2
        # One window lies between: neighbours share bins.
        parts = {"valid": rows[:half], "select": rows[half + 1 :]}
        for name, chosen in parts.items() if split == "valid" else [(split, rows)]:
            counts = np.asarray(trials.recon_data)[chosen][..., order].astype(np.uint8)
            arrays[f"{name}_recon_data"] = counts
            arrays[f"{name}_encod_data"] = counts[..., : len(order) - held_out]
            arrays[f"{name}_behavior"] = np.asarray(trials.extras["behavior"])[chosen]
    write_session(path, arrays, {"bin_ms": 20.0}, compression="gzip")
    whole.unlink()


def train(folder: Path, overrides: Sequence[str], file: Path, n: int) -> tuple[list[Path], float]:
    """Train seeds, stacked, unless they are trained; return their runs, and minutes of a seed."""
    place = RunFolder(folder)
    given = [
        f"datamodule.datafile_pattern={file.absolute()}",
        "trainer.enable_progress_bar=false",
        "callbacks.raster_plot=null",
        "callbacks.trajectory_plot=null",
        "callbacks.early_stopping=null",
        "logger.tensorboard=null",
        *overrides,
    ]
    goes_on = place.kind == "seeds"
    if goes_on and len(place.seeds) != n:
        raise UserError(f"{folder} holds {len(place.seeds)} seeds, not {n}; give another --runs")
    if place.status.get("stage") != "complete":
        n_seeds = None if goes_on else n
        train_seeds([] if goes_on else given, n_seeds, run_dir=folder, resume=goes_on)
    runs = [Path(run) for run in place.members()]
    times = [RunFolder(run).status.get(key) for run in runs for key in ("started", "finished")]
    seconds = [time.mktime(time.strptime(t, "%Y-%m-%d %H:%M:%S")) for t in times if t]
    return runs, (max(seconds) - min(seconds)) / 60 / n


class Scored:
    """What rates of a data set are scored by, on test trials: held-out channels, and behaviour."""

    def __init__(self, run: Path, columns: int = 0, n_draws: int = 2000) -> None:
        session = load_outputs(run)[0]
        self.n_bins, self.n_read = session.read_sizes
        self.splits = ("train", "valid", "select", "test")[not columns :]
        self.data = {s: self.held_out(session.trials(s)["recon_data"]) for s in self.splits}
        self.behavior = {
            s: np.asarray(session.trials(s)["behavior"])[..., :columns]
            for s in self.splits
            if columns
        }
        n = len(self.data["test"])
        self.weights = np.concatenate([np.ones((1, n)), resampled_trials(n, n_draws, 0)])

    def held_out(self, array: Array) -> Array:
        """Return the bins that are read, of the channels that are not."""
        return np.asarray(array)[:, : self.n_bins, self.n_read :]

    def rates(self, path: Path) -> Rates:
        """Read rates of a run folder or an output file."""
        session = load_outputs(path)[0]
        return {s: np.asarray(session.trials(s)["output_params"]) for s in self.splits}

    def score(self, rates: Rates, split: str = "test") -> NDArray[np.float64]:
        """Return co-bps of the trials of a split, and of test trials drawn anew."""
        score = SpikeScore.of(self.held_out(rates[split]), self.data[split])
        once = np.ones((1, len(self.data[split])))
        return ratio(*score.parts(self.weights if split == "test" else once))

    def r2(self, rates: Rates) -> float:
        """Return R2 of behaviour decoded linearly from rates of the same bin, mean of columns."""
        if not self.behavior:
            return float("nan")
        decoder = fit_decoder(rates["train"], self.behavior["train"])
        target = self.behavior["test"].reshape(-1, self.behavior["test"].shape[2])
        predicted = decoder.predict(rates["test"]).reshape(target.shape)
        return float(column_r2(predicted, target.astype(np.float64)).mean())


@torch.no_grad()
def of_posterior_means(run: Path, file: Path, scored: Scored) -> Rates:
    """Infer rates from the means of the posteriors, without samples."""
    model, data = load_model(run), BasicDataModule(str(file))
    rates = {}
    for split in scored.splits:
        batches = data.split_loader(split, batch_size=64)
        outputs = [model.predict_step(b, 0, sample_posteriors=False)[0] for b in batches]
        rates[split] = np.concatenate([o.output_params.numpy() for o in outputs])
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
    rates = np.stack([scored.held_out(m["select"]) for m in members])
    weights = greedy_select(rates, scored.data["select"], "bps").weights
    return {split: average(np.stack([m[split] for m in members]), weights) for split in members[0]}


def measure(
    place: Path, file: Path, about: dict[str, Any], settings: dict[str, Any], rows: Sequence[str]
) -> Iterator[Row]:
    """Train what the rows need, and yield them."""
    n_seeds, samples = int(about["seeds"]), int(settings["samples"])
    minutes: dict[str, float] = {}
    runs: dict[str, list[Path]] = {}
    kinds = [kind for kind in settings["kinds"] if kind in ("default", *rows)]
    for kind in [*kinds, *(["masked"] if "both" in rows and "masked" not in kinds else [])]:
        epochs = int(settings["epochs"]) * (2 if kind == "long" else 1)
        overrides = [*about["overrides"], *settings["kinds"][kind], f"trainer.max_epochs={epochs}"]
        runs[kind], minutes[kind] = train(place / kind, [*overrides, "seed=0"], file, n_seeds)
    scored = Scored(runs["default"][0], int(about.get("behavior", 0)))
    rates = {kind: [scored.rates(run) for run in of_kind] for kind, of_kind in runs.items()}
    # The gain is over the mean of single models, on the same trials, drawn anew together.
    reference = np.mean([scored.score(one) for one in rates["default"]], axis=0)
    cost = minutes["default"]

    def row(name: str, models: Sequence[Rates], cost: float) -> Row:
        scores = [scored.score(one) for one in models]
        values, draws = np.array([s[0] for s in scores]), np.mean(scores, axis=0) - reference
        low, high = interval(float(draws[0]), draws[1:])
        sd = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        r2 = float(np.mean([scored.r2(one) for one in models]))
        mean = float(values.mean())
        return Row(ROWS[name], len(values), mean, sd, float(draws[0]), low, high, r2, cost)

    for name in rows:
        if name == "single":
            yield row(name, rates["default"], cost)
        elif name == "loss":
            losses = [scored.rates(by_loss(run, samples)) for run in runs["default"]]
            yield row(name, losses, cost)
        elif name == "means":
            means = [of_posterior_means(run, file, scored) for run in runs["default"]]
            yield row(name, means, cost)
        elif name in settings["kinds"]:
            yield row(name, rates[name], minutes[name])
        elif name.startswith("mean"):
            n = int(name[4:])
            if n > n_seeds:
                continue
            subsets = list(combinations(range(n_seeds), n))
            rng = np.random.default_rng(0)
            chosen = rng.choice(len(subsets), min(int(settings["draws"]), len(subsets)), False)
            drawn = [_mean([rates["default"][k] for k in subsets[i]]) for i in chosen]
            yield row(name, drawn, n * cost)
        else:
            chosen_kinds = ["default", "masked"] if name == "both" else ["default"]
            members = [one for kind in chosen_kinds for one in rates[kind]]
            total = n_seeds * sum(minutes[kind] for kind in chosen_kinds)
            yield row(name, [_greedy(members, scored)], total)


def markdown(rows: Sequence[Row]) -> str:
    """Lay the rows out."""
    lines = ["| row | n | test co-bps | sd | gain over the single mean | R2 | minutes |"]
    lines.append("|---|---:|---:|---:|---:|---:|---:|")
    for r in rows:
        gain = f"{r.gain:+.4f} [{r.low:+.4f}, {r.high:+.4f}]" if r.low == r.low else "0"
        sd = f"{r.sd:.4f}" if r.n > 1 else ""
        cells = [r.name, r.n, f"{r.mean:.4f}", sd, gain]
        cells += [f"{r.r2:.3f}" if r.r2 == r.r2 else "", f"{r.minutes:.1f}"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
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
    about = settings["data"][one_of("--data", options.data, list(settings["data"]))]
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
