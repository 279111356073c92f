"""Sessions of different neurons in one model, where the truth is known: units recorded together.

    python examples/stitching.py delayed_reach.h5 runs/stitching --markdown

The units of one recording are dealt out to four sessions, each with few trials of its own, as if
recorded on four days. A quarter of each session's units is held out. All other trials are for
testing: there the units of all sessions were recorded at the same time, so that what is inferred
from one session's units can be held against those of another that it never met in training.

Trained are a model for each session, one for all of them from random maps, one from aligned maps
(`lfads align-init`), and one for all but the last session, to which the last one is then added
(`lfads add-session`).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from example_tools import Array, format_table, read_arrays, run_script, small_model
from heldout_bps import co_bps

from lfads_torch.checkpoint import load_model
from lfads_torch.data import write_session
from lfads_torch.errors import UserError
from lfads_torch.post_run.outputs import output_files
from lfads_torch.run_model import run_model
from lfads_torch.sessions.add import add_session
from lfads_torch.sessions.align_files import align_files

N_SESSIONS = 4
N_FACTORS = 20


def make_sessions(
    folder: Path, spikes: Array, target: Array, n_train: int, n_valid: int, seed: int
) -> list[Path]:
    """Deal units and trials out to sessions.

    Parameters
    ----------
    folder : Path
    spikes : array, shape (trials, bins, units)
        Counts.
    target : array of int, shape (trials,)
    n_train, n_valid : int
        Trials to each target that a session has.
    seed : int

    Returns
    -------
    list of Path
        One data file per session, its last quarter of channels held out, with a test split of
        the same trials in all of them.
    """
    rng = np.random.default_rng(seed)
    n_units = spikes.shape[-1] // N_SESSIONS
    units = rng.permutation(spikes.shape[-1])[: N_SESSIONS * n_units].reshape(N_SESSIONS, n_units)
    per_session = n_train + n_valid
    rows = [rng.permutation(np.flatnonzero(target == one)) for one in np.unique(target)]
    if min(map(len, rows)) <= N_SESSIONS * per_session:
        raise UserError(
            f"{min(map(len, rows))} trials to some target are too few for {N_SESSIONS} sessions of "
            f"{per_session} and for testing; ask for fewer"
        )
    test = np.sort(np.concatenate([trials[N_SESSIONS * per_session :] for trials in rows]))
    paths = []
    for number in range(N_SESSIONS):
        first = number * per_session
        trials = {
            "train": np.concatenate([trials[first : first + n_train] for trials in rows]),
            "valid": np.concatenate(
                [trials[first + n_train : first + per_session] for trials in rows]
            ),
            "test": test,
        }
        arrays: dict[str, Array] = {"units": units[number]}
        for split, chosen in trials.items():
            counts = spikes[chosen][..., units[number]]
            arrays[f"{split}_recon_data"] = counts
            arrays[f"{split}_encod_data"] = counts[..., : n_units - n_units // 4]
            arrays[f"{split}_target"] = target[chosen]
        paths.append(write_session(folder / f"session{number}.h5", arrays, {"bin_ms": 10.0}))
    return paths


def heldout_score(run: Path, number: int) -> float:
    """Bits per spike of a session's held-out channels in the test trials."""
    path = output_files(run)[number]
    data = read_arrays(path, ("test_encod_data", "test_recon_data", "test_output_params"))
    n_read = data["test_encod_data"].shape[-1]
    return co_bps(data["test_output_params"][..., n_read:], data["test_recon_data"][..., n_read:])


def across_score(run: Path) -> Array:
    """Bits per spike of each session's channels, read out from the factors of each other session.

    Returns
    -------
    array, shape (session that was read, session that is predicted)
        NaN on the diagonal.
    """
    model = load_model(run)
    n_sessions = len(model.session_names)
    keys = ("test_factors", "test_recon_data")
    data = [read_arrays(path, keys) for path in output_files(run)]
    scores = np.full((n_sessions, n_sessions), np.nan)
    for read in range(n_sessions):
        factors = torch.from_numpy(data[read]["test_factors"])
        for written in range(n_sessions):
            if read != written:
                with torch.no_grad():
                    rates = model.read_out(written, factors, output_means=True).numpy()
                scores[read, written] = co_bps(rates, data[written]["test_recon_data"])
    return scores


