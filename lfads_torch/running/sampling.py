"""Posterior sampling of a finished run, on its own data or on new trials."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError
from .compose import absolute_pattern
from .folder import CHECKPOINTS, CONFIG, find_checkpoint
from .parts import build, pick_device


def sample_run(
    run: str | Path,
    *,
    data: str | Path | None = None,
    num_samples: int = 50,
    output: str | Path | None = None,
    best: bool = True,
) -> list[Path]:
    """Average posterior samples of a trained model.

    Parameters
    ----------
    run : str or Path
        Run folder, or a checkpoint in one.
    data : str or Path, optional
        Other files of the same channels and bins; the run's own data by default.
    num_samples : int, default=50
        Posterior samples per trial.
    output : str or Path, optional
        Output file; in the run folder by default.
    best : bool, default=True
        The best checkpoint instead of the last.

    Returns
    -------
    list of Path
        One file per session.

    Raises
    ------
    UserError
        If there is no checkpoint, or the data do not fit the model.
    """
    from ..checkpoint import load_model
    from ..post_run.analysis import run_posterior_sampling

    if num_samples < 1:
        raise UserError(f"the number of samples must be 1 or more, not {num_samples}")
    place = Path(run).expanduser().absolute()
    folder = run_folder_of(place)
    checkpoint = find_checkpoint(place, best=best)
    if checkpoint is None:
        raise UserError(f"{place} holds no checkpoint; name a run folder or a .ckpt file")
    config = read_config(folder) if (folder / CONFIG).is_file() else {}
    settings = dict(config.get("datamodule") or {})
    if data is not None:
        settings["datafile_pattern"] = absolute_pattern(str(data), Path.cwd())
        settings.update(
            batch_keys=[], attr_keys=[], reshuffle_tv_seed=None, reshuffle_tv_ratio=None
        )
    if "datafile_pattern" not in settings:
        raise UserError(f"{folder} does not say what its data were; give --data FILE")
    settings.setdefault("_target_", "lfads_torch.datamodules.BasicDataModule")
    datamodule = build(settings, "datamodule")
    datamodule.setup("fit")
    model = load_model(checkpoint)
    model.to(pick_device(config.get("trainer") or {}))
    name = "lfads_output.h5" if data is None else f"{_stem(data)}_output.h5"
    path = Path(output).expanduser().absolute() if output else folder / name
    written = run_posterior_sampling(
        model, datamodule, path, num_samples, run=folder, checkpoint=checkpoint
    )
    return [Path(one).absolute() for one in written]


def run_folder_of(place: Path) -> Path:
    """Return the run folder that holds a checkpoint.

    Parameters
    ----------
    place : Path
        A run folder, its folder of checkpoints or a checkpoint.

    Returns
    -------
    Path
    """
    folder = place if place.is_dir() else place.parent
    return folder.parent if folder.name == CHECKPOINTS else folder


def read_config(folder: Path) -> Mapping[str, Any]:
    """Read the configuration of a run.

    Parameters
    ----------
    folder : Path
        Run folder.

    Returns
    -------
    dict
    """
    from omegaconf import OmegaConf

    config = OmegaConf.to_container(OmegaConf.load(folder / CONFIG))
    if not isinstance(config, dict):
        raise UserError(f"{folder / CONFIG} holds no keys")
    return {str(key): value for key, value in config.items()}


def _stem(data: str | Path) -> str:
    return Path(data).stem.replace("*", "").replace("?", "").strip("_-. ") or "lfads"
