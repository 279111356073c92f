"""Which figures a report shows of the run: scores, training, the generator, the search."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from .. import plots
from ..dynamics import FixedPoints, Generator, find_fixed_points
from ..evaluation.behavior import SCORED, Recording
from ..plots.scores import score_intervals
from .page import Picture
from .record import RunRecord


def run_pictures(record: RunRecord) -> list[Picture]:
    """Return figures of the run: training, the generator, the search."""
    pictures = []
    if record.log:
        caption = (
            "Training terms are computed with dropout and masked inputs, validation terms without: "
            "training loss above validation loss is no fault. Ramps are the weights of the KL and "
            "L2 terms."
        )
        pictures.append(
            Picture("training", "Training", caption, lambda: plots.training_curves(record.log_path))
        )
    needed = {"gen_states", "gen_inputs"}
    recorded = all(needed <= set(r.trials[SCORED].names) for r in record.recordings)
    if record.recordings and recorded and not record.wanted.quick and record.model is not None:
        pictures += _dynamics(record)
    if len(record.recordings) > 1:
        pictures += _alignment(record)
    if record.population is not None:
        pictures += _search(record)
    return pictures


def score_picture(scores: dict[str, Any], names: dict[str, str], rows: dict[str, str]) -> Picture:
    """Return a picture of the run's scores beside the baselines'."""
    titles = {key: title.replace("R2", "R²") for key, title in names.items()}
    shown = {
        rows.get(row, row): {
            name: (e["value"], e["low"], e["high"]) for name, e in own.items() if e is not None
        }
        for row, own in scores["scores"].items()
    }
    level = (
        f"{scores['level']:.0%} intervals over trials" if scores.get("n_draws") else "no intervals"
    )
    caption = f"Dots are scores, lines {level}."
    highlight = [rows.get("lfads", "lfads"), rows.get("lfads_factors", "lfads_factors")]

    def draw() -> Figure:
        return score_intervals(shown, titles, highlight=highlight)

    return Picture("scores", "Scores", caption, draw)


def generator_points(record: RunRecord, n_starts: int = 64) -> FixedPoints:
    """Find fixed points of the generator near the states of trials, at their mean input."""
    states = np.concatenate([_flat(r.trials[SCORED]["gen_states"]) for r in record.recordings])
    inputs = np.concatenate([_flat(r.trials[SCORED]["gen_inputs"]) for r in record.recordings])
    mean = np.nan_to_num(inputs.mean(axis=0)) if inputs.shape[1] else np.zeros(0)
    points = find_fixed_points(Generator.of_model(record.model), states, mean, n_starts=n_starts)
    return points.near(1.0)


def _flat(values: NDArray[Any]) -> NDArray[Any]:
    return values.reshape(-1, values.shape[-1])


def _dynamics(record: RunRecord) -> Iterator[Picture]:
    states = record.recordings[0].trials[SCORED]["gen_states"]
    points = generator_points(record)
    caption = (
        "Where the generator alone, at the mean of its inputs, stands still (fixed) or nearly so "
        "(slow), among the states that validation trials visit; filled where small deviations "
        "shrink. An eigenvalue's modulus says how fast a deviation fades, its angle how fast it "
        "turns. Of a driven or short trial these may lie where the model hardly goes: numbers are "
        "of the model, and of the brain only as far as the model is."
    )

    def draw() -> Figure:
        return plots.fixed_points(points, states, bin_ms=record.recordings[0].session.bin_ms)

    yield Picture("dynamics", "Fixed points of the generator", caption, draw)


def _alignment(record: RunRecord) -> Iterator[Picture]:
    """Show condition averages of the factors, session by session."""
    if any("factors" not in r.trials[SCORED] for r in record.recordings):
        return
    names = list(dict.fromkeys(n for r in record.recordings for n in r.condition_names or [""]))
    means = [_condition_means(recording, names) for recording in record.recordings]
    caption = (
        "Averages of validation trials over each condition, in the space of their first principal "
        "components over all sessions. Where one model explains all sessions in the same way, a "
        "row looks the same in every column."
    )

    def draw() -> Figure:
        return plots.shared_factors(
            _in_common_space(means),
            [recording.session.name for recording in record.recordings],
            conditions=names if any(names) else None,
            bin_ms=record.recordings[0].session.bin_ms,
        )

    yield Picture("sessions", "Factors of all sessions", caption, draw)


def _condition_means(recording: Recording, names: list[str]) -> NDArray[np.float64]:
    factors = recording.trials[SCORED]["factors"].astype(np.float64)
    means = np.full((len(names), *factors.shape[1:]), np.nan)
    for number, name in enumerate(recording.condition_names or [""]):
        own = factors[recording.labels[SCORED] == number]
        if len(own):
            means[names.index(name)] = own.mean(axis=0)
    return means


def _in_common_space(means: list[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
    rows = np.concatenate([_flat(own) for own in means])
    rows = rows[np.isfinite(rows).all(axis=1)]
    centre = rows.mean(axis=0) if len(rows) else 0.0
    axes = np.linalg.svd(rows - centre, full_matrices=False)[2] if len(rows) else 1.0
    return [(own - centre) @ np.transpose(axes) for own in means]


def _search(record: RunRecord) -> Iterator[Picture]:
    from ..plots.hyperparameters import hyperparameter_paths, score_history

    table = record.population
    yield Picture(
        "search_scores",
        "Scores over the search",
        "Each member's validation loss, and who was copied onto whom.",
        lambda: score_history(table),
    )
    yield Picture(
        "search_paths",
        "Hyper-parameters over the search",
        "Values of every member; the line of the best final member stands out.",
        lambda: hyperparameter_paths(table),
    )
