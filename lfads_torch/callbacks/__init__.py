"""Lightning callbacks: figures while training, one progress bar, a guard against divergence."""

from lfads_torch.callbacks.figures import RasterPlot, TrajectoryPlot
from lfads_torch.callbacks.guard import NaNGuard
from lfads_torch.callbacks.progress import EpochProgressBar

__all__ = ["EpochProgressBar", "NaNGuard", "RasterPlot", "TrajectoryPlot"]
