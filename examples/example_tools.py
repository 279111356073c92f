"""What the example scripts share: settings of small models, outputs, and tables."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from lfads_torch.data import open_h5
from lfads_torch.errors import UserError
from lfads_torch.post_run.outputs import output_files

Array = NDArray[Any]


def read_arrays(path: Path, keys: Sequence[str]) -> dict[str, Array]:
    """Read data sets of an HDF5 file.

    Parameters
    ----------
    path : Path
    keys : sequence of str

    Returns
    -------
    dict of str to ndarray

    Raises
    ------
    UserError
        If the file cannot be read, or lacks a key.
    """
    with open_h5(path) as file:
        missing = [key for key in keys if not isinstance(file.get(key), h5py.Dataset)]
        if missing:
            raise UserError(f"{path} lacks {', '.join(missing)}; it has {', '.join(file)}")
        return {key: np.asarray(file[key][()]) for key in keys}


def small_model(n_factors: int, seed: int, epochs: int, *, quick: bool) -> dict[str, Any]:
    """Configure the models of the examples with several sessions.

    Parameters
    ----------
    n_factors, seed, epochs : int
    quick : bool
        Tiny networks, two epochs: only to see whether it runs.

    Returns
    -------
    dict
        Overrides for `lfads_torch.run_model`.
    """
    sizes = dict.fromkeys(("ic_enc_dim", "gen_dim"), 64)
    sizes |= dict.fromkeys(("ci_enc_dim", "con_dim", "ic_dim"), 32)
    ramps = ("l2_increase_epoch", "kl_increase_epoch")
    if quick:
        sizes = dict.fromkeys(sizes, 8)
    numbers = {**sizes, "co_dim": 3, "fac_dim": n_factors, **dict.fromkeys(ramps, 20)}
    overrides: dict[str, Any] = {
        "seed": seed,
        **{f"model.{key}": value for key, value in numbers.items()},
        "trainer.max_epochs": 2 if quick else epochs,
        "trainer.enable_progress_bar": False,
        "callbacks.raster_plot": None,
        "callbacks.trajectory_plot": None,
    }
    return overrides | ({"posterior_sampling.fn.num_samples": 2} if quick else {})


def output_of(run: str | Path) -> Path:
    """Find the output file of posterior sampling.

    Parameters
    ----------
    run : str or Path
        A run folder, or the output file itself.

    Returns
    -------
    Path

    Raises
    ------
    UserError
        If there is none.
    """
    return output_files(Path(run).expanduser())[0]


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], markdown: bool) -> str:
    """Lay a table out: the first column to the left, the others to the right.

    Parameters
    ----------
    header : sequence of str
    rows : sequence of sequences of str
    markdown : bool
        As Markdown rather than plain text.

    Returns
    -------
    str
    """
    table = [list(header), *map(list, rows)]
    widths = [max(len(cell) for cell in column) for column in zip(*table, strict=True)]
    lines = []
    for row in table:
        first, *rest = (
            cell.rjust(width) if k else cell.ljust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        cells = [first, *rest]
        lines.append("| " + " | ".join(cells) + " |" if markdown else "  ".join(cells).rstrip())
    if markdown:
        first, *rest = ("-" * width for width in widths)
        dashes = [first, *(f"{dash[1:]}:" for dash in rest)]
        lines.insert(1, "| " + " | ".join(dashes) + " |")
    return "\n".join(lines)


def run_script(main: Callable[[], None]) -> None:
    """Run a script's main function; print mistakes of the user without a traceback.

    Parameters
    ----------
    main : callable
    """
    try:
        main()
    except UserError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(2)
