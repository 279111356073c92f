"""Lightning callbacks: figures while training, one progress bar, a guard against divergence."""

from .bar import EpochProgressBar
from .figures import RasterPlot, TestEval, TrajectoryPlot, has_image_loggers, log_figure
from .guard import NaNGuard

__all__ = [
    "EpochProgressBar",
    "NaNGuard",
    "RasterPlot",
    "TestEval",
    "TrajectoryPlot",
    "has_image_loggers",
    "log_figure",
]
