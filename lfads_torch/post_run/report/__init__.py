"""Reports: all that is to be said of a run, or of several beside each other, in one HTML file."""

from .comparison import compare_runs
from .record import RunRecord, Wanted, read_run
from .single import report_run

__all__ = ["RunRecord", "Wanted", "compare_runs", "read_run", "report_run"]
