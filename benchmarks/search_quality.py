"""What population-based training is worth: against random search, and on a real recording.

demo      on the spikes of `lfads demo`: PBT against random search of the same budget (members x
          epochs) and against single default models, several seeds
wrist     on the isometric wrist recording (docs/real_data.md): single default models, the best
          model of a population, and all members together

    python benchmarks/search_quality.py demo --seeds 0 1 2
    python benchmarks/search_quality.py wrist isometric_wrist_day0.h5 --members 20 --epochs 150

KEY=VALUE at the end changes the configuration of the populations, `search.` of PBT alone. Runs
lie in --folder; those that are complete are not run again, those that were broken off go on.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from lfads_torch.data import write_session
from lfads_torch.data.synthetic import lorenz
from lfads_torch.demo import read_arrays, score_rates
from lfads_torch.folder import RunFolder
from lfads_torch.metrics import bits_per_spike
from lfads_torch.post_run.outputs import output_files
from lfads_torch.run_model import run_model
from lfads_torch.runs.sampling import sample_run
from lfads_torch.search.run import run_search
from lfads_torch.tables import read_population

SCORE = "valid/recon_smth"
DEMO = ["model=demo", "datamodule=demo"]
WRIST = ["model=isometric_wrist", "datamodule=isometric_wrist"]
#: Ramps of the demo's models: they must be up well before the end of so short a run.
RAMPS = ["model.l2_increase_epoch=20", "model.kl_increase_epoch=20"]
#: A search that spends its whole budget.
TO_THE_END = ["search.min_improvement_ratio=-1"]


class Trained(NamedTuple):
    """A run: its folder, its best validation loss, how long it took, if it was run now."""

    folder: Path
    score: float
    seconds: float


def single(folder: Path, overrides: Sequence[str]) -> Trained:
    """Train one model, unless it is trained."""
    began = time.monotonic()
    status = RunFolder(folder).status
    if status.get("stage") != "complete":
        texts = [*overrides, "callbacks.early_stopping=null", "trainer.enable_progress_bar=false"]
        figures = ["callbacks.raster_plot=null", "callbacks.trajectory_plot=null"]
        texts = [] if status else texts + figures
        run_model(texts, config_path="single.yaml", run_dir=folder, resume=bool(status))
    values = _column(folder / "csv_logs" / "metrics.csv", SCORE)
    return Trained(folder, min(values), time.monotonic() - began)


def searched(folder: Path, config: str, overrides: Sequence[str]) -> Trained:
    """Run a search, unless it is complete."""
    began = time.monotonic()
    status = RunFolder(folder).status
    if status.get("stage") != "complete":
        texts = [] if status else overrides
        run_search(texts, config, run_dir=folder, resume=bool(status))
    table = read_population(folder)
    best = float(np.nanmin(np.where(table["diverged"], np.nan, table[SCORE])))
    return Trained(folder, best, time.monotonic() - began)


def _column(path: Path, name: str) -> list[float]:
    with open(path, encoding="utf-8") as file:
        header, *rows = [line.rstrip("\n").split(",") for line in file]
    place = header.index(name)
    return [float(row[place]) for row in rows if row[place]]


def best_output(run: Path) -> Path:
    """Return the output file of a run, or of the best model of a search."""
    folder = run / "best_model" if (run / "best_model").is_dir() else run
    return output_files(folder)[0]


def ensemble_output(run: Path) -> Path:
    """Average the rates of the final members of a search, unless that is done."""
    written = sorted(run.glob("lfads_output_ensemble*.h5"))
    return written[0] if written else sample_run(run, ensemble=True)[0]


def demo(options: argparse.Namespace) -> str:
    """Compare PBT, random search and single models on the demo's data."""
    folder = Path(options.folder) / "demo"
    data = folder / "lorenz.h5"
    if not data.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_session(data, lorenz(*options.lorenz, seed=0), {"source": "Lorenz system"})
    common = [*DEMO, *RAMPS, f"datamodule.datafile_pattern={data}"]
    common += [f"trainer.max_epochs={options.epochs}"]
    rows: dict[str, list[list[float]]] = {}
    for seed in options.seeds:
        overrides = [*common, f"seed={seed}"]
        pbt = [f"search.num_workers={options.members}", *TO_THE_END]
        pbt += [f"search.perturbation_interval={options.interval}", *options.overrides]
        drawn = [f"search.num_samples={options.members}", "search.stop_after=null"]
        drawn += [text for text in options.overrides if not text.startswith("search.")]
        runs = {
            "single default model": single(folder / f"single_{seed}", overrides),
            "random search": searched(folder / f"random_{seed}", "search.yaml", overrides + drawn),
            "PBT": searched(folder / f"pbt_{seed}", "pbt.yaml", overrides + pbt),
        }
        outputs = {name: best_output(run.folder) for name, run in runs.items()}
        outputs["PBT, all members"] = ensemble_output(runs["PBT"].folder)
        for name, output in outputs.items():
            loss = runs[name].score if name in runs else float("nan")
            rows.setdefault(name, []).append([loss, *score_rates(read_arrays(output))])
    header = ["", *(f"loss, seed {seed}" for seed in options.seeds)]
    header += ["loss, mean", "bits per spike, mean", "R2 of rates, mean"]
    table = []
    for name, values in rows.items():
        losses, *others = zip(*values, strict=True)
        cells = [*losses, statistics.mean(losses), *(statistics.mean(column) for column in others)]
        digits = [5] * (len(losses) + 1) + [4, 4]
        table.append([name, *map(_cell, cells, digits)])
    return markdown(header, table)


