"""What a search is worth: default settings, random search, halving and PBT for the same budget.

    python benchmarks/search_quality.py ../shared/data --data reach_small wrist --seeds 0 1 2
    python benchmarks/search_quality.py ../shared/data --data wrist --searches pbt --json

FOLDER holds the recordings (docs/real_data.md); accuracy.yaml has data sets, settings and
searches. Each row trains as many epochs of members: the defaults with so many seeds, halving with
more draws, most of which stop early. Ramps, burn-in and a generation last an eighth of the epochs.
Runs are kept in --runs: those that are complete are not run again, those that were broken off go
on. Test trials choose nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from accuracy import SETTINGS, Scored, prepare, train

from lfads_torch.errors import UserError, one_of
from lfads_torch.folder import BEST_MODEL, METRICS, RunFolder
from lfads_torch.metrics import gaussian_smooth
from lfads_torch.post_run.outputs import load_outputs
from lfads_torch.post_run.report.findings import BURST, explained_bursts
from lfads_torch.search.run import run_search
from lfads_torch.tables import read_csv_log, read_population

LOSS, CO_BPS = "valid/recon_smth", "valid/co_bps_smth"
DEFAULTS = "defaults"


class Row(NamedTuple):
    """What one search of one seed found."""

    data: str
    search: str
    seed: int
    # Smoothed loss of validation trials in the best epoch of any member
    loss: float
    # Of the model that was chosen: co-bps of validation and test trials, and what smoothing its
    # rates adds
    valid: float
    test: float
    smoothing: float
    # R2 of fast changes of the summed spikes from inferred inputs, and of behaviour from rates
    followed: float
    r2: float
    minutes: float  # of one core, 0 for what was trained before


def overrides_of(search: str, settings: dict[str, Any], members: int, epochs: int) -> list[str]:
    """Return what a search trains with, so that all of them spend the same budget."""
    eighth = max(1, epochs // 8)
    ramps = [f"model.{name}_increase_epoch={eighth}" for name in ("kl", "l2")]
    common = [*ramps, f"trainer.max_epochs={epochs}"]
    if search == DEFAULTS:
        return common
    # Of n draws a third goes on after a quarter of the epochs, a ninth after three quarters.
    n = round(members * 9 / 4) if search.startswith("halving") else members
    common += [f"search.{key}={n}" for key in ("num_samples",) if not search.startswith("pbt")]
    if search.startswith("pbt"):
        common += [f"search.num_workers={n}", "search.min_improvement_ratio=-1"]
    if not search.startswith("random"):
        common.append(f"search.perturbation_interval={eighth}")
    common.append(f"search.burn_in_period={eighth}")
    for given in settings["searches"][search]:
        common += given if isinstance(given, list) else [given]
    return common


def trained(
    folder: Path, search: str, overrides: Sequence[str], file: Path, members: int
) -> tuple[Path, Any]:
    """Train what a row needs, unless it is trained; return the chosen run and all losses."""
    if search == DEFAULTS:
        runs, _ = train(folder, overrides, file, members)
        logs = [read_csv_log(run / METRICS) for run in runs]
        best = int(np.argmax([np.nanmax(log[CO_BPS][1]) for log in logs]))
        return runs[best], np.concatenate([log[LOSS][1] for log in logs])
    goes_on, method = bool(RunFolder(folder).status), search.partition("_")[0]
    if RunFolder(folder).status.get("stage") != "complete":
        config = "pbt.yaml" if method == "pbt" else "search.yaml"
        given = [f"datamodule.datafile_pattern={file.absolute()}", *overrides]
        given = ["search=halving", *given] if method == "halving" else given
        run_search([] if goes_on else given, config, run_dir=folder, resume=goes_on)
    table = read_population(folder)
    return folder / BEST_MODEL, np.where(table["diverged"], np.nan, table[LOSS])


def measure(
    folder: Path, place: Path, names: Sequence[str], settings: dict[str, Any], options: Any
) -> Iterator[Row]:
    """Train and score every row, all searches of a seed before the next seed."""
    for seed in options.seeds:
        for data in names:
            about = settings["data"][data]
            file = prepare(folder, place / data, about)
            for search in options.searches:
                run_dir = place / data / f"{search}_{seed}"
                overrides = [*about["overrides"], f"seed={seed * options.members}"]
                overrides += overrides_of(search, settings, options.members, options.epochs)
                began = time.process_time()
                run, losses = trained(run_dir, search, overrides, file, options.members)
                minutes = (time.process_time() - began) / 60
                scored = Scored(run, int(about.get("behavior", 0)), n_draws=0)
                rates = scored.rates(run)
                smooth = {**rates, "test": gaussian_smooth(rates["test"], BURST[0])}
                trials = load_outputs(run)[0].trials("test")
                counts = np.asarray(trials["recon_data"])[:, : scored.n_bins].sum(axis=2)
                test, smoothed = (float(scored.score(one)[0]) for one in (rates, smooth))
                yield Row(
                    data=data,
                    search=search,
                    seed=seed,
                    loss=float(np.nanmin(losses)),
                    valid=float(scored.score(rates, "valid")[0]),
                    test=test,
                    smoothing=smoothed - test,
                    followed=explained_bursts(counts, trials["co_means"][:, : scored.n_bins]),
                    r2=scored.r2(rates),
                    minutes=minutes,
                )


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))
    from example_tools import format_table

    return format_table(header, rows, True)


def table(rows: Sequence[Row]) -> str:
    """Lay out means over seeds, with the test scores of each seed."""
    header = ["data", "search", "valid loss", "valid co-bps", "test co-bps", "of each seed"]
    header += ["smoothing adds", "inputs follow", "R2", "minutes"]
    lines = []
    for data, search in dict.fromkeys((row.data, row.search) for row in rows):
        same = [row for row in rows if (row.data, row.search) == (data, search)]
        mean = {
            name: float(np.mean([getattr(row, name) for row in same])) for name in Row._fields[3:]
        }
        each = ", ".join(f"{row.test:.4f}" for row in same)
        cells = [f"{mean['loss']:.5f}", f"{mean['valid']:.4f}", f"{mean['test']:.4f}", each]
        cells += [f"{mean['smoothing']:+.4f}", f"{mean['followed']:.2f}"]
        cells += [f"{mean['r2']:.3f}" if mean["r2"] == mean["r2"] else "", f"{mean['minutes']:.1f}"]
        lines.append([data, search, *cells])
    return markdown(header, lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="folder of the recordings")
    add("--data", nargs="+", default=["reach_small", "wrist"], help="data sets (%(default)s)")
    add("--searches", nargs="+", help="rows (all)")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(%(default)s)")
    add("--members", type=int, default=4, help="of a population (%(default)s)")
    add("--epochs", type=int, default=40, help="of a member (%(default)s)")
    add("--runs", type=Path, default=Path("runs/search_quality"), help="(%(default)s)")
    add("--settings", type=Path, default=SETTINGS, help="settings (accuracy.yaml)")
    add("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    settings = yaml.safe_load(options.settings.read_text(encoding="utf-8"))
    kinds = [DEFAULTS, *settings["searches"]]
    options.searches = options.searches or kinds
    for name, given, legal in (
        ("--data", options.data, list(settings["data"])),
        ("--searches", options.searches, kinds),
    ):
        for one in given:
            one_of(name, one, legal)
    rows = list(measure(options.folder, options.runs, options.data, settings, options))
    print(json.dumps([row._asdict() for row in rows]) if options.json else table(rows))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
