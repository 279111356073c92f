"""Several runs beside each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from ...errors import UserError
from ...files import check_writable, expanded, write_whole
from ...folder import RunFolder
from ..evaluation.cross import cross_r2, cross_table
from ..evaluation.table import COLUMNS, row_names
from ..plots.training import training_beside
from .findings import find_all
from .page import Picture, Press, render
from .pictures import session_pictures
from .record import RunRecord, Wanted, read_run
from .single import Report, run_facts

COMPARISON = "comparison.html"
BESIDE = ("rates", "psths", "factors", "latents", "inputs", "usage", "behavior")
"""Figures of a session that are laid beside each other."""
ABSENT = "\u2013"


def compare_runs(
    runs: Sequence[str | Path],
    output: str | Path | None = None,
    wanted: Wanted | None = None,
    *,
    cross: bool = False,
    tell: Callable[[str], None] | None = None,
) -> Report:
    """Write a page with several runs beside each other: scores, settings that differ, figures.

    Parameters
    ----------
    runs : sequence of str or Path
        Run folders, two or more.
    output : str or Path, optional
        The page; ``comparison.html`` in the working directory by default.
    wanted : Wanted, optional
        As of `report_run`.
    cross : bool
        Also how well each run's factors are explained by those of each other run.
    tell : callable, optional
        Called with a line of text before each longer step.

    Returns
    -------
    Report
        Its `findings` are those of all runs.

    Raises
    ------
    UserError
        If there are fewer than two runs, the same one twice, or a folder holds no run.
    """
    folders = [
        Path(one)
        for folder in (RunFolder(expanded(run).absolute()) for run in runs)
        for one in (folder.members() if folder.kind == "seeds" else [folder.path])
    ]
    if len(folders) < 2:
        raise UserError("a comparison needs two runs or more: lfads compare RUN1 RUN2 ...")
    twice = {str(f) for f in folders if folders.count(f) > 1}
    if twice:
        raise UserError(f"{sorted(twice)[0]} is named twice; name each run once")
    path = expanded(output or COMPARISON).absolute()
    check_writable(path)
    tell = tell or (lambda line: None)
    records = []
    for folder in folders:
        tell(f"reading {folder.name}")
        records.append(read_run(folder, wanted))
    names = distinct_names(folders)
    press = Press(tell=tell)
    findings = [find_all(record) for record in records]
    logs = {name: record.log for name, record in zip(names, records, strict=True) if record.log}
    caption = "Smoothed as the checkpoint is chosen by; outputs are of the lowest."
    curves = Picture("training", "Training", caption, lambda: training_beside(logs))
    page = render(
        "compare.html.j2",
        title=f"{len(records)} runs compared",
        names=names,
        findings=list(zip(names, findings, strict=True)),
        facts=[(name, run_facts(r)) for name, r in zip(names, records, strict=True)],
        table=score_comparison(names, records),
        caveats=list(caveats(names, records)),
        cross=_cross(names, records) if cross else None,
        seeds=list(seed_groups(names, records)),
        settings=differing_settings(names, records),
        training=press.show(curves) if logs else None,
        rows=[
            (title, list(zip(names, shown, strict=True)))
            for title, shown in _beside(records, press)
        ],
    )
    write_whole(path, page)
    return Report(path, [finding for of_run in findings for finding in of_run], [])


def _cross(names: Sequence[str], records: Sequence[RunRecord]) -> list[list[str]]:
    """Return cells of R2 across runs, or raise where one has no outputs."""
    outputs = []
    for name, record in zip(names, records, strict=True):
        if record.outputs is None:
            raise UserError(f"{name} has no outputs, which --cross compares: lfads sample {name}")
        outputs.append(record.outputs)
    return cross_table(names, cross_r2(outputs, "valid"))


def distinct_names(folders: Sequence[Path]) -> list[str]:
    """Return names of folders, with as much of their path as tells them apart."""
    for depth in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def score_comparison(names: Sequence[str], records: Sequence[RunRecord]) -> dict[str, Any] | None:
    """Return a table of the LFADS rates' scores by run, with smoothed spikes as what to beat."""
    scores = [(record.scores or {}).get("scores", {}) for record in records]
    # A best among scores of different trials would be one of the trials, not of the models.
    is_fair = len(set(scored_data(names, records).values())) == 1
    rows = []
    for key, title in COLUMNS.items():
        cells = [
            {"estimate": s.get("lfads", {}).get(key), "reference": s.get("smoothing", {}).get(key)}
            for s in scores
        ]
        # An estimate without a value is one that is not defined for these data.
        cells = [
            {k: e if e and e["value"] is not None else None for k, e in cell.items()}
            for cell in cells
        ]
        values = [cell["estimate"]["value"] for cell in cells if cell["estimate"]]
        if not values:
            continue
        for cell in cells:
            value = cell["estimate"] and cell["estimate"]["value"]
            cell["best"] = (
                is_fair and value is not None and len(values) > 1 and value == max(values)
            )
        rows.append({"name": title, "cells": cells})
    if not rows:
        return None
    facts = [s["facts"] for record in records for s in (record.scores or {}).get("sessions", [])]
    reference = row_names(facts)["smoothing"]
    return {"columns": list(names), "rows": rows, "reference": reference}


