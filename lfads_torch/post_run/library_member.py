"""A library of PSTHs as a member of an ensemble: its rates, written as a run's are."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..data import add_to_file, copy_rest, new_file
from ..data.find import absolute_pattern
from ..errors import UserError
from ..tuples import SessionOutput
from .ensemble import Member
from .evaluation.behavior import CONDITION_KEYS, Keys, read_recording
from .evaluation.fits import Source
from .evaluation.library import library_of
from .outputs import RunOutputs, load_outputs

LIBRARIES = ("mint", "mint_causal")


def library_member(
    outputs: RunOutputs, name: str, folder: Path, condition: str | None = None
) -> Member:
    """Look up the trials of a run in the PSTHs of its training trials, and write the rates."""
    for number, session in enumerate(outputs):
        recording = read_recording(session, "train", Keys(condition=condition))
        if not recording.condition_names:
            raise UserError(
                f"{session.path} names no conditions, which --also {name} needs; name their key "
                f"with --condition, or add one of {', '.join(CONDITION_KEYS)} to the data file"
            )
        library = library_of(Source(recording), causal=name == "mint_causal")
        if library is None:
            raise UserError(
                f"{session.path}: --also {name} needs counts and conditions of two training trials"
            )
        fields = {f"{split}_{key}" for split in session.splits for key in SessionOutput._fields}
        path = folder / f"lfads_output_sess{number}.h5"
        with new_file(absolute_pattern(str(path))) as file:
            for split in session.splits:
                trials = session.trials(split)
                read = trials["encod_data" if "encod_data" in trials else "recon_data"]
                rates = library.rates_of(read).astype(np.float32)
                add_to_file(file, {f"{split}_output_params": rates})
            copy_rest(session.path, file, fields)
            add_to_file(file, {}, {"run": str(folder)})
            file.attrs.pop("checkpoint", None)
    first = folder / "lfads_output_sess0.h5"
    return Member(name, folder, first, load_outputs(folder), is_library=True)
