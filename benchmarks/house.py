"""Size and order of the source: lines, docstrings, comments, import circles, repeated file names.

Call it from a checkout, for itself or for another one:

    python benchmarks/house.py                      # this checkout
    python benchmarks/house.py ../other --json      # another one, for machines
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import tokenize
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def count_lines(text: str) -> Counter[str]:
    """Return how many lines are code, docstring, comment or blank; a line with code is code."""
    docs: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        body = getattr(node, "body", None)
        for first in body if isinstance(body, list) else []:
            value = first.value if isinstance(first, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                docs.update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    kinds: dict[int, str] = dict.fromkeys(docs, "docstring")
    skipped = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in skipped:
            continue
        kind = "comment" if token.type == tokenize.COMMENT else "code"
        for line in range(token.start[0], token.end[0] + 1):
            if kinds.get(line) != "docstring" and (kind == "code" or line not in kinds):
                kinds[line] = kind
    lines = Counter(kinds.values())
    lines["total"] = len(text.splitlines())
    lines["blank"] = lines["total"] - len(kinds)
    return lines


def imported(package: str, text: str, modules: set[str]) -> set[str]:
    """Return the modules that a module of `package` imports, lazily or for annotations too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            source = ".".join([*(above if node.level else []), *filter(None, [node.module])])
            names.update(
                full if (full := f"{source}.{alias.name}") in modules else source
                for alias in node.names
            )
    return names & modules


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Return the groups of modules that reach one another by imports."""

    def below(start: str) -> set[str]:
        seen: set[str] = set()
        todo = list(arrows[start])
        while todo:
            if (name := todo.pop()) not in seen:
                seen.add(name)
                todo.extend(arrows[name])
        return seen

    reached = {name: below(name) for name in arrows}
    groups = {
        tuple(sorted(other for other in reached[name] if name in reached[other]))
        for name in arrows
        if name in reached[name]
    }
    return [list(group) for group in sorted(groups)]


def measure(root: Path) -> dict[str, Any]:
    """Measure the package ``lfads_torch`` below a folder."""
    files = sorted((root / "lfads_torch").rglob("*.py"))
    texts = {
        ".".join(path.relative_to(root).with_suffix("").parts): path.read_text(encoding="utf-8")
        for path in files
    }
    modules = {name.removesuffix(".__init__") for name in texts}
    arrows = {
        name.removesuffix(".__init__"): imported(name.rpartition(".")[0], text, modules)
        - {name.removesuffix(".__init__"), "lfads_torch"}
        for name, text in texts.items()
    }
    lines: Counter[str] = sum((count_lines(text) for text in texts.values()), Counter())
    names = Counter(path.name for path in files if path.name != "__init__.py")
    return {
        "files": len(files),
        "files below 60 lines": sum(len(text.splitlines()) < 60 for text in texts.values()),
        "lines": dict(lines),
        "comments in percent": round(100 * lines["comment"] / lines["total"], 2),
        "import circles": circles(arrows),
        "file names that occur twice": sorted(name for name, n in names.items() if n > 1),
    }


def main() -> None:
    """Print the figures of one checkout."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("root", nargs="?", type=Path, default=ROOT)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    figures = measure(arguments.root)
    if arguments.json:
        print(json.dumps(figures, indent=2))
        return
    for name, value in figures.items():
        if isinstance(value, dict):
            value = ", ".join(f"{n} {kind}" for kind, n in value.items())
        elif isinstance(value, list):
            value = f"{len(value)}  {value}"
        print(f"{name:28} {value}")


if __name__ == "__main__":
    main()
