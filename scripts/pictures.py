"""Draw the pictures of the how-to pages into docs/images, from made-up data and without training.

    python scripts/pictures.py

Each function here is one picture, ``docs/images/<name>.png``. The pictures of models are drawn by
what the pages name: `lfads demo`, `lfads report`, the notebooks.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from lfads_torch.data.synthetic import lorenz
from lfads_torch.post_run import plots
from lfads_torch.post_run.plots.style import look, styled
from lfads_torch.search.space import default_space

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"

Array = NDArray[Any]


def _trials(seed: int = 0) -> dict[str, Array]:
    """Return validation trials of a Lorenz system: spikes, rates, latents, conditions."""
    data = lorenz(8, 20, seed=seed)
    return {name[6:]: array for name, array in data.items() if name.startswith("valid_")}


@styled
def data_windows() -> Figure:
    """Spike times of a recording, the windows that `lfads prep --align` cuts, and one in bins."""
    rng = np.random.default_rng(0)
    events = np.array([0.9, 2.6, 4.0])
    time = np.arange(0, 5, 0.001)
    bump = sum(np.exp(-0.5 * ((time - event - 0.15) / 0.12) ** 2) for event in events)
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2.2, 1))
    gains = rng.uniform(0, 60, 12)
    spikes = [time[rng.random(len(time)) < (4 + gain * bump) * 0.001] for gain in gains]
    left.eventplot(spikes, colors=look().ink, linelengths=0.7, linewidths=0.8)
    for event in events:
        box = (event - 0.1, -0.6), 0.7, len(spikes) + 0.2
        left.add_patch(Rectangle(*box, color=look().sky, alpha=0.35, linewidth=0))
        left.axvline(event, color=look().orange, linestyle=":")
    left.set(xlabel="time of the recording (s)", ylabel="unit", xlim=(0, 5), ylim=(11.6, -0.6))
    left.set_title("windows of 700 ms around an event", fontsize=11)
    edges = events[1] - 0.1 + np.arange(36) * 0.02
    counts = np.stack([np.histogram(times, edges)[0] for times in spikes])
    image = right.imshow(
        counts, aspect="auto", cmap=look().spikes, extent=(-100, 600, len(spikes) - 0.5, -0.5)
    )
    right.set(xlabel="time from the event (ms)", title="one trial: counts in bins of 20 ms")
    right.title.set_fontsize(11)
    figure.colorbar(image, ax=right, label="spikes per bin", ticks=range(counts.max() + 1))
    return figure


def missing_bins() -> Figure:
    """Trials that end early, a channel that was not recorded, and a gap."""
    trials = _trials()
    counts = trials["recon_data"].astype(float)
    counts[0, 35:] = np.nan
    counts[1, :, 5] = np.nan
    counts[2, 15:22] = np.nan
    return plots.raster_panel(counts, trials["truth"], bin_ms=20, sort_units=False)


def calcium_events() -> Figure:
    """Deconvolved events, and the means that a zero-inflated gamma model infers of such."""
    rng = np.random.default_rng(0)
    mean = 0.5 * _trials()["truth"]
    events = np.where(rng.random(mean.shape) < mean, rng.gamma(4.0, 0.25, mean.shape) + 0.1, 0.0)
    return plots.single_trials(events, mean, bin_ms=33.3, n_units=3, n_trials=4, counts=False)


def emg_envelopes() -> Figure:
    """Rectified EMG, which a gamma model describes, and its mean."""
    rng = np.random.default_rng(0)
    mean = 0.2 + _trials()["truth"]
    return plots.single_trials(
        mean * rng.gamma(3.0, 1 / 3, mean.shape),
        mean,
        bin_ms=10,
        n_units=3,
        n_trials=4,
        counts=False,
    )


def outputs_shown() -> Figure:
    """Factors by condition, as an output file holds them."""
    trials = _trials()
    rng = np.random.default_rng(0)
    factors = trials["latents"] @ rng.normal(size=(3, 6))
    factors += rng.normal(0, 0.15, (len(factors), 1, 6))
    return plots.trajectories(factors, trials["cond_idx"], bin_ms=20, max_conditions=5)


def search_paths() -> Figure:
    """Hyper-parameters over a made-up search: losers copy winners, values are perturbed."""
    rng = np.random.default_rng(4)
    members = np.arange(8)
    names = ("lr_init", "dropout_rate", "kl_co_scale")
    ranges = ((4e-3, 4e-3), (0.0, 0.6), (1e-6, 1e-4))
    values = np.array([rng.uniform(low, high, len(members)) for low, high in ranges])
    rows: dict[str, list[Any]] = {}
    for epoch in range(40):
        parents = members.copy()
        scores = 0.6 + np.exp(-epoch / 9) * (0.3 + values[1]) + 0.05 * np.abs(values[1] - 0.3)
        if epoch % 8 == 0 and epoch:
            order = np.argsort(scores)
            parents[order[-3:]] = order[:3]
            values = values[:, parents]
            values[:, order[-3:]] *= rng.uniform(0.8, 1.25, (3, 3))
            scores = scores[parents]
        columns = {"epoch": np.full(8, epoch), "member": members, "parent": parents}
        columns |= {"diverged": np.zeros(8, bool), "valid/recon_smth": scores}
        columns |= {f"hp/{name}": column for name, column in zip(names, values, strict=True)}
        for name, column in columns.items():
            rows.setdefault(name, []).extend(column)
    table = {name: np.array(column) for name, column in rows.items()}
    return plots.hyperparameter_paths(table, names, space=default_space(names))


def overfitting() -> Figure:
    """Training curves of a made-up run that copies spikes from about epoch 40."""
    rng = np.random.default_rng(0)
    epoch = np.arange(150.0)
    fall = np.exp(-epoch / 12)
    rise = np.clip(epoch - 40, 0, None)
    log = {"epoch": epoch}
    for split, slope in (("train", -4e-4), ("valid", 3e-4)):
        log[f"{split}/recon"] = 0.6 + 0.4 * fall + slope * rise + rng.normal(0, 2e-3, 150)
        log[f"{split}/bps"] = 0.3 - fall - 3 * slope * rise + rng.normal(0, 4e-3, 150)
    log["valid/recon_smth"] = 0.6 + 0.4 * fall + 3e-4 * rise
    return plots.training_curves(log)


def decoded_velocity() -> Figure:
    """Behaviour decoded from rates and from smoothed spikes, on made-up trials."""
    rng = np.random.default_rng(0)
    true = _trials()["latents"][..., :2]
    noise = rng.normal(size=(2, *true.shape))
    return plots.decoded_behavior(
        true,
        true + 0.25 * noise[0],
        true + 0.55 * noise[1],
        names=["velocity x (a.u.)", "velocity y (a.u.)"],
        bin_ms=20,
        n_trials=5,
    )


def wrist_scores() -> Figure:
    """R2 of the behaviour of docs/real_data.md."""
    columns = ("force x", "force y", "d(force x)/dt", "d(force y)/dt")
    rows = {
        "LFADS factors": (0.748, 0.840, 0.413, 0.561),
        "LFADS rates": (0.715, 0.812, 0.562, 0.656),
        "smoothed, several widths": (0.591, 0.652, 0.445, 0.495),
        "smoothed spikes": (0.584, 0.647, 0.391, 0.436),
    }
    scores = {
        row: {name: (value,) for name, value in zip(columns, values, strict=True)}
        for row, values in rows.items()
    }
    titles = {name: f"R² of {name}" for name in columns}
    return plots.score_intervals(scores, titles, highlight=["LFADS factors", "LFADS rates"])


#: Pages and their pictures that are drawn here.
@styled
def bin_latency() -> Figure:
    """How long a bin of a stream takes: the table of docs/online.md."""
    text = (IMAGES.parent / "online.md").read_text(encoding="utf-8")
    _, _, table = text.partition("| | p50 |")
    heads, _, *lines = ("| | p50 |" + table).split("\n\n")[0].splitlines()
    names = [cell.strip() for cell in heads.split("|")[2:-1]]
    figure = Figure(figsize=(7.5, 2.9), layout="constrained")
    axis = figure.subplots()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    values = np.array([[float(cell) for cell in row[1:]] for row in rows])
    for y, row in enumerate(values):
        axis.plot(row[[0, -1]], [y, y], color=look().muted, linewidth=1, zorder=1)
    colors = (look().blue, look().sky, look().orange, look().ink, look().muted)
    for name, column, color in zip(names, values.T, colors, strict=True):
        axis.scatter(column, range(len(rows)), color=color, label=name, s=34, zorder=2)
    axis.axvline(5, color=look().muted, linestyle=":")
    axis.set(xscale="log", xlabel="time of a bin (ms)", ylim=(len(rows) - 0.5, -0.5))
    axis.set_yticks(range(len(rows)), [row[0] for row in rows])
    axis.set_xticks([0.1, 1, 5, 10], ["0.1", "1", "5", "10"])
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


@styled
def which_model() -> Figure:
    """Effect of each number on the wrist recording: docs/which_model.json."""
    results = json.loads((IMAGES.parent / "which_model.json").read_text(encoding="utf-8"))
    rows = [row for row in results if row["data"] == "wrist"]
    names = {
        "trials": "trials",
        "units": "units read",
        "fac_dim": "fac_dim",
        "co_dim": "co_dim",
        "cd_rate": "cd_rate",
        "dropout_rate": "dropout_rate",
        "kl_scale": "kl scales",
        "l2_scale": "l2 scales",
        "lr_init": "lr_init",
    }
    base = rows[0]  # the benchmark begins with it
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    axis = figure.subplots()
    for place, name in enumerate(names):
        others = [key for key in names if key != name]
        alike = [row for row in rows if all(row[key] == base[key] for key in others)]
        # Values in their order, "all" units (None) last.
        values = sorted({row[name] for row in alike}, key=lambda value: (value is None, value))
        for number, value in enumerate(values):
            scores = [row["co_bps"] for row in alike if row[name] == value]
            x = place + 0.24 * (number - (len(values) - 1) / 2)
            colour = look().blue if value == base[name] else look().muted
            axis.plot([x] * len(scores), scores, "o", color=colour, markersize=5)
            label = "all" if value is None else f"{value:g}".replace("e-0", "e-")
            axis.annotate(label, (x, 0.045), rotation=90, ha="center", va="bottom", fontsize=8)
    axis.set(ylabel="co-bps, wrist recording", ylim=(0.04, 0.28))
    axis.set_xticks(range(len(names)), names.values(), rotation=15)
    return figure


PICTURES = {
    "data.md": data_windows,
    "missing.md": missing_bins,
    "calcium.md": calcium_events,
    "emg.md": emg_envelopes,
    "outputs.md": outputs_shown,
    "searches.md": search_paths,
    "decoding.md": decoded_velocity,
    "online.md": bin_latency,
    "troubleshooting.md": overfitting,
    "real_data.md": wrist_scores,
    "which_model.md": which_model,
}


def main(folder: Path = IMAGES) -> None:
    """Draw all pictures."""
    for draw in PICTURES.values():
        draw().savefig(folder / f"{draw.__name__}.png", dpi=80)


if __name__ == "__main__":
    main()
