"""Which figures a report shows of a run and of each session, with what to see in them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ...arguments import LOSS
from ...data import names_of
from ...data.smoothing import gaussian_smooth
from ...errors import UserError
from ...metrics.decoder import Decoder
from ...metrics.regression import ridge
from ...prep.merging import START_KEY
from ...tables import Columns
from .. import plots
from ..decode import DECODER
from ..dynamics import Generator, find_fixed_points
from ..evaluation.behavior import SCORED, TRAIN, Recording
from ..evaluation.scoring import ALPHAS
from ..evaluation.table import COLUMNS, row_names
from ..plots.hyperparameters import LABELS
from ..plots.style import evenly, principal_axes
from ..posterior import kl_by_dimension
from .page import Picture
from .record import RunRecord

FloatArray = NDArray[np.float64]


# ---- of a run ----------------------------------------------------------------------------------


def run_pictures(record: RunRecord) -> list[Picture]:
    """Return figures of the run: training, the generator, the search."""
    pictures = []
    if record.log:
        caption = (
            "Training terms are computed with dropout and masked inputs, validation terms without: "
            "training loss above validation loss is no fault. Ramps are the weights of the KL and "
            "L2 terms."
        )
        draw = partial(plots.training_curves, record.log_path, record.select_by)
        pictures.append(Picture("training", "Training", caption, draw))
    if (about := record.alignment) is not None:
        pictures.append(_day(about))
    recorded = all({"gen_states", "gen_inputs"} <= set(_scored(r).names) for r in record.recordings)
    if record.recordings and recorded and not record.wanted.quick and record.model is not None:
        pictures.append(_dynamics(record))
    # Averages over windows of a continuous recording, which have no condition, show nothing.
    comparable = all("factors" in _scored(r) and r.condition_names for r in record.recordings)
    if len(record.recordings) > 1 and comparable:
        pictures.append(_alignment(record))
    if (table := record.population) is not None:
        pictures += _search(record, table)
    return pictures


def _search(record: RunRecord, table: Columns) -> Iterator[Picture]:
    """Show the scores of a search's members by what chose the winner, and their settings."""
    # The table of a search that another version made may lack that score.
    metric = record.select_by if record.select_by in table else LOSS
    is_population = record.command == "pbt"
    score = LABELS.get(metric, metric)
    caption = f"Each member's {score}, by which the search chose" + (
        ", and who was copied onto whom." if is_population else "."
    )
    draw: Callable[[], Figure] = partial(plots.score_history, table, metric)
    yield Picture("search_scores", "Scores over the search", caption, draw)
    name = "hyperparameter_paths" if is_population else "scores_by_value"
    caption = (
        "Values of every member; the line of the best final member stands out."
        if is_population
        else "The last score of every member by the values that it was trained with."
    )
    draw = partial(getattr(plots, name), table, metric=metric, space=record.search_space)
    yield Picture("search_paths", "Hyper-parameters of the search", caption, draw)


def score_picture(scores: dict[str, Any]) -> Picture:
    """Return a picture of the run's scores beside the baselines'."""
    titles = {key: title.replace("R2", "R²") for key, title in COLUMNS.items()}
    names = row_names(session["facts"] for session in scores["sessions"])
    shown = {
        names.get(row, row): {
            name: (e["value"], e["low"], e["high"]) for name, e in by_name.items() if e is not None
        }
        for row, by_name in scores["scores"].items()
    }
    level = (
        f"{scores['level']:.0%} intervals over trials" if scores.get("n_draws") else "no intervals"
    )
    highlight = [title for row, title in names.items() if row.startswith("lfads")]
    draw = partial(plots.score_intervals, shown, titles, highlight=highlight)
    return Picture("scores", "Scores", f"Dots are scores, lines {level}.", draw)


def time_picture(scores: dict[str, Any]) -> Picture | None:
    """Return a picture of the scores of consecutive parts of time, where they were computed."""
    titles = {key: title.replace("R2", "R²") for key, title in COLUMNS.items()}
    names = row_names(session["facts"] for session in scores["sessions"])
    shown = {
        session["name"]: {
            names[row]: by_time
            for row, by_time in (session.get("by_time") or {}).items()
            if row in ("lfads", "smoothing")
        }
        for session in scores["sessions"]
    }
    if not any(shown.values()):
        return None
    caption = (
        "Scores of consecutive parts of the scored trials in order of time. A fall towards the end "
        "is what a user of later data meets."
    )
    draw = partial(plots.scores_over_time, shown, titles)
    return Picture("scores_over_time", "Scores over time", caption, draw)


