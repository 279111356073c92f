"""Alignment of session files: reading training trials with their conditions, writing the maps."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ..data.find import (
    Pattern,
    absolute_pattern,
    find_sessions,
    list_some,
    open_h5,
    write_session,
)
from ..data.read import bin_width_ms, read_attrs
from ..data.validate import find_problems, join_problems, list_keys, suggest
from ..errors import DataError, UserError
from .align import Alignment, SessionAlignment, Trials, align_sessions

MAP_KEYS = ("readin_weight", "readout_bias", "readin_offset", "readout_weight")


def align_files(
    pattern: Pattern,
    n_components: int = 50,
    *,
    condition_key: str = "cond_idx",
    smooth_ms: float | None = None,
    output_dir: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    **options: Any,
) -> tuple[Alignment, list[Path]]:
    """Align session files and write each one's maps into it.

    A model starts from them by ``MultisessionReadin`` and ``MultisessionReadout`` with
    ``pcr_init: true``. Nothing is written unless every session could be aligned, and every file
    is replaced as a whole.

    Parameters
    ----------
    pattern : str, path or sequence of these
        The files, one per session.
    n_components : int
        Shared components.
    condition_key : str
        Per-trial key that tells the condition, without its split: ``target`` for
        ``train_target``. Numbers or text; a negative number or NaN is a trial without condition.
        Lists of trials per condition, as the Neural Latents Benchmark has them, are understood.
    smooth_ms : float, optional
        Standard deviation of the Gaussian in milliseconds, for files that say their bin width;
        instead of the option ``smooth_bins`` (default 3 bins).
    output_dir : str or path, optional
        Write copies of the files there and leave the originals alone.
    overwrite : bool
        Replace maps that a file holds already (and copies of the same name).
    **options
        Of `align_sessions`.

    Returns
    -------
    alignment : Alignment
    paths : list of Path
        The files written, in the order of the sessions.

    Raises
    ------
    DataError, UserError
        As `align_sessions`; where a file lacks conditions, or holds maps already.
    """
    paths = find_sessions(pattern)
    targets = paths if output_dir is None else [Path(output_dir) / path.name for path in paths]
    if len({target.name for target in targets}) < len(targets) and output_dir is not None:
        raise UserError("files of one name in several folders cannot be copied into one folder")
    _refuse_to_overwrite(targets, in_place=output_dir is None, overwrite=overwrite)
    trials = [read_trials(path, condition_key) for path in paths]
    if smooth_ms is not None:
        options["smooth_bins"] = smooth_ms / _bin_width(paths)
    alignment = align_sessions(trials, n_components, **options)
    written = [
        write_alignment(path, session, target)
        for path, session, target in zip(paths, alignment.sessions, targets, strict=True)
    ]
    return alignment, written


def write_alignment(
    path: str | os.PathLike[str],
    alignment: SessionAlignment,
    output: str | os.PathLike[str] | None = None,
) -> Path:
    """Write a session's maps into its data file, or into a copy."""
    arrays = {key: getattr(alignment, key).astype(np.float32) for key in MAP_KEYS}
    facts = {"alignment_penalty": alignment.penalty, "alignment_r2": alignment.r2}
    return write_session(output or path, arrays, facts, copy_from=path)


def _refuse_to_overwrite(targets: Sequence[Path], *, in_place: bool, overwrite: bool) -> None:
    if overwrite:
        return
    for target in targets:
        if not in_place and target.exists():
            raise UserError(f"{target} exists; name another folder, or overwrite it (--overwrite)")
        if in_place:
            with open_h5(target) as file:
                maps = [key for key in MAP_KEYS if key in file]
            if maps:
                raise UserError(
                    f"{target} holds {', '.join(maps)} already; replace them (--overwrite) or "
                    "write copies (--output-dir)"
                )


def _bin_width(paths: Sequence[Path]) -> float:
    widths = set()
    for path in paths:
        with open_h5(path) as file:
            widths.add(bin_width_ms(read_attrs(file)))
    width = next(iter(widths))
    if len(widths) > 1 or width is None:
        raise DataError(
            f"a width in ms needs files that say their bin width, all the same (attribute bin_ms); "
            f"{', '.join(path.name for path in paths)} say {sorted(widths, key=str)}. Give the "
            "width in bins instead (--smooth-bins)"
        )
    return width


def read_trials(path: str | os.PathLike[str], condition_key: str) -> Trials:
    """Read a session's training trials that have a condition."""
    path = Path(absolute_pattern(path))
    with open_h5(path) as file:
        problems = find_problems(file)
        if problems:
            raise DataError(join_problems(path, problems))
        conditions, has_one = read_conditions(file, path, condition_key)
        encod, recon = (file[f"train_{key}_data"][()] for key in ("encod", "recon"))
    return Trials(path.stem, encod[has_one], recon[has_one], conditions[has_one])


def read_conditions(
    file: h5py.File, path: Path, condition_key: str
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Read the condition of each training trial, and whether it has one."""
    keys, name = list_keys(file), f"train_{condition_key}"
    n_trials = file["train_encod_data"].shape[0]
    if name not in keys:
        per_trial = [
            key.removeprefix("train_")
            for key in keys
            if key.startswith("train_") and file[key].shape == (n_trials,)
        ]
        raise DataError(
            f"{path}: there is no {name!r}{suggest(name, keys)} Name the per-trial key that tells "
            f"the condition of each trial (--conditions KEY); this file has "
            f"{list_some(per_trial) or 'none: add one'}."
        )
    return _conditions(file[name][()], n_trials, path, name)


def _conditions(
    values: NDArray[Any], n_trials: int, path: Path, name: str
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Condition of each trial, and whether it has one."""
    ragged = values.dtype.kind == "O" and len(values) and isinstance(values.flat[0], np.ndarray)
    if ragged or (values.ndim == 2 and values.dtype.kind in "ui"):
        listed = np.concatenate([np.asarray(rows, dtype=np.int64) for rows in values])
        if len(listed) and not 0 <= listed.min() <= listed.max() < n_trials:
            raise DataError(
                f"{path}: {name!r} lists trials up to {listed.max()}, there are {n_trials}"
            )
        labels = np.full(n_trials, -1)
        for number, rows in enumerate(values):
            labels[np.asarray(rows, dtype=np.int64)] = number
        return labels, labels >= 0
    if values.shape != (n_trials,):
        raise DataError(
            f"{path}: {name!r} has shape {values.shape}; it must tell the condition of each of the "
            f"{n_trials} training trials"
        )
    if values.dtype.kind in "OS":
        text = np.array([v.decode() if isinstance(v, bytes) else str(v) for v in values])
        return text, text != ""
    return values, np.asarray(values >= 0)  # NaN is not >= 0