def scored_data(names: Sequence[str], records: Sequence[RunRecord]) -> dict[str, tuple[Any, ...]]:
    """Return by run what its scores are of: sessions, trials, bins and channels."""
    return {
        name: tuple(
            (r.session.name, r.n_scored, r.n_channels, *_print_of(r.data["scored"]))
            for r in record.recordings
        )
        for name, record in zip(names, records, strict=True)
    }


def _print_of(data: Any) -> tuple[Any, ...]:
    return data.shape, crc32(np.ascontiguousarray(data).data)


def caveats(names: Sequence[str], records: Sequence[RunRecord]) -> Iterator[str]:
    """Say what makes scores of these runs hard to compare."""
    data = scored_data(names, records)
    if len(set(data.values())) > 1:
        lists = "; ".join(
            f"{name}: "
            + (", ".join(f"{n} trials of {s}" for s, n, *_ in sets) if sets else "no outputs")
            for name, sets in data.items()
        )
        yield f"The runs were not scored on the same trials ({lists}), so scores do not compare."
    for name, record in zip(names, records, strict=True):
        for line in record.absent:
            yield f"{name}: {line}"


def differing_settings(
    names: Sequence[str], records: Sequence[RunRecord]
) -> list[tuple[str, list[str]]]:
    """Return the settings that differ between runs: key, and a value for each run."""
    flat = [dict(_flatten(record.config)) for record in records]
    keys = dict.fromkeys(key for settings in flat for key in settings)
    rows = {key: [settings.get(key, ABSENT) for settings in flat] for key in keys}
    return [(key, values) for key, values in rows.items() if len(set(values)) > 1]


def seed_groups(names: Sequence[str], records: Sequence[RunRecord]) -> Iterator[str]:
    """Say of runs that differ by their seed alone what their scores are together."""
    groups: dict[str, list[int]] = {}
    for k, record in enumerate(records):
        rest = {name: value for name, value in record.config.items() if name != "seed"}
        if rest:
            groups.setdefault(str(sorted(_flatten(rest))), []).append(k)
    for members in groups.values():
        scores = [(records[k].scores or {}).get("scores", {}).get("lfads", {}) for k in members]
        if len(members) < 2:
            continue
        texts = []
        for key, title in COLUMNS.items():
            values = [s[key]["value"] for s in scores if s.get(key) and s[key]["value"] is not None]
            if len(values) == len(members):
                spread = f"{np.mean(values):.3f}, sd {np.std(values, ddof=1):.3f}"
                texts.append(f"{title} {spread} ({min(values):.3f} to {max(values):.3f})")
        listed = ", ".join(names[k] for k in members)
        yield f"{listed} differ by their seed alone: {'; '.join(texts) or 'no scores'}."


def _flatten(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flatten(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for k, item in enumerate(value):
            yield from _flatten(item, f"{path}.{k}")
    else:
        yield path, "null" if value is None else str(value)


def _beside(records: Sequence[RunRecord], press: Press) -> Iterator[tuple[str, list[Any]]]:
    """Yield rows of pictures: a title, and each run's picture of its first session, or None."""
    # Of the first session alone: pages with every figure of every session would be too long to
    # compare anything by, and each run has its report.
    by_key = [
        {p.key: p for first in record.recordings[:1] for p in session_pictures(record, first)}
        for record in records
    ]
    for key in BESIDE:
        pictures = [of_run.get(key) for of_run in by_key]
        if title := next((p.title for p in pictures if p is not None), None):
            yield title, [None if p is None else press.show(p) for p in pictures]
