"""Ensembles: the models that are averaged, what their mean rates are worth, and their folder.

Only rates are averaged: factors, states, initial conditions and inferred inputs of two models share
no coordinates.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..data import add_to_file, copy_rest, new_file
from ..data.find import absolute_pattern
from ..errors import ConfigError, DataError, UserError, one_of, whole
from ..files import write_whole
from ..folder import ENSEMBLE, RunFolder
from ..metrics.accumulate import regions
from ..metrics.decoder import plain
from ..metrics.trialwise import ErrorScore, SpikeScore, ratio, resampled_trials
from ..tuples import SessionOutput, output_name
from .evaluation.behavior import CONDITION_KEYS
from .evaluation.score_run import estimate
from .evaluation.table import Estimate
from .outputs import RunOutputs, SessionOutputs
from .selection import SPACES, Selection, Target, average, check_rates, greedy_select, in_space

__all__ = [
    "Ensemble",
    "Member",
    "average",
    "ensemble_models",
    "greedy_select",
    "select_members",
    "write_ensemble",
]

Array = NDArray[Any]
Indices = NDArray[np.int64]

METRICS = ("co_bps", "bps", "fp_bps", "loss")

# ---- members that are runs -----------------------------------------------------------------------


@dataclass(frozen=True)
class Member:
    """A model of an ensemble, and the file or files that hold its rates."""

    name: str
    run: Path
    checkpoint: Path
    outputs: RunOutputs
    # Whether it is a library of PSTHs, of which the rates stand for the checkpoint
    is_library: bool = False

    @property
    def sha256(self) -> str:
        """Of the checkpoint."""
        return hashlib.sha256(self.checkpoint.read_bytes()).hexdigest()


class TrialChoice(NamedTuple):
    """Trials of each session: their split, and which of its rows."""

    split: str
    rows: list[Indices]


@dataclass
class Ensemble:
    """What `lfads ensemble` made: the members, their weights, and scores.

    `scores` are by row ("select" and "scored" trials of each); `differences` are paired, on the
    scored trials, from the best member by select.
    """

    path: Path
    members: list[Member]
    selection: Selection
    metric: str
    space: str
    how: str
    select: TrialChoice
    scored: TrialChoice
    scores: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    differences: dict[str, Estimate] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    outputs: list[Path] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return everything in plain numbers, as ``ensemble.json`` has it."""
        counts = Counter(self.selection.members)
        return {
            "format": 1,
            "metric": self.metric,
            "space": self.space,
            "select_by": self.how,
            "members": [
                {
                    "name": m.name,
                    "run": str(m.run),
                    "checkpoint": str(m.checkpoint),
                    "from_here": os.path.relpath(m.checkpoint, self.path),
                    "sha256": m.sha256,
                    "is_library": m.is_library,
                    "count": counts.get(k, 0),
                }
                for k, m in enumerate(self.members)
            ],
            "chosen": self.selection.chosen,
            "multiset": self.selection.members,
            "select_curve": self.selection.curve,
            "trials": {
                kind: {"split": part.split, "rows": [rows.tolist() for rows in part.rows]}
                for kind, part in (("select", self.select), ("scored", self.scored))
            },
            "scores": {
                row: {kind: plain(vars(value)) for kind, value in kinds.items()}
                for row, kinds in self.scores.items()
            },
            "differences": {row: plain(vars(value)) for row, value in self.differences.items()},
            "notes": self.notes,
            "outputs": [path.name for path in self.outputs],
        }

    def text(self) -> str:
        """Return the table that the command prints."""
        n_select = sum(len(rows) for rows in self.select.rows)
        n_scored = sum(len(rows) for rows in self.scored.rows)
        counts = Counter(self.selection.members)
        names = [f"{self.members[k].name} x{n}" for k, n in sorted(counts.items())]
        heads = [
            f"{self.metric}",
            f"select ({n_select} of {self.select.split})",
            f"scored ({n_scored} of {self.scored.split})",
        ]
        rows = [
            [row, *(str(kinds[kind]) if kind in kinds else "" for kind in ("select", "scored"))]
            for row, kinds in self.scores.items()
        ]
        widths = [max(len(line[i]) for line in [heads, *rows]) for i in range(3)]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
            for line in [heads, *rows]
        ]
        gain = self.differences["ensemble"]
        return "\n".join(
            [
                *lines,
                "",
                f"members: {', '.join(names)}",
                # Without an interval where greedy selection took that member alone.
                f"gain over the best member by select: {gain.value:+.4f}"
                + f" [{gain.low:+.4f}, {gain.high:+.4f}]" * bool(np.isfinite(gain.low)),
                *(f"note: {note}" for note in self.notes),
            ]
        )