def _day(about: dict[str, Any]) -> Picture:
    """Show how the states of the day became like those of day 0."""
    before, after = (about["moments"][key] for key in ("before", "after"))
    caption = (
        f"Aligned to {Path(about['origin']['run']).name} without labels: the divergence "
        f"of the generator's states from day 0's fell from {before['divergence']:.3g} to "
        f"{after['divergence']:.3g} on validation windows. Seed {about['chosen']} (start: "
        f"{about['init']}) was chosen by divergence and loss. Right: variances of the whitened "
        "states; the dotted line is day 0."
    )
    return Picture("day", "Alignment", caption, partial(plots.day_alignment, about))


def _dynamics(record: RunRecord) -> Picture:
    """Show fixed points of the generator near the states of trials, at their mean input."""
    states, inputs = (
        np.concatenate([_flat(_scored(r)[name]) for r in record.recordings])
        for name in ("gen_states", "gen_inputs")
    )
    mean = np.nan_to_num(inputs.mean(axis=0)) if inputs.shape[1] else np.zeros(0)
    # Half of the usual number of starts: points that few starts reach do not make the figure, and
    # each start costs a linear system of all states per step. Far points are of no trial.
    points = find_fixed_points(Generator.of_model(record.model), states, mean, n_starts=64)
    points = points.near(1.0)
    first = record.recordings[0]
    caption = (
        "Where the generator alone, at the mean of its inputs, stands still (fixed) or nearly so "
        "(slow), among the states that validation trials visit; filled where small deviations "
        "shrink. An eigenvalue's modulus says how fast a deviation fades, its angle how fast it "
        "turns. Of a driven or short trial these may lie where the model hardly goes: numbers are "
        "of the model, and of the brain only as far as the model is."
    )

    visited, bin_ms = _scored(first)["gen_states"], first.session.bin_ms
    draw = partial(plots.fixed_points, points, visited, bin_ms=bin_ms)
    return Picture("dynamics", "Fixed points of the generator", caption, draw)


def _alignment(record: RunRecord) -> Picture:
    """Show condition averages of the factors, session by session."""
    names = list(dict.fromkeys(n for r in record.recordings for n in r.condition_names or []))
    caption = (
        "Averages of validation trials over each condition, in the space of their first principal "
        "components over all sessions. Where one model explains all sessions in the same way, a "
        "row looks the same in every column."
    )

    def draw() -> Figure:
        means = [_condition_means(recording, names) for recording in record.recordings]
        # One space for all sessions, since axes of each would turn and flip them at will.
        rows = np.concatenate([_flat(mean) for mean in means])
        rows = rows[np.isfinite(rows).all(axis=1)]
        components = None
        if len(rows):
            centre, axes, share = principal_axes(rows)
            means = [(mean - centre) @ axes.T for mean in means]
            components = [f"PC {k + 1} ({part:.0%})" for k, part in enumerate(share)]
        return plots.shared_factors(
            means,
            [recording.session.name for recording in record.recordings],
            conditions=names,
            bin_ms=record.recordings[0].session.bin_ms,
            factor_names=components,
        )

    return Picture("sessions", "Factors of all sessions", caption, draw)


def _condition_means(recording: Recording, names: list[str]) -> FloatArray:
    factors = _scored(recording)["factors"].astype(np.float64)
    means = np.full((len(names), *factors.shape[1:]), np.nan)
    for number, name in enumerate(recording.condition_names or []):
        members = factors[recording.labels[SCORED] == number]
        if len(members):
            means[names.index(name)] = members.mean(axis=0)
    return means


def _flat(values: NDArray[Any]) -> NDArray[Any]:
    return values.reshape(-1, values.shape[-1])


# ---- of a session ------------------------------------------------------------------------------


def session_pictures(record: RunRecord, recording: Recording) -> list[Picture]:
    """Return figures of one session, as far as its data allow."""
    arrays = set(_scored(recording).names) & set(recording.trials[TRAIN].names)
    pictures: list[Picture] = []
    for make, needed in MAKERS:
        if not arrays.issuperset(needed):
            continue
        try:
            pictures += make(record, recording)
        except UserError:
            raise
        except Exception as error:  # arrays that do not fit together; see `Press.show`
            what = f"The figure of {make.__name__.strip('_').replace('_', ' ')}"
            record.absent.append(f"{what} is left out: {type(error).__name__}: {error}.")
    return pictures


