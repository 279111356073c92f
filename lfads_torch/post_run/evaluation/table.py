"""The result of an evaluation: numbers with intervals, as JSON and as tables."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...metrics.decoder import plain
from ...metrics.trialwise import ByTime
from .baselines import BASELINES
from .few_shot import FewShot, few_shot_table

ROWS = {
    "lfads": "LFADS rates",
    "lfads_factors": "LFADS factors",
    "lfads_readout": "LFADS readout",
    **{name: row.title for name, row in BASELINES.items()},
    "truth": "true rates",
}
"""Rows of the table, and what they are called."""


def row_names(facts: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Name the rows for sessions with these facts: what is no count is not called a spike."""
    counts = all(session.get("counts", True) for session in facts)
    return ROWS if counts else ROWS | {"smoothing": "smoothed data"}


COLUMNS = {
    "bps": "bits/spike",
    "co_bps": "co-bps",
    "fp_bps": "fp-bps",
    "r2": "data R2",
    "co_r2": "held-out R2",
    "fp_r2": "forward R2",
    "psth_r2": "PSTH R2",
    "behavior_r2": "behaviour R2",
    "tp_corr": "speed/tp corr",
    "truth_r2": "true-rate R2",
    "truth_corr": "true-rate corr",
    "latents_r2": "latents R2",
}
"""Scores, and what they are called. docs/scores.md defines them."""

NLB_NAMES = {
    "co_bps": "co-bps",
    "fp_bps": "fp-bps",
    "behavior_r2": "vel R2",
    "psth_r2": "psth R2",
    "tp_corr": "tp corr",
}
"""Scores as the Neural Latents Benchmark calls them."""


_NUMBER = (float, int)
_ESTIMATES = {str: {str: {key: _NUMBER for key in ("value", "low", "high")}}}
_SESSION = {
    "name": str,
    "facts": dict,
    "scores": _ESTIMATES,
    "by_channel": {str: {str: [_NUMBER]}},
    "by_condition": {str: {str: [_NUMBER]}},
    "nlb": {str: _NUMBER},
    "choices": {str: dict},
}
SHAPE: dict[str, Any] = {
    "format": int,
    "split": str,
    "level": _NUMBER,
    "n_draws": int,
    "sessions": [_SESSION],
    "scores": _ESTIMATES,
    "differences": _ESTIMATES,
    "notes": [str],
}
"""What ``scores.json`` holds, for `files.read_json`."""


@dataclass(frozen=True)
class Estimate:
    """A score and its bootstrap interval over trials; NaN where undefined."""

    value: float
    low: float = math.nan
    high: float = math.nan

    def __str__(self) -> str:
        if not math.isfinite(self.value):
            return "n/a"
        if not math.isfinite(self.low):
            return f"{self.value:.3f}"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


Scores = dict[str, dict[str, Estimate]]
"""By row, then by score."""


@dataclass
class SessionScores:
    """One session."""

    name: str
    # Trials, bins, channels, conditions, and what kind of data they are
    facts: dict[str, Any]
    # By row and score
    scores: Scores
    # by_channel, by_condition: By row and score; a number per channel (or column of behaviour)
    # and per condition
    by_channel: dict[str, dict[str, list[float]]]
    by_condition: dict[str, dict[str, list[float]]]
    # The model's scores by the exact definitions of the Neural Latents Benchmark
    nlb: dict[str, float]
    # What was chosen for each baseline
    choices: dict[str, dict[str, Any]]
    # Of consecutive parts of time, by row and score, where wanted
    by_time: dict[str, dict[str, ByTime]] = field(default_factory=dict)
    # Of channels never seen, by row and number of training trials, where wanted
    few_shot: dict[str, list[FewShot]] = field(default_factory=dict)


