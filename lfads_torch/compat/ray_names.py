"""Names of Ray that newer releases have removed, with the meaning that they had.

`install` answers them wherever Python imports `ray.tune` later, or at once where it is imported
already; it does not import Ray. YAML reaches `get_trial_dir` and the callbacks by their names here.
"""

from __future__ import annotations

import inspect
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import spec_from_loader
from numbers import Number
from pathlib import Path
from types import ModuleType
from typing import Any

from ..files import expanded
from ..folder import RunFolder
from ..runs.places import starting_from, starts

#: Modules that Ray has renamed; what lies below them has moved with them.
_MODULES = {
    "ray.tune.suggest.suggestion": "ray.tune.search",
    "ray.tune.suggest": "ray.tune.search",
    "ray.tune.sample": "ray.tune.search.sample",
    "ray.tune.trial": "ray.tune.experiment.trial",
}
#: Callbacks that need Ray, and the module that has them.
_CALLBACKS = ("TuneReportCallback", "TuneReportCheckpointCallback")
_CALLBACKS_HOME = "lfads_torch.extensions.tune_trial"
#: Arguments of `tune.run` that no longer mean anything.
_MEANINGLESS = (
    "global_checkpoint_period",
    "loggers",
    "queue_trials",
    "ray_auto_init",
    "run_errored_only",
    "server_port",
    "sync_on_checkpoint",
    "sync_to_cloud",
    "sync_to_driver",
    "trial_executor",
    "upload_dir",
    "with_server",
)


def __getattr__(name: str) -> Any:
    if name in _CALLBACKS:
        return getattr(import_module(_CALLBACKS_HOME), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def install() -> None:
    """Answer the removed names from now on, in this process."""
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _Finder())
    for name, complete in _COMPLETED.items():
        module = sys.modules.get(name)
        if module is not None:
            complete(module)


def get_trial_dir() -> str:
    """Return the folder of the trial that this process runs, or the working directory."""
    from ray.train._internal.session import get_session

    session = get_session()
    if session is None:
        return str(Path.cwd())
    storage = session.storage
    if storage.storage_filesystem.type_name == "local":
        return str(Path(storage.trial_fs_path))
    return str(storage.trial_working_directory)


def get_trial_name() -> str | None:
    """Return the name of the trial that this process runs, None outside a trial."""
    return _of_trial("trial_name")


def get_trial_id() -> str | None:
    """Return the identifier of the trial that this process runs, None outside a trial."""
    return _of_trial("trial_id")


def _of_trial(name: str) -> str | None:
    from ray.train._internal.session import get_session

    session = get_session()
    return None if session is None else str(getattr(session, name))


# ---- modules -------------------------------------------------------------------------------------


