"""Who may import whom, read from the source; ``docs/architecture.md`` says why."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lfads_torch"
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}

# A name stands for the module and all below it; the longest match decides. Every module may
# import `errors`, the package's version and its own room.
MODEL = {
    "model",
    "model_checks",
    "objective",
    "training",
    "modules",
    "datamodules",
    "data",
    "metrics",
    "tuples",
}
MODEL |= {"seeds"}
RUN = MODEL | {"checkpoint", "post_run", "callbacks", "running"}
# The rules of a search are functions over plain arrays; its history is kept like a run's log.
SEARCH_RULES: dict[str, set[str]] = {
    "search.hyperparam": set(),
    "search.space": {"search.hyperparam"},
    "search.tournament": set(),
    "search.tables": set(),
    "search.history": {"search.tables", "running.folder"},
    "search.settings": {"search.space"},
    "search.methods": {"search.settings", "search.space", "search.tournament"},
}
MAY_IMPORT: dict[str, set[str]] = {
    "": set(),
    "errors": set(),
    "kernels": set(),
    "data": set(),
    "tuples": set(),
    "seeds": set(),
    "metrics": {"kernels"},
    # Smoothing is of use to data tools too, which never import torch.
    "metrics.evaluation": {"data.smoothing"},
    "modules": {"kernels", "tuples"},
    # These two take a `datafile_pattern` and read the sessions' sizes from the files.
    "modules.readin_readout": {"data"},
    "modules.recons": {"data", "kernels"},
    "modules.initial_readout": {"data"},
    "model_checks": {"data", "modules"},
    # `LFADS.from_data` takes a data module, or a path that it makes one of.
    "model": {"kernels", "modules", "tuples", "model_checks", "objective", "datamodules"},
    "training": {"modules", "metrics", "tuples"},
    "objective": {"training", "modules", "tuples"},
    "datamodules": {"data", "tuples"},
    # A run folder is where a checkpoint is looked for; it knows nothing of the rest of `running`.
    "checkpoint": MODEL | {"running.folder"},
    "post_run": {"model", "datamodules", "metrics"},
    "post_run.analysis": MODEL | {"checkpoint"},
    "post_run.ensemble": MODEL,
    # Scores of output files need no model, only files and arrays.
    "post_run.outputs": {"data"},
    "post_run.writing": {"data", "tuples"},
    "post_run.nlb_submission": {"data"},
    "post_run.evaluation": {"data", "metrics", "running.folder"},
    "post_run.posterior": {"modules"},
    "post_run.dynamics": {"kernels"},
    "post_run.report": {"metrics", "data", "checkpoint", "running.folder", "search.tables"},
    "post_run.pbt": {"search.tables"},
    "post_run.plots.search": {"search.tables"},
    "callbacks": {"model", "datamodules", "metrics", "tuples", "post_run"},
    "search": set(),
    **SEARCH_RULES,
    "search.population": MODEL | {"kernels", "search.memory"},
    "search.memory": {"data"},
    "search.members": MODEL | {"running"},
    "search.folder": {"checkpoint", "running"},
    "search.progress": {"callbacks"},
    "search.finish": RUN | {"run_model"},
    "search.local": RUN | {"run_model"},
    "search.runner": RUN | {"run_model"},
    "running": RUN,
    "running.folder": set(),
    # To fit the maps of a new session is a run like any other.
    "running.add_session": RUN | {"run_model"},
    "run_model": RUN | {"search"},
    "search.ray": RUN | {"run_model"},
    "extensions": RUN | {"search", "run_model"},
    "demo": RUN | {"run_model", "search"},
    "commands": RUN | {"search", "run_model", "extensions", "demo"},
    "cli": {"commands"},
}
# The only modules that may import Ray; `lfads_torch.search.ray` imports them when it is asked to.
OVER_RAY = {
    f"lfads_torch.search.ray.{name}"
    for name in ("driver", "reporting", "scheduler", "stopper", "tournament", "trial")
}
HYDRA = {"hydra", "omegaconf"}
HYDRA_USERS = ("lfads_torch.run_model", "lfads_torch.running")


@functools.cache
def imports(name: str, *, top_level_only: bool = False) -> list[tuple[str, int]]:
    """Modules that `name` imports, anywhere or when it is itself imported, with line numbers."""
    return list(read_imports(name, top_level_only))


def read_imports(name: str, top_level_only: bool) -> Iterator[tuple[str, int]]:
    path = MODULES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    todo: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) - node.level + 1]
            source = ".".join([*(parts if node.level else []), *filter(None, [node.module])])
            for alias in node.names:
                # `from package import module` imports the module, `from module import x` not x.
                yield (
                    full if (full := f"{source}.{alias.name}") in MODULES else source,
                    node.lineno,
                )
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            todo.extend(node.orelse)
        elif not (top_level_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            todo.extend(ast.iter_child_nodes(node))


def inside(name: str, room: str) -> bool:
    return name == room or name.startswith(f"{room}.")


def rule(name: str) -> str:
    """Key of `MAY_IMPORT` for a module, named without the package."""
    keys = [key for key in MAY_IMPORT if key and inside(name, key)]
    return max(keys, key=len, default="")


@pytest.mark.parametrize("name", MODULES)
def test_each_module_imports_only_what_its_room_may(name: str) -> None:
    own = name.removeprefix("lfads_torch").removeprefix(".")
    key = rule(own)
    assert key or not own, f"{name} is in no room: add it to MAY_IMPORT and docs/architecture.md"
    # One module of a room may be held to less than the room.
    alone = ("search.ray", "running.folder", *SEARCH_RULES)
    room = own if own in alone else own.partition(".")[0]
    allowed = MAY_IMPORT[key] | {"errors", "", room}
    for imported, line in imports(name):
        if inside(imported, "lfads_torch"):
            other = imported.removeprefix("lfads_torch").removeprefix(".")
            assert other in allowed or any(inside(other, room) for room in allowed if room), (
                f"{MODULES[name].name}:{line}: {name} imports {imported}; "
                f"it may import only {sorted(allowed)}"
            )


NUMPY_ONLY = [
    *(n for n in MODULES if inside(n, "lfads_torch.data")),
    *(f"lfads_torch.{name}" for name in SEARCH_RULES),
]


def importers(
    names: Iterable[str], packages: set[str], **options: bool
) -> dict[str, list[tuple[str, int]]]:
    """Which of these modules import something of these packages, and on which lines."""
    found = {
        name: [(m, line) for m, line in imports(name, **options) if m.partition(".")[0] in packages]
        for name in names
    }
    return {name: lines for name, lines in found.items() if lines}


def test_data_and_search_rules_need_no_torch() -> None:
    heavy = {"torch", "pytorch_lightning", "torchmetrics", "lightning"}
    assert importers(NUMPY_ONLY, heavy) == {}


def test_ray_and_wandb_are_never_needed_to_import() -> None:
    """They are imported inside the functions that use them."""
    others = [name for name in MODULES if name not in OVER_RAY]
    assert importers(others, {"ray", "wandb"}, top_level_only=True) == {}


def test_ray_is_imported_only_by_its_back_end() -> None:
    assert set(MODULES) >= OVER_RAY
    assert set(importers(MODULES, {"ray"})) <= {*OVER_RAY, "lfads_torch.search.ray"}


def test_only_the_runner_knows_hydra() -> None:
    others = [name for name in MODULES if not any(inside(name, user) for user in HYDRA_USERS)]
    assert importers(others, HYDRA) == {}
    assert importers(MODULES, HYDRA)


def test_errors_imports_nothing_of_ours() -> None:
    assert not [m for m, _ in imports("lfads_torch.errors") if inside(m, "lfads_torch")]


def run_python(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_package_its_data_tools_and_search_rules_load_without_torch() -> None:
    run_python(
        "import sys, importlib\n"
        f"for name in {['lfads_torch', 'lfads_torch.errors', *NUMPY_ONLY]}:\n"
        "    importlib.import_module(name)\n"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )


def test_every_module_loads_where_ray_and_wandb_are_not_installed() -> None:
    run_python(
        "import sys, importlib\n"
        "sys.modules['ray'] = sys.modules['wandb'] = None\n"
        f"for name in {[n for n in MODULES if n not in OVER_RAY]}:\n"
        "    importlib.import_module(name)"
    )


def test_imports_are_found_wherever_they_stand() -> None:
    """The reader of imports sees relative ones and lazy ones, and tells lazy ones apart."""
    anywhere = {module for module, _ in imports("lfads_torch.model")}
    at_once = {module for module, _ in imports("lfads_torch.model", top_level_only=True)}
    assert {"lfads_torch.modules.encoder", "lfads_torch.errors", "torch"} <= at_once
    assert anywhere - at_once == {"lfads_torch.datamodules"}