def _scored(recording: Recording) -> Any:
    return recording.trials[SCORED]


def _labels(recording: Recording) -> NDArray[Any] | None:
    """Return each scored trial's condition; numbers stay numbers, so that they sort as such."""
    if not recording.condition_names:
        return None
    names = np.array(recording.condition_names)
    labels = recording.labels[SCORED]
    try:
        return np.where(labels >= 0, names.astype(np.float64)[labels], np.nan)
    except ValueError:
        return np.where(labels >= 0, names[labels], "none")


def _rates(record: RunRecord, recording: Recording) -> Iterator[Picture]:
    trials = _scored(recording)

    def draw() -> Figure:
        chosen = evenly(len(trials), 3)
        inputs, truth = trials.get("co_means"), recording.truth.get(SCORED)
        return plots.raster_panel(
            recording.data[SCORED][chosen],
            trials["output_params"][chosen],
            None if truth is None else truth[chosen],
            inputs[chosen] if inputs is not None and np.any(inputs) else None,
            bin_ms=recording.session.bin_ms,
            n_encod=recording.n_channels,
            encod_bins=recording.n_bins,
            trial_names=chosen,
            counts=recording.counts,
        )

    data, means = ("Spikes", "rates") if recording.counts else ("Data", "means")
    has_inputs = "co_means" in trials and np.any(trials["co_means"])
    title = f"{data}, {means} and inferred inputs" if has_inputs else f"{data} and {means}"
    caption = (
        f"Validation trials: what was recorded, and the {means} that the model infers from it. "
        f"{'Units' if recording.counts else 'Channels'} with similar {means} lie beside each other."
    )
    yield Picture("rates", title, caption, draw)


def _single_trials(record: RunRecord, recording: Recording) -> Iterator[Picture]:
    trials = _scored(recording)
    draw = partial(
        plots.single_trials,
        recording.data[SCORED],
        trials["output_params"],
        recording.truth.get(SCORED),
        bin_ms=recording.session.bin_ms,
        trials=evenly(len(trials), 5),
        counts=recording.counts,
    )
    caption = (
        "Units whose rates vary most. Rates should follow what spikes have in common across the "
        "population and not each single spike."
        if recording.counts
        else "Channels whose means vary most. Means should follow what channels have in common and "
        "not each single value."
    )
    yield Picture("single_trials", "Single trials", caption, draw)


def _psths(record: RunRecord, recording: Recording) -> Iterator[Picture]:
    data, rates = recording.data[SCORED], _scored(recording)["output_params"]
    labels, bin_ms = _labels(recording), recording.session.bin_ms
    if labels is None:
        return
    draw = partial(plots.psths, data, rates, labels, bin_ms=bin_ms, counts=recording.counts)
    caption = (
        f"Averages over validation trials by {recording.condition_key}; bands are standard errors. "
        "Above what was measured, below what was inferred from single trials without knowing "
        "the condition."
    )
    yield Picture("psths", "Responses by condition", caption, draw)


def _channels(record: RunRecord, recording: Recording) -> Iterator[Picture]:
    by_channel = record.session_scores(recording).get("by_channel", {})

    def joined(row: str) -> FloatArray | None:
        """Return scores of channels that are read, then of those held out."""
        values = by_channel.get(row, {})
        if not values.get("bps"):
            return None
        both = [*values["bps"], *values.get("co_bps", [])]
        return np.array([np.nan if v is None else v for v in both], dtype=np.float64)

    scores, reference = joined("lfads"), joined("smoothing")
    if scores is None:
        return
    caption = (
        "Bits per spike over each channel's mean rate. Smoothed spikes predict a bin from the bins "
        "around it, LFADS has seen the bin itself where the channel is read; held-out channels are "
        "free of this. Hollow dots at the border lie beyond it: channels of very few spikes."
    )
    draw = partial(plots.channel_scores, scores, reference, n_encod=recording.n_channels)
    yield Picture("channels", "Channel by channel", caption, draw)


