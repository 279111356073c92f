"""The back-end over Ray Tune: the same members and rules, in trials on one or many machines.

Only modules in here import Ray, and only `run_ray_search` imports them. `group` (the members of a
trial), `coordinator` (what happens between generations) and `cluster` (options) do without it;
`trial`, `scheduler` and `driver` tie them to Tune.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError
from ..settings import from_mapping
from .cluster import RayOptions

if TYPE_CHECKING:
    from ...run_model import RunResult

__all__ = ["RayOptions", "require_ray", "run_ray_search"]


def require_ray(what: str) -> None:
    """Refuse what needs Ray Tune where it is not installed."""
    try:
        import ray.tune  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"{what} needs Ray Tune, which is not installed: pip install 'lfads-torch[tune]'"
        ) from error


def run_ray_search(
    config: Mapping[str, Any],
    folder: Path,
    *,
    kind: str,
    resume: bool = False,
    overwrite: bool = False,
    options: RayOptions | None = None,
) -> RunResult:
    """Search for hyper-parameters over Ray Tune, and keep the best model.

    Members, scores, tournaments and what lies in the run folder are those of a search in one
    process; a trial of Tune holds one member or a stacked group of them.
    """
    require_ray("--backend ray")
    node = config.get("search") or {}
    method = node.get("method", "pbt")
    if method != kind:
        raise ConfigError(f"search.method is {method}, but this is a search by {kind}; set {kind}")
    if options is None:
        options = from_mapping(RayOptions, node.get("ray") or {}, "search.ray")
    from .driver import search

    run_folder = Path(folder).absolute()
    return search(dict(config), run_folder, resume=resume, overwrite=overwrite, options=options)