def check_members(members: Sequence[Member]) -> None:
    """Refuse members of other data: sessions, channels, bins, trials or numbers."""
    if len(members) < 2:
        raise ConfigError(
            f"an ensemble of {len(members)} member(s); it needs 2 or more: name more runs, a "
            "search, or the folder of lfads train --seeds"
        )
    first = dict(_facts(members[0]))
    for member in members[1:]:
        facts = dict(_facts(member))
        for what in {**first, **facts}:
            if first.get(what) != facts.get(what):
                raise DataError(
                    f"{members[0].run} and {member.run} are not of the same data: {what} is "
                    f"{first.get(what)} in the one, {facts.get(what)} in the other; an ensemble "
                    "averages models of the same trials, bins and channels"
                )


def _facts(member: Member) -> Iterator[tuple[str, Any]]:
    yield "the number of sessions", len(member.outputs)
    for number, session in enumerate(member.outputs):
        where = f" of session {number}" if len(member.outputs) > 1 else ""
        n_bins, n_channels = session.read_sizes
        yield f"the bins that are read{where}", n_bins
        yield f"the channels that are read{where}", n_channels
        for split in session.splits:
            trials = session.trials(split)
            yield f"the shape of {split}_output_params{where}", trials["output_params"].shape
            if "recon_data" in trials:
                # As numbers, not bytes: one file may hold counts as integers, the other as floats.
                data = np.ascontiguousarray(trials["recon_data"], dtype=np.float32)
                print_ = hashlib.sha256(data.data).hexdigest()[:12]
                yield f"{split}_recon_data{where} (SHA-256)", print_


def choose_trials(
    outputs: RunOutputs, select_split: str | float | None, scored: str | None, seed: int
) -> tuple[TrialChoice, TrialChoice]:
    """Choose the trials that select members, and those on which the ensemble is scored.

    A fraction is of the validation trials, drawn so that each condition has its share. Scored are
    the test trials, else the validation trials that do not select. A split is taken whole.
    """
    splits = [s for s in outputs[0].splits if all(s in session.splits for session in outputs)]
    if select_split is None:
        select_split = "select" if "select" in splits else 1 / 3
    if isinstance(select_split, str):
        one_of("--select-split", select_split, [s for s in splits if s != "train"])
        rest = [s for s in ("test", "valid") if s in splits and s != select_split]
        chosen = one_of("--split", scored or (rest or ["valid"])[0], splits)
        if chosen == select_split:
            raise ConfigError(
                f"{chosen} trials cannot both select and be scored; give --select-split a fraction"
            )
        return (_all_of(outputs, select_split), _all_of(outputs, chosen))
    if not 0 < select_split < 1:
        raise ConfigError(
            f"--select-split is {select_split:g}; legal are a fraction between 0 and 1, and "
            f"{', '.join(s for s in splits if s != 'train')}"
        )
    picked, others = [], []
    for number, session in enumerate(outputs):
        rows = _drawn(session, select_split, [seed, number])
        picked.append(rows)
        others.append(np.setdiff1d(np.arange(session.n_trials("valid")), rows))
    chosen = one_of("--split", scored or ("test" if "test" in splits else "valid"), splits)
    # Trials that select are never scored.
    not_picked = TrialChoice("valid", others)
    to_score = not_picked if chosen == "valid" else _all_of(outputs, chosen)
    return TrialChoice("valid", picked), to_score


def _all_of(outputs: RunOutputs, split: str) -> TrialChoice:
    return TrialChoice(split, [np.arange(session.trials(split).n_trials) for session in outputs])


