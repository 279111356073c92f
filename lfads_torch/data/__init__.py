"""The LFADS data file (HDF5): read, write, validate and describe it. NumPy and h5py only, no torch.

A file holds one session. Arrays are n_samples x n_timesteps x n_channels, any numeric type:

==============================  ==========================================================
``{train,valid}_encod_data``    required: what the encoders read
``{train,valid}_recon_data``    required: what is reconstructed; its first bins and channels
                                are those of ``encod_data``, the others are held out
``test_{encod,recon}_data``     optional: trials that are only used after training
``{split}_ext_input``           optional, in all splits or none: external inputs
``{split}_truth``               optional: true rates per bin, times ``conversion_factor``
``{split}_lengths``             optional, in all splits or none: bins of each trial
``conversion_factor``           optional scalar, 1 where absent
``readin_weight``               optional, N_s x factors: read-in of a multi-session model, and
``readout_bias``                optional, N_s: mean per bin where all factors are zero
``readin_offset``               optional, N_s: what is taken off before the read-in; by default
                                `readout_bias`
``readout_weight``              optional, N_s x factors: mean per bin and unit of a factor; by
                                default the pseudo-inverse of `readin_weight`
==============================  ==========================================================

NaN in ``encod_data`` and ``recon_data`` marks missing entries; a trial ends after its last observed
bin, or where ``{split}_lengths`` says, past which everything counts as missing (docs/missing.md).

Further keys are the user's own: ``{split}_<name>`` with a row per trial can travel with the
batches, all are carried into the output file. The attribute ``bin_ms`` gives the bin width.
"""

from ..errors import DataWarning
from .describe import (
    FileReport,
    ReportRow,
    check_file,
    warnings_for,
)
from .find import (
    absolute_pattern,
    add_to_file,
    as_array,
    copy_rest,
    find_sessions,
    list_some,
    new_file,
    open_h5,
    write_session,
)
from .order import Order, SplitKind, read_order, split_kind
from .quality import shared_ends, shared_trials
from .read import (
    SessionData,
    SplitData,
    bin_width_ms,
    bytes_in_memory,
    names_of,
    read_session,
    session_in_use,
    session_of,
    slow_reads,
)
from .stored import StoredArray, blocks, part, shares, write_rows
from .survey import Survey
from .validate import REQUIRED_KEYS, SCHEMA_KEYS, SPLITS, find_problems

__all__ = [
    "REQUIRED_KEYS",
    "SCHEMA_KEYS",
    "SPLITS",
    "DataWarning",
    "FileReport",
    "Order",
    "ReportRow",
    "SessionData",
    "SplitData",
    "SplitKind",
    "StoredArray",
    "Survey",
    "absolute_pattern",
    "add_to_file",
    "as_array",
    "bin_width_ms",
    "blocks",
    "bytes_in_memory",
    "check_file",
    "copy_rest",
    "find_problems",
    "find_sessions",
    "list_some",
    "names_of",
    "new_file",
    "open_h5",
    "part",
    "read_order",
    "read_session",
    "session_in_use",
    "session_of",
    "shared_ends",
    "shared_trials",
    "shares",
    "slow_reads",
    "split_kind",
    "warnings_for",
    "write_rows",
    "write_session",
]
