"""Lightning callbacks: figures while training, one progress bar, a guard against divergence."""

from .bar import EpochProgressBar
from .figures import RasterPlot, TrajectoryPlot
from .guard import NaNGuard

__all__ = ["EpochProgressBar", "NaNGuard", "RasterPlot", "TrajectoryPlot"]