@dataclass
class Evaluation:
    """All scores of a run.

    Attributes
    ----------
    run : str
    split : str
        The trials that were scored.
    level : float
        Of the intervals.
    n_draws : int
        Bootstrap draws; 0 for no intervals.
    sessions : list of SessionScores
    scores : dict of dict of Estimate
        Over all sessions: bits per spike pooled, of the other scores the mean.
    differences : dict of dict of Estimate
        The model's rates minus each baseline, with the same trials drawn for both: an interval
        that excludes 0 tells them apart.
    notes : list of str
        What a reader has to know of these numbers.
    """

    run: str
    split: str
    level: float
    n_draws: int
    sessions: list[SessionScores]
    scores: Scores
    differences: Scores
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; numbers that are not finite are None."""
        content: dict[str, Any] = plain(asdict(self))
        for written, session in zip(content["sessions"], self.sessions, strict=True):
            written["by_time"] = {
                row: {name: plain(by_time._asdict()) for name, by_time in scores.items()}
                for row, scores in session.by_time.items()
            }
            written["few_shot"] = {
                row: [plain(score._asdict()) for score in scores]
                for row, scores in session.few_shot.items()
            }
        return {"format": 1, **content}

    def text(self) -> str:
        """Return the table, for a terminal."""
        return self._render(markdown=False)

    def markdown(self) -> str:
        """Return the table, for a page."""
        return self._render(markdown=True)

    def write(self, folder: Path) -> list[Path]:
        """Write ``scores.json`` and ``scores.md`` into a folder; return their paths."""
        from ...files import write_whole

        contents = {
            "scores.json": json.dumps(self.to_dict(), indent=1) + "\n",
            "scores.md": self.markdown() + "\n",
        }
        for name, content in contents.items():
            write_whole(folder / name, content)
        return [folder / name for name in contents]

    def _render(self, markdown: bool) -> str:
        n_trials = sum(session.facts["n_trials"] for session in self.sessions)
        many = len(self.sessions) > 1
        head = f"{n_trials} {self.split} trials"
        head += f" of {len(self.sessions)} sessions" if many else f" of {self.sessions[0].name}"
        if self.n_draws:
            head += f"; in brackets {self.level:.0%} intervals over trials ({self.n_draws} draws)"
        rows = row_names(session.facts for session in self.sessions)
        parts = [head, score_table(self.scores, markdown, rows)]
        if many:
            model = {s.name: s.scores.get("lfads", {}) for s in self.sessions}
            names = {name: name for name in model}
            parts += ["LFADS rates by session", score_table(model, markdown, rows=names)]
        if self.differences:
            title = "LFADS rates minus the baseline, the same trials drawn for both"
            parts += [title, score_table(self.differences, markdown, rows)]
        for session in self.sessions:
            if session.nlb:
                name = f" ({session.name})" if many else ""
                numbers = ", ".join(f"{NLB_NAMES[k]} {v:.4f}" for k, v in session.nlb.items())
                parts.append(f"By the Neural Latents Benchmark's own definitions{name}: {numbers}")
        for session in self.sessions:
            if session.few_shot:
                name = f" of {session.name}" if many else ""
                title = f"Bits/spike of channels{name} that the model never saw, from N trials"
                parts += [title, _laid_out(few_shot_table(session.few_shot, rows), markdown)]
        for session in self.sessions:
            name = f"{session.name}, " if many else ""
            lines = [
                by_time_text(f"{name}{rows[row]}, {COLUMNS[score]}", by_time)
                for row, scores in session.by_time.items()
                if row in ("lfads", "lfads_factors", "lfads_readout", "smoothing")
                for score, by_time in scores.items()
            ]
            parts += (
                ["\n".join(f"- {line}" if markdown else line for line in lines)] if lines else []
            )
        parts += [f"- {note}" if markdown else f"note: {note}" for note in self.notes]
        return "\n\n".join(parts)


def by_time_text(name: str, by_time: ByTime) -> str:
    """Lay out the scores of consecutive parts, and their slope."""
    values = [
        f"{value:.3f} [{low:.3f}, {high:.3f}]" if math.isfinite(low) else f"{value:.3f}"
        for value, (low, high) in zip(by_time.values, by_time.intervals, strict=True)
    ]
    low, high = by_time.slope_interval
    slope = f"{by_time.slope:+.4f} a part [{low:+.4f}, {high:+.4f}]"
    return f"{name} in {len(values)} parts of time: {'  '.join(values)}; slope {slope}"


def score_table(
    scores: Mapping[str, Mapping[str, Estimate]],
    markdown: bool = False,
    rows: Mapping[str, str] | None = None,
) -> str:
    """Lay scores out, a row per prediction and a column per score."""
    columns = [key for key in COLUMNS if any(key in by_name for by_name in scores.values())]
    table = [["", *(COLUMNS[key] for key in columns)]]
    for key, name in (ROWS if rows is None else rows).items():
        if by_name := scores.get(key):
            table.append([name, *(str(by_name.get(column, "")) for column in columns)])
    return _laid_out(table, markdown)


def _laid_out(table: Sequence[Sequence[str]], markdown: bool) -> str:
    widths = [max(len(cell) for cell in column) for column in zip(*table, strict=True)]
    lines = []
    for number, row in enumerate(table):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("| " + " | ".join(cells) + " |" if markdown else "  ".join(cells).rstrip())
        if number == 0 and markdown:
            lines.append("|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)
