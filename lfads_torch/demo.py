"""The demonstration: spikes of a known system, a model that has never seen it, and the scores."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from .errors import UserError, whole
from .files import save_figure
from .folder import BEST_MODEL, METRICS, RunFolder, number_outputs
from .processes import stoppable
from .progress import Line

Array = NDArray[Any]

DATA = "lorenz.h5"


class DemoScores(NamedTuple):
    """Scores on validation trials."""

    #: Of the inferred rates over each unit's mean rate.
    bits_per_spike: float
    #: The same of the true rates: what a perfect model would reach.
    best_bits_per_spike: float
    #: R2 of inferred against true rates, mean over units.
    rate_r2: float
    #: R2 of the true latents by a linear map of the factors, fitted on training trials.
    latent_r2: float


def run_demo(
    folder: Path,
    *,
    seed: int = 0,
    n_conditions: int = 65,
    n_trials: int = 16,
    n_units: int = 30,
    n_bins: int = 50,
    mean_rate: float = 0.3,
    max_epochs: int | None = None,
    population: int | None = None,
    overwrite: bool = False,
) -> DemoScores:
    """Generate spikes driven by a Lorenz system, train, sample, score, draw and print."""
    from .data import write_session
    from .data.synthetic import lorenz

    if max_epochs is not None:
        whole("epochs (--epochs)", max_epochs, least=1)
    began = time.monotonic()
    # Before the folder is claimed, so that a wrong number leaves no folder behind.
    data = lorenz(n_conditions, n_trials, n_units, n_bins, mean_rate, seed=seed)
    with stoppable(), RunFolder(folder).claimed("training", overwrite=overwrite):
        if overwrite:
            RunFolder(folder).delete()
        write_session(folder / DATA, data, {"source": "Lorenz system", "seed": seed})
        Line().say(
            f"{len(data['train_recon_data'])} training and {len(data['valid_recon_data'])} "
            f"validation trials of {n_units} units x {n_bins} bins, {mean_rate:g} spikes per bin\n"
            f"run folder: {folder}"
        )
        overrides: dict[str, Any] = {
            "model": "demo",
            "datamodule": "demo",
            "datamodule.datafile_pattern": str(folder / DATA),
            "seed": seed,
        }
        if max_epochs is not None:
            overrides["trainer.max_epochs"] = max_epochs
        place = folder if population is None else folder / BEST_MODEL
        outputs = _train(folder, overrides, population)
        output = read_arrays(outputs[0])
        scores = score(output)
        figures = sorted((folder / "figures").glob("search_*.png")) + draw(place, output)
        print_report(scores, [*figures, *outputs, place / METRICS], time.monotonic() - began)
        if population is not None:
            together = score_rates(read_arrays(outputs[1]))
            print(f"\nall {population} members together (--ensemble)")
            print(f"  bits per spike  {together[0]:7.3f}\n  R2 of rates     {together[1]:7.3f}")
    return scores


def _train(folder: Path, overrides: dict[str, Any], population: int | None) -> list[Path]:
    """Train one model or a population; return the output files, the best model's first."""
    if population is None:
        from .run_model import run_model

        overrides = {"callbacks": "demo", **overrides}
        outputs = run_model(overrides, config_path="demo.yaml", run_dir=folder).outputs
    else:
        from .runs.sampling import sample_run
        from .search.run import run_search

        overrides = {**overrides, "search.num_workers": population}
        # The data are in the folder, and it was made ready before.
        outputs = run_search(overrides, "pbt_demo.yaml", run_dir=folder).outputs
        outputs = [*outputs, *sample_run(folder, ensemble=True)]
    number_outputs(outputs[:1])
    if not outputs:
        raise UserError(f"{folder}: posterior sampling wrote no output")
    return outputs


def read_arrays(path: Path) -> dict[str, Array]:
    """Read an output file of posterior sampling."""
    with h5py.File(path, "r") as file:
        return {key: np.asarray(item[()]) for key, item in file.items()}


def score(output: dict[str, Array]) -> DemoScores:
    """Score validation trials against the truth."""
    import torch

    from .metrics import bits_per_spike, linear_map_r2

    truth, spikes = (
        torch.from_numpy(output[f"valid_{name}"].astype(np.float64))
        for name in ("truth", "recon_data")
    )
    bits, rate_r2 = score_rates(output)
    return DemoScores(
        bits_per_spike=bits,
        best_bits_per_spike=float(bits_per_spike(truth.log(), spikes)),
        rate_r2=rate_r2,
        latent_r2=linear_map_r2(
            output["valid_factors"],
            output["valid_latents"],
            # A map fitted to the scored trials would flatter the model.
            fit_on=(output["train_factors"], output["train_latents"]),
        ),
    )


def score_rates(output: dict[str, Array]) -> tuple[float, float]:
    """Return bits per spike and R2 of the rates of validation trials."""
    import torch

    from .metrics import bits_per_spike, r2_score

    rates, truth, spikes = (
        torch.from_numpy(output[f"valid_{name}"].astype(np.float64))
        for name in ("output_params", "truth", "recon_data")
    )
    return float(bits_per_spike(rates.log(), spikes)), float(r2_score(rates, truth))


def draw(folder: Path, output: dict[str, Array]) -> list[Path]:
    """Draw rates, attractor and training curves."""
    from .post_run.plots import factors_3d, raster_panel, training_curves

    drawn = {
        "rates": raster_panel(
            output["valid_recon_data"],
            output["valid_output_params"],
            output["valid_truth"],
            output["valid_co_means"],
        ),
        "attractor": factors_3d(output["valid_factors"], output["valid_latents"]),
        "training": training_curves(folder / METRICS),
    }
    paths = []
    for name, figure in drawn.items():
        path = folder / "figures" / f"demo_{name}.png"
        save_figure(figure, path, dpi=150)
        paths.append(path)
    return paths


def print_report(scores: DemoScores, paths: list[Path], seconds: float) -> None:
    """Print the scores and where everything lies."""
    rows = [
        ("bits per spike", scores.bits_per_spike, f"true rates: {scores.best_bits_per_spike:.3f}"),
        ("R2 of rates", scores.rate_r2, "inferred against true rates"),
        ("R2 of latents", scores.latent_r2, "Lorenz state by a linear map of the factors"),
    ]
    print("\nvalidation trials")
    for name, value, note in rows:
        print(f"  {name:<16}{value:7.3f}   ({note})")
    print(f"\n{seconds:.0f} s in all; written:")
    for path in paths:
        print(f"  {path}")
