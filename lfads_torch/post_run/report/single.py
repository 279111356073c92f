"""The report of one run."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ...data.fingerprint import summary
from ...errors import UserError, did_you_mean
from ...files import expanded, read_json, write_whole
from ...folder import ENSEMBLE, RunFolder
from ..evaluation import BASELINES
from ..evaluation.behavior import Recording
from ..evaluation.few_shot import FewShot, few_shot_table
from ..evaluation.table import COLUMNS, NLB_NAMES, row_names
from ..outputs import whole_attribute
from .findings import CHECKED, Finding, find_all
from .page import FORMATS, Press, render
from .pictures import run_pictures, score_picture, session_pictures, time_picture
from .record import RunRecord, Wanted, read_run

REPORT = "report.html"

TILES = ("co_bps", "bps", "behavior_r2", "truth_r2", "latents_r2", "fp_bps", "r2", "psth_r2")
"""Scores for the top of the page, the weightiest first."""
N_TILES = 4


class Report(NamedTuple):
    """What was written."""

    # The page
    path: Path
    findings: list[Finding]
    # Files with figures, where these were wanted
    figures: list[Path]


def report_run(
    run: str | Path,
    output: str | Path | None = None,
    wanted: Wanted | None = None,
    *,
    figures: str | Path | None = None,
    figure_format: str = "png",
    tell: Callable[[str], None] | None = None,
) -> Report:
    """Write the report of a run: scores, warnings, figures, settings, how to reproduce it.

    The page is one HTML file that loads nothing and runs nothing; it follows the reader's choice of
    light or dark. Scores are those that `lfads evaluate` left in the run folder, or are computed.

    Parameters
    ----------
    run : str or Path
        Run folder, of a single run or of a search.
    output : str or Path, optional
        The page; ``report.html`` in the run folder by default.
    wanted : Wanted, optional
        Keys of the data to use, and how much to compute.
    figures : str or Path, optional
        Folder for the figures as files as well.
    figure_format : {"png", "pdf", "svg"}
        Of these files.
    tell : callable, optional
        Called with a line of text before each longer step.

    Returns
    -------
    Report

    Raises
    ------
    UserError
        If the folder holds no run, a key that was named is absent, or the page cannot be written.
    """
    if figure_format not in FORMATS:
        raise UserError(
            f"figure_format is {figure_format!r}; {did_you_mean(figure_format, FORMATS)}"
        )
    tell = tell or (lambda line: None)
    tell("reading the run, scoring it where it has no scores")
    record = read_run(run, wanted)
    tell("checking it")
    findings = find_all(record)
    press = Press(Path(figures) if figures else None, figure_format, tell)
    many = len(record.recordings) > 1
    # Each figure is drawn and encoded at once, so that one is in memory and not all of them.
    sessions = [
        {
            "name": recording.session.name,
            "anchor": f"session-{k}",
            "facts": session_facts(recording),
            "pictures": [
                press.show(picture, f"{recording.session.name}_" if many else "")
                for picture in session_pictures(record, recording)
            ],
        }
        for k, recording in enumerate(record.recordings)
    ]
    pictures = {p.key: press.show(p) for p in run_pictures(record)}
    scores = record.scores
    scored_sessions = scores["sessions"] if scores else []
    names = row_names(session["facts"] for session in scored_sessions)
    over_time = time_picture(scores) if scores else None
    model = {s["name"]: s["scores"].get("lfads", {}) for s in scored_sessions}
    page = render(
        "report.html.j2",
        record=record,
        title=record.name,
        findings=findings,
        checked=CHECKED,
        tiles=tiles(scores),
        table=score_rows(scores["scores"], names, marks="best") if scores else None,
        differences=score_rows(scores["differences"], names, marks="sign") if scores else None,
        by_session=score_rows(model, {name: name for name in model}) if many and model else None,
        nlb=[
            (s["name"], [(NLB_NAMES[k], v) for k, v in s["nlb"].items() if k in NLB_NAMES])
            for s in scored_sessions
            if s.get("nlb")
        ],
        few_shot=[
            (s["name"], few_shot_table(few_shot_of(s), names))
            for s in scored_sessions
            if s.get("few_shot")
        ],
        score_figure=press.show(score_picture(scores)) if scores else None,
        time_figure=press.show(over_time) if over_time else None,
        sessions=sessions,
        pictures=pictures,
        facts=run_facts(record),
        environment=environment_facts(record),
        commands=commands(record),
        settings=record.config_text,
    )
    path = expanded(output).absolute() if output else record.folder / REPORT
    write_whole(path, page)
    return Report(path, findings, press.files)


def session_facts(recording: Recording) -> list[tuple[str, str]]:
    """Describe the data of a session in words."""
    session = recording.session
    _, n_bins, n_channels = recording.data["scored"].shape
    width = f" of {session.bin_ms:g} ms" if session.bin_ms is not None else ""
    trials = ", ".join(f"{session.n_trials(split)} {split}" for split in session.splits)
    bins = f"{n_bins}{width}"
    if recording.n_bins < n_bins:
        bins += f", the first {recording.n_bins} read"
    channels = f"{n_channels}"
    if recording.n_channels < n_channels:
        channels += f", the last {n_channels - recording.n_channels} held out"
    kind = "counts" if recording.counts else "values, not counts"
    facts = [("trials", trials), ("bins", bins), ("channels", channels), ("data", kind)]
    if recording.condition_names:
        n_conditions = len(set(recording.condition_names))
        facts.append(("conditions", f"{n_conditions} ({recording.condition_key})"))
    return facts


def few_shot_of(session: dict[str, Any]) -> dict[str, list[FewShot]]:
    """Return few-shot scores as `lfads evaluate` wrote them."""
    return {row: [FewShot(**one) for one in of_row] for row, of_row in session["few_shot"].items()}


def tiles(scores: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return the weightiest scores of the model, each with what smoothed spikes reach."""
    if not scores:
        return []
    model, smoothed = (scores["scores"].get(row, {}) for row in ("lfads", "smoothing"))
    names = row_names(session["facts"] for session in scores["sessions"])
    shown = [name for name in TILES if _value(model.get(name)) is not None][:N_TILES]
    return [
        {
            "name": COLUMNS[name],
            "estimate": model[name],
            "reference": _value(smoothed.get(name)),
            "reference_name": names["smoothing"],
        }
        for name in shown
    ]


