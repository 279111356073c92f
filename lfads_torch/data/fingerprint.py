"""Fingerprints of data files, by which a run notices that its data have changed.

A fingerprint is of the numbers that a model reads, trial by trial: a file that was moved, copied,
repacked or compressed has the same one, and so has one whose numbers are stored as another type.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import DataError
from .read import SessionData
from .survey import bin_multipliers

Fingerprint = dict[str, Any]
"""``file`` (its name), ``arrays`` (by key: shape and hash) and ``scheme`` of the hash."""


def fingerprints(datamodule: Any) -> list[Fingerprint]:
    """Return the fingerprint of each session; none of a data module that reads otherwise."""
    sessions = getattr(datamodule, "sessions", ())
    return [_fingerprint(s) for s in sessions if isinstance(s, SessionData)]


def _fingerprint(session: SessionData) -> Fingerprint:
    # The survey that every array gets as it is read has hashed each trial, so this costs nothing.
    arrays = {
        f"{split}_{name}": {
            "shape": list(getattr(trials, name).shape),
            "crc32": _crc32(survey.hashes),
        }
        for split, trials in session.splits.items()
        for name, survey in trials.surveys.items()
    }
    # NumPy does not promise that its next version draws the same multipliers.
    return {"file": session.path.name, "arrays": arrays, "scheme": _crc32(bin_multipliers(64))}


def _crc32(numbers: Any) -> str:
    return f"{zlib.crc32(numbers.astype('<u8').tobytes()):08x}"


def check_unchanged(
    recorded: Any, now: Sequence[Fingerprint], *, accept: bool
) -> dict[str, tuple[str, str]]:
    """Refuse data that are not those of a record, or return what was accepted: checksums by file.

    A run without a record, made by an older version, passes.
    """
    before = recorded if isinstance(recorded, list) and len(recorded) == len(now) else []
    texts, changed = [], {}
    for old, new in zip(before, now, strict=False):
        if differences := _differences(old, new):
            texts.append(f"{new['file']}: {', '.join(differences)}")
            changed[f"data.{new['file']}"] = summary(old), summary(new)
    if texts and not accept:
        raise DataError(
            f"the data are not those that the run was trained on: {'; '.join(texts)}. Put the "
            "data back, or start another run; to go on with these data, give "
            "--accept-changed-data (accept_changed_data=True); new trials are sampled with --data"
        )
    return changed


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    texts = []
    for key in {**old["arrays"], **new["arrays"]}:
        before, now = old["arrays"].get(key), new["arrays"].get(key)
        if before is None or now is None:
            texts.append(f"{key} is {'new' if before is None else 'gone'}")
        elif before["shape"] != now["shape"]:
            shapes = (" x ".join(map(str, one["shape"])) for one in (now, before))
            texts.append("{} is {}, and was {}".format(key, *shapes))
        elif old["scheme"] == new["scheme"] and before["crc32"] != now["crc32"]:
            texts.append(f"{key} holds other numbers")
    return texts


def summary(fingerprint: Mapping[str, Any]) -> str:
    """Return one checksum of all arrays of a fingerprint."""
    return f"{zlib.crc32(repr(sorted(fingerprint['arrays'].items())).encode()):08x}"
