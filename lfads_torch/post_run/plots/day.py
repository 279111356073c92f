"""How an alignment to another day went."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .style import Figure, empty_figure, log_scale, look, styled


@styled
def day_alignment(record: Mapping[str, Any]) -> Figure:
    """Draw divergence and loss of each seed by epoch, and moments before and after.

    Parameters
    ----------
    record : mapping
        The content of ``alignment.json``.

    Returns
    -------
    Figure
        The chosen seed stands out. In the last panel the eigenvalues of the whitened states'
        covariance; those of day 0 are all 1.
    """
    moments = record.get("moments")
    if not moments:
        return empty_figure("no alignment to draw")
    seeds = [row for row in record["seeds"] if row.get("by_epoch")]
    figure = Figure(figsize=(3.6 * (1 + 2 * bool(seeds)), 2.8), layout="constrained")
    axes = figure.subplots(1, 1 + 2 * bool(seeds), squeeze=False)[0]
    names = {"divergence": "divergence", "nll": "loss"}
    # `names` is longer where no seed has trained: then there is the last panel alone.
    for axis, (key, title) in zip(axes[:-1], names.items(), strict=False):
        for place, row in enumerate(sorted(seeds, key=lambda row: row["seed"] == record["chosen"])):
            is_chosen = row["seed"] == record["chosen"]
            others = "other seeds" if place == 0 else None
            label = f"seed {row['seed']}, {row['init']}" if is_chosen else others
            axis.plot(
                np.arange(len(row["by_epoch"][key])),
                row["by_epoch"][key],
                color=look().blue if is_chosen else look().muted,
                linewidth=2.2 if is_chosen else 1.0,
                label=label,
            )
        if key == "divergence":
            log_scale(axis, "y", plain=True)
        axis.set_xlabel("epoch")
        axis.set_ylabel(f"{title} (validation)")
        axis.legend(frameon=False)
    spectra = axes[-1]
    for key, color in (("before", look().muted), ("after", look().blue)):
        values, norm = moments[key]["spectrum"], moments[key]["mean_norm"]
        label = f"{key}, |mean| {norm:.2g}"
        spectra.plot(np.arange(1, len(values) + 1), values, color=color, label=label)
    spectra.axhline(1.0, color=look().ink, linestyle=":", linewidth=1.0)
    log_scale(spectra, "y", plain=True)
    spectra.set_xlabel("whitened dimension")
    spectra.set_ylabel("variance (day 0: 1)")
    spectra.legend(frameon=False)
    return figure
