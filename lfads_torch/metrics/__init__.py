"""Every score in one place: bits per spike, R2, linear decoding, PSTHs, the smoothed metric.

`accumulate` and `epoch` hold what training needs (tensors, accumulated on the device); the others
take NumPy arrays, once with a trained model: `evaluation` and `nlb` the scores that look at
conditions and behaviour, `trialwise` those that are bootstrapped over trials, `regression` the fits
that they need, `decoder` decoders of behaviour with lags. Rates are per bin throughout.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .decoder import Decoder, DecoderState, Decoding
from .decoding import fit_decoder
from .evaluation import gaussian_smooth, psth_r2, speed_tp_correlation
from .nlb import NLB_SCORES, nlb_scores
from .regression import NLB_ALPHAS, fit_linear, linear_map_r2, poisson_regression, ridge_r2

if TYPE_CHECKING:
    from .accumulate import (
        SMOOTHING,
        BitsPerSpikeSums,
        ExpSmoothedMetric,
        R2Sums,
        WeightedMeans,
        bits_per_spike,
        r2_score,
        regional_bits_per_spike,
    )

__all__ = [
    "NLB_ALPHAS",
    "NLB_SCORES",
    "SMOOTHING",
    "BitsPerSpikeSums",
    "Decoder",
    "DecoderState",
    "Decoding",
    "ExpSmoothedMetric",
    "R2Sums",
    "WeightedMeans",
    "bits_per_spike",
    "fit_decoder",
    "fit_linear",
    "gaussian_smooth",
    "linear_map_r2",
    "nlb_scores",
    "poisson_regression",
    "psth_r2",
    "r2_score",
    "regional_bits_per_spike",
    "ridge_r2",
    "speed_tp_correlation",
]


def __getattr__(name: str) -> Any:
    # What training accumulates needs torch; decoders and what is scored once do not wait for it.
    if name in __all__:
        return getattr(import_module(f"{__name__}.accumulate"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
