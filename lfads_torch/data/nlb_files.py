"""The files of the Neural Latents Benchmark, which cannot be shipped, and how they are made."""

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


def dandi_download(name: str) -> str:
    """Return the command that downloads a data set from the DANDI archive."""
    return f"dandi download DANDI:{NLB_FILES[name][0]}"


def how_to_make(pattern: str) -> str | None:
    """Say how a missing file of the benchmark is made."""
    path = PurePath(pattern)
    match = re.fullmatch(r"(\w+?)(_\*)?-(\d+)ms-\w+\.h5", path.name)
    if match is None or match[1] not in NLB_FILES:
        return None
    name, bin_ms = match[1], int(match[3])
    names = [key for key in NLB_FILES if key.startswith(f"{name}_")] if match[2] else [name]
    lines = []
    for key in names:
        output = path.with_name(f"{key}{path.name[match.end(2 if match[2] else 1) :]}")
        lines.append(
            f"  {dandi_download(key)}\n"
            f"  lfads prep --nlb {key} {NLB_FILES[key][0]} --bin-ms {bin_ms} -o {output}"
        )
    if len(names) == 1:
        t_read, t_all, n_read, n_all = NLB_FILES[name][1]
        keys = {
            "mc_rtt": "{train,valid}_decode_mask",
            "dmfc_rsg": "psth, {train,valid}_cond_idx, {train,valid}_jitter",
        }.get(name, "psth, {train,valid}_cond_idx, {train,valid}_decode_mask")
        lines.append(
            f"It then holds {{train,valid}}_encod_data, trials x {t_read} bins x {n_read} channels "
            f"(in the published configuration), and {{train,valid}}_recon_data, trials x {t_all} "
            f"bins x {n_all} channels; for the scores {{train,valid}}_behavior and {keys}."
        )
    return (
        "The Neural Latents Benchmark's recordings are not shipped. To make "
        f"{'these files' if match[2] else 'this file'}:\n" + "\n".join(lines)
    )
