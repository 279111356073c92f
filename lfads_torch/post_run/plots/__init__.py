"""Figures of data, rates, factors, inputs, dynamics, training and searches, in Matplotlib.

Every function returns a `matplotlib.figure.Figure` that belongs to no window, so it works on a
machine without a display; save it with ``figure.savefig(path)``. Within ``with paper("dark"):``
figures are drawn for dark slides. Colours are those of Okabe & Ito (2008) and viridis, which
colour-blind readers can tell apart. Few trials, one unit, NaN and silent channels are drawn as far
as they go and are never an error.
"""

from lfads_torch.post_run.plots.activity import raster_panel
from lfads_torch.post_run.plots.alignment import shared_factors
from lfads_torch.post_run.plots.comparison import training_beside
from lfads_torch.post_run.plots.decoding import decoded_behavior
from lfads_torch.post_run.plots.generator import fixed_points
from lfads_torch.post_run.plots.initial import initial_conditions
from lfads_torch.post_run.plots.inputs import aligned_inputs, latent_usage
from lfads_torch.post_run.plots.responses import psths, single_trials
from lfads_torch.post_run.plots.scores import channel_scores, score_intervals
from lfads_torch.post_run.plots.search import (
    hyperparameter_paths,
    score_history,
    scores_by_value,
)
from lfads_torch.post_run.plots.style import paper
from lfads_torch.post_run.plots.training import read_csv_log, training_curves
from lfads_torch.post_run.plots.trajectories import factors_3d, trajectories

__all__ = [
    "aligned_inputs",
    "channel_scores",
    "decoded_behavior",
    "factors_3d",
    "fixed_points",
    "hyperparameter_paths",
    "initial_conditions",
    "latent_usage",
    "paper",
    "psths",
    "raster_panel",
    "read_csv_log",
    "score_history",
    "score_intervals",
    "scores_by_value",
    "shared_factors",
    "single_trials",
    "training_beside",
    "training_curves",
    "trajectories",
]