def _drawn(session: SessionOutputs, fraction: float, seed: Sequence[int]) -> Indices:
    """Draw a fraction of the validation trials, some of each condition."""
    trials = session.trials("valid")
    labels = np.zeros(trials.n_trials, dtype=np.int64)
    for key in CONDITION_KEYS:
        if key in trials and trials[key].ndim == 1:
            labels = np.unique(trials[key], return_inverse=True)[1].reshape(-1)
            break
    if trials.n_trials < 2:
        raise UserError(f"{session.path} has {trials.n_trials} validation trial(s), too few")
    # Trials in random order, sorted by condition, of which every so-many-th is taken.
    order = np.random.default_rng(seed).permutation(trials.n_trials)
    order = order[np.argsort(labels[order], kind="stable")]
    n = min(max(1, round(fraction * trials.n_trials)), trials.n_trials - 1)
    return np.sort(order[np.floor((np.arange(n) + 0.5) * len(order) / n).astype(int)])


def metric_regions(session: SessionOutputs, metric: str) -> tuple[slice, slice]:
    """Return the bins and channels that a metric scores."""
    if metric == "loss":
        return slice(None), slice(None)
    names = ("bps", "co_bps", "fp_bps")
    n_bins, n_channels = session.read_sizes
    return regions(n_channels, n_bins)[names.index(metric)]


def legal_metrics(outputs: RunOutputs) -> list[str]:
    """Return the metrics for which the data have bins and channels."""
    legal = []
    for metric in METRICS:
        sizes = []
        for session in outputs:
            bins, channels = metric_regions(session, metric)
            shape = session.trials(session.splits[0])["output_params"][:1, bins, channels].shape
            sizes.append(math.prod(shape[1:]))
        if any(sizes):
            legal.append(metric)
    return legal


def select_members(
    members: Sequence[Member],
    *,
    how: str = "greedy",
    most: int = 32,
    metric: str | None = None,
    select_split: str | float | None = None,
    scored: str | None = None,
    space: str = "rate",
    seed: int = 0,
    n_draws: int = 1000,
    level: float = 0.95,
    path: Path = Path(),
) -> Ensemble:
    """Choose which members to average, and score them, the choice, and simpler ones.

    Parameters
    ----------
    members : sequence of Member
        Models of the same data.
    how : str
        ``greedy``, ``top:N`` (the N best by select), or ``all``.
    most : int
        Choices of greedy selection at most.
    metric : {"co_bps", "bps", "fp_bps", "loss"}, optional
        By default the first of these for which the data have channels; of data that are no counts
        the same channels are scored by the share of variance explained.
    select_split, scored : str or float, optional
        See `choose_trials`.
    space : {"rate", "log"}
        What is averaged.
    seed : int
        Of the draw of trials and of the bootstrap.
    n_draws, level
        Of the bootstrap over scored trials.
    path : Path
        The folder of the ensemble.

    Returns
    -------
    Ensemble

    Raises
    ------
    UserError
        Where members are of different data, or an argument is out of range.
    """
    kind, _, number = how.partition(":")
    one_of("--select", kind, ("greedy", "top", "all"))
    if (kind == "top") != bool(number):
        raise ConfigError(f"--select is {how!r}; legal are greedy, all and top:N, such as top:8")
    whole("--max", most, least=1)
    one_of("--space", space, SPACES)
    check_members(members)
    reference = members[0].outputs
    legal = legal_metrics(reference)
    metric = one_of("--metric", metric or legal[0], legal)
    if kind == "top":
        n = whole("the N of --select top:N", _number(number), least=1, most=len(members))
    select, scored_trials = choose_trials(reference, select_split, scored, seed)
    is_counts = all(session.counts for session in reference)
    target = Target(len(members), is_counts, space)
    singles: list[Any] = []
    for k, member in enumerate(members):
        for rates, data in _cut(member, select, metric):
            target.add(k, rates, data, str(member.run))
        singles.append([_score_of(pair, is_counts) for pair in _cut(member, select, metric)])
    values = np.array([_value(scores, 1)[0] for scores in singles])
    order = np.argsort(-values, kind="stable")
    greedy = target.select(most)
    choices = {"greedy": greedy.members, "all": list(range(len(members)))}
    choices |= {f"top:{m}": order[:m].tolist() for m in (2, 4, 8, 16) if m < len(members)}
    if kind == "top":
        choices[how] = order[:n].tolist()
    selection = greedy if kind == "greedy" else Selection(choices[how], [], choices[how])
    ensemble = Ensemble(path, list(members), selection, metric, space, how, select, scored_trials)
    best = int(order[0])
    _score_all(ensemble, choices, best, is_counts, (seed, n_draws, level))
    if scored_trials.split == "valid":
        ensemble.notes.append(
            "the scored trials chose the members' own checkpoints (and, in a search, their "
            "hyper-parameters), so these scores flatter; a split `test` (lfads prep --test 0.2) "
            "is scored instead where the file has one"
        )
    return ensemble


