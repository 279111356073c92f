"""How well a decoder of day 0 does on other days: by `lfads align`, and by what else there is.

    python benchmarks/alignment.py wrist day0.h5 day95.h5 work       isometric wrist task, 95 days
    python benchmarks/alignment.py chain work                        ten simulated days

wrist: both files are put together by their positions and split in order of time. A model with a
read-in of 48 dimensions and a decoder of the generator's states (lags 0:3) are trained on day 0.
Scored is the force (mean R2 of the first two columns) on day 95's last fifth, and on its fastest
quarter. Rows: the decoder unaligned; day 0's maps on normalised channels; aligned by each
divergence; aligned with labels (`lfads add-session`, the direction of the force as condition); a
model and a decoder retrained on day 95. Minutes are those of training.

chain: ten days of `days`, ten per cent of the units drawn anew from one to the next. Each day is
aligned to day 0, and to the aligned day before it. R2 on validation windows.

Trainings are not repeated where their folder in `work` is complete. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from lfads_torch.checkpoint import load_model, write_checkpoint
from lfads_torch.data import open_h5, write_session
from lfads_torch.data.synthetic import days
from lfads_torch.folder import RunFolder
from lfads_torch.metrics.decoder import Decoder
from lfads_torch.model import LFADS
from lfads_torch.modules.readin_readout import FanInLinear
from lfads_torch.post_run.decode import DecodeOptions, decode_run
from lfads_torch.post_run.outputs import output_files
from lfads_torch.prep.resplit import split_file
from lfads_torch.run_model import run_model
from lfads_torch.runs.sampling import sample_run
from lfads_torch.sessions.add import add_session
from lfads_torch.sessions.align_day import AlignOptions, align_day

LAGS = (0, 1, 2, 3)
REST = 0.35  # mean force, normalised, below which a window has no direction
MINUTES = "minutes.json"


def timed(place: Path, train: Callable[[], Any]) -> float:
    """Train where that is not done yet; return the minutes that it took."""
    if RunFolder(place).status.get("stage") != "complete":
        start = time.monotonic()
        train()
        minutes = (time.monotonic() - start) / 60
        (place / MINUTES).write_text(json.dumps(minutes), encoding="utf-8")
    return float(json.loads((place / MINUTES).read_text(encoding="utf-8")))


def train_day(file: Path, place: Path, dims: int, units: int, epochs: int, seed: int) -> float:
    """Train a model with a low-dimensional read-in on a day."""
    sizes = dict.fromkeys(("ic_enc_dim", "gen_dim"), units)
    sizes |= dict.fromkeys(("ci_enc_dim", "con_dim", "ic_dim"), min(units, 32))
    model = {**sizes, "co_dim": 3, "fac_dim": min(units, 40), "encod_data_dim": dims}
    ramps = dict.fromkeys(("kl_increase_epoch", "l2_increase_epoch"), 20)
    changes = {
        "model": "alignable",
        **{f"model.{name}": value for name, value in {**model, **ramps}.items()},
        "datamodule.datafile_pattern": str(file),
        "datamodule.batch_size": 128,
        "trainer.max_epochs": epochs,
        "callbacks": {"raster_plot": None, "trajectory_plot": None},
        "seed": seed,
    }
    return timed(place, lambda: run_model(changes, run_dir=place, overwrite=True))


def fit(run: Path, lags: tuple[int, ...]) -> Decoder:
    """Fit a decoder of the generator's states on training windows."""
    options = DecodeOptions(features="gen_states", lags=lags, baselines=False)
    return decode_run(run, options).decoder


def score(
    place: Path, decoder: Decoder, split: str, columns: int, fastest: float | None = None
) -> float:
    """Return the mean R2 of the first columns."""
    options = DecodeOptions(score=(split,), fastest=fastest, n_draws=0)
    r2 = decode_run(place, options, decoder=decoder).table[0].scores.r2
    return float(np.mean(list(r2)[:columns]))


def with_directions(source: Path, target: Path) -> Path:
    """Copy a file and add the direction of each window's mean force, in eighths of a turn."""
    with open_h5(source) as file:
        arrays, attrs = {key: file[key][()] for key in file}, dict(file.attrs)
    for split in ("train", "valid", "test"):
        force = np.nanmean(arrays[f"{split}_behavior"][..., :2], axis=1)
        angle = np.round(np.arctan2(force[:, 1], force[:, 0]) / (np.pi / 4)) % 8
        is_rest = np.linalg.norm(force, axis=1) < REST
        arrays[f"{split}_direction"] = np.where(is_rest, 8, angle).astype(np.int64)
    return write_session(target, arrays, attrs)


