"""Decode behaviour from a run on the isometric wrist recording, and from smoothed spikes.

    lfads train model=isometric_wrist datamodule=isometric_wrist \
        datamodule.datafile_pattern=isometric_wrist_day0.h5 --run-dir runs/wrist
    python examples/wrist_decoding.py runs/wrist --markdown

Ridge regression from one bin's features to the behaviour of the same bin is fitted on training
windows and scored on validation windows. The penalty, and for smoothed spikes the width of the
Gaussian, are chosen for each column of the behaviour by cross-validation within the training
windows. A second baseline decodes from spikes smoothed with several widths, all together.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from example_tools import Array, format_table, output_of, read_arrays, run_script

from lfads_torch.errors import UserError
from lfads_torch.metrics import bits_per_spike, fit_linear, gaussian_smooth

COLUMNS = ("force x", "force y", "d(force x)/dt", "d(force y)/dt")
# Standard deviations in bins of 20 ms
WIDTHS = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 12.0, 16.0, 24.0)
SEVERAL = (2.0, 4.0, 8.0, 24.0)  # widths that are given to the decoder all together
ALPHAS = tuple(10.0**k for k in range(-4, 5))
OVERLAP = 6  # bins that a window shares with the next one
SPLITS = ("train", "valid")


class Decoding(NamedTuple):
    """How well features decode the columns of a behaviour.

    Attributes
    ----------
    r2 : array, shape (columns,)
        Over all bins of the validation windows.
    r2_unseen : array, shape (columns,)
        Over the bins that lie in no training window.
    chosen : array of int, shape (columns,)
        Which of the candidates was chosen.
    """

    r2: Array
    r2_unseen: Array
    chosen: Array


def shared_bins(train_inds: Array, valid_inds: Array, n_bins: int, overlap: int) -> Array:
    """Mark the bins of validation windows that lie in a training window too.

    Parameters
    ----------
    train_inds, valid_inds : array of int, shape (windows,)
        Positions of the windows in the recording; neighbours overlap.
    n_bins, overlap : int
        Bins of a window, and those that it shares with the next one.

    Returns
    -------
    array of bool, shape (validation windows, n_bins)
    """
    shared = np.zeros((len(valid_inds), n_bins), dtype=bool)
    shared[np.isin(valid_inds - 1, train_inds), :overlap] = True
    shared[np.isin(valid_inds + 1, train_inds), n_bins - overlap :] = True
    return shared


def decode(
    candidates: Sequence[tuple[Array, Array]],
    behavior: tuple[Array, Array],
    unseen: Array,
    n_folds: int = 5,
) -> Decoding:
    """Decode linearly; choose features and penalty by cross-validation on training windows.

    Parameters
    ----------
    candidates : sequence of (training features, validation features)
        Each of shape (windows, bins, features).
    behavior : (training, validation) arrays of shape (windows, bins, columns)
    unseen : array of bool, shape (validation windows, bins)
    n_folds : int
        Contiguous folds, so that few overlapping windows are parted.

    Returns
    -------
    Decoding
    """
    known, target = behavior
    folds = np.array_split(np.arange(len(known)), n_folds)
    # error[candidate, penalty, column]; comparing errors compares R2, the targets being the same.
    error = np.zeros((len(candidates), len(ALPHAS), known.shape[-1]))
    for number, (features, _) in enumerate(candidates):
        for fold in folds:
            rest = np.setdiff1d(np.arange(len(known)), fold)
            for penalty, (weight, bias) in enumerate(
                fit_linear(features[rest], known[rest], ALPHAS)
            ):
                residual = features[fold] @ weight + bias - known[fold]
                error[number, penalty] += (residual**2).sum(axis=(0, 1))
    best = error.reshape(-1, error.shape[-1]).argmin(axis=0)
    chosen, penalties = np.unravel_index(best, error.shape[:2])
    predicted = np.empty(target.shape)
    for column, (number, penalty) in enumerate(zip(chosen, penalties, strict=True)):
        train, valid = candidates[number]
        [(weight, bias)] = fit_linear(train, known[..., [column]], [ALPHAS[penalty]])
        predicted[..., [column]] = valid @ weight + bias
    everywhere = np.ones_like(unseen)
    return Decoding(_r2(predicted, target, everywhere), _r2(predicted, target, unseen), chosen)


def _r2(predicted: Array, target: Array, where: Array) -> Array:
    predicted, target = predicted[where], target[where]
    spread = ((target - target.mean(axis=0)) ** 2).sum(axis=0)
    return np.asarray(1 - ((target - predicted) ** 2).sum(axis=0) / spread)


def _side_by_side(smoothed: Sequence[tuple[Array, Array]]) -> tuple[Array, Array]:
    chosen = [smoothed[WIDTHS.index(width)] for width in SEVERAL]
    train, valid = (np.concatenate(parts, axis=-1) for parts in zip(*chosen, strict=True))
    return train, valid


def _bits(rates: Array, counts: Array) -> float:
    log_rates = torch.from_numpy(rates.astype(np.float64)).clamp_min(1e-9).log()
    return float(bits_per_spike(log_rates, torch.from_numpy(counts.astype(np.float64))))


def main() -> None:
    """Print the tables for a run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN", help="run folder, or its output file")
    parser.add_argument("--markdown", action="store_true", help="print Markdown tables")
    options = parser.parse_args()

    names = ("recon_data", "behavior", "inds", "output_params", "factors")
    path = output_of(options.run)
    data = read_arrays(path, [f"{split}_{name}" for split in SPLITS for name in names])
    train, valid = ({name: data[f"{split}_{name}"] for name in names} for split in SPLITS)
    n_columns = train["behavior"].shape[-1]
    if n_columns != len(COLUMNS):
        raise UserError(f"{path}: behavior has {n_columns} columns, not {len(COLUMNS)}")

    shared = shared_bins(train["inds"], valid["inds"], valid["recon_data"].shape[1], OVERLAP)
    unseen = ~shared
    if not unseen.any():
        raise UserError(f"{path}: every bin of the validation windows lies in a training window")
    counts, rates = valid["recon_data"], valid["output_params"]
    print(
        f"{len(train['inds'])} training windows, {len(valid['inds'])} validation windows; "
        f"{int(shared.any(axis=1).sum())} of these share bins with training windows "
        f"({shared.mean():.0%} of their bins)\n"
    )
    print(
        f"bits per spike, validation windows: {_bits(rates, counts):.3f}; in the bins of no "
        f"training window: {_bits(rates[unseen], counts[unseen]):.3f}\n"
    )

    behavior = (train["behavior"].astype(np.float64), valid["behavior"].astype(np.float64))
    smoothed = [
        (gaussian_smooth(train["recon_data"], width), gaussian_smooth(counts, width))
        for width in WIDTHS
    ]
    results = {
        "smoothed spikes": decode(smoothed, behavior, unseen),
        "smoothed, several widths": decode([_side_by_side(smoothed)], behavior, unseen),
        "LFADS rates": decode([(train["output_params"], rates)], behavior, unseen),
        "LFADS factors": decode([(train["factors"], valid["factors"])], behavior, unseen),
    }
    for title, field in (("all bins", "r2"), ("bins of no training window", "r2_unseen")):
        header = [f"R2, {title}", *COLUMNS, "mean"]
        rows = []
        for name, result in results.items():
            scores = getattr(result, field)
            rows.append([name, *(f"{score:.3f}" for score in (*scores, scores.mean()))])
        print(format_table(header, rows, options.markdown) + "\n")
    widths = ", ".join(f"{WIDTHS[number]:g}" for number in results["smoothed spikes"].chosen)
    print(f"standard deviation of the Gaussian chosen for each column, in bins: {widths}")


if __name__ == "__main__":
    run_script(main)