def _factors(record: RunRecord, recording: Recording) -> Iterator[Picture]:
    factors, labels = _scored(recording)["factors"], _labels(recording)
    starts = _scored(recording).get(START_KEY)
    caption = "Factors of validation trials in the space of their first principal components" + (
        ": thin lines are single trials, thick ones averages." if labels is not None else "."
    )
    if starts is not None:
        caption = (
            "Factors of the validation windows, joined to the recording that they are of, in the "
            "space of their first principal components: how often each state is visited, and one "
            "stretch over time."
        )
    draw = partial(
        plots.trajectories, factors, labels, bin_ms=recording.session.bin_ms, starts=starts
    )
    yield Picture("factors", "Factors", caption, draw)


def _latents(record: RunRecord, recording: Recording) -> Iterator[Picture]:
    factors, bin_ms = _scored(recording)["factors"], recording.session.bin_ms
    latents = recording.latents.get(SCORED)
    if latents is None or latents.ndim != 3 or latents.shape[2] < 2:
        return
    caption = "Factors mapped linearly onto the latents that the data were generated from."
    draw = partial(plots.factors_3d, factors, latents, bin_ms=bin_ms)
    yield Picture("latents", "Factors and true latents", caption, draw)


def _initial(record: RunRecord, recording: Recording) -> Iterator[Picture]:
    labels = _labels(recording)
    caption = "Posterior means of the initial condition" + (
        ", and how well they tell conditions apart: what a trial's condition changes before "
        "its first bin, or what the encoder saw coming."
        if labels is not None
        else ", coloured by the order of trials: a gradient is a drift over the recording."
    )
    draw = partial(plots.initial_conditions, _scored(recording)["ic_mean"], labels)
    yield Picture("initial_conditions", "Initial conditions", caption, draw)


def event_bins(record: RunRecord, recording: Recording) -> tuple[FloatArray | None, str]:
    """Return the event's bin in each scored trial, or None where none was named, and its name."""
    trials, event, event_ms = _scored(recording), record.wanted.event, record.wanted.event_ms
    if event is not None:
        bins = np.asarray(trials[event], dtype=np.float64)
        if bins.shape != (len(trials),):
            raise UserError(
                f"{recording.session.path}: {event!r} has shape {bins.shape}; an event is one bin "
                f"for each of the {len(trials)} trials"
            )
        return bins, event
    if event_ms is None:
        return None, ""
    if recording.session.bin_ms is None:
        raise UserError("the bin width is not known, so an event cannot be placed in ms: --bin-ms")
    return np.full(len(trials), event_ms / recording.session.bin_ms), f"{event_ms:g} ms"


def _inputs(record: RunRecord, recording: Recording) -> Iterator[Picture]:
    inputs, labels = _scored(recording)["co_means"], _labels(recording)
    if not np.any(inputs):  # a model without a controller writes zeros
        return
    events, name = event_bins(record, recording)
    bin_ms = recording.session.bin_ms
    draw = partial(
        plots.aligned_inputs, inputs, events, labels, bin_ms=bin_ms, event_name=name or "event"
    )
    caption = (
        "What the controller feeds the generator. Where inputs come at a fixed time in many "
        "trials, something happened that the dynamics alone do not explain. Their sign and scale "
        "are arbitrary."
    )
    title = "Inferred inputs" + (f" around {name}" if events is not None else "")
    yield Picture("inputs", title, caption, draw)


def _usage(record: RunRecord, recording: Recording) -> Iterator[Picture]:
    if record.model is None or record.set_up("variational") is False:
        return
    trials = _scored(recording)
    ic = kl_by_dimension(record.model.ic_prior, trials["ic_mean"], trials["ic_std"])
    co = None
    if "co_stds" in trials and np.any(trials["co_means"]):
        co = kl_by_dimension(record.model.co_prior, trials["co_means"], trials["co_stds"])
    if ic is None and co is None:
        return
    caption = (
        "Divergence of each dimension's posterior from its prior, averaged over validation trials: "
        "a dimension near zero tells nothing of a trial."
    )
    draw = partial(plots.latent_usage, ic, co, bin_ms=recording.session.bin_ms)
    yield Picture("usage", "Which latents are used", caption, draw)


