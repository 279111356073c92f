"""Windows, lags and conditions of the Neural Latents Benchmark (Pei et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """How the benchmark cuts a data set, in ms; names are those of its NWB file."""

    event: str = "move_onset_time"
    start_ms: int = -250
    stop_ms: int = 450
    behavior: str = "hand_vel"  # time series; empty where columns of the trials take its place
    lag_ms: int = 120  # by which behaviour is taken later than spikes
    conditions: tuple[str, ...] = ("trial_type", "trial_version")  # empty: no PSTHs
    smoothing_ms: int = 50  # standard deviation of the Gaussian that smooths PSTHs
    decode_by: str = ""  # column of 0 and 1 whose values get a decoder each
    columns: tuple[str, ...] = ()  # of the trials, that are the behaviour
    outliers: str = ""  # column that flags trials without behaviour and PSTH
    # Event at which PSTHs begin, at most a window before `event`; windows then are jittered.
    from_event: str = ""
    bin_ms: int = 5  # of the published configuration
    forward_ms: int = 200  # after the window, only predicted


RECIPES = {
    "mc_maze": Recipe(lag_ms=100, smoothing_ms=70, bin_ms=20),
    "mc_maze_large": Recipe(),
    "mc_maze_medium": Recipe(),
    "mc_maze_small": Recipe(),
    "mc_rtt": Recipe("start_time", 0, 600, "finger_vel", 140, conditions=()),
    "area2_bump": Recipe(
        start_ms=-100,
        stop_ms=500,
        lag_ms=-20,
        conditions=("cond_dir", "ctr_hold_bump"),
        smoothing_ms=40,
        decode_by="ctr_hold_bump",
    ),
    "dmfc_rsg": Recipe(
        "go_time",
        -1500,
        0,
        behavior="",
        lag_ms=0,
        conditions=("is_eye", "theta", "is_short", "ts"),
        smoothing_ms=70,
        columns=("is_eye", "theta", "is_short", "ts", "tp"),
        outliers="is_outlier",
        from_event="set_time",
    ),
}
"""Recipes by the name of the data set."""

BINS_MS = (5, 20)
"""Bin widths in which the benchmark scores."""
