"""Bin the delayed-reach recording, split it, hold channels out, and write a data file.

    python examples/bin_delayed_reach.py delayed_reach.h5 delayed_reach_10ms.h5
    lfads train model=delayed_reach datamodule=delayed_reach \
        datamodule.datafile_pattern=delayed_reach_10ms.h5 --run-dir runs/delayed_reach

IN holds `spikes` (trials x milliseconds x units) and `target` (the target of each trial).
OUT holds `{train,valid}_encod_data` (the channels that are read), `{train,valid}_recon_data`
(these, and after them the held-out ones), `{train,valid}_target`, `{train,valid}_trial` (rows of
IN) and `units` (the unit of each channel); with --test and --select the same of `test` and
`select`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from example_tools import Array, read_arrays, run_script

from lfads_torch.data import write_session
from lfads_torch.errors import UserError


def split_and_bin(
    spikes: Array,
    target: Array,
    bin_ms: int,
    held_out: int,
    valid_fraction: float,
    seed: int,
    test_fraction: float = 0.0,
    select_fraction: float = 0.0,
) -> dict[str, Array]:
    """Make the arrays of a data file.

    Parameters
    ----------
    spikes : array, shape (trials, milliseconds, units)
    target : array of int, shape (trials,)
    bin_ms : int
        Bin width in milliseconds; what is left over at a trial's end is dropped.
    held_out : int
        Units that are reconstructed but not read, drawn at random.
    valid_fraction : float
        Fraction of each target's trials that are kept for validation.
    seed : int
        Seed of the choice of units and of trials.
    test_fraction, select_fraction : float
        Fractions of each target's trials that are put aside: to score with in the end, and to
        choose by which models to average (`lfads ensemble`).

    Returns
    -------
    dict of str to array

    Raises
    ------
    UserError
        If the options leave no bins, no channels or no trials of some target.
    """
    n_trials, n_ms, n_units = spikes.shape
    if not 1 <= bin_ms <= n_ms:
        raise UserError(f"--bin-ms is {bin_ms}; legal are 1 to {n_ms}, the length of a trial")
    if not 0 < held_out < n_units:
        raise UserError(
            f"--held-out is {held_out}; legal are 1 to {n_units - 1} of {n_units} units"
        )
    n_bins = n_ms // bin_ms
    counts = spikes[:, : n_bins * bin_ms].reshape(n_trials, n_bins, bin_ms, n_units).sum(axis=2)

    rng = np.random.default_rng(seed)
    units = rng.permutation(n_units)
    counts = counts[..., units].astype(np.uint8)

    fractions = {"valid": valid_fraction, "test": test_fraction, "select": select_fraction}
    splits = np.full(n_trials, "train", dtype="<U6")
    for one in np.unique(target):
        trials = rng.permutation(np.flatnonzero(target == one))
        sizes = {split: round(fraction * len(trials)) for split, fraction in fractions.items()}
        n_aside = sum(sizes.values())
        if sizes["valid"] < 1 or min(sizes.values()) < 0 or n_aside >= len(trials):
            raise UserError(
                f"--valid-fraction {valid_fraction}, --test {test_fraction} and --select "
                f"{select_fraction} of the {len(trials)} trials to target {one} leave none for "
                "training or none for validation"
            )
        splits[trials[:n_aside]] = np.repeat(list(sizes), list(sizes.values()))

    arrays = {"units": units}
    for split in ("train", "valid", "test", "select"):
        chosen = splits == split
        if not chosen.any():
            continue
        arrays[f"{split}_recon_data"] = counts[chosen]
        arrays[f"{split}_encod_data"] = counts[chosen][..., : n_units - held_out]
        arrays[f"{split}_target"] = target[chosen]
        arrays[f"{split}_trial"] = np.flatnonzero(chosen)
    return arrays


def main() -> None:
    """Read, bin, split and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("source", metavar="IN", help="recording in bins of 1 ms")
    add("destination", metavar="OUT", help="data file for LFADS")
    add("--bin-ms", type=int, default=10, help="bin width in ms (%(default)s)")
    add("--held-out", type=int, default=24, help="channels to hold out (%(default)s)")
    add("--valid-fraction", type=float, default=0.2, help="of each target's trials (%(default)s)")
    add("--test", type=float, default=0.0, help="fraction to score with in the end (%(default)s)")
    add("--select", type=float, default=0.0, help="fraction to choose models by (%(default)s)")
    add("--seed", type=int, default=0, help="seed of the split (%(default)s)")
    options = parser.parse_args()

    data = read_arrays(Path(options.source), ("spikes", "target"))
    arrays = split_and_bin(
        data["spikes"],
        data["target"],
        options.bin_ms,
        options.held_out,
        options.valid_fraction,
        options.seed,
        options.test,
        options.select,
    )
    attributes = {"bin_ms": float(options.bin_ms), "split_seed": options.seed}
    path = write_session(options.destination, arrays, attributes, compression="gzip")
    rest = {split: len(arrays.get(f"{split}_trial", ())) for split in ("valid", "test", "select")}
    n_train, n_bins, n_units = arrays["train_recon_data"].shape
    aside = "".join(f", {split} {n}" for split, n in rest.items() if n and split != "valid")
    print(
        f"{n_train} training and {rest['valid']} validation trials{aside} x {n_bins} bins of "
        f"{options.bin_ms} ms x {n_units} channels, the last {options.held_out} held out\n"
        f"written: {path}"
    )


if __name__ == "__main__":
    run_script(main)
