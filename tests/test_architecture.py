"""Who may import whom, read from the source; ``docs/architecture.md`` says why."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "lfads_torch"
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}

# From the ground up. A module imports only from lines above its own, and from its own room. A name
# stands for the module and all below it; the longest match decides.
LAYERS = [
    "version errors seeds tuples processes files ownership progress folder consent utils compat",
    "tables",
    "arguments kernels data search.space search.rules search.settings search.history",
    "provenance modules metrics datamodules prep sessions.align sessions.align_files "
    "compat.populations",
    "network compat.training",
    "objective model_checks optimiser",
    "model modules.l2",
    "compat.checkpoints compat.records",
    "checkpoint",
    "post_run",
    "callbacks",
    "runs",
    "online",
    "compat.ray_names",
    "run_model",
    "search sessions",
    "extensions testing demo estimator",
    "commands",
    "cli",
]
LAYER = {name: level for level, line in enumerate(LAYERS) for name in line.split()}
# Rooms on one line that may use one another, in this direction.
NEIGHBOURS = {
    ("files", "errors"),
    ("files", "processes"),
    ("ownership", "errors"),
    ("ownership", "files"),
    ("ownership", "processes"),
    ("folder", "errors"),
    ("folder", "ownership"),
    ("folder", "processes"),
    ("folder", "files"),
    ("progress", "errors"),
    ("progress", "files"),
    ("consent", "errors"),
    ("search", "search"),
    ("sessions", "search"),
    ("sessions.align", "metrics"),
    ("modules", "data"),
    ("datamodules", "prep"),
    ("prep", "data"),
    ("prep", "provenance"),
    ("search.space", "arguments"),
    ("search.settings", "search.space"),
    ("search.settings", "arguments"),
    ("search.rules", "search.space"),
    ("search.rules", "search.settings"),
}
# Arrows that still run up or sideways: to be taken out, never to be added to.
DEBTS: set[tuple[str, str]] = set()
# The only modules that may import Ray; `lfads_torch.search.ray` imports them when it is asked to.
OVER_RAY = {
    "lfads_torch.search.ray.driver",
    "lfads_torch.search.ray.scheduler",
    "lfads_torch.search.ray.trial",
    "lfads_torch.extensions.tune_scheduler",
    "lfads_torch.extensions.tune_stopper",
    "lfads_torch.extensions.tune_trial",
}
# The only module that may import Triton, which comes with builds of torch for CUDA.
OVER_TRITON = {"lfads_torch.kernels.triton_cells", "lfads_torch.kernels.triton_loops"}
HYDRA = {"hydra", "omegaconf"}
HYDRA_USERS = ("lfads_torch.run_model", "lfads_torch.runs")


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
        elif (
            top_level_only
            and isinstance(node, ast.If)
            and ast.unparse(node.test) == "TYPE_CHECKING"
        ):
            todo.extend(node.orelse)
        elif not (top_level_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            todo.extend(ast.iter_child_nodes(node))


def inside(name: str, room: str) -> bool:
    return name == room or name.startswith(f"{room}.")


def place(name: str) -> str:
    """The entry of `LAYERS` for a module, named without the package."""
    return max((key for key in LAYER if inside(name, key)), key=len, default="")


def arrows() -> Iterator[tuple[str, str, int]]:
    """Imports between modules of the package, named without it."""
    for name in MODULES.keys() - {"lfads_torch"}:
        for imported, line in imports(name):
            if inside(imported, "lfads_torch") and imported != "lfads_torch":
                yield name[len("lfads_torch.") :], imported[len("lfads_torch.") :], line


def test_every_module_has_its_place() -> None:
    lost = [name for name in MODULES if name != "lfads_torch" and not place(name[12:])]
    assert not lost, f"add {lost} to LAYERS and docs/architecture.md"


def test_imports_run_down() -> None:
    wrong = set()
    for name, imported, _ in arrows():
        lower, upper = place(imported), place(name)
        if LAYER[lower] >= LAYER[upper] and lower.split(".")[0] != upper.split(".")[0]:
            if (upper, lower) not in NEIGHBOURS:
                wrong.add((name, imported))
        elif LAYER[lower] > LAYER[upper]:
            wrong.add((name, imported))
    assert wrong == DEBTS


def test_no_circle_of_modules() -> None:
    below: dict[str, set[str]] = {name: set() for name in MODULES}
    for name, imported, _ in arrows():
        below[f"lfads_torch.{name}"].add(f"lfads_torch.{imported}")
    while True:
        free = {name for name, needs in below.items() if not needs & below.keys()}
        if not free:
            break
        below = {name: needs for name, needs in below.items() if name not in free}
    assert not below, f"these import one another: {sorted(below)}"


NUMPY_ONLY = [
    *(n for n in MODULES if inside(n, "lfads_torch.data")),
    *(n for n in MODULES if inside(n, "lfads_torch.prep")),
    *(f"lfads_torch.{n}" for line in LAYERS[1:2] for n in line.split() if n.startswith("search.")),
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
    lazily = {"lfads_torch.search.ray", "lfads_torch.compat.ray_names"}
    assert set(importers(MODULES, {"ray"})) <= {*OVER_RAY, *lazily}


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


def test_every_module_loads_where_ray_wandb_and_triton_are_not_installed() -> None:
    run_python(
        "import sys, importlib\n"
        "sys.modules['ray'] = sys.modules['wandb'] = sys.modules['triton'] = None\n"
        f"for name in {[n for n in MODULES if n not in OVER_RAY | OVER_TRITON]}:\n"
        "    importlib.import_module(name)"
    )


def test_imports_are_found_wherever_they_stand() -> None:
    """The reader of imports sees relative ones and lazy ones, and tells lazy ones apart."""
    anywhere = {module for module, _ in imports("lfads_torch.model")}
    at_once = {module for module, _ in imports("lfads_torch.model", top_level_only=True)}
    assert {"lfads_torch.modules.spec", "lfads_torch.errors", "torch"} <= at_once
    assert anywhere - at_once == {"lfads_torch.datamodules"}
