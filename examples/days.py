"""A decoder on another day, without labels: day 0, unaligned, normalised, aligned, retrained.

    python examples/days.py runs/days

Two days of one simulated system are seen through other neurons: half of the units are drawn anew,
all gains change, the order is permuted. A model and a decoder of two behaviours are trained on day
0. The decoder is then applied to the second day: with day 0's maps as they are, with the channels
normalised by the new day's own means and scales, and after `lfads align`. The last row is a model
and a decoder trained on the second day itself, with its behaviour. R2 on validation windows.

`--quick` trains next to nothing, to see that the script runs.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from example_tools import Array, format_table, read_arrays, run_script
from matplotlib.figure import Figure

from lfads_torch.data import write_session
from lfads_torch.data.synthetic import days
from lfads_torch.metrics.decoder import Decoder
from lfads_torch.post_run.decode import DecodeOptions, decode_run
from lfads_torch.post_run.outputs import output_files
from lfads_torch.run_model import run_model
from lfads_torch.runs.sampling import sample_run
from lfads_torch.sessions.align_day import AlignOptions, align_day

FEATURES = "gen_states"


def configuration(data: Path, epochs: int, *, quick: bool) -> dict[str, Any]:
    """Return the changes of the packaged configuration for a day."""
    units = 8 if quick else 32
    sizes = dict.fromkeys(("ic_enc_dim", "ci_enc_dim", "con_dim", "gen_dim"), units)
    model = {**sizes, "ic_dim": 24, "co_dim": 2, "fac_dim": 16, "encod_data_dim": 32}
    return {
        "model": "alignable",
        **{f"model.{name}": value for name, value in model.items()},
        **{"model.kl_increase_epoch": 20, "model.l2_increase_epoch": 20},
        "datamodule.datafile_pattern": str(data),
        "datamodule.batch_size": 64,
        "trainer.max_epochs": epochs,
        "callbacks": {"raster_plot": None, "trajectory_plot": None},
        "posterior_sampling.fn.num_samples": 2 if quick else 50,
    }


def fit(run: Path) -> Decoder:
    """Fit a decoder of the generator's states on training windows."""
    options = DecodeOptions(features=FEATURES, lags=(0,), baselines=False)
    return decode_run(run, options).decoder


def decoded(place: Path, decoder: Decoder) -> tuple[float, Array, Array]:
    """Return R2 on validation windows, true and decoded behaviour there."""
    file = output_files(place)[0] if place.is_dir() else place
    result = decode_run(file, DecodeOptions(score=("valid",)), decoder=decoder)
    arrays = read_arrays(file, [f"valid_{FEATURES}", "valid_behavior"])
    predicted = decoder.predict(arrays[f"valid_{FEATURES}"])
    return result.table[0].scores.r2_uniform, arrays["valid_behavior"], predicted


def draw(shown: dict[str, tuple[float, Array, Array]]) -> Figure:
    """Draw the first behaviour of three windows, and decoded against true values, row by row."""
    figure = Figure(figsize=(9, 1.6 * len(shown)), layout="constrained")
    grid = figure.subplots(len(shown), 2, width_ratios=(3, 1), squeeze=False)
    for (left, right), (name, (r2, true, predicted)) in zip(grid, shown.items(), strict=True):
        chosen = np.linspace(0, len(true) - 1, 4).astype(int)
        gap = np.full((1, true.shape[2]), np.nan)
        lines = [
            np.concatenate([np.concatenate([values[k], gap]) for k in chosen])[:, 0]
            for values in (true, predicted)
        ]
        left.plot(lines[0], color="0.6", linewidth=2.5, label="true")
        left.plot(lines[1], color="#0072B2", linewidth=1.2, label="decoded")
        left.set_ylabel(name)
        left.set_xticks([])
        limit = 1.2 * np.nanmax(np.abs(true[..., 0]))
        left.set_ylim(-limit, limit)
        right.plot(true[..., 0].ravel(), predicted[..., 0].ravel(), ".", markersize=1, alpha=0.4)
        right.plot([-limit, limit], [-limit, limit], color="0.6", linewidth=1)
        right.set(xlim=(-limit, limit), ylim=(-limit, limit), title=f"R² {r2:.2f}")
    handles = grid[0, 0].get_lines()
    figure.legend(handles=handles, loc="outside upper left", ncols=2, frameon=False)
    grid[-1, 0].set_xlabel("bins of four windows of the validation time")
    return figure


def main() -> None:
    """Run the script."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("folder", type=Path, help="where data, runs, table and figure go")
    add("--seed", type=int, default=0, help="of data and training")
    add("--epochs", type=int, default=60, help="of the two models")
    add("--align-epochs", type=int, default=60)
    add("--seeds", type=int, default=6, help="starts of the alignment")
    add("--quick", action="store_true", help="train next to nothing")
    add("--markdown", action="store_true", help="print the table as Markdown")
    options = parser.parse_args()
    folder, quick = options.folder, options.quick
    windows: dict[str, Any] = {"n_windows": 60, "n_bins": 10} if quick else {}
    files = [
        write_session(folder / f"day{k}.h5", day, {"bin_ms": 20.0})
        for k, day in enumerate(days(seed=options.seed, **windows))
    ]
    epochs = 2 if quick else options.epochs
    runs = [folder / name for name in ("model_of_day0", "model_of_day1")]
    for file, run in zip(files, runs, strict=True):
        changes = {**configuration(file, epochs, quick=quick), "seed": options.seed}
        run_model(changes, run_dir=run, overwrite=True)
    decoders = [fit(run) for run in runs]
    decoders[0].save(runs[0] / "decoder.json")
    plain = folder / "unaligned.h5"
    sample_run(runs[0], data=files[1], output=plain, num_samples=2 if quick else 50, overwrite=True)
    samples = 2 if quick else 50
    common = {"num_samples": samples, "seed": options.seed}
    settings = {
        "normalised": AlignOptions(epochs=0, init="day0", **common),
        "aligned": AlignOptions(
            epochs=2 if quick else options.align_epochs,
            seeds=2 if quick else options.seeds,
            lr=2e-3,
            **common,
        ),
    }
    for name, chosen in settings.items():
        done = align_day(runs[0], files[1], folder / name, chosen, overwrite=True)
    print(done.text())
    places = {
        "day 0": (runs[0], 0),
        "day 1, unaligned": (plain, 0),
        "day 1, normalised": (folder / "normalised", 0),
        "day 1, aligned": (folder / "aligned", 0),
        "day 1, retrained": (runs[1], 1),
    }
    shown = {name: decoded(place, decoders[k]) for name, (place, k) in places.items()}
    scores = {name: r2 for name, (r2, _, _) in shown.items()}
    rows = [[name, f"{r2:.3f}"] for name, r2 in scores.items()]
    print(format_table(["R2 of behaviour, validation windows", ""], rows, options.markdown))
    (folder / "days.json").write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
    draw(shown).savefig(folder / "days.png", dpi=120)
    print(f"written: {folder / 'days.png'}, {folder / 'days.json'}")


if __name__ == "__main__":
    run_script(main)
