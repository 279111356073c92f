"""What recordings call their arrays, tables, columns and numbers: every list of usual names.

Names are compared in lower case. In a tuple the likeliest stands first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any


def first_of(names: Iterable[str], table: Mapping[str, Any]) -> str | None:
    """Return the first of some usual names that a table has, in the table's spelling."""
    written = {name.lower(): name for name in table}
    return next((written[name] for name in names if name in written), None)


# ---- times ---------------------------------------------------------------------------------------

TIMES = ("time", "times", "timestamps", "t", "bin_times", "timebase", "time_vector", "time_axis")
"""An array with the times of samples or bins."""

TIME_ENDINGS = ("_timestamps", "_times", "_time", ".timestamps", ".times", ".time")
"""Endings that make the name of a series the name of its times."""

RATE_ENDINGS = ("_rate", "_hz", ".rate", ".hz")
"""Endings that make the name of a series the name of its sampling rate."""

_WORDS = {
    "s": ("s", "sec", "secs", "second", "seconds"),
    "ms": ("ms", "msec", "msecs", "millisecond", "milliseconds"),
    "us": ("us", "µs", "μs", "usec", "microsecond", "microseconds"),
    "ns": ("ns", "nsec", "nanosecond", "nanoseconds"),
    "samples": ("samples", "sample", "ticks"),
}
TIME_UNITS = {word: unit for unit, words in _WORDS.items() for word in words}
"""Units of time by the words for them."""

# ---- spikes --------------------------------------------------------------------------------------

SPIKES = ("spike_times", "spikes", "spiketimes", "spike_counts", "counts", "binned_spikes")
"""An array that holds the spikes."""

LIKE_SPIKES = re.compile(r"spike|spk|raster|spiking|binned|crossings", re.IGNORECASE)
"""How names that likely hold spikes look."""

NOT_SPIKES = re.compile(
    r"index|unit|cluster|templ|amp|depth|wave|label|guide|chan|name|size|width|rate|quality|ids?$"
    r"|hz$|ms$",
    re.IGNORECASE,
)
"""How names about spikes look that hold something else."""

UNIT_OF_SPIKE = tuple(
    f"{before}{word}{after}"
    for word in ("unit", "cluster", "neuron", "cell", "clu")
    for before in ("", "spike_")
    for after in ("", "s", "_id", "_ids", "_no", "_number", "_numbers", "_name", "_names")
)
"""An array with the unit of each spike."""

CHANNEL_OF_SPIKE = tuple(
    f"{before}{word}{after}"
    for word in ("channel", "electrode", "tetrode", "chan", "ch")
    for before in ("", "spike_")
    for after in ("", "s", "_id", "_ids")
)
"""An array with the channel of each spike, which names its unit, or does together with a unit."""

BESIDE_SPIKES = re.compile(
    r"amp|depth|wave|peak|snr|width|sample|frame|time|index|quality|templ|valid|energy|trial",
    re.IGNORECASE,
)
"""How arrays with an entry for each spike look that do not say its unit."""

TRIAL_OF_SPIKE = (
    "trial", "trials", "trial_id", "trial_ids", "trialid", "trial_num", "trialnum", "trial_number",
    "trial_idx", "trial_index", "tr", "spike_trials", "spike_trial", "trial_of_spike",
)  # fmt: skip
"""An array with the trial of each spike."""


SPIKE_COLUMNS = {
    "time": (
        "spike_time", "spike_times", "spiketime", "spiketimes", "timestamp", "time_stamp", "ts",
        "spike_timestamp", "spike_timestamps", *TIMES,
    ),
    "unit": (
        "unit", "unit_id", "units", "unit_no", "unit_number", "unit_name", "neuron", "neuron_id",
        "cluster", "cluster_id", "clu", "cell", "cell_id", "id",
    ),
    "channel": (
        "channel", "channel_id", "chan", "ch", "electrode", "electrode_id", "tetrode", "probe",
    ),
}  # fmt: skip
"""Columns of a table with a spike in each row: its time, unit and channel."""

AXES = {
    "time": (*TIMES, "bin", "bins", "sample", "samples"),
    "unit": ("unit", "unit_id", "neuron", "cell", "channel", "electrode", "cluster", "roi"),
    "trial": ("trial", "trial_id", "epoch", "rep", "repetition"),
}
"""Names of axes, and of columns of a DataFrame, by what they are."""

# ---- units and trials ----------------------------------------------------------------------------

UNITS = ("units", "unit_info", "unit")
"""A table of units."""

TRIALS = ("trials", "trial_info", "trial")
"""A table of trials."""

TRIAL_IDS = (
    "trial", "trial_id", "trialid", "trial_num", "trialnum", "trial_number", "id", "tr",
)  # fmt: skip
"""A column with the number of each trial."""

# Of numbered entries, such as unit_7 and trial12_spikes.
UNIT_WORDS = r"units?|neurons?|cells?|channels?|chan|ch|clusters?|clu|electrodes?|sig|spk|u"
TRIAL_WORDS = r"trials?|tr"

OF_UNIT = re.compile(
    r"unit|quality|depth|chan|electrode|cluster|area|wave|neuron|cell|name", re.IGNORECASE
)
"""How columns look that units have and trials have not."""

OF_TRIAL = re.compile(r"trial|target|cond|^go|move|cue|reward|success|event|idx_|stim|block", re.I)
"""How columns look that trials have and units have not."""

UNIT_FIELD = re.compile(
    r"(unit|neuron|channel|cell|electrode|cluster|chan)s?_?"
    r"(ids?|names?|labels?|no|numbers?|index|areas?|depths?|quality|guide)?",
    re.IGNORECASE,
)
"""Arrays that surely have an entry for each unit."""

NUMBER_OF = {
    "unit": r"(n|num|number|no)_?(of_?)?(units?|neurons?|channels?|cells?|chan|electrodes?)",
    "trial": r"(n|num|number|no)_?(of_?)?trials?",
    "time": r"(n|num|number|no)_?(of_?)?(bins?|times?|timepoints?|samples?|timesteps?)",
}
"""Numbers of units, trials and bins."""

# ---- intervals -----------------------------------------------------------------------------------

BEGINS = ("start_time", "start", "starts", "t_start", "begin", "onset", "onsets")
"""A column with the times at which intervals begin."""

ENDS = ("stop_time", "end_time", "stop", "stops", "end", "ends", "t_stop", "offset", "offsets")
"""A column with the times at which intervals end."""

ONSETS = ("start_time", "start", "trial_start", "t_start", "onset", "starts")
"""A column with the times at which trials begin."""

INVALID = (
    "invalid_times", "invalid_intervals", "artifacts", "artifact_times", "artifact_intervals",
    "bad_times", "bad_intervals",
)  # fmt: skip
"""A table of intervals to leave out. NWB has the first, the others are usual elsewhere."""

OBSERVED = ("obs_intervals", "observed_intervals", "valid_intervals", "valid_times")
"""An array with the start and stop of what was recorded."""

# ---- numbers -------------------------------------------------------------------------------------

_RATE = r"fs|hz|s_?rate|sampl(e|ing)_?(rate|freq(uency)?)(_?hz)?"

BIN_WIDTH = re.compile(
    r"(bin_?(size|width|length|s|dur(ation)?)?|dt|delta_?t)(_?(?P<unit>ms|s|sec))?"
)
"""The width of bins, which may say its unit."""

BIN_RATE = re.compile(rf"{_RATE}|bin_?rate")
"""Bins per second."""

SAMPLING_RATE = re.compile(rf"{_RATE}|sr|sfreq|sampl(e|ing)_?hz(_?hz)?")
"""Samples per second."""
