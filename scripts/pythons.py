"""Run the fast tests on every Python that the package promises and that is on this machine.

``python scripts/pythons.py [3.12 ...] [-- ARGUMENTS OF PYTEST]``. Each Python gets an environment
of its own, ``.venv-3.12``, with the versions of constraints.txt.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

VERSIONS = ("3.11", "3.12", "3.13")
ROOT = Path(__file__).parents[1]
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def find_python(version: str) -> Path | None:
    """Return an interpreter of a version, on the path or of pyenv, that starts."""
    on_path = shutil.which(f"python{version}")
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    newest = sorted(pyenv.glob(f"{version}.*/bin/python"), key=lambda path: int(_patch(path)))
    for path in [*([Path(on_path)] if on_path else []), *reversed(newest)]:
        # pyenv puts a script of that name on the path also where the version is switched off.
        code = "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"
        done = subprocess.run([path, "-c", code], capture_output=True, text=True)
        if done.returncode == 0 and done.stdout.strip() == version:
            return path
    return None


def _patch(python: Path) -> str:
    """Return the digits after the second dot: of two releases the newer has more."""
    digits = "".join(c for c in python.parents[1].name.split(".")[2] if c.isdigit())
    return digits or "0"


def run_tests(version: str, python: Path, arguments: list[str]) -> str:
    """Install and test; return what is wrong, or an empty text."""
    place = ROOT / f".venv-{version}"
    own = place / "bin" / "python"
    if not own.is_file():
        subprocess.run([python, "-m", "venv", place], check=True)
    install: list[str | Path] = [
        own,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ]
    install += ["-c", ROOT / "constraints.txt", "-e", f"{ROOT}[test]"]
    if subprocess.run(install, cwd=ROOT).returncode:
        return "the packages of constraints.txt cannot be installed"
    tests = subprocess.run(
        [own, "-m", "pytest", *arguments], cwd=ROOT, env={**os.environ, **ONE_THREAD}
    )
    return f"tests failed (pytest ended with {tests.returncode})" if tests.returncode else ""


def main(arguments: list[str]) -> int:
    """Test what is there, say what is not; return 1 where something failed or nothing ran."""
    at = arguments.index("--") if "--" in arguments else len(arguments)
    chosen, rest = arguments[:at] or list(VERSIONS), arguments[at + 1 :]
    outcomes = {}
    for version in chosen:
        python = find_python(version)
        if python is None:
            outcomes[version] = f"skipped: there is no python{version} on the path or in pyenv"
            continue
        print(f"== Python {version}: {python}", flush=True)
        outcomes[version] = run_tests(version, python, rest) or "passed"
    for version, outcome in outcomes.items():
        print(f"Python {version}: {outcome}")
    is_bad = any(not outcome.startswith(("passed", "skipped")) for outcome in outcomes.values())
    return int(is_bad or "passed" not in outcomes.values())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
