"""Figures of data, rates, factors, inputs, dynamics, training and searches, in Matplotlib.

Every function returns a `matplotlib.figure.Figure` that belongs to no window, so it works on a
machine without a display; save it with ``figure.savefig(path)``. Within ``with paper("dark"):``
figures are drawn for dark slides. `interactive_factors` and `trial_browser` return a figure of
plotly, an extra. Colours are those of Okabe & Ito (2008) and viridis, which colour-blind readers
can tell apart. Few trials, one unit, NaN and silent channels are drawn as far as they go and are
never an error. Trials, units, inputs, factors and latents have the numbers that they have in the
arrays, from 0; principal components and discriminants are counted from 1.
"""

from .activity import raster_panel
from .day import day_alignment
from .decoding import decoded_behavior
from .generator import fixed_points
from .hyperparameters import hyperparameter_paths, score_history, scores_by_value
from .initial import initial_conditions
from .inputs import aligned_inputs, latent_usage
from .interactive import interactive_factors, trial_browser
from .responses import psths, single_trials
from .scores import channel_scores, score_intervals, scores_over_time
from .shared import shared_factors
from .style import paper
from .training import read_csv_log, training_beside, training_curves
from .trajectories import factors_3d, trajectories

__all__ = [
    "aligned_inputs",
    "channel_scores",
    "day_alignment",
    "decoded_behavior",
    "factors_3d",
    "fixed_points",
    "hyperparameter_paths",
    "initial_conditions",
    "interactive_factors",
    "latent_usage",
    "paper",
    "psths",
    "raster_panel",
    "read_csv_log",
    "score_history",
    "score_intervals",
    "scores_by_value",
    "scores_over_time",
    "shared_factors",
    "single_trials",
    "training_beside",
    "training_curves",
    "trajectories",
    "trial_browser",
]
