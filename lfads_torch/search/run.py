"""Start or resume a search: what `lfads pbt` and `lfads search` call."""

from __future__ import annotations

from pathlib import Path

from ..consent import Trust, trust_of
from ..errors import UserError, one_of
from ..files import expanded
from ..folder import CONFIG, RunFolder
from ..processes import stoppable
from ..progress import quiet_libraries
from ..run_model import RunResult
from ..runs.changes import Changes, changes_of, check_changes, follow_data
from ..runs.compose import Overrides, compose_config, draw_seed, read_config
from .local import search_locally
from .members import check_search
from .result import GoingOn
from .state import check_is_search

BACKENDS = ("local", "ray")


def run_search(
    overrides: Overrides | None = None,
    config_path: str | Path = "../configs/pbt.yaml",
    *,
    method: str = "pbt",
    run_dir: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    backend: str | None = None,
    verbose: bool = False,
    trust: bool | Trust = False,
    accept_changed_data: bool = False,
) -> RunResult:
    """Search for hyper-parameters with many models, and keep the best one.

    Everything is checked before the first epoch: configuration, data, space, metric, memory.

    Parameters
    ----------
    overrides : mapping or sequence of str, optional
        Changes of the configuration, as in `run_model`.
    config_path : str or Path, default="../configs/pbt.yaml"
        The primary configuration. Where it has no ``search``, the packaged one of `method` is
        added.
    method : {"pbt", "random", "halving"}
        Which that is.
    run_dir : str or Path, optional
        The run folder; the working directory by default.
    resume : bool, default=False
        Go on with the search that `run_dir` holds, from its last epoch, on its own back-end.
    overwrite : bool, default=False
        Delete the run that `run_dir` holds.
    backend : {"local", "ray"}, optional
        One process, or Ray Tune; by default one process.
    verbose : bool, default=False
        Show what Lightning and torch say of themselves.
    trust : bool, default=False
        Resume also a search of somebody else whose configuration names code outside this package,
        or places outside its folder.
    accept_changed_data : bool, default=False
        Resume a search although its data files hold other numbers than those it was begun with.

    Returns
    -------
    RunResult
        Of the best model; `run_dir` is the folder of the search.

    Raises
    ------
    UserError
        For whatever is wrong with configuration, data or folder.
    DivergedError
        If the loss of every member turns NaN or infinite.
    """
    folder = expanded(run_dir or Path.cwd()).absolute()
    if resume:
        check_is_search(folder)
        config_path = folder / CONFIG
        before = read_config(folder, trust_of(folder / CONFIG, trust))
        recorded = str(RunFolder(folder).status.get("backend", "local"))
        if backend not in (None, recorded):
            raise UserError(f"{folder} was begun with --backend {recorded}; go on with the same")
        backend = recorded
    backend = one_of("backend", backend or "local", BACKENDS)
    config = compose_config(
        config_path, overrides or (), groups=None if resume else {"search": method}
    )
    draw_seed(config)
    settings = check_search(config)
    changes: Changes = {}
    if resume and overrides:
        follow_data(before, config)
        changes = changes_of(before, config)
    check_changes(changes, search=True)
    going_on = GoingOn(changes, resume=resume, accept_changed_data=accept_changed_data)
    claimed = RunFolder(folder).claimed("searching", resume=resume, overwrite=overwrite)
    with stoppable(), claimed, quiet_libraries(verbose):
        if backend == "ray":
            from .ray import run_ray_search

            return run_ray_search(config, settings, folder, going_on, overwrite=overwrite)
        return search_locally(config, settings, folder, going_on, overwrite=overwrite)
