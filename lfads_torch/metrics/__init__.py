"""Every score in one place: bits per spike, R2, linear decoding, PSTHs, the smoothed metric.

`streaming` holds what training needs (tensors, accumulated on the device), `evaluation` what one
computes once with a trained model (NumPy arrays). Rates are per bin throughout.
"""

from lfads_torch.metrics.evaluation import (
    NLB_ALPHAS,
    fit_linear,
    gaussian_smooth,
    linear_map_r2,
    psth_r2,
    ridge_r2,
    speed_tp_correlation,
)
from lfads_torch.metrics.streaming import (
    BitsPerSpikeSums,
    ExpSmoothedMetric,
    R2Sums,
    WeightedMeans,
    bits_per_spike,
    r2_score,
)

__all__ = [
    "NLB_ALPHAS",
    "BitsPerSpikeSums",
    "ExpSmoothedMetric",
    "R2Sums",
    "WeightedMeans",
    "bits_per_spike",
    "fit_linear",
    "gaussian_smooth",
    "linear_map_r2",
    "psth_r2",
    "r2_score",
    "ridge_r2",
    "speed_tp_correlation",
]
