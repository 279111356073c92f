"""Bits per spike on held-out channels (co-bps) of a run, beside what simpler predictions reach.

    python examples/heldout_bps.py runs/delayed_reach --markdown

The rows of the table, all scored on validation trials against each channel's mean rate there:

- LFADS: rates averaged over posterior samples, from the channels that are read.
- Smoothed spikes: a Poisson regression from all channels that are read, smoothed by a Gaussian, to
  each held-out channel. Width and penalty are chosen on a quarter of the training trials.
- PSTH: each held-out channel's smoothed mean over the training trials to the same target. It
  knows the target, which the other two do not, and nothing of the single trial.
"""

from __future__ import annotations

import argparse
import warnings

import numpy as np
import torch
from example_tools import Array, format_table, output_of, read_arrays, run_script

from lfads_torch.errors import UserError
from lfads_torch.metrics import bits_per_spike, gaussian_smooth

WIDTHS = (1.0, 2.0, 4.0, 6.0, 9.0)  # standard deviations in bins
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)  # per sample, on weights of standardised features
FLOOR = 1e-4  # spikes per bin; a predicted rate of zero would make a single spike infinitely bad


def co_bps(rates: Array, counts: Array) -> float:
    """Bits per spike of rates per bin, over the mean rate of each channel of `counts`."""
    log_rates = torch.from_numpy(np.maximum(rates, FLOOR).astype(np.float64)).log()
    return float(bits_per_spike(log_rates, torch.from_numpy(counts.astype(np.float64))))


def poisson_regression(x_train: Array, y_train: Array, x_valid: Array, penalty: float) -> Array:
    """Predict rates per bin by a Poisson regression with log link for each channel.

    Parameters
    ----------
    x_train, x_valid : array, shape (trials, bins, features)
    y_train : array, shape (trials, bins, channels)
    penalty : float
        On half the squared weights of standardised features, per sample.

    Returns
    -------
    array, shape (validation trials, bins, channels)
    """
    from sklearn.linear_model import PoissonRegressor

    mean, std = x_train.mean(axis=(0, 1)), x_train.std(axis=(0, 1))
    train, valid = ((x - mean) / np.where(std > 0, std, 1.0) for x in (x_train, x_valid))
    train, counts = train.reshape(-1, train.shape[-1]), y_train.reshape(-1, y_train.shape[-1])
    flat = valid.reshape(-1, valid.shape[-1])
    rates = np.full((len(flat), counts.shape[1]), FLOOR)
    for channel in np.flatnonzero(counts.any(axis=0)):
        regressor = PoissonRegressor(alpha=penalty, solver="newton-cholesky")
        rates[:, channel] = regressor.fit(train, counts[:, channel]).predict(flat)
    return rates.reshape(*valid.shape[:-1], -1)


def predict_from_smoothed(
    read: tuple[Array, Array], heldout: Array, seed: int
) -> tuple[Array, float, float]:
    """Predict held-out channels of validation trials from smoothed spikes.

    Parameters
    ----------
    read : (training, validation) counts of the channels that are read
    heldout : array
        Counts of the held-out channels in training trials.
    seed : int
        Of the draw of training trials that choose width and penalty.

    Returns
    -------
    rates, width, penalty
    """
    order = np.random.default_rng(seed).permutation(len(heldout))
    judge, rest = np.split(order, [len(order) // 4])
    scores = {}
    for width in WIDTHS:
        smoothed = gaussian_smooth(read[0], width)
        for penalty in PENALTIES:
            rates = poisson_regression(smoothed[rest], heldout[rest], smoothed[judge], penalty)
            scores[width, penalty] = co_bps(rates, heldout[judge])
    width, penalty = max(scores, key=lambda key: scores[key])
    train, valid = (gaussian_smooth(counts, width) for counts in read)
    return poisson_regression(train, heldout, valid, penalty), width, penalty


def psth(counts: Array, target: Array, query: Array, width: float) -> Array:
    """Smoothed mean counts of the trials to each query target; all trials' mean if none."""
    means = {one: counts[target == one].mean(axis=0) for one in np.unique(target)}
    overall = counts.mean(axis=0)
    return gaussian_smooth(np.stack([means.get(one, overall) for one in query]), width)


def predict_from_psth(
    heldout: Array, target: Array, query: Array, seed: int
) -> tuple[Array, float]:
    """Predict held-out channels by the PSTH of the target; the width is chosen as above."""
    order = np.random.default_rng(seed).permutation(len(heldout))
    judge, rest = np.split(order, [len(order) // 4])
    width = max(
        WIDTHS,
        key=lambda w: co_bps(psth(heldout[rest], target[rest], target[judge], w), heldout[judge]),
    )
    return psth(heldout, target, query, width), width


def main() -> None:
    """Print the table for a run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN", help="run folder, or its output file")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of widths (%(default)s)")
    options = parser.parse_args()
    # A regression that has not quite converged is still judged by its score.
    warnings.filterwarnings("ignore", module="sklearn")

    path = output_of(options.run)
    names = ("encod_data", "recon_data", "target")
    keys = [f"{split}_{name}" for split in ("train", "valid") for name in names]
    data = read_arrays(path, [*keys, "valid_output_params"])
    n_bins, n_read = data["train_encod_data"].shape[1:]
    train, valid = (data[f"{split}_recon_data"][:, :n_bins] for split in ("train", "valid"))
    if valid.shape[-1] == n_read:
        raise UserError(f"{path}: all {n_read} channels are read; there is none held out")
    heldout, truth = train[..., n_read:], valid[..., n_read:]
    target = data["train_target"]

    smoothed, width, penalty = predict_from_smoothed(
        (train[..., :n_read], valid[..., :n_read]), heldout, options.seed
    )
    averages, psth_width = predict_from_psth(heldout, target, data["valid_target"], options.seed)
    lfads = data["valid_output_params"][:, :n_bins]
    rows = [
        ("LFADS", lfads[..., n_read:], f"reads {n_read} channels"),
        ("smoothed spikes", smoothed, f"Gaussian {width:g} bins, penalty {penalty:g}"),
        ("PSTH of the target", averages, f"Gaussian {psth_width:g} bins; knows the target"),
    ]
    table = [(name, f"{co_bps(rates, truth):.3f}", note) for name, rates, note in rows]
    print(
        f"{truth.shape[-1]} held-out channels, {len(truth)} validation trials x {n_bins} bins, "
        f"{truth.sum():.0f} spikes\n"
    )
    print(format_table(("prediction", "co-bps", "from"), table, options.markdown))
    bps = co_bps(lfads[..., :n_read], valid[..., :n_read])
    print(f"\nLFADS on the channels that it reads: {bps:.3f} bits per spike")


if __name__ == "__main__":
    run_script(main)
