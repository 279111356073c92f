"""How to make the files of the Neural Latents Benchmark, which cannot be shipped."""

from __future__ import annotations

import re
from pathlib import PurePath

#: Data set -> (number in the DANDI archive, trials' shape: bins read, bins reconstructed,
#: channels read, channels reconstructed), as in Pei et al. 2021 (arXiv 2109.04463).
NLB_FILES = {
    "mc_maze": ("000128", (35, 45, 137, 182)),
    "mc_maze_large": ("000138", (140, 180, 122, 162)),
    "mc_maze_medium": ("000139", (140, 180, 114, 152)),
    "mc_maze_small": ("000140", (140, 180, 107, 142)),
    "mc_rtt": ("000129", (120, 160, 98, 130)),
    "area2_bump": ("000127", (120, 160, 49, 65)),
    "dmfc_rsg": ("000130", (300, 340, 40, 54)),
}


def how_to_make(pattern: str) -> str | None:
    """Say how a missing file of the benchmark is made.

    Parameters
    ----------
    pattern : str
        Path or glob pattern that matched nothing, such as ``datasets/mc_rtt-05ms-val.h5``.

    Returns
    -------
    str or None
        The advice; None for a file that is not one of the benchmark's.
    """
    match = re.fullmatch(r"(\w+?)(_\*)?-(\d+)ms-\w+\.h5", PurePath(pattern).name)
    if match is None or match[1] not in NLB_FILES:
        return None
    name, bin_ms = match[1], int(match[3])
    if match[2]:
        sets = [key for key in NLB_FILES if key.startswith(f"{name}_")]
        numbers = ", ".join(f"DANDI:{NLB_FILES[key][0]} ({key})" for key in sets)
        shapes = "one file for each"
    else:
        dandi, (t_read, t_all, n_read, n_all) = NLB_FILES[name]
        numbers = f"DANDI:{dandi}"
        shapes = (
            f"{{train,valid}}_encod_data: trials x {t_read} bins x {n_read} channels; "
            f"{{train,valid}}_recon_data: trials x {t_all} bins x {n_all} channels, the channels "
            "and bins read first, the held-out ones after them"
        )
    keys = {
        "mc_rtt": "{train,valid}_decode_mask",
        "dmfc_rsg": "psth, {train,valid}_cond_idx, {train,valid}_jitter",
    }.get(name, "psth, {train,valid}_cond_idx, {train,valid}_decode_mask")
    return (
        "The Neural Latents Benchmark's recordings are not shipped. To make this file: "
        f"download {numbers} (dandi download), bin the spikes to {bin_ms} ms, and write an HDF5 "
        f"file with {shapes}. For the benchmark's scores add {{train,valid}}_behavior and {keys}; "
        "without them set datamodule.batch_keys=[] datamodule.attr_keys=[]. "
        "lfads_torch.data.schema.write_session writes it, lfads check looks it through."
    )
