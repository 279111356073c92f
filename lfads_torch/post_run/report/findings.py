"""What a reader should be warned of: checks of a run, each with what was found and what to do."""

from __future__ import annotations

from .finding import LEVELS, Finding
from .record import RunRecord
from .run_checks import RUN_CHECKS
from .session_checks import SESSION_CHECKS

CHECKED = (
    "divergence",
    "overfitting (training against validation)",
    "convergence and ramps",
    "posterior collapse",
    "silent channels and flat rates",
    "the baselines",
    "states at the clip",
    "validation trials that are training trials",
)
"""What the checks look at, for a reader who sees no warning."""


def find_all(record: RunRecord) -> list[Finding]:
    """Run all checks on a run.

    Parameters
    ----------
    record : RunRecord

    Returns
    -------
    list of Finding
        Problems first.
    """
    found = [finding for check in RUN_CHECKS for finding in check(record)]
    for recording in record.recordings:
        where = f"{recording.session.name}: " if len(record.recordings) > 1 else ""
        for session_check in SESSION_CHECKS:
            found += [f._replace(text=where + f.text) for f in session_check(record, recording)]
    return sorted(found, key=lambda finding: LEVELS.index(finding.level))
