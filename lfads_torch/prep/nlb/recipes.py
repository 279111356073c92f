"""Windows, lags and conditions of the Neural Latents Benchmark (Pei et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """How the benchmark cuts a data set.

    Attributes
    ----------
    event : str
        Column of the trials to which windows are aligned.
    start_ms, stop_ms : int
        Window that is read.
    behavior : str
        Time series to decode; empty where columns of the trials take its place.
    lag_ms : int
        Time by which behaviour is taken later than spikes.
    conditions : tuple of str
        Columns that together make a condition; empty where there are no PSTHs.
    smoothing_ms : int
        Standard deviation of the Gaussian that smooths PSTHs.
    decode_by : str
        Column of 0 and 1 whose values get a decoder each; empty for one decoder.
    columns : tuple of str
        Columns of the trials that are the behaviour (DMFC_RSG).
    outliers : str
        Column that flags trials without behaviour and PSTH.
    from_event : str
        Column of the event at which PSTHs begin, at most a window before the aligned one; where it
        is given, windows are jittered.
    bin_ms : int
        Bin width of the published configuration.
    forward_ms : int
        Time after the window that is predicted.
    """

    event: str = "move_onset_time"
    start_ms: int = -250
    stop_ms: int = 450
    behavior: str = "hand_vel"
    lag_ms: int = 120
    conditions: tuple[str, ...] = ("trial_type", "trial_version")
    smoothing_ms: int = 50
    decode_by: str = ""
    columns: tuple[str, ...] = ()
    outliers: str = ""
    from_event: str = ""
    bin_ms: int = 5
    forward_ms: int = 200


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