def wrist(options: argparse.Namespace) -> str:
    """Compare single models, the best model of a population and all of its members."""
    _find_examples()
    from example_tools import read_arrays as read_some
    from wrist_decoding import OVERLAP, SPLITS, decode, shared_bins

    folder = Path(options.folder) / "wrist"
    data = Path(options.data).expanduser().absolute()
    common = [*WRIST, f"datamodule.datafile_pattern={data}", f"trainer.max_epochs={options.epochs}"]
    singles = [single(folder / f"single_{s}", [*common, f"seed={s}"]) for s in options.seeds]
    pbt = [f"search.num_workers={options.members}", *TO_THE_END]
    pbt += [f"search.perturbation_interval={options.interval}", *options.overrides]
    overrides = [*common, f"seed={options.seeds[0]}", *pbt]
    population = searched(folder / "pbt", "pbt.yaml", overrides)
    best = min(singles, key=lambda run: run.score)
    losses = ", ".join(f"{run.score:.5f}" for run in singles)
    outputs = {
        f"best of {len(singles)} single default models": (best.score, best_output(best.folder)),
        "PBT, best model": (population.score, best_output(population.folder)),
        "PBT, all members": (float("nan"), ensemble_output(population.folder)),
    }
    rows = []
    names = ("recon_data", "behavior", "inds", "output_params")
    for name, (loss, path) in outputs.items():
        arrays = read_some(path, [f"{split}_{key}" for split in SPLITS for key in names])
        train, valid = ({key: arrays[f"{split}_{key}"] for key in names} for split in SPLITS)
        n_bins = valid["recon_data"].shape[1]
        unseen = ~shared_bins(train["inds"], valid["inds"], n_bins, OVERLAP)
        behavior = (train["behavior"].astype(np.float64), valid["behavior"].astype(np.float64))
        r2 = decode([(train["output_params"], valid["output_params"])], behavior, unseen)
        counts, rates = valid["recon_data"], valid["output_params"]
        values = [loss, _bits(rates, counts), _bits(rates[unseen], counts[unseen])]
        values += [r2.r2.mean(), r2.r2_unseen.mean()]
        rows.append([name, *map(_cell, values, (5, 4, 4, 3, 3))])
    header = ["", "validation loss", "bits per spike", "same, unseen bins"]
    header += ["R2 of behaviour", "same, unseen bins"]
    minutes = population.seconds / 60
    status = RunFolder(population.folder).status
    return (
        f"{markdown(header, rows)}\n\nvalidation loss of the single models: {losses}\n"
        f"the search ended after {status['epochs']} epochs: {status['ended']}; it took "
        f"{minutes:.1f} minutes now"
    )


def _bits(rates: Any, counts: Any) -> float:
    log_rates = torch.from_numpy(rates.astype(np.float64)).clamp_min(1e-9).log()
    return float(bits_per_spike(log_rates, torch.from_numpy(counts.astype(np.float64))))


def _cell(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if np.isfinite(value) else ""


def _find_examples() -> None:
    sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    _find_examples()
    from example_tools import format_table

    return format_table(header, rows, True)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind, members, epochs, interval in (("demo", 8, 100, 10), ("wrist", 20, 150, 25)):
        command = kinds.add_parser(kind)
        if kind == "wrist":
            command.add_argument("data", help="isometric_wrist_day0.h5")
        command.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
        command.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
        command.add_argument("--members", type=int, default=members)
        command.add_argument("--epochs", type=int, default=epochs)
        command.add_argument(
            "--interval", type=int, default=interval, help="epochs of a generation"
        )
        command.add_argument("--folder", default="runs/search_quality")
        command.set_defaults(lorenz=(65, 16, 30, 50, 0.3))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> str:
    """Run what the command line asks for; return the table."""
    options: Any = parse(arguments)
    return demo(options) if options.kind == "demo" else wrist(options)


if __name__ == "__main__":
    print(main())
