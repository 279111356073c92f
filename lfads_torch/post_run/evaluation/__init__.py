"""Is a trained model any good, and better than something simple? `evaluate_run`."""

from .baselines import BASELINES
from .score_run import evaluate_run
from .table import COLUMNS, NLB_NAMES, ROWS, Estimate, Evaluation, SessionScores, score_table

__all__ = [
    "BASELINES",
    "COLUMNS",
    "NLB_NAMES",
    "ROWS",
    "Estimate",
    "Evaluation",
    "SessionScores",
    "evaluate_run",
    "score_table",
]
