"""Figures of data, rates, factors and training, in Matplotlib.

Every function returns a `matplotlib.figure.Figure` that belongs to no window, so it works on a
machine without a display; save it with ``figure.savefig(path)``. Colours are those of Okabe & Ito
(2008) and viridis, which colour-blind readers can tell apart. Few trials, one unit, NaN and silent
channels are drawn as far as they go and are never an error.
"""

from lfads_torch.post_run.plots.activity import raster_panel
from lfads_torch.post_run.plots.training import read_csv_log, training_curves
from lfads_torch.post_run.plots.trajectories import factors_3d, trajectories

__all__ = ["factors_3d", "raster_panel", "read_csv_log", "training_curves", "trajectories"]