def _value(estimate: dict[str, Any] | None) -> float | None:
    value = (estimate or {}).get("value")
    return value if value is not None and math.isfinite(value) else None


def score_rows(
    scores: dict[str, dict[str, Any]], names: dict[str, str], *, marks: str = ""
) -> dict[str, Any]:
    """Lay out a table of scores: titles of columns, and rows with a name and a cell for each.

    With the `marks` "best" the best of each column is marked, ceilings set aside; with "sign" what
    excludes 0.
    """
    known = {
        key: {row: v for row in scores if (v := _value(scores[row].get(key))) is not None}
        for key in COLUMNS
    }
    # What sees the truth, or the scored trials, is no method; a column without scores says nothing.
    ceilings = ["truth", *(row.name for row in BASELINES.values() if row.is_ceiling)]
    columns = [key for key in COLUMNS if known[key]]
    top = {
        key: max((v for row, v in known[key].items() if row not in ceilings), default=None)
        for key in columns
    }
    rows = []
    for row, title in names.items():
        if not scores.get(row):
            continue
        cells = []
        for key in columns:
            estimate = scores[row].get(key)
            value = _value(estimate)
            mark = ""
            if value is not None and marks == "best" and row not in ceilings and value == top[key]:
                mark = "best"
            if value is not None and marks == "sign" and estimate and estimate["low"] is not None:
                mark = "better" if estimate["low"] > 0 else "worse" if estimate["high"] < 0 else ""
            cells.append({"estimate": estimate if value is not None else None, "mark": mark})
        is_model, is_ceiling = row.startswith("lfads"), row in ceilings
        rows.append({"name": title, "cells": cells, "is_model": is_model, "is_ceiling": is_ceiling})
    return {"columns": [COLUMNS[key] for key in columns], "rows": rows}


