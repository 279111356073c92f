"""Is a trained model any good, and better than something simple? `evaluate_run`."""

from .report import COLUMNS, NLB_NAMES, ROWS, Estimate, Evaluation, SessionScores, score_table
from .run import evaluate_run

__all__ = [
    "COLUMNS",
    "NLB_NAMES",
    "ROWS",
    "Estimate",
    "Evaluation",
    "SessionScores",
    "evaluate_run",
    "score_table",
]