def _number(text: str) -> Any:
    return int(text) if text.isdigit() else text


def _cut(member: Member, chosen: TrialChoice, metric: str) -> Iterator[tuple[Array, Array]]:
    """Yield rates and data of the chosen trials, of the metric's bins and channels, by session."""
    for session, rows in zip(member.outputs, chosen.rows, strict=True):
        bins, channels = metric_regions(session, metric)
        trials = session.trials(chosen.split)
        rates, data = (
            np.asarray(trials[name])[rows][:, bins, channels]
            for name in ("output_params", "recon_data")
        )
        yield rates, data


def _score_of(pair: tuple[Array, Array], is_counts: bool) -> Any:
    return (SpikeScore if is_counts else ErrorScore).of(*pair)


def _value(scores: Sequence[Any], weights: Any) -> Array:
    """Return the score of all sessions together, for each row of weights of their trials."""
    parts = [score.parts(_weights(score, weights, i)) for i, score in enumerate(scores)]
    return ratio(*(sum(part[i] for part in parts) for i in range(2)))


def _weights(score: Any, weights: Any, session: int) -> Array:
    n = len(score.nll if isinstance(score, SpikeScore) else score.n)
    return np.ones((1, n)) if isinstance(weights, int) else weights[session]


def _score_all(
    ensemble: Ensemble,
    choices: Mapping[str, Sequence[int]],
    best: int,
    is_counts: bool,
    draws: tuple[int, int, float],
) -> None:
    """Fill in scores and paired differences."""
    seed, n_draws, level = draws
    weights = [
        np.concatenate([np.ones((1, len(rows))), resampled_trials(len(rows), n_draws, [seed, i])])
        for i, rows in enumerate(ensemble.scored.rows)
    ]

    def evaluate(mean: Callable[[TrialChoice], Any]) -> tuple[float, Array]:
        select = [_score_of(pair, is_counts) for pair in mean(ensemble.select)]
        scored = [_score_of(pair, is_counts) for pair in mean(ensemble.scored)]
        return float(_value(select, 1)[0]), _value(scored, weights)

    def mean_of(numbers: Sequence[int]) -> Callable[[TrialChoice], Any]:
        counts = Counter(numbers)

        def mean(chosen: TrialChoice) -> list[tuple[Array, Array]]:
            totals: list[Array] = []
            data: list[Array] = []
            # One member is in memory at a time.
            for k, n in sorted(counts.items()):
                cuts = list(_cut(ensemble.members[k], chosen, ensemble.metric))
                for i, (rates, observed) in enumerate(cuts):
                    check_rates(rates, observed, str(ensemble.members[k].run))
                    part = n / len(numbers) * in_space(rates.astype(np.float64), ensemble.space)
                    if len(totals) <= i:
                        totals.append(part)
                        data.append(observed)
                    else:
                        totals[i] += part
            means = np.exp if ensemble.space == "log" else np.asarray
            return [(means(total), seen) for total, seen in zip(totals, data, strict=True)]

        return mean

    single = {k: evaluate(mean_of([k])) for k in range(len(ensemble.members))}
    for k, (select, scored) in single.items():
        row = {"select": Estimate(select), "scored": estimate(scored, level)}
        ensemble.scores[ensemble.members[k].name] = row
    names = {"ensemble": ensemble.selection.members, **choices}
    ensembles = {name: evaluate(mean_of(numbers)) for name, numbers in names.items()}
    ensemble.scores["mean of the members' scores"] = {
        "select": Estimate(float(np.mean([select for select, _ in single.values()]))),
        "scored": estimate(np.mean([scored for _, scored in single.values()], axis=0), level),
    }
    for name, (select, scored) in ensembles.items():
        label = "ensemble" if name == "ensemble" else f"mean of {name}"
        ensemble.scores[label] = {"select": Estimate(select), "scored": estimate(scored, level)}
        ensemble.differences[name] = estimate(scored - single[best][1], level)
    ensemble.scores["best member by select"] = ensemble.scores[ensemble.members[best].name]


