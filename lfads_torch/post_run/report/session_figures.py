"""Which figures a report shows of each session, with what to see in them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ...data.smoothing import gaussian_smooth
from ...errors import UserError
from ...metrics.regression import ridge
from .. import plots
from ..evaluation.behavior import SCORED, TRAIN, Recording
from ..evaluation.scoring import ALPHAS
from ..plots.scores import channel_scores
from ..posterior import kl_by_dimension
from .page import Picture
from .record import RunRecord


def session_pictures(record: RunRecord, recording: Recording) -> list[Picture]:
    """Return figures of one session, as far as its data allow."""
    arrays = set(recording.trials[SCORED].names) & set(recording.trials[TRAIN].names)
    return [
        picture
        for make, needed in MAKERS
        if arrays.issuperset(needed)
        for picture in make(record, recording)
    ]


def _trials(recording: Recording) -> Any:
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
    trials, session = _trials(recording), recording.session
    inputs = trials.get("co_means")
    chosen = np.unique(np.linspace(0, len(trials) - 1, 3).astype(int))

    def draw() -> Figure:
        truth = recording.truth.get(SCORED)
        return plots.raster_panel(
            recording.data[SCORED][chosen],
            trials["output_params"][chosen],
            None if truth is None else truth[chosen],
            inputs[chosen] if inputs is not None and np.any(inputs) else None,
            bin_ms=session.bin_ms,
            n_encod=recording.n_channels,
            encod_bins=recording.n_bins,
            trial_names=chosen.tolist(),
            counts=recording.counts,
        )

    caption = (
        "Validation trials: what was recorded, and the rates that the model infers from it. Units "
        "with similar rates lie beside each other."
    )
    yield Picture("rates", "Spikes, rates and inferred inputs", caption, draw)


def _single_trials(record: RunRecord, recording: Recording) -> Iterator[Picture]:
    trials = _trials(recording)

    def draw() -> Figure:
        chosen = np.unique(np.linspace(0, len(trials) - 1, 5).astype(int)).tolist()
        return plots.single_trials(
            recording.data[SCORED],
            trials["output_params"],
            recording.truth.get(SCORED),
            bin_ms=recording.session.bin_ms,
            trials=chosen,
            counts=recording.counts,
        )

    caption = (
        "Units whose rates vary most. Rates should follow what spikes have in common across the "
        "population and not each single spike."
    )
    yield Picture("single_trials", "Single trials", caption, draw)


def _psths(record: RunRecord, recording: Recording) -> Iterator[Picture]:
    labels = _labels(recording)
    if labels is None:
        return

    def draw() -> Figure:
        return plots.psths(
            recording.data[SCORED],
            _trials(recording)["output_params"],
            labels,
            bin_ms=recording.session.bin_ms,
            counts=recording.counts,
        )

    caption = (
        f"Averages over validation trials by {recording.condition_key}; bands are standard errors. "
        "Above what was measured, below what was inferred from single trials without knowing "
        "the condition."
    )
    yield Picture("psths", "Responses by condition", caption, draw)


def _channels(record: RunRecord, recording: Recording) -> Iterator[Picture]:
    by_channel = record.session_scores(recording).get("by_channel", {})
    own, other = (by_channel.get(row, {}) for row in ("lfads", "smoothing"))
    if not own.get("bps"):
        return

    def joined(values: dict[str, list[float | None]]) -> NDArray[np.float64] | None:
        """Channels that are read, then those held out."""
        if not values.get("bps"):
            return None
        both = [*values["bps"], *values.get("co_bps", [])]
        return np.array([np.nan if v is None else v for v in both], dtype=np.float64)

    scores, reference = joined(own), joined(other)
    if scores is None:
        return
    caption = (
        "Bits per spike over each channel's mean rate. Smoothed spikes predict a bin from the bins "
        "around it, LFADS has seen the bin itself where the channel is read; held-out channels are "
        "free of this."
    )
    yield Picture(
        "channels",
        "Channel by channel",
        caption,
        lambda: channel_scores(scores, reference, n_encod=recording.n_channels),
    )


def _factors(record: RunRecord, recording: Recording) -> Iterator[Picture]:
    trials, labels = _trials(recording), _labels(recording)
    caption = "Factors of validation trials in the space of their first principal components" + (
        ": thin lines are single trials, thick ones averages." if labels is not None else "."
    )

    def draw() -> Figure:
        return plots.trajectories(trials["factors"], labels, bin_ms=recording.session.bin_ms)

    yield Picture("factors", "Factors", caption, draw)


def _latents(record: RunRecord, recording: Recording) -> Iterator[Picture]:
    latents = recording.latents.get(SCORED)
    if latents is None or latents.ndim != 3 or latents.shape[2] < 2:
        return
    caption = "Factors mapped linearly onto the latents that the data were generated from."

    def draw() -> Figure:
        factors = _trials(recording)["factors"]
        return plots.factors_3d(factors, latents, bin_ms=recording.session.bin_ms)

    yield Picture("latents", "Factors and true latents", caption, draw)


def _initial(record: RunRecord, recording: Recording) -> Iterator[Picture]:
    labels = _labels(recording)
    caption = "Posterior means of the initial condition" + (
        ", and how well they tell conditions apart: what a trial's condition changes before "
        "its first bin, or what the encoder saw coming."
        if labels is not None
        else ", coloured by the order of trials: a gradient is a drift over the recording."
    )
    yield Picture(
        "initial_conditions",
        "Initial conditions",
        caption,
        lambda: plots.initial_conditions(_trials(recording)["ic_mean"], labels),
    )


def event_bins(record: RunRecord, recording: Recording) -> tuple[NDArray[np.float64] | None, str]:
    """Return the event's bin in each scored trial, or None where none was named, and its name."""
    wanted, trials = record.wanted, _trials(recording)
    if wanted.event is not None:
        bins = np.asarray(trials[wanted.event], dtype=np.float64)
        if bins.shape != (len(trials),):
            raise UserError(
                f"{recording.session.path}: {wanted.event!r} has shape {bins.shape}; an event is "
                f"one bin for each of the {len(trials)} trials"
            )
        return bins, wanted.event
    if wanted.event_ms is None:
        return None, ""
    if recording.session.bin_ms is None:
        raise UserError("the bin width is not known, so an event cannot be placed in ms: --bin-ms")
    bins = np.full(len(trials), wanted.event_ms / recording.session.bin_ms)
    return bins, f"{wanted.event_ms:g} ms"


