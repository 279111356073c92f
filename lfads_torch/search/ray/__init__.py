"""The back-end over Ray Tune: the same members and rules, in trials on one or many machines.

Only modules in here import Ray, and only `run_ray_search` imports them. `group` (the members of a
trial), `coordinator` (what happens between generations) and `cluster` (options) do without it;
`trial`, `scheduler` and `driver` tie them to Tune.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError
from ..settings import SearchSettings, from_mapping
from .cluster import RayOptions

if TYPE_CHECKING:
    from ...run_model import RunResult
    from ..result import GoingOn

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
    config: dict[str, Any],
    settings: SearchSettings,
    folder: Path,
    going_on: GoingOn,
    *,
    overwrite: bool,
) -> RunResult:
    """Search for hyper-parameters over Ray Tune, and keep the best model.

    Members, scores, tournaments and files in the run folder are those of a search in one process;
    a trial of Tune holds one member or a stacked group of them.
    """
    require_ray("--backend ray")
    options = from_mapping(RayOptions, settings.ray, "search.ray")
    from .driver import Driver, environment, joined

    with joined(options), environment():
        driver = Driver(config, settings, folder, options, going_on, overwrite=overwrite)
        return driver.run()