# ---- the folder of an ensemble -------------------------------------------------------------------


def write_ensemble(ensemble: Ensemble) -> list[Path]:
    """Write the folder: averaged rates in output files, ``ensemble.json``, and its status."""
    folder, weights = ensemble.path, ensemble.selection.weights
    files = []
    for number, first in enumerate(ensemble.members[0].outputs):
        sessions = {k: ensemble.members[k].outputs[number] for k in weights}
        splits = [s for s in first.splits if all(s in x.splits for x in sessions.values())]
        names = [output_name(field) for field in SessionOutput._fields]
        fields = {f"{split}_{name}" for split in splits for name in names}
        stem = first.path.stem if first.path.stem.startswith("lfads_output") else None
        path = folder / f"{stem or f'lfads_output_{first.name}'}.h5"
        with new_file(absolute_pattern(str(path))) as file:
            for split in splits:
                total: Any = 0.0
                for k, share in weights.items():
                    rates = sessions[k].trials(split)["output_params"].astype(np.float64)
                    total = total + share * in_space(rates, ensemble.space)
                mean = np.exp(total) if ensemble.space == "log" else total
                add_to_file(file, {f"{split}_output_params": mean.astype(np.float32)})
            copy_rest(first.path, file, fields)
            add_to_file(file, {}, {"num_models": len(weights), "run": str(folder)})
            file.attrs.pop("checkpoint", None)
        files.append(path)
    ensemble.outputs = files
    write_whole(folder / ENSEMBLE, json.dumps(ensemble.to_dict(), indent=2) + "\n")
    RunFolder(folder).write_status(
        "complete",
        ensemble=len(weights),
        metric=ensemble.metric,
        outputs=[path.name for path in files],
    )
    return files


def ensemble_models(folder: Path) -> tuple[dict[str, Any], list[Path], list[int]]:
    """Return what ``ensemble.json`` says, the checkpoints that count, and how often each does."""
    path = folder / ENSEMBLE
    try:
        about: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        members = [member for member in about["members"] if member["count"]]
        libraries = [str(member["name"]) for member in members if member.get("is_library")]
        counts = [int(member["count"]) for member in members]
        files = [_checkpoint_of(member, folder) for member in members]
        sums = [str(member["sha256"]) for member in members]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read: {error}; make the ensemble again") from error
    if libraries:
        raise UserError(
            f"{libraries[0]}, a member of {folder}, is a library of PSTHs, which samples no other "
            "trials; make an ensemble of these trials: lfads ensemble RUN... --also "
            f"{libraries[0]} --data FILE"
        )
    for file, sha in zip(files, sums, strict=True):
        if not file.is_file():
            raise UserError(f"{file}, a member of {folder}, is gone; put it back")
        if hashlib.sha256(file.read_bytes()).hexdigest() != sha:
            raise UserError(
                f"{file} has changed since {folder} was made; make the ensemble again: lfads "
                "ensemble"
            )
    return about, files, counts


def _checkpoint_of(member: Mapping[str, Any], folder: Path) -> Path:
    """Return where a member's checkpoint is, also where ensemble and runs moved together."""
    near = folder / str(member.get("from_here", ""))
    return near if near.is_file() else Path(member["checkpoint"])