def _inputs(record: RunRecord, recording: Recording) -> Iterator[Picture]:
    inputs, labels = _trials(recording)["co_means"], _labels(recording)
    if not np.any(inputs):
        return
    events, name = event_bins(record, recording)
    caption = (
        "What the controller feeds the generator. Where inputs come at a fixed time in many "
        "trials, something happened that the dynamics alone do not explain. Their sign and scale "
        "are arbitrary."
    )
    title = "Inferred inputs" + (f" around {name}" if events is not None else "")

    def draw() -> Figure:
        return plots.aligned_inputs(
            inputs, events, labels, bin_ms=recording.session.bin_ms, event_name=name or "event"
        )

    yield Picture("inputs", title, caption, draw)


def _usage(record: RunRecord, recording: Recording) -> Iterator[Picture]:
    if record.model is None or record.config.get("model", {}).get("variational") is False:
        return
    trials = _trials(recording)
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
    yield Picture(
        "usage",
        "Which latents are used",
        caption,
        lambda: plots.latent_usage(ic, co, bin_ms=recording.session.bin_ms),
    )


_WIDTH = re.compile(r"width ([\d.]+) bins$")


def _behavior(record: RunRecord, recording: Recording) -> Iterator[Picture]:
    """Show behaviour decoded from the inferred rates, where the file has behaviour."""
    behavior = recording.behavior
    if not behavior or behavior[SCORED].ndim != 3 or len(recording.sets[SCORED]) != 1:
        return
    rates = [recording.trials[kind]["output_params"] for kind in (TRAIN, SCORED)]
    if not all(np.isfinite(array).any() for array in (*rates, behavior[TRAIN], behavior[SCORED])):
        return  # that rates are not finite is a finding of its own
    names = _column_names(recording)

    def draw() -> Figure:
        return plots.decoded_behavior(
            behavior[SCORED],
            _decode(recording, *rates),
            _from_smoothed(record, recording),
            names=names,
            bin_ms=recording.session.bin_ms,
        )

    caption = (
        "Ridge regression from inferred rates of the same bin, fitted on training trials, shown on "
        "validation trials. R² is over all validation bins."
    )
    yield Picture("behavior", "Behaviour decoded", caption, draw)


def _decode(recording: Recording, train: NDArray[Any], scored: NDArray[Any]) -> NDArray[np.float64]:
    target = recording.behavior[TRAIN].astype(np.float64)
    n_bins = min(recording.n_bins, target.shape[1])
    fit = ridge(train[:, :n_bins], target[:, :n_bins], ALPHAS, scaled=True).fit
    return fit(scored[:, :n_bins])


def _from_smoothed(record: RunRecord, recording: Recording) -> NDArray[np.float64] | None:
    """Decode behaviour from spikes, smoothed as `lfads evaluate` chose; None without scores."""
    choices = record.session_scores(recording).get("choices", {}).get("smoothing", {})
    [sources, *_] = choices.get("behavior_from") or [[]]
    widths = [_WIDTH.match(str(source)) for source in sources]
    if not widths or any("encod_data" not in part for part in recording.trials.values()):
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


def _column_names(recording: Recording) -> list[str] | None:
    """Return names of the behaviour's columns, from the attribute ``behavior`` of the file."""
    text = recording.session.attrs.get("behavior")
    names = [name.strip() for name in text.split(",")] if isinstance(text, str) else []
    n_columns = recording.behavior[SCORED].shape[2]
    return names[:n_columns] if len(names) >= n_columns else None


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
    (_behavior, ()),
)
"""What makes figures, and the arrays that it needs."""