def main() -> None:
    """Make sessions, train, print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("source", metavar="IN", help="recording in bins of 1 ms: spikes, target")
    add("folder", metavar="DIR", help="folder for data files and runs")
    add("--trials", type=int, default=5, help="training trials to each target (%(default)s)")
    add("--valid-trials", type=int, default=2, help="validation trials (%(default)s)")
    add("--epochs", type=int, default=300, help="of every run (%(default)s)")
    add("--seed", type=int, default=0, help="of units, trials and runs (%(default)s)")
    add("--quick", action="store_true", help="tiny networks, few epochs: does it run?")
    add("--markdown", action="store_true", help="print Markdown tables")
    options = parser.parse_args()

    data = read_arrays(Path(options.source), ("spikes", "target"))
    n_trials, n_ms, n_units = data["spikes"].shape
    counts = data["spikes"][:, : n_ms // 10 * 10].reshape(n_trials, -1, 10, n_units).sum(axis=2)
    folder = Path(options.folder).expanduser().absolute()
    paths = make_sessions(
        folder / "data",
        counts.astype(np.uint8),
        data["target"],
        options.trials,
        options.valid_trials,
        options.seed,
    )
    align_files(paths, N_FACTORS, condition_key="target", smooth_ms=40.0, overwrite=True)
    with h5py.File(paths[0]) as file:
        print(
            f"{N_SESSIONS} sessions of {len(file['units'])} units, "
            f"{file['train_encod_data'].shape[2]} of them read; {len(file['train_target'])} "
            f"training, {len(file['valid_target'])} validation trials each, "
            f"{len(file['test_target'])} test trials\n"
        )

    common = small_model(N_FACTORS, options.seed, options.epochs, quick=options.quick)
    common["model.dropout_rate"] = 0.2
    epochs = common["trainer.max_epochs"]

    def train(name: str, files: list[Path], model: str) -> Path:
        overrides: dict[str, Any] = {"model": model, **common}
        overrides["datamodule.datafile_pattern"] = [str(path) for path in files]
        if model == "multisession":
            overrides["model.encod_data_dim"] = N_FACTORS
        run_model(overrides, config_path="multi.yaml", run_dir=folder / name, overwrite=True)
        return folder / name

    alone = [train(f"alone{i}", [path], "default") for i, path in enumerate(paths)]
    random = train("stitched_random", paths, "multisession")
    aligned = train("stitched_aligned", paths, "multisession_aligned")
    others = train("all_but_last", paths[:-1], "multisession_aligned")
    added = add_session(
        others, paths[-1], folder / "added", epochs=epochs, conditions="target", overwrite=True
    )

    scores = {
        "a model for each session": [heldout_score(run, 0) for run in alone],
        "stitched, random maps": [heldout_score(random, s) for s in range(N_SESSIONS)],
        "stitched, aligned maps": [heldout_score(aligned, s) for s in range(N_SESSIONS)],
        "last session added": [heldout_score(folder / "added", s) for s in range(N_SESSIONS)],
    }
    rows = [
        [name, *(f"{score:.3f}" for score in (*values, np.mean(values)))]
        for name, values in scores.items()
    ]
    header = ["co-bps", *(f"session {s}" for s in range(N_SESSIONS)), "mean"]
    print(format_table(header, rows, options.markdown))

    print("\nread one session's units, predict another's (rows: read; columns: predicted)\n")
    for name, run in (("random maps", random), ("aligned maps", aligned)):
        across = across_score(run)
        rows = [
            [f"session {s}", *("" if np.isnan(v) else f"{v:.3f}" for v in line)]
            for s, line in enumerate(across)
        ]
        header = [f"bits per spike, {name}", *(f"session {s}" for s in range(N_SESSIONS))]
        print(format_table(header, rows, options.markdown))
        print(f"\nmean: {np.nanmean(across):.3f}\n")
    print("loss of each session before and after the last one was added:")
    for name, (before, after) in added.losses.items():
        print(f"  {name}  {before:.5f}  {after:.5f}")


if __name__ == "__main__":
    run_script(main)