def alignment_options(options: argparse.Namespace) -> AlignOptions:
    """Return what the alignments of all rows have in common."""
    return AlignOptions(
        epochs=options.align_epochs,
        seeds=options.seeds,
        lr=options.lr,
        init=options.init,
        weight_nll=options.weight_nll,
        num_samples=options.samples,
        seed=options.seed,
    )


def wrist(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Fill the table of the wrist recordings."""
    work, files = options.work, []
    for day, source in (("day0", options.day0), ("day95", options.day95)):
        cut = work / f"cut_{day}.h5"
        split_file(source, cut, by="time", positions="inds", overlap=6, overwrite=True)
        files.append(with_directions(cut, work / f"{day}.h5"))
    run, retrained = work / "day0", work / "retrained"
    minutes = train_day(files[0], run, 48, options.units, options.epochs, options.seed)
    decoder = fit(run, LAGS)
    decoder.save(run / "decoder.json")
    rows: list[dict[str, Any]] = []

    def add(name: str, place: Path, used: Decoder, minutes: float, **more: Any) -> None:
        r2, fast = (score(place, used, "test", 2, fastest) for fastest in (None, 0.25))
        rows.append({"row": name, "r2": r2, "fastest": fast, "minutes": minutes, **more})
        print(f"  {name}: {r2:.3f}", flush=True)

    add("day 0, its own last fifth", run, decoder, minutes)
    plain = work / "unaligned.h5"
    sample_run(run, data=files[1], output=plain, num_samples=options.samples, overwrite=True)
    add("unaligned", plain, decoder, 0.0)
    settings = alignment_options(options)
    variants = {"normalised": replace(settings, epochs=0, init="day0")}
    variants |= {f"aligned, {d}": replace(settings, divergence=d) for d in options.divergences}
    for name, chosen in variants.items():
        place = work / name.replace(", ", "_")

        def align(place: Path = place, chosen: AlignOptions = chosen) -> None:
            align_day(run, files[1], place, chosen, overwrite=True)

        minutes = timed(place, align)
        record = json.loads((place / "alignment.json").read_text(encoding="utf-8"))
        seeds = {
            key: [row[key] for row in record["seeds"]]
            for key in ("init", "criterion", "divergence", "nll")
        }
        add(name, place, decoder, minutes, seeds=seeds, warnings=record["warnings"])
    labelled = work / "labelled"
    minutes = timed(
        labelled,
        lambda: add_session(
            run, files[1], labelled, epochs=100, conditions="direction", overwrite=True
        ),
    )
    [output] = [path for path in output_files(labelled) if "day95" in path.name]
    add("aligned with labels", output, decoder, minutes)
    minutes = train_day(files[1], retrained, 48, options.units, options.epochs, options.seed)
    add("retrained, with its own decoder", retrained, fit(retrained, LAGS), minutes)
    return rows


def chain(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Align simulated days to day 0, and to the day before."""
    work = options.work
    # An array keeps the order of its channels.
    recordings = days(options.days, redrawn=0.1, permuted=False, seed=options.seed)
    files = [
        write_session(work / f"sim{k}.h5", day, {"bin_ms": 20.0})
        for k, day in enumerate(recordings)
    ]
    run = work / "sim_day0"
    minutes = train_day(files[0], run, 32, options.units, options.epochs, options.seed)
    decoder = fit(run, (0,))
    rows = [{"day": 0, "itself": score(run, decoder, "valid", 2), "minutes": minutes}]
    settings = replace(alignment_options(options), divergence=options.divergence)
    start = run
    for k, file in enumerate(files[1:], start=1):
        places = {
            name: work / f"{name.replace(' ', '_')}_{k}"
            for name in ("normalised", "to day 0", "to the day before")
        }
        chosen = {
            "normalised": (run, replace(settings, epochs=0, init="day0")),
            "to day 0": (run, settings),
            "to the day before": (start, settings),
        }
        if start == run:
            places["to the day before"] = places["to day 0"]
        row: dict[str, Any] = {"day": k}
        for name, (origin, given) in chosen.items():
            place = places[name]

            def align(
                origin: Path = origin, place: Path = place, given: AlignOptions = given
            ) -> None:
                align_day(origin, file, place, given, overwrite=True)  # noqa: B023

            row["minutes"] = timed(place, align)
            row[name] = score(place, decoder, "valid", 2)
        start = as_day0(places["to the day before"], file, work / f"as_day0_{k}")
        plain = work / f"unaligned_{k}.h5"
        sample_run(run, data=file, output=plain, num_samples=options.samples, overwrite=True)
        row["unaligned"] = score(plain, decoder, "valid", 2)
        rows.append(row)
        print(f"  {row}", flush=True)
    if options.figure is not None:
        draw_chain(rows).savefig(options.figure, dpi=120)
    return rows


def draw_chain(rows: list[dict[str, Any]]) -> Figure:
    """Draw the decoder's R2 by day."""
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    for name, colour in (
        ("to day 0", "#0072B2"),
        ("to the day before", "#D55E00"),
        ("normalised", "0.5"),
    ):
        values = [rows[0]["itself"], *(row[name] for row in rows[1:])]
        axes.plot(values, ".-", color=colour, label=name)
    axes.set(xlabel="day", ylabel="R² of day 0's decoder", ylim=(-0.5, 1.02))
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def as_day0(run: Path, file: Path, target: Path) -> Path:
    """Return an alignment as a run that `lfads align` takes for day 0, with a linear read-in.

    The command itself would go back to the origin. The linear map is the one nearest to read-in and
    aligner over the day's training bins.
    """
    shutil.copytree(
        run, target, ignore=shutil.ignore_patterns("seeds", ".lock"), dirs_exist_ok=True
    )
    model: Any = load_model(run)
    with torch.no_grad(), open_h5(file) as opened:
        x = torch.from_numpy(opened["train_encod_data"][()]).double().flatten(0, 1)
        y = model.readin[0].double()(x)
        mean_x, mean_y = x.mean(0), y.mean(0)
        weight = torch.linalg.lstsq(x - mean_x, y - mean_y, driver="gelsd").solution.T
        linear = FanInLinear(x.shape[1], y.shape[1])
        linear.weight.copy_(weight)
        linear.bias.copy_(mean_y - weight @ mean_x)
    plain = LFADS(**{**model.hparams, **model.parts(), "readin": torch.nn.ModuleList([linear])})
    kept = {k: v for k, v in model.state_dict().items() if not k.startswith("readin.")}
    plain.load_state_dict({**plain.state_dict(), **kept})
    plain.session_names = list(model.session_names)
    state: dict[str, Any] = {"state_dict": plain.state_dict()}
    plain.on_save_checkpoint(state)
    status = RunFolder(run).status
    write_checkpoint(target / status["best_checkpoint"], state)
    RunFolder(target).write_status(**{k: v for k, v in status.items() if k != "alignment"})
    return target


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind, function in (("wrist", wrist), ("chain", chain)):
        one = kinds.add_parser(kind)
        one.set_defaults(function=function)
        if kind == "wrist":
            one.add_argument("day0", type=Path)
            one.add_argument("day95", type=Path)
            one.add_argument("--divergences", nargs="+", default=["kl", "coral", "mmd"])
        one.add_argument("work", type=Path)
        one.add_argument("--units", type=int, default=64 if kind == "wrist" else 32)
        one.add_argument("--epochs", type=int, default=60)
        one.add_argument("--align-epochs", type=int, default=200 if kind == "wrist" else 20)
        one.add_argument("--seeds", type=int, default=6 if kind == "wrist" else 4)
        one.add_argument("--lr", type=float, default=2e-3 if kind == "wrist" else 3e-3)
        one.add_argument("--init", default="auto")
        one.add_argument("--weight-nll", type=float, default=10.0)
        one.add_argument("--seed", type=int, default=0)
        one.add_argument("--samples", type=int, default=50 if kind == "wrist" else 10)
        if kind == "chain":
            one.add_argument("--days", type=int, default=10)
            one.add_argument("--divergence", default=AlignOptions.divergence)
            one.add_argument("--figure", type=Path, help="where a figure of the rows goes")
        one.add_argument("--json", action="store_true", help="print everything as JSON at the end")
    options = parser.parse_args()
    options.work = options.work.absolute()
    options.work.mkdir(parents=True, exist_ok=True)
    rows = options.function(options)
    if options.json:
        about = {"machine": platform.processor(), "threads": torch.get_num_threads()}
        print(json.dumps({**about, "rows": rows}, indent=1))
        return
    for row in rows:
        print(
            "  ".join(
                f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}"
                for k, v in row.items()
                if k not in ("seeds", "warnings")
            )
        )


if __name__ == "__main__":
    main()