def run_facts(record: RunRecord) -> list[tuple[str, str]]:
    """Describe in words how the run went."""
    status = record.status
    facts = [("state", str(status.get("stage", "unknown")))]
    if record.log:
        epochs = max((int(e[-1]) for e, _ in record.log.values() if len(e)), default=-1) + 1
        best = record.best_epoch
        facts.append(("epochs", f"{epochs}" + (f", best {best}" if best is not None else "")))
    if record.command == "ensemble":
        counts = [f"{m.get('name', m['run'])} ({m.get('count', 1)})" for m in _members(record)]
        facts.append(("models (how often each counts)", ", ".join(counts)))
    for key in ("started", "finished"):
        if status.get(key):
            facts.append((key, str(status[key])))
    sizes = [
        f"{size} {name.removesuffix('s') if size == 1 else name}"
        for k, name in SIZES.items()
        if (size := record.set_up(k))
    ]
    if sizes:
        facts.append(("model", ", ".join(sizes)))
    if record.model is not None:
        n_weights = sum(p.numel() for p in record.model.parameters() if p.requires_grad)
        facts.append(("trained parameters", f"{n_weights:,}"))
    if (samples := _samples(record)) is not None:
        facts.append(("posterior samples", str(samples)))
    return facts


def _members(record: RunRecord) -> list[dict[str, Any]]:
    """Return what ``ensemble.json`` says of the models of an ensemble."""
    members: list[dict[str, Any]] = read_json(
        record.folder / ENSEMBLE, {"members": [{"run": str}]}
    )["members"]
    return members


def _samples(record: RunRecord) -> int | None:
    if record.outputs is None:
        return None
    return whole_attribute(record.outputs[0].attrs, "num_samples")


SIZES = {
    "gen_dim": "generator states",
    "fac_dim": "factors",
    "co_dim": "inferred inputs",
    "ic_dim": "initial-condition dimensions",
}


def environment_facts(record: RunRecord) -> list[tuple[str, str]]:
    """List what the run was computed with, as it recorded it."""
    environment = record.status.get("environment") or {}
    facts = [("lfads-torch", str(record.status["version"]))] if "version" in record.status else []
    if environment.get("commit"):
        changed = " and changes that were not committed" if environment.get("dirty") else ""
        facts.append(("commit", f"{environment['commit']}{changed}"))
    facts += [
        (key, str(environment[key]))
        for key in ("kernels", "python", "system", "device", "cores", "threads")
        if key in environment
    ]
    facts += [(name, str(v)) for name, v in (environment.get("packages") or {}).items()]
    return facts + [
        (f"data, {data['file']}", f"checksum {summary(data)}")
        for data in record.status.get("data") or []
    ]


def commands(record: RunRecord) -> list[tuple[str, str]]:
    """Return commands that make such a run and its report again, each with what it does."""
    samples, again = _samples(record) or 50, shlex.quote(f"runs/{record.name}_again")
    if about := record.status.get("alignment"):
        run, day = (shlex.quote(str(about[key])) for key in ("run", "day"))
        make = (
            "align with the options in alignment.json",
            f"lfads align {run} {day} --run-dir {again}",
        )
    elif record.command == "ensemble":
        runs = shlex.join(dict.fromkeys(m["run"] for m in _members(record) if m.get("run")))
        make = (
            "average models again, with the choices that ensemble.json records",
            f"lfads ensemble {runs} -o {again}",
        )
    else:
        seed = RunFolder(record.folder).status.get("seed", record.config.get("seed", 0))
        make = (
            f"{'train' if record.command == 'train' else 'search'} with the configuration below, "
            f"saved as config.yaml (it holds the seed, {seed}, and says where the data are)",
            f"lfads {record.command} --config config.yaml --run-dir {again}",
        )
    sample = ("average posterior samples anew", f"lfads sample {again} --samples {samples}")
    return [
        make,
        *([] if record.command == "ensemble" else [sample]),
        ("score", f"lfads evaluate {again}"),
        ("write this page", f"lfads report {again}"),
    ]
