"""The submission file of the Neural Latents Benchmark (Pei et al. 2021; neurallatents.github.io).

A group per data set, named after it, with ``_20`` behind the name for bins of 20 ms; in it the
rates in spikes per bin, trials x bins x neurons: ``train_rates_heldin``, ``train_rates_heldout``,
``eval_rates_heldin``, ``eval_rates_heldout`` and, where bins beyond those read were predicted,
``eval_rates_heldin_forward``, ``eval_rates_heldout_forward``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data import write_session
from ..data.nlb_files import NLB_FILES
from ..errors import DataError, UserError, did_you_mean
from .outputs import RunOutputs, SessionOutputs, load_outputs
from .trials import Trials

Array = NDArray[Any]

_SUFFIXES = {5.0: "", 20.0: "_20"}
# The table of files gives MC_Maze in bins of 20 ms, the others in bins of 5 ms.
_TABLE_BIN_MS = {"mc_maze": 20.0}


def nlb_submission(
    runs: Sequence[str | Path | RunOutputs],
    output: str | Path,
    *,
    datasets: Sequence[str] | None = None,
    split: str = "test",
    bin_ms: float | None = None,
) -> tuple[Path, dict[str, tuple[int, ...]]]:
    """Write a submission file.

    Parameters
    ----------
    runs : sequence of run folders, output files or RunOutputs
        One per data set.
    output : str or Path
    datasets : sequence of str, optional
        Name of each run's data set; by default it is read from the name of the data file, such as
        ``mc_maze-20ms-test.h5``.
    split : {"test", "valid"}
        ``test`` for the benchmark's test phase, in which training and validation trials both are
        training trials, in the order of the recording (``{split}_inds``); ``valid`` for its
        validation phase.
    bin_ms : float, optional
        Bin width, where neither attributes nor names of the files say it.

    Returns
    -------
    path : Path
    shapes : dict of str to tuple of int
        Of every array in the file, by ``group/name``.

    Raises
    ------
    UserError
        If the data set is unknown or does not have the benchmark's shape, or a split is lacking.
    DataError
        If rates are negative or not finite, which the benchmark refuses.
    """
    if split not in ("test", "valid"):
        raise UserError(f"split is {split!r}; legal are test and valid")
    if datasets is not None and len(datasets) != len(runs):
        raise UserError(f"{len(runs)} run(s) and {len(datasets)} data set(s); give one for each")
    arrays: dict[str, Array] = {}
    for number, run in enumerate(runs):
        outputs = run if isinstance(run, RunOutputs) else load_outputs(run, bin_ms=bin_ms)
        if datasets is not None and len(outputs) > 1:
            raise UserError(
                f"{outputs.path} has {len(outputs)} sessions, but a data set is one: name the "
                "output files one by one"
            )
        for session in outputs:
            name = None if datasets is None else datasets[number]
            rates = session_rates(session, split, name)
            if taken := sorted(set(rates) & set(arrays)):
                group = taken[0].partition("/")[0]
                raise UserError(f"{group} is named twice; each data set goes in once")
            arrays |= rates
    path = write_session(output, arrays)
    return path, {key: array.shape for key, array in arrays.items()}


def session_rates(
    session: SessionOutputs, split: str, dataset: str | None = None
) -> dict[str, Array]:
    """Return one data set's rates, by ``group/name``; parameters as of `nlb_submission`."""
    if dataset is None:
        # The longest name first: mc_maze is also how mc_maze_small begins.
        stems = [Path(session.name).name, session.path.stem]
        for name in sorted(NLB_FILES, key=len, reverse=True):
            if any(stem == name or re.match(rf"{name}[^a-z]", stem) for stem in stems):
                dataset = name
                break
        else:
            raise UserError(
                f"{session.path}: the session's name, {session.name!r}, does not say which data "
                f"set of the benchmark it is; give --dataset, one of {', '.join(NLB_FILES)}"
            )
    if dataset not in NLB_FILES:
        raise UserError(
            f"{dataset!r} is not a data set of the benchmark; {did_you_mean(dataset, NLB_FILES)}"
        )
    named = re.search(r"[-_](\d+)ms", session.name)
    width = session.bin_ms or (float(named[1]) if named else None)
    if width not in _SUFFIXES:
        text = "an unknown width" if width is None else f"{width:g} ms"
        raise UserError(
            f"{session.path} has bins of {text}; the benchmark takes 5 ms and 20 ms (give "
            "--bin-ms where the file does not say the width)"
        )
    scored = session.trials(split)
    train = session.trials("train") if split == "valid" else session.merged(["train", "valid"])
    n_bins, n_channels = session.read_sizes
    _check_shape(session, dataset, width, (n_bins, n_channels), scored)
    group = dataset + _SUFFIXES[width]
    rates_of: dict[str, Array] = {}
    for prefix, trials in (("train", train), ("eval", scored)):
        rates = trials["output_params"]
        if rates.ndim != 3 or not np.isfinite(rates).all() or (rates < 0).any():
            raise DataError(
                f"{session.path}: the rates of {prefix} trials are not all finite and at least 0, "
                "as the benchmark demands; was the model one of counts, and did it converge?"
            )
        read = rates[:, :n_bins]
        rates_of[f"{group}/{prefix}_rates_heldin"] = read[..., :n_channels]
        rates_of[f"{group}/{prefix}_rates_heldout"] = read[..., n_channels:]
        if prefix == "eval" and rates.shape[1] > n_bins:
            forward = rates[:, n_bins:]
            rates_of[f"{group}/eval_rates_heldin_forward"] = forward[..., :n_channels]
            rates_of[f"{group}/eval_rates_heldout_forward"] = forward[..., n_channels:]
    return rates_of


def _check_shape(
    session: SessionOutputs, dataset: str, bin_ms: float, read: tuple[int, int], scored: Trials
) -> None:
    t_read, t_all, n_read, n_all = NLB_FILES[dataset][1]
    per_bin = _TABLE_BIN_MS.get(dataset, 5.0) / bin_ms
    legal = (round(t_read * per_bin), n_read, round(t_all * per_bin), n_all)
    shape = scored["output_params"].shape
    sizes = (*read, *shape[1:3])
    # Forward bins may be left out.
    if sizes not in (legal, (legal[0], n_read, legal[0], n_all)):
        raise UserError(
            f"{session.path}: {dataset} at {bin_ms:g} ms has {legal[0]} bins x {n_read} neurons "
            f"that are read, of {legal[2]} x {n_all}; this run has {sizes[0]} x {sizes[1]}, of "
            f"{sizes[2]} x {sizes[3]}"
        )