class _Finder(MetaPathFinder, Loader):
    """Find renamed modules under their old names, and complete `ray.tune` when it is imported."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Answer for modules of Ray that have other names now, or that lack names."""
        if _new_name(fullname) is not None:
            return spec_from_loader(fullname, self)
        if fullname not in _COMPLETED:
            return None
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            execute: Any = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _COMPLETED[fullname](module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Import the module of today's name."""
        module = import_module(str(_new_name(spec.name)))
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Leave the module as it is: the import system has put the old name's specification."""
        module.__spec__ = self._spec


def _new_name(name: str) -> str | None:
    for old, new in _MODULES.items():
        if name == old or name.startswith(f"{old}."):
            return new + name.removeprefix(old)
    return None


def _complete_tune(tune: Any) -> None:
    from ray.tune.experiment import Trial

    for function in (get_trial_dir, get_trial_name, get_trial_id):
        setattr(tune, function.__name__, function)
    tune.suggest = import_module("ray.tune.search")
    tune.run = _run(tune.run)
    tune.with_parameters = _with_parameters(tune.with_parameters)
    analysis, checkpoint = tune.ExperimentAnalysis, tune.Checkpoint
    analysis.best_logdir = property(lambda self: self.best_trial.path)
    analysis.get_best_logdir = _get_best_logdir
    Trial.logdir = property(lambda self: self.path)
    checkpoint._local_path = property(lambda self: self.path)
    checkpoint.__fspath__ = lambda self: self.path


def _complete_callbacks(module: Any) -> None:
    for name in _CALLBACKS:
        setattr(module, name, getattr(import_module(_CALLBACKS_HOME), name))


_COMPLETED: dict[str, Callable[[Any], None]] = {
    "ray.tune": _complete_tune,
    "ray.tune.integration.pytorch_lightning": _complete_callbacks,
}


def _get_best_logdir(analysis: Any, *args: Any, **kwargs: Any) -> str | None:
    trial = analysis.get_best_trial(*args, **kwargs)
    return trial and str(trial.path)


# ---- trials --------------------------------------------------------------------------------------


def _run(present: Callable[..., Any]) -> Callable[..., Any]:
    def run(run_or_experiment: Any, *args: Any, **arguments: Any) -> Any:
        for name in [name for name in arguments if name in _MEANINGLESS]:
            del arguments[name]
            warnings.warn(f"Ray has no {name} any more; it is left out", stacklevel=2)
        local_dir = arguments.pop("local_dir", None)
        if local_dir is not None:
            arguments["storage_path"] = str(expanded(local_dir).absolute())
        if inspect.isroutine(run_or_experiment) or isinstance(run_or_experiment, partial):
            run_or_experiment = as_trial(run_or_experiment)
            # As it was for functions: a new process costs seconds for each start of a trial.
            arguments.setdefault("reuse_actors", True)
        with _environment(arguments.get("progress_reporter")):
            return present(run_or_experiment, *args, **arguments)

    run.__doc__ = present.__doc__
    return run


def _with_parameters(present: Callable[..., Any]) -> Callable[..., Any]:
    def with_parameters(trainable: Any, **parameters: Any) -> Any:
        if not inspect.isclass(trainable) and _takes_checkpoint(trainable):
            trainable = as_trial(trainable)
        function = present(trainable, **parameters)
        if getattr(trainable, "is_trial", False):
            function.is_trial = True
        return function

    with_parameters.__doc__ = present.__doc__
    return with_parameters


@contextmanager
def _environment(reporter: Any) -> Iterator[None]:
    """Let a reporter report, which Ray's present way of printing would leave out.

    Nor does Ray warn that a trial reports checkpoints often, as these scripts do on purpose.
    """
    values = {"TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0"}
    if reporter is not None:
        values["RAY_AIR_NEW_OUTPUT"] = "0"
    values = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(values)
    try:
        yield
    finally:
        for name in values:
            os.environ.pop(name, None)


def as_trial(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let a function run as Tune ran trials when labs wrote their scripts.

    Its working directory is the folder of the trial, where its files stay; relative paths count
    from where they count in the script; and a trial that goes on from a checkpoint is given it as
    `checkpoint_dir`, where the function takes that.
    """
    if getattr(function, "is_trial", False) or inspect.isgeneratorfunction(function):
        return function
    folders, takes_checkpoint = starts(), _takes_checkpoint(function)

    def trial(config: dict[str, Any], **parameters: Any) -> Any:
        with _in_trial(folders) as checkpoint_dir:
            if takes_checkpoint:
                parameters["checkpoint_dir"] = checkpoint_dir
            output = _run_in_thread(function, config, parameters)
        # Tune takes numbers for results, and refuses anything else.
        return output if isinstance(output, dict | Number) else None

    inner = function.func if isinstance(function, partial) else function
    trial.__name__ = getattr(inner, "__name__", "trial")
    for name in ("_resources", "__mixins__"):
        if hasattr(function, name):
            setattr(trial, name, getattr(function, name))
    trial.is_trial = True  # type: ignore[attr-defined]
    return trial


def _run_in_thread(
    function: Callable[..., Any], config: dict[str, Any], parameters: dict[str, Any]
) -> Any:
    try:
        return function(config, **parameters)
    except KeyboardInterrupt as error:
        # Tune ends the thread of a trial by an exit, which a training run takes for Ctrl-C.
        if isinstance(error.__cause__, SystemExit):
            raise error.__cause__ from None
        raise


def _takes_checkpoint(function: Callable[..., Any]) -> bool:
    return "checkpoint_dir" in inspect.signature(function).parameters


@contextmanager
def _in_trial(folders: Sequence[Path]) -> Iterator[str | None]:
    """Go into the folder of the trial; give the folder of the checkpoint to go on from."""
    from ray import tune

    before, folder = Path.cwd(), Path(get_trial_dir())
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    try:
        with starting_from(folders):
            checkpoint = tune.get_checkpoint()
            if checkpoint is not None:
                with checkpoint.as_directory() as place:
                    yield place
                return
            # A worker that was killed before its first report leaves a run without a checkpoint.
            if RunFolder(folder).kind == "run":
                RunFolder(folder).delete()
            yield None
    finally:
        os.chdir(before)
