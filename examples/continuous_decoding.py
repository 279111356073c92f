"""Decode a continuous behaviour on held-out time from merged rates, and from smoothed spikes.

    lfads prep m1_center_out.mat -o m1.h5 --input-bin-ms 50 --chop-ms 1500 --overlap-ms 500 \
        --behavior handVel --valid 0.15 --test 0.2 --block-ms 10500 --guard-ms 500
    lfads train model=isometric_wrist datamodule.datafile_pattern=m1.h5 datamodule.batch_size=64 \
        trainer.max_epochs=100 --run-dir runs/m1
    lfads merge runs/m1
    python examples/continuous_decoding.py runs/m1 --markdown --figure m1.png

Ridge regression from the features of one bin to the behaviour some bins later is fitted on training
time and scored on test time, blocks of the recording of which neither model nor decoder has seen
anything. Lag, penalty and, for smoothed spikes, the width of the Gaussian are chosen on validation
time. Spikes are smoothed along the whole recording, across the borders of windows and blocks, which
the windows of LFADS do not cross.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from example_tools import Array, format_table, read_arrays, run_script

from lfads_torch.data import bin_width_ms, open_h5
from lfads_torch.errors import UserError
from lfads_torch.metrics import fit_linear, gaussian_smooth

WIDTHS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # standard deviations in bins
LAGS = tuple(range(7))  # bins by which the behaviour comes after the spikes
ALPHAS = tuple(10.0**k for k in range(-2, 7))
TRAIN, VALID, TEST = range(3)


class Decoding(NamedTuple):
    """How well features decode the columns of a behaviour on test time.

    Attributes
    ----------
    r2 : array, shape (columns,)
    predicted : array, shape (bins, columns)
        NaN where the features are.
    chosen : int
        Which of the candidates was chosen.
    lag : int
        Bins.
    """

    r2: Array
    predicted: Array
    chosen: int
    lag: int


def decode(candidates: Sequence[Array], behavior: Array, split: Array) -> Decoding:
    """Decode a behaviour linearly.

    Parameters
    ----------
    candidates : sequence of arrays, shape (bins, features)
        NaN in bins that no window covers.
    behavior : array, shape (bins, columns)
    split : array of int, shape (bins,)
        0 train, 1 valid, 2 test; the split of the features' bin counts.

    Returns
    -------
    Decoding
    """
    if not all((split == number).any() for number in (TRAIN, VALID, TEST)):
        raise UserError("there must be time to train, to validate and to test; see lfads prep")
    best, choice = -np.inf, None
    for number, features in enumerate(candidates):
        for lag in LAGS:
            later = np.full_like(behavior, np.nan)
            later[: len(behavior) - lag] = behavior[lag:]
            # A bin whose behaviour lies in another split is of no use to either.
            same = np.zeros(len(split), dtype=bool)
            same[: len(split) - lag] = split[: len(split) - lag] == split[lag:]
            fits = fit_linear(
                features[same & (split == TRAIN)], later[same & (split == TRAIN)], ALPHAS
            )
            for weight, bias in fits:
                predicted = features @ weight + bias
                score = r2(predicted, later, same & (split == VALID)).mean()
                if score > best:
                    best, choice = score, (number, lag, predicted, later, same)
    if choice is None:
        raise UserError("no bin of validation time has both features and behaviour")
    number, lag, predicted, later, same = choice
    shifted = np.full_like(behavior, np.nan)
    shifted[lag:] = predicted[: len(predicted) - lag]
    return Decoding(r2(predicted, later, same & (split == TEST)), shifted, number, lag)


def r2(predicted: Array, target: Array, where: Array) -> Array:
    """R2 of each column over the bins that are marked and known."""
    known = where & np.isfinite(predicted).all(axis=1) & np.isfinite(target).all(axis=1)
    predicted, target = predicted[known], target[known]
    spread = ((target - target.mean(axis=0)) ** 2).sum(axis=0)
    return np.asarray(1 - ((target - predicted) ** 2).sum(axis=0) / spread)


def draw(
    path: Path,
    behavior: Array,
    results: dict[str, Decoding],
    counts: Array,
    rates: Array,
    split: Array,
    bin_ms: float,
    n_blocks: int = 2,
) -> None:
    """Draw behaviour and decodings on some test blocks, and a unit's spikes and rates."""
    from matplotlib.figure import Figure

    from lfads_torch.post_run.plots.style import BLACK, BLUE, GREY, ORANGE, styled
    from lfads_torch.prep.chop import find_segments

    blocks = find_segments((split == TEST) & np.isfinite(rates).all(axis=1))[:n_blocks]
    # The unit whose rate varies most, measured against the noise of counts.
    observed = rates[np.isfinite(rates).all(axis=1)]
    unit = int(np.argmax(observed.var(axis=0) / np.maximum(observed.mean(axis=0), 1e-9)))
    smoothed = gaussian_smooth(counts, WIDTHS[results["smoothed spikes"].chosen])
    colours = {"smoothed spikes": ORANGE, "LFADS rates": BLUE}

    @styled
    def figure() -> Figure:
        n_columns = behavior.shape[1]
        drawn = Figure(
            figsize=(5.2 * len(blocks), 1.9 * (n_columns + 1) + 0.6), layout="constrained"
        )
        grid = drawn.subplots(n_columns + 1, len(blocks), squeeze=False, sharex="col", sharey="row")
        for column, (start, stop) in enumerate(blocks):
            time = np.arange(start, stop) * bin_ms / 1000
            for row in range(n_columns):
                axis = grid[row, column]
                axis.plot(time, behavior[start:stop, row], color=BLACK, label="measured")
                for name, colour in colours.items():
                    line = results[name].predicted[start:stop, row]
                    axis.plot(time, line, color=colour, linewidth=1.3, label=name)
            axis = grid[-1, column]
            scale = 1000 / bin_ms
            axis.bar(time, counts[start:stop, unit] * scale, bin_ms / 1000, color=GREY, alpha=0.4)
            axis.plot(time, smoothed[start:stop, unit] * scale, color=ORANGE, linewidth=1.3)
            axis.plot(time, rates[start:stop, unit] * scale, color=BLUE, linewidth=1.3)
            axis.set_xlabel("time in the recording (s)")
        for row in range(n_columns):
            grid[row, 0].set_ylabel(f"{'xyz'[row]} velocity" if n_columns <= 3 else f"column {row}")
        grid[-1, 0].set_ylabel(f"unit {unit}\n(spikes/s)")
        drawn.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
        return drawn

    figure().savefig(path)