def _behavior(record: RunRecord, recording: Recording) -> Iterator[Picture]:
    """Show behaviour decoded from the inferred rates, where the file has behaviour."""
    behavior = recording.behavior
    if not behavior or behavior[SCORED].ndim != 3 or len(recording.sets[SCORED]) != 1:
        return
    rates = [recording.trials[kind]["output_params"] for kind in (TRAIN, SCORED)]
    if not all(np.isfinite(array).any() for array in (*rates, behavior[TRAIN], behavior[SCORED])):
        return  # that rates are not finite is a finding of its own

    def draw() -> Figure:
        return plots.decoded_behavior(
            behavior[SCORED],
            _decode(recording, *rates),
            _from_smoothed(record, recording),
            names=_columns(recording),
            bin_ms=recording.session.bin_ms,
        )

    caption = (
        "Ridge regression from inferred rates of the same bin, fitted on training trials, shown on "
        "validation trials. R² is over all validation bins."
    )
    yield Picture("behavior", "Behaviour decoded", caption, draw)


def _columns(recording: Recording) -> list[str] | None:
    """Return the names of the columns of behaviour, as far as the file's attribute has them."""
    return names_of(recording.session.attrs, "behavior", recording.behavior[SCORED].shape[2])


def _readout(record: RunRecord, recording: Recording) -> Iterator[Picture]:
    """Show behaviour as the model itself reads it out, where it was trained to."""
    behavior, readout = recording.behavior, recording.readout
    if readout is None or not behavior or behavior[SCORED].ndim != 3:
        return
    draw = partial(
        plots.decoded_behavior,
        behavior[SCORED],
        readout,
        names=_columns(recording),
        bin_ms=recording.session.bin_ms,
        decoded_name="read out by the model",
    )
    caption = (
        "What the readout that trained with the model says of validation trials. R² is over all "
        "validation bins."
    )
    yield Picture("readout", "Behaviour read out by the model", caption, draw)


def _day0_decoded(record: RunRecord, recording: Recording) -> Iterator[Picture]:
    """Show behaviour as day 0's decoder gives it, of an alignment whose origin saved one."""
    about, behavior = record.alignment, recording.behavior
    path = Path(about["origin"]["run"]) / DECODER if about else None
    if path is None or not path.is_file() or not behavior or behavior[SCORED].ndim != 3:
        return
    decoder, scored = Decoder.load(path), _scored(recording)
    if decoder.features not in scored or decoder.smooth_ms:
        return
    draw = partial(
        plots.decoded_behavior,
        behavior[SCORED],
        decoder.predict(scored[decoder.features]),
        names=decoder.target_names,
        bin_ms=recording.session.bin_ms,
        decoded_name=f"decoded from {decoder.features}",
    )
    caption = (
        f"What the decoder of day 0 makes of this day's {decoder.features}; nothing was fitted to "
        "this day's behaviour. R² is over all validation bins that its lags leave."
    )
    yield Picture("day0_decoded", "Behaviour by day 0's decoder", caption, draw)


def _decode(recording: Recording, train: NDArray[Any], scored: NDArray[Any]) -> FloatArray:
    target = recording.behavior[TRAIN].astype(np.float64)
    n_bins = min(recording.n_bins, target.shape[1])
    fit = ridge(train[:, :n_bins], target[:, :n_bins], ALPHAS, scaled=True).fit
    return fit(scored[:, :n_bins])


def _from_smoothed(record: RunRecord, recording: Recording) -> FloatArray | None:
    """Decode behaviour from spikes, smoothed as `lfads evaluate` chose; None without scores."""
    choices = record.session_scores(recording).get("choices", {}).get("smoothing", {})
    [sources, *_] = choices.get("behavior_from") or [[]]
    widths = [re.match(r"width ([\d.]+) bins$", str(source)) for source in sources]
    if not widths or any("encod_data" not in trials for trials in recording.trials.values()):
        return None
    columns = []
    for column, width in enumerate(widths):
        if width is None:
            return None
        smooth = (
            gaussian_smooth(recording.trials[kind]["encod_data"], float(width[1]))
            for kind in (TRAIN, SCORED)
        )
        columns.append(_decode(recording, *smooth)[..., column])
    return np.stack(columns, axis=-1)


MAKERS: tuple[tuple[Callable[[RunRecord, Recording], Iterator[Picture]], tuple[str, ...]], ...] = (
    (_rates, ()),
    (_single_trials, ()),
    (_psths, ()),
    (_channels, ()),
    (_factors, ("factors",)),
    (_latents, ("factors",)),
    (_initial, ("ic_mean",)),
    (_inputs, ("co_means",)),
    (_usage, ("ic_mean", "ic_std")),
    (_readout, ()),
    (_behavior, ()),
    (_day0_decoded, ()),
)
"""What makes figures, and the arrays that it needs."""
