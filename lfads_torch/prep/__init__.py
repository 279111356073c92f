"""From a recording to an LFADS data file, and back from windows to a recording.

NumPy and h5py only, no torch.
"""

from .binning import bin_spikes, bin_windows
from .chop import chop_recording
from .listing import describe_file
from .merging import merge_chops, merge_file
from .nlb import prepare_nlb
from .options import PrepOptions
from .prepare import prepare
from .sources import SourceOptions, open_recording
from .write import Prepared

__all__ = [
    "PrepOptions",
    "Prepared",
    "SourceOptions",
    "bin_spikes",
    "bin_windows",
    "chop_recording",
    "describe_file",
    "merge_chops",
    "merge_file",
    "open_recording",
    "prepare",
    "prepare_nlb",
]