def main() -> None:
    """Print the table for a merged run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN", help="run folder after `lfads merge`, or merged file")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    parser.add_argument("--figure", metavar="FILE", help="draw test time")
    options = parser.parse_args()

    place = Path(options.run).expanduser()
    path = place / "lfads_merged_sess0.h5" if place.is_dir() else place
    if not path.is_file():
        raise UserError(f"{path} does not exist; run `lfads merge {place}`")
    data = read_arrays(path, ("encod_data", "behavior", "output_params", "factors", "split"))
    with open_h5(path) as file:
        bin_ms = bin_width_ms(dict(file.attrs)) or 1.0
    split = data["split"]
    behavior = data["behavior"].astype(np.float64)
    behavior = behavior[:, np.nanstd(behavior, axis=0) > 0]
    seconds = [(split == number).sum() * bin_ms / 1000 for number in (TRAIN, VALID, TEST)]
    print("{:.0f} s to train, {:.0f} s to validate, {:.0f} s to test\n".format(*seconds))

    smoothed = [gaussian_smooth(data["encod_data"], width) for width in WIDTHS]
    results = {
        "smoothed spikes": decode(smoothed, behavior, split),
        "LFADS rates": decode([data["output_params"].astype(np.float64)], behavior, split),
        "LFADS factors": decode([data["factors"].astype(np.float64)], behavior, split),
    }
    rows = []
    for name, score in results.items():
        lag = f"{score.lag * bin_ms:g} ms"
        scores = (*score.r2, score.r2.mean())
        rows.append([name, *(f"{score:.3f}" for score in scores), lag])
    columns = [f"velocity {name}" for name in "xyz"[: behavior.shape[1]]]
    header = ["R2 on test time", *columns, "mean", "lag"]
    print(format_table(header, rows, options.markdown))
    width = WIDTHS[results["smoothed spikes"].chosen] * bin_ms
    print(f"\nstandard deviation of the Gaussian: {width:g} ms")
    if options.figure:
        target = Path(options.figure)
        draw(target, behavior, results, data["encod_data"], data["output_params"], split, bin_ms)
        print(f"written: {target}")


if __name__ == "__main__":
    run_script(main)
