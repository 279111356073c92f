"""The seven data sets of the Neural Latents Benchmark, made from its NWB files [1]_.

Windows, lags, smoothing, conditions, held-out neurons and splits are those of the benchmark: bins
of a grid that begins at 0 s, the window's first bin being the first that begins at or after its
start; behaviour low-pass filtered before it is sampled once per bin; PSTHs of spikes smoothed at
1 ms over the trials that train or validate. The split ``val`` validates; trials of a file with the
split ``test`` become ``test_encod_data``.

.. [1] Pei et al. 2021, NeurIPS Datasets and Benchmarks (arXiv 2109.04463).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from ...data.find import absolute_pattern, check_output, list_some, make_folder
from ...data.nlb_files import NLB_FILES, dandi_download
from ...errors import DataError, UserError, one_of
from ..checks import raise_if_strict
from ..counting import Progress, count, silent
from ..options import PrepOptions
from ..prepare import Prepared
from ..sources import Recording, open_recording
from ..splits import count_splits
from ..unit_selection import sum_units
from ..write import Contents, source_attributes, write_contents
from .recipe import BINS_MS, RECIPES
from .session import NLBSession, test_contents


def prepare_nlb(
    name: str,
    files: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str] | None = None,
    *,
    bin_ms: float | None = None,
    overwrite: bool = False,
    strict: bool = False,
    compress: bool = False,
    progress: Progress = silent,
) -> Prepared:
    """Make a data file of the Neural Latents Benchmark, in the names that its configurations read.

    Beside spikes: ``{split}_behavior``; ``psth`` (conditions x bins x units, spikes per bin) and
    ``{split}_cond_idx`` (trials of each condition); ``{split}_decode_mask`` (trials x decoders), or
    for DMFC_RSG ``{split}_jitter`` (bins by which each window was moved to later times).

    Parameters
    ----------
    name : str
        "mc_maze", "mc_maze_large", "mc_maze_medium", "mc_maze_small", "mc_rtt", "area2_bump" or
        "dmfc_rsg".
    files : path, or sequence of these
        The NWB file with the trials that train and validate, if wanted also the one with the
        trials for testing, or a folder with them.
    output : path, optional
        By default ``datasets/<name>-<bin>ms-val.h5``.
    bin_ms : {5, 20}, optional
        By default that of the published configuration.
    overwrite, strict, compress, progress
        As for `prepare`.

    Returns
    -------
    Prepared

    Raises
    ------
    UserError, DataError
        For unknown names, and files that are not this data set.
    """
    recipe = RECIPES[one_of("--nlb", name, RECIPES)]
    bin_ms = recipe.bin_ms if bin_ms is None else bin_ms
    if bin_ms not in BINS_MS:
        raise UserError(f"--bin-ms {bin_ms:g}; the benchmark has bins of 5 and 20 ms.")
    path = Path(absolute_pattern(output or f"datasets/{name}-{int(bin_ms):02d}ms-val.h5"))
    train, test = _find_files(name, files)
    check_output(train.path, path, overwrite)
    session = NLBSession(recipe, train, bin_ms / 1000)
    warnings = [*train.warnings, *session.warnings, *_unlike(name, session)]
    notes = [f"{name} of the Neural Latents Benchmark, bins of {bin_ms:g} ms: {train.path.name}"]
    make_folder(path)
    counted = count(train, session.windows, path.parent, progress=progress)
    with ExitStack() as stores:
        stores.enter_context(counted.store)
        warnings += counted.warnings
        _, largest = sum_units(counted, session.labels == 0, pairs=False)
        tested = None
        if test is not None:
            tested, more = test_contents(session, test, path.parent, progress)
            warnings += more
        if tested is not None:
            stores.enter_context(tested.counted.store)
        raise_if_strict(warnings, strict)
        contents = Contents(
            counted,
            session.labels,
            session.units,
            session.n_read_units,
            largest,
            {},
            session.per_window(progress),
        )
        options = PrepOptions(bin_ms=bin_ms)
        attrs = source_attributes(train, options, [*notes, *warnings], progress) | {"nlb": name}
        extra = session.averages(progress)
        write_contents(path, contents, attrs, compress, progress, extra=extra, test=tested)
    trials = count_splits(session.labels)
    if tested is not None:
        trials["test"] = len(tested.labels)
    return Prepared(
        path,
        trials,
        session.windows.n_read,
        session.windows.n_bins,
        session.n_read_units,
        len(session.units),
        notes,
        warnings,
    )


def _find_files(
    name: str, given: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
) -> tuple[Recording, Recording | None]:
    """Tell the file with trials to train and validate from the one with trials for testing."""
    paths: list[Path] = []
    for one in [given] if isinstance(given, str | os.PathLike) else given:
        path = Path(absolute_pattern(one))
        paths += sorted(path.rglob("*.nwb")) if path.is_dir() else [path]
    if not paths:
        raise UserError(
            f"--nlb {name} needs the benchmark's NWB files: {dandi_download(name)}, then name the "
            "folder that it makes."
        )
    train: list[Recording] = []
    test: list[Recording] = []
    for path in paths:
        recording = open_recording(path)
        splits = set(recording.trials["split"].tolist()) if "split" in recording.trials else set()
        if {"train", "val"} <= splits:
            train.append(recording)
        elif "test" in splits:
            test.append(recording)
        else:
            raise DataError(
                f"{path} is no file of the benchmark: its trials have "
                + (f"the splits {list_some(sorted(splits))}" if splits else "no column 'split'")
                + ", not 'train' and 'val'. Use lfads prep without --nlb."
            )
    if len(train) != 1 or len(test) > 1:
        raise UserError(
            f"--nlb {name} takes one file with trials to train and validate, and at most one with "
            f"trials for testing; found {len(train)} ({list_some([r.path.name for r in train])}) "
            f"and {len(test)}. Name the files of one data set."
        )
    return train[0], test[0] if test else None


def _unlike(name: str, session: NLBSession) -> list[str]:
    """Say where a file is not of the size of the published data set."""
    expected = NLB_FILES[name][1][2:]
    found = (session.n_read_units, len(session.units))
    if found == expected:
        return []
    others = [key for key, (_, shape) in NLB_FILES.items() if shape[2:] == found]
    hint = f"; it looks like {others[0]}" if others else ""
    return [
        f"{name} has {expected[0]} units to read and {expected[1]} in all, this file has "
        f"{found[0]} and {found[1]}{hint}"
    ]
