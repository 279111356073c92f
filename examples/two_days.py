"""Two days of one task in one model, 95 days apart, with other neurons.

    python examples/two_days.py isometric_wrist_day0.h5 isometric_wrist_day95.h5 runs/days

The recordings come as overlapping windows split at random. They are merged to what was recorded
(exactly, since the data of two windows agree) and chopped again, split by blocks, so that test time
shares no bin with training. Of the second day only a small part is for training.

Sessions are aligned by the first moments of each force, found in training time alone, whose
direction is the condition. Trained are a model of the second day alone, one of both days from
aligned maps, and one of the first day to which the second is then added. The force of the second
day's test time is then decoded from the factors, by a decoder fitted on the second day's training
time, and by one fitted on the first day.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from continuous_decoding import TEST, TRAIN, Decoding, decode, r2
from example_tools import Array, format_table, read_arrays, run_script, small_model

from lfads_torch.data import write_session
from lfads_torch.errors import UserError
from lfads_torch.metrics import fit_linear, gaussian_smooth
from lfads_torch.post_run.outputs import output_files
from lfads_torch.post_run.plots import shared_factors
from lfads_torch.prep.chop import chop_recording, find_segments
from lfads_torch.prep.merging import covered_bins, merge_chops, merge_file
from lfads_torch.run_model import run_model
from lfads_torch.sessions.add import add_session
from lfads_torch.sessions.align import Alignment, Trials, align_sessions
from lfads_torch.sessions.align_files import write_alignment

WINDOW, OVERLAP = 30, 6  # bins of 20 ms
N_FACTORS = 20
WIDTHS = (2.0, 4.0, 8.0, 16.0)  # of the baseline's Gaussian, standard deviations in bins
BEFORE, AFTER = 10, 30  # bins of the averages around the onset of a force
REST, PUSH = 0.2, 0.35  # size of the force, normalised, below and above which it is called so


def rechop(
    source: Path, target: Path, valid_fraction: float, test_fraction: float, seed: int
) -> Trials:
    """Merge the windows of a file, chop them by blocks, and find trials in training time.

    Parameters
    ----------
    source, target : Path
    valid_fraction, test_fraction : float
        Fractions of the blocks.
    seed : int

    Returns
    -------
    Trials
        Around the onsets of forces; conditions are their directions, in eighths of a turn.
    """
    names = ("inds", "encod_data", "behavior")
    data = read_arrays(
        source, [f"{split}_{name}" for split in ("train", "valid") for name in names]
    )
    inds, *windows = (
        np.concatenate([data[f"{split}_{name}"] for split in ("train", "valid")]) for name in names
    )
    starts = inds * (WINDOW - OVERLAP)
    n_bins = int(starts.max()) + WINDOW
    counts, behavior = (merge_chops(part, starts, n_bins) for part in windows)
    recorded = np.isfinite(behavior[:, 0])
    spikes = np.where(recorded[:, None], counts, 0).astype(np.uint8)
    arrays, attributes = chop_recording(
        {"encod_data": spikes, "recon_data": spikes, "behavior": behavior},
        WINDOW,
        OVERLAP,
        valid_fraction=valid_fraction,
        test_fraction=test_fraction,
        guard=WINDOW,
        seed=seed,
        segments=find_segments(recorded),
        block=10 * WINDOW,
    )
    write_session(target, arrays, {**attributes, "bin_ms": 20.0})
    in_train = covered_bins(arrays["train_chop_start"], WINDOW, n_bins)
    onsets = find_onsets(np.where(in_train[:, None], behavior, np.nan))
    around = onsets[:, None] + np.arange(-BEFORE, AFTER)
    angle = np.arctan2(behavior[onsets + AFTER - 1, 1], behavior[onsets + AFTER - 1, 0])
    direction = np.round(angle / (np.pi / 4)).astype(int) % 8
    trials = counts[around]
    return Trials(target.stem, trials, trials, direction)


def find_onsets(behavior: Array) -> Array:
    """First bins of forces that follow rest, with no missing bin around them."""
    size = np.hypot(behavior[:, 0], behavior[:, 1])
    onsets = []
    for start, stop in find_segments(np.isfinite(size)):
        trace, at_rest = size[start:stop], -1
        for t in range(len(trace)):
            if trace[t] < REST:
                at_rest = t
            elif trace[t] > PUSH and at_rest >= 0:
                onset, at_rest = at_rest, -1
                if onset >= BEFORE and onset + AFTER <= len(trace):
                    onsets.append(start + onset)
    return np.array(onsets, dtype=int)


def merged(run: Path, session: int) -> dict[str, Array]:
    """Continuous factors, spikes and behaviour of a session, after training."""
    path = merge_file(
        output_files(run)[session],
        run / f"lfads_merged_sess{session}.h5",
        only=["encod_data", "behavior", "factors"],
    )
    data = read_arrays(path, ("encod_data", "behavior", "factors", "split"))
    data["behavior"] = data["behavior"][:, :2]  # the force; its derivatives are left out
    return {
        key: value if key == "split" else value.astype(np.float64) for key, value in data.items()
    }


def across_days(known: dict[str, Array], other: dict[str, Array]) -> Array:
    """R2 on test time of one session by a decoder that was fitted on another."""
    train = known["split"] == TRAIN
    [(weight, bias)] = fit_linear(known["factors"][train], known["behavior"][train], [1.0])
    predicted = other["factors"] @ weight + bias
    return r2(predicted, other["behavior"], other["split"] == TEST)


def draw(alignment: Alignment, path: Path) -> None:
    """Draw the shared factors around the onset."""
    figure = shared_factors(
        [session.factors for session in alignment.sessions],
        [f"{session.name}, $R^2$ {session.r2:.2f}" for session in alignment.sessions],
        alignment.components,
        [f"{45 * label}°" for label in alignment.conditions],
        bin_ms=20.0,
    )
    figure.savefig(path)


def main() -> None:
    """Prepare, align, train, decode, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("first", metavar="DAY0", help="windows of the first day")
    add("second", metavar="DAY95", help="windows of the second day")
    add("folder", metavar="DIR", help="folder for data files and runs")
    add("--train", type=float, default=0.1, help="part of the second day (%(default)s)")
    add("--epochs", type=int, default=100, help="of every run (%(default)s)")
    add("--seed", type=int, default=0, help="of splits and runs (%(default)s)")
    add("--quick", action="store_true", help="tiny networks, few epochs: does it run?")
    add("--markdown", action="store_true", help="print a Markdown table")
    options = parser.parse_args()
    if not 0 < options.train <= 0.8:
        raise UserError(f"--train is {options.train}; legal are fractions up to 0.8")

    folder = Path(options.folder).expanduser().absolute()
    paths = [folder / "data" / name for name in ("day0.h5", "day95.h5")]
    parts = ((0.1, 0.1), (0.1, 0.9 - options.train))
    trials = [
        rechop(Path(source).expanduser(), target, *fractions, options.seed)
        for source, target, fractions in zip(
            (options.first, options.second), paths, parts, strict=True
        )
    ]
    alignment = align_sessions(trials, N_FACTORS, smooth_bins=3.0)
    for path, session in zip(paths, alignment.sessions, strict=True):
        write_alignment(path, session)
        print(
            f"{session.name}: {session.n_trials.sum()} onsets in training time, R2 {session.r2:.3f}"
        )
    draw(alignment, folder / "shared_factors.png")

    common = small_model(N_FACTORS, options.seed, options.epochs, quick=options.quick)
    common["datamodule.batch_size"] = 128
    epochs = common["trainer.max_epochs"]

    few = {"datamodule.batch_size": 16}  # more than one step an epoch on the second day

    def train(name: str, files: list[Path], model: str, **more: Any) -> Path:
        pattern = {"datamodule.datafile_pattern": [str(path) for path in files], **more}
        run_model(
            {"model": model, **common, **pattern},
            config_path="multi.yaml",
            run_dir=folder / name,
            overwrite=True,
        )
        return folder / name

    alone = train("day95_alone", paths[1:], "default", **few)
    both = train("both", paths, "multisession_aligned")
    day0 = train("day0", paths[:1], "multisession_aligned")
    changed = [f"{key}={value}" for key, value in few.items()]
    added = folder / "added"
    add_session(day0, paths[1], added, epochs=epochs, overrides=changed, overwrite=True)

    days = {name: merged(run, 1) for name, run in (("both", both), ("added", added))}
    spikes = merged(alone, 0)
    seconds = [(spikes["split"] == k).sum() * 0.02 for k in range(3)]
    print("day 95: {:.0f} s to train, {:.0f} s to validate, {:.0f} s to test\n".format(*seconds))
    smoothed = [gaussian_smooth(spikes["encod_data"], width) for width in WIDTHS]

    def on(data: dict[str, Array]) -> Decoding:
        return decode([data["factors"]], data["behavior"], data["split"])

    rows = [
        ("smoothed spikes", "day 95", decode(smoothed, spikes["behavior"], spikes["split"]).r2),
        ("LFADS of day 95 alone", "day 95", on(spikes).r2),
        ("LFADS of both days", "day 95", on(days["both"]).r2),
        ("LFADS of day 0, day 95 added", "day 95", on(days["added"]).r2),
        ("LFADS of both days", "day 0", across_days(merged(both, 0), days["both"])),
        (
            "LFADS of day 0, day 95 added",
            "day 0",
            across_days(merged(added, 0), days["added"]),
        ),
    ]
    table = [
        [name, fitted, *(f"{score:.3f}" for score in (*scores, scores.mean()))]
        for name, fitted, scores in rows
    ]
    header = ["R2 on day 95's test time", "decoder of", "force x", "force y", "mean"]
    print(format_table(header, table, options.markdown))
    print(f"\nwritten: {folder / 'shared_factors.png'}")


if __name__ == "__main__":
    run_script(main)
